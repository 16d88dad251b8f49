# %% [markdown]
# # The panel
#
# > Start, watch and steer a training by widgets that hold no logic: a click and a line of code do the same.
#
# At the end you can drive a fine-tuning from the page, change its learning rate while it trains, look at its errors and try its model, build a control of your own, and say why a button of a training may do nothing but ask. Runs in about 30 s on a CPU.

# %%
#| default_exp panel

# %%
#| export
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

# %%
import ipywidgets as widgets
import matplotlib.pyplot as plt
from IPython.display import HTML

from ftnb.charts import History
from ftnb.events import Changed, Stepped

# %% [markdown]
# ## A function first, a widget second
#
# A run is steered by methods: `run.pause()`, `run.set_lr(1e-4)`. Each puts a request into a queue and returns at once; the training's thread takes it out between two micro-batches. So a control needs no more than a call. Here is one for a stand-in that only remembers what it was asked.

# %%
class Remembers:
    def __init__(self):
        self.asked = []

    def set_lr(self, lr):
        self.asked.append(lr)


stand_in = Remembers()
slider = log_slider("demo", "learning rate", "Sets the peak learning rate.", value=1e-4)
slider.observe(lambda change: stand_in.set_lr(change["new"]), "value")
slider.value = 2e-4
stand_in.asked

# %%
assert stand_in.asked == [2e-4]

# %% [markdown]
# Setting `value` in code fires the same handler as a hand on the slider. That is how widgets are tested without a browser.
#
# Two rules keep it sound. **A handler only asks.** On most kernels handlers run in the main thread, on some in another, and never in the thread that trains: touching the optimizer from here would be a race. **The training never draws.** What a thread prints or displays lands in whichever cell happens to run. So a third party, a watcher, looks at the run four times a second and brings the widgets up to date.
#
# ## What to say
#
# A state is one word; a person wants a sentence, and the next thing to do.

# %%
#| export
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

# %%
status_line(None), device_line(Recipe())

# %% [markdown]
# ## The panel
#
# It owns a form (which shows a recipe), a row of controls (which ask a run), a chart (which draws a history), and what it offers when the run is over (the model's errors, and a try). Running its cell again must show the run that is there, so it looks for one under its `key` first. What it can do, a line of code can do, and it shows that line.

# %%
#| export
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

# %% [markdown]
# Here it is. Click **Start**, or run the next cell, which does the same. Then steer: pause, move the live rate, evaluate. The form is locked while a run trains, and every control says what it does when the pointer rests on it.

# %%
page = Panel(Recipe(num_epochs=10), key="lesson 56")
page

# %% [markdown]
# The form follows the task. Another task brings its own data and models to choose from, and its own settings in place of the old one's; what every task has (rate, epochs, seed) stays. Each of those widgets is made from the recipe's rule for the setting: its choices, its sentence of help.

# %%
page.form.fields["task"].value = "image-classification"
page.recipe.code(), list(page.form.settings)

# %%
assert page.recipe == Recipe(task="image-classification", num_epochs=10)
page.form.fields["task"].value = "text-classification"
assert page.recipe == Recipe(num_epochs=10) and "max_length" in page.form.settings and "image_size" not in page.form.settings

# %% [markdown]
# A script, a test, or a reader without a mouse starts it in code. A wrong setting would be an error right here, before any training.

# %%
run = page.start()
run.state

# %% [markdown]
# ## The experiment: how soon a hand is felt
#
# **Claim.** A rate set on the page is in force after at most the step in hand, because the training looks into its queue before every micro-batch. We move the slider ten times while it trains, and let a listener count the steps that end between the request and the change. The claim would be refuted by a count of two.

# %%
asked, felt = {}, {}  # rate → [when asked, steps since]


def listen(event):
    if event.kind == "step":
        for entry in list(asked.values()):
            entry[1] += 1
    elif event.kind == "changed" and event.what == "lr":
        began, steps = asked.pop(event.new, (time.perf_counter(), 0))
        felt[event.new] = (1000 * (time.perf_counter() - began), steps)


