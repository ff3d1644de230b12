"""The record of a run: its content, its upload to an MLflow server, and its pending copy."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sk_easytensor._utils.masking import MASK, masked, masked_errors
from sk_easytensor._utils.runtime import ForkSafeLock
from sk_easytensor._utils.storage import write_atomically

__all__ = [
    "RunRecord",
    "import_mlflow",
    "send",
    "short_timeouts",
    "upload",
]


FILE = "record.json"
ARTIFACTS, MODEL = "artifacts", "model"

MAX_PARAMS, MAX_METRICS = 100, 800
"""Entries of one request. MLflow accepts 100 parameters, 100 tags and 1,000 entries in all."""

MAX_PARAM_LENGTH, MAX_TAG_LENGTH, MAX_NAME_LENGTH = 6000, 5000, 250
"""Characters that MLflow accepts."""

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Tags of new experiments: MLflow's pages then show models rather than conversations."""

SHORT_TIMEOUTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""Environment variables of :func:`short_timeouts`, with the timeout in seconds."""


@dataclass
class RunRecord:
    """Content of a run, with what has been sent to the server. All of it is JSON.

    Attributes
    ----------
    identifier : str
        Identifier of the record, which exists before the run has one.
    tracking_uri : str
        Address of the MLflow server or database.
    experiment_name, experiment_id : str or None
        Experiment of the run. The name is used if both are set.
    run_name : str or None
        Name of the run. With None, MLflow makes one up.
    start_time, end_time : int
        Milliseconds since 1970-01-01 UTC.
    status : str or None
        ``"FINISHED"``, ``"FAILED"`` or ``"KILLED"``; None during the fit.
    params, tags : dict of {str: str}
        Values are shortened to the lengths that MLflow accepts.
    metrics : list of [name, value, milliseconds, step]
        Metrics in the order in which they were added.
    datasets : list of dict
        Arguments of :class:`mlflow.entities.Dataset`, and ``context``.
    run_id : str or None
        Identifier of the run on the server; None before the run is created there.
    sent : dict
        Parts that the server has: ``"params"``, ``"tags"``, ``"metrics"`` and ``"datasets"`` are
        counts of entries, ``"artifacts"`` is a list of names, ``"model_id"`` and ``"model"`` are
        the identifier of the model and whether it is complete.
    files : dict of {str: str}
        SHA-256 of each file of a pending record, by its path in the folder.
    """

    identifier: str
    tracking_uri: str
    experiment_name: str | None = None
    experiment_id: str | None = None
    run_name: str | None = None
    start_time: int = 0
    end_time: int | None = None
    status: str | None = None
    params: dict = field(default_factory=dict)
    tags: dict = field(default_factory=dict)
    metrics: list = field(default_factory=list)
    datasets: list = field(default_factory=list)
    run_id: str | None = None
    sent: dict = field(default_factory=dict)
    files: dict = field(default_factory=dict)

    def add_params(self, params):
        """Add parameters, with names and values changed to what MLflow accepts."""
        for name, value in params.items():
            text = masked(value)
            if len(text) > MAX_PARAM_LENGTH:
                text = text[: MAX_PARAM_LENGTH - 1] + "…"
            self.params[valid_name(name)] = text

    def add_tags(self, tags):
        """Add tags, with values shortened to what MLflow accepts."""
        for name, value in tags.items():
            text = masked(value)
            if len(text) > MAX_TAG_LENGTH:
                text = text[: MAX_TAG_LENGTH - 1] + "…"
            self.tags[name] = text

    def add_metrics(self, values, time, step):
        """Add the metrics of one step; ``time`` is in milliseconds since 1970-01-01 UTC."""
        for name, value in values.items():
            self.metrics.append([valid_name(name), float(value), time, int(step)])

    def save(self, folder):
        """Write the record into a folder, without the password of its address."""
        fields = {**asdict(self), "tracking_uri": masked(self.tracking_uri)}
        fields["sha256"] = digest_of(fields)
        write_atomically(Path(folder) / FILE, json.dumps(fields, indent=1), "tracker")

    @classmethod
    def load(cls, folder):
        """Read the record of a folder.

        Raises
        ------
        ValueError
            If the file is corrupt or was changed. The message names the file.
        """
        path = Path(folder) / FILE
        try:
            fields = json.loads(path.read_bytes())
            if fields.pop("sha256") == digest_of(fields):
                return cls(**fields)
        except (ValueError, TypeError, AttributeError, KeyError):
            pass
        raise ValueError(f"{str(path)!r} is corrupt, was changed, or is no record of a fit")


def digest_of(fields):
    """Return the SHA-256 of the fields of a record."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def valid_name(name):
    """Return the name of a parameter or metric with invalid characters replaced by ``_``."""
    valid = "".join(c if c.isalnum() or c in "_-. /" else "_" for c in str(name))
    # MLflow uses names as paths.
    parts = [part for part in valid[:MAX_NAME_LENGTH].split("/") if part not in ("", ".", "..")]
    return "/".join(parts) or "_"


