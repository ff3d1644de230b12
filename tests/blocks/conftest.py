import pytest

from sk_easytensor import testing


@pytest.fixture(scope="session")
def assert_same_fit():
    """Compare two fitted blocks attribute by attribute."""
    return testing.assert_same_fit
