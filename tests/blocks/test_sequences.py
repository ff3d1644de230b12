"""What all blocks that read lists have in common."""

import datetime as dt
import warnings

import numpy as np
import pyarrow as pa
import pytest
import torch

from sk_easytensor.backends import LocalBackend
from sk_easytensor.blocks import (
    CategorySequenceBlock,
    EventSequenceBlock,
    NumericSequenceBlock,
)
from sk_easytensor.data.columns import read_lists, same_lengths
from sk_easytensor.data.summaries import merge_all
from sk_easytensor.data.tables import as_table
from sk_easytensor.networks.sequences import ENCODERS, POOLINGS
from sk_easytensor.tensors import TensorFrame

# Short lists are cut on purpose; the last tests expect the warning.
pytestmark = pytest.mark.filterwarnings("ignore:.*are cut to their:UserWarning")

WORDS = [["a", "b", "a"], [], None, ["b"], ["a", None, "c", "b", "d"], ["c", "c"]]
NUMBERS = [[1.0, 2.0, 9.0], [], None, [4.0], [1.0, None, -3.0, 2.5, 0.5], [8.0, 8.0]]
TIMES = [[0.0, 5.0, 60.0], [], None, [30.0], [1.0, 2.0, 4.0, 8.0, 16.0], [7.0, None]]

MAKERS = {
    "category": (CategorySequenceBlock, {"words": WORDS}),
    "numeric": (NumericSequenceBlock, {"numbers": NUMBERS}),
    "event": (EventSequenceBlock, {"words": WORDS, "numbers": NUMBERS, "times": TIMES}),
}


ALONE = {"category": {"aggregates": False}, "numeric": {}, "event": {"aggregates": False}}
"""Parameters of a block whose module has only a sequence encoder."""


@pytest.fixture(params=MAKERS)
def kind(request):
    return request.param


@pytest.fixture
def make(kind):
    """A function that makes a fitted block of each class, narrow enough to be quick."""

    def fitted(**params):
        cls, data = MAKERS[kind]
        params = {"width": 8, **({"time": "times"} if kind == "event" else {}), **params}
        params |= ALONE[kind]
        return cls(**params).fit(data)

    return fitted


@pytest.fixture
def data(kind):
    return MAKERS[kind][1]


def rows_of(data, rows):
    return {name: [values[row] for row in rows] for name, values in data.items()}


def module_of(block):
    torch.manual_seed(0)
    return block.make_module().eval()


def encoder_of(module):
    return module.encoders[0] if hasattr(module, "encoders") else module.encoder


def lists_of(block, data):
    return next(iter(block.transform(data).values()))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_and_pooling(encoder, pooling, make, data):
    block = make(encoder=encoder, pooling=pooling, heads=2, kernel_size=3, bidirectional=False)
    module = module_of(block)
    with torch.no_grad():
        encoder_of(module).empty.fill_(7.0)
        output = module(**block.transform(data))
        alone = [module(**block.transform(rows_of(data, [row]))) for row in range(6)]
    assert output.shape == (6, 8 * (2 if pooling == "mean_max" else 1) + 1)
    assert output.shape[1] == module.out_features
    assert torch.isfinite(output).all()
    # Neither other rows nor what a list is padded with have a say.
    torch.testing.assert_close(torch.cat(alone), output)
    assert (output[1:3, :-1] == 7).all()
    distinct = [0, 1, 3, 4, 5]
    assert len(torch.unique(output[distinct].round(decimals=4), dim=0)) == len(distinct)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("encoder", ["gru", "lstm"])
def test_reading_backwards_too(encoder, pooling, make, data):
    block = make(encoder=encoder, pooling=pooling, bidirectional=True, layers=2)
    module = module_of(block)
    output = module(**block.transform(data))
    assert output.shape == (6, 16 * (2 if pooling == "mean_max" else 1) + 1)
    alone = torch.cat([module(**block.transform(rows_of(data, [row]))) for row in range(6)])
    torch.testing.assert_close(alone, output)


def test_only_recurrent_encoders_read_backwards(make):
    for encoder in ("transformer", "conv", "mean"):
        module = module_of(make(encoder=encoder, bidirectional=True, pooling="mean"))
        assert module.out_features == 9


