# %% [markdown]
# # Recipes
#
# > Everything that defines a run, as data that can be checked before it starts, kept beside the model, and run again.
#
# At the end you can write a run down as a file, say what is wrong with a recipe before an hour is lost to it, change one setting from the command line, and tell what "the same recipe" promises: the same weights, bit for bit. Runs in about 30 s on a CPU.

# %%
#| default_exp recipe

# %%
#| export
import dataclasses
import math
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftnb.rules import RecipeError, Rule, check, did_you_mean, is_named
from ftnb.tasks import TASKS, task_class
from ftnb.toml import parse_value, toml_key, toml_value

# %%
import re

import matplotlib.pyplot as plt
import torch

from ftnb.strategies import strategy_from
from ftnb.train import Training

# %% [markdown]
# ## Why data and not a script
#
# A training script holds its numbers between its lines: change one, and what made last week's model is gone. A *recipe* is the part of the script that you would want to read, compare, send to a colleague and run again. It holds no behaviour at all, so it can be checked in a millisecond, without loading a model.
#
# Every setting has a rule: a kind (text, whole number, number), limits, and one sentence for people. The sentence is what the panel shows as a tooltip and what `ftnb recipe` prints beside the key.

# %%
rate = Rule(kind="number", help="peak learning rate", above=0, high=10)
rate.expects()

# %% [markdown]
# A check is strict about types, because the languages around us are not: in Python `True` is the integer 1, and `"3" * 2` is `"33"`. A value is right, or the message names the setting, what was expected, what came, and what to write instead.

# %%
def verdict(value: object) -> str:
    try:
        return f"becomes {check('lr', value, rate)!r}"
    except RecipeError as error:
        return str(error)

{repr(value): verdict(value) for value in (1e-4, 1, -1e-4, "1e-4", True, math.nan)}

# %%
assert verdict(1) == "becomes 1.0" and all("lr must be" in verdict(value) for value in (-1e-4, "1e-4", True, math.nan))

# %% [markdown]
# ## The recipe
#
# The settings stand in the order in which you would choose them: what to learn, from what, how much of the model to train, how fast, how long, and where. The object is frozen. A run keeps a reference to it, and nobody can change what the run was started with; a variation is a new recipe, made with `replace`.

# %%
#| export
def text(help: str, **limits: Any) -> dict[str, Rule]:
    """The rule of a text, as a dataclass field's metadata."""
    return {"rule": Rule(kind="text", help=help, **limits)}


def number(help: str, **limits: Any) -> dict[str, Rule]:
    """The rule of a number, as a dataclass field's metadata."""
    return {"rule": Rule(kind="number", help=help, **limits)}


def whole(help: str, *, low: int = 1, **limits: Any) -> dict[str, Rule]:
    """The rule of a whole number, at least 1 if nothing else is said, as a dataclass field's metadata."""
    return {"rule": Rule(kind="whole number", help=help, low=low, **limits)}

# %%
#| export
DATA = {"rule": Rule(kind="data", help="built-in data, a CSV/TSV/JSONL file, a folder, or a name on the Hub")}
COLUMNS = {"rule": Rule(kind="columns", help='role = "column", or = its place from 0 in a file without header')}
STRATEGIES = "full, head, top-k, layer-decay, lp-ft, gradual, surgical, bitfit, reinit, lora, dora or adapter"
STRATEGY = {"rule": Rule(kind="strategy", help=STRATEGIES)}
SCHEDULES = ("linear", "cosine", "constant")
AUGMENTATIONS = ("none", "shift", "flip", "strong")
BATCH_NORM = ("moving", "fixed")
TRUNK_CACHE = ("off", "memory", "disk", "memory-bf16", "disk-bf16")
BOX_FORMATS = ("xyxy", "xywh", "cxcywh", "xyxyn", "xywhn", "cxcywhn")
BOX_FORMAT = text("how boxes are written, where the data does not say it", choices=BOX_FORMATS, optional=True)
SEPARATOR = text("what stands between several labels in a cell", optional=True, example=";")
SECONDS = number("recordings are cut to so many seconds", above=0, optional=True)
TOKENS = whole("tokens in one micro-batch, in place of batch_size", optional=True, example=2048)
SNAPSHOTS = whole("steps between snapshots; off: by the clock", optional=True)
ROOM = number("room for snapshots in GB", above=0, optional=True)
OF_TASK: Any = None  # the default is the task's own
DEVICES = r"auto|cpu|mps|cuda(:\d+)?"

