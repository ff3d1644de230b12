"""Fixed seeds give the predictions that they gave before."""

import numpy as np
import pinned
import pytest


@pytest.fixture(scope="module")
def found():
    return pinned.predictions()


@pytest.mark.parametrize("name", sorted(pinned.kept()))
def test_predictions_stay_what_they_are(name, found):
    # Processors of other kinds round otherwise.
    np.testing.assert_allclose(found[name], pinned.kept()[name], rtol=1e-3, atol=1e-4)
