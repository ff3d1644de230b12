"""Pickles are complete, small and hold no training data."""

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from sk_easytensor import CategoryBlock, EasyTensorClassifier, EasyTensorRegressor, TabM

FIXTURE = Path(__file__).parent.parent / "fixtures" / "classifier_0_1.joblib"


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_joblib(model):
    buffer = io.BytesIO()
    joblib.dump(model, buffer)
    buffer.seek(0)
    return joblib.load(buffer)


COPIES = [through_pickle, through_joblib, copy.deepcopy, copy.copy]


@pytest.fixture
def fitted(classifier, labelled):
    return classifier(trunk=TabM(members=2, width=16)).fit(*labelled)


@pytest.mark.parametrize("through", COPIES)
def test_copies_predict_the_same(through, fitted, labelled):
    frame, _ = labelled
    restored = through(fitted)
    for method in ("predict", "predict_proba", "decision_function", "transform"):
        expected = getattr(fitted, method)(frame)
        np.testing.assert_array_equal(getattr(restored, method)(frame), expected)
    np.testing.assert_array_equal(restored.feature_importances_, fitted.feature_importances_)
    for name in ("classes_", "feature_names_in_", "n_features_in_", "n_iter_", "best_iteration_"):
        np.testing.assert_array_equal(getattr(restored, name), getattr(fitted, name))
    assert restored.evals_result_ == fitted.evals_result_
    assert list(restored.blocks_) == list(fitted.blocks_)
    assert restored.get_params(deep=False).keys() == fitted.get_params(deep=False).keys()
    assert not restored.network_.training


def test_a_copy_is_independent(fitted, labelled):
    before = fitted.predict_proba(labelled[0])
    copy.deepcopy(fitted).partial_fit(*labelled)
    through_pickle(fitted).partial_fit(*labelled)
    np.testing.assert_array_equal(fitted.predict_proba(labelled[0]), before)


@pytest.mark.parametrize("params", [{}, {"quantile": 0.2, "loss": "quantile"}, {"loss": "poisson"}])
def test_regressors_predict_the_same(params, regressor, mixed):
    frame, y = mixed
    model = regressor(**params).fit(frame, np.abs(y))
    np.testing.assert_array_equal(through_pickle(model).predict(frame), model.predict(frame))


@pytest.mark.parametrize("through", COPIES)
@pytest.mark.parametrize("make", [EasyTensorClassifier, EasyTensorRegressor])
def test_unfitted_estimators_are_copied(make, through):
    model = make([("c", CategoryBlock(width=3), "city")], trunk=TabM(members=2))
    restored = through(model)
    assert repr(restored) == repr(model)
    assert not hasattr(restored, "network_")
    assert repr(clone(restored)) == repr(model)


def test_copying_does_not_draw_random_numbers(fitted):
    import torch

    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    through_pickle(fitted)
    assert torch.equal(torch.rand(3), expected)


