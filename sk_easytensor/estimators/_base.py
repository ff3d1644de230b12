"""What classifier and regressor share: reading, encoding, training, predicting, pickling."""

from __future__ import annotations

from functools import partial

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from sk_easytensor.backends import resolve_backend
from sk_easytensor.blocks._parts import Representation
from sk_easytensor.compose import BlockParametersMixin, TableEncoder, blocks_diagram
from sk_easytensor.estimators._inputs import errors_name, eval_pairs
from sk_easytensor.estimators._pickling import PortablePickleMixin
from sk_easytensor.estimators._rows import RowMaker, divided, total_weight
from sk_easytensor.estimators._stored import Vectors, of_stored_rows
from sk_easytensor.estimators._trained import TrainedEstimator
from sk_easytensor.inference._running import UNPICKLED, EngineMixin
from sk_easytensor.inspection import EncodedModel, GivenOutputs, Inspection
from sk_easytensor.networks import TabM
from sk_easytensor.networks.block_network import make_network
from sk_easytensor.parameters import check_choice
from sk_easytensor.report._columns import summarize_table, summarize_target
from sk_easytensor.selection import check_blocks
from sk_easytensor.sparse import layout_of
from sk_easytensor.tables import as_table, has_column_names, read_like_fit
from sk_easytensor.tracking import tracked
from sk_easytensor.tracking.tracker import RUN
from sk_easytensor.training.seeding import seeded
from sk_easytensor.training.settings import (
    default_batch_size,
    default_table_epochs,
    default_table_patience,
)
from sk_easytensor.trees import BoostedTrees

__all__ = ["BaseEasyTensor"]


