"""check_block finds what breaks the contract of blocks, and names it."""

import ast
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from torch import nn

import sk_easytensor
from sk_easytensor import Block, BlockModule, NumericBlock
from sk_easytensor.data.summaries import Summary, SummaryMap, ValueCounts
from sk_easytensor.testing import assert_same_fit, check_block

LEVELS = ["low", "high", None, "low", "mid", "high", "low", None, "mid", "low"]
TABLE = pa.table({"left": LEVELS, "right": LEVELS[1:] + LEVELS[:1]})


class LevelBlock(Block):
    """Strings as embeddings: a block without fault."""

    kind = "level"

    def __init__(self, width=3):
        self.width = width

    def check_parameters(self):
        if not isinstance(self.width, int):
            raise ValueError(f"LevelBlock: width must be an integer, got {self.width!r}")

    @classmethod
    def accepts(cls, column_type):
        return pa.types.is_string(column_type)

    def summarize(self, table):
        pairs = zip(table.column_names, table.columns, strict=True)
        return SummaryMap({name: ValueCounts.of(column.cast("str")) for name, column in pairs})

    def finish(self, summary):
        self.levels_ = [summary[name].most_common()[0] for name in self.feature_names_in_]
        return self

    def codes(self, table):
        found = [
            pc.add(pc.fill_null(pc.index_in(column.cast("str"), levels, skip_nulls=True), -1), 1)
            for column, levels in zip(table.columns, self.levels_, strict=True)
        ]
        return torch.stack([torch.tensor(column.to_numpy()) for column in found], dim=1)

    def encode(self, table):
        return {"codes": self.codes(table)}

    def make_module(self):
        return LevelModule([len(levels) + 1 for levels in self.levels_], self.width)


class LevelModule(BlockModule):
    def __init__(self, sizes, width):
        super().__init__()
        self.out_features = len(sizes) * width
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in sizes)
        self.output_columns = np.repeat(np.arange(len(sizes)), width)
        self.tree_codes = [(size, False) for size in sizes]
        self.tree_columns = np.arange(len(sizes))

    def forward(self, codes):
        return torch.cat([table(codes[:, i]) for i, table in enumerate(self.tables)], dim=1)

    def tree_inputs(self, codes):
        return codes.int()


def test_a_block_without_fault_passes():
    block = LevelBlock()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = torch.get_rng_state()
        assert check_block(block, TABLE) is None
    assert torch.equal(torch.get_rng_state(), state)
    assert vars(block) == {"width": 3}


def test_names_of_features_have_a_default():
    assert LevelBlock().fit(TABLE).get_feature_names_out().tolist() == ["left", "right"]

    class Twice(LevelBlock):
        def encode(self, table):
            codes = self.codes(table)
            return {"codes": codes, "both": torch.stack([codes, codes], dim=2)}

    names = Twice().fit(TABLE.select(["left"])).get_feature_names_out()
    assert names.tolist() == ["left_codes", "left_both_0", "left_both_1"]


# Blocks with one fault each, by the part of the contract that they break.


class Restless(LevelBlock):
    def __init__(self, width=3):
        super().__init__(width)
        self.size_ = 2


class Eager(LevelBlock):
    def __init__(self, width=3):
        super().__init__(width)
        self.check_parameters()


class Careless(LevelBlock):
    def check_parameters(self):
        pass


class Nameless(LevelBlock):
    def check_parameters(self):
        if not isinstance(self.width, int):
            raise ValueError("wrong")


class Picky(LevelBlock):
    accepts = classmethod(lambda cls, kind: pa.types.is_float64(kind))


class Greedy(LevelBlock):
    def fit_columns(self, table, *, named=True):
        self.check_parameters()
        self.feature_names_in_, self._named = np.array(table.column_names, object), named
        self.n_features_in_ = table.num_columns
        return self


class Silent(LevelBlock):
    def finish(self, summary):
        super().finish(summary)


class Growing(LevelBlock):
    def finish(self, summary):
        self.fits_ = getattr(self, "fits_", 0) + 1
        return super().finish(summary)


class FirstOnly(Summary):
    def __init__(self, rows):
        self.rows = rows

    def merge(self, other):
        return self


class Forgetful(LevelBlock):
    def summarize(self, table):
        return FirstOnly(table)

    def finish(self, summary):
        return super().finish(super().summarize(summary.rows))


class Setting(LevelBlock):
    def summarize(self, table):
        self.seen_ = table.num_rows
        return super().summarize(table)


class Unmerged(LevelBlock):
    def summarize(self, table):
        return list(table.column_names)

    def finish(self, summary):
        return self


