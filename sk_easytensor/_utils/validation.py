"""Checks of parameters, and the warnings that name them."""

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
    """Parameters of classes that grow: by later versions, and by subclasses of the user's.

    Pickles of earlier versions load; parameters added since get their defaults. Subclasses whose
    ``__init__`` takes further keywords have the parameters that it passes on. Errors about unknown
    parameters name those to use instead.
    """

    def __init_subclass__(cls, **kwargs):
        """Check the keywords of the methods that users call."""
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
            Keys as ``get_params`` returns them.

        Returns
        -------
        self
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


def shortened(value, written=repr, length=60):
    """Return how a value is written, so many characters of it at most."""
    text = written(value)
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
        Who asks and for which parameter.
    value : object
        What was given.
    low, high : number, optional
        Bounds, inclusive unless `exclusive`.
    integer : bool, default=False
        Whether it has to be an integer.
    exclusive : bool, default=False
        Whether the bounds themselves are refused.
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
        wanted = " ".join([noun, " and ".join(bounds)]).strip()
        raise ValueError(f"{owner}: {name} must be {wanted}, got {value!r}")


PACKAGE = str(Path(__file__).parent.parent)


def warn_user(message, category=UserWarning):
    """Warn with the first line outside this package as the place of the warning.

    Parameters
    ----------
    message : str
        What to say.
    category : type, default=UserWarning
        Class of the warning.
    """
    level, frame = 1, sys._getframe()
    # Decorators of methods are frames too, so that their number cannot be written down.
    while frame is not None and frame.f_code.co_filename.startswith(PACKAGE):
        level, frame = level + 1, frame.f_back
    warn(message, category, stacklevel=level)


def warn_of_unseen(column, n_rows, block):
    """Warn of a column of which no value is a known category.

    Parameters
    ----------
    column : str
        Its name.
    n_rows : int
        Rows of the table.
    block : str
        Class name of the block that reads it.
    """
    warn_user(
        f"column {column!r}: no value of its {n_rows} rows is a category that {block} saw during "
        "fit, so that all are read as unseen ones; check that the values are written as they were"
    )
