"""Recorded models read what the estimator reads, whatever the types of its columns."""

import datetime as dt
import json
from decimal import Decimal

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from mlflow.models import Model

from sk_easytensor import MLP, EasyTensorMultiTask, EasyTensorRegressor
from sk_easytensor.inference import load
from sk_easytensor.tracking.model import save_model

ROWS = 40
RANDOM = np.random.default_rng(0)


def gaps(values):
    """Return values of which some are missing."""
    return [None if row % 7 == 3 else value for row, value in enumerate(values)]


NUMBERS = RANDOM.normal(size=ROWS)
DAYS = pd.date_range("2024-01-01", periods=ROWS)
HOURS = pd.to_timedelta(RANDOM.integers(0, 99, ROWS), "h")
WORDS = RANDOM.choice(["x", "y"], ROWS).tolist()
TRUE = RANDOM.random(ROWS) > 0.5
LISTS = [list("abc"[: row % 4]) for row in range(ROWS)]

COLUMNS = {
    "bool": TRUE,
    "boolean": pd.array(gaps(TRUE), dtype="boolean"),
    "bool_object": pd.Series(gaps(TRUE), dtype=object),
    "bool_arrow": pd.array(gaps(TRUE), dtype=pd.ArrowDtype(pa.bool_())),
    "int8": RANDOM.integers(0, 9, ROWS).astype("int8"),
    "Int64": pd.array(gaps(range(ROWS)), dtype="Int64"),
    "int_arrow": pd.array(gaps(range(ROWS)), dtype=pd.ArrowDtype(pa.int64())),
    "float32": NUMBERS.astype("float32"),
    "Float64": pd.array(gaps(NUMBERS), dtype="Float64"),
    "decimal": pd.Series(gaps([Decimal(f"{value:.2f}") for value in NUMBERS]), dtype=object),
    "duration": HOURS,
    "duration_gaps": pd.Series(gaps(HOURS), dtype="timedelta64[ns]"),
    "duration_arrow": pd.array(gaps(HOURS), dtype=pd.ArrowDtype(pa.duration("us"))),
    "time": pd.Series(gaps([dt.time(row % 24, 5) for row in range(ROWS)]), dtype=object),
    "date": pd.Series(gaps(DAYS.date), dtype=object),
    "timestamp": pd.Series(gaps(DAYS), dtype="datetime64[us]"),
    "year_3000": pd.Series([dt.datetime(3000, 1, 1 + row % 28) for row in range(ROWS)]),
    "zone": pd.Series(gaps(DAYS), dtype="datetime64[ns]").dt.tz_localize("Europe/Oslo"),
    "iso": DAYS.strftime("%Y-%m-%d"),
    "words": pd.Series(gaps(WORDS), dtype=object),
    "string": pd.array(gaps(WORDS), dtype="string"),
    "string_arrow": pd.array(gaps(WORDS), dtype=pd.ArrowDtype(pa.string())),
    "mixed": pd.Series((["a", 1, None, True] * ROWS)[:ROWS], dtype=object),
    "text": [f"the quick brown fox jumps over {row} dogs" for row in range(ROWS)],
    "category": pd.Categorical(gaps(WORDS)),
    "category_int": pd.Categorical(RANDOM.integers(0, 3, ROWS)),
    "vector": list(RANDOM.normal(size=(ROWS, 3))),
    "series": gaps([RANDOM.normal(size=2 + row % 3).tolist() for row in range(ROWS)]),
    "lists": gaps(LISTS),
    "lists_arrow": pd.array(gaps(LISTS), dtype=pd.ArrowDtype(pa.list_(pa.string()))),
    "lists_int": gaps([list(range(row % 4)) for row in range(ROWS)]),
    "structs": gaps(
        [[{"k": "a", "v": 1.0}, {"k": "b", "v": None}][: row % 3] for row in range(ROWS)]
    ),
    "empty": pd.Series([None] * ROWS, dtype=object),
}


def saved(X, folder):
    """Return a fitted regressor and the same as MLflow's function of a table."""
    model = EasyTensorRegressor(
        trees=None, trunk=MLP(width=4), max_epochs=1, validation_fraction=None, random_state=0
    ).fit(X, NUMBERS)
    save_model(model, X, folder)
    return model, mlflow.pyfunc.load_model(str(folder))


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """A model of all kinds of columns, the recorded one, their table and the folder."""
    X = pd.DataFrame({"number": NUMBERS}).assign(**COLUMNS)
    folder = tmp_path_factory.mktemp("mlflow") / "model"
    return (*saved(X, folder), X, folder)


