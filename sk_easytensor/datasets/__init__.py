"""Small real data sets for examples, demos and tests."""

from sk_easytensor.datasets._clothing_reviews import load_clothing_reviews
from sk_easytensor.datasets._flights import load_flights

__all__ = ["load_clothing_reviews", "load_flights"]
