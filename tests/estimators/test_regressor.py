"""Targets and losses of the regressor."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import r2_score

from sk_easytensor import MLP, EasyTensorRegressor, TabM

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


def test_a_column_stays_a_column(regressor, numbers):
    model = regressor().fit(numbers, numbers[:, :1])
    assert model.predict(numbers).shape == (300, 1)


@pytest.mark.parametrize("kind", [int, bool, np.float32, object])
def test_types_of_the_target(kind, regressor, numbers):
    y = (numbers[:, 0] > 0).astype(int)
    expected = regressor().fit(numbers, y).predict(numbers)
    np.testing.assert_array_equal(
        regressor().fit(numbers, y.astype(kind)).predict(numbers), expected
    )


def test_a_constant_target_is_predicted(regressor, numbers):
    predicted = regressor(max_epochs=15).fit(numbers, np.full(300, 42.0)).predict(numbers)
    np.testing.assert_allclose(predicted, 42, atol=0.5)


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


def test_poisson_takes_targets_that_are_all_zero(regressor, numbers):
    predicted = regressor(loss="poisson", **LEARNS).fit(numbers, np.zeros(300)).predict(numbers)
    assert (predicted < 0.9).all()
    assert np.isfinite(predicted).all()


@pytest.mark.parametrize("loss", ["absolute_error", "huber", "quantile", "poisson", "gamma"])
def test_losses_take_several_outputs_and_weights(loss, regressor, numbers):
    y = np.abs(numbers) + 0.1
    weight = np.linspace(1, 2, 300)
    model = regressor(loss=loss, quantile=0.3).fit(numbers, y, sample_weight=weight)
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
