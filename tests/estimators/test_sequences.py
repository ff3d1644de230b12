"""Columns of lists, from any table to predictions."""

import datetime as dt
import io
import pickle

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from sk_easytensor import (
    MLP,
    CategorySequenceBlock,
    EasyTensorClassifier,
    EventSequenceBlock,
    NumericSequenceBlock,
)

LEARNS = {"max_epochs": 15, "weight_decay": 1e-2, "learning_rate": 0.02, "batch_size": 32}
EVENTS = ["kind", "amount", "when"]


def make_lists(n_rows=96, seed=0):
    """Return a dictionary of columns with lists of every kind, some of them empty or missing."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 7, n_rows)
    steps = rng.integers(1, 9, n_rows)
    start = dt.datetime(2024, 1, 1)

    def per_row(make, sizes=sizes):
        return [make(int(size)) for size in sizes]

    columns = {
        "kind": per_row(lambda size: rng.choice(["view", "cart", "buy"], size).tolist()),
        "amount": per_row(lambda size: rng.normal(size=size).tolist()),
        "when": per_row(
            lambda size: [
                start + dt.timedelta(seconds=int(s)) for s in np.sort(rng.integers(0, 10**6, size))
            ]
        ),
        "x": per_row(lambda size: rng.normal(size=size).tolist(), steps),
        "y": per_row(lambda size: rng.normal(size=size).tolist(), steps),
        "z": per_row(lambda size: rng.normal(size=size).tolist(), steps[::-1]),
        "basket": per_row(lambda size: rng.choice(["tea", "milk"], size).tolist(), sizes[::-1]),
        "vector": per_row(lambda size: rng.normal(size=3).tolist()),
        "city": rng.choice(["Oslo", "Lima"], n_rows).tolist(),
        "age": rng.normal(size=n_rows).tolist(),
    }
    for row in (3, 20):
        for name in (*EVENTS, "x", "y", "z", "basket", "vector"):
            columns[name][row] = None
    columns["amount"][7] = [None] * len(columns["kind"][7])
    return columns, np.where(rng.random(n_rows) < 0.5, "yes", "no")


def part(columns, rows):
    """Return some rows of a dictionary of columns."""
    return {name: [values[row] for row in rows] for name, values in columns.items()}


def in_order(n_rows, seed=0):
    """Return lists of the same items in any order, and which item is the last."""
    rng = np.random.default_rng(seed)
    lists = [rng.permutation(["in", "in", "out", "out", "wait"]).tolist() for _ in range(n_rows)]
    lists = [items for items in lists if items[-1] != "wait"]
    return lists, np.array([items[-1] for items in lists])


@pytest.fixture(scope="module")
def lists():
    return make_lists()


@pytest.fixture(scope="module")
def fitted(lists):
    model = EasyTensorClassifier(
        trunk=MLP(width=16), max_epochs=2, batch_size=32, random_state=0, validation_fraction=None
    )
    return model.fit(*lists)


def test_blocks_are_chosen_by_type_and_length(fitted):
    found = {
        name: (type(block).__name__, *block.feature_names_in_)
        for name, block in fitted.blocks_.items()
    }
    assert found == {
        "vector": ("VectorBlock", "vector"),
        "event_sequence": ("EventSequenceBlock", *EVENTS),
        "numeric_sequence": ("NumericSequenceBlock", "x", "y"),
        "numeric_sequence_2": ("NumericSequenceBlock", "z"),
        "category_sequence": ("CategorySequenceBlock", "basket"),
        "category": ("CategoryBlock", "city"),
        "numeric": ("NumericBlock", "age"),
    }


def arrow(columns):
    # Inferred from Python, so that all flavours hold the same types.
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def arrays(columns):
    return pd.DataFrame(
        {
            name: [np.array(value) if isinstance(value, list) else value for value in values]
            for name, values in columns.items()
        }
    )


def chunks(columns):
    table = arrow(columns)
    return pa.concat_tables(table.slice(start, 5) for start in range(0, len(table), 5))


LIST_FLAVOURS = {
    "pandas": pd.DataFrame,
    "pandas_arrays": arrays,
    "pandas_index": lambda columns: pd.DataFrame(columns).set_index(
        pd.Index([f"row{i}" for i in range(len(columns["city"]))])
    ),
    "pandas_arrow_lists": lambda columns: arrow(columns).to_pandas(types_mapper=pd.ArrowDtype),
    "polars": pl.DataFrame,
    "polars_lazy": pl.LazyFrame,
    "arrow_table": arrow,
    "arrow_chunks": chunks,
    "arrow_sliced": lambda columns: (
        pa.concat_tables([arrow(columns)] * 2).combine_chunks().slice(len(columns["city"]))
    ),
    "record_batch": lambda columns: arrow(columns).to_batches()[0],
    "dict_of_series": lambda columns: {name: pd.Series(columns[name]) for name in columns},
    "list_of_dicts": lambda columns: arrow(columns).to_pylist(),
}


@pytest.mark.parametrize("flavour", LIST_FLAVOURS)
def test_any_flavour_predicts_the_same(flavour, fitted, lists):
    held = LIST_FLAVOURS[flavour](lists[0])
    np.testing.assert_array_equal(fitted.predict_proba(held), fitted.predict_proba(lists[0]))


@pytest.mark.parametrize(
    "flavour", ["pandas", "pandas_arrow_lists", "polars", "arrow_chunks", "list_of_dicts"]
)
def test_fit_on_any_flavour_gives_the_same_model(flavour, fitted, lists):
    columns, y = lists
    model = clone(fitted).fit(LIST_FLAVOURS[flavour](columns), y)
    assert list(model.blocks_) == list(fitted.blocks_)
    np.testing.assert_array_equal(model.predict_proba(columns), fitted.predict_proba(columns))


def test_structs_predict_what_parallel_lists_do(classifier, lists):
    columns, y = lists
    structs = [
        None
        if kind is None
        else [dict(zip(EVENTS, items, strict=True)) for items in zip(kind, *rest, strict=True)]
        for kind, *rest in zip(*(columns[name] for name in EVENTS), strict=True)
    ]
    parallel = classifier().fit({name: columns[name] for name in EVENTS}, y)
    nested = classifier().fit({"event": structs}, y)
    assert list(nested.blocks_) == list(parallel.blocks_) == ["event_sequence"]
    np.testing.assert_array_equal(
        nested.predict_proba({"event": structs}), parallel.predict_proba(columns)
    )
    np.testing.assert_array_equal(nested.feature_importances_, [1.0])


def test_a_row_alone_predicts_what_it_does_among_others(fitted, lists):
    columns, _ = lists
    expected = fitted.predict_proba(columns)
    for row in (0, 3, 7, 50):
        np.testing.assert_allclose(
            fitted.predict_proba(part(columns, [row])), expected[[row]], rtol=1e-4
        )
    backwards = part(columns, range(95, -1, -1))
    np.testing.assert_allclose(fitted.predict_proba(backwards), expected[::-1], rtol=1e-4)


def test_rows_whose_lists_are_all_empty(fitted, lists):
    columns, _ = lists
    names = [*EVENTS, "x", "y", "z", "basket"]
    rows = part(columns, range(4))
    empty = fitted.predict_proba({**rows, **{name: [[]] * 4 for name in names}})
    assert np.isfinite(empty).all()
    missing = fitted.predict_proba({**rows, **{name: [None] * 4 for name in names}})
    np.testing.assert_array_equal(empty, missing)
    nan = pd.DataFrame(rows).assign(**dict.fromkeys(names, np.nan))
    np.testing.assert_array_equal(fitted.predict_proba(nan), missing)
    typed = pa.table(
        {**rows, **{name: pa.array([[]] * 4, arrow(columns)[name].type) for name in names}}
    )
    np.testing.assert_array_equal(fitted.predict_proba(typed), missing)


def test_training_without_any_item(classifier):
    data = {"kind": [[], None] * 20, "x": pa.array([[], None] * 20, pa.list_(pa.float64()))}
    model = classifier().fit(data, [0, 1] * 20)
    assert np.isfinite(model.predict_proba(data)).all()
    assert np.isfinite(model.predict_proba({"kind": [["a", "b"]], "x": [[1.0, 2.0]]})).all()


@pytest.mark.parametrize(
    "block",
    [
        CategorySequenceBlock(width=16),
        CategorySequenceBlock("transformer", width=16, aggregates=False),
        CategorySequenceBlock("gru", pooling="last", width=16, aggregates=False),
        CategorySequenceBlock("conv", pooling="last", width=16, aggregates=False),
        EventSequenceBlock(width=16),
        EventSequenceBlock("gru", width=16, aggregates=False),
        EventSequenceBlock("transformer", pooling="last", width=16, aggregates=False),
    ],
    ids=lambda block: f"{block.kind}-{block.encoder}",
)
def test_order_is_learned(block, classifier):
    items, y = in_order(250)
    held_out, expected = in_order(100, seed=1)
    model = classifier([("items", block, "items")], **LEARNS).fit({"items": items}, y)
    assert model.score({"items": held_out}, expected) > 0.9


def test_order_is_not_learned_from_a_bag(classifier):
    items, y = in_order(250)
    held_out, expected = in_order(100, seed=1)
    bag = CategorySequenceBlock("mean", pooling="mean", width=16, aggregates=False)
    model = classifier([("items", bag, "items")], **LEARNS).fit({"items": items}, y)
    assert len(np.unique(model.predict_proba({"items": held_out}).round(3), axis=0)) == 1
    assert model.score({"items": held_out}, expected) < 0.65


@pytest.mark.parametrize("encoder", ["conv", "gru", "transformer"])
def test_a_series_is_learned(encoder, regressor):
    """How far it rises in its last step."""
    rng = np.random.default_rng(0)

    def make(n_rows):
        series = [rng.normal(size=size) for size in rng.integers(2, 9, n_rows)]
        return {"x": [one.tolist() for one in series]}, np.array(
            [one[-1] - one[-2] for one in series]
        )

    block = NumericSequenceBlock(encoder, pooling="last", width=16)
    model = regressor([("x", block, "x")], **{**LEARNS, "max_epochs": 20}).fit(*make(300))
    assert model.score(*make(200)) > 0.7


def test_the_time_since_the_last_event_is_learned(regressor):
    rng = np.random.default_rng(0)
    now = dt.datetime(2024, 5, 1)
    gaps = 10 ** rng.uniform(1, 6, 250)
    data = {
        "when": [
            [now - dt.timedelta(seconds=gap * factor) for factor in (4, 2, 1)] for gap in gaps
        ],
        "now": [now] * 250,
    }
    blocks = [("events", EventSequenceBlock(width=16), ["when", "now"])]
    model = regressor(blocks, **LEARNS).fit(data, np.log10(gaps))
    assert list(model.blocks_) == ["events", "datetime"]
    assert model.score(data, np.log10(gaps)) > 0.9


def planted(n_rows=300):
    """Return events of which only the amount of the last one matters, and other columns."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 6, n_rows)
    data = {
        "kind": [rng.choice(["a", "b"], size).tolist() for size in sizes],
        "amount": [rng.normal(size=size).tolist() for size in sizes],
        "x": [rng.normal(size=size).tolist() for size in sizes[::-1]],
        "words": [rng.choice(["u", "v"], size).tolist() for size in rng.permutation(sizes)],
        "age": rng.normal(size=n_rows).tolist(),
    }
    return data, np.array([amounts[-1] for amounts in data["amount"]])