class Short(LevelBlock):
    def encode(self, table):
        return {"codes": self.codes(table)[1:]}


class Misnamed(LevelBlock):
    def encoding_columns(self, encoding):
        return {"codes": ["left"]}


class Relative(LevelBlock):
    def encode(self, table):
        codes = self.codes(table)
        return {"codes": codes - codes.min(dim=0).values if len(codes) else codes}


class Swapped(LevelBlock):
    def encode(self, table):
        return {"codes": self.codes(table).flip(1)}


class Untyped(LevelBlock):
    def encode(self, table):
        untyped = any(pa.types.is_null(column.type) for column in table.columns)
        return {"codes": self.codes(table) + untyped}


class Strict(LevelBlock):
    def encode(self, table):
        for column, levels in zip(table.columns, self.levels_, strict=True):
            if len(levels) and not set(column.drop_null().to_pylist()) <= set(levels.to_pylist()):
                raise KeyError(column)
        return super().encode(table)


def with_module(module_class, name):
    def make_module(self):
        return module_class([len(levels) + 1 for levels in self.levels_], self.width)

    return type(name, (LevelBlock,), {"make_module": make_module})


class Ordinary(nn.Module):
    def __init__(self, sizes, width):
        super().__init__()


class Wider(LevelModule):
    def __init__(self, sizes, width):
        super().__init__(sizes, width)
        self.out_features += 1
        self.output_columns = None


class Infinite(LevelModule):
    def forward(self, codes):
        return super().forward(codes) / 0


class Centred(LevelModule):
    def forward(self, codes):
        outputs = super().forward(codes)
        return outputs - outputs.mean(dim=0)


class Detached(LevelModule):
    def forward(self, codes):
        return super().forward(codes).detach()


class Beyond(LevelModule):
    def tree_inputs(self, codes):
        return codes.int() + 100


class Crossed(LevelModule):
    def __init__(self, sizes, width):
        super().__init__(sizes, width)
        self.output_columns = self.output_columns[::-1].copy()


class Needing(LevelBlock):
    def encode(self, table):
        assert int(self.codes(table).max()) >= 0
        return super().encode(table)


class Doubled(LevelBlock):
    def get_feature_names_out(self, input_features=None):
        return np.array(["level", "level"], object)


class Bound(LevelBlock):
    def finish(self, summary):
        self.first_ = self.feature_names_in_[0]
        return super().finish(summary)

    def encode(self, table):
        table.column(self.first_)
        return super().encode(table)


class Losing(LevelBlock):
    def __getstate__(self):
        return {k: v for k, v in super().__getstate__().items() if k != "levels_"}


class Exported(LevelBlock):
    def to_onnx(self, graph):
        strings = [graph.column(name, "category") for name in self.feature_names_in_]
        levels = zip(strings, self.levels_, strict=True)
        codes = [graph.op("Equal", s, np.array(["low"], object)) for s, _ in levels]
        return {"codes": graph.cast(graph.stack(codes, axis=1), np.int64)}


FAULTS = [
    (Restless, "parameters", "__init__ sets size_"),
    (Eager, "parameters", "__init__ must only assign 'width'"),
    (Careless, "parameters", "does not name it|accepts width=<nonsense>"),
    (Nameless, "parameters", "invalid 'width' does not name it"),
    (Picky, "column types|parameters", "left"),
    (Greedy, "column types", "fit reads a column"),
    (Silent, "fit", "must return self"),
    (Growing, "fit", "'fits_' differs"),
    (Forgetful, "summaries", "'levels_' differs"),
    (Setting, "summaries", "summarize sets seen_"),
    (Unmerged, "fit", "summarize must return a Summary, .* got list"),
    (Short, "encoding", "has 9 rows, the table has 10"),
    (Misnamed, "encoding", r"2 columns, encoding_columns names 1: \['left'\].* by a tuple"),
    (Relative, "independent rows", "alone"),
    (Swapped, "column positions", "shuffling column 'left'"),
    (Untyped, "missing values", "columns of type null differ from typed"),
    (Strict, "unseen values", "KeyError"),
    (with_module(Ordinary, "NoModule"), "module", "class Ordinary.BlockModule"),
    (with_module(Wider, "WideBlock"), "module", r"returned shape \(1, 6\)"),
    (with_module(Infinite, "InfiniteBlock"), "module", "NaN or infinity"),
    (with_module(Centred, "CentredBlock"), "module", "depends on other rows"),
    (with_module(Detached, "DetachedBlock"), "module", "no gradient"),
    (with_module(Beyond, "BeyondBlock"), "module", "tree_inputs has codes"),
    (with_module(Crossed, "CrossedBlock"), "module", "output_columns is wrong"),
    (Needing, "empty tables", "RuntimeError"),
    (Doubled, "matrix", "has a name twice"),
    (Bound, "column names", "KeyError"),
    (Losing, "pickling", "levels_"),
]


