"""Boosted trees that are fitted beside a network."""

from __future__ import annotations

import torch
from threadpoolctl import threadpool_limits

from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.batches import EncodedRows
from sk_easytensor.training.blend import EQUAL
from sk_easytensor.training.shards import sampled_parts
from sk_easytensor.trees.columns import LeftRows
from sk_easytensor.trees.module import TreesModule

__all__ = ["grow_trees"]

FEWEST_ROWS = 100
"""With fewer training rows a network stands alone: it would be chance how the two are joined."""

MOST_ROWS = 200_000
"""Rows that trees are grown on at most; a sample has to do with more. scikit-learn looks at as many
to choose where columns may be split."""

UNCONSTRAINED = ("absolute_error", "quantile")
"""Losses for which scikit-learn's trees do not follow monotonic constraints: it replaces the values
of leaves by quantiles of residuals."""

MOST_VALID_ROWS = 50_000
"""Validation rows at most that decide how many trees there are."""


def grow_trees(network, head, rows, valid_rows, settings):
    """Fit trees to the columns that a network's blocks give them.

    Parameters
    ----------
    network : BlockNetwork
        Its blocks say which columns trees see.
    head : Head
        Says what the target is.
    rows : EncodedRows
        Training rows.
    valid_rows : list of EncodedRows
        The first decides how many trees there are.
    settings : TrainingSettings
        Has the parameters of the trees, the seed and the group of workers: the first one's share of
        the rows is what all get trees from. Without validation rows nothing would tell whether
        that stands for all rows, and several workers have none.

    Returns
    -------
    TreesModule or None
        None if there is nothing for trees to learn from.
    """
    codes = [] if settings.trees is None or head.tree_loss is None else network.shown_codes
    if not codes or (settings.group.size > 1 and not valid_rows):
        return None
    signs = network.shown_signs
    if any(signs) and head.tree_loss in UNCONSTRAINED:
        return None

    def grow():
        if len(rows) < FEWEST_ROWS:
            return None
        own = tree_rows(network, rows, MOST_ROWS, settings.seed, head)
        valid = None
        if valid_rows:
            valid = tree_rows(network, valid_rows[0], MOST_VALID_ROWS, settings.seed, head)
        # As many threads as the network is trained with: scikit-learn would take all there are.
        with threadpool_limits(torch.get_num_threads(), user_api="openmp"):
            return settings.trees.grow(head, own, valid, codes, settings.seed, signs)

    grown = settings.group.from_first(grow)
    return None if grown is None else TreesModule(grown, EQUAL).eval()


@torch.no_grad()
def tree_rows(network, rows, most, seed, head=None):
    """Return what trees see of some rows, at most so many.

    Parameters
    ----------
    network : BlockNetwork
        Its blocks show them columns.
    rows : EncodedRows
        Of which only what is shown is brought into memory.
    most : int
        Rows at most.
    seed : int
        Of the sample, if there are more.
    head : Head, optional
        Takes offsets out of the targets; needed where there are any.

    Returns
    -------
    LeftRows
    """
    names = [*network.shown_names]
    if network.offset_name is not None:
        names.append(network.offset_name)

    def shown(part):
        frame = TensorFrame({name: part.frame[name] for name in names}, len(part))
        return EncodedRows(frame, part.target, part.weight)

    def learned(part):
        offset = network.offset(part.frame)
        if offset is None:
            return part.target, part.weight
        return head.without_offset(part.target, part.weight, offset[:, 0])

    parts = [
        (network.shown(part.frame), *learned(part))
        for part in sampled_parts(rows.map(shown), most, seed)
    ]
    columns, target, weight = (torch.cat(each).cpu().numpy() for each in zip(*parts, strict=True))
    same = bool((weight == weight[0]).all())
    return LeftRows(columns, target, None if same else weight)