def test_importances_find_the_column_of_an_event(regressor):
    X, y = planted()
    model = regressor(**LEARNS).fit(X, y)
    assert list(model.blocks_) == [
        "event_sequence",
        "numeric_sequence",
        "category_sequence",
        "numeric",
    ]
    importances = dict(zip(X, model.feature_importances_, strict=True))
    assert importances["amount"] > 0.8
    assert sum(importances.values()) == pytest.approx(1)
    before = model.feature_importances_
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).feature_importances_, before)


def test_importances_find_lists_that_stand_alone(regressor):
    X, _ = planted(200)
    params = {**LEARNS, "max_epochs": 8}
    model = regressor(**params).fit(X, [np.sum(x) for x in X["x"]])
    assert list(X)[model.feature_importances_.argmax()] == "x"
    model = regressor(**params).fit(X, [float(len(words)) for words in X["words"]])
    assert list(X)[model.feature_importances_.argmax()] == "words"


def test_importances_of_now(regressor):
    rng = np.random.default_rng(0)
    stamps = pd.date_range("2024-01-01", periods=200, freq="D")
    data = {
        "when": [[stamp] for stamp in stamps],
        "now": stamps + pd.to_timedelta(rng.random(200), "D"),
    }
    gaps = [(now - when[0]).total_seconds() for when, now in zip(*data.values(), strict=True)]
    blocks = [("events", EventSequenceBlock(width=16), ["when", "now"])]
    model = regressor(blocks, remainder="drop", **LEARNS).fit(data, np.log(gaps))
    assert model.feature_importances_.tolist() == [0, 1]


