# Exported from nbs/56_panel.py: edit the lesson, then run `make export`.
"""Start, watch and steer a training by widgets that hold no logic: a click and a line of code do the same."""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from IPython.core.getipython import get_ipython
from IPython.display import display

from ftnb.devices import choose_device, choose_precision, describe_device
from ftnb.events import Started
from ftnb.recipe import Recipe
from ftnb.run import ENDED, Run, RunError, current_run
from ftnb.runfolder import BEST
from ftnb.widgets.chart import LiveChart
from ftnb.widgets.controls import button, heed_the_page, line, log_slider, row, say, say_code, set_log, stack, styles
from ftnb.widgets.foresight import Foresight
from ftnb.widgets.form import RecipeForm
from ftnb.widgets.svg import format_number
from ftnb.widgets.tryout import Tryout

__all__ = [
    "WITH_MODEL",
    "near",
    "start_line",
    "end_line",
    "failed_line",
    "status_line",
    "in_plain_words",
    "device_line",
    "BUTTONS",
    "STEERABLE",
    "Panel",
    "panel",
]


WITH_MODEL = ("done", "stopped")  # the ends after which there is a model to ask


def near(path: Path) -> str:
    """A path as short as it can be written: relative to the working directory where it lies below it."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def start_line(started: Started | None) -> str:
    """What trains, and where."""
    if started is None:
        return ""
    size = f"{started.num_examples:,} examples, {started.num_parameters:,} parameters"
    if started.num_trainable < started.num_parameters:
        size += f" ({started.num_trainable:,} of them at the start)"
    return f"Training on {started.device} in {started.precision}: {size}."


def end_line(run: Run) -> str:
    """What came out, where it is, and whether it can go on."""
    best, name = run.history.best, run.history.metric
    score = f" Best {name}: {format_number(best[1])} at step {best[0]:.0f}." if best else ""
    model = near(run.folder / BEST)
    again = " Resume goes on with it." if run.can_go_on else ""
    return f"{run.state.capitalize()}.{score} The model is in {model}; panel.run.predict([...]) asks it.{again}"


def failed_line(run: Run) -> str:
    """What is left of a run that failed or was broken off, and how it can go on."""
    if not run.history.started:
        return "Nothing was started."
    what = "Failed" if run.traceback else "Broken off"
    where = "; panel.run.traceback says where it happened." if run.traceback else "."
    again = f" Resume goes on from its last snapshot (step {run.last_snapshot})." if run.can_go_on else ""
    return f"{what} at step {run.history.step}. What there is lies in {near(run.folder)}{where}{again}"


def status_line(run: Run | None) -> str:
    """The state of a run as a sentence."""
    state = run.state if run is not None else "idle"  # read once: another thread may change it meanwhile
    if run is None or state == "idle":
        return "Ready."
    if state in WITH_MODEL:
        return end_line(run)
    return {
        "preparing": "Loading and checking data and model …",
        "running": start_line(run.history.started),
        "paused": f"Paused at step {run.history.step}. Nothing is lost, and the notebook is free.",
        "stopping": "Stopping: a last evaluation, then the best and the last model are kept.",
        "failed": failed_line(run),
    }[state]


def in_plain_words(error: str) -> str:
    """An error's message without its class, if the message was written for people; else as it is."""
    kind, colon, message = error.partition(": ")
    ours = ("DataError", "ModelError", "RecipeError", "StrategyError", "DeviceError")
    return message if colon and kind in ours else error


def device_line(recipe: Recipe) -> str:
    """Where the recipe would compute on this machine, in which precision, and how much memory is free.

    Raises:
        ValueError: if the recipe asks for a device or precision that is not there.
    """
    device = choose_device(recipe.device)
    return describe_device(device, choose_precision(recipe.precision, device))


BUTTONS = {
    "start": ("Start", "play", "Train with the settings above", "success"),
    "pause": ("Pause", "pause", "Hold after the micro-batch in hand; click again to go on", ""),
    "stop": ("Stop", "stop", "End after this step and a last evaluation; the best and the last model are kept", ""),
    "evaluate": ("Evaluate", "check", "Measure on the validation data now, then go on", ""),
}
STEERABLE = ("preparing", "running", "paused")


