"""Targets of several tasks of different kinds."""

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
"""Losses of tasks whose targets are numbers, by the kind of the task."""


class MultiTaskTarget(Target):
    """Target of several tasks, any of which may be missing in some rows.

    Each task has a :class:`Target` of its own. Checked targets are a structured array, with fields
    for the values of each task and for a mask of missing values. Encoded targets are a matrix with
    a column for each task, and NaN where it is missing.

    Parameters
    ----------
    tasks : dict of {str: str}
        Kind of each target by the name of its column in `y`, as in
        :class:`~sk_easytensor.EasyTensorMultiTask`.
    loss_weights : dict of {str: float} or None, default=None
        Factor of the loss of each task; 1 for tasks that are not named.
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
        """Return an unfitted target for each task, by its name."""
        return {name: self._make_part(kind) for name, kind in self.tasks.items()}

    def _make_part(self, kind):
        if kind in CLASSES:
            loss = resolve_loss("log_loss", self.owner, "classifier")
            return ClassificationTarget(loss, owner=self.owner)
        return RegressionTarget(resolve_loss(NUMBERS[kind], self.owner, "regressor"), self.owner)

    # ------------------------------------------------------------------ targets of the user

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
        checked = np.empty(len(columns[0]), dtype=fields)
        for (field, _), column in zip(fields, columns, strict=True):
            checked[field] = column
        return checked

    def sample(self, y):
        return {
            name: part.sample(known_values(y, index))
            for index, (name, part) in enumerate(self.make_parts().items())
        }

    def join_samples(self, samples):
        return {name: np.concatenate([sample[name] for sample in samples]) for name in self.tasks}

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
        # Strata are the sets of known targets, and the classes of the first task with classes.
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
            # The loss of a task is a mean over the rows in which the task is known.
            known = (totals[:-1] / totals[-1]).tolist()
            pairs = zip(self.head_.weights, known, strict=True)
            self.head_.weights = [weight / max(fraction, 1e-9) for weight, fraction in pairs]
        for index, part in enumerate(self.parts_.values()):
            part.learn_scale(rows.map(partial(task_rows, index=index)), resuming=resuming)

    def scale(self, target):
        columns = target.split(1, dim=1)
        pairs = zip(self.parts_.values(), columns, strict=True)
        return torch.cat([part.scale(column).float() for part, column in pairs], dim=1)

    # ------------------------------------------------------------------ evaluation

    def metrics(self, eval_metric, stopping_metric):
        by_task = {} if eval_metric is None else eval_metric
        if not isinstance(by_task, Mapping) or set(by_task) - set(self.tasks):
            raise ValueError(
                f"{self.owner}: eval_metric must be a dictionary of metrics of tasks "
                f"({list(self.tasks)}), got {by_task!r}"
            )
        parts = self.make_parts()
        metrics = [
            Metric(
                f"{name}_{metric.name}",
                TaskMetric(name, metric),
                metric.greater_is_better,
                metric.entry,
            )
            for name, entries in by_task.items()
            for metric in resolve_metrics(entries, parts[name])
        ]
        stopping = resolve_stopping_metric(stopping_metric, metrics, "loss", self.owner)
        names = {metric.name for metric in metrics}
        losses = [
            Metric(f"{name}_{part.loss.name}", TaskMetric(name, None), False)
            for name, part in parts.items()
        ]
        return [loss for loss in losses if loss.name not in names] + metrics, stopping

    def numbered(self):
        numbered = copy(self)
        numbered.parts_ = {name: part.numbered() for name, part in self.parts_.items()}
        return numbered

    def validation_measures(self, outputs, target, weight):
        measures = {}
        for name, part, task in self.split(target):
            known = task.present > 0
            if known.any():
                result = part.validation_measures(
                    outputs[known][:, task.outputs], task.target[known], weight[known]
                )
                measures |= {f"{name}: {key}": value for key, value in result["measures"].items()}
        return {"measures": measures, "residuals": []}

    def tree_weight(self, trees):
        share = 1.0 if trees is None else trees.share
        shares = share if isinstance(share, list) else [share] * self.head_.out_features
        columns = zip(self.tasks, self.head_.columns(), strict=True)
        return {name: 1.0 - shares[outputs.start] for name, outputs in columns}

    def model_weights(self, networks):
        trees = [self.tree_weight(network.trees) for network in networks]
        return {
            name: sum(weights[name] for weights in trees) / len(networks) for name in trees[0]
        }, 0.0

    def split(self, target):
        """Return name, target and :class:`~sk_easytensor.networks.heads.Task` of each task."""
        tasks = self.head_.tasks(target)
        return [(*pair, task) for pair, task in zip(self.parts_.items(), tasks, strict=True)]

    # ------------------------------------------------------------------ predictions

    def split_outputs(self, outputs):
        """Return name, target and raw outputs of each task."""
        columns = zip(self.parts_.items(), self.head_.columns(), strict=True)
        return [(name, part, outputs[:, selected]) for (name, part), selected in columns]

    def predict(self, outputs):
        """Return predictions, a data frame with a column for each task."""
        return pd.DataFrame(
            {name: part.predict(raw) for name, part, raw in self.split_outputs(outputs)}
        )

    def predict_proba(self, outputs):
        """Return the probabilities of each task that has classes, by its name."""
        return {
            name: part.predict_proba(raw)
            for name, part, raw in self.split_outputs(outputs)
            if is_classifier(part)
        }

    def score(self, outputs, y, sample_weight=None):
        """Return the mean over the tasks of accuracy and R²; see ``EasyTensorMultiTask.score``."""
        y = self.check(y)
        weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight)
        scores = []
        for index, (name, part, raw) in enumerate(self.split_outputs(outputs)):
            known = ~y[f"missing{index}"]
            if not known.any():
                raise ValueError(f"y[{name!r}] has no value, so that it has no score")
            scores.append(part.score(raw[known], known_values(y, index), weight[known]))
        return float(np.mean(scores))


@dataclass
class TaskMetric:
    """A metric of one task, on the rows in which the task is known.

    Attributes
    ----------
    task : str
        Name of the task.
    metric : Metric or None
        Metric of the task; None for its loss, in units of the target.
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
            value = self.metric.function(part, outputs, part.decode(actual), weight)
            # A function may return its name and direction with the value.
            return (f"{self.task}_{value[0]}", *value[1:]) if isinstance(value, tuple) else value
        if not known.any() or (weight is not None and not weight.any()):
            return np.nan
        losses = part.head_.unit_loss(outputs[:, None], actual)[:, 0]
        return np.average(losses.double().numpy(), weights=weight)


