"""Waiting for a run from the main thread: interrupts that keep the model, a progress bar, and the end of a process."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import datasets
from huggingface_hub import utils as hub_utils
from tqdm.auto import tqdm


def say_to_stderr(text: str) -> None:
    """Write one line where a cell shows it and a pipe does not take it."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def wait_for(
    run: Any,
    timeout: float | None = None,
    *,
    tick: Callable[[], object] = lambda: None,
    say: Callable[[str], object] = say_to_stderr,
) -> str:
    """Wait until a run has ended, or for `timeout` seconds.

    The first interrupt (■, Ctrl-C) asks the run to stop and keep its model; a second one leaves it and is raised.

    Args:
        run: has `ended` (a `threading.Event`), `state`, `stop(by=...)` and `id`.
        timeout: in seconds; None waits for the end.
        tick: called about five times a second and once more at the end, in the waiting thread.
        say: takes a line for the person who interrupted.

    Returns:
        The run's state then; at once for a run that was never started.
    """
    deadline = float("inf") if timeout is None else time.monotonic() + timeout
    try:
        try:
            _wait(run, deadline, tick)
        except KeyboardInterrupt:
            run.stop(by="interrupt")
            say("Stopping after this step and a last evaluation; the model is kept. Interrupt again to leave it alone.")
            _wait(run, deadline, tick)
    except KeyboardInterrupt:  # the second, wherever it came
        say(f"Left alone: it goes on in the background. Find it again with get_run({run.id!r}).")
        raise
    state: str = run.state
    return state


def _wait(run: Any, deadline: float, tick: Callable[[], object]) -> None:
    while run.state != "idle" and not run.ended.is_set() and time.monotonic() < deadline:
        run.ended.wait(min(0.2, max(0.0, deadline - time.monotonic())))  # a long wait may swallow an interrupt
        tick()


class Bar:
    """A progress bar that follows a run; only the thread that waits moves it.

    Args:
        run: has a `history`.
        show: False makes a bar that shows nothing.
    """

    def __init__(self, run: Any, *, show: bool = True) -> None:
        self.run, self.bar = run, tqdm(total=0, unit="step", disable=not show, dynamic_ncols=True)
        drawn_in_place = sys.stderr.isatty() or hasattr(self.bar, "container")  # a terminal, or a notebook's widget
        self._interval, self._shown = (0.0 if drawn_in_place else 10.0), float("-inf")  # in a log, each is a line

    def tick(self, *, force: bool = False) -> None:
        """Show how far the run is, its loss and its metric."""
        history, bar, now = self.run.history, self.bar, time.monotonic()
        if history.started is None or bar.disable or not (force or now - self._shown >= self._interval):
            return
        self._shown = now
        bar.total, bar.n = history.started.num_steps, history.step
        values = {"loss": history.last.get("smooth"), history.metric: history.last.get("metric")}
        bar.set_postfix({name: f"{value:.3f}" for name, value in values.items() if value is not None}, refresh=False)
        bar.refresh()

    def say(self, text: str) -> None:
        """Write a line above the bar."""
        tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Leave the bar as it is."""
        self.tick(force=True)
        self.bar.close()


@contextlib.contextmanager
def quiet_bars() -> Iterator[None]:
    """Keep the libraries' progress bars silent; from a thread they would land in whichever cell is running."""
    switches = (
        (datasets.is_progress_bar_enabled(), datasets.disable_progress_bars, datasets.enable_progress_bars),
        (not hub_utils.are_progress_bars_disabled(), hub_utils.disable_progress_bars, hub_utils.enable_progress_bars),
    )
    for _, off, _ in switches:
        off()
    try:
        yield
    finally:
        for was_on, _, on in switches:
            on() if was_on else None
