"""Reading tables, splits, checks and batches."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from ftnb import sources
from ftnb.checks import check_text_labels, find_warnings, label_order
from ftnb.data import Batches, batch_order, cut_split, load_splits, normalise_text, real_token_share
from ftnb.tables import DataError

ROWS = [{"text": f"{'good' if i % 2 else 'bad'} film {i}", "label": str(i % 2)} for i in range(40)]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def csv_of(rows: list[dict[str, str]]) -> str:
    return "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows)


# -- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv_fields_stay_strings_and_rows_are_line_numbers(tmp_path, encoding):
    text = 'text,label\n"two\nlines, ""quoted""",NA\n\nnull,01\nfilm é,NA\n'
    path = write(tmp_path / "a.csv", text, encoding)
    train = load_splits({"train": path, "valid": path}).train
    assert train["text"][:] == ['two\nlines, "quoted"', "null", "film é"]
    assert train["label"][:] == ["NA", "01", "NA"]
    assert train["row"][:] == [2, 5, 6]


def test_windows_line_ends_and_semicolons(tmp_path):
    path = write(tmp_path / "a.csv", "text;label\r\nfine, really;1\r\nbad;0\r\n")
    train = load_splits({"train": path, "valid": path}).train
    assert train["text"][:] == ["fine, really", "bad"]
    assert train["label"][:] == ["1", "0"]


def test_tsv_without_header_keeps_stray_quotes(tmp_path):
    path = write(tmp_path / "a.tsv", 'a " b\t1\n"c\t0\nd"\t1\n')
    splits = load_splits({"train": path, "valid": path}, columns={"text": 0, "label": 1})
    assert splits.train["text"][:] == ['a " b', '"c', 'd"']
    assert splits.train["row"][:] == [1, 2, 3]


def test_jsonl_with_whole_and_missing_labels(tmp_path):
    lines = [{"text": "a", "label": 1}, {"text": "b", "label": None}, {"text": "c", "label": True}, {"text": "d"}]
    path = write(tmp_path / "a.jsonl", "\n\n".join(map(json.dumps, lines)))
    train = load_splits({"train": path, "valid": path}).train
    assert train["label"][:] == ["1", "", "True", ""]
    assert train["row"][:] == [1, 3, 5, 7]


def test_data_frame_with_a_gap_in_whole_numbers():
    frame = pd.DataFrame({"text": ["a", "b", None], "label": [1.0, np.nan, 2.5]}, index=[7, 7, 9])
    train = load_splits({"train": frame, "valid": frame}).train
    assert train["label"][:] == ["1", "", "2.5"]
    assert train["text"][:] == ["a", "b", ""]
    assert train["row"][:] == [1, 2, 3]


def test_datasets_keep_their_own_class_order():
    features = Features({"text": Value("string"), "label": ClassLabel(names=["zebra", "ant", "never"])})
    dataset = Dataset.from_dict({"text": ["a", "b", "c", "d"], "label": [0, 1, 0, 1]}, features=features)
    splits = load_splits(DatasetDict({"train": dataset, "validation": dataset}))
    assert splits.train["label"][:] == ["zebra", "ant", "zebra", "ant"]
    assert label_order(splits) == ["zebra", "ant"]


def test_a_test_split_without_labels_is_left_out_with_a_notice():
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    labelled = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features)
    hidden = Dataset.from_dict({"text": ["c", "d"], "label": [-1, -1]}, features=features)
    splits = load_splits({"train": labelled, "valid": labelled, "test": hidden})
    assert splits.test is None
    assert "no labels" in splits.notices[0]


def test_folder_finds_splits_by_name(tmp_path):
    write(tmp_path / "my_train.csv", csv_of(ROWS[:20]))
    write(tmp_path / "my-validation.csv", csv_of(ROWS[20:30]))
    write(tmp_path / "test.jsonl", "\n".join(map(json.dumps, ROWS[30:])))
    write(tmp_path / "notes.csv", "nothing to do with it")
    splits = load_splits(tmp_path)
    assert [len(split) for _, split in splits.items()] == [20, 10, 10]
    assert splits.notices == []


def test_folder_saved_by_datasets(tmp_path):
    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:5])}).save_to_disk(tmp_path / "d")
    splits = load_splits(tmp_path / "d")
    assert len(splits.train) + len(splits.valid) == 40
    assert len(splits.test) == 5


