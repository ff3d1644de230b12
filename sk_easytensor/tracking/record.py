"""The record of a run: its content, its upload to an MLflow server, and its pending copy."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sk_easytensor._utils.forking import ForkSafeLock
from sk_easytensor._utils.masking import MASK, masked, masked_errors
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

MOST_PARAMS, MOST_METRICS = 100, 800
"""Of one request; MLflow takes 100 parameters, 100 tags and 1,000 entries in all."""

LONGEST_PARAM, LONGEST_TAG, LONGEST_NAME = 6000, 5000, 250

KIND = {"mlflow.experimentKind": "custom_model_development"}
"""How MLflow's pages show experiments that are made here: models, rather than conversations."""

SHORT_TIMEOUTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


@dataclass
class RunRecord:
    """What is known of a run, sent or not; all of it is JSON.

    Attributes
    ----------
    identifier : str
        Of the record.
    tracking_uri : str
        Where it belongs.
    experiment_name, experiment_id : str or None
        One of them says in which experiment; the name goes before.
    run_name : str or None
        None for one that MLflow makes up.
    start_time, end_time : int
        Milliseconds since 1970.
    status : str or None
        ``"FINISHED"``, ``"FAILED"`` or ``"KILLED"``; None while it goes on.
    params, tags : dict of {str: str}
        Shortened to what MLflow takes.
    metrics : list of [name, value, milliseconds, step]
        In the order in which they were noted.
    datasets : list of dict
        Arguments of :class:`mlflow.entities.Dataset`, and ``context``.
    run_id : str or None
        On the server, once there is one.
    sent : dict
        How much of each part has been sent.
    files : dict of {str: str}
        SHA-256 of each file that belongs to a record that waits, by its path in the folder.
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
        """Note parameters, with names and values as MLflow takes them."""
        for name, value in params.items():
            text = masked(value)
            if len(text) > LONGEST_PARAM:
                text = text[: LONGEST_PARAM - 1] + "…"
            self.params[valid_name(name)] = text

    def add_tags(self, tags):
        """Note tags."""
        for name, value in tags.items():
            text = masked(value)
            self.tags[name] = text if len(text) <= LONGEST_TAG else text[: LONGEST_TAG - 1] + "…"

    def add_metrics(self, values, time, step):
        """Note numbers of one step."""
        for name, value in values.items():
            self.metrics.append([valid_name(name), float(value), time, int(step)])

    def save(self, folder):
        """Write the record into a folder, without the password of its address."""
        about = {**asdict(self), "tracking_uri": masked(self.tracking_uri)}
        about["sha256"] = digest_of(about)
        write_atomically(Path(folder) / FILE, json.dumps(about, indent=1), "tracker")

    @classmethod
    def load(cls, folder):
        """Read the record of a folder.

        Raises
        ------
        ValueError
            Naming the file, if it is corrupt or was changed.
        """
        path = Path(folder) / FILE
        try:
            found = json.loads(path.read_bytes())
            if found.pop("sha256") == digest_of(found):
                return cls(**found)
        except (ValueError, TypeError, AttributeError, KeyError):
            pass
        raise ValueError(f"{str(path)!r} is corrupt, was changed, or is no record of a fit")


def digest_of(about):
    """Return the SHA-256 of what a record says."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def valid_name(name):
    """Return a name of a parameter or metric with no character that MLflow refuses."""
    kept = "".join(c if c.isalnum() or c in "_-. /" else "_" for c in str(name))
    # MLflow takes names for paths.
    parts = [part for part in kept[:LONGEST_NAME].split("/") if part not in ("", ".", "..")]
    return "/".join(parts) or "_"


