import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from sk_easytensor import MLP, BoostedTrees, EasyTensorClassifier

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


def pytest_collection_modifyitems(items):
    # One process of pytest-xdist runs what needs a server, so that one is started.
    for item in items:
        if {"server", "make_server", "mortal"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group("server"))


@pytest.fixture(scope="session")
def migrated(tmp_path_factory):
    """An empty database with MLflow's tables, which take seconds to make."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


def place_database(migrated, folder):
    """Copy the empty database to a folder, where its runs' artifacts shall be too."""
    path = folder / "mlflow.db"
    shutil.copy(migrated, path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE experiments SET artifact_location = ?", [f"{folder}/mlruns/0"])
    return f"sqlite:///{path}"


def forget_stores():
    """Make MLflow open its default database anew, which the working directory decides."""
    registry = mlflow.tracking._tracking_service.utils._tracking_store_registry
    registry._get_store_with_resolved_uri.cache_clear()
    # Connections are kept by the path, which is relative in older versions, such as 3.9.
    SqlAlchemyStore._engine_map.pop("sqlite:///mlflow.db", None)


@pytest.fixture
def work(tmp_path, monkeypatch, migrated):
    """An empty working directory in which MLflow keeps runs, as it does by default."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("MLFLOW_") and "TELE" not in name]:
        monkeypatch.delenv(name)
    place_database(migrated, tmp_path)
    before = mlflow.tracking._tracking_service.utils._tracking_uri
    mlflow.set_tracking_uri(None)
    monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)
    forget_stores()
    yield tmp_path
    while mlflow.active_run() is not None:
        mlflow.end_run()
    mlflow.set_tracking_uri(before)


@pytest.fixture
def client(work):
    """A client of the database in the working directory."""
    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{work}/mlflow.db")


class Server:
    """A real server over SQLite.

    Parameters
    ----------
    folder : Path
        With its database.
    """

    def __init__(self, folder, port=None):
        self.folder = folder
        self.port = free_port() if port is None else port
        self.uri = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
        command += ["--artifacts-destination", str(folder / "artifacts"), "--serve-artifacts"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_TR")}
        # Processes for jobs, of which there are none.
        environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
        self.log = open(folder / "server.log", "wb")  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while not self.answers():
            text = (folder / "server.log").read_text()
            assert self.process.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.1)

    def answers(self):
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def stop(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, 9)
            self.process.wait()
        self.log.close()


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="session")
def make_server(tmp_path_factory, migrated):
    """A function that starts servers, which are stopped at the end."""
    servers = []

    def make(server=None):
        folder = tmp_path_factory.mktemp("server") if server is None else server.folder
        if server is None:
            place_database(migrated, folder)
            with sqlite3.connect(folder / "mlflow.db") as connection:
                connection.execute(
                    "UPDATE experiments SET artifact_location = 'mlflow-artifacts:/0'"
                )
        servers.append(Server(folder, None if server is None else server.port))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def server(make_server):
    """A server that all tests may use."""
    return make_server()


def make_table(n_rows=80):
    """Return columns of strings, lists, dates and numbers, values missing, and labels."""
    rng = np.random.default_rng(0)
    X = pd.DataFrame(
        {
            "amount": rng.normal(size=n_rows),
            "count": rng.integers(0, 9, n_rows),
            "city": rng.choice(["Oslo", "Lima", None], n_rows),
            "grade": pd.Categorical(rng.choice(["low", "high"], n_rows)),
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 99, n_rows), "D"),
            "items": [list("abc"[: i % 4]) if i % 7 else None for i in range(n_rows)],
        }
    )
    y = np.where(X["amount"] + (X["city"] == "Oslo") > 0.3, "yes", "no")
    X.loc[::9, "amount"] = None
    X.loc[1::9, "day"] = None
    return X, y


@pytest.fixture
def table():
    """Columns of strings, lists, dates and numbers, values missing, and labels."""
    return make_table()


QUICK = {
    "n_folds": None,
    "trunk": MLP(width=8),
    # Of labels without noise, trees would be grown to the last of a thousand.
    "trees": BoostedTrees(max_iter=20),
    "max_epochs": 3,
    "batch_size": 32,
    "random_state": 0,
}


@pytest.fixture
def classifier(work):
    """A function that makes quick classifiers, tracked in the working directory."""
    return lambda **params: EasyTensorClassifier(**{**QUICK, "tracker": "mlflow", **params})