def test_home_and_relative_paths(tmp_path, monkeypatch):
    write(tmp_path / "films.csv", csv_of(ROWS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert load_splits("films.csv").train[0] == load_splits("~/films.csv").train[0]


@pytest.mark.parametrize(
    ("name", "content", "columns", "expected"),
    [
        ("a.csv", "text,lable\na,1\n", None, ["'label'", "a.csv", "'text', 'lable'", "columns={'label': 'lable'}"]),
        ("a.csv", "text,stars\na,1\n", None, ["'label'", "'text', 'stars'"]),
        ("a.csv", "text,text,label\na,b,1\n", None, ["2 columns named 'text'"]),
        ("a.csv", "text,label\na,1\n", {"txt": "text"}, ["'txt'", "'text', 'label'"]),
        ("a.csv", "text,label\na,1\n", {"text": "label"}, ["same column"]),
        ("a.tsv", "a\t1\n", {"text": 0, "label": 2}, ["column 2", "2 fields"]),
        ("a.csv", "text,label\na,1\nb,c,1\n", None, ["line 3", "3 fields", "2", "quotes"]),
        ("a.csv", 'text,label\na,1\n"b" c,1\n', None, ["line 3", "doubled"]),
        ("a.csv", 'text,label\na,1\n"b,1\nc,0\n', None, ["line 3"]),
        ("a.tsv", "text\tlabel\na\n", None, ["line 2", "1 fields"]),
        ("a.csv", "text,label\n", None, ["no rows"]),
        ("a.csv", "", None, ["empty"]),
        ("a.jsonl", '{"text": "a"}\n{oops}\n', None, ["line 2", "not JSON"]),
        ("a.jsonl", "[1]\n", None, ["line 1", "object"]),
        ("a.jsonl", "[" * 100_000 + "\n", None, ["line 1", "not JSON"]),
        ("a.jsonl", '{"text": "\\uD800", "label": "x"}\n', None, ["line 1", "half of a character"]),
        ("a.jsonl", '{"text": "a", "label": "x", "\\ud800": 1}\n', None, ["line 1", "half of a character"]),
        ("a.jsonl", '{"text": 5, "label": "x"}\n', None, ["row 1", "'text'", "int 5"]),
        ("a.xlsx", "", None, [".xlsx", ".csv"]),
    ],
)
def test_bad_files_are_refused_with_the_place_named(tmp_path, name, content, columns, expected):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        load_splits(path, columns=columns)
    for part in expected:
        assert part in str(caught.value)


@pytest.mark.parametrize(("encoding", "guess"), [("latin-1", "cp1252"), ("utf-16", "utf-16")])
def test_another_encoding_is_named_with_line_and_byte(tmp_path, encoding, guess):
    path = write(tmp_path / "a.csv", "text,label\nfine,1\ncaf\u00e9,0\n", encoding)
    with pytest.raises(DataError, match=guess) as caught:
        load_splits(path)
    if encoding == "latin-1":
        assert "line 3" in str(caught.value)
        assert "0xe9" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("nowhere.csv", "nowhere.csv"),
        ("./some/folder", "is no file and no folder"),
        ("builtin:cats", "builtin:reviews"),
        (42, "int"),
        ([], "no rows"),
        (["a", "b"], "list"),
        ({"train": ROWS, "trial": ROWS}, "'trial'"),
        ({"valid": ROWS, "dev": ROWS}, "given twice"),
        ({"test": ROWS}, "no split 'train'"),
        ({"text": ["a"], "label": ["b"]}, "'train', 'valid', 'test'"),
    ],
)
def test_data_of_another_kind_is_refused(tmp_path, monkeypatch, data, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=expected):
        load_splits(data)


def test_two_files_for_one_split(tmp_path):
    write(tmp_path / "train.csv", csv_of(ROWS))
    write(tmp_path / "train.tsv", "text\tlabel\na\t1\n")
    with pytest.raises(DataError, match=r"train\.csv and train\.tsv"):
        load_splits(tmp_path)
    os.remove(tmp_path / "train.csv")
    os.rename(tmp_path / "train.tsv", tmp_path / "films.tsv")
    with pytest.raises(DataError, match=r"films\.tsv"):
        load_splits(tmp_path)


def test_no_network_says_what_to_do(monkeypatch):
    def unreachable(*_):
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub")

    monkeypatch.setattr(sources, "load_dataset", unreachable)
    with pytest.raises(DataError, match="HF_ENDPOINT"):
        load_splits("owner/name")


def test_hub_data_with_a_configuration(monkeypatch):
    asked = []

    def load(repository, config):
        asked.append((repository, config))
        return DatasetDict({"train": Dataset.from_list(ROWS), "extra": Dataset.from_list(ROWS[:3])})

    monkeypatch.setattr(sources, "load_dataset", load)
    splits = load_splits("owner/name:small")
    assert asked == [("owner/name", "small")]
    assert len(splits.train) + len(splits.valid) == len(ROWS)


