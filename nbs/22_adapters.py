# %% [markdown]
# # Adapters
#
# > Train a few added weights beside frozen ones, then fold them in: LoRA, DoRA and any such method of peft.
#
# At the end you can say what LoRA computes and how many weights it trains, use it as a strategy like every other, keep the adapter alone or a plain merged model, and tell from measurements what it costs and what it spares. Runs in about 50 s on a CPU.

# %%
#| default_exp adapters

# %%
#| export
import copy
import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from transformers.pytorch_utils import Conv1D

from ftnb.adapter_layers import adapter_layers, remove_adapters, without_adapters
from ftnb.layers import LayerGroup, layer_groups
from ftnb.peft_methods import config_as_data, config_from_data, refuse
from ftnb.step import Phase
from ftnb.strategies import StrategyError, as_data, build_phase, finite_number, nearest, positive, whole_number

# %%
import math
import tempfile

import matplotlib.pyplot as plt
from peft import IA3Config, LoraConfig
from peft.tuners.lora import Linear as PeftLinear
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from ftnb.adapter_layers import adapter_parameters
from ftnb.builtin.reviews import labelled_reviews, unlabelled_reviews
from ftnb.data import Batches
from ftnb.layers import what_is_training
from ftnb.metrics import classification_metrics
from ftnb.pretrained import Pretrained, find_model, load_pretrained, quiet_transformers
from ftnb.step import Learner
from ftnb.strategies import Full, Head
from ftnb.train import Training

# %% [markdown]
# ## A change of low rank
#
# Fine-tuning adds a change $\Delta W$ to every weight matrix $W \in \mathbb{R}^{d_\text{out} \times d_\text{in}}$. LoRA (Hu et al., 2021) keeps $W$ frozen and says that the change is a product of two thin matrices, scaled by a number that is not trained:
#
# $$h = W x + b + \frac{\alpha}{r}\, B A\, x, \qquad A \in \mathbb{R}^{r \times d_\text{in}}, \quad B \in \mathbb{R}^{d_\text{out} \times r}.$$
#
# $A$ starts from random numbers and $B$ at zero, so $\Delta W = 0$: the first output is the pretrained model's, and training starts from there. In a few lines:

# %%
class LoRALinear(nn.Module):
    def __init__(self, base: nn.Linear, rank: int = 8, alpha: float = 16.0) -> None:
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), alpha / rank
        self.A = nn.Parameter(torch.empty(rank, base.in_features))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * (x @ self.A.T) @ self.B.T  # never the full (out, in) matrix

# %%
torch.manual_seed(0)
by_hand, x = LoRALinear(nn.Linear(128, 256)), torch.randn(4, 128)
torch.equal(by_hand(x), by_hand.base(x))

# %%
assert torch.equal(by_hand(x), by_hand.base(x))

# %% [markdown]
# [peft](https://huggingface.co/docs/peft) has this layer and some thirty others, tested on many models; from here on we use it. With the same $A$ and $B$ it computes the same.

# %%
theirs = PeftLinear(by_hand.base, "default", config=LoraConfig(r=8, lora_alpha=16), r=8, lora_alpha=16)
with torch.no_grad():
    by_hand.B.normal_()
    theirs.lora_A["default"].weight.copy_(by_hand.A)
    theirs.lora_B["default"].weight.copy_(by_hand.B)
(theirs(x) - by_hand(x)).abs().max().item()

# %%
torch.testing.assert_close(theirs(x), by_hand(x), atol=1e-6, rtol=1e-6)

# %% [markdown]
# How many weights? $W$ has $d_\text{out}\, d_\text{in}$, the change $r\,(d_\text{out} + d_\text{in})$: the share that trains is $r\,(1/d_\text{in} + 1/d_\text{out})$. It shrinks as models grow, which is the point: the gradients and the two moments of Adam are kept for this share only.

# %%
def share(rank: int, inputs: int, outputs: int) -> float:
    return rank * (inputs + outputs) / (inputs * outputs)

{f"{i} × {o}": f"{share(8, i, o):.1%}" for i, o in ((128, 256), (768, 768), (4096, 4096))}

# %%
assert share(8, 128, 256) == (by_hand.A.numel() + by_hand.B.numel()) / by_hand.base.weight.numel()

# %% [markdown]
# ## Which layers
#
# The paper adapted the attention's query and value projections. Later work found it better to adapt every matrix of the blocks, at a lower rank if need be (Dettmers et al., 2023), so that is the default here, for any backbone: linear and convolutional layers inside the blocks. Not the head, which is new and trains in full, nor a layer whose weights someone else multiplies with directly (torch's own multi-head attention does): an adapter around it would never be asked.

# %%
#| export
_FUSED = ("MultiheadAttention", "TransformerEncoderLayer", "ShiftedWindowAttention", "ShiftedWindowAttentionV2")