def import_mlflow(owner):
    """Return the module ``mlflow``.

    Raises
    ------
    ImportError
        If MLflow is not installed. The message has the command that installs it.
    """
    try:
        import mlflow
        import mlflow.sklearn
    except ImportError as error:
        raise ImportError(
            f"{owner}: tracker needs MLflow; install it with: pip install 'sk_easytensor[mlflow]'"
        ) from error
    return mlflow


def send(record, folder, client):
    """Send the parts of a record that have not been sent yet.

    Parameters
    ----------
    record : RunRecord
        Record to send. Its ``sent`` is updated after each part, so that a failed attempt can be
        resumed.
    folder : Path
        Directory with ``artifacts`` and, if a model was saved, ``model``.
    client : mlflow.MlflowClient
        Client of the server.
    """
    if record.run_id is None:
        create_run(record, client)
    send_values(record, client)
    send_datasets(record, client)
    for name in artifact_names(folder):
        if record.files and f"{ARTIFACTS}/{name}" not in record.files:
            # A file that the user added to the pending record.
            continue
        send_artifact(record, folder, name, client)
    if (folder / MODEL).is_dir() and not record.sent.get("model"):
        send_model(record, folder / MODEL, client)
    if record.status is not None:
        with without_link(record.tracking_uri):
            client.set_terminated(record.run_id, record.status, record.end_time)


def create_run(record, client):
    """Create a run on the server."""
    experiment_id = find_experiment(record, client)
    run = client.create_run(experiment_id, record.start_time, dict(record.tags), record.run_name)
    record.run_id, record.run_name = run.info.run_id, run.info.run_name
    record.experiment_id = experiment_id
    record.sent["tags"] = len(record.tags)


def find_experiment(record, client):
    """Return the identifier of the experiment, which is created if its name does not exist."""
    from mlflow.exceptions import MlflowException

    if record.experiment_name is None:
        return record.experiment_id or "0"
    experiment = client.get_experiment_by_name(record.experiment_name)
    if experiment is None:
        try:
            return client.create_experiment(record.experiment_name, tags=EXPERIMENT_TAGS)
        except MlflowException:
            # Another process may have created it in the meantime.
            experiment = client.get_experiment_by_name(record.experiment_name)
            if experiment is None:
                raise
    return experiment.experiment_id


