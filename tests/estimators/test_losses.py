"""Losses: those of users, those that are built in, and what is checked before training."""

import pickle
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from torch import nn
from torch.nn import functional

from sk_easytensor import MLP, EasyTensorClassifier, EasyTensorRegressor
from sk_easytensor._utils.describe import describe_object
from sk_easytensor.inference import load
from sk_easytensor.losses import (
    Focal,
    Loss,
    SquaredError,
    Tweedie,
    row_losses,
)

LEARNS = {
    "trunk": MLP(width=8, dropout=0.0),
    "trees": None,
    "weight_decay": 0,
    "batch_size": 32,
    "random_state": 0,
}


def asymmetric(outputs, targets, factor=3.0):
    """Too low a prediction costs three times as much as too high a one."""
    error = targets - outputs
    return torch.where(error > 0, factor * error, -error)


def focal(outputs, targets):
    """Focal loss of two classes, as one would write it."""
    losses = functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
    return (1 - torch.exp(-losses)) ** 2 * losses


def mean_focal(outputs, targets):
    return focal(outputs, targets).mean()


class Linex(nn.Module):
    """Exponential costs on one side; it depends on the unit of the target."""

    def __init__(self, slope):
        super().__init__()
        self.register_buffer("slope", torch.tensor(slope))

    def forward(self, outputs, targets):
        scaled = self.slope * (targets - outputs)
        return torch.exp(scaled) - scaled - 1


class Relative(Loss):
    """Squared error of logarithms."""

    name = "relative"
    estimator_types = ("regressor",)
    link = "log"

    def __init__(self, power=2):
        self.power = power

    def check_target(self, y):
        if (y <= 0).any():
            raise ValueError(f"loss='relative' needs y > 0, got {y.min()}")

    def loss(self, outputs, targets):
        return (outputs - torch.log(targets)).abs() ** self.power


@pytest.fixture
def skewed():
    rng = np.random.default_rng(0)
    return rng.normal(size=(300, 1)), 1000 * rng.exponential(size=300)


@pytest.fixture
def classes():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 2))
    return X, np.where(X[:, 0] + 0.5 * rng.normal(size=200) > 0, "yes", "no")


# ---------------------------------------------------------------------- losses of users


def test_an_asymmetric_loss_of_a_user_is_learned(skewed):
    X, y = skewed
    params = {**LEARNS, "max_epochs": 12}
    own = EasyTensorRegressor(loss=asymmetric, **params).fit(X, y)
    builtin = EasyTensorRegressor(loss="quantile", quantile=0.75, **params).fit(X, y)
    # Its minimizer is the quantile of 3 / (3 + 1).
    assert (y <= own.predict(X)).mean() == pytest.approx(0.75, abs=0.07)
    np.testing.assert_allclose(own.predict(X).mean(), builtin.predict(X).mean(), rtol=0.1)
    curve = own.evals_result_["valid_0"]["asymmetric"]
    assert min(curve) == pytest.approx(4 * builtin.best_score_, rel=0.1)
    assert own.best_score_ == min(curve)


def test_a_loss_of_a_user_is_computed_in_units_of_the_target(skewed):
    X, y = skewed
    model = EasyTensorRegressor(loss=Linex(1e-3), max_epochs=1, **LEARNS)
    model.fit(X[:200], y[:200], eval_set=[(X[200:], y[200:])])
    error = (y[200:] - model.predict(X[200:])) / 1000
    assert model.best_score_ == pytest.approx(np.mean(np.exp(error) - error - 1), rel=1e-4)
    assert model.evals_result_["training"]["Linex"][0] == pytest.approx(
        np.mean(np.exp((y[:200] - y[:200].mean()) / 1000) - 1), rel=0.5
    )


def test_the_unit_of_a_target_changes_little(skewed):
    X, y = skewed
    plain = EasyTensorRegressor(loss=asymmetric, max_epochs=2, **LEARNS).fit(X, y)
    small = EasyTensorRegressor(loss=asymmetric, max_epochs=2, **LEARNS).fit(X, y * 2.0**-30)
    np.testing.assert_allclose(small.predict(X) * 2.0**30, plain.predict(X), rtol=1e-4)


def test_focal_loss_of_a_user_is_that_of_the_library(classes):
    X, y = classes
    own, mean, builtin = (
        EasyTensorClassifier(loss=loss, max_epochs=2, **LEARNS).fit(X, y)
        for loss in (focal, mean_focal, "focal")
    )
    expected = builtin.predict_proba(X)
    np.testing.assert_allclose(own.predict_proba(X), expected, atol=1e-4)
    np.testing.assert_allclose(mean.predict_proba(X), expected, atol=1e-4)
    assert own.score(X, y) > 0.7
    assert list(mean.evals_result_["valid_0"]) == ["mean_focal"]
    assert builtin.best_score_ == pytest.approx(own.best_score_, rel=1e-3)


