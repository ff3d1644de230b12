"""Trees that are grown beside a network, and how much each of the two counts."""

from __future__ import annotations

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from sk_easytensor.training.batches import BatchIterator
from sk_easytensor.training.shards import bounded_sample
from sk_easytensor.trees.columns import LeftRows
from sk_easytensor.trees.module import TreesModule

__all__ = ["choose_share", "grow_trees"]

FEWEST_ROWS = 100
"""With fewer training rows a network stands alone: it would be chance how the two are joined."""

MOST_ROWS = 300_000
"""Rows that trees are grown on at most; a sample has to do with more."""

JUDGED_ROWS = 50_000
"""Validation rows at most that decide how much the network counts."""

BATCH = 1024

STEPS = 21
"""Shares of the network that are tried, from none to all."""

BELIEF = 8.0
"""How much likelier, as a logarithm for the square of the distance, equal shares are at first."""

EQUAL = 0.5


def grow_trees(network, head, rows, valid_rows, settings):
    """Grow trees and let them stand beside a trained network.

    Parameters
    ----------
    network : BlockNetwork
        Trained; its attribute ``trees`` is set if there is anything that trees can tell.
    head : Head
        Says what the target is.
    rows : EncodedRows
        Training rows.
    valid_rows : list of EncodedRows
        The first decides how many trees there are.
    settings : TrainingSettings
        Has the parameters of the trees, the seed and the group of workers: the first one's share of
        the rows is what all get trees from.
    """
    categories = [] if settings.trees is None else network.shown_categories
    if not categories or settings.group.sum([len(rows)])[0] < FEWEST_ROWS:
        return

    def grow():
        own = _tree_rows(network, rows, MOST_ROWS, settings.seed)
        valid = None
        if valid_rows:
            valid = _tree_rows(network, valid_rows[0], JUDGED_ROWS, settings.seed)
        # As many threads as the network is trained with: scikit-learn would take all there are.
        with threadpool_limits(torch.get_num_threads(), user_api="openmp"):
            return settings.trees.grow(head, own, valid, categories, settings.seed)

    grown = settings.group.from_first(grow)
    if grown is not None:
        network.trees = TreesModule(grown, EQUAL).eval()


@torch.no_grad()
def choose_share(network, head, valid_rows, settings):
    """Find how much a network counts beside its trees, by validation rows.

    The share that makes the rows likeliest is looked for among evenly spaced ones, of which equal
    shares are likelier from the start: few rows decide by chance otherwise.

    Parameters
    ----------
    network : BlockNetwork
        With trees, whose share is set.
    head : Head
        Gives the loss.
    valid_rows : list of EncodedRows
        The first is judged.
    settings : TrainingSettings
        Has the seed and the group of workers, each of which has some of the rows.

    Returns
    -------
    float
        Validation loss of the two together.
    """
    rows = bounded_sample(valid_rows[0], JUDGED_ROWS, settings.seed)
    parts = []
    for batch in BatchIterator(rows, BATCH):
        alone = head.combine(network(batch.frame))
        parts.append((alone, network.trees(network.shown(batch.frame))[:, None, :]))
    alone, grown = (torch.cat(each) for each in zip(*parts, strict=True))
    weight = rows.weight.double()
    shares, sums = np.linspace(0, 1, STEPS), []
    for share in shares:
        joined = head.settle(torch.lerp(grown, alone, float(share)))
        losses = head.loss(joined, rows.target)[:, 0].double()
        sums.append(float((losses * weight).sum()))
    n_rows, total, *sums = settings.group.sum([len(rows), float(weight.sum()), *sums])
    losses = np.array(sums) / total
    likelihoods = n_rows * np.array([head.likelihood(loss) for loss in losses])
    best = int(np.argmin(likelihoods + BELIEF * (shares - EQUAL) ** 2))
    network.trees.share = float(shares[best])
    return float(losses[best])


@torch.no_grad()
def _tree_rows(network, rows, most, seed):
    rows = bounded_sample(rows, most, seed)
    columns = [network.shown(part.frame) for part in BatchIterator(rows, MOST_ROWS)]
    weight = rows.weight.numpy()
    same = bool((weight == weight[0]).all())
    return LeftRows(torch.cat(columns).numpy(), rows.target.numpy(), None if same else weight)
