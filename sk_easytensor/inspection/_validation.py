"""How good predictions are on rows held out, in a few numbers that hold no row."""

from __future__ import annotations

import numpy as np

__all__ = ["calibration", "residual_bins"]

BINS = 10
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def calibration(probabilities, happened, weight):
    """Compare probabilities with how often what they are of happened.

    Parameters
    ----------
    probabilities : ndarray of float, shape (n,)
        Predicted.
    happened : ndarray of bool, shape (n,)
        Whether it did.
    weight : ndarray of float, shape (n,)
        Row weights, some of them positive.

    Returns
    -------
    ndarray of float64, shape (10, 2)
        Mean probability and share that happened, in bins of as many rows, by rising probability.
        NaN where no row of a bin has weight.
    """
    table = np.full((BINS, 2), np.nan)
    for index, rows in enumerate(_bins(probabilities)):
        if weight[rows].sum() > 0:
            table[index] = [
                np.average(values[rows], weights=weight[rows])
                for values in (probabilities, happened)
            ]
    return table


def residual_bins(predicted, actual, weight):
    """Return how far targets are from predictions, by prediction.

    Parameters
    ----------
    predicted, actual : ndarray of float, shape (n,)
        Predictions and targets.
    weight : ndarray of float, shape (n,)
        Row weights, some of them positive.

    Returns
    -------
    ndarray of float64, shape (10, 6)
        Mean prediction, and the 5%, 25%, 50%, 75% and 95% quantiles of target minus prediction, in
        bins of as many rows, by rising prediction. NaN where no row of a bin has weight.
    """
    table = np.full((BINS, 1 + len(QUANTILES)), np.nan)
    for index, rows in enumerate(_bins(predicted)):
        rows = rows[weight[rows] > 0]
        if len(rows):
            table[index, 0] = np.average(predicted[rows], weights=weight[rows])
            table[index, 1:] = _quantiles(actual[rows] - predicted[rows], weight[rows])
    return table


def _bins(values):
    return np.array_split(np.argsort(values, kind="stable"), BINS)


def _quantiles(values, weight):
    order = np.argsort(values, kind="stable")
    mass = weight[order].cumsum()
    places = np.searchsorted(mass, np.array(QUANTILES) * mass[-1])
    return values[order][np.minimum(places, len(order) - 1)]
