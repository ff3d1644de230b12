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
    "eval_batch_size",
]


EVAL_BATCH_SIZE, GPU_EVAL_BATCH_SIZE = 256, 8_192
"""Number of rows of a batch of validation rows, on a CPU and on a GPU."""

MAX_ROWS = 50_000
"""Largest number of rows, per set and worker, for which blends and metrics are computed."""


def eval_batch_size(rows, in_batch=False):
    """Return the number of rows of a batch of validation rows.

    256 rows of activations stay in the cache of a processor. On a GPU, such a batch takes less time
    than its launch.

    Parameters
    ----------
    rows : EncodedDataset
        Rows, whose device decides.
    in_batch : bool, default=False
        Whether the loss of a row depends on the other rows of its batch, so that the size of
        batches is the same on all devices.
    """
    on_cpu = rows.weight.device.type == "cpu"
    return EVAL_BATCH_SIZE if on_cpu or in_batch else GPU_EVAL_BATCH_SIZE


@dataclass
class EvalPlan:
    """Evaluation sets, metrics, and the set and metric that decide about early stopping.

    Attributes
    ----------
    names : list of str, default=[]
        Names of the sets, as in ``evals_result_``.
    decides : bool, default=False
        Whether the first set decides about the best epoch, the number of trees and the blend. If
        False, no set does.
    metrics : list of Metric, default=[]
        Metrics that are computed in addition to the loss.
    scores : callable or None, default=None
        Takes outputs, targets and weights, tensors of the same number of rows, and returns a
        dictionary with the value of each of `metrics` by name.
    stopping_metric : Metric or None, default=None
        Metric that decides which epoch is best; None for the loss.
    ranking : RankingEvaluation or None, default=None
        Computes further metrics of a set of pairs from the network, not from outputs for its rows.
    """

    names: list = field(default_factory=list)
    decides: bool = False
    metrics: list = field(default_factory=list)
    scores: object = None
    stopping_metric: object = None
    ranking: object = None

    @property
    def metric_names(self):
        """Names of all metrics that are computed in addition to the loss."""
        ranked = [] if self.ranking is None else self.ranking.names
        return [*(metric.name for metric in self.metrics), *ranked]


class Evaluator:
    """Evaluates a network, blended with other models if there are any, on validation rows.

    Parameters
    ----------
    network : BlockNetwork
        Network that is trained.
    head : Head
        Defines the loss.
    sets : list of TrainingDataset
        Validation rows on the device of the network. The first set decides about early stopping.
    others : dict of {str: TreesModule or LinearModule}
        Models that are averaged with the network, one after the other: ``"trees"``, ``"linear"``.
    plan : EvalPlan
        Names of the sets, and metrics.
    group : SingleProcess or ProcessGroup
        Workers of the training, each with a part of every set.
    seed : int
        Seed of the sample of a set with more than `MAX_ROWS` rows.

    Raises
    ------
    ValueError
        If a metric that the user passed is not finite on the rows of a set.
    """

    def __init__(self, network, head, sets, others, plan, group, seed):
        self.head = head
        self.plan = plan
        self.group = group
        self.others = others
        # Outputs of two towers have a column for each item of a batch, so that storing them costs.
        keep_outputs = bool(others) or bool(plan.metrics)
        self.sets = [EvalSet(network, rows, others, keep_outputs, seed) for rows in sets]
        if plan.metrics:
            self._check_metrics()

    def _check_metrics(self):
        """Raise ``ValueError`` for metrics that are not finite on the rows, before training."""
        generator = torch.Generator().manual_seed(0)
        for name, rows in zip(self.plan.names, self.sets, strict=True):
            shape = (len(rows.target), 1, self.head.out_features)
            outputs = torch.randn(shape, generator=generator).to(rows.target.device)
            with warnings.catch_warnings():
                # Random outputs cause warnings, such as that a class is never predicted.
                warnings.simplefilter("ignore")
                scores = dict(self._scores(outputs, rows))
            for metric in self.plan.metrics:
                if metric.entry is not None and not np.isfinite(scores[metric.name]):
                    raise ValueError(
                        f"eval_metric {metric.name!r} is {scores[metric.name]} on the "
                        f"{len(rows.target)} rows of {name!r}: they may hold a single class or no "
                        "known target. Choose another metric, give other rows in eval_set, or set "
                        "n_folds=None if a class has fewer rows than there are folds"
                    )

    @torch.no_grad()
    def evaluate(self, net):
        """Return the losses and metrics of all sets.

        Parameters
        ----------
        net : TensorNet
            Net whose network is in evaluation mode.

        Returns
        -------
        dict of {str: float}
            ``valid_loss``, ``valid_1_loss`` and so on: losses of the network alone on the scale of
            training. ``<set>_<metric>``: the loss of the whole model in units of the target, and
            metrics. With other models, ``blend_loss``, and for each ``<name>_share`` and
            ``<name>_temperature``.
        """
        results = {}
        blends = {
            name: Blend(model.share, model.temperature, float("nan"))
            for name, model in self.others.items()
        }
        for index, (name, rows) in enumerate(zip(self.plan.names, self.sets, strict=True)):
            deciding = index == 0 and self.plan.decides
            loss, unit_loss, outputs = rows.run(net, deciding)
            results["valid_loss" if deciding else f"valid_{index}_loss"] = loss
            for number, (other, other_outputs) in enumerate(rows.other_outputs.items(), start=1):
                if deciding and not self.others[other].is_final:
                    blends[other] = blend = fit_blend(
                        self.head,
                        outputs,
                        other_outputs,
                        rows.target,
                        rows.weight,
                        self.group,
                        calibrate=number == len(self.others),
                        few=self.others[other].few_rows,
                        prior=self.others[other].prior_share,
                    )
                    results["blend_loss"] = blend.loss
                    results[f"{other}_share"] = blend.share
                    results[f"{other}_temperature"] = blend.temperature
                outputs = blends[other].outputs(self.head, outputs, other_outputs)
            if deciding and self.others and "blend_loss" not in results:
                losses = self.head.loss(outputs, rows.target)[:, 0].double()
                results["blend_loss"] = self._mean((losses * rows.weight).sum(), rows.weight.sum())
            if self.others:
                losses = self.head.unit_loss(outputs, rows.target)[:, 0].double()
                unit_loss = self._mean((losses * rows.weight).sum(), rows.weight.sum())
            results[f"{name}_{self.head.metric}"] = unit_loss
            if self.plan.metrics:
                results |= {f"{name}_{key}": value for key, value in self._scores(outputs, rows)}
            if self.plan.ranking is not None:
                scores = self.plan.ranking.scores(name, net.module_, rows.rows)
                results |= {f"{name}_{key}": value for key, value in scores.items()}
        return results

    def _mean(self, total, weight):
        total, weight = self.group.sum([float(total), float(weight)])
        return total / weight

    def _scores(self, outputs, rows):
        """Return names and values of the metrics, computed from the rows of all workers."""
        arrays = [tensor.cpu().numpy() for tensor in (outputs[:, 0], rows.target, rows.weight)]
        by_worker = zip(*self.group.gather(arrays), strict=True)
        joined = [torch.from_numpy(np.concatenate(parts)) for parts in by_worker]
        return self.plan.scores(*joined).items()