def import_mlflow(owner):
    """Return MLflow.

    Raises
    ------
    ImportError
        Saying how to install it.
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
    """Send what has not been sent yet.

    Parameters
    ----------
    record : RunRecord
        Receives what was sent, so that a failed attempt can be resumed.
    folder : Path
        Has ``artifacts`` and, if there is one, ``model``.
    client : mlflow.MlflowClient
        Of the server.
    """
    if record.run_id is None:
        create_run(record, client)
    send_values(record, client)
    send_datasets(record, client)
    for name in artifact_names(folder):
        if record.files and f"{ARTIFACTS}/{name}" not in record.files:
            # Of the user, who put it there while the record waited.
            continue
        send_artifact(record, folder, name, client)
    if (folder / MODEL).is_dir() and not record.sent.get("model"):
        send_model(record, folder / MODEL, client)
    if record.status is not None:
        with without_link(record.tracking_uri):
            client.set_terminated(record.run_id, record.status, record.end_time)


def create_run(record, client):
    """Make a run on the server."""
    experiment_id = find_experiment(record, client)
    run = client.create_run(experiment_id, record.start_time, dict(record.tags), record.run_name)
    record.run_id, record.run_name = run.info.run_id, run.info.run_name
    record.experiment_id = experiment_id
    record.sent["tags"] = len(record.tags)


def find_experiment(record, client):
    """Return the identifier of the experiment, which is made if there is none of its name."""
    from mlflow.exceptions import MlflowException

    if record.experiment_name is None:
        return record.experiment_id or "0"
    found = client.get_experiment_by_name(record.experiment_name)
    if found is None:
        try:
            return client.create_experiment(record.experiment_name, tags=KIND)
        except MlflowException:
            # Another process was faster.
            found = client.get_experiment_by_name(record.experiment_name)
            if found is None:
                raise
    return found.experiment_id


def send_values(record, client):
    """Send parameters, tags and metrics, many in a request."""
    from mlflow.entities import Metric, Param, RunTag

    sent = record.sent
    parts = {
        "params": ([Param(*item) for item in record.params.items()], MOST_PARAMS),
        "tags": ([RunTag(*item) for item in record.tags.items()], MOST_PARAMS),
        "metrics": (record.metrics, MOST_METRICS),
    }
    while True:
        starts = {name: sent.get(name, 0) for name in parts}
        batch = {
            name: values[starts[name] : starts[name] + most]
            for name, (values, most) in parts.items()
        }
        if not any(batch.values()):
            return
        counts = {name: starts[name] + len(values) for name, values in batch.items()}
        batch["metrics"] = [Metric(*values) for values in batch["metrics"]]
        client.log_batch(record.run_id, **batch)
        sent.update(counts)


def send_datasets(record, client):
    """Send what is known of the rows."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.exceptions import MlflowException

    start = record.sent.get("datasets", 0)
    inputs = []
    for described in record.datasets[start:]:
        arguments = dict(described)
        context = InputTag("mlflow.data.context", arguments.pop("context"))
        inputs.append(DatasetInput(Dataset(**arguments), [context]))
    if inputs:
        try:
            client.log_inputs(record.run_id, inputs)
        except MlflowException:
            # Another process may have sent the same rows, which MLflow finds now.
            client.log_inputs(record.run_id, inputs)
    record.sent["datasets"] = len(record.datasets)


def artifact_names(folder):
    """Return the files of a record, relative to its artifacts."""
    root = folder / ARTIFACTS
    paths = [path for path in root.rglob("*") if path.is_file() and path.name[0] != "."]
    return sorted(path.relative_to(root).as_posix() for path in paths)


def send_artifact(record, folder, name, client):
    """Send a file, unless it has been sent."""
    sent = record.sent.setdefault(ARTIFACTS, [])
    if name not in sent:
        parent = name.rpartition("/")[0] or None
        client.log_artifact(record.run_id, str(folder / ARTIFACTS / name), parent)
        sent.append(name)


def send_model(record, folder, client):
    """Send a saved model and tie it to the run."""
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


# ---------------------------------------------------------------------- servers that are down

_lock = ForkSafeLock()
_impatient = {"depth": 0, "set": []}


