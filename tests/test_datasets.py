import os

import numpy as np
import pandas as pd
import pytest

from sk_easytensor.datasets import load_clothing_reviews

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


@pytest.fixture(scope="module")
def reviews():
    return load_clothing_reviews()


def test_bunch(reviews):
    assert isinstance(reviews.data, pd.DataFrame)
    assert reviews.data.shape == (22641, 8)
    assert reviews.data.columns.tolist() == reviews.feature_names == COLUMNS
    assert reviews.target_names.tolist() == ["not recommended", "recommended"]
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
