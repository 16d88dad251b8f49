"""Events and journals: what is written is read back, and damage is named."""

import json
import math

import pytest

from ftnb.events import (
    KINDS,
    Changed,
    Evaluated,
    Finished,
    Journal,
    JournalError,
    Saved,
    SetLr,
    Started,
    Stepped,
    Warned,
    from_json,
    read_journal,
    to_json,
)

EVENTS = [
    Started(
        step=0, num_steps=4, steps_per_epoch=2, num_epochs=2, num_examples=8, num_parameters=10, num_trainable=2,
        device="cpu", precision="fp32", metric="accuracy", groups=("embeddings", "head"),
    ),
    Stepped(step=1, time=0.1, epoch=0.5, loss=0.7, lr=1e-3, grad_norm=1.5, examples_per_second=12.0),
    Evaluated(step=2, time=0.2, epoch=1.0, loss=0.6, metrics={"accuracy": 0.9, "f1": math.nan}, best=True),
    Saved(step=2, what="best", path="model"),
    Changed(step=2, what="lr", old=1e-3, new=5e-4, group="head"),
    Changed(step=2, what="phase", old=None, new="füll", by="strategy"),
    Warned(step=3, code="non_finite", message='a "quoted"\nline'),
    Finished(step=4, reason="done", best_step=2, best_value=0.9),
]  # fmt: skip


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: e.kind)
def test_round_trip(event):
    line = to_json(event)
    assert "\n" not in line
    json.loads(line, parse_constant=lambda name: pytest.fail(f"bare {name} in the line"))
    again = from_json(line)
    assert to_json(again) == line
    assert type(again) is type(event)


def test_every_kind_has_an_example_here():
    assert {e.kind for e in EVENTS} == set(KINDS)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("not json", "not a line of JSON"),
        ("[]", "not an event"),
        ('{"kind": "party", "step": 1}', "not an event"),
        ('{"kind": "saved", "step": 1, "what": "best"}', "lacks path"),
        ('{"kind": "saved", "step": "1", "what": "best", "path": "m"}', "'step' must be int"),
        ('{"kind": "saved", "step": true, "what": "best", "path": "m"}', "'step' must be int"),
        ('{"kind": "step", "step": 1, "epoch": 0.1, "loss": "low", "lr": 1, "grad_norm": 1}', "'loss' must be float"),
        ('{"kind": {}, "step": 1}', "not an event"),
        ('{"kind": "saved", "step": ' + "9" * 400 + ', "what": "best", "path": "m"}', "more than 64 bits"),
        ("[" * 100_000, "not a line of JSON"),
    ],
)
def test_damage_is_named(line, named):
    with pytest.raises(JournalError, match=named):
        from_json(line)


def test_fields_of_a_later_version_are_passed_over():
    assert from_json('{"kind": "saved", "step": 1, "what": "best", "path": "m", "size": 3}').path == "m"


def test_a_journal_is_continued_after_a_torn_line(tmp_path):
    path = tmp_path / "events.jsonl"
    journal = Journal(path)
    journal.append(EVENTS[1])
    journal.close()
    journal.close()
    with open(path, "a") as file:
        file.write('{"kind": "step", "st')
    assert read_journal(path) == EVENTS[1:2]
    again = Journal(path)
    again.append(EVENTS[3])
    again.close()
    assert read_journal(path) == [EVENTS[1], EVENTS[3]]


def test_damage_in_the_middle_names_the_line(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text(f'{{"schema": 1}}\n{to_json(EVENTS[1])}\nrubbish\n{to_json(EVENTS[3])}\n')
    with pytest.raises(JournalError, match="line 3"):
        read_journal(path)


@pytest.mark.parametrize(
    ("text", "named"),
    [("", "empty"), ("hello\n", "no journal"), ("[" * 100_000 + "\n", "no journal"), ('{"schema": 99}\n', "Upgrade")],
)
def test_what_is_no_journal(tmp_path, text, named):
    path = tmp_path / "events.jsonl"
    path.write_text(text)
    with pytest.raises(JournalError, match=named):
        read_journal(path)


@pytest.mark.parametrize("lr", [0, -1.0, math.nan, math.inf, 10**400, True, "1e-3"])
def test_impossible_rates_are_refused(lr):
    with pytest.raises(ValueError, match="lr must be a positive finite number"):
        SetLr(lr=lr)


def test_a_run_passes_over_what_cannot_be_read(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text(f'{{"schema"\n{to_json(EVENTS[1])}\nrubbish\n{to_json(EVENTS[3])}\n')
    damaged: list[str] = []
    assert read_journal(path, damaged=damaged) == [EVENTS[1], EVENTS[3]]
    assert ["line 1" in damaged[0], "line 3" in damaged[1]] == [True, True]
    for torn in ("", '{"sche'):
        path.write_text(torn)
        assert read_journal(path, damaged=damaged) == []
        assert "is empty" in damaged[-1]
        Journal(path).close()
        assert read_journal(path) == []
    path.write_text(f'{{"schema": 99}}\n{to_json(EVENTS[1])}\n')
    with pytest.raises(JournalError, match="Upgrade"):
        read_journal(path, damaged=[])