def send_values(record, client):
    """Send parameters, tags and metrics, in as few requests as MLflow's limits allow."""
    from mlflow.entities import Metric, Param, RunTag

    sent = record.sent
    parts = {
        "params": ([Param(*item) for item in record.params.items()], MAX_PARAMS),
        "tags": ([RunTag(*item) for item in record.tags.items()], MAX_PARAMS),
        "metrics": (record.metrics, MAX_METRICS),
    }
    while True:
        starts = {name: sent.get(name, 0) for name in parts}
        batch = {
            name: values[starts[name] : starts[name] + limit]
            for name, (values, limit) in parts.items()
        }
        if not any(batch.values()):
            return
        counts = {name: starts[name] + len(values) for name, values in batch.items()}
        batch["metrics"] = [Metric(*values) for values in batch["metrics"]]
        client.log_batch(record.run_id, **batch)
        sent.update(counts)


def send_datasets(record, client):
    """Send the data sets: digests and numbers of the training and validation rows."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.exceptions import MlflowException

    start = record.sent.get("datasets", 0)
    inputs = []
    for dataset in record.datasets[start:]:
        arguments = dict(dataset)
        context = InputTag("mlflow.data.context", arguments.pop("context"))
        inputs.append(DatasetInput(Dataset(**arguments), [context]))
    if inputs:
        try:
            client.log_inputs(record.run_id, inputs)
        except MlflowException:
            # Another process may have sent the same rows at the same time; MLflow then finds them.
            client.log_inputs(record.run_id, inputs)
    record.sent["datasets"] = len(record.datasets)


def artifact_names(folder):
    """Return the paths of a record's artifacts, relative to their folder."""
    root = folder / ARTIFACTS
    paths = [path for path in root.rglob("*") if path.is_file() and path.name[0] != "."]
    return sorted(path.relative_to(root).as_posix() for path in paths)


def send_artifact(record, folder, name, client):
    """Send an artifact, unless it has been sent."""
    sent = record.sent.setdefault(ARTIFACTS, [])
    if name not in sent:
        parent = name.rpartition("/")[0] or None
        client.log_artifact(record.run_id, str(folder / ARTIFACTS / name), parent)
        sent.append(name)


def send_model(record, folder, client):
    """Send a saved model and log it as an output of the run."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    if "model_id" not in record.sent:
        model = client.create_logged_model(
            record.experiment_id, MODEL, source_run_id=record.run_id, params=dict(record.params)
        )
        record.sent["model_id"] = model.model_id
        saved = Model.load(str(folder))
        saved.model_id = saved.model_uuid = model.model_id
        saved.run_id, saved.artifact_path = record.run_id, model.artifact_location
        saved.save(str(folder / "MLmodel"))
    identifier = record.sent["model_id"]
    client.log_model_artifacts(identifier, str(folder))
    client.finalize_logged_model(identifier, "READY")
    steps = [step for *_, step in record.metrics]
    output = LoggedModelOutput(identifier, step=max(steps, default=0))
    client.log_outputs(record.run_id, [output])
    record.sent["model"] = True


# ---------------------------------------------------------------------- unreachable servers

_lock = ForkSafeLock()
_timeouts = {"depth": 0, "set": []}


@contextmanager
def short_timeouts():
    """Limit MLflow's retries, which take minutes, unless the user has set the variables."""
    state = _timeouts
    with _lock:
        # With several threads at once, the last to leave restores what the first one changed.
        if state["depth"] == 0:
            state["set"] = [name for name in SHORT_TIMEOUTS if name not in os.environ]
            os.environ.update({name: SHORT_TIMEOUTS[name] for name in state["set"]})
        state["depth"] += 1
    try:
        yield
    finally:
        with _lock:
            state["depth"] -= 1
            if state["depth"] == 0:
                for name in state["set"]:
                    os.environ.pop(name, None)


@contextmanager
def without_link(uri):
    """Keep MLflow from printing the address of a run if it contains a password."""
    name = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"
    if masked(uri) == uri or name in os.environ:
        yield
        return
    os.environ[name] = "true"
    try:
        yield
    finally:
        os.environ.pop(name, None)