# -- splits -----------------------------------------------------------------------------------------------------------


def test_cut_is_stratified_deterministic_and_keeps_equal_texts_together():
    rows = [{"text": f"text {i // 2}", "label": "rare" if i < 20 else "common"} for i in range(400)]
    first, again, other = (load_splits(rows, valid_fraction=0.2, seed=seed) for seed in (0, 0, 1))
    assert first.valid[:] == again.valid[:]
    assert first.valid["row"][:] != other.valid["row"][:]
    assert Counter(first.valid["label"][:]) == {"rare": 4, "common": 76}
    assert not set(first.train["text"][:]) & set(first.valid["text"][:])
    assert "80 of 400 rows" in first.notices[0]


def test_cutting_needs_no_labels_and_leaves_single_examples_in_training():
    rest, cut = cut_split(pd.DataFrame({"image": list("abcdefghij")}), 0.3, seed=0)
    assert len(rest) == 7
    assert len(cut) == 3
    with pytest.raises(DataError, match="valid"):
        load_splits([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])


def test_builtin_reviews_hold_their_promise():
    splits = load_splits("builtin:reviews")
    assert check_text_labels(splits) == []
    assert label_order(splits) == ["negative", "positive"]
    assert splits.train[:] == load_splits("builtin:reviews", seed=5).train[:]


# -- checks -----------------------------------------------------------------------------------------------------------


def split_rows(valid: list[dict[str, str]], train: list[dict[str, str]] = ROWS) -> dict[str, list[dict[str, str]]]:
    return {"train": train, "valid": valid}


def test_all_errors_are_told_at_once_with_row_and_column(tmp_path):
    path = write(tmp_path / "films.csv", "quote,stars\nfine,1\n  ,0\nso so,\n")
    splits = load_splits(
        {"train": path, "valid": [{"quote": "x", "stars": "9"}] * 7}, columns={"text": "quote", "label": "stars"}
    )
    with pytest.raises(DataError) as caught:
        check_text_labels(splits)
    lines = str(caught.value).splitlines()
    assert lines[0] == "train (films.csv), row 3, column 'quote': the text is empty; fill it in or remove the row."
    assert "row 4, column 'stars'" in lines[1]
    assert "rows 1, 2, 3, 4, 5 … (7 in all)" in lines[2]
    assert "'9'" in lines[2]


def test_a_single_class_is_an_error():
    with pytest.raises(DataError, match="'same'"):
        check_text_labels(load_splits(split_rows(ROWS, [{"text": "a", "label": "same"}] * 3)))


def test_leakage_is_found_through_case_spaces_and_unicode():
    train = [*ROWS, {"text": "Un CAFÉ", "label": "1"}]
    leaking = [{"text": " un  cafe\u0301 ", "label": "1"}, *({"text": f"new {i}", "label": "0"} for i in range(30))]
    problems = find_warnings(load_splits(split_rows(leaking, train)))
    assert [(p.level, p.split, p.rows) for p in problems] == [("warning", "valid", (1,))]
    assert "1 of 31 texts are also in train" in problems[0].message


def test_contradictions_spellings_rare_classes_and_tiny_splits():
    train = [
        *ROWS,
        {"text": ROWS[0]["text"], "label": "1"},
        {"text": "x", "label": "Yes"},
        {"text": "y", "label": "yes"},
    ]
    messages = [p.message for p in find_warnings(load_splits(split_rows([{"text": "new", "label": "1"}], train)))]
    assert "100 points" in messages[0]
    assert "rows 1, 41" in messages[1]
    assert "'Yes', 'yes'" in messages[2]
    assert "2 of 4 classes" in messages[3]


def test_whole_number_labels_are_ordered_by_value():
    splits = load_splits([{"text": f"t{i}", "label": i % 11} for i in range(44)])
    assert label_order(splits) == [str(i) for i in range(11)]
    assert normalise_text(" ＡB ") == "ab"


# -- batches ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lengths() -> list[int]:
    rng = np.random.default_rng(0)  # like the sentences of film reviews: 3 to 73 tokens, 27 on average
    return np.clip(rng.gamma(5.0, 5.4, 3000), 3, 73).astype(int).tolist()


