import numpy as np
import pyarrow as pa
import pytest


def _assert_alike(left, right, where):
    if left is right:
        return
    assert type(left) is type(right), where
    if isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for one, other in zip(left, right, strict=True):
            _assert_alike(one, other, where)
    elif isinstance(left, np.ndarray) and left.dtype.kind == "f":
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-12, err_msg=where)
    elif isinstance(left, np.ndarray):
        np.testing.assert_array_equal(left, right, err_msg=where)
    elif isinstance(left, (pa.Array, pa.ChunkedArray)):
        assert left.equals(right), where
    elif hasattr(left, "__dict__") and type(left).__eq__ is object.__eq__:
        _assert_alike(list(vars(left).items()), list(vars(right).items()), where)
    else:
        assert left == right, where


@pytest.fixture(scope="session")
def assert_same_fit():
    """Compare two fitted blocks attribute by attribute."""

    def compare(left, right):
        assert vars(left).keys() == vars(right).keys()
        for name in vars(left):
            _assert_alike(vars(left)[name], vars(right)[name], name)

    return compare