def target_columns(y, names):
    """Return the targets of the tasks as pandas series, in the order of the tasks.

    Parameters
    ----------
    y : data frame, mapping of columns, or array of shape (n_samples, n_tasks)
        Targets. Columns of a data frame or mapping are selected by name, those of an array by
        position.
    names : list of str
        Names of the tasks.

    Returns
    -------
    list of pandas.Series

    Raises
    ------
    ValueError
        If a column is missing, if columns differ in length, or if an array has another shape.
    """
    if isinstance(y, pd.DataFrame):
        columns = {str(label): y[label] for label in y.columns}
    elif isinstance(y, Mapping):
        columns = {name: target_series(values, name) for name, values in y.items()}
    elif hasattr(y, "__arrow_c_stream__") or isinstance(y, pa.Table):
        table = as_table(y)
        pairs = zip(table.column_names, table.columns, strict=True)
        columns = {name: without_decimals(column).to_pandas() for name, column in pairs}
    else:
        array = np.asarray(y)
        if array.dtype.names is None and (array.ndim != 2 or array.shape[1] != len(names)):
            raise ValueError(
                f"y must have a column for each of the tasks {names}, got shape {array.shape}"
            )
        if array.dtype.names is not None:
            raise ValueError(f"y must be a data frame or a matrix, got an array of {array.dtype}")
        columns = {name: pd.Series(array[:, index]) for index, name in enumerate(names)}
    missing = [name for name in names if name not in columns]
    if missing:
        raise ValueError(f"y has no column {missing}, which tasks names; it has {list(columns)}")
    lengths = {name: len(columns[name]) for name in names}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"y has columns of different lengths: {lengths}")
    return [columns[name].reset_index(drop=True) for name in names]


def target_series(values, name):
    """Return the values of a target as a pandas series; errors name the target."""
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
    """Return the total weight of the rows in which each task is known, and of all rows.

    Returns
    -------
    ndarray of float64, shape (n_tasks + 1,)
    """
    weight = rows.weight.double()
    known = (~rows.target.isnan()).double()
    return np.append((known * weight[:, None]).sum(0).numpy(), float(weight.sum()))


def task_rows(rows, index):
    """Return the rows in which a task is known, with its target alone and without features."""
    known = ~rows.target[:, index].isnan()
    target, weight = rows.target[known][:, [index]], rows.weight[known]
    return EncodedDataset(TensorFrame({}, len(target)), target, weight)
