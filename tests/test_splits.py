"""Rows set apart for validation, and equal rows merged."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sk_easytensor import EasyTensorClassifier
from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.dataset import EncodedDataset
from sk_easytensor.training.splits import validation_rows


def split(sizes, fraction, seed=0):
    """Return how many rows of each class train and validate."""
    random_state = np.random.RandomState(seed)
    strata = random_state.permutation(np.repeat(np.arange(len(sizes)), sizes))
    train, valid = validation_rows(strata, fraction, random_state)
    assert np.sort(np.concatenate([train, valid])).tolist() == list(range(len(strata)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(valid) > 0).all()
    return [np.bincount(strata[rows], minlength=len(sizes)) for rows in (train, valid)]


@given(
    st.lists(st.integers(1, 3) | st.integers(1, 60), min_size=1, max_size=30),
    st.floats(0.01, 0.99),
    st.integers(0, 9),
)
def test_parts_are_proportional(sizes, fraction, seed):
    train, valid = split(sizes, fraction, seed)
    assert train.min() >= 1
    assert valid.sum() <= np.floor(sum(sizes) * fraction + 0.5)
    # Above one half, the place of the row that stays to train on may be taken already.
    slack = 1 if fraction < 0.5 else 2
    several = np.array(sizes) > 1
    assert (np.abs(valid - fraction * np.array(sizes))[several] < slack + 1e-9).all()


@pytest.mark.parametrize(
    ("sizes", "fraction", "n_valid"),
    [
        ([3] * 100, 0.15, 45),
        ([4] * 100, 0.15, 60),
        ([3] * 100, 0.1, 30),
        ([2] * 50, 0.5, 50),
        ([1] * 100, 0.5, 0),
        ([10], 0.2, 2),
        ([1], 0.5, 0),
        ([3], 0.15, 0),
        ([10_000, 10], 0.1, 1001),
    ],
)
def test_sizes_of_the_parts(sizes, fraction, n_valid):
    train, valid = split(sizes, fraction)
    assert valid.sum() == n_valid
    assert train.min() >= 1
    assert valid.max() <= np.ceil(fraction * max(sizes))


def test_single_rows_among_large_classes_train():
    train, valid = split([1000, 1, 1, 500, 1, 100], 0.2)
    assert train[[1, 2, 4]].tolist() == [1, 1, 1]
    np.testing.assert_allclose(valid[[0, 3, 5]], [200, 100, 20], atol=1)


def test_which_rows_is_random():
    strata = np.zeros(100, dtype=int)
    chosen = [validation_rows(strata, 0.2, np.random.RandomState(seed))[1] for seed in range(200)]
    times = np.bincount(np.concatenate(chosen), minlength=100)
    assert times.min() > 15
    assert times.max() < 70


def rows_of(values):
    values = torch.tensor(values, dtype=torch.float32)
    frame = TensorFrame({"numeric": {"values": values[:, None]}})
    return EncodedDataset(frame, values, torch.ones(len(values)))


def test_equal_rows_are_merged_up_to_four_copies():
    merged = rows_of([3, 1, 2, 1] * 2).merge_duplicates(batch_size=10)
    assert sorted(zip(merged.target.tolist(), merged.weight.tolist(), strict=True)) == [
        (1, 4),
        (2, 2),
        (3, 2),
    ]
    many = rows_of([1, 2, 3] * 4)
    assert len(many.merge_duplicates(batch_size=10)) == 3
    more = rows_of([1, 2, 3] * 4 + [1])
    assert more.merge_duplicates(batch_size=10) is more
    assert many.merge_duplicates(batch_size=2) is many


def test_rows_of_unlike_targets_stay_apart():
    rows = rows_of([1, 1, 2])
    rows.target = torch.tensor([0.0, 1.0, 0.0])
    assert len(rows.merge_duplicates(batch_size=10)) == 3


def test_rows_without_weight_are_not_held_out():
    weight = torch.tensor([0.0, 1.0, 0.0, 2.0] * 10)
    frame = TensorFrame({"x": {"values": torch.zeros(40, 1)}})
    rows = EncodedDataset(frame, torch.arange(40), weight)
    train, (valid,) = rows.hold_out(lambda y: np.zeros(len(y)), 0.5, np.random.RandomState(0))
    assert len(valid) == 10
    assert (valid.weight > 0).all()
    assert sorted([*train.target.tolist(), *valid.target.tolist()]) == list(range(40))


def test_the_last_rows_of_positive_weight_are_held_out():
    weight = torch.tensor([0.0, 1.0, 0.0, 2.0] * 10)
    frame = TensorFrame({"x": {"values": torch.zeros(40, 1)}})
    rows = EncodedDataset(frame, torch.arange(40), weight)
    train, (valid,) = rows.hold_out(lambda y: np.zeros(len(y)), 0.1, None)
    assert valid.target.tolist() == [37, 39]
    assert len(train) == 38


@pytest.mark.parametrize("seed", range(8))
def test_a_class_without_weight_does_not_decide(seed):
    y = np.array(["yes", "no", "yes", "no", "yes", "yes", "yes", "yes"])
    X = np.random.default_rng(0).normal(size=(8, 2))
    weights = {"no": 2.0, "yes": 0.0}
    model = EasyTensorClassifier(class_weight=weights, max_epochs=1, random_state=seed)
    assert np.isfinite(model.fit(X, y).best_score_)