@pytest.mark.parametrize(("block", "part", "detail"), FAULTS, ids=lambda each: str(each)[:60])
def test_faults_are_found(block, part, detail):
    start = rf"^{block.__name__} does not follow the block contract, part '({part})': "
    with pytest.raises(AssertionError, match=rf"(?s){start}.*({detail})"):
        check_block(block(), TABLE)


def test_wrong_graphs_are_found():
    pytest.importorskip("onnxruntime")
    # The graph knows one level, and the block three.
    found = r"'codes': 0 rather than 2 at \[0, 1\], of 8 that differ"
    with pytest.raises(AssertionError, match=rf"part 'ONNX': .* of entry {found}"):
        check_block(Exported(), TABLE)


def test_the_number_of_columns_may_be_part_of_a_block():
    class Pair(LevelBlock):
        def fit_columns(self, table, *, named=True):
            if table.num_columns != 2:
                raise ValueError(f"Pair reads two columns, got {table.column_names}")
            return super().fit_columns(table, named=named)

        def encode(self, table):
            return {"codes": self.codes(table)[:, None]}

        def encoding_columns(self, encoding):
            return {"codes": [tuple(self.feature_names_in_)]}

        def make_module(self):
            return PairModule([len(levels) + 1 for levels in self.levels_], self.width)

    class PairModule(LevelModule):
        def __init__(self, sizes, width):
            super().__init__(sizes, width)
            self.output_columns = None

        def forward(self, codes):
            return super().forward(codes[:, 0])

        def tree_inputs(self, codes):
            return super().tree_inputs(codes[:, 0])

    globals().update(Pair=Pair)
    Pair.__qualname__ = "Pair"
    check_block(Pair(), TABLE)
    with pytest.raises(ValueError, match="two columns"):
        Pair().fit(TABLE.select(["left"]))


def test_blocks_that_hold_tensors_are_warned_of():
    class Holding(LevelBlock):
        def finish(self, summary):
            self.weights_ = torch.zeros(2)
            return super().finish(summary)

    Holding.__qualname__ = "Holding"
    globals()["Holding"] = Holding
    with pytest.warns(UserWarning, match="Holding: models .* only be saved by pickle") as caught:
        check_block(Holding(), TABLE)
    assert caught[0].filename == __file__


def test_rounding_is_allowed_for():
    class Rounded(LevelBlock):
        def encode(self, table):
            codes = self.codes(table).float()[..., None]
            return {"codes": codes + 1e-7 * len(codes)}

        def make_module(self):
            return RoundedModule()

    class RoundedModule(BlockModule):
        out_features = 2

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

        def forward(self, codes):
            return self.scale * codes[..., 0]

    globals().update(Rounded=Rounded)
    Rounded.__qualname__ = "Rounded"
    check_block(Rounded(), TABLE, exact=False)
    with pytest.raises(AssertionError, match="independent rows"):
        check_block(Rounded(), TABLE)


@pytest.mark.parametrize(
    ("block", "table", "error", "message"),
    [
        (LevelBlock, TABLE, TypeError, "create an instance"),
        (3, TABLE, TypeError, "block must be a Block, got 3"),
        (LevelBlock(), TABLE.slice(0, 3), ValueError, "got 3 rows and 2 columns"),
    ],
)
def test_arguments_are_checked(block, table, error, message):
    with pytest.raises(error, match=message):
        check_block(block, table)


def test_finish_is_needed_beside_summarize():
    class Half(NumericBlock):
        finish = Block.finish

    with pytest.raises(NotImplementedError, match="Half defines summarize, and so has to define"):
        Half().fit({"a": [1.0, 2.0]})


def test_same_fits():
    one, other = NumericBlock().fit({"a": [1.0, 2.0]}), NumericBlock().fit({"a": [1.0, 3.0]})
    assert_same_fit(one, one)
    with pytest.raises(AssertionError, match="again: attribute 'edges_' differs"):
        assert_same_fit(one, other, "again")


def test_it_is_found_without_an_import_of_its_own():
    assert sk_easytensor.__getattr__("testing") is sys.modules[check_block.__module__]
    tree = ast.parse(Path(sk_easytensor.testing.__file__).read_text(encoding="utf-8"))
    imported = {
        name
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in [*(each.name for each in node.names), getattr(node, "module", None)]
    }
    assert not imported & {"pytest", "hypothesis"}
