"""Warnings that name the line of the user's code that they are about."""

from __future__ import annotations

import sys
from pathlib import Path
from warnings import warn

__all__ = ["warn_user"]

PACKAGE = str(Path(__file__).parent)


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
