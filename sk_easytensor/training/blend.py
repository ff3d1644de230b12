"""Boosted trees beside the network: fitting them, and the weights of the average of the two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from sk_easytensor.networks.heads import weighted_mean
from sk_easytensor.training.dataset import sampled_encodings
from sk_easytensor.training.distributed import SingleProcess, gather_rows
from sk_easytensor.trees.boosting import TreeDataset
from sk_easytensor.trees.forest import TreesModule

__all__ = [
    "MIN_TREE_ROWS",
    "Blend",
    "fit_blend",
    "fit_trees",
]


N_SHARES = 21
"""Number of candidate weights of the network, evenly spaced from 0 to 1."""

EQUAL = 0.5
"""Weight of the network without validation rows, and centre of the penalty by default."""

SHARE_PRIOR = 8.0
"""Penalty, in nats, of the squared distance of a weight from `EQUAL`. Without it, the weight would
depend on chance when there are few validation rows."""

TEMPERATURES = np.exp(np.linspace(-0.25, 0.25, 51))
"""Candidate temperatures, by which the outputs of classifiers are divided."""

TEMPERATURE_PRIOR = 50.0
"""Penalty, in nats, of the squared logarithm of a temperature."""

MAX_OUTPUTS_IN_MEMORY = 2_000_000
"""Largest number of outputs, of all candidates together, that are in memory at a time."""


@dataclass
class Blend:
    """Weights by which the outputs of a network and of its trees are averaged.

    Attributes
    ----------
    share : float or list of float
        Weight of the network, from 0 to 1; the trees have the rest. A list has one weight for each
        output, for several tasks.
    temperature : float or list of float
        Divisor of the averaged outputs.
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


def fit_blend(
    head, network_outputs, tree_outputs, target, weight, group, calibrate=True, few=0, prior=EQUAL
):
    """Choose the weights of two models, such as a network and its trees, and the temperature.

    Both minimise the negative log-likelihood of the validation rows plus a penalty that keeps them
    near `prior` and a temperature of one. The temperature is that of Guo et al., "On
    Calibration of Modern Neural Networks" (2017). With several tasks, each task has its own
    weights and temperature.

    Parameters
    ----------
    head : Head
        Defines the loss and its likelihood.
    network_outputs, tree_outputs : torch.Tensor of float32, shape (n_rows, 1, out_features)
        Outputs for the validation rows.
    target : torch.Tensor of shape (n_rows, ...)
        Targets of the validation rows, in the form that the head's loss takes.
    weight : torch.Tensor of float64, shape (n_rows,)
        Row weights.
    group : SingleProcess or ProcessGroup
        Workers of the training, each with a part of the rows.
    calibrate : bool, default=True
        Whether classifiers get a temperature; if not, it is 1.
    few : int, default=0
        Number of validation rows below which the penalty of weights grows, as ``1 + few / n_rows``.
    prior : float, default=0.5
        Weight of the network to which the penalty keeps its weight near; 0 for a weight of 0.

    Returns
    -------
    Blend
    """
    tasks = head.tasks(target)
    options = {"calibrate": calibrate, "few": few, "prior": prior}
    if tasks is None:
        return _fit_one(head, network_outputs, tree_outputs, target, weight, group, **options)
    share, temperature = [], []
    for task in tasks:
        outputs = (values[..., task.outputs] for values in (network_outputs, tree_outputs))
        present = weight * task.present
        task_blend = _fit_one(task.head, *outputs, task.target, present, group, **options)
        share += [task_blend.share] * task.head.out_features
        temperature += [task_blend.temperature] * task.head.out_features
    blend = Blend(share, temperature, float("nan"))
    losses = head.loss(blend.outputs(head, network_outputs, tree_outputs), target)[:, 0]
    total, weight = group.sum([float((losses.double() * weight).sum()), float(weight.sum())])
    blend.loss = total / weight
    return blend


