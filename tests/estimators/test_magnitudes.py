"""Numbers of any finite size, as features, targets, weights and offsets."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sk_easytensor import (
    MLP,
    BoostedTrees,
    CategoryBlock,
    EasyTensorClassifier,
    EasyTensorMultiTask,
    EasyTensorRegressor,
    EasyTensorTwoTower,
    EventSequenceBlock,
    NumericBlock,
    NumericSequenceBlock,
    VectorBlock,
)
from sk_easytensor.inference import load

N_ROWS = 120
LOSSES = ("squared_error", "absolute_error", "huber", "poisson", "gamma")
QUICK = {"max_epochs": 1, "random_state": 0, "trunk": MLP(width=4, layers=1)}
LARGEST = np.finfo(np.float64).max

random = np.random.default_rng(0)
FEATURES = {"number": random.normal(size=N_ROWS), "name": random.choice(["a", "b"], N_ROWS)}
NORMAL = random.normal(size=N_ROWS)
LABELS = np.arange(N_ROWS) % 2


def cycled(*values):
    return np.resize(np.array(values, dtype=np.float64), N_ROWS)


def fits(target, loss="squared_error", X=FEATURES, **given):
    """Return the predictions of a quick model, which have to be finite."""
    model = EasyTensorRegressor(loss=loss, **QUICK).fit(X, target, **given)
    predicted = model.predict(X)
    assert np.isfinite(predicted).all()
    return predicted


# ---------------------------------------------------------------------- targets


@pytest.mark.parametrize("loss", LOSSES)
def test_scaled_targets_are_predicted_alike(loss):
    target = np.exp(NORMAL)
    expected = fits(target, loss)
    for exponent in (-1000, -500, 480):
        scaled = np.ldexp(target, exponent)
        np.testing.assert_allclose(np.ldexp(fits(scaled, loss), -exponent), expected, rtol=1e-9)


magnitudes = st.integers(-1074, 498).map(lambda power: np.ldexp(1.0, power))


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(magnitudes, min_size=1, max_size=4), st.booleans(), st.sampled_from(LOSSES))
def test_targets_of_mixed_magnitudes(sizes, signed, loss):
    target = cycled(*sizes)
    if signed and loss not in ("poisson", "gamma"):
        target *= np.where(np.arange(N_ROWS) % 3 == 0, -1, 1)
    model = EasyTensorRegressor(loss=loss, trees=None, **QUICK).fit(FEATURES, target)
    assert np.isfinite(model.predict(FEATURES)).all()


@pytest.mark.parametrize("value", [1e200, -1e305, LARGEST])
def test_larger_targets_are_refused_by_name(value):
    for target in (np.r_[NORMAL[1:], value], np.c_[NORMAL, np.full(N_ROWS, value)]):
        with pytest.raises(ValueError, match=r"y holds .*up to 1e\+150.*divide y"):
            fits(target)
    with pytest.raises(ValueError, match=r"eval_set\[0\]: y holds .*up to 1e\+150"):
        fits(NORMAL, eval_set=[(FEATURES, np.r_[NORMAL[1:], value])])
    tasks = EasyTensorMultiTask({"amount": "regression"}, **QUICK)
    with pytest.raises(ValueError, match=r"y\['amount'\]: y holds .*up to 1e\+150"):
        tasks.fit(FEATURES, {"amount": np.r_[NORMAL[1:], value]})


def test_targets_of_unlike_magnitudes_side_by_side():
    predicted = fits(np.c_[1e-308 * NORMAL, NORMAL, 1e149 * NORMAL])
    assert (np.abs(predicted).max(axis=0) < [1e-306, 100, 1e151]).all()
    tasks = {"small": "gamma", "large": "regression", "count": "poisson", "yes": "binary"}
    y = {
        "small": 1e-308 * np.exp(NORMAL),
        "large": 1e149 * NORMAL,
        "count": np.where(LABELS, 0, 1e140),
        "yes": LABELS,
    }
    found = EasyTensorMultiTask(tasks, **QUICK).fit(FEATURES, y).predict(FEATURES)
    assert np.isfinite(found.to_numpy(dtype=float)).all()
    assert found["small"].max() < 1e-305


@pytest.mark.parametrize("loss", LOSSES)
def test_evaluation_sets_of_other_magnitudes(loss):
    target = np.exp(NORMAL)
    for training, other in ((1e-300, 1e140), (1e140, 1e-300)):
        fits(training * target, loss, eval_set=[(FEATURES, other * target)])


@pytest.mark.parametrize("scale", [1e-308, 1e-160, 1e149])
def test_ratings_of_pairs(scale):
    pairs = pd.DataFrame({"user": np.arange(N_ROWS) % 9, "item": np.arange(N_ROWS) % 7})

    def predicted(y):
        blocks = [("user", CategoryBlock(), "user")], [("item", CategoryBlock(), "item")]
        model = EasyTensorTwoTower(*blocks, embedding_dim=4, **QUICK)
        return model.fit(pairs, y, eval_set=[(pairs, 1e140 * NORMAL)]).predict(pairs)

    np.testing.assert_allclose(predicted(scale * NORMAL) / scale, predicted(NORMAL), rtol=1e-6)


# ---------------------------------------------------------------------- weights and offsets


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_of_unlike_magnitudes(loss):
    target = np.where(LABELS, 1e150, 1.0)
    for weight in (cycled(1e-300, 1e300), cycled(1e300, 1e-300), cycled(1, 1e-37)):
        fits(target, loss, sample_weight=weight)
        fits(target, loss, eval_set=[(FEATURES, target)], eval_sample_weight=[weight])


@pytest.mark.parametrize(
    "weights", [{0: 1e300, 1: 1}, {0: 1e300, 1: 1e300}, {0: 1e-300, 1: 1e-300}, {0: 5e-324}]
)
def test_class_weights(weights):
    for sample_weight in (None, np.full(N_ROWS, 1e300), np.full(N_ROWS, 1e-300)):
        model = EasyTensorClassifier(class_weight=weights, **QUICK)
        model.fit(FEATURES, LABELS, sample_weight=sample_weight)
        assert np.isfinite(model.predict_proba(FEATURES)).all()


def test_class_weights_are_relative():
    first, second = (
        EasyTensorClassifier(class_weight={0: scale, 1: 2 * scale}, **QUICK)
        .fit(FEATURES, LABELS)
        .predict_proba(FEATURES)
        for scale in (1.0, 2.0**-900)
    )
    np.testing.assert_array_equal(first, second)


def test_weights_of_losses():
    with pytest.raises(
        ValueError, match=r"loss_weights\['yes'\] must be .*less than 1000000000000000"
    ):
        EasyTensorMultiTask({"yes": "binary"}, loss_weights={"yes": 1e300}, **QUICK).fit(
            FEATURES, {"yes": LABELS}
        )


def test_offsets():
    margin = np.full(N_ROWS, 1e-300)
    model = EasyTensorRegressor(**QUICK).fit(FEATURES, NORMAL, base_margin=margin)
    assert np.isfinite(model.predict(FEATURES, base_margin=margin)).all()
    with pytest.raises(ValueError, match=r"'base_margin' is 1e\+300 in row 1; .*up to 3e38"):
        fits(NORMAL, base_margin=cycled(1, 1e300))


# ---------------------------------------------------------------------- features

ODD = {
    "an infinite one": [np.inf, -1e308, 1e308],
    "largest": [-LARGEST, LARGEST],
    "from end to end": (LARGEST * np.linspace(-1, 1, 50)).tolist(),
    "close": (1e308 * (1 + np.arange(8) * 1e-14)).tolist(),
    "smallest": [5e-324, 1e-323, -5e-324],
    "all": [sign * 10.0**power for sign in (-1, 1) for power in range(-308, 309, 44)],
}


def encodings(block, values):
    return block.fit({"x": values}).transform({"x": values})


@pytest.mark.parametrize("bins", [4, 128])
@pytest.mark.parametrize("values", ODD.values(), ids=ODD)
def test_numbers_are_told_apart(values, bins):
    block = NumericBlock(bins=bins)
    encoded = encodings(block, values)["values"][:, 0].numpy()
    finite = np.isfinite(values)
    assert np.isfinite([block.center_, block.scale_, block.edges_[0][[0, -1]][:1]]).all()
    assert np.isfinite(encoded[finite]).all()
    order = np.argsort(np.array(values)[finite])
    assert (np.diff(encoded[finite][order], axis=0) >= 0).all()
    # Numbers below the smallest normal one have positions only.
    assert np.ptp(encoded[finite, 1]) > 0
    assert np.ptp(encoded[finite, 0]) > 0 or np.abs(values).max() < np.finfo(float).tiny


@pytest.mark.parametrize("values", ODD.values(), ids=ODD)
def test_vectors_and_series(values):
    values = np.array(values)
    vectors = encodings(VectorBlock(), np.c_[values, values])["values_0"].numpy()
    series = encodings(NumericSequenceBlock(), [[value] for value in values])["values_0"]
    for found in (vectors[:, 0], series.values.numpy()):
        assert np.isfinite(found[np.isfinite(values)]).all()
        varies = np.ptp(found[np.isfinite(values)]) > 0
        assert varies or np.abs(values).max() < np.finfo(float).tiny


def test_small_vectors_are_standardised():
    for scale in (1e-200, 1e160, 1e308):
        block = VectorBlock().fit({"x": scale * (np.c_[NORMAL, 1 + NORMAL] / 10)})
        np.testing.assert_allclose(block.scale_[0], scale * (NORMAL.std() / 10), rtol=1e-9)


def test_models_of_odd_numbers_and_their_graphs(tmp_path):
    numbers = {name: cycled(*values) for name, values in ODD.items()}
    vectors = {f"{name}, twice": list(np.c_[values, NORMAL]) for name, values in numbers.items()}
    X = numbers | vectors
    # One block of each kind is exported in a fraction of the time that one for each column takes.
    blocks = [
        ("numbers", NumericBlock(bins=8), list(numbers)),
        ("vectors", VectorBlock(), list(vectors)),
    ]
    trees = BoostedTrees(max_iter=10)
    model = EasyTensorRegressor(blocks, trees=trees, n_folds=None, **QUICK).fit(X, NORMAL)
    predicted = model.predict(X)
    assert np.isfinite(predicted).all()
    model.to_onnx(tmp_path / "model.onnx")
    exported = load(tmp_path / "model.onnx").predict(X)
    np.testing.assert_allclose(exported, predicted, rtol=1e-4, atol=1e-5)


def test_amounts_of_events():
    values = [value for each in ODD.values() for value in each]
    block = EventSequenceBlock("mean").fit({"x": [[{"amount": value}] for value in values]})
    encoded = block.transform({"x": [[{"amount": value}] for value in values]})
    for entry in encoded.values():
        found = entry.values.double().numpy().reshape(len(values), -1)
        assert np.isfinite(found[np.isfinite(values)]).all()


numbers = st.floats(allow_subnormal=True, width=64)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(numbers, min_size=1, max_size=9), st.lists(numbers, min_size=1, max_size=3))
def test_predictions_are_finite_whatever_the_features(fitted, given_later):
    X = {"x": cycled(*fitted), "name": FEATURES["name"]}
    model = EasyTensorRegressor(trees=None, **QUICK).fit(X, NORMAL)
    later = {"x": np.array(given_later), "name": ["a"] * len(given_later)}
    assert np.isfinite(model.predict(X)).all()
    assert np.isfinite(model.predict(later)).all()