def save_pending(record, folder, pending):
    """Copy a record that could not be sent to its pending directory, completely or not at all.

    Parameters
    ----------
    record : RunRecord
        Record of the run, which is written beside its files.
    folder : Path
        Directory with the record's files.
    pending : Path
        Directory to create, which must not exist.
    """
    record.files = digests_in(folder)
    record.save(folder)
    pending.parent.mkdir(parents=True, exist_ok=True)
    temporary = pending.with_name(f".{pending.name}.part")
    try:
        shutil.copytree(folder, temporary)
        temporary.rename(pending)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def digests_in(folder):
    """Return the SHA-256 of each file of a record, by its path in the folder."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path != folder / FILE]
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in sorted(paths)}


def file_digest(path):
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_files(record, folder):
    """Check the files of a record against their digests.

    Raises
    ------
    ValueError
        If a file is corrupt, was changed or is missing. The message names the file.
    """
    for name, digest in record.files.items():
        path = folder / name
        if not path.is_file() or file_digest(path) != digest:
            raise ValueError(f"{str(path)!r} is corrupt, was changed or is missing")


def remove_files(record, folder):
    """Remove the files of a record, and then the empty directories."""
    paths = [folder / name for name in record.files]
    for path in [*paths, folder / FILE]:
        path.unlink(missing_ok=True)
    parents = {parent for path in paths for parent in path.relative_to(folder).parents}
    # The deepest first. Directories with other files stay.
    for parent in sorted(parents, key=lambda path: len(path.parts), reverse=True):
        with suppress(OSError):
            (folder / parent).rmdir()
    with suppress(OSError):
        folder.rmdir()


def upload(directory, tracking_uri=None):
    """Send a record that could not be sent while its model was fitted.

    Parameters
    ----------
    directory : str or path-like
        Directory of the record, as the warning of the fit named it:
        ``mlflow-pending/<identifier>``. The files of the record are removed once all of them have
        been sent, and the directory if it then is empty.
    tracking_uri : str, optional
        Address of the server; by default the one that the fit used. A run that the fit began there
        is completed. An address with a password must be passed again, because passwords are not
        stored.

    Returns
    -------
    str
        Identifier of the run on the server.

    Raises
    ------
    FileNotFoundError
        If the directory has no record.
    ValueError
        If a file of the record is corrupt, was changed or is missing, or if the record's address
        had a password and ``tracking_uri`` is None.
    ImportError
        If MLflow is not installed.
    mlflow.exceptions.MlflowException
        If the record cannot be sent. The parts that were sent are noted in the directory, and a
        second call sends the rest.
    """
    mlflow = import_mlflow("upload")
    folder = Path(directory)
    if not (folder / FILE).is_file():
        raise FileNotFoundError(f"upload: directory {str(folder)!r} has no {FILE}")
    record = RunRecord.load(folder)
    check_files(record, folder)
    if tracking_uri is None and MASK in record.tracking_uri:
        raise ValueError(
            f"upload: the record is for {record.tracking_uri}, whose password is not stored; pass "
            "tracking_uri"
        )
    if tracking_uri is not None and masked(tracking_uri) == record.tracking_uri:
        record.tracking_uri = tracking_uri
    if tracking_uri is not None and tracking_uri != record.tracking_uri:
        # Another server has neither the run, nor its parent, nor an experiment of this identifier.
        record.tracking_uri, record.run_id, record.sent = tracking_uri, None, {}
        record.experiment_id = None
        record.tags.pop("mlflow.parentRunId", None)
    with masked_errors():
        client = mlflow.MlflowClient(tracking_uri=record.tracking_uri)
        if record.run_id is not None and not has_run(record.run_id, client):
            record.run_id, record.sent = None, {}
        try:
            send(record, folder, client)
        except BaseException:
            # Sending a model changes its file MLmodel, so that the digests are computed again.
            record.files = {name: file_digest(folder / name) for name in record.files}
            record.save(folder)
            raise
    remove_files(record, folder)
    return record.run_id


def has_run(run_id, client):
    """Return whether a run exists on the server."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True
