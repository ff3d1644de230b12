import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy.sparse import csr_array
from sklearn.base import clone

from sk_easytensor import MLP, EasyTensorRegressor
from sk_easytensor.blocks import BLOCKS, PretrainedBlock
from sk_easytensor.blocks.detection import detect_blocks
from sk_easytensor.data.sparse import sparse_rows
from sk_easytensor.data.tables import as_table
from sk_easytensor.testing import check_block

N_ROWS = 24


def _vectors(rng, length):
    rows = [row.tolist() for row in rng.normal(size=(N_ROWS, length))]
    rows[3], rows[5][0] = None, np.nan
    return rows


def _texts(rng):
    words = np.array(["soft", "warm", "dress", "the", "fits", "too", "tight", "lovely", "colour"])
    texts = [" ".join(rng.choice(words, size)) for size in rng.integers(6, 12, N_ROWS)]
    texts[4] = None
    return texts


def _events(rng, sizes):
    """Return parallel lists, some of them missing beside others that are not."""
    starts = np.datetime64("2024-03-01") + rng.integers(0, 10**6, N_ROWS).astype("m8[s]")
    columns = {
        "event": [rng.choice(["view", "buy", "send back"], size).tolist() for size in sizes],
        "price": [rng.normal(size=size).tolist() for size in sizes],
        "when": [
            (start + np.sort(rng.integers(0, 10**7, size)).astype("m8[s]")).tolist()
            for start, size in zip(starts, sizes, strict=True)
        ],
    }
    columns["event"][2], columns["price"][4] = None, None
    columns["event"][5][0], columns["price"][6][1] = None, np.nan
    for lists in columns.values():
        lists[3], lists[8] = None, []
    return columns


def _series(rng, sizes):
    columns = {name: [rng.normal(size=size).tolist() for size in sizes] for name in ("x", "y")}
    columns["y"][2], columns["y"][6][1], columns["x"][5][0] = None, None, np.inf
    for lists in columns.values():
        lists[3], lists[8] = None, []
    return columns


def _baskets(rng):
    sizes = rng.integers(0, 6, N_ROWS)
    words = [rng.choice(["milk", "tea", "rice", ""], size).tolist() for size in sizes]
    words[0], words[1], words[2], words[7] = ["tea", None, "tea"], None, [], [None]
    numbers = [rng.integers(0, 9, size).tolist() for size in sizes[::-1]]
    return {"words": words, "numbers": numbers}


def _data():
    """Return a small data frame with two columns, or three, for each kind of block."""
    rng = np.random.default_rng(0)
    times = pd.Series(pd.date_range("2021-03-27 22:15", periods=N_ROWS, freq="31h"))
    categories = rng.choice(["oslo", "lima", "rome", ""], N_ROWS).astype(object)
    categories[[1, 7]] = None
    numbers = rng.normal(size=N_ROWS)
    numbers[[2, 9]] = np.nan, np.inf
    sizes = rng.integers(2, 5, N_ROWS)
    return {
        "vector": {"v": _vectors(rng, 3), "w": _vectors(rng, 5)},
        "event_sequence": _events(rng, sizes),
        "numeric_sequence": _series(rng, rng.integers(2, 5, N_ROWS)),
        "category_sequence": _baskets(rng),
        "datetime": {
            "naive": times.where(times.index != 6),
            "aware": times.dt.tz_localize("UTC").dt.tz_convert("Europe/Oslo"),
            "text": times.dt.strftime("%Y-%m-%d"),
        },
        "text": {"title": _texts(rng), "body": _texts(rng)},
        "category": {"city": categories, "code": pd.Categorical(rng.integers(0, 5, N_ROWS))},
        "numeric": {"x": numbers, "n": rng.integers(-5, 5, N_ROWS), "b": rng.random(N_ROWS) < 0.5},
    }


