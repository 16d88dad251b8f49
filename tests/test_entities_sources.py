"""Sentences with entities from files, folders and memory: what is read, what is mended and said, what is refused."""

import json
from pathlib import Path

import datasets
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value

from ftnb.builtin.names import DEFAULT_SIZES, KINDS, named_texts
from ftnb.builtin.words import PLACES
from ftnb.entities.checks import check_entities
from ftnb.entities.sources import load_entity_splits, read_entities
from ftnb.entities.tags import name_scheme, spans_of, tags_of, to_bio
from ftnb.entities.words import join_words, split_words
from ftnb.tables import DataError

CONLL = "Anna\tB-person\nleft\tO\nNew\tB-place\nYork\tI-place\n.\tO\n\nBob\tB-person\nstayed\tO\n"
NAMES = ["Anna", "Bob", "Carl", "Dora", "Emil", "Frida", "Gus", "Hana", "Ivo", "Jan"]


def many(count: int = 20) -> str:
    """Different sentences with one person each, as CoNLL."""
    return "".join(f"{NAMES[i % 10]}\tB-person\nsaw\tO\nitem{i}\tO\n\n" for i in range(count))


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def jsonl(folder: Path, *rows: dict) -> str:
    return write(folder, "data.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def first(data, **kinds):
    return read_entities(data, **kinds).splits["train"][0]


class TestTags:
    @pytest.mark.parametrize(
        ("tags", "bio"),
        [
            ("I-a I-a O I-a I-b", "B-a I-a O B-a B-b"),  # IO
            ("B-a I-b O I-a", "B-a B-b O B-a"),  # an I- that continues nothing
            ("S-a B-b I-b E-b U-a B-a L-a M-a", "B-a B-b I-b I-b B-a B-a I-a I-a"),  # BIOES and BILOU
            ("B-a B-a I-a", "B-a B-a I-a"),
        ],
    )
    def test_every_scheme_becomes_bio(self, tags, bio):
        assert to_bio(tags.split()) == bio.split()

    @pytest.mark.parametrize(
        ("tags", "scheme"),
        [
            (["I-a I-a O", "O I-b"], "IO"),
            (["I-a B-a I-a O", "I-b"], "IOB1"),
            (["B-a I-a O B-b"], "BIO"),
            (["B-a B-a I-b"], "BIO"),
            (["O O"], "BIO"),
        ],
    )
    def test_the_scheme_is_recognised(self, tags, scheme):
        assert name_scheme([of.split() for of in tags]) == scheme

    def test_entities_and_tags_are_two_forms_of_one_thing(self):
        tags = "B-a I-a B-a O O B-b-c I-b-c".split()
        assert spans_of(tags) == [(0, 2, "a"), (2, 3, "a"), (5, 7, "b-c")]
        assert tags_of(spans_of(tags), 7) == tags

    def test_tags_of_a_foreign_model_are_read_as_the_pipeline_does(self):
        assert spans_of(["PER", "PER", "O", "I-LOC", "B-LOC"]) == [(0, 2, "PER"), (3, 4, "LOC"), (4, 5, "LOC")]


class TestWords:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("Anna's cat, 3.5 kg!", ["Anna", "'", "s", "cat", ",", "3", ".", "5", "kg", "!"]),
            ("  \t\n", []),
            ("Zoë  ate\u00a0it", ["Zoë", "ate", "it"]),
            ("हिन्दी में", ["हिन्दी", "में"]),  # vowel signs are no punctuation
            ("东京dome", ["东", "京", "dome"]),
            ("a😀b_c", ["a", "😀", "b_c"]),
        ],
    )
    def test_words_are_cut_at_spaces_and_punctuation(self, text, words):
        assert [text[start:end] for start, end in split_words(text)] == words

    def test_joined_words_keep_their_places(self):
        text, places = join_words(["a", "b c", "d"])
        assert text == "a b c d"
        assert [text[start:end] for start, end in places] == ["a", "b c", "d"]


