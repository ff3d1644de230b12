"""What is kept of two towers: each alone, pickles, and what a second fit forgets."""

import copy
import pickle
import warnings

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from two_towers import (
    BY_TASTE,
    KEYS,
    N_USERS,
    same,
    untrained,
)

from sk_easytensor import (
    CategoryBlock,
    NumericBlock,
)

# ---------------------------------------------------------------------- towers


def test_towers_are_transformers(data, X, catalogue, fitted):
    user, item = fitted.user_tower_, fitted.item_tower_
    assert user.feature_names_in_.tolist() == ["user_id", "town", "age"]
    assert item.feature_names_in_.tolist() == ["item_id", "genre", "price"]
    assert (user.n_features_in_, item.n_features_in_) == (3, 3)
    embeddings = user.transform(data.users)
    assert embeddings.shape == (N_USERS, 8)
    assert embeddings.dtype == np.float32
    np.testing.assert_array_equal(embeddings, fitted.transform(data.users))
    np.testing.assert_array_equal(item.transform(catalogue), fitted.item_embeddings_)
    assert user.get_feature_names_out().tolist() == [f"tower{i}" for i in range(8)]
    pipeline = make_pipeline(FrozenEstimator(user), StandardScaler()).fit(data.users)
    assert pipeline.transform(data.users).shape == (N_USERS, 8)
    assert user.fit(data.users) is user


def test_towers_heed_set_output(data, X, catalogue):
    model = untrained().fit(X, items=catalogue, **KEYS)
    expected, embeddings = model.recommend(data.users), model.transform(data.users)
    score = model.score(X)
    users = data.users.set_axis([f"row {i}" for i in range(N_USERS)])
    model.user_tower_.set_output(transform="pandas")
    model.item_tower_.set_output(transform="polars")
    frame = model.user_tower_.transform(users)
    assert isinstance(frame, pd.DataFrame)
    assert frame.index.equals(users.index)
    assert isinstance(model.item_tower_.transform(catalogue), pl.DataFrame)
    same(model.recommend(data.users), expected)
    with config_context(transform_output="pandas"):
        frame = model.transform(users)
        assert frame.columns.tolist() == [f"easytensortwotower{i}" for i in range(8)]
        same(model.recommend(data.users), expected)
        model.rank_users(catalogue, users=data.users)
        assert model.score(X) == score
    np.testing.assert_array_equal(frame, embeddings)


def test_towers_are_pickled_alone(data, catalogue, fitted, tmp_path):
    for tower, frame in ((fitted.user_tower_, data.users), (fitted.item_tower_, catalogue)):
        joblib.dump(tower, tmp_path / "tower.joblib")
        restored = joblib.load(tmp_path / "tower.joblib")
        np.testing.assert_array_equal(restored.transform(frame), tower.transform(frame))
        weights = sum(value.numpy().nbytes for value in tower.network_.state_dict().values())
        assert (tmp_path / "tower.joblib").stat().st_size < weights + 15_000
    assert b"genre" not in pickle.dumps(fitted.user_tower_)
    assert b"town" not in pickle.dumps(fitted.item_tower_)


def test_a_cloned_tower_is_not_fitted(data, fitted):
    with pytest.raises(NotFittedError):
        clone(fitted.user_tower_).fit(data.users)
    with pytest.raises(NotFittedError):
        clone(fitted.user_tower_).transform(data.users)


# ---------------------------------------------------------------------- pickles


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("through", [through_pickle, copy.deepcopy, copy.copy])
def test_copies_rank_the_same(through, data, X, catalogue, fitted):
    restored = through(fitted)
    same(
        restored.recommend(data.users, exclude="seen"), fitted.recommend(data.users, exclude="seen")
    )
    same(restored.recommend({"user_id": [1]}), fitted.recommend({"user_id": [1]}))
    same(restored.rank_users(catalogue), fitted.rank_users(catalogue))
    for method in ("predict", "decision_function", "transform"):
        np.testing.assert_array_equal(getattr(restored, method)(X), getattr(fitted, method)(X))
    assert restored.score(X) == fitted.score(X)
    assert restored.evals_result_ == fitted.evals_result_


def test_models_are_mapped_into_memory(data, X, fitted, tmp_path):
    joblib.dump(fitted, tmp_path / "model.joblib")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped = joblib.load(tmp_path / "model.joblib", mmap_mode="r")
        same(mapped.recommend(data.users), fitted.recommend(data.users))
        np.testing.assert_array_equal(mapped.predict(X), fitted.predict(X))


def test_models_with_a_target_are_pickled(rated):
    X, y = rated
    for target in (np.where(y, "yes", "no"), y + 0.5):
        model = untrained(*BY_TASTE).fit(X, target)
        restored = through_pickle(model)
        np.testing.assert_array_equal(restored.predict(X), model.predict(X))
        assert restored.score(X, target) == model.score(X, target)


def test_no_training_row_is_pickled(X, catalogue):
    """Without a user_key nothing of the interactions is left; with one, who met what."""
    blocks = ([("town", CategoryBlock(), "town"), ("age", NumericBlock(), "age")], BY_TASTE[1])
    secret = X.assign(note=[f"secret {row}" for row in range(len(X))])

    def pickled(n_rows, **keys):
        model = untrained(*blocks).fit(secret[:n_rows], items=catalogue, item_key="item_id", **keys)
        return pickle.dumps(model)

    few, many = pickled(400), pickled(2000)
    assert abs(len(many) - len(few)) < 200
    assert b"secret" not in many + pickled(2000, user_key="user_id")
    assert b"torch._utils" not in many


def test_a_second_fit_forgets_the_first(data, X, catalogue):
    model = untrained(index="faiss").fit(X, items=catalogue, **KEYS)
    model.set_params(index="exact").fit(X, items=catalogue, item_key="item_id")
    assert not hasattr(model, "user_embeddings_")
    fresh = untrained().fit(X, items=catalogue, item_key="item_id")
    assert abs(len(pickle.dumps(model)) - len(pickle.dumps(fresh))) < 50
    same(model.recommend(data.users), fresh.recommend(data.users))
