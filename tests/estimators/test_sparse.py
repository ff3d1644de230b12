"""Sparse matrices and frames as X."""

import pickle

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import coo_array, csr_array, csr_matrix, lil_array
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils import estimator_checks

from sk_easytensor import (
    MLP,
    EasyTensorClassifier,
    EasyTensorRegressor,
    NumericBlock,
    SparseBlock,
    TableEncoder,
)

N_ROWS, N_COLUMNS = 120, 90


@pytest.fixture(scope="module")
def X():
    """A matrix whose column 5 has a value in most rows and whose column 7 is rare."""
    rng = np.random.default_rng(0)
    dense = rng.random((N_ROWS, N_COLUMNS)) * (rng.random((N_ROWS, N_COLUMNS)) < 0.05)
    dense[:, 5] = rng.random(N_ROWS)
    return csr_array(dense)


@pytest.fixture(scope="module")
def y():
    return np.tile([0, 1], N_ROWS // 2)


@pytest.fixture(params=["classifier", "regressor", "multilabel"])
def fitted(request, X, y):
    kind = EasyTensorRegressor if request.param == "regressor" else EasyTensorClassifier
    model = kind(trunk=MLP(width=8), max_epochs=2, random_state=0)
    return model.fit(X, np.column_stack([y, y[::-1]]) if request.param == "multilabel" else y)


def outputs(model, X):
    return model.predict_proba(X) if hasattr(model, "predict_proba") else model.predict(X)


def test_sparse_and_dense_rows_are_predicted_alike(fitted, X):
    expected = outputs(fitted, X)
    assert fitted.n_features_in_ == N_COLUMNS
    assert not hasattr(fitted, "feature_names_in_")
    assert {name: type(block) for name, block in fitted.blocks_.items()} == {
        "sparse": SparseBlock,
        "numeric": NumericBlock,
    }
    for other in (X.toarray(), X.tocsc(), coo_array(X), csr_matrix(X)):
        np.testing.assert_array_equal(outputs(fitted, other), expected)
    alone = np.concatenate([outputs(fitted, X[[row]]) for row in range(5)])
    np.testing.assert_array_equal(alone, expected[:5])
    np.testing.assert_array_equal(outputs(pickle.loads(pickle.dumps(fitted)), X), expected)


def test_a_model_of_dense_rows_predicts_sparse_ones(X, y, classifier):
    model = classifier().fit(X.toarray(), y)
    np.testing.assert_array_equal(model.predict_proba(X), model.predict_proba(X.toarray()))


@pytest.mark.parametrize("make", [csr_array, lambda X: X.toarray()])
def test_other_numbers_of_features_are_refused(make, fitted, X):
    expected = rf"X has 3 features, but {type(fitted).__name__} is expecting {N_COLUMNS} features"
    with pytest.raises(ValueError, match=expected):
        fitted.predict(make(X[:, :3]))


def test_frames_of_sparse_columns_are_matched_by_name(X, y, classifier):
    names = [f"w{index}" for index in range(N_COLUMNS)]
    frame = pd.DataFrame.sparse.from_spmatrix(coo_array(X), columns=names)
    model = classifier(trees=None).fit(frame, y, eval_set=[(frame[names[::-1]], y)])
    assert model.feature_names_in_.tolist() == names
    expected = model.predict_proba(frame)
    for other in (frame[names[::-1]], frame.sparse.to_dense(), dict(frame.sparse.to_dense())):
        np.testing.assert_array_equal(model.predict_proba(other), expected)
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        np.testing.assert_array_equal(model.predict_proba(X), expected)
    for other in (frame, frame.sparse.to_dense()):
        with pytest.raises(ValueError, match=r"columns are missing: \['w7'\]"):
            model.predict(other.drop(columns="w7"))


def test_matrices_as_columns_of_a_dictionary(X, y, classifier):
    table = {"words": X, "codes": csr_array(X[:, :4]), "age": np.arange(N_ROWS)}
    model = classifier().fit(table, y)
    assert model.n_features_in_ == 3
    assert model.blocks_["sparse"].lengths_ == [N_COLUMNS, 4]
    assert model.feature_importances_.shape == (3,)
    first = {name: column[:1] for name, column in table.items()}
    np.testing.assert_array_equal(model.predict_proba(first), model.predict_proba(table)[:1])


@pytest.mark.parametrize("wide", [True, False])
def test_importances_are_those_of_features(wide, classifier):
    rng = np.random.default_rng(0)
    dense = lil_array((400, 80))
    dense[:, :40] = rng.random((400, 40)) < 0.1
    dense[:, 41] = rng.random((400, 1))
    y = np.where(dense[:, 3].toarray().ravel() > 0, 1, rng.random(400) < 0.1)
    blocks = [("s", SparseBlock(wide=wide), "sparse")]
    found = classifier(blocks, max_epochs=12, trees=None).fit(dense, y).feature_importances_
    assert found.shape == (80,)
    assert found.sum() == pytest.approx(1)
    assert found.argmax() == 3
    assert found[3] > 0.25
    assert found[40] == 0
    assert not found[42:].any()


def test_weights_partial_fit_and_warm_start(X, y, classifier):
    weight = np.where(np.arange(N_ROWS) < 100, 1.0, 0.0)
    some, params = slice(0, 100), {"validation_fraction": None}
    one = classifier(**params).fit(X, y, sample_weight=weight)
    other = classifier(**params).fit(X[some], y[some])
    np.testing.assert_array_equal(one.predict_proba(X), other.predict_proba(X))
    model = classifier(warm_start=True)
    model.partial_fit(X[:60], y[:60], sample_weight=weight[:60])
    model.partial_fit(X[60:], y[60:]).fit(X, y)
    with pytest.raises(ValueError, match="X has 5 features"):
        model.partial_fit(X[:, :5], y)


def test_pipelines_and_searches(y, classifier):
    rng = np.random.default_rng(0)
    codes = rng.choice(list("abcdefgh"), (N_ROWS, 2))
    encoder = OneHotEncoder(handle_unknown="ignore")
    pipeline = make_pipeline(encoder, classifier()).fit(codes, y)
    assert list(pipeline[-1].blocks_) == ["numeric"]
    assert pipeline.predict([["a", "z"]]).shape == (1,)
    words = np.array([f"w{index}" for index in range(100)])
    texts = [" ".join(rng.choice(words, 6)) for _ in range(N_ROWS)]
    text_pipeline = make_pipeline(TfidfVectorizer(), classifier(trees=None))
    assert cross_val_predict(text_pipeline, texts, y, cv=2).shape == (N_ROWS,)
    blocks = [("words", SparseBlock(), "sparse")]
    grid = {"blocks__words__width": [4, 8]}
    X = TfidfVectorizer().fit_transform(texts)
    search = GridSearchCV(classifier(blocks, trees=None), grid, cv=2, error_score="raise").fit(X, y)
    assert search.predict(X[:3]).shape == (3,)


def test_exported_models_read_sparse_matrices(X, y, classifier, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from sk_easytensor.inference import load

    model = classifier(trees=None).fit(X, y)
    predictor = load(model.to_onnx(tmp_path / "model.onnx"))
    expected = model.predict_proba(X)
    for other in (X, X.toarray(), X[[0]]):
        found = predictor.predict_proba(other)
        np.testing.assert_allclose(found, expected[: other.shape[0]], atol=1e-5)
    assert len(predictor.feature_names_in_) == N_COLUMNS
    with pytest.raises(ValueError, match=f"X has 3 features, .* is expecting {N_COLUMNS} features"):
        predictor.predict(X[:, :3])


def test_reports_name_features(X, y, classifier, tmp_path):
    model = classifier().fit(X, y)
    page = (tmp_path / "page.html", model.report(tmp_path / "page.html"))[0].read_text()
    assert "of 90 sparse features are read" in page


def test_table_encoder_projects_sparse_rows(X):
    encoder = TableEncoder().fit(X)
    found = encoder.transform(X)
    assert found.shape == (N_ROWS, len(encoder.get_feature_names_out()))
    np.testing.assert_array_equal(encoder.transform(X.toarray()), found)


@pytest.mark.parametrize("kind", [EasyTensorClassifier, EasyTensorRegressor])
def test_scikit_learns_checks_with_matrices_that_stay_sparse(kind, monkeypatch):
    for module in ("sparse", "tables"):
        monkeypatch.setattr(f"sk_easytensor.{module}.NARROW", 0)
    model = kind(trunk=MLP(width=4), max_epochs=1, trees=None, random_state=0)
    estimator_checks.check_estimator_sparse_array(kind.__name__, model)
