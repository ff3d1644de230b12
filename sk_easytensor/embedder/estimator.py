"""The estimator of embeddings of users."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

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
from sk_easytensor.data.tables import align_table, as_table, has_column_names
from sk_easytensor.data.type_names import type_name
from sk_easytensor.data.validation import errors_name
from sk_easytensor.embedder.objectives import (
    MIN_ELIGIBLE_USERS,
    OBJECTIVES,
    SESSION_LOSSES,
    SESSION_SAMPLING,
    PairSampling,
    UserEncoder,
    check_eligible,
    check_length,
    count_long_histories,
    count_pairs,
    count_users,
    eval_tables,
    list_blocks,
    list_names,
    objective_of,
    view_settings,
)
from sk_easytensor.embedder.slices import sample_windows, summarize_windows
from sk_easytensor.embedder.updates import check_incremental, update_state
from sk_easytensor.estimators.classifier import EasyTensorClassifier
from sk_easytensor.estimators.eval_sets import deciding_first, eval_names
from sk_easytensor.estimators.state import restored_on_error
from sk_easytensor.estimators.stored import Vectors, of_stored_rows
from sk_easytensor.estimators.trained import TrainedEstimator
from sk_easytensor.events import collect_sequences
from sk_easytensor.executor import LocalExecutor
from sk_easytensor.export.adapters import EmbedderAdapter
from sk_easytensor.networks import Sum
from sk_easytensor.report.report import summarize_table
from sk_easytensor.tracking import tracked
from sk_easytensor.training.train import default_batch_size, default_max_epochs
from sk_easytensor.two_tower.tower import Tower

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal, Self

    import torch

    from sk_easytensor._utils.typing import (
        BackendLike,
        BlockSpec,
        CallbackSpec,
        Duration,
        EngineName,
        OptimizerLike,
        PathLike,
        Predictions,
        RandomStateLike,
        TableLike,
        Trunk,
    )
    from sk_easytensor.blocks import Block
    from sk_easytensor.blocks.pretrained import Representation
    from sk_easytensor.embedder.updates import EmbeddingState
    from sk_easytensor.tracking import MLflowTracker

__all__ = [
    "EasyTensorEmbedder",
    "EmbeddingMixin",
]


MAX_EPOCHS = 200
"""Largest number of epochs by default. Parts are drawn anew in each of them, so that embeddings
improve for twice as long as on pairs that stay the same."""


class EmbeddingMixin(TransformerMixin):
    """Methods that embed users by the fitted tower."""

    def collect(self, events: TableLike) -> pd.DataFrame | pa.Table:
        """Return the sequences of a log, with a row for each user.

        Parameters
        ----------
        events : table-like
            Log with the columns of the log in `fit`.

        Returns
        -------
        DataFrame or pyarrow.Table
            The columns of the user, and columns of lists, named as in the log. Users are in the
            order of their first event in the log, as in the result of :meth:`transform`, which also
            takes this table and returns the same embeddings for it.

        Raises
        ------
        AttributeError
            If `X` in `fit` was not a log.
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
                    "with a row for each user can be embedded, such as collect returns"
                )

    @with_library_settings
    @of_stored_rows(Vectors("embedding"), check="_check_lists")
    def transform(self, X: TableLike) -> Predictions:
        """Return embeddings.

        Parameters
        ----------
        X : table-like
            Table with columns of lists and a row for each user, or a log if `X` in `fit` was one.

        Returns
        -------
        ndarray of float32, shape (n_users, embedding_dim)
            Embeddings, followed by aggregates with ``aggregates=True``. For a log, users are in the
            order of their first event. With ``set_output(transform="pandas")``, the index has the
            keys of the users.
        """
        check_is_fitted(self)
        table = as_table(X, columns=self._read_columns())
        if not self._is_log(table):
            return self.tower_.embed(table)
        sequences = self.collect(table)
        embeddings = self.tower_.embed(sequences)
        if _get_output_config("transform", self)["dense"] != "pandas":
            return embeddings
        # Without an index here, scikit-learn would use the index of the events.
        names = self._user_names()
        users = sequences.select(names).to_pandas().set_index(names).index
        return pd.DataFrame(embeddings, index=users, columns=self.get_feature_names_out())

    @with_library_settings
    def update(self, state: EmbeddingState | None, events: TableLike) -> EmbeddingState:
        """Return embeddings after further events, without the events before them.

        Parameters
        ----------
        state : EmbeddingState or None
            Result of an earlier call; None for the first one.
        events : table-like
            Log with the further events, not earlier than those of the same user before. Users
            without an earlier event are added. Events of the same time are taken in the order of
            the calls.

        Returns
        -------
        EmbeddingState
            ``embeddings`` are those that :meth:`transform` computes from all events together, to
            about 1e-6, ``users`` has the keys. `state` is not changed.

        Raises
        ------
        AttributeError
            If `X` in `fit` was not a log.
        ValueError
            If the embedding of a block cannot be updated exactly: its encoder must be ``"mean"`` or
            read from left to right only (``"gru"``, ``"lstm"``), and must not read the time up to
            the last event (``now=False``). Also with ``aggregates=True``, if a user has more events
            than the ``max_length`` of a block, if an event is earlier than the last one before, or
            if `state` is of another fit.
        TypeError
            If a column is of another type than before.

        Notes
        -----
        Encoders keep their state: the hidden state of a recurrent network, the sums of a mean, the
        running maximum and sums of a softmax for attention pooling. The time of a call grows with
        the number of new events, not with the length of the histories.
        """
        check_is_fitted(self)
        owner = type(self).__name__
        if self._user is None:
            raise AttributeError("update needs a log in fit, with its user and time columns")
        if self.tower_.aggregates:
            raise ValueError(
                f"{owner}.update: aggregates=True needs whole lists; fit with aggregates=False to "
                "update embeddings, or call transform"
            )
        check_incremental(self.tower_.blocks_, owner)
        table = as_table(events, columns=self._read_columns(), minimum_rows=0)
        if not self._is_log(table):
            raise ValueError(
                f"{owner}.update: events must be a log with a row for each event; the columns "
                f"{list_names(table)} hold lists"
            )
        user, executor = self._user_names(), LocalExecutor(self.n_jobs)
        return update_state(self.tower_, user, self._time, state, table, owner, executor)

    def _read_columns(self):
        """Return the names of the columns to read from a table of lists or a log."""
        times = [] if self._time is None else [self._time]
        return list(dict.fromkeys([*self.tower_.feature_names_in_, *self._user_names(), *times]))

    def _user_names(self):
        """Return the key columns of the user in a log; none if `X` in `fit` was not a log."""
        return [self._user] if isinstance(self._user, str) else list(self._user or ())

    def _is_log(self, table):
        columns = set(self.tower_.feature_names_in_).intersection(table.column_names)
        return self._user is not None and not columns.intersection(list_names(table))


