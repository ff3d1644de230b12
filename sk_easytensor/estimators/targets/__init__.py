"""Targets: the computations of estimators that concern their `y`."""
