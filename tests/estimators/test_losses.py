"""Losses: those of users, those that are built in, and what is checked before training."""

import pickle
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import expectile
from sklearn.base import clone
from sklearn.metrics import d2_pinball_score, mean_pinball_loss, mean_tweedie_deviance
from torch import nn
from torch.nn import functional

from sk_easytensor import (
    MLP,
    BoostedTrees,
    EasyTensorClassifier,
    EasyTensorMultiTask,
    EasyTensorRegressor,
)
from sk_easytensor._utils.digests import describe_object
from sk_easytensor.losses import (
    BUILT_IN,
    Expectile,
    Focal,
    LogLoss,
    Loss,
    Quantile,
    SquaredError,
    Tweedie,
    resolve_loss,
    row_losses,
)
from sk_easytensor.networks.heads import RegressionHead
from sk_easytensor.training.descriptions import describe_parameters

LEARNS = {
    "n_folds": None,
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


class NoUnits(Relative):
    standardized = True


class NoLoss(Loss):
    def losses(self, outputs, targets):
        return (outputs - targets) ** 2


class NoTuple(Relative):
    estimator_types = "regressor"


class OtherScale(Relative):
    tree_loss = "squared_error"


class NoTrees(Focal):
    tree_loss = "focal"


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


def test_weights_of_classes_in_a_module_count():
    X = np.random.default_rng(0).normal(size=(120, 3))
    y = X.argmax(axis=1)
    weights = torch.tensor([1.0, 1.0, 8.0])
    plain, weighted = (
        EasyTensorClassifier(loss=loss, max_epochs=4, **LEARNS).fit(X, y).predict_proba(X)
        for loss in (
            nn.CrossEntropyLoss(label_smoothing=0.1),
            nn.CrossEntropyLoss(weight=weights, label_smoothing=0.1),
        )
    )
    assert weighted[:, 2].mean() > plain[:, 2].mean() + 0.1


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
    found = row_losses(model._target.loss, *map(torch.from_numpy, (model.predict(X), y)))
    assert model.evals_result_["training"][model._target.loss.name][-1] == pytest.approx(
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
        assert model.tree_weight_ == 0
        assert model.network_.trees is None


def test_offsets_beside_a_loss_of_a_user(skewed):
    X, y = skewed
    base = np.random.default_rng(1).normal(size=len(y)) * 1e4
    params = {**LEARNS, "max_epochs": 2}
    model = EasyTensorRegressor(loss=asymmetric, **params).fit(X, y + base, base_margin=base)
    plain = model.predict(X, base_margin=np.zeros(len(y)))
    np.testing.assert_allclose(model.predict(X, base_margin=base) - base, plain, atol=0.1)
    assert np.abs(plain - y).mean() < 2000
    rate = EasyTensorRegressor(loss=Relative(), **params)
    rate.fit(X, y * np.exp(base / 1e4), base_margin=base / 1e4)
    one, two = (rate.predict(X, base_margin=np.full(len(y), value)) for value in (0, np.log(2)))
    np.testing.assert_allclose(two, 2 * one, rtol=1e-4)


def test_partial_fit_with_a_loss_of_a_user(skewed):
    X, y = skewed
    model = EasyTensorRegressor(loss=asymmetric, **LEARNS)
    before = model.partial_fit(X, y).predict(X)
    assert model.partial_fit(X, y).n_iter_ == 2
    assert (model.predict(X) != before).any()


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
    with pytest.raises(ValueError, match="loss changed since the last fit"):
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


def test_checkpoints_are_of_one_loss():
    losses = [partial(asymmetric, factor=2.0), partial(asymmetric, factor=4.0), Linex(1.0)]
    losses += [Linex(2.0), Tweedie(1.2), Tweedie(1.3), "gamma", lambda o, t: o - t, lambda o, t: o]
    described = [describe_parameters(EasyTensorRegressor(loss=loss)) for loss in losses]
    assert len({str(each) for each in described}) == len(losses)
    loss = pickle.loads(pickle.dumps(losses[0]))
    assert describe_parameters(EasyTensorRegressor(loss=loss)) == described[0]


# ---------------------------------------------------------------------- refused before training


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("absolute", "loss must be one of .*'squared_error'.* a callable .*, got 'absolute'"),
        (5, "loss must be one of .* got 5"),
        (nn.MSELoss, r"loss must be one of .* got <class.*; create an instance, MSELoss\(\)"),
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
        (lambda o, t: -((o - o.mean()) * (t - t.mean())).mean(), "not the mean of the losses"),
        (lambda o, t: ((o - t) * t).sum() / t.sum(), "not the mean of the losses of single rows"),
        (NoUnits(), "NoUnits is standardized, which needs a method in_units"),
        (NoLoss(), r"NoLoss has no method loss\(outputs, targets\)"),
        (NoTuple(), r"NoTuple\.estimator_types must be a tuple, such as \('regressor',\), got"),
        (OtherScale(), r"OtherScale\.tree_loss must be one of \['poisson', 'gamma'\] with link='l"),
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
        (NoTrees(), 2, r"NoTrees\.tree_loss must be one of \['log_loss'\], or None for no trees"),
        (Focal(alpha=0.3), 3, "alpha must be a list of 3 numbers"),
        (Focal(alpha=[0.3, 0.7]), 2, "alpha must be a number for a binary target"),
    ],
)
def test_losses_that_do_not_fit_classes(loss, n_classes, message):
    X = np.random.default_rng(0).normal(size=(60, 2))
    with pytest.raises(ValueError, match=message):
        EasyTensorClassifier(loss=loss, max_epochs=1, **LEARNS).fit(X, np.arange(60) % n_classes)


