"""Every kind of table in, the same predictions out; columns are matched by name."""

import datetime as dt
import uuid
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from sk_easytensor import MLP, EasyTensorRegressor


@pytest.fixture
def fitted(classifier, labelled):
    return classifier().fit(*labelled)


def test_fit_on_any_flavour_gives_the_same_model(flavour, classifier, fitted, labelled):
    frame, y = labelled
    model = classifier().fit(flavour(frame), y)
    np.testing.assert_array_equal(model.predict_proba(frame), fitted.predict_proba(frame))
    assert model.blocks_.keys() == fitted.blocks_.keys()


def test_any_flavour_predicts_the_same(flavour, fitted, labelled):
    frame, _ = labelled
    expected = fitted.predict_proba(frame)
    np.testing.assert_array_equal(fitted.predict_proba(flavour(frame)), expected)


def test_array_predicts_as_data_frame(regressor, mixed):
    frame, y = mixed
    array = frame[["amount", "count"]].to_numpy(dtype=float)
    as_frame = pd.DataFrame(array, columns=["amount", "count"])
    expected = regressor().fit(as_frame, y).predict(as_frame)
    model = regressor().fit(array, y)
    np.testing.assert_array_equal(model.predict(array), expected)
    np.testing.assert_array_equal(model.predict(array.astype(object)), expected)
    np.testing.assert_array_equal(model.predict(array.tolist()), expected)
    assert not hasattr(model, "feature_names_in_")


def test_array_of_float32_is_read(regressor, mixed):
    frame, y = mixed
    array = frame[["amount", "count"]].to_numpy(dtype=np.float32)
    np.testing.assert_array_equal(
        regressor().fit(array, y).predict(array),
        regressor().fit(array.astype(np.float64), y).predict(array),
    )


