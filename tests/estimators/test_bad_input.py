"""Input that makes no sense is refused before training; input that is only odd is not."""

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from scipy.sparse import csr_array
from skorch.callbacks import PassthroughScoring

from sk_easytensor import (
    MLP,
    BoostedTrees,
    CategoryBlock,
    EasyTensorClassifier,
    EasyTensorRegressor,
    NumericBlock,
    TabM,
)


@pytest.fixture(params=[EasyTensorClassifier, EasyTensorRegressor])
def make(request, quick, recorder):
    """A function that makes quick estimators, and checks at the end that none was trained."""
    yield lambda blocks=None, **params: request.param(
        blocks, **{**quick, "callbacks": [recorder], **params}
    )
    assert recorder.epochs == 0
    assert recorder.rates == []


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"amount": rng.normal(size=60), "city": rng.choice(["a", "b"], 60)})
    return X, np.tile([0.0, 1.0], 30)


# ---------------------------------------------------------------------- tables


def test_zero_rows(make, data):
    with pytest.raises(ValueError, match=r"0 sample\(s\)"):
        make().fit(data[0][:0], data[1][:0])


def test_zero_columns(make, data):
    with pytest.raises(ValueError, match=r"0 feature\(s\)"):
        make().fit(data[0][[]], data[1])


def test_one_dimensional_table(make, data):
    with pytest.raises(ValueError, match="Expected 2D array, got 1D array"):
        make().fit(data[0]["amount"], data[1])


def test_mismatched_lengths(make, data):
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[60, 59\]"):
        make().fit(data[0], data[1][:-1])


def test_columns_of_unequal_length(make, data):
    with pytest.raises(ValueError, match=r"columns have different lengths: \{'a': 60, 'b': 59\}"):
        make().fit({"a": np.zeros(60), "b": np.zeros(59)}, data[1])


def test_a_column_name_that_occurs_twice(make, data):
    X = pd.concat([data[0], data[0][["amount"]]], axis=1)
    with pytest.raises(ValueError, match=r"column names occur more than once: \['amount'\]"):
        make().fit(X, data[1])


def test_unknown_column_in_blocks(make, data):
    with pytest.raises(ValueError, match="block 'price' names column 'price', which X does not"):
        make([("price", NumericBlock(), "price")]).fit(*data)


def test_a_column_named_twice_in_a_block(make, data):
    with pytest.raises(ValueError, match=r"block 'b' names columns more than once: \['amount'\]"):
        make([("b", NumericBlock(), ["amount", "amount"])]).fit(*data)


def test_unsupported_type_names_the_column_and_what_would_take_it(make, data):
    X, y = data
    strange = {"amount": X["amount"], "strange": [b"x"] * 60}
    with pytest.raises(TypeError, match=r"'strange' of type bytes.* b'x'\. Decode it to text"):
        make().fit(strange, y)
    with pytest.raises(TypeError, match=r"'city' of type .* by NumericBlock.*by .*CategoryBlock"):
        make([("b", NumericBlock(), ["amount", "city"])]).fit(X, y)


def test_sparse_matrices_of_other_widths(make, data):
    from scipy.sparse import csr_matrix

    X = csr_matrix(np.eye(60))
    message = r"eval_set\[0\]: X has 59 features, but \w+ is expecting 60 features as input"
    with pytest.raises(ValueError, match=message):
        make().fit(X, data[1], eval_set=[(X[:, :59], data[1])])
    with pytest.raises(ValueError, match="Complex data not supported"):
        make().fit(X * 1j, data[1])


# ---------------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "Input y contains NaN"), (np.inf, "infinity"), (None, "Input y contains NaN")],
)
def test_missing_and_infinite_targets(value, message, make, data):
    y = data[1].astype(object if value is None else float)
    y[3] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=message):
            make().fit(data[0], y)


@pytest.mark.parametrize("value", [None, np.nan, pd.NA])
def test_missing_labels(value, classifier, data, recorder):
    labels = pd.Series(np.where(data[1] > 0, "yes", "no"), dtype=object)
    labels[3] = value
    for y in (labels, labels.to_numpy(), labels.astype("string"), labels.astype("category")):
        with pytest.raises(ValueError, match="Input y contains NaN"):
            classifier(callbacks=[recorder]).fit(data[0], y)
    assert recorder.epochs == 0


