"""Contenders that take turns: each runs in a thread of its own and hands on after so many steps, so that whatever else
the machine does hits all of them, loops that are not ours too."""

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

Contender = Callable[[Callable[[], None]], None]  # runs, and calls what it is given after each step


class Enough(BaseException):
    """Ends a contender whose turns are over."""


@dataclass
class Turns:
    """What one contender took for each of its turns, in seconds a step: of the wall, and of the process."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def race(contenders: dict[str, Contender], turns: int, steps: int) -> dict[str, Turns]:
    """Let contenders take turns after every step.

    Args:
        contenders: by name; each must have more than `(turns + 1) * steps` steps in it.
        turns: of each; one more at the beginning warms up.
        steps: whose times are put together as one turn.

    Raises:
        RuntimeError: if a contender ended early or failed, with its own error as the cause.
    """
    found = {name: Turns([0.0] * (turns + 1), [0.0] * (turns + 1)) for name in contenders}
    gates = {name: threading.Semaphore(0) for name in contenders}
    names, failed = list(contenders), list[BaseException]()

    def run(name: str) -> None:
        begin, done, dice = (0.0, 0.0), 0, torch.get_rng_state()
        following = names[(names.index(name) + 1) % len(names)]

        def enter() -> tuple[float, float]:
            gates[name].acquire()
            if failed or done == (turns + 1) * steps:
                raise Enough
            torch.set_rng_state(dice)  # nobody else drew from it
            return time.perf_counter(), time.process_time()

        def step() -> None:
            nonlocal begin, done, dice
            wall, cpu = time.perf_counter() - begin[0], time.process_time() - begin[1]
            found[name].wall[done // steps] += wall / steps
            found[name].cpu[done // steps] += cpu / steps
            done += 1
            dice = torch.get_rng_state()
            gates[following].release()
            begin = enter()

        try:
            begin = enter()
            contenders[name](step)
            raise RuntimeError(f"{name} ended after {done} steps; it needs more than {(turns + 1) * steps}.")
        except Enough:
            pass
        except BaseException as error:  # noqa: BLE001  # told below
            failed.append(error)
        finally:
            gates[following].release()

    threads = [threading.Thread(target=run, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    gates[names[0]].release()
    for thread in threads:
        thread.join()
    if failed:
        raise RuntimeError(f"a contender failed: {failed[0]!r}") from failed[0]
    return {name: Turns(of.wall[1:], of.cpu[1:]) for name, of in found.items()}


def ratio(these: list[float], those: list[float]) -> tuple[float, list[float]]:
    """The median of paired ratios, and their range."""
    pairs = [a / b for a, b in zip(these, those, strict=True)]
    return statistics.median(pairs), [min(pairs), max(pairs)]
