"""Targets, weights of rows and tables for validation."""

import datetime as dt
import decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa

from .columns import pick

CLASSES = {
    "integers": [0, 1],
    "texts": ["no", "yes"],
    "booleans": [True, False],
    "floats": [0.0, 1.0],
    "many": list(range(8)),
    "negative": [-1, 1],
    "huge": [2**62, 2**62 + 1],
}
"""Targets that a classifier is to take, and to answer with."""

ODD_CLASSES = {
    "mixed": [1, "1"],
    "mixed numbers": [1, 1.0, True],
    "surrogates": ["a", "\ud800"],
    "odd texts": ["", " ", "\0", "nan", "\uffff"],
    "beyond": [2**63, 2**70, -(2**70)],
    "uint64": [2**63, 2**63 + 1],
    "fractions": [0.5, 1.5],
    "extreme": [1e308, -1e308],
    "infinite": [0.0, np.inf],
    "nan": [0.0, 1.0, np.nan],
    "none": ["a", None],
    "na": [1, pd.NA, 2],
    "one": ["a"],
    "dates": [dt.date(2020, 1, 1), dt.date(2020, 1, 2)],
    "times": [np.datetime64("2020-01-01"), np.datetime64("2020-01-02")],
    "bytes": [b"a", b"b"],
    "tuples": [(1, 2), (3, 4)],
    "decimals": [decimal.Decimal(1), decimal.Decimal(2)],
    "objects": [object, len],
    "numpy mix": [np.int8(1), np.float32(2), np.str_("a")],
    "lists": [[1], [2]],
    "complex": [1j, 2j],
}

HOLDERS = ("list", "array", "series", "categorical", "nullable", "polars", "arrow", "object",
"column",
           "frame", "tuple", "odd index")  # fmt: skip


def held(random, values, holder=None):
    """Hold a target in one of the things users hold targets in."""
    holder = holder or str(random.choice(HOLDERS))
    try:
        return holder, _held(values, holder)
    except Exception:
        return "list", values


def _held(values, holder):
    if holder == "array":
        return np.asarray(values)
    if holder == "series":
        return pd.Series(values)
    if holder == "odd index":
        return pd.Series(values, index=range(len(values), 0, -1))
    if holder == "categorical":
        return pd.Series(pd.Categorical(values))
    if holder == "nullable":
        return pd.Series(values).convert_dtypes()
    if holder == "polars":
        return pl.Series(values)
    if holder == "arrow":
        return pa.array(values)
    if holder == "object":
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array
    if holder == "column":
        return np.asarray(values)[:, None]
    if holder == "frame":
        return pd.DataFrame({"target": values})
    return tuple(values) if holder == "tuple" else values


def every(random, values, n):
    """Draw a target in which every value occurs as often as can be."""
    made = [values[i % len(values)] for i in range(n)]
    return [made[i] for i in random.permutation(n)]


def classes(random, n):
    """Return a name, values and the target of a classifier that is to be taken."""
    name = str(random.choice(list(CLASSES)))
    values = every(random, CLASSES[name], n)
    holder, y = held(random, values, str(random.choice(["list", "array", "series", "nullable"])))
    return f"{name} in {holder}", y


def odd_classes(random, n):
    if random.random() < 0.25:
        return odd_shape(random, n)
    name = str(random.choice([*ODD_CLASSES, *CLASSES]))
    values = every(random, {**ODD_CLASSES, **CLASSES}[name], n)
    holder, y = held(random, values)
    return f"{name} in {holder}", y


def numbers(random, n):
    y = random.normal(size=n) * 10.0 ** random.integers(-3, 4) + random.normal()
    holder, y = held(
        random, y.tolist(), str(random.choice(["list", "array", "series", "nullable"]))
    )
    return f"numbers in {holder}", y


