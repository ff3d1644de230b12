import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from sk_easytensor import MLP, EasyTensorRegressor
from sk_easytensor.blocks import BLOCKS, Block, PretrainedBlock
from sk_easytensor.blocks.detection import detect_blocks
from sk_easytensor.data.lists import is_list, list_lengths
from sk_easytensor.data.sparse import sparse_rows
from sk_easytensor.data.summaries import merge_all
from sk_easytensor.data.tables import as_table
from sk_easytensor.tensors import Ragged, TensorFrame

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


def test_renamed_blocks_read_columns_of_other_names(chosen):
    block, table = chosen
    names = [f"other {name}" for name in table.column_names]
    before = block.get_feature_names_out().tolist()
    renamed = block.renamed(names)
    assert list(renamed.feature_names_in_) == names
    other = TensorFrame({"block": renamed.transform(table.rename_columns(names))}, table.num_rows)
    assert other.equals(frame_of(block, table))
    assert all(name.startswith("other ") for name in renamed.get_feature_names_out())
    assert len(renamed.get_feature_names_out()) == len(before)
    columns = renamed.encoding_columns(other["block"]).values()
    assert {name for column in columns for name in column} <= set(names)
    assert block.get_feature_names_out().tolist() == before
    assert list(block.feature_names_in_) == table.column_names


def frame_of(block, table):
    return TensorFrame({"block": block.transform(table)}, table.num_rows)


def outputs(block, table, *, training=False):
    torch.manual_seed(0)
    module = block.make_module().train(training)
    return module, module(**block.transform(table))


def missing_like(table, n_rows=2):
    return pa.table({field.name: pa.nulls(n_rows, field.type) for field in table.schema})


def permutation(block, table):
    """Return rows in another order, in which lists that are read together keep their lengths."""
    rng = np.random.default_rng(1)
    if block.kind not in ("event_sequence", "numeric_sequence", "pretrained"):
        return rng.permutation(N_ROWS)
    lists = [column for column in table.columns if is_list(column.type)]
    lengths = np.max([list_lengths(column) for column in lists], axis=0)
    rows = np.arange(N_ROWS)
    for length in np.unique(lengths):
        rows[lengths == length] = rng.permutation(np.flatnonzero(lengths == length))
    return rows


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


def test_entries_have_a_row_each(block, table):
    for name, entry in block.transform(table).items():
        assert len(entry) == N_ROWS, name
        columns = block.encoding_columns(block.transform(table))[name]
        width = entry.n_columns if isinstance(entry, Ragged) else entry.shape[1]
        assert width == len(columns)
        sources = [column if isinstance(column, tuple) else (column,) for column in columns]
        assert set().union(*sources) <= set(table.column_names)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("n_rows", [1, 2, N_ROWS])
def test_module_output(block, table, n_rows, training):
    module, output = outputs(block, table.slice(0, n_rows), training=training)
    assert output.shape == (n_rows, module.out_features)
    assert output.dtype == torch.float32
    assert torch.isfinite(output).all()


def test_modules_are_new_and_alike(block):
    first, second = block.make_module(), block.make_module()
    second.load_state_dict(first.state_dict())
    assert not {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}


def test_module_depends_on_each_row_alone(block, table):
    module, output = outputs(block, table)
    part = block.transform(table.take(pa.array([5, 3, 6])))
    torch.testing.assert_close(module(**part), output[[5, 3, 6]])


def test_gradients_are_finite(block, table):
    module, output = outputs(block, table, training=True)
    output.square().sum().backward()
    gradients = {name: weight.grad for name, weight in module.named_parameters()}
    seen = [gradient for gradient in gradients.values() if gradient is not None]
    assert seen
    assert all(torch.isfinite(gradient).all() for gradient in seen)


def test_missing_values_are_alike(block, table):
    _, output = outputs(block, missing_like(table))
    assert torch.isfinite(output).all()
    torch.testing.assert_close(output[0], output[1])


def test_columns_without_a_type_are_missing(block, table):
    untyped = pa.table({name: pa.nulls(2) for name in table.column_names})
    assert frame_of(block, untyped).equals(frame_of(block, missing_like(table)))


@pytest.mark.parametrize("typed", [True, False])
def test_all_missing_at_fit(block, table, typed):
    untyped = pa.table({name: pa.nulls(2) for name in table.column_names})
    missing = missing_like(table) if typed else untyped
    other = clone(block).fit(missing)
    for rows in (missing, table):
        module, output = outputs(other, rows)
        assert output.shape == (rows.num_rows, module.out_features)
        assert torch.isfinite(output).all()
        assert np.isfinite(other.flatten(other.transform(rows))).all()


