"""Embeddings of users: what they learn, from which tables, what they refuse, what is kept."""

import datetime as dt
import pickle
import warnings
from itertools import chain

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from scikit_learn_checks import CHECKS
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from skorch.callbacks import Callback

from sk_easytensor import (
    MLP,
    CategoryBlock,
    CategorySequenceBlock,
    EasyTensorEmbedder,
    EventSequenceBlock,
    NumericSequenceBlock,
)
from sk_easytensor.inference import load

# Short lists are cut on purpose; test_sequences.py of the blocks has the warning.
pytestmark = pytest.mark.filterwarnings("ignore:.*are cut to their:UserWarning")

N_USERS = 100
LOG = {"user": "user", "time": "time"}
SESSIONS = {"objective": "session_pair", "session_gap": "12h"}


def embedder(blocks=None, **params):
    """Make an estimator that learns tastes in a fraction of a second."""
    quick = {
        "embedding_dim": 8,
        "learning_rate": 2e-2,
        "max_epochs": 15,
        "validation_fraction": None,
        # Parts of one or two events tell little of short sequences: learning takes longer.
        "min_length": 0.25,
        "random_state": 0,
    }
    return EasyTensorEmbedder(blocks, **{**quick, **params})


def untrained(blocks=None, **params):
    """Make an estimator for tests in which its quality does not matter."""
    return embedder(blocks, **{"max_epochs": 1, "embedding_dim": 4, **params})


MEAN = [("events", EventSequenceBlock("mean"), ["kind", "time"])]


def make_log(n_users=N_USERS, random_state=0):
    """A log of users of two tastes, each for a dozen kinds, which decide about most events.

    Returns
    -------
    DataFrame
        With the columns ``user``, ``time``, ``visit``, ``kind`` and ``amount``, in random order.
    """
    random = np.random.default_rng(random_state)
    parts = []
    for user in range(n_users):
        size = random.integers(8, 25)
        gone = random.random(size) < 0.3
        seconds = np.cumsum(random.integers(60, 7200, size) + gone * 86_400)
        liked = np.where(random.random(size) < 0.9, user % 2, 1 - user % 2)
        kinds = liked + 2 * random.integers(0, 12, size)
        parts.append(
            pd.DataFrame(
                {
                    "user": f"user {user}",
                    "time": pd.Timestamp("2025-01-01") + pd.to_timedelta(seconds, unit="s"),
                    "visit": np.char.add("visit ", np.cumsum(gone).astype(str)),
                    "kind": np.char.add("kind ", kinds.astype(str)),
                    "amount": random.normal(size=size).round(3),
                }
            )
        )
    return pd.concat(parts).sample(frac=1, random_state=0).reset_index(drop=True)


def tastes(users):
    return pd.Series(users).str.removeprefix("user ").astype(int).to_numpy() % 2


def told_apart(embeddings, users):
    """Return how often a linear model tells the taste of users it was not fitted on."""
    return cross_val_score(LogisticRegression(), embeddings, tastes(users), cv=5).mean()


@pytest.fixture(scope="module")
def log():
    return make_log()


@pytest.fixture(scope="module")
def fitted(log):
    """A model that is not to be changed."""
    return embedder().fit(log, **LOG)


@pytest.fixture(scope="module")
def lists(fitted, log):
    """The same as a table with a row for each user."""
    return fitted.collect(log)


class Recorder(Callback):
    """Counts epochs and keeps what the first user's row was in each."""

    def __init__(self):
        self.epochs = 0
        self.seen = []

    def on_epoch_end(self, net, dataset_train=None, **kwargs):
        self.epochs += 1
        entries = dataset_train.frame.users["event_sequence"]
        self.seen.append(entries["codes_0"].take(slice(0, 5)).values.tolist())


@pytest.fixture
def recorder():
    return Recorder()


# ---------------------------------------------------------------------- what is learned


def test_embeddings_tell_what_nobody_told(fitted, log):
    """Users that training has never seen are told apart as well."""
    embeddings = fitted.transform(log)
    assert embeddings.shape == (N_USERS, 8)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    assert told_apart(embeddings, fitted.collect(log)["user"]) > 0.9
    new = make_log(random_state=1)
    assert told_apart(fitted.transform(new), fitted.collect(new)["user"]) > 0.9
    by_chance = untrained(embedding_dim=8, learning_rate=1e-9).fit(log, **LOG)
    assert told_apart(by_chance.transform(log), fitted.collect(log)["user"]) < 0.8