# ---------------------------------------------------------------------- built in


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_losses_are_for_any_unit_of_the_target(name):
    """What they return is not scaled, as that of a user's loss is."""
    loss = BUILT_IN[name]()
    assert loss.standardized or loss.estimator_types == ("classifier",)
    for kind in loss.estimator_types:
        assert resolve_loss(loss, "owner", kind).name == name


@pytest.mark.parametrize("power", [1.1, 1.5, 1.9])
def test_tweedie_is_half_the_deviance_of_scikit_learn(power):
    rng = np.random.default_rng(0)
    y, raw = rng.gamma(1.0, 50.0, 40) * (rng.random(40) < 0.5), rng.normal(4, 1, (2, 40))
    one, other = (Tweedie(power).loss(*map(torch.from_numpy, (each, y))).mean() for each in raw)
    # A term of the targets alone is the same for both.
    expected = [mean_tweedie_deviance(y, np.exp(each), power=power) / 2 for each in raw]
    assert one - other == pytest.approx(expected[0] - expected[1], rel=1e-6)


def test_losses_of_two_powers_of_tweedie_lead_to_those_beside_them():
    y, raw = torch.linspace(0.1, 3, 20).double(), torch.linspace(-1, 1, 20).double()
    outputs = raw.requires_grad_()
    for power, beside in ((1 + 1e-9, "poisson"), (2 - 1e-9, "gamma")):
        losses = [Tweedie(power).loss(outputs, y).sum(), BUILT_IN[beside]().loss(outputs, y).sum()]
        own, expected = (torch.autograd.grad(loss, outputs)[0] for loss in losses)
        torch.testing.assert_close(own, expected)


