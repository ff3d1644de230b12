"""Trees that are grown beside a network, and how much each of the two counts."""

from __future__ import annotations

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.batches import BatchIterator, EncodedRows
from sk_easytensor.training.shards import sampled_parts
from sk_easytensor.trees.columns import LeftRows
from sk_easytensor.trees.module import TreesModule

__all__ = ["grow_trees", "join_trees"]

FEWEST_ROWS = 100
"""With fewer training rows a network stands alone: it would be chance how the two are joined."""

MOST_ROWS = 200_000
"""Rows that trees are grown on at most; a sample has to do with more. scikit-learn looks at as many
to choose where columns may be split."""

JUDGED_ROWS = 50_000
"""Validation rows at most that decide how many trees there are, and how much the network counts."""

STEPS = 21
"""Shares of the network that are tried, from none to all."""

BELIEF = 8.0
"""How much likelier, as a logarithm for the square of the distance, equal shares are at first."""

EQUAL = 0.5

TEMPERATURES = np.exp(np.linspace(-0.25, 0.25, 51))
"""What the outputs of classes may be divided by."""

EVEN = 50.0
"""How much likelier, as a logarithm for the square of its own, a temperature of one is at first."""


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
        the rows is what all get trees from. Without validation rows nothing would tell whether
        that stands for all rows, and several workers have none.
    """
    codes = [] if settings.trees is None else network.shown_codes
    if not codes or (settings.group.size > 1 and not valid_rows):
        return

    def grow():
        if len(rows) < FEWEST_ROWS:
            return None
        own = tree_rows(network, rows, MOST_ROWS, settings.seed)
        valid = None
        if valid_rows:
            valid = tree_rows(network, valid_rows[0], JUDGED_ROWS, settings.seed)
        try:
            # As many threads as the network is trained with: scikit-learn would take all there are.
            with threadpool_limits(torch.get_num_threads(), user_api="openmp"):
                return settings.trees.grow(head, own, valid, codes, settings.seed)
        except KeyboardInterrupt:
            # Who interrupts a training gets what there is by then.
            return None

    grown = settings.group.from_first(grow)
    if grown is not None:
        network.trees = TreesModule(grown, EQUAL).eval()


@torch.no_grad()
def join_trees(network, head, valid_rows, batch_size, settings):
    """Find how much a network counts beside its trees, by validation rows, and how sure both are.

    The share that makes the rows likeliest is looked for among evenly spaced ones, of which equal
    shares are likelier from the start: few rows decide by chance otherwise. The same goes for the
    temperature of classes, as of Guo et al., "On Calibration of Modern Neural Networks" (2017).

    Parameters
    ----------
    network : BlockNetwork
        With trees, whose share and temperature are set; on the device of the rows.
    head : Head
        Gives the loss.
    valid_rows : EncodedRows
        Validation rows, those of like length together.
    batch_size : int
        Rows at a time.
    settings : TrainingSettings
        Has the seed and the group of workers, each of which has some of the rows.

    Returns
    -------
    float
        Validation loss of the two together.
    """
    parts = []
    for part in sampled_parts(valid_rows, JUDGED_ROWS, settings.seed):
        for batch in BatchIterator(part, batch_size):
            alone = head.combine(network(batch.frame))
            trees = network.trees(network.shown(batch.frame))[:, None, :]
            parts.append((alone, trees, batch.target, batch.weight.double()))
    alone, trees, target, weight = (torch.cat(each) for each in zip(*parts, strict=True))

    def likeliest(values, join, belief):
        """Return the best of some values and its mean loss; `belief` is against each of them."""
        sums = []
        for value in values:
            losses = head.loss(head.settle(join(float(value))), target)[:, 0].double()
            sums.append(float((losses * weight).sum()))
        n_rows, total, *sums = settings.group.sum([len(weight), float(weight.sum()), *sums])
        losses = np.array(sums) / total
        likelihoods = n_rows * np.array([head.likelihood(loss) for loss in losses])
        best = int(np.argmin(likelihoods + belief))
        return float(values[best]), float(losses[best])

    shares = np.linspace(0, 1, STEPS)
    joined = network.trees
    joined.share, loss = likeliest(
        shares, lambda share: torch.lerp(trees, alone, share), BELIEF * (shares - EQUAL) ** 2
    )
    if head.estimator_type == "classifier":
        mean = torch.lerp(trees, alone, joined.share)
        belief = EVEN * np.log(TEMPERATURES) ** 2
        joined.temperature, loss = likeliest(TEMPERATURES, lambda value: mean / value, belief)
    return loss


@torch.no_grad()
def tree_rows(network, rows, most, seed):
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

    Returns
    -------
    LeftRows
    """
    names = network.shown_names

    def shown(part):
        frame = TensorFrame({name: part.frame[name] for name in names}, len(part))
        return EncodedRows(frame, part.target, part.weight)

    parts = [
        (network.shown(part.frame), part.target, part.weight)
        for part in sampled_parts(rows.map(shown), most, seed)
    ]
    columns, target, weight = (torch.cat(each).cpu().numpy() for each in zip(*parts, strict=True))
    same = bool((weight == weight[0]).all())
    return LeftRows(columns, target, None if same else weight)
