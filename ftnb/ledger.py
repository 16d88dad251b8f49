"""Count the memory of a computation without doing it: a twin of a model that has shapes and no numbers, and a ledger.

The twin's tensors are torch's fake tensors: every operation works out shapes, types and which tensors share memory, and
computes nothing. What does not depend on a weight, such as the batch and its masks, stays real.
"""

import copy
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ftnb.step import Phase, Strategy

aten = torch.ops.aten
_BY_MASK = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index_put.default)
_PRODUCTS = (aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution, aten.convolution_backward)
LARGE = 2**25  # bytes; glibc takes larger blocks from the system and gives them back at once, whatever happened before


class Ledger(TorchDispatchMode):
    """Inside its `with` block every tensor storage is entered once when it comes to be, and crossed out when it goes.

    Args:
        device: where the computation takes place, or would; on a CPU a convolution's copies count as well.
        block: sizes are rounded up to multiples of so many bytes (512 is what torch does on a CUDA GPU).

    Attributes:
        live: bytes alive now, by kind; `total` is their sum, `peak` the largest total so far, `at_peak` what it was of.
        freed: bytes of blocks below 32 MiB that came and went, a convolution's copies among them.
        flops: multiplications and additions of matrix products, convolutions and attention.
        programs: the different shapes of bf16 products; oneDNN, on a CPU, writes a program for each and keeps it.
    """

    def __init__(self, device: torch.device, block: int = 1) -> None:
        super().__init__()
        self.device, self.block = device, block
        self.live: defaultdict[str, int] = defaultdict(int)
        self.total = self.peak = self.freed = self.flops = 0
        self.at_peak: dict[str, int] = {}
        self.programs: set[Any] = set()
        self._kinds: dict[int, str] = {}
        self._refs: dict[int, Any] = {}

    def note(self, tensor: Tensor, kind: str | None = None) -> None:
        """Enter a tensor's storage; one that is known already only changes its kind. Without a kind: activations."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // self.block) * self.block
        if (old := self._kinds.get(key)) is not None:
            if kind is not None and kind != old:
                self.live[old], self.live[kind], self._kinds[key] = self.live[old] - size, self.live[kind] + size, kind
            return
        self._kinds[key] = kind = kind or "activations"
        self.live[kind], self.total = self.live[kind] + size, self.total + size
        self._refs[key] = weakref.ref(storage, lambda _: self._cross_out(key, size))
        self._look()

    def forget_peak(self) -> None:
        """Start looking for the peak anew, from what is alive now."""
        self.peak = 0
        self._look()

    def _look(self, extra: int = 0) -> None:
        if self.total + extra > self.peak:
            self.peak, self.at_peak = self.total + extra, {**self.live}
            if extra:
                self.at_peak["convolution's copies"] = extra

    def _cross_out(self, key: int, size: int) -> None:
        self.live[self._kinds.pop(key)] -= size
        self.total -= size
        self.freed += size if size < LARGE else 0
        del self._refs[key]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = _without_values(func, args) if isinstance(args[0] if args else None, FakeTensor) else None
        out = func(*args, **kwargs) if out is None else out
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        for tensor in made:
            self.note(tensor)
        if self.device.type == "cpu":
            copies = [t.numel() * t.element_size() for t in _convolution_copies(func, args, made)]
            self.freed += sum(size for size in copies if size < LARGE)
            self._look(sum(copies))
            if func._overloadpacket in _PRODUCTS and any(t.dtype == torch.bfloat16 for t in made):
                self.programs.add((func, tuple(tuple(t.shape) for t in tree_leaves(args) if isinstance(t, Tensor))))
        return out


def _without_values(func: Any, args: Any) -> Any:
    """What an operation gives whose shape depends on values (an unknown mask is all true); None for all others."""
    if func in _BY_MASK and any(i is not None and i.dtype == torch.bool for i in args[1]):
        places: list[Any] = []
        for index in args[1]:
            if index is None or index.dtype != torch.bool:
                places.append(index)
            else:
                known = torch.ones(index.shape, dtype=torch.bool) if isinstance(index, FakeTensor) else index
                places += [i.to(args[0].device) for i in known.nonzero(as_tuple=True)]
        return func(args[0], places, *args[2:])
    if func is aten.nonzero.default:
        return args[0].new_empty((args[0].numel(), args[0].ndim), dtype=torch.long)
    if func.name() == "torchvision::nms":  # boxes that overlap others are dropped: at most none
        return args[0].new_empty(len(args[0]), dtype=torch.long)
    if func is aten._ctc_loss.Tensor:  # the table of log-probabilities has 2 × (longest target) + 1 columns
        num_frames, num_examples, _ = args[0].shape
        table = (num_examples, num_frames, 2 * int(args[3].max()) + 1)
        return args[0].new_empty(num_examples), args[0].new_empty(table)
    return None


def _convolution_copies(func: Any, args: Any, made: list[Tensor]) -> list[Tensor]:
    """What of a convolution oneDNN copies for itself, to have the channels in an order that it wants."""
    if func is aten.convolution.default:
        x, weight, moved = args[0], args[1], made[:1]
    elif func is aten.convolution_backward.default:
        grad, x, weight = args[:3]
        moved = [grad, x] if args[-1][0] else [grad]
    else:
        return []
    if all(side == 1 for side in weight.shape[2:]):
        return []  # a plain matrix product
    return [*moved, x] if x.shape[1] >= 8 else moved


def _replaced(model: nn.Module, make: Callable[[Tensor], Tensor]) -> dict[int, Any]:
    """For a deep copy: what stands in for each of a model's tensors, so that no number of it is copied."""
    plain = (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
    memo: dict[int, Any] = {}
    for tensor in {*model.parameters(), *model.buffers(), *plain}:
        new = make(tensor)
        memo[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
    return memo


def _shapes_only(model: nn.Module, device: torch.device) -> dict[int, Any]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        return _replaced(model, lambda t: torch.empty(t.shape, dtype=t.dtype, device=device))


def with_numbers(model: nn.Module, device: torch.device) -> nn.Module:
    """A real copy of a model on a device; what has no numbers (on the meta device) gets small random ones."""

    def fill(tensor: Tensor) -> Tensor:
        if not tensor.is_meta:
            return tensor.detach().to(device, copy=True)
        if not tensor.is_floating_point():
            return torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
        if isinstance(tensor, nn.Parameter):
            return torch.randn(tensor.shape, dtype=tensor.dtype, device=device) * 0.02
        return torch.ones(tensor.shape, dtype=tensor.dtype, device=device)

    twin: nn.Module = copy.deepcopy(model, _replaced(model, fill))
    return twin


def twin_of(
    model: nn.Module, strategy: Strategy, new_parameters: frozenset[str], device: torch.device
) -> tuple[nn.Module, list[Phase]]:
    """A copy of a model with shapes and without numbers, and a strategy's phases on it; the model stays as it is.

    Args:
        model: real or on the meta device.
        strategy: may put adapters into the twin, or start blocks anew.
        new_parameters: as for `ftnb.layers.layer_groups`.
        device: where the twin's tensors say that they are.

    Raises:
        ValueError: what the strategy raises if it does not fit the model.
    """
    twin = copy.deepcopy(model, _shapes_only(model, device))
    try:
        with torch.random.fork_rng(devices=[]):  # added weights are real, and start from random numbers
            return twin, strategy.phases(twin, new_parameters)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, ValueError) and "swap" not in str(error):  # torch cannot move fake parameters in place
            raise
    zeros = copy.deepcopy(model, _replaced(model, lambda t: torch.zeros(t.shape, dtype=t.dtype)))  # not yet in memory
    with torch.random.fork_rng(devices=[]):
        phases = strategy.phases(zeros, new_parameters)
    both: tuple[nn.Module, list[Phase]] = copy.deepcopy((zeros, phases), _shapes_only(zeros, device))
    return both


def shares(parts: Mapping[str, int]) -> list[tuple[str, int]]:
    """The parts of a memory, without those that are nothing, in the order of the table that people read."""
    order = ("weights", "gradients", "moments", "activations")
    known = [(kind, parts[kind]) for kind in order if parts.get(kind)]
    return known + [(kind, size) for kind, size in parts.items() if kind not in order and size]
