"""Checks of parameters, and warnings that point to the user's code."""

from __future__ import annotations

import math
import sys
from inspect import Parameter, signature
from numbers import Integral, Real
from pathlib import Path
from warnings import warn

from sk_easytensor._utils.unknown_parameters import (
    parameter_names,
    unknown_parameter,
    with_known_keywords,
)

__all__ = [
    "warn_of_unseen",
    "warn_user",
]


class ParametersMixin:
    """Mixin for parameters that later versions and subclasses of users extend.

    Pickles without a parameter load with its default. A subclass whose ``__init__`` has
    ``**kwargs`` has the parameters of its base class too. Errors about unknown parameters suggest
    known ones.
    """

    def __init_subclass__(cls, **kwargs):
        """Decorate the methods that users call, so that errors suggest known keywords."""
        super().__init_subclass__(**kwargs)
        for name in ("__init__", "fit", "partial_fit"):
            if name in vars(cls):
                setattr(cls, name, with_known_keywords(vars(cls)[name]))

    @classmethod
    def _get_param_names(cls):
        return sorted(parameter_names(cls))

    def set_params(self, **params):
        """Set parameters.

        Parameters
        ----------
        **params : dict
            Values by parameter name, as ``get_params`` returns them.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter is unknown; the message suggests another one.
        """
        known = parameter_names(type(self))
        for name in params:
            if name.partition("__")[0] not in known:
                instead = unknown_parameter(type(self), name, known)
                raise ValueError(
                    f"Invalid parameter {name!r} for estimator {type(self).__name__}: {instead}"
                )
        return super().set_params(**params)

    def __setstate__(self, state):
        """Restore a pickled state."""
        super().__setstate__(state)
        for kind in type(self).__mro__:
            if "__init__" not in vars(kind):
                continue
            for name, parameter in signature(kind.__init__).parameters.items():
                if parameter.default is not Parameter.empty and name not in vars(self):
                    setattr(self, name, parameter.default)


def shortened(value, to_text=repr, length=60):
    """Return ``to_text(value)``, truncated to at most `length` characters."""
    text = to_text(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."


def check_choice(owner, name, value, choices):
    """Raise ``ValueError`` unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{owner}: {name} must be one of {list(choices)}, got {value!r}")


def check_number(owner, name, value, *, low=None, high=None, integer=False, exclusive=False):
    """Raise ``ValueError`` unless `value` is a finite number within the bounds.

    Parameters
    ----------
    owner, name : str
        Class name and parameter name, for the error message.
    value : object
        Value to check.
    low, high : number, optional
        Bounds, inclusive unless `exclusive`.
    integer : bool, default=False
        Whether the value must be an integer.
    exclusive : bool, default=False
        Whether the bounds are exclusive.

    Raises
    ------
    ValueError
        If the value is not accepted. The message names parameter, value and bounds.
    """
    kind = Integral if integer else Real
    fits = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    if fits and low is not None:
        fits = value > low if exclusive else value >= low
    if fits and high is not None:
        fits = value < high if exclusive else value <= high
    if not fits:
        noun = "an integer" if integer else "a number"
        bounds = []
        if low is not None:
            bounds.append(f"{'greater than' if exclusive else 'at least'} {low}")
        if high is not None:
            bounds.append(f"{'less than' if exclusive else 'at most'} {high}")
        expected = " ".join([noun, " and ".join(bounds)]).strip()
        raise ValueError(f"{owner}: {name} must be {expected}, got {value!r}")


PACKAGE = str(Path(__file__).parent.parent)


def warn_user(message, category=UserWarning):
    """Issue a warning at the first line outside this package.

    Parameters
    ----------
    message : str
        Message of the warning.
    category : type, default=UserWarning
        Class of the warning.
    """
    level, frame = 1, sys._getframe()
    # Decorators of methods are frames too, so the number of frames is not constant.
    while frame is not None and frame.f_code.co_filename.startswith(PACKAGE):
        level, frame = level + 1, frame.f_back
    warn(message, category, stacklevel=level)


def warn_of_unseen(column, n_rows, block):
    """Warn about a column of which no value is a known category.

    Parameters
    ----------
    column : str
        Name of the column.
    n_rows : int
        Number of rows of the table.
    block : str
        Class name of the block that reads the column.
    """
    warn_user(
        f"column {column!r}: no value of its {n_rows} rows is a category that {block} saw during "
        "fit, so that all are read as unseen ones; check that the values are written as they were"
    )
