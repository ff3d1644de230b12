"""The ``tracker`` parameter of estimators, and the decorator that records a ``fit`` in MLflow."""

from __future__ import annotations

import os
import sys
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING

from sk_easytensor._utils.masking import masked

if TYPE_CHECKING:
    from sk_easytensor._utils.typing import Method

__all__ = [
    "MLflowTracker",
    "check_tracker",
    "tracked",
    "with_active_run",
]


RUN = "_tracked_run"
"""Attribute of an estimator that holds the run during the fit."""


class MLflowTracker:
    """Record each fit as a run in MLflow.

    Parameters
    ----------
    tracking_uri : str or None, default=None
        Address of an MLflow server or database. None uses ``mlflow.set_tracking_uri`` or
        ``MLFLOW_TRACKING_URI``, and otherwise the SQLite database ``mlflow.db`` in the working
        directory. A password in the address is masked wherever the address is displayed. With
        ``MLFLOW_TRACKING_USERNAME`` and ``MLFLOW_TRACKING_PASSWORD``, the address needs none.
    experiment_name : str or None, default=None
        Name of the experiment that runs belong to, which is created if it does not exist. None
        uses the active experiment.
    run_name : str or None, default=None
        Name of each run. With None, MLflow makes one up.
    tags : dict of {str: str} or None, default=None
        Tags of each run, in addition to those of the library.
    log_model : bool, default=True
        Whether the fitted model is recorded.
    log_report : bool, default=True
        Whether importances and the page of ``report`` are recorded, which costs forward passes.
    pending_dir : str, default="mlflow-pending"
        Directory for records that could not be sent.

    See Also
    --------
    upload : Send a pending record.

    Notes
    -----
    A run has the parameters, nested ones included, the losses of each epoch, rows and columns
    of the data, versions, the commit and the calling script, learning curves, importances, the
    page of ``report`` and the model, which ``mlflow.sklearn.load_model`` and
    ``mlflow.pyfunc.load_model`` load without pickle.

    If a run is active in the process, fits are its children. A copy of the tracker, such as
    :class:`~sklearn.model_selection.GridSearchCV` sends to other processes, stores the run that
    was active when it was copied.

    Examples
    --------
    >>> from sk_easytensor import EasyTensorClassifier
    >>> tracker = MLflowTracker(experiment_name="reviews", tags={"stage": "trial"})
    >>> model = EasyTensorClassifier(tracker=tracker)
    >>> model.tracker
    MLflowTracker(experiment_name='reviews', tags={'stage': 'trial'})
    """

    def __init__(
        self,
        tracking_uri=None,
        experiment_name=None,
        run_name=None,
        tags=None,
        log_model=True,
        log_report=True,
        pending_dir="mlflow-pending",
    ):
        self.tracking_uri = tracking_uri
        self.experiment_name = experiment_name
        self.run_name = run_name
        self.tags = tags
        self.log_model = log_model
        self.log_report = log_report
        self.pending_dir = pending_dir

    def __repr__(self):
        parameters = signature(type(self)).parameters.values()
        changed = [p.name for p in parameters if getattr(self, p.name) != p.default]
        arguments = ", ".join(f"{name}={masked(repr(getattr(self, name)))}" for name in changed)
        return f"{type(self).__name__}({arguments})"

    def __getstate__(self):
        """Return the attributes, with the run that is active in this process."""
        active = active_run()
        return {**vars(self), **({"_parent": active} if active is not None else {})}

    def check(self, owner):
        """Check the parameters.

        Parameters
        ----------
        owner : str
            Class name of the estimator, used in error messages.

        Raises
        ------
        ValueError
            If a name or address is neither a string nor None, or if tags are no dictionary with
            strings as keys.
        """
        for name in ("tracking_uri", "experiment_name", "run_name"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise ValueError(
                    f"{owner}: tracker: {name} must be a string or None, got {value!r}"
                )
        tags = self.tags or {}
        if not isinstance(tags, dict) or not all(isinstance(name, str) for name in tags):
            raise ValueError(
                f"{owner}: tracker: tags must be a dictionary with strings as keys, got {tags!r}"
            )

    def open(self, estimator, X):
        """Begin the run of a fit.

        Parameters
        ----------
        estimator : estimator
            Estimator that is about to be fitted.
        X : table-like
            Rows that it is fitted on.

        Returns
        -------
        TrackedRun
            Run, which the server has if it is reachable.
        """
        from sk_easytensor.tracking.record import import_mlflow

        owner = type(estimator).__name__
        mlflow = import_mlflow(owner)
        from sk_easytensor.tracking.run import TrackedRun, new_record

        default_uri = mlflow.get_tracking_uri()
        parent = active_run() or vars(self).get("_parent")
        if parent is not None and self.tracking_uri not in (None, parent["tracking_uri"]):
            parent = None
        uri = self.tracking_uri or (default_uri if parent is None else parent["tracking_uri"])
        fields = {"tracking_uri": uri, "run_name": self.run_name}
        if self.experiment_name is not None:
            fields["experiment_name"] = self.experiment_name
        elif parent is not None:
            fields["experiment_id"] = parent["experiment_id"]
        elif uri == default_uri:
            # mlflow.set_experiment stores the active experiment in these variables.
            fields["experiment_name"] = os.environ.get("MLFLOW_EXPERIMENT_NAME")
            fields["experiment_id"] = os.environ.get("MLFLOW_EXPERIMENT_ID")
        run = TrackedRun(self, owner, uri, parent, new_record(**fields))
        try:
            run.begin(estimator, X)
        except BaseException:
            run.discard()
            raise
        return run


def active_run():
    """Return the run that is active in a thread of this process, or None.

    Returns
    -------
    dict or None
        ``run_id``, ``experiment_id`` and ``tracking_uri``.
    """
    mlflow = sys.modules.get("mlflow")
    if mlflow is None or not hasattr(mlflow, "active_run"):
        return None
    run = mlflow.active_run()
    if run is None:
        # Searches fit in threads, where the run of the calling thread is not active.
        from mlflow.tracking import fluent

        latest = getattr(fluent, "_get_latest_active_run", lambda: None)
        run = latest()
    if run is None:
        return None
    identifiers = {"run_id": run.info.run_id, "experiment_id": run.info.experiment_id}
    return {**identifiers, "tracking_uri": mlflow.get_tracking_uri()}


def check_tracker(tracker, owner):
    """Return the tracker that the parameter ``tracker`` stands for.

    Parameters
    ----------
    tracker : "mlflow", MLflowTracker or None
        Value of the parameter.
    owner : str
        Class name of the estimator, used in error messages.

    Returns
    -------
    MLflowTracker or None

    Raises
    ------
    ValueError
        If the value is of another kind, or a parameter of the tracker is not valid.
    """
    if tracker is None:
        return None
    if isinstance(tracker, str) and tracker == "mlflow":
        tracker = MLflowTracker()
    if not isinstance(tracker, MLflowTracker):
        raise ValueError(
            f"{owner}: tracker must be 'mlflow', an MLflowTracker or None, got {tracker!r}"
        )
    tracker.check(owner)
    return tracker


def with_active_run(state):
    """Return the state of an estimator, with a tracker that stores the active run.

    A search sends copies of unfitted estimators to other processes. There ``tracker="mlflow"``
    would not find the run that is active in this process.
    """
    is_default = isinstance(state.get("tracker"), str) and state["tracker"] == "mlflow"
    if is_default and "n_iter_" not in state and active_run() is not None:
        tracker = MLflowTracker()
        tracker._parent = active_run()
        return {**state, "tracker": tracker}
    return state


def tracked(fit: Method) -> Method:
    """Decorate ``fit``, so that it is recorded if the estimator has a ``tracker``."""

    @wraps(fit)
    def recorded(self, X, *args, **kwargs):
        owner = type(self).__name__
        tracker = check_tracker(self.tracker, owner)
        if tracker is None:
            return fit(self, X, *args, **kwargs)
        run = tracker.open(self, X)
        setattr(self, RUN, run)
        try:
            fit(self, X, *args, **kwargs)
        except BaseException as error:
            killed = isinstance(error, (KeyboardInterrupt, SystemExit))
            run.fail("KILLED" if killed else "FAILED", error)
            raise
        finally:
            delattr(self, RUN)
        self.run_id_ = run.record.run_id
        run.finish(self, X)
        # If the server was unreachable at the begin, the run has its identifier only now.
        self.run_id_ = run.record.run_id
        return self

    return recorded
