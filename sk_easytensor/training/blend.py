"""Trees beside the network: how they are fitted, and by which weights the two are averaged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from sk_easytensor.networks.heads import weighted_mean
from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.dataset import EncodedDataset, sampled_parts
from sk_easytensor.trees.boosting import TreeDataset
from sk_easytensor.trees.forest import TreesModule

__all__ = [
    "Blend",
    "fit_blend",
    "fit_trees",
]


N_SHARES = 21
"""Weights of the network that are tried, from 0 to 1."""

EQUAL = 0.5

SHARE_PRIOR = 8.0
"""Penalty, in nats, of the squared distance of a weight from equal weights. Few validation rows
would otherwise decide by chance."""

TEMPERATURES = np.exp(np.linspace(-0.25, 0.25, 51))
"""Numbers that the outputs of classifiers may be divided by."""

TEMPERATURE_PRIOR = 50.0
"""Penalty, in nats, of the squared logarithm of a temperature."""

NUMBERS_AT_ONCE = 2_000_000
"""Outputs of all candidates that are in memory at a time, at most."""


@dataclass
class Blend:
    """How a network and its trees are averaged.

    Attributes
    ----------
    share : float or list of float
        Weight of the network; the trees have the rest. For several tasks, one for each output.
    temperature : float or list of float
        What the averaged outputs are divided by.
    loss : float
        Mean loss of the blend on the validation rows, on the scale of training.
    """

    share: float | list
    temperature: float | list
    loss: float

    def outputs(self, head, network_outputs, tree_outputs):
        """Return the outputs of the blend, of shape (n_rows, 1, out_features)."""
        return head.normalize(
            weighted_mean(network_outputs, tree_outputs, self.share, self.temperature)
        )


def fit_blend(head, network_outputs, tree_outputs, target, weight, group):
    """Choose the weights of a network and its trees, and the temperature of classifiers.

    Both minimise the negative log-likelihood of the validation rows plus a penalty that keeps them
    near equal weights and a temperature of one. The temperature is that of Guo et al., "On
    Calibration of Modern Neural Networks" (2017). Of several tasks, each has a blend of its own.

    Parameters
    ----------
    head : Head
        Gives the loss.
    network_outputs, tree_outputs : torch.Tensor of float32, shape (n_rows, 1, out_features)
        Of the validation rows.
    target : torch.Tensor
        As the head takes it.
    weight : torch.Tensor of float64, shape (n_rows,)
        Row weights.
    group : SingleProcess or ProcessGroup
        Workers, each with a part of the rows.

    Returns
    -------
    Blend
    """
    tasks = head.tasks(target)
    if tasks is None:
        return _fit_one(head, network_outputs, tree_outputs, target, weight, group)
    share, temperature = [], []
    for task in tasks:
        outputs = (each[..., task.outputs] for each in (network_outputs, tree_outputs))
        own = _fit_one(task.head, *outputs, task.target, weight * task.present, group)
        share += [own.share] * task.head.out_features
        temperature += [own.temperature] * task.head.out_features
    blend = Blend(share, temperature, float("nan"))
    losses = head.loss(blend.outputs(head, network_outputs, tree_outputs), target)[:, 0]
    total, weight = group.sum([float((losses.double() * weight).sum()), float(weight.sum())])
    blend.loss = total / weight
    return blend


def _fit_one(head, network_outputs, tree_outputs, target, weight, group):
    """Return the blend for one target; see :func:`fit_blend`."""

    def best(values, penalties, outputs_of):
        """Return the value of the least penalised loss, and its mean loss."""
        values_of = torch.tensor(values, dtype=torch.float32, device=target.device)[None, :, None]
        step = max(1, NUMBERS_AT_ONCE // (len(values) * network_outputs.shape[2]))
        sums = torch.zeros(len(values), dtype=torch.float64, device=target.device)
        for start in range(0, len(target), step):
            rows = slice(start, start + step)
            losses = head.loss(head.normalize(outputs_of(rows, values_of)), target[rows])
            sums += (losses.double() * weight[rows, None]).sum(0)
        n_rows = int((weight > 0).sum())
        n_rows, total, *sums = group.sum([n_rows, float(weight.sum()), *sums.tolist()])
        losses = np.array(sums) / max(total, np.finfo(np.float64).tiny)
        likelihoods = n_rows * np.array([head.likelihood(loss) for loss in losses])
        index = int(np.argmin(likelihoods + penalties))
        return float(values[index]), float(losses[index])

    shares = np.linspace(0, 1, N_SHARES)
    share, loss = best(
        shares,
        SHARE_PRIOR * (shares - EQUAL) ** 2,
        lambda rows, values: torch.lerp(tree_outputs[rows], network_outputs[rows], values),
    )
    blend = Blend(share, 1.0, loss)
    # What is added to the outputs as it is must not be divided.
    if head.estimator_type == "classifier" and not head.has_offset:
        mean = torch.lerp(tree_outputs, network_outputs, share)
        penalties = TEMPERATURE_PRIOR * np.log(TEMPERATURES) ** 2
        blend.temperature, blend.loss = best(
            TEMPERATURES, penalties, lambda rows, values: mean[rows] / values
        )
    return blend


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


def fit_trees(network, head, rows, valid_rows, settings):
    """Fit trees to the columns that a network's blocks give them.

    Parameters
    ----------
    network : BlockNetwork
        Its blocks say which columns trees see.
    head : Head
        Says what the target is.
    rows : TrainingDataset
        Training rows.
    valid_rows : list of TrainingDataset
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
    codes = [] if settings.trees is None or head.tree_loss is None else network.tree_feature_codes
    if not codes or (settings.group.size > 1 and not valid_rows):
        return None
    signs = network.tree_feature_signs
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

    grown = settings.group.broadcast_from_rank0(grow)
    return None if grown is None else TreesModule(grown, EQUAL).eval()


@torch.no_grad()
def tree_rows(network, rows, most, seed, head=None):
    """Return what trees see of some rows, at most so many.

    Parameters
    ----------
    network : BlockNetwork
        Its blocks show them columns.
    rows : TrainingDataset
        Of which only what is shown is brought into memory.
    most : int
        Rows at most.
    seed : int
        Of the sample, if there are more.
    head : Head, optional
        Takes offsets out of the targets; needed where there are any.

    Returns
    -------
    TreeDataset
    """
    names = [*network.tree_feature_names]
    if network.offset_name is not None:
        names.append(network.offset_name)

    def shown(part):
        frame = TensorFrame({name: part.frame[name] for name in names}, len(part))
        return EncodedDataset(frame, part.target, part.weight)

    def learned(part):
        offset = network.offset(part.frame)
        if offset is None:
            return part.target, part.weight
        return head.without_offset(part.target, part.weight, offset[:, 0])

    parts = [
        (network.tree_features(part.frame), *learned(part))
        for part in sampled_parts(rows.map(shown), most, seed)
    ]
    columns, target, weight = (torch.cat(each).cpu().numpy() for each in zip(*parts, strict=True))
    same = bool((weight == weight[0]).all())
    return TreeDataset(columns, target, None if same else weight)
