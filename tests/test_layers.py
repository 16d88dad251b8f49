import copy

import pytest
import torch
import torchvision
import transformers as hf
from torch import nn

from ftnb.data import Batches
from ftnb.layers import layer_groups, what_is_training
from ftnb.metrics import classification_metrics
from ftnb.step import Learner, ParamGroup, Phase

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 50,
    "max_position_embeddings": 32,
}
RESNET = {
    "depths": [1, 2],
    "layer_type": "basic",
    "hidden_sizes": [8, 16],
    "embedding_size": 8,
    "out_features": ["stage2"],
}
SEQ2SEQ = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "vocab_size": 50,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
WAV2VEC2 = {
    **{key: SMALL[key] for key in ("hidden_size", "num_attention_heads", "intermediate_size")},
    "num_hidden_layers": 2,
    "conv_dim": (8, 8),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
STAGES = {"depths": [1, 2, 1, 1], "hidden_sizes": [4, 8, 8, 8]}
DETR = {
    **{key: SEQ2SEQ[key] for key in SEQ2SEQ if key.startswith(("encoder_", "decoder_")) and "start" not in key},
    "d_model": 16,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
}

# builder, number of blocks, parts of the head (None: no head of its own), where some modules must be
TRANSFORMERS = {
    "bert": (
        lambda: hf.BertForSequenceClassification(hf.BertConfig(**SMALL)),
        3,
        {"classifier", "dropout"},
        {"bert.pooler": "block 2"},
    ),
    "bert bare": (lambda: hf.BertModel(hf.BertConfig(**SMALL)), 3, None, {"embeddings": "embeddings"}),
    "bert mlm": (lambda: hf.BertForMaskedLM(hf.BertConfig(**SMALL)), 3, {"cls"}, {"bert.embeddings": "embeddings"}),
    "distilbert": (
        lambda: hf.DistilBertForSequenceClassification(
            hf.DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=24, vocab_size=50)
        ),
        2,
        {"pre_classifier", "classifier", "dropout"},
        {},
    ),
    "roberta": (lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**SMALL)), 3, {"classifier"}, {}),
    "albert (one shared block)": (
        lambda: hf.AlbertForSequenceClassification(hf.AlbertConfig(embedding_size=8, **SMALL)),
        1,
        {"classifier", "dropout"},
        {"albert.encoder.embedding_hidden_mapping_in": "embeddings", "albert.pooler": "block 0"},
    ),
    "electra": (
        lambda: hf.ElectraForSequenceClassification(hf.ElectraConfig(embedding_size=8, **SMALL)),
        3,
        {"classifier"},
        {"electra.embeddings_project": "embeddings"},
    ),
    "deberta-v2": (
        lambda: hf.DebertaV2ForSequenceClassification(
            hf.DebertaV2Config(relative_attention=True, pos_att_type=["p2c", "c2p"], **SMALL)
        ),
        3,
        {"pooler", "classifier", "dropout"},
        {"deberta.encoder.rel_embeddings": "embeddings"},
    ),
    "xlm (parallel lists)": (
        lambda: hf.XLMForSequenceClassification(hf.XLMConfig(vocab_size=50, emb_dim=16, n_layers=2, n_heads=2)),
        2,
        {"sequence_summary"},
        {"transformer.attentions.1": "block 1", "transformer.ffns.1": "block 1"},
    ),
    "vit": (
        lambda: hf.ViTForImageClassification(hf.ViTConfig(**{**SMALL, "image_size": 32, "num_hidden_layers": 2})),
        2,
        {"classifier"},
        {"vit.layernorm": "block 1"},
    ),
    "resnet": (
        lambda: hf.ResNetForImageClassification(hf.ResNetConfig(**RESNET)),
        3,
        {"classifier"},
        {"resnet.embedder": "embeddings"},
    ),
    "regnet": (
        lambda: hf.RegNetForImageClassification(
            hf.RegNetConfig(depths=[1, 2, 1, 1], hidden_sizes=[8, 8, 16, 16], embedding_size=8, groups_width=8)
        ),
        5,
        {"classifier"},
        {},
    ),
    "convnext": (
        lambda: hf.ConvNextForImageClassification(hf.ConvNextConfig(**STAGES)),
        5,
        {"classifier"},
        {"convnext.encoder.stages.2.downsampling_layer": "block 3", "convnext.layernorm": "block 4"},
    ),
    "swin": (
        lambda: hf.SwinForImageClassification(
            hf.SwinConfig(embed_dim=8, depths=[1, 2], num_heads=[1, 2], image_size=32)
        ),
        3,
        {"classifier"},
        {"swin.encoder.layers.0.downsample": "block 1"},
    ),
    "segformer": (
        lambda: hf.SegformerForSemanticSegmentation(
            hf.SegformerConfig(num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=8, **STAGES)
        ),
        5,
        {"decode_head"},
        {},
    ),
    "detr": (
        lambda: hf.DetrForObjectDetection(hf.DetrConfig(backbone_config=hf.ResNetConfig(**RESNET), **DETR)),
        7,
        {"class_labels_classifier", "bbox_predictor"},
        {"model.query_position_embeddings": "embeddings", "model.input_projection": "block 3"},
    ),
    "wav2vec2": (
        lambda: hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(**WAV2VEC2)),
        2,
        {"dropout", "lm_head"},
        {"wav2vec2.feature_extractor": "embeddings", "wav2vec2.encoder.pos_conv_embed": "embeddings"},
    ),
    "whisper (tied head)": (
        lambda: hf.WhisperForConditionalGeneration(hf.WhisperConfig(**SEQ2SEQ)),
        4,
        None,
        {"model.decoder.embed_tokens": "embeddings", "model.decoder.layers.0": "block 2"},
    ),
    "whisper encoder": (
        lambda: hf.WhisperForAudioClassification(hf.WhisperConfig(**SEQ2SEQ)),
        2,
        {"projector", "classifier"},
        {"encoder.layer_norm": "block 1"},
    ),
    "llama": (
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(num_key_value_heads=1, **SMALL)),
        3,
        {"lm_head"},
        {"model.norm": "block 2"},
    ),
    "llama tied": (
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(num_key_value_heads=1, tie_word_embeddings=True, **SMALL)),
        3,
        None,
        {"model.embed_tokens": "embeddings"},
    ),
    "gpt2": (
        lambda: hf.GPT2ForSequenceClassification(hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50)),
        2,
        {"score"},
        {"transformer.drop": "embeddings", "transformer.ln_f": "block 1"},
    ),
    "t5": (
        lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, vocab_size=50, tie_word_embeddings=True)
        ),
        4,
        None,
        {"encoder.block.0": "block 0", "decoder.block.1": "block 3"},
    ),
}
TORCHVISION = {
    "resnet50": (16, {"fc", "avgpool"}, {"conv1": "embeddings", "layer4.2": "block 15"}),
    "vit_b_16": (12, {"heads"}, {"conv_proj": "embeddings", "encoder.ln": "block 11"}),
    "convnext_tiny": (18, {"avgpool", "classifier"}, {"features.0": "embeddings", "features.4": "block 6"}),
    "squeezenet1_0": (8, {"classifier"}, {"features.0": "embeddings"}),
    "mobilenet_v3_small": (11, {"avgpool", "classifier"}, {"features.12": "block 10"}),
    "efficientnet_b0": (16, {"avgpool", "classifier"}, {"features.8": "block 15"}),
    "densenet121": (58, {"classifier"}, {"features.transition1": "block 6", "features.norm5": "block 57"}),
    "swin_t": (12, {"permute", "avgpool", "flatten", "head"}, {"features.2": "block 2", "norm": "block 11"}),
    "vgg11_bn": (8, {"avgpool", "classifier"}, {"features.0": "block 0", "features.1": "block 0"}),
    "inception_v3": (11, {"AuxLogits", "avgpool", "dropout", "fc"}, {"Conv2d_1a_3x3": "embeddings"}),
    "fasterrcnn_resnet50_fpn": (16, {"transform", "rpn", "roi_heads"}, {"backbone.fpn": "block 15"}),
    "deeplabv3_resnet50": (16, {"classifier", "aux_classifier"}, {"backbone.conv1": "embeddings"}),
}