def _sparse(rng):
    """Return two columns of sparse vectors, some rows missing and some without a value."""
    columns = {}
    for name, size in (("words", 7), ("codes", 4)):
        matrix = rng.normal(size=(N_ROWS, size)) * (rng.random((N_ROWS, size)) < 0.3)
        matrix[5], matrix[6, 2] = 0, np.nan
        rows = sparse_rows(csr_array(matrix))
        columns[name] = rows.take(pa.array([None if i in (3, 8) else i for i in range(N_ROWS)]))
    return columns


DATA = {kind: as_table(pd.DataFrame(columns)) for kind, columns in _data().items()}
DATA["sparse"] = pa.table(_sparse(np.random.default_rng(0)))
FITTED = {cls: cls().fit(DATA[cls.kind]) for cls in BLOCKS}

# Blocks that are not chosen automatically, because they need something to be given.
DATA["pretrained"] = pa.table(
    {
        name: DATA[kind].column(name)
        for kind in ("event_sequence", "category", "numeric")
        for name in DATA[kind].column_names
    }
)
DONOR = EasyTensorRegressor(trunk=MLP(width=8), max_epochs=1, random_state=0)
DONOR.fit(DATA["pretrained"], np.arange(N_ROWS))
FITTED |= {
    f"PretrainedBlock_{name}": PretrainedBlock(DONOR, **how).fit(DATA["pretrained"])
    for name, how in {
        "frozen": {},
        "frozen_events": {"block": "event_sequence"},
        "trainable": {"trainable": True},
        "trainable_events": {"block": "event_sequence", "trainable": True},
    }.items()
}


# Frozen vectors are those of all columns, rounded as the batch they are computed in has it.
EXACT = [case for case in FITTED if not str(case).startswith("PretrainedBlock_frozen")]


def case_name(key):
    return key if isinstance(key, str) else key.__name__


@pytest.fixture(params=FITTED, ids=case_name)
def block(request):
    return FITTED[request.param]


@pytest.fixture(params=BLOCKS, ids=case_name)
def chosen(request):
    """A block of a kind that is chosen automatically, and its table."""
    return FITTED[request.param], DATA[request.param.kind]


@pytest.fixture
def table(block):
    return DATA[block.kind].select(list(block.feature_names_in_))


@pytest.mark.parametrize("case", FITTED, ids=case_name)
def test_blocks_follow_the_contract(case):
    block = FITTED[case]
    table = DATA[block.kind].select(list(block.feature_names_in_))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_block(block, table, exact=case in EXACT)


def test_blocks_are_listed_in_the_order_of_choice(chosen):
    block, table = chosen
    assert detect_blocks(table, table.column_names) == [(type(block), table.column_names)]


def test_each_block_takes_its_columns_from_a_table_of_all_kinds():
    columns = {
        f"{cls.kind}.{name}": DATA[cls.kind][name]
        for cls in BLOCKS
        for name in DATA[cls.kind].schema.names
    }
    table = pa.table(dict(sorted(columns.items(), key=lambda item: item[0][::-1])))
    found = detect_blocks(table, table.column_names)
    expected = {
        cls: {name for name in columns if name.startswith(cls.kind + ".")} for cls in BLOCKS
    }
    assert [cls for cls, _ in found] == BLOCKS
    assert {cls: set(names) for cls, names in found} == expected


def test_blocks_take_all_their_columns_from_the_remainder(table, block):
    assert clone(block).claimed_columns(table) == table.column_names


def test_missing_columns_are_named(block, table):
    names = table.column_names[::-1]
    with pytest.raises(ValueError, match=rf"missing: \['{names[0]}'\].*{type(block).__name__}"):
        block.transform(table.select(names[1:]))


def test_wrong_column_type(chosen):
    block, _ = chosen
    wrong = pa.table({"col": pa.array([b"x"])})
    with pytest.raises(
        TypeError, match=r"'col' of type bytes.*row 0 holds b'x'.*Decode it to text"
    ):
        type(block)().fit(wrong)


def test_repr_in_a_notebook(block):
    assert type(block).__name__ in block._repr_html_()


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.__name__)
def test_tags_say_what_is_read(block):
    tags = block().__sklearn_tags__()
    assert tags.input_tags.allow_nan
    assert tags.input_tags.string == block.accepts(pa.string())