@documented_like(EasyTensorClassifier)
class EasyTensorEmbedder(EmbeddingMixin, BlockParametersMixin, TrainedEstimator):
    """Embeddings of users, learned from their events without labels.

    A network reads the events of a user and returns a vector. It is trained to recognize parts of
    sequences that are of the same user, so that the vector has to represent lasting properties of
    the user. A user can be anything that has events: a customer, a card, an aircraft.

    Parameters
    ----------
    blocks : list of (str, Block, columns) or None, default=None
        Name, block and columns of each block for list columns, as in
        :class:`~sk_easytensor.TableEncoder`. Columns of a log are the lists that :meth:`collect`
        returns.
    objective : {"contrastive", "session_pair"}, default="contrastive"
        Training task. ``"contrastive"`` matches two random parts of a user among those of many
        users. ``"session_pair"`` matches the events before a session with that session, among the
        sessions of many users.
    embedding_dim : int, default=128
        Size of the embeddings.
    aggregates : bool, default=False
        Whether :meth:`transform` returns aggregates of the lists after the embeddings: lengths,
        counts and shares of the most frequent categories, statistics of numbers, and so on, as
        :class:`~sk_easytensor.EventSequenceBlock` computes them for a network. Training does not
        read them, and neither does :class:`~sk_easytensor.PretrainedBlock`.
    remainder : {"auto", "drop"}, default="auto"
        Handling of list columns that no block names: ``"auto"`` reads all of them by one
        ``EventSequenceBlock("mean", now=False)``, ``"drop"`` leaves them out. The column `session`
        is left out in any case.
    trunk : object or None, default=None
        Network between blocks and embedding; None for :class:`~sk_easytensor.Sum`, which adds up
        the outputs of the blocks.
    temperature : float or None, default=None
        Number that products of embeddings are divided by; None for 0.05 with a softmax, where they
        are cosines, and for 1.0 with ``session_loss="log_loss"``.
    dropout : float, default=0.0
        Fraction of the embeddings' components that are set to zero in training.
    session_gap : float, str, timedelta or None, default=None
        Time after which a new session starts: a number of seconds, or a duration such as ``"6h"``.
        A session ends if the next event is later by more than this. Only ``"session_pair"`` uses
        sessions.
    session : str or None, default=None
        Column that identifies the session of each event, an alternative to `session_gap`.
    session_loss : {"softmax", "log_loss"}, default="softmax"
        Loss of ``"session_pair"``. ``"softmax"`` is the cross-entropy of choosing the session of
        the user among the sessions of all users of the batch. ``"log_loss"`` classifies whether a
        session is the user's own or one drawn of another user; the embeddings are then not scaled
        to length 1.
    session_sampling : {"uniform", "latest"}, default="uniform"
        Session of each user in ``"session_pair"``: drawn in each epoch among all but the first, or
        always the last one. The history is all events before it.
    min_length : int or float, default=0.1
        Minimum length of the slices of ``"contrastive"``: a number of events, or a fraction of the
        user's events. Lengths are drawn uniformly between `min_length` and `max_length`.
    max_length : int, float or None, default=0.75
        Maximum length of the slices of ``"contrastive"``, in the same units; None for all events.
    learning_rate : float, default=3e-3
        Highest learning rate of the schedule.
    batch_size : int or None, default=None
        Pairs of each training step; None for at least 128, by the number of users.
    max_epochs : int or None, default=None
        Maximum number of epochs; None for a number by that of the users, at most 200. New parts are
        drawn in each epoch. The learning rate falls until the last one, so that the best epoch is
        often among the last ones, even if more epochs would not improve the embeddings.
    validation_fraction : float or None, default=0.1
        Fraction of the users that is held out for validation when `fit` gets no ``eval_set``; None
        to train on all users.
    weight_decay : float, default=0.01
        Weight decay of the optimizer.
    optimizer, early_stopping_rounds, random_state, n_jobs, device, verbose
        As in :class:`~sk_easytensor.EasyTensorClassifier`.
    callbacks, backend, checkpoint_dir, tracker
        As in :class:`~sk_easytensor.EasyTensorClassifier`.
    inference_engine : {"torch", "auto", "onnxruntime", "tensorrt"}, default="torch"
        Engine that computes embeddings with the fitted network, as in
        :class:`~sk_easytensor.EasyTensorClassifier`. ``tower_.inference_engine_`` is the engine
        that was chosen.

    Attributes
    ----------
    tower_ : Tower
        Fitted blocks and network: a transformer of tables of lists, which can be pickled alone.
    blocks_ : dict of {str: Block}
        Fitted blocks of the tower by name.
    network_ : torch.nn.Module
        The trained network of the tower.
    n_users_ : int
        Number of users in `fit`.
    n_users_without_pair_ : int
        Number of users with too few events or sessions for a pair of their own. Blocks are fitted
        on their events too, and with ``session_loss="log_loss"`` their sessions may be in pairs of
        different users.
    evals_result_ : dict of {str: dict of {str: list of float}}
        Losses by epoch, such as ``{"training": {"softmax_loss": [...]}, "valid_0": {...}}``. The
        training loss is the mean over an epoch's batches.
    n_iter_, best_iteration_, best_score_
        As in :class:`~sk_easytensor.EasyTensorClassifier`.
    n_features_in_ : int
        Number of columns of the table or the log.
    feature_names_in_ : ndarray of str
        Names of the columns of the table or the log, if it had names.

    Notes
    -----
    ``"contrastive"`` is the method of Babaev et al., "CoLES: Contrastive Learning for Event
    Sequences with Self-Supervision" (2022), with a softmax over the users of a batch.

    Only columns of lists are read, because a value that is constant for a user would identify the
    user of a part. Parts are cut before blocks read them, so that no feature of a part, such as the
    time since the previous event, depends on events outside it.

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
        blocks: Sequence[BlockSpec] | None = None,
        *,
        objective: Literal["contrastive", "session_pair"] = "contrastive",
        embedding_dim: int = 128,
        aggregates: bool = False,
        remainder: Literal["auto", "drop"] = "auto",
        trunk: Trunk | None = None,
        temperature: float | None = None,
        dropout: float = 0.0,
        session_gap: Duration | None = None,
        session: str | None = None,
        session_loss: Literal["softmax", "log_loss"] = "softmax",
        session_sampling: Literal["uniform", "latest"] = "uniform",
        min_length: float = 0.1,
        max_length: float | None = 0.75,
        learning_rate: float = 3e-3,
        batch_size: int | None = None,
        max_epochs: int | None = None,
        optimizer: OptimizerLike = "adamw",
        weight_decay: float = 0.01,
        early_stopping_rounds: int | Literal["auto"] | None = "auto",
        validation_fraction: float | None = 0.1,
        random_state: RandomStateLike | None = None,
        n_jobs: int | None = None,
        device: str = "auto",
        verbose: int = 0,
        callbacks: Sequence[CallbackSpec] | None = None,
        backend: BackendLike = "local",
        checkpoint_dir: PathLike | None = None,
        tracker: MLflowTracker | Literal["mlflow"] | None = None,
        inference_engine: EngineName = "torch",
    ) -> None:
        self.blocks = blocks
        self.objective = objective
        self.embedding_dim = embedding_dim
        self.aggregates = aggregates
        self.remainder = remainder
        self.trunk = trunk
        self.temperature = temperature
        self.dropout = dropout
        self.session_gap = session_gap
        self.session = session
        self.session_loss = session_loss
        self.session_sampling = session_sampling
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
        check_choice(owner, "session_loss", self.session_loss, SESSION_LOSSES)
        check_choice(owner, "session_sampling", self.session_sampling, SESSION_SAMPLING)
        check_choice(owner, "remainder", self.remainder, ("auto", "drop"))
        check_number(owner, "embedding_dim", self.embedding_dim, low=1, integer=True)
        check_choice(owner, "aggregates", self.aggregates, (False, True))
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
    def fit(
        self,
        X: TableLike,
        y: None = None,
        *,
        user: str | Sequence[str] | None = None,
        time: str | None = None,
        eval_set: Sequence[TableLike] | None = None,
    ) -> Self:
        """Learn embeddings.

        Parameters
        ----------
        X : table-like, path of Parquet files or Ray Dataset
            Either a table with a row for each user and columns of lists, where all lists of a row
            have the same length, or a log with a row for each event, in any order.
        y : None
            Ignored.
        user : str or list of str, optional
            Column or columns that identify the user. Required for a log, and only for a log.
        time : str, optional
            Column of the times of events: timestamps, dates, or numbers of seconds. Required for a
            log and with `session_gap`. Blocks that are chosen automatically read only the time
            between events, also from numbers.
        eval_set : list of table-like, paths or Datasets, optional
            Tables of the same kind as `X`, with other users, that are evaluated after each epoch.
            The last one decides about early stopping and which weights are kept. One that is `X`
            itself is called ``training`` in ``evals_result_`` and never decides.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError, TypeError
            If a parameter of the estimator or an argument is invalid. Parameters and columns are
            checked before any training starts.

        Warns
        -----
        UserWarning
            If there are users with too few events or sessions for a pair, or histories of
            ``"session_pair"`` with more events than the ``max_length`` that a block reads.

        Notes
        -----
        On Ray, tasks collect the events of each user of a log, and no process has all users: each
        worker draws pairs of its own users. Their sequences must be in its memory, not encoded. If
        they take more than half of ``memory_per_worker``, `fit` raises an error before any
        training, and more workers are needed. The softmax of each worker is over the users of its
        own part of a batch, ``batch_size / num_workers`` pairs: with more workers, a larger
        `batch_size` pays off.
        """
        backend = resolve_backend(self.backend, self.n_jobs)
        self._check_parameters()
        if user is not None and time is None:
            raise ValueError(
                f"{type(self).__name__}: user={user!r} makes X a log of events, which needs time "
                "too, the column of the times of events"
            )
        if user is not None and not isinstance(user, (str, list, tuple)):
            raise TypeError(
                f"{type(self).__name__}: user must be the name of a column or a list of names, "
                f"got {user!r}"
            )
        with backend.running(), ExitStack() as stack:
            input_sample, lists = self._read_lists(X, user, time, backend)
            sample = lists.sample().table
            settings = view_settings(self, sample, time)
            blocks = list_blocks(self, sample, X if user is None else None, time)
            features = [name for _, _, columns in blocks for name in columns]
            cut_by = [name for name in (settings.label, settings.gap and time) if name]
            needed = [name for name in sample.column_names if name in {*features, *cut_by}]
            encoder = UserEncoder(objective_of(self), settings, needed, type(self).__name__)
            lists, rows, counts = self._read_users(lists, encoder)
            evals, datasets = [], {"X": lists}
            tables = eval_tables(eval_set)
            for name, X_eval in tables:
                with errors_name(name):
                    _, valid = self._read_lists(X_eval, user, time, backend)
                    datasets[name], valid, _ = self._read_users(valid, encoder)
                    evals.append(valid)

            def data_digests():
                digests = {name: dataset.digest() for name, dataset in datasets.items()}
                return digests | {"user": repr(user), "time": repr(time)}

            checkpoints, random_state = self._open_checkpoints(stack, data_digests)
            names = eval_names([(X_eval, None) for _, X_eval in tables], X)
            evals = {names[index]: evals[index] for index in deciding_first(names)}
            self._clear_state()
            self.n_users_, n_eligible = counts
            self.n_users_without_pair_ = self.n_users_ - n_eligible
            if self.n_users_without_pair_:
                warn_user(
                    f"{type(self).__name__}: {self.n_users_without_pair_} of {self.n_users_} users "
                    f"have {encoder.objective.ineligible_reason} and make no pair of their own to "
                    "train on",
                )
            if encoder.objective.has_sessions:
                self._warn_of_long_histories(rows, blocks)
            self._user, self._time = user, time
            self._data_summary = summarize_table(input_sample)
            with self._timed("blocks"):
                self._fit_tower(lists, blocks, backend)
            self._train(rows, evals, random_state, backend, checkpoints)
            self._choose_engines([(self.tower_, sample)], backend)
        self._n_features_out = self.tower_._n_features_out
        self.n_features_in_ = input_sample.num_columns
        if has_column_names(X):
            self.feature_names_in_ = np.asarray(input_sample.column_names, dtype=object)
        return self

    def _read_lists(self, X, user, time, backend):
        """Return a sample of the rows of `X`, and sequences with a row for each user."""
        dataset = backend.read_dataset(X, None, None, as_table, no_target)
        sample = dataset.sample().table
        return sample, dataset if user is None else dataset.collect_sequences(user, time)

    def _read_users(self, lists, encoder):
        """Return the columns to read, users with their sequences, and the numbers of users.

        Raises
        ------
        ValueError
            If columns are missing, or if too few users are eligible.
        """
        align_table(lists.sample().table, encoder.columns, owner=type(self).__name__)
        lists = lists.select(encoder.columns)
        rows = lists.encode(encoder)
        n_users, n_eligible = map(int, sum(rows.map_chunks(count_users)))
        check_eligible(n_users, n_eligible, encoder.objective.ineligible_reason)
        return lists, rows, (n_users, n_eligible)

    def _warn_of_long_histories(self, rows, blocks):
        """Warn if histories have more events than a block reads."""
        limits = [(getattr(block, "max_length", None), name) for name, block, _ in blocks]
        limits = [(length, name) for length, name in limits if length is not None]
        if not limits:
            return
        length, name = min(limits)
        n_longer = sum(rows.map_chunks(partial(count_long_histories, length=length)))
        if n_longer:
            warn_user(
                f"{type(self).__name__}: {n_longer} of {self.n_users_} users have more than "
                f"{length} events before their last session, and block {name!r} reads {length} of "
                "them: raise its max_length to learn from whole histories"
            )

    def _fit_tower(self, lists, blocks, executor):
        trunk = self._default_trunk() if self.trunk is None else self.trunk
        self.tower_ = Tower(
            blocks,
            clone(trunk),
            embedding_dim=self.embedding_dim,
            normalized=objective_of(self).normalized,
            aggregates=self.aggregates,
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
            retained, held_out = rows.hold_out(
                eligible_strata, self.validation_fraction, random_state
            )
            n_eligible = [sum(part.map_chunks(count_users))[1] for part in (retained, *held_out)]
            if held_out and min(n_eligible) >= MIN_ELIGIBLE_USERS:
                rows, evals = retained, {"valid_0": held_out[0], **evals}
        seed = int(random_state.randint(np.iinfo(np.int32).max))
        encode = self.tower_.encoding(backend)
        counts = [sum(part.map_chunks(count_pairs)) for part in (rows, *evals.values())]
        rows = rows.map(PairSampling(encode, [seed, 0], fresh=True))
        # Validation pairs are drawn once, so that losses of epochs can be compared.
        validation = [
            valid.map(PairSampling(encode, [seed, 1 + index], fresh=False))
            for index, valid in enumerate(evals.values())
        ]
        objective = objective_of(self)
        temperature = objective.temperature if self.temperature is None else self.temperature
        batch_size = self.batch_size or max(128, default_batch_size(counts[0]))
        epochs = self.max_epochs or min(MAX_EPOCHS, 2 * default_max_epochs(counts[0]))
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
    def blocks_(self) -> dict[str, Block]:
        """Fitted blocks by name."""
        return self.tower_.blocks_

    @property
    def network_(self) -> torch.nn.Module:
        """The trained network."""
        return self.tower_.network_

    def representation(self) -> Representation:
        """Return the blocks and the network of the tower.

        Returns
        -------
        Representation
            Input of :class:`~sk_easytensor.PretrainedBlock`.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
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
    """Check the target of an embedder: there is none."""
    return None


def eligible_strata(target):
    """Return the strata of users for the validation split: whether they are eligible."""
    return target.numpy()