def test_no_target(make, data):
    with pytest.raises(ValueError, match="requires y to be passed"):
        make().fit(data[0], None)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (["one"] * 60, "only one class .*'one'"),
        (np.linspace(0, 1, 60), "Unknown label type: continuous"),
        (np.tile([[0, 1, 2]], (60, 1)), "several columns with more than two classes"),
        ([1, "a"] * 30, "y holds 1 in row 0 and 'a' in row 1; labels must be all of them text"),
        (np.tile([[-1, 1]], (60, 1)), "holds -1; each of several labels must be 0 or 1"),
        (np.tile([[0, 5]], (60, 1)), "several columns and holds 5; "),
        (np.tile([[0.0, 2.0]], (60, 1)), "several columns and holds 2.0; "),
        (np.full((60, 2), 7), "several columns and holds 7; "),
    ],
    ids=["one class", "continuous", "multioutput", "mixed", "signs", "0/5", "floats", "7"],
)
def test_bad_classes(y, message, classifier, data, recorder):
    if not isinstance(y, np.ndarray):
        y = np.array(y, dtype=object)
    with pytest.raises(ValueError, match=message):
        classifier(callbacks=[recorder]).fit(data[0], y)
    assert recorder.epochs == 0


def test_one_class_of_positive_weight(classifier, data, recorder):
    X, y = data
    with pytest.raises(ValueError, match=r"only one class is present.*where sample_weight"):
        classifier(callbacks=[recorder]).fit(X, y, sample_weight=y)
    assert recorder.epochs == 0


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (["a", "b"] * 30, "y must be numbers"),
        (np.array(["nan", "1"] * 30, dtype=object), "Input y contains NaN"),
        (np.arange(60).astype("datetime64[s]"), "y must be numbers, got datetime64"),
        (np.zeros((60, 2, 2)), "dim 3"),
        (np.zeros((60, 0)), r"0 feature\(s\)"),
        (np.r_[np.zeros(59), 1e160], r"y holds 1e\+160, and numbers may be up to 1e\+150 in size"),
        (np.c_[np.zeros(60), np.full(60, -2e155)], r"y holds -2e\+155, .*; divide y by a constant"),
    ],
    ids=["text", "nan as text", "dates", "three dimensions", "no columns", "large", "low"],
)
def test_bad_numbers(y, message, regressor, data, recorder):
    with pytest.raises(ValueError, match=message):
        regressor(callbacks=[recorder]).fit(data[0], y)
    assert recorder.epochs == 0


def test_poisson_needs_something_to_count(regressor, data, recorder):
    model = regressor(loss="poisson", callbacks=[recorder])
    weight = np.arange(60) % 2
    for y, w, where in (
        (np.zeros(60), None, "y"),
        (1 - weight, weight, "y"),
        (np.c_[np.ones(60), np.zeros(60)], None, "column 1 of y"),
    ):
        with pytest.raises(ValueError, match=f"at least one value above 0, and {where} .*only 0"):
            model.fit(data[0], y, sample_weight=w)
    assert recorder.epochs == 0
    assert np.isfinite(model.fit(data[0], np.r_[1, np.zeros(59)]).predict(data[0])).all()


def test_labels_are_checked_wherever_they_are_given(classifier, data, recorder):
    X, good = data[0], np.tile([[0, 1]], (60, 1))
    bad, model = 2 * good - 1, classifier(callbacks=[recorder])
    message = "several columns .*labels must be 0 or 1"
    for y in (bad, pd.DataFrame(bad), csr_array(bad)):
        with pytest.raises(ValueError, match=message):
            model.partial_fit(X, y)
    with pytest.raises(ValueError, match=rf"eval_set\[0\]: .*{message}"):
        model.fit(X, good, eval_set=[(X, bad)])
    assert recorder.epochs == 0
    for y in (good, good == 1, good.astype(float), pd.DataFrame(good), csr_array(good)):
        assert model.fit(X, y).predict(X).shape == (60, 2)