class BaseEasyTensor(EngineMixin, PortablePickleMixin, BlockParametersMixin, TrainedEstimator):
    """Base of the estimators; subclasses say what a target is.

    A subclass implements ``_check_target(y)`` (returns a valid target as an array),
    ``_distinct(y)`` (returns the few targets that show what there is to learn of them),
    ``_learn_target(y, classes)`` (sets what it needs to know about the target and returns the
    head), ``_encode_target(y)`` (returns a target as a tensor), ``_judge(outputs, target, weight)``
    (says how good outputs are) and ``predict``.
    """

    def __init__(
        self,
        blocks=None,
        *,
        remainder="auto",
        trunk=None,
        trees="auto",
        learning_rate=2.4e-2,
        batch_size=None,
        max_epochs=None,
        optimizer="adamw",
        weight_decay=5e-2,
        early_stopping_rounds="auto",
        validation_fraction=0.15,
        warm_start=False,
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
        self.remainder = remainder
        self.trunk = trunk
        self.trees = trees
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.early_stopping_rounds = early_stopping_rounds
        self.validation_fraction = validation_fraction
        self.warm_start = warm_start
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.device = device
        self.verbose = verbose
        self.callbacks = callbacks
        self.backend = backend
        self.checkpoint_dir = checkpoint_dir
        self.tracker = tracker
        self.inference_engine = inference_engine

    # ------------------------------------------------------------------ parameters

    def _structure(self):
        """Describe the parameters that cannot change while training goes on."""
        # Callables cannot be compared, at least not after pickling.
        blocks = {
            name: (block, "callable" if callable(columns) else columns)
            for name, block, columns in check_blocks(self.blocks)
        }
        return {
            "blocks": repr(blocks),
            "remainder": self.remainder,
            "trunk": repr(self.trunk),
            "trees": repr(self.trees),
        }

    def _default_trunk(self):
        # Trees beside the network bring what more members, wider ones or dropout would.
        return TabM(members=4, width=96, dropout=0.0)

    def _defaults(self, params):
        found = super()._defaults(params)
        trees = params["trees"]
        return {**found, "trees": BoostedTrees()} if isinstance(trees, str) else found

    def _check_parameters(self):
        super()._check_parameters()
        trees = self.trees
        if trees is not None and not isinstance(trees, BoostedTrees) and trees != "auto":
            raise ValueError(
                f"{type(self).__name__}: trees must be 'auto', None or BoostedTrees(), got "
                f"{trees!r}"
            )
        if isinstance(trees, BoostedTrees):
            trees.check_parameters()
        check_choice(type(self).__name__, "warm_start", self.warm_start, (False, True))

    # ------------------------------------------------------------------ fitting

    @tracked
    def fit(self, X, y, sample_weight=None, *, eval_set=None, eval_sample_weight=None):
        """Fit the blocks and train the network.

        Parameters
        ----------
        X : table-like of shape (n_samples, n_features)
            A data frame of any kind, a dictionary of columns, a 2-D array or a sparse matrix.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Target.
        sample_weight : array-like of shape (n_samples,), optional
            Row weights; they enter the loss. Rows of weight zero are as good as absent.
        eval_set : list of (X, y) pairs, optional
            Judged after each epoch. The first decides about early stopping and which weights
            are kept. Without any, ``validation_fraction`` of the rows plays that part.
        eval_sample_weight : list of array-like, optional
            Weights for each pair of `eval_set`.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            For input or parameters that make no sense, before any training starts.
        """
        backend = resolve_backend(self.backend, self.n_jobs)
        self._check_parameters()
        checkpoints, random_state = self._open_checkpoints()
        going_on = self.warm_start and hasattr(self, "network_")
        if going_on:
            self._check_unchanged()
        with backend.running():
            records = self._training_records(X, y, sample_weight, backend, going_on)
            if not going_on:
                self._forget()
                self._head = self._learn_target(self._distinct_targets(records))
            self._learn_class_weights(records)
            evals = [
                self._eval_records(where, *pair, weight, records, backend)
                for where, pair, weight in eval_pairs(eval_set, eval_sample_weight)
            ]
            judging = evals[0] if evals else records
            if not going_on:
                self._fit_encoder(records, backend, checkpoints)
                self._summarize_data(records)
            rows = self._encoded(records, backend)
            encoded = []
            for index, valid in enumerate(evals):
                with errors_name(f"eval_set[{index}]"):
                    encoded.append(self._encoded(valid, backend, weighted=False))
            evals = encoded
            batch_size = self.batch_size or default_batch_size(len(rows))
            rows = backend.merged(rows, batch_size)
            if not evals and self.validation_fraction is not None:
                rows, evals = backend.hold_out(
                    rows, self._strata, self.validation_fraction, random_state
                )
            self._train(
                rows, evals, batch_size, random_state, backend, going_on, checkpoints=checkpoints
            )
            self._choose_engines([(self, judging.sample().table)], backend)
            return self

    def partial_fit(self, X, y, sample_weight=None):
        """Train for one epoch on these rows.

        The first call fits the blocks on its rows; later calls keep blocks, weights and the
        optimizer's state and go on. No row is set apart for validation.

        Parameters
        ----------
        X : table-like of shape (n_samples, n_features)
            Rows of this call.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Target.
        sample_weight : array-like of shape (n_samples,), optional
            Row weights.

        Returns
        -------
        self
        """
        return self._partial_fit(X, y, sample_weight)

    def _partial_fit(self, X, y, sample_weight, classes=None):
        backend = resolve_backend(self.backend, self.n_jobs)
        self._check_parameters()
        going_on = hasattr(self, "network_")
        if going_on:
            self._check_unchanged()
        with backend.running():
            records = self._training_records(X, y, sample_weight, backend, going_on)
            if not going_on:
                self._head = self._learn_target(self._distinct_targets(records), classes)
                self._fit_encoder(records, backend)
                self._summarize_data(records)
            self._learn_class_weights(records)
            rows = self._encoded(records, backend)
            batch_size = self.batch_size or default_batch_size(len(rows))
            random_state = check_random_state(self.random_state)
            return self._train(
                rows, [], batch_size, random_state, backend, going_on, epochs=1, keep=True
            )

    def _check_unchanged(self):
        """Refuse to go on with a network that the parameters no longer describe."""
        for name, now in self._structure().items():
            # What is not there was no parameter of the version that it was fitted by.
            before = self._fitted_structure.get(name, now)
            if now != before:
                raise ValueError(
                    f"{type(self).__name__}: {name} changed since the fit that is to be gone on "
                    f"from, from {before} to {now}; clone the estimator to start anew"
                )

    def _training_records(self, X, y, sample_weight, backend, going_on):
        if y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None"
            )
        read = partial(self._encoder.read, owner=type(self).__name__) if going_on else as_table
        return backend.records(X, y, sample_weight, read, self._bare()._check_target)

    def _eval_records(self, where, X_eval, y_eval, weight, records, backend):
        bare = self._bare()
        read = partial(
            read_like_fit,
            names=records.table.column_names,
            fitted_with_names=has_column_names(records.source),
            owner=type(self).__name__,
            sparse=layout_of(backend.some_rows(records.table)),
        )
        found = backend.records(X_eval, y_eval, weight, read, bare._check_target, where)
        with errors_name(where):
            # Labels that training rows lack are refused before anything is trained.
            bare._encode_target(bare._distinct_targets(found))
        return found

    def _encoded(self, records, backend, *, weighted=True):
        with self._timed("encoding"):
            return records.encoded(RowMaker(self._bare(), backend, weighted))

    def _bare(self):
        """Return a copy that knows its target and blocks, for use in other processes."""
        left_out = {
            "network_",
            "_importance_sample",
            "_optimizer_state",
            "_program",
            UNPICKLED,
            RUN,
        }
        bare = object.__new__(type(self))
        vars(bare).update({k: value for k, value in vars(self).items() if k not in left_out})
        bare.callbacks = bare.checkpoint_dir = bare.tracker = None
        return bare

    def _fit_encoder(self, records, backend, checkpoints=None):
        def make():
            encoder = TableEncoder(self.blocks, remainder=self.remainder)
            return encoder.fit_table(records.table, records.source, backend)

        with self._timed("blocks"):
            self._encoder = make() if checkpoints is None else checkpoints.keep("encoder", make)
        self.n_features_in_ = self._encoder.n_features_in_
        if hasattr(self._encoder, "feature_names_in_"):
            self.feature_names_in_ = self._encoder.feature_names_in_
        self.blocks_ = self._encoder.blocks_

    def _train(
        self,
        rows,
        evals,
        batch_size,
        random_state,
        backend,
        going_on,
        *,
        epochs=None,
        keep=False,
        checkpoints=None,
    ):
        # A mean of one leaves the learning rate what it is for unweighted rows.
        total = sum(rows.each(total_weight))
        rows = rows.map(partial(divided, by=total / len(rows)))
        seed = int(random_state.randint(np.iinfo(np.int32).max))
        if going_on:
            # Otherwise every call would shuffle and drop out alike.
            seed += self.n_iter_
        if epochs is None:
            epochs = self.max_epochs or default_table_epochs(len(rows))
        # One epoch at a time, nobody knows how many will follow.
        settings = self._settings(batch_size, epochs, annealed=not keep, checkpoints=checkpoints)
        if self.early_stopping_rounds == "auto":
            settings.early_stopping_rounds = default_table_patience(len(rows), batch_size)
        kept, kind = getattr(self, "_optimizer_state", None), settings.optimizer.__name__
        if going_on and kept is not None and kept["kind"] == kind:
            settings.optimizer_state = kept
        settings.seed = seed
        if not going_on and not keep and self.trees is not None:
            settings.trees = BoostedTrees() if self.trees == "auto" else self.trees
        if not going_on:
            self._scale_target(rows)
        scaled = self._bare()._scaled
        rows, evals = rows.map(scaled), [valid.map(scaled) for valid in evals]
        with seeded(seed):
            if not going_on:
                trunk = self._default_trunk() if self.trunk is None else clone(self.trunk)
                self._network_trunk = trunk
                self.network_ = make_network(self.blocks_, trunk, self._head)
            inspection = Inspection(self._bare(), len(self._encoder._columns), seed)
            result = backend.train(self.network_, self._head, rows, evals, settings, inspection)
        self._record_losses(result, self._head.metric, going_on)
        self.fit_times_["trees"] = self.fit_times_.get("trees", 0.0) + result.tree_seconds
        trees = self.network_.trees
        self.trees_share_ = 0.0 if trees is None else 1.0 - trees.share
        self._use_torch()
        self._n_features_out = self.network_.representation_features
        vars(self).pop("_importances", None)
        self._fitted_structure = self._structure()
        self._optimizer_state = None
        if keep or self.warm_start:
            self._optimizer_state = {"kind": kind, **result.optimizer_state}
        vars(self).update(result.inspected)
        return self

    # ------------------------------------------------------------------ hooks

    def _distinct_targets(self, records):
        """Return targets that show all there is to learn of them, once each."""
        return np.concatenate(records.each(self._bare()._distinct))

    def _distinct(self, y):
        """Return a few of some targets that show what there is to learn of them."""
        return y[:1]

    def _learn_class_weights(self, records):
        """Set what :meth:`_class_weights` needs."""

    def _class_weights(self, target):
        """Return a factor for each row's weight."""
        return 1.0

    def _strata(self, target):
        """Return an integer array of groups to split evenly, or None."""
        return np.zeros(len(target), dtype=np.int64)

    def _scale_target(self, rows):
        """Learn the scale of the targets from the training part."""

    def _judge(self, outputs, target, weight):
        """Return how good outputs for rows held out are, for reports."""

    def _scaled(self, rows):
        """Return rows with targets on the scale the network is trained on."""
        return rows

    # ------------------------------------------------------------------ predicting

    def _read(self, X):
        check_is_fitted(self)
        return self._encoder.read(X, owner=type(self).__name__)

    def _forward(self, X, output):
        """Return an output of the network for rows, in batches."""
        table = self._read(X)
        backend = resolve_backend(self.backend, self.n_jobs)
        frame = self._encoder.encode_table(table, backend)
        return self._run_network(output, frame, backend)

    def _network_functions(self):
        """Return what the network gives, by name, as functions of encoded rows."""
        head, network = self._head, self.network_
        return {
            "combined": lambda frame: network.combine(frame, head)[:, 0],
            "representation": network.represent,
        }

    def _combined(self, X):
        """Return the ensemble's outputs, of shape (n_rows, out_features)."""
        if isinstance(X, GivenOutputs):
            return X.values
        return self._forward(X, "combined")

    @of_stored_rows(Vectors("embedding"), check="_read")
    def transform(self, X):
        """Return the learned representation.

        It is the trunk's output, averaged over members, beside the vectors of blocks that go
        past the trunk (texts, by default).

        Parameters
        ----------
        X : table-like of shape (n_samples, n_features)
            Rows to represent.

        Returns
        -------
        ndarray of float32, shape (n_samples, width)
        """
        return self._forward(X, "representation").numpy()

    def representation(self):
        """Return blocks and network up to what :meth:`transform` gives.

        Returns
        -------
        Representation
            For :class:`~sk_easytensor.PretrainedBlock`.
        """
        check_is_fitted(self)
        return Representation(self.blocks_, self.network_, self._network_trunk)

    @property
    def feature_importances_(self):
        """Permutation importance of each input column, an ndarray of shape (n_features,).

        How much the loss rises on rows set apart for validation (at most 2,048 of them; training
        rows if there are fewer than 32) when a column's values are shuffled among them, at least
        0 and scaled to sum to 1. Computed on the encoded rows, so that it costs forward passes
        only, when first asked for or when the estimator is pickled: pickles hold no rows. With
        more than 100 columns, one shuffle of 256 rows has to do, and pickling leaves the
        computation for later: the pickle then holds those rows, encoded. On Ray, the workers
        compute it at the end of a fit, each shuffling among a sample of its own rows. The features
        of a sparse matrix that are read by a :class:`~sk_easytensor.SparseBlock` are shuffled
        together, and share the importance by the variance of what each adds.
        """
        check_is_fitted(self)
        if not hasattr(self, "_importances"):
            backend = resolve_backend(self.backend, self.n_jobs)
            found = self._importance_sample.found(self, backend)
            self._importances, self._validation = found
            self._importance_sample = None
        return self._importances

    def _summarize_data(self, records):
        """Keep what reports say of the data."""
        sample = records.sample()
        self._data_summary = summarize_table(sample.table)
        self._target_summary = summarize_target(sample.y, getattr(self, "classes_", None))

    def _check_encodable(self, table):
        """Raise ``ValueError`` if a table lacks columns."""
        self._read(table)

    def _encoded_model(self, X, backend, rows):
        """Return the network with some rows of a table, for inspection."""
        table = self._read(X)
        if len(rows) < len(table):
            table = table.take(rows)
        return self._judged_model(self._encoder.encode_table(table, backend), backend)

    def _judged_model(self, frame, backend):
        network, head = self.network_, self._head
        return EncodedModel(
            frame,
            modules=network.readers(),
            join=lambda read: network.combine_read(read, head),
            places=self._encoder.places(frame),
            backend=backend,
        )

    # ------------------------------------------------------------------ scikit-learn

    def __sklearn_is_fitted__(self):
        return hasattr(self, "network_")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        tags.input_tags.string = True
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    def _sk_visual_block_(self):
        return blocks_diagram(self)