class TestConll:
    @pytest.mark.parametrize("separator", ["\t", " ", "   "])
    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_tabs_spaces_and_line_ends(self, tmp_path, separator, end):
        path = write(tmp_path, "a.conll", CONLL.replace("\t", separator).replace("\n", end))
        sentences = read_entities(path).splits["train"]
        assert [sentence.words for sentence in sentences] == [["Anna", "left", "New", "York", "."], ["Bob", "stayed"]]
        assert sentences[0].tags == ["B-person", "O", "B-place", "I-place", "O"]
        assert (sentences[1].row, sentences[1].text) == (7, "Bob stayed")

    def test_documents_comments_and_blank_lines_with_tabs(self, tmp_path):
        text = (
            "-DOCSTART- -X- O O\n\n# id 5 x\nAnna NNP B-NP B-person\n\t\n\n# NNP O O\nleft VBD O O\n"
            "-DOCSTART- -X- O O\nBob NNP O O"
        )
        sentences = read_entities(write(tmp_path, "a.txt", text)).splits["train"]
        assert [sentence.words for sentence in sentences] == [["Anna"], ["#", "left"], ["Bob"]]

    def test_columns_by_place(self, tmp_path):
        path = write(tmp_path, "a.conll", "1 Anna B-person x\n2 left O x\n")
        assert first(path, columns={"tokens": 1, "tags": 2}).words == ["Anna", "left"]
        assert first(path, columns={"tokens": 1, "tags": -2}).tags == ["B-person", "O"]

    def test_a_word_with_spaces_stays_one_in_a_file_with_tabs(self, tmp_path):
        assert first(write(tmp_path, "a.tsv", "New York\tB-place\n")).words == ["New York"]

    def test_lines_without_a_word_are_counted(self, tmp_path):
        found = read_entities(write(tmp_path, "a.conll", "Anna\tB-person\n\tO\nleft\tO\n"))
        assert found.splits["train"][0].words == ["Anna", "left"]
        assert found.notices == ["train (a.conll): 1 lines have a tag but no word and are passed over."]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "a.conll holds no words"),
            ("\n\n-DOCSTART- O\n", "a.conll holds no words"),
            ("Anna\n", "a.conll, line 1: expected a word and its tag, parted by a tab or spaces; got only 'Anna'"),
            ("Anna\tO\nleft\n", "a.conll, line 2: expected a word and its tag"),
            ("Anna\tO\nleft\tVBD\tO\n", "a.conll, line 2: 3 columns, parted by tabs, but the first line has 2"),
            ("Anna O\nNew York O\n", "a.conll, line 2: 3 columns, parted by spaces, but the first line has 2"),
            ("Anna O\nleft person\n", "a.conll, line 2: 'person' is no tag; expected 'O', or 'B-' or 'I-'"),
            ("Anna B-person NNP\n", r"'NNP' is no tag.*columns=\{'tags': 1\}"),
            ("Anna b-person\n", "'b-person' is no tag"),
            ("Anna B_person\n", "'B_person' is no tag"),
            ("Anna B-\n", "'B-' is no tag"),
        ],
    )
    def test_what_cannot_be_is_refused_with_file_and_line(self, tmp_path, text, message):
        with pytest.raises(DataError, match=message):
            read_entities(write(tmp_path, "a.conll", text))

    def test_positions_that_cannot_be(self, tmp_path):
        path = write(tmp_path, "a.conll", CONLL)
        with pytest.raises(DataError, match="there are 2 columns, counted from 0; columns asks for 5"):
            read_entities(path, {"tags": 5})
        with pytest.raises(DataError, match="has no names for its columns; give a position"):
            read_entities(path, {"tags": "ner"})
        with pytest.raises(DataError, match="columns names the role 'label'; this task knows 'text', 'entities'"):
            read_entities(path, {"label": "ner"})

    def test_a_file_that_is_not_utf8(self, tmp_path):
        path = tmp_path / "a.conll"
        path.write_bytes("Zoë B-person\n".encode("cp1252"))
        with pytest.raises(DataError, match=r"a.conll, line 1: byte 0xeb at offset 2 is not UTF-8.*cp1252"):
            read_entities(str(path))


