"""From a table to a saved model: preparing, batches, predictions, errors, and the folder that others load."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, pipeline
from typer.testing import CliRunner

from ftnb import Recipe, Run
from ftnb.cli import app, result_line
from ftnb.data import batch_order, real_token_share
from ftnb.pretrained import ModelError
from ftnb.rules import RecipeError
from ftnb.saved import load_task
from ftnb.tables import DataError
from ftnb.tasks import TASKS, task_class
from ftnb.tasks.display import TextTable
from ftnb.tasks.text_classification import (
    LabelSet,
    TextClassification,
    binary_cross_entropy,
    cross_entropy,
    evaluating,
    text_metrics,
)
from ftnb.train import Training
from ftnb.widgets.form import RecipeForm
from ftnb.widgets.tryout import Tryout
from tests.tiny import reviews, tiny_bert

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


# Several labels at once.

TAGGED = [
    {"text": row["text"], "label": [w for w in ("film", "food", "tea") if w in row["text"]]} for row in reviews(230)
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return tiny_bert(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tagged(tiny) -> TextClassification:
    task = TextClassification.prepare({"train": TAGGED[:200], "valid": TAGGED[200:]}, tiny)
    for _ in Training(task.learner(batch_size=8), lr=5e-3, num_epochs=10, device="cpu", precision="fp32"):
        pass
    return task


def test_lists_of_labels_make_a_multi_label_task(tagged):
    assert tagged.multi_label
    assert tagged.labels == ["film", "food", "tea"]
    assert tagged.warnings[0].startswith("several labels in a row: column 'label' holds lists; 3 labels")
    assert tagged.encoded["train"]["label"][0] == [float(name in TAGGED[0]["label"]) for name in tagged.labels]
    assert [] in tagged.splits.train["label"][:]  # a text that has none is one that can be learnt from


def test_the_multi_label_loss_is_that_of_the_library_and_of_the_equation(tagged):
    batch = next(iter(tagged.learner().valid.epoch()))
    with evaluating(tagged.model):
        loss, outputs = binary_cross_entropy(tagged.model, batch)
        reference = tagged.model(**batch)
    assert loss.item() == pytest.approx(reference.loss.item(), abs=1e-6)
    p, y = outputs.logits.sigmoid(), batch["labels"]
    by_hand = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    assert loss.item() == pytest.approx(by_hand.item(), abs=1e-5)


def test_multi_label_metrics_count_what_predict_gives(tagged):
    measured = tagged.evaluate("valid")
    truth = [set(labels) for labels in tagged.splits.valid["label"][:]]
    given = [set(p.labels) for p in tagged.predict(tagged.splits.valid["text"][:])]
    both, sizes = sum(len(a & b) for a, b in zip(truth, given, strict=True)), sum(map(len, truth + given))
    assert measured["micro_f1"] == pytest.approx(2 * both / sizes, abs=1e-6)
    assert measured["exact_match"] == pytest.approx(sum(map(set.__eq__, truth, given)) / len(truth), abs=1e-6)
    of_class = {row[0]: float(row[4]) for row in tagged.per_class().rows}
    assert measured["macro_f1"] == pytest.approx(sum(of_class.values()) / 3, abs=0.006)
    assert measured["micro_f1"] > 0.6, measured
    assert tagged.metrics().main == "micro_f1"


def test_small_logits_are_not_taken_for_probabilities():
    metrics = text_metrics(2, multi_label=True)
    logits, labels = torch.tensor([[0.3, 0.1]]), torch.tensor([[1.0, 1.0]])  # both above a half after the sigmoid
    metrics.update(SimpleNamespace(logits=logits), {"labels": labels})
    assert metrics.compute()["exact_match"] == 1


def test_a_label_set_holds_what_is_above_a_half():
    several = LabelSet.of({"a": 0.2, "b": 0.6, "c": 0.9})
    assert several.labels == ("c", "b")
    assert str(several) == "c, b\t0.9000, 0.6000"
    assert str(LabelSet.of({"a": 0.2, "b": 0.3})) == "no label\t0.3000 at most"
    assert LabelSet.of({"a": 0.2, "b": 0.3}, threshold=0.25).labels == ("b",)


def test_multi_label_errors_name_the_label_that_is_most_wrong(tagged):
    table = tagged.show_errors(n=50)
    predictions = dict(zip(tagged.splits.valid["row"][:], tagged.predict(tagged.splits.valid["text"][:]), strict=True))
    off = []
    for row, _, truth, given, worst in table.rows:
        name, score = worst.rsplit(" ", 1)
        assert truth != given == ", ".join(sorted(predictions[int(row)].labels))
        off.append(abs(float(score) - (name in truth.split(", "))))
        assert off[-1] >= 0.49
    assert off == sorted(off, reverse=True)
    assert tagged.show_batch(2).rows[0][1].replace(", ", "").isalpha() or not tagged.show_batch(2).rows[0][1]
    with pytest.raises(DataError, match="per_class"):
        tagged.confused()


def test_a_saved_multi_label_model_takes_sigmoids_in_a_pipeline(tagged, tmp_path):
    folder = tagged.save(tmp_path / "model")
    assert json.loads((folder / "config.json").read_text())["problem_type"] == "multi_label_classification"
    texts = ["the film food", "tea", "so"]
    classify = pipeline("text-classification", str(folder), device="cpu", truncation=True, top_k=None)
    again = load_task(folder)
    for prediction, theirs, ours in zip(tagged.predict(texts), classify(texts), again.predict(texts), strict=True):
        assert {s["label"]: s["score"] for s in theirs} == pytest.approx(dict(prediction.scores), abs=1e-5)
        assert str(ours) == str(prediction)
    further = TextClassification.prepare(TAGGED, str(folder))
    assert further.new_parameters == frozenset()
    assert further.multi_label


def write_tags(path: Path, separator: str = ";") -> Path:
    rows = [{**row, "label": separator.join(row["label"])} for row in TAGGED]
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_a_csv_needs_its_separator_and_then_says_the_same_as_lists(tiny, tmp_path):
    task = TextClassification.prepare(write_tags(tmp_path / "a.csv"), tiny, label_separator=";")
    assert "is cut at ';'; 3 labels" in task.warnings[0]
    rows = {
        row: labels
        for _, split in task.splits.items()
        for row, labels in zip(split["row"], split["label"], strict=True)
    }
    assert [rows[i + 2] for i in range(len(TAGGED))] == [sorted(row["label"]) for row in TAGGED]
    for form in (pd.DataFrame(TAGGED), Dataset.from_list(TAGGED)):
        assert TextClassification.prepare(form, tiny).labels == task.labels


def test_every_label_of_the_cut_is_also_trained_on(tiny):
    rows = [{"text": f"the film {i}", "label": [f"l{i % 13}", f"m{i % 11}"]} for i in range(143)]  # no two rows alike
    task = TextClassification.prepare(rows, tiny, test_fraction=0.2)
    assert len(task.splits.valid) >= 10
    trained = {label for labels in task.splits.train["label"][:] for label in labels}
    assert trained == set(task.labels)
    assert len(task.labels) == 24


def lists(*labels, text="the film", count=1):
    return [{"text": f"{text} {i}", "label": label} for i, label in enumerate(labels * count)]


@pytest.mark.parametrize(
    ("data", "kinds", "expected"),
    [
        (lists(["a", 5.5], ["b"], count=20), {}, r"row 1, column 'label': a label must be text, got float 5.5"),
        (lists(["a", None], ["b"], count=20), {}, "got NoneType None"),
        (lists(["a", ""], ["b"], count=20), {}, "a label must be text, got str ''"),
        (lists(["a"], "b", count=20), {}, r"row 2, column 'label': expected a list of labels.*got str 'b'"),
        (lists("b", ["a"], count=20), {}, r"row 1, column 'label': expected a list of labels"),
        (lists(["a"], None, ["b"], count=20), {}, r"row [23].*the list of labels is missing.*No label is \[\]"),
        (lists(["a"], ["a"], [], count=20), {}, "there is only the label 'a'"),
        (lists([], count=30), {}, "there is only the label ''"),
        (lists([0, 1, 1], [1, 0, 1], count=20), {}, "looks like a 0 or 1 for each label"),
        (lists(["a", "b"], ["b"], count=20), {"label_separator": ";"}, "lists already; leave label_separator"),
        (lists("a;b", "b", count=20), {"label_separator": "|"}, r"the separator '\|' never occurs.*'a;b'"),
        (lists("['a', 'b']", "['b']", count=20), {"label_separator": ","}, "looks like a list written as text"),
        (lists("['a', 'b']", "['b']", count=20), {}, "looks like a list written as text"),
        ({"train": lists(["a"], ["b"], count=9), "valid": lists(["a", "c"])}, {}, "'c' never occurs in train"),
        (
            {"train": lists(["a"], ["b"], count=9), "test": lists("c"), "valid": lists(["a"])},
            {},
            "test .*expected a list",
        ),
        ("builtin:reviews", {"label_separator": ";"}, "has one label in each row"),
        (
            lists("a", "b", count=20),
            {"columns": {"label": ["toxic", "rude"]}},
            "a role has one column. .*label_separator=';'; or as lists",
        ),
        (
            lists("a", "b", count=20),
            {"columns": {"pair": "text"}},
            "'pair'; this task knows 'text', 'label', 'text_pair'",
        ),
    ],
)
def test_labels_that_cannot_be_right_are_refused(tiny, data, kinds, expected):
    with pytest.raises(DataError, match=expected):
        TextClassification.prepare(data, tiny, **kinds)


def test_labels_that_nothing_can_be_measured_on_are_warned_about(tiny):
    train = lists(["a", "all"], ["b", "all"], ["all"], count=10) + lists(["rare", "all"], text="rare")
    valid = lists(["a", "all"], ["all"], text="valid", count=15)
    task = TextClassification.prepare({"train": train, "valid": valid}, tiny)
    text = "\n".join(task.warnings)
    assert "every row has the label 'all'" in text
    assert "valid (table), column 'label': no row has the label 'b', 'rare'; macro F1 counts" in text
    assert "1 of 4 classes have fewer than 3 rows, for example 'rare'" in text


def test_whole_numbers_are_labels_too_and_a_test_without_labels_is_left_out(tiny):
    train, test = lists([3, 10], [10], [], count=20), lists(None, None, text="test")
    task = TextClassification.prepare({"train": train, "test": test}, tiny)
    assert task.labels == ["3", "10"]
    assert task.splits.test is None
    assert any("test (table) has no labels" in warning for warning in task.warnings)


def test_a_multi_label_run_from_recipe_to_command_line(tiny, tmp_path):
    recipe = Recipe(
        data=str(write_tags(tmp_path / "tags.csv")),
        model=tiny,
        label_separator=";",
        lr=5e-3,
        num_epochs=2,
        device="cpu",
    )
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    run = Run(recipe, tmp_path / "run").start()
    assert run.wait(60) == "done"
    assert "micro_f1" in result_line(run)
    done = CliRunner().invoke(app, ["predict", str(tmp_path / "run"), "the film", "so"])
    assert done.exit_code == 0, done.output
    first = str(run.predict(["the film"])[0])
    assert done.output.splitlines()[0] == f"{first}\tthe film"


def test_a_separator_is_a_setting_of_texts_only():
    with pytest.raises(RecipeError, match="label_separator is no setting of image-classification"):
        Recipe(task="image-classification", label_separator=";")
    assert '# label_separator = ";"' in Recipe().to_toml(comments=True)


# Two texts at once.

PAIRS = [
    {"text": a["text"], "text_pair": b["text"], "label": "same" if a["label"] == b["label"] else "different"}
    for a, b in zip(reviews(80, 1), reviews(80, 2), strict=True)
]


@pytest.fixture(scope="module")
def paired(tiny) -> TextClassification:
    return TextClassification.prepare({"train": PAIRS[:50], "valid": PAIRS[50:]}, tiny, max_length=16)


def test_pairs_are_read_together_and_the_longer_text_is_cut(paired, tiny):
    assert paired.pairs
    assert paired.warnings[0] == "texts come in pairs: 'text' and 'text_pair'."
    assert any("of 50 pairs were cut to 16 tokens" in warning for warning in paired.warnings)
    separator = paired.tokenizer.sep_token_id
    for ids, row in zip(paired.encoded["train"]["input_ids"], PAIRS, strict=False):
        assert ids.count(separator) == 2
        first, second = (len(row[role].split()) for role in ("text", "text_pair"))
        kept = ids.index(separator) - 1, len(ids) - ids.index(separator) - 2
        if first + second + 3 > 16:
            assert abs(kept[0] - kept[1]) <= 1 or kept[0] == first or kept[1] == second
        else:
            assert kept == (first, second)
    assert paired.show_batch(2).rows[0][0].count("[SEP]") == 2
    assert paired.show_errors(2).columns[:3] == ("row", "text", "text_pair")


def test_segments_are_told_apart_where_the_model_can(tmp_path):
    task = TextClassification.prepare(PAIRS, "builtin:bert-reviews")
    batch = next(iter(task.learner().train.epoch()))
    assert batch["token_type_ids"].unique().tolist() == [0, 1]


def test_predict_takes_pairs_in_every_usual_form_and_the_pipeline_agrees(paired, tmp_path):
    pair = ("the film was good", "bad food")
    (answer,) = paired.predict([pair])
    forms = [list(pair), "\t".join(pair), {"text": pair[0], "text_pair": pair[1]}]
    assert [p.scores for p in paired.predict(forms)] == [pytest.approx(dict(answer.scores), abs=1e-6)] * 3
    assert paired.predict([pair[::-1]])[0].scores != answer.scores
    folder = paired.save(tmp_path / "model")
    classify = pipeline("text-classification", str(folder), device="cpu", truncation=True, top_k=None)
    (scores,) = classify([{"text": pair[0], "text_pair": pair[1]}])
    assert {s["label"]: s["score"] for s in scores} == pytest.approx(dict(answer.scores), abs=1e-5)
    again = load_task(folder)
    assert again.pairs
    assert again.predict([pair])[0].scores == pytest.approx(dict(answer.scores), abs=1e-6)
    assert again.predict([]) == []


@pytest.mark.parametrize(
    "wrong", ["one text", ["a single text"], ("a", "b"), [("a",)], [("a", "b", "c")], [("a", 5)], [None]]
)
def test_what_is_no_pair_is_refused_with_the_line_that_asks(paired, wrong):
    with pytest.raises(DataError, match=r"reads two texts together: predict\(\[\('first text', 'second text'\)\]\)"):
        paired.predict(wrong)


def test_a_model_of_single_texts_takes_no_pair(task):
    with pytest.raises(DataError, match="list of texts"):
        task.predict([("a", "b")])


@pytest.mark.parametrize(
    ("data", "kinds", "expected"),
    [
        ([{"text": "a", "label": "x"}] * 30, {"columns": {"text_pair": "b"}}, "column 'b' not found"),
        ({"train": PAIRS, "valid": [{"text": "a", "label": "same"}]}, {}, "column 'text_pair' not found"),
        (PAIRS, {"columns": {"text_pair": "text"}}, "two roles the same column"),
        ({"train": PAIRS, "valid": [{**PAIRS[0], "text_pair": " "}]}, {}, "'text_pair': the text_pair is empty"),
        ([{**row, "text_pair": 5} for row in PAIRS], {}, r"column 'text_pair': expected text, got int 5"),
    ],
)
def test_pairs_that_cannot_be_right_are_refused(tiny, data, kinds, expected):
    with pytest.raises(DataError, match=expected):
        TextClassification.prepare(data, tiny, **kinds)


def test_a_pair_leaks_as_a_pair(tiny):
    new = {"text": PAIRS[0]["text"], "text_pair": "so and so", "label": "same"}
    task = TextClassification.prepare({"train": PAIRS, "valid": [*PAIRS[:3], *[new] * 20]}, tiny)
    assert any("3 of 23 pairs are also in train" in warning for warning in task.warnings)


def test_pairs_from_a_tsv_without_a_header_and_at_the_command_line(tiny, tmp_path):
    lines = [f"{row['label']}\t{row['text']}\t{row['text_pair']}" for row in PAIRS]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines), encoding="utf-8")
    columns = {"label": 0, "text": 1, "text_pair": 2}
    recipe = Recipe(data=str(tmp_path / "pairs.tsv"), columns=columns, model=tiny, num_epochs=1, device="cpu")
    run = Run(recipe, tmp_path / "run").start()
    assert run.wait(60) == "done"
    done = CliRunner().invoke(app, ["predict", str(run.folder)], input="the film\tgood food\n")
    assert done.output == f"{run.predict([('the film', 'good food')])[0]}\tthe film\tgood food\n"
    refused = CliRunner().invoke(app, ["predict", str(run.folder), "only one"])
    assert refused.exit_code == 2
    assert "reads two texts together" in refused.output


def test_a_panel_asks_models_of_several_labels_and_of_pairs(tiny, tagged, paired):
    for of, text, shown in ((tagged, "the film", "film"), (paired, "the film\tgood", "same")):
        run = SimpleNamespace(task=of, predict=of.predict, at_rest=nullcontext, recipe=Recipe())
        tryout = Tryout(lambda act: act())
        tryout.offer(run)
        tryout.text.value = text
        assert shown in tryout.value.value
        tryout.show_errors()
        assert "wrong" in tryout.value.value
    with pytest.raises(DataError, match=r"predict\(\[\('first text', 'second text'\)\]\)"):
        tryout.text.value = "only one"


# Many classes.


def test_many_classes_have_a_top_5_and_a_table_of_what_is_confused(tiny):
    rows = [{"text": f"the film {'very ' * (i % 6)}{i}", "label": f"c{i % 6}"} for i in range(120)]
    task = TextClassification.prepare(rows, tiny)
    measured = task.evaluate("valid")
    assert measured["accuracy"] <= measured["top5"] <= 1
    table = task.confused(3, "train")
    truth, given = task.splits.train["label"][:], [p.label for p in task.predict(task.splits.train["text"][:])]
    wrong = sum(a != b for a, b in zip(truth, given, strict=True))
    assert table.caption.startswith(f"{wrong} of {len(truth)} train texts are wrong")
    counts = [int(row[2].split(" of ")[0]) for row in table.rows]
    assert counts == sorted(counts, reverse=True)
    for label, predicted, count in table.rows:
        both = [(a, b) for a, b in zip(truth, given, strict=True) if (a, b) == (label, predicted)]
        assert count == f"{len(both)} of {truth.count(label)}"
    assert "top5" not in text_metrics(5).collection
    assert [row[0] for row in task.per_class("train").rows] != []


@pytest.mark.parametrize("separator", [";", ",", "|", "/", "#", "::"])
def test_any_separator_can_be_typed(separator):
    assert Recipe().override([f"label_separator={separator}"]).label_separator == separator
    form = RecipeForm(Recipe(), lambda: None)
    form.settings["label_separator"].value = separator
    assert form.recipe().label_separator == separator


def test_lists_arrive_the_same_from_every_source(tiny, tmp_path):
    named = [{"text": row["text"], "tags": row["label"]} for row in TAGGED[:60]]
    pd.DataFrame(named).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in named), encoding="utf-8")
    names = ["tea", "food", "film", "unused"]
    numbers = [{**row, "tags": [names.index(tag) for tag in row["tags"]]} for row in named]
    features = Features({"text": Value("string"), "tags": List(ClassLabel(names=names))})
    forms = (tmp_path / "a.parquet", tmp_path / "a.jsonl", Dataset.from_list(numbers, features=features))
    tasks = [TextClassification.prepare(form, tiny, columns={"label": "tags"}) for form in forms]
    for task in tasks:
        assert task.labels == ["film", "food", "tea"]
        assert task.splits.train["label"][:] == tasks[0].splits.train["label"][:]


@pytest.mark.parametrize("strategy", ["head", "lora", {"name": "lp-ft"}])
@pytest.mark.parametrize("rows", [TAGGED[:60], PAIRS], ids=["several labels", "pairs"])
def test_strategies_do_not_care_what_kind_of_texts_it_is(tiny, tmp_path, rows, strategy):
    run = Run(Recipe(data=rows, model=tiny, strategy=strategy, num_epochs=1, device="cpu"), tmp_path / "run").start()
    assert run.wait(60) == "done"
    asked = [("the film", "good food")] if rows is PAIRS else ["the film"]
    assert str(load_task(run.folder / "model").predict(asked)[0]) == str(run.predict(asked)[0])
    assert run.report().png()
