"""From tagged text to a saved model: alignment, windows, scores, predictions, errors, and the folder others load."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    pipeline,
)

from ftnb.builtin.names import named_texts
from ftnb.entities.marks import Mark, MarkedText, MarkedTexts, compare
from ftnb.entities.scores import entity_scores
from ftnb.entities.windows import NO_WORD, cut_windows, encode_words, needs_space, owners
from ftnb.pretrained import ModelError
from ftnb.saved import load_task
from ftnb.tables import DataError
from ftnb.tasks import task_class
from ftnb.tasks.token_classification import (
    IGNORE,
    Entity,
    EntityScores,
    FoundEntities,
    TokenClassification,
    counted_words,
    model_inputs,
    piece_labels,
    token_cross_entropy,
)
from ftnb.train import Training

DATA = {split: named_texts(split, number) for split, number in (("train", 60), ("valid", 30), ("test", 30))}
BERT = "builtin:bert-reviews"


def prepare(**kinds: Any) -> TokenClassification:
    return TokenClassification.prepare(kinds.pop("data", DATA), kinds.pop("model", BERT), **kinds)


@pytest.fixture(scope="module")
def trained() -> TokenClassification:
    task = prepare()
    for _ in Training(task.learner(), lr=2e-3, num_epochs=6, device="cpu", precision="fp32"):
        pass
    return task


@pytest.fixture
def task() -> TokenClassification:
    return prepare()


class ByToken(nn.Module):
    """A model whose tag for a token depends on the token alone, so that windows cannot change it."""

    device = torch.device("cpu")

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.num_labels = num_labels

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        logits = nn.functional.one_hot(input_ids % self.num_labels, self.num_labels).float() * 5
        return type("Output", (), {"logits": logits})()


class TestPreparing:
    def test_prepare_gathers_everything_a_training_needs(self, task):
        types = ("organisation", "person", "place")
        assert task.labels == ["O", *(f"{prefix}-{label}" for label in types for prefix in "BI")]
        assert task.new_parameters == {"classifier.weight", "classifier.bias"}
        assert task.warnings == []
        assert [len(split) for _, split in task.splits.items()] == [60, 30, 30]
        assert task.max_length == 128
        assert task.tokenizer.model_max_length == 128
        assert task_class("token-classification") is TokenClassification

    def test_scratch_has_only_new_parameters(self):
        scratch = prepare(scratch=True)
        assert len(scratch.new_parameters) == len(list(scratch.model.parameters()))

    def test_what_is_wrong_with_the_data_comes_before_the_model(self):
        with pytest.raises(DataError, match="no word is in an entity"):
            prepare(data=[{"tokens": [str(i)], "tags": ["O"]} for i in range(30)], model="no-such-model")
        with pytest.raises(ModelError, match="max_length must lie between 4 and 128"):
            prepare(max_length=500)


class TestAlignment:
    def test_a_words_label_stands_on_its_first_piece_only(self):
        word_ids = [NO_WORD, 0, 1, 1, 1, 3, 3, 3, NO_WORD]  # word 2 belongs to another window
        assert piece_labels(word_ids, [5, 6, 7, 8]) == [IGNORE, 5, 6, IGNORE, IGNORE, 8, IGNORE, IGNORE, IGNORE]

    def test_every_word_of_every_text_has_its_own_label_once(self, task):
        ids = {label: i for i, label in enumerate(task.labels)}
        for name, split in task.splits.items():
            found: dict[int, list[int]] = {}
            for window in task.encoded[name]:
                pieces = task.tokenizer.convert_ids_to_tokens(window["input_ids"])
                for piece, label in zip(pieces, window["labels"], strict=True):
                    if label != IGNORE:
                        assert not piece.startswith("##")
                        assert piece not in ("[CLS]", "[SEP]")
                        found.setdefault(window["sentence"], []).append(label)
            assert [found[i] for i in range(len(split))] == [[ids[tag] for tag in tags] for tags in split["tags"][:]]

    def test_words_without_a_piece_stand_as_unknown(self, task):
        words = ["anna", "\u200b", "\u00ad", "left"]
        (window,), unknown = encode_words([words], task.tokenizer, 128, 8)
        assert set(window["word_ids"]) == {NO_WORD, 0, 1, 2, 3}
        assert window["input_ids"].count(task.tokenizer.unk_token_id) == 2
        assert unknown == pytest.approx(2 / len(window["input_ids"]))

    def test_padding_on_the_left_keeps_labels_beside_their_tokens(self, task):
        right = task.collate([task.encoded["train"][i] for i in range(4)])
        task.tokenizer.padding_side = "left"
        left = task.collate([task.encoded["train"][i] for i in range(4)])
        for batch in (left, right):
            assert ((batch["labels"] != IGNORE) <= batch["attention_mask"].bool()).all()
        for key in ("input_ids", "labels", "word_ids"):
            for of_left, of_right in zip(left[key], right[key], strict=True):
                assert sorted(of_left.tolist()) == sorted(of_right.tolist())
        assert left["num_words"] == right["num_words"]

    def test_a_lone_word_is_asked_for_where_the_tokenizer_adds_no_special_tokens(self, task):
        task.tokenizer.backend_tokenizer.post_processor = None  # as GPT-2's
        assert task.tokenizer.num_special_tokens_to_add() == 0
        ((_, score),) = task._tag([["Wjelica"]])[0]
        assert score < 1.0  # a word that is not asked for is O with certainty

    def test_a_byte_level_tokenizer_gets_spaces_so_that_words_are_cut_as_in_text(self, tmp_path):
        texts = [row["text"] for row in DATA["train"]]
        tokens = Tokenizer(models.BPE(unk_token="<unk>"))
        tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        tokens.train_from_iterator(
            texts, trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet)
        )
        names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), special, strict=True))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, **names)
        assert needs_space(tokenizer)
        assert not needs_space(AutoTokenizer.from_pretrained(prepare().save(tmp_path / "bert")))
        (window,), _ = encode_words([["my", "sister", "asked"]], tokenizer, 64, 8)
        assert (
            window["input_ids"][1:]
            == tokenizer("so my sister asked", add_special_tokens=False)["input_ids"][-len(window["input_ids"]) + 1 :]
        )
        tokenizer.save_pretrained(tmp_path / "roberta")
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        RobertaModel(
            RobertaConfig(vocab_size=500, max_position_embeddings=66, pad_token_id=1, **sizes)
        ).save_pretrained(tmp_path / "roberta")
        task = prepare(model=str(tmp_path / "roberta"), max_length=60)
        assert torch.isfinite(token_cross_entropy(task.model, next(iter(task.batches("train", 8).epoch())))[0])

    def test_a_slow_tokenizer_is_refused(self):
        with pytest.raises(ModelError, match="cannot say which word a piece belongs to; use a fast tokenizer"):
            needs_space(type("Slow", (), {"is_fast": False})())


class TestWindows:
    @pytest.mark.parametrize(("limit", "overlap"), [(5, 0), (5, 2), (8, 4), (3, 2), (1, 0), (100, 10)])
    @pytest.mark.parametrize("lengths", [[1] * 20, [1, 3, 2, 1, 1, 9, 1, 2, 2, 4, 1], [7], [], [9, 9, 9]])
    def test_windows_cover_every_word_and_overlap(self, lengths, limit, overlap):
        windows = cut_windows(lengths, limit, overlap)
        assert windows[0].start == 0
        assert windows[-1].stop == len(lengths)
        for before, after in pairwise(windows):
            assert before.start < after.start <= before.stop < after.stop or before.stop == after.stop
            assert sum(lengths[after.start : before.stop]) <= overlap
        for window in windows:
            assert sum(lengths[i] for i in window) <= limit or len(window) == 1
        answers = owners(windows)
        assert len(answers) == len(lengths)
        assert all(word in windows[number] for word, number in enumerate(answers))

    def test_a_word_is_answered_for_where_it_stands_farthest_from_a_cut(self):
        windows = cut_windows([1] * 14, 8, 4)
        assert windows == [range(8), range(4, 12), range(8, 14)]
        assert owners(windows) == [0] * 6 + [1] * 4 + [2] * 4

    def test_windows_lose_no_word_and_answer_as_the_whole_does(self, task):
        text = " ".join(row["text"] for row in DATA["test"])
        task.model = ByToken(len(task.labels))
        task.max_length = 10_000
        words = [["one", "two", "three"], text.replace(".", " .").split(), ["x" * 40, "y" * 40], []]
        whole = task._tag(words)
        for length in (8, 16, 33, 64):
            task.max_length = length
            assert task._tag(words) == whole
        assert [len(tags) for tags in whole] == [len(of) for of in words]

    def test_long_texts_train_and_count_each_word_once(self):
        long = [
            {"tokens": ["my", "sister", "velora"] * 40, "tags": ["O", "O", "B-person"] * 40},
            *({"tokens": ["i", "saw", name], "tags": ["O", "O", "B-person"]} for name in "abcdefghijklmnopqrstuvwxyz"),
        ]
        task = prepare(data={"train": long, "valid": long[::-1]}, max_length=32)
        assert len(task.encoded["train"]) > 30
        assert any("train: 1 of 27 texts are longer than 32 tokens and are read in windows" in w for w in task.warnings)
        labels = [label for window in task.encoded["train"] for label in window["labels"] if label != IGNORE]
        assert len(labels) == 120 + 26 * 3
        assert max(map(len, task.encoded["train"]["input_ids"][:])) <= 32
        losses = [
            event.loss
            for event in Training(task.learner(batch_size=8), lr=1e-3, num_epochs=2, device="cpu")
            if event.kind == "step"
        ]
        assert losses[-1] < losses[0]
        assert set(task.evaluate("valid")) >= {"loss", "f1", "precision", "recall", "token_accuracy"}

    def test_an_entity_across_two_windows_is_one(self):
        labels = ["O", "B-a", "I-a"]
        metric = EntityScores(labels)
        windows = [([0, 1, 2], [0, 0, 1]), ([3, 4, 5], [2, 2, 0])]  # words, and their labels
        for words, of in reversed(windows):  # in any order
            logits = nn.functional.one_hot(torch.tensor([of]), 3).float()
            metric.update(
                logits, {"labels": torch.tensor([of]), "word_ids": torch.tensor([words]), "sentence": torch.tensor([7])}
            )
        assert metric.tags()[0] == [["O", "O", "B-a", "I-a", "I-a", "O"]]
        assert metric.compute()["f1"] == 1


class TestLossAndScores:
    def test_what_is_said_about_ignored_tokens_changes_nothing(self, task):
        batch = next(iter(task.batches("train", 8).epoch()))
        loss, outputs = token_cross_entropy(task.model, batch)
        assert loss.item() == pytest.approx(torch.log(torch.tensor(7.0)).item(), abs=0.3)
        logits = outputs.logits.detach().requires_grad_()
        model = lambda **_: type("Output", (), {"logits": logits})()  # noqa: E731
        token_cross_entropy(model, batch)[0].backward()
        ignored = batch["labels"] == IGNORE
        assert ignored.any()
        assert logits.grad[ignored].abs().max() == 0
        assert logits.grad[~ignored].abs().max() > 0
        nothing = token_cross_entropy(model, {**batch, "labels": torch.full_like(batch["labels"], IGNORE)})[0]
        assert nothing.item() == 0

    def test_parts_weighted_by_their_words_give_the_loss_of_the_whole(self, task):
        examples = [task.encoded["train"][i] for i in range(10)]
        whole = token_cross_entropy(task.model, task.collate(examples))[0]
        parts = [task.collate(examples[:3]), task.collate(examples[3:])]
        weights = [counted_words(part) for part in parts]
        losses = [token_cross_entropy(task.model, part)[0].item() for part in parts]
        assert sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights) == pytest.approx(
            whole.item(), rel=1e-4
        )
        assert set(model_inputs(parts[0])) == {"input_ids", "attention_mask", "token_type_ids"}

    def test_scores_count_whole_entities(self):
        truth = ["B-a I-a O B-b O".split(), "O B-a".split()]
        scores = entity_scores(truth, ["B-a O O B-b O".split(), "O B-b".split()])
        assert scores["all"] == pytest.approx({"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3, "support": 3})
        assert scores["a"]["f1"] == 0
        assert scores["b"] == pytest.approx({"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": 1})
        assert entity_scores(truth, truth)["all"]["f1"] == 1
        assert entity_scores([["O"]], [["O"]])["all"]["f1"] == 0

    def test_a_prediction_that_begins_inside_counts_as_it_is_shown(self):
        truth, predicted = [["B-a", "I-a", "O"]], [["I-a", "I-a", "O"]]
        assert f1_score(truth, predicted, mode="strict", scheme=IOB2) == 0
        assert f1_score(truth, predicted) == entity_scores(truth, predicted)["all"]["f1"] == 1

    def test_evaluate_agrees_with_the_predictions(self, trained):
        measured = trained.evaluate("test")
        found = trained.predict([row["text"] for row in DATA["test"]])
        theirs = [{(of["start"], of["end"], of["label"]) for of in row["entities"]} for row in DATA["test"]]
        ours = [{(of.start, of.end, of.label) for of in answer.entities} for answer in found]
        right = sum(len(a & b) for a, b in zip(ours, theirs, strict=True))
        assert right > 5
        assert measured["precision"] == pytest.approx(right / sum(map(len, ours)), abs=1e-6)
        assert measured["recall"] == pytest.approx(right / sum(map(len, theirs)), abs=1e-6)
        assert {"f1 person", "f1 place", "f1 organisation"} <= set(measured)
        with pytest.raises(DataError, match="'train', 'valid', 'test'"):
            trained.evaluate("dev")
        rows = trained.per_type("test").rows
        assert {row[0] for row in rows} == {"person", "place", "organisation"}
        assert [float(row[2]) for row in rows] == sorted(float(row[2]) for row in rows)

    def test_the_training_reports_entity_f1(self, task):
        (event,) = [e for e in Training(task.learner(), lr=2e-3, num_epochs=1, device="cpu") if e.kind == "evaluated"][
            -1:
        ]
        assert event.metrics["f1"] == pytest.approx(task.evaluate("valid")["f1"], abs=0.02)


class TestPredicting:
    def test_offsets_are_those_of_the_text_given(self, trained):
        text = "  My boss\twent to\n\nVienna , they say.  "
        (found,) = trained.predict([text])
        assert found.text == text
        for entity in found.entities:
            assert text[entity.start : entity.end] == entity.text
        assert any(entity.text == "Vienna" for entity in found.entities)

    def test_words_can_be_given_one_by_one(self, trained):
        (found,) = trained.predict([["My", "boss", "went", "to", "Vienna", "."]])
        assert found.text == "My boss went to Vienna ."
        assert found.entities == trained.predict(["My boss went to Vienna ."])[0].entities

    def test_predictions_are_in_order_and_do_not_depend_on_company(self, trained):
        texts = [row["text"] for row in DATA["test"]] + ["", "   ", "!!!", "a" * 500]
        together = trained.predict(texts)
        for text, found in zip(texts, together, strict=True):
            (alone,) = trained.predict([text])
            assert [(e.start, e.end, e.label) for e in alone.entities] == [
                (e.start, e.end, e.label) for e in found.entities
            ]
        assert trained.predict([]) == []
        assert trained.predict([""]) == [FoundEntities("", ())]

    @pytest.mark.parametrize("wrong", ["one text", ["a", 5], [None], [["a", 3]]])
    def test_what_is_no_list_of_texts_is_refused(self, trained, wrong):
        with pytest.raises(DataError, match="list of texts"):
            trained.predict(wrong)

    def test_predicting_restores_the_mode_of_every_module(self, task):
        task.model.train()
        task.model.bert.encoder.layer[0].eval()
        before = [module.training for module in task.model.modules()]
        task.predict(["Anna left."])
        task.evaluate("valid")
        task.show_errors(1)
        assert [module.training for module in task.model.modules()] == before

    def test_a_prediction_in_words_and_in_html(self):
        found = FoundEntities("<b> Anna", (Entity("Anna", "person", 0.987, 4, 8),))
        assert str(found) == "person: Anna (0.99)"
        assert "&lt;b&gt;" in found._repr_html_()
        assert "person" in found._repr_html_()
        assert str(FoundEntities("x", ())) == "no entity"
        assert "no entity" in FoundEntities("x", ())._repr_html_()


class TestErrors:
    def test_what_is_wrong_is_said_in_words(self):
        def marks(*of):
            return [Mark(start, end, label) for start, end, label in of]

        truth, found = compare(
            marks((0, 4, "a"), (5, 9, "a"), (10, 14, "a"), (20, 24, "b")),
            marks((0, 4, "a"), (5, 9, "b"), (10, 12, "a"), (15, 17, "b")),
        )
        assert [mark.note for mark in truth] == ["", "wrong type", "wrong limits", "missed"]
        assert [mark.note for mark in found] == ["", "wrong type", "wrong limits", "false alarm"]

    def test_marks_can_be_told_apart_without_colour_and_are_escaped(self):
        line = MarkedText("row 1", "<i>Anna</i> & Bob", [Mark(3, 7, "person"), Mark(14, 17, "<x>", "missed")])
        assert line.plain() == "<i>[Anna|person]</i> & [Bob|<x>, missed]"
        assert "<i>" not in line.html()
        assert "&lt;x&gt;, missed" in line.html()
        assert "dashed" in line.html()
        table = MarkedTexts([line], "<b>")
        assert "&lt;b&gt;" in table._repr_html_()
        assert repr(table) == f"<b>\nrow 1  {line.plain()}"

    def test_errors_are_those_with_the_most_first(self, trained):
        shown = trained.show_errors(3, split="test")
        assert len(shown) == 6
        numbers = [sum(bool(mark.note) for mark in line.marks) for line in shown.lines if line.name == "predicted"]
        assert max(numbers) > 0
        texts = {row["text"] for row in DATA["test"]}
        assert all(line.text in texts for line in shown.lines)
        assert "of 30 test texts have a wrong entity" in shown.caption

    def test_no_errors_say_so(self, trained):
        trained_on = prepare(
            data={
                "train": DATA["train"],
                "valid": DATA["valid"],
                "test": [{"text": "it was very good.", "entities": []}],
            }
        )
        trained_on.model = trained.model
        assert trained_on.show_errors(split="test").caption == "0 of 1 test texts have a wrong entity."

    def test_show_batch_shows_pieces_and_where_labels_stand(self, task):
        shown = task.show_batch(3)
        assert len(shown) == 3
        assert all(line.text.startswith("[CLS] ") for line in shown.lines)
        marked = [line.text[mark.start : mark.end] for line in shown.lines for mark in line.marks]
        assert marked
        assert not any(piece.startswith("##") for piece in marked)


class TestSaved:
    def test_the_pipeline_finds_the_same_entities(self, trained, tmp_path):
        folder = trained.save(tmp_path / "model")
        find = pipeline("token-classification", str(folder), device="cpu", aggregation_strategy="first")
        texts = [row["text"] for row in DATA["test"][:15]] + [
            "No name here.",
            "Anna-Lena (Vienna) paid $5 to Berlin Gallery!",
        ]
        number = 0
        for text, answer in zip(texts, trained.predict(texts), strict=True):
            theirs = [(of["entity_group"], of["start"], of["end"]) for of in find(text)]
            assert [(of.label, of.start, of.end) for of in answer.entities] == theirs
            scores = [float(of["score"]) for of in find(text)]
            assert [of.score for of in answer.entities] == pytest.approx(scores, abs=1e-4)
            number += len(theirs)
        assert number > 15
        assert not list(Path(folder).glob("*.bin"))
        assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertForTokenClassification"]

    def test_a_saved_folder_predicts_and_can_be_fine_tuned_further(self, trained, tmp_path):
        folder = trained.save(tmp_path / "model")
        again = load_task(folder)
        texts = [row["text"] for row in DATA["test"][:5]]
        assert [str(a) for a in again.predict(texts)] == [str(a) for a in trained.predict(texts)]
        further = prepare(model=str(folder))
        assert further.new_parameters == frozenset()
        assert further.labels == trained.labels

    def test_other_types_start_a_new_head_and_say_so(self, trained, tmp_path):
        folder = trained.save(tmp_path / "model")
        rows = [{"tokens": ["i", f"saw{i}"], "tags": ["O", "B-thing"]} for i in range(40)]
        task = prepare(data=rows, model=str(folder))
        assert task.labels == ["O", "B-thing", "I-thing"]
        assert task.new_parameters == {"classifier.weight", "classifier.bias"}
        assert any("head" in warning or "start random" in warning for warning in task.warnings)

    def test_a_backbone_alone_has_nothing_to_predict(self, tmp_path):
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        BertModel(BertConfig(vocab_size=1000, **sizes)).save_pretrained(tmp_path)
        prepare().tokenizer.save_pretrained(tmp_path)
        with pytest.raises(ModelError, match="without a trained head"):
            TokenClassification.from_saved(tmp_path)
