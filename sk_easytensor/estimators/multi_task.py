"""Several targets of different kinds, learned by one model."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from sklearn.metrics import accuracy_score, r2_score

from sk_easytensor._utils.docstrings import documented_like
from sk_easytensor._utils.runtime import with_library_settings
from sk_easytensor._utils.validation import check_number
from sk_easytensor.data.tables import as_table, is_source
from sk_easytensor.data.validation import errors_name
from sk_easytensor.estimators.base import BaseEasyTensor
from sk_easytensor.estimators.classifier import EasyTensorClassifier
from sk_easytensor.estimators.inputs import check_labels
from sk_easytensor.estimators.regressor import EasyTensorRegressor
from sk_easytensor.estimators.rows import bounded_targets
from sk_easytensor.estimators.stored import TaskValues, of_stored_rows
from sk_easytensor.export.adapters import MultiTaskAdapter
from sk_easytensor.inspection import GivenOutputs
from sk_easytensor.losses import loss_names
from sk_easytensor.metrics import Metric, MetricScores, resolve_metrics, resolve_stopping_metric
from sk_easytensor.networks.heads import MultiTaskHead
from sk_easytensor.report.report import summarize_table
from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.dataset import EncodedDataset, without_decimals

__all__ = [
    "EasyTensorMultiTask",
]


LARGEST_WEIGHT = 10**15
"""Of a loss: its products with losses are finite in single precision."""

CLASSES = ("binary", "multiclass")
NUMBERS = {
    "regression": "squared_error",
    **{loss: loss for loss in loss_names("regressor") if loss not in ("quantile", "expectile")},
}
"""Kinds of tasks that are numbers, and their losses."""


@documented_like(EasyTensorClassifier)
class EasyTensorMultiTask(BaseEasyTensor):
    """One model for several targets of different kinds, such as a click and a rating.

    Blocks and trunk are shared; each task has a head, a loss and trees of its own. What one target
    says of the rows helps to learn the others, above all those that few rows have.

    Parameters
    ----------
    tasks : dict of {str: str}, default=None
        The targets, which are columns of `y`, and their kinds: ``"binary"``, ``"multiclass"``,
        ``"regression"``, or a loss of :class:`EasyTensorRegressor` such as ``"poisson"`` or
        ``"gamma"``.
    blocks
        As in :class:`EasyTensorClassifier`.
    loss_weights : dict of {str: float} or None, default=None
        What the loss of each task is multiplied by; 1 for those that are not named. Losses are
        means over the rows of which the task is known, of standardised targets for numbers, so
        that equal weights are of use in most cases.
    remainder, categorical_features, trunk, trees, learning_rate, batch_size, max_epochs
        As in :class:`EasyTensorClassifier`.
    optimizer, weight_decay, early_stopping_rounds
        As in :class:`EasyTensorClassifier`.
    eval_metric : dict of {str: str, callable or list} or None, default=None
        Metrics of tasks, as in :class:`EasyTensorClassifier`. They are named by the task as well:
        ``{"clicked": "auc"}`` is ``"clicked_auc"`` in ``evals_result_``.
    stopping_metric : str or None, default=None
        The metric that decides about early stopping, such as ``"clicked_auc"``, or ``"loss"``. None
        for the first of `eval_metric`, and for the weighted sum of the losses without any.
    validation_fraction, warm_start, random_state, n_jobs, device
        As in :class:`EasyTensorClassifier`.
    verbose, callbacks, backend, checkpoint_dir, tracker, inference_engine
        As in :class:`EasyTensorClassifier`.

    Attributes
    ----------
    classes_ : dict of {str: ndarray}
        Class labels of each task that has classes.
    evals_result_ : dict of {str: dict of {str: list of float}}
        Losses and metrics by epoch, of network and trees together: the weighted sum of the losses
        as ``"loss"``, and the loss of each task in its units, such as ``"clicked_log_loss"``.
    tree_weight_ : dict of {str: float}
        Weight of the trees, for each task.
    n_features_in_, feature_names_in_, blocks_, network_, best_iteration_, best_score_, n_iter_
        As in :class:`EasyTensorClassifier`.
    fit_times_, feature_importances_, inference_engine_, inference_report_
        As in :class:`EasyTensorClassifier`.

    See Also
    --------
    EasyTensorClassifier : Several yes/no labels are a multilabel target.
    EasyTensorRegressor : Several numbers under one loss.

    Notes
    -----
    A target may be missing in some rows (NaN or None): these do not count for the task. The idea is
    that of Caruana, "Multitask Learning" (1997).

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> from sk_easytensor import EasyTensorMultiTask
    >>> X = np.linspace(0, 1, 200)[:, None]
    >>> y = pd.DataFrame({"clicked": X[:, 0] > 0.5, "amount": 10 * X[:, 0] + 1})
    >>> tasks = {"clicked": "binary", "amount": "gamma"}
    >>> model = EasyTensorMultiTask(tasks, random_state=0).fit(X, y)
    >>> model.predict([[0.9]])["clicked"].tolist()
    [True]
    >>> model.predict_proba([[0.9]])["clicked"].shape
    (1, 2)
    """

    _export_adapter = MultiTaskAdapter

    def __init__(
        self,
        tasks=None,
        blocks=None,
        *,
        loss_weights=None,
        remainder="auto",
        categorical_features=None,
        trunk=None,
        trees="auto",
        learning_rate=2.4e-2,
        batch_size=None,
        max_epochs=None,
        optimizer="adamw",
        weight_decay=5e-2,
        early_stopping_rounds="auto",
        eval_metric=None,
        stopping_metric=None,
        validation_fraction=0.15,
        warm_start=False,
        random_state=None,
        n_jobs=None,
        device="auto",
        verbose=0,
        callbacks=None,
        backend="local",
        checkpoint_dir=None,
        tracker=None,
        inference_engine="torch",
    ):
        super().__init__(
            blocks,
            remainder=remainder,
            categorical_features=categorical_features,
            trunk=trunk,
            trees=trees,
            learning_rate=learning_rate,
            batch_size=batch_size,
            max_epochs=max_epochs,
            optimizer=optimizer,
            weight_decay=weight_decay,
            early_stopping_rounds=early_stopping_rounds,
            eval_metric=eval_metric,
            stopping_metric=stopping_metric,
            validation_fraction=validation_fraction,
            warm_start=warm_start,
            random_state=random_state,
            n_jobs=n_jobs,
            device=device,
            verbose=verbose,
            callbacks=callbacks,
            backend=backend,
            checkpoint_dir=checkpoint_dir,
            tracker=tracker,
            inference_engine=inference_engine,
        )
        self.tasks = tasks
        self.loss_weights = loss_weights

    # ------------------------------------------------------------------ parameters

    def _structure(self):
        weights = None if self.loss_weights is None else dict(self.loss_weights)
        return {**super()._structure(), "tasks": repr(self.tasks), "loss_weights": repr(weights)}

    def _check_parameters(self):
        owner = type(self).__name__
        kinds = [*CLASSES, *NUMBERS]
        if not isinstance(self.tasks, Mapping) or not self.tasks:
            raise ValueError(
                f"{owner}: tasks must be a dictionary of columns of y and their kinds, such as "
                f"{{'clicked': 'binary', 'amount': 'gamma'}}, got {self.tasks!r}"
            )
        for name, kind in self.tasks.items():
            if not isinstance(name, str) or kind not in kinds:
                raise ValueError(
                    f"{owner}: tasks[{name!r}] must be one of {kinds}, and its name a string, got "
                    f"{kind!r}"
                )
        weights = {} if self.loss_weights is None else self.loss_weights
        if not isinstance(weights, Mapping) or set(weights) - set(self.tasks):
            raise ValueError(
                f"{owner}: loss_weights must be a dictionary of weights of tasks "
                f"({list(self.tasks)}), got {weights!r}"
            )
        for name, weight in weights.items():
            where = f"loss_weights[{name!r}]"
            check_number(owner, where, weight, low=0, high=LARGEST_WEIGHT, exclusive=True)
        super()._check_parameters()

    def _check_loss(self):
        """Tasks have losses, by the names of their kinds."""

    def _check_metrics(self):
        metrics = self._task_metrics()
        names = [metric.name for metric in metrics]
        if self.stopping_metric is not None and self.stopping_metric not in names:
            resolve_stopping_metric(self.stopping_metric, metrics, "loss", type(self).__name__)

    def _task_metrics(self):
        """Return the metrics that the user named, of each task."""
        given = {} if self.eval_metric is None else self.eval_metric
        if not isinstance(given, Mapping) or set(given) - set(self.tasks):
            raise ValueError(
                f"{type(self).__name__}: eval_metric must be a dictionary of metrics of tasks "
                f"({list(self.tasks)}), got {given!r}"
            )
        parts = make_parts(self.tasks)
        return [
            Metric(f"{name}_{own.name}", OfTask(name, own), own.greater_is_better, own.given)
            for name, metrics in given.items()
            for own in resolve_metrics(metrics, parts[name])
        ]

    def _metrics(self):
        losses = [
            Metric(f"{name}_{part._head.metric}", OfTask(name, None), False)
            for name, part in self._parts.items()
        ]
        metrics = self._task_metrics()
        known = {metric.name for metric in metrics}
        everything = [loss for loss in losses if loss.name not in known] + metrics
        stopping = resolve_stopping_metric(
            self.stopping_metric or (metrics[0].name if metrics else "loss"),
            everything,
            "loss",
            type(self).__name__,
        )
        return everything, MetricScores(self._numbered(), everything), stopping

    def _numbered(self):
        """Return a copy whose classes are 0, 1, 2 and so on, for metrics."""
        numbered = self._bare()
        numbered._parts = {name: copy(part) for name, part in self._parts.items()}
        for part in numbered._parts.values():
            if hasattr(part, "classes_"):
                part.classes_ = np.arange(len(part.classes_))
        del numbered.classes_
        return numbered

    # ------------------------------------------------------------------ target

    def _training_records(self, X, y, sample_weight, base_margin, backend, resuming):
        y = self._column_order(X, y)
        return super()._training_records(X, y, sample_weight, base_margin, backend, resuming)

    def _eval_records(self, where, X_eval, y_eval, *rest):
        return super()._eval_records(where, X_eval, self._column_order(X_eval, y_eval), *rest)

    def _column_order(self, X, y):
        """Return names of columns of a stored table in the order of the tasks."""
        if not is_source(X) or not isinstance(y, (list, tuple)):
            return y
        if set(y) != set(self.tasks):
            raise ValueError(f"y names the columns {list(y)}, but tasks are {list(self.tasks)}")
        return list(self.tasks)

    def _check_target(self, y):
        """Return a structured array: for each task its values, and which are missing."""
        names = list(self.tasks)
        fields, columns = [], []
        for index, (name, column) in enumerate(zip(names, target_columns(y, names), strict=True)):
            missing = pd.isna(column).to_numpy()
            known = column[~missing]
            part = make_parts({name: self.tasks[name]})[name]
            with errors_name(f"y[{name!r}]"):
                if self.tasks[name] in CLASSES:
                    check_labels(known)
                values = part._check_target(known.infer_objects()) if len(known) else known
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

    def _target_sample(self, y):
        parts = make_parts(self.tasks)
        return {
            name: part._target_sample(known_values(y, index))
            for index, (name, part) in enumerate(parts.items())
        }

    def _distinct_targets(self, records):
        found = records.map_chunks(self._bare()._target_sample)
        return {name: np.concatenate([each[name] for each in found]) for name in self.tasks}

    def _fit_target(self, y, classes=None):
        if classes is not None:
            raise ValueError(f"{type(self).__name__}: partial_fit takes no classes")
        self._parts = make_parts(self.tasks)
        self.classes_ = {}
        for name, part in self._parts.items():
            if not len(y[name]):
                raise ValueError(f"y[{name!r}] has no value in the rows of positive sample_weight")
            with errors_name(f"y[{name!r}]"):
                part._head = part._fit_target(y[name])
            if hasattr(part, "classes_"):
                self.classes_[name] = part.classes_
                if self.tasks[name] == "binary" and len(part.classes_) > 2:
                    raise ValueError(
                        f"y[{name!r}] has {len(part.classes_)} classes, but tasks[{name!r}] is "
                        "'binary'; use 'multiclass'"
                    )
        weights = {} if self.loss_weights is None else self.loss_weights
        heads = [part._head for part in self._parts.values()]
        return MultiTaskHead(heads, [float(weights.get(name, 1.0)) for name in self.tasks])

    def _check_known(self, distinct):
        for name, part in self._parts.items():
            if len(distinct[name]):
                part._encode_target(distinct[name])

    def _encode_target(self, y):
        columns = []
        for index, (name, part) in enumerate(self._parts.items()):
            column = torch.full((len(y),), torch.nan, dtype=torch.float64)
            known = ~y[f"missing{index}"]
            if known.any():
                with errors_name(f"y[{name!r}]"):
                    encoded = part._encode_target(y[f"value{index}"][known])
                column[torch.from_numpy(known)] = encoded.double().reshape(-1)
            columns.append(column)
        return torch.stack(columns, dim=1)

    def _strata(self, target):
        # Validation rows know as many targets as training rows, of all classes of the first.
        known = (~target.isnan()).numpy()
        strata = known @ (1 << np.arange(known.shape[1]))
        for index, part in enumerate(self._parts.values()):
            if hasattr(part, "classes_"):
                codes = target[:, index].nan_to_num(-1).numpy().astype(np.int64) + 1
                return strata * (len(part.classes_) + 1) + codes
        return strata

    def _scale_target(self, rows, resuming):
        # Those of an earlier fit stay what they are, should this one fail.
        self._parts = {name: copy(part) for name, part in self._parts.items()}
        totals = sum(rows.map_chunks(known_weights))
        if not resuming:
            # Each loss is a mean over the rows of which its task is known.
            shares = (totals[:-1] / totals[-1]).tolist()
            pairs = zip(self._head.weights, shares, strict=True)
            self._head.weights = [weight / max(share, 1e-9) for weight, share in pairs]
        for index, part in enumerate(self._parts.values()):
            if not hasattr(part, "classes_"):
                part._scale_target(rows.map(partial(task_rows, index=index)), resuming)

    def _scaled(self, rows):
        columns = []
        for index, part in enumerate(self._parts.values()):
            column = rows.target[:, index]
            if not hasattr(part, "classes_"):
                column = (column - part._target_center[0]) / part._target_scale[0]
            columns.append(bounded_targets(column))
        return EncodedDataset(rows.frame, torch.stack(columns, dim=1), rows.weight)

    def _trees_share(self, trees):
        share = 1.0 if trees is None else trees.share
        shares = share if isinstance(share, list) else [share] * self._head.out_features
        columns = zip(self.tasks, self._head.columns(), strict=True)
        return {name: 1.0 - shares[own.start] for name, own in columns}

    def _summarize_data(self, records):
        self._data_summary = summarize_table(records.sample().table)

    def _validation_measures(self, outputs, target, weight):
        found = {"measures": {}, "residuals": []}
        for name, part, task in self._tasks_of(target):
            known = task.present > 0
            if not known.any():
                continue
            own = part._validation_measures(
                outputs[known][:, task.outputs], task.target[known], weight[known]
            )
            found["measures"] |= {f"{name}: {key}": v for key, v in own["measures"].items()}
        return found

    def _tasks_of(self, target):
        tasks = self._head.tasks(target)
        return [(*pair, task) for pair, task in zip(self._parts.items(), tasks, strict=True)]

    # ------------------------------------------------------------------ predicting

    def _by_task(self, X):
        """Return what takes the place of a table for each task, by the task's name."""
        outputs = self._raw_predict(X)
        columns = zip(self._parts.items(), self._head.columns(), strict=True)
        return [(name, part, GivenOutputs(outputs[:, own])) for (name, part), own in columns]

    @with_library_settings
    @of_stored_rows(TaskValues("prediction"), check="_read")
    def predict(self, X):
        """Return predictions of all tasks.

        Parameters
        ----------
        X : table-like of shape (n_samples, n_features)
            Rows to predict.

        Returns
        -------
        pandas.DataFrame of shape (n_samples, n_tasks)
            A column for each task: labels, or numbers in their units.
        """
        return pd.DataFrame({name: part.predict(given) for name, part, given in self._by_task(X)})

    @with_library_settings
    def predict_proba(self, X):
        """Return probabilities of the classes of the tasks that have classes.

        Parameters
        ----------
        X : table-like of shape (n_samples, n_features)
            Rows to classify.

        Returns
        -------
        dict of {str: ndarray of float64, shape (n_samples, n_classes)}
            In the order of ``classes_[task]``.
        """
        return {
            name: part.predict_proba(given)
            for name, part, given in self._by_task(X)
            if hasattr(part, "classes_")
        }

    def score(self, X, y, sample_weight=None):
        """Return the mean score over the tasks: accuracy for classes, R² for numbers.

        Parameters
        ----------
        X : table-like of shape (n_samples, n_features)
            Rows.
        y : DataFrame, dict or array-like of shape (n_samples, n_tasks)
            Targets; rows of which a task is missing do not count for it.
        sample_weight : array-like of shape (n_samples,), optional
            Row weights.

        Returns
        -------
        float
        """
        predicted, y = self.predict(X), self._check_target(y)
        weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight)
        scores = []
        for index, (name, part) in enumerate(self._parts.items()):
            known = ~y[f"missing{index}"]
            if not known.any():
                raise ValueError(f"y[{name!r}] has no value, so that it has no score")
            function = accuracy_score if hasattr(part, "classes_") else r2_score
            actual = known_values(y, index)
            scores.append(
                function(actual, predicted[name].to_numpy()[known], sample_weight=weight[known])
            )
        return float(np.mean(scores))

    def _raw_outputs(self, values, base):
        return values, base


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

    def __call__(self, estimator, outputs, y, weight):
        """Return the metric; see :class:`~sk_easytensor.metrics.Metric`."""
        for name, part, task in estimator._tasks_of(torch.from_numpy(y)):
            if name != self.task:
                continue
            known = task.present > 0
            outputs, target = outputs[known][:, task.outputs], task.target[known]
            weight = None if weight is None else weight[known.numpy()]
            if self.metric is not None:
                actual = part._decoded_target(target)
                found = self.metric.function(part, outputs, actual, weight)
                # A function may tell its name and direction with the value.
                return (
                    (f"{self.task}_{found[0]}", *found[1:]) if isinstance(found, tuple) else found
                )
            if not known.any() or (weight is not None and not weight.any()):
                return np.nan
            losses = part._head.unit_loss(outputs[:, None], target)[:, 0]
            return np.average(losses.double().numpy(), weights=weight)
        raise KeyError(self.task)


def make_parts(tasks):
    """Return what knows how each task is checked, encoded and decoded: an estimator for each."""
    return {
        name: EasyTensorClassifier() if kind in CLASSES else EasyTensorRegressor(loss=NUMBERS[kind])
        for name, kind in tasks.items()
    }


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