def make_claims(n_rows=300):
    """Amounts that are 0 in most rows, and depend on a column."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n_rows, 2))
    return X, 1000 * np.exp(X[:, 0]) * rng.gamma(1.0, 1.0, n_rows) * (rng.random(n_rows) < 0.4)


def test_a_model_under_tweedie(quick):
    X, y = make_claims()
    model = EasyTensorRegressor(loss=Tweedie(1.3), **{**quick, "max_epochs": 8})
    model.fit(X[:200], y[:200], eval_set=[(X[200:], y[200:])])
    predicted = model.predict(X[200:])
    constant = mean_tweedie_deviance(y[200:], np.full(100, y[:200].mean()), power=1.3)
    assert mean_tweedie_deviance(y[200:], predicted, power=1.3) < constant
    expected = predicted**0.7 / 0.7 + y[200:] * predicted**-0.3 / 0.3
    assert model.best_score_ == pytest.approx(expected.mean(), rel=1e-3)
    assert model.tree_weight_ > 0
    with pytest.raises(ValueError, match="loss='tweedie' needs y >= 0, got -1"):
        model.fit(X, np.r_[-1, y[1:]])
    with pytest.raises(ValueError, match="loss='tweedie' needs at least one value above 0, and y"):
        model.fit(X, 0 * y)


def test_a_rate_under_tweedie_with_exposure(quick):
    X, y = make_claims()
    years = np.random.default_rng(1).uniform(0.1, 3, len(X))
    model = EasyTensorRegressor(loss="tweedie", **quick)
    model.fit(X, y * years, base_margin=np.log(years))
    twice = model.predict(X, base_margin=np.full(len(X), np.log(2.0)))
    np.testing.assert_allclose(twice, 2 * model.predict(X, base_margin=np.zeros(len(X))), rtol=1e-4)


def test_tweedie_as_a_task(quick):
    X, y = make_claims(150)
    targets = pd.DataFrame({"claimed": y > 0, "amount": y})
    model = EasyTensorMultiTask({"claimed": "binary", "amount": "tweedie"}, **quick)
    assert (model.fit(X, targets).predict(X)["amount"] > 0).all()
    assert "amount_tweedie" in model.evals_result_["valid_0"]


@pytest.mark.parametrize("level", [0.2, 0.9])
def test_expectile_minimizes_asymmetric_squares(level, skewed):
    X, y = skewed
    constant = torch.tensor(expectile(y, level), requires_grad=True)
    Expectile(level).loss(constant, torch.from_numpy(y)).mean().backward()
    assert constant.grad.item() == pytest.approx(0, abs=1e-6 * y.mean())
    model = EasyTensorRegressor(loss=Expectile(level), **{**LEARNS, "max_epochs": 5})
    model.fit(X[:200], y[:200], eval_set=[(X[200:], y[200:])])
    error = y[200:] - model.predict(X[200:])
    expected = np.mean(np.where(error > 0, level, 1 - level) * error**2)
    assert model.best_score_ == pytest.approx(expected, rel=1e-3)
    assert (error.mean() > 0) == (level < 0.5)
    assert (Expectile(level).tree_loss, Expectile().tree_loss) == (None, "squared_error")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_focal_loss_against_its_formula(dtype):
    rng = np.random.default_rng(0)
    raw, target = torch.from_numpy(rng.normal(size=(50, 3))).to(dtype), torch.arange(50) % 3
    p = torch.softmax(raw, 1).gather(1, target[:, None])[:, 0]
    weights = torch.tensor([0.2, 0.5, 1.0])[target]
    expected = -weights * (1 - p) ** 1.5 * torch.log(p)
    torch.testing.assert_close(Focal(1.5, [0.2, 0.5, 1.0]).loss(raw, target), expected.to(dtype))
    binary = (target > 0).to(dtype)
    p = torch.where(binary > 0, torch.sigmoid(raw[:, 0]), torch.sigmoid(-raw[:, 0]))
    expected = -torch.where(binary > 0, 0.25, 0.75) * (1 - p) ** 2 * torch.log(p)
    torch.testing.assert_close(Focal(2.0, 0.25).loss(raw[:, 0], binary), expected)
    for outputs, targets in ((raw, target), (raw[:, 0], binary), (raw > 0, raw.sigmoid().round())):
        outputs = outputs.to(dtype)
        torch.testing.assert_close(
            Focal(0.0).loss(outputs, targets), LogLoss().loss(outputs, targets)
        )


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("target", [torch.tensor([0, 1, 2]), torch.eye(3)])
def test_gradients_of_focal_loss_are_finite_at_any_confidence(gamma, target):
    outputs = (200 * torch.eye(3) - 100).requires_grad_()
    losses = Focal(gamma).loss(outputs, target)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert outputs.grad.isfinite().all()


# ---------------------------------------------------------------------- several quantiles

LEVELS = [0.1, 0.5, 0.9]


def make_spread(n_rows=300, seed=0):
    """Numbers whose spread depends on a column."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_rows, 2))
    level = 100 + 10 * np.sign(X[:, 0] * X[:, 1])
    return X, level + (1 + 5 * (X[:, 1] > 0)) * rng.normal(size=n_rows)