def _within(path: str, outer: list[str]) -> bool:
    return any(path.startswith(f"{name}.") for name in outer)


def _adaptable(model: nn.Module, new_parameters: frozenset[str]) -> dict[str, nn.Module]:
    """The linear and convolutional layers inside the blocks, by path, that an adapter can be put around."""
    groups = layer_groups(model, new_parameters)
    plain = without_adapters(model)
    inside = {model.get_parameter(n) for g in groups if g.name.startswith("block") for n in g.parameters}
    fused = [name for name, module in plain.named_modules() if type(module).__name__ in _FUSED]
    return {
        name: module
        for name, module in plain.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | Conv1D)
        and getattr(module, "groups", 1) == 1
        and not is_parametrized(module)
        and not _within(name, fused)
        and inside.issuperset(module.parameters())
    }


def target_layers(model: nn.Module, targets: str = "all", new_parameters: frozenset[str] = frozenset()) -> list[str]:
    """Paths of the layers that adapters are put around.

    Args:
        model: any model that `layer_groups` can cut.
        targets: "all" (every linear and convolutional layer inside the blocks), "attention" (the linear ones of the
            attention), or names of layers with commas between, such as "query, value".
        new_parameters: as for `layer_groups`.

    Raises:
        StrategyError: if there is no such layer. Left out are grouped convolutions and layers whose weights another
            module computes with directly (torch's own multi-head attention), where an adapter would have no effect.
    """
    known = _adaptable(model, new_parameters)
    words = targets.replace(",", " ").split()
    if words == ["attention"]:
        around = [name for name, module in model.named_modules() if "Attention" in type(module).__name__]
        chosen = [name for name, module in known.items() if _within(name, around) and not hasattr(module, "stride")]
    else:
        chosen = [name for name in known if words == ["all"] or any(f".{name}".endswith(f".{word}") for word in words)]
        ends = list(dict.fromkeys(name.rpartition(".")[2] for name in known))
        for word in words if words != ["all"] else ():
            if not any(f".{name}".endswith(f".{word}") for name in known):
                raise StrategyError(
                    f"targets names {word!r}, but no block of {type(model).__name__} has a linear or convolutional "
                    f"layer of that name. {nearest(word, ends)} Or 'all', or 'attention'."
                )
    if not chosen:
        raise StrategyError(f"no layer in the blocks of {type(model).__name__} fits targets={targets!r}. Try 'all'.")
    return chosen

# %%
LABELS = ["negative", "positive"]
pretrained = load_pretrained("builtin:bert-reviews", "text-classification", LABELS)
model, new, tokenizer = pretrained.model, pretrained.new_parameters, pretrained.processor
target_layers(model, "attention", new)

# %%
vision = load_pretrained("builtin:resnet-glyphs", "image-classification", LABELS)
len(target_layers(model, "all", new)), len(target_layers(vision.model, "all", vision.new_parameters))

# %% [markdown]
# ## Put in, fold in, take out
#
# An adapter takes a layer's place in the model and keeps the layer inside. Class, forward pass and head of the model stay what they are, so the task, its loss and its predictions notice nothing. It can leave in two ways. Folded in, $W \leftarrow W + \frac{\alpha}{r} B A$, the model has its original modules and names again, and loads without peft. Taken out, it is bit for bit what it was before.

# %%
#| export
def merge(model: nn.Module) -> None:
    """Fold all adapters into the weights; modules and names are then those of the original model."""
    with torch.no_grad():
        for layer in adapter_layers(model).values():
            layer.merge()
    remove_adapters(model)


def undo(model: nn.Module) -> None:
    """Take all adapters out; the backbone is bit for bit what it was before."""
    remove_adapters(model)

# %% [markdown]
# A run writes its best model to the disk *while* it trains ([lesson 52](52_background.ipynb)). For that moment the adapters are folded in and come out again. Subtracting what was added would not do: $(W + \Delta) - \Delta$ is not $W$ in floating point, and a backbone that drifts with every saving is not frozen. So the weights are copied first and put back.

# %%
#| export
@contextmanager
def merged(model: nn.Module) -> Iterator[nn.Module]:
    """A plain model inside the `with` block, with the adapters folded in; afterwards everything is as it was before.

    Weights come back bit for bit: the adapted layers are copied to main memory meanwhile, since subtracting what was
    added would leave rounding errors. Without adapters it does nothing.
    """
    layers = adapter_layers(model)
    kept = [(p, p.detach().to("cpu", copy=True)) for m in layers.values() for p in m.base_layer.parameters()]
    notes = {name: vars(model)[name] for name in ("peft_config", "adapter_settings") if name in vars(model)}
    try:
        with torch.no_grad():
            for layer in layers.values():
                layer.merge()
        remove_adapters(model)
        yield model
    finally:
        with torch.no_grad(), _without_warnings():  # "unmerging may be inaccurate": the copies below are exact
            for name, layer in layers.items():
                model.set_submodule(name, layer)
                layer.unmerge()
            for parameter, value in kept:
                parameter.copy_(value)
        for name, note in notes.items():
            setattr(model, name, note)