def test_a_fresh_process_predicts_the_same(fitted, labelled, tmp_path):
    frame, _ = labelled
    joblib.dump(fitted, tmp_path / "model.joblib")
    frame.to_pickle(tmp_path / "frame.pickle")
    script = """
import joblib, numpy, pandas, sys
model = joblib.load(sys.argv[1] + "/model.joblib")
frame = pandas.read_pickle(sys.argv[1] + "/frame.pickle")
numpy.save(sys.argv[1] + "/predicted.npy", model.predict_proba(frame))
numpy.save(sys.argv[1] + "/importances.npy", model.feature_importances_)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    predicted = np.load(tmp_path / "predicted.npy")
    np.testing.assert_array_equal(predicted, fitted.predict_proba(frame))
    np.testing.assert_array_equal(
        np.load(tmp_path / "importances.npy"), fitted.feature_importances_
    )


# ---------------------------------------------------------------------- what is inside


def names_in_pickle(data):
    """Return every module that a pickle refers to."""
    found = set()

    class Finder(pickle.Unpickler):
        def find_class(self, module, name):
            found.add(module)
            return super().find_class(module, name)

    Finder(io.BytesIO(data)).load()
    return found


@pytest.mark.parametrize("warm_start", [False, True])
def test_no_torch_object_is_pickled(warm_start, classifier, labelled):
    model = classifier(warm_start=warm_start).fit(*labelled)
    names = names_in_pickle(pickle.dumps(model))
    assert "sk_easytensor.estimators.classifier" in names
    assert not [name for name in names if name.split(".")[0].split(" ")[0] == "torch"]


@pytest.mark.parametrize("warm_start", [False, True])
def test_no_training_row_is_pickled(warm_start, classifier):
    """The size does not depend on the number of rows, nor do their values occur."""

    def pickled(n_rows):
        rng = np.random.default_rng(0)
        X = pd.DataFrame(
            {"a": rng.choice([0.5, 1.5, 2.5], n_rows), "b": rng.integers(0, 3, n_rows)}
        )
        y = rng.choice(["no", "yes"], n_rows)
        # How many trees there are depends on what the rows say.
        return pickle.dumps(classifier(warm_start=warm_start, trees=None).fit(X, y))

    # As many as leave the 32 validation rows from which on a summary of them is kept.
    assert len(pickled(2000)) == pytest.approx(len(pickled(300)), abs=200)


@pytest.mark.parametrize(("n_columns", "computed"), [(100, True), (101, False)])
def test_wide_tables_leave_importances_for_later(n_columns, computed, regressor):
    """Their pickles hold a sample of encoded rows instead, without any torch object."""
    X = np.random.default_rng(0).choice([0.0, 1.0, 2.0], (400, n_columns))
    model = regressor(max_epochs=1).fit(X, X[:, 0])
    data = pickle.dumps(model)
    restored = pickle.loads(data)
    for copied in (model, restored):
        assert ("_importances" in vars(copied)) == computed
        assert (vars(copied)["_importance_sample"] is None) == computed
    assert not [name for name in names_in_pickle(data) if name.split(".")[0] == "torch"]
    np.testing.assert_array_equal(restored.feature_importances_, model.feature_importances_)
    assert restored.feature_importances_.sum() == pytest.approx(1)
    assert vars(restored)["_importance_sample"] is None


def test_encoded_rows_of_every_kind_are_pickled(classifier):
    texts = [f"a soft and warm number {i} for the cold winter evenings" for i in range(60)]
    X = {"text": texts, "city": list("abc") * 20}
    model = classifier().fit(X | {f"n{i}": np.arange(60) for i in range(99)}, np.tile([0, 1], 30))
    rows, restored = model._importance_sample.rows, through_pickle(model)._importance_sample.rows
    assert restored.frame.equals(rows.frame)
    assert restored.target.equal(rows.target)
    assert restored.weight.equal(rows.weight)


def test_rare_texts_of_training_are_not_kept(classifier):
    X = pd.DataFrame({"name": ["common"] * 50 + [f"secret {i}" for i in range(10)]})
    blocks = [("name", CategoryBlock(min_frequency=5), "name")]
    data = pickle.dumps(classifier(blocks).fit(X, np.tile([0, 1], 30)))
    assert b"common" in data
    assert b"secret" not in data


@pytest.mark.parametrize(("warm_start", "copies"), [(False, 1), (True, 3)])
def test_pickles_are_hardly_larger_than_the_weights(warm_start, copies, classifier, labelled):
    trunk = TabM(members=4, width=128)
    model = classifier(trunk=trunk, warm_start=warm_start, max_epochs=1).fit(*labelled)
    weights = sum(value.nbytes for value in map(np.asarray, model.network_.state_dict().values()))
    assert weights > 100_000
    assert weights < len(pickle.dumps(model)) < copies * weights + 25_000


def test_pickling_leaves_the_model_as_it_was(fitted, labelled):
    network = fitted.network_
    pickle.dumps(fitted)
    assert fitted.network_ is network
    assert hasattr(fitted, "_optimizer_state")


# ---------------------------------------------------------------------- earlier versions


def test_a_model_of_version_0_1_is_read():
    kept = joblib.load(FIXTURE)
    columns = dict(kept["columns"])
    columns["day"] = pd.to_datetime([None if s < 0 else s for s in columns["day"]], unit="s")
    model = kept["model"]
    np.testing.assert_allclose(model.predict_proba(columns), kept["probabilities"], rtol=1e-4)
    np.testing.assert_array_equal(model.feature_importances_, kept["importances"])
    assert model.classes_.tolist() == ["no", "yes"]
    columns["city"][0] = "never seen"
    assert np.isfinite(model.predict_proba(columns)).all()
    before = model.n_iter_
    assert model.fit(columns, np.tile(["no", "yes"], 10)).n_iter_ > before


def test_the_fixture_is_small():
    assert FIXTURE.stat().st_size < 200_000