@pytest.mark.parametrize(
    "how",
    [
        {"session_gap": "12h"},
        {"session": "visit"},
        {"session_gap": "12h", "session_sampling": "latest"},
        {"session_gap": "12h", "session_loss": "log_loss"},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:EasyTensorEmbedder. .* of .* users have fewer")
def test_session_pairs_tell_it_too(how):
    log = make_log(150)
    model = embedder(MEAN, objective="session_pair", remainder="drop", max_epochs=30, **how)
    embeddings = model.fit(log, **LOG).transform(log)
    loss = how.get("session_loss", "softmax_loss")
    assert list(model.evals_result_["training"]) == [loss]
    curve = model.evals_result_["training"][loss]
    assert curve[-1] < (0.65 if loss == "log_loss" else 0.95 * curve[0])
    lengths = np.linalg.norm(embeddings, axis=1)
    assert np.allclose(lengths, 1, rtol=1e-5) == (loss == "softmax_loss")
    assert told_apart(embeddings, model.collect(log)["user"]) > 0.9


def test_histories_that_are_not_read_as_a_whole():
    X = pa.table({"visit": [[0] * 5 + [1], [0] * 4 + [1, 2], [0, 1, 1, 1, 1, 1], [0, 1]]})
    X = X.append_column("page", pa.array([["a"] * len(v) for v in X["visit"].to_pylist()]))
    for sampling, length, n_cut in (("uniform", 4, 2), ("latest", 3, 2), ("latest", 4, 2)):
        blocks = [("pages", CategorySequenceBlock(max_length=length), "page")]
        model = untrained(
            blocks, objective="session_pair", session="visit", session_sampling=sampling
        )
        message = f"{n_cut} of 4 users have more than {length} events before .* block 'pages'"
        with pytest.warns(UserWarning, match=message) as caught:
            model.fit(X)
        assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for length in (5, 6):
            blocks = [("pages", CategorySequenceBlock(max_length=length), "page")]
            untrained(blocks, objective="session_pair", session="visit").fit(X)


class Batches(Callback):
    """Records the users of each batch, drawn from the same seed in any model."""

    def __init__(self):
        self.training, self.validation, self.n_rows = [], [], 0

    def on_epoch_begin(self, net, dataset_train=None, **kwargs):
        self.n_rows = len(dataset_train)
        torch.manual_seed(0)

    def on_batch_begin(self, net, batch=None, **kwargs):
        self.training.append(batch.frame.user_rows.tolist())

    def on_batch_end(self, net, batch=None, training=None, **kwargs):
        if not training:
            self.validation.append(batch.frame.user_rows.tolist())


@pytest.mark.parametrize(
    "params", [{}, SESSIONS, {**SESSIONS, "session_loss": "log_loss"}], ids=["", "softmax", "log"]
)
@pytest.mark.filterwarnings("ignore:EasyTensorEmbedder. .* of .* users have fewer")
def test_users_of_a_batch_are_drawn_at_random_where_they_are_negatives(params, log):
    """The softmax is over the batch, which must not consist of users with as many events."""
    batches = Batches()
    untrained(callbacks=[batches], batch_size=16, validation_fraction=0.4, **params).fit(log, **LOG)
    torch.manual_seed(0)
    drawn = torch.randperm(batches.n_rows).tensor_split(len(batches.training))
    # With two pairs of each user, the second ones follow all the first ones.
    n_users = len(set(chain(*batches.training)))
    expected = [[row % n_users for row in rows.tolist()] for rows in drawn]
    assert len(expected) > 3
    assert (batches.training == expected) == ("session_loss" not in params)
    (validation,) = batches.validation
    assert sorted(validation) != validation


def test_losses(log):
    model = embedder(MEAN, validation_fraction=0.2).fit(log, **LOG)
    assert list(model.evals_result_) == ["training", "valid_0"]
    curve = model.evals_result_["valid_0"]["softmax_loss"]
    assert len(curve) == model.n_iter_
    assert model.best_score_ == curve[model.best_iteration_ - 1] == min(curve)
    training = model.evals_result_["training"]["softmax_loss"]
    assert training[-1] < training[0]


def test_views_are_fresh_in_every_epoch(log, recorder):
    untrained(callbacks=[recorder], max_epochs=3).fit(log, **LOG)
    assert recorder.epochs == 3
    assert len({tuple(seen) for seen in recorder.seen}) == 3


def test_blocks_know_all_events_though_they_read_few(log):
    """A part may come from anywhere in a sequence, so that no event may be unknown."""
    X = {"page": [[f"page {i}" for i in range(40 * user, 40 * user + 40)] for user in range(4)]}
    blocks = [("page", CategorySequenceBlock(max_length=3), "page")]
    model = untrained(blocks, validation_fraction=None).fit(X)
    known = model.blocks_["page"].categories_[0]
    assert sorted(known.to_pylist()) == sorted(chain(*X["page"]))


def test_evaluation_sets(log):
    names = log["user"].unique()
    train, valid = log[log["user"].isin(names[:70])], log[log["user"].isin(names[70:])]
    model = untrained(max_epochs=2).fit(train, eval_set=[valid, train], **LOG)
    assert list(model.evals_result_) == ["training", "valid_0"]
    assert model.n_users_ == 70
    again = untrained(max_epochs=2).fit(train, eval_set=[valid], **LOG)
    assert again.evals_result_["valid_0"] == model.evals_result_["valid_0"]


# ---------------------------------------------------------------------- tables and logs


def test_a_log_and_its_lists_give_the_same(fitted, log, lists):
    np.testing.assert_array_equal(fitted.transform(lists), fitted.transform(log))
    model = embedder().fit(lists.drop(columns="user"), time="time")
    np.testing.assert_array_equal(model.transform(lists), fitted.transform(log))
    assert model.feature_names_in_.tolist() == ["time", "visit", "kind", "amount"]
    assert fitted.feature_names_in_.tolist() == log.columns.tolist()
    assert fitted.n_features_in_ == 5
    with pytest.raises(AttributeError, match="collect needs a log in fit"):
        model.collect(log)


def test_users_come_in_the_order_of_their_first_event(fitted, log, lists):
    assert lists["user"].tolist() == log["user"].drop_duplicates().tolist()
    assert lists.columns.tolist() == ["user", "time", "visit", "kind", "amount"]
    rows = log[log["user"] == "user 7"].sort_values("time")
    assert list(lists.set_index("user").loc["user 7", "kind"]) == rows["kind"].tolist()
    alone = fitted.transform(log[log["user"] == "user 7"])
    place = lists["user"].tolist().index("user 7")
    np.testing.assert_allclose(alone[0], fitted.transform(log)[place], atol=1e-6)


LOGS = {
    "pandas": lambda log: log,
    "pandas_index": lambda log: log.set_axis(log.index + 1000),
    "polars": pl.from_pandas,
    "lazy": lambda log: pl.from_pandas(log).lazy(),
    "arrow": lambda log: pa.Table.from_pandas(log, preserve_index=False),
    "dict": lambda log: log.to_dict("list"),
}


@pytest.mark.parametrize("convert", LOGS.values(), ids=LOGS)
def test_logs_of_every_kind(convert, log):
    expected = untrained().fit(log, **LOG)
    model = untrained().fit(convert(log), **LOG)
    np.testing.assert_array_equal(model.transform(convert(log)), expected.transform(log))
    users = pa.table(model.collect(convert(log)))["user"]
    assert users.to_pylist() == log["user"].drop_duplicates().tolist()


@pytest.mark.parametrize(
    "convert",
    [
        pl.from_pandas,
        lambda X: pa.Table.from_pandas(X, preserve_index=False),
        lambda X: {name: X[name].map(list).tolist() for name in X},
        lambda X: pd.DataFrame({name: [np.array(v) for v in X[name]] for name in X}),
    ],
    ids=["polars", "arrow", "dict", "numpy"],
)
def test_lists_of_every_kind(convert, lists):
    lists = lists.drop(columns=["user"])
    expected = untrained().fit(lists)
    model = untrained().fit(convert(lists))
    np.testing.assert_array_equal(model.transform(convert(lists)), expected.transform(lists))


def test_users_of_two_columns(log):
    split = log.assign(shop=log["user"].str[-1], number=log["user"].str[5:-1]).drop(columns="user")
    model = untrained().set_output(transform="pandas")
    out = model.fit(split, user=["shop", "number"], time="time").transform(split)
    assert out.index.names == ["shop", "number"]
    assert out.shape == (N_USERS, 4)


def test_times_may_be_numbers(fitted, log):
    """Of these, too, only gaps are read: when a user came would tell them apart at once."""
    numbers = log.assign(time=log["time"].astype("int64") // 10**6)
    model = embedder().fit(numbers, **LOG)
    assert model.blocks_["event_sequence"].kinds_["time"] == "time"
    later = numbers.assign(time=numbers["time"] + 10**9)
    np.testing.assert_array_equal(model.transform(later), model.transform(numbers))


def test_columns_that_no_block_names(lists):
    X = lists.assign(age=1)
    blocks = [("kind", CategorySequenceBlock(), "kind")]
    model = untrained(blocks).fit(X, time="time")
    assert {name: list(block.feature_names_in_) for name, block in model.blocks_.items()} == {
        "kind": ["kind"],
        "event_sequence": ["time", "visit", "amount"],
    }
    model = untrained(blocks, remainder="drop").fit(X)
    assert list(model.blocks_) == ["kind"]
    model = untrained([("event_sequence", EventSequenceBlock(), "kind")]).fit(X)
    assert list(model.blocks_) == ["event_sequence", "event_sequence_auto"]
    visits = X["visit"].map(lambda value: len(set(value)))
    by_visit = untrained(objective="session_pair", session="visit").fit(X[visits > 1])
    assert by_visit.tower_.feature_names_in_.tolist() == ["time", "kind", "amount"]
    np.testing.assert_array_equal(
        by_visit.transform(X), by_visit.transform(X.drop(columns=["visit", "age"]))
    )


def test_lists_that_all_have_one_length_are_events_too():
    random = np.random.default_rng(0)
    X = pa.table({"level": random.normal(size=(20, 5)).tolist()})
    model = untrained(max_length=2).fit(X)
    assert model.transform(X.slice(0, 3)).shape == (3, 4)


def test_selectors_other_than_names(lists):
    X = lists.drop(columns="user")
    by_name = untrained([("kind", CategorySequenceBlock(), ["kind"])], remainder="drop").fit(X)
    for selector in ([2], lambda frame: [name for name in frame if name == "kind"]):
        blocks = [("kind", CategorySequenceBlock(), selector)]
        model = untrained(blocks, remainder="drop").fit(X)
        np.testing.assert_array_equal(model.transform(X), by_name.transform(X))


def test_trunks_and_several_blocks(lists):
    blocks = [
        ("kind", CategorySequenceBlock(), "kind"),
        ("amount", NumericSequenceBlock(), "amount"),
    ]
    model = untrained(blocks, trunk=MLP(layers=1, width=8), remainder="drop").fit(lists)
    assert model.transform(lists).shape == (N_USERS, 4)


# ---------------------------------------------------------------------- users with little


def with_short(log):
    """Add six users with a single event, and four with a single session of three events."""
    ordered = log.sort_values("time").groupby("user")
    names = log["user"].unique()
    once = ordered.head(1)
    once = once[once["user"].isin(names[:6])].assign(kind="kind rare")
    visit = ordered.head(3)
    visit = visit[visit["user"].isin(names[:4])].assign(time=pd.Timestamp("2025-01-01"))
    new = [once.assign(user="once " + once["user"]), visit.assign(user="visit " + visit["user"])]
    return pd.concat([log, *new])


def test_users_with_too_few_events_are_counted(log):
    X = with_short(log)
    n_short = 6
    users = X["user"].nunique()
    message = f"{n_short} of {users} users have fewer than two events and make no pair"
    with pytest.warns(UserWarning, match=message) as caught:
        model = untrained().fit(X, **LOG)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert (model.n_users_, model.n_users_without_pair_) == (users, n_short)
    assert "kind rare" in model.blocks_["event_sequence"].categories_["kind"].to_pylist()
    assert model.transform(X).shape == (users, 4)


def test_users_with_one_session_are_counted(log):
    X = with_short(log)
    visits = X.sort_values("time").groupby("user")["time"]
    n_short = int((~visits.apply(lambda t: (t.diff() > pd.Timedelta("12h")).any())).sum())
    with pytest.warns(UserWarning, match=f"{n_short} of .* users have fewer than two sessions"):
        model = untrained(**SESSIONS).fit(X, **LOG)
    assert model.n_users_without_pair_ == n_short > 9


def test_no_warning_without_reason(log):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = untrained().fit(log, **LOG)
    assert model.n_users_without_pair_ == 0


def test_empty_and_missing_lists():
    X = pa.table({"kind": [["a", "b", "a"], ["b", "c"], [], None, ["c", "a"]]})
    with pytest.warns(UserWarning, match="2 of 5 users have fewer than two events"):
        model = untrained().fit(X)
    embeddings = model.transform(X)
    np.testing.assert_array_equal(embeddings[2], embeddings[3])
    assert np.isfinite(embeddings).all()


@pytest.mark.parametrize("n_users", [2, 3, 5])
def test_few_users(n_users):
    X = {"kind": [["a", "b", "a"], ["b", "c"], ["a", "c"], ["b", "a"], ["c", "c"]][:n_users]}
    model = untrained().fit(X)
    assert model.transform(X).shape == (n_users, 4)
    assert list(model.evals_result_) == ["training"]


# ---------------------------------------------------------------------- errors


def without_time(log):
    log = log.copy()
    log.loc[5, "time"] = pd.NaT
    return log


def unsorted(log):
    """Lists of which those of row 3 are out of order far behind the beginning."""
    times = [list(range(200)) for _ in range(5)]
    times[3][100] = 0
    return {"kind": [["a"] * 200] * 5, "time": times}


def missing_in_lists(lists):
    times = [list(value) for value in lists["time"]]
    times[3][1] = None
    return {"kind": [list(value) for value in lists["kind"]], "time": times}


# What is wrong: parameters, the table made of the log and of the lists, what fit is given besides,
# and the message.
BAD_INPUT = {
    "objective": ({"objective": "next"}, "log", LOG, r"one of \['contrastive', 'session_pair'\]"),
    "user_without_time": ({}, "log", {"user": "user"}, "needs time too"),
    "unknown_user": ({}, "log", {**LOG, "user": "who"}, r"no columns \['who'\]"),
    "unknown_time": ({}, "log", {**LOG, "time": "when"}, r"no columns \['when'\]"),
    "missing_time": ({}, without_time, LOG, "column 'time' of events has no time in row 5"),
    "no_lists": ({}, "log", {}, "X has no column of lists; if it is a log"),
    "array": ({}, lambda log: np.ones((9, 2)), {}, "X has no column of lists"),
    "no_sessions": ({"objective": "session_pair"}, "log", LOG, "needs sessions; give session_gap"),
    "two_sessions": ({"session": "visit", "session_gap": 1}, "log", LOG, "give one of them"),
    "unknown_session": (
        {"objective": "session_pair", "session": "day"},
        "log",
        LOG,
        "session names 'day', which is no column of lists",
    ),
    "gap": ({**SESSIONS, "session_gap": -5}, "log", LOG, "session_gap must be a number of seconds"),
    "gap_without_time": (SESSIONS, "lists", {}, "session_gap needs the times of events"),
    "time_of_lists": ({}, "lists", {"time": "user"}, "time names 'user', which is no column"),
    "missing_in_lists": (
        SESSIONS,
        missing_in_lists,
        {"time": "time"},
        "'time' has a missing value in row 3",
    ),
    "unsorted": ({}, unsorted, {"time": "time"}, "not in order of time in row 3: 0 comes after 99"),
    "one_event_each": (
        {},
        lambda log: log.drop_duplicates("user"),
        LOG,
        f"at least 2 users must make a pair.*0 of {N_USERS} do.*fewer than two events",
    ),
    "one_session_each": (
        {**SESSIONS, "session_gap": "900D"},
        "log",
        LOG,
        "at least 2 users must make a pair.*fewer than two sessions",
    ),
    "one_user": ({}, lambda log: log[log["user"] == "user 1"], LOG, "at least 2 users"),
    "constant": (
        {"blocks": [("user", CategoryBlock(), "user")]},
        "lists",
        {},
        r"block 'user' reads \['user'\], which hold one value for each user",
    ),
    "unknown_column": (
        {"blocks": [("kind", CategorySequenceBlock(), "sort")]},
        "lists",
        {},
        "block 'kind' names column 'sort'",
    ),
    "nothing_read": ({"blocks": [], "remainder": "drop"}, "lists", {}, "no block reads any column"),
    "unlike_lengths": (
        {},
        lambda log: {"a": [["x", "y"], ["z"]], "b": [[1, 2], [3, 4]]},
        {},
        "'b' and 'a' have 2 and 1 items in row 1; EasyTensorEmbedder reads them as one",
    ),
    "eval_set": ({}, "log", {**LOG, "eval_set": "log"}, "eval_set must be a list of tables"),
    "eval_set_0": (
        {},
        "log",
        {**LOG, "eval_set": [{"user": ["a"], "time": [1], "kind": ["b"]}]},
        r"eval_set\[0\]: columns are missing: \['visit', 'amount'\]",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(case, log, lists, recorder):
    params, X, given, message = BAD_INPUT[case]
    if X == "log" or X == "lists":
        X = log if X == "log" else lists
    else:
        X = X(lists if X is missing_in_lists else log)
    model = untrained(**{"callbacks": [recorder], **params})
    with pytest.raises((ValueError, TypeError), match=message):
        model.fit(X, **given)
    assert recorder.epochs == 0
    with pytest.raises(NotFittedError):
        model.transform(X)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("embedding_dim", 0, "embedding_dim must be an integer at least 1"),
        ("remainder", "keep", "remainder must be one of"),
        ("session_loss", "binary", r"session_loss must be one of \['softmax', 'log_loss'\]"),
        ("session_sampling", "last", r"session_sampling must be one of \['uniform', 'latest'\]"),
        ("temperature", 0, "temperature must be a number greater than 0"),
        ("dropout", 1.0, "dropout must be a number"),
        ("min_length", 0, "min_length must be a number of events"),
        ("min_length", None, "min_length must be a number of events"),
        ("max_length", 1.5, "max_length must be a number of events"),
        ("max_length", True, "max_length must be a number of events"),
        ("learning_rate", 0, "learning_rate must be a number greater than 0"),
        ("batch_size", 0, "batch_size must be an integer at least 1"),
        ("trunk", "mlp", "trunk must have make_module"),
        ("validation_fraction", 1.0, "validation_fraction must be a number"),
        ("backend", "cloud", "backend must be"),
    ],
)
def test_bad_parameters(name, value, message, log, recorder):
    with pytest.raises(ValueError, match=message):
        untrained(**{"callbacks": [recorder], name: value}).fit(log, **LOG)
    assert recorder.epochs == 0


def test_columns_missing_at_prediction(fitted, log, lists):
    with pytest.raises(ValueError, match=r"events has no columns \['kind'\]"):
        fitted.transform(log.drop(columns="kind"))
    with pytest.raises(ValueError, match=r"columns are missing: \['kind'\]"):
        fitted.transform(lists.drop(columns="kind"))
    with pytest.raises(ValueError, match="has no time in row 5"):
        fitted.transform(without_time(log))


# ---------------------------------------------------------------------- as scikit-learn has it


def test_set_output(log, lists):
    model = untrained().set_output(transform="pandas").fit(log, **LOG)
    out = model.transform(log)
    assert out.columns.tolist() == [f"easytensorembedder{i}" for i in range(4)]
    assert out.columns.tolist() == model.get_feature_names_out().tolist()
    assert out.index.name == "user"
    assert out.index.tolist() == model.collect(log)["user"].tolist()
    indexed = lists.set_axis(lists.index + 50)
    assert model.transform(indexed).index.equals(indexed.index)
    np.testing.assert_array_equal(out.to_numpy(), model.transform(lists).to_numpy())
    model.set_output(transform="polars")
    assert isinstance(model.transform(log), pl.DataFrame)
    assert isinstance(model.transform(lists), pl.DataFrame)
    with config_context(transform_output="pandas"):
        np.testing.assert_array_equal(untrained().fit(log, **LOG).transform(log), out)
        assert untrained().fit_transform(log, **LOG).index.equals(out.index)


def test_fit_transform(log, lists):
    expected = untrained().fit(log, **LOG).transform(log)
    np.testing.assert_array_equal(untrained().fit_transform(log, **LOG), expected)
    np.testing.assert_array_equal(untrained().fit_transform(lists), expected)


def test_in_a_pipeline_and_a_grid(lists):
    X, y = lists.drop(columns="user"), tastes(lists["user"])
    model = embedder(MEAN, remainder="drop", temperature=0.05)
    search = GridSearchCV(
        make_pipeline(model, LogisticRegression()),
        {
            "easytensorembedder__blocks__events__width": [8, 16],
            "easytensorembedder__trunk__width": [8],
        },
        cv=2,
    ).fit(X, y)
    assert search.best_score_ > 0.7
    width = search.best_estimator_[0].blocks_["events"].width
    assert width == search.best_params_["easytensorembedder__blocks__events__width"]


def test_the_tower_is_a_transformer_of_its_own(fitted, log, lists):
    tower = pickle.loads(pickle.dumps(fitted.tower_))
    np.testing.assert_array_equal(tower.transform(lists), fitted.transform(log))
    assert fitted.blocks_ is fitted.tower_.blocks_
    assert fitted.network_ is fitted.tower_.network_


@pytest.mark.parametrize("through", ["pickle", "joblib"])
def test_copies_embed_the_same(through, fitted, log, tmp_path):
    if through == "pickle":
        copied = pickle.loads(pickle.dumps(fitted))
    else:
        joblib.dump(fitted, tmp_path / "model.joblib")
        copied = joblib.load(tmp_path / "model.joblib")
    np.testing.assert_array_equal(copied.transform(log), fitted.transform(log))
    assert copied.evals_result_ == fitted.evals_result_


def test_pickles_hold_no_row(fitted, log):
    twice = pd.concat([log, log.assign(user=log["user"] + " again")])
    model = embedder(max_epochs=1).fit(twice, **LOG)
    assert (
        abs(len(pickle.dumps(model)) - len(pickle.dumps(embedder(max_epochs=1).fit(log, **LOG))))
        < 4000
    )
    assert b"user 7" not in pickle.dumps(fitted)


def test_a_second_fit_forgets_the_first(log, lists):
    model = untrained().fit(log, **LOG)
    model.fit(lists.drop(columns=["user", "visit"]))
    expected = untrained().fit(lists.drop(columns=["user", "visit"]))
    np.testing.assert_array_equal(model.transform(lists), expected.transform(lists))
    with pytest.raises(AttributeError, match="collect needs a log"):
        model.collect(log)


@pytest.mark.parametrize(
    "params",
    [{}, SESSIONS, {**SESSIONS, "session_loss": "log_loss"}],
    ids=["contrastive", "session_pair", "log_loss"],
)
@pytest.mark.filterwarnings("ignore:EasyTensorEmbedder. 1 of")
def test_random_state(params, log):
    params = {**params, "max_epochs": 3}
    first, again = (untrained(**params).fit(log, **LOG) for _ in range(2))
    np.testing.assert_array_equal(first.transform(log), again.transform(log))
    assert first.evals_result_ == again.evals_result_
    other = untrained(**{**params, "random_state": 1}).fit(log, **LOG)
    assert not np.array_equal(other.transform(log), first.transform(log))


def test_fit_leaves_the_random_state_of_torch(log):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    untrained().fit(log, **LOG)
    assert torch.equal(torch.rand(3), expected)


def test_clone_and_parameters(fitted):
    copied = clone(fitted)
    assert repr(copied) == repr(fitted)
    with pytest.raises(NotFittedError):
        copied.transform({"kind": [["a"]]})
    model = EasyTensorEmbedder(session_gap=dt.timedelta(hours=1))
    model.set_params(trunk__width=32, objective="session_pair")
    assert clone(model).get_params()["trunk__width"] == 32


def test_fit_does_not_change_parameters(log):
    blocks = [("kind", CategorySequenceBlock(), "kind")]
    model = untrained(blocks)
    before = repr(model)
    model.fit(log, **LOG)
    assert repr(model) == before
    assert not hasattr(blocks[0][1], "feature_names_in_")


class PowerCut(Callback):
    """Ends a fit before its fourth epoch."""

    armed = True

    def on_epoch_begin(self, net, **kwargs):
        if self.armed and len(net.history) == 3:
            raise OSError("no power")


@pytest.mark.parametrize("params", [{}, SESSIONS], ids=["contrastive", "session_pair"])
@pytest.mark.filterwarnings("ignore:EasyTensorEmbedder. 1 of")
def test_an_interrupted_fit_goes_on_with_the_same_views(params, log, tmp_path, monkeypatch):
    params = {"max_epochs": 5, "batch_size": 32, "validation_fraction": 0.3, **params}
    expected = untrained(**params).fit(log, **LOG)
    model = untrained(callbacks=[PowerCut()], checkpoint_dir=tmp_path, **params)
    with pytest.raises(OSError, match="no power"):
        model.fit(log, **LOG)
    monkeypatch.setattr(PowerCut, "armed", False)
    model.fit(log, **LOG)
    assert model.evals_result_ == expected.evals_result_
    np.testing.assert_array_equal(model.transform(log), expected.transform(log))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_scikit_learn_check(check):
    check("EasyTensorEmbedder", EasyTensorEmbedder())


def test_unfitted(log):
    for call in (
        lambda: EasyTensorEmbedder().transform(log),
        lambda: EasyTensorEmbedder().collect(log),
        lambda: EasyTensorEmbedder().get_feature_names_out(),
    ):
        with pytest.raises(NotFittedError):
            call()
    assert not hasattr(EasyTensorEmbedder(), "blocks_")


def test_diagram(fitted):
    assert "EventSequenceBlock" in fitted._repr_html_()


def test_a_user_that_is_no_name(log):
    with pytest.raises(TypeError, match="user must be the name of a column or a list of names"):
        EasyTensorEmbedder(max_epochs=1).fit(log, user=0, time="time")


def test_columns_of_a_log_that_are_not_read_may_hold_anything(fitted, log):
    scalars = pd.Series([np.datetime64("2020-01-01"), np.int8(3)] * len(log), dtype=object)
    twice = pd.DataFrame(np.zeros((len(log), 2)), columns=["twice", "twice"])
    events = log.reset_index(drop=True)
    events = pd.concat([events.assign(mixed=scalars[: len(log)], any=object()), twice], axis=1)
    np.testing.assert_array_equal(fitted.transform(events), fitted.transform(log))


def test_aggregates_follow_the_embeddings(log, tmp_path):
    alone = untrained(MEAN, remainder="drop").fit(log, **LOG).transform(log)
    model = untrained(MEAN, remainder="drop", aggregates=True).fit(log, **LOG)
    found = model.transform(log)
    np.testing.assert_array_equal(found[:, :4], alone)
    assert found.shape[1] == len(model.get_feature_names_out()) > 10
    # A network that reads aggregates reads the same numbers.
    lists = model.collect(log)
    block = EventSequenceBlock("mean", aggregates=True)
    columns = lists.select(list(model.tower_.feature_names_in_))
    network = block.fit(columns).make_module()
    ((items, numbers, lengths),) = network.aggregated_lists(block.transform(columns))
    expected = network.aggregates[0].inputs(network.aggregates[0].compute(items, numbers, lengths))
    np.testing.assert_array_equal(found[:, 4:], expected.numpy())
    # Copies, pickles and exports have them.
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).transform(log), found)
    exported = load(model.to_onnx(tmp_path / "users.onnx"))
    np.testing.assert_allclose(exported.transform(lists), found, atol=1e-5)


def test_columns_of_categories_have_aggregates_too(lists):
    blocks = [("kinds", CategorySequenceBlock("mean", width=8), ["kind"])]
    model = untrained(blocks, aggregates=True).fit(lists)
    # Three kinds, a missing one and one that is not known: counts, shares and so on.
    assert model.transform(lists).shape[1] > 4 + 2 * lists.explode("kind")["kind"].nunique()


def test_aggregates_cannot_be_updated(log):
    model = untrained(MEAN, aggregates=True).fit(log, **LOG)
    with pytest.raises(ValueError, match="aggregates=True needs whole lists"):
        model.update(None, log)
