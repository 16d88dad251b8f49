"""A button that records from the browser's microphone, where the front end lets a page use one."""

from collections.abc import Callable
from importlib import resources
from typing import Any

import anywidget
import traitlets

from ftnb.widgets.controls import heed_the_page


class Recorder(anywidget.AnyWidget):
    """Records up to 30 seconds; nothing of it stays in the widget, so no saved notebook keeps it.

    Args:
        on_recording: called with the bytes of a WAV file (16,000 samples a second) after each recording.
    """

    _esm = (resources.files("ftnb") / "static" / "recorder.js").read_text(encoding="utf-8")
    disabled = traitlets.Bool(default_value=True).tag(sync=True)

    def __init__(self, on_recording: Callable[[bytes], object]) -> None:
        super().__init__()
        self._on_recording = on_recording
        self.add_class("ftnb-recorder")
        self.on_msg(self._receive)
        heed_the_page(self)

    def _receive(self, _widget: Any, content: Any, buffers: Any) -> None:
        if isinstance(content, dict) and content.get("type") == "recorded" and buffers and not self.disabled:
            self._on_recording(bytes(buffers[0]))