# %%
#| export
@contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def inject(model: nn.Module, config: Any, new_parameters: frozenset[str] = frozenset()) -> None:
    """Put adapters into a model, in place: its class, its forward pass and its head stay what they are.

    Which parameters require a gradient stays as it was; that is a phase's business. Doing it again with an equal config
    changes nothing.

    Args:
        model: any model that `layer_groups` can cut.
        config: a `peft.PeftConfig`; without `target_modules` it is for all layers of `target_layers`.
        new_parameters: as for `layer_groups`.

    Raises:
        StrategyError: if the method cannot be put into a model, does not fit this one, or another one is in it already.
    """
    settings = config_as_data(config)
    if adapter_layers(model):
        if vars(model).get("adapter_settings") == settings:
            return
        raise StrategyError("the model has other adapters already. Call merge(model) or undo(model) first.")
    refuse(config)
    config = copy.deepcopy(config)  # peft writes into it
    if settings["peft_type"] != "LN_TUNING" and getattr(config, "target_modules", "") is None:
        config.target_modules = target_layers(model, "all", new_parameters)
    if getattr(config, "feedforward_modules", "") is None:  # of IA3
        config.feedforward_modules = []
    flags = {p: p.requires_grad for p in model.parameters()}
    heads = [group for group in layer_groups(model, new_parameters) if group.name == "head"]
    head = {model.get_parameter(name) for group in heads for name in group.parameters}
    try:
        with _without_warnings():  # such as how a layer stores its matrix, which peft then does right
            import_module("peft").inject_adapter_in_model(config, model)
        _check_injected(model, head)
    except Exception as error:  # peft's methods complain in many ways
        remove_adapters(model)
        if isinstance(error, StrategyError):
            raise
        raise StrategyError(f"{settings['peft_type']} does not fit {type(model).__name__}: {error}") from error
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
    model.adapter_settings = settings  # type: ignore[assignment]  # a note, not a module


def _check_injected(model: nn.Module, head: set[nn.Parameter]) -> None:
    layers = adapter_layers(model)
    fused = [name for name, module in model.named_modules() if type(module).__name__ in _FUSED]
    for name, layer in layers.items():
        if not head.isdisjoint(layer.base_layer.parameters()):
            raise StrategyError(f"{name} belongs to the head, which trains by itself. Name layers of the backbone.")
        if type(layer.base_layer).__name__ in _FUSED or _within(name, fused):
            raise StrategyError(f"an adapter at {name} would have no effect: its weights are used without it.")
    if not layers:
        raise StrategyError(f"nothing in {type(model).__name__} fits target_modules.")
    with merged(model):  # a method that cannot do this would leave models that only peft can load
        pass

# %%
batch = dict(tokenizer(["The food was lovely.", "A dull film."], padding=True, return_tensors="pt"))
before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
pretrained_logits = model(**batch).logits
inject(model, LoraConfig(r=8, lora_alpha=16), new)
type(model.bert.encoder.layer[0].attention.self.query), torch.equal(model(**batch).logits, pretrained_logits)

# %% [markdown]
# We give $B$ some weights, as a training would. Merged and unmerged must agree, and taking out must leave no trace.

# %%
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.05)
    adapted_logits = model(**batch).logits
    with merged(model):
        merged_logits, plain_names = model(**batch).logits, list(model.state_dict())
(adapted_logits - pretrained_logits).abs().max().item(), (merged_logits - adapted_logits).abs().max().item()

# %%
assert (merged_logits - adapted_logits).abs().max() <= 1e-5 < (adapted_logits - pretrained_logits).abs().max()
assert plain_names == list(before) and adapter_layers(model)
undo(model)
assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

# %% [markdown]
# And the drift that is avoided, by adding and subtracting in place as many times as a run might save:

# %%
weight = by_hand.base.weight.detach().clone()
change = by_hand.scale * (by_hand.B @ by_hand.A).detach()
for _ in range(20):
    weight += change
    weight -= change
(weight != by_hand.base.weight).float().mean().item()

# %%
assert not torch.equal(weight, by_hand.base.weight)

# %% [markdown]
# ## A strategy like the others
#
# The other strategies choose among the parameters there are. This one first puts some in, then it is a rule like theirs: layer group "adapters" at one multiple of the rate, head at another, everything else frozen and in `eval()`: BatchNorm statistics stand still, and there is no dropout but the head's and the adapters' own.

# %%
#| export
def _phase(name: str, model: nn.Module, new_parameters: frozenset[str], adapter_lr: float, head_lr: float) -> Phase:
    """Adapters and head train, each at its own rate; everything else is frozen."""

    def rule(groups: list[LayerGroup]) -> list[float]:
        return [{"adapters": adapter_lr, "head": head_lr}.get(group.name, 0.0) for group in groups]

    return build_phase(name, 1.0, model, new_parameters, rule)

