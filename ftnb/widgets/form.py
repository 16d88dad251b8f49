"""A form for a recipe: every field is a core widget whose tooltip is the recipe's own rule, in words."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import ipywidgets as widgets

from ftnb.recipe import FIELDS, Recipe, rules
from ftnb.rules import RecipeError, is_named
from ftnb.strategies import STRATEGIES, strategy_class
from ftnb.tasks import TASKS
from ftnb.widgets.controls import heed_the_page, hint, log_slider, named, pairs, row, set_log, stack

# Labels are as wide as the longest in their column, so that two columns fit into 680 pixels.
LABEL, RIGHT, SECOND = "64px", "98px", "84px"
NARROW = 6  # characters that a choice may have to share a line with another setting
DEVICES = ("auto", "cuda", "mps", "cpu")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def task_settings(task: str) -> tuple[str, ...]:
    """The task's own settings, of batches first; for pictures BatchNorm; and the cache of frozen layers."""
    entry = TASKS[task]
    return (*entry.learner_options, *entry.options, *(("batch_norm",) if "image" in entry.roles else ()), "trunk_cache")


def _wide(kind: type[Any], label: str, label_width: str = LABEL, **traits: Any) -> Any:
    layout = widgets.Layout(width="auto")
    return kind(description=label, style={"description_width": label_width}, layout=layout, **traits)


def _setting(key: str) -> Any:
    """A widget for a setting of a task, made from its rule: a choice, or a text that reads as on a command line."""
    rule, label = rules()[key], key.replace("_", " ")
    if rule.choices:
        choices = [*([("default", None)] if rule.optional else []), *((choice, choice) for choice in rule.choices)]
        made = _wide(widgets.Dropdown, label, options=choices)
    else:
        made = _wide(widgets.Text, label, placeholder="default", continuous_update=False)
    return named(hint(made, rule.help), f"ftnb-{key.replace('_', '-')}")


def _is_wide(widget: Any) -> bool:
    """Whether a setting's choices need a line for themselves."""
    return any(len(str(label)) > NARROW for label in getattr(widget, "_options_labels", ()))


def _has_long_label(widget: Any) -> bool:
    return len(re.sub("<[^>]*>", "", widget.description)) > 10


def _by_name() -> list[str]:
    """The strategies that need nothing but their name."""
    needs = {name: [f.default for f in dataclasses.fields(strategy_class(name))] for name in STRATEGIES}
    return [name for name, defaults in needs.items() if dataclasses.MISSING not in defaults]