def test_weights_of_rows_count_for_a_mean(classes):
    X, y = classes
    weight = np.where(y == "yes", 5.0, 1.0)
    fits = [
        EasyTensorClassifier(loss=loss, max_epochs=1, **LEARNS).fit(X, y, sample_weight=weight)
        for loss in (focal, mean_focal)
    ]
    one, other = (model.predict_proba(X) for model in fits)
    np.testing.assert_allclose(one, other, atol=1e-5)
    plain = EasyTensorClassifier(loss=focal, max_epochs=1, **LEARNS).fit(X, y)
    assert one[:, 1].mean() > plain.predict_proba(X)[:, 1].mean() + 0.02


@pytest.mark.parametrize(
    ("loss", "columns"),
    [
        (nn.CrossEntropyLoss(), None),
        (nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1), None),
        (nn.BCEWithLogitsLoss(), 3),
        (nn.BCEWithLogitsLoss(reduction="none"), 3),
    ],
)
def test_modules_of_torch_for_more_classes_and_labels(loss, columns):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 3))
    y = X.argmax(axis=1) if columns is None else (X > 0).astype(int)
    model = EasyTensorClassifier(loss=loss, max_epochs=6, **LEARNS).fit(X, y)
    assert model.score(X, y) > 0.5
    assert model.predict_proba(X).shape == (120, 3)


@pytest.mark.parametrize("loss", [nn.SmoothL1Loss(), nn.MSELoss(reduction="none"), asymmetric])
def test_several_numbers(loss):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 2))
    y = X * [1, 1000]
    model = EasyTensorRegressor(loss=loss, max_epochs=2, validation_fraction=None, **LEARNS)
    model.fit(X, y, eval_set=[(X, y)])
    found = row_losses(model._loss(), *map(torch.from_numpy, (model.predict(X), y)))
    assert model.evals_result_["training"][model._loss().name][-1] == pytest.approx(
        found.mean().item(), rel=1e-4
    )


def test_a_class_with_a_link_and_checks(skewed):
    X, y = skewed
    model = EasyTensorRegressor(loss=Relative(), max_epochs=8, **LEARNS)
    model.fit(X[:200], y[:200], eval_set=[(X[200:], y[200:])])
    predicted = model.predict(X[200:])
    assert (predicted > 0).all()
    expected = np.mean((np.log(predicted) - np.log(y[200:])) ** 2)
    assert model.best_score_ == pytest.approx(expected, rel=1e-3)
    with pytest.raises(ValueError, match="loss='relative' needs y > 0, got -5"):
        model.fit(X, np.r_[y[1:], -5])
    assert clone(model).set_params(loss__power=1).get_params()["loss__power"] == 1
    assert model.loss.power == 2


def test_trees_are_left_out_beside_a_loss_that_they_cannot_learn(skewed, classes):
    params = {**LEARNS, "trees": "auto", "max_epochs": 1}
    for estimator, (X, y) in (
        (EasyTensorRegressor(loss=asymmetric, **params), skewed),
        (EasyTensorClassifier(loss="focal", **params), classes),
    ):
        model = estimator.fit(X, y)
        assert model.trees_share_ == 0
        assert model.network_.trees is None


def test_the_true_log_loss_is_a_metric_beside_another_loss(classes):
    X, y = classes
    model = EasyTensorClassifier(
        loss="focal", eval_metric="logloss", stopping_metric="focal", max_epochs=1, **LEARNS
    ).fit(X[:150], y[:150], eval_set=[(X[150:], y[150:])])
    probability = model.predict_proba(X[150:])[np.arange(50), (y[150:] == "yes").astype(int)]
    found = model.evals_result_["valid_0"]
    assert found["logloss"][-1] == pytest.approx(-np.log(probability).mean(), rel=1e-4)
    assert found["focal"][-1] < found["logloss"][-1]
    assert len(model.feature_importances_) == 2
    assert model._validation["measures"]["log loss"] == pytest.approx(found["logloss"][-1])


