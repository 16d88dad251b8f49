"""The runs of this process: how a cell that is run twice finds its run, and what happens when the process ends."""

import atexit
import time
import weakref
from typing import Any

from ftnb.waiting import say_to_stderr


class Registry:
    """Runs by id; those alive are held, finished ones only as long as somebody else holds them.

    The last run under a key is held until the next one: whoever gives a key wants to find it again.
    """

    def __init__(self) -> None:
        self.known: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
        self.live: dict[str, Any] = {}
        self.keyed: dict[str, Any] = {}
        self.last: weakref.ref[Any] | None = None

    def begin(self, run: Any) -> None:
        """Enter a run that starts."""
        self.known[run.id] = self.live[run.id] = run
        self.last = weakref.ref(run)
        if run.key is not None:
            self.keyed[run.key] = run

    def current(self, key: str = "") -> Any:
        """The run started last under a key, or (empty) last of all; None if there is none any more."""
        return self.keyed.get(key) if key else self.last() if self.last is not None else None

    def end(self, run: Any) -> None:
        """Note that a run has ended."""
        self.live.pop(run.id, None)

    def stop_all(self, timeout: float = 30.0) -> None:
        """Stop every live run without a last evaluation and wait for its model: the process is about to end."""
        live = list(self.live.values())
        for run in live:
            say_to_stderr(f"The process ends: stopping run {run.id} and keeping its model in {run.folder}")
            run.stop(by="exit")
            run.stop(by="exit")  # twice: without the evaluation
        deadline = time.monotonic() + timeout
        for run in live:
            run.ended.wait(max(0.0, deadline - time.monotonic()))


RUNS = Registry()
atexit.register(RUNS.stop_all)
