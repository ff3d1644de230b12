import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from on_workers import make_shop, quick_settings, send_by_value

from sk_easytensor import EasyTensorClassifier, EasyTensorRegressor
from sk_easytensor.backends.ray.backend import RayBackend

ROOT = Path(__file__).parents[2]


def pytest_collection_modifyitems(items):
    # One process of pytest-xdist runs them all, so that there is one cluster.
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("ray"))


def pytest_runtest_teardown(item, nextitem):
    last = nextitem is None or Path(__file__).parent not in nextitem.path.parents
    if last and "ray" in sys.modules:
        # Its processes would take time from the tests that follow.
        sys.modules["ray"].shutdown()


@pytest.fixture
def cluster():
    """Address of a cluster of two processors."""
    ray = pytest.importorskip("ray")
    if not ray.is_initialized():
        start_cluster(ray)
    return ray.get_runtime_context().gcs_address


def start_cluster(ray):
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([before] if before else [])])
    # Beside other tests, workers of low priority would hardly run.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=200 << 20,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
    )
    send_by_value()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="session")
def shop():
    """Rows with labels, scores and weights."""
    return make_shop(1200)


@pytest.fixture(scope="session")
def files(shop, tmp_path_factory):
    """Directory of the same rows as Parquet files of several row groups."""
    where = tmp_path_factory.mktemp("shop")
    for index in range(3):
        part = shop[index * 400 : (index + 1) * 400]
        table = pa.Table.from_pandas(part, preserve_index=False)
        pq.write_table(table, where / f"part-{index}.parquet", row_group_size=150)
    return where


@pytest.fixture
def quick():
    return quick_settings()


@pytest.fixture
def classifier(quick, cluster):
    """A function that makes quick classifiers; with no worker they train in this process."""

    def make(num_workers=0, **params):
        backend = RayBackend(num_workers=num_workers, **params.pop("how", {}))
        return EasyTensorClassifier(backend=backend, **{**quick, **params})

    return make


@pytest.fixture
def regressor(quick, cluster):
    def make(num_workers=0, **params):
        return EasyTensorRegressor(
            backend=RayBackend(num_workers=num_workers), **{**quick, **params}
        )

    return make