class RecipeForm:
    """Widgets for the settings of a recipe that most people touch; the others stay as the recipe has them.

    Args:
        recipe: what the form shows first.
        on_change: called after every edit.

    Attributes:
        base: the recipe last filled in; its task is the one that the form shows.
        fields: the widgets that all tasks have, by setting.
        settings: the widgets that the shown task has beside them, by setting.
    """

    def __init__(self, recipe: Recipe, on_change: Callable[[], object]) -> None:
        self.base = recipe
        self._changed, self._filling = on_change, False
        self.fields: dict[str, Any] = {
            "task": _wide(widgets.Dropdown, "task", options=list(TASKS)),
            "data": _wide(widgets.Combobox, "data", continuous_update=False),
            "columns": _wide(widgets.Text, "columns", continuous_update=False),
            "model": _wide(widgets.Combobox, "model", continuous_update=False),
            "strategy": _wide(widgets.Dropdown, "strategy", options=_by_name()),
            "lr": log_slider("recipe-lr", "learning rate", "", recipe.lr, RIGHT),
            "num_epochs": _wide(widgets.BoundedIntText, "epochs", min=1, max=1000),
            "batch_size": _wide(widgets.BoundedIntText, "batch size", min=1, max=4096),
            "device": _wide(widgets.Dropdown, "device", options=list(DEVICES)),
            "precision": _wide(widgets.Dropdown, "precision", options=list(PRECISIONS)),
            "seed": _wide(widgets.BoundedIntText, "seed", min=0, max=2**32 - 1),
        }
        self.settings: dict[str, Any] = {}
        self._made: dict[str, Any] = {}  # every setting's widget that was ever shown
        self._knobs: dict[str, Any] = {}  # the chosen strategy's settings, and those of them that have no widget
        self._kept: dict[str, Any] = {}
        known, fields = rules(), self.fields
        for key, widget in fields.items():
            named(hint(widget, known[key].help), f"ftnb-{key.replace('_', '-')}" if key != "lr" else "")
            widget.observe(self._edited, "value")
        self._knob_row = pairs(classes=["ftnb-knobs"])
        self._pairs = pairs(classes=["ftnb-settings"])
        self._pairs.layout.grid_template_columns = "minmax(0, 1.05fr) minmax(0, 1fr)"  # labels of the left are longer
        left = stack(*(fields[key] for key in ("task", "data", "columns", "model", "strategy")), self._knob_row)
        right = stack(fields["lr"], self._pairs)
        left.layout.flex, right.layout.flex = "1 1 290px", "1.3 1 340px"  # the right one holds two fields in a line
        self.widget = row(named(left, "ftnb-column"), named(right, "ftnb-column"), classes=["ftnb-form"])
        self.fill(recipe)

    def fill(self, recipe: Recipe) -> None:
        """Show a recipe, without calling it an edit."""
        self.base = recipe
        with self._quietly():
            self._show_task(recipe)
            self._show(recipe)

    @contextlib.contextmanager
    def _quietly(self) -> Iterator[None]:
        """Set widgets without calling it an edit."""
        self._filling = True
        try:
            yield
        finally:
            self._filling = False

    def _show_task(self, recipe: Recipe) -> None:
        """The task, what it suggests, and the settings that it has of its own; those of other tasks go."""
        entry, fields = TASKS[recipe.task], self.fields
        fields["task"].value = recipe.task
        fields["data"].options = [entry.data]
        fields["model"].options = [entry.model, *entry.models]
        fields["columns"].placeholder = ", ".join(f"{role}=…" for role in entry.roles)
        places = ", ".join(f"{role}={place}" for place, role in enumerate(entry.roles))
        text = f"which column holds what, if not {' and '.join(entry.roles)}; places count from 0: {places}"
        hint(fields["columns"], text)
        self.settings = {key: self._widget_for(key) for key in task_settings(recipe.task)}
        for key, widget in self.settings.items():
            value = getattr(recipe, key)
            widget.value = ("" if value is None else str(value)) if isinstance(widget, widgets.Text) else value
        of_batches = [self.settings[key] for key in entry.learner_options]  # beside the batch size
        shared = [fields[key] for key in ("num_epochs", "batch_size", "device", "precision", "seed")]
        rest = [widget for widget in self.settings.values() if widget not in of_batches]
        children = sorted([*shared[:2], *of_batches, *shared[2:], *rest], key=_is_wide)
        for i in range(1, len(children), 2):  # the left half of a line has more room for a label
            if not _is_wide(children[i]):
                children[i - 1 : i + 1] = sorted(children[i - 1 : i + 1], key=_has_long_label, reverse=True)
        for i, widget in enumerate(children):
            wide = _is_wide(widget)
            widget.style.description_width = SECOND if i % 2 and not wide else RIGHT
            named(widget, *(["ftnb-wide"] if wide else []))
        self._pairs.children = children
        heed_the_page(self._pairs)

    def _widget_for(self, key: str) -> Any:
        if key not in self._made:
            self._made[key] = _setting(key)
            self._made[key].observe(self._edited, "value")
        return self._made[key]

    def _show(self, recipe: Recipe) -> None:
        fields, strategy = self.fields, recipe.strategy
        named_data = isinstance(recipe.data, str)
        fields["data"].value = recipe.data if named_data else f"({_kind(recipe.data)}, given in code)"
        fields["columns"].value = ", ".join(f"{role}={column}" for role, column in recipe.columns.items())
        fields["model"].value = recipe.model
        name = strategy if isinstance(strategy, str) else strategy["name"]
        if name not in fields["strategy"].options:
            fields["strategy"].options = [*fields["strategy"].options, name]
        fields["strategy"].value = name
        self._show_knobs({} if isinstance(strategy, str) else strategy)
        set_log(fields["lr"], recipe.lr)
        if recipe.device not in fields["device"].options:
            fields["device"].options = [*fields["device"].options, recipe.device]
        for key in ("num_epochs", "batch_size", "seed", "device", "precision"):
            widget, value = fields[key], getattr(recipe, key)
            if hasattr(widget, "max"):
                widget.max = max(widget.max, value)
            widget.value = value

    def _show_knobs(self, settings: dict[str, Any]) -> None:
        """The settings of the chosen strategy (how many blocks, which decay), as its dataclass declares them.

        One that is no number and no text, such as a config of peft's, stays as the recipe has it.
        """
        self._knobs, self._kept = {}, {}
        for part in dataclasses.fields(strategy_class(self.fields["strategy"].value)):
            value = settings.get(part.name, part.default)
            if isinstance(value, int | float | str) and not isinstance(value, bool):
                kind = {int: widgets.IntText, float: widgets.FloatText}.get(type(value), widgets.Text)
                knob = _wide(kind, part.name.replace("_", " "), label_width=SECOND, value=value)
                knob.continuous_update = False
                text = part.metadata.get("help", "") or f"a setting of the strategy {self.fields['strategy'].value}"
                self._knobs[part.name] = named(hint(knob, text), f"ftnb-{part.name.replace('_', '-')}")
                knob.observe(self._edited, "value")
            elif part.name in settings:
                self._kept[part.name] = value
        self._knob_row.children = tuple(self._knobs.values())
        heed_the_page(self._knob_row)

    def _edited(self, change: Any) -> None:
        if self._filling:
            return
        if change["owner"] is self.fields["task"]:
            self._switch(change["new"])
        elif change["owner"] is self.fields["strategy"]:
            self._show_knobs({})
        self._changed()

    def _switch(self, task: str) -> None:
        """Show another task; while a field holds what cannot be, the task stays, and the panel says why."""
        try:
            self.fill(self._moved(task))
        except RecipeError:
            with self._quietly():
                self.fields["task"].value = self.base.task

    def _moved(self, task: str) -> Recipe:
        """What the form says, for another task: what belonged to the old one only is dropped."""
        recipe, old, new = self.recipe(), TASKS[self.base.task], TASKS[task]
        changed = {key: FIELDS[key].default for key in task_settings(self.base.task) if key not in task_settings(task)}
        if recipe.model in old.models:
            changed["model"] = new.model
        if not is_named(recipe.data):  # given in code, perhaps for this very task
            changed["data"] = recipe.data
            recipe = recipe.replace(data=new.data)  # a table has no plain == for `replace` to compare with
        return recipe.replace(task=task, **changed)

    def recipe(self) -> Recipe:
        """The recipe that the form shows now.

        Raises:
            RecipeError: naming the setting, if a field holds what cannot be.
        """
        values = {key: widget.value for key, widget in self.fields.items() if key != "task"}  # that one is the base's
        words = [f"columns.{part.strip()}" for part in values.pop("columns").split(",") if part.strip()]
        if not isinstance(self.base.data, str) and values["data"].startswith(f"({_kind(self.base.data)}"):
            values["data"] = self.base.data  # nobody typed over the note: it still means the object
        if self._knobs:
            knobs = {name: knob.value for name, knob in self._knobs.items()}
            values["strategy"] = {"name": values["strategy"], **self._kept, **knobs}
        for key, widget in self.settings.items():
            if not isinstance(widget, widgets.Text):
                values[key] = widget.value
            elif widget.value.strip():
                words.append(f"{key}={widget.value}")
            else:
                values[key] = FIELDS[key].default
        return self.base.replace(**values, columns={}).override(words)

    def enable(self, on: bool) -> None:
        """Let people edit, or not (while a run trains)."""
        for widget in (*self.fields.values(), *self._made.values(), *self._knobs.values()):
            if widget.disabled is on:
                widget.disabled = not on


def _kind(data: Any) -> str:
    return "splits" if is_named(data) else type(data).__name__
