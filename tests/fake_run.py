"""A run that computes nothing: it keeps the manners of `ftnb.run.Run`, so that widgets can be tested by themselves."""

import contextlib
import math
import threading
import time
from pathlib import Path
from typing import ClassVar

from ftnb.charts import History
from ftnb.events import Changed, Evaluated, Finished, Started, Stepped
from ftnb.run import RunError


class FakeRun:
    """Sends the events of a pretended training from a thread; obeys and remembers what it is asked.

    Attributes:
        made: all fake runs, oldest first.
        seconds_per_step: how fast they go.
    """

    made: ClassVar[list["FakeRun"]] = []
    seconds_per_step = 0.002
    num_steps = 300
    fail_with: Exception | None = None
    can_go_on, last_snapshot, traceback = False, None, "somewhere"

    def __init__(self, recipe, folder=None, *, key=None):
        self.recipe, self.key, self.id = recipe, key, f"fake-{len(self.made)}"
        self.folder, self.history = Path.cwd() / "runs" / self.id, History()
        self.state, self.error, self.asked = "idle", "", []
        self.go, self.ended = threading.Event(), threading.Event()
        self.go.set()
        self.made.append(self)

    def start(self, *, prepare_in_thread=False):
        self.asked.append(f"start {prepare_in_thread}")
        if self.fail_with is not None and not prepare_in_thread:
            raise self.fail_with
        self.state = "preparing"
        threading.Thread(target=self._work, daemon=True).start()
        return self

    def _need(self, *states):
        if self.state not in states:
            raise RunError(f"run {self.id} is {self.state}.")

    def pause(self):
        self._need("running")
        self.asked.append("pause")
        self.go.clear()
        self.state = "paused"
        self._say(Changed, what="pause")

    def resume(self):
        self._need("paused")
        self.asked.append("resume")
        self.state = "running"
        self._say(Changed, what="resume")
        self.go.set()

    def stop(self):
        self.asked.append("stop")
        self.state = "stopping"
        self.go.set()

    def evaluate(self):
        self.asked.append("evaluate")

    def set_lr(self, lr, group=None):
        if lr > 1:
            raise ValueError(f"lr {lr} is too much.")
        self.asked.append(f"lr {lr:g}")
        self._say(Changed, what="lr", old=self.recipe.lr, new=lr)

    def wait(self, timeout=None):
        self.ended.wait(timeout)
        return self.state

    def predict(self, texts):
        return ["positive" for _ in texts]

    @contextlib.contextmanager
    def at_rest(self):
        yield self.task if hasattr(self, "task") else None

    def _say(self, kind, **fields):
        step = fields.pop("step", self.history.step)
        self.history.add(kind(step=step, time=time.perf_counter() - self._began, **fields))

    def _work(self):
        self._began, total = time.perf_counter(), self.num_steps
        if self.fail_with is not None:
            self.error, self.state = str(self.fail_with), "failed"
            self.ended.set()
            return
        self._say(
            Started, num_steps=total, steps_per_epoch=total // 3, num_epochs=3, num_examples=1600,
            num_parameters=480_000, num_trainable=480_000, device="cpu", precision="fp32", metric="accuracy",
        )  # fmt: skip
        self.state = "running"
        for step in range(1, total + 1):
            self.go.wait()
            if self.state == "stopping":
                break
            time.sleep(self.seconds_per_step)
            noise = 0.1 * math.sin(step * 12.9898) * math.cos(step * 78.233)
            lr = (self.history.peak_lr or self.recipe.lr) * min(step / (total / 10), (total - step + 1) / (total * 0.9))
            self._say(
                Stepped, step=step, epoch=3 * step / total, loss=0.25 + 0.45 * math.exp(-step / 80) + noise, lr=lr,
                grad_norm=1.0, examples_per_second=310 + 40 * noise,
            )  # fmt: skip
            if step % (total // 6) == 0:
                accuracy = 0.86 - 0.36 * math.exp(-step / 70)
                loss = 0.33 + 0.4 * math.exp(-step / 80)
                self._say(Evaluated, epoch=3 * step / total, loss=loss, metrics={"accuracy": accuracy}, best=True)
        reason = "stopped" if self.state == "stopping" else "done"
        best = self.history.best or (None, None)
        self._say(Finished, reason=reason, best_step=best[0], best_value=best[1])
        self.state = reason
        self.ended.set()
