# ci: quick
"""A block of your own
===================

Write a block of your own: categories that lie on paths, such as "home/kitchen/knives".

A category block reads a path that training did not have as just unknown. This block gives each
prefix of a path ("home", "home/kitchen", "home/kitchen/knives") a vector and adds them up, so that
an unknown leaf still has the meaning of its known prefixes.

Every block has three methods: `accepts` says which types of columns it reads, `encode` makes
tensors, and `make_module` makes the part of the network that reads them. This one learns which
prefixes there are, with two more: `summarize` reads a chunk of rows, `finish` sets the fitted
attributes from the merged summaries. `check_parameters` refuses invalid parameters, and `detects`
makes it possible to register the block, so that estimators choose it for columns of paths. The
estimators do everything else.
"""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from sklearn.metrics import r2_score
from torch import nn

from sk_easytensor import (
    Block,
    BlockModule,
    CategoryBlock,
    EasyTensorRegressor,
    register_block,
)
from sk_easytensor.data.summaries import SummaryMap, ValueCounts
from sk_easytensor.testing import check_block


@register_block
class PathBlock(Block):
    """Paths of categories, separated by slashes.

    Parameters
    ----------
    depth : int, default=3
        Levels that are read; deeper ones are ignored.
    width : int, default=8
        Size of the vector of each column.
    """

    kind = "path"
    accepted = "strings"

    def __init__(self, depth=3, width=8):
        self.depth = depth
        self.width = width

    def check_parameters(self):
        """Refuse invalid parameters, before any row is read."""
        for name in ("depth", "width"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"PathBlock: {name} must be a positive integer, got {value!r}")

    @classmethod
    def accepts(cls, column_type):
        """Read strings, and columns without a value, whose type is null."""
        types = pa.types
        tests = (types.is_string, types.is_large_string, types.is_null)
        return any(test(column_type) for test in tests)

    @classmethod
    def detects(cls, column):
        """Choose columns of strings with a slash in each."""
        if column.null_count == len(column) or not cls.accepts(column.type):
            return False
        return pc.all(pc.match_substring(column, "/")).as_py()

    def summarize(self, table):
        """Count the prefixes of each column."""
        return SummaryMap(
            {
                name: ValueCounts.of(pa.chunked_array(prefixes(column, self.depth)))
                for name, column in zip(table.column_names, table.columns, strict=True)
            }
        )

    def finish(self, summary):
        """Keep the prefixes of the training rows, in an order that does not depend on chunks."""
        self.prefixes_ = [summary[name].most_common()[0] for name in self.feature_names_in_]
        return self

    def encode(self, table):
        """Number the prefixes of each path from 1; 0 is an unknown or missing one."""
        codes = np.zeros((table.num_rows, table.num_columns, self.depth), dtype=np.int64)
        for index, column in enumerate(table.columns):
            for level, values in enumerate(prefixes(column, self.depth)):
                found = pc.index_in(values, value_set=self.prefixes_[index], skip_nulls=True)
                codes[:, index, level] = pc.add(pc.fill_null(found, -1), 1)
        return {"codes": torch.from_numpy(codes)}

    def make_module(self):
        """Make the part of the network that reads the codes."""
        return PathModule([len(values) for values in self.prefixes_], self.width)


class PathModule(BlockModule):
    """Add up the vectors of a path's prefixes."""

    def __init__(self, n_prefixes, width):
        super().__init__()
        self.embeddings = nn.ModuleList(
            nn.Embedding(count + 1, width, padding_idx=0) for count in n_prefixes
        )
        self.out_features = width * len(n_prefixes)

    def forward(self, codes):
        """Map codes of shape (batch, columns, depth) to (batch, out_features)."""
        parts = [embed(codes[:, index]).sum(1) for index, embed in enumerate(self.embeddings)]
        return torch.cat(parts, dim=1)


def prefixes(column, depth):
    """Return one array a level with the path down to that level, null where it ends above."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    parts = pc.split_pattern(column.cast(pa.string()), "/")
    length = pc.list_value_length(parts)
    levels = []
    for level in range(1, depth + 1):
        path = pc.binary_join(pc.list_slice(parts, 0, level), "/")
        levels.append(pc.if_else(pc.greater_equal(length, level), path, None))
    return levels


def make_sales(n_rows, seed=0):
    """Invent prices that depend on the department, the aisle and, least, on the article."""
    random = np.random.default_rng(seed)
    level = [random.integers(0, size, n_rows) for size in (5, 6, 40)]
    sales = pd.DataFrame(
        {
            "article": [f"d{a}/a{b}/{c}" for a, b, c in zip(*level, strict=True)],
            "pieces": random.integers(1, 10, n_rows),
        }
    )
    of_department = np.random.default_rng(1).normal(0, 2, 5)[level[0]]
    of_aisle = np.random.default_rng(2).normal(0, 1, (5, 6))[level[0], level[1]]
    noise = random.normal(0, 0.5, n_rows)
    return sales, of_department + of_aisle - 0.1 * sales["pieces"] + noise


def main():
    """Check the block, and compare it with CategoryBlock on articles that training has not seen."""
    sales, price = make_sales(3000)
    check_block(PathBlock(), {"article": ["a/b/c", None, "a/b", "d", "", "a/b/c", "a/x/c/y"]})
    print("PathBlock follows the contract of blocks")
    unseen = sales["article"].str.endswith(("1", "5", "8"))
    for block in (CategoryBlock(), PathBlock(depth=3)):
        model = EasyTensorRegressor(
            blocks=[("article", block, "article")], max_epochs=30, random_state=0, n_jobs=1
        )
        model.fit(sales[~unseen], price[~unseen])
        score = r2_score(price[unseen], model.predict(sales[unseen]))
        print(f"{type(block).__name__:14} R2 on articles never seen: {score:.2f}")

    # It is registered: without blocks=..., estimators choose it for columns of paths.
    model = EasyTensorRegressor(max_epochs=1, trees=None, random_state=0).fit(sales, price)
    chosen = {name: list(block.feature_names_in_) for name, block in model.blocks_.items()}
    print(f"Chosen automatically: {chosen}")


if __name__ == "__main__":
    main()
