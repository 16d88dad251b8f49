"""The command line as a person meets it: what it prints, how it ends, and that a mistake is one message."""

import _thread
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ftnb import __version__
from ftnb.cli import app
from ftnb.recipe import Recipe
from ftnb.registry import RUNS
from ftnb.run import Run
from ftnb.runfolder import BEST, LAST

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def place(place) -> Path:
    settings = {"lr": 1e-3, "num_epochs": 2, "device": "cpu"}
    Recipe(data=str(place / "reviews.csv"), model=str(place / "bert"), **settings).save(place / "recipe.toml")
    return place


@pytest.fixture
def ftnb(tmp_path, monkeypatch):
    """Call the command line; returns (exit code, standard output, standard error)."""
    monkeypatch.setenv("FTNB_RUNS", str(tmp_path / "runs"))
    handler = signal.getsignal(signal.SIGTERM)

    def call(*words: object, text: str | None = None) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, [str(word) for word in words], input=text)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout, result.stderr

    yield call
    signal.signal(signal.SIGTERM, handler)


def test_run_then_show_then_predict(place, ftnb, tmp_path):
    code, out, err = ftnb("run", place / "recipe.toml", "--set", "lr=2e-3", "--set", "strategy=head")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"ftnb run {place / 'recipe.toml'} --set lr=2e-3 --set strategy=head"
    assert "strategy='head'" in lines[1]
    assert "lr=0.002" in lines[1]
    assert lines[-1].startswith("done: accuracy 0.")
    folder = Path(lines[-1].split("model: ")[1])
    assert (folder / "model.safetensors").exists()

    code, out, _ = ftnb("show")
    assert code == 0
    assert "accuracy" in out
    assert (folder.parent / "report.png").read_bytes()[:4] == b"\x89PNG"
    assert ftnb("show", folder.parent.name)[1] == out == ftnb("show", folder.parent)[1]

    expected = [p.label for p in Run.open(folder.parent).predict(["the film was good", "a dull plot"])]
    for words in ((folder.parent,), (folder,), (folder.parent.name,)):
        code, out, _ = ftnb("predict", *words, "the film was good", "a dull plot")
        assert code == 0
        assert [line.split("\t")[0] for line in out.splitlines()] == expected
    assert ftnb("predict", folder, text="the film was good\n\na dull plot\n")[1] == out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--set", "lrr=1"), "unknown setting 'lrr'. Did you mean 'lr'?"),
        (("--set", "lr=-1"), "lr must be a number, above 0, at most 10; got -1"),
        (("--set", "num_epochs"), "key=value"),
        (("--set", "strategy=sideways"), "sideways"),
        (("--set", "data=missing.csv"), "missing.csv"),
        (("--set", "columns.text=sentence"), "sentence"),
        (("--set", "model=./nowhere"), "nowhere"),
        (("--set", "device=cuda:31"), "cuda"),
        (("--set", "strategy=top-k", "--set", "strategy.k=31"), "31"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_two(place, ftnb, tmp_path, words, expected):
    code, out, err = ftnb("run", place / "recipe.toml", *words)
    assert code == 2
    assert err.startswith("error: ")
    assert expected in err
    assert "Traceback" not in out + err
    assert not (tmp_path / "runs").exists()


def test_files_that_are_no_recipes_and_folders_that_hold_no_runs(place, ftnb, tmp_path):
    (tmp_path / "broken.toml").write_text("lr = fast")
    for words in (
        ("run", tmp_path / "none.toml"),
        ("run", tmp_path / "broken.toml"),
        ("show",),
        ("show", "nothing"),
        ("predict", tmp_path, "text"),
        ("predict", place / "bert", "a model without a trained head"),
    ):
        code, _, err = ftnb(*words)
        assert (code, err[:7]) == (2, "error: "), words
    taken = ftnb("run", place / "recipe.toml", "--folder", tmp_path / "mine", "--set", "num_epochs=1")
    assert taken[0] == 0
    code, _, err = ftnb("run", place / "recipe.toml", "--folder", tmp_path / "mine")
    assert code == 2
    assert "holds a run already" in err


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_the_run_and_keeps_the_model(place, ftnb, tmp_path, request, signal_number):
    if signal_number == signal.SIGINT:  # ignored where a shell started the tests in the background
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def interrupt():
        while not (live := list(RUNS.live.values())) or live[0].history.best is None:
            time.sleep(0.01)
        _thread.interrupt_main(signal_number)

    threading.Thread(target=interrupt, daemon=True).start()
    code, out, err = ftnb("run", place / "recipe.toml", "--set", "num_epochs=100000", "--folder", tmp_path / "mine")
    assert code == 0
    assert "the model is kept" in err
    assert out.splitlines()[-1].startswith("stopped: accuracy")
    assert {BEST, LAST} <= {path.name for path in (tmp_path / "mine").iterdir()}


def test_a_run_that_fails_ends_with_exit_code_one(place, ftnb, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr("ftnb.train.Training.advance", broken)
    code, _, err = ftnb("run", place / "recipe.toml", "--folder", tmp_path / "mine")
    assert code == 1
    assert "RuntimeError: the disk is gone" in err
    assert str(tmp_path / "mine") in err


def test_the_printed_recipe_is_a_recipe(ftnb, tmp_path):
    code, out, _ = ftnb("recipe")
    assert code == 0
    assert Recipe.from_toml(out) == Recipe()
    uncommented = out.replace('strategy = "full"', "").replace("\n# [", "\n[").replace("\n# name", "\nname")
    uncommented = uncommented.replace("\n# k =", "\nk =").replace("\n# text", "\ntext").replace("\n# label", "\nlabel")
    assert tomllib.loads(uncommented)["strategy"] == {"name": "top-k", "k": 2}
    assert Recipe.from_toml(uncommented).columns == {"text": "sentence", "label": "stars"}
    assert Recipe.from_toml(ftnb("recipe", "--set", "lr=1e-5")[1]).lr == 1e-5


def test_lessons_are_copied(ftnb, tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    (source / "00_first.ipynb").write_text("{}")
    monkeypatch.setattr("ftnb.lesson_files.lessons_folder", lambda: source)
    code, out, _ = ftnb("lessons", tmp_path / "mine")
    assert (code, (tmp_path / "mine" / "00_first.ipynb").read_text()) == (0, "{}")
    (tmp_path / "mine" / "00_first.ipynb").write_text("mine")
    (source / "00_first.ipynb").write_text("newer")
    code, out, _ = ftnb("lessons", tmp_path / "mine")
    assert "has your changes" in out
    assert (tmp_path / "mine" / "00_first.ipynb").read_text() == "mine"


def test_version_and_help_come_without_torch():
    code = "import sys, ftnb.cli; assert not {'torch', 'transformers', 'datasets', 'matplotlib'} & set(sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    runner = CliRunner()
    assert runner.invoke(app, ["--version"]).stdout == f"ftnb {__version__}\n"
    told = runner.invoke(app, ["--help"]).stdout
    assert [command for command in ("run", "recipe", "show", "predict", "lessons") if command not in told] == []


def test_stop_resume_replay_and_branch(place, ftnb, tmp_path):
    folder = tmp_path / "runs" / "mine"
    run = Run(Recipe.load(place / "recipe.toml").replace(num_epochs=3, snapshot_every=4, keep_snapshots=5), folder)
    run.subscribe(lambda event: run.stop() if (event.kind, event.step) == ("step", 6) else None)
    run.start().wait()
    code, out, err = ftnb("resume", "mine")
    assert (code, err) == (0, "")
    assert out.startswith("going on after step 6")
    assert "done: accuracy" in out
    code, _, err = ftnb("resume", folder)
    assert code == 2
    assert "nothing to go on with" in err
    code, out, err = ftnb("replay", folder, "--folder", tmp_path / "again")
    assert (code, err) == (0, "")
    assert out.startswith("the same weights, bit for bit")
    code, out, err = ftnb("branch", folder, "--step", 4, "--set", "lr=5e-4", "--folder", tmp_path / "branch")
    assert (code, err) == (0, "")
    assert out.startswith("finetune(")
    assert Recipe.load(tmp_path / "branch").lr == 5e-4
    assert (tmp_path / "branch" / BEST).exists()
    said = {(event.what, event.by) for event in Run.open(tmp_path / "branch").events if event.kind == "changed"}
    assert {("branched", "command line"), ("restored", "command line")} <= said
    code, _, err = ftnb("branch", folder, "--set", "batch_size=3")
    assert code == 2
    assert "cannot change on the way" in err
    code, _, err = ftnb("branch", folder, "--step", 5)
    assert code == 2
    assert "no snapshot of step 5" in err


def test_a_damaged_journal_is_shown_as_far_as_it_can_be_read(place, ftnb, tmp_path):
    folder = tmp_path / "runs" / "spoilt"
    Run(Recipe.load(place / "recipe.toml"), folder).start().wait()
    journal = folder / "events.jsonl"
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:5], b"\xff{]\n", *lines[6:-1], lines[-1][:-9]]))
    code, out, err = ftnb("show", folder)
    assert code == 0
    assert "valid: loss" in out
    assert (folder / "report.png").exists()
    assert "line 6, is passed over: not a line of JSON" in err
    assert f"line {len(lines)}, is left out: it was cut short" in err
    assert "What these lines said is missing above" in err

    journal.write_bytes(b"")
    assert ftnb("show", folder)[0] == 0
    assert "is empty" in ftnb("show", folder)[2]
    journal.write_bytes(b'{"schema": 99}\n')
    for command in ("show", "resume", "replay", "branch"):
        code, _, err = ftnb(command, folder)
        assert (code, "Upgrade ftnb" in err) == (2, True), command
    journal.write_bytes(whole)
    (folder / "recipe.toml").write_text("lr = ")
    for command in ("show", "resume", "replay", "branch"):
        code, _, err = ftnb(command, folder)
        assert (code, "recipe.toml: this is no TOML" in err) == (2, True), command
