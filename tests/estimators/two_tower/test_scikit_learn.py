"""Two towers as scikit-learn knows estimators."""

import numpy as np
import pytest
from scikit_learn_checks import CHECKS
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from two_towers import BY_TASTE, KEYS, N_ITEMS, two_tower, untrained

from sk_easytensor import (
    MLP,
    CategoryBlock,
    EasyTensorTwoTower,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_scikit_learn_check(check):
    check("EasyTensorTwoTower", EasyTensorTwoTower())


@pytest.mark.parametrize("method", ["predict", "recommend", "rank_users", "transform", "score"])
def test_unfitted(method, X):
    with pytest.raises(NotFittedError):
        getattr(EasyTensorTwoTower(), method)(X)
    with pytest.raises(NotFittedError):
        EasyTensorTwoTower().get_feature_names_out()
    assert not hasattr(EasyTensorTwoTower(), "predict_proba")


def test_a_fit_that_failed_is_no_fit(X, catalogue):
    model = untrained()
    with pytest.raises(ValueError, match=r"eval_set\[0\]"):
        model.fit(X, items=catalogue, eval_set=[X[["town"]]], **KEYS)
    with pytest.raises(NotFittedError):
        model.recommend(X)


def test_clone_and_parameters(fitted):
    model = two_tower(*BY_TASTE)
    copied = clone(model)
    assert repr(copied) == repr(model)
    assert not hasattr(clone(fitted), "item_embeddings_")
    copied.set_params(user_blocks__town__width=3, trunk=MLP(), trunk__layers=1, embedding_dim=5)
    assert copied.user_blocks[0][1].width == 3
    assert copied.trunk.layers == 1
    assert model.user_blocks[0][1].width == 8
    copied.set_params(item_blocks__genre=CategoryBlock(width=7))
    assert copied.get_params()["item_blocks__genre__width"] == 7
    with pytest.raises(ValueError, match=r"Named blocks are: .*'town'"):
        copied.set_params(user_blocks__city__width=3)


def test_fit_does_not_change_parameters(X, catalogue):
    model = untrained(*BY_TASTE, trunk=MLP(width=8))
    before = repr(model.get_params())
    model.fit(X, items=catalogue, item_key="item_id")
    assert repr(model.get_params()) == before
    assert not hasattr(model.user_blocks[0][1], "feature_names_in_")


def test_grid_search(data, X, catalogue):
    grid = {"user_blocks__town__width": [1, 4], "embedding_dim": [2, 8]}
    search = GridSearchCV(two_tower(*BY_TASTE, max_epochs=3), grid, cv=2, error_score="raise")
    search.fit(X, items=catalogue, item_key="item_id")
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    best = search.best_estimator_
    assert (
        best.embedding_dim == best.item_embeddings_.shape[1] == search.best_params_["embedding_dim"]
    )
    assert search.score(X) == best.score(X)


def test_a_catalogue_of_as_many_rows_as_there_are_pairs(X, catalogue):
    """scikit-learn would cut it with the rows; a dictionary of columns it leaves alone."""
    search = GridSearchCV(untrained(*BY_TASTE), {"dropout": [0.0]}, cv=2, error_score="raise")
    columns = catalogue.to_dict("list")
    search.fit(X[:N_ITEMS], items=columns, item_key="item_id")
    assert len(search.best_estimator_.item_keys_) == N_ITEMS


def test_grid_search_with_a_target(rated):
    X, y = rated
    search = GridSearchCV(two_tower(*BY_TASTE), {"dropout": [0.0, 0.3]}, cv=2, scoring="roc_auc")
    assert search.fit(X, y).best_score_ > 0.7


def test_fit_transform(X, catalogue):
    embeddings = untrained().fit_transform(X, items=catalogue, **KEYS)
    assert embeddings.shape == (len(X), 8)
