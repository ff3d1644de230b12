"""The contract of backends, on Ray."""

import backend_contract
import pytest
from backend_contract import BackendContract

from sk_easytensor.backends import RayBackend


class TestRay(BackendContract):
    @pytest.fixture
    def backend(self, cluster):
        import ray.cloudpickle

        # Workers cannot import tests.
        ray.cloudpickle.register_pickle_by_value(backend_contract)
        return RayBackend(num_workers=0, chunk_rows=50)
