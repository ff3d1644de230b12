"""The flights data set: a log of events."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from sklearn.utils import Bunch

DATA = Path(__file__).parent / "data"
TARGET = "late"
FEATURES = ["tailnum", "schedule", "carrier", "flight", "origin", "dest", "distance"]


def load_flights(*, return_X_y=False, as_frame=True):
    """Load the flights data set (binary classification from a log of events).

    Each row is a flight that was scheduled to leave New York in 2013. The target is whether it
    arrived more than 15 minutes late. Before departure little is known of the flight itself, but
    the previous flights of the same aircraft are known;
    :func:`~sk_easytensor.events.collect_sequences` adds them to the rows. The data is part of the
    package: nothing is downloaded.

    =================   =====================================================
    Classes             2
    Rows per class      85769 (on time), 26422 (late)
    Rows                112191, and 114483 events
    Entities            1347 aircraft, each with all its flights
    Features            7: an entity, a timestamp, 4 categories, a number
    =================   =====================================================

    Parameters
    ----------
    return_X_y : bool, default=False
        If True, return ``(data, target)`` instead of a Bunch.
    as_frame : bool, default=True
        If True, `data` is a pandas DataFrame and `target` a Series; otherwise they are an object
        array and an integer array. The events are a DataFrame in any case.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Dictionary-like object, with the following attributes.

        events : DataFrame of shape (114483, 12)
            The whole log in order of `schedule`, with values that are known only after departure.
        data : {DataFrame, ndarray} of shape (112191, 7)
            The values that are known before departure. The index has the rows of `events`. Flights
            that never arrived are left out, because their target is missing.
        target : {Series, ndarray} of shape (112191,)
            1 if the flight arrived more than 15 minutes late, otherwise 0.
        feature_names : list of str
            The names of the feature columns.
        target_names : ndarray of shape (2,)
            The meaning of target 0 and 1.
        DESCR : str
            The full description of the data set.
        filename : str
            The path of the data file.

    (data, target) : tuple if ``return_X_y`` is True
        The features and the target described above.

    Notes
    -----
    Split by time: train on the earlier rows and test on the later ones. Licence: CC0 (public
    domain).

    Examples
    --------
    >>> from sk_easytensor.datasets import load_flights
    >>> from sk_easytensor.events import collect_sequences
    >>> flights = load_flights()
    >>> flights.data.shape, flights.events.shape
    ((112191, 7), (114483, 12))
    >>> X = collect_sequences(
    ...     flights.events,
    ...     by="tailnum",
    ...     order_by="schedule",
    ...     at=flights.data,
    ...     columns=["schedule", "arr_delay", "cancelled"],
    ...     max_length=16,
    ... )
    >>> X.columns[-3:].tolist()
    ['past_schedule', 'past_arr_delay', 'past_cancelled']
    >>> X.index.equals(flights.target.index)
    True
    """
    filename = DATA / "flights.parquet"
    events = pq.read_table(filename).to_pandas()
    events = events.astype(
        {"schedule": "datetime64[us]", "distance": "int64", "cancelled": "int64"}
    )
    arrived = events[TARGET].notna()
    data = events.loc[arrived, FEATURES]
    target = events.loc[arrived, TARGET].astype("int64")
    if not as_frame:
        data, target = data.to_numpy(dtype=object), target.to_numpy()
    if return_X_y:
        return data, target
    return Bunch(
        events=events,
        data=data,
        target=target,
        feature_names=list(FEATURES),
        target_names=np.array(["on time", "late"]),
        DESCR=(DATA / "flights.md").read_text(encoding="utf-8"),
        filename=str(filename),
    )
