"""Warnings that name the line of the user's code that they are about."""

from __future__ import annotations

import sys
from pathlib import Path
from warnings import warn

__all__ = ["warn_of_unseen", "warn_user"]

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