@pytest.mark.parametrize("row", range(4))
def test_fit_on_a_single_row(block, table, row):
    other = clone(block).fit(table.slice(row, 1))
    module, output = outputs(other, table)
    assert output.shape == (N_ROWS, module.out_features)
    assert torch.isfinite(output).all()


def test_constant_columns(block, table):
    constant = table.take(pa.array([0] * 10))
    other = clone(block).fit(constant)
    assert torch.isfinite(outputs(other, constant)[1]).all()
    assert torch.isfinite(outputs(other, table)[1]).all()


@given(cuts=st.lists(st.integers(0, N_ROWS), max_size=5).map(sorted), random=st.randoms())
@pytest.mark.parametrize("case", FITTED, ids=case_name)
def test_fitting_in_parts_is_fitting_at_once(case, cuts, random, assert_same_fit):
    whole = FITTED[case]
    table = DATA[whole.kind]
    bounds = zip([0, *cuts], [*cuts, N_ROWS], strict=True)
    parts = [table.slice(start, stop - start) for start, stop in bounds]
    random.shuffle(parts)
    other = clone(whole).fit_columns(table)
    before = dict(vars(other))
    summaries = [pickle.loads(pickle.dumps(other.summarize(part))) for part in parts]
    assert vars(other).keys() == before.keys()
    other.finish(merge_all(summaries))
    assert_same_fit(other, whole)


@given(rows=st.lists(st.integers(0, N_ROWS - 1), min_size=1, max_size=30))
@pytest.mark.parametrize("case", EXACT, ids=case_name)
def test_rows_are_encoded_alone(case, rows):
    block = FITTED[case]
    table = DATA[block.kind]
    found = frame_of(block, table.take(pa.array(rows)))
    assert found.equals(frame_of(block, table).take(torch.tensor(rows)))


def test_chunked_tables(block, table):
    chunks = pa.concat_tables([table.slice(0, 5), table.slice(5, 0), table.slice(5)])
    assert frame_of(block, chunks).equals(frame_of(block, table))


@pytest.mark.parametrize("case", EXACT, ids=case_name)
def test_permuting_a_column_is_encoding_the_permuted_table(case):
    block = FITTED[case]
    table = DATA[block.kind].select(list(block.feature_names_in_))
    frame = frame_of(block, table)
    rows = permutation(block, table)
    for index, name in enumerate(table.column_names):
        positions = {
            entry: [place for place, column in enumerate(columns) if column == name]
            for entry, columns in block.encoding_columns(frame["block"]).items()
        }
        found = frame.permute_column("block", positions, torch.from_numpy(rows))
        permuted = table.set_column(index, name, table.column(name).take(pa.array(rows)))
        assert found.equals(frame_of(block, permuted)), name


def test_flatten(block, table):
    matrix = block.flatten(block.transform(table))
    names = block.get_feature_names_out()
    assert matrix.shape == (N_ROWS, len(names))
    assert matrix.dtype == np.float32
    assert np.isfinite(matrix).all()
    assert len(set(names)) == len(names)
    assert all(isinstance(name, str) for name in names)
    assert block.flatten(block.transform(missing_like(table))).shape == (2, len(names))


def test_columns_are_found_by_name(block, table):
    names = table.column_names[::-1]
    other = table.select(names).append_column("extra", pa.nulls(N_ROWS, pa.int8()))
    assert frame_of(block, other).equals(frame_of(block, table))
    with pytest.raises(ValueError, match=rf"missing: \['{names[0]}'\].*{type(block).__name__}"):
        block.transform(table.select(names[1:]))


def test_parameters(block):
    parameters = block.get_params()
    other = clone(block)
    assert other.get_params() == parameters
    assert vars(other).keys() == parameters.keys()
    assert type(block)(**parameters).get_params() == parameters
    with pytest.raises(NotFittedError):
        other.transform(DATA[block.kind])


def test_refitting_forgets(block, table, assert_same_fit):
    other = clone(block).fit(table.slice(0, 3))
    assert_same_fit(other.fit(table), block)


def test_pickle(chosen, assert_same_fit):
    block, table = chosen
    other = pickle.loads(pickle.dumps(block))
    assert_same_fit(other, block)
    assert frame_of(other, table).equals(frame_of(block, table))


def test_fitted_attributes_hold_no_tensors(block):
    assert isinstance(block, Block)
    text = pickle.dumps(block)
    assert b"torch" not in text


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