class Panel:
    """Widgets that edit a recipe, start a run of it, command it, and draw what it says.

    Args:
        recipe: what the form shows first; by default that of the key's run, else the default recipe.
        key: the name under which the run is found again when the cell is run again.
        run: a run to show: an object, a folder, or a name below `runs/`. One that was stopped, or whose process ended,
            can be resumed from its last snapshot.

    Attributes:
        run: the run shown, or None before the first.
        recipe: what the form says now.
    """

    def __init__(
        self, recipe: Recipe | None = None, *, key: str = "default", run: Run | str | os.PathLike[str] | None = None
    ) -> None:
        found = run if run is None or isinstance(run, Run) else Run.open(run)
        self.key, self.run = key, found if found is not None else current_run(key)
        if self.run is not None and (recipe is None or self.run.state not in ENDED):
            recipe = self.run.recipe
        self._lock, self._asked, self._refused = threading.RLock(), "", ""
        self._peak: float | None = None
        self._holding = False  # a pause was asked for and is not in force yet
        self.status, self.error, self.here, self.code = (line(n) for n in ("status", "error", "here", "code"))
        self.buttons = {name: button(name, *rest) for name, rest in BUTTONS.items()}
        text = "Set the run's peak learning rate, from the next step on; the schedule's shape goes on"
        self.lr = log_slider("lr", "live rate", text, (recipe or Recipe()).lr, label_width="60px")
        self.chart = LiveChart(on_poll=self.refresh)
        self.form, self.need = RecipeForm(recipe or Recipe(), self._edited), Foresight()
        self.tryout = Tryout(self._try)
        controls = row(*self.buttons.values(), self.lr, classes=["ftnb-buttons"])
        lines = (self.here, self.need.line, self.code, controls, self.status, self.error, self.chart.fallback)
        self.widget = stack(styles(), self.form.widget, *lines, self.tryout.widget, classes=["ftnb-panel"])
        heed_the_page(self.widget)
        self._connect()
        self._edited()
        if self.run is not None:
            self._follow(self.run)
        self.refresh()

    @property
    def recipe(self) -> Recipe:
        """What the form says now; raises RecipeError where it says what cannot be."""
        return self.form.recipe()

    def start(self, *, prepare_in_thread: bool = False) -> Run:
        """Start a run of what the form says, as the button does, and return it.

        Raises:
            RunError: if the panel's run is still going on.
            ValueError: if the recipe cannot be run; nothing was started then.
        """
        if self.run is not None and self.run.state not in (*ENDED, "idle"):
            raise RunError(f"run {self.run.id} is still {self.run.state}; stop it before starting another.")
        run = Run(self.recipe, key=self.key)
        self.need.settle()
        run.start(prepare_in_thread=prepare_in_thread)
        self.run, self._refused = run, ""
        with self._lock:
            self._peak = run.recipe.lr
            set_log(self.lr, run.recipe.lr)
        self._follow(run)
        return run

    def refresh(self) -> None:
        """Bring every widget up to date with the run; any thread may call it."""
        with self._lock:
            run, state = self.run, self.run.state if self.run else "idle"
            again = run is not None and run.can_go_on
            usable = {
                "start": state in (*ENDED, "idle"),
                "pause": state in STEERABLE or again,
                "stop": state in (*STEERABLE, "stopping"),
            }
            for name, widget in {**self.buttons, "lr": self.lr}.items():
                _set(widget, disabled=not usable.get(name, state in STEERABLE))
            self._holding = self._holding and state in ("preparing", "running")
            held = self._holding or state == "paused" or again
            _set(self.buttons["pause"], description="Resume" if held else "Pause", icon="play" if held else "pause")
            self.form.enable(state in (*ENDED, "idle"))
            self.tryout.offer(run if state in (*WITH_MODEL, "paused") else None)
            if run is not None:
                self._show_news(run)
            say(self.status, f"{status_line(run)} {self._asked}".strip())
            say(self.error, self._refused or (in_plain_words(run.error) if run else ""), role="alert")
        self.chart.refresh()

    def _show_news(self, run: Run) -> None:
        """Move the slider where the rate was set from elsewhere, and drop the note that was answered."""
        peak = run.history.peak_lr
        if peak is not None and peak != self._peak:
            self._peak = peak
            set_log(self.lr, peak)
        if peak == self.lr.value or run.state in ENDED:
            self._asked = ""

    def _connect(self) -> None:
        for name, widget in self.buttons.items():
            widget.on_click(lambda _, name=name: self._try(lambda: self._click(name)))
        self.lr.observe(lambda change: self._try(lambda: self._set_lr(change["new"])), "value")

    def _click(self, name: str) -> None:
        """What a button asks for."""
        if name == "start":
            self.start(prepare_in_thread=True)
        elif self.run is not None and self.run.can_go_on:  # only Resume is enabled then
            self.run.resume(prepare_in_thread=True)
            self._follow(self.run)
        elif self.run is not None and name == "pause":
            held = self._holding or self.run.state == "paused"
            self._holding = not held
            self.run.resume() if held else self.run.pause()
        elif self.run is not None:
            getattr(self.run, name)()

    def _set_lr(self, lr: float) -> None:
        if self.run is not None and self.run.state in STEERABLE and lr != self._peak:
            self._asked = f"Learning rate {format_number(lr)} asked for."
            self.run.set_lr(lr)

    def _try(self, action: Callable[[], object]) -> None:
        """Do what was clicked; what goes wrong is said in the panel, and nothing that was typed is lost."""
        try:
            action()
            self._refused = ""
        except Exception as error:  # noqa: BLE001  # an error in a handler would vanish in a log nobody sees
            known = isinstance(error, ValueError | RunError | OSError)
            self._refused = str(error) if known else f"{type(error).__name__}: {error}"
        self.refresh()

    def _edited(self) -> None:
        """Show the line of code for what the form says, or what is wrong with it."""
        try:
            recipe = self.form.recipe()
            say(self.here, f"Here: {device_line(recipe)}.", quiet=True)
            say_code(self.code, "The same in code:", recipe.code())
            self.need.ask(recipe)
            self._refused = ""
        except ValueError as error:
            self._refused = str(error)
        say(self.error, self._refused, role="alert")

    def _follow(self, run: Run) -> None:
        """Draw a run, and watch it until it ends."""
        self.chart.follow(run.history, lambda: run.state)
        if (shell := get_ipython()) is not None:
            shell.events.register("post_run_cell", self._after_cell)
        threading.Thread(target=self._watch, args=(run,), name=f"ftnb-watch-{run.id}", daemon=True).start()

    def _watch(self, run: Run) -> None:
        while self.run is run and run.state not in ENDED:
            self.refresh()
            time.sleep(0.25)
        time.sleep(0.3)  # the chart sends at most every 0.25 s; the last state must not be left out
        self.refresh()

    def _after_cell(self, *_: Any) -> None:
        """After each cell, in the main thread: when the run is over, the chart's output becomes a picture."""
        if self.chart.settle() and (shell := get_ipython()) is not None:
            shell.events.unregister("post_run_cell", self._after_cell)

    def _ipython_display_(self) -> None:
        display(self.widget)
        self.chart.show()
        with contextlib.suppress(ValueError):  # the form says what is wrong
            self.need.show(self.recipe if self.run is None or self.run.state in ENDED else None)

    def __repr__(self) -> str:
        return f"Panel of {self.run!r}" if self.run is not None else f"Panel for {self.recipe.code()}"


def _set(widget: Any, **traits: Any) -> None:
    """Set traits that differ, so that nothing is sent for nothing."""
    for name, value in traits.items():
        if getattr(widget, name) != value:
            setattr(widget, name, value)


def panel(
    recipe: Recipe | None = None, *, key: str = "default", run: Run | str | os.PathLike[str] | None = None
) -> Panel:
    """Show a panel: `Panel` by a name that reads well at the end of a cell."""
    return Panel(recipe, key=key, run=run)