@pytest.mark.parametrize("num_examples", [1, 15, 16, 17, 160, 1613])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("bucketed", [True, False])
def test_every_example_is_in_exactly_one_batch(lengths, num_examples, shuffle, bucketed):
    of = lengths[:num_examples] if bucketed else None
    batches = batch_order(num_examples, 16, lengths=of, shuffle=shuffle, seed=3, epoch=1)
    assert sorted(i for batch in batches for i in batch) == list(range(num_examples))
    assert len(batches) == -(-num_examples // 16)
    assert sorted(map(len, batches))[1:] == [16] * (len(batches) - 1)


def test_buckets_waste_little_and_stay_random(lengths):
    epochs = [batch_order(3000, 16, lengths=lengths, seed=0, epoch=epoch) for epoch in range(40)]
    assert min(real_token_share(lengths, order) for order in epochs) >= 0.95
    assert real_token_share(lengths, batch_order(3000, 16, seed=0)) < 0.7  # what random batches waste
    # Over the epochs an example comes anywhere in the epoch, however long it is: about 19 of the 188 batches hold
    # the shortest tenth, so over 40 epochs its mean position is known to within 0.289 / sqrt(19 * 40) = 0.0105 …
    position = np.zeros((40, 3000))
    for epoch, order in enumerate(epochs):
        position[epoch, [i for batch in order for i in batch]] = np.linspace(0, 1, 3000)
    by_length = position[:, np.argsort(lengths)]
    assert abs(by_length[:, :300].mean() - 0.5) < 0.032
    assert abs(by_length[:, -300:].mean() - 0.5) < 0.032
    assert abs(position.mean(0) - 0.5).max() < 4.5 * np.sqrt(1 / 12 / 40)
    # … and the small batch is not always that of the shortest or the longest.
    small = [np.mean([lengths[i] for i in min(order, key=len)]) for order in epochs]
    assert min(small) < 20
    assert max(small) > 35


def test_small_data_still_gets_new_company_each_epoch(lengths):
    def pairs(epoch: int) -> set[tuple[int, int]]:
        order = batch_order(128, 16, lengths=lengths[:128], seed=0, epoch=epoch)
        return {(a, b) for batch in order for a in batch for b in batch if a < b}

    first, second = pairs(0), pairs(1)
    assert len(first & second) < 0.5 * len(first)


def test_without_shuffling_the_longest_come_first(lengths):
    order = batch_order(100, 16, lengths=lengths[:100], shuffle=False)
    flat = [lengths[i] for batch in order for i in batch]
    assert flat == sorted(flat, reverse=True)
    assert batch_order(100, 16, lengths=lengths[:100], shuffle=False, epoch=5, seed=9) == order
    assert batch_order(5, 2, shuffle=False) == [[0, 1], [2, 3], [4]]


def test_batches_restart_where_they_were_and_leave_the_global_generator_alone(lengths):
    collated = []

    def collate(examples):
        collated.append(len(examples))
        return {"ids": torch.tensor(examples)}

    batches = Batches(list(range(100)), collate, 8, lengths=lengths[:100], shuffle=True, seed=1)
    state = torch.get_rng_state()
    whole = [batch["ids"].tolist() for batch in batches.epoch(2)]
    assert torch.equal(state, torch.get_rng_state())
    collated.clear()
    assert [batch["ids"].tolist() for batch in batches.epoch(2, start=5)] == whole[5:]
    assert len(collated) == len(whole) - 5 == len(batches) - 5  # what was skipped was not made
    assert whole != [batch["ids"].tolist() for batch in batches.epoch(3)]
    assert batches.num_examples == 100
    assert list(batches.epoch(0, start=len(batches))) == []
    with pytest.raises(ValueError, match="between 0 and 13"):
        list(batches.epoch(0, start=14))


def test_workers_give_the_same_batches(lengths):
    kinds = {"lengths": lengths[:40], "shuffle": True, "seed": 1}
    here = list(Batches(list(range(40)), torch.tensor, 8, **kinds).epoch(1))
    there = list(Batches(list(range(40)), torch.tensor, 8, num_workers=1, **kinds).epoch(1))
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def noisy(examples: list[int]) -> torch.Tensor:
    return torch.tensor(examples) + torch.rand(len(examples))


def test_random_augmentation_in_workers_is_the_same_after_a_break():
    one, two = (Batches(list(range(40)), noisy, 8, num_workers=n) for n in (1, 2))
    whole = list(one.epoch(1))
    assert all(torch.equal(a, b) for a, b in zip(whole, two.epoch(1), strict=True)), "whoever makes a batch"
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], two.epoch(1, start=3), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(whole, one.epoch(2), strict=True)), "each epoch draws anew"


def test_impossible_batches_are_refused():
    with pytest.raises(DataError, match="batch size"):
        Batches([1, 2], list, 0)
    with pytest.raises(DataError, match="examples"):
        Batches([], list, 4)
    with pytest.raises(DataError, match="3 lengths do not fit 2"):
        Batches([1, 2], list, 1, lengths=[1, 2, 3])
