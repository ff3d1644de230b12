"""Backends of this machine: the library's own, and one that is written by the contract alone."""

import pytest
from backend_contract import BackendContract, ChunkedBackend

from sk_easytensor import EasyTensorClassifier
from sk_easytensor.backends import Backend, LocalBackend, resolve_backend


class TestLocal(BackendContract):
    @pytest.fixture
    def backend(self):
        return LocalBackend(n_jobs=2, chunk_rows=50)


class TestChunked(BackendContract):
    @pytest.fixture
    def backend(self):
        return ChunkedBackend()


def test_the_contract_has_two_verbs_without_default():
    assert Backend.__abstractmethods__ == {"read_dataset", "train"}


def test_only_backends_are_backends():
    class LooksAlike:
        distributed = False

    for wrong in (LooksAlike(), LocalBackend, "cluster", None, ["local"]):
        with pytest.raises(ValueError, match="backend must be 'local', 'ray' or a Backend"):
            resolve_backend(wrong, None)
    with pytest.raises(ValueError, match="backend must be"):
        EasyTensorClassifier(backend="cluster").fit({"x": [1.0, 2.0]}, [0, 1])
