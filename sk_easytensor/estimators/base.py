"""Base of classifier and regressor: reading, encoding, training, predicting, pickling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from copy import deepcopy
from functools import partial

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
from sk_easytensor.compose import (
    BlockParametersMixin,
    TableEncoder,
    blocks_diagram,
    describe_selector,
)
from sk_easytensor.data.sparse import layout_of
from sk_easytensor.data.tables import has_column_names, read_like_fit
from sk_easytensor.data.validation import errors_name
from sk_easytensor.estimators.eval_sets import (
    deciding_first,
    eval_names,
    eval_pairs,
    named_eval_set,
)
from sk_easytensor.estimators.explain import ExplainMixin
from sk_easytensor.estimators.offsets import (
    add_offset,
    check_margin,
    check_monotonic,
    check_offset,
    eval_margins,
    read_with_margin,
)
from sk_easytensor.estimators.rows import RowEncoder, divided, total_weight
from sk_easytensor.estimators.state import restored_on_error
from sk_easytensor.estimators.stored import Vectors, of_stored_rows
from sk_easytensor.estimators.trained import TrainedEstimator
from sk_easytensor.export.engines import EngineMixin
from sk_easytensor.inspection import GivenOutputs, Inspection
from sk_easytensor.metrics import MetricScores
from sk_easytensor.networks import TabM
from sk_easytensor.networks.block_network import copy_network, make_network
from sk_easytensor.report.report import summarize_table
from sk_easytensor.tracking import tracked
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


class BaseEasyTensor(EngineMixin, ExplainMixin, BlockParametersMixin, TrainedEstimator, ABC):
    """Base of the estimators of tables with a target.

    A subclass makes the :class:`~sk_easytensor.estimators.targets.base.Target` that its parameters
    describe, and has the methods that predict: each passes the raw outputs of the ensemble to the
    fitted target.
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
            name: (block, describe_selector(columns))
            for name, block, columns in check_blocks(self.blocks)
        }
        return {
            "blocks": repr(blocks),
            "remainder": self.remainder,
            "categorical_features": describe_selector(self.categorical_features),
            "offset": self.offset,
            "monotonic_cst": describe_selector(self.monotonic_cst),
            "trunk": repr(self.trunk),
            "trees": repr(self.trees),
        }

    @abstractmethod
    def _make_target(self):
        """Return the target that the parameters describe, not fitted, or raise ``ValueError``."""

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
        self._make_target().metrics(self.eval_metric, self.stopping_metric)
        check_choice(type(self).__name__, "warm_start", self.warm_start, (False, True))
        check_offset(type(self).__name__, self.offset)

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
        backend, owner = resolve_backend(self.backend, self.n_jobs), type(self).__name__
        self._check_parameters()
        pairs = eval_pairs(
            *named_eval_set(eval_set, eval_sample_weight, eval_X, eval_y, sample_weight_eval_set)
        )
        check_margin(owner, self.offset, base_margin, X, backend)
        margins = eval_margins(base_margin, base_margin_eval_set, [name for name, *_ in pairs])
        resuming = self.warm_start and hasattr(self, "network_")
        target = self._new_target(resuming)
        with backend.running(), ExitStack() as opened:
            dataset = self._training_dataset(X, y, sample_weight, base_margin, backend, target)
            evals = [
                self._eval_dataset(where, *pair, weight, margin, dataset, backend)
                for (where, pair, weight), margin in zip(pairs, margins, strict=True)
            ]

            def source():
                digests = {"X": dataset.digest()}
                digests |= {f"eval_set[{i}]": each.digest() for i, each in enumerate(evals)}
                if resuming:
                    weights = digest(*self.network_.state_dict().values())
                    digests["network"] = f"{weights} after {self.n_iter_} epochs"
                return digests

            checkpoints, random_state = self._open_checkpoints(opened, source)
            if checkpoints is None:
                random_state = self._same_split(random_state, resuming)
            if not resuming:
                self._fit_encoder(dataset, backend, checkpoints, base_margin is not None)
                self._summarize_data(dataset)
            rows = self._encoded(dataset, backend)
            encoded = []
            for index, valid in enumerate(evals):
                with errors_name(f"eval_set[{index}]"):
                    encoded.append(self._encoded(valid, backend, weighted=False))
            names = eval_names([pair for _, pair, _ in pairs], X, y, evals, dataset)
            order = deciding_first(names)
            names, encoded = [names[i] for i in order], [encoded[i] for i in order]
            validation = evals[order[0]] if evals else dataset
            batch_size = self.batch_size or default_batch_size(len(rows))
            rows = rows.merge_duplicates(batch_size)
            if set(names) <= {"training"} and self.validation_fraction is not None:
                rows, held_out = rows.hold_out(
                    target.strata, self.validation_fraction, random_state
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
    def _partial_fit(self, X, y, sample_weight, base_margin=None, **about_target):
        backend = resolve_backend(self.backend, self.n_jobs)
        self._check_parameters()
        check_margin(type(self).__name__, self.offset, base_margin, X, backend)
        resuming = hasattr(self, "network_")
        target = self._new_target(resuming, **about_target)
        with backend.running():
            dataset = self._training_dataset(X, y, sample_weight, base_margin, backend, target)
            if not resuming:
                self._fit_encoder(dataset, backend, with_margin=base_margin is not None)
                self._summarize_data(dataset)
            rows = self._encoded(dataset, backend)
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

    def _new_target(self, resuming, **about_target):
        """Return the target of a fit, which has learned what another one did if that resumes."""
        target = self._make_target(**about_target)
        if resuming:
            self._check_unchanged()
            target.resume(self._target)
        return target

    def _training_dataset(self, X, y, sample_weight, base_margin, backend, target):
        """Read the training rows, and have the target learn from them what it has not yet."""
        owner, resuming = type(self).__name__, hasattr(target, "head_")
        if y is None:
            raise ValueError(f"{owner} requires y to be passed, but the target y is None")
        if resuming:
            read = partial(self._encoder.read, owner=owner, base_margin=base_margin)
        else:
            read = partial(
                self._new_encoder().read_training,
                offset=self.offset,
                monotonic_cst=self.monotonic_cst,
            )
            read = partial(read_with_margin, read=read, base_margin=base_margin)
        y = target.column_order(X, y)
        dataset = backend.read_dataset(X, y, sample_weight, read, target.check)
        if not resuming:
            self._clear_state()
            target.fit(target.join_samples(dataset.map_chunks(target.sample)))
            vars(self).update(target.fitted_attributes())
            if self.offset is not None or base_margin is not None:
                add_offset(target.head_, owner, "base_margin" if self.offset is None else "offset")
            check_monotonic(target.head_, owner, self.monotonic_cst)
        target.learn_class_weights(dataset)
        self._target = target
        return dataset

    def _eval_dataset(self, where, X_eval, y_eval, weight, base_margin, dataset, backend):
        target, y_eval = self._target, self._target.column_order(X_eval, y_eval)
        names = list(dataset.column_names)
        if base_margin is not None:
            names.remove(BASE_MARGIN)
        read = partial(
            read_like_fit,
            names=names,
            fitted_with_names=has_column_names(dataset.source),
            owner=type(self).__name__,
            sparse=layout_of(dataset.sample().table),
        )
        read = partial(read_with_margin, read=read, base_margin=base_margin)
        found = backend.read_dataset(X_eval, y_eval, weight, read, target.check, where)
        with errors_name(where):
            # Labels that training rows lack are refused before anything is trained.
            target.check_known(target.join_samples(found.map_chunks(target.sample)))
        return found

    def _encoded(self, dataset, backend, *, weighted=True):
        with self._timed("encoding"):
            return dataset.encode(RowEncoder(self._target, self._encoder, backend, weighted))

    def _new_encoder(self):
        return TableEncoder(
            self.blocks, remainder=self.remainder, categorical_features=self.categorical_features
        )

    def _fit_encoder(self, dataset, backend, checkpoints=None, with_margin=False):
        def make():
            return self._new_encoder().fit_table(
                dataset.sample().table,
                dataset.source,
                partial(dataset.summarize, executor=backend),
                self.offset,
                with_margin=with_margin,
                monotonic_cst=self.monotonic_cst,
            )

        with self._timed("blocks"):
            self._encoder = (
                make() if checkpoints is None else checkpoints.load_or_fit("encoder", make)
            )
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
        target, encoder, offset = self._target, self._encoder, None
        if encoder.offset_block is not None:
            offset = (encoder.offset_block, encoder.offset_column)
        target.learn_scale(rows, resuming=resuming, offset=offset)
        if not resuming:
            target.check_loss(rows)
        plan = EvalPlan()
        if not keep:
            metrics, stopping = target.metrics(self.eval_metric, self.stopping_metric)
            plan = self._eval_plan(evals, metrics, MetricScores(target, metrics), stopping)
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
        rows, *evals = (each.map(target.scaled) for each in (rows, *evals.values()))
        with seeded(seed):
            if resuming:
                # The network of before stays what it is, should this training fail.
                self.network_ = copy_network(self.network_)
            else:
                trunk = self._default_trunk() if self.trunk is None else clone(self.trunk)
                self._network_trunk = trunk
                self.network_ = make_network(self.blocks_, trunk, target.head_)
            inspection = Inspection(target, encoder, seed)
            result = backend.train(self.network_, target.head_, rows, evals, settings, inspection)
        self._record_training(result, resuming)
        trees_before = self.fit_times_.get("trees", 0.0)
        self.fit_times_ = {**self.fit_times_, "trees": trees_before + result.tree_seconds}
        self.tree_weight_ = target.tree_weight(self.network_.trees)
        self._use_torch()
        self._n_features_out = self.network_.representation_features
        vars(self).pop("_importances", None)
        self._fitted_structure = self._structure()
        self._optimizer_state = None
        if keep or self.warm_start:
            self._optimizer_state = {"kind": kind, **result.optimizer_state}
        vars(self).update(result.inspected)
        return self

    # ------------------------------------------------------------------ predicting

    @property
    def _head(self):
        """The head of the fitted network."""
        return self._target.head_

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
        margin = 0.0 if self._encoder.with_margin else None
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

    def _summarize_data(self, dataset):
        """Keep what reports say of the data."""
        sample = dataset.sample()
        self._data_summary = summarize_table(sample.table)
        self._target_summary = self._target.summary(sample.y)

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
