"""Several targets of different kinds, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from sklearn.base import is_classifier

from sk_easytensor.data.sources import is_source
from sk_easytensor.data.tables import as_table
from sk_easytensor.data.validation import errors_name
from sk_easytensor.estimators.targets.base import Target
from sk_easytensor.estimators.targets.checks import check_labels
from sk_easytensor.estimators.targets.classification import ClassificationTarget
from sk_easytensor.estimators.targets.regression import RegressionTarget
from sk_easytensor.losses import loss_names, resolve_loss
from sk_easytensor.metrics import Metric, resolve_metrics, resolve_stopping_metric
from sk_easytensor.networks.heads import MultiTaskHead
from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.dataset import EncodedDataset
from sk_easytensor.training.table_dataset import without_decimals

__all__ = [
    "CLASSES",
    "NUMBERS",
    "MultiTaskTarget",
]


CLASSES = ("binary", "multiclass")
NUMBERS = {
    "regression": "squared_error",
    **{loss: loss for loss in loss_names("regressor") if loss not in ("quantile", "expectile")},
}
"""Kinds of tasks that are numbers, and their losses."""


class MultiTaskTarget(Target):
    """Several targets, each of which is a target of its own; any may be missing in some rows.

    Checked targets are a structured array: for each task its values, and which are missing.
    Encoded ones are a matrix with a column for each task, and NaN where it is missing.

    Parameters
    ----------
    tasks : dict of {str: str}
        Columns of `y` and their kinds, as of :class:`~sk_easytensor.EasyTensorMultiTask`.
    loss_weights : dict of {str: float} or None, default=None
        What the loss of each task is multiplied by; 1 for those that are not named.
    owner : str, default="EasyTensorMultiTask"
        Class name of the estimator, for errors.

    Attributes
    ----------
    parts_ : dict of {str: Target}
        The target of each task.
    """

    def __init__(self, tasks, loss_weights=None, owner="EasyTensorMultiTask"):
        super().__init__(owner)
        self.tasks = tasks
        self.loss_weights = loss_weights

    def make_parts(self):
        """Return a new target for each task, by its name."""
        return {name: self._make_part(kind) for name, kind in self.tasks.items()}

    def _make_part(self, kind):
        if kind in CLASSES:
            loss = resolve_loss("log_loss", self.owner, "classifier")
            return ClassificationTarget(loss, owner=self.owner)
        return RegressionTarget(resolve_loss(NUMBERS[kind], self.owner, "regressor"), self.owner)

    # ------------------------------------------------------------------ targets as they are given

    def column_order(self, X, y):
        if not is_source(X) or not isinstance(y, (list, tuple)):
            return y
        if set(y) != set(self.tasks):
            raise ValueError(f"y names the columns {list(y)}, but tasks are {list(self.tasks)}")
        return list(self.tasks)

    def check(self, y):
        names, parts = list(self.tasks), self.make_parts()
        fields, columns = [], []
        for index, (name, column) in enumerate(zip(names, target_columns(y, names), strict=True)):
            missing = pd.isna(column).to_numpy()
            known = column[~missing]
            with errors_name(f"y[{name!r}]"):
                if self.tasks[name] in CLASSES:
                    check_labels(known)
                values = parts[name].check(known.infer_objects()) if len(known) else known
            values = np.asarray(values)
            kind = object if values.dtype.kind in "OSU" else values.dtype
            filled = np.empty(len(column), dtype=kind)
            filled[~missing] = values
            if missing.any() and len(values):
                filled[missing] = values[0]
            fields += [(f"value{index}", kind), (f"missing{index}", bool)]
            columns += [filled, missing]
        found = np.empty(len(columns[0]), dtype=fields)
        for (field, _), column in zip(fields, columns, strict=True):
            found[field] = column
        return found

    def sample(self, y):
        return {
            name: part.sample(known_values(y, index))
            for index, (name, part) in enumerate(self.make_parts().items())
        }

    def join_samples(self, samples):
        return {name: np.concatenate([each[name] for each in samples]) for name in self.tasks}

    def fit(self, sample):
        self.parts_ = self.make_parts()
        for name, part in self.parts_.items():
            if not len(sample[name]):
                raise ValueError(f"y[{name!r}] has no value in the rows of positive sample_weight")
            with errors_name(f"y[{name!r}]"):
                part.fit(sample[name])
            if self.tasks[name] == "binary" and len(part.classes_) > 2:
                raise ValueError(
                    f"y[{name!r}] has {len(part.classes_)} classes, but tasks[{name!r}] is "
                    "'binary'; use 'multiclass'"
                )
        weights = {} if self.loss_weights is None else self.loss_weights
        heads = [part.head_ for part in self.parts_.values()]
        self.head_ = MultiTaskHead(heads, [float(weights.get(name, 1.0)) for name in self.tasks])
        return self

    def resume(self, fitted):
        super().resume(fitted)
        self.parts_ = {name: copy(part) for name, part in self.parts_.items()}
        return self

    def check_known(self, sample):
        for name, part in self.parts_.items():
            if len(sample[name]):
                part.encode(sample[name])

    def fitted_attributes(self):
        parts = {name: part for name, part in self.parts_.items() if is_classifier(part)}
        return {"classes_": {name: part.classes_ for name, part in parts.items()}}

    def summary(self, y):
        return None

    def encode(self, y):
        columns = []
        for index, (name, part) in enumerate(self.parts_.items()):
            column = torch.full((len(y),), torch.nan, dtype=torch.float64)
            known = ~y[f"missing{index}"]
            if known.any():
                with errors_name(f"y[{name!r}]"):
                    encoded = part.encode(y[f"value{index}"][known])
                column[torch.from_numpy(known)] = encoded.double().reshape(-1)
            columns.append(column)
        return torch.stack(columns, dim=1)

    # ------------------------------------------------------------------ encoded targets

    def strata(self, target):
        # Validation rows know as many targets as training rows, of all classes of the first.
        known = (~target.isnan()).numpy()
        strata = known @ (1 << np.arange(known.shape[1]))
        for index, part in enumerate(self.parts_.values()):
            if is_classifier(part):
                codes = target[:, index].nan_to_num(-1).numpy().astype(np.int64) + 1
                return strata * (len(part.classes_) + 1) + codes
        return strata

    def learn_scale(self, rows, *, resuming=False, offset=None):
        if not resuming:
            totals = sum(rows.map_chunks(known_weights))
            # Each loss is a mean over the rows of which its task is known.
            shares = (totals[:-1] / totals[-1]).tolist()
            pairs = zip(self.head_.weights, shares, strict=True)
            self.head_.weights = [weight / max(share, 1e-9) for weight, share in pairs]
        for index, part in enumerate(self.parts_.values()):
            part.learn_scale(rows.map(partial(task_rows, index=index)), resuming=resuming)

    def scale(self, target):
        columns = target.split(1, dim=1)
        pairs = zip(self.parts_.values(), columns, strict=True)
        return torch.cat([part.scale(column).float() for part, column in pairs], dim=1)

    # ------------------------------------------------------------------ evaluation

    def metrics(self, eval_metric, stopping_metric):
        given = {} if eval_metric is None else eval_metric
        if not isinstance(given, Mapping) or set(given) - set(self.tasks):
            raise ValueError(
                f"{self.owner}: eval_metric must be a dictionary of metrics of tasks "
                f"({list(self.tasks)}), got {given!r}"
            )
        parts = self.make_parts()
        metrics = [
            Metric(f"{name}_{own.name}", OfTask(name, own), own.greater_is_better, own.entry)
            for name, entries in given.items()
            for own in resolve_metrics(entries, parts[name])
        ]
        stopping = resolve_stopping_metric(stopping_metric, metrics, "loss", self.owner)
        known = {metric.name for metric in metrics}
        losses = [
            Metric(f"{name}_{part.loss.name}", OfTask(name, None), False)
            for name, part in parts.items()
        ]
        return [loss for loss in losses if loss.name not in known] + metrics, stopping

    def numbered(self):
        other = copy(self)
        other.parts_ = {name: part.numbered() for name, part in self.parts_.items()}
        return other

    def validation_measures(self, outputs, target, weight):
        found = {}
        for name, part, task in self.split(target):
            known = task.present > 0
            if known.any():
                own = part.validation_measures(
                    outputs[known][:, task.outputs], task.target[known], weight[known]
                )
                found |= {f"{name}: {key}": value for key, value in own["measures"].items()}
        return {"measures": found, "residuals": []}

    def tree_weight(self, trees):
        share = 1.0 if trees is None else trees.share
        shares = share if isinstance(share, list) else [share] * self.head_.out_features
        columns = zip(self.tasks, self.head_.columns(), strict=True)
        return {name: 1.0 - shares[own.start] for name, own in columns}

    def split(self, target):
        """Return name, target and :class:`~sk_easytensor.networks.heads.Task` of each task."""
        tasks = self.head_.tasks(target)
        return [(*pair, task) for pair, task in zip(self.parts_.items(), tasks, strict=True)]

    # ------------------------------------------------------------------ predictions

    def split_outputs(self, outputs):
        """Return name, target and raw outputs of each task."""
        columns = zip(self.parts_.items(), self.head_.columns(), strict=True)
        return [(name, part, outputs[:, own]) for (name, part), own in columns]

    def predict(self, outputs):
        """Return predictions, a data frame with a column for each task."""
        return pd.DataFrame(
            {name: part.predict(own) for name, part, own in self.split_outputs(outputs)}
        )

    def predict_proba(self, outputs):
        """Return the probabilities of each task that has classes, by its name."""
        return {
            name: part.predict_proba(own)
            for name, part, own in self.split_outputs(outputs)
            if is_classifier(part)
        }

    def score(self, outputs, y, sample_weight=None):
        """Return the mean over the tasks of accuracy and R²; see ``EasyTensorMultiTask.score``."""
        y = self.check(y)
        weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight)
        scores = []
        for index, (name, part, own) in enumerate(self.split_outputs(outputs)):
            known = ~y[f"missing{index}"]
            if not known.any():
                raise ValueError(f"y[{name!r}] has no value, so that it has no score")
            scores.append(part.score(own[known], known_values(y, index), weight[known]))
        return float(np.mean(scores))


@dataclass
class OfTask:
    """A metric of one task, on the rows of which the task is known.

    Attributes
    ----------
    task : str
        Its name.
    metric : Metric or None
        None for the loss of the task, in its units.
    """

    task: str
    metric: Metric | None

    def __call__(self, target, outputs, y, weight):
        """Return the metric; see :class:`~sk_easytensor.metrics.Metric`."""
        parts = {name: (part, task) for name, part, task in target.split(torch.from_numpy(y))}
        part, task = parts[self.task]
        known = task.present > 0
        outputs, actual = outputs[known][:, task.outputs], task.target[known]
        weight = None if weight is None else weight[known.numpy()]
        if self.metric is not None:
            found = self.metric.function(part, outputs, part.decode(actual), weight)
            # A function may tell its name and direction with the value.
            return (f"{self.task}_{found[0]}", *found[1:]) if isinstance(found, tuple) else found
        if not known.any() or (weight is not None and not weight.any()):
            return np.nan
        losses = part.head_.unit_loss(outputs[:, None], actual)[:, 0]
        return np.average(losses.double().numpy(), weights=weight)


def target_columns(y, names):
    """Return the targets of the tasks as series, in their order.

    Parameters
    ----------
    y : data frame, mapping of columns, or array of shape (n_samples, n_tasks)
        The columns of a frame or mapping are found by name, those of an array by position.
    names : list of str
        Of the tasks.
    """
    if isinstance(y, pd.DataFrame):
        found = {str(label): y[label] for label in y.columns}
    elif isinstance(y, Mapping):
        found = {name: target_series(values, name) for name, values in y.items()}
    elif hasattr(y, "__arrow_c_stream__") or isinstance(y, pa.Table):
        table = as_table(y)
        columns = zip(table.column_names, table.columns, strict=True)
        found = {name: without_decimals(column).to_pandas() for name, column in columns}
    else:
        array = np.asarray(y)
        if array.dtype.names is None and (array.ndim != 2 or array.shape[1] != len(names)):
            raise ValueError(
                f"y must have a column for each of the tasks {names}, got shape {array.shape}"
            )
        if array.dtype.names is not None:
            raise ValueError(f"y must be a data frame or a matrix, got an array of {array.dtype}")
        found = {name: pd.Series(array[:, index]) for index, name in enumerate(names)}
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"y has no column {missing}, which tasks names; it has {list(found)}")
    lengths = {name: len(found[name]) for name in names}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"y has columns of different lengths: {lengths}")
    return [found[name].reset_index(drop=True) for name in names]


def target_series(values, name):
    """Return the values of a target as a series, or raise an error that names it."""
    with errors_name(f"y[{name!r}]"):
        if isinstance(values, (pa.Array, pa.ChunkedArray)):
            return values.to_pandas()
        if np.ndim(values) != 1:
            raise ValueError(f"it must have one dimension, got {np.ndim(values)}")
        return pd.Series(values)


def known_values(y, index):
    """Return the targets of a task that are not missing."""
    return y[f"value{index}"][~y[f"missing{index}"]]


def known_weights(rows):
    """Return the weight of the rows of which each task is known, and of all rows, as an array."""
    weight = rows.weight.double()
    known = (~rows.target.isnan()).double()
    return np.append((known * weight[:, None]).sum(0).numpy(), float(weight.sum()))


def task_rows(rows, index):
    """Return the rows of which a task is known, with its target and without features."""
    known = ~rows.target[:, index].isnan()
    target, weight = rows.target[known][:, [index]], rows.weight[known]
    return EncodedDataset(TensorFrame({}, len(target)), target, weight)
