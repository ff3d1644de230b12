"""How MLflow loads estimators that transform and do not predict, as functions of a table."""

from __future__ import annotations

__all__ = ["_load_pyfunc"]


def _load_pyfunc(path):
    """Return a saved estimator; MLflow calls its ``transform``."""
    from mlflow.sklearn import _load_pyfunc as load

    return load(path).get_raw_model()
