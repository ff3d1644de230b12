"""Models of cross-validation: a network for each fold, whose predictions are averaged."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, make_classification
from sklearn.metrics import log_loss, mean_squared_error
from sklearn.model_selection import GridSearchCV

from sk_easytensor import (
    BoostedTrees,
    EasyTensorClassifier,
    EasyTensorMultiTask,
    EasyTensorRegressor,
    NumericSequenceBlock,
    PretrainedBlock,
)
from sk_easytensor._utils.storage import DirectoryStore
from sk_easytensor.inference import load
from sk_easytensor.inspection import permutation_importance
from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.dataset import EncodedDataset


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(2, 7), st.integers(0, 9))
def test_each_row_of_positive_weight_is_held_out_once(sizes, n_folds, seed):
    rng = np.random.RandomState(seed)
    strata = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    weight = rng.randint(0, 2, len(strata))
    rows = EncodedDataset(
        TensorFrame({}, len(strata)), torch.from_numpy(strata), torch.from_numpy(weight).float()
    )
    held_out = []
    for fold in range(n_folds):
        parts = rows.fold_rows(
            lambda target: target.numpy(), n_folds, fold, np.random.RandomState(0)
        )
        assert sorted(np.concatenate(parts)) == list(range(len(strata)))
        held_out.append(parts[1])
    assert sorted(np.concatenate(held_out)) == np.flatnonzero(weight).tolist()
    counts = np.array([np.bincount(strata[part], minlength=len(sizes)) for part in held_out])
    assert (np.ptp(counts, axis=0) <= 1).all()
    assert np.ptp(counts.sum(1)) <= 1


@pytest.fixture
def folded(classifier, labelled):
    """A classifier of three folds."""
    return classifier(n_folds=3).fit(*labelled)


def alone(model, index):
    """Return a model with one of the networks of an ensemble."""
    single = copy.copy(model)
    single.network_ = model.network_.networks[index]
    single._use_torch()
    return single


def test_predictions_are_means_over_the_networks(folded, labelled):
    X, _ = labelled
    members = [alone(folded, index).predict_proba(X) for index in range(3)]
    assert not np.allclose(members[0], members[1])
    np.testing.assert_allclose(folded.predict_proba(X), np.mean(members, axis=0), atol=1e-6)
    assert folded.transform(X).shape == (120, 3 * alone(folded, 0).transform(X).shape[1])


def test_out_of_fold_predictions_are_those_of_networks_that_did_not_see_the_row(
    folded, labelled, classifier
):
    X, y = labelled
    assert folded.oof_prediction_.shape == (120, 2)
    members = np.stack([alone(folded, index).predict_proba(X) for index in range(3)])
    is_of = np.isclose(members, folded.oof_prediction_, atol=1e-6).all(2)
    assert (is_of.sum(0) >= 1).all()
    assert (is_of.sum(1) >= 40).all()
    assert folded.best_score_ == pytest.approx(log_loss(y, folded.oof_prediction_), abs=1e-6)
    # Changing the label of a row changes all networks but the one that predicts it.
    changed = y.copy()
    changed[7] = "no" if y[7] == "yes" else "yes"
    other = classifier(n_folds=3, trees=None, early_stopping_rounds=None).fit(X, changed)
    assert other.oof_prediction_.shape == (120, 2)


def test_labels_that_depend_on_nothing_are_not_predicted_out_of_fold():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(200, 5)), rng.integers(0, 2, 200)
    model = EasyTensorClassifier(n_folds=4, max_epochs=30, random_state=0).fit(X, y)
    assert model.score(X, y) > 0.6
    assert log_loss(y, model.oof_prediction_) > 0.68


def test_a_regressor_and_its_scores(regressor, mixed):
    X, y = mixed
    model = regressor(n_folds=4).fit(X, y)
    assert model.oof_prediction_.shape == (120,)
    assert model.best_score_ == pytest.approx(mean_squared_error(y, model.oof_prediction_), 1e-5)
    assert model.n_iter_ == 3 == len(model.evals_result_["valid_0"]["squared_error"])
    assert len(model.fit_times_["epochs"]) == 3


def test_folds_beat_a_single_split_of_few_rows():
    X, y = load_breast_cancer(return_X_y=True)
    losses = {None: [], "auto": []}
    for seed in range(2):
        rows = np.random.RandomState(seed).permutation(len(y))
        fitted, rest = rows[:80], rows[80:]
        for n_folds, found in losses.items():
            model = EasyTensorClassifier(n_folds=n_folds, random_state=seed)
            found.append(log_loss(y[rest], model.fit(X[fitted], y[fitted]).predict_proba(X[rest])))
    assert np.mean(losses["auto"]) < 0.7 * np.mean(losses[None])


@pytest.mark.parametrize(
    ("n_rows", "params", "fit_params", "n_networks"),
    [
        (60, {}, {}, 5),
        (40, {}, {}, 1),
        (60, {"n_folds": None}, {}, 1),
        (60, {"warm_start": True}, {}, 1),
        (60, {"validation_fraction": None}, {}, 1),
        (60, {}, {"eval_set": True}, 1),
        (2600, {}, {}, 1),
    ],
)
def test_what_auto_means(n_rows, params, fit_params, n_networks):
    X, y = make_classification(n_rows, 4, random_state=0)
    if fit_params:
        fit_params = {"eval_set": [(X[:20], y[:20])]}
    model = EasyTensorClassifier(max_epochs=1, trees=None, random_state=0, **params)
    assert len(model.fit(X, y, **fit_params).network_.networks) == n_networks


def test_auto_means_one_network_beside_a_linear_model_of_all_columns():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"series": list(rng.normal(size=(60, 20)).cumsum(1))})
    y = rng.integers(0, 2, 60)
    blocks = [("series", NumericSequenceBlock(), ["series"])]
    model = EasyTensorClassifier(blocks, max_epochs=1, random_state=0).fit(frame, y)
    assert len(model.network_.networks) == 1
    assert model.linear_weight_ > 0


def test_rows_of_weight_zero_have_no_out_of_fold_prediction(regressor, mixed):
    X, y = mixed
    weight = np.arange(120) % 3
    model = regressor(n_folds=2).fit(X, y, weight)
    np.testing.assert_array_equal(np.isnan(model.oof_prediction_), weight == 0)


@pytest.mark.parametrize(
    ("params", "shape"),
    [({"loss": "quantile", "quantile": [0.1, 0.9]}, (120, 2)), ({"loss": "poisson"}, (120,))],
)
def test_losses(params, shape, regressor, mixed):
    X, y = mixed
    model = regressor(n_folds=2, **params).fit(X, np.exp(y))
    assert model.oof_prediction_.shape == shape
    assert np.isfinite(model.predict(X)).all()


def test_offsets_are_added(regressor, mixed):
    X, y = mixed
    model = regressor(n_folds=2, offset="amount").fit(X.fillna({"amount": 0.0}), y)
    more = X.assign(amount=X["amount"].fillna(0.0) + 1.0)
    change = model.predict(more) - model.predict(X.fillna({"amount": 0.0}))
    np.testing.assert_allclose(change, 1.0, atol=1e-5)


def test_tasks(mixed):
    X, y = mixed
    tasks = {"late": y > 0, "delay": y}
    model = EasyTensorMultiTask(
        {"late": "binary", "delay": "regression"}, n_folds=2, max_epochs=2, random_state=0
    ).fit(X, tasks)
    assert {name: values.shape for name, values in model.oof_prediction_.items()} == {
        "late": (120, 2),
        "delay": (120,),
    }
    assert set(model.tree_weight_) == {"late", "delay"}


def test_equal_fits_and_copies_are_equal(classifier, labelled):
    X, y = labelled
    model = classifier(n_folds=2).fit(X, y)
    expected = model.predict_proba(X)
    for other in (
        clone(model).fit(X, y),
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
    ):
        np.testing.assert_array_equal(other.predict_proba(X), expected)
        np.testing.assert_array_equal(other.oof_prediction_, model.oof_prediction_)
        np.testing.assert_array_equal(other.feature_importances_, model.feature_importances_)


def test_a_search_over_folds(classifier, labelled):
    search = GridSearchCV(classifier(), {"n_folds": [None, 2]}, cv=2).fit(*labelled)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_a_warm_start_resumes_all_networks(classifier, labelled):
    X, y = labelled
    model = classifier(n_folds=2, trees=None, warm_start=True).fit(X, y)
    before = [network.state_dict() for network in model.network_.networks]
    again = pickle.loads(pickle.dumps(model)).fit(X, y)
    model.fit(X, y)
    assert model.n_iter_ == 6
    for old, network, other in zip(
        before, model.network_.networks, again.network_.networks, strict=True
    ):
        changes = [not old[name].equal(value) for name, value in network.state_dict().items()]
        assert any(changes)
        assert all(
            other.state_dict()[name].equal(value) for name, value in network.state_dict().items()
        )
    with pytest.raises(ValueError, match="n_folds changed since the last fit, from 2 to 3"):
        model.set_params(n_folds=3).fit(X, y)


def test_a_fit_that_is_resumed_keeps_its_folds():
    X, y = make_classification(60, 4, random_state=0)
    model = EasyTensorClassifier(trees=None, max_epochs=1, random_state=0).fit(X, y)
    model.set_params(warm_start=True).fit(X, y)
    assert len(model.network_.networks) == 5
    # The networks may have been trained on rows that other folds hold out now.
    assert not hasattr(model, "oof_prediction_")


def test_partial_fit_continues_all_networks(folded, labelled):
    X, y = labelled
    folded.partial_fit(X, y)
    assert not hasattr(folded, "oof_prediction_")
    assert len(folded.network_.networks) == 3
    assert folded.n_iter_ == 4


def test_partial_fit_begins_with_one_network_for_each_fold(classifier, labelled):
    X, y = labelled
    model = classifier(n_folds=2).partial_fit(X, y, classes=["no", "yes"])
    assert len(model.network_.networks) == 2
    assert not hasattr(model, "oof_prediction_")


@pytest.mark.parametrize("fold", [0, 1])
def test_an_interrupted_fit_resumes_in_its_fold(fold, labelled, tmp_path):
    params = {"n_folds": 2, "batch_size": 64, "max_epochs": 3, "random_state": 0}
    expected = EasyTensorClassifier(**params).fit(*labelled)

    class Fragile(DirectoryStore):
        def write(self, name, data):
            if name == f"fold{fold}-epoch-00002.pt":
                raise InterruptedError("no more")
            super().write(name, data)

    with pytest.raises(OSError, match="no more"):
        EasyTensorClassifier(**params, checkpoint_dir=Fragile(tmp_path)).fit(*labelled)
    model = EasyTensorClassifier(**params, checkpoint_dir=tmp_path)
    model.fit(*labelled)
    X, _ = labelled
    np.testing.assert_array_equal(model.predict_proba(X), expected.predict_proba(X))
    assert model.evals_result_ == expected.evals_result_
    (directory,) = tmp_path.glob("fit-*")
    assert {path.name for path in directory.glob("fold*")} >= {
        "fold0-fit.json",
        "fold1-fit.json",
        "fold1-epoch-00003.pt",
    }


def test_an_exported_file_predicts_the_same(folded, labelled, tmp_path):
    X, _ = labelled
    folded.to_onnx(tmp_path / "model.onnx")
    np.testing.assert_allclose(
        load(tmp_path / "model.onnx").predict_proba(X), folded.predict_proba(X), atol=1e-5
    )


def test_importances_and_explanations(folded, labelled):
    X, y = labelled
    importances = folded.feature_importances_
    assert importances.shape == (6,)
    assert importances.sum() == pytest.approx(1)
    explained = folded.explain(X[:5], background=X, random_state=0)
    total = explained.base_values + explained.values.sum(axis=1)
    np.testing.assert_allclose(total, folded.decision_function(X[:5]), atol=1e-4)
    found = permutation_importance(folded, X, y, random_state=0)
    assert found.importances.shape == (6, 5)


def test_importances_and_explanations_of_wide_tables():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 110))
    y = X[:, 3] + 0.1 * rng.normal(size=120)
    trees = BoostedTrees(max_iter=10)
    model = EasyTensorRegressor(n_folds=2, trees=trees, max_epochs=20, random_state=0).fit(X, y)
    assert model.feature_importances_.argmax() == 3
    explained = model.explain(X[:2], background=X[:20], n_permutations=1, random_state=0)
    total = explained.base_values + explained.values.sum(axis=1)
    np.testing.assert_allclose(total, model.predict(X[:2]), atol=1e-4)


def test_metrics_of_a_report_are_of_rows_that_networks_did_not_see(folded, labelled, tmp_path):
    folded.report(tmp_path / "report.html")
    assert folded._validation["rows"] == 120


def test_a_pretrained_block_reads_all_networks(folded, labelled, classifier):
    X, y = labelled
    block = PretrainedBlock(folded)
    model = classifier([("pretrained", block, list(X))], trees=None).fit(X, y)
    expected = model.predict_proba(X)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict_proba(X), expected)


@pytest.mark.parametrize(
    ("fit_params", "message"),
    [
        ({"eval": True}, r"n_folds=2 holds out rows of X .* eval_set cannot decide"),
        ({"rows": 3, "n_folds": 4}, r"n_folds=4 must be at most the number of rows .* got 3"),
    ],
)
def test_what_folds_refuse(fit_params, message, classifier, labelled):
    X, y = labelled
    y = np.where(np.arange(120) % 2, "yes", "no")
    rows = slice(fit_params.get("rows", 120))
    model = classifier(n_folds=fit_params.get("n_folds", 2))
    eval_set = [(X[:50], y[:50])] if "eval" in fit_params else None
    with pytest.raises(ValueError, match=message):
        model.fit(X[rows], y[rows], eval_set=eval_set)


def test_training_rows_as_evaluation_set(classifier, labelled):
    X, y = labelled
    model = classifier(n_folds=2).fit(X, y, eval_set=[(X, y)])
    assert set(model.evals_result_) == {"training", "valid_0"}


@pytest.mark.parametrize("n_positive", [2, 4])
def test_auto_means_one_network_where_a_metric_needs_a_class_that_is_too_rare(n_positive):
    X, y = np.random.default_rng(0).normal(size=(60, 3)), np.zeros(60, int)
    y[:n_positive] = 1
    model = EasyTensorClassifier(max_epochs=1, trees=None, random_state=0)
    assert len(model.fit(X, y).network_.networks) == 5
    assert np.isfinite(model.oof_prediction_).all()
    if n_positive == 4:
        scored = clone(model).set_params(eval_metric="auc").fit(X, y)
        assert len(scored.network_.networks) == 1
    with pytest.raises(ValueError, match="n_folds=None if a class has fewer rows"):
        clone(model).set_params(eval_metric="auc", n_folds=5).fit(X, y)


def test_classes_of_weight_zero_are_not_held_out():
    X, y = np.random.default_rng(0).normal(size=(60, 3)), np.zeros(60, int)
    y[:3] = 1
    model = EasyTensorClassifier(
        class_weight={0: 0.0, 1: 1.0}, max_epochs=1, trees=None, random_state=0
    )
    assert len(model.fit(X, y).network_.networks) == 1
    with pytest.raises(ValueError, match=r"at most the number of rows .* got 3 of them"):
        model.set_params(n_folds=5).fit(X, y)
    model.set_params(n_folds=3).fit(X, y)
    assert np.isnan(model.oof_prediction_).all(1).sum() == 57


def test_a_resumed_fit_on_few_rows_shares_them():
    X, y = make_classification(60, 4, random_state=0)
    model = EasyTensorClassifier(trees=None, max_epochs=1, random_state=0).fit(X, y)
    model.set_params(warm_start=True).fit(X[:3], y[:3])
    assert len(model.network_.networks) == 5


def test_checkpoints_of_several_networks_without_folds(tmp_path):
    X, y = make_classification(60, 4, random_state=0)
    model = EasyTensorClassifier(trees=None, max_epochs=1, random_state=0).fit(X, y)
    model.set_params(warm_start=True, checkpoint_dir=tmp_path).fit(X, y, eval_set=[(X, 1 - y)])
    assert len(list(tmp_path.glob("fit-*/fold4-epoch-*.pt"))) == 1


@pytest.mark.parametrize("n_rows", [99, 100, 124])
def test_all_folds_have_trees_or_none(n_rows):
    X, y = make_classification(n_rows, 4, random_state=0)
    trees = BoostedTrees(max_iter=3)
    model = EasyTensorClassifier(trees=trees, max_epochs=1, random_state=0).fit(X, y)
    assert [network.trees is None for network in model.network_.networks] == [n_rows < 100] * 5


def test_reports_of_few_rows_are_of_all_rows_that_were_held_out(tmp_path):
    X, y = make_classification(60, 4, random_state=0)
    model = EasyTensorClassifier(trees=None, max_epochs=1, random_state=0).fit(X, y)
    model.report(tmp_path / "report.html")
    assert model._validation["rows"] == 60
