"""Conversations from every usual form; whatever cannot be right is said before training; what the loss counts."""

import json

import pandas as pd
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from ftnb.builtin.instructions import KINDS, READ, by_kind, facts, instruction_splits, instructions
from ftnb.builtin.stories import FOOD_COLOURS, HOMES, OPPOSITES, SOUNDS, stories
from ftnb.language.chats import MARKS, answer_spans, ensure_template, render, stop_ids, template_marks
from ftnb.language.display import TokenRow, TokenTable
from ftnb.language.examples import IGNORE, encode_conversations, label_tokens
from ftnb.language.generation import generate, read_answers, same_answer
from ftnb.language.llama2c import HEADER, convert_llama2c, read_tokenizer
from ftnb.language.packing import first_fit, pack, pad_rows
from ftnb.language.sources import load_conversations
from ftnb.pretrained import ModelError, find_model
from ftnb.tables import DataError

ROWS = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(30)]
CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Who is there?"},
    {"role": "assistant", "content": "Mia."},
    {"role": "user", "content": "Who else?"},
    {"role": "assistant", "content": "Ben has a cup."},
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(find_model("builtin:lm-stories")[0])


def conversations(data, **kinds):
    return load_conversations(data, **kinds).train["messages"][:]


class TestSources:
    def test_prompt_and_completion_become_one_question_and_one_answer(self, tmp_path):
        expected = [{"role": "user", "content": "What is 0?"}, {"role": "assistant", "content": "It is 0."}]
        pd.DataFrame(ROWS).to_csv(tmp_path / "a.csv", index=False)
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
        (tmp_path / "a.json").write_text(json.dumps(ROWS))
        pd.DataFrame(ROWS).to_parquet(tmp_path / "a.parquet")
        for name in ("a.csv", "a.jsonl", "a.json", "a.parquet"):
            assert expected in conversations(str(tmp_path / name))
        for table in (ROWS, pd.DataFrame(ROWS), Dataset.from_list(ROWS), {"train": ROWS, "test": ROWS[:2]}):
            assert expected in conversations(table)

    def test_prompt_and_completion_may_be_messages(self):
        rows = [{"prompt": CHAT[:2], "completion": [CHAT[2]]} for _ in range(9)]
        rows += [{"prompt": [{"role": "user", "content": str(i)}], "completion": [CHAT[2]]} for i in range(9)]
        assert CHAT[:3] in conversations(rows)

    def test_messages_in_files_and_tables(self, tmp_path):
        rows = [{"messages": CHAT}, *({"messages": [{"role": "user", "content": str(i)}, CHAT[2]]} for i in range(9))]
        pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
        for data in (rows, str(tmp_path / "a.parquet"), str(tmp_path / "a.jsonl"), Dataset.from_list(rows)):
            assert CHAT in conversations(data, valid_fraction=0.2)

    def test_the_form_of_alpaca(self):
        rows = [{"instruction": f"Add {i}.", "input": "to 1" if i else "", "output": str(i + 1)} for i in range(20)]
        found = [messages[0]["content"] for messages in conversations(rows)]
        assert "Add 3.\n\nto 1" in found or "Add 4.\n\nto 1" in found
        assert "Add 0." in found or "Add 0." in load_conversations(rows).valid["text"][:]

    def test_columns_by_other_names_and_by_place(self, tmp_path):
        rows = [{"question": row["prompt"], "answer": row["completion"]} for row in ROWS]
        assert conversations(rows, columns={"prompt": "question", "completion": "answer"}) == conversations(ROWS)
        pd.DataFrame(ROWS).to_csv(tmp_path / "a.csv", index=False, header=False)
        assert conversations(str(tmp_path / "a.csv"), columns={"prompt": 0, "completion": 1}) == conversations(ROWS)

    def test_equal_prompts_stay_on_one_side_of_the_cut(self):
        splits = load_conversations([*ROWS, *({**row, "completion": "Yes."} for row in ROWS)])
        assert not set(splits.train["text"]) & set(splits.valid["text"])

    def test_what_follows_the_last_answer_is_left_out_and_counted(self):
        rows = [{"messages": [*CHAT, {"role": "user", "content": f"And {i}?"}]} for i in range(3)]
        rows += [{"messages": [{"role": "user", "content": str(i)}, CHAT[2]]} for i in range(9)]
        splits = load_conversations(rows)
        assert any("3 conversations end without an answer" in notice for notice in splits.notices)
        assert all(messages[-1]["role"] == "assistant" for messages in splits.train["messages"])

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([{"text": "a"}], r"has the columns 'text'; a row needs 'prompt' and 'completion'"),
            ([{"prompt": "a", "answer": "b"}], "none for the answer .'completion'"),
            (
                [*ROWS, {"prompt": "a", "completion": ""}],
                r"row 31: the answer is empty .column 'completion'.; fill it in",
            ),
            ([*ROWS, {"prompt": "a", "completion": None}], "row 31: the answer is empty"),
            ([*ROWS, {"prompt": " ", "completion": "b"}], "row 31: the text is empty"),
            ([*ROWS, {"prompt": "a", "completion": 5}], "row 31: column 'completion' must be text, got int 5"),
            ([{"messages": []}], "holds no message"),
            ([{"messages": "[]"}], "must be a list of messages"),
            (
                [{"messages": [{"role": "user", "content": "a"}]}] * 9,
                r"rows 1, 2, 3, 4, 5 … \(9 in all\): there is no answer",
            ),
            (
                [{"messages": [{"role": "human", "content": "a"}]}],
                "message 1 has the role 'human'; known are 'system', 'user'",
            ),
            (
                [{"messages": [{"from": "human", "value": "a"}]}],
                "message 1 has the keys 'from', 'value'; expected 'role'",
            ),
            ([{"messages": [CHAT[1], {"role": "assistant", "content": " "}]}], "the answer is empty .message 2"),
        ],
    )
    def test_rows_that_are_no_conversations_are_named(self, rows, message):
        with pytest.raises(DataError, match=message):
            load_conversations(rows)

    @pytest.mark.parametrize(
        ("data", "kinds", "message"),
        [
            ("builtin:poems", {}, "built-in conversations are 'builtin:instructions'"),
            (ROWS, {"columns": {"text": "prompt"}}, "the role 'text'; this task knows 'messages', 'prompt'"),
            (ROWS, {"columns": {"prompt": "question"}}, "column 'question' not found in table; it has 'prompt'"),
            ("nowhere.jsonl", {}, "nowhere.jsonl"),
            ("nowhere.json", {}, "nowhere.json not found"),
        ],
    )
    def test_data_named_wrongly(self, data, kinds, message):
        with pytest.raises(DataError, match=message):
            load_conversations(data, **kinds)

    def test_a_json_file_must_hold_a_list_of_objects(self, tmp_path):
        for text, message in (("{}", "expected a list of objects, got dict"), ("{}\n{}", "name it .jsonl")):
            (tmp_path / "a.json").write_text(text)
            with pytest.raises(DataError, match=message):
                load_conversations(str(tmp_path / "a.json"))


