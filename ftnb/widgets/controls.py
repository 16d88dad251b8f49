"""Buttons and lines of the panel: core widgets with a class each, which are also the hooks of the tests."""

import re
from collections.abc import Iterable
from html import escape
from importlib import resources
from typing import Any

import ipywidgets as widgets


def hint(widget: Any, text: str) -> Any:
    """Give a widget a tooltip; calling it again gives another one.

    ipywidgets 7 calls it `description_tooltip` on everything but buttons. ipywidgets 8 shows none on a labelled text
    or choice, so there the label brings it along as HTML.
    """
    setattr(widget, "tooltip" if widget.has_trait("tooltip") else "description_tooltip", text)
    labelled = isinstance(widget, widgets.Dropdown | widgets.Text) and widget.description
    if labelled and widget.has_trait("description_allow_html"):
        label = re.sub(r"</?span[^>]*>", "", widget.description)
        widget.description_allow_html = True
        widget.description = f'<span title="{escape(text)}">{label}</span>'
    return widget


def named(widget: Any, *classes: str) -> Any:
    """Give a widget its CSS classes."""
    for name in classes:
        widget.add_class(name)
    return widget


def button(name: str, label: str, icon: str, text: str, style: str = "") -> widgets.Button:
    """A button with the class `ftnb-name`."""
    made = widgets.Button(description=label, icon=icon, button_style=style, disabled=True)
    return named(hint(made, text), f"ftnb-{name}")


def log_slider(name: str, label: str, text: str, value: float, label_width: str = "92px") -> widgets.FloatLogSlider:
    """A slider for a learning rate. Its limits are *exponents*; a rate beyond the usual ones widens them."""
    low, high = 1e-7, 0.1
    made = widgets.FloatLogSlider(
        value=min(max(value, low), high), base=10, min=-7, max=-1, step=0.05, readout_format=".1e",
        description=label, continuous_update=False, style={"description_width": label_width},
        layout=widgets.Layout(width="auto"),
    )  # fmt: skip
    set_log(made, value)
    return named(hint(made, text), f"ftnb-{name}")


def set_log(slider: widgets.FloatLogSlider, value: float) -> None:
    """Set a log slider, moving its limits where the value lies beyond them (it would be clamped in silence)."""
    while value < 10**slider.min:
        slider.min -= 1
    while value > 10**slider.max:
        slider.max += 1
    slider.value = value


def line(name: str) -> widgets.HTML:
    """A line of HTML with the class `ftnb-name`; it takes no room while it is empty."""
    return named(widgets.HTML(layout=widgets.Layout(margin="0", height="auto")), f"ftnb-{name}")


def say(target: widgets.HTML, text: str, *, quiet: bool = False, role: str = "status") -> None:
    """Write plain text into a line, only if it is new; screen readers hear it."""
    kind = "ftnb-mistake" if role == "alert" else "ftnb-quiet" if quiet else ""
    html = f'<div class="ftnb-line" role="{role}"><div class="{kind}">{escape(text)}</div></div>' if text else ""
    if target.value != html:
        target.value = html


def say_code(target: widgets.HTML, label: str, code: str) -> None:
    """Write a line of code that one click selects."""
    text = f'<div class="ftnb-line"><span class="ftnb-quiet">{escape(label)}</span> <code>{escape(code)}</code></div>'
    if target.value != text:
        target.value = text


def stack(*children: Any, classes: Iterable[str] = ()) -> widgets.VBox:
    """One below the other."""
    return named(widgets.VBox(list(children)), *classes)


def row(*children: Any, classes: Iterable[str] = ()) -> widgets.HBox:
    """Side by side."""
    return named(widgets.HBox(list(children)), *classes)


def pairs(*children: Any, classes: Iterable[str] = ()) -> widgets.GridBox:
    """Two beside each other in a line, as many lines as it takes."""
    layout = widgets.Layout(grid_template_columns="repeat(2, minmax(0, 1fr))", grid_gap="0 10px", overflow="visible")
    return named(widgets.GridBox(list(children), layout=layout), *classes)


def show(widget: Any, on: bool) -> None:
    """Let a widget take its place on the page, or none."""
    display = None if on else "none"
    if widget.layout.display != display:
        widget.layout.display = display


def styles() -> widgets.HTML:
    """The panel's CSS as a widget, so that it comes back with the panel after a reload."""
    css = (resources.files("ftnb") / "static" / "panel.css").read_text(encoding="utf-8")
    return widgets.HTML(f"<style>{css}</style>", layout=widgets.Layout(display="none"))


def heed_the_page(widget: Any) -> None:
    """Let a widget and all inside it hear every page that shows them, also after a reload.

    ipykernel 7.4 sends what a page says about a widget to the subshell in which the kernel last spoke of that widget.
    After a reload that subshell may be gone with the old page, and every click is dropped ("Unknown subshell_id" in
    the server's log). The page itself says which subshell it wants; here that holds. Other kernels need nothing.
    """
    comm: Any = getattr(widget, "comm", None)
    if hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda _data, wanted: wanted
    for child in getattr(widget, "children", ()):
        heed_the_page(child)