# ---------------------------------------------------------------------- weights

BAD_WEIGHTS = [
    (-np.ones(60), "Negative values"),
    (np.zeros(60), "at least one non-zero"),
    (np.full(60, np.nan), "NaN"),
    (np.full(60, np.inf), "infinity"),
    (np.ones(59), r"expected \(60,\)"),
    (np.ones((60, 2)), "1D"),
]


@pytest.mark.parametrize(("weight", "message"), BAD_WEIGHTS)
def test_bad_weights(weight, message, make, data):
    with pytest.raises(ValueError, match=message):
        make().fit(*data, sample_weight=weight)
    with pytest.raises(ValueError, match=message):
        make().partial_fit(*data, sample_weight=weight)
    with pytest.raises(ValueError, match=rf"eval_sample_weight\[1\]: .*{message}"):
        make().fit(*data, eval_set=[data, data], eval_sample_weight=[None, weight])


# ---------------------------------------------------------------------- evaluation sets


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda X, y: (X[["amount"]], y), ValueError, r"columns are missing: \['city'\]"),
        (lambda X, y: (X.assign(amount="a"), y), TypeError, "column 'amount' holds text where"),
        (lambda X, y: (X.to_numpy()[:, :1], y), ValueError, "X has 1 features"),
        (lambda X, y: (X, y[:9]), ValueError, "inconsistent numbers of samples"),
        (lambda X, y: (X[:0], y[:0]), ValueError, r"0 sample\(s\)"),
        (lambda X, y: (X, np.where(y > 0, np.nan, y)), ValueError, "Input y contains NaN"),
        (lambda X, y: (X, np.column_stack([y, y])), ValueError, "y has .* columns"),
        (lambda X, y: (X, y, y), ValueError, "must be a pair"),
        (lambda X, y: X, ValueError, "must be a pair"),
    ],
    ids=["columns", "type", "width", "length", "rows", "nan", "outputs", "triple", "table"],
)
def test_bad_evaluation_sets(change, error, message, make, data):
    with pytest.raises(error, match=rf"eval_set\[1\]:? .*{message}"):
        make().fit(*data, eval_set=[data, change(*data)])


def test_evaluation_sets_that_are_no_list(make, data):
    with pytest.raises(TypeError, match="eval_set must be a list of"):
        make().fit(*data, eval_set=data[0])
    with pytest.raises(ValueError, match="2 entries for 1 pairs"):
        make().fit(*data, eval_set=[data], eval_sample_weight=[None, None])
    with pytest.raises(TypeError, match=r"list with the weights of each pair .*, got 0\.5"):
        make().fit(*data, eval_set=[data], eval_sample_weight=0.5)


@pytest.mark.parametrize("labels", [[0, 2], ["no", "yes"]])
def test_labels_that_were_not_seen(labels, classifier, data, recorder):
    X, y = data
    model = classifier(callbacks=[recorder])
    with pytest.raises(ValueError, match=rf"eval_set\[0\]: .*not seen before: .*{labels[1]}"):
        model.fit(X, y.astype(int), eval_set=[(X, np.array(labels)[y.astype(int)])])
    assert recorder.epochs == 0


# ---------------------------------------------------------------------- parameters

