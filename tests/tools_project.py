"""A small project in a temporary folder, for tests that break something on purpose and look whether a check sees it."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from tools.derive import write_derived
from tools.export import export_all, write
from tools.lessons import ROOT, lessons

EVENTS = '''\
# %% [markdown]
# # Events
#
# > What a training says.

# %%
#| default_exp events

# %%
#| export
import math

# %%
#| export
def half(x: float) -> float:
    """Half of `x`."""
    return math.ldexp(x, -1)

# %%
half(3.0)

# %% tags=["exercise"]
def third(x):
    ...  # your code here

# %% tags=["solution"]
def third(x):
    return x / 3
'''

CHARTS = '''\
# %% [markdown]
# # Charts
#
# > From events to a picture.

# %%
#| default_exp charts

# %%
#| export
from ftnb.events import half

# %%
#| export
def quarter(x: float) -> float:
    """A quarter of `x`."""
    return half(half(x))

# %%
quarter(4.0)
'''


@dataclass
class Project:
    """Paths and shorthands of one temporary project."""

    root: Path

    def lesson(self, name: str, text: str) -> Path:
        path = self.root / "nbs" / name
        path.write_text(text, encoding="utf-8")
        return path

    def module(self, name: str, text: str) -> Path:
        path = self.root / "ftnb" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def replace(self, name: str, old: str, new: str) -> None:
        path = self.root / name
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    def update(self) -> None:
        """Export and derive everything."""
        for module in export_all(self.root):
            write(module, self.root)
        for lesson in lessons(self.root):
            write_derived(lesson)


def make_project(root: Path) -> Project:
    """Two lessons in step with their modules and notebooks, and this project's settings."""
    for folder in ("nbs", "ftnb", "tools", "tests"):
        (root / folder).mkdir()
    for name in ("pyproject.toml", "environment.yml", "constraints.txt"):
        shutil.copy(ROOT / name, root / name)
    project = Project(root)
    project.module("__init__.py", '"""A package."""\n')
    project.lesson("13_events.py", EVENTS)
    project.lesson("14_charts.py", CHARTS)
    project.update()
    return project
