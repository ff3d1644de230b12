"""Every estimator and block is written by skops, consists of known types and is read again."""

import numpy as np
import pandas as pd
import pytest
from skops.io import dumps, get_untrusted_types, loads

from sk_easytensor import (
    MLP,
    CategoryBlock,
    CategorySequenceBlock,
    DatetimeBlock,
    EasyTensorClassifier,
    EasyTensorEmbedder,
    EasyTensorRegressor,
    EasyTensorTwoTower,
    EventSequenceBlock,
    NumericBlock,
    NumericSequenceBlock,
    PretrainedBlock,
    TabM,
    TextBlock,
    VectorBlock,
)
from sk_easytensor.losses import Tweedie
from sk_easytensor.safe_loading import trusted_types
from sk_easytensor.tracking import MLflowTracker

QUICK = {"max_epochs": 1, "random_state": 0}
N = 60


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    days = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 300, N), "D")
    X = pd.DataFrame(
        {
            "number": rng.normal(size=N),
            "city": rng.choice(["Oslo", "Lima", None], N),
            "day": days,
            "text": rng.choice(["a red house by the sea", "a blue boat", None], N),
            "vector": list(rng.normal(size=(N, 3))),
            "items": [list("abc"[: i % 4]) if i % 7 else None for i in range(N)],
            "series": [list(rng.normal(size=i % 5)) for i in range(N)],
            "what": [list("abab"[: 1 + i % 4]) for i in range(N)],
            "when": [[day] * (1 + i % 4) for i, day in enumerate(days)],
        }
    )
    X.loc[::9, ["number", "day"]] = None
    return X


@pytest.fixture(scope="module")
def labels(table):
    return np.where(table["number"].fillna(0) > 0, "yes", "no")


def through_skops(model):
    """Write and read, trusting the library's types and no other."""
    data = dumps(model)
    assert set(get_untrusted_types(data=data)) <= set(trusted_types())
    return loads(data, trusted=trusted_types())


BLOCKS = {
    "number": (NumericBlock(), ["number"]),
    "periodic": (NumericBlock("periodic"), ["number"]),
    "category": (CategoryBlock(), ["city"]),
    "buckets": (CategoryBlock(hash_buckets=8), ["city"]),
    "day": (DatetimeBlock(), ["day"]),
    "text": (TextBlock(), ["text"]),
    "vector": (VectorBlock(), ["vector"]),
    "items": (CategorySequenceBlock(), ["items"]),
    "series": (NumericSequenceBlock(), ["series"]),
    "events": (EventSequenceBlock(), ["what", "when"]),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(name, table, labels):
    block, columns = BLOCKS[name]
    model = EasyTensorClassifier([(name, block, columns)], remainder="drop", **QUICK)
    model.fit(table, labels)
    np.testing.assert_array_equal(
        through_skops(model).predict_proba(table), model.predict_proba(table)
    )
    fitted = through_skops(model.blocks_[name])
    for entry, tensor in model.blocks_[name].transform(table[columns]).items():
        assert repr(fitted.transform(table[columns])[entry]) == repr(tensor)


@pytest.mark.parametrize("trainable", [False, True])
def test_pretrained_blocks(trainable, table, labels):
    donor = EasyTensorClassifier(**QUICK).fit(table[["number", "city"]], labels)
    block = PretrainedBlock(donor, trainable=trainable)
    model = EasyTensorClassifier([("donor", block, ["number", "city"])], **QUICK)
    model.fit(table, labels)
    found = through_skops(model)
    np.testing.assert_array_equal(found.predict_proba(table), model.predict_proba(table))


@pytest.mark.parametrize(
    "params",
    [{}, {"trunk": MLP(width=8)}, {"trunk": TabM(members=2), "warm_start": True}],
    ids=["default", "mlp", "warm start"],
)
def test_classifiers(params, table, labels):
    model = EasyTensorClassifier(**QUICK, **params).fit(table, labels)
    found = through_skops(model)
    np.testing.assert_array_equal(found.predict_proba(table), model.predict_proba(table))
    np.testing.assert_array_equal(found.predict(table), model.predict(table))
    np.testing.assert_array_equal(found.feature_importances_, model.feature_importances_)
    assert found.evals_result_ == model.evals_result_


def test_labels_of_several_columns(table):
    y = np.column_stack([table["city"].eq("Oslo"), table["city"].isna()]).astype(int)
    model = EasyTensorClassifier(**QUICK).fit(table[["number", "city"]], y)
    np.testing.assert_array_equal(through_skops(model).predict(table), model.predict(table))


@pytest.mark.parametrize("loss", ["squared_error", "poisson", Tweedie(1.2)])
def test_regressors(loss, table):
    y = np.arange(2.0 * N).reshape(N, 2)
    model = EasyTensorRegressor(loss=loss, **QUICK).fit(table[["number", "city"]], y)
    np.testing.assert_array_equal(through_skops(model).predict(table), model.predict(table))


def absolute(outputs, targets):
    return (outputs - targets).abs()


def test_a_loss_of_the_user_is_a_type_of_the_user(table):
    model = EasyTensorRegressor(loss=absolute, **QUICK).fit(table[["number"]], np.arange(1.0 * N))
    content = dumps(model)
    untrusted = get_untrusted_types(data=content)
    assert set(untrusted) - set(trusted_types()) == {f"{__name__}.absolute"}
    found = loads(content, trusted=untrusted)
    np.testing.assert_array_equal(found.predict(table), model.predict(table))


def test_two_towers():
    X = pd.DataFrame({"user": np.arange(N) % 7, "film": list("abcde") * 12, "age": np.arange(N)})
    model = EasyTensorTwoTower(
        [("user", CategoryBlock(), "user"), ("age", NumericBlock(), "age")],
        [("film", CategoryBlock(), "film")],
        embedding_dim=4,
        **QUICK,
    ).fit(X, item_key="film", user_key="user")
    found = through_skops(model)
    np.testing.assert_array_equal(found.decision_function(X), model.decision_function(X))
    for ours, theirs in zip(found.recommend(X, k=2), model.recommend(X, k=2), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    tower = through_skops(model.item_tower_)
    np.testing.assert_array_equal(tower.transform(X), model.item_tower_.transform(X))


def test_embedders(table):
    X = table[["what", "when"]]
    with pytest.warns(UserWarning, match="of 60 users have fewer than two events"):
        model = EasyTensorEmbedder(embedding_dim=4, **QUICK).fit(X)
    np.testing.assert_array_equal(through_skops(model).transform(X), model.transform(X))


def test_trackers_are_no_obstacle():
    model = EasyTensorClassifier(tracker=MLflowTracker(tags={"a": "b"}))
    assert repr(through_skops(model)) == repr(model)


class Own(CategoryBlock):
    """A block that the library does not know."""


def test_blocks_of_ones_own_are_not_trusted(table, labels):
    model = EasyTensorClassifier([("city", Own(), "city")], **QUICK).fit(table, labels)
    data = dumps(model)
    (unknown,) = set(get_untrusted_types(data=data)) - set(trusted_types())
    assert unknown.endswith(".Own")
    with pytest.raises(TypeError, match="Own"):
        loads(data, trusted=trusted_types())
    loaded = loads(data, trusted=[*trusted_types(), unknown])
    np.testing.assert_array_equal(loaded.predict(table), model.predict(table))