BAD_PARAMETERS = [
    ("blocks", 3, "blocks must be a list"),
    ("remainder", "keep", "remainder must be one of"),
    ("trunk", "mlp", "trunk must have make_module"),
    ("categorical_features", "no", "categorical_features names column .no."),
    ("categorical_features", 2.5, "2.5 is not a column name"),
    ("trunk", MLP, "trunk must have make_module"),
    ("trunk", MLP(layers=-1), "layers must be an integer at least 0"),
    ("trunk", MLP(width=0), "width must be an integer at least 1"),
    ("trunk", MLP(width=8.0), "width must be an integer at least 1"),
    ("trunk", MLP(dropout=1.0), "dropout must be a number"),
    ("trunk", TabM(members=0), "members must be an integer at least 1"),
    ("trees", "many", "trees must be 'auto', None or BoostedTrees"),
    ("trees", True, "trees must be 'auto', None or BoostedTrees"),
    ("trees", BoostedTrees(max_leaf_nodes=32), "max_leaf_nodes must be an integer.* at most 31"),
    ("trees", BoostedTrees(max_features=0.0), "max_features must be a number"),
    ("trees", BoostedTrees(learning_rate=0), "learning_rate must be a number greater than 0"),
    ("linear", True, "linear must be one of .*'auto'.*None"),
    ("learning_rate", 0.0, "learning_rate must be a number greater than 0"),
    ("learning_rate", -1e-3, "learning_rate must be a number greater than 0"),
    ("learning_rate", np.nan, "learning_rate must be a number"),
    ("learning_rate", np.inf, "learning_rate must be a number"),
    ("learning_rate", "fast", "learning_rate must be a number"),
    ("learning_rate", None, "learning_rate must be a number"),
    ("batch_size", 0, "batch_size must be an integer at least 1"),
    ("batch_size", 0.5, "batch_size must be an integer"),
    ("max_epochs", 0, "max_epochs must be an integer at least 1"),
    ("max_epochs", True, "max_epochs must be an integer"),
    ("optimizer", "best", "optimizer must be one of"),
    ("optimizer", dict, "optimizer must be one of"),
    ("weight_decay", -0.1, "weight_decay must be a number at least 0"),
    ("early_stopping_rounds", 0, "early_stopping_rounds must be an integer at least 1"),
    ("eval_metric", "gini", "eval_metric 'gini' is unknown"),
    ("stopping_metric", "auc", "stopping_metric must be one of"),
    ("offset", 0.5, "offset must be the name of a column"),
    ("monotonic_cst", {"nothing": 1}, "monotonic_cst"),
    ("validation_fraction", 0, "validation_fraction must be a number greater than 0"),
    ("validation_fraction", 1.0, "validation_fraction must be a number.* less than 1"),
    ("n_folds", 1, "n_folds must be an integer of at least 2, 'auto' or None, got 1"),
    ("n_folds", "many", "n_folds must be an integer of at least 2"),
    ("n_folds", True, "n_folds must be an integer of at least 2"),
    ("warm_start", "yes", "warm_start must be one of"),
    ("random_state", "seed", "seed"),
    ("random_state", -1, "[Ss]eed"),
    ("n_jobs", 0, "n_jobs must be an integer other than 0"),
    ("n_jobs", "all", "n_jobs must be an integer"),
    ("device", "abacus", "device must be"),
    ("device", "meta", "device must be"),
    ("verbose", "loud", "verbose must be an integer at least -1"),
    ("verbose", -2, "verbose must be an integer at least -1"),
    ("callbacks", "checkpoint", "callbacks must be a list of skorch callbacks"),
    ("callbacks", [print], "callbacks must be a list of skorch callbacks"),
    ("backend", "cloud", "backend must be"),
    ("checkpoint_dir", 7, "checkpoint_dir must be a path"),
    ("tracker", "wandb", "tracker must be"),
    ("inference_engine", "openvino", "inference_engine must be one of"),
]


@pytest.mark.parametrize(
    ("name", "value", "message"), BAD_PARAMETERS, ids=[f"{n}-{v}" for n, v, _ in BAD_PARAMETERS]
)
def test_bad_parameters(name, value, message, make, data):
    error = TypeError if name == "blocks" else ValueError
    for method in ("fit", "partial_fit"):
        with pytest.raises(error, match=message):
            getattr(make(**{name: value}), method)(*data)


@pytest.mark.parametrize(
    "entry",
    [
        PassthroughScoring("train_loss"),
        PassthroughScoring,
        ("score", PassthroughScoring("train_loss")),
    ],
    ids=["object", "class", "named"],
)
def test_scoring_callbacks(entry, make, data):
    with pytest.raises(ValueError, match=r"callbacks cannot hold PassthroughScoring.*EpochScoring"):
        make(callbacks=[entry]).fit(*data)


