"""Offsets: numbers that are added to a model's outputs, by column and by array."""

import pickle

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from sklearn.base import clone
from sklearn.metrics import log_loss, mean_poisson_deviance
from sklearn.model_selection import GridSearchCV

from sk_easytensor import EasyTensorClassifier, NumericBlock, PretrainedBlock
from sk_easytensor.blocks.numeric import OffsetBlock

N_ROWS = 240


@pytest.fixture
def counts():
    """Features with the logarithm of the exposure, counts, and the rates behind them."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=N_ROWS), "b": rng.choice(["x", "y"], N_ROWS)})
    exposure = rng.uniform(0.1, 20, N_ROWS)
    rate = np.exp(0.6 * frame["a"] + (frame["b"] == "x"))
    frame["log_exposure"] = np.log(exposure)
    return frame, rng.poisson(rate * exposure).astype(float), rate.to_numpy()


@pytest.fixture
def clicks():
    """Features, yes or no, and the log-odds behind them."""
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"a": rng.normal(size=N_ROWS), "b": rng.choice(["x", "y"], N_ROWS)})
    log_odds = (3 * frame["a"] + (frame["b"] == "x")).to_numpy()
    return frame, rng.random(N_ROWS) < expit(log_odds), log_odds


def test_a_rate_is_learned_of_counts_with_exposure(counts, regressor):
    X, y, rate = counts
    model = regressor(loss="poisson", offset="log_exposure", max_epochs=20).fit(X, y)
    predicted = model.predict(X)
    exposure = np.exp(X["log_exposure"])
    assert mean_poisson_deviance(rate * exposure, predicted) < 0.6
    assert 0.9 < np.mean(predicted / exposure / rate) < 1.1
    twice = model.predict(X.assign(log_exposure=X["log_exposure"] + np.log(2)))
    np.testing.assert_allclose(twice, 2 * predicted, rtol=1e-5)


@pytest.mark.parametrize("loss", ["poisson", "gamma"])
@pytest.mark.parametrize("trees", ["auto", None])
def test_the_unit_of_exposure_does_not_matter(counts, regressor, loss, trees):
    X, y, _ = counts
    first = regressor(loss=loss, trees=trees, offset="log_exposure").fit(X, y + 0.5)
    months = X.assign(log_exposure=X["log_exposure"] + np.log(12))
    second = regressor(loss=loss, trees=trees, offset="log_exposure").fit(months, y + 0.5)
    np.testing.assert_allclose(first.predict(X), second.predict(months), rtol=0.02)


@pytest.mark.parametrize("trees", ["auto", None])
def test_an_offset_of_regression_is_what_is_subtracted_from_the_target(clicks, regressor, trees):
    X, _, baseline = clicks
    rest = np.random.default_rng(2).normal(size=N_ROWS) + X["a"].to_numpy()
    params = {"loss": "absolute_error", "trees": trees}
    offset = regressor(**params).fit(X, baseline + rest, base_margin=baseline)
    plain = regressor(**params).fit(X, rest)
    np.testing.assert_allclose(
        offset.predict(X, base_margin=baseline), plain.predict(X) + baseline, atol=1e-3
    )
    # Losses are of the final predictions, in units of the target.
    np.testing.assert_allclose(
        offset.evals_result_["valid_0"]["absolute_error"],
        plain.evals_result_["valid_0"]["absolute_error"],
        rtol=1e-3,
    )


def test_metrics_are_of_predictions_with_their_offsets(clicks, regressor):
    X, _, baseline = clicks
    y = 10 * baseline + 0.01 * np.random.default_rng(2).normal(size=N_ROWS)
    model = regressor(eval_metric="r2").fit(
        X,
        y,
        base_margin=10 * baseline,
        eval_set=[(X[:90], y[:90])],
        base_margin_eval_set=[10 * baseline[:90]],
    )
    assert min(model.evals_result_["valid_0"]["r2"]) > 0.999
    assert abs(model.predict(X, base_margin=10 * baseline) - y).max() < 0.1


def test_a_perfect_baseline_is_predicted_as_it_is(clicks, regressor):
    X, _, baseline = clicks
    baseline = 1000 + baseline
    model = regressor().fit(X, baseline, base_margin=baseline)
    np.testing.assert_allclose(model.predict(X, base_margin=baseline), baseline, rtol=1e-6)


def test_little_is_left_to_learn_beside_the_log_odds_of_the_truth(clicks):
    X, y, log_odds = clicks
    model = EasyTensorClassifier(max_epochs=10, random_state=0).fit(X, y, base_margin=log_odds)
    found = model.decision_function(X, base_margin=log_odds)
    assert np.abs(found - log_odds).mean() < 0.3
    assert log_loss(y, expit(found)) < log_loss(y, expit(log_odds)) + 0.02
    assert model.tree_weight_ == 0
    further = model.decision_function(X, base_margin=log_odds + 2.5)
    np.testing.assert_allclose(further, found + 2.5, atol=1e-5)
    np.testing.assert_allclose(
        logit(model.predict_proba(X, base_margin=log_odds)[:, 1]), found, atol=1e-4
    )
    named = model.classes_[(found > 0).astype(int)]
    assert (model.predict(X, base_margin=log_odds) == named).all()


def test_column_and_array_are_one(clicks, classifier):
    X, y, log_odds = clicks
    frame = X.assign(start=log_odds.astype(np.float32))
    column = classifier(offset="start").fit(frame[:200], y[:200], eval_set=[(frame[200:], y[200:])])
    array = classifier().fit(
        X[:200],
        y[:200],
        base_margin=log_odds[:200],
        eval_set=[(X[200:], y[200:])],
        base_margin_eval_set=[log_odds[200:]],
    )
    assert column.evals_result_ == array.evals_result_
    expected = column.predict_proba(frame)
    assert (array.predict_proba(X, base_margin=log_odds) == expected).all()
    # The array is no feature, and the column is read as nothing else.
    assert list(array.feature_names_in_) == ["a", "b"]
    assert len(array.feature_importances_) == 2
    assert column.feature_importances_[2] > 0
    assert list(column.blocks_["numeric"].feature_names_in_) == ["a"]
    # As an exported model reads it.
    assert (array.predict_proba(X.assign(base_margin=log_odds)) == expected).all()
    assert array.transform(X).shape[0] == N_ROWS


def test_an_array_of_features_has_its_offset_by_position(clicks, regressor):
    X, _, baseline = clicks
    values = np.column_stack([X["a"], baseline])
    by_position = regressor(offset=1).fit(values, baseline)
    assert by_position.n_features_in_ == 2
    by_array = regressor().fit(values[:, :1], baseline, base_margin=baseline[:, None])
    expected = by_position.predict(values)
    assert (by_array.predict(values[:, :1], base_margin=list(baseline)) == expected).all()


def test_a_column_named_in_blocks_is_a_feature_as_well(counts, regressor):
    X, y, _ = counts
    named = [("n", NumericBlock(), ["a", "log_exposure"])]
    model = regressor(named, loss="poisson", offset="log_exposure").fit(X, y)
    assert list(model.blocks_) == ["n", "category", "offset"]
    assert isinstance(model.blocks_["offset"], OffsetBlock)


def test_pickles_clones_and_searches_keep_offsets(counts, regressor):
    X, y, _ = counts
    model = regressor(loss="poisson", offset="log_exposure").fit(X, y)
    expected = model.predict(X)
    assert (pickle.loads(pickle.dumps(model)).predict(X) == expected).all()
    assert clone(model).offset == "log_exposure"
    search = GridSearchCV(
        regressor(loss="poisson", trees=None, max_epochs=1),
        {"offset": [None, "log_exposure"]},
        cv=2,
        scoring="neg_mean_poisson_deviance",
        error_score="raise",
    ).fit(X, y)
    assert search.best_params_ == {"offset": "log_exposure"}


def test_further_fits_keep_offsets(counts, regressor):
    X, y, _ = counts
    model = regressor(loss="poisson", offset="log_exposure", trees=None)
    for _ in range(2):
        model.partial_fit(X, y)
    warm = regressor(loss="poisson", trees=None, warm_start=True)
    margin = X.pop("log_exposure")
    for _ in range(2):
        warm.fit(X, y, base_margin=margin)
    array = regressor(loss="poisson", trees=None)
    array.partial_fit(X, y, base_margin=margin)
    with pytest.raises(ValueError, match="was fitted with base_margin, and needs base_margin"):
        array.partial_fit(X, y)
    for each in (warm, array):
        twice = each.predict(X, base_margin=margin + np.log(2))
        np.testing.assert_allclose(twice, 2 * each.predict(X, base_margin=margin), rtol=1e-5)


def test_a_representation_needs_no_offset(counts, regressor):
    X, y, _ = counts
    model = regressor(loss="poisson", offset="log_exposure").fit(X, y)
    rest = X.drop(columns="log_exposure")
    pretrained = [("model", PretrainedBlock(model), ["a", "b"])]
    vectors = regressor(pretrained, trees=None, max_epochs=1).fit(rest, y)
    assert vectors.predict(rest).shape == (N_ROWS,)


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "is missing in row 7"), (np.inf, "is inf in row 7"), (1e39, "is 1e[+]39")],
)
def test_offsets_are_finite_numbers(counts, regressor, value, said):
    X, y, _ = counts
    bad = X.copy()
    bad.loc[7, "log_exposure"] = value
    with pytest.raises(ValueError, match=f"offset: column 'log_exposure' {said}"):
        regressor(loss="poisson", offset="log_exposure").fit(bad, y)
    model = regressor(loss="poisson", offset="log_exposure", trees=None, max_epochs=1).fit(X, y)
    with pytest.raises(ValueError, match=f"offset: column 'log_exposure' {said}"):
        model.predict(bad)


def test_what_offsets_cannot_be_is_refused(counts, regressor, classifier):
    X, y, _ = counts
    margin = X["log_exposure"].to_numpy()
    rest = X.drop(columns="log_exposure")
    for model, wanted in [
        (regressor(offset=["a"]), "name of a column"),
        (regressor(offset=margin), "given to fit as base_margin"),
        (regressor(offset="c"), "names column 'c', which X does not have"),
        (regressor(offset=9), "names column 9, but X has 3 columns"),
    ]:
        with pytest.raises(ValueError, match=wanted):
            model.fit(X, y)
    with pytest.raises(TypeError, match=r"column 'b' is of type .*string.* must be numbers"):
        regressor(offset="b").fit(X, y)
    with pytest.raises(ValueError, match="2 outputs, to which one number for each row"):
        regressor(offset="log_exposure").fit(X, np.column_stack([y, y]))
    with pytest.raises(ValueError, match="base_margin needs two classes"):
        classifier().fit(rest, np.arange(N_ROWS) % 3, base_margin=margin)
    with pytest.raises(ValueError, match="offset needs two classes"):
        classifier(offset="log_exposure").fit(X, np.column_stack([y > 1, y > 2]).astype(int))
    with pytest.raises(ValueError, match="either offset='a' or base_margin"):
        regressor(offset="a").fit(X, y, base_margin=margin)
    with pytest.raises(ValueError, match=r"one number for each of the 240 rows, got shape \(3,\)"):
        regressor().fit(rest, y, base_margin=margin[:3])
    with pytest.raises(ValueError, match="name it in the parameter offset"):
        regressor().fit(X, y, base_margin="log_exposure")
    with pytest.raises(TypeError, match="base_margin must hold numbers"):
        regressor().fit(rest, y, base_margin=X["b"])
    with pytest.raises(ValueError, match="column 'base_margin' is missing in row 3"):
        regressor().fit(rest, y, base_margin=np.where(np.arange(N_ROWS) == 3, np.nan, margin))
    with pytest.raises(ValueError, match="has a column 'base_margin'"):
        regressor().fit(rest.assign(base_margin=0.0), y, base_margin=margin)
    with pytest.raises(ValueError, match=r"eval_set\[0\]: .*base_margin_eval_set is missing"):
        regressor().fit(rest, y, base_margin=margin, eval_set=[(rest, y)])
    with pytest.raises(ValueError, match=r"are logarithms, such as np\.log"):
        regressor(loss="poisson", offset="e").fit(rest.assign(e=1000.0), y)
    plain = regressor(trees=None, max_epochs=1).fit(rest, y)
    with pytest.raises(ValueError, match="was fitted without base_margin"):
        plain.predict(rest, base_margin=margin)
    fitted = regressor(trees=None, max_epochs=1).fit(rest, y, base_margin=margin)
    with pytest.raises(ValueError, match="fitted with base_margin, and needs base_margin="):
        fitted.predict(rest)


@pytest.mark.parametrize("trees", ["auto", None])
def test_an_offset_contributes_what_it_is(counts, regressor, trees):
    X, y, _ = counts
    X = X[["log_exposure", "a", "b"]]
    model = regressor(loss="poisson", offset="log_exposure", trees=trees).fit(X, y)
    found = model.explain(X[:5], background=X[5:25], random_state=0)
    raw = np.log(model.predict(X[:5]))
    np.testing.assert_allclose(found.base_values + found.values.sum(axis=1), raw, atol=1e-4)
    expected = X["log_exposure"][:5] - X["log_exposure"][5:25].mean()
    np.testing.assert_allclose(found.values[:, 0], expected, atol=1e-4)
    rest = X.drop(columns="log_exposure")
    array = regressor(trees=None, max_epochs=1).fit(rest, y, base_margin=X["log_exposure"])
    with pytest.raises(ValueError, match="passed as base_margin are not a column"):
        array.explain(X.rename(columns={"log_exposure": "base_margin"}))


def test_offsets_of_logarithms_of_probabilities(classifier):
    X = np.linspace(-1, 1, 60)[:, None]
    model = classifier(max_epochs=1).fit(X, X[:, 0] > 0, base_margin=np.zeros(60))
    given = np.linspace(-3, 3, 60)
    expected = np.log(model.predict_proba(X, base_margin=given))
    np.testing.assert_allclose(model.predict_log_proba(X, base_margin=given), expected, atol=1e-6)
