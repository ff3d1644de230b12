"""Ranking metrics of two towers after each epoch, and the epoch that they choose."""

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import GridSearchCV
from two_towers import BY_KEY, BY_TASTE, KEYS, two_tower, untrained

from sk_easytensor import CategoryBlock, NumericBlock
from sk_easytensor.ranking import ndcg_at_k, recall_at_k


@pytest.fixture(scope="module")
def parts(X):
    order = np.random.default_rng(0).permutation(len(X))
    return X.iloc[order[:1500]], X.iloc[order[1500:]]


def smoothed(curve):
    """Return the means of up to three epochs."""
    return [np.mean(curve[max(0, epoch - 2) : epoch + 1]) for epoch in range(len(curve))]


def items_of(pairs, users):
    lists = pairs.groupby("user_id")["item_id"].agg(list)
    return [lists.get(user, []) for user in users]


def fresh_items(valid, train, users):
    """Return the items of each user's validation pairs that are not among its training pairs."""
    sides = zip(items_of(valid, users), items_of(train, users), strict=True)
    return [sorted(set(own) - set(known)) for own, known in sides]


@pytest.mark.parametrize("blocks", [(None, None), BY_KEY], ids=["all columns", "keys"])
def test_metrics_are_those_of_recommendations(blocks, parts, catalogue):
    train, valid = parts
    model = two_tower(*blocks, eval_metric=["recall@5", "ndcg@3"], max_epochs=4)
    model.fit(train, items=catalogue, eval_set=[train.copy(), valid], **KEYS)
    curves = model.evals_result_["valid_1"]
    assert list(curves) == ["softmax_loss", "recall@5", "ndcg@3"]
    people = valid.drop_duplicates("user_id")
    users, seen = people["user_id"], items_of(train, people["user_id"])
    found = model.recommend(people, k=5, exclude=seen)[0]
    relevant, best = fresh_items(valid, train, users), model.best_iteration_ - 1
    assert curves["recall@5"][best] == pytest.approx(recall_at_k(relevant, found, k=5))
    assert curves["ndcg@3"][best] == pytest.approx(ndcg_at_k(relevant, found, k=3))
    assert best == int(np.argmax(smoothed(curves["recall@5"])))
    assert model.best_score_ == curves["recall@5"][best]
    # Training pairs are ranked among all items.
    everyone = train.drop_duplicates("user_id")
    found = model.recommend(everyone, k=5)[0]
    expected = recall_at_k(fresh_items(train, train[:0], everyone["user_id"]), found, k=5)
    assert model.evals_result_["training"]["recall@5"][best] == pytest.approx(expected)


def test_users_are_recognized_by_their_key(parts, catalogue):
    """A user's columns may differ from pair to pair, as histories do."""
    train, valid = (rows.assign(mood=np.arange(len(rows)) * 0.01) for rows in parts)
    blocks = [("town", CategoryBlock(width=8), "town"), ("mood", NumericBlock(), "mood")], BY_KEY[1]
    model = two_tower(*blocks, eval_metric=["recall@5"], max_epochs=2)
    model.fit(train, items=catalogue, eval_set=[valid], **KEYS)
    people = valid.drop_duplicates("user_id")
    seen = items_of(train, people["user_id"])
    found = model.recommend(people, k=5, exclude=seen)[0]
    relevant = fresh_items(valid, train, people["user_id"])
    expected = recall_at_k(relevant, found, k=5)
    assert model.best_score_ == pytest.approx(expected)
    # Without the key, each pair is of a user of its own, so that the loss decides.
    alone = two_tower(*blocks, max_epochs=2)
    alone.fit(train, items=catalogue, eval_set=[valid], item_key="item_id")
    assert list(alone.evals_result_["valid_0"]) == ["softmax_loss"]
    default = two_tower(*blocks, max_epochs=2)
    default.fit(train, items=catalogue, eval_set=[valid], **KEYS)
    assert "ndcg@10" in default.evals_result_["valid_0"]


def test_ndcg_decides_by_default(parts, catalogue):
    train, valid = parts
    model = two_tower().fit(train, items=catalogue, eval_set=[valid], **KEYS)
    curves = model.evals_result_["valid_0"]
    assert list(curves) == ["softmax_loss", "ndcg@10", "recall@10"]
    assert model.best_iteration_ == 1 + int(np.argmax(smoothed(curves["ndcg@10"])))
    by_loss = two_tower(stopping_metric="loss").fit(
        train, items=catalogue, eval_set=[valid], **KEYS
    )
    curves = by_loss.evals_result_["valid_0"]
    assert by_loss.best_score_ == min(curves["softmax_loss"])
    assert len(curves) == 3