@pytest.mark.parametrize("encoder", ENCODERS)
def test_gradients_reach_all_weights(encoder, make, data):
    block = make(encoder=encoder, pooling="attention", dropout=0.0, bidirectional=True)
    module = module_of(block).train()
    output = module(**block.transform(data))
    (output * torch.randn_like(output)).sum().backward()
    for name, weight in module.named_parameters():
        if name.endswith("infinite"):
            continue
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
        assert (weight.grad != 0).any(), name


def test_layers(make):
    def weights(**params):
        module = encoder_of(module_of(make(bidirectional=False, **params)))
        reader = module.reader
        return len(reader.forwards if hasattr(reader, "forwards") else reader.layers)

    defaults = {"gru": 1, "lstm": 1, "transformer": 2, "conv": 2}
    for encoder, layers in defaults.items():
        assert weights(encoder=encoder) == layers
        assert weights(encoder=encoder, layers=3) == 3


def test_dropout_is_for_training(make, data):
    block = make(dropout=0.5, bidirectional=False)
    module = module_of(block)
    encoding = block.transform(data)
    torch.testing.assert_close(module(**encoding), module(**encoding))
    module.train()
    assert not torch.allclose(module(**encoding), module(**encoding))


@pytest.mark.parametrize("encoder", ["transformer", "gru", "lstm", "conv"])
def test_order_matters(encoder, kind):
    cls, _ = MAKERS[kind]
    data = {"x": [[0.0, 9.0, 1.0], [1.0, 9.0, 0.0], [9.0, 0.0, 1.0]]}
    if kind != "numeric":
        data = {"x": [[str(item) for item in items] for items in data["x"]]}
    for pooling in ("attention", "mean", "last"):
        block = cls(encoder=encoder, pooling=pooling, width=8, **ALONE[kind]).fit(data)
        one, two, three = module_of(block)(**block.transform(data))
        assert not torch.allclose(one, two, atol=1e-4)
        assert not torch.allclose(one, three, atol=1e-4)


def test_order_does_not_matter_where_items_do_not_see_each_other(kind):
    cls, _ = MAKERS[kind]
    data = {
        "x": [["0", "9", "1"], ["1", "9", "0"]] if kind != "numeric" else [[0.0, 9.0], [9.0, 0.0]]
    }
    for pooling in ("attention", "mean", "mean_max"):
        block = cls(encoder="mean", pooling=pooling, width=8, **ALONE[kind]).fit(data)
        one, two = module_of(block)(**block.transform(data))
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("max_length", [1, 2, 3, 99])
@pytest.mark.parametrize("keep", ["last", "first"])
def test_long_lists_are_cut(keep, max_length, make, data, assert_same_fit):
    block = make(max_length=max_length, keep=keep)
    lists = lists_of(block, data)
    assert lists.lengths.tolist() == [min(size, max_length) for size in (3, 0, 0, 1, 5, 2)]
    part = slice(-max_length, None) if keep == "last" else slice(max_length)
    cut = {
        name: [None if items is None else items[part] for items in values]
        for name, values in data.items()
    }
    found, expected = block.transform(data), block.transform(cut)
    assert TensorFrame({"b": found}).equals(TensorFrame({"b": expected}))
    # What is not read is not learned from either.
    assert_same_fit(type(block)(**block.get_params()).fit(cut), block)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("encoder", "rnn", "encoder must be one of .*'transformer'.*'rnn'"),
        ("pooling", "max", "pooling must be one of .*'mean_max'.*'max'"),
        ("keep", "middle", "keep must be"),
        ("bidirectional", 3, "bidirectional must be"),
        ("width", 0, "width must be"),
        ("heads", 0, "heads must be"),
        ("layers", 0, "layers must be"),
        ("kernel_size", 2.5, "kernel_size must be"),
        ("max_length", 0, "max_length must be"),
        ("dropout", 1.0, "dropout must be"),
        ("dropout", -0.1, "dropout must be"),
    ],
)
def test_parameter_errors(name, value, message, kind):
    cls, data = MAKERS[kind]
    with pytest.raises(ValueError, match=f"{cls.__name__}: {message}"):
        cls(**{name: value}).fit(data)


