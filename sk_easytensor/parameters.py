"""Checks of hyper-parameters that several blocks, trunks and estimators share."""

from __future__ import annotations

import math
from inspect import Parameter, signature
from numbers import Integral, Real


class GrowingParametersMixin:
    """Let pickles of earlier versions load: parameters added since get their defaults."""

    def __setstate__(self, state):
        """Restore a pickled state."""
        super().__setstate__(state)
        for name, parameter in signature(type(self).__init__).parameters.items():
            if parameter.default is not Parameter.empty and name not in vars(self):
                setattr(self, name, parameter.default)


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
