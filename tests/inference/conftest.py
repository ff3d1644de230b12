import datetime as dt
from functools import cache

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from sk_easytensor import (
    MLP,
    CategoryBlock,
    EasyTensorEmbedder,
    EasyTensorMultiTask,
    EasyTensorTwoTower,
    EventSequenceBlock,
    NumericBlock,
    TextBlock,
)

TOLERANCE = 1e-5


def make_rows(n_rows=150, seed=0):
    """Return a data frame with columns of every kind, some values missing."""
    rng = np.random.default_rng(seed)

    def lists(values):
        return [list(rng.choice(values, size)) for size in rng.integers(0, 9, n_rows)]

    day = pd.to_datetime("2021-01-01") + pd.to_timedelta(rng.integers(0, 10**8, n_rows), "s")
    words = ["good", "bad", "dress", "it's", "RED", "😀", "北京", "fits"]
    lengths = rng.integers(0, 9, n_rows)
    frame = pd.DataFrame(
        {
            "amount": rng.normal(size=n_rows),
            "count": rng.integers(0, 9, n_rows),
            "flag": rng.random(n_rows) < 0.5,
            "constant": 1.0,
            "empty": np.full(n_rows, np.nan),
            "city": rng.choice(["Oslo", "Lima", "Ülm", "🦄"], n_rows),
            "code": rng.integers(0, 5, n_rows),
            "user": [f"u{value}" for value in rng.integers(0, 40, n_rows)],
            "day": day,
            "zoned": day.tz_localize("UTC").tz_convert("Europe/Berlin"),
            "local": pd.Series(day.strftime("%Y-%m-%dT%H:%M:%S+05:30")),
            "date": pd.Series(day.date),
            "vector": list(rng.normal(size=(n_rows, 3))),
            "title": [" ".join(rng.choice(words, rng.integers(0, 7))) for _ in range(n_rows)],
            "body": [" ".join(rng.choice(words, rng.integers(0, 9))) for _ in range(n_rows)],
            "clicks": lists(["a", "b", "c"]),
            "codes": lists([1, 2, 3]),
            "series": [list(rng.normal(size=size)) for size in lengths],
            "second": [list(rng.normal(size=size)) for size in lengths],
            "kinds": [list(rng.choice(["view", "buy"], size)) for size in lengths],
            "sums": [list(rng.normal(size=size)) for size in lengths],
            "whens": [list(np.sort(rng.integers(0, 10**6, size))) for size in lengths],
            "events": [
                [
                    {
                        "what": str(rng.choice(["x", "y"])),
                        "at": when.to_pydatetime() - dt.timedelta(days=int(9 - place)),
                        "due": when.to_pydatetime(),
                    }
                    for place in range(size)
                ]
                for size, when in zip(lengths, day, strict=True)
            ],
        }
    )
    for name in ("amount", "city", "day", "title", "vector", "clicks"):
        frame[name] = frame[name].where(rng.random(n_rows) > 0.1, None)
    return frame


def make_hard_rows():
    """Return rows with what fit did not see: the unknown, the missing, the extreme."""
    frame = make_rows(60, seed=1)
    numbers = [np.inf, -np.inf, 1e300, -1e300, 5e-324, np.nan, 1e9, -0.0]
    frame.loc[: len(numbers) - 1, "amount"] = numbers
    frame.loc[:3, "empty"] = [1.0, np.inf, np.nan, -3.0]
    frame.loc[:3, "city"] = ["Rome", "", None, "👩‍🚀"]
    frame.loc[:2, "user"] = ["unheard of", None, "u1"]
    moments = ["1600-02-29 23:59:59.999", "2024-02-29", "2023-12-31 23:59:59", None, "0002-03-01"]
    frame["day"] = frame["day"].astype("datetime64[us]")
    frame.loc[: len(moments) - 1, "day"] = pd.Series(moments).astype("datetime64[us]")
    turned = ["2023-03-26 00:59:59", "2023-03-26 01:00:00", "2023-10-29 01:00:00", "1890-01-01"]
    frame["zoned"] = frame["zoned"].astype("datetime64[us, Europe/Berlin]")
    for row, moment in enumerate(turned):
        frame.loc[row, "zoned"] = pd.Timestamp(moment, tz="UTC").tz_convert("Europe/Berlin")
    frame.loc[:2, "title"] = ["", "never seen words", "GOOD 😀😀😀 it\u2019s \ufb01ts"]
    for row in range(3):
        frame.at[row, "vector"] = [None, [np.inf, -np.inf, np.nan], [1e9, 0.0, -1e9]][row]
        frame.at[row, "clicks"] = [None, [], ["a", None, "unseen", "🦄"] * 4][row]
        frame.at[row, "series"] = [[], [np.inf, -np.inf, np.nan], [1e300] * 12][row]
        frame.at[row, "second"] = [[], [1.0, None, 2.0], [0.0] * 12][row]
        frame.at[row, "kinds"] = [[], ["sell", None, "buy"], ["view"] * 12][row]
        frame.at[row, "sums"] = [[], [np.inf, None, 2.0], [1e9] * 12][row]
        frame.at[row, "whens"] = [[], [1.0, None, 7.0], list(range(12))][row]
        frame.at[row, "events"] = [[], None, [{"what": None, "at": None, "due": None}]][row]
    return frame