forget = run.subscribe(listen)
for k in range(10):
    lr = 5e-4 * (1 - 0.05 * (k + 1))
    page.lr.value = lr  # fires the handler, as a hand on the slider does
    asked.setdefault(lr, [time.perf_counter(), 0])
    deadline, go_on = time.monotonic() + 30, run.history.step + 4
    while (lr not in felt or run.history.step < go_on) and time.monotonic() < deadline:
        time.sleep(0.005)
forget()
steps_between = [steps for _, steps in felt.values()]
steps_between

# %%
assert len(felt) == 10 and max(steps_between) <= 1

# %% [markdown]
# A pause is felt as soon, and in it the model can be asked: **Errors** and **Try it** show what it can do so far, and the training goes on afterwards as if nobody had asked. Stop, too, waits for the step in hand; then it evaluates once more and keeps two models, the best and the last. Here we let the run come to its end.

# %%
page.buttons["pause"].click()
page.buttons["pause"].click()  # the same button goes on
run.wait()

# %% [markdown]
# The run is over, so the chart under the form has become a picture (`run.report()` draws the same one anywhere). Every dashed line in it is a rate set by hand. How long each took to be in force, on this machine while it trained:

# %%
fig, ax = plt.subplots(figsize=(5.5, 2.4), dpi=80, layout="constrained")
ax.plot(range(1, 11), [milliseconds for milliseconds, _ in felt.values()], "o")
ax.set(xlabel="request", ylabel="milliseconds until in force", ylim=(0, None), title="From the slider to the optimizer")
plt.show()

# %% [markdown]
# What was done by hand is in the journal, with the step at which it took effect, so that it can be told and repeated.

# %%
by_hand = [event for event in run.events if isinstance(event, Changed) and event.by == "user"]
[(event.step, event.what, event.new) for event in by_hand if event.what == "lr"][-3:]

# %%
assert sum(event.what == "lr" for event in by_hand) == 10 and run.state == "done"

# %% [markdown]
# The model of the best evaluation is in memory and on the disk.

# %%
run.predict(["a perfect film . the story was wonderful .", "a horrible film . the story was boring ."])

# %% [markdown]
# The panel asks it in the same way. Since the run is over it shows a field for a text (for pictures, an upload) and a button for the errors; above each answer stands the line of code that gives it. Setting the field's value is what Enter does on the page.

# %%
page.refresh()  # the watcher would do it within a quarter of a second
page.tryout.text.value = "the film was not bad at all ."
HTML(page.tryout.code.value + page.tryout.value.value)

# %%
said = run.predict([page.tryout.text.value])[0]
assert said.label in page.tryout.value.value and f"{said.score:.3f}" in page.tryout.value.value

# %%
page.tryout.errors.click()
HTML(page.tryout.value.value)

# %% [markdown]
# What cannot be asked is said in the panel, as any mistake is; it raises nothing.

# %%
page.tryout.text.value = "   "
page.error.value

# %%
assert "no text to try" in page.error.value

# %% [markdown]
# Running the panel's cell again shows this run, not a new one: a page that was reloaded finds its training.

# %%
again = Panel(key="lesson 56")
again.run is run, again.recipe == run.recipe

# %%
assert again.run is run and again.recipe == run.recipe and "Best accuracy" in again.status.value

