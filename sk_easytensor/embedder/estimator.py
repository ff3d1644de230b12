"""The estimator of embeddings of users."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
from sklearn.base import TransformerMixin, clone
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import check_is_fitted

from sk_easytensor._utils.docstrings import documented_like
from sk_easytensor._utils.runtime import seeded, with_library_settings
from sk_easytensor._utils.validation import check_choice, check_number, warn_user
from sk_easytensor.backends import resolve_backend
from sk_easytensor.compose import BlockParametersMixin, blocks_diagram
from sk_easytensor.data.columns import type_name
from sk_easytensor.data.tables import align_table, as_table, has_column_names
from sk_easytensor.data.validation import errors_name
from sk_easytensor.embedder.objectives import (
    AT_LEAST,
    OBJECTIVES,
    PairSampling,
    UserEncoder,
    count_pairs,
    count_users,
)
from sk_easytensor.embedder.slices import sample_windows, summarize_windows
from sk_easytensor.embedder.tables import (
    check_length,
    check_pairs,
    eval_tables,
    list_blocks,
    list_names,
    view_settings,
)
from sk_easytensor.estimators.classifier import EasyTensorClassifier
from sk_easytensor.estimators.eval_sets import deciding_first, eval_names
from sk_easytensor.estimators.state import restored_on_error
from sk_easytensor.estimators.stored import Vectors, of_stored_rows
from sk_easytensor.estimators.trained import TrainedEstimator
from sk_easytensor.events import collect_sequences
from sk_easytensor.export.adapters import EmbedderAdapter
from sk_easytensor.networks import Sum
from sk_easytensor.report.report import summarize_table
from sk_easytensor.tracking import tracked
from sk_easytensor.training.train import default_batch_size, default_max_epochs
from sk_easytensor.two_tower.tower import Tower

__all__ = [
    "EasyTensorEmbedder",
    "EmbeddingMixin",
]


class EmbeddingMixin(TransformerMixin):
    """Embeds users by the tower that was fitted."""

    def collect(self, events):
        """Return the sequences of a log, a row for each user.

        Parameters
        ----------
        events : table-like
            A log with the columns of the one that `fit` was given.

        Returns
        -------
        DataFrame or pyarrow.Table
            The user's columns and columns of lists, named as in the log. Users are in the order
            of their first event in the log, as in what :meth:`transform` returns; it takes this
            table, too, and gives the same.

        Raises
        ------
        AttributeError
            If `fit` was given no log.
        """
        check_is_fitted(self)
        if self._user is None:
            raise AttributeError("collect needs a log in fit, with its user and time columns")
        return collect_sequences(
            events,
            by=self._user,
            order_by=self._time,
            columns=list(self.tower_.feature_names_in_),
            prefix="",
        )

    def _check_lists(self, table):
        """Raise ``ValueError`` if a stored table lacks columns of lists, or is a log."""
        lists = set(list_names(table))
        for field in self.tower_.read(table).schema:
            if field.name not in lists and not pa.types.is_null(field.type):
                raise ValueError(
                    f"{type(self).__name__}: column {field.name!r} holds "
                    f"{type_name(field.type)}, not lists; "
                    "events of a user may be anywhere in a stored log, so that only a stored table "
                    "with a row for each user can be embedded, such as collect makes"
                )

    @with_library_settings
    @of_stored_rows(Vectors("embedding"), check="_check_lists")
    def transform(self, X):
        """Return embeddings.

        Parameters
        ----------
        X : table-like
            Columns of lists, a row for each user; or a log, if `fit` was given one.

        Returns
        -------
        ndarray of float32, shape (n_users, embedding_dim)
            For a log, users are in the order of their first event; as pandas data frames, if
            ``set_output`` asks for these, they have the users as index.
        """
        check_is_fitted(self)
        table = as_table(X, columns=self._read_columns())
        if not self._is_log(table):
            return self.tower_.embed(table)
        sequences = self.collect(table)
        embeddings = self.tower_.embed(sequences)
        if _get_output_config("transform", self)["dense"] != "pandas":
            return embeddings
        # Left to itself, scikit-learn would take over the index of the events.
        users = self._user_names()
        users = sequences.select(users).to_pandas().set_index(users).index
        return pd.DataFrame(embeddings, index=users, columns=self.get_feature_names_out())

    def _read_columns(self):
        """Return the names of the columns that are read of a table of lists or a log."""
        times = [] if self._time is None else [self._time]
        return list(dict.fromkeys([*self.tower_.feature_names_in_, *self._user_names(), *times]))

    def _user_names(self):
        """Return the columns that name the user in a log; none if `fit` was given no log."""
        return [self._user] if isinstance(self._user, str) else list(self._user or ())

    def _is_log(self, table):
        read = set(self.tower_.feature_names_in_).intersection(table.column_names)
        return self._user is not None and not read.intersection(list_names(table))


@documented_like(EasyTensorClassifier)
class EasyTensorEmbedder(EmbeddingMixin, BlockParametersMixin, TrainedEstimator):
    """Embeddings of users, learned without labels from what they did.

    A network reads the events of a user and gives a vector. It is trained to tell which parts of
    sequences belong together, so that whatever is lasting about a user has to be in the vector.
    Anything that has events is a user here: a customer, a card, an aircraft.

    Parameters
    ----------
    blocks : list of (str, Block, columns) or None, default=None
        Blocks for list columns, as in :class:`~sk_easytensor.TableEncoder`. Columns of a log are
        the lists that :meth:`collect` makes of them.
    objective : {"contrastive", "session_pair"}, default="contrastive"
        What is learned. ``"contrastive"``: which two random parts are of the same user, among
        those of many. ``"session_pair"``: whether a session follows a history.
    embedding_dim : int, default=128
        Size of the embeddings.
    remainder : {"auto", "drop"}, default="auto"
        What happens to list columns that no block names: ``"auto"`` gives all to one
        :class:`~sk_easytensor.EventSequenceBlock`, ``"drop"`` leaves them out. The column
        `session` is left out in any case.
    trunk : object or None, default=None
        Network between blocks and embedding; by default :class:`~sk_easytensor.Sum`, which adds
        up what the blocks give.
    temperature : float or None, default=None
        What products of embeddings are divided by; by default 0.05 for ``"contrastive"``, where
        they are cosines, and 1 for ``"session_pair"``.
    dropout : float, default=0.0
        Fraction of the embeddings' components zeroed in training.
    session_gap : float, str, timedelta or None, default=None
        A session ends where the next event is later by more than this: a number of seconds, or a
        duration such as ``"6h"``. Only ``"session_pair"`` has sessions.
    session : str or None, default=None
        Instead of a gap: the column that names the session of each event.
    min_length : int or float, default=0.1
        For ``"contrastive"``: least length of a slice, whose length is drawn uniformly between
        `min_length` and `max_length`. A number of events, or a fraction of the user's.
    max_length : int, float or None, default=0.75
        For ``"contrastive"``: greatest length of a slice, in the same units; None for all events.
    learning_rate : float, default=3e-3
        Highest learning rate of the schedule.
    batch_size : int or None, default=None
        Pairs a batch; by default by the number of users, at least 128.
    max_epochs : int or None, default=None
        Epochs at most; by default by the number of users. Each has parts of its own.
    validation_fraction : float or None, default=0.1
        Part of the users that validates if `fit` gets no `eval_set`.
    weight_decay : float, default=0.01
        Weight decay of the optimizer.
    optimizer, early_stopping_rounds, random_state, n_jobs, device, verbose
        As in :class:`~sk_easytensor.EasyTensorClassifier`.
    callbacks, backend, checkpoint_dir, tracker
        As in :class:`~sk_easytensor.EasyTensorClassifier`.
    inference_engine : {"torch", "auto", "onnxruntime", "tensorrt"}, default="torch"
        What computes embeddings once they are learned, as in
        :class:`~sk_easytensor.EasyTensorClassifier`; ``tower_.inference_engine_`` says which it is.

    Attributes
    ----------
    tower_ : Tower
        The fitted network with its blocks: a transformer of tables of lists, picklable alone.
    blocks_ : dict of {str: Block}
        Its blocks.
    network_ : torch.nn.Module
        Its network.
    n_users_ : int
        Users that `fit` was given.
    n_users_without_pair_ : int
        Those of them with too few events or sessions to be trained on. The blocks have seen their
        events, and others may have been told from them.
    evals_result_ : dict of {str: dict of {str: list of float}}
        Losses by epoch, such as ``{"training": {"softmax_loss": [...]}, "valid_0": {...}}``. The
        training loss is the mean over an epoch's batches.
    n_iter_, best_iteration_, best_score_
        As in :class:`~sk_easytensor.EasyTensorClassifier`.
    n_features_in_, feature_names_in_
        Columns of the table or the log.

    Notes
    -----
    ``"contrastive"`` is the idea of Babaev et al., "CoLES: Contrastive Learning for Event
    Sequences with Self-Supervision" (2022), with a softmax over the users of a batch.

    Only columns of lists are read: what is constant for a user would tell at once which parts
    are whose. Parts are cut before blocks read them, so that nothing of a part, such as the time
    since the previous event, depends on what is outside it.

    Examples
    --------
    >>> log = {
    ...     "customer": ["ann", "bob", "ann", "bob", "cid", "ann", "cid"],
    ...     "day": [1, 1, 2, 4, 5, 6, 7],
    ...     "bought": ["tea", "nails", "milk", "glue", "tea", "tea", "honey"],
    ... }
    >>> embedder = EasyTensorEmbedder(embedding_dim=8, max_epochs=2, random_state=0)
    >>> embedder = embedder.fit(log, user="customer", time="day")
    >>> embedder.transform(log).shape, embedder.collect(log)["customer"].to_pylist()
    ((3, 8), ['ann', 'bob', 'cid'])
    """

    _export_adapter = EmbedderAdapter

    def __init__(
        self,
        blocks=None,
        *,
        objective="contrastive",
        embedding_dim=128,
        remainder="auto",
        trunk=None,
        temperature=None,
        dropout=0.0,
        session_gap=None,
        session=None,
        min_length=0.1,
        max_length=0.75,
        learning_rate=3e-3,
        batch_size=None,
        max_epochs=None,
        optimizer="adamw",
        weight_decay=0.01,
        early_stopping_rounds="auto",
        validation_fraction=0.1,
        random_state=None,
        n_jobs=None,
        device="auto",
        verbose=0,
        callbacks=None,
        backend="local",
        checkpoint_dir=None,
        tracker=None,
        inference_engine="torch",
    ):
        self.blocks = blocks
        self.objective = objective
        self.embedding_dim = embedding_dim
        self.remainder = remainder
        self.trunk = trunk
        self.temperature = temperature
        self.dropout = dropout
        self.session_gap = session_gap
        self.session = session
        self.min_length = min_length
        self.max_length = max_length
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.early_stopping_rounds = early_stopping_rounds
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.device = device
        self.verbose = verbose
        self.callbacks = callbacks
        self.backend = backend
        self.checkpoint_dir = checkpoint_dir
        self.tracker = tracker
        self.inference_engine = inference_engine

    def _default_trunk(self):
        return Sum(width=self.embedding_dim)

    def _check_parameters(self):
        super()._check_parameters()
        owner = type(self).__name__
        check_choice(owner, "objective", self.objective, tuple(OBJECTIVES))
        check_choice(owner, "remainder", self.remainder, ("auto", "drop"))
        check_number(owner, "embedding_dim", self.embedding_dim, low=1, integer=True)
        if self.temperature is not None:
            check_number(owner, "temperature", self.temperature, low=0, exclusive=True)
        check_number(owner, "dropout", self.dropout, low=0, high=0.99)
        check_length(owner, "min_length", self.min_length)
        if self.max_length is not None:
            check_length(owner, "max_length", self.max_length)
        if self.session is not None and self.session_gap is not None:
            raise ValueError(
                f"{owner}: session_gap={self.session_gap!r} and session={self.session!r} are two "
                "ways to cut sessions; give one of them"
            )

    # ------------------------------------------------------------------ fitting

    @with_library_settings
    @tracked
    @restored_on_error
    def fit(self, X, y=None, *, user=None, time=None, eval_set=None):
        """Learn embeddings.

        Parameters
        ----------
        X : table-like, path of Parquet files or Ray Dataset
            Either a row for each user with columns of lists, all lists of a row of one length,
            or a log with a row for each event, in any order.
        y : None
            Ignored.
        user : str or list of str, optional
            With a log: the column that names the user.
        time : str, optional
            The column that says when events happened: timestamps, dates, or numbers of seconds.
            A log needs it, and so does a `session_gap`. Of numbers, too, blocks that are chosen
            automatically read the gaps only.
        eval_set : list of table-like, paths or Datasets, optional
            Of the kind of `X`, with other users; evaluated after each epoch. The last decides about
            early stopping and which weights are kept. One that is `X` itself is called
            ``training`` in ``evals_result_`` and never decides.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            For input or parameters that make no sense, before any training starts.

        Warns
        -----
        UserWarning
            If there are users with too few events or sessions to be trained on.

        Notes
        -----
        On Ray, tasks bring the events of each user of a log together, and no process has all users:
        each worker draws pairs of its own. Their sequences have to be in its memory, as they are
        and not encoded; if they take more than half of ``memory_per_worker``, the fit ends with an
        error before any training, and more workers are needed. With ``"contrastive"`` each worker
        tells a user from those of its own part of a batch, ``batch_size / num_workers`` pairs: the
        more workers, the larger a `batch_size` pays.
        """
        backend = resolve_backend(self.backend, self.n_jobs)
        self._check_parameters()
        if user is not None and time is None:
            raise ValueError(
                f"{type(self).__name__}: user={user!r} says that X is a log of events, which needs "
                "time too, the column that says when they happened"
            )
        if user is not None and not isinstance(user, (str, list, tuple)):
            raise TypeError(
                f"{type(self).__name__}: user must be the name of a column or a list of names, "
                f"got {user!r}"
            )
        with backend.running(), ExitStack() as opened:
            given, lists = self._read_lists(X, user, time, backend)
            some = lists.sample().table
            settings = view_settings(self, some, time)
            blocks = list_blocks(self, some, X if user is None else None, time)
            read = [name for _, _, columns in blocks for name in columns]
            cut_by = [name for name in (settings.label, settings.gap and time) if name]
            needed = [name for name in some.column_names if name in {*read, *cut_by}]
            encoder = UserEncoder(OBJECTIVES[self.objective], settings, needed, type(self).__name__)
            lists, rows, counts = self._read_users(lists, encoder)
            evals, sources = [], {"X": lists}
            tables = eval_tables(eval_set)
            for where, X_eval in tables:
                with errors_name(where):
                    _, valid = self._read_lists(X_eval, user, time, backend)
                    sources[where], valid, _ = self._read_users(valid, encoder)
                    evals.append(valid)
            checkpoints, random_state = self._open_checkpoints(
                opened,
                lambda: (
                    {name: each.digest() for name, each in sources.items()}
                    | {"user": repr(user), "time": repr(time)}
                ),
            )
            names = eval_names([(X_eval, None) for _, X_eval in tables], X)
            evals = {names[index]: evals[index] for index in deciding_first(names)}
            self._clear_state()
            self.n_users_, usable = counts
            self.n_users_without_pair_ = self.n_users_ - usable
            if self.n_users_without_pair_:
                warn_user(
                    f"{type(self).__name__}: {self.n_users_without_pair_} of {self.n_users_} users "
                    f"have {encoder.objective.lack} and make no pair of their own to train on",
                )
            self._user, self._time = user, time
            self._data_summary = summarize_table(given)
            with self._timed("blocks"):
                self._fit_tower(lists, blocks, backend)
            self._train(rows, evals, random_state, backend, checkpoints)
            self._choose_engines([(self.tower_, some)], backend)
        self._n_features_out = self.embedding_dim
        self.n_features_in_ = given.num_columns
        if has_column_names(X):
            self.feature_names_in_ = np.asarray(given.column_names, dtype=object)
        return self

    def _read_lists(self, X, user, time, backend):
        """Return some of the rows that the user gave, and sequences with a row for each user."""
        dataset = backend.read_dataset(X, None, None, as_table, no_target)
        given = dataset.sample().table
        return given, dataset if user is None else dataset.collect_sequences(user, time)

    def _read_users(self, lists, encoder):
        """Return the columns that are read, users with their sequences, and how many they are."""
        # Columns that are missing are named.
        align_table(lists.sample().table, encoder.columns, owner=type(self).__name__)
        lists = lists.select(encoder.columns)
        rows = lists.encode(encoder)
        n_users, usable = map(int, sum(rows.map_chunks(count_users)))
        check_pairs(n_users, usable, encoder.objective.lack)
        return lists, rows, (n_users, usable)

    def _fit_tower(self, lists, blocks, executor):
        trunk = self._default_trunk() if self.trunk is None else self.trunk
        self.tower_ = Tower(
            blocks,
            clone(trunk),
            embedding_dim=self.embedding_dim,
            normalized=OBJECTIVES[self.objective].normalized,
            n_jobs=self.n_jobs,
        )
        lengths = [getattr(block, "max_length", None) for _, block, _ in blocks]
        shortest = min((length for length in lengths if length is not None), default=None)
        owner = type(self).__name__
        self.tower_.fit_blocks(
            sample_windows(lists.sample().table, shortest, owner),
            None,
            partial(summarize_windows, lists, shortest, owner, executor),
            "user",
        )

    def _train(self, rows, evals, random_state, backend, checkpoints):
        if set(evals) <= {"training"} and self.validation_fraction is not None:
            parts, held_out = rows.hold_out(is_eligible, self.validation_fraction, random_state)
            usable = [sum(part.map_chunks(count_users))[1] for part in (parts, *held_out)]
            if held_out and min(usable) >= AT_LEAST:
                rows, evals = parts, {"valid_0": held_out[0], **evals}
        seed = int(random_state.randint(np.iinfo(np.int32).max))
        encode = self.tower_.encoding(backend)
        counts = [sum(part.map_chunks(count_pairs)) for part in (rows, *evals.values())]
        rows = rows.map(PairSampling(encode, [seed, 0], fresh=True))
        # Validation pairs are drawn once, so that epochs can be compared.
        validation = [
            valid.map(PairSampling(encode, [seed, 1 + index], fresh=False))
            for index, valid in enumerate(evals.values())
        ]
        objective = OBJECTIVES[self.objective]
        temperature = objective.temperature if self.temperature is None else self.temperature
        batch_size = self.batch_size or max(128, default_batch_size(counts[0]))
        epochs = self.max_epochs or default_max_epochs(counts[0])
        settings = self._settings(
            batch_size, epochs, self._eval_plan(evals), checkpoints=checkpoints
        )
        with seeded(seed):
            tower = self.tower_.make_network()
            network = objective.make_network(tower, max(counts), temperature, self.dropout)
            result = backend.train(network, objective.head, rows, validation, settings)
        self._record_training(result)

    def __sklearn_is_fitted__(self):
        return hasattr(self, "n_features_in_")

    @property
    def blocks_(self):
        """The fitted blocks."""
        return self.tower_.blocks_

    @property
    def network_(self):
        """The trained network."""
        return self.tower_.network_

    def representation(self):
        """Return blocks and network.

        Returns
        -------
        Representation
            For :class:`~sk_easytensor.PretrainedBlock`.
        """
        check_is_fitted(self)
        return self.tower_.representation()

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    def _sk_visual_block_(self):
        return blocks_diagram(self)


def no_target(y):
    """Return that there is nothing to learn but the rows themselves."""
    return None


def is_eligible(target):
    """Return the groups of users that a validation part is drawn evenly from."""
    return target.numpy()
