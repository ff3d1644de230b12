"""Input of embedders: checks of tables of lists, choice of blocks, settings of parts."""

from __future__ import annotations

from numbers import Integral

from sk_easytensor._utils.validation import check_number
from sk_easytensor.blocks import EventSequenceBlock
from sk_easytensor.blocks.detection import check_blocks, select_columns
from sk_easytensor.data.lists import is_list
from sk_easytensor.embedder.objectives import MIN_ELIGIBLE_USERS, OBJECTIVES, ViewSettings
from sk_easytensor.embedder.slices import gap_seconds

__all__ = [
    "check_eligible",
    "check_length",
    "eval_tables",
    "list_blocks",
    "list_names",
    "view_settings",
]


def list_names(table):
    """Return the names of the columns of lists of a table."""
    return [field.name for field in table.schema if is_list(field.type)]


def check_eligible(n_users, n_eligible, ineligible_reason):
    """Raise ``ValueError`` if there are too few users of whom pairs can be drawn."""
    if n_eligible < MIN_ELIGIBLE_USERS:
        raise ValueError(
            f"X: at least {MIN_ELIGIBLE_USERS} users must make a pair to train on, but "
            f"{n_eligible} of {n_users} do: the others have {ineligible_reason}"
        )


def check_length(owner, name, value):
    """Raise ``ValueError`` unless a value is a number of events or a fraction between 0 and 1."""
    is_count = isinstance(value, Integral)
    try:
        check_number(owner, name, value, low=1 if is_count else 0, high=None if is_count else 1)
    except ValueError:
        raise ValueError(
            f"{owner}: {name} must be a number of events, from 1 on, or a fraction between 0.0 and "
            f"1.0, got {value!r}"
        ) from None


def eval_tables(eval_set):
    """Check the form of ``eval_set``, and return its entries as pairs of a name and a table."""
    if eval_set is None:
        return []
    if not isinstance(eval_set, (list, tuple)):
        kind = type(eval_set).__name__
        raise TypeError(f"eval_set must be a list of tables, got a {kind}")
    return [(f"eval_set[{index}]", X) for index, X in enumerate(eval_set)]


def view_settings(estimator, table, time):
    """Return the settings by which sequences are cut, and check their columns.

    Parameters
    ----------
    estimator : EasyTensorEmbedder
        Estimator with the parameters.
    table : pyarrow.Table
        Some of the rows, with columns of lists.
    time : str or None
        Column of times.

    Returns
    -------
    ViewSettings

    Raises
    ------
    ValueError
        If the column of times or sessions is missing, or if the objective needs sessions and there
        is no parameter to cut them by.
    """
    owner = type(estimator).__name__
    sessions = OBJECTIVES[estimator.objective].has_sessions
    if sessions and estimator.session is None and estimator.session_gap is None:
        raise ValueError(
            f"{owner}: objective={estimator.objective!r} needs sessions; give session_gap, the "
            "time after which a new one begins, or session, the column of session labels"
        )
    lists = list_names(table)
    for name, value in (("time", time), ("session", estimator.session)):
        if value is not None and value not in lists:
            raise ValueError(
                f"{owner}: {name} names {value!r}, which is no column of lists of X; the "
                f"columns of lists are {lists}"
            )
    if not sessions:
        return ViewSettings(estimator.min_length, estimator.max_length)
    if estimator.session is not None:
        return ViewSettings(label=estimator.session)
    if time is None:
        raise ValueError(
            f"{owner}: session_gap needs the times of events; name the column of times, as in "
            f"fit(X, time=...); the columns of lists are {lists}"
        )
    return ViewSettings(time=time, gap=gap_seconds(owner, estimator.session_gap))


def list_blocks(estimator, table, X, time):
    """Return the blocks with the names of their columns, all of them lists.

    Parameters
    ----------
    estimator : EasyTensorEmbedder
        Estimator with the parameters.
    table : pyarrow.Table
        Some of the rows, with columns of lists.
    X : table-like or None
        Table that the user passed, if it has columns of lists; None for a log.
    time : str or None
        Column of times.

    Returns
    -------
    list of (str, Block, list of str)
        Name, block and columns of each block.

    Raises
    ------
    ValueError
        If there are no columns of lists, if no block reads any, or if a block reads a column that
        is constant for a user.
    """
    owner = type(estimator).__name__
    lists = list_names(table)
    if not lists:
        raise ValueError(
            f"{owner}: X has no column of lists; if it is a log with a row for each event, "
            "give fit its user and time columns"
        )
    specs = []
    for name, block, selector in check_blocks(estimator.blocks):
        columns = select_columns(selector, table, X, owner=f"block {name!r}")
        constant = [column for column in columns if column not in lists]
        if constant:
            raise ValueError(
                f"{owner}: block {name!r} reads {constant}, which hold one value for each user "
                f"and would identify the user of a part; only lists can be read: {lists}"
            )
        specs.append((name, block, columns))
    named = {column for _, _, columns in specs for column in columns} | {estimator.session}
    rest = [column for column in lists if column not in named]
    if estimator.remainder == "auto" and rest:
        name = EventSequenceBlock.kind
        while name in [name for name, _, _ in specs]:
            name += "_auto"
        block = EventSequenceBlock(time=time if time in rest else None)
        specs.append((name, block, rest))
    if not any(columns for _, _, columns in specs):
        raise ValueError(
            f"{owner}: no block reads any column of lists: name columns in blocks or use "
            "remainder='auto'"
        )
    return specs