# %%
#| export
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that defines a run, as plain data; checked when it is made.

    Raises:
        RecipeError: naming every setting that is of a wrong type or impossible.
    """

    task: str = field(default="text-classification", metadata=text("what to learn", choices=tuple(TASKS)))
    data: Any = field(default=OF_TASK, metadata=DATA)
    model: Any = field(default=OF_TASK, metadata=text("built-in, torchvision's, a local folder, or a name on the Hub"))
    columns: dict[str, str | int] = field(default_factory=dict, metadata=COLUMNS)
    strategy: Any = field(default="full", metadata=STRATEGY)
    lr: float = field(default=OF_TASK, metadata=number("peak learning rate; BERT-base: 2e-5 to 5e-5", above=0, high=10))
    num_epochs: int = field(default=OF_TASK, metadata=whole("passes over the training data"))
    batch_size: int = field(default=OF_TASK, metadata=whole("examples in one micro-batch"))
    batch_tokens: int | None = field(default=None, metadata=TOKENS)
    accumulation: int = field(default=1, metadata=whole("micro-batches in one step"))
    max_length: int | None = field(default=None, metadata=whole("texts are cut to so many tokens", optional=True))
    label_separator: str | None = field(default=None, metadata=SEPARATOR)
    max_seconds: float | None = field(default=None, metadata=SECONDS)
    image_size: int | None = field(default=None, metadata=whole("side of the model's input in pixels", optional=True))
    augment: str = field(default="none", metadata=text("how pictures change in training", choices=AUGMENTATIONS))
    box_format: str | None = field(default=None, metadata=BOX_FORMAT)
    packing: str = field(default="off", metadata=text("several texts in one row of a batch", choices=("off", "on")))
    loss_on: str = field(default="answers", metadata=text("which tokens count", choices=("answers", "everything")))
    batch_norm: str = field(default="moving", metadata=text("BatchNorm in what trains", choices=BATCH_NORM))
    trunk_cache: str = field(default="off", metadata=text("compute frozen first layers once", choices=TRUNK_CACHE))
    trunk_cache_gb: float | None = field(default=None, metadata=number("the most it may hold", above=0, optional=True))
    weight_decay: float = field(default=0.01, metadata=number("AdamW's decoupled weight decay", low=0, high=10))
    max_grad_norm: float = field(default=1.0, metadata=number("gradients are clipped to this norm; inf: not", above=0))
    warmup: float = field(default=0.1, metadata=number("share of the steps in which the rate rises", low=0, high=1))
    schedule: str = field(default="linear", metadata=text("how the rate falls then", choices=SCHEDULES))
    eval_every: int | None = field(default=None, metadata=whole("steps between evaluations", optional=True))
    patience: int | None = field(default=None, metadata=whole("evaluations without progress to bear", optional=True))
    snapshot_every: int | None = field(default=None, metadata=SNAPSHOTS)
    keep_snapshots: int = field(default=2, metadata=whole("snapshots to keep for going on; 0 takes none", low=0))
    snapshot_gb: float | None = field(default=None, metadata=ROOM)
    seed: int = field(default=0, metadata=whole("decides order, new weights and dropout", low=0, high=2**32 - 1))
    device: str = field(default="auto", metadata=text("auto, cpu, mps, cuda, cuda:1 …", pattern=DEVICES))
    precision: str = field(default="auto", metadata=text("number format", choices=("auto", "fp32", "bf16", "fp16")))

    def __post_init__(self) -> None:
        problems = []
        for key in of_task():
            if getattr(self, key) is OF_TASK:
                object.__setattr__(self, key, task_default(key, self.task))
        for key, rule in rules().items():
            try:
                object.__setattr__(self, key, check(key, getattr(self, key), rule))
            except RecipeError as error:
                problems.append(str(error))
        refuse(problems + misplaced(self.to_dict()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and same_settings(self.to_dict(), other.to_dict())

    def __hash__(self) -> int:
        return hash((self.task, self.model, self.lr, self.num_epochs, self.seed))

    def to_dict(self) -> dict[str, Any]:
        """All settings by name, in order."""
        return {key: getattr(self, key) for key in rules()}

    def replace(self, **settings: Any) -> "Recipe":
        """A copy with some settings changed; unknown names are refused.

        With another task, what belonged to the old one only (its defaults, its own settings) is dropped.
        """
        return Recipe.from_dict({**(without_task(self) if "task" in settings else self.to_dict()), **settings})

    @staticmethod
    def from_dict(settings: Mapping[str, Any]) -> "Recipe":
        """Make a recipe from settings by name; unknown names are refused with the nearest known one."""
        return recipe_from(settings)

    def override(self, assignments: Iterable[str]) -> "Recipe":
        """A copy with settings written as on a command line: `lr=1e-4`, or `strategy.k=2` inside a table."""
        words = list(assignments)
        other_task = any(word.partition("=")[0].strip() == "task" for word in words)
        settings = without_task(self) if other_task else self.to_dict()
        for word in words:
            assign(settings, word)
        return recipe_from(settings)

    def code(self) -> str:
        """The equivalent line of code, with the settings that differ from their defaults."""
        return code_of(self)

    def to_toml(self, *, comments: bool = False) -> str:
        """All settings as TOML; `comments` puts beside each what it is.

        Raises:
            RecipeError: if the data is in memory, where no file can name it.
        """
        return write_toml(self, comments)

    @staticmethod
    def from_toml(text: str) -> "Recipe":
        """Read a recipe from TOML; settings left out keep their defaults.

        Raises:
            RecipeError: if the text is no TOML, or naming every unknown key and wrong value.
        """
        return read_toml(text)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the recipe to a file and return the path."""
        path = Path(path).expanduser()
        path.write_text(self.to_toml(), encoding="utf-8", newline="\n")
        return path

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Recipe":
        """Read a recipe from its file, or from the run folder that holds one.

        Raises:
            RecipeError: naming the file.
        """
        return read_file(Path(path).expanduser())

