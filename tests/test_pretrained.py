"""Checkpoints laid out as the Hub's: what is found in them, what is new, and what is refused."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTModel,
)

from ftnb.pretrained import ModelError, find_model, load_pretrained

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a the film good bad was not very fine dull".split()
TASK = "text-classification"
HEAD = {"classifier.weight", "classifier.bias"}


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = special or {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", model_max_length=32, **special)


def config(**changes) -> BertConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **(sizes | changes))


def saved(folder: Path, model, **special: str) -> str:
    model.save_pretrained(folder)
    tokenizer(**special).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> str:
    torch.manual_seed(77)
    return saved(tmp_path_factory.mktemp("bert"), BertModel(config()))


def test_a_bare_backbone_gets_a_new_head(backbone):
    loaded = load_pretrained(backbone, TASK, ["no", "maybe", "yes"])
    assert loaded.new_parameters == HEAD
    assert loaded.source == "local"
    assert loaded.name == backbone
    assert not loaded.model.training
    assert loaded.model.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    assert loaded.model.classifier.weight.shape == (3, 16)
    original = BertModel.from_pretrained(backbone)
    for name, tensor in original.state_dict().items():
        assert torch.equal(loaded.model.bert.state_dict()[name], tensor), name


def test_new_parameters_follow_the_seed_and_nothing_else(backbone):
    torch.manual_seed(123)
    state = torch.get_rng_state()
    first = load_pretrained(backbone, TASK, ["no", "yes"], seed=1).model.classifier.weight
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(456)
    again = load_pretrained(backbone, TASK, ["no", "yes"], seed=1).model.classifier.weight
    other = load_pretrained(backbone, TASK, ["no", "yes"], seed=2).model.classifier.weight
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_scratch_shares_nothing_with_the_checkpoint(backbone):
    loaded = load_pretrained(backbone, TASK, ["no", "yes"], scratch=True)
    assert loaded.new_parameters == {name for name, _ in loaded.model.named_parameters()}
    assert not loaded.model.training
    pretrained = load_pretrained(backbone, TASK, ["no", "yes"]).model
    word = "bert.embeddings.word_embeddings.weight"
    assert not torch.equal(loaded.model.get_parameter(word), pretrained.get_parameter(word))
    assert "random" in loaded.notices[0]


def test_a_missing_pooler_is_noticed(tmp_path):
    loaded = load_pretrained(saved(tmp_path, BertForMaskedLM(config())), TASK, ["no", "yes"])
    assert loaded.new_parameters == HEAD | {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert "bert.pooler.dense.weight" in loaded.notices[0]


def fine_tuned(folder: Path, *names: str) -> str:
    own = config(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    return saved(folder, BertForSequenceClassification(own))


def test_a_head_for_the_same_labels_is_kept_in_its_own_order(tmp_path):
    folder = fine_tuned(tmp_path, "yes", "no")
    loaded = load_pretrained(folder, TASK, ["no", "yes"])
    assert loaded.new_parameters == frozenset()
    assert loaded.model.config.id2label == {0: "yes", 1: "no"}
    original = BertForSequenceClassification.from_pretrained(folder)
    assert torch.equal(loaded.model.classifier.weight, original.classifier.weight)


@pytest.mark.parametrize("labels", [["cat", "dog"], ["cat", "dog", "bird"]])
def test_a_head_for_other_labels_starts_new(tmp_path, labels):
    folder = fine_tuned(tmp_path, "yes", "no")
    loaded = load_pretrained(folder, TASK, labels)
    assert loaded.new_parameters == HEAD
    assert "other labels" in loaded.notices[0]
    original = BertForSequenceClassification.from_pretrained(folder)
    assert loaded.model.classifier.weight.shape == (len(labels), 16)
    assert not torch.equal(loaded.model.classifier.weight[:2], original.classifier.weight)
    assert torch.equal(loaded.model.bert.pooler.dense.weight, original.bert.pooler.dense.weight)


def test_half_precision_checkpoints_are_trained_in_float32(tmp_path):
    loaded = load_pretrained(saved(tmp_path, BertModel(config()).half()), TASK, ["no", "yes"])
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}


def test_a_multi_label_checkpoint_becomes_single_label(tmp_path):
    model = BertForSequenceClassification(config(problem_type="multi_label_classification"))
    loaded = load_pretrained(saved(tmp_path, model), TASK, ["no", "yes"])
    assert loaded.model.config.problem_type == "single_label_classification"


def test_a_tokenizer_without_padding_token_gets_one(tmp_path):
    small = GPT2Config(vocab_size=len(WORDS), n_positions=32, n_embd=16, n_layer=1, n_head=2)
    folder = saved(tmp_path, GPT2ForSequenceClassification(small), eos_token="[SEP]")
    loaded = load_pretrained(folder, TASK, ["no", "yes"])
    assert loaded.processor.pad_token == "[SEP]"
    assert loaded.model.config.pad_token_id == 3
    assert "padding" in loaded.notices[-1]


def remove(*names: str):
    def change(folder: Path) -> None:
        for name in names:
            for path in folder.glob(name):
                path.unlink()

    return change


def as_pickle(folder: Path) -> None:
    remove("*.safetensors")(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def damaged(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def other_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (remove("config.json"), "no config.json"),
        (remove("*.safetensors"), "no weights"),
        (as_pickle, "pytorch_model.bin is a pickle"),
        (remove("tokenizer.json"), "no tokenizer"),
        (damaged, "model.safetensors|incomplete|not fully covered"),
        (lambda folder: other_config(folder, model_type="telepathy"), "telepathy"),
        (lambda folder: other_config(folder, hidden_size=32), "another shape"),
        (lambda folder: other_config(folder, vocab_size=5), "another shape|15 tokens"),
        (lambda folder: other_config(folder, num_hidden_layers=12), "not in the checkpoint"),
        (lambda folder: other_config(folder, auto_map={"AutoConfig": "x.Y"}, model_type="x"), "never run here"),
    ],
)
def test_folders_that_do_not_fit_are_refused_before_training(backbone, tmp_path, change, expected):
    folder = tmp_path / "model"
    shutil.copytree(backbone, folder)
    change(folder)
    with pytest.raises(ModelError, match=expected):
        load_pretrained(str(folder), TASK, ["no", "yes"])


def test_a_model_without_a_text_head_is_refused(tmp_path):
    vit = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32)
    with pytest.raises(ModelError, match="vit model"):
        load_pretrained(saved(tmp_path, ViTModel(vit)), TASK, ["no", "yes"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("builtin:gpt-9", "'builtin:bert-reviews'"),
        ("./nowhere", "is no folder"),
        ("a/b/c", "is no folder"),
        ("google-bert/bert-base-uncased-never-cached", "HF_ENDPOINT"),
    ],
)
def test_names_that_lead_nowhere(name, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=expected):
        load_pretrained(name, TASK, ["no", "yes"])


def test_an_unknown_task_is_refused(backbone):
    with pytest.raises(ModelError, match="text-classification"):
        load_pretrained(backbone, "mind-reading", ["no", "yes"])


def test_the_builtin_model_is_inside_the_package():
    folder, source = find_model("builtin:bert-reviews")
    assert source == "builtin"
    assert Path(folder).parent.name == "weights"
    loaded = load_pretrained("builtin:bert-reviews", TASK, ["negative", "positive"])
    assert loaded.new_parameters == HEAD
    assert loaded.notices == []
