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
        _assert_alike(list(left.__getstate__().items()), list(right.__getstate__().items()), where)
    else:
        assert left == right, where


@pytest.fixture(scope="session")
def assert_same_fit():
    """Compare two fitted blocks attribute by attribute."""

    def compare(left, right):
        # Without what is made from the rest where it is asked for.
        left, right = left.__getstate__(), right.__getstate__()
        assert left.keys() == right.keys()
        for name in left:
            _assert_alike(left[name], right[name], name)

    return compare