@pytest.mark.parametrize("lengths", ["alike", "skewed"])
def test_fitting_again_gives_the_same_model(lengths, classifier, lists):
    columns, y = lists
    if lengths == "skewed":
        columns = {
            **columns,
            "basket": [["tea"] * (60 if row % 9 == 0 else 1) for row in range(96)],
        }
    params = {"batch_size": 16, "validation_fraction": 0.2, "max_epochs": 2}
    one = classifier(**params).fit(columns, y)
    two = classifier(**params).fit(columns, y)
    np.testing.assert_array_equal(one.predict_proba(columns), two.predict_proba(columns))
    other = classifier(**params, random_state=1).fit(columns, y)
    assert (one.predict_proba(columns) != other.predict_proba(columns)).any()


def through_joblib(model):
    buffer = io.BytesIO()
    joblib.dump(model, buffer)
    buffer.seek(0)
    return joblib.load(buffer)


@pytest.mark.parametrize("through", [lambda m: pickle.loads(pickle.dumps(m)), through_joblib])
def test_copies_predict_the_same(through, fitted, lists):
    restored = through(fitted)
    for method in ("predict", "predict_proba", "transform"):
        expected = getattr(fitted, method)(lists[0])
        np.testing.assert_array_equal(getattr(restored, method)(lists[0]), expected)
    np.testing.assert_array_equal(restored.feature_importances_, fitted.feature_importances_)


