"""The MLflow run of a fit, written during the fit."""

from __future__ import annotations

import json
import os
import re
import socket
import time
import traceback
from contextlib import suppress
from pathlib import Path
from uuid import uuid4
from warnings import catch_warnings, simplefilter, warn

from skorch.callbacks import Callback

from sk_easytensor._utils.masking import masked
from sk_easytensor._utils.storage import (
    is_running,
    make_temporary_directory,
    remove_temporary_directory,
)
from sk_easytensor.tracking import artifacts
from sk_easytensor.tracking.artifacts import is_in_mlflow
from sk_easytensor.tracking.model import save_model
from sk_easytensor.tracking.record import (
    ARTIFACTS,
    MODEL,
    RunRecord,
    create_run,
    find_experiment,
    save_pending,
    send,
    send_artifact,
    send_values,
    short_timeouts,
)
from sk_easytensor.training.descriptions import describe_data, describe_parameters

__all__ = [
    "MLflowCallback",
    "TrackedRun",
]


class MLflowCallback(Callback):
    """skorch callback that logs the rows of a training and the losses of each epoch.

    Parameters
    ----------
    run : TrackedRun
        Run that receives rows and losses.

    Notes
    -----
    The callback stays in the process that called `fit`. If workers train the network, their rows
    and epochs arrive by :meth:`log_progress`.
    """

    def __init__(self, run):
        self.run = run
        self.n_logged = 0

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Log the training and validation rows."""
        self.n_logged = 0
        self.run.log_rows(self.run.describe_rows(net, X))

    def on_epoch_end(self, net, **kwargs):
        """Log the epoch, and before it the epochs of a checkpoint that was resumed."""
        complete = [epoch for epoch in net.history if "train_loss" in epoch]
        self.run.log_epochs(complete[self.n_logged :])
        self.n_logged = len(complete)

    def on_train_end(self, net, **kwargs):
        """Log the epochs of a checkpoint that had no epoch left to train."""
        self.on_epoch_end(net)

    def log_progress(self, rows, epochs):
        """Log rows and epochs that workers trained.

        Parameters
        ----------
        rows : dict of {str: str}
            Description of the training and validation rows, as of
            :meth:`TrackedRun.describe_rows`.
        epochs : list of dict
            New entries of the history.
        """
        self.run.log_rows(rows)
        self.run.log_epochs(epochs)


FLUSH_SECONDS = 5.0
"""Shortest time between two requests with metrics, in seconds."""

FIT_TAG, PROCESS_TAG = "sk_easytensor.fit", "sk_easytensor.process"
"""Tags by which an interrupted fit with checkpoints is found."""


class TrackedRun:
    """Run of a fit: its record, and the requests to the server while that is reachable.

    Parameters
    ----------
    tracker : MLflowTracker
        Settings of the run.
    owner : str
        Class name of the estimator, used in warnings.
    uri : str
        Address of the MLflow server or database.
    parent : dict or None
        ``run_id``, ``experiment_id`` and ``tracking_uri`` of the parent run.
    record : RunRecord
        Record of this run.

    Attributes
    ----------
    artifacts : Path
        Temporary folder on this machine with the artifacts.
    """

    def __init__(self, tracker, owner, uri, parent, record):
        self.tracker, self.owner, self.uri, self.parent = tracker, owner, uri, parent
        self.record = record
        self.folder = Path(make_temporary_directory("run"))
        self.artifacts = self.folder / ARTIFACTS
        self.artifacts.mkdir()
        self.pending = Path(tracker.pending_dir) / record.identifier
        self.down = False
        self._client = None
        self._last_steps, self._flushed = {}, 0.0
        self._prefix = ""

    # ------------------------------------------------------------------ begin

    def begin(self, estimator, X):
        """Create the run, or resume the run of the same fit if that was interrupted."""
        record = self.record
        record.start_time = milliseconds()
        record.add_params(self._describe(artifacts.parameters, estimator) or {})
        record.add_tags({"estimator_name": self.owner, **self._context()})
        self._describe(artifacts.write_source, self.artifacts)
        versions = self._describe(artifacts.write_environment, self.artifacts) or {}
        record.add_tags({f"version.{name}": number for name, number in versions.items()})
        if self.parent is not None:
            self.attempt(self._check_parent)
        if self.parent is not None:
            record.add_tags({"mlflow.parentRunId": self.parent["run_id"]})
        record.add_tags(self.tracker.tags or {})
        if is_in_mlflow(estimator.checkpoint_dir):
            parameters = json.dumps(describe_parameters(estimator), sort_keys=True)
            fit = artifacts.digest_of(self.owner, parameters, artifacts.data_digest(X))
            record.add_tags({FIT_TAG: fit, PROCESS_TAG: process_name()})
            self.attempt(self._resume_interrupted)
        self.attempt(self._open)

    def _context(self):
        from mlflow.tracking.context.registry import resolve_tags

        # User, script and commit.
        return self._describe(resolve_tags) or {}

    def _check_parent(self, client):
        # The parent of another process may have ended by now.
        if client.get_run(self.parent["run_id"]).info.status != "RUNNING":
            self.parent = None

    def _resume_interrupted(self, client):
        record = self.record
        experiment = find_experiment(record, client)
        query = f"tags.`{FIT_TAG}` = '{record.tags[FIT_TAG]}' and attributes.status != 'FINISHED'"
        runs = client.search_runs([experiment], query, order_by=["attributes.start_time DESC"])
        for run in runs:
            tags, parent = run.data.tags, "mlflow.parentRunId"
            is_active = run.info.status == "RUNNING" and is_alive(tags.get(PROCESS_TAG))
            if is_active or (parent in tags) != (parent in record.tags):
                continue
            record.run_id, record.experiment_id = run.info.run_id, experiment
            record.start_time = run.info.start_time
            # The run keeps the parameters and the commit with which it began.
            updated = (PROCESS_TAG, parent)
            record.tags = {k: v for k, v in record.tags.items() if k in updated or k not in tags}
            record.params = {k: v for k, v in record.params.items() if k not in run.data.params}
            for name in run.data.metrics:
                history = client.get_metric_history(record.run_id, name)
                last = max((metric.step for metric in history), default=0)
                prefix = name[: name.find("/") + 1]
                self._last_steps[prefix] = max(last, self._last_steps.get(prefix, 0))
            client.update_run(record.run_id, status="RUNNING")
            return

    def _open(self, client):
        if self.record.run_id is None:
            create_run(self.record, client)
        send_values(self.record, client)
        self._flushed = time.monotonic()

    # ------------------------------------------------------------------ during the fit

    @property
    def callback(self):
        """Name and callback that log rows and epochs, for the ``callbacks`` of a skorch net."""
        return "easytensor_tracking", MLflowCallback(self)

    def describe_rows(self, net, rows):
        """Return the number and digest of the rows that the net is trained and evaluated on."""
        return self._describe(describe_data, net.module_, rows, net.valid_rows) or {}

    def log_rows(self, rows):
        """Log the rows that a net is trained and evaluated on; later calls have no effect."""
        if self.record.datasets:
            return
        for name, text in rows.items():
            match = re.fullmatch(r"(\d+) rows of (\w+)", text)
            if match:
                count, digest = match.groups()
                context = name.removesuffix(" rows")
                self.record.datasets.append(
                    {
                        "name": context,
                        "digest": digest,
                        "source_type": "local",
                        "source": json.dumps({"tags": {"mlflow.source.name": self.owner}}),
                        "profile": json.dumps({"num_rows": int(count)}),
                        "context": context,
                    }
                )

    def begin_fold(self, fold):
        """Log the epochs that follow as those of a fold, as ``fold_0/valid_0_log_loss``."""
        self._prefix = f"fold_{fold}/"

    def log_epochs(self, epochs):
        """Log epochs, and send them if the last request is :data:`FLUSH_SECONDS` ago."""
        now = milliseconds()
        for epoch in epochs:
            step = epoch["epoch"]
            if step > self._last_steps.get(self._prefix, 0):
                values = artifacts.metric_values(epoch).items()
                named = {f"{self._prefix}{name}": value for name, value in values}
                self.record.add_metrics(named, now, step)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self):
        """Send the metrics that have not been sent yet."""
        self.attempt(lambda client: send_values(self.record, client))
        self._flushed = time.monotonic()

    # ------------------------------------------------------------------ end

    def finish(self, estimator, X):
        """Record the results of the fit, and end the run."""
        for step in (self._log_results, self._log_data, self._draw):
            self._describe(step, estimator)
        if self.tracker.log_model:
            self._describe(self._save_model, estimator, X)
        self.end("FINISHED")

    def fail(self, status, error):
        """Record the error of a fit, and end the run with the status."""
        self.record.add_tags({"error": f"{type(error).__name__}: {error}"})
        text = masked("".join(traceback.format_exception(error)))
        self._describe((self.artifacts / "error.txt").write_text, text, encoding="utf-8")
        self.end(status)

    def end(self, status):
        """Send the rest of the record, or save it in the pending directory."""
        record = self.record
        record.status, record.end_time = status, milliseconds()
        was_down, self.down = self.down, False
        sent = self.attempt(
            lambda client: send(record, self.folder, client) or True, has_warned=was_down
        )
        if not sent:
            try:
                save_pending(record, self.folder, self.pending)
            except OSError as error:
                warn(
                    f"{self.owner}: the record of the fit cannot be written to "
                    f"{str(self.pending)!r} either ({error}), and is lost",
                    stacklevel=2,
                )
        self.discard()

    def discard(self):
        """Remove the temporary files of the run."""
        remove_temporary_directory(self.folder)

    def _log_results(self, estimator):
        values = {
            "best_score": estimator.best_score_,
            "best_iteration": estimator.best_iteration_,
            "n_iter": estimator.n_iter_,
        }
        for name in ("tree_weight", "linear_weight"):
            weight = getattr(estimator, f"{name}_", {})
            tasks = weight.items() if isinstance(weight, dict) else [("", weight)]
            values |= {f"{name} {task}".strip(): share for task, share in tasks}
        for name, seconds in estimator.fit_times_.items():
            if name != "epochs":
                values[f"{name}_seconds"] = seconds
        now = milliseconds()
        self.record.add_metrics(values, now, 0)
        if not self._prefix:
            return
        # Means over folds, beside the curves of each fold.
        for step in range(1, estimator.n_iter_ + 1):
            means = {
                f"{name}_{metric}": curve[step - 1]
                for name, metrics in estimator.evals_result_.items()
                for metric, curve in metrics.items()
            }
            self.record.add_metrics(means, now, step)

    def _log_data(self, estimator):
        data = artifacts.data_description(estimator)
        text = json.dumps(data, indent=1)
        (self.artifacts / "data.json").write_text(text, encoding="utf-8")
        self.record.add_params({"data.rows": data["rows"], "data.columns": len(data["columns"])})

    def _save_model(self, estimator, X):
        # A model that could not be saved completely has another name, and is not sent.
        partial = self.folder / f"{MODEL}.part"
        save_model(estimator, X, partial)
        partial.rename(self.folder / MODEL)

    def _draw(self, estimator):
        artifacts.draw_curves(estimator, self.artifacts)
        if self.tracker.log_report:
            artifacts.write_importances(estimator, self.artifacts)
            estimator.report(self.artifacts / "report.html")
            values = artifacts.validation_metrics(estimator)
            self.record.add_metrics(values, milliseconds(), 0)

    # ------------------------------------------------------------------ files

    def fetch(self, name):
        """Download a folder of artifacts, which an interrupted fit has left, if it exists."""

        def download(client):
            if any(entry.path == name for entry in client.list_artifacts(self.record.run_id)):
                client.download_artifacts(self.record.run_id, name, str(self.artifacts))

        self.attempt(download)
        sent = self.record.sent.setdefault(ARTIFACTS, [])
        sent += [f"{name}/{path.name}" for path in (self.artifacts / name).iterdir()]

    def send_file(self, name):
        """Send the present content of an artifact, also if it has been sent before."""
        sent = self.record.sent.setdefault(ARTIFACTS, [])
        if name in sent:
            sent.remove(name)
        self.attempt(lambda client: send_artifact(self.record, self.folder, name, client))

    def remove_file(self, name):
        """Remove an artifact from the server, if its storage can remove files."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        sent = self.record.sent.setdefault(ARTIFACTS, [])
        if name not in sent:
            return
        sent.remove(name)

        def remove(client):
            location = client.get_run(self.record.run_id).info.artifact_uri
            with suppress(NotImplementedError):
                get_artifact_repository(location, tracking_uri=self.uri).delete_artifacts(name)

        self.attempt(remove)

    # ------------------------------------------------------------------ failures

    def attempt(self, function, has_warned=False):
        """Call a function with the client; after a failure, warn once and skip further calls.

        Parameters
        ----------
        function : callable
            Function of an :class:`mlflow.MlflowClient`.
        has_warned : bool, default=False
            Whether a warning has been issued before, so that this call issues none.

        Returns
        -------
        object
            Result of the function; None if it failed or was skipped.
        """
        if self.down:
            return None
        try:
            with short_timeouts():
                if self._client is None:
                    from mlflow import MlflowClient

                    self._client = MlflowClient(tracking_uri=self.uri)
                return function(self._client)
        except Exception as error:
            self.down = True
            if not has_warned:
                warn(
                    f"{self.owner}: MLflow at {masked(self.uri)} failed "
                    f"({error_text(error)}). The fit continues; unless MLflow responds at its "
                    f"end, the record is written to {str(self.pending)!r}, from where "
                    "sk_easytensor.tracking.upload sends it",
                    stacklevel=2,
                )
            return None

    def _describe(self, function, *arguments, **options):
        """Call a function that adds a part of the record; a failure is a warning, not an error."""
        try:
            with catch_warnings():
                simplefilter("ignore")
                return function(*arguments, **options)
        except Exception as error:
            name = function.__name__.strip("_").replace("_", " ")
            warn(
                f"{self.owner}: a part of the run's record is missing: {name}: {masked(error)}",
                stacklevel=2,
            )
            return None


def milliseconds():
    """Return the time in milliseconds since 1970-01-01 UTC."""
    return int(time.time() * 1000)


def process_name():
    """Return the number of this process and the name of this machine: ``"123@host"``."""
    return f"{os.getpid()}@{socket.gethostname()}"


def is_alive(process):
    """Return whether the name is that of another running process of this machine."""
    number, _, host = (process or "").partition("@")
    if os.name != "posix" or host != socket.gethostname() or number == str(os.getpid()):
        return False
    return is_running(int(number))


def error_text(error):
    """Return the type and message of an error in at most 300 characters, passwords masked."""
    text = masked(" ".join(f"{type(error).__name__}: {error}".split()))
    return text if len(text) <= 300 else text[:299] + "…"


def new_record(**fields):
    """Return a record with a new identifier and the given fields."""
    return RunRecord(identifier=uuid4().hex, **fields)
