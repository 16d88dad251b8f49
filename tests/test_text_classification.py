"""From a table to a saved model: preparing, batches, predictions, errors, and the folder that others load."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, pipeline

from ftnb.data import batch_order, real_token_share
from ftnb.pretrained import ModelError
from ftnb.tables import DataError
from ftnb.tasks import TASKS, task_class
from ftnb.tasks.display import TextTable
from ftnb.tasks.text_classification import TextClassification, cross_entropy, evaluating
from ftnb.train import Training

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a the film good bad so dull fine very not was".split()
ROWS = [
    {
        "text": f"the film was {'very ' * (i % 5)}{['bad', 'so so', 'good'][i % 3]}",
        "label": ["neg", "mid", "pos"][i % 3],
    }
    for i in range(90)
]
ROWS = [{**row, "text": row["text"] + " a" * (i // 15)} for i, row in enumerate(ROWS)]  # all different


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(7)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=24, **sizes)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {
        name: f"[{name[:-6].upper()}]" for name in ("unk_token", "pad_token", "cls_token", "sep_token", "mask_token")
    }
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def task(model) -> TextClassification:
    return TextClassification.prepare({"train": ROWS[:60], "valid": ROWS[60:], "test": ROWS[45:60]}, model)


def test_prepare_gathers_everything_a_training_needs(task):
    assert task.labels == ["mid", "neg", "pos"]
    assert task.max_length == 24
    assert task.new_parameters == {"classifier.weight", "classifier.bias"}
    assert any("15 of 15 texts are also in train" in warning for warning in task.warnings)
    assert task.encoded["valid"]["label"][:3] == [task.labels.index(row["label"]) for row in ROWS[60:63]]
    assert task.name == "text-classification"
    assert task_class("text-classification") is TextClassification


@pytest.mark.parametrize(
    ("data", "kinds", "error", "expected"),
    [
        ([{**row, "label": "x"} for row in ROWS], {}, DataError, "'x'"),
        ({"train": ROWS, "valid": [{"text": "", "label": "pos"}]}, {}, DataError, r"valid.*row 1, column 'text'"),
        ({"train": ROWS, "valid": [{"text": "a", "label": "odd"}]}, {}, DataError, "'odd' never occurs in train"),
        ([{"text": 5, "label": "x"}] * 30, {}, DataError, "int 5"),
        (ROWS, {"columns": {"label": "stars"}}, DataError, "'stars' not found.*'text', 'label'"),
        (ROWS, {"valid_fraction": 1.5}, DataError, "valid_fraction=1.5"),
        (ROWS, {"max_length": 25}, ModelError, "between 4 and 24"),
        (ROWS, {"max_length": 3}, ModelError, "got 3"),
        ("nowhere.csv", {}, DataError, "nowhere.csv"),
    ],
)
def test_whatever_is_wrong_is_said_before_training(model, data, kinds, error, expected):
    with pytest.raises(error, match=expected):
        TextClassification.prepare(data, model, **kinds)


def test_cut_texts_and_unknown_words_are_reported(model):
    rows = [{**row, "text": row["text"] + " unheard of words"} for row in ROWS]
    task = TextClassification.prepare(rows, model, max_length=8)
    assert max(len(ids) for ids in task.encoded["train"]["input_ids"]) == 8
    assert any(warning.startswith("train: 81 of 81 texts were cut to 8 tokens") for warning in task.warnings)
    assert any("not in the model's vocabulary" in warning for warning in task.warnings)


def test_text_that_the_vocabulary_hardly_knows_is_reported():
    rows = [{"text": f"quotation {i} of extraordinary obfuscation", "label": str(i % 2)} for i in range(40)]
    task = TextClassification.prepare(rows, "builtin:bert-reviews")
    assert any("pieces on average" in warning for warning in task.warnings)


def test_batches_are_padded_to_their_longest_and_buckets_waste_little(task, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    real = padded = 0
    for batch in task.learner(batch_size=8).train.epoch():
        assert set(batch) >= {"input_ids", "attention_mask", "labels"}
        assert batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1]
        assert (batch["input_ids"][batch["attention_mask"] == 0] == 0).all()
        real, padded = real + int(batch["attention_mask"].sum()), padded + batch["input_ids"].numel()
    lengths = [len(ids) for ids in task.encoded["train"]["input_ids"]]
    assert real / padded > real_token_share(lengths, batch_order(60, 8, seed=0)) + 0.04
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert task.collate(task.encoded["train"].select(range(3)).to_list())["input_ids"].shape[1] % 8 == 0


def test_the_loss_is_that_of_the_library(task):
    batch = next(iter(task.learner().valid.epoch()))
    with evaluating(task.model):
        loss, outputs = cross_entropy(task.model, batch)
        reference = task.model(**batch)
    assert loss.item() == pytest.approx(reference.loss.item(), abs=1e-6)
    torch.testing.assert_close(outputs.logits, reference.logits)


def test_training_learns_and_predicting_in_between_changes_nothing(model):
    def run(disturb: bool) -> tuple[TextClassification, list[float]]:
        task = TextClassification.prepare({"train": ROWS[:60], "valid": ROWS[60:]}, model)
        training = Training(task.learner(batch_size=8), lr=2e-3, num_epochs=15, device="cpu", precision="fp32")
        losses = []
        while (event := training.step()) is not None:
            losses.append(event.loss)
            if disturb:
                task.predict(["a very good film"])
        return task, losses

    (task, losses), (_, disturbed) = run(False), run(True)
    assert losses == disturbed
    assert sum(losses[-8:]) < 0.75 * sum(losses[:8])
    assert task.evaluate("train")["accuracy"] > 0.6  # three classes


def test_predictions_are_in_order_and_do_not_depend_on_company(task):
    texts = ["good", "the film was very very bad", "", "dull", "a" * 500]
    together = task.predict(texts)
    for text, prediction in zip(texts, together, strict=True):
        alone = task.predict([text])[0]
        assert alone.scores == pytest.approx(dict(prediction.scores), abs=1e-6)
        assert prediction.score == max(prediction.scores.values()) == prediction.scores[prediction.label]
        assert sum(prediction.scores.values()) == pytest.approx(1.0)
    assert task.predict([]) == []
    for wrong in ("one text", ["a", 5], [None]):
        with pytest.raises(DataError, match="list of texts"):
            task.predict(wrong)


def test_predicting_restores_the_mode_of_every_module(task):
    task.model.train()
    task.model.bert.encoder.layer[0].eval()
    before = [module.training for module in task.model.modules()]
    task.predict(["good"])
    task.evaluate("valid")
    assert [module.training for module in task.model.modules()] == before


def test_evaluate_agrees_with_the_predictions(task):
    measured = task.evaluate("test")
    predictions = task.predict(task.splits.test["text"][:])
    right = [p.label == label for p, label in zip(predictions, task.splits.test["label"][:], strict=True)]
    assert measured["accuracy"] == pytest.approx(sum(right) / len(right), abs=1e-6)
    assert set(measured) == {"loss", "accuracy", "macro_f1"}
    with pytest.raises(DataError, match="'train', 'valid', 'test'"):
        task.evaluate("dev")


def test_errors_are_the_wrong_ones_most_confident_first(task):
    table = task.show_errors(n=5)
    predictions = dict(zip(task.splits.valid["row"][:], task.predict(task.splits.valid["text"][:]), strict=True))
    scores = [float(row[4]) for row in table.rows]
    assert scores == sorted(scores, reverse=True)
    for row, text, label, predicted, _ in table.rows:
        assert predictions[int(row)].label == predicted != label
        assert text == task.splits.valid["text"][int(row) - 1]
    assert "of 30 valid texts are wrong" in table.caption


def test_show_batch_shows_what_the_model_sees(task):
    table = task.show_batch(n=3)
    assert len(table) == 3
    assert table.rows[0][0].startswith("[CLS] the film was")
    assert table.rows[0][1] in task.labels


def test_tables_escape_what_is_in_them():
    table = TextTable(("text",), [("<script>alert('x')</script> & more" * 5,)], caption="<b>")
    assert "<script>" not in table._repr_html_()
    assert "&lt;script&gt;" in table._repr_html_()
    assert "<caption" in table._repr_html_()
    assert "<b>" not in table._repr_html_()
    assert max(map(len, repr(table).splitlines())) < 80


def test_a_saved_folder_gives_the_pipeline_the_same_answers(task, tmp_path):
    for _ in Training(task.learner(), lr=1e-3, num_epochs=1, device="cpu", precision="fp32"):
        pass
    folder = task.save(tmp_path / "model")
    texts = ["the film was very good", "bad", "so so " * 40]
    classify = pipeline("text-classification", str(folder), device="cpu", truncation=True, top_k=None)
    for prediction, scores in zip(task.predict(texts), classify(texts), strict=True):
        assert scores[0]["label"] == prediction.label
        assert {s["label"]: s["score"] for s in scores} == pytest.approx(dict(prediction.scores), abs=1e-5)
    assert not list(Path(folder).glob("*.bin"))
    assert json.loads((folder / "config.json").read_text())["problem_type"] == "single_label_classification"


def test_a_saved_folder_can_be_fine_tuned_further(task, tmp_path):
    folder = task.save(tmp_path / "model")
    again = TextClassification.prepare(ROWS, str(folder))
    assert again.new_parameters == frozenset()
    assert again.labels == task.labels
    assert again.predict(["good"])[0].scores == pytest.approx(dict(task.predict(["good"])[0].scores), abs=1e-6)


def test_the_builtin_pair_loads(model):
    task = TextClassification.prepare("builtin:reviews", "builtin:bert-reviews")
    assert task.warnings == []
    assert task.labels == ["negative", "positive"]
    scratch = TextClassification.prepare("builtin:reviews", "builtin:bert-reviews", scratch=True)
    assert len(scratch.new_parameters) == len(list(scratch.model.parameters()))


def test_an_unknown_task_gets_a_suggestion():
    with pytest.raises(ValueError, match="Did you mean 'text-classification'"):
        task_class("text-clasification")
    assert all(":" in entry.place for entry in TASKS.values())
