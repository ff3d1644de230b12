"""Which fits are recorded, and where."""

from __future__ import annotations

import os
import sys
from functools import wraps
from inspect import signature

from sk_easytensor._utils.masking import masked

__all__ = [
    "MLflowTracker",
    "check_tracker",
    "tracked",
    "with_active_run",
]


RUN = "_tracked_run"


class MLflowTracker:
    """Records each fit as a run in MLflow.

    Parameters
    ----------
    tracking_uri : str or None, default=None
        Server or database; None for what ``mlflow.set_tracking_uri`` or ``MLFLOW_TRACKING_URI``
        say, otherwise the SQLite database ``mlflow.db`` in the working directory. A password in it
        is displayed nowhere; ``MLFLOW_TRACKING_USERNAME`` and ``MLFLOW_TRACKING_PASSWORD`` need no
        such address.
    experiment_name : str or None, default=None
        Experiment that runs belong to, made if it is not there; None for the active one.
    run_name : str or None, default=None
        None for one that MLflow makes up.
    tags : dict of {str: str} or None, default=None
        Tags of each run, beside those of the library.
    log_model : bool, default=True
        Whether the fitted model is recorded.
    log_report : bool, default=True
        Whether importances and the page of ``report`` are recorded, which costs forward passes.
    pending_dir : str, default="mlflow-pending"
        Directory in which records wait that could not be sent.

    See Also
    --------
    upload : Sends a record that waits.

    Notes
    -----
    A run has the parameters, nested ones included, the losses of each epoch, rows and columns
    of the data, versions, the commit and the calling script, learning curves, importances, the
    page of ``report`` and the model, which ``mlflow.sklearn.load_model`` and
    ``mlflow.pyfunc.load_model`` load without pickle.

    If a run is active in the process, fits are its children. A copy of the tracker, such as
    :class:`~sklearn.model_selection.GridSearchCV` sends to other processes, knows the run that was
    active when it was made.

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
        given = ", ".join(f"{name}={masked(repr(getattr(self, name)))}" for name in changed)
        return f"{type(self).__name__}({given})"

    def __getstate__(self):
        """Return what is copied: with the run that is active here."""
        active = active_run()
        return {**vars(self), **({"_parent": active} if active is not None else {})}

    def check(self, owner):
        """Raise ``ValueError`` unless the parameters make sense."""
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
            Before the fit.
        X : table-like
            What it is fitted on.

        Returns
        -------
        TrackedRun
        """
        from sk_easytensor.tracking.record import import_mlflow

        owner = type(estimator).__name__
        mlflow = import_mlflow(owner)
        from sk_easytensor.tracking.run import TrackedRun, new_record

        here = mlflow.get_tracking_uri()
        parent = active_run() or vars(self).get("_parent")
        if parent is not None and self.tracking_uri not in (None, parent["tracking_uri"]):
            parent = None
        uri = self.tracking_uri or (here if parent is None else parent["tracking_uri"])
        about = {"tracking_uri": uri, "run_name": self.run_name}
        if self.experiment_name is not None:
            about["experiment_name"] = self.experiment_name
        elif parent is not None:
            about["experiment_id"] = parent["experiment_id"]
        elif uri == here:
            # Where MLflow keeps what mlflow.set_experiment said.
            about["experiment_name"] = os.environ.get("MLFLOW_EXPERIMENT_NAME")
            about["experiment_id"] = os.environ.get("MLFLOW_EXPERIMENT_ID")
        run = TrackedRun(self, owner, uri, parent, new_record(**about))
        try:
            run.begin(estimator, X)
        except BaseException:
            run.discard()
            raise
        return run


def active_run():
    """Return the run that is active in this process, in this thread or another, or None."""
    mlflow = sys.modules.get("mlflow")
    if mlflow is None or not hasattr(mlflow, "active_run"):
        return None
    run = mlflow.active_run()
    if run is None:
        # Searches fit in threads, where the run that was begun around them is not active.
        from mlflow.tracking import fluent

        latest = getattr(fluent, "_get_latest_active_run", lambda: None)
        run = latest()
    if run is None:
        return None
    about = {"run_id": run.info.run_id, "experiment_id": run.info.experiment_id}
    return {**about, "tracking_uri": mlflow.get_tracking_uri()}


def check_tracker(tracker, owner):
    """Return the tracker for a parameter, or None.

    Raises
    ------
    ValueError
        If it is none of those that are accepted.
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
    """Return the state of an estimator that is copied, with the run that is active here.

    It matters for those that a search sends to other processes: the name of a tracker becomes a
    tracker that knows the run.
    """
    named = isinstance(state.get("tracker"), str) and state["tracker"] == "mlflow"
    if named and "n_iter_" not in state and active_run() is not None:
        tracker = MLflowTracker()
        tracker._parent = active_run()
        return {**state, "tracker": tracker}
    return state


def tracked(fit):
    """Make a ``fit`` record itself if the estimator's ``tracker`` says so."""

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
        # A server that was down may have given one only now.
        self.run_id_ = run.record.run_id
        return self

    return recorded