class TestSchemes:
    def test_io_is_turned_into_bio_and_said(self, tmp_path):
        splits = load_entity_splits(write(tmp_path, "a.conll", many().replace("B-", "I-")))
        assert all(tags == ["B-person", "O", "O"] for tags in splits.train["tags"][:])
        assert any("the tags are IO" in notice and "cannot be told apart" in notice for notice in splits.notices)

    def test_iob1_is_turned_into_bio_and_said(self, tmp_path):
        text = many().replace("B-", "I-") + "Anna I-person\nBob B-person\nsaw O\n".replace(" ", "\t")
        splits = load_entity_splits(write(tmp_path, "a.conll", text))
        tags = [tags for split in (splits.train, splits.valid) for tags in split["tags"][:]]
        assert ["B-person", "B-person", "O"] in tags
        assert any("the tags are IOB1" in notice for notice in splits.notices)

    def test_wrong_bio_is_counted_with_file_and_lines(self, tmp_path):
        text = many() + "Anna\tI-person\nin\tB-place\nRome\tI-town\n"
        splits = load_entity_splits(write(tmp_path, "ner.conll", text))
        assert splits.notices[0] == (
            "train (ner.conll), lines 81, 83: 2 'I-' tags continue no entity of their type and are read as 'B-'."
        )

    def test_an_unknown_tag_in_rows_is_refused_with_its_row(self):
        rows = [{"tokens": ["Anna"], "tags": ["B-person"]}, {"tokens": ["Bob"], "tags": ["person"]}]
        with pytest.raises(DataError, match=r"train \(table\), row 2: the tag 'person' has an unknown form"):
            load_entity_splits(rows)


class TestSpans:
    TEXT = "Anna left New York."

    def row(self, *entities, text=TEXT):
        return {"text": text, "entities": list(entities)}

    def test_spans_become_tags_of_words(self, tmp_path):
        row = self.row({"start": 0, "end": 4, "label": "person"}, {"start": 10, "end": 18, "label": "place"})
        for data in (jsonl(tmp_path, row), [row], pd.DataFrame([row]), Dataset.from_list([row])):
            sentence = first(data)
            assert sentence.words == ["Anna", "left", "New", "York", "."]
            assert sentence.tags == ["B-person", "O", "B-place", "I-place", "O"]
            assert sentence.text == self.TEXT

    def test_other_spellings(self):
        for row in (
            {"text": self.TEXT, "spans": [{"start": 0, "end": 4, "label": "person"}]},
            {"text": self.TEXT, "label": [[0, 4, "person"]]},  # as doccano writes it
            {"body": self.TEXT, "found": [(0, 4, "person")]},
        ):
            columns = {"text": "body", "entities": "found"} if "body" in row else None
            assert first([row], columns=columns).tags == ["B-person", "O", "O", "O", "O"]

    def test_parquet(self, tmp_path):
        path = tmp_path / "a.parquet"
        Dataset.from_list([self.row({"start": 0, "end": 4, "label": "person"})]).to_parquet(path)
        assert first(str(path)).tags[0] == "B-person"

    def test_white_space_at_the_rim_is_no_fault(self):
        found = read_entities([self.row({"start": 4, "end": 10, "label": "verb"})])
        assert found.splits["train"][0].tags == ["O", "B-verb", "O", "O", "O"]
        assert found.notices == []

    def test_a_span_that_cuts_a_word_is_widened_and_counted(self):
        found = read_entities([self.row({"start": 0, "end": 2, "label": "person"}), self.row()])
        assert found.splits["train"][0].tags[0] == "B-person"
        assert found.notices == [
            "train (table), row 1: 1 entities begin or end inside a word and are widened to whole words."
        ]

    def test_ends_that_count_the_last_character_are_recognised(self):
        rows = [self.row({"start": 0, "end": 3, "label": "person"}, {"start": 10, "end": 17, "label": "place"})]
        (notice,) = read_entities(rows).notices
        assert "2 entities begin or end inside a word" in notice
        assert "is 'end' the place of the last one? It must be one more." in notice

    def test_overlapping_spans_keep_the_longest_and_are_counted(self):
        rows = [self.row({"start": 10, "end": 18, "label": "place"}, {"start": 14, "end": 18, "label": "town"})]
        found = read_entities(rows)
        assert found.splits["train"][0].tags == ["O", "O", "B-place", "I-place", "O"]
        assert found.notices == [
            "train (table), row 1: 1 entities overlap a longer one and are left out; a word has one tag."
        ]

    @pytest.mark.parametrize(
        ("entity", "message"),
        [
            (
                {"start": 10, "end": 30, "label": "place"},
                r"row 1: the entity 'place' at 10 to 30 does not lie in the text of 19",
            ),
            ({"start": -1, "end": 4, "label": "x"}, "does not lie in the text"),
            ({"start": 4, "end": 4, "label": "x"}, "does not lie in the text"),
            ({"start": 9, "end": 10, "label": "x"}, "holds only white space"),
            ({"start": 0, "end": 4}, "expected an entity such as"),
            ({"start": "0", "end": 4, "label": "x"}, "expected an entity such as"),
            ({"start": 0, "end": 4, "label": " "}, "expected an entity such as"),
            ([0, 4], "expected an entity such as"),
        ],
    )
    def test_spans_that_cannot_be_are_refused_with_their_row(self, entity, message):
        with pytest.raises(DataError, match=message):
            read_entities([self.row(entity)])

    def test_text_that_is_none(self):
        with pytest.raises(DataError, match=r"row 2: expected text, got int 5"):
            read_entities([self.row(), self.row(text=5)])
        with pytest.raises(DataError, match=r"row 1: expected a list, got str 'none'"):
            read_entities([{"text": "a", "entities": "none"}])


