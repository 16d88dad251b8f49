"""A line that says what a run will need, counted in a thread while nothing trains."""

import threading
import time
from pathlib import Path

from ftnb.forecast import forecast
from ftnb.pretrained import ModelError, find_model
from ftnb.recipe import Recipe
from ftnb.widgets.controls import line, say

PATIENCE = 0.7  # seconds without an edit after which counting begins


class Foresight:
    """Shows a forecast of the recipe it was last asked about; until `show` it stays silent.

    Attributes:
        line: the widget.
    """

    def __init__(self) -> None:
        self.line = line("need")
        self._shown, self._asked = False, None  # type: bool, Recipe | None
        self._lock, self._thread = threading.Lock(), None  # type: threading.Lock, threading.Thread | None

    def show(self, recipe: Recipe | None) -> None:
        """The panel is on the page: begin to speak."""
        self._shown = True
        self.ask(recipe)

    def ask(self, recipe: Recipe | None) -> None:
        """Count anew, soon; None says nothing."""
        say(self.line, "")
        with self._lock:
            self._asked = recipe if self._shown and recipe is not None and at_hand(recipe) else None
            if self._asked is not None and (self._thread is None or not self._thread.is_alive()):
                self._thread = threading.Thread(target=self._count, name="ftnb-forecast", daemon=True)
                self._thread.start()

    def settle(self) -> None:
        """Forget what was asked, and wait until nothing is counted: a training wants the random numbers to itself."""
        with self._lock:
            self._asked, thread = None, self._thread
        if thread is not None:
            thread.join()

    def _count(self) -> None:
        while (recipe := self._asked) is not None:
            time.sleep(PATIENCE)
            if self._asked is not recipe:
                continue
            try:
                text = forecast(recipe, dry_run=False).line()
            except Exception:  # noqa: BLE001  # whatever is wrong, Start says it in its own words
                text = ""
            with self._lock:
                if self._asked is recipe:
                    self._asked = None
                    say(self.line, text, quiet=True)


def at_hand(recipe: Recipe) -> bool:
    """Whether a recipe can be looked at without fetching anything."""
    data, model = recipe.data, recipe.model
    try:
        here = find_model(model)[1] != "hub"
    except ModelError:
        here = False
    return here and isinstance(data, str) and (data.startswith("builtin:") or Path(data).expanduser().exists())
