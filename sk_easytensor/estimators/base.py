"""Base of classifier and regressor: reading, encoding, training, predicting, pickling."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from copy import deepcopy
from functools import partial
from numbers import Integral

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from sk_easytensor._utils.runtime import seeded, with_library_settings
from sk_easytensor._utils.validation import check_choice
from sk_easytensor.backends import resolve_backend
from sk_easytensor.blocks.detection import check_blocks
from sk_easytensor.blocks.offset import BASE_MARGIN
from sk_easytensor.blocks.pretrained import Representation
from sk_easytensor.compose import BlockParametersMixin, TableEncoder, blocks_diagram
from sk_easytensor.data.sparse import layout_of
from sk_easytensor.data.tables import has_column_names, is_source, read_like_fit
from sk_easytensor.data.validation import errors_name
from sk_easytensor.estimators.inputs import (
    deciding_first,
    eval_margins,
    eval_names,
    eval_pairs,
    named_eval_set,
    read_with_margin,
)
from sk_easytensor.estimators.pickling import PortablePickleMixin
from sk_easytensor.estimators.rows import (
    RowEncoder,
    divided,
    probe_loss,
    total_weight,
)
from sk_easytensor.estimators.stored import Vectors, of_stored_rows
from sk_easytensor.estimators.trained import TrainedEstimator, restored_on_error
from sk_easytensor.export.engines import UNPICKLED, EngineMixin
from sk_easytensor.inspection import EncodedModel, GivenOutputs, Inspection
from sk_easytensor.inspection.explanation import Explanation, shapley_values
from sk_easytensor.losses import BUILT_IN, resolve_loss
from sk_easytensor.metrics import MetricScores, resolve_metrics, resolve_stopping_metric
from sk_easytensor.networks import TabM
from sk_easytensor.networks.block_network import copy_network, make_network
from sk_easytensor.report.report import summarize_table, summarize_target
from sk_easytensor.tracking import tracked
from sk_easytensor.tracking.tracker import RUN
from sk_easytensor.training.checkpoint import digest
from sk_easytensor.training.evaluation import EvalPlan
from sk_easytensor.training.train import (
    default_batch_size,
    default_table_epochs,
    default_table_patience,
)
from sk_easytensor.trees import BoostedTrees

__all__ = [
    "BaseEasyTensor",
]


class BaseEasyTensor(EngineMixin, PortablePickleMixin, BlockParametersMixin, TrainedEstimator):
    """Base of the estimators; subclasses say what a target is.

    A subclass implements ``_check_target(y)`` (returns a valid target as an array),
    ``_target_sample(y)`` (returns the few targets that show what there is to learn of them),
    ``_fit_target(y, classes)`` (sets what it needs to know about the target and returns the
    head), ``_encode_target(y)`` (returns a target as a tensor),
    ``_validation_measures(outputs, target, weight)`` (says how good outputs are) and ``predict``.
    """

    def __init__(
        self,
        blocks=None,
        *,
        remainder="auto",
        categorical_features=None,
        offset=None,
        monotonic_cst=None,
        trunk=None,
        trees="auto",
        learning_rate=2.4e-2,
        batch_size=None,
        max_epochs=None,
        optimizer="adamw",
        weight_decay=5e-2,
        early_stopping_rounds="auto",
        eval_metric=None,
        stopping_metric=None,
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
        self.categorical_features = categorical_features
        self.offset = offset
        self.monotonic_cst = monotonic_cst
        self.trunk = trunk
        self.trees = trees
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.early_stopping_rounds = early_stopping_rounds
        self.eval_metric = eval_metric
        self.stopping_metric = stopping_metric
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
        blocks = {
            name: (block, described_columns(columns))
            for name, block, columns in check_blocks(self.blocks)
        }
        return {
            "blocks": repr(blocks),
            "remainder": self.remainder,
            "categorical_features": described_columns(self.categorical_features),
            "offset": self.offset,
            "monotonic_cst": described_columns(self.monotonic_cst),
            "trunk": repr(self.trunk),
            "trees": repr(self.trees),
        }

    def _loss(self):
        """Return the loss that the parameters describe, or raise ``ValueError``."""
        return resolve_loss(self.loss, type(self).__name__, self._loss_kind)

    def _default_trunk(self):
        # Trees beside the network bring what more members, wider ones or dropout would.
        return TabM(members=4, width=96, dropout=0.0)

    def _defaults(self, params):
        found = super()._defaults(params)
        trees = params.get("trees")
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
        self._check_loss()
        self._check_metrics()
        check_choice(type(self).__name__, "warm_start", self.warm_start, (False, True))
        if self.offset is not None and (
            isinstance(self.offset, bool) or not isinstance(self.offset, (str, Integral))
        ):
            raise ValueError(
                f"{type(self).__name__}: offset must be the name of a column of X, its position or "
                f"None, got {self.offset!r}; arrays are given to fit as base_margin"
            )

    def _check_loss(self):
        """Raise ``ValueError`` for a loss that is unknown or has invalid parameters."""
        self._loss()

    def _check_metrics(self):
        """Raise ``ValueError`` for metrics that are unknown."""
        metrics = resolve_metrics(self.eval_metric, self)
        if self.stopping_metric is not None:
            resolve_stopping_metric(
                self.stopping_metric, metrics, self._loss().name, type(self).__name__
            )

    # ------------------------------------------------------------------ fitting

    @with_library_settings
    @tracked
    @restored_on_error
    def fit(
        self,
        X,
        y,
        sample_weight=None,
        *,
        eval_set=None,
        eval_sample_weight=None,
        eval_X=None,
        eval_y=None,
        sample_weight_eval_set=None,
        base_margin=None,
        base_margin_eval_set=None,
    ):
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
            Evaluated after each epoch, as ``valid_0``, ``valid_1`` and so on in
            ``evals_result_``. The last decides about early stopping and which weights are kept,
            as in XGBoost. A pair that is the training data is called ``training`` and never
            decides. Without a pair that decides, ``validation_fraction`` of the rows does.
        eval_sample_weight : list of array-like, optional
            Weights for each pair of `eval_set`.
        eval_X : table-like or tuple of them, optional
            Instead of `eval_set`: the rows of one set, or of each.
        eval_y : array-like or tuple of them, optional
            The targets that belong to `eval_X`.
        sample_weight_eval_set : list of array-like, optional
            Another name of `eval_sample_weight`.
        base_margin : array-like of shape (n_samples,), optional
            Offsets of the rows, as a column named by the parameter `offset` has them. Methods that
            predict then need them as well: as ``base_margin=``, or in a column ``"base_margin"``,
            which is also what an exported model reads. An alternative to `offset`.
        base_margin_eval_set : list of array-like, optional
            Those of each pair of `eval_set`.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            For input or parameters that make no sense, before any training starts.
        KeyboardInterrupt
            If the fit is interrupted.

        Notes
        -----
        After an error the estimator is what it was before: fitted as before, or not fitted.
        """
        backend = resolve_backend(self.backend, self.n_jobs)
        self._check_parameters()
        pairs = eval_pairs(
            *named_eval_set(eval_set, eval_sample_weight, eval_X, eval_y, sample_weight_eval_set)
        )
        self._check_margin(base_margin, X, backend)
        margins = eval_margins(base_margin, base_margin_eval_set, [name for name, *_ in pairs])
        resuming = self.warm_start and hasattr(self, "network_")
        if resuming:
            self._check_unchanged()
        with backend.running(), ExitStack() as opened:
            records = self._training_records(X, y, sample_weight, base_margin, backend, resuming)
            if not resuming:
                self._clear_state()
                self._head = self._fit_target(self._distinct_targets(records))
                self._check_offset(base_margin)
                self._check_monotonic()
            self._learn_class_weights(records)
            evals = [
                self._eval_records(where, *pair, weight, margin, records, backend)
                for (where, pair, weight), margin in zip(pairs, margins, strict=True)
            ]

            def source():
                digests = {"X": records.content()}
                digests |= {f"eval_set[{i}]": each.content() for i, each in enumerate(evals)}
                if resuming:
                    weights = digest(*self.network_.state_dict().values())
                    digests["network"] = f"{weights} after {self.n_iter_} epochs"
                return digests

            checkpoints, random_state = self._open_checkpoints(opened, source)
            if checkpoints is None:
                random_state = self._same_split(random_state, resuming)
            if not resuming:
                self._fit_encoder(records, backend, checkpoints, base_margin is not None)
                self._summarize_data(records)
            rows = self._encoded(records, backend)
            encoded = []
            for index, valid in enumerate(evals):
                with errors_name(f"eval_set[{index}]"):
                    encoded.append(self._encoded(valid, backend, weighted=False))
            names = eval_names([pair for _, pair, _ in pairs], X, y, evals, records)
            order = deciding_first(names)
            names, encoded = [names[i] for i in order], [encoded[i] for i in order]
            validation = evals[order[0]] if evals else records
            batch_size = self.batch_size or default_batch_size(len(rows))
            rows = backend.merged(rows, batch_size)
            if set(names) <= {"training"} and self.validation_fraction is not None:
                rows, held_out = backend.hold_out(
                    rows, self._strata, self.validation_fraction, random_state
                )
                names = [*["valid_0"] * len(held_out), *names]
                encoded = [*held_out, *encoded]
            self._train(
                rows,
                dict(zip(names, encoded, strict=True)),
                batch_size,
                random_state,
                backend,
                resuming,
                checkpoints=checkpoints,
            )
            self._choose_engines([(self, validation.sample().table)], backend)
            return self

    def _same_split(self, random_state, resuming):
        """Return a random state that holds out the same rows in each fit of a warm start.

        Otherwise weights would be validated on rows that they were trained on.
        """
        if self.random_state is not None:
            return random_state
        if not resuming or not hasattr(self, "_split_seed"):
            self._split_seed = int(random_state.randint(np.iinfo(np.int32).max))
        return check_random_state(self._split_seed)

    def partial_fit(self, X, y, sample_weight=None, *, base_margin=None):
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
        base_margin : array-like of shape (n_samples,), optional
            Offsets, as in `fit`; in all calls or in none.

        Returns
        -------
        self
        """
        return self._partial_fit(X, y, sample_weight, base_margin=base_margin)

    @with_library_settings
    @restored_on_error
    def _partial_fit(self, X, y, sample_weight, classes=None, base_margin=None):
        backend = resolve_backend(self.backend, self.n_jobs)
        self._check_parameters()
        self._check_margin(base_margin, X, backend)
        resuming = hasattr(self, "network_")
        if resuming:
            self._check_unchanged()
            self._check_same_classes(classes)
        with backend.running():
            records = self._training_records(X, y, sample_weight, base_margin, backend, resuming)
            if not resuming:
                self._head = self._fit_target(self._distinct_targets(records), classes)
                self._check_offset(base_margin)
                self._check_monotonic()
                self._fit_encoder(records, backend, with_margin=base_margin is not None)
                self._summarize_data(records)
            self._learn_class_weights(records)
            rows = self._encoded(records, backend)
            batch_size = self.batch_size or default_batch_size(len(rows))
            random_state = check_random_state(self.random_state)
            return self._train(
                rows, {}, batch_size, random_state, backend, resuming, epochs=1, keep=True
            )

    def _check_unchanged(self):
        """Refuse to resume training of a network that the parameters no longer describe."""
        for name, now in self._structure().items():
            # What is not there was no parameter of the version that it was fitted by.
            before = self._fitted_structure.get(name, now)
            if now != before:
                raise ValueError(
                    f"{type(self).__name__}: {name} changed since the last fit, from {before} to "
                    f"{now}; clone the estimator to train from scratch"
                )

    def _check_margin(self, base_margin, X, backend):
        """Raise ``ValueError`` for an array of offsets that cannot be used."""
        if base_margin is None:
            return
        owner = type(self).__name__
        if self.offset is not None:
            raise ValueError(f"{owner}: give either offset={self.offset!r} or base_margin")
        if backend.distributed and is_source(X):
            raise ValueError(
                f"{owner}: base_margin is an array, but stored rows are read by many processes; "
                "name a column of X in the parameter offset"
            )

    def _check_offset(self, base_margin):
        """Prepare the head for offsets, if there are any.

        Raises
        ------
        ValueError
            If the target has several outputs.
        """
        if self.offset is None and base_margin is None:
            return
        head, owner = self._head, type(self).__name__
        if not head.single_output:
            name = "base_margin" if self.offset is None else "offset"
            raise ValueError(
                f"{owner}: {name} needs two classes or a target of one column; this one has "
                f"{head.out_features} outputs, to which one number a row cannot be added"
            )
        head.has_offset = True

    def _check_monotonic(self):
        """Raise ``ValueError`` for monotonic constraints on several outputs."""
        signs = self.monotonic_cst
        if signs is None or not np.any(
            list(signs.values()) if isinstance(signs, Mapping) else signs
        ):
            return
        if not self._head.single_output:
            raise ValueError(
                f"{type(self).__name__}: monotonic_cst needs two classes or a target of one "
                f"column; this one has {self._head.out_features} outputs"
            )

    def _training_records(self, X, y, sample_weight, base_margin, backend, resuming):
        if y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None"
            )
        if resuming:
            owner = type(self).__name__
            read = partial(self._encoder.read, owner=owner, base_margin=base_margin)
        else:
            read = partial(
                self._new_encoder().read_training,
                offset=self.offset,
                monotonic_cst=self.monotonic_cst,
            )
            read = partial(read_with_margin, read=read, base_margin=base_margin)
        return backend.records(X, y, sample_weight, read, self._bare()._check_target)

    def _eval_records(self, where, X_eval, y_eval, weight, base_margin, records, backend):
        bare = self._bare()
        names = list(records.table.column_names)
        if base_margin is not None:
            names.remove(BASE_MARGIN)
        read = partial(
            read_like_fit,
            names=names,
            fitted_with_names=has_column_names(records.source),
            owner=type(self).__name__,
            sparse=layout_of(backend.sample_rows(records.table)),
        )
        read = partial(read_with_margin, read=read, base_margin=base_margin)
        found = backend.records(X_eval, y_eval, weight, read, bare._check_target, where)
        with errors_name(where):
            # Labels that training rows lack are refused before anything is trained.
            bare._check_known(bare._distinct_targets(found))
        return found

    def _encoded(self, records, backend, *, weighted=True):
        with self._timed("encoding"):
            return records.encoded(RowEncoder(self._bare(), backend, weighted))

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

    def _new_encoder(self):
        return TableEncoder(
            self.blocks, remainder=self.remainder, categorical_features=self.categorical_features
        )

    def _fit_encoder(self, records, backend, checkpoints=None, with_margin=False):
        def make():
            return self._new_encoder().fit_table(
                records.table,
                records.source,
                backend,
                self.offset,
                with_margin=with_margin,
                monotonic_cst=self.monotonic_cst,
            )

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
        resuming,
        *,
        epochs=None,
        keep=False,
        checkpoints=None,
    ):
        # A mean of one leaves the learning rate what it is for unweighted rows.
        total = sum(rows.map_chunks(total_weight))
        rows = rows.map(partial(divided, by=total / len(rows)))
        seed = int(random_state.randint(np.iinfo(np.int32).max))
        if resuming:
            # Otherwise every call would shuffle and drop out alike.
            seed += self.n_iter_
        if epochs is None:
            epochs = self.max_epochs or default_table_epochs(len(rows))
        self._scale_target(rows, resuming)
        if not resuming:
            self._check_returned_losses(rows)
        bare = self._bare()
        plan = EvalPlan()
        if not keep:
            plan = self._eval_plan(evals, *self._metrics())
        # One epoch at a time, nobody knows how many will follow.
        settings = self._settings(
            batch_size, epochs, plan, annealed=not keep, checkpoints=checkpoints
        )
        settings.evaluate_first = resuming
        if self.early_stopping_rounds == "auto":
            settings.early_stopping_rounds = default_table_patience(len(rows), batch_size)
        kept, kind = getattr(self, "_optimizer_state", None), settings.optimizer.__name__
        if resuming and kept is not None and kept["kind"] == kind:
            settings.optimizer_state = deepcopy(kept)
        settings.seed = seed
        if not resuming and not keep and self.trees is not None:
            settings.trees = BoostedTrees() if self.trees == "auto" else self.trees
        rows, evals = rows.map(bare._scaled), [valid.map(bare._scaled) for valid in evals.values()]
        with seeded(seed):
            if resuming:
                # The network of before stays what it is, should this training fail.
                self.network_ = copy_network(self.network_)
            else:
                trunk = self._default_trunk() if self.trunk is None else clone(self.trunk)
                self._network_trunk = trunk
                self.network_ = make_network(self.blocks_, trunk, self._head)
            inspection = Inspection(bare, len(self._encoder._columns), seed)
            result = backend.train(self.network_, self._head, rows, evals, settings, inspection)
        self._record_training(result, resuming)
        trees_before = self.fit_times_.get("trees", 0.0)
        self.fit_times_ = {**self.fit_times_, "trees": trees_before + result.tree_seconds}
        trees = self.network_.trees
        self.tree_weight_ = self._trees_share(trees)
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

    def _metrics(self):
        """Return metrics, what computes them, and the one that decides."""
        metrics = resolve_metrics(self.eval_metric, self)
        stopping = resolve_stopping_metric(
            self.stopping_metric, metrics, self._head.metric, type(self).__name__
        )
        return metrics, MetricScores(self._bare(), metrics), stopping

    def _check_known(self, distinct):
        """Raise ``ValueError`` for targets of validation rows that training rows do not have."""
        self._encode_target(distinct)

    def _distinct_targets(self, records):
        """Return targets that show all there is to learn of them, once each."""
        return np.concatenate(records.map_chunks(self._bare()._target_sample))

    def _target_sample(self, y):
        """Return a few of some targets that show what there is to learn of them."""
        return y[:1]

    def _decoded_target(self, target):
        """Return encoded targets for metrics: numbered classes, or numbers in their units."""
        return target.numpy()

    def _check_same_classes(self, classes):
        """Raise ``ValueError`` if `partial_fit` is given other classes than in its first call."""

    def _learn_class_weights(self, records):
        """Set what :meth:`_class_weights` needs."""

    def _class_weights(self, target):
        """Return a factor for each row's weight."""
        return 1.0

    def _strata(self, target):
        """Return an integer array of groups to split evenly, or None."""
        return np.zeros(len(target), dtype=np.int64)

    def _trees_share(self, trees):
        """Return the weight of the trees."""
        return 0.0 if trees is None else 1.0 - trees.share

    def _scale_target(self, rows, resuming):
        """Learn the scale of the targets from the training part, once, and if they vary."""

    def _check_returned_losses(self, rows):
        """Raise ``ValueError`` if what a user's loss returns cannot be trained on."""
        criterion = getattr(self._head, "criterion", None)
        if criterion is None or type(criterion) in BUILT_IN.values():
            return
        owner = type(self).__name__
        check = partial(probe_loss, bare=self._bare(), head=self._head, owner=owner)
        found = [sums for sums in rows.map_chunks(check) if sums is not None]
        if found:
            self._head.learn_loss_unit(*np.sum(found, axis=0))

    def _validation_measures(self, outputs, target, weight):
        """Return how good outputs for rows held out are, for reports."""

    @property
    def _offset_block(self):
        """Name of the block that reads offsets, if any does."""
        return getattr(getattr(self, "_encoder", None), "offset_block", None)

    def _scaled(self, rows):
        """Return rows with targets on the scale the network is trained on."""
        return rows

    # ------------------------------------------------------------------ predicting

    def _read(self, X, base_margin=None):
        check_is_fitted(self)
        return self._encoder.read(X, owner=type(self).__name__, base_margin=base_margin)

    def _forward(self, X, output, base_margin=None):
        """Return an output of the network for rows, in batches."""
        table = self._read(X, base_margin)
        backend = resolve_backend(self.backend, self.n_jobs)
        frame = self._encoder.encode_table(table, backend)
        return self._run_network(output, frame, backend)

    def _network_functions(self):
        """Return what the network gives, by name, as functions of encoded rows."""
        head, network = self._head, self.network_
        return {
            "combined": lambda frame: network.average_members(frame, head)[:, 0],
            "representation": network.represent,
        }

    def _raw_predict(self, X, base_margin=None):
        """Return the ensemble's outputs, of shape (n_rows, out_features)."""
        if isinstance(X, GivenOutputs):
            return X.values
        return self._forward(X, "combined", base_margin)

    @with_library_settings
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
        check_is_fitted(self)
        # The representation does not depend on offsets.
        margin = 0.0 if self._encoder._with_margin else None
        return self._forward(X, "representation", margin).numpy()

    def representation(self):
        """Return blocks and network up to what :meth:`transform` gives.

        Returns
        -------
        Representation
            For :class:`~sk_easytensor.PretrainedBlock`.
        """
        check_is_fitted(self)
        # Offsets and columns with monotonic constraints are added to outputs behind it.
        blocks = {
            name: block
            for name, block in self.blocks_.items()
            if name != self._encoder.offset_block and block.monotonic_cst is None
        }
        return Representation(blocks, self.network_, self._network_trunk)

    @property
    @with_library_settings
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

        The time is linear in the number of columns: only the change that a column makes is
        computed. It is bounded as well. Over all columns 1,048,576 rows are evaluated at most, so
        that more than 4,096 columns get fewer rows each, but 16 at least. A trunk without
        ``first_layer``, or a block of texts or lists with more than 100 columns, needs a whole pass
        for each column. All columns of the rows are then 65,536 values at most, with 16 rows at
        least.
        """
        check_is_fitted(self)
        if not hasattr(self, "_importances"):
            backend = resolve_backend(self.backend, self.n_jobs)
            found = self._importance_sample.found(self, backend)
            self._importances, self._validation = found
            self._importance_sample = None
        return self._importances

    @with_library_settings
    def explain(
        self, X, *, background=None, n_permutations=4, max_background=50, random_state=None
    ):
        """Return by how much each column moves each row's output away from a base value.

        The contributions are Shapley values of the columns. A row's contributions and its base
        value add up to the raw output of the whole model, trees included: ``decision_function(X)``
        of a classifier, which is the log-odds of two classes or of each label and the
        log-probabilities of more classes, and ``predict(X)`` of a regressor, before the exponential
        where the loss has one (``np.log(predict(X))`` for ``"poisson"`` and ``"gamma"``).

        Parameters
        ----------
        X : table-like of shape (n_samples, n_features)
            Rows to explain.
        background : table-like of shape (n_background, n_features), optional
            Rows whose mean output is the base value, such as training rows. By default the rows of
            `X`, of which there must then be at least two.
        n_permutations : int, default=4
            Random orders in which columns are replaced. Each is used forwards and backwards, and
            all rows share them. If there are no more orders than twice this number, all are used
            and the Shapley values are exact for the background rows.
        max_background : int, default=50
            Background rows at most; with more, so many are drawn.
        random_state : int, RandomState or None, default=None
            Of the orders and the background rows drawn. With an int, results are reproducible.

        Returns
        -------
        Explanation
            Its ``values`` are an ndarray of float64 of shape (n_samples, n_features), or
            (n_samples, n_features, n_outputs) where the raw output has several columns. Its
            ``base_values``, of shape (n_samples,) or (n_samples, n_outputs), are the same for all
            rows, and its ``feature_names`` are the columns. For a sparse `X` of many columns, the
            columns are those that are read as dense ones, followed by one for all others, the
            sparse part. A row's features there are read as one vector, and what one of them moves
            depends on the others, so that values for each would take as many evaluations as there
            are features. :attr:`feature_importances_` and
            :func:`~sk_easytensor.inspection.permutation_importance` have one entry for each
            column of the matrix; a model that is fitted on ``X.toarray()`` explains each.
            ``shap.Explanation(**vars(explanation))`` makes plots of the package ``shap`` possible.

        Raises
        ------
        ValueError
            If a parameter is invalid, if a table lacks columns, or if `X` has fewer than two rows
            and there is no `background`.

        Notes
        -----
        Sampled by antithetic permutations, as in Mitchell, Cooper, Frank and Holmes, "Sampling
        Permutations for Shapley Value Estimation" (2022). The encoded columns of a background row
        are replaced by those of the row to explain, one after another; a column's contribution is
        the mean change of the output. Columns are taken as independent of each other. Sums are
        exact to the precision of float32, however few the permutations.

        The model is evaluated ``2 * n_permutations * n_columns * n_background`` times for each row;
        a processor core does some hundred thousand evaluations a second with the default trunk.
        With the library's trunks ``MLP`` and ``TabM``, the time of an evaluation does not depend on
        the number of columns, as long as these are numbers, categories and dates; a block of texts
        or lists is read again for each of its columns. Columns that a block reads as one share
        their contribution evenly. Lists that are parallel to those of other columns keep the
        background row's lengths until all of them are replaced.

        Examples
        --------
        >>> from sk_easytensor import EasyTensorRegressor
        >>> X = {"size": [1.0, 2.0, 3.0, 4.0] * 25, "noise": [0.0, 1.0] * 50}
        >>> y = [10.0, 20.0, 30.0, 40.0] * 25
        >>> model = EasyTensorRegressor(random_state=0).fit(X, y)
        >>> found = model.explain({"size": [4.0], "noise": [1.0]}, background=X, random_state=0)
        >>> found.values.shape, found.feature_names[abs(found.values[0]).argmax()]
        ((1, 2), 'size')
        >>> total = found.base_values + found.values.sum(axis=1)
        >>> bool(abs(total - model.predict({"size": [4.0], "noise": [1.0]})).max() < 1e-3)
        True
        """
        check_is_fitted(self)
        found = shapley_values(self, X, background, n_permutations, max_background, random_state)
        return Explanation.of(*self._raw_outputs(*found), self._encoder._columns)

    def _raw_outputs(self, values, base):
        """Return contributions and base values in the form and units of the raw output."""
        return values, base

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
        return self._inspection_model(self._encoder.encode_table(table, backend), backend)

    def _inspection_model(self, frame, backend):
        network, head = self.network_, self._head
        return EncodedModel(
            frame,
            modules=network.readers(),
            join=lambda read: network.average_read(read, head),
            places=self._encoder.places(frame),
            backend=backend,
            network=network,
            head=head,
            features=self._encoder.features,
            by_feature=lambda found: self._encoder.by_feature(found, network, frame),
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


def described_columns(columns):
    """Return a selector of columns as what can be compared with another, after pickling too."""
    if callable(columns):
        return "callable"
    return columns.tolist() if isinstance(columns, np.ndarray) else columns