# %%
#| export
FIELDS = {f.name: f for f in dataclasses.fields(Recipe)}


def rules() -> dict[str, Rule]:
    """The rule of every setting, in order."""
    return {name: f.metadata["rule"] for name, f in FIELDS.items()}


def refuse(problems: list[str]) -> None:
    """Raise one RecipeError for a list of problems, if there are any."""
    if problems:
        lines = problems if len(problems) == 1 else [f"{len(problems)} problems:", *(f"- {p}" for p in problems)]
        raise RecipeError("\n".join(lines))

# %%
#| export
def same_settings(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two recipes say the same; data in memory is the same only if it is the same object."""
    rest = all(a[key] == b[key] for key in a if key != "data")
    left, right = a["data"], b["data"]
    return rest and (left is right or (is_named(left) and is_named(right) and left == right))

# %%
#| export
ELSEWHERE = {  # what the same setting is called in other trainers
    "learning_rate": "lr", "epochs": "num_epochs", "num_train_epochs": "num_epochs", "max_epochs": "num_epochs",
    "per_device_train_batch_size": "batch_size", "gradient_accumulation_steps": "accumulation",
    "gradient_clip_val": "max_grad_norm", "warmup_ratio": "warmup", "lr_scheduler_type": "schedule",
    "model_name_or_path": "model", "max_seq_length": "max_length", "eval_steps": "eval_every", "dataset": "data",
}  # fmt: skip


def recipe_from(settings: Mapping[str, Any]) -> Recipe:
    """Make a recipe from settings by name, with every problem in one error."""
    known = rules()
    problems = []
    for key in settings:
        if key not in known:
            near = f" Did you mean {ELSEWHERE[key]!r}?" if key in ELSEWHERE else did_you_mean(key, known)
            problems.append(f"unknown setting {key!r}.{near or ' Known: ' + ', '.join(known) + '.'}")
    for key, rule in known.items():
        try:
            check(key, settings.get(key, default_of(key, settings.get("task"))), rule)
        except RecipeError as error:
            problems.append(str(error))
    refuse(problems)
    return Recipe(**settings)


def default_of(key: str, task: Any = None) -> Any:
    """The default of one setting, for a task (without one, or with an unknown one, for the default task)."""
    return getattr(Recipe(task=task) if isinstance(task, str) and task in TASKS else Recipe(), key)


def of_task() -> list[str]:
    """The settings whose default is the task's."""
    return [key for key, f in FIELDS.items() if f.default is OF_TASK and hasattr(TASKS["text-classification"], key)]


def task_default(key: str, task: Any) -> Any:
    """A task's own default, for example its built-in "data"; that of the default task if there is no such task."""
    known = isinstance(task, str) and task in TASKS
    return getattr(TASKS[task if known else "text-classification"], key)


OPTIONS = tuple(dict.fromkeys(option for entry in TASKS.values() for option in entry.own_settings))


def misplaced(settings: Mapping[str, Any]) -> list[str]:
    """A problem for each setting that belongs to another task only and is not at its default."""
    entry = TASKS.get(settings["task"])
    foreign = [key for key in OPTIONS if entry is not None and key not in entry.own_settings]
    return [
        f"{key} is no setting of {settings['task']}, which has {', '.join(entry.own_settings)}; leave it out."
        for key in foreign
        if entry is not None and settings[key] != FIELDS[key].default
    ]


def without_task(recipe: Recipe) -> dict[str, Any]:
    """A recipe's settings without what belongs to its task: its options, its defaults, and its built-in columns."""
    kept = {key: value for key, value in recipe.to_dict().items() if key not in OPTIONS}
    plain = [key for key in of_task() if isinstance(kept[key], str | int | float)]  # not a person's data in memory
    own = [key for key in plain if kept[key] == task_default(key, recipe.task)]
    return {key: value for key, value in kept.items() if key not in (*own, *(["columns"] if "data" in own else []))}

# %% [markdown]
# A correct recipe, and one written in a hurry. Every mistake is reported at once, before any data is read:

# %%
recipe = Recipe(lr=3e-4, strategy={"name": "top-k", "k": 1}, num_epochs=2)
recipe.replace(seed=1)

# %%
try:
    Recipe.from_dict({"learning_rate": 1e-4, "num_epoch": 3, "batch_size": "16", "warmup": 10, "precision": "fp8"})
except RecipeError as error:
    complaint = str(error)
print(complaint)

# %%
assert all(key in complaint for key in ("'lr'", "'num_epochs'", "batch_size", "warmup", "precision"))

# %% [markdown]
# ## The file
#
# TOML has exactly the types a recipe needs, one way to write each, and a reader in Python's standard library. It has no `null`, so a setting that is off is left out. Python comes with no writer; for text, numbers and tables of them, one is forty lines long (`ftnb/toml.py`).

# %%
#| export
def write_toml(recipe: Recipe, comments: bool) -> str:
    """A recipe as TOML: single values first, then one table for each setting that holds several."""
    if not is_named(recipe.data):
        kind = type(recipe.data).__name__
        raise RecipeError(
            f"data is a {kind} in memory, and a file can only name data that lies in files. "
            "Write it to a CSV or JSONL file and give its path."
        )
    values, tables = ["# A recipe of ftnb. Run it with: ftnb run recipe.toml"], []
    for key, rule in rules().items():
        value = getattr(recipe, key)
        note = f"  # {rule.help}" if comments else ""
        if isinstance(value, dict) and value:
            tables += ["", f"[{key}]{note}", *(f"{toml_key(k)} = {toml_value(v)}" for k, v in value.items())]
        elif value not in (None, {}):
            values.append(f"{key} = {toml_value(value)}{note}")
        elif comments and value is None:
            values.append(f"# {key} = {toml_value(rule.choices[0] if rule.choices else rule.example)}{note}; off")
    return "\n".join([*values, *tables]) + "\n"

# %%
#| export
def read_toml(text: str) -> Recipe:
    """Read a recipe from TOML."""
    try:
        settings = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of more digits than Python reads
        raise RecipeError(f"this is no TOML: {error}. Text needs quotes; a line reads: lr = 1e-4") from None
    return recipe_from(settings)


def read_file(path: Path) -> Recipe:
    """Read a recipe from its file, or from a run folder."""
    path = path / "recipe.toml" if path.is_dir() else path
    try:
        return read_toml(path.read_text(encoding="utf-8-sig"))  # Windows' editors put a mark before the text
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is not text in UTF-8, so it is no recipe.") from None
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None

# %%
print(recipe.to_toml())

# %% [markdown]
# Reading it back gives an equal recipe, whatever the texts hold:

# %%
odd = recipe.replace(data='C:\\new\\"reviews".csv', columns={"text": "Ça va ?", "label": 1}, max_grad_norm=math.inf)
Recipe.from_toml(odd.to_toml()) == odd

# %%
assert Recipe.from_toml(odd.to_toml()) == odd and Recipe.from_toml("") == Recipe()

# %% [markdown]
# ## The command line and the line of code
#
# A sweep changes one setting at a time: `ftnb run recipe.toml --set lr=1e-4 --set strategy.k=2`. The right-hand side is read as TOML; what is no TOML is text, so that nobody must quote quotes. And since anything that a panel or a file does must be possible in a cell, a recipe can say itself as one line of Python.

# %%
#| export
def assign(settings: dict[str, Any], assignment: str) -> None:
    """Put one `key=value` or `table.key=value` into a dictionary of settings.

    Raises:
        RecipeError: if there is no '=', or the key reaches into something that is no table.
    """
    path, equals, word = assignment.partition("=")
    key, dot, inner = path.strip().partition(".")
    if not equals or not key or (dot and not inner):
        raise RecipeError(f"--set needs key=value, such as lr=1e-4 or strategy.k=2; got {assignment!r}.")
    value = read_word(word.strip(), rules().get(key), inner)
    if dot:
        table = {"name": settings[key]} if key == "strategy" and isinstance(settings[key], str) else settings.get(key)
        if not isinstance(table, Mapping):
            raise RecipeError(f"{key} is no table, so {path.strip()!r} names nothing. Set {key} itself.")
        value = {**table, inner: value}
    settings[key] = value


def read_word(word: str, rule: Rule | None, inner: str = "") -> Any:
    """Read a value as the setting wants it: a folder called 2026 is text, and `none` switches an optional one off."""
    value = parse_value(word)
    if rule is not None and not inner and rule.kind in ("text", "data") and not isinstance(value, str | dict):
        return word
    return None if rule is not None and rule.optional and word.lower() == "none" else value

# %%
#| export
def code_of(recipe: Recipe) -> str:
    """The line of Python that starts the same run."""
    words = []
    for key, value in recipe.to_dict().items():
        if key == "data" and not is_named(value):
            words.append("data=data")  # an object has no spelling; the reader has it under some name
        elif value != default_of(key, recipe.task if key != "task" else None):
            words.append(f'{key}=float("inf")' if value == math.inf else f"{key}={value!r}")
    return f"finetune({', '.join(words)})"

# %%
changed = recipe.override(["lr=1e-4", "strategy.k=2", "data=reviews.tsv"])
changed.code()

# %%
assert changed == Recipe(lr=1e-4, strategy={"name": "top-k", "k": 2}, num_epochs=2, data="reviews.tsv")

# %% [markdown]
# ## What a recipe becomes
#
# A recipe names things; somebody must fetch them. The task loads data and model and checks them against each other, so that a missing column is found now and not after the first epoch. What remains are the arguments of the training loop.

# %%
#| export
def prepare_task(recipe: Recipe) -> Any:
    """Load what the recipe names, check it, and return the task object that holds it.

    Raises:
        ValueError: a data or model error of the task, naming what was wrong, before any training.
    """
    if isinstance(recipe.data, str) and recipe.data.startswith(IN_MEMORY):
        kind = recipe.data.removeprefix(IN_MEMORY)
        raise RecipeError(f"the data was a {kind} in memory and is gone. Pass it again: recipe.replace(data=...).")
    prepare = task_class(recipe.task).prepare
    options = {name: getattr(recipe, name) for name in TASKS[recipe.task].options}
    return prepare(recipe.data, recipe.model, columns=recipe.columns or None, seed=recipe.seed, **options)


def make_learner(task: Any, recipe: Recipe) -> Any:
    """The prepared task's model, data, loss and metrics for a training, in the batches that the recipe wants.

    Raises:
        ValueError: if the longest text does not fit into `batch_tokens`.
    """
    options = {name: getattr(recipe, name) for name in TASKS[recipe.task].learner_options}
    return task.learner(recipe.batch_size, seed=recipe.seed, **options)


IN_MEMORY = "in memory: "  # stands in a run's file for data that no file can name


def without_memory(recipe: Recipe) -> Recipe:
    """The recipe as a file can say it: data in memory is replaced by a note of what it was."""
    return recipe if is_named(recipe.data) else recipe.replace(data=IN_MEMORY + type(recipe.data).__name__)

# %%
#| export
def training_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings that go to the training loop, by the names of its arguments."""
    names = (
        "lr", "num_epochs", "accumulation", "max_grad_norm", "weight_decay", "warmup", "schedule",
        "eval_every", "patience", "batch_norm", "seed", "device", "precision",
    )  # fmt: skip
    settings = {name: getattr(recipe, name) for name in names}
    settings = {name: None if value == math.inf else value for name, value in settings.items()}  # inf: no clipping
    if recipe.trunk_cache != "off":
        from ftnb.trunk_cache import named_cache  # not at the top: a recipe alone needs no torch

        settings["cache"] = named_cache(recipe.trunk_cache, recipe.trunk_cache_gb)
    return settings

# %%
task = prepare_task(recipe)
task.name, task.labels, training_settings(recipe)["lr"]

# %%
assert set(training_settings(recipe)) < set(recipe.to_dict())

# %% [markdown]
# ## The experiment: what "the same recipe" promises
#
# **Claim.** A recipe, written to a file, read back and run again, gives the same weights, bit for bit, after every single step, whatever else was computed in between. A changed seed does not, nor does a learning rate one per cent higher. The claim would be refuted by one differing bit in any of the repetitions.

# %%
def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

def weights_by_step(recipe: Recipe) -> torch.Tensor:
    task = prepare_task(recipe)
    training = Training(make_learner(task, recipe), strategy_from(recipe.strategy), **training_settings(recipe))
    weights = [flat(task.model)]
    while training.step() is not None:
        weights.append(flat(task.model))
    return torch.stack(weights)  # (steps + 1, parameters)

# %%
torch.set_num_threads(1)
base = Recipe(num_epochs=1, eval_every=1000, device="cpu")
runs = {seed: weights_by_step(base.replace(seed=seed)) for seed in range(3)}
torch.randn(1000)  # somebody else draws random numbers in between
again = {seed: weights_by_step(Recipe.from_toml(base.replace(seed=seed).to_toml())) for seed in runs}
faster = weights_by_step(base.replace(lr=1.01 * base.lr))
{seed: torch.equal(runs[seed], again[seed]) for seed in runs}

# %%
assert all(torch.equal(runs[seed], again[seed]) for seed in runs)
assert not torch.equal(runs[0], faster) and not torch.equal(runs[0], runs[1])

# %% [markdown]
# How far apart are two runs that do differ? We measure the distance between them against the distance that the first has travelled from its start: $\lVert\theta_t-\theta'_t\rVert \,/\, \lVert\theta_t-\theta_0\rVert$. At $\sqrt2$ the two have gone as far in directions that have nothing in common.

# %%
def apart(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    moved = (one - one[0]).norm(dim=1)
    return ((one - one[0]) - (other - other[0])).norm(dim=1)[1:] / moved[1:]

distances = {"another seed": apart(runs[0], runs[1]), "1 % higher rate": apart(runs[0], faster), "the same recipe": apart(runs[0], again[0])}
{name: round(distance[-1].item(), 4) for name, distance in distances.items()}

# %%
fig, ax = plt.subplots(figsize=(6.5, 3), dpi=80)
steps = range(1, len(runs[0]))
for (name, distance), color in zip(distances.items(), ("C3", "C1", "C0"), strict=True):
    ax.plot(steps, distance, color=color, marker="o", markersize=3)
    ax.annotate(name, (steps[-1], distance[-1]), xytext=(6, 0), textcoords="offset points", va="center", color=color)
ax.set_yscale("symlog", linthresh=1e-3)
ax.set(ylim=(-2e-4, 5), xlabel="step", ylabel="distance / distance travelled", title="Two runs, how far apart")
ax.spines[["top", "right"]].set_visible(False)
fig.subplots_adjust(right=0.78, bottom=0.17, left=0.13)
plt.show()

# %%
assert distances["the same recipe"].max() == 0 and (distances["another seed"] > distances["1 % higher rate"]).all()

# %% [markdown]
# The promise has a scope: the same machine, the same versions, and a CPU or deterministic kernels, with the same number of threads. We took one thread above. With several, a long sum is split among them, and on a busy machine the split may change; a sum in another order rounds differently, and that is enough for two runs to part. While this lesson was written on a busy machine, two of about a dozen repetitions with two threads did. A recipe repeats a run exactly within this scope, and *statistically* elsewhere; for the latter, run several seeds.

# %% [markdown]
# ## The story: 1e-5 is a word
#
# Again and again somebody's training dies with `'<=' not supported between instances of 'float' and 'str'`, deep inside the optimizer, although the file plainly says `learning_rate: 1e-5` (huggingface/trl#1450, hiyouga/LlamaFactory#4149, h2oai/h2o-llmstudio#699, salesforce/ALBEF#128, and many more). The files are YAML. YAML 1.1, which the usual Python reader implements, wants a dot in a number with an exponent, so `1e-5` is text to it. This is its rule, and what it makes of three ways to write the same number:

# %%
YAML_FLOAT = r"[-+]?([0-9][0-9_]*)?\.[0-9_]*([eE][-+][0-9]+)?"  # YAML 1.1, base 10
{word: "number" if re.fullmatch(YAML_FLOAT, word) else "text" for word in ("0.00001", "1.0e-5", "1e-5")}

# %% [markdown]
# The other classic is a key that nobody reads. A mistyped or misplaced setting is dropped, the run trains with the default, and "the first sign of trouble was the loss curve hours later" (unslothai/unsloth#10452, fixed in 2026). Here, both are one line each, before anything is loaded:

# %%
stories = []
for text in ("lr = 1e-5", 'lr = "1e-5"', "lr = 1e-5\nwarm_up = 0.1"):
    try:
        stories.append(f"lr is {Recipe.from_toml(text).lr}")
    except RecipeError as error:
        stories.append(str(error))
stories

# %%
assert not re.fullmatch(YAML_FLOAT, "1e-5") and Recipe.from_toml("lr = 1e-5").lr == 1e-5
assert "without quotes" in stories[1] and "'warmup'" in stories[2]

# %% [markdown]
# ## Exercises
#
# **1 (easy).** Write `differences`: which settings differ between two recipes, as `{name: (here, there)}`. It answers "what did I change since Tuesday?".

# %% tags=["exercise"]
def differences(here: Recipe, there: Recipe) -> dict[str, tuple]:
    ...  # your code here

# %% tags=["solution"]
def differences(here: Recipe, there: Recipe) -> dict[str, tuple]:
    mine, theirs = here.to_dict(), there.to_dict()
    return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}

# %%
assert differences(Recipe(), Recipe(lr=1e-3, seed=4)) == {"lr": (Recipe().lr, 1e-3), "seed": (0, 4)}

# %% [markdown]
# **2 (medium).** Write `grid`: all combinations of some settings, as recipes, the last setting changing fastest. Let `itertools.product` do the counting.

# %% tags=["exercise"]
def grid(base: Recipe, **values: list) -> list[Recipe]:
    ...  # your code here

# %% tags=["solution"]
def grid(base: Recipe, **values: list) -> list[Recipe]:
    from itertools import product

    return [base.replace(**dict(zip(values, combination, strict=True))) for combination in product(*values.values())]

# %%
sweep = grid(Recipe(num_epochs=1), lr=[1e-4, 1e-3], seed=[0, 1, 2])
assert [(r.lr, r.seed) for r in sweep[:4]] == [(1e-4, 0), (1e-4, 1), (1e-4, 2), (1e-3, 0)] and len(sweep) == 6

# %% [markdown]
# ## Summary
# - A recipe is data: it can be checked at once, compared, sent, and run again. Every mistake in it is named before anything is loaded.
# - A file holds all settings, so that a later change of a default changes nothing; a line of code holds those that differ.
# - The same recipe gives the same weights, bit for bit, within its scope; one per cent more learning rate does not.
#
# **What next:** `ftnb recipe > recipe.toml` prints a recipe to start from, and `ftnb run recipe.toml --set lr=1e-4` runs it. Lesson 51 puts a training into the background, lesson 53 joins both. **Sources:** TOML 1.0 (toml.io); YAML 1.1, "Floating-Point Language-Independent Type"; Python's `tomllib` and `dataclasses`; the reproducibility notes of PyTorch.