@pytest.mark.parametrize(
    "make",
    [list, pd.Series, pl.Series, lambda y: pd.Series(y, dtype="category"), lambda y: y[:, None]],
    ids=["list", "pandas", "polars", "category", "column"],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.DataConversionWarning")
def test_flavours_of_the_target(make, classifier, fitted, labelled):
    frame, y = labelled
    model = classifier().fit(frame, make(y))
    assert model.classes_.tolist() == ["no", "yes"]
    np.testing.assert_array_equal(model.predict_proba(frame), fitted.predict_proba(frame))


@pytest.mark.parametrize("make", [list, pd.Series, pl.Series], ids=["list", "pandas", "polars"])
def test_flavours_of_weights(make, classifier, labelled):
    frame, y = labelled
    weight = np.linspace(1, 2, len(y))
    expected = classifier().fit(frame, y, sample_weight=weight).predict_proba(frame)
    actual = classifier().fit(frame, y, sample_weight=make(weight)).predict_proba(frame)
    np.testing.assert_array_equal(actual, expected)


def test_reordered_columns_are_realigned(fitted, labelled):
    frame, _ = labelled
    reordered = frame[frame.columns[::-1]]
    np.testing.assert_array_equal(fitted.predict_proba(reordered), fitted.predict_proba(frame))


def test_extra_columns_are_ignored(fitted, labelled):
    frame, _ = labelled
    extended = frame.assign(extra="text")[["extra", *frame.columns]]
    np.testing.assert_array_equal(fitted.predict_proba(extended), fitted.predict_proba(frame))


def test_missing_columns_raise_and_are_named(fitted, labelled):
    frame, _ = labelled
    with pytest.raises(ValueError, match=r"columns are missing: \['count', 'city'\]"):
        fitted.predict(frame.drop(columns=["count", "city"]))


@pytest.mark.parametrize(
    ("column", "value", "kind"),
    [
        ("amount", "much", "holds text where"),
        ("day", [1.5], "of type list\\["),
        ("city", [0.5], "of type list\\["),
    ],
    ids=["text for a number", "list for a date", "list for a category"],
)
def test_changed_type_raises_naming_column_and_type(column, value, kind, fitted, labelled):
    changed = {name: list(labelled[0][name]) for name in labelled[0]}
    changed[column] = [value] * 120
    with pytest.raises(TypeError, match=rf"column '{column}' {kind}"):
        fitted.predict(changed)


def test_types_that_can_be_read_may_change(fitted, labelled):
    frame, _ = labelled
    changed = frame.assign(
        count=frame["count"].astype(str),
        flag=frame["flag"].astype(int),
        day=frame["day"].astype("datetime64[s]"),
        grade=frame["grade"].astype(str),
        amount=frame["amount"].astype("Float64"),
        city=frame["city"].astype("category"),
    )
    np.testing.assert_array_equal(fitted.predict_proba(changed), fitted.predict_proba(frame))


def test_integers_that_become_floats_stay_the_same_category(classifier):
    from sk_easytensor import CategoryBlock

    frame = pd.DataFrame({"store": [7, 8, 9] * 20})
    y = np.tile([0, 1, 0], 20)
    model = classifier([("store", CategoryBlock(), "store")], max_epochs=20).fit(frame, y)
    floats = pd.DataFrame({"store": [7.0, 8.0, np.nan]})
    np.testing.assert_array_equal(model.predict_proba(floats)[:2], model.predict_proba(frame[:2]))


def test_array_for_a_model_with_names_warns(regressor, mixed):
    frame, y = mixed
    frame = frame[["amount", "count"]]
    model = regressor().fit(frame, y)
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        predicted = model.predict(frame.to_numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(model.predict(frame), predicted)


def test_array_of_another_width_raises(regressor, mixed):
    frame, y = mixed
    array = frame[["amount", "count"]].to_numpy()
    model = regressor().fit(array, y)
    with pytest.raises(
        ValueError, match="X has 1 features, but EasyTensorRegressor is expecting 2"
    ):
        model.predict(array[:, :1])


def test_names_and_counts_are_recorded(fitted, labelled):
    frame, _ = labelled
    assert fitted.n_features_in_ == frame.shape[1]
    assert fitted.feature_names_in_.tolist() == list(frame.columns)
    columns = {name: list(block.feature_names_in_) for name, block in fitted.blocks_.items()}
    assert columns == {
        "datetime": ["day"],
        "category": ["city", "grade"],
        "numeric": ["amount", "count", "flag"],
    }


def test_missing_values_of_every_spelling_are_equal(fitted, labelled):
    frame = labelled[0][:4].astype(object)
    spelled = frame.copy()
    for row, value in enumerate([None, np.nan, pd.NA, pd.NaT]):
        frame.loc[row, ["amount", "city", "day"]] = None
        spelled.loc[row, ["amount", "city"]] = value if value is not pd.NaT else None
        spelled.loc[row, "day"] = value
    columns = {name: frame[name].tolist() for name in frame}
    respelled = {name: spelled[name].tolist() for name in spelled}
    np.testing.assert_array_equal(fitted.predict_proba(respelled), fitted.predict_proba(columns))


def all_kinds(n_rows=60):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "city": rng.choice(["Oslo", "Lima"], n_rows),
            "flag": rng.random(n_rows) < 0.5,
            "amount": rng.normal(size=n_rows),
            "day": pd.date_range("2024-01-01", periods=n_rows),
            "text": [f"a soft and warm number {i} for cold winter evenings" for i in range(n_rows)],
            "vector": list(rng.normal(size=(n_rows, 3))),
        }
    )


@pytest.fixture(scope="module")
def fitted_on_all_kinds():
    trunk = MLP(width=16)
    model = EasyTensorRegressor(trunk=trunk, max_epochs=1, batch_size=32, random_state=0)
    model.fit(all_kinds(), all_kinds()["amount"])
    assert set(model.blocks_) == {"category", "numeric", "datetime", "text", "vector"}
    return model


@pytest.mark.parametrize("column", ["city", "flag", "amount", "day", "text", "vector"])
def test_a_column_of_nan_is_a_missing_column(column, fitted_on_all_kinds):
    rows = all_kinds()[:4]
    predict = fitted_on_all_kinds.predict
    expected = predict(rows.assign(**{column: pd.Series([None] * 4, dtype=object)}))
    if column != "flag":
        assert (expected != predict(rows)).any()
    for dtype in (np.float64, np.float32, "Float64"):
        nan = pd.Series([np.nan] * 4, dtype=dtype)
        np.testing.assert_array_equal(predict(rows.assign(**{column: nan})), expected)


