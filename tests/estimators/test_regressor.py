"""Targets and losses of the regressor."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.exceptions import DataConversionWarning
from sklearn.metrics import r2_score

from sk_easytensor import MLP, EasyTensorRegressor, TabM
from sk_easytensor.losses import loss_names

LEARNS = {"max_epochs": 20, "learning_rate": 0.02}


@pytest.fixture
def numbers():
    return np.random.default_rng(0).uniform(-1, 1, size=(300, 2))


def test_one_output(regressor, numbers):
    y = 1000 + 50 * numbers[:, 0]
    model = regressor(**LEARNS).fit(numbers, y)
    predicted = model.predict(numbers)
    assert predicted.shape == (300,)
    assert predicted.dtype == np.float64
    assert r2_score(y, predicted) > 0.9
    assert model.n_outputs_ == 1


@pytest.mark.parametrize("make", [np.asarray, pd.DataFrame])
def test_several_outputs_of_unlike_scale(make, regressor, numbers):
    y = np.column_stack([1e6 * numbers[:, 0], 1e-3 * numbers[:, 1] - 7])
    model = regressor(**LEARNS).fit(numbers, make(y))
    assert model.n_outputs_ == 2
    assert (r2_score(y, model.predict(numbers), multioutput="raw_values") > 0.8).all()


@pytest.mark.parametrize("make", [np.asarray, pd.DataFrame])
def test_a_column_is_raveled_with_a_warning(make, regressor, numbers):
    column = make(numbers[:, :1])
    with pytest.warns(DataConversionWarning, match="column-vector y was passed"):
        model = regressor().fit(numbers, column)
    predicted = model.predict(numbers)
    assert model.n_outputs_ == 1
    assert predicted.shape == (300,)
    np.testing.assert_array_equal(
        predicted, regressor().fit(numbers, numbers[:, 0]).predict(numbers)
    )
    with pytest.warns(DataConversionWarning, match="column-vector y was passed"):
        model.fit(numbers, numbers[:, 0], eval_set=[(numbers, column)])


@pytest.mark.parametrize("kind", [int, bool, np.float32, object])
def test_types_of_the_target(kind, regressor, numbers):
    y = (numbers[:, 0] > 0).astype(int)
    expected = regressor().fit(numbers, y).predict(numbers)
    np.testing.assert_array_equal(
        regressor().fit(numbers, y.astype(kind)).predict(numbers), expected
    )


@pytest.mark.parametrize("loss", loss_names("regressor"))
def test_a_constant_target_is_predicted_exactly(loss, regressor, numbers):
    quantile = 0.9 if loss == "quantile" else None
    model = regressor(loss=loss, quantile=quantile, trees="auto", max_epochs=2)
    # No sum of them, nor their mean, is exact.
    assert set(model.fit(numbers, np.full(300, 0.1)).predict(numbers)) == {0.1}
    y = np.column_stack([np.full(300, 1e-170), 2 + numbers[:, 0], np.full(300, 1e140 / 3)])
    predicted = model.fit(numbers, y).predict(numbers)
    assert np.unique(predicted[:, ::2], axis=0).tolist() == [[1e-170, 1e140 / 3]]
    assert len(set(predicted[:, 1])) > 30


def test_a_constant_is_forgotten_when_training_goes_on(regressor, numbers):
    model = regressor().partial_fit(numbers, np.full(300, 5.0))
    assert set(model.predict(numbers)) == {5.0}
    assert set(model.partial_fit(numbers[:30], np.full(30, 5.0)).predict(numbers)) == {5.0}
    model.partial_fit(numbers, 5 + numbers[:, 0])
    assert len(set(model.predict(numbers))) > 30
    model.partial_fit(numbers, np.full(300, 5.0))
    assert len(set(model.predict(numbers))) > 30


@pytest.mark.parametrize("size", [5e-324, 1e-310, 1e-170, 1e-30, 1e30, 1e149])
@pytest.mark.parametrize("loss", ["squared_error", "poisson"])
def test_targets_of_any_size(size, loss, regressor, numbers):
    y = size * np.random.default_rng(0).integers(1, 9, 300)
    predicted = regressor(loss=loss, trees="auto").fit(numbers, y).predict(numbers)
    assert np.isfinite(predicted).all()
    assert np.median(predicted) / size == pytest.approx(4.5, abs=1.5)


def test_units_of_a_power_of_two_change_no_digit(regressor, numbers):
    y = np.random.default_rng(1).normal(size=300)
    plain = regressor().fit(numbers, y).predict(numbers)
    moved = regressor().fit(numbers, y * 2.0**-500).predict(numbers)
    np.testing.assert_array_equal(moved, plain * 2.0**-500)


@pytest.mark.parametrize("loss", ["squared_error", "absolute_error", "huber"])
def test_predictions_follow_shift_and_scale(loss, regressor, numbers):
    y = np.random.default_rng(1).normal(size=300)
    plain = regressor(loss=loss).fit(numbers, y).predict(numbers)
    moved = regressor(loss=loss).fit(numbers, 1e5 + 1e3 * y).predict(numbers)
    np.testing.assert_allclose(moved, 1e5 + 1e3 * plain, rtol=1e-5)


# ---------------------------------------------------------------------- losses


@pytest.fixture
def skewed():
    """Exponential noise, of median 0.69 and mean 1, beside a column that says nothing."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(1000, 1)), rng.exponential(size=1000)


