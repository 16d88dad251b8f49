"""What a panel offers in a pause and at the end: errors, samples, and a try. Each is a line of code with its value."""

import base64
import io
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import ipywidgets as widgets
from PIL import Image

from ftnb.run import Run
from ftnb.tables import DataError
from ftnb.tasks import TASKS, task_class
from ftnb.vision.images import read_image
from ftnb.widgets.controls import button, hint, line, named, row, say, say_code, show, stack
from ftnb.widgets.figure import Picture
from ftnb.widgets.recorder import Recorder
from ftnb.widgets.svg import PALETTE

MOST_BARS = 5  # classes whose probability is drawn; of a thousand the others are next to nothing
UPLOADS = {"image": ("picture", "photo.jpg"), "audio": ("recording", "clip.wav")}  # by role: what a file is called
SMALL = 96  # pixels; a picture below it is enlarged with its pixels as they are


def uploaded(upload: widgets.FileUpload) -> tuple[str, bytes] | None:
    """The name and the content of the file that an upload holds, or None.

    In ipywidgets 8 its value is a tuple of {"name", "content", ...}, in 7 a dict {name: {"metadata", "content"}}.
    """
    value = upload.value
    files = [{"name": name, **file} for name, file in value.items()] if isinstance(value, dict) else value
    return (str(files[-1]["name"]), bytes(files[-1]["content"])) if files else None


def forget_upload(upload: widgets.FileUpload) -> None:
    """Empty an upload, so that the same file can be chosen again and no notebook that keeps its widgets keeps it."""
    if upload.has_trait("data"):  # ipywidgets 7, where setting the counter makes the value
        upload.metadata, upload.data, upload._counter = [], [], 0
    else:
        upload.value = ()


def image_html(png: bytes, alt: str, style: str) -> str:
    """A PNG as HTML that needs no file beside it."""
    return f'<img alt="{escape(alt)}" style="{style}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def thumbnail_html(image: Image.Image, alt: str) -> str:
    """A picture at most 96 pixels high, for a look at what was tried."""
    with io.BytesIO() as file:
        small = image.copy()
        small.thumbnail((2 * SMALL, 2 * SMALL))
        small.save(file, "PNG")
        kind = "pixelated" if max(image.size) < SMALL else "auto"
        return image_html(file.getvalue(), alt, f"height:{SMALL}px;max-width:200px;image-rendering:{kind}")


def bars_html(scores: Mapping[str, float]) -> str:
    """Probabilities as bars, the largest first, at most five of them."""
    ranked = sorted(scores.items(), key=lambda item: -item[1])
    cells = []
    for i, (label, score) in enumerate(ranked[:MOST_BARS]):
        bar = f"width:{100 * score:.1f}%;height:100%;border-radius:2px;background:{PALETTE['loss']}"
        weight = "bold" if i == 0 else "normal"
        cells += [
            f'<span style="font-weight:{weight};overflow-wrap:anywhere">{escape(label)}</span>',
            f'<span style="height:9px;background:var(--jp-layout-color2,#8883)"><div style="{bar}"></div></span>',
            f'<span style="font-weight:{weight}">{score:.3f}</span>',
        ]
    if len(ranked) > MOST_BARS:
        cells.append(f'<span class="ftnb-quiet" style="grid-column:1/-1">and {len(ranked) - MOST_BARS} more</span>')
    grid = "display:grid;grid-template-columns:fit-content(220px) 180px max-content;gap:3px 10px;align-items:center"
    return f'<div class="ftnb-bars" style="{grid}">{"".join(cells)}</div>'


def value_html(value: Any) -> str:
    """What a line of code gave, as HTML: a picture, a table, the probabilities of a prediction, or plain text."""
    if isinstance(value, Picture):
        return image_html(value.png(), value.get_suptitle(), "max-width:100%")
    if hasattr(value, "_repr_html_"):
        return str(value._repr_html_())
    if isinstance(scores := getattr(value, "scores", None), Mapping):
        return bars_html(scores)
    if isinstance(value, list):  # several things found in one picture, or words in one text
        return "".join(f"<div>{escape(str(part))}</div>" for part in value) or "<div>Nothing was found.</div>"
    return f"<div>{escape(str(value))}</div>"