def test_its_own_table_is_scored(every):
    model, served, X, _ = every
    assert served.metadata.signature.inputs.input_names() == list(X)
    np.testing.assert_array_equal(served.predict(X), model.predict(X))


def test_the_example_is_scored(every):
    model, served, X, folder = every
    expected = model.predict(X[:5])
    example = Model.load(folder).load_input_example(folder)
    np.testing.assert_array_equal(served.predict(example), expected)
    sent = json.loads((folder / "serving_input_example.json").read_text())["dataframe_split"]
    np.testing.assert_array_equal(served.predict(pd.DataFrame(**sent)), expected)


@pytest.mark.parametrize("backend", ["numpy_nullable", "pyarrow"])
def test_tables_of_other_types_are_scored(backend, every):
    _, served, X, _ = every
    names = ["bool", "bool_object", "int8", "float32", "iso", "words", "timestamp", "lists"]
    other = X.assign(**X[names].convert_dtypes(dtype_backend=backend))
    assert (other.dtypes != X.dtypes).sum() > 3
    np.testing.assert_array_equal(served.predict(other), served.predict(X))


def test_dates_in_lists_have_no_example(tmp_path):
    dates = [list(DAYS[: 1 + row % 3]) for row in range(ROWS)]
    X = pd.DataFrame({"number": NUMBERS, "dates": dates})
    model, served = saved(X, tmp_path / "model")
    np.testing.assert_array_equal(served.predict(X), model.predict(X))
    assert Model.load(tmp_path / "model").load_input_example(tmp_path / "model") is None


def test_predictions_of_several_tasks_are_named(tmp_path):
    X = pd.DataFrame({"a": np.linspace(0, 1, 60)})
    y = pd.DataFrame({"high": X["a"] > 0.5, "amount": X["a"] + 1})
    params = {"trunk": MLP(width=8), "trees": None, "max_epochs": 1, "random_state": 0}
    model = EasyTensorMultiTask({"high": "binary", "amount": "gamma"}, **params).fit(X, y)
    save_model(model, X, tmp_path / "model")
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert loaded.metadata.signature.outputs.input_names() == ["high", "amount"]
    pd.testing.assert_frame_equal(loaded.predict(X), model.predict(X))


def test_intervals_are_scored(tmp_path):
    cut = pd.cut(NUMBERS, 3)
    X = pd.DataFrame({"number": NUMBERS[::-1], "cut": cut, "dtype": pd.Series(gaps(cut))})
    X["dtype"] = X["dtype"].astype(cut.categories.dtype)
    model, served = saved(X, tmp_path / "model")
    expected = model.predict(X)
    np.testing.assert_array_equal(served.predict(X), expected)
    np.testing.assert_array_equal(model.predict(X.astype({"cut": object})), expected)
    X.astype({"cut": cut.categories.dtype}).to_parquet(tmp_path / "X.parquet")
    np.testing.assert_array_equal(model.predict(tmp_path / "X.parquet"), expected)
    exported = load(model.to_onnx(tmp_path / "model.onnx"))
    np.testing.assert_allclose(exported.predict(X), expected, rtol=1e-5)
    np.testing.assert_array_equal(exported.predict(tmp_path / "X.parquet"), exported.predict(X))


@pytest.mark.parametrize("as_array", [False, True])
def test_offsets_are_a_column_of_served_rows(as_array, tmp_path):
    X = pd.DataFrame({"x0": np.linspace(0, 1, 60)})
    given = X.to_numpy() if as_array else X
    params = {"trunk": MLP(width=8), "trees": None, "max_epochs": 1, "random_state": 0}
    model = EasyTensorRegressor(loss="poisson", **params)
    model.fit(given, np.arange(60), base_margin=np.zeros(60))
    save_model(model, given, tmp_path / "model")
    served = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    found = served.predict(X.assign(base_margin=1.0))
    np.testing.assert_allclose(found, model.predict(given, base_margin=np.ones(60)))