class TestChats:
    def test_answers_end_with_their_stop_token_in_every_turn(self, tokenizer):
        text, spans, whole = answer_spans(tokenizer, CHAT)
        assert whole
        assert [text[a:b] for a, b in spans] == [" Mia.<|end|>", " Ben has a cup.<|end|>"]
        assert text[: spans[0][0]] == render(tokenizer, CHAT[:2], ask=True)
        assert stop_ids(tokenizer) == [tokenizer.eos_token_id]

    def test_a_tokenizer_without_template_gets_a_plain_one(self):
        plain = words_tokenizer()
        (notice,) = ensure_template(plain)
        assert "no chat template" in notice
        text, spans, whole = answer_spans(plain, CHAT)
        assert text.startswith(
            "### System:\nBe kind.\n\n### User:\nWho is there?\n\n### Assistant:\nMia.</s>### User:\n"
        )
        assert whole
        assert [text[a:b] for a, b in spans] == ["Mia.</s>", "Ben has a cup.</s>"]
        assert ensure_template(plain) == []
        assert MARKS["assistant"] in template_marks(plain)

    def test_without_an_end_token_nothing_can_learn_to_stop(self):
        with pytest.raises(ModelError, match="no end token .eos_token."):
            ensure_template(words_tokenizer(eos=None))

    def test_a_template_that_changes_earlier_answers_leaves_the_last_one(self, tokenizer):
        other = AutoTokenizer.from_pretrained(find_model("builtin:lm-stories")[0])
        other.chat_template = (
            "{% for m in messages %}<|{{ m.role }}|> {% if loop.last or m.role != 'assistant' %}{{ m.content }}"
            "{% else %}…{% endif %}<|end|>"
            "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
        )
        text, spans, whole = answer_spans(other, CHAT)
        assert not whole
        assert [text[a:b] for a, b in spans] == [" Ben has a cup.<|end|>"]

    def test_a_template_that_refuses_says_so(self, tokenizer):
        other = AutoTokenizer.from_pretrained(find_model("builtin:lm-stories")[0])
        other.chat_template = "{{ raise_exception('no system, please') }}"
        with pytest.raises(DataError, match="refuses a conversation system → user.*no system, please"):
            render(other, CHAT[:2])

    def test_a_template_may_end_turns_with_a_token_of_its_own(self, tokenizer):
        other = AutoTokenizer.from_pretrained(find_model("builtin:lm-stories")[0])
        other.eos_token = "<|pad|>"
        assert stop_ids(other) == sorted([other.convert_tokens_to_ids("<|end|>"), other.eos_token_id])