def check(model, blocks, head, places):
    groups = layer_groups(model)
    names = [name for name, _ in model.named_parameters()]
    assert sorted(p for g in groups for p in g.parameters) == sorted(names)
    assert [g.name for g in groups if g.name.startswith("block")] == [f"block {i}" for i in range(blocks)]
    order = [g.name for g in groups]
    assert order == sorted(order, key=lambda n: (n == "head", n != "embeddings", int(n[6:] if "block" in n else 0)))
    assert (set(groups[-1].modules) if groups[-1].name == "head" else None) == head
    where = {m: g.name for g in groups for m in g.modules}
    assert {m: where.get(m) for m in places} == places
    for group in groups:  # a group's modules hold its parameters, but for those that stand alone
        alone = {n for n in group.parameters if not any(n.startswith(m + ".") for m in group.modules)}
        shared = {id(p) for m in group.modules for p in model.get_submodule(m).parameters()}
        assert all(n.count(".") <= 2 or id(model.get_parameter(n)) in shared for n in alone)
    return groups


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_models_are_cut_into_ordered_groups(name):
    build, *expected = TRANSFORMERS[name]
    check(build(), *expected)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_models_are_cut_into_ordered_groups(name):
    weights = {"weights": None} | ({"weights_backbone": None} if "resnet50_" in name or "_resnet50" in name else {})
    more = {"inception_v3": {"init_weights": False}, "deeplabv3_resnet50": {"aux_loss": True}}.get(name, {})
    with torch.device("meta"):
        model = torchvision.models.get_model(name, **weights, **more)
    check(model, *TORCHVISION[name])


