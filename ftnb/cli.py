"""The command line: run a recipe, look at a run, predict, get the lessons. Nothing heavy is imported before it is used.

Exit codes: 0 when it went well (a run stopped by hand keeps its model, so that counts), 1 when a run failed, 2 when
what was asked for cannot be: a wrong recipe, data or model. Such a mistake is one message, without a traceback.
"""

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ftnb import __version__
from ftnb.rules import RecipeError

if TYPE_CHECKING:
    from ftnb.recipe import Recipe
    from ftnb.run import Run

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Fine-tune pretrained models from recipes, and learn how it is done.",
)  # fmt: skip

MORE = """
# A strategy with settings of its own takes the place of the line `strategy = "full"`:
# [strategy]
# name = "top-k"
# k = 2

# Columns with other names:
# [columns]
# text = "sentence"
# label = "stars"
"""

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: lr=1e-4, strategy=head, strategy.k=2."),
]


def fail(message: object, code: int) -> NoReturn:
    """Say what is wrong, and end with an exit code."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)


@contextmanager
def mistakes() -> Iterator[None]:
    """Turn a mistake in what was asked for into one message and exit code 2."""
    from ftnb.devices import DeviceError
    from ftnb.events import JournalError
    from ftnb.plan import TrainingError
    from ftnb.pretrained import ModelError
    from ftnb.snapshots import SnapshotError
    from ftnb.strategies import StrategyError
    from ftnb.tables import DataError

    families = (
        RecipeError, DataError, ModelError, StrategyError, TrainingError, DeviceError, SnapshotError, JournalError,
    )  # fmt: skip
    try:
        yield
    except (*families, FileExistsError, NotADirectoryError, PermissionError) as error:
        fail(error, 2)


def read_recipe(path: Path | None, settings: list[str] | None) -> "Recipe":
    """The recipe of a command line: a file or the default one, with some settings changed."""
    from ftnb.recipe import Recipe

    try:
        return (Recipe.load(path) if path is not None else Recipe()).override(settings or [])
    except RecipeError as error:
        fail(error, 2)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    """Take the options that stand before any command."""
    if show:
        typer.echo(f"ftnb {__version__}")
        raise typer.Exit


@app.command()
def run(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe's file (`ftnb recipe` prints one).")] = None,
    settings: Settings = None,
    folder: Annotated[Path | None, typer.Option(help="Where to keep the run; a new one below runs/.")] = None,
) -> None:
    """Run a recipe. Ctrl-C stops it and keeps the model."""
    chosen = read_recipe(recipe, settings)
    from ftnb.run import Run

    training = Run(chosen, folder)
    typer.echo(f"{_command(recipe, settings, folder)}\n{chosen.code()}")
    with mistakes():
        training.start()
    _see_through(training)


@app.command()
def estimate(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe's file (`ftnb recipe` prints one).")] = None,
    settings: Settings = None,
) -> None:
    """Say what a recipe will need before it starts: memory, and time. Weights are not downloaded."""
    chosen = read_recipe(recipe, settings)
    from ftnb.forecast import forecast

    typer.echo(chosen.code())
    with mistakes():
        typer.echo(forecast(chosen))


@app.command()
def resume(
    run: Annotated[str, typer.Argument(help="A run's folder, or its name below runs/; without it the newest.")] = "",
) -> None:
    """Go on with a run that was stopped or broken off, from its newest snapshot."""
    from ftnb.run import Run, RunError

    try:
        with mistakes():
            training = Run.open(_find_run(run))
            if not training.can_go_on:
                raise RunError(
                    f"{training.folder} is {training.state}, or has no snapshot: there is nothing to go on with."
                )
            training.resume(by="command line")
    except RunError as error:
        fail(error, 2)
    step = training.history.step
    typer.echo(f"going on after step {step}\n{training.recipe.code()}")
    _see_through(training)


@app.command()
def replay(
    run: Annotated[str, typer.Argument(help="A run's folder, or its name below runs/; without it the newest.")] = "",
    folder: Annotated[Path | None, typer.Option(help="Where to keep the new run; a new one below runs/.")] = None,
) -> None:
    """Do a run again from its journal, hand-made changes included; exit code 1 if its weights differ."""
    from ftnb.run import Run, RunError

    try:
        with mistakes():
            again = Run.open(_find_run(run)).replay(folder)
    except RunError as error:
        fail(error, 2)
    typer.echo(again)
    raise typer.Exit(0 if again.max_abs_diff == 0 else 1)


@app.command()
def branch(
    run: Annotated[str, typer.Argument(help="A run's folder, or its name below runs/.")],
    step: Annotated[int | None, typer.Option(help="The snapshot's step; the newest by default.")] = None,
    settings: Settings = None,
    folder: Annotated[Path | None, typer.Option(help="Where to keep the branch; a new folder below runs/.")] = None,
) -> None:
    """Start another run from a snapshot of a run, with other numbers from there on: --step 100 --set lr=1e-4."""
    from ftnb.run import Run, RunError

    try:
        with mistakes():
            parent = Run.open(_find_run(run))
            changed = parent.recipe.override(settings or [])
            old, new = parent.recipe.to_dict(), changed.to_dict()
            changes = {key: new[key] for key in new if new[key] != old[key]}
            training = parent.branch(step, folder=folder, by="command line", **changes)
    except RunError as error:
        fail(error, 2)
    typer.echo(training.recipe.code())
    _see_through(training)


def _see_through(training: "Run") -> None:
    """Wait for a run that has begun, with a bar, and say what came out."""
    from ftnb.devices import choose_precision, describe_device
    from ftnb.run import ENDED, RunError
    from ftnb.waiting import Bar, wait_for

    signal.signal(signal.SIGTERM, _interrupt)  # a scheduler that wants the machine back
    model = training.task.model
    precision = choose_precision(training.recipe.precision, model.device, model)
    typer.echo(f"{describe_device(model.device, precision)}\n{training.folder}")
    with closing(Bar(training, show=sys.stderr.isatty())) as bar:
        state = wait_for(training, tick=bar.tick, say=bar.say)
    if state == "failed" or state not in ENDED:
        fail(RunError(f"{training.error}\nWhat was kept is in {training.folder}"), 1)
    typer.echo(result_line(training))


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def _command(recipe: Path | None, settings: list[str] | None, folder: Path | None) -> str:
    """The command that starts the same run again."""
    words = ["ftnb", "run", *([str(recipe)] if recipe else [])]
    for assignment in settings or []:
        words += ["--set", assignment]
    return shlex.join([*words, *(["--folder", str(folder)] if folder else [])])


def result_line(run: "Run") -> str:
    """How a run went, in one line: the metric on validation and, where there is one, test data; where the model is."""
    from ftnb.runfolder import BEST, LAST

    history = run.history
    if history.best is None:
        return f"{run.state} before the first evaluation · last model: {run.folder / LAST}"
    step, value = history.best
    parts = [f"{run.state}: {history.metric} {value:.4f} on validation data (best, step {int(step)})"]
    if run.task.splits.test is not None:
        parts.append(f"{run.task.evaluate('test')[history.metric]:.4f} on test data")
    return ", ".join(parts) + f" · model: {run.folder / BEST}"


@app.command(name="recipe")
def print_recipe(settings: Settings = None) -> None:
    """Print a recipe with comments to start from: ftnb recipe > recipe.toml."""
    typer.echo(read_recipe(None, settings).to_toml(comments=True) + MORE, nl=False)


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="A run's folder, or its name below runs/; without it the newest.")] = "",
    picture: Annotated[Path | None, typer.Option(help="Where to write the picture; report.png in the folder.")] = None,
) -> None:
    """Say what happened in a run, and draw it."""
    from ftnb.charts import History, history_text, plot_history
    from ftnb.events import Changed, Evaluated, JournalError, Started, Warned, read_journal
    from ftnb.runfolder import JOURNAL, RECIPE

    folder, damaged = _find_run(run), list[str]()
    try:
        events = read_journal(folder / JOURNAL, damaged=damaged)
    except (JournalError, OSError) as error:
        fail(error, 2)
    typer.echo(f"{folder}\n{read_recipe(folder / RECIPE, None).code()}")
    for event in events:
        match event:
            case Started():
                count = f"{event.num_trainable:,} of {event.num_parameters:,} parameters"
                what = f"{count} on {event.device} in {event.precision}"
            case Changed():
                change = " → ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in (event.old, event.new) if v)
                what = f"{event.what} {change}{f' ({event.group})' if event.group else ''}, by {event.by}"
            case Evaluated():
                values = ", ".join(f"{name} {value:.4f}" for name, value in event.metrics.items())
                what = f"{event.split}: loss {event.loss:.4f}, {values}{', best' if event.best else ''}"
            case Warned():
                what = f"warning: {event.message}"
            case _:
                continue
        typer.echo(f"{event.time:8.1f} s  step {event.step:<6} {what}")
    history = History.from_events(events)
    path = picture or folder / "report.png"
    path.write_bytes(plot_history(history).png())
    typer.echo(f"{history_text(history)}\n{path}")
    for line in damaged:
        typer.echo(f"warning: {line}", err=True)
    if damaged:
        typer.echo("What these lines said is missing above; all other lines were read.", err=True)


def _find_run(name: str) -> Path:
    """The folder of a run given by path, by name, or (empty) the newest one."""
    from ftnb.runfolder import find_run, runs_root

    if (folder := find_run(name)) is not None:
        return folder
    fail(f"no run {name!r} here or in {runs_root()}." if name else f"there are no runs in {runs_root()}.", 2)


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="A run's folder or name, or a model folder.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts, or paths of pictures; else lines of input.")] = None,
) -> None:
    """Predict with the best model of a run, for texts or for pictures by their paths."""
    from ftnb.runfolder import BEST, JOURNAL, LAST, model_folder, runs_root

    places = (Path(model).expanduser(), runs_root() / model)
    run = next((place for place in places if (place / JOURNAL).exists()), None)
    folder = str(model) if run is None else str(model_folder(run / BEST) or model_folder(run / LAST) or run / BEST)
    lines = texts or [line.strip() for line in sys.stdin if line.strip()]
    from ftnb.saved import load_task

    with mistakes():
        for text, prediction in zip(lines, load_task(folder).predict(lines), strict=True):
            typer.echo(f"{prediction}\t{text}")


@app.command()
def lessons(folder: Annotated[Path, typer.Argument(help="Where to put them.")] = Path("lessons")) -> None:
    """Copy the lessons into a folder; what you changed there is never overwritten."""
    from ftnb.lesson_files import copy_lessons, lessons_folder

    try:
        copied = copy_lessons(lessons_folder(), folder)
    except OSError as error:
        fail(error, 2)
    for name in copied.kept:
        typer.echo(f"{folder / name} has your changes and stays; rename or delete it to get the newer one.")
    typer.echo(f"{folder}: {len(copied.new)} new, {len(copied.updated)} updated. Open them with: jupyter lab {folder}")


def main() -> None:
    """Enter here."""
    app(prog_name="ftnb")


if __name__ == "__main__":
    main()
