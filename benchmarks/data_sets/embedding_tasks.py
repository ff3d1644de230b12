"""Users with their events, what is to be predicted of them, and features made by hand.

- flights, carrier: which airline an aircraft belongs to. Its route or a single distance gives the
  airline away (LightGBM on shares of the destinations is right for 99.7% of the aircraft), as does
  the number of the flight. So only the hours, weekdays and delays of its last 20 flights are in
  the sequences: the rhythm of an airline is spread over many flights, and no event tells it. (Of
  the last 64 flights, even that is too easy: 97%.)
- flights, late: whether an aircraft is late more often in December than the median aircraft. Its
  last 64 flights before December are in the sequences, with all that was known of them; those of
  December make the label and nothing else.
- movies, gender, age and occupation of a user: from the movies rated, the ratings, the genres and
  the times. No rating tells them, and none is in the sequences, which do not hold the user's zip
  code either.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from sk_easytensor import EventSequenceBlock
from sk_easytensor.events import collect_sequences

CUT = pd.Timestamp("2013-12-01")
RHYTHM, FLIGHTS, RATINGS = 20, 64, 200
TOP = 300


@dataclass
class Task:
    """What is to be predicted of those users of which it is known."""

    name: str
    rows: np.ndarray
    y: np.ndarray
    metric: str


@dataclass
class Users:
    """Users, a row each, with their events as lists."""

    name: str
    table: pd.DataFrame
    block: EventSequenceBlock
    aggregates: np.ndarray
    tasks: list
    time: str
    session_gap: pd.Timedelta


def load(directory):
    """Return what is there to learn from, one after another.

    Parameters
    ----------
    directory : path-like
        Of ``ev_flights.parquet`` and ``rec_ml100k.parquet``.

    Yields
    ------
    Users
    """
    flights = pd.read_parquet(Path(directory) / "ev_flights.parquet")
    yield from flight_users(flights.sort_values(["tailnum", "schedule"], kind="stable"))
    ratings = pd.read_parquet(Path(directory) / "rec_ml100k.parquet")
    yield movie_users(ratings.sort_values(["user_id", "timestamp"], kind="stable"))


def flight_users(flights):
    """Return aircraft with the rhythm of their flights, and with all of their flights."""
    flights = flights.assign(
        hour=flights["schedule"].dt.hour + flights["schedule"].dt.minute / 60,
        weekday=flights["schedule"].dt.day_name(),
    )
    past, future = flights[flights["schedule"] < CUT], flights[flights["schedule"] >= CUT]
    past = past[past.groupby("tailnum")["tailnum"].transform("size") >= 5]
    aircraft = past["tailnum"].unique()

    carrier = past.groupby("tailnum")["carrier"].agg(lambda names: names.mode()[0]).astype(str)
    carrier = carrier[carrier.map(carrier.value_counts()) >= 25]
    late = future.groupby("tailnum")["late"].agg(["mean", "count"])
    late = late["mean"][(late["count"] >= 5) & late.index.isin(aircraft)]
    late = (late > late.median()).astype(int)

    rhythm = ["schedule", "hour", "weekday", "dep_delay", "arr_delay", "cancelled"]
    known = [*rhythm, "carrier", "origin", "dest", "distance", "air_time"]
    numbers = {*known, "delayed"} - {"schedule", "weekday", "carrier", "origin", "dest"}
    categories = {"full_hour", "weekday", "carrier", "origin", "dest"}
    for columns, length, task in (
        (rhythm, RHYTHM, make_task("carrier", aircraft, carrier, "accuracy")),
        (known, FLIGHTS, make_task("late", aircraft, late, "AUC")),
    ):
        events = past.groupby("tailnum").tail(length)
        by_hand = aggregates(
            events.assign(
                full_hour=events["schedule"].dt.hour,
                delayed=(events["arr_delay"] >= 15).where(events["arr_delay"].notna()),
            ),
            "tailnum",
            "schedule",
            [name for name in (*columns, "delayed") if name in numbers],
            [name for name in ("full_hour", *columns) if name in categories],
        )
        yield Users(
            name=f"flights, {task.name}",
            table=sequences(events, "tailnum", "schedule", columns),
            block=EventSequenceBlock(max_length=length, now=False),
            aggregates=by_hand.loc[aircraft].to_numpy(dtype=np.float32),
            tasks=[task],
            time="schedule",
            session_gap=pd.Timedelta("3D"),
        )


def movie_users(ratings):
    """Return users with the movies they rated."""
    first = ratings.groupby("user_id").first()
    users = first.index.to_numpy()
    occupation = first["occupation"].astype(str)
    occupation = occupation[occupation.map(occupation.value_counts()) >= 25]
    age = pd.cut(first["age"], [0, 24, 34, 44, 120], labels=["-24", "25-34", "35-44", "45-"])

    genre = ratings.explode("genres")[["user_id", "genres", "rating"]]
    by_genre = genre.pivot_table(index="user_id", columns="genres", values="rating")
    by_hand = [
        aggregates(ratings, "user_id", "timestamp", ["rating", "release_year"], ["movie_id"]),
        pd.crosstab(genre["user_id"], genre["genres"], normalize="index").add_prefix("share "),
        by_genre.add_prefix("rating "),
    ]
    events = ratings.assign(
        movie=ratings["movie_id"].astype(str), genres=ratings["genres"].str.join("|")
    )
    columns = ["timestamp", "movie", "rating", "release_year", "genres"]
    return Users(
        name="movies",
        table=sequences(events, "user_id", "timestamp", columns),
        block=EventSequenceBlock("mean", max_length=RATINGS, now=False),
        aggregates=pd.concat(by_hand, axis=1).loc[users].to_numpy(dtype=np.float32),
        tasks=[
            make_task("gender", users, (first["gender"] == "F").astype(int), "AUC"),
            make_task("age", users, age.astype(str), "accuracy"),
            make_task("occupation", users, occupation, "accuracy"),
        ],
        time="timestamp",
        session_gap=pd.Timedelta("30min"),
    )


def sequences(events, user, time, columns):
    """Return the lists of each user, users in the order of the events."""
    table = collect_sequences(events, by=user, order_by=time, columns=columns, prefix="")
    return table[columns]


def make_task(name, users, labels, metric):
    """Return the task of telling the labels of those users that have one."""
    rows = np.flatnonzero(np.isin(users, labels.index))
    y = labels.loc[users[rows]].to_numpy()
    return Task(name, rows, np.unique(y, return_inverse=True)[1], metric)


def aggregates(events, user, time, numbers, categories):
    """Return what an analyst would make of each user's events.

    Parameters
    ----------
    events : DataFrame
        In order of time for each user.
    user, time : str
        Columns.
    numbers : list of str
        Columns whose moments, extremes, last and recent values are taken.
    categories : list of str
        Columns of which the shares of the most frequent values are taken.

    Returns
    -------
    DataFrame
        With a row a user.
    """
    groups = events.groupby(user)
    moments = groups[numbers].agg(["mean", "std", "median", "min", "max", "last"])
    moments.columns = [" ".join(names) for names in moments.columns]
    recent = events.groupby(user).tail(10).groupby(user)[numbers].mean().add_prefix("recent ")
    hours = groups[time].diff().dt.total_seconds() / 3600
    gaps = hours.groupby(events[user]).agg(["mean", "median", "std", "max"]).add_prefix("gap ")
    last = (events[time].max() - groups[time].max()).dt.total_seconds()
    span = (groups[time].max() - groups[time].min()).dt.total_seconds()
    table = moments.join([recent, gaps]).assign(events=groups.size(), last=last, span=span)
    for name in categories:
        kept = events[name].isin(events[name].value_counts().index[:TOP])
        counts = pd.crosstab(events.loc[kept, user], events.loc[kept, name].astype(str))
        shares = counts.reindex(table.index, fill_value=0).div(table["events"], axis=0)
        table = table.join(shares.add_prefix(f"{name} "))
    return table
