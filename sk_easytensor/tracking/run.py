"""The MLflow run of a fit, written while the fit goes on."""

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
from sk_easytensor.tracking import artifacts as contents
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
from sk_easytensor.training.checkpoint import describe_data, describe_parameters

__all__ = [
    "MLflowCallback",
    "TrackedRun",
]


class MLflowCallback(Callback):
    """Notes the rows of a training and the losses of each epoch.

    Parameters
    ----------
    run : TrackedRun
        Where to.

    Notes
    -----
    It stays in the process that called `fit`. If the network is trained by others, what they tell
    comes in by :meth:`take_notes`.
    """

    def __init__(self, run):
        self.run = run
        self.noted = 0

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Note the rows."""
        self.run.note_rows(self.run.describe_rows(net, X))

    def on_epoch_end(self, net, **kwargs):
        """Note the epoch, and those that a checkpoint brought."""
        complete = [epoch for epoch in net.history if "train_loss" in epoch]
        self.run.note_epochs(complete[self.noted :])
        self.noted = len(complete)

    def on_train_end(self, net, **kwargs):
        """Note what a checkpoint brought, if no epoch was left."""
        self.on_epoch_end(net)

    def take_notes(self, rows, epochs):
        """Note what other processes tell of a training.

        Parameters
        ----------
        rows : dict of {str: str}
            Which rows there are.
        epochs : list of dict
            Those that are new.
        """
        self.run.note_rows(rows)
        self.run.note_epochs(epochs)


FLUSH_SECONDS = 5.0
"""Metrics are sent at most so often."""

FIT_TAG, PROCESS_TAG = "sk_easytensor.fit", "sk_easytensor.process"


class TrackedRun:
    """What is recorded of a fit, and sent as far as the server answers.

    Parameters
    ----------
    tracker : MLflowTracker
        What to record.
    owner : str
        Name of the estimator, for warnings.
    uri : str
        Of the server.
    parent : dict or None
        Run that this one belongs to.
    record : RunRecord
        Of this run.

    Attributes
    ----------
    artifacts : Path
        Folder on this machine with the artifacts.
    """

    def __init__(self, tracker, owner, uri, parent, record):
        self.tracker, self.owner, self.uri, self.parent = tracker, owner, uri, parent
        self.record = record
        self.folder = Path(make_temporary_directory("run"))
        self.artifacts = self.folder / ARTIFACTS
        self.artifacts.mkdir()
        self.waiting = Path(tracker.pending_dir) / record.identifier
        self.down = False
        self._client = None
        self._known_step, self._flushed = 0, 0.0

    # ------------------------------------------------------------------ begin

    def begin(self, estimator, X):
        """Make the run, or find that of the same fit that was interrupted."""
        record = self.record
        record.start_time = milliseconds()
        record.add_params(self._describe(contents.parameters, estimator) or {})
        record.add_tags({"estimator_name": self.owner, **self._context()})
        self._describe(contents.write_source, self.artifacts)
        found = self._describe(contents.write_environment, self.artifacts) or {}
        record.add_tags({f"version.{name}": number for name, number in found.items()})
        if self.parent is not None:
            self.attempt(self._check_parent)
        if self.parent is not None:
            record.add_tags({"mlflow.parentRunId": self.parent["run_id"]})
        record.add_tags(self.tracker.tags or {})
        if is_in_mlflow(estimator.checkpoint_dir):
            parameters = json.dumps(describe_parameters(estimator), sort_keys=True)
            fit = contents.digest_of(self.owner, parameters, contents.data_digest(X))
            record.add_tags({FIT_TAG: fit, PROCESS_TAG: this_process()})
            self.attempt(self._join_interrupted)
        self.attempt(self._open)

    def _context(self):
        from mlflow.tracking.context.registry import resolve_tags

        # Who, which script, which commit.
        return self._describe(resolve_tags) or {}

    def _check_parent(self, client):
        # What was noted in another process may be over by now.
        if client.get_run(self.parent["run_id"]).info.status != "RUNNING":
            self.parent = None

    def _join_interrupted(self, client):
        record = self.record
        experiment = find_experiment(record, client)
        same = f"tags.`{FIT_TAG}` = '{record.tags[FIT_TAG]}' and attributes.status != 'FINISHED'"
        found = client.search_runs([experiment], same, order_by=["attributes.start_time DESC"])
        for run in found:
            tags, parent = run.data.tags, "mlflow.parentRunId"
            goes_on = run.info.status == "RUNNING" and is_alive(tags.get(PROCESS_TAG))
            if goes_on or (parent in tags) != (parent in record.tags):
                continue
            record.run_id, record.experiment_id = run.info.run_id, experiment
            record.start_time = run.info.start_time
            # Parameters and the commit are those of the begin.
            keep = (PROCESS_TAG, parent)
            record.tags = {k: v for k, v in record.tags.items() if k in keep or k not in tags}
            record.params = {k: v for k, v in record.params.items() if k not in run.data.params}
            histories = [client.get_metric_history(record.run_id, k) for k in run.data.metrics]
            self._known_step = max((m.step for history in histories for m in history), default=0)
            client.update_run(record.run_id, status="RUNNING")
            return

    def _open(self, client):
        if self.record.run_id is None:
            create_run(self.record, client)
        send_values(self.record, client)
        self._flushed = time.monotonic()

    # ------------------------------------------------------------------ while it goes on

    @property
    def callback(self):
        """What notes the epochs, for a net."""
        return "easytensor_tracking", MLflowCallback(self)

    def describe_rows(self, net, rows):
        """Return which rows the net is trained and evaluated on."""
        return self._describe(describe_data, net.module_, rows, net.valid_rows) or {}

    def note_rows(self, described):
        """Note which rows a net is trained and evaluated on, once."""
        if self.record.datasets:
            return
        for name, text in described.items():
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

    def note_epochs(self, epochs):
        """Note epochs, and send them if some time has passed."""
        now = milliseconds()
        for epoch in epochs:
            step = epoch["epoch"]
            if step > self._known_step:
                self.record.add_metrics(contents.metric_values(epoch), now, step)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self):
        """Send the metrics that were noted."""
        self.attempt(lambda client: send_values(self.record, client))
        self._flushed = time.monotonic()

    # ------------------------------------------------------------------ end

    def finish(self, estimator, X):
        """Record what came of the fit, and end the run."""
        for make in (self._note_outcome, self._note_data, self._draw):
            self._describe(make, estimator)
        if self.tracker.log_model:
            self._describe(self._save_model, estimator, X)
        self.end("FINISHED")

    def fail(self, status, error):
        """End the run of a fit that did not end well."""
        self.record.add_tags({"error": f"{type(error).__name__}: {error}"})
        text = masked("".join(traceback.format_exception(error)))
        self._describe((self.artifacts / "error.txt").write_text, text, encoding="utf-8")
        self.end(status)

    def end(self, status):
        """Send what is left, or set it aside."""
        record = self.record
        record.status, record.end_time = status, milliseconds()
        was_down, self.down = self.down, False
        sent = self.attempt(
            lambda client: send(record, self.folder, client) or True, again=was_down
        )
        if not sent:
            try:
                save_pending(record, self.folder, self.waiting)
            except OSError as error:
                warn(
                    f"{self.owner}: the record of the fit cannot be written to "
                    f"{str(self.waiting)!r} either ({error}), and is lost",
                    stacklevel=2,
                )
        self.discard()

    def discard(self):
        """Remove what is on this machine."""
        remove_temporary_directory(self.folder)

    def _note_outcome(self, estimator):
        values = {
            "best_score": estimator.best_score_,
            "best_iteration": estimator.best_iteration_,
            "n_iter": estimator.n_iter_,
        }
        for name, seconds in estimator.fit_times_.items():
            if name != "epochs":
                values[f"{name}_seconds"] = seconds
        self.record.add_metrics(values, milliseconds(), 0)

    def _note_data(self, estimator):
        found = contents.data_of(estimator)
        text = json.dumps(found, indent=1)
        (self.artifacts / "data.json").write_text(text, encoding="utf-8")
        self.record.add_params({"data.rows": found["rows"], "data.columns": len(found["columns"])})

    def _save_model(self, estimator, X):
        # Nobody shall find half a model if it cannot be saved.
        partial = self.folder / f"{MODEL}.part"
        save_model(estimator, X, partial)
        partial.rename(self.folder / MODEL)

    def _draw(self, estimator):
        contents.draw_curves(estimator, self.artifacts)
        if self.tracker.log_report:
            contents.write_importances(estimator, self.artifacts)
            estimator.report(self.artifacts / "report.html")

    # ------------------------------------------------------------------ files

    def fetch(self, name):
        """Copy a folder of artifacts of an interrupted fit to this machine."""

        def download(client):
            if any(found.path == name for found in client.list_artifacts(self.record.run_id)):
                client.download_artifacts(self.record.run_id, name, str(self.artifacts))

        self.attempt(download)
        sent = self.record.sent.setdefault(ARTIFACTS, [])
        found = (self.artifacts / name).iterdir()
        sent += [f"{name}/{path.name}" for path in found]

    def send_file(self, name):
        """Send an artifact as it is now."""
        sent = self.record.sent.setdefault(ARTIFACTS, [])
        if name in sent:
            sent.remove(name)
        self.attempt(lambda client: send_artifact(self.record, self.folder, name, client))

    def remove_file(self, name):
        """Remove an artifact on the server, if the server can."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        sent = self.record.sent.setdefault(ARTIFACTS, [])
        if name not in sent:
            return
        sent.remove(name)

        def remove(client):
            where = client.get_run(self.record.run_id).info.artifact_uri
            with suppress(NotImplementedError):
                get_artifact_repository(where, tracking_uri=self.uri).delete_artifacts(name)

        self.attempt(remove)

    # ------------------------------------------------------------------ what may fail

    def attempt(self, function, again=False):
        """Ask something of the server; if it fails, warn once and ask no more until the end.

        Parameters
        ----------
        function : callable
            Takes the client.
        again : bool, default=False
            Whether there has been a warning.

        Returns
        -------
        object
            What the function returned; None if it failed.
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
            if not again:
                warn(
                    f"{self.owner}: MLflow at {masked(self.uri)} failed "
                    f"({shortened(error)}). The fit goes on; unless MLflow answers at its end, the "
                    f"record is written to {str(self.waiting)!r}, from where "
                    "sk_easytensor.tracking.upload sends it",
                    stacklevel=2,
                )
            return None

    def _describe(self, function, *arguments, **options):
        """Call a function; if it fails, a part of the record is missing, and nothing else."""
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
    """Return the time as MLflow counts it."""
    return int(time.time() * 1000)


def this_process():
    """Return what this process is called, for others on this machine."""
    return f"{os.getpid()}@{socket.gethostname()}"


def is_alive(process):
    """Tell whether another process of this machine is still there."""
    number, _, host = (process or "").partition("@")
    if os.name != "posix" or host != socket.gethostname() or number == str(os.getpid()):
        return False
    return is_running(int(number))


def shortened(error):
    """Return the begin of an error's message."""
    text = masked(" ".join(f"{type(error).__name__}: {error}".split()))
    return text if len(text) <= 300 else text[:299] + "…"


def new_record(**about):
    """Return an empty record."""
    return RunRecord(identifier=uuid4().hex, **about)