@contextmanager
def short_timeouts():
    """Cut MLflow's retries, which take minutes, unless the user has set how many there are."""
    state = _impatient
    with _lock:
        # Of threads that are in here at once, the last to leave restores what the first one found.
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
    """Keep MLflow from printing the address of a run, if that has a password."""
    name = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"
    if masked(uri) == uri or name in os.environ:
        yield
        return
    os.environ[name] = "true"
    try:
        yield
    finally:
        os.environ.pop(name, None)


def save_pending(record, folder, waiting):
    """Move a record to where it waits; it is there whole or not at all.

    Parameters
    ----------
    record : RunRecord
        Is written too.
    folder : Path
        With the record's files.
    waiting : Path
        Made by this; must not be there.
    """
    record.files = digests_in(folder)
    record.save(folder)
    waiting.parent.mkdir(parents=True, exist_ok=True)
    temporary = waiting.with_name(f".{waiting.name}.part")
    try:
        shutil.copytree(folder, temporary)
        temporary.rename(waiting)
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
    """Raise ``ValueError`` naming a file of a record that is corrupt, was changed or is missing."""
    for name, digest in record.files.items():
        path = folder / name
        if not path.is_file() or file_digest(path) != digest:
            raise ValueError(f"{str(path)!r} is corrupt, was changed or is missing")


def remove_files(record, folder):
    """Remove the files of a record, and directories that are empty then."""
    paths = [folder / name for name in record.files]
    for path in [*paths, folder / FILE]:
        path.unlink(missing_ok=True)
    parents = {parent for path in paths for parent in path.relative_to(folder).parents}
    # The deepest first; those with other files stay.
    for parent in sorted(parents, key=lambda each: len(each.parts), reverse=True):
        with suppress(OSError):
            (folder / parent).rmdir()
    with suppress(OSError):
        folder.rmdir()


def upload(directory, tracking_uri=None):
    """Send a record that could not be sent while its model was fitted.

    Parameters
    ----------
    directory : str or path-like
        Of the record, as the warning of the fit named it: ``mlflow-pending/<identifier>``. The
        files of the record are removed once all of it has arrived, and the directory if it holds
        no others.
    tracking_uri : str, optional
        Where to; by default where it was meant to go. A run that had been begun there is completed.
        An address with a password has to be given again, because passwords are not stored.

    Returns
    -------
    str
        The run's identifier.

    Raises
    ------
    FileNotFoundError
        If there is no record in the directory.
    ValueError
        Naming a file of the record that is corrupt, was changed or is missing, or if the record's
        address had a password and none is given.
    ImportError
        Without MLflow.
    mlflow.exceptions.MlflowException
        If it cannot be sent. The directory then knows what has been, and may be sent again.
    """
    mlflow = import_mlflow("upload")
    folder = Path(directory)
    if not (folder / FILE).is_file():
        raise FileNotFoundError(f"upload: there is no {FILE} in {str(folder)!r}")
    record = RunRecord.load(folder)
    check_files(record, folder)
    if tracking_uri is None and MASK in record.tracking_uri:
        raise ValueError(
            f"upload: the record is for {record.tracking_uri}, whose password is not stored; give "
            "tracking_uri"
        )
    if tracking_uri is not None and masked(tracking_uri) == record.tracking_uri:
        record.tracking_uri = tracking_uri
    if tracking_uri is not None and tracking_uri != record.tracking_uri:
        # Nothing of it is known there, the run that it belongs to and the experiment's number
        # included.
        record.tracking_uri, record.run_id, record.sent = tracking_uri, None, {}
        record.experiment_id = None
        record.tags.pop("mlflow.parentRunId", None)
    with masked_errors():
        client = mlflow.MlflowClient(tracking_uri=record.tracking_uri)
        if record.run_id is not None and not is_there(record.run_id, client):
            record.run_id, record.sent = None, {}
        try:
            send(record, folder, client)
        except BaseException:
            # Of a model that was sent in part, a file names where.
            record.files = {name: file_digest(folder / name) for name in record.files}
            record.save(folder)
            raise
    remove_files(record, folder)
    return record.run_id


def is_there(run_id, client):
    """Tell whether a server has a run."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True
