"""A plot of permutation importances, in the style of scikit-learn's displays."""

from __future__ import annotations

from inspect import signature

import numpy as np

from sk_easytensor._utils.validation import check_number
from sk_easytensor.inspection.importance import permutation_importance

__all__ = [
    "PermutationImportanceDisplay",
]


class PermutationImportanceDisplay:
    """A box for each column or block, over the repeats, those that matter most on top.

    Use :meth:`from_estimator` or :meth:`from_importances`; needs matplotlib.

    Parameters
    ----------
    importances : ndarray of shape (n_features, n_repeats)
        How much the score fell.
    names : sequence of str
        Of the columns or blocks.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
        The axes drawn on.
    figure_ : matplotlib.figure.Figure
        Their figure.
    boxes_ : dict of {str: list}
        The artists, as :meth:`matplotlib.axes.Axes.boxplot` returns them.

    Examples
    --------
    >>> display = PermutationImportanceDisplay([[0.1, 0.3], [0.5, 0.6]], ["size", "city"])
    >>> display.plot().ax_.get_yticklabels()[-1].get_text()
    'city'
    """

    def __init__(self, importances, names):
        self.importances = np.asarray(importances, dtype=np.float64)
        self.names = [str(name) for name in names]
        if self.importances.ndim != 2 or len(self.importances) != len(self.names):
            raise ValueError(
                f"{type(self).__name__}: importances must have shape (n_features, n_repeats) for "
                f"{len(self.names)} names, got shape {self.importances.shape}"
            )

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X,
        y,
        *,
        scoring=None,
        n_repeats=5,
        by="column",
        random_state=None,
        sample_weight=None,
        max_samples=1.0,
        n_jobs=None,
        max_features=20,
        ax=None,
        **boxplot_kwargs,
    ):
        """Compute the importances and plot them.

        Parameters
        ----------
        estimator, X, y, n_repeats, by, random_state, sample_weight, max_samples, n_jobs
            As of :func:`permutation_importance`.
        scoring : str, callable or None, default=None
            A single scorer.
        max_features, ax, **boxplot_kwargs
            As of :meth:`plot`.

        Returns
        -------
        PermutationImportanceDisplay
        """
        _check_matplotlib(f"{cls.__name__}.from_estimator")
        result = permutation_importance(
            estimator,
            X,
            y,
            scoring=scoring,
            n_repeats=n_repeats,
            by=by,
            random_state=random_state,
            sample_weight=sample_weight,
            max_samples=max_samples,
            n_jobs=n_jobs,
        )
        return cls.from_importances(result, max_features=max_features, ax=ax, **boxplot_kwargs)

    @classmethod
    def from_importances(cls, result, *, names=None, max_features=20, ax=None, **boxplot_kwargs):
        """Plot importances that were computed before.

        Parameters
        ----------
        result : Bunch
            Of :func:`permutation_importance`, or scikit-learn's.
        names : sequence of str, optional
            Of the columns; needed where the result has none, as scikit-learn's.
        max_features, ax, **boxplot_kwargs
            As of :meth:`plot`.

        Returns
        -------
        PermutationImportanceDisplay

        Raises
        ------
        ValueError
            If the result is of several scorers, or there are no names.
        """
        if "importances" not in result:
            raise ValueError(
                f"{cls.__name__}: result must be of one scorer, got one for each of {list(result)}"
            )
        names = result.get("names") if names is None else names
        if names is None:
            raise ValueError(f"{cls.__name__}: result has no names; give names")
        display = cls(result["importances"], names)
        return display.plot(max_features=max_features, ax=ax, **boxplot_kwargs)

    def plot(self, *, max_features=20, ax=None, **boxplot_kwargs):
        """Draw the boxes.

        Parameters
        ----------
        max_features : int or None, default=20
            Only so many, those that matter most on average; None for all.
        ax : matplotlib.axes.Axes, optional
            Where to draw; by default on axes of a new figure.
        **boxplot_kwargs
            Passed to :meth:`matplotlib.axes.Axes.boxplot`.

        Returns
        -------
        self

        Raises
        ------
        ImportError
            Without matplotlib.
        """
        _check_matplotlib(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt

        if max_features is not None:
            check_number(type(self).__name__, "max_features", max_features, low=1, integer=True)
        # Stable, so that columns that matter alike stay in their order from the top down.
        order = np.argsort(-self.importances.mean(axis=1), kind="stable")[:max_features][::-1]
        if ax is None:
            _, ax = plt.subplots(figsize=(6.4, 1 + 0.3 * len(order)), layout="constrained")
        # The second is the name that matplotlib had for it before 3.10.
        known = "orientation" in signature(ax.boxplot).parameters
        lying = {"orientation": "horizontal"} if known else {"vert": False}
        self.boxes_ = ax.boxplot(self.importances[order].T, **{**lying, **boxplot_kwargs})
        ax.set_yticks(np.arange(1, len(order) + 1), [self.names[index] for index in order])
        ax.axvline(0, color="0.6", linewidth=0.8, zorder=0)
        ax.set(xlabel="Fall of the score")
        self.ax_, self.figure_ = ax, ax.figure
        return self


def _check_matplotlib(caller):
    """Raise ``ImportError`` that says what needs matplotlib."""
    try:
        import matplotlib.pyplot  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'{caller} needs matplotlib; install it with: pip install "matplotlib>=3.9"'
        ) from error