# %% [markdown]
# ## What reaches the page
#
# The browser *asks* for news once a second, and gets at most four snapshots a second while it does. A page that is closed asks for nothing and is sent nothing; a server that queued every message for it would fill its memory. Three more rungs stand below the live chart: HTML with a picture made in Python, where the chart's module cannot load; a PNG in the cell's output when the run is over, so that the saved notebook opens with a picture, on GitHub too; and a line of text in each of them.
#
# The other way has a limit of its own. A picture to try comes as one message, and a Jupyter server closes its connection on a message above 10 MB (tornado's `websocket_max_message_size`); neither the page nor the kernel is told. So the panel says the limit beside the button, and the line of code, which takes a path, has none.
#
# ## The story: the rate that was a hundred times too high
#
# A slider for learning rates must be logarithmic, and `FloatLogSlider` is; but its `min` and `max` are *exponents*. Write the limits you mean, `min=1e-5, max=0.1`, and you get $10^{0.00001}$ to $10^{0.1}$, that is 1.00 to 1.26. A value outside is moved to the nearest limit without a word: asked for 0.01, the slider stands at 1.00, and the next run diverges. The documentation of ipywidgets says "exponent"; one reads it afterwards.

# %%
meant = widgets.FloatLogSlider(value=0.01, base=10, min=1e-5, max=0.1)
round(meant.value, 4)

# %% [markdown]
# `log_slider` of this project takes exponents for itself and widens its limits rather than clamp.

# %%
right = log_slider("demo", "learning rate", "", value=3.0)
assert meant.value > 0.99 and right.value == 3.0 and log_slider("demo", "", "", value=2e-9).value == 2e-9

# %% [markdown]
# ## Exercises
#
# **1 (easy).** Write `halving_button`: a button that halves the learning rate of a run at each click.

# %% tags=["exercise"]
def halving_button(run) -> widgets.Button:
    ...  # your code here

# %% tags=["solution"]
def halving_button(run) -> widgets.Button:
    made = widgets.Button(description="half the rate", tooltip="Set the peak learning rate to half of what it is")
    made.on_click(lambda _: run.set_lr((run.history.peak_lr or run.recipe.lr) / 2))
    return made

# %%
class Steered:
    """A stand-in for a run: its history learns of a new rate at once."""

    def __init__(self):
        self.recipe, self.history = Recipe(lr=8e-4), History()

    def set_lr(self, lr):
        self.history.add(Changed(step=1, what="lr", new=lr))


steered = Steered()
half = halving_button(steered)
half.click()
half.click()
assert abs(steered.history.peak_lr - 2e-4) < 1e-12

# %% [markdown]
# **2 (medium).** Write `watch_loss`: subscribe to a run and ask it to stop, once, at the first step whose loss is above a limit or not finite. It runs in the training's thread, so it may do nothing but ask.

# %% tags=["exercise"]
def watch_loss(run, limit: float) -> None:
    ...  # your code here

# %% tags=["solution"]
def watch_loss(run, limit: float) -> None:
    def look(event):
        if event.kind == "step" and not event.loss <= limit and not asked:  # `not <=` is true for NaN, too
            asked.append(event.step)
            run.stop()

    asked = []
    run.subscribe(look)

# %%
class Told:
    def __init__(self):
        self.listeners, self.stops = [], 0

    def subscribe(self, listener):
        self.listeners.append(listener)

    def stop(self):
        self.stops += 1


for losses, stops in (([1.0, 0.9, 0.8], 0), ([1.0, 7.0, 8.0], 1), ([1.0, float("nan")], 1)):
    told = Told()
    watch_loss(told, limit=5.0)
    for step, loss in enumerate(losses):
        told.listeners[0](Stepped(step=step, epoch=0.0, loss=loss, lr=1e-4, grad_norm=1.0))
    assert told.stops == stops

# %% [markdown]
# ## Summary
# - A control asks; the training alone acts, before its next micro-batch. So a click is safe at any moment and felt within a step.
# - A watcher, not the training, brings widgets up to date; what nobody looks at is not sent.
# - The form is made from the recipe's rules and the tasks' entries, so a new task needs no new form.
# - The panel shows the line of code that does the same, for a start, for the errors and for a try; its picture outlives the kernel.
#
# **What next:** put your own table into the field *data*; choose *image-classification* and try a photo; or start the same run in a terminal with `ftnb run recipe.toml`. **Sources:** the documentation of ipywidgets (`FloatLogSlider`) and of anywidget; googlecolab/colabtools#3373 on messages from threads.
