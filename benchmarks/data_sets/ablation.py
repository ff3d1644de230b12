"""What each part of the default recipe brings: the defaults with one part changed at a time.

Data sets are those of ``tabular.py``, which describes ``--data``; each variant is fitted to the
same samples. Printed are the mean change of log loss or RMSE against the defaults, the largest
and smallest on one set, the rank among the variants and the time of a fit over the defaults'.

For example::

    python benchmarks/data_sets/ablation.py --data DIR --rows 10000 --seeds 2
"""

from __future__ import annotations

import argparse
import time
import warnings
from contextlib import nullcontext
from unittest.mock import patch

import pandas as pd
from problems import load_problem, tabular_names
from sklearn.base import clone
from tabular import score_and_loss

from sk_easytensor import (
    MLP,
    CategoryBlock,
    EasyTensorClassifier,
    EasyTensorRegressor,
    NumericBlock,
    TableEncoder,
)


def with_blocks(kind, **parameters):
    """Return a variant whose blocks of a kind have other parameters."""

    def make(problem):
        encoder = TableEncoder().fit(problem.train.X)
        blocks = [
            (
                name,
                clone(block).set_params(**(parameters if isinstance(block, kind) else {})),
                list(block.feature_names_in_),
            )
            for name, block in encoder.blocks_.items()
        ]
        return {"blocks": blocks}

    return make


def with_parameters(**parameters):
    """Return a variant of an estimator with other parameters."""
    return lambda problem: parameters


DEFAULT = "defaults"
VARIANTS = {
    DEFAULT: with_parameters(),
    "no trees": with_parameters(trees=None),
    "trees alone": with_parameters(),
    "equal shares": with_parameters(),
    "temperature of one": with_parameters(),
    "15 leaves": with_parameters(trees__max_leaf_nodes=15),
    "3 rows a leaf": with_parameters(trees__min_samples_leaf=3),
    "500 trees at most": with_parameters(trees__max_iter=500),
    "splits of all columns": with_parameters(trees__max_features=1.0),
    "one member (MLP)": with_parameters(trunk=MLP(width=96, dropout=0.0)),
    "2 members": with_parameters(trunk__members=2),
    "8 members": with_parameters(trunk__members=8),
    "dropout of 0.1": with_parameters(trunk__dropout=0.1),
    "6 members, width 64": with_parameters(trunk__members=6, trunk__width=64),
    "width 128": with_parameters(trunk__width=128),
    "width 256": with_parameters(trunk__width=256),
    "learning rate 1.2e-2": with_parameters(learning_rate=1.2e-2),
    "learning rate 4e-2": with_parameters(learning_rate=4e-2),
    "weight decay 1e-2": with_parameters(weight_decay=1e-2),
    "no early stopping": with_parameters(early_stopping_rounds=None),
    "24 bins": with_blocks(NumericBlock, bins=24),
    "vectors of 8 numbers": with_blocks(NumericBlock, width=8),
    "vectors of 4 numbers": with_blocks(NumericBlock, width=4),
    "all bins trusted": with_blocks(NumericBlock, shrinkage=0),
    "no bins (linear)": with_blocks(NumericBlock, embedding="linear"),
    "periodic": with_blocks(NumericBlock, embedding="periodic"),
    "numbers at the common rate": with_parameters(),
    "rare categories shown": with_blocks(CategoryBlock, rarity=0),
    "no shrinkage of categories": with_blocks(CategoryBlock, shrinkage=0),
}
JOINED = {
    "trees alone": {"share": 0.0},
    "equal shares": {"share": 0.5},
    "temperature of one": {"temperature": 1.0},
}
"""How network and trees are joined, in variants that set it after the fit."""

PATCHES = {"numbers at the common rate": patch("sk_easytensor.blocks.numeric.RATE", 1.0)}


def main():
    """Run the variants and print their table."""
    options = parse_options()
    names = (
        tabular_names(options.data) if options.datasets == "all" else options.datasets.split(",")
    )
    variants = list(VARIANTS) if options.variants == "all" else options.variants.split(",")
    runs = []
    for name in names:
        for seed in range(options.seeds):
            problem = load_problem(options.data, name, options.rows, seed)
            if not runs:
                # The first fit of a process waits for memory and for what is imported late.
                measure(DEFAULT, problem)
            for variant in dict.fromkeys([DEFAULT, *variants]):
                runs.append({"dataset": name, "variant": variant, **measure(variant, problem)})
        print(f"{name} is done", flush=True)
    print(table_of(pd.DataFrame(runs)).to_string(float_format="{:.2f}".format))


def parse_options():
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", required=True, help="directory of the data sets")
    add("--datasets", default="all", help="names, comma-separated")
    add("--variants", default="all", help=f"any of {','.join(VARIANTS)}")
    add("--rows", type=int, default=10_000, help="rows sampled from each data set")
    add("--seeds", type=int, default=2, help="number of samples and splits")
    return parser.parse_args()


def measure(variant, problem):
    """Fit a variant and return its loss on the test part and the seconds of the fit."""
    kind = EasyTensorRegressor if problem.task == "regression" else EasyTensorClassifier
    model = kind(random_state=problem.seed, n_jobs=1)
    model.set_params(**VARIANTS[variant](problem))
    with warnings.catch_warnings(), PATCHES.get(variant, nullcontext()):
        warnings.simplefilter("ignore")
        begin = time.process_time()
        model.fit(problem.train.X, problem.train.y, eval_set=[(problem.valid.X, problem.valid.y)])
        seconds = time.process_time() - begin
    if model.network_.trees is not None:
        for name, value in JOINED.get(variant, {}).items():
            setattr(model.network_.trees, name, value)
    regression = problem.task == "regression"
    predicted = (model.predict if regression else model.predict_proba)(problem.test.X)
    return {"loss": score_and_loss(problem, predicted)[1], "seconds": seconds}


def table_of(runs):
    """Return a row a variant: change of the loss in percent, mean rank, time."""
    loss = runs.pivot_table("loss", "dataset", "variant")
    seconds = runs.pivot_table("seconds", "dataset", "variant")
    change = 100 * (loss.div(loss[DEFAULT], axis=0) - 1)
    table = pd.DataFrame(
        {
            "mean change, %": change.mean(),
            "worst, %": change.max(),
            "best, %": change.min(),
            "mean rank": loss.rank(axis=1).mean(),
            "time of a fit": seconds.div(seconds[DEFAULT], axis=0).median(),
        }
    )
    each = change.round(1).T.add_suffix(", %")
    return table.join(each).loc[[name for name in VARIANTS if name in table.index]]


if __name__ == "__main__":
    main()