# %% [markdown]
# Adapters need a higher rate than full fine-tuning, by about ten: $B$ starts at zero, and what moves the weights is the product. So `adapter_lr=10` multiplies the recipe's rate, and one recipe's `lr` suits both. The head keeps the rate that it has under the strategy "full".

# %%
#| export
ADAPTER_LR = {"help": "times the learning rate, for the adapters"}
HEAD_LR = {"help": "times the learning rate, for the head"}


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters and the head train; the backbone is frozen.

    Source: Hu et al. (2021), "LoRA: Low-Rank Adaptation of Large Language Models".
    """

    name: ClassVar[str] = "lora"
    rank: int = field(default=8, metadata={"help": "rank of the change: more can learn more and costs more"})
    alpha: float = field(default=16.0, metadata={"help": "the change is scaled by alpha / rank"})
    dropout: float = field(default=0.0, metadata={"help": "dropout of what goes into the adapters"})
    targets: str = field(default="all", metadata={"help": "all, attention, or names of layers: query, value"})
    adapter_lr: float = field(default=10.0, metadata=ADAPTER_LR)
    head_lr: float = field(default=1.0, metadata=HEAD_LR)

    def __post_init__(self) -> None:
        whole_number(self, "rank")
        targets: Any = self.targets  # from a recipe it may be anything
        if not isinstance(targets, str) or not targets.replace(",", " ").split():
            raise StrategyError(f"targets must be 'all', 'attention' or names such as 'query, value', got {targets!r}.")
        positive(self, "alpha", "adapter_lr", "head_lr")
        finite_number(self, "dropout")
        if not 0 <= self.dropout < 1:
            raise StrategyError(f"dropout must be at least 0 and below 1, got {self.dropout}.")

    def peft_config(self, model: nn.Module, new_parameters: frozenset[str] = frozenset()) -> Any:
        """The `peft.LoraConfig` for a model.

        Raises:
            StrategyError: if the model has no such layers.
        """
        return import_module("peft").LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, use_dora=self.name == "dora",
            target_modules=target_layers(model, self.targets, new_parameters),
        )  # fmt: skip

    def phases(self, model: nn.Module, new_parameters: frozenset[str] = frozenset()) -> list[Phase]:
        """Put the adapters into the model; one phase that trains them and the head.

        Raises:
            StrategyError: if the model has no such layers, or other adapters already.
        """
        inject(model, self.peft_config(model, new_parameters), new_parameters)
        return [_phase(self.name, model, new_parameters, self.adapter_lr, self.head_lr)]

    def to_dict(self) -> dict[str, Any]:
        """The strategy as data, for a recipe."""
        return as_data(self)

# %%
batch["labels"] = torch.tensor([1, 0])
table = what_is_training(model, batch, strategy=LoRA(), lr=5e-4, new_parameters=new)
table

# %% [markdown]
# Thirteen of the 26 adapter tensors did not move, and the table calls it a surprise. It is right to: these are the $A$s. With $g$ the gradient that arrives at $h$, $\partial L / \partial A = \frac{\alpha}{r} B^\top g\, x^\top$, which is zero while $B$ is. From the second step on they move.

# %%
rows = {row.name: row for row in table.rows}
assert (rows["adapters"].moved, rows["adapters"].tensors, rows["head"].moved) == (13, 26, 2)
assert all(row.moved == 0 and row.mode == "eval" for name, row in rows.items() if name not in ("adapters", "head"))
assert not adapter_layers(model)  # looking left nothing behind

# %% [markdown]
# ## DoRA, and everything else that peft has
#
# DoRA (Liu et al., 2024) splits a weight into the lengths of its rows and their directions. LoRA changes the direction; the lengths $m \in \mathbb{R}^{d_\text{out}}$ are trained for themselves, from those of $W$:
#
# $$W' = m \odot \frac{W + \frac{\alpha}{r} B A}{\lVert W + \frac{\alpha}{r} B A \rVert_\text{row}}, \qquad m_0 = \lVert W \rVert_\text{row}.$$
#
# It costs $d_\text{out}$ more weights a layer and some time, since the norms are computed anew in each step, and folds in just as well.

# %%
#| export
@dataclass(frozen=True)
class DoRA(LoRA):
    """LoRA that changes a weight's direction, beside trained lengths of its rows.

    Source: Liu et al. (2024), "DoRA: Weight-Decomposed Low-Rank Adaptation".
    """

    name: ClassVar[str] = "dora"

# %%
DoRA().phases(model, new)
magnitudes = sum(p.numel() for n, p in model.named_parameters() if "magnitude" in n)
largest = (model(**batch).logits - pretrained_logits).abs().max().item()
added = sum(p.numel() for p in adapter_parameters(model))
undo(model)
added, magnitudes, largest

# %%
assert largest < 1e-5

# %% [markdown]
# Any other method of peft that adds weights to layers goes through `Adapter`, by peft's own config. (IA)³ for example (Liu et al., 2022) only rescales what layers put out. What does not work is refused before training: prompts (they add inputs, not weights), AdaLoRA (it must be told after each step which ranks to drop), VeRA (its layers share weights that lie outside of them), and LoRA's starts that rewrite the pretrained weights.

# %%
#| export
@dataclass(frozen=True)
class Adapter:
    """Any method of peft that adds weights to layers, by its own config; the head trains, the backbone is frozen.

    Args:
        config: a `peft.PeftConfig`, or what it says as data: `{"peft_type": "IA3", "target_modules": ["key"]}`.
            Without `target_modules` it is for every linear and convolutional layer inside the blocks.
    """

    name: ClassVar[str] = "adapter"
    config: Any = field(metadata={"help": "a peft config, or its settings with peft_type"})
    adapter_lr: float = field(default=10.0, metadata=ADAPTER_LR)
    head_lr: float = field(default=1.0, metadata=HEAD_LR)

    def __post_init__(self) -> None:
        positive(self, "adapter_lr", "head_lr")
        if isinstance(self.config, Mapping):
            config = config_from_data(self.config)
        elif dataclasses.is_dataclass(self.config) and getattr(self.config, "peft_type", None):
            config = self.config
        else:
            raise StrategyError(f"config must be a peft config or a table with its peft_type, got {self.config!r}.")
        refuse(config)
        object.__setattr__(self, "config", config_as_data(config))  # plain data, for a recipe

    def phases(self, model: nn.Module, new_parameters: frozenset[str] = frozenset()) -> list[Phase]:
        """Put the adapters into the model; one phase that trains them and the head.

        Raises:
            StrategyError: if the method does not fit the model.
        """
        inject(model, config_from_data(self.config), new_parameters)
        return [_phase(self.name, model, new_parameters, self.adapter_lr, self.head_lr)]

    def to_dict(self) -> dict[str, Any]:
        """The strategy as data, for a recipe."""
        return as_data(self)

# %%
strategy = Adapter(IA3Config())
phase = strategy.phases(model, new)[0]
undo(model)
strategy.to_dict(), [(group.name, sum(p.numel() for p in group.parameters)) for group in phase.groups]

# %%
refused = []
for wrong in (lambda: LoRA(rank=0), lambda: LoRA(targets="qurey").phases(model, new), lambda: Adapter({"peft_type": "VERA"})):
    try:
        wrong()
    except StrategyError as error:
        refused.append(str(error))
refused

# %%
assert len(refused) == 3 and "Did you mean 'query'" in refused[1]

# %% [markdown]
# ## What to keep
#
# A run keeps plain merged models, as with every strategy: `model/` loads with `from_pretrained` and knows nothing of adapters. Who fine-tunes one large model for many purposes keeps the adapters alone: the file is small, and the backbone lies on the disk once. It has peft's layout, so `PeftModel.from_pretrained(backbone, folder)` reads it too. The head is in it: an adapter without the head it was trained with is of no use.

# %%
#| export
PREFIX, WEIGHTS = "base_model.model.", "adapter_model.safetensors"  # peft's: before each name, and the file


def _own_state(model: nn.Module, new_parameters: frozenset[str]) -> dict[str, Tensor]:
    """What belongs to adapters and head, by its name in the model."""
    added = tuple(f"{name}." for name in adapter_layers(model))
    head = [group for group in layer_groups(model, new_parameters) if group.name == "head"]
    inside = tuple(n for group in head for n in (*(f"{name}." for name in group.modules), *group.parameters))
    return {
        name.replace(".default", ""): tensor
        for name, tensor in model.state_dict().items()
        if (name.startswith(added) and ".base_layer." not in name) or name.startswith(inside)
    }


def save_adapter(model: nn.Module, folder: str | Path, new_parameters: frozenset[str] = frozenset()) -> Path:
    """Save adapters and head alone, in peft's layout: adapter_model.safetensors and adapter_config.json.

    Args:
        model: with adapters in it.
        folder: made if it is not there.
        new_parameters: as for `layer_groups`.

    Raises:
        StrategyError: if the model has no adapters.
    """
    if "adapter_settings" not in vars(model):
        raise StrategyError("the model has no adapters that could be saved; it was merged, or never had any.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state, added = _own_state(model, new_parameters), tuple(adapter_layers(model))
    config: Any = copy.copy(model.peft_config["default"])  # type: ignore[index]
    config.modules_to_save = sorted({n.rpartition(".")[0] for n in state if not n.startswith(added)})
    config.save_pretrained(str(folder))
    tensors = {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def load_adapter(model: nn.Module, folder: str | Path, new_parameters: frozenset[str] = frozenset()) -> None:
    """Put saved adapters and their head into a model like the one they were trained in.

    Args:
        model: without adapters, with the same backbone and as many outputs.
        folder: what `save_adapter` wrote.
        new_parameters: as for `layer_groups`.

    Raises:
        StrategyError: if the folder holds no adapter, or it does not fit the model.
    """
    folder = Path(folder)
    if not (folder / WEIGHTS).is_file():
        raise StrategyError(f"{folder} holds no {WEIGHTS}; save_adapter writes it.")
    config = import_module("peft").PeftConfig.from_pretrained(str(folder))
    config.modules_to_save, config.inference_mode = None, False
    saved = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    inject(model, config, new_parameters)
    own = _own_state(model, new_parameters)
    wrong = [n for n in own.keys() | saved.keys() if n not in own or n not in saved or own[n].shape != saved[n].shape]
    if wrong:
        undo(model)
        raise StrategyError(f"{folder} does not fit {type(model).__name__}: {len(wrong)} tensors, as {min(wrong)}.")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])

# %% [markdown]
# ## The experiment: as good as full, for a fraction?
#
# **Claims.** On reviews whose polar words have no labelled example, (1) LoRA and DoRA come within 0.02 of full fine-tuning's accuracy, and (2) above the head alone; (3) what they train is below a tenth of the weights, and so is the file. (1) or (2) would be refuted by the means over four seeds, which draw their own reviews, heads and adapters. The rates (5e-4; 2e-2 for the head alone) and the multiples were chosen on other seeds, on the validation's words.

# %%
def as_batches(reviews: list[dict[str, str]], batch_size: int, seed: int = 0, shuffle: bool = False) -> Batches:
    ids = tokenizer([review["text"] for review in reviews])["input_ids"]
    examples = [{"input_ids": i, "labels": LABELS.index(r["label"])} for i, r in zip(ids, reviews, strict=True)]
    return Batches(examples, lambda rows: dict(tokenizer.pad(rows, return_tensors="pt")), batch_size, lengths=[len(i) for i in ids], shuffle=shuffle, seed=seed)

def model_loss(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Any]:
    outputs = model(**batch)
    return outputs.loss, outputs

def learner(start: Pretrained, seed: int) -> Learner:
    train = as_batches(labelled_reviews("train", seed=seed), 16, seed, shuffle=True)
    valid = as_batches(labelled_reviews("valid", 32), 32)
    return Learner(start.model, train, valid, model_loss, classification_metrics(2), new_parameters=start.new_parameters)

test = as_batches(labelled_reviews("test", 400), 200)

@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    model.eval()
    hits = [model(**batch).logits.argmax(-1) == batch["labels"] for batch in test.epoch()]
    return torch.cat(hits).float().mean().item()

# %% [markdown]
# For the story below we look at two more things: how far the backbone's weights moved in all (the norm of the change over the norm of the weights), and what the model still knows of its pretraining, where it had to guess hidden words. The checkpoint has the layer for that: put the changed backbone under it and hide one word in seven of 300 fresh reviews.

# %%
with quiet_transformers():
    masked_model = AutoModelForMaskedLM.from_pretrained(find_model("builtin:bert-reviews")[0]).eval()
original = {name: tensor.clone() for name, tensor in masked_model.bert.state_dict().items()}
hidden = dict(tokenizer(list(unlabelled_reviews(300, seed=77)), padding=True, return_tensors="pt"))
words = ~torch.isin(hidden["input_ids"], torch.tensor(tokenizer.all_special_ids))
places = words & (torch.rand(words.shape, generator=torch.Generator().manual_seed(77)) < 1 / 7)
answers = hidden["input_ids"][places]
hidden["input_ids"] = hidden["input_ids"].masked_fill(places, tokenizer.mask_token_id)

@torch.no_grad()
def backbone_report(model: nn.Module) -> dict[str, float]:
    state = {name: tensor for name, tensor in model.bert.state_dict().items() if name in original}
    masked_model.bert.load_state_dict(state)
    known = (masked_model(**hidden).logits[places].argmax(-1) == answers).float().mean().item()
    change = torch.cat([(tensor - original[name]).flatten() for name, tensor in state.items()]).norm()
    return {"known": known, "change": (change / torch.cat([t.flatten() for t in original.values()]).norm()).item()}

backbone_report(model)

# %%
def run(strategy: Any, lr: float, seed: int) -> dict[str, float]:
    start = load_pretrained("builtin:bert-reviews", "text-classification", LABELS, seed=seed)
    training = Training(learner(start, seed), strategy, lr=lr, num_epochs=3, seed=seed, device="cpu")
    trained = sum(p.numel() for p in training.phases[0].trainable)
    for _ in training:
        pass
    merge(start.model)
    return {"accuracy": accuracy(start.model), "trained": trained, **backbone_report(start.model)}

seeds = (11, 12, 13, 14)
plan = {"full": (Full(), 5e-4), "head": (Head(), 2e-2), "LoRA": (LoRA(), 5e-4), "DoRA": (DoRA(), 5e-4)}
results = {name: [run(strategy, lr, seed) for seed in seeds] for name, (strategy, lr) in plan.items()}

# %% [markdown]
# With the rank, the change becomes freer, and costs more. Two more ranks, on three of the seeds:

# %%
ranks = {rank: [run(LoRA(rank), 5e-4, seed) for seed in seeds[:3]] for rank in (1, 32)} | {8: results["LoRA"][:3]}

# %%
def column(rows: list[dict[str, float]], what: str) -> Tensor:
    return torch.tensor([float(row[what]) for row in rows])

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3), dpi=80, layout="constrained")
for i, (name, rows) in enumerate(results.items()):
    left.plot([i] * len(seeds), column(rows, "accuracy"), "o", ms=5, alpha=0.5, color="C0")
    left.plot(i, column(rows, "accuracy").mean(), "_", ms=18, mew=2, color="C0")
labels = [f"{name}\n{rows[0]['trained']:,}" for name, rows in results.items()]
left.set(xticks=range(len(results)), xlabel="strategy, and the weights that it trains", ylabel="accuracy, unseen words", title="Four seeds (bar: mean)")
left.set_xticklabels(labels, fontsize=8)
for rank, rows in sorted(ranks.items()):
    right.plot([rank] * len(rows), column(rows, "accuracy"), "o", ms=5, alpha=0.5, color="C2")
right.plot(sorted(ranks), [column(ranks[rank], "accuracy").mean() for rank in sorted(ranks)], color="C2")
right.set(xscale="log", xticks=sorted(ranks), xlabel="rank", ylabel="accuracy, unseen words", ylim=left.get_ylim(), title="LoRA by rank (line: mean of three seeds)")
right.set_xticklabels(sorted(ranks))
right.minorticks_off()
plt.show()

# %%
mean = {name: {what: round(column(rows, what).mean().item(), 3) for what in rows[0]} for name, rows in results.items()}
mean

# %%
folder = Path(tempfile.mkdtemp())
start = load_pretrained("builtin:bert-reviews", "text-classification", LABELS, seed=1)
list(Training(learner(start, 1), LoRA(), lr=5e-4, num_epochs=1, seed=1, device="cpu"))
logits = start.model.eval()(**batch).logits
save_adapter(start.model, folder / "adapter", start.new_parameters)
merge(start.model)
with quiet_transformers():
    start.model.save_pretrained(folder / "model")
    plain = AutoModelForSequenceClassification.from_pretrained(folder / "model")
sizes = {kind: sum(path.stat().st_size for path in (folder / kind).glob("*.safetensors")) for kind in ("model", "adapter")}
sizes

# %%
other = load_pretrained("builtin:bert-reviews", "text-classification", LABELS, seed=2)  # another random head
load_adapter(other.model, folder / "adapter", other.new_parameters)
again = [(m.eval()(**batch).logits - logits).abs().max().item() for m in (other.model, plain)]
again

# %%
assert again[0] == 0 and again[1] <= 1e-5
assert sizes["adapter"] < sizes["model"] / 10
assert all(mean[name]["trained"] < mean["full"]["trained"] / 10 for name in ("LoRA", "DoRA"))
assert all(mean[name]["accuracy"] > mean["full"]["accuracy"] - 0.02 for name in ("LoRA", "DoRA"))

# %%
{name: f"{mean[name]['accuracy'] - mean['head']['accuracy']:+.3f}" for name in ("full", "LoRA", "DoRA")}

# %%
assert all(mean[name]["accuracy"] > mean["head"]["accuracy"] for name in ("LoRA", "DoRA"))

# %% [markdown]
# All three claims held. LoRA and DoRA are level with full fine-tuning, or a little above it, on reviews that need what pretraining knew; they train about a twelfth of the weights, and the adapter's file is about a twelfth of the model's. Between LoRA and DoRA no difference can be seen here. Nor does the rank matter: the seeds of one rank lie as far apart as the ranks do. Sorting reviews in two is a small change, and one direction a matrix can say it. A task that is further from the pretraining, with much more data, can need more.
#
# The head alone is not far behind: at its own rate, forty times higher, it does well here, since the pooled vector was pretrained to say something of the whole review.

# %% [markdown]
# ## The story: learns less, forgets less?
#
# In 2024 Biderman and colleagues trained large language models on code and mathematics, in full and with LoRA. LoRA learned less of the new, and kept more of the old: "LoRA learns less and forgets less". It sounds inevitable, since so few weights train. Does it hold here?
#
# **Expectation.** After LoRA the model guesses more hidden words right than after full fine-tuning, because its backbone moved less. Both halves can be looked up in the runs above.

# %%
before_tuning = backbone_report(model)["known"]
{"before": round(before_tuning, 3)} | {name: (values["known"], values["change"]) for name, values in mean.items()}

# %%
lead = column(results["LoRA"], "known") - column(results["full"], "known")
round(lead.mean().item(), 3), round(lead.std().item() / len(lead) ** 0.5, 3)

# %% [markdown]
# Neither half held. After LoRA the model guesses slightly *fewer* hidden words right than after full fine-tuning, and its weights moved about three times as *far*. Few trained weights are not a small change: the rate is ten times higher, and what moves is pressed into eight directions of each matrix. (Shuttleworth and colleagues, 2024, looked into those: they found new, large singular vectors in what LoRA leaves behind, which full fine-tuning does not have.) Both forget little here: the reviews to classify are written like those of the pretraining. The published difference comes from long training on another kind of text. Where forgetting matters to you, measure it on your own text, at the rates that you use.

# %%
assert lead.mean() < 0.01  # it does not keep more
assert all(lora > 2 * full for lora, full in zip(column(results["LoRA"], "change"), column(results["full"], "change"), strict=True))

# %% [markdown]
# ## Exercises
#
# **1 (easy).** How many weights does LoRA of rank $r$ train in one block of a BERT with hidden size $d$ and $4d$ in the middle of its feed-forward part? A block has four $d \times d$ matrices, one $d \to 4d$ and one $4d \to d$.

# %% tags=["exercise"]
def weights_per_block(d: int, rank: int) -> int:
    ...  # your code here

# %% tags=["solution"]
def weights_per_block(d: int, rank: int) -> int:
    return rank * (4 * (d + d) + 2 * (d + 4 * d))

# %%
assert weights_per_block(768, 8) == 8 * 18 * 768

# %% [markdown]
# **2 (medium).** Fold `LoRALinear` into a plain `nn.Linear` that computes the same, without changing the original.

# %% tags=["exercise"]
def folded(layer: LoRALinear) -> nn.Linear:
    ...  # your code here

# %% tags=["solution"]
def folded(layer: LoRALinear) -> nn.Linear:
    plain = copy.deepcopy(layer.base)
    with torch.no_grad():
        plain.weight += layer.scale * layer.B @ layer.A
    return plain

# %%
torch.testing.assert_close(folded(by_hand)(x), by_hand(x), atol=1e-5, rtol=1e-5)
assert not torch.equal(folded(by_hand).weight, by_hand.base.weight)

# %% [markdown]
# **3 (hard).** A convolution is linear, too. Write the change that two convolutions make as one kernel: $A$ has $r$ output channels and the original's kernel, $B$ is $1 \times 1$.

# %% tags=["exercise"]
def kernel(A: Tensor, B: Tensor) -> Tensor:
    ...  # (r, in, k, k) and (out, r, 1, 1) give (out, in, k, k)

# %% tags=["solution"]
def kernel(A: Tensor, B: Tensor) -> Tensor:
    return torch.einsum("or,rikl->oikl", B[:, :, 0, 0], A)

# %%
A, B, picture = torch.randn(2, 3, 3, 3), torch.randn(5, 2, 1, 1), torch.randn(1, 3, 8, 8)
conv2d = nn.functional.conv2d
torch.testing.assert_close(conv2d(picture, kernel(A, B)), conv2d(conv2d(picture, A), B), atol=1e-4, rtol=1e-4)

# %% [markdown]
# ## Summary
# - LoRA adds $\frac{\alpha}{r} B A$ to frozen weights: $r\,(d_\text{in} + d_\text{out})$ weights train instead of $d_\text{in}\, d_\text{out}$, and $B = 0$ makes the start the pretrained model.
# - It is a strategy like every other: `strategy="lora"`, or `{"name": "lora", "rank": 8, "targets": "attention"}`, in a recipe, the panel or on the command line; `Adapter(config)` takes any method of peft that adds weights to layers.
# - Merged, it costs nothing when predicting, and whoever loads the model needs no peft. Alone, it is a small file for a backbone that you have already.
# - Its rate is about ten times that of full fine-tuning. Few trained weights do not mean a small change.
#
# **What next:** [50](50_recipe.ipynb) stores a strategy in a recipe. With a real model: `finetune(model="google-bert/bert-base-uncased", strategy={"name": "lora", "rank": 16, "alpha": 32}, lr=2e-5)`.
#
# **Sources:** Hu et al. (2021), arXiv:2106.09685; Dettmers et al. (2023), arXiv:2305.14314; Liu et al. (2024), arXiv:2402.09353; Liu et al. (2022), arXiv:2205.05638; Biderman et al. (2024), arXiv:2405.09673; Shuttleworth et al. (2024), arXiv:2410.21228; peft, huggingface.co/docs/peft.
