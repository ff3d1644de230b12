"""Losses and metrics on validation rows after each epoch."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
import torch

from sk_easytensor.training.blend import Blend, fit_blend
from sk_easytensor.training.dataset import BatchIterator

__all__ = [
    "EVAL_BATCH_SIZE",
    "EvalPlan",
    "Evaluator",
]


EVAL_BATCH_SIZE = 256

MOST_ROWS = 50_000
"""Rows of a set, of each worker, that blends and metrics are computed on, at most."""


@dataclass
class EvalPlan:
    """Which sets of rows are evaluated, by which metrics, and what decides.

    Attributes
    ----------
    names : list of str
        Names of the sets, as in ``evals_result_``; none by default.
    decides : bool
        Whether the first set decides about epochs, trees and blend. If not, none does.
    metrics : list of Metric
        Beside the loss.
    scores : callable or None
        Takes outputs, targets and weights of rows and returns a dictionary with a value for each
        of `metrics`.
    stopping_metric : Metric or None
        Decides which epoch is best; None for the loss.
    """

    names: list = field(default_factory=list)
    decides: bool = False
    metrics: list = field(default_factory=list)
    scores: object = None
    stopping_metric: object = None


class Evaluator:
    """Evaluates a network, blended with trees if there are any, on sets of validation rows.

    Parameters
    ----------
    network : BlockNetwork
        The network that is trained.
    head : Head
        Gives the loss.
    sets : list of TrainingDataset
        Rows on the device of the network, the deciding set first.
    trees : TreesModule or None
        Trees that are averaged with the network.
    plan : EvalPlan
        Names of the sets, and metrics.
    group : SingleProcess or ProcessGroup
        Workers, each with a part of every set.
    seed : int
        Of the sample, if a set has more than `MOST_ROWS` rows.
    """

    def __init__(self, network, head, sets, trees, plan, group, seed):
        self.head = head
        self.plan = plan
        self.group = group
        self.trees = trees
        # Outputs of two towers are as wide as a batch has items: they are not kept in vain.
        kept = trees is not None or bool(plan.metrics)
        self.sets = [EvalSet(network, rows, trees, kept, seed) for rows in sets]
        if plan.metrics:
            self._check_metrics()

    def _check_metrics(self):
        """Raise ``ValueError`` for metrics that the rows do not allow, before any training."""
        generator = torch.Generator().manual_seed(0)
        for name, rows in zip(self.plan.names, self.sets, strict=True):
            shape = (len(rows.target), 1, self.head.out_features)
            outputs = torch.randn(shape, generator=generator).to(rows.target.device)
            with warnings.catch_warnings():
                # Of what the random outputs lack, such as predictions of a class.
                warnings.simplefilter("ignore")
                found = dict(self._scores(outputs, rows))
            for metric in self.plan.metrics:
                if metric.entry is not None and not np.isfinite(found[metric.name]):
                    raise ValueError(
                        f"eval_metric {metric.name!r} is {found[metric.name]} on the "
                        f"{len(rows.target)} rows of {name!r}: they may hold a single class or no "
                        "known target. Choose another metric or give other rows in eval_set"
                    )

    @torch.no_grad()
    def evaluate(self, net):
        """Return all that is recorded of an epoch.

        Parameters
        ----------
        net : TensorNet
            Its network is in evaluation mode.

        Returns
        -------
        dict of {str: float}
            ``valid_loss``, ``valid_1_loss`` and so on: losses of the network alone on the scale of
            training. ``<set>_<metric>``: the loss of the whole model in units of the target, and
            metrics. With trees, ``blend_loss``, ``blend_share`` and ``blend_temperature``.
        """
        found = {}
        if self.trees is not None:
            blend = Blend(self.trees.share, self.trees.temperature, float("nan"))
        for index, (name, rows) in enumerate(zip(self.plan.names, self.sets, strict=True)):
            deciding = index == 0 and self.plan.decides
            loss, unit_loss, outputs = rows.run(net, deciding)
            found["valid_loss" if deciding else f"valid_{index}_loss"] = loss
            if self.trees is not None:
                pair = outputs, rows.tree_outputs, rows.target
                if deciding:
                    blend = fit_blend(self.head, *pair, rows.weight, self.group)
                    found["blend_loss"] = blend.loss
                    found["blend_share"] = blend.share
                    found["blend_temperature"] = blend.temperature
                outputs = blend.outputs(self.head, outputs, rows.tree_outputs)
                losses = self.head.unit_loss(outputs, rows.target)[:, 0].double()
                unit_loss = self._mean((losses * rows.weight).sum(), rows.weight.sum())
            found[f"{name}_{self.head.metric}"] = unit_loss
            if self.plan.metrics:
                found |= {f"{name}_{key}": value for key, value in self._scores(outputs, rows)}
        return found

    def _mean(self, total, weight):
        total, weight = self.group.sum([float(total), float(weight)])
        return total / weight

    def _scores(self, outputs, rows):
        parts = [each.cpu().numpy() for each in (outputs[:, 0], rows.target, rows.weight)]
        parts = zip(*self.group.gather(parts), strict=True)
        joined = [torch.from_numpy(np.concatenate(part)) for part in parts]
        return self.plan.scores(*joined).items()


class EvalSet:
    """Rows that a network is evaluated on, and what the trees give for them.

    Parameters
    ----------
    network : BlockNetwork
        Gives trees their columns.
    rows : TrainingDataset
        On the device of the network.
    trees : TreesModule or None
        Are evaluated once.
    kept : bool
        Whether outputs are returned.
    seed : int
        Of the sample.

    Attributes
    ----------
    target, weight : torch.Tensor
        Of the rows whose outputs are kept: all, or a sample.
    tree_outputs : torch.Tensor of shape (n_rows, 1, out_features)
        Of the same rows.
    """

    def __init__(self, network, rows, trees, kept, seed):
        self.rows = rows
        self.kept = kept
        if not kept:
            return
        share = MOST_ROWS / max(len(rows), 1)
        random = np.random.RandomState(seed)
        self._samples, targets, weights, outputs = [], [], [], []
        if trees is not None:
            trees = trees.to(rows_device(rows))
        with torch.no_grad():
            for part in rows.parts():
                sample = None
                if share < 1:
                    size = int(np.ceil(share * len(part)))
                    sample = np.sort(random.choice(len(part), size, replace=False))
                    sample = torch.from_numpy(sample).to(part.weight.device)
                    part = part.take(sample)
                self._samples.append(sample)
                targets.append(part.target)
                weights.append(part.weight.double())
                if trees is not None:
                    batches = BatchIterator(part, EVAL_BATCH_SIZE)
                    outputs += [network.tree_outputs(trees, batch.frame) for batch in batches]
        self.target, self.weight = torch.cat(targets), torch.cat(weights)
        self.tree_outputs = torch.cat(outputs) if outputs else None

    def run(self, net, deciding):
        """Evaluate the network.

        Parameters
        ----------
        net : TensorNet
            Has the network, the head and the workers.
        deciding : bool
            Whether callbacks are notified of the batches.

        Returns
        -------
        loss, unit_loss : float
            Mean loss over all rows, on the scale of training and in units of the target.
        outputs : torch.Tensor of shape (n_rows, 1, out_features), or None
            Combined outputs of the rows that are kept.
        """
        head, kept = net.head, []
        sums = torch.zeros(3, dtype=torch.float64)
        for number, part in enumerate(self.rows.parts()):
            outputs_of_part = []
            for batch in BatchIterator(part, EVAL_BATCH_SIZE):
                outputs = head.average_members(net.infer(batch.frame).float())
                losses = head.loss(outputs, batch.target)[:, 0]
                units = losses
                if head.scale is not None:
                    units = head.unit_loss(outputs, batch.target)[:, 0]
                weight = batch.weight.double()
                means = [(each.double() * weight).sum() for each in (losses, units)]
                sums += torch.stack([*means, weight.sum()]).cpu()
                if self.kept:
                    outputs_of_part.append(outputs)
                if deciding:
                    step = {"loss": losses.mean(), "y_pred": outputs}
                    net.notify("on_batch_end", batch=batch, training=False, **step)
            if self.kept:
                outputs_of_part = torch.cat(outputs_of_part)
                sample = self._samples[number]
                kept.append(outputs_of_part if sample is None else outputs_of_part[sample])
        loss, units, weight = net.group.sum(sums.tolist())
        return loss / weight, units / weight, torch.cat(kept) if self.kept else None


def rows_device(rows):
    """Return the device that encoded rows are on."""
    return next(iter(rows.parts())).weight.device