def _fit_one(head, network_outputs, tree_outputs, target, weight, group, *, calibrate, few, prior):
    """Return the blend for one target; see :func:`fit_blend`."""

    def best(values, penalties, outputs_of):
        """Return the candidate with the smallest penalised loss, and its mean loss."""
        candidates = torch.tensor(values, dtype=torch.float32, device=target.device)[None, :, None]
        step = max(1, MAX_OUTPUTS_IN_MEMORY // (len(values) * network_outputs.shape[2]))
        sums = torch.zeros(len(values), dtype=torch.float64, device=target.device)
        for start in range(0, len(target), step):
            rows = slice(start, start + step)
            losses = head.loss(head.normalize(outputs_of(rows, candidates)), target[rows])
            sums += (losses.double() * weight[rows, None]).sum(0)
        n_rows = int((weight > 0).sum())
        n_rows, total, *sums = group.sum([n_rows, float(weight.sum()), *sums.tolist()])
        losses = np.array(sums) / max(total, np.finfo(np.float64).tiny)
        likelihoods = n_rows * np.array([head.likelihood(loss) for loss in losses])
        index = int(np.argmin(likelihoods + penalties))
        return float(values[index]), float(losses[index])

    shares = np.linspace(0, 1, N_SHARES) if prior > 0 else np.zeros(1)
    (n_rows,) = group.sum([int((weight > 0).sum())]) if few else (1,)
    share, loss = best(
        shares,
        SHARE_PRIOR * (1 + few / max(n_rows, 1)) * (shares - prior) ** 2,
        lambda rows, values: torch.lerp(tree_outputs[rows], network_outputs[rows], values),
    )
    blend = Blend(share, 1.0, loss)
    # An offset is part of the outputs and must not be divided by the temperature.
    if calibrate and head.estimator_type == "classifier" and not head.has_offset:
        mean = torch.lerp(tree_outputs, network_outputs, share)
        penalties = TEMPERATURE_PRIOR * np.log(TEMPERATURES) ** 2
        blend.temperature, blend.loss = best(
            TEMPERATURES, penalties, lambda rows, values: mean[rows] / values
        )
    return blend


MIN_TREE_ROWS = 100
"""Smallest number of training rows, or of all rows of folds, with which trees are fitted. With
fewer, the weights of the two would depend on chance, and the network is used alone."""

MAX_ROWS = 200_000
"""Largest number of rows on which trees are fitted; larger data sets are sampled. scikit-learn
chooses the bins of columns from a sample of the same size."""

UNCONSTRAINED = ("absolute_error", "quantile")
"""Losses for which scikit-learn's trees do not follow monotonic constraints: it replaces the values
of leaves by quantiles of residuals."""

MAX_VALID_ROWS = 50_000
"""Largest number of validation rows that decide the number of trees."""


def fit_trees(network, head, rows, valid_rows, settings):
    """Fit boosted trees to the tree features of a network's blocks.

    Parameters
    ----------
    network : BlockNetwork
        Network whose blocks define the tree features.
    head : Head
        Defines the loss of the trees.
    rows : TrainingDataset
        Training rows.
    valid_rows : list of TrainingDataset
        The first data set decides the number of trees.
    settings : TrainingSettings
        Parameters of the trees, the seed and the group of workers. The first worker fits the trees
        on rows of all workers, and all workers use them.

    Returns
    -------
    TreesModule or None
        None if trees are disabled, if the loss has no trees, if no block gives tree features, if
        there are too few rows, or if monotonic constraints cannot be followed.
    """
    codes = [] if settings.trees is None or head.tree_loss is None else network.tree_feature_codes
    group = settings.group
    if not codes or group.sum([len(rows)])[0] < settings.min_tree_rows:
        return None
    signs = network.tree_feature_signs
    if any(signs) and head.tree_loss in UNCONSTRAINED:
        return None

    train = tree_rows(network, rows, MAX_ROWS, settings.seed, head, group)
    valid = None
    if valid_rows:
        valid = tree_rows(network, valid_rows[0], MAX_VALID_ROWS, settings.seed, head, group)

    def grow():
        # The same number of threads as the network: scikit-learn would use all processors.
        with threadpool_limits(torch.get_num_threads(), user_api="openmp"):
            return settings.trees.grow(head, train, valid, codes, settings.seed, signs)

    forest = group.broadcast_from_rank0(grow)
    return None if forest is None else TreesModule(forest, EQUAL).eval()


@torch.no_grad()
def tree_rows(network, rows, max_rows, seed, head=None, group=None):
    """Return the tree features, targets and weights of a data set, or of a sample of it.

    Parameters
    ----------
    network : BlockNetwork
        Network whose blocks define the tree features.
    rows : TrainingDataset
        Encoded rows. Only the encodings that trees use are brought into memory.
    max_rows : int
        Largest number of rows.
    seed : int
        Seed of the sample, if there are more rows.
    head : Head, optional
        Subtracts offsets from the targets; required if the network has an offset.
    group : SingleProcess or ProcessGroup, optional
        Workers, each with a shard of the rows, in proportion to which they are sampled.

    Returns
    -------
    TreeDataset or None
        None in all workers but the first.
    """
    group = SingleProcess() if group is None else group
    names = [*network.tree_feature_names]
    if network.offset_name is not None:
        names.append(network.offset_name)

    def tree_target(part):
        offset = network.offset(part.frame)
        if offset is None:
            return part.target, part.weight
        return head.without_offset(part.target, part.weight, offset[:, 0])

    parts = [
        [tensor.cpu().numpy() for tensor in (network.tree_features(part.frame), *tree_target(part))]
        for part in sampled_encodings(rows, names, max_rows, seed, group)
    ]
    # A worker may have rows that no other has, such as those of a class.
    arrays = gather_rows(group, parts)
    if arrays is None:
        return None
    features, target, weight = arrays
    uniform = bool((weight == weight[0]).all())
    return TreeDataset(features, target, None if uniform else weight)