class TestTokens:
    def test_words_and_tags(self):
        sentence = first([{"tokens": ["Anna", "left"], "ner_tags": ["B-person", "O"]}])
        assert (sentence.text, sentence.tags) == ("Anna left", ["B-person", "O"])

    def test_numbers_of_tags_get_their_names_from_the_data_set(self):
        tags = ClassLabel(names=["O", "B-person"])
        features = Features({"tokens": Sequence(Value("string")), "ner_tags": Sequence(tags)})
        part = Dataset.from_list([{"tokens": ["Anna", "left"], "ner_tags": [1, 0]}], features=features)
        assert first(DatasetDict(train=part)).tags == ["B-person", "O"]

    def test_a_hub_id_takes_the_same_way(self, monkeypatch):
        tags = ClassLabel(names=["O", "B-person"])
        features = Features({"tokens": Sequence(Value("string")), "ner_tags": Sequence(tags)})
        part = Dataset.from_list([{"tokens": ["Anna", "left"], "ner_tags": [1, 0]}], features=features)
        monkeypatch.setattr("ftnb.sources.load_dataset", lambda name, config: DatasetDict(train=part, validation=part))
        found = read_entities("owner/names:small")
        assert set(found.splits) == {"train", "valid"}
        assert found.splits["valid"][0].tags == ["B-person", "O"]

    def test_the_hub_without_a_network_says_what_to_do(self):
        assert datasets.config.HF_HUB_OFFLINE
        with pytest.raises(DataError, match="cannot load 'nobody/names-of-nobody' from the Hub.*HF_ENDPOINT"):
            read_entities("nobody/names-of-nobody")

    def test_empty_sentences_are_left_out_and_counted(self):
        rows = [{"tokens": ["Anna"], "tags": ["O"]}, {"tokens": [], "tags": []}, {"tokens": [" "], "tags": ["O"]}]
        found = read_entities(rows)
        assert len(found.splits["train"]) == 1
        assert found.notices == ["train (table): 2 of 3 sentences are empty and left out, rows 2, 3."]
        with pytest.raises(DataError, match=r"train \(table\) holds no words"):
            read_entities([{"text": " ", "entities": []}])

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"tokens": ["Anna", "left"], "tags": ["O"]}, "row 1: 2 words have 1 tags; each word needs one"),
            (
                {"tokens": ["Anna"], "tags": [3]},
                "row 1: expected words and tags as text, got 3. Give the names of the tags",
            ),
            ({"tokens": [None], "tags": ["O"]}, "expected words and tags as text, got None"),
            ({"tokens": "Anna", "tags": ["O"]}, "expected a list, got str 'Anna'"),
            ({"sentence": "Anna", "tags": ["O"]}, "has the columns 'sentence', 'tags'; expected 'text' and 'entities'"),
        ],
    )
    def test_what_cannot_be_is_refused(self, row, message):
        with pytest.raises(DataError, match=message):
            read_entities([row])

    def test_a_column_that_is_not_there(self):
        with pytest.raises(DataError, match="column 'ner' not found in table; it has 'tokens', 'tags'"):
            read_entities([{"tokens": ["a"], "tags": ["O"]}], {"tags": "ner"})


