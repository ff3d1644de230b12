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
from sk_easytensor.data.tables import as_table
from sk_easytensor.inspection import permutation_importance

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
    # A product of matrices with a single row rounds differently on some processors.
    np.testing.assert_allclose(alone, expected[:5], rtol=1e-6)
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
    assert found[3] > 0.2
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


@pytest.mark.parametrize(
    "selector",
    [
        0,
        -90,
        "x0",
        ["x0"],
        slice(0, 1),
        slice("x0", "x0"),
        np.arange(N_COLUMNS) == 0,
        lambda frame: frame.columns[:1],
    ],
)
def test_selectors_mean_features_of_the_matrix(selector, X):
    encoder = TableEncoder([("n", NumericBlock(), selector)]).fit(X)
    assert list(encoder.blocks_["n"].feature_names_in_) == ["x0"]
    assert list(encoder.blocks_["numeric"].feature_names_in_) == ["x5"]
    assert list(encoder.blocks_["sparse"].feature_names_in_) == ["sparse"]
    assert 0 not in encoder.blocks_["sparse"].features_[0]
    values = encoder.read(X).column("x0").to_numpy()
    np.testing.assert_array_equal(values, X[:, [0]].toarray().ravel())
    np.testing.assert_array_equal(encoder.transform(X.toarray()), encoder.transform(X))


def test_features_that_are_named_keep_missing_values(X):
    X = X.tolil()
    X[3, 0] = np.nan
    encoder = TableEncoder([("n", NumericBlock(), [0])]).fit(X.tocsr())
    assert encoder.read(X).column("x0").null_count == 1


def test_categories_offsets_and_constraints_are_features_of_the_matrix(X, regressor):
    y = np.arange(N_ROWS) % 7.0
    signs = np.zeros(N_COLUMNS)
    signs[2] = 1
    model = regressor(categorical_features=[0], offset=1, monotonic_cst=signs, trees=None)
    model.fit(X, y, eval_set=[(X, y)])
    read = {name: list(block.feature_names_in_) for name, block in model.blocks_.items()}
    assert read == {
        "sparse": ["sparse"],
        "category": ["x0"],
        "numeric": ["x5"],
        "numeric_monotonic": ["x2"],
        "offset": ["x1"],
    }
    assert model.feature_importances_.shape == (N_COLUMNS,)
    moved = X.toarray()
    moved[:, 1] += 1
    expected = model.predict(X)
    np.testing.assert_allclose(model.predict(csr_array(moved)), expected + 1, atol=1e-4)
    np.testing.assert_array_equal(model.predict(X.toarray()), expected)
    same = regressor(
        categorical_features=["x0"], offset="x1", monotonic_cst={"x2": 1}, trees=None
    ).fit(X, y, eval_set=[(X, y)])
    np.testing.assert_array_equal(same.predict(X), expected)


def test_selectors_of_frames_of_sparse_columns(X):
    names = ["sparse", *(f"w{index}" for index in range(1, N_COLUMNS))]
    frame = pd.DataFrame.sparse.from_spmatrix(coo_array(X), columns=names)
    blocks = [("s", SparseBlock(width=4), "sparse_"), ("n", NumericBlock(), ["sparse", 7])]
    encoder = TableEncoder(blocks, categorical_features=lambda X: X.columns[[9]]).fit(frame)
    assert list(encoder.blocks_["s"].feature_names_in_) == ["sparse_"]
    assert list(encoder.blocks_["n"].feature_names_in_) == ["sparse", "w7"]
    assert list(encoder.blocks_["category"].feature_names_in_) == ["w9"]
    values = encoder.read(frame[names[::-1]]).column("sparse").to_numpy()
    np.testing.assert_array_equal(values, X[:, [0]].toarray().ravel())


