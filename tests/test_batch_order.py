"""Batches of similar lengths, and batches of equally many tokens: little padding, and an order that is still random."""

import itertools

import numpy as np
import pytest

from ftnb.data import Batches, DataError, real_token_share, token_batch_order, token_chunks

NUM_EPOCHS = 60


@pytest.fixture(scope="module")
def lengths() -> list[int]:
    rng = np.random.default_rng(0)
    return np.clip(rng.lognormal(3.2, 0.5, 3000), 3, 128).astype(int).tolist()


@pytest.fixture(scope="module", params=[None, 512], ids=["16 examples", "512 tokens"])
def epochs(request, lengths) -> list[list[list[int]]]:
    """The orders of many epochs."""
    batches = Batches(lengths, list, 16, lengths=lengths, max_tokens=request.param, shuffle=True, seed=3)
    return [batches.order(epoch) for epoch in range(NUM_EPOCHS)]


def positions(epochs: list[list[list[int]]], num_examples: int) -> np.ndarray:
    """Where each example came in each epoch, from 0 to 1, shape (epochs, examples)."""
    found = np.zeros((len(epochs), num_examples))
    for epoch, order in enumerate(epochs):
        found[epoch, [i for batch in order for i in batch]] = np.linspace(0, 1, num_examples)
    return found


def test_most_tokens_are_real_and_every_example_comes_once(epochs, lengths):
    for order in epochs:
        assert real_token_share(lengths, order) >= 0.95
        assert sorted(i for batch in order for i in batch) == list(range(len(lengths)))
    assert len({len(order) for order in epochs}) == 1, "schedule and phases are planned by the number of batches"


def test_an_example_comes_anywhere_in_an_epoch(epochs, lengths):
    """Over the epochs, each tenth of an epoch sees an example equally often, however long it is (chi-square)."""
    where = positions(epochs, len(lengths))
    tenths = np.minimum((where * 10).astype(int), 9)
    counts = np.stack([(tenths == t).sum(0) for t in range(10)])  # (tenths, examples)
    expected = NUM_EPOCHS / 10
    chi_square = ((counts - expected) ** 2 / expected).sum(0)  # 9 degrees of freedom: mean 9, 99.999 % below 42
    assert chi_square.mean() == pytest.approx(9, abs=0.7)
    assert chi_square.max() < 42
    by_length = where[:, np.argsort(lengths)]
    for tenth in np.split(by_length, 10, axis=1):  # short ones come no earlier than long ones
        assert abs(tenth.mean() - 0.5) < 0.035


def test_neighbours_differ_from_epoch_to_epoch(epochs):
    company = [{(a, b) for batch in order for a in batch for b in batch if a < b} for order in epochs[:4]]
    for first, second in itertools.pairwise(company):
        assert len(first & second) < 0.3 * len(first)


def test_batches_come_in_random_order(epochs, lengths):
    """A batch's length says nothing of the next batch's, nor of where in the epoch it comes."""
    for order in epochs[:10]:
        of = np.array([np.mean([lengths[i] for i in batch]) for batch in order])
        bound = 4 / np.sqrt(len(of))
        assert abs(np.corrcoef(of[1:], of[:-1])[0, 1]) < bound
        assert abs(np.corrcoef(of, np.arange(len(of)))[0, 1]) < bound
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("max_tokens", [128, 300, 512, 4096, 10**6])
@pytest.mark.parametrize("shuffle", [True, False])
def test_no_batch_is_beyond_its_budget(lengths, max_tokens, shuffle):
    batches = Batches(lengths, list, 16, lengths=lengths, max_tokens=max_tokens, shuffle=shuffle)
    for epoch in range(3):
        order = batches.order(epoch)
        assert len(order) == len(batches)
        assert max(len(batch) * max(lengths[i] for i in batch) for batch in order) <= max_tokens
        assert sorted(i for batch in order for i in batch) == list(range(len(lengths)))
    assert (batches.order(0) == batches.order(1)) is not shuffle or len(batches) == 1


def test_batches_have_about_equally_many_tokens(lengths):
    def spread(order: list[list[int]]) -> float:
        tokens = [len(batch) * max(lengths[i] for i in batch) for batch in order]
        return float(np.std(tokens) / np.mean(tokens))

    by_count = Batches(lengths, list, 16, lengths=lengths, shuffle=True).order(0)
    assert spread(token_batch_order(lengths, 512)) < 0.15 < 0.4 < spread(by_count)


def test_the_epoch_is_a_function_of_seed_and_epoch(lengths):
    kinds = {"lengths": lengths, "max_tokens": 512, "shuffle": True}
    one, same, other = (Batches(lengths, list, 16, seed=seed, **kinds) for seed in (1, 1, 2))
    assert one.order(2) == same.order(2) != other.order(2)
    assert [len(batch) for batch in one.epoch(1, start=5)] == [len(batch) for batch in one.order(1)[5:]]


def test_by_hand():
    # 20 fits 5 times into 100, 30 three times, 50 twice: the second batch of 50 takes a 30 in, the 30s two 20s.
    lengths = [50, 50, 50, 30, 30, 20, 20, 20]
    assert token_chunks(lengths, 100) == [(4, 2), (3, 3), (1, 5)]
    assert token_batch_order(lengths, 100, shuffle=False) == [[0, 1], [2, 3], [4, 5, 6], [7]]


def test_an_example_beyond_the_budget_is_refused():
    with pytest.raises(DataError, match="longest example has 70 tokens and does not fit into a batch of 64"):
        Batches([1, 2], list, 1, lengths=[7, 70], max_tokens=64)
    with pytest.raises(DataError, match="lengths"):
        Batches([1, 2], list, 1, max_tokens=64)