@pytest.fixture(scope="session")
def rows():
    """Rows to fit on."""
    return make_rows()


@pytest.fixture(scope="session")
def hard_rows():
    """Rows to predict."""
    return make_hard_rows()


@pytest.fixture(scope="session")
def target(rows):
    """A number that depends on the rows."""
    return (rows["count"] + rows["flag"] + rows["series"].map(len)).to_numpy(np.float64)


@pytest.fixture(scope="session")
def assert_same():
    """Compare what a model and an exported file predict."""

    def compare(model, predictor, X, *methods):
        for method in methods:
            expected = getattr(model, method)(X)
            found = getattr(predictor, method)(X)
            assert found.shape == expected.shape, method
            if expected.dtype.kind == "f":
                assert np.isfinite(expected).all(), method
                size = np.maximum(1, np.abs(expected))
                assert (np.abs(found - expected) / size).max() < TOLERANCE, method
            else:
                assert found.tolist() == expected.tolist(), method

    return compare


def make_pairs(rows, y, similarity):
    """Fit two towers."""
    return EasyTensorTwoTower(
        [("user", CategoryBlock(width=8), "user"), ("amount", NumericBlock(), "amount")],
        [("city", CategoryBlock(width=8), "city"), ("text", TextBlock(), "body")],
        similarity=similarity,
        embedding_dim=8,
        max_epochs=2,
        random_state=0,
    ).fit(rows, y)


def make_tasks(rows, target):
    """Fit tasks of each kind."""
    y = {
        "above": target > np.median(target),
        'rank "3"': np.array(["low", "mid", "high"])[np.digitize(target, [5, 8])],
        "total": target,
    }
    kinds = ["binary", "multiclass", "regression"]
    params = {"trunk": MLP(width=8), "trees": None, "max_epochs": 1, "n_folds": None}
    blocks = [("numbers", NumericBlock(), ["amount", "count"])]
    model = EasyTensorMultiTask(
        dict(zip(y, kinds, strict=True)), blocks, remainder="drop", random_state=0, **params
    )
    return model.fit(rows, pd.DataFrame(y))


def make_log():
    """Return a log of what users bought."""
    rng = np.random.default_rng(0)
    seconds = np.sort(rng.integers(0, 10**6, 300))
    return pd.DataFrame(
        {
            "who": rng.integers(0, 20, 300),
            "when": pd.Timestamp("2026-01-01") + pd.to_timedelta(seconds, "s"),
            "what": rng.choice(["tea", "milk"], 300),
            "price": rng.normal(size=300),
        }
    )


def make_embedder():
    """Fit an embedder."""
    blocks = [
        ("events", EventSequenceBlock("mean", aggregates=False, width=8), ["what", "price", "when"])
    ]
    model = EasyTensorEmbedder(blocks, embedding_dim=8, max_epochs=1, random_state=0)
    return model.fit(make_log(), user="who", time="when")


@pytest.fixture(scope="session")
def log():
    """Rows that the embedder was fitted on."""
    return make_log()


@pytest.fixture(scope="session")
def exported(rows, target, tmp_path_factory):
    """A function that gives a fitted model and its file, made once, by the name of the kind."""
    classes = np.where(target > 5, "likes", "hates")
    kinds = {
        "pairs of classes": lambda: make_pairs(rows, classes, "dot"),
        "pairs of numbers": lambda: make_pairs(rows, target, "cosine"),
        "user tower": lambda: get("pairs of numbers")[0].user_tower_,
        "item tower": lambda: get("pairs of numbers")[0].item_tower_,
        "tasks": lambda: make_tasks(rows, target),
        "embedder": make_embedder,
    }
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def get(kind):
        model = kinds[kind]()
        return model, model.to_onnx(folder / f"{kind}.onnx")

    return get