class Wrapper(nn.Module):
    """What people write first: a pretrained model and a linear layer, the layer first."""

    def __init__(self, backbone):
        super().__init__()
        self.linear, self.scale = nn.Linear(16, 2), nn.Parameter(torch.ones(1))
        self.bert = backbone


def test_a_module_around_a_pretrained_model_has_that_model_as_its_backbone():
    groups = check(Wrapper(hf.BertModel(hf.BertConfig(**SMALL))), 3, {"linear"}, {"bert.pooler": "block 2"})
    assert groups[-1].parameters == ("scale", "linear.weight", "linear.bias")
    check(nn.Sequential(hf.BertModel(hf.BertConfig(**SMALL)), nn.Linear(16, 2)), 3, {"1"}, {})
    with torch.device("meta"):
        vit = torchvision.models.vit_b_16()
        vit.heads = nn.Identity()
        check(nn.Sequential(vit, nn.Linear(768, 2)), 12, {"1"}, {"0.conv_proj": "embeddings"})


def test_plain_modules_have_their_last_layer_as_head():
    groups = check(
        nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2)), 2, {"4"}, {}
    )
    assert groups[0].modules == ("0", "1", "2")
    resnet = torchvision.models.resnet18()
    resnet.fc = nn.Identity()
    assert layer_groups(resnet)[-1].name == "block 7"


def test_new_parameters_are_head_wherever_they_are():
    model = hf.BertForSequenceClassification(hf.BertConfig(**SMALL))
    new = frozenset(n for n, _ in model.named_parameters() if "pooler" in n or "classifier" in n)
    groups = layer_groups(model, new)
    assert set(groups[-1].parameters) == new
    assert "bert.pooler" in groups[-1].modules
    assert layer_groups(model, frozenset(n for n, _ in model.named_parameters())) == layer_groups(model)
    with pytest.raises(ValueError, match="nonsense"):
        layer_groups(model, frozenset({"nonsense"}))
    with pytest.raises(ValueError, match="no parameters"):
        layer_groups(nn.ReLU())


def bert(**changes):
    torch.manual_seed(0)
    return hf.BertForSequenceClassification(hf.BertConfig(**{**SMALL, **changes})).train()


def text_batch():
    g = torch.Generator().manual_seed(0)
    return {"input_ids": torch.randint(0, 50, (4, 8), generator=g), "labels": torch.tensor([0, 1, 0, 1])}


def rows(table):
    return {row.name: row for row in table.rows}


def test_a_healthy_step_moves_every_tensor_and_is_taken_back():
    model = bert()
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    table = what_is_training(model, text_batch(), lr=1e-3)
    assert all(row.moved == row.tensors == row.trainable and row.lrs == (1e-3,) for row in table.rows)
    assert table.surprises == []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


def test_frozen_in_train_mode_and_training_in_eval_mode_are_surprises():
    model = bert()
    model.bert.requires_grad_(False)
    table = what_is_training(model, text_batch())
    assert [rows(table)[n].moved for n in ("embeddings", "block 2", "head")] == [0, 0, 2]
    assert table.surprises == [
        "embeddings, block 0, block 1, block 2: frozen, but its dropout is on: put its modules in eval()"
    ]
    model.bert.eval()
    assert what_is_training(model, text_batch()).surprises == []
    assert any("trains in eval mode" in s for s in what_is_training(bert().eval(), text_batch()).surprises)


