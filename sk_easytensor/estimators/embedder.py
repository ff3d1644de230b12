"""Embeddings of users, learned without labels from what they did."""

from __future__ import annotations

from functools import partial
from warnings import warn

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import check_is_fitted

from sk_easytensor.backends import resolve_backend
from sk_easytensor.blocks import EventSequenceBlock
from sk_easytensor.compose import BlockParametersMixin, blocks_diagram
from sk_easytensor.estimators._event_tables import (
    AT_LEAST,
    all_users,
    check_length,
    check_pairs,
    collected,
    eval_tables,
    list_names,
)
from sk_easytensor.estimators._inputs import errors_name
from sk_easytensor.estimators._tower import Tower
from sk_easytensor.estimators._trained import TrainedEstimator
from sk_easytensor.events import collect_sequences
from sk_easytensor.networks import Sum
from sk_easytensor.parameters import check_choice, check_number
from sk_easytensor.report._columns import summarize_table
from sk_easytensor.selection import check_blocks, select_columns
from sk_easytensor.tables import align_table, as_table, has_column_names
from sk_easytensor.tracking import tracked
from sk_easytensor.training.batches import FreshRows
from sk_easytensor.training.objectives import OBJECTIVES, PairDraw, ViewSettings
from sk_easytensor.training.seeding import seeded
from sk_easytensor.training.settings import default_batch_size, default_max_epochs
from sk_easytensor.training.splits import validation_rows
from sk_easytensor.views import Sequences, consecutive_stretches, gap_seconds

__all__ = ["EasyTensorEmbedder"]


