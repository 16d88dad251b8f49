"""A form for a recipe: every field is a core widget whose tooltip is the recipe's own rule, in words."""

import dataclasses
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets

from ftnb.recipe import Recipe, rules
from ftnb.rules import is_named
from ftnb.strategies import STRATEGIES
from ftnb.widgets.controls import heed_the_page, hint, log_slider, named, row, set_log, stack

# Labels are as wide as the longest in their column, so that two columns fit into 680 pixels.
LABEL, RIGHT, SECOND = "64px", "100px", "78px"
DEVICES = ("auto", "cuda", "mps", "cpu")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
EXAMPLES = {
    "data": ["builtin:reviews"],
    "model": ["builtin:bert-reviews", "google-bert/bert-base-uncased", "distilbert/distilbert-base-uncased"],
}


def _wide(kind: type[Any], label: str, label_width: str = LABEL, **traits: Any) -> Any:
    layout = widgets.Layout(width="auto")
    return kind(description=label, style={"description_width": label_width}, layout=layout, **traits)


class RecipeForm:
    """Widgets for the settings of a recipe that most people touch; the others stay as the recipe has them.

    Args:
        recipe: what the form shows first.
        on_change: called after every edit.
    """

    def __init__(self, recipe: Recipe, on_change: Callable[[], object]) -> None:
        self.base = recipe
        self._changed, self._filling = on_change, False
        self.fields: dict[str, Any] = {
            "data": _wide(widgets.Combobox, "data", options=EXAMPLES["data"], continuous_update=False),
            "columns": _wide(widgets.Text, "columns", placeholder="text=…, label=…", continuous_update=False),
            "model": _wide(widgets.Combobox, "model", options=EXAMPLES["model"], continuous_update=False),
            "strategy": _wide(widgets.Dropdown, "strategy", options=list(STRATEGIES)),
            "lr": log_slider("recipe-lr", "learning rate", "", recipe.lr, RIGHT),
            "num_epochs": _wide(widgets.BoundedIntText, "epochs", RIGHT, min=1, max=1000),
            "batch_size": _wide(widgets.BoundedIntText, "batch size", SECOND, min=1, max=4096),
            "seed": _wide(widgets.BoundedIntText, "seed", RIGHT, min=0, max=2**32 - 1),
            "device": _wide(widgets.Dropdown, "device", RIGHT, options=list(DEVICES)),
            "precision": _wide(widgets.Dropdown, "precision", SECOND, options=list(PRECISIONS)),
        }
        self._knobs: dict[str, Any] = {}
        self._knob_row = row(classes=["ftnb-pair", "ftnb-knobs"])
        known, fields = rules(), self.fields
        more = {"columns": "which column holds what, if not text and label; places count from 0: text=0, label=1"}
        for key, widget in fields.items():
            named(hint(widget, more.get(key, known[key].help)), f"ftnb-{key.replace('_', '-')}" if key != "lr" else "")
            widget.observe(self._edited, "value")
        left = stack(fields["data"], fields["columns"], fields["model"], fields["strategy"], self._knob_row)
        right = stack(
            fields["lr"],
            row(fields["num_epochs"], fields["batch_size"], classes=["ftnb-pair"]),
            fields["seed"],
            row(fields["device"], fields["precision"], classes=["ftnb-pair"]),
        )
        self.widget = row(named(left, "ftnb-column"), named(right, "ftnb-column"), classes=["ftnb-form"])
        self.fill(recipe)

    def fill(self, recipe: Recipe) -> None:
        """Show a recipe, without calling it an edit."""
        self.base, self._filling = recipe, True
        try:
            self._show(recipe)
        finally:
            self._filling = False

    def _show(self, recipe: Recipe) -> None:
        fields, strategy = self.fields, recipe.strategy
        named_data = isinstance(recipe.data, str)
        fields["data"].value = recipe.data if named_data else f"({_kind(recipe.data)}, given in code)"
        fields["columns"].value = ", ".join(f"{role}={column}" for role, column in recipe.columns.items())
        fields["model"].value = recipe.model
        fields["strategy"].value = strategy if isinstance(strategy, str) else strategy["name"]
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
        """The numbers of the chosen strategy (how many blocks, which decay), as its dataclass declares them."""
        self._knobs = {}
        for part in dataclasses.fields(STRATEGIES[self.fields["strategy"].value]):
            value = settings.get(part.name, part.default)
            if isinstance(value, int | float) and not isinstance(value, bool):
                kind = widgets.IntText if isinstance(value, int) else widgets.FloatText
                knob = _wide(kind, part.name.replace("_", " "), label_width=SECOND, value=value)
                text = part.metadata.get("help", "") or f"a setting of the strategy {self.fields['strategy'].value}"
                self._knobs[part.name] = named(hint(knob, text), f"ftnb-{part.name.replace('_', '-')}")
                knob.observe(self._edited, "value")
        self._knob_row.children = tuple(self._knobs.values())
        heed_the_page(self._knob_row)

    def _edited(self, change: Any) -> None:
        if self._filling:
            return
        if change["owner"] is self.fields["strategy"]:
            self._show_knobs({})
        self._changed()

    def recipe(self) -> Recipe:
        """The recipe that the form shows now.

        Raises:
            RecipeError: naming the setting, if a field holds what cannot be.
        """
        values = {key: widget.value for key, widget in self.fields.items()}
        columns = [part.strip() for part in values.pop("columns").split(",") if part.strip()]
        if not isinstance(self.base.data, str) and values["data"].startswith(f"({_kind(self.base.data)}"):
            values["data"] = self.base.data  # nobody typed over the note: it still means the object
        if self._knobs:
            knobs = {name: knob.value for name, knob in self._knobs.items()}
            values["strategy"] = {"name": values["strategy"], **knobs}
        recipe = self.base.replace(**values, columns={})
        return recipe.override(f"columns.{part}" for part in columns)

    def enable(self, on: bool) -> None:
        """Let people edit, or not (while a run trains)."""
        for widget in (*self.fields.values(), *self._knobs.values()):
            if widget.disabled is on:
                widget.disabled = not on


def _kind(data: Any) -> str:
    return "splits" if is_named(data) else type(data).__name__