@pytest.mark.parametrize("loss", [asymmetric, Linex(1e-3), partial(asymmetric, factor=2.0)])
def test_losses_survive_cloning_pickling_and_warm_start(loss, skewed):
    X, y = skewed
    model = clone(EasyTensorRegressor(loss=loss, warm_start=True, max_epochs=1, **LEARNS))
    loaded = pickle.loads(pickle.dumps(model.fit(X, y)))
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    assert loaded.fit(X, y).n_iter_ == 2
    with pytest.raises(ValueError, match="loss changed since the fit"):
        loaded.set_params(loss=partial(asymmetric, factor=4.0)).fit(X, y)
    assert repr(clone(model)).startswith("EasyTensorRegressor(")


def test_losses_that_differ_have_different_descriptions():
    def closed_over(factor):
        return lambda outputs, targets: factor * (outputs - targets) ** 2

    losses = [asymmetric, focal, nn.HuberLoss(), nn.HuberLoss(delta=2.0), Linex(1.0), Linex(2.0)]
    losses += [partial(asymmetric, factor=2.0), closed_over(1), closed_over(2)]
    texts = [describe_object(loss) for loss in losses]
    assert len(set(texts)) == len(losses)
    assert describe_object(closed_over(1)) == describe_object(closed_over(1))
    assert not any(" at 0x" in text for text in texts)


def test_fits_with_a_loss_resume_from_their_own_checkpoints(skewed, tmp_path):
    X, y = skewed
    fits = [partial(asymmetric, factor=2.0), partial(asymmetric, factor=4.0), Tweedie(1.2), "gamma"]
    for loss in fits:
        params = {**LEARNS, "max_epochs": 1, "checkpoint_dir": tmp_path}
        EasyTensorRegressor(loss=loss, **params).fit(X, y)
    assert len(list(tmp_path.iterdir())) == len(fits)


def test_exported_models_need_the_link_alone(skewed, tmp_path):
    X, y = skewed
    frame = pd.DataFrame(X, columns=["a"])
    model = EasyTensorRegressor(loss=Relative(), max_epochs=1, **LEARNS).fit(frame, y)
    found = load(model.to_onnx(tmp_path / "model.onnx")).predict(frame)
    np.testing.assert_allclose(found, model.predict(frame), rtol=1e-4)


# ---------------------------------------------------------------------- refused before training


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("absolute", "loss must be one of .*'squared_error'.* a callable .*, got 'absolute'"),
        (5, "loss must be one of .* got 5"),
        (nn.MSELoss, "loss must be one of .* got <class"),
        ("focal", "loss must be one of"),
        (Focal(), "is for a classifier; use one of"),
        (lambda o, t: (o - t).detach(), "not differentiable"),
        (lambda o, t: (o.detach().numpy() - t.numpy()) ** 2, "'loss' returns a ndarray"),
        (lambda o, t: (o > t).long(), "returns a tensor of torch.int64"),
        (lambda o, t: (o[:, None] - t) ** 2, r"shape \(120, 120\) for 120 rows.*shape \(120,\)"),
        (lambda o, t: torch.sqrt(o - t - 1e9), "is nan for a row with the target"),
        (lambda o, t: torch.sqrt((o - t) * 0), "gradient of NaN or infinity"),
        (lambda o: o, "failed for 120 rows with 1 outputs: TypeError"),
        (lambda o, t: (o - t).mean() if o.sum() > 0 else o.mean(), "failed for 120 rows"),
        (Tweedie(power=2.5), "power must be a number greater than 1 and less than 2, got 2.5"),
    ],
)
def test_losses_that_cannot_be_trained_on(loss, message, recorder):
    X = np.random.default_rng(0).normal(size=(120, 2))
    model = EasyTensorRegressor(
        loss=loss, callbacks=[recorder], max_epochs=1, validation_fraction=None, **LEARNS
    )
    with pytest.raises(ValueError, match=f"(?s)EasyTensorRegressor: .*{message}"):
        model.fit(X, X[:, 0])
    assert recorder.epochs == 0
    assert not hasattr(model, "network_")


@pytest.mark.parametrize(
    ("loss", "n_classes", "message"),
    [
        ("poisson", 2, "loss must be one of"),
        (SquaredError(), 2, "is for a regressor"),
        (Focal(gamma=-1), 2, "gamma must be a number at least 0"),
        (Focal(alpha=2.0), 2, "alpha must be a number at least 0 and at most 1"),
        (Focal(alpha=0.3), 3, "alpha must be a list of 3 numbers"),
        (Focal(alpha=[0.3, 0.7]), 2, "alpha must be a number for a binary target"),
    ],
)
def test_losses_that_do_not_fit_classes(loss, n_classes, message):
    X = np.random.default_rng(0).normal(size=(60, 2))
    with pytest.raises(ValueError, match=message):
        EasyTensorClassifier(loss=loss, max_epochs=1, **LEARNS).fit(X, np.arange(60) % n_classes)