class TestPlaces:
    def test_a_folder_with_a_file_for_each_split(self, tmp_path):
        write(tmp_path, "names2.train.conll", many())
        write(tmp_path, "names2.dev.conll", many(4))
        write(tmp_path, "names2.test.annotated", many(6))
        write(tmp_path, "README.md", "# no data")
        splits = load_entity_splits(tmp_path)
        assert [(name, len(split)) for name, split in splits.items()] == [("train", 20), ("valid", 4), ("test", 6)]
        assert splits.sources["test"] == "names2.test.annotated"

    def test_files_of_two_kinds(self, tmp_path):
        train = jsonl(tmp_path, {"text": "Anna left.", "entities": [{"start": 0, "end": 4, "label": "person"}]})
        valid = write(tmp_path, "b.conll", many(3))
        assert [len(split) for _, split in load_entity_splits({"train": train, "valid": valid}).items()] == [1, 3]

    def test_what_is_cut_off_is_said_and_the_same_again(self, tmp_path):
        path = write(tmp_path, "a.conll", many())
        a, b = (load_entity_splits(path, test_fraction=0.2, seed=3) for _ in range(2))
        assert [len(split) for _, split in a.items()] == [14, 2, 4]
        assert a.test["text"][:] == b.test["text"][:]
        assert any("test: 4 of 20 rows cut from a.conll" in notice for notice in a.notices)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda folder: str(folder / "none.conll"), "none.conll not found"),
            (str, "needs one file for training, such as train.conll .* holds no such file"),
            (lambda folder: write(folder, "a.csv", "x,y\n"), "a.csv: sentences with entities are not read from CSV"),
            (
                lambda folder: "builtin:nobody",
                "'builtin:nobody' is unknown; the built-in data with entities is 'builtin:names'",
            ),
            (lambda folder: {"learn": [{"tokens": ["a"], "tags": ["O"]}]}, "split 'learn' is unknown"),
            (lambda folder: 5, "cannot read data of type int"),
        ],
    )
    def test_what_is_not_there(self, tmp_path, make, message):
        with pytest.raises(DataError, match=message):
            read_entities(make(tmp_path))

    def test_two_files_for_one_split(self, tmp_path):
        write(tmp_path, "train_a.conll", many())
        write(tmp_path, "train_b.conll", many())
        with pytest.raises(DataError, match=r"both train_a.conll and train_b.conll look like the train split"):
            read_entities(tmp_path)