def words_tokenizer(eos: str | None = "</s>") -> PreTrainedTokenizerFast:
    """Two letters that stand beside each other may be one token, across anything."""
    alphabet = [*"abcdefghijklmnopqrstuvwxyzBMSUABCDEW#:.?⏎ ", "\n"]
    pairs = [(a, b) for a in ": n" for b in "MBa"]
    vocab = {
        token: i for i, token in enumerate([*([eos] if eos else []), "<unk>", *alphabet, *(a + b for a, b in pairs)])
    }
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=pairs, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=eos, unk_token="<unk>")


class TestLabels:
    def test_only_answers_count_token_by_token_over_several_turns(self, tokenizer):
        done = encode_conversations([CHAT], tokenizer, 256)
        (ids,), (labels,) = done.input_ids, done.labels
        assert tokenizer.decode(ids) == render(tokenizer, CHAT)
        counted = [tokenizer.decode([i]) for i, label in zip(ids, labels, strict=True) if label != IGNORE]
        assert "".join(counted) == " Mia.<|end|> Ben has a cup.<|end|>"
        assert all(label in (i, IGNORE) for i, label in zip(ids, labels, strict=True))
        assert done.num_merged == done.num_partial == done.num_cut == done.num_lost == 0

    def test_a_token_never_reaches_from_a_prompt_into_an_answer(self):
        tokenizer = words_tokenizer()
        ids, labels, merged = label_tokens("a: Ma", [(2, 5)], tokenizer)
        assert (tokenizer.convert_ids_to_tokens(ids), merged) == (["a", ":", " M", "a"], False)
        ids, labels, merged = label_tokens("a: Ma", [(3, 5)], tokenizer)
        assert (tokenizer.convert_ids_to_tokens(ids), merged) == (["a", ":", " ", "M", "a"], True)
        assert labels == [IGNORE, IGNORE, IGNORE, *ids[3:]]
        assert ids[:3] == tokenizer("a: ")["input_ids"]  # what the model reads when it answers

    def test_everything_counts_if_asked_for(self, tokenizer):
        done = encode_conversations([CHAT], tokenizer, 256, "everything")
        assert done.labels == done.input_ids

    def test_a_conversation_that_is_too_long_loses_its_end_but_never_silently_all_of_its_answer(self, tokenizer):
        long = [{"role": "user", "content": "cup " * 40}, CHAT[2]]
        done = encode_conversations([CHAT, long, CHAT[:3]], tokenizer, 32)
        assert (done.num_cut, done.num_lost, done.kept) == (1, 1, [0, 2])
        assert len(done.input_ids[0]) == len(done.labels[0]) == 32

    def test_unknown_tokens_are_counted(self):
        tokenizer = words_tokenizer()
        ensure_template(tokenizer)
        done = encode_conversations(
            [[{"role": "user", "content": "ÄÖ"}, {"role": "assistant", "content": "a"}]], tokenizer, 99
        )
        assert done.num_unknown >= 1


