import os

import numpy as np
import pandas as pd
import pytest

from sk_easytensor.datasets import load_clothing_reviews, load_flights
from sk_easytensor.events import collect_sequences

COLUMNS = [
    "clothing_id",
    "age",
    "title",
    "review_text",
    "positive_feedback_count",
    "division_name",
    "department_name",
    "class_name",
]


KNOWN_BEFORE = ["tailnum", "schedule", "carrier", "flight", "origin", "dest", "distance"]
KNOWN_AFTER = ["dep_delay", "arr_delay", "air_time", "cancelled", "late"]


@pytest.fixture(scope="module")
def reviews():
    return load_clothing_reviews()


@pytest.fixture(scope="module")
def flights():
    return load_flights()


def test_bunch(reviews):
    assert isinstance(reviews.data, pd.DataFrame)
    assert reviews.data.shape == (22641, 8)
    assert reviews.data.columns.tolist() == reviews.feature_names == COLUMNS
    assert reviews.target_names.tolist() == ["not recommended", "recommended"]
    assert reviews.DESCR.startswith("# Women's E-Commerce Clothing Reviews")
    assert "CC0" in reviews.DESCR
    assert os.path.getsize(reviews.filename) < 4_000_000


def test_target(reviews):
    assert reviews.target.name == "recommended_ind"
    assert reviews.target.dtype == "int64"
    assert np.bincount(reviews.target).tolist() == [4101, 18540]
    assert reviews.target.index.equals(reviews.data.index)


def test_target_and_rating_are_not_features(reviews):
    assert not {"recommended_ind", "rating"} & set(reviews.data)


def test_column_types(reviews):
    types = reviews.data.dtypes
    for name in ["clothing_id", "division_name", "department_name", "class_name"]:
        assert isinstance(types[name], pd.CategoricalDtype), name
    for name in ["age", "positive_feedback_count"]:
        assert types[name] == "int64", name
    for name in ["title", "review_text"]:
        assert pd.api.types.is_string_dtype(reviews.data[name].dropna()), name


def test_missing_values(reviews):
    missing = reviews.data.isna().sum()
    assert missing[missing > 0].to_dict() == {
        "title": 2966,
        "division_name": 13,
        "department_name": 13,
        "class_name": 13,
    }


def test_return_X_y(reviews):
    X, y = load_clothing_reviews(return_X_y=True)
    pd.testing.assert_frame_equal(X, reviews.data)
    pd.testing.assert_series_equal(y, reviews.target)


def test_arrays(reviews):
    X, y = load_clothing_reviews(return_X_y=True, as_frame=False)
    assert X.dtype == object
    assert X.shape == (22641, 8)
    np.testing.assert_array_equal(X[:, 3], reviews.data["review_text"])
    np.testing.assert_array_equal(y, reviews.target)


def test_calls_do_not_share_data(reviews):
    other = load_clothing_reviews()
    other.data.loc[0, "age"] = -1
    other.target[0] = 0
    assert load_clothing_reviews().data.loc[0, "age"] == reviews.data.loc[0, "age"] == 33
    assert reviews.target[0] == 1


def test_flights(flights):
    assert flights.events.shape == (114483, 12)
    assert flights.events.columns.tolist() == KNOWN_BEFORE + KNOWN_AFTER
    assert flights.events["schedule"].is_monotonic_increasing
    assert flights.events["tailnum"].nunique() == 1347
    assert flights.data.columns.tolist() == flights.feature_names == KNOWN_BEFORE
    assert flights.target_names.tolist() == ["on time", "late"]
    assert flights.DESCR.startswith("# Flights of aircraft from New York")
    assert "CC0" in flights.DESCR
    assert os.path.getsize(flights.filename) < 1_500_000


def test_flights_target(flights):
    assert flights.target.dtype == "int64"
    assert flights.target.name == "late"
    assert np.bincount(flights.target).tolist() == [85769, 26422]
    events = flights.events.loc[flights.data.index]
    pd.testing.assert_frame_equal(flights.data, events[KNOWN_BEFORE])
    np.testing.assert_array_equal(flights.target, events["arr_delay"] > 15)
    left_out = flights.events.drop(flights.data.index)
    assert left_out["arr_delay"].isna().all()
    assert left_out["cancelled"].sum() == flights.events["cancelled"].sum() == 1861


def test_flights_types(flights):
    types = flights.events.dtypes
    for name in ["tailnum", "carrier", "flight", "origin", "dest"]:
        assert isinstance(types[name], pd.CategoricalDtype), name
    assert pd.api.types.is_datetime64_dtype(types["schedule"])
    missing = flights.events.isna().sum()
    assert missing[missing > 0].to_dict() == {
        "dep_delay": 1861,
        "arr_delay": 2292,
        "air_time": 2292,
        "late": 2292,
    }


def test_flights_return_X_y(flights):
    X, y = load_flights(return_X_y=True)
    pd.testing.assert_frame_equal(X, flights.data)
    pd.testing.assert_series_equal(y, flights.target)
    X, y = load_flights(return_X_y=True, as_frame=False)
    assert X.dtype == object
    assert X.shape == (112191, 7)
    np.testing.assert_array_equal(y, flights.target)
    assert isinstance(load_flights(as_frame=False).events, pd.DataFrame)


def test_flights_make_sequences(flights):
    X = collect_sequences(
        flights.events,
        by="tailnum",
        order_by="schedule",
        at=flights.data,
        columns=["schedule", "late"],
        max_length=16,
    )
    pd.testing.assert_frame_equal(X[KNOWN_BEFORE], flights.data)
    lengths = X["past_schedule"].list.len()
    assert lengths.max() == 16
    some = X[lengths > 0]
    latest = some["past_schedule"].map(lambda times: times[-1])
    assert (latest.to_numpy("M8[us]") < some["schedule"].to_numpy("M8[us]")).all()