@pytest.mark.parametrize("trees", [None, BoostedTrees(max_iter=20)])
def test_several_quantiles_cover_and_do_not_cross(trees):
    X, y = make_spread(900)
    params = {**LEARNS, "trees": trees, "max_epochs": 10}
    model = EasyTensorRegressor(loss="quantile", quantile=LEVELS, **params)
    model.fit(X[:400], y[:400], eval_set=[(X[400:600], y[400:600])])
    predicted = model.predict(X)
    assert predicted.shape == (900, 3)
    assert (np.diff(predicted, axis=1) >= 0).all()
    covered = (y[600:, None] <= predicted[600:]).mean(axis=0)
    np.testing.assert_allclose(covered, LEVELS, atol=0.1)
    losses = [
        mean_pinball_loss(y[400:600], predicted[400:600, i], alpha=level)
        for i, level in enumerate(LEVELS)
    ]
    assert model.best_score_ == pytest.approx(np.mean(losses), rel=1e-4)
    assert (model.tree_weight_ > 0) == (trees is not None)
    spread = predicted[:, 2] - predicted[:, 0]
    assert spread[X[:, 1] > 0].mean() > 1.5 * spread[X[:, 1] < 0].mean()
    if trees is not None:
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(X), predicted)
        assert model.explain(X[:2], background=X[:5]).values.shape == (2, 2, 3)


@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4, unique=True), st.integers(0, 9))
def test_averages_of_quantiles_never_cross(levels, seed):
    levels = sorted(levels)
    head = RegressionHead(Quantile(levels))
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(20, 4, len(levels), generator=generator)
    combined = head.average_members(outputs)
    assert (combined.diff(dim=-1) >= 0).all()
    blended = head.normalize(torch.lerp(combined, outputs[:, :1], 0.3))
    assert (blended.diff(dim=-1) >= 0).all()
    # Sorting does not raise the loss.
    target = torch.randn(20, 1, generator=generator)
    before = head.loss(outputs.mean(1, keepdim=True), target)
    assert (head.loss(combined, target) <= before + 1e-6).all()


def test_several_quantiles_are_scored_by_the_explained_pinball_loss():
    X, y = make_spread()
    model = EasyTensorRegressor(loss="quantile", quantile=LEVELS, **LEARNS, max_epochs=8).fit(X, y)
    predicted, weight = model.predict(X), np.linspace(1, 2, 300)
    expected = [d2_pinball_score(y, predicted[:, i], alpha=a) for i, a in enumerate(LEVELS)]
    assert model.score(X, y) == pytest.approx(np.mean(expected))
    expected = [
        d2_pinball_score(y, predicted[:, i], alpha=a, sample_weight=weight)
        for i, a in enumerate(LEVELS)
    ]
    assert model.score(X, y, sample_weight=weight) == pytest.approx(np.mean(expected))
    assert len(model.feature_importances_) == 2
    assert len(model._validation["measures"]) == 3


def test_a_constant_target_has_one_quantile():
    X = np.random.default_rng(0).normal(size=(60, 2))
    params = {**LEARNS, "max_epochs": 1}
    model = EasyTensorRegressor(loss="quantile", quantile=LEVELS, **params).fit(X, np.full(60, 0.1))
    assert np.unique(model.predict(X)).tolist() == [0.1]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"quantile": []}, "quantile must be a number or a list of increasing numbers"),
        ({"quantile": [0.5, 0.1]}, "increasing numbers between 0 and 1, got .0.5, 0.1."),
        ({"quantile": [0.1, 1.0]}, "quantile must be a number greater than 0 and less than 1"),
        ({"quantile": [0.1, "a"]}, "quantile must be a number"),
        ({"loss": "tweedie"}, r"quantile=\[0.1, 0.5, 0.9\] has no effect with loss='?tweedie"),
        ({"monotonic_cst": [1, 0]}, "monotonic_cst needs .* this one has 3 outputs"),
        ({"two": True}, "makes 3 predictions for each row, which needs a y of one column, got 2"),
    ],
)
def test_several_quantiles_that_cannot_be(params, message):
    X = np.random.default_rng(0).normal(size=(60, 2))
    y = X if params.pop("two", False) else X[:, 0]
    params = {"loss": "quantile", "quantile": LEVELS, **LEARNS, "max_epochs": 1, **params}
    with pytest.raises(ValueError, match=message):
        EasyTensorRegressor(**params).fit(X, y)