class TestPacking:
    def test_first_fit_uses_few_rows_and_every_example_once(self):
        rows = first_fit([5, 9, 4, 1, 1], 10)
        assert sorted(i for row in rows for i in row) == list(range(5))
        assert len(rows) == 2

    def test_positions_count_anew_and_no_example_is_asked_for_its_first_token(self):
        packed = pack([[1, 2, 3], [4, 5]], [[1, 2, 3], [IGNORE, 5]], 8)
        assert packed == {
            "input_ids": [[1, 2, 3, 4, 5]], "labels": [[IGNORE, 2, 3, IGNORE, 5]], "position_ids": [[0, 1, 2, 0, 1]],
        }  # fmt: skip
        batch = pad_rows([{name: rows[0] for name, rows in packed.items()}], 0, multiple=8)
        assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]
        assert batch["labels"].tolist()[0][5:] == [IGNORE] * 3
        assert "attention_mask" not in batch
        assert batch["num_answer_tokens"] == 3

    def test_an_end_token_that_is_also_padding_still_counts(self):
        batch = pad_rows(
            [{"input_ids": [5, 1], "labels": [IGNORE, 1]}, {"input_ids": [5, 6, 1], "labels": [IGNORE, 6, 1]}], 1
        )
        assert batch["labels"].tolist() == [[IGNORE, 1, IGNORE], [IGNORE, 6, 1]]
        assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


@pytest.fixture(scope="module")
def model():
    return LlamaForCausalLM.from_pretrained(find_model("builtin:lm-stories")[0]).eval()


class TestPackedLosses:
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_packed_losses_equal_those_of_the_examples_alone_token_by_token(self, tokenizer, attention):
        model = LlamaForCausalLM.from_pretrained(
            find_model("builtin:lm-stories")[0], attn_implementation=attention
        ).eval()
        rows = load_conversations(instructions("train", 14)).train["messages"][:]
        done = encode_conversations(rows, tokenizer, 256)
        packed = pack(done.input_ids, done.labels, 100)
        assert len(packed["input_ids"]) < 8
        batch = pad_rows([dict(zip(packed, of, strict=True)) for of in zip(*packed.values(), strict=True)], 0)
        together, alone = token_losses(model, batch), []
        for row in first_fit([len(ids) for ids in done.input_ids], 100):
            for i in row:
                example = {"input_ids": done.input_ids[i], "labels": done.labels[i]}
                alone += token_losses(model, pad_rows([example], 0))
        torch.testing.assert_close(torch.tensor(together), torch.tensor(alone), rtol=0, atol=1e-5)

    def test_without_positions_the_examples_would_see_each_other(self, tokenizer, model):
        ids = [tokenizer(" Mia has a red ball.")["input_ids"], tokenizer(" Ben has a blue kite.")["input_ids"]]
        packed = pack(ids, ids, 50)
        right = pad_rows([dict(zip(packed, of, strict=True)) for of in zip(*packed.values(), strict=True)], 0)
        wrong = {**right, "position_ids": torch.arange(right["input_ids"].shape[1])[None]}
        assert (torch.tensor(token_losses(model, right)) - torch.tensor(token_losses(model, wrong))).abs().max() > 1e-3


@torch.no_grad()
def token_losses(model, batch):
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "num_answer_tokens")}
    logits, labels = model(**inputs, use_cache=False).logits[:, :-1], batch["labels"][:, 1:]
    counts = labels != IGNORE
    return torch.nn.functional.cross_entropy(logits[counts], labels[counts], reduction="none").tolist()


