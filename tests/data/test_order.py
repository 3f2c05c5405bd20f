"""The order of training: every epoch holds every sample once, whatever the sizes."""

import numpy as np
import pytest

from tests.spelling import batch_indices

SIZES = [(1, 1), (1, 5), (7, 1), (7, 3), (7, 7), (7, 20), (100, 32), (97, 64), (64, 128), (1000, 256)]


@pytest.mark.parametrize(("length", "batch_size"), SIZES)
def test_each_epoch_is_a_permutation(length, batch_size):
    n_epochs = 4
    n_steps = -(-n_epochs * length // batch_size)
    stream = np.concatenate([batch_indices(5, step, batch_size, length) for step in range(n_steps)])
    assert stream.dtype == np.int64
    for epoch in range(n_epochs):
        part = stream[epoch * length : (epoch + 1) * length]
        np.testing.assert_array_equal(np.sort(part), np.arange(length))


@pytest.mark.parametrize(("length", "batch_size"), SIZES)
def test_the_stream_does_not_depend_on_how_it_is_cut(length, batch_size):
    n_positions = 3 * length * batch_size
    whole = batch_indices(5, 0, n_positions, length)
    cut = [batch_indices(5, step, batch_size, length) for step in range(n_positions // batch_size)]
    np.testing.assert_array_equal(np.concatenate(cut), whole)


def test_batches_can_be_asked_for_in_any_order():
    expected = [batch_indices(5, step, 10, 23) for step in range(12)]
    for step in (11, 0, 7, 3, 11, 1):
        np.testing.assert_array_equal(batch_indices(5, step, 10, 23), expected[step])


def test_epochs_and_seeds_differ():
    epochs = [batch_indices(5, epoch, 50, 50) for epoch in range(3)]
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])
    assert not np.array_equal(epochs[0], batch_indices(6, 0, 50, 50))


def test_all_places_are_equally_likely():
    """Over many epochs each sample comes first equally often (chi-square with 9 degrees of freedom, p = 1e-6)."""
    n_epochs = 5000
    first = [batch_indices(1, epoch, 10, 10)[0] for epoch in range(n_epochs)]
    counts = np.bincount(first, minlength=10)
    assert ((counts - n_epochs / 10) ** 2 / (n_epochs / 10)).sum() < 46.0


def test_published_order_is_the_same_in_every_epoch():
    epochs = [batch_indices(5, epoch, 50, 50, published_behaviour=True) for epoch in range(3)]
    np.testing.assert_array_equal(epochs[0], epochs[1])
    np.testing.assert_array_equal(epochs[0], epochs[2])
    np.testing.assert_array_equal(epochs[0], batch_indices(5, 0, 50, 50))
    np.testing.assert_array_equal(np.sort(epochs[0]), np.arange(50))


def test_endless_sets_are_read_in_order():
    np.testing.assert_array_equal(batch_indices(5, 3, 4, None), [12, 13, 14, 15])


def test_the_order_is_the_one_of_earlier_releases():
    """A resumed run goes on with the order it began with."""
    np.testing.assert_array_equal(batch_indices(0, 0, 10, 10), [2, 0, 4, 8, 7, 6, 9, 5, 1, 3])
