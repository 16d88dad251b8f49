"""Full memory: the same step from smaller parts, remembered and written down; and memory that is given back."""

import gc
import weakref

import pytest
import torch
from torch import nn

from ftnb.devices import out_of_memory
from ftnb.events import Changed, Evaluated, SetParts, Stepped, Warned
from ftnb.step import batch_size, cut_batch
from ftnb.train import Training, TrainingError
from tests.toys import loss, toy_learner, weights

FAST = {"lr": 1e-2, "num_epochs": 2, "device": "cpu"}


class Plain(nn.Module):
    """Without dropout and BatchNorm, so that parts of a batch give the gradient of the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 16), nn.ReLU())
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.trunk(x))


def learner(room: int | None = None, error: BaseException | None = None, seen: list | None = None):
    """A learner whose memory holds so many examples at a time."""
    torch.manual_seed(0)
    made = toy_learner(model=Plain())

    def narrow(model, batch):
        if seen is not None:
            seen.append(weakref.ref(batch["x"]))
        if room is not None and batch_size(batch) > room:
            raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss(model, batch)

    made.loss = narrow
    return made


def run(training: Training) -> torch.Tensor:
    for _ in training:
        pass
    return weights(training.model)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("room", [7, 4, 2, 1])
def test_a_full_memory_gives_the_same_training_in_parts(room, accumulation):
    whole = Training(learner(), **FAST, accumulation=accumulation)
    narrow = Training(learner(room), **FAST, accumulation=accumulation)
    assert torch.allclose(run(narrow), run(whole), atol=1e-6)
    assert [e.step for e in narrow.log if isinstance(e, Stepped)] == [
        e.step for e in whole.log if isinstance(e, Stepped)
    ]
    scores = [[e.metrics["accuracy"] for e in t.log if isinstance(e, Evaluated)] for t in (whole, narrow)]
    assert scores[0] == pytest.approx(scores[1], abs=0.03)
    parts = [e.new for e in narrow.log if isinstance(e, Changed) and e.what == "parts"]
    assert parts == [2**i for i in range(1, len(parts) + 1)]
    assert narrow.position.parts == parts[-1] >= 8 / room / 2
    assert {e.by for e in narrow.log if isinstance(e, Changed)} == {"memory"}
    assert any(e.code == "out_of_memory" for e in narrow.log if isinstance(e, Warned))


def test_the_gradient_of_one_step_is_the_same():
    gradients = []
    for room in (None, 3):
        training = Training(learner(room), **FAST, max_grad_norm=None)
        training.optimizer = None
        event = training.step()
        gradients.append((event.loss, event.grad_norm))
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-6)


def test_it_is_remembered_and_travels_with_a_state():
    first = Training(learner(4), **FAST)
    first.step()
    second = Training(learner(4), **FAST)
    second.load_state_dict(first.state_dict())
    assert second.position.parts == 2
    second.step()
    assert not [e for e in second.log if isinstance(e, Warned)], "it need not run into the wall again"


def test_an_evaluation_that_does_not_fit_is_begun_again_in_parts():
    """Batches of 16 are evaluated; those of 8 are trained on."""
    training = Training(learner(8), **FAST)
    run(training)
    (full,) = (e for e in training.log if isinstance(e, Warned))
    assert full.step == 7
    assert all(e.metrics["accuracy"] <= 1 for e in training.log if isinstance(e, Evaluated))


def test_one_example_that_does_not_fit_is_an_error_with_advice():
    training = Training(learner(0), **FAST)
    with pytest.raises(TrainingError, match=r"one example at a time.*out of memory.*Use shorter inputs"):
        run(training)
    assert training.position.step == 0
    assert all(p.grad is None for p in training.model.parameters())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
    ],
)
def test_every_device_says_it_in_its_own_words(error):
    assert out_of_memory(error)
    training = Training(learner(4, error), **FAST)
    assert training.step() is not None


def test_other_errors_are_raised():
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        Training(learner(4, RuntimeError("wrong shapes")), **FAST).step()


def test_nothing_holds_the_batch_that_did_not_fit():
    seen: list = []
    training = Training(learner(4, seen=seen), **FAST)
    training.step()
    gc.collect()
    assert seen[0]() is None


def test_parts_can_be_asked_for():
    training = Training(learner(), **FAST)
    training.request(SetParts(4))
    training.step()
    (said,) = (e for e in training.log if isinstance(e, Changed))
    assert (said.what, said.old, said.new, said.by) == ("parts", 1, 4, "user")
    with pytest.raises(ValueError, match="at least 1"):
        SetParts(0)


def test_a_part_without_terms_of_the_loss_counts_for_nothing():
    """A mean over no tokens is not a number; such a part must not touch the step."""
    made = learner()
    made.weight = lambda batch: int((batch["labels"] == 1).sum())
    made.loss = lambda model, batch: (
        (nn.functional.cross_entropy(model(batch["x"]), batch["labels"], reduction="none") * batch["labels"]).sum()
        / batch["labels"].sum(),
        model(batch["x"]),
    )
    training = Training(made, **FAST)
    training.request(SetParts(8))
    run(training)
    assert not [e for e in training.log if isinstance(e, Warned)]
    assert torch.isfinite(weights(training.model)).all()


def test_what_is_cut_and_what_is_not():
    batch = {"x": torch.arange(10).view(5, 2), "names": list("abcde"), "scale": 3, "ids": torch.tensor(7)}
    parts = cut_batch(batch, 3)
    assert [len(part["x"]) for part in parts] == [2, 1, 2]
    assert ["".join(part["names"]) for part in parts] == ["ab", "c", "de"]
    assert all(part["scale"] == 3 and part["ids"] == 7 for part in parts)
    assert len(cut_batch(batch, 99)) == 5
    assert cut_batch(batch, 1)[0] is batch


# Memory that is given back


def test_a_dropped_training_frees_model_and_optimizer():
    training = Training(toy_learner(), **FAST)
    for _ in range(3):
        training.step()
    model, optimizer = weakref.ref(training.model), weakref.ref(training.optimizer)
    del training
    gc.collect()
    assert model() is None
    assert optimizer() is None


def test_after_an_error_in_a_loop_over_events_everything_can_be_freed_and_go_on():
    training = Training(toy_learner(), **FAST)
    try:
        for event in training:
            if isinstance(event, Stepped) and event.step == 4:
                raise ValueError("a callback of one's own")
    except ValueError:
        pass
    assert training.position.step == 4
    run(training)
    assert torch.equal(weights(training.model), run(Training(toy_learner(), **FAST)))
    model = weakref.ref(training.model)
    del training, event
    gc.collect()
    assert model() is None
