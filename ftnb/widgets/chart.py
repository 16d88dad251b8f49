"""The live chart of a run: a ladder of ways to show one history, of which the best that works is taken.

1. `ChartView`, an anywidget fed with float32; it says `ready` when it shows and `poll` every second while it does.
2. HTML with an SVG built in Python, when nothing said `ready` within five seconds.
3. A PNG in the cell's output at the end, so that the saved notebook keeps a picture.
4. A line of text beside each of them.
"""

import base64
import contextlib
import threading
import time
from collections.abc import Callable
from importlib import resources
from typing import Any

import anywidget
import ipywidgets as widgets
import traitlets
from IPython.display import DisplayHandle, display

from ftnb.charts import History, history_html, history_text, plot_history
from ftnb.widgets.controls import heed_the_page
from ftnb.widgets.svg import stylesheet

PUSH_EVERY = 0.25  # seconds between two messages to a view
READY_WITHIN = 5.0  # a front end that has not said `ready` by then cannot show the live chart
WATCHED_FOR = 5.0  # a view that has not polled for so long is not looked at
END_STATES = ("done", "stopped", "failed")


class ChartView(anywidget.AnyWidget):
    """What the browser shows: a snapshot's summary and its points. It holds no logic and needs no other message."""

    _esm = (resources.files("ftnb") / "static" / "chart.js").read_text(encoding="utf-8")
    _css = stylesheet()
    summary = traitlets.Dict().tag(sync=True)
    points = traitlets.Bytes().tag(sync=True)


class LiveChart:
    """Show a history while it grows, in the best way that the front end can.

    Args:
        on_poll: called in the kernel's main thread each time a view asks for news. In Colab, what is sent in answer to
            such a message always shows; what a thread sends may not.
        clock: seconds, for tests.

    Attributes:
        view: the live chart; its output becomes a PNG at the end.
        fallback: an HTML widget for the second rung, to be placed in another output; empty while the first one works.
    """

    def __init__(
        self, on_poll: Callable[[], object] = lambda: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.view = ChartView()
        self.view.add_class("ftnb-chart")
        self.view.on_msg(self._receive)
        heed_the_page(self.view)
        self.fallback = widgets.HTML()
        self.fallback.add_class("ftnb-chart-fallback")
        self._on_poll, self._clock = on_poll, clock
        self._lock = threading.Lock()
        self._handles: list[DisplayHandle] = []
        self._history: History | None = None
        self._state: Callable[[], str] = lambda: "idle"
        self._sent: Any = None
        self._drawn = False  # whether the outputs hold the PNG instead of the view
        self._polled_at: float | None = None
        self._pushed_at = self._followed_at = clock()

    def follow(self, history: History, state: Callable[[], str]) -> None:
        """Show this history from now on. `state` returns the run's own word for its state."""
        with self._lock:
            self._history, self._state, self._sent = history, state, None
            self._followed_at = self._clock()
            self._pushed_at = self._followed_at - PUSH_EVERY
            self.fallback.value = ""
        if self._drawn and state() not in END_STATES:
            self._drawn = False
            self._replace(*self._live())

    def show(self) -> None:
        """Put the chart into the output of the current cell: live, or as a picture when the run is over."""
        handle = DisplayHandle()
        self._handles = [*self._handles[-7:], handle]
        if self._history is not None and self._over():
            self._drawn = True
            data, metadata = self._picture(self._history)
        else:
            data, metadata = self._live()
        display(data, metadata=metadata, raw=True, display_id=handle.display_id)

    @property
    def watched(self) -> bool:
        """Whether a live view is being looked at."""
        return self._polled_at is not None and self._clock() - self._polled_at < WATCHED_FOR

    def refresh(self) -> None:
        """Send what is new, if it is time and somebody looks; any thread may call it, as often as it likes."""
        if self._history is None or not self._lock.acquire(blocking=False):
            return
        try:
            self._push(self._history, self._state())
        finally:
            self._lock.release()

    def settle(self) -> bool:
        """Put the picture where the view was, if the run is over; returns whether it stands there now.

        To be called in the main thread only.
        """
        if self._history is not None and self._over() and self._handles and not self._drawn:
            self._drawn = True
            self._replace(*self._picture(self._history))
        return self._drawn

    def _over(self) -> bool:
        """Whether there is an end to be drawn; a run that failed before its first step left nothing to see."""
        return self._history is not None and self._history.started is not None and self._state() in END_STATES

    def _push(self, history: History, state: str) -> None:
        now, news = self._clock(), (id(history), history.version, state)
        if news == self._sent or now - self._pushed_at < PUSH_EVERY:
            return
        if self.watched:
            summary, points = history.snapshot(state=state)
            with self.view.hold_sync():
                self.view.summary, self.view.points = summary, points
            self.fallback.value = ""
        elif self._polled_at is None and now - self._followed_at > READY_WITHIN:
            # Nobody tells whether this rung is looked at, and a server keeps what a closed page does not fetch: so
            # the gaps grow with the run, and an hour of it costs some hundred small messages.
            if now - self._pushed_at < max(1.0, (now - self._followed_at) / 200) and state not in END_STATES:
                return
            self.fallback.value = f"<style>{stylesheet()}</style>" + history_html(
                history, state=state, max_points=400, width=800
            )
        else:
            return
        self._sent, self._pushed_at = news, now

    def _receive(self, _view: Any, content: Any, _buffers: Any) -> None:
        """A message from a view: it shows (`ready`) or still does (`poll`)."""
        if not isinstance(content, dict) or content.get("type") not in ("ready", "poll"):
            return
        self._polled_at = self._clock()
        if content["type"] == "ready":
            self._sent = None  # a new view may have missed everything
        self._on_poll()
        self.refresh()
        self.settle()

    def _live(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The view as a bundle and its metadata; ipywidgets 7 would display it without the id we need to change it."""
        bundle: Any = self.view._repr_mimebundle_()  # with metadata or, in older versions, without
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
        return {**data, "text/plain": "The live chart of a run."}, metadata

    def _picture(self, history: History) -> tuple[dict[str, Any], dict[str, Any]]:
        """What stays in a saved notebook: a PNG, and a line of text for who cannot see it."""
        png = base64.b64encode(plot_history(history, state=self._state()).png()).decode()
        return {"image/png": png, "text/plain": history_text(history, state=self._state())}, {}

    def _replace(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Change what the outputs show; an output whose page was reloaded since is out of reach and stays as it is."""
        for handle in self._handles:
            with contextlib.suppress(RuntimeError):  # some kernels refuse to display outside a cell
                handle.update(data, metadata=metadata, raw=True)