def test_parameters_that_do_not_go_together(kind):
    cls, data = MAKERS[kind]
    with pytest.raises(ValueError, match="multiple of heads, got width=10 and heads=4"):
        cls(encoder="transformer", width=10).fit(data)
    with pytest.raises(ValueError, match=f"{cls.__name__}: kernel_size must be odd, got 4"):
        cls(encoder="conv", kernel_size=4).fit(data)
    cls(encoder="gru", width=10, kernel_size=4).fit(data)


def test_lists_of_lists_are_refused(kind):
    cls, _ = MAKERS[kind]
    message = rf"column 'x' of type list\[.*by {cls.__name__}; row 1 holds .*one level deep"
    with pytest.raises(TypeError, match=message):
        cls().fit({"x": [None, [["a"], ["b"]]]})


def test_a_column_that_holds_no_lists_is_refused(kind, make, data):
    cls, _ = MAKERS[kind]
    name = next(iter(data))
    message = f"column '{name}' of type string .*by {cls.__name__}; row 1 holds 'a'.*TextBlock"
    with pytest.raises(TypeError, match=message):
        cls().fit({name: [None, "a"]})
    with pytest.raises(TypeError, match=message):
        make().transform({**rows_of(data, [1, 1]), name: [None, "a"]})


def test_lists_of_other_items_are_refused(kind, make, data):
    name = list(data)[-1]
    bad = {"category": [dt.time(1)], "numeric": ["x"], "event": ["x"]}[kind]
    message = f"column '{name}' of .*; row 2 holds .*{'time' if kind == 'category' else 'x'}"
    with pytest.raises(TypeError, match=message):
        make().transform({**rows_of(data, [1, 1, 3]), name: [None, [], bad]})


def test_every_layout_of_lists(make, data):
    expected = TensorFrame({"b": make().transform(data)})
    for layout in (pa.list_, pa.large_list, pa.list_view, pa.large_list_view):
        arrays = {}
        for name, values in data.items():
            plain = pa.array(values)
            arrays[name] = pa.array(values, layout(plain.type.value_type))
        assert TensorFrame({"b": make().transform(pa.table(arrays))}).equals(expected), layout
    table = as_table(data)
    padded = pa.concat_tables([table.slice(3, 2), table, table.slice(0, 1)])
    assert TensorFrame({"b": make().transform(padded.slice(2, 6))}).equals(expected)
    chunks = pa.concat_tables(
        [table.slice(0, 1), table.slice(1, 0), table.slice(1, 3), table.slice(4)]
    )
    assert TensorFrame({"b": make().transform(chunks)}).equals(expected)


def test_fixed_size_lists(kind):
    cls, _ = MAKERS[kind]
    values = [["1", "2"], None, ["2", None]] if kind != "numeric" else [[1, 2], None, [2, None]]
    inner = pa.array(values).type.value_type
    fixed = pa.array([values[0], *values], pa.list_(inner, 2))[1:]
    block = cls().fit({"x": values})
    found = TensorFrame({"b": block.transform({"x": fixed})})
    assert found.equals(TensorFrame({"b": block.transform({"x": values})}))
    assert lists_of(block, {"x": fixed}).lengths.tolist() == [2, 0, 2]


def test_encoding_in_chunks(make, data):
    block = make()
    table = as_table(data)
    frame = LocalBackend(chunk_rows=2).encode(table, {"b": (block, table.column_names)})
    assert frame.equals(TensorFrame({"b": block.transform(data)}))
    empty = LocalBackend().encode(table.slice(0, 0), {"b": (block, table.column_names)})
    assert len(empty) == 0


def test_parallel_lists_share_their_bounds(kind, make, data):
    entries = list(make().transform(data).values())
    assert len({id(entry.offsets) for entry in entries}) == 1
    assert len(entries) == {"category": 1, "numeric": 1, "event": 4}[kind]