def test_every_parameter_is_checked(make):
    checked = {name for name, _, _ in BAD_PARAMETERS} | {"class_weight", "loss", "quantile"}
    assert set(make().get_params(deep=False)) <= checked


def test_a_device_that_is_not_there(make, data):
    count = torch.cuda.device_count()
    with pytest.raises(ValueError, match=r"device must be .* of this machine"):
        make(device=f"cuda:{count}").fit(*data)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"loss": "hinge"}, "loss must be one of"),
        ({"loss": None}, "loss must be one of"),
        ({"loss": "quantile"}, "quantile must be a number"),
        ({"quantile": 0.9}, "quantile=0.9 has no effect with loss='squared_error'; set loss='qua"),
        ({"loss": "quantile", "quantile": 0.0}, "quantile must be a number greater than 0"),
        ({"loss": "quantile", "quantile": 1.0}, "quantile must be a number.* less than 1"),
    ],
)
def test_bad_losses(params, message, regressor, data, recorder):
    with pytest.raises(ValueError, match=message):
        regressor(callbacks=[recorder], **params).fit(*data)
    assert recorder.epochs == 0


# ---------------------------------------------------------------------- odd but fine


def predicts(model, X, y, X_new=None):
    """Check that a model trains and that its predictions are finite."""
    predicted = model.fit(X, y).predict(X if X_new is None else X_new)
    assert np.isfinite(predicted).all()
    return predicted


@pytest.mark.parametrize(
    "column",
    [
        pytest.param([None] * 60, id="null"),
        pytest.param([np.nan] * 60, id="nan"),
        pytest.param(pd.Series([None] * 60, dtype="str"), id="strings missing"),
        pytest.param(pd.Series([pd.NaT] * 60), id="dates missing"),
        pytest.param(pd.Series([None] * 60, dtype="category"), id="categories missing"),
        pytest.param([1.0] * 60, id="constant number"),
        pytest.param(["same"] * 60, id="constant string"),
        pytest.param([True] * 60, id="constant bool"),
        pytest.param(pd.Series([pd.Timestamp("2024-01-01")] * 60), id="constant date"),
        pytest.param([np.inf, -np.inf, np.nan] * 20, id="not finite"),
        pytest.param([1e300, -1e300, 1e-300] * 20, id="huge"),
        pytest.param([2**53 + 1, 2**62, -(2**63)] * 20, id="large integers"),
        pytest.param(np.array([2**64 - 1, 0, 1] * 20, dtype=np.uint64), id="unsigned integers"),
        pytest.param(["x" * 100_000, "", " "] * 20, id="long strings"),
        pytest.param(["👩‍👩‍👧", "日本", "e\u0301", "\x00"] * 15, id="emoji"),
    ],
)
def test_odd_columns_are_read(column, regressor, data):
    X, y = data
    table = {"odd": column, "amount": X["amount"]}
    predicts(regressor(), table, y)
    predicts(regressor(), {"odd": column}, y)


def test_values_seen_only_when_predicting(regressor, data):
    X, y = data
    X_new = pd.DataFrame({"amount": [np.nan, np.inf, -1e300], "city": ["new", None, "👽"]})
    predicts(regressor(), X, y, X_new)


def test_columns_missing_entirely_when_predicting(regressor, data):
    predicts(regressor(), *data, pd.DataFrame({"amount": [None] * 3, "city": [None] * 3}))


def test_a_column_first_seen_empty(regressor, data):
    X = data[0].assign(amount=None)
    predicts(regressor(), X, data[1], data[0])


def test_one_row_batches(regressor, data):
    X, y = data
    model = regressor(batch_size=1, max_epochs=1)
    whole = predicts(model, X, y)
    alone = [model.predict(X[row : row + 1])[0] for row in range(10)]
    np.testing.assert_allclose(alone, whole[:10], rtol=1e-5)


def test_a_last_batch_of_one_row(regressor, data):
    predicts(regressor(batch_size=50, validation_fraction=None), data[0][:51], data[1][:51])


