import os

import numpy as np
import pandas as pd
import pytest

from sk_easytensor.datasets import load_clothing_reviews, load_flights, make_interactions
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
    assert X.equals(reviews.data)
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
    assert flights.data.equals(events[KNOWN_BEFORE])
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
    assert X.equals(flights.data)
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
    assert X[KNOWN_BEFORE].equals(flights.data)
    lengths = X["past_schedule"].list.len()
    assert lengths.max() == 16
    some = X[lengths > 0]
    latest = some["past_schedule"].map(lambda times: times[-1])
    assert (latest.to_numpy("M8[us]") < some["schedule"].to_numpy("M8[us]")).all()


# ---------------------------------------------------------------------- interactions


def test_interactions():
    data = make_interactions(3000, n_users=50, n_items=30, n_tastes=5, random_state=0)
    log, users, catalogue = data.interactions, data.users, data.catalogue
    assert log.columns.tolist() == ["user_id", "town", "age", "item_id"]
    assert users.columns.tolist() == ["user_id", "town", "age"]
    assert catalogue.columns.tolist() == ["item_id", "genre", "price"]
    assert (len(log), len(users), len(catalogue)) == (3000, 50, 30)
    assert log.index.equals(pd.RangeIndex(3000))
    assert users["user_id"].is_unique
    assert catalogue["item_id"].is_unique
    assert log["item_id"].isin(catalogue["item_id"]).all()
    expected = users.set_index("user_id").loc[log["user_id"]].reset_index()
    pd.testing.assert_frame_equal(log[users.columns.tolist()], expected)
    assert catalogue["price"].between(1, 20).all()
    assert users["age"].between(18, 79).all()


def test_interactions_are_of_the_own_taste():
    data = make_interactions(4000, noise=0.2, n_tastes=5, random_state=0)
    assert data.affinity.shape == (200, 100)
    taste = [
        frame[name].str.split().str[1]
        for frame, name in ((data.users, "town"), (data.catalogue, "genre"))
    ]
    np.testing.assert_array_equal(
        data.affinity, taste[0].to_numpy()[:, None] == taste[1].to_numpy()
    )
    met = data.affinity[data.interactions["user_id"], data.interactions["item_id"]]
    assert met.mean() == pytest.approx(0.8 + 0.2 / 5, abs=0.03)
    clean = make_interactions(1000, noise=0, random_state=0)
    met = clean.affinity[clean.interactions["user_id"], clean.interactions["item_id"]]
    assert met.all()


def test_some_items_are_popular():
    counts = make_interactions(20_000, random_state=0).interactions["item_id"].value_counts()
    assert counts.iloc[0] > 10 * counts.median()


def test_interactions_are_repeatable():
    first, again, other = (make_interactions(random_state=seed) for seed in (0, 0, 1))
    for name in ("interactions", "users", "catalogue"):
        pd.testing.assert_frame_equal(first[name], again[name])
    assert not first.interactions.equals(other.interactions)
    drawn = make_interactions(random_state=np.random.RandomState(0))
    pd.testing.assert_frame_equal(first.interactions, drawn.interactions)


@pytest.mark.parametrize(
    "params", [{"n_users": 1}, {"n_items": 1}, {"n_tastes": 1}, {"n_items": 2, "n_tastes": 9}]
)
def test_few_of_anything(params):
    data = make_interactions(50, **params, random_state=0)
    assert data.interactions["item_id"].between(0, len(data.catalogue) - 1).all()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_interactions": 0}, "n_interactions must be an integer at least 1"),
        ({"n_users": 1.5}, "n_users must be an integer at least 1"),
        ({"n_items": -1}, "n_items must be an integer at least 1"),
        ({"n_tastes": 0}, "n_tastes must be an integer at least 1"),
        ({"noise": 1.1}, "noise must be a number at least 0 and at most 1"),
    ],
)
def test_interactions_that_make_no_sense(params, message):
    with pytest.raises(ValueError, match=message):
        make_interactions(**params)