class EasyTensorEmbedder(BlockParametersMixin, TrainedEstimator):
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
    min_length, max_length : int, float or None, default=0.1, 0.75
        For ``"contrastive"``: bounds of a part's length, which is drawn evenly between them. A
        number of events, or a fraction of the user's; None, for `max_length`, is all of them.
    learning_rate : float, default=3e-3
        Largest step size.
    batch_size : int or None, default=None
        Pairs a batch; by default by the number of users, at least 128.
    max_epochs : int or None, default=None
        Epochs at most; by default by the number of users. Each has parts of its own.
    validation_fraction : float or None, default=0.1
        Part of the users that validates if `fit` gets no `eval_set`.
    optimizer, weight_decay, early_stopping_rounds, random_state, n_jobs, device, verbose
        As in :class:`~sk_easytensor.EasyTensorClassifier`.
    callbacks, backend, checkpoint_dir, tracker
        As in :class:`~sk_easytensor.EasyTensorClassifier`.

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
    evals_result_, n_iter_, best_iteration_, best_score_
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

    @tracked
    def fit(self, X, y=None, *, user=None, time=None, eval_set=None):
        """Learn embeddings.

        Parameters
        ----------
        X : table-like
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
        eval_set : list of table-like, optional
            Of the kind of `X`, with other users; judged after each epoch. The first decides about
            early stopping.

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
        """
        backend = resolve_backend(self.backend, self.n_jobs)
        self._check_parameters()
        checkpoints, random_state = self._open_checkpoints()
        if user is not None and time is None:
            raise ValueError(
                f"{type(self).__name__}: user={user!r} says that X is a log of events, which needs "
                "time too, the column that says when they happened"
            )
        source = as_table(X)
        table = source if user is None else collected(source, user, time)
        settings = self._view_settings(table, time)
        blocks = self._specs(table, X if user is None else None, time)
        read = [name for _, _, columns in blocks for name in columns]
        cut_by = [name for name in (settings.label, settings.gap and time) if name]
        needed = [name for name in table.column_names if name in {*read, *cut_by}]
        objective = self._objective(table.select(needed), settings)
        check_pairs(objective)
        evals = []
        for where, X_eval in eval_tables(eval_set):
            with errors_name(where):
                valid = as_table(X_eval) if user is None else collected(X_eval, user, time)
                valid = align_table(valid, needed, owner=type(self).__name__)
                evals.append(self._objective(valid, settings))
                check_pairs(evals[-1])
        self._forget()
        self.n_users_ = len(objective.has_pair)
        self.n_users_without_pair_ = int((~objective.has_pair).sum())
        if self.n_users_without_pair_:
            warn(
                f"{type(self).__name__}: {self.n_users_without_pair_} of {self.n_users_} users "
                f"have {objective.lack} and make no pair of their own to train on",
                UserWarning,
                stacklevel=3,  # Past the function that tracks fits.
            )
        self._user, self._time = user, time
        self._data_summary = summarize_table(source)
        with self._timed("blocks"):
            self._fit_tower(objective, blocks, backend)
        self._train(objective, evals, random_state, backend, checkpoints)
        self._n_features_out = self.embedding_dim
        self.n_features_in_ = source.num_columns
        if has_column_names(X):
            self.feature_names_in_ = np.asarray(source.column_names, dtype=object)
        return self

    def _view_settings(self, table, time):
        """Return how sequences are cut, after a look at whether they can be."""
        owner = type(self).__name__
        sessions = OBJECTIVES[self.objective].has_sessions
        if sessions and self.session is None and self.session_gap is None:
            raise ValueError(
                f"{owner}: objective={self.objective!r} needs sessions; give session_gap, the time "
                "after which a new one begins, or session, the column that names them"
            )
        lists = list_names(table)
        for name, value in (("time", time), ("session", self.session)):
            if value is not None and value not in lists:
                raise ValueError(
                    f"{owner}: {name} names {value!r}, which is no column of lists of X; those are "
                    f"{lists}"
                )
        if not sessions:
            return ViewSettings(self.min_length, self.max_length)
        if self.session is not None:
            return ViewSettings(label=self.session)
        if time is None:
            raise ValueError(
                f"{owner}: session_gap needs to know when events happened; give fit the column of "
                f"times, as in fit(X, time=...); columns of lists are {lists}"
            )
        return ViewSettings(time=time, gap=gap_seconds(owner, self.session_gap))

    def _specs(self, table, X, time):
        """Return the blocks with the names of their columns, all of them lists."""
        owner = type(self).__name__
        lists = list_names(table)
        if not lists:
            raise ValueError(
                f"{owner}: X has no column of lists; if it is a log with a row for each event, "
                "give fit its user and time columns"
            )
        specs = []
        for name, block, selector in check_blocks(self.blocks):
            columns = select_columns(selector, table, X, owner=f"block {name!r}")
            constant = [column for column in columns if column not in lists]
            if constant:
                raise ValueError(
                    f"{owner}: block {name!r} reads {constant}, which hold one value for a user "
                    f"and would tell users apart at once; only lists are read: {lists}"
                )
            specs.append((name, block, columns))
        taken = {column for _, _, columns in specs for column in columns} | {self.session}
        rest = [column for column in lists if column not in taken]
        if self.remainder == "auto" and rest:
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

    def _objective(self, table, settings):
        return OBJECTIVES[self.objective](Sequences(table, type(self).__name__), settings)

    def _fit_tower(self, objective, blocks, backend):
        trunk = self._default_trunk() if self.trunk is None else self.trunk
        self.tower_ = Tower(
            blocks,
            clone(trunk),
            embedding_dim=self.embedding_dim,
            normalized=objective.normalized,
            n_jobs=self.n_jobs,
        )
        # Blocks read one end of long lists, whereas parts are cut from anywhere: in pieces as
        # short as that, they see all events.
        lengths = [getattr(block, "max_length", None) for _, block, _ in blocks]
        lengths = [length for length in lengths if length is not None]
        pieces = objective.sequences.whole
        if lengths:
            pieces = consecutive_stretches(objective.sequences, min(lengths))
        fit_blocks = partial(self.tower_.fit_blocks, columns=None, backend=backend, side="user")
        objective.sequences.read(pieces, fit_blocks)

    def _train(self, objective, evals, random_state, backend, checkpoints):
        train, sets = all_users(objective), [(valid, all_users(valid)) for valid in evals]
        if not evals and self.validation_fraction is not None:
            strata = objective.has_pair.astype(np.int64)
            parts = validation_rows(strata, self.validation_fraction, random_state)
            if all(objective.has_pair[part].sum() >= AT_LEAST for part in parts):
                train, sets = parts[0], [(objective, parts[1])]
        seed = int(random_state.randint(np.iinfo(np.int32).max))
        encode = partial(self.tower_.encode, backend=backend)
        rows = FreshRows(PairDraw(objective, train, encode, [seed, 0]))
        # What judges is drawn once, so that epochs can be compared.
        judges = [
            PairDraw(drawn, users, encode, [seed, 1 + index])(0)
            for index, (drawn, users) in enumerate(sets)
        ]
        n_pairs = max(len(part) for part in (rows, *judges))
        temperature = objective.temperature if self.temperature is None else self.temperature
        batch_size = self.batch_size or max(128, default_batch_size(len(rows)))
        epochs = self.max_epochs or default_max_epochs(len(rows))
        settings = self._settings(batch_size, epochs, checkpoints=checkpoints)
        with seeded(seed):
            tower = self.tower_.make_network()
            network = objective.make_network(tower, n_pairs, temperature, self.dropout)
            result = backend.train(network, objective.head, rows, judges, settings)
        self._record_losses(result, objective.head.metric)

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

    # ------------------------------------------------------------------ embedding

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
        table = as_table(X)
        if not self._is_log(table):
            return self.tower_.embed(table)
        sequences = self.collect(table)
        embeddings = self.tower_.embed(sequences)
        if _get_output_config("transform", self)["dense"] != "pandas":
            return embeddings
        # Left to itself, scikit-learn would take over the index of the events.
        users = [self._user] if isinstance(self._user, str) else list(self._user)
        users = sequences.select(users).to_pandas().set_index(users).index
        return pd.DataFrame(embeddings, index=users, columns=self.get_feature_names_out())

    def _is_log(self, table):
        read = set(self.tower_.feature_names_in_).intersection(table.column_names)
        return self._user is not None and not read.intersection(list_names(table))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    def _sk_visual_block_(self):
        return blocks_diagram(self)