def test_a_row_of_nan_is_a_missing_row(fitted_on_all_kinds):
    columns = list(all_kinds())
    nothing = pd.DataFrame(np.full((2, 6), np.nan), columns=columns)
    expected = fitted_on_all_kinds.predict([dict.fromkeys(columns)] * 2)
    np.testing.assert_array_equal(fitted_on_all_kinds.predict(nothing), expected)


def test_lazy_frames_are_collected(classifier, fitted, labelled):
    frame, y = labelled
    lazy = pl.from_pandas(frame).lazy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = classifier().fit(lazy, y, eval_set=[(lazy, y)])
        np.testing.assert_array_equal(fitted.predict(lazy.reverse()), fitted.predict(frame)[::-1])
    assert model.feature_names_in_.tolist() == list(frame.columns)


def test_a_dictionary_of_scalars_is_no_row(fitted, labelled):
    row = labelled[0].iloc[0].to_dict()
    with pytest.raises(ValueError, match="list of one dictionary"):
        fitted.predict(row)
    np.testing.assert_array_equal(fitted.predict([row]), fitted.predict(labelled[0][:1]))


def test_every_kind_of_column_is_read_without_a_warning(classifier):
    rng, n = np.random.default_rng(0), 60
    day = pd.Timestamp("2024-01-01")
    frame = pd.DataFrame(
        {
            "real": rng.normal(size=n),
            "single": rng.normal(size=n).astype(np.float32),
            "whole": np.arange(n),
            "flag": rng.random(n) < 0.5,
            "text": [f"some words {i} of {i % 7}" for i in range(n)],
            "object": pd.Series(rng.choice(list("ab"), n), dtype=object),
            "category": pd.Categorical(rng.choice(list("abc"), n)),
            "cut": pd.cut(rng.normal(size=n), 3),
            "day": day + pd.to_timedelta(np.arange(n), "D"),
            "zone": pd.date_range(day, periods=n, tz="Europe/Berlin"),
            "zones": pd.Categorical(pd.date_range(day, periods=n, tz="UTC").floor("30D")),
            "date": [dt.date(2024, 1, 1 + i % 28) for i in range(n)],
            "time": [dt.time(i % 24) for i in range(n)],
            "span": pd.to_timedelta(np.arange(n), "h"),
            "Int": pd.array([*range(n - 1), None], dtype="Int64"),
            "Bool": pd.array([True, None] * (n // 2), dtype="boolean"),
            "arrow": pd.array([1.5, None] * (n // 2), dtype=pd.ArrowDtype(pa.float64())),
            "decimal": pd.array(range(n), dtype=pd.ArrowDtype(pa.decimal128(9, 2))),
            "interval": pd.arrays.IntervalArray.from_breaks(range(n + 1)),
            "uuid": [uuid.UUID(int=i % 3) for i in range(n)],
            "vector": list(rng.normal(size=(n, 4))),
            "basket": [list("ab"[: i % 3]) for i in range(n)],
            "series": [list(rng.normal(size=2 + i % 4)) for i in range(n)],
            "events": [[{"when": day, "kind": "x"}] * (i % 4) for i in range(n)],
            "struct": [{"x": i, "y": "ab"[i % 2]} for i in range(n)],
            "missing": [None] * n,
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = classifier(max_epochs=1).fit(frame, frame["real"] > 0)
        np.testing.assert_array_equal(
            model.predict_proba(frame)[:1], model.predict_proba(frame[:1])
        )
    assert {"struct.x", "struct.y", "interval"} < set(model.feature_names_in_)


def test_reordered_labels_that_are_no_strings_are_realigned(regressor):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(80, 3)), columns=[2020, 2021, 2022])
    model = regressor(max_epochs=1).fit(frame, frame[2020])
    turned = frame[[2022, 2020, 2021]]
    np.testing.assert_array_equal(model.predict(turned), model.predict(frame))
    with pytest.raises(ValueError, match=r"columns are missing: \['2022'\]"):
        model.predict(frame.rename(columns={2022: 2023}))