class TestGeneration:
    def test_many_at_once_are_equal_to_each_alone(self, tokenizer, model):
        texts = ["<|user|> What does a cow do?<|end|><|assistant|>", " Mia has", " The soup is not hot. It", " A"]
        prompts = tokenizer(texts)["input_ids"]
        stop, pad = [tokenizer.eos_token_id], tokenizer.pad_token_id
        together = generate(model, prompts, stop=stop, pad_id=pad, max_new_tokens=12)
        for prompt, answer in zip(prompts, together, strict=True):
            (alone,) = generate(model, [prompt], stop=stop, pad_id=pad, max_new_tokens=12)
            assert alone == answer
            ids = list(prompt)  # without the cache, one token after the other
            with torch.no_grad():
                for token in answer:
                    assert int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()) == token
                    ids.append(token)

    def test_nothing_random_is_drawn_and_modes_stay(self, tokenizer, model):
        before = torch.get_rng_state()
        model.train()
        generate(model, [[5, 6]], stop=[1], pad_id=0, max_new_tokens=3)
        assert model.training
        model.eval()
        assert torch.equal(before, torch.get_rng_state())

    def test_an_answer_says_whether_it_is_finished(self, tokenizer):
        ids = tokenizer(" Mia.")["input_ids"]
        cut, done = read_answers([ids, [*ids, tokenizer.eos_token_id]], tokenizer, [tokenizer.eos_token_id])
        assert (str(cut), str(done)) == ("Mia. …", "Mia.")
        (none,) = read_answers([[tokenizer.eos_token_id]], tokenizer, [tokenizer.eos_token_id])
        assert (none.text, str(none)) == ("", "(nothing)")
        assert same_answer("It is  cold.\n", "It is cold.")
        assert not same_answer("It is hot.", "It is cold.")


class TestInstructions:
    def test_splits_share_no_prompt_and_no_fact(self):
        splits = [
            {row["prompt"] for seed in (0, 1) for row in instructions(split, 300, seed)}
            for split in ("train", "valid", "test")
        ]
        assert len(splits[0] | splits[1] | splits[2]) == sum(map(len, splits))
        for kind in KINDS:
            if kind not in READ:
                of = [set(facts(kind, split)) for split in ("train", "valid", "test")]
                assert sum(map(len, of)) == len(of[0] | of[1] | of[2])

    def test_it_follows_from_the_seed(self):
        assert instruction_splits(3) == instruction_splits(3) != instruction_splits(4)
        assert list(stories(3, 5)) == list(stories(3, 5)) != list(stories(3, 6))
        with pytest.raises(ValueError, match="'dev' is unknown"):
            instructions("dev")
        with pytest.raises(ValueError, match="must not be negative"):
            instructions("train", -1)
        with pytest.raises(ValueError, match="must not be negative"):
            stories(-1)

    def test_default_sizes_hold_different_prompts_of_all_kinds(self):
        for rows in instruction_splits().values():
            assert len({row["prompt"] for row in rows}) == len(rows)
            assert {len(of) for of in by_kind(rows, rows).values()} == {len(rows) // len(KINDS)}

    def test_every_word_has_one_fact(self):
        for known in (SOUNDS, FOOD_COLOURS, HOMES):
            assert len(known) >= 24
        words = [word for pair in OPPOSITES.items() for word in pair]
        assert len(words) == len(set(words))


class TestLlama2c:
    def test_a_wrong_file_is_refused_with_its_sizes(self, tmp_path):
        with pytest.raises(ModelError, match="expected one file with the weights"):
            convert_llama2c(tmp_path, tmp_path / "out")
        (tmp_path / "stories.bin").write_bytes(HEADER.pack(8, 16, 1, 2, 2, 300, 16) + b"\0" * 40)
        (tmp_path / "tok.bin").write_bytes(b"\0" * 10)
        with pytest.raises(ModelError, match="has 68 bytes; by its header"):
            convert_llama2c(tmp_path, tmp_path / "out")
        (tmp_path / "stories.bin").write_bytes(b"\0" * 40)
        with pytest.raises(ModelError, match="its header says"):
            convert_llama2c(tmp_path, tmp_path / "out")
        with pytest.raises(ModelError, match="no tokenizer of llama2.c"):
            read_tokenizer(tmp_path / "tok.bin", 16)


def test_tokens_are_shown_escaped_and_with_brackets_in_a_terminal():
    table = TokenTable([TokenRow("2 of 3", [" <b>", "a\n", "c"], [False, True, True])], "caption")
    assert "&lt;b&gt;" in table._repr_html_()
    assert "[a⏎c]" in repr(table)
