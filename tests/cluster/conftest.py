"""A cluster of several machines, each a process of its own, and a store of objects."""

import os
import socket
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from on_workers import make_shop, quick_settings, send_by_value

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.timeout(900))
            item.add_marker(pytest.mark.xdist_group("ray"))


@pytest.fixture
def machines(monkeypatch):
    """A head without processors and three machines with one each."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    ray.shutdown()
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    memory = {"object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **memory})
    nodes = [cluster.add_node(num_cpus=1, **memory) for _ in range(3)]
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    send_by_value()
    yield Machines(cluster, nodes)
    ray.shutdown()
    cluster.shutdown()


class Machines:
    """Machines of a cluster, which can be switched off."""

    def __init__(self, cluster, nodes):
        self.cluster = cluster
        self.nodes = {node.node_id: node for node in nodes}

    def switch_off(self, name):
        """Kill all processes of a machine."""
        # Collected with all tests, which do without the extra of these.
        import psutil

        node = self.nodes.pop(name)
        (raylet,) = node.all_processes["raylet"]
        workers = psutil.Process(raylet.process.pid).children(recursive=True)
        self.cluster.remove_node(node, allow_graceful=False)
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.kill()


@pytest.fixture(scope="session")
def shop():
    return make_shop(1200)


@pytest.fixture(scope="session")
def parts(shop):
    """The rows as tables."""
    return [
        pa.Table.from_pandas(shop[start : start + 100], preserve_index=False)
        for start in range(0, len(shop), 100)
    ]


@pytest.fixture
def files(parts, tmp_path):
    """Directory of the rows as Parquet files."""
    where = tmp_path / "shop"
    where.mkdir()
    for index, part in enumerate(parts):
        pq.write_table(part, where / f"part-{index:02}.parquet")
    return where


@pytest.fixture
def quick():
    return quick_settings(max_epochs=4, early_stopping_rounds=None)


@pytest.fixture
def bucket(monkeypatch):
    """URL of a bucket of a server that speaks the protocol of S3."""
    server = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    running.start()
    endpoint = f"http://127.0.0.1:{port}"
    variables = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("bucket")
    yield "s3://bucket"
    running.stop()
    s3fs.S3FileSystem.clear_instance_cache()
