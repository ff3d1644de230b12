from functools import cached_property

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
        _assert_alike(list(attributes(left).items()), list(attributes(right).items()), where)
    else:
        assert left == right, where


def attributes(of):
    """Attributes of an object, without those made from the others where they are asked for."""
    kind = type(of)
    made = {name for name in dir(kind) if isinstance(getattr(kind, name), cached_property)}
    return {name: value for name, value in vars(of).items() if name not in made}


@pytest.fixture(scope="session")
def assert_same_fit():
    """Compare two fitted blocks attribute by attribute."""

    def compare(left, right):
        left, right = attributes(left), attributes(right)
        assert left.keys() == right.keys()
        for name in left:
            _assert_alike(left[name], right[name], name)

    return compare