def level(X, y, **params):
    """Return the mean prediction of a model that is too small to learn the noise."""
    model = EasyTensorRegressor(
        trunk=MLP(width=8), batch_size=64, random_state=0, weight_decay=0, **LEARNS, **params
    )
    return model.fit(X, y).predict(X).mean()


def test_squared_error_estimates_the_mean(skewed):
    assert level(*skewed) == pytest.approx(1.0, abs=0.12)


def test_absolute_error_estimates_the_median(skewed):
    assert level(*skewed, loss="absolute_error") == pytest.approx(np.log(2), abs=0.12)


@pytest.mark.parametrize(("quantile", "slack"), [(0.1, 0.05), (0.5, 0.08), (0.9, 0.05)])
def test_quantile_covers_its_share(quantile, slack, skewed):
    X, y = skewed
    model = EasyTensorRegressor(
        loss="quantile",
        quantile=quantile,
        trunk=MLP(width=8),
        batch_size=64,
        random_state=0,
        **LEARNS,
    )
    assert (y <= model.fit(X, y).predict(X)).mean() == pytest.approx(quantile, abs=slack)


def test_huber_is_robust(skewed):
    X, y = skewed
    y = np.random.default_rng(1).normal(size=1000)
    y[::25] = 100
    squared, huber = level(X, y), level(X, y, loss="huber")
    assert squared == pytest.approx(y.mean(), abs=1)
    assert abs(huber) < squared / 2


@pytest.mark.parametrize(("loss", "zeros"), [("poisson", True), ("gamma", False)])
def test_log_link_losses_are_positive_and_estimate_the_mean(loss, zeros, numbers):
    rng = np.random.default_rng(1)
    mean = 20 * np.exp(numbers[:, 0])
    y = rng.poisson(mean) if zeros else rng.gamma(2.0, mean / 2)
    model = EasyTensorRegressor(
        loss=loss, trunk=TabM(members=2, width=16), batch_size=32, random_state=0, **LEARNS
    )
    predicted = model.fit(numbers, y).predict(numbers)
    assert (predicted > 0).all()
    assert np.corrcoef(np.log(predicted), numbers[:, 0])[0, 1] > 0.85
    assert predicted.mean() == pytest.approx(y.mean(), rel=0.15)


@pytest.mark.parametrize("loss", ["absolute_error", "huber", "quantile", "poisson", "gamma"])
def test_losses_take_several_outputs_and_weights(loss, regressor, numbers):
    y = np.abs(numbers) + 0.1
    weight = np.linspace(1, 2, 300)
    quantile = 0.3 if loss == "quantile" else None
    model = regressor(loss=loss, quantile=quantile).fit(numbers, y, sample_weight=weight)
    assert model.predict(numbers).shape == (300, 2)
    assert list(model.evals_result_["valid_0"]) == [loss]


@pytest.mark.parametrize(
    ("loss", "low", "message"),
    [("poisson", -1.0, "loss='poisson' needs y >= 0"), ("gamma", 0.0, "loss='gamma' needs y > 0")],
)
def test_targets_outside_the_domain_of_a_loss(loss, low, message, regressor, numbers, recorder):
    y = np.ones(300)
    y[5] = low
    with pytest.raises(ValueError, match=message):
        regressor(loss=loss, callbacks=[recorder]).fit(numbers, y)
    with pytest.raises(ValueError, match=rf"eval_set\[0\]: {message}"):
        regressor(loss=loss, callbacks=[recorder]).fit(
            numbers, np.ones(300), eval_set=[(numbers, y)]
        )
    assert recorder.epochs == 0


def test_decimals_of_many_digits_are_numbers(regressor, numbers, tmp_path):
    frame = pd.DataFrame(numbers[:100].round(3), columns=["a", "b"]).assign(y=numbers[:100, 0])
    kinds = {"b": pa.decimal128(38, 10), "y": pa.decimal128(20, 10)}
    decimals = pa.Table.from_pandas(frame)
    for name, kind in kinds.items():
        column = decimals[name].cast(kind)
        decimals = decimals.set_column(decimals.column_names.index(name), name, column)
        frame[name] = column.cast(pa.float64()).to_numpy()
    pq.write_table(decimals, tmp_path / "rows.parquet")
    expected = regressor(max_epochs=1).fit(frame[["a", "b"]], frame["y"]).predict(frame)
    model = regressor(max_epochs=1).fit(tmp_path / "rows.parquet", "y")
    for X in (tmp_path / "rows.parquet", decimals.to_pandas(), decimals, frame):
        np.testing.assert_array_equal(model.predict(X), expected)
    empty = decimals.set_column(1, "b", pa.nulls(100, kinds["b"]))
    np.testing.assert_array_equal(model.predict(empty), model.predict(frame.assign(b=None)))