def test_two_rows(make, data, classifier, regressor):
    predicts(classifier(), data[0][:2], data[1][:2])
    predicts(regressor(), data[0][:2], data[1][:2])


def test_one_row(regressor, data):
    predicts(regressor(), data[0][:1], data[1][:1])


def test_validation_part_of_one_class(classifier, data):
    X, y = data
    labels = np.where(np.arange(60) < 58, "common", "rare")
    predicted = classifier().fit(X, labels).predict(X)
    assert set(predicted) <= {"common", "rare"}
    model = classifier().fit(X, y, eval_set=[(X[y == 0], y[y == 0])])
    assert np.isfinite(model.best_score_)


def test_large_integers_stay_different_categories(classifier):
    ids = np.array([2**53, 2**53 + 1, 2**62, 2**62 + 1])
    model = classifier([("id", CategoryBlock(), "id")])
    model.fit({"id": np.tile(ids, 15)}, np.tile([0, 1], 30))
    assert len(model.blocks_["id"].categories_[0]) == 4
    assert len(set(model.predict_proba({"id": ids})[:, 1])) == 4


def test_tiny_and_huge_weights(regressor, data):
    X, y = data
    expected = regressor().fit(X, y).predict(X)
    for weight in (1e-200, 1e200):
        actual = regressor().fit(X, y, sample_weight=np.full(60, weight)).predict(X)
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_strange_column_names(regressor, data):
    X, y = data
    X = X.rename(columns={"amount": "a.b/c [1]", "city": "名前"})
    model = regressor([("weights.shape", NumericBlock(), "a.b/c [1]")])
    predicts(model, X, y)
    assert model.feature_importances_.shape == (2,)


# ---------------------------------------------------------------------- what other libraries say


@pytest.mark.parametrize(
    "weight", [["heavy"] * 60, {0: 1.0}, np.ones((60, 2)), [10**400] * 60, np.ones(60) * 1j]
)
def test_errors_about_weights_name_them(make, data, weight):
    with pytest.raises((ValueError, TypeError), match="sample_weight"):
        make().fit(*data, sample_weight=weight)


@pytest.mark.parametrize(
    "y",
    [
        {"a": [1]},
        [["a"], ["a", "b"]] * 30,
        [[[1.0]]] * 60,
        [1.0, [2.0]] * 30,
        "a",
        pl.Series([2**100, None] * 30, dtype=pl.Int128),
    ],
    ids=["dict", "lists", "three axes", "ragged", "unknown name", "Int128"],
)
def test_errors_about_targets_name_them(make, data, y):
    with pytest.raises((ValueError, TypeError), match=r"\by\b|columns are missing: \['a'\]"):
        make().fit(data[0], y)


@pytest.mark.parametrize("row", [None, [1.0, "a"], "amount"])
def test_rows_that_are_no_dictionaries(make, data, row):
    rows = [*data[0].to_dict("records")[:59], row]
    with pytest.raises(TypeError, match="row 59 is a"):
        make().fit(rows, data[1])


def test_a_target_that_is_the_weight_as_well(quick):
    X = {"a": np.arange(20.0), "b": np.tile([1.0, 2.0], 10)}
    model = EasyTensorRegressor(**quick).fit(X, "b", sample_weight="b")
    assert model.feature_names_in_.tolist() == ["a"]


def test_weights_of_any_spread(quick, data):
    """Rows whose weights vanish beside the others are as good as absent."""
    weight = 10.0 ** np.where(np.arange(60) % 2, 150.0, -150.0)
    params = {**quick, "validation_fraction": 0.5, "random_state": 0}
    model = EasyTensorRegressor(**params).fit(*data, sample_weight=weight)
    X, y = data[0][1::2], data[1][1::2]
    expected = EasyTensorRegressor(**params).fit(X, y)
    np.testing.assert_array_equal(model.predict(X), expected.predict(X))


def test_durations_among_other_objects(make, data):
    X = data[0].assign(city=[np.timedelta64(1, "D"), 2] * 30)
    with pytest.raises(TypeError, match=r"column 'city' holds np\.timedelta64.* in row 0"):
        make().fit(X, data[1])