def test_rows_that_are_held_out_are_ranked_too(X, catalogue):
    model = untrained().fit(X, items=catalogue, **KEYS)
    assert list(model.evals_result_["valid_0"]) == ["softmax_loss", "ndcg@10", "recall@10"]
    without = untrained(validation_fraction=None).fit(X, items=catalogue, **KEYS)
    assert list(without.evals_result_) == ["training"]


REASONS = ["few users", "users without training pairs", "weights", "a target"]


@pytest.mark.parametrize("reason", REASONS)
def test_the_loss_decides_where_rankings_say_little(reason, parts, catalogue, rated):
    train, valid = parts
    if reason == "a target":
        pairs, y = rated
        model = untrained(*BY_TASTE).fit(
            pairs[:1000], y[:1000], eval_set=[(pairs[1000:], y[1000:])]
        )
        assert list(model.evals_result_["valid_0"]) == ["log_loss"]
        return
    weight = None
    if reason == "weights":
        weight = [np.linspace(1, 2, len(valid))]
    elif reason == "few users":
        valid = valid[valid["user_id"] < 40]
    else:
        valid = valid.assign(user_id=valid["user_id"] + 1000 * (np.arange(len(valid)) % 5 > 1))
    model = untrained(*BY_KEY).fit(
        train, items=catalogue, eval_set=[(valid, None)], eval_sample_weight=weight, **KEYS
    )
    assert list(model.evals_result_["valid_0"]) == ["softmax_loss"]


def test_pairs_of_weight_zero_are_not_relevant(parts, catalogue):
    train, valid = parts
    twice = pd.concat([valid, valid.assign(item_id=(valid["item_id"] + 7) % 40)])
    weight = np.repeat([1.0, 0.0], len(valid))
    model = untrained(*BY_KEY, eval_metric="recall@5")
    weighted = model.fit(
        train, items=catalogue, eval_set=[(twice, None)], eval_sample_weight=[weight], **KEYS
    )
    found = weighted.evals_result_["valid_0"]["recall@5"]
    plain = untrained(*BY_KEY, eval_metric="recall@5").fit(
        train, items=catalogue, eval_set=[valid], **KEYS
    )
    assert found == plain.evals_result_["valid_0"]["recall@5"]


def test_a_sample_of_users_is_ranked_for(parts, catalogue, monkeypatch):
    train, valid = parts
    monkeypatch.setattr("sk_easytensor.two_tower.evaluation.MIN_USERS", 20)
    monkeypatch.setattr("sk_easytensor.two_tower.evaluation.MAX_USERS", 20)
    scores = [
        untrained(*BY_KEY).fit(train, items=catalogue, eval_set=[valid], **KEYS).best_score_
        for _ in range(2)
    ]
    assert scores[0] == scores[1]
    monkeypatch.undo()
    assert (
        untrained(*BY_KEY).fit(train, items=catalogue, eval_set=[valid], **KEYS).best_score_
        != (scores[0])
    )


def test_fewer_items_than_are_asked_for(parts, catalogue):
    train, valid = parts
    model = untrained(*BY_KEY, eval_metric="recall@100")
    model.fit(train, items=catalogue, eval_set=[valid], **KEYS)
    # Everything that is not a training pair is recommended.
    assert model.evals_result_["valid_0"]["recall@100"] == [1.0]


def test_items_without_keys(parts):
    train, valid = parts
    model = untrained(*BY_KEY, eval_metric="recall@40")
    model.fit(train, eval_set=[valid])
    assert model.evals_result_["valid_0"]["recall@40"] == [1.0]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"eval_metric": "auc"}, r"eval_metric must be 'auto', None, or names .*'ndcg@10'.*'auc'"),
        ({"eval_metric": ["ndcg@0"]}, r"eval_metric must be .*\['ndcg@0'\]"),
        ({"eval_metric": ["mrr@5", "mrr@5"]}, "names a metric more than once"),
        ({"stopping_metric": "map@3"}, r"stopping_metric must be one of .*got 'map@3'"),
    ],
)
def test_names_that_are_no_metrics(params, message, X, catalogue):
    with pytest.raises(ValueError, match=message):
        untrained(**params).fit(X, items=catalogue, **KEYS)


def test_metrics_of_choices_need_choices(rated):
    X, y = rated
    with pytest.raises(ValueError, match=r"eval_metric='ndcg@10' ranks .* a fit without y"):
        untrained(*BY_TASTE, eval_metric="ndcg@10").fit(X, y)


def test_metrics_in_a_search(X):
    search = GridSearchCV(
        untrained(*BY_KEY, eval_metric="recall@5"), {"embedding_dim": [4]}, cv=2, refit=False
    )
    search.fit(X, item_key="item_id")
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