def test_training_goes_on_after_pickling(classifier, lists):
    columns, y = lists
    model = classifier(warm_start=True).fit(columns, y)
    restored = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(
        restored.fit(columns, y).predict_proba(columns),
        model.fit(columns, y).predict_proba(columns),
    )
    assert np.isfinite(model.partial_fit(columns, y).predict_proba(columns)).all()


def test_grid_search_over_an_encoder(classifier, lists):
    columns, y = lists
    frame = pd.DataFrame(columns)[[*EVENTS, "city"]]
    model = classifier([("events", EventSequenceBlock(width=8), EVENTS)], max_epochs=1)
    grid = {"blocks__events__encoder": ["gru", "conv"], "blocks__events__max_length": [9]}
    search = GridSearchCV(model, grid, cv=2, error_score="raise").fit(frame, y)
    assert search.best_params_["blocks__events__encoder"] in ("gru", "conv")
    assert search.best_estimator_.blocks_["events"].max_length == 9
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert model.get_params()["blocks__events__encoder"] == "auto"


def test_evaluation_sets(classifier, lists):
    columns, y = lists
    more, more_y = make_lists(40, seed=1)
    model = classifier().fit(columns, y, eval_set=[(more, more_y), (pd.DataFrame(columns), y)])
    losses = model.evals_result_
    assert all(np.isfinite(values).all() for one in losses.values() for values in one.values())
    # Rows are judged in another order, which must not tell.
    shuffled = part(more, np.random.default_rng(0).permutation(40))
    order = np.random.default_rng(0).permutation(40)
    other = classifier().fit(columns, y, eval_set=[(shuffled, more_y[order]), (columns, y)])
    for name, one in losses.items():
        for key, values in one.items():
            np.testing.assert_allclose(other.evals_result_[name][key], values, rtol=1e-4)


def test_weights_follow_their_rows(classifier):
    """Also where rows are batched by the length of their lists."""
    rng = np.random.default_rng(0)
    lists = [["a"] * (40 if row % 8 == 0 else int(rng.integers(1, 4))) for row in range(160)]
    data = {"items": lists, "group": ["u", "v"] * 80}
    y = np.array([0, 1, 1, 0] * 40)
    # Of each group, only the rows that agree count.
    weight = np.array([1.0, 1.0, 0.0, 0.0] * 40)
    model = classifier(**LEARNS).fit(data, y, sample_weight=weight)
    assert (model.predict(data) == np.array([0, 1] * 80)).all()


def test_unlike_lengths_name_columns_and_row_of_the_table(fitted, lists):
    columns, _ = lists
    changed = {**columns, "amount": [*columns["amount"][:60], [1.0] * 9, *columns["amount"][61:]]}
    with pytest.raises(
        ValueError, match=r"columns 'amount' and 'kind' have 9 and . items in row 60"
    ):
        fitted.predict(changed)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, r"column 'basket' holds a int \(3\) in row 50.*string or a number, or lists"),
        ("tea", r"column 'basket' holds a str \('tea'\) in row 50"),
        (["tea", 3], r"column 'basket' holds a list \(\['tea', 3\]\) in row 50"),
        ([1.5], r"column 'basket' holds a list \(\[1\.5\]\) in row 50"),
    ],
)
@pytest.mark.parametrize("make", [dict, pd.DataFrame])
def test_columns_of_lists_and_others_name_column_and_row(value, message, make, fitted, lists):
    columns, y = lists
    basket = list(columns["basket"])
    basket[50] = value
    with pytest.raises(TypeError, match=message):
        fitted.predict(make({**columns, "basket": basket}))
    with pytest.raises(TypeError, match=message):
        clone(fitted).fit(make({**columns, "basket": basket}), y)


def test_lists_of_lists_name_column_and_row(fitted, lists):
    columns, y = lists
    nested = [None, [["a"]], *([[]] * 94)]
    with pytest.raises(
        TypeError, match=r"column 'basket' of type .*; row 1 holds .*one level deep"
    ):
        clone(fitted).fit({**columns, "basket": nested}, y)


def test_regressors_read_lists_too(regressor, lists):
    baskets = lists[0]["basket"]
    share = [basket.count("tea") / len(basket) if basket else 2.0 for basket in baskets]
    params = {**LEARNS, "max_epochs": 40, "validation_fraction": None}
    model = regressor(**params).fit({"basket": baskets}, share)
    assert model.score({"basket": baskets}, share) > 0.9