def test_the_sparse_part_may_be_empty(X):
    encoder = TableEncoder([("n", NumericBlock(), slice(None))]).fit(X)
    assert len(encoder.blocks_["n"].feature_names_in_) == N_COLUMNS
    assert encoder.transform(X).shape[0] == N_ROWS


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"offset": 90}, "offset names column 90, but X has 90 columns"),
        ({"offset": "x90"}, "X does not have; it has 90 columns: 'x0', 'x1', .* and so on"),
        ({"monotonic_cst": [1, 0]}, "one sign for each of the 90 columns"),
        ({"monotonic_cst": {"sparse": 1}}, "'sparse' is read by block 'sparse', a SparseBlock"),
        ({"categorical_features": [True, False]}, "mask has 2 entries for 90 columns"),
    ],
)
def test_selectors_of_other_features_are_refused(params, message, X, regressor):
    with pytest.raises(ValueError, match=message):
        regressor(**params).fit(X, np.arange(N_ROWS))


def test_features_in_the_sparse_part_of_a_table_are_refused(X, monkeypatch):
    table = as_table(X)
    with pytest.raises(ValueError, match="'x0', which is in the sparse part of X"):
        TableEncoder([("n", NumericBlock(), [0])]).fit(table)
    with pytest.raises(ValueError, match="callable can only select columns of the sparse matrix"):
        TableEncoder([("n", NumericBlock(), lambda frame: frame.columns[:1])]).fit(table)
    monkeypatch.setattr("sk_easytensor.compose.MAX_NAMED_FEATURES", 3)
    with pytest.raises(ValueError, match="4 features in the sparse part of X are named; at most 3"):
        TableEncoder([("n", NumericBlock(), slice(0, 4))]).fit(X)


@pytest.mark.parametrize("named", [False, True])
def test_permutation_importances_are_those_of_features(named, X, y, classifier):
    names = [f"c{index}" if named else f"x{index}" for index in range(X.shape[1])]
    table = pd.DataFrame.sparse.from_spmatrix(X, columns=names) if named else X
    model = classifier(trees=None).fit(table, y)
    found = permutation_importance(model, table, y, random_state=0, n_repeats=2)
    assert found.names.tolist() == names
    assert found.importances.shape == (X.shape[1], 2)
    # Together they are what the score falls by if the whole sparse part is shuffled.
    blocks = permutation_importance(model, table, y, random_state=0, n_repeats=2, by="block")
    assert blocks.importances.shape == (len(model.blocks_), 2)
    place = [model.blocks_[name].kind for name in blocks.names].index("sparse")
    rest = np.delete(found.importances, 5, axis=0)
    np.testing.assert_allclose(rest.sum(axis=0), blocks.importances[place])
    several = permutation_importance(
        model, table, y, random_state=0, n_repeats=2, scoring=["accuracy", "neg_log_loss"]
    )
    np.testing.assert_array_equal(several["accuracy"].importances, found.importances)


def test_explanations_have_one_entry_for_the_sparse_part(X, y, classifier):
    model = classifier(trees=None).fit(X, y)
    found = model.explain(X[:2], background=X[:10], random_state=0)
    assert list(found.feature_names) == ["x5", "sparse"]
    total = found.base_values + found.values.sum(axis=1)
    np.testing.assert_allclose(total, model.decision_function(X[:2]), atol=1e-4)


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
    assert "of 90 sparse features are used" in page


def test_table_encoder_projects_sparse_rows(X):
    encoder = TableEncoder().fit(X)
    found = encoder.transform(X)
    assert found.shape == (N_ROWS, len(encoder.get_feature_names_out()))
    np.testing.assert_array_equal(encoder.transform(X.toarray()), found)


@pytest.mark.parametrize("kind", [EasyTensorClassifier, EasyTensorRegressor])
def test_scikit_learns_checks_with_matrices_that_stay_sparse(kind, monkeypatch):
    for module in ("data.sparse", "data.tables"):
        monkeypatch.setattr(f"sk_easytensor.{module}.NARROW", 0)
    model = kind(trunk=MLP(width=4), max_epochs=1, trees=None, random_state=0)
    estimator_checks.check_estimator_sparse_array(kind.__name__, model)
