"""Small data sets for examples and tests: two real ones, and generated interactions."""

from sk_easytensor.datasets._clothing_reviews import load_clothing_reviews
from sk_easytensor.datasets._flights import load_flights
from sk_easytensor.datasets._interactions import make_interactions

__all__ = ["load_clothing_reviews", "load_flights", "make_interactions"]
