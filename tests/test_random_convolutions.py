"""Convolutions with fixed kernels, and the linear model that reads them."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from sk_easytensor.networks.heads import BinaryHead, MulticlassHead, RegressionHead
from sk_easytensor.networks.random_convolutions import (
    RandomConvolutions,
    choose_dilations,
    differences,
    fit_random_convolutions,
)
from sk_easytensor.training.ridge import LinearRows, Regression

KERNELS = [
    [2.0 if step in peaks else -1.0 for step in range(9)] for peaks in combinations(range(9), 3)
]


def positive_steps(series, kernel, dilation, bias, beyond_ends):
    """Return the share of steps at which a convolution exceeds a bias, and by how much."""
    n_steps = series.shape[1]
    reach = 0 if beyond_ends or n_steps <= 8 * dilation else 4 * dilation
    steps = range(reach, n_steps - reach)
    above = []
    for step in steps:
        total = 0.0
        for position, weight in enumerate(kernel):
            at = step + (position - 4) * dilation
            if 0 <= at < n_steps:
                total += weight * series[:, at].sum()
        if total > bias:
            above.append(total - bias)
    return len(above) / max(len(steps), 1), sum(above) / max(len(above), 1)


def padded(series):
    lengths = torch.tensor([part.shape[1] for part in series])
    stacked = torch.zeros(len(series), series[0].shape[0], max(1, int(lengths.max())))
    for row, part in enumerate(series):
        stacked[row, :, : part.shape[1]] = torch.from_numpy(part)
    return stacked, lengths


def random_series(rng, lengths, n_channels):
    # Multiples of a power of two, so that sums are exact in any order.
    return [
        (rng.integers(-64, 64, (n_channels, length)) / 16).astype(np.float32) for length in lengths
    ]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
)
def test_features_are_proportions_and_means_of_steps_above_a_bias(lengths, n_channels, seed):
    rng = np.random.default_rng(seed)
    series = random_series(rng, lengths, n_channels)
    dilations = [1, 3]
    subsets = [rng.random((84, n_channels)) < 0.6 for _ in dilations]
    biases = [rng.normal(size=(84, 2)).astype(np.float32) for _ in dilations]
    found = RandomConvolutions(dilations, subsets, biases)(*padded(series)).numpy()
    for row in range(len(series)):
        parts = found[row].reshape(2, 84, 2, 2)
        for index, kernel in zip(*np.nonzero(rng.random((2, 84)) < 0.1), strict=True):
            for number, bias in enumerate(biases[index][kernel]):
                expected = positive_steps(
                    series[row][subsets[index][kernel]],
                    KERNELS[kernel],
                    dilations[index],
                    bias,
                    (kernel + index) % 2 == 0,
                )
                assert parts[index, kernel, :, number] == pytest.approx(
                    expected, rel=2e-6, abs=2e-6
                )


def test_features_of_a_series_do_not_depend_on_others():
    rng = np.random.default_rng(0)
    series = random_series(rng, [30, 5, 0, 61, 12], 2)
    chosen = fit_random_convolutions(*padded(series), 5)
    convolutions = RandomConvolutions(*chosen)
    assert convolutions.out_features == 840
    together = convolutions(*padded(series))
    alone = torch.cat([convolutions(*padded([part])) for part in series])
    torch.testing.assert_close(together, alone, rtol=0, atol=0)
    assert torch.isfinite(together).all()
    assert (together[2] == 0).all()


def test_batches_in_pieces_give_the_features_of_whole_ones(monkeypatch):
    series = random_series(np.random.default_rng(0), [30, 40, 21], 1)
    convolutions = RandomConvolutions(*fit_random_convolutions(*padded(series), 2))
    whole = convolutions(*padded(series))
    monkeypatch.setattr("sk_easytensor.networks.random_convolutions.CACHED_VALUES", 1)
    torch.testing.assert_close(convolutions(*padded(series)), whole, rtol=0, atol=0)


def test_differences_are_those_within_a_series():
    series = random_series(np.random.default_rng(0), [7, 1, 0, 3], 2)
    found, lengths = differences(*padded(series))
    assert lengths.tolist() == [6, 0, 0, 2]
    for row, part in enumerate(series):
        expected = np.zeros((2, 7))
        expected[:, : lengths[row]] = np.diff(part, axis=1)[:, : lengths[row]]
        np.testing.assert_array_equal(found[row], expected)


@given(st.integers(0, 20_000), st.integers(1, 120))
def test_dilations_keep_the_largest_kernel_within_the_series(longest, n_biases):
    dilations, numbers = choose_dilations(longest, n_biases)
    assert numbers.sum() == n_biases
    assert (numbers > 0).all()
    assert dilations[0] == 1
    assert (np.diff(dilations) > 0).all()
    assert dilations[-1] == 1 or 8 * dilations[-1] < longest


def test_biases_are_quantiles_of_the_convolutions():
    series = random_series(np.random.default_rng(0), [100] * 6, 1)
    stacked, lengths = padded(series)
    dilations, subsets, biases = fit_random_convolutions(stacked, lengths, 20)
    features = RandomConvolutions(dilations, subsets, biases)(stacked, lengths).numpy()
    # A bias at a random quantile is exceeded at half of the steps on average.
    sizes = np.cumsum([bias.size for bias in biases])[:-1]
    parts = np.split(features, 2 * sizes, axis=1)
    features = np.concatenate(
        [p.reshape(6, 84, 2, -1)[:, :, 0].reshape(6, -1) for p in parts], axis=1
    )
    assert features.mean() == pytest.approx(0.5, abs=0.02)
    assert features.std(0).min() >= 0
    again = fit_random_convolutions(stacked, lengths, 20)
    assert all(np.array_equal(*pair) for pair in zip(biases, again[2], strict=True))
    other = fit_random_convolutions(stacked, lengths, 20, seed=1)
    assert not all(np.array_equal(*pair) for pair in zip(biases, other[2], strict=True))


def rows_of(rng, n_rows, target, weight=None):
    features = {
        "a": rng.normal(size=(n_rows, 30)).astype(np.float32),
        "b": np.c_[rng.normal(size=(n_rows, 3)), np.full(n_rows, 0.1)].astype(np.float32),
    }
    weights = {"a": np.ones(30, np.float32), "b": np.full(4, 2, np.float32)}
    weight = np.ones(n_rows) if weight is None else weight
    return LinearRows(features, target, weight, weights)


def subset(rows, kept):
    features = {name: part[kept] for name, part in rows.features.items()}
    return LinearRows(features, rows.target[kept], rows.weight[kept], rows.feature_weights)


# Fewer rows than features, and more.
@pytest.mark.parametrize("n_rows", [25, 60])
def test_regression_is_the_ridge_regression_of_scikit_learn(n_rows):
    rng = np.random.default_rng(0)
    weight = rng.integers(1, 4, n_rows).astype(np.float64)
    rows = rows_of(rng, n_rows, rng.normal(size=(n_rows, 2)), weight)
    module = Regression.of(rows, RegressionHead(n_outputs=2)).module(
        ["a", "b"], 3.0, 1.0, share=0.5
    )
    matrix = np.concatenate([rows.features[name] for name in ("a", "b")], axis=1).astype(float)
    center = np.average(matrix, axis=0, weights=weight)
    spread = np.sqrt(np.average((matrix - center) ** 2, axis=0, weights=weight))
    parts = [spread[:30], spread[30:33]]
    least = np.repeat([0.1 * np.median(part) for part in parts], [30, 4])
    scale = np.array([1.0] * 30 + [2.0] * 4) / np.hypot(spread, least)
    scale[33] = 0
    ridge = Ridge(alpha=3.0).fit(
        (matrix - center) * scale, rows.target, sample_weight=weight / weight.mean()
    )
    parts = [
        torch.from_numpy(rows.features[name]).float() @ module.weight(name) for name in ("a", "b")
    ]
    expected = ridge.predict((matrix - center) * scale)
    np.testing.assert_allclose(module.outputs(parts)[:, 0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_rows", [20, 60])
@pytest.mark.parametrize("penalty", [0.5, 20.0])
def test_left_out_predictions_are_those_of_regressions_without_the_row(penalty, n_rows):
    rng = np.random.default_rng(1)
    weight = rng.uniform(0.5, 2, n_rows)
    rows = rows_of(rng, n_rows, rng.normal(size=(n_rows, 1)), weight)
    whole = Regression.of(rows, RegressionHead())
    found = whole.left_out(penalty)
    for row in (0, 7, 19):
        kept = np.arange(n_rows) != row
        # With the centre and scale of all rows, which left-out predictions share.
        root = whole.root[kept]
        features = (whole.features / whole.root)[kept]
        share = (root**2 / (root**2).sum())[:, 0]
        mean, center = share @ whole.target[kept], share @ features
        gram = root * (features - center)
        dual = np.linalg.solve(
            gram @ gram.T + penalty * np.eye(n_rows - 1), root * (whole.target[kept] - mean)
        )
        new = (whole.features / whole.root)[row] - center
        np.testing.assert_allclose(found[row], mean + new @ (gram.T @ dual), rtol=1e-6)


@pytest.mark.parametrize(
    ("head", "target"),
    [
        (BinaryHead(), np.arange(30) % 2),
        (MulticlassHead(3), np.arange(30) % 3),
    ],
)
def test_separable_classes_get_confident_scores(head, target):
    rng = np.random.default_rng(0)
    rows = rows_of(rng, 30, target.astype(np.float32 if head.kind == "binary" else np.int64))
    rows.features["a"][:, :3] = np.eye(3)[target] * 4
    regression = Regression.of(rows, head)
    penalty, factor = regression.choose(head)
    module = regression.module(["a", "b"], penalty, factor, share=0.5)
    parts = [
        torch.from_numpy(np.float32(part)) @ module.weight(name)
        for name, part in rows.features.items()
    ]
    outputs = module.outputs(parts)
    encoded = torch.from_numpy(rows.target)
    assert float(head.loss(head.normalize(outputs), encoded).mean()) < 0.2


@pytest.mark.parametrize("n_rows", [12, 48])
def test_scores_of_few_separable_rows_are_not_certain(n_rows):
    rng = np.random.default_rng(0)
    target = (np.arange(n_rows) % 2).astype(np.float32)
    rows = rows_of(rng, n_rows, target)
    rows.features["a"][:, 0] = np.where(target, 50, -50)
    regression = Regression.of(rows, BinaryHead())
    penalty, factor = regression.choose(BinaryHead())
    scores = np.abs(regression.left_out(penalty)) * factor
    # One row in so many may be wrong.
    assert 0.1 < np.median(scores) / np.log(n_rows) < 10