def odd_numbers(random, n):
    if random.random() < 0.25:
        return odd_shape(random, n)
    normal = random.normal(size=n)
    forms = {
        "1e200": normal * 1e200,
        "1e308": normal.clip(-1.7, 1.7) * 1e308,
        "1e-200": normal * 1e-200,
        "1e-310": normal * 1e-310,
        "1e30": normal * 1e30,
        "far": normal + 1e15,
        "spread": normal * 10.0 ** random.integers(-150, 150, n),
        "one huge": np.where(np.arange(n) == 0, 1e300, normal),
        "infinite": np.where(np.arange(n) == 0, np.inf, normal),
        "nan": np.where(np.arange(n) == 0, np.nan, normal),
        "constant": np.full(n, 3.0),
        "constant huge": np.full(n, 1e300),
        "zero": np.zeros(n),
        "counts": random.poisson(3.0, n),
        "positive": np.exp(normal),
        "float16": normal.astype(np.float16),
        "complex": normal + 1j,
        "booleans": normal > 0,
        "texts": [str(value) for value in normal],
        "words": pick(random, ["a", "b"], n),
        "dates": (np.datetime64("2020-01-01") + np.arange(n)),
        "durations": np.arange(n).astype("m8[h]"),
        "decimals": [decimal.Decimal(str(round(value, 3))) for value in normal],
        "beyond": [2**70 + i for i in range(n)],
        "huge integers": np.arange(n) + 2**62,
        "none": [None if i == 0 else float(value) for i, value in enumerate(normal)],
        "na": [pd.NA if i == 0 else float(value) for i, value in enumerate(normal)],
        "lists": [[float(value)] for value in normal],
        "ragged": [[1.0] * (i % 3) for i in range(n)],
        "subnormal among": np.where(np.arange(n) == 0, 5e-324, 0.0),
    }
    name = str(random.choice(list(forms)))
    values = forms[name]
    holder, y = held(random, values if isinstance(values, list) else values.tolist())
    return f"{name} in {holder}", y if random.random() < 0.7 else values


def odd_shape(random, n):
    forms = {
        "too short": [0, 1] * max(0, n // 2 - 1),
        "too long": [0, 1] * (n + 1),
        "empty": [],
        "none": None,
        "a number": 1,
        "a text": "target",
        "two columns": np.column_stack([np.arange(n) % 2, (np.arange(n) // 2) % 2]),
        "two numbers": random.normal(size=(n, 2)),
        "no columns": np.empty((n, 0)),
        "three axes": np.zeros((n, 1, 1)),
        "a row": np.arange(n)[None, :] % 2,
        "wide labels": (random.random((n, 5)) < 0.5).astype(int),
        "label texts": [["a"], ["b", "a"]] * (n // 2) + [["a"]] * (n % 2),
        "a frame": pd.DataFrame({"u": random.normal(size=n), "v": ["a",
        "b"] * (n // 2) + ["a"] * (n % 2)}),
        "a dict": {"u": list(range(n))},
        "constant column": np.column_stack([np.arange(n) % 2, np.zeros(n)]),
        "huge columns": random.normal(size=(n, 2)) * [1e200, 1e-200],
    }  # fmt: skip
    name = str(random.choice(list(forms)))
    return name, forms[name]


ORDINARY_WEIGHTS = ("ordinary", "integers", "some zero", "series", "polars", "arrow")


def weights(random, n, odd=True):
    """Return a name and weights of rows, seldom ordinary ones if they may be odd."""
    forms = {
        "ordinary": random.random(n) + 0.1,
        "integers": random.integers(1, 4, n),
        "some zero": np.where(np.arange(n) % 3 == 0, 0.0, 1.0),
        "all zero": np.zeros(n),
        "one": np.where(np.arange(n) == 0, 1.0, 0.0),
        "negative": random.normal(size=n),
        "nan": np.where(np.arange(n) == 0, np.nan, 1.0),
        "infinite": np.where(np.arange(n) == 0, np.inf, 1.0),
        "huge": np.full(n, 1e300),
        "tiny": np.full(n, 1e-300),
        "spread": 10.0 ** random.integers(-150, 150, n),
        "too short": np.ones(max(0, n - 1)),
        "too long": np.ones(n + 1),
        "two columns": np.ones((n, 2)),
        "a column": np.ones((n, 1)),
        "a number": 1.0,
        "texts": ["1"] * n,
        "words": ["heavy"] * n,
        "none": [None] * n,
        "booleans": np.arange(n) % 2 == 0,
        "series": pd.Series(random.random(n) + 0.1, index=range(n, 0, -1)),
        "polars": pl.Series(random.random(n) + 0.1),
        "arrow": pa.array(random.random(n) + 0.1),
        "complex": np.ones(n) * 1j,
        "a name": "c0",
        "a dict": {0: 1.0},
    }
    name = str(random.choice(list(forms) if odd else ORDINARY_WEIGHTS))
    return name, forms[name]
