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
    """Box plot of permutation importances, with the most important columns or blocks on top.

    Each box shows the repeats of one column or block. Use :meth:`from_estimator` or
    :meth:`from_importances` to create a display. Plotting requires matplotlib.

    Parameters
    ----------
    importances : array-like of shape (n_features, n_repeats)
        Decrease of the score in each repeat.
    names : sequence of str
        Names of the columns or blocks.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
        Axes of the plot.
    figure_ : matplotlib.figure.Figure
        Figure of the axes.
    boxes_ : dict of {str: list}
        Artists that :meth:`matplotlib.axes.Axes.boxplot` returned.

    Raises
    ------
    ValueError
        If the number of names is not that of the importances.

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
            Parameters of :func:`permutation_importance`.
        scoring : str, callable or None, default=None
            Single scorer; None for the ``score`` of the estimator.
        max_features, ax, **boxplot_kwargs
            Parameters of :meth:`plot`.

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
            Result of :func:`permutation_importance` or
            :func:`sklearn.inspection.permutation_importance`, for one scorer.
        names : sequence of str, optional
            Names of the columns. They are required if the result has no ``names``, as that of
            scikit-learn.
        max_features, ax, **boxplot_kwargs
            Parameters of :meth:`plot`.

        Returns
        -------
        PermutationImportanceDisplay

        Raises
        ------
        ValueError
            If the result is that of several scorers, or has no names and `names` is None.
        """
        if "importances" not in result:
            raise ValueError(
                f"{cls.__name__}: result must be of one scorer, got one for each of {list(result)}"
            )
        names = result.get("names") if names is None else names
        if names is None:
            raise ValueError(f"{cls.__name__}: result has no names; pass the parameter names")
        display = cls(result["importances"], names)
        return display.plot(max_features=max_features, ax=ax, **boxplot_kwargs)

    def plot(self, *, max_features=20, ax=None, **boxplot_kwargs):
        """Draw the boxes.

        Parameters
        ----------
        max_features : int or None, default=20
            Number of columns or blocks to draw, those with the largest mean importances; None for
            all.
        ax : matplotlib.axes.Axes, optional
            Axes to draw on; by default those of a new figure.
        **boxplot_kwargs
            Keyword arguments of :meth:`matplotlib.axes.Axes.boxplot`.

        Returns
        -------
        self

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If `max_features` is neither an integer of at least 1 nor None.
        """
        _check_matplotlib(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt

        if max_features is not None:
            check_number(type(self).__name__, "max_features", max_features, low=1, integer=True)
        # Stable, so that columns of equal importance keep their order from the top down.
        order = np.argsort(-self.importances.mean(axis=1), kind="stable")[:max_features][::-1]
        if ax is None:
            _, ax = plt.subplots(figsize=(6.4, 1 + 0.3 * len(order)), layout="constrained")
        # matplotlib before 3.10 has the parameter vert.
        has_orientation = "orientation" in signature(ax.boxplot).parameters
        horizontal = {"orientation": "horizontal"} if has_orientation else {"vert": False}
        self.boxes_ = ax.boxplot(self.importances[order].T, **{**horizontal, **boxplot_kwargs})
        ax.set_yticks(np.arange(1, len(order) + 1), [self.names[index] for index in order])
        ax.axvline(0, color="0.6", linewidth=0.8, zorder=0)
        ax.set(xlabel="Decrease of the score")
        self.ax_, self.figure_ = ax, ax.figure
        return self


def _check_matplotlib(caller):
    """Raise ``ImportError`` naming the caller if matplotlib is not installed."""
    try:
        import matplotlib.pyplot  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'{caller} needs matplotlib; install it with: pip install "matplotlib>=3.9"'
        ) from error