class Tryout:
    """Controls that ask a run that has ended or is paused, and the line of code and the value of the one used last.

    Args:
        attempt: calls what it is given, and says in the panel what goes wrong in it.

    Attributes:
        run: the run that is asked; while it is None, nothing is offered.
    """

    def __init__(self, attempt: Callable[[Callable[[], object]], object]) -> None:
        self.run: Run | None = None
        self._attempt, self._shown = attempt, ""
        text = "What the model gets wrong on the validation data"
        self.errors = button("errors", "Errors", "search", text)
        text = "What the model writes for the first prompts of the validation data"
        self.samples = button("samples", "Samples", "comments", text)
        self.text = widgets.Text(
            placeholder="type a text and press Enter", continuous_update=False, layout=widgets.Layout(flex="1 1 240px")
        )
        named(hint(self.text, "A text of your own for the model"), "ftnb-text")
        self.ask = button("try", "Try it", "arrow-right", "Ask the model about this text")
        self.upload = widgets.FileUpload(description="Try a picture", accept="image/*", multiple=False, disabled=True)
        named(hint(self.upload, "Ask the model about a picture of your own"), "ftnb-upload")
        self.recorder = Recorder(lambda wav: self._attempt(lambda: self.try_file("recording.wav", wav)))
        self.limit = line("upload-limit")
        # Jupyter's server closes its connection on a message above 10 MB, and the page is not told.
        self.code, self.value = line("tried-code"), line("tried")
        self.code.layout.margin = "4px 0 0"
        asked = (self.errors, self.samples, self.text, self.ask, self.upload, self.recorder, self.limit)
        controls = row(*asked, classes=["ftnb-buttons"])
        self.widget = stack(controls, self.code, self.value, classes=["ftnb-tryout"])
        show(self.widget, False)
        self.errors.on_click(lambda _: self._attempt(self.show_errors))
        self.samples.on_click(lambda _: self._attempt(self.show_samples))
        self.ask.on_click(lambda _: self._attempt(self.try_text))
        self.text.observe(lambda change: self._attempt(self.try_text) if change["new"] else None, "value")
        self.upload.observe(lambda change: self._attempt(self.try_upload) if change["new"] else None, "value")

    def offer(self, run: Run | None) -> None:
        """Ask this run from now on; None takes the controls away, because a run trains or there is none."""
        if run is self.run:
            return
        self.run = run
        self._show("", "")
        roles = TASKS[run.recipe.task].roles if run is not None else ()
        show(self.samples, run is not None and hasattr(task_class(run.recipe.task), "show_samples"))
        typed = "audio" not in roles and ("text" in roles or "prompt" in roles)  # of speech, text is the answer
        show(self.text, typed)
        show(self.ask, typed)
        kind = next((kind for kind in UPLOADS if kind in roles), None)
        if kind is not None:
            noun, example = UPLOADS[kind]
            self.upload.description, self.upload.accept = f"Try a {noun}", f"{kind}/*"
            hint(self.upload, f"Ask the model about a {noun} of your own")
            say(self.limit, f"up to 10 MB; a larger file in code: panel.run.predict([{example!r}])", quiet=True)
        show(self.upload, kind is not None)
        show(self.recorder, kind == "audio")
        show(self.limit, kind is not None)
        self._enable(run is not None)
        show(self.widget, run is not None)

    def show_errors(self) -> None:
        """Show what the model gets wrong."""
        self._ask("panel.run.task.show_errors()", lambda run: value_html(run.task.show_errors()))

    def show_samples(self) -> None:
        """Show what the model writes."""
        self._ask("panel.run.task.show_samples()", lambda run: value_html(run.task.show_samples()))

    def try_text(self) -> None:
        """Show the prediction for the text in the field.

        Raises:
            DataError: if there is none.
        """
        text = self.text.value.strip()
        if not text:
            raise DataError("there is no text to try: the field is empty. Type one, then press Enter.")
        code = f"panel.run.predict([{text!r}])"
        if code != self._shown:  # leaving the field for the button has asked already
            self._ask(code, lambda run: value_html(run.predict([text])[0]))

    def try_upload(self) -> None:
        """Show the prediction for the file that was uploaded: as the task draws it, or beside the picture or player.

        Raises:
            DataError: if the file is no picture (or recording), or cannot be read.
        """
        found = uploaded(self.upload)
        forget_upload(self.upload)
        if found is not None:
            self.try_file(*found)

    def try_file(self, name: str, content: bytes) -> None:
        """Show the prediction for a file's content, however it came here.

        Args:
            name: what the file is called.
            content: its bytes.

        Raises:
            DataError: if it is no picture (or recording), or cannot be read.
        """
        draws = self.run is not None and hasattr(self.run.task, "show_prediction")
        code = f"panel.run.task.show_prediction({name!r})" if draws else f"panel.run.predict([{name!r}])"

        def answer(run: Run) -> str:
            thing: Any
            if "audio" in TASKS[run.recipe.task].roles:
                from ftnb.audio.show import clip_html  # brings soundfile, which only recordings need

                seen, thing = clip_html(content, name), content
            else:
                thing = read_image({"path": name, "bytes": content})
                if draws:
                    return value_html(run.task.show_prediction(thing))
                seen = thumbnail_html(thing, name)
            style = "display:flex;flex-wrap:wrap;gap:8px 16px;align-items:center"
            return f'<div style="{style}">{seen}<div>{value_html(run.predict([thing])[0])}</div></div>'

        self._ask(code, answer)

    def _ask(self, code: str, answer: Callable[[Run], str]) -> None:
        """Show a line of code and, when it is there, its value; meanwhile nothing can be asked."""
        run = self.run
        if run is None:
            return
        self._show("", "")
        say(self.value, "The model is at work …", quiet=True)
        self._enable(False)
        shown = ("", "")
        try:
            with run.at_rest():  # nobody lets a paused training go on meanwhile
                shown = (code, answer(run))
        finally:
            if self.run is run:  # else a new run has begun meanwhile
                self._show(*shown)
                self._enable(True)

    def _show(self, code: str, html: str) -> None:
        self._shown = code
        if code:
            say_code(self.code, "The same in code:", code)
        else:
            self.code.value = ""
        self.value.value = f'<div class="ftnb-line" style="padding-top:4px">{html}</div>' if html else ""

    def _enable(self, on: bool) -> None:
        for widget in (self.errors, self.samples, self.text, self.ask, self.upload, self.recorder):
            widget.disabled = not on