def test_a_forgotten_optimizer_group_is_a_surprise():
    model = bert()
    table = what_is_training(model, text_batch(), optimizer=torch.optim.SGD(model.bert.parameters(), lr=0.5))
    assert rows(table)["head"].moved == 0
    assert rows(table)["head"].lrs == ()
    assert rows(table)["block 0"].lrs == (0.5,)
    assert table.surprises == [
        "head: trainable, but in no optimizer group, so it will not move (classifier.weight and 1 more)"
    ]


def test_no_gradient_a_zero_gradient_and_a_lost_update_are_told_apart():
    unused = hf.BertForMaskedLM(hf.BertConfig(**SMALL)).train()
    unused.extra = nn.Linear(2, 2)
    batch = {"input_ids": text_batch()["input_ids"], "labels": text_batch()["input_ids"]}
    assert any(
        "no gradient reached it (extra.weight and 1 more)" in s for s in what_is_training(unused, batch).surprises
    )
    zero = bert()
    nn.init.zeros_(zero.classifier.weight)
    assert any("exactly zero" in s for s in what_is_training(zero, text_batch()).surprises)
    low = bert().bfloat16()
    assert any("below the precision of bfloat16" in s for s in what_is_training(low, text_batch(), lr=1e-5).surprises)


def image_loss(model, batch):
    return model(batch["x"]).square().mean(), None


def test_moving_batch_norm_statistics_in_a_frozen_layer_are_a_surprise():
    model = torchvision.models.resnet18(num_classes=3).train()
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith("fc"))
    batch = {"x": torch.randn(2, 3, 32, 32)}
    means = model.bn1.running_mean.clone()
    table = what_is_training(model, batch, loss=image_loss)
    assert torch.equal(means, model.bn1.running_mean)
    assert {row.batch_norm for row in table.rows[:-1]} == {"moving"}
    assert any("BatchNorm statistics moved" in s for s in table.surprises)
    model.eval()
    table = what_is_training(model, batch, loss=image_loss)
    assert {row.batch_norm for row in table.rows[:-1]} == {"fixed"}
    assert rows(table)["head"].batch_norm == ""


def test_a_learner_needs_no_batch_and_a_phase_shows_its_rates():
    model = bert()
    examples = [{"input_ids": [i, i + 1], "labels": i % 2} for i in range(8)]

    def collate(rows):
        return {
            "input_ids": torch.tensor([r["input_ids"] for r in rows]),
            "labels": torch.tensor([r["labels"] for r in rows]),
        }

    batches = Batches(examples, collate, 4)
    learner = Learner(
        model,
        batches,
        batches,
        lambda m, b: (m(**b).loss, None),
        classification_metrics(2),
        new_parameters=frozenset({"classifier.weight", "classifier.bias"}),
    )
    parts = [
        ParamGroup("backbone", list(model.bert.parameters()), 0.0, [model.bert]),
        ParamGroup("head", list(model.classifier.parameters()), 2.0, [model.classifier]),
    ]
    table = what_is_training(learner, strategy=Phase("head", 1.0, parts), lr=1e-3)
    assert rows(table)["block 0"].mode == "eval"
    assert rows(table)["head"].lrs == (2e-3,)
    assert table.surprises == []
    assert model.training
    assert model.bert.training
    assert all(p.requires_grad for p in model.parameters())


def test_the_table_reads_as_text_and_as_html():
    model = bert()
    model.bert.embeddings.requires_grad_(False)
    table = what_is_training(model, text_batch())
    text = str(table)
    assert all(word in text for word in ("embeddings", "block 2", "head", "0 of 5", "16 of 16", "! embeddings"))
    html = table._repr_html_()
    assert html.count("<tr>") == 1 + len(table.rows)
    assert "Surprises" in html


def test_impossible_requests_say_what_to_do():
    with pytest.raises(ValueError, match="pass a batch"):
        what_is_training(bert())
    with pytest.raises(ValueError, match="nothing is training"):
        what_is_training(bert().requires_grad_(False), text_batch())
    broken = bert()
    nn.init.constant_(broken.classifier.bias, float("nan"))
    with pytest.raises(ValueError, match="Check the batch"):
        what_is_training(broken, text_batch())