class TestChecks:
    def check(self, **splits):
        return check_entities(
            load_entity_splits(
                {name: text if isinstance(text, list) else self.rows(text) for name, text in splits.items()}
            )
        )

    @staticmethod
    def rows(text: str) -> list[dict]:
        sentences = [[line.split("\t") for line in part.split("\n")] for part in text.strip().split("\n\n")]
        return [{"tokens": [w for w, _ in of], "tags": [t for _, t in of]} for of in sentences]

    def test_nothing_to_learn(self):
        with pytest.raises(DataError, match=r"train \(table\): no word is in an entity"):
            self.check(train="a\tO\n\nb\tO", valid="c\tO")

    def test_a_type_that_training_lacks(self):
        with pytest.raises(DataError, match=r"test \(table\), row 2: entities of type 'place' never occur in train"):
            self.check(train=many(), valid=many(), test="x\tO\n\nRome\tB-place")

    def test_sentences_in_two_splits_are_counted(self):
        warnings = self.check(train=many(30), valid=many(25).replace("saw", "SAW"))
        assert "valid (table), rows 1, 2, 3, 4, 5 … (25 in all): 25 of 25 sentences are also in train" in warnings[0]

    def test_equal_sentences_with_different_tags(self):
        warnings = self.check(train=many(30) + "Anna\tO\nsaw\tO\nitem0\tO\n", valid=many(40)[-900:].lstrip("\n"))
        assert any("equal sentences carry different tags" in warning for warning in warnings)

    def test_little_to_measure_by(self):
        other = many(60).replace("saw", "met")
        rows = self.rows(other)
        warnings = self.check(train=many(30), valid=rows[:4], test=[{"tokens": ["x"], "tags": ["O"]}])
        assert any(
            "valid (table): only 4 entities: each found or missed moves the recall by 25 points" in w for w in warnings
        )
        assert any("test (table): there is no entity, so its F1 is always 0" in w for w in warnings)

    def test_rare_types_and_two_spellings(self):
        text = many(30) + "Rome\tB-Person\nit\tO\n\nx\tB-thing\n"
        warnings = self.check(train=text, valid=self.rows(many(60).replace("saw", "met"))[:30])
        assert any("'Person', 'person' count as different types" in warning for warning in warnings)
        assert any("2 of 3 types have fewer than 3 entities" in warning for warning in warnings)


class TestBuiltin:
    def names(self, split: str, seed: int = 0) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for row in named_texts(split, 200, seed):
            for of in row["entities"]:
                found.setdefault(of["label"], set()).add(row["text"][of["start"] : of["end"]])
        return found

    def test_the_first_text_is_the_same_on_every_machine(self):
        first = named_texts("train", 1)[0]
        assert first["text"] == FIRST_TEXT
        assert named_texts("test", 30, 4) == named_texts("test", 30, 4) != named_texts("test", 30, 5)

    def test_no_name_of_the_test_occurs_in_any_other_split(self):
        known = [self.names(split, seed) for split in ("train", "valid", "test_seen") for seed in (0, 1)]
        for seed in (0, 1):
            for label, names in self.names("test", seed).items():
                assert not names & set().union(*(of[label] for of in known))

    def test_no_city_and_no_kind_of_the_test_occurs_in_training_even_as_a_plain_word(self):
        words = {word.strip(".,!") for row in named_texts("train", 400) for word in row["text"].lower().split()}
        assert not words & {*PLACES[1::2], *KINDS[1::2]}
        assert words & {*KINDS[::2]}

    def test_sizes_types_and_places_of_entities(self):
        for split, size in DEFAULT_SIZES.items():
            rows = named_texts(split)
            assert len({row["text"] for row in rows}) == size
        counts = {label: len(names) for label, names in self.names("test").items()}
        assert set(counts) == {"organisation", "person", "place"}
        for row in named_texts("test", 100):
            for of in row["entities"]:
                name = row["text"][of["start"] : of["end"]]
                assert name == name.strip()
                assert name[0].isupper()

    def test_splits_share_no_text_whatever_their_seeds(self):
        texts = {s: {r["text"] for seed in (0, 1) for r in named_texts(s, 150, seed)} for s in DEFAULT_SIZES}
        pairs = [(a, b) for a in texts for b in texts if a < b]
        assert not any(texts[a] & texts[b] for a, b in pairs)

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: named_texts("dev"), "split 'dev' is unknown; choose one of 'train'"),
            (lambda: named_texts("train", -1), "num_examples must not be negative"),
            (lambda: named_texts("train", difficulty=2.0), "difficulty must lie between 0 and 1"),
        ],
    )
    def test_wrong_arguments(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


FIRST_TEXT = "We found the hotel frustrating. Warsaw Orchestra opens at nine and closes at six."