class EvalSet:
    """Rows that a network is evaluated on, with the outputs of other models for them.

    Parameters
    ----------
    network : BlockNetwork
        Network whose blocks define the features of other models.
    rows : TrainingDataset
        Validation rows on the device of the network.
    others : dict of {str: TreesModule or LinearModule}
        Other models; their outputs are computed once.
    keep_outputs : bool
        Whether :meth:`run` returns the outputs of the network.
    seed : int
        Seed of the sample of more than `MAX_ROWS` rows.

    Attributes
    ----------
    target : torch.Tensor of shape (n_rows, ...)
        Targets of the rows whose outputs are returned: all rows, or a sample.
    weight : torch.Tensor of float64, shape (n_rows,)
        Weights of the same rows.
    other_outputs : dict of {str: torch.Tensor of shape (n_rows, 1, out_features)}
        Outputs of each other model for the same rows.
    """

    def __init__(self, network, rows, others, keep_outputs, seed):
        self.rows = rows
        self.keep_outputs = keep_outputs
        self.other_outputs = {}
        if not keep_outputs:
            return
        fraction = MAX_ROWS / max(len(rows), 1)
        random = np.random.RandomState(seed)
        self._samples, targets, weights = [], [], []
        outputs = {name: [] for name in others}
        others = {name: model.to(rows_device(rows)) for name, model in others.items()}
        with torch.no_grad():
            for part in rows.parts():
                sample = None
                if fraction < 1:
                    size = int(np.ceil(fraction * len(part)))
                    sample = np.sort(random.choice(len(part), size, replace=False))
                    sample = torch.from_numpy(sample).to(part.weight.device)
                    part = part.take(sample)
                self._samples.append(sample)
                targets.append(part.target)
                weights.append(part.weight.double())
                for batch in BatchIterator(part, eval_batch_size(part)):
                    for name, model in others.items():
                        outputs[name].append(network.other_outputs(name, model, batch.frame))
        self.target, self.weight = torch.cat(targets), torch.cat(weights)
        self.other_outputs = {name: torch.cat(batches) for name, batches in outputs.items()}

    def run(self, net, deciding):
        """Evaluate the network.

        Parameters
        ----------
        net : TensorNet
            Net with the network, the head and the group of workers.
        deciding : bool
            Whether callbacks are notified of the batches.

        Returns
        -------
        loss, unit_loss : float
            Mean loss over all rows, on the scale of training and in units of the target.
        outputs : torch.Tensor of shape (n_rows, 1, out_features), or None
            Outputs, averaged over members, of the rows of `target`; None without `keep_outputs`.
        """
        head, all_outputs = net.head, []
        sums = 0.0
        for number, part in enumerate(self.rows.parts()):
            outputs_of_part = []
            for batch in BatchIterator(part, eval_batch_size(part, head.in_batch)):
                outputs = head.average_members(net.infer(batch.frame).float())
                losses = head.loss(outputs, batch.target)[:, 0]
                units = losses
                if head.scale is not None:
                    units = head.unit_loss(outputs, batch.target)[:, 0]
                weight = batch.weight.double()
                weighted = [(values.double() * weight).sum() for values in (losses, units)]
                # Read once for all batches: reading waits for the device.
                sums = sums + torch.stack([*weighted, weight.sum()])
                if self.keep_outputs:
                    outputs_of_part.append(outputs)
                if deciding:
                    step = {"loss": losses.mean(), "y_pred": outputs}
                    net.notify("on_batch_end", batch=batch, training=False, **step)
            if self.keep_outputs:
                outputs_of_part = torch.cat(outputs_of_part)
                sample = self._samples[number]
                all_outputs.append(outputs_of_part if sample is None else outputs_of_part[sample])
        loss, units, weight = net.group.sum(sums.tolist())
        outputs = torch.cat(all_outputs) if self.keep_outputs else None
        return loss / weight, units / weight, outputs


def rows_device(rows):
    """Return the device that encoded rows are on."""
    return next(iter(rows.parts())).weight.device