@pytest.mark.parametrize("cls", [NumericSequenceBlock, EventSequenceBlock])
@pytest.mark.parametrize("chunk_rows", [100, 2, 1])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_unlike_lengths_are_refused_by_row(cls, chunk_rows, n_jobs):
    table = as_table({"x": [[1.0], [], [2.0], [1.0, 2.0]], "y": [[1.0], None, [2.0], [1.0]]})
    message = f"columns 'x' and 'y' have 2 and 1 items in row 3; {cls.__name__} reads them as one"
    with pytest.raises(ValueError, match=message):
        cls().fit(table)
    block = cls().fit(table.slice(0, 3))
    backend = LocalBackend(chunk_rows=chunk_rows, n_jobs=n_jobs)
    with pytest.raises(ValueError, match=message):
        backend.encode(table, {"b": (block, ["x", "y"])})
    with pytest.raises(ValueError, match=message):
        backend.summarize(table, {"b": (block, ["x", "y"])})


def test_a_filled_list_beside_an_empty_one_is_refused():
    for rows, message in [
        ([[[1.0], []]], "'x' and 'y' have 1 and 0 items in row 0"),
        ([[None, None], [[], [1.0]]], "'y' and 'x' have 1 and 0 items in row 1"),
    ]:
        columns = dict(zip("xy", zip(*rows, strict=True), strict=True))
        with pytest.raises(ValueError, match=message):
            NumericSequenceBlock().fit({name: list(values) for name, values in columns.items()})


def test_a_missing_list_beside_a_filled_one_has_missing_items():
    lists = read_lists(as_table({"x": [[1, 2], None, [3]], "y": [None, None, ["a"]]}))
    assert lists.items.to_pydict() == {"x": [1, 2, 3], "y": [None, None, "a"]}
    assert lists.offsets.tolist() == [0, 2, 2, 3]
    assert lists.owner.tolist() == [0, 0, 2]
    assert lists.take(np.array([7, 8, 9])).tolist() == [7, 7, 9]


@pytest.mark.parametrize("keep", ["last", "first"])
def test_missing_lists_are_cut_like_their_neighbours(keep):
    table = as_table(
        {"x": [[1, 2, 3], [4], [5, 6]], "y": [None, ["a"], ["b", "c"]], "z": [None] * 3}
    )
    lists = read_lists(table, max_length=2, keep=keep)
    x = [2, 3, 4, 5, 6] if keep == "last" else [1, 2, 4, 5, 6]
    assert lists.items.to_pydict() == {"x": x, "y": [None, None, "a", "b", "c"], "z": [None] * 5}
    assert lists.offsets.tolist() == [0, 2, 3, 5]


def test_columns_of_the_same_lengths_are_found():
    table = as_table(
        {
            "a": [[1], [1, 2], None, []],
            "b": [["x"], ["x", "y"], [], None],
            "gaps": [["x"], None, None, []],
            "other": [["x"], ["x"], [], []],
            "later": [None, ["x", "y"], [], []],
            "empty": [[], [], None, None],
            "nothing": pa.array([None] * 4, pa.list_(pa.string())),
        }
    )
    assert same_lengths(table, table.column_names) == [
        ["a", "b", "gaps", "later"],
        ["other"],
        ["empty", "nothing"],
    ]
    assert same_lengths(table, ["gaps", "other"]) == [["gaps", "other"]]
    assert same_lengths(table, []) == []


# ---------------------------------------------------------------------- long lists


def test_rows_whose_lists_are_cut_are_counted_once(kind):
    cls, data = MAKERS[kind]
    message = (
        r"the lists of 2 of 6 rows in .* cut to their last 2 items.*has 5\. A larger max_length"
    )
    with pytest.warns(UserWarning, match=message) as issued:
        cls(max_length=2).fit(data)
    assert len(issued) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = cls(max_length=5).fit(data)
        fitted.transform({name: rows[4:5] for name, rows in data.items()})
        cls(max_length=2).fit({name: [rows[3]] for name, rows in data.items()})


def test_lists_that_are_cut_are_counted_in_parts(kind):
    cls, data = MAKERS[kind]
    table = as_table(data)
    block = cls(max_length=2).fit_columns(table)
    parts = [block.summarize(table.slice(start, 1)) for start in range(len(table))]
    with pytest.warns(UserWarning, match="the lists of 2 of 6 rows"):
        block.finish(merge_all(parts))
