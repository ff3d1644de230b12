"""Search spaces of the estimators, for scikit-learn's searches and for Optuna.

Examples
--------
>>> from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
>>> from sk_easytensor import EasyTensorClassifier, search_spaces
>>> search = GridSearchCV(EasyTensorClassifier(), search_spaces.grid(), scoring="neg_log_loss")
>>> space = search_spaces.distributions(prefix="model__")  # of a pipeline's last step
>>> sorted(space)[:2]
['model__learning_rate', 'model__trunk__dropout']
"""

from __future__ import annotations

from dataclasses import dataclass

from scipy.stats import loguniform, uniform

__all__ = [
    "RANGES",
    "Choices",
    "Interval",
    "distributions",
    "grid",
    "suggest",
]


@dataclass(frozen=True)
class Choices:
    """Choice of one of several values.

    Parameters
    ----------
    values : tuple
        Values to choose from.
    """

    values: tuple

    def grid(self):
        """Return the values of a grid."""
        return list(self.values)

    def distribution(self):
        """Return a list of the values, for ``RandomizedSearchCV``."""
        return list(self.values)

    def suggest(self, trial, name):
        """Return the value that an Optuna trial suggests."""
        return trial.suggest_categorical(name, list(self.values))


@dataclass(frozen=True)
class Interval:
    """Interval of numbers.

    Parameters
    ----------
    low, high : float
        Bounds.
    grid_values : tuple of float
        Values of a grid.
    log : bool, default=False
        Whether the logarithm is uniformly distributed, rather than the number.
    """

    low: float
    high: float
    grid_values: tuple
    log: bool = False

    def grid(self):
        """Return the values of a grid."""
        return list(self.grid_values)

    def distribution(self):
        """Return a distribution of scipy.stats, for ``RandomizedSearchCV``."""
        if self.log:
            return loguniform(self.low, self.high)
        return uniform(self.low, self.high - self.low)

    def suggest(self, trial, name):
        """Return the number that an Optuna trial suggests."""
        return trial.suggest_float(name, self.low, self.high, log=self.log)


RANGES = {
    "learning_rate": Interval(4e-3, 6e-2, grid_values=(1.2e-2, 2.4e-2, 4e-2), log=True),
    "trunk__dropout": Interval(0.0, 0.4, grid_values=(0.0, 0.1)),
    "weight_decay": Interval(1e-3, 0.3, grid_values=(1e-2, 5e-2, 0.2), log=True),
    "trunk__members": Choices((4, 8, 16)),
    "trunk__width": Choices((64, 96, 128, 256)),
    "trunk__layers": Choices((1, 2, 3)),
}
"""Ranges of parameters of the estimators by name, the most important parameters first."""

FIRST = ("learning_rate", "trunk__dropout")


def grid(names=FIRST, *, prefix=""):
    """Return a grid for :class:`~sklearn.model_selection.GridSearchCV`.

    Parameters
    ----------
    names : iterable of str, default=("learning_rate", "trunk__dropout")
        Keys of `RANGES`.
    prefix : str, default=""
        Prefix of each name, such as ``"model__"`` for an estimator that is the step ``"model"`` of
        a pipeline.

    Returns
    -------
    dict of {str: list}

    Raises
    ------
    ValueError
        If a name is not a key of `RANGES`.

    Examples
    --------
    >>> grid(["trunk__layers"], prefix="model__")
    {'model__trunk__layers': [1, 2, 3]}
    """
    return {prefix + name: space.grid() for name, space in _spaces(names)}


def distributions(names=tuple(RANGES), *, prefix=""):
    """Return distributions for :class:`~sklearn.model_selection.RandomizedSearchCV`.

    Parameters
    ----------
    names : iterable of str, default=all
        Keys of `RANGES`.
    prefix : str, default=""
        Prefix of each name.

    Returns
    -------
    dict of {str: list or frozen distribution of scipy.stats}

    Raises
    ------
    ValueError
        If a name is not a key of `RANGES`.

    Examples
    --------
    >>> space = distributions(["learning_rate"])
    >>> bool(4e-3 <= space["learning_rate"].rvs(random_state=0) <= 6e-2)
    True
    """
    return {prefix + name: space.distribution() for name, space in _spaces(names)}


def suggest(trial, names=tuple(RANGES), *, prefix=""):
    """Return parameters that an Optuna trial suggests, for ``set_params``.

    Parameters
    ----------
    trial : optuna.trial.Trial
        Trial, or another object with ``suggest_float`` and ``suggest_categorical``.
    names : iterable of str, default=all
        Keys of `RANGES`.
    prefix : str, default=""
        Prefix of each name.

    Returns
    -------
    dict of {str: float or int}

    Raises
    ------
    ValueError
        If a name is not a key of `RANGES`.

    Examples
    --------
    >>> import optuna
    >>> from sk_easytensor import EasyTensorClassifier
    >>> trial = optuna.trial.FixedTrial({"learning_rate": 0.01, "trunk__layers": 3})
    >>> params = suggest(trial, ["learning_rate", "trunk__layers"])
    >>> EasyTensorClassifier().set_params(**params)
    EasyTensorClassifier(learning_rate=0.01,
                         trunk=TabM(dropout=0.0, layers=3, members=4, width=96))
    """
    return {prefix + name: space.suggest(trial, prefix + name) for name, space in _spaces(names)}


def _spaces(names):
    names = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in names if name not in RANGES]
    if unknown:
        raise ValueError(f"names must be among {list(RANGES)}, got {unknown[0]!r}")
    return [(name, RANGES[name]) for name in names]
