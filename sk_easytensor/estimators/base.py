"""Base class of the estimators of tables with a target."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.validation import check_is_fitted

from sk_easytensor._utils.runtime import with_library_settings
from sk_easytensor._utils.validation import check_choice, shortened
from sk_easytensor.backends import resolve_backend
from sk_easytensor.blocks.detection import check_blocks
from sk_easytensor.blocks.numeric import BASE_MARGIN
from sk_easytensor.blocks.pretrained import Representation
from sk_easytensor.compose import (
    BlockParametersMixin,
    TableEncoder,
    blocks_diagram,
    describe_selector,
)
from sk_easytensor.data.sparse import layout_of
from sk_easytensor.data.tables import has_column_names, read_like_fit
from sk_easytensor.data.validation import Sized, check_weight, errors_mention, errors_name
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
from sk_easytensor.estimators.state import restored_on_error
from sk_easytensor.estimators.stored import Vectors, of_stored_rows
from sk_easytensor.estimators.targets.base import RowEncoder
from sk_easytensor.estimators.trained import TrainedEstimator
from sk_easytensor.estimators.training import NetworkTrainingMixin, check_n_folds
from sk_easytensor.export.engines import EngineMixin
from sk_easytensor.inspection import GivenOutputs
from sk_easytensor.inspection.sample import validation
from sk_easytensor.networks import TabM
from sk_easytensor.report.report import summarize_table
from sk_easytensor.tracking import tracked
from sk_easytensor.training.descriptions import digest
from sk_easytensor.training.train import (
    default_batch_size,
)
from sk_easytensor.trees import BoostedTrees

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal, Self

    from sk_easytensor._utils.typing import (
        ArrayLike,
        BackendLike,
        BlockSpec,
        CallbackSpec,
        ColumnSelection,
        EngineName,
        EvalSet,
        MetricLike,
        MonotonicConstraints,
        OptimizerLike,
        PathLike,
        Predictions,
        RandomStateLike,
        TableLike,
        TargetLike,
        Trunk,
    )
    from sk_easytensor.tracking import MLflowTracker

__all__ = [
    "BaseEasyTensor",
]


logger = logging.getLogger("sk_easytensor")


class BaseEasyTensor(
    NetworkTrainingMixin,
    EngineMixin,
    ExplainMixin,
    BlockParametersMixin,
    TrainedEstimator,
    ABC,
):
    """Base class of the estimators of tables with a target.

    A subclass implements ``_make_target``, which returns the
    :class:`~sk_easytensor.estimators.targets.base.Target` that its parameters describe. It also
    defines the methods that predict. Each of them passes the raw outputs of the ensemble to the
    fitted target.
    """

    def __init__(
        self,
        blocks: Sequence[BlockSpec] | None = None,
        *,
        remainder: Literal["auto", "drop"] = "auto",
        categorical_features: ColumnSelection | None = None,
        offset: str | int | None = None,
        monotonic_cst: MonotonicConstraints | None = None,
        trunk: Trunk | None = None,
        trees: BoostedTrees | Literal["auto"] | None = "auto",
        linear: Literal["auto"] | None = None,
        learning_rate: float = 2.4e-2,
        batch_size: int | None = None,
        max_epochs: int | None = None,
        optimizer: OptimizerLike = "adamw",
        weight_decay: float = 5e-2,
        early_stopping_rounds: int | Literal["auto"] | None = "auto",
        eval_metric: MetricLike | Sequence[MetricLike] | None = None,
        stopping_metric: MetricLike | None = None,
        validation_fraction: float | None = 0.15,
        n_folds: int | Literal["auto"] | None = "auto",
        warm_start: bool = False,
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
        self.remainder = remainder
        self.categorical_features = categorical_features
        self.offset = offset
        self.monotonic_cst = monotonic_cst
        self.trunk = trunk
        self.trees = trees
        self.linear = linear
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.early_stopping_rounds = early_stopping_rounds
        self.eval_metric = eval_metric
        self.stopping_metric = stopping_metric
        self.validation_fraction = validation_fraction
        self.n_folds = n_folds
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
        """Return a description of the parameters that must not change when training resumes."""
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
            "linear": self.linear,
            "n_folds": self.n_folds,
        }

    @abstractmethod
    def _make_target(self):
        """Return the unfitted target that the parameters describe, or raise ``ValueError``."""

    def _default_trunk(self):
        # Beside boosted trees, more members, wider ones or dropout do not improve predictions.
        return TabM(members=4, width=96, dropout=0.0)

    def _defaults(self, params):
        defaults = super()._defaults(params)
        if isinstance(params.get("trees"), str):
            defaults["trees"] = BoostedTrees()
        return defaults

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
        check_choice(type(self).__name__, "linear", self.linear, ("auto", None))
        self._make_target().metrics(self.eval_metric, self.stopping_metric)
        check_n_folds(type(self).__name__, self.n_folds)
        check_choice(type(self).__name__, "warm_start", self.warm_start, (False, True))
        check_offset(type(self).__name__, self.offset)

    # ------------------------------------------------------------------ fitting

    @with_library_settings
    @tracked
    @restored_on_error
    def fit(
        self,
        X: TableLike,
        y: TargetLike,
        sample_weight: ArrayLike | str | None = None,
        *,
        eval_set: EvalSet | None = None,
        eval_sample_weight: Sequence[ArrayLike | None] | ArrayLike | None = None,
        eval_X: TableLike | tuple[TableLike, ...] | None = None,
        eval_y: TargetLike | tuple[TargetLike, ...] | None = None,
        sample_weight_eval_set: Sequence[ArrayLike | None] | ArrayLike | None = None,
        base_margin: ArrayLike | None = None,
        base_margin_eval_set: Sequence[ArrayLike] | ArrayLike | None = None,
    ) -> Self:
        """Fit the blocks and train the network.

        Parameters
        ----------
        X : table-like of shape (n_samples, n_features)
            A data frame of any kind, a dictionary of columns, a 2-D array or a sparse matrix.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Target.
        sample_weight : array-like of shape (n_samples,), optional
            Row weights, by which the losses of rows are multiplied; 1 for each row by default. Rows
            of weight 0 are ignored.
        eval_set : list of (X, y) pairs, optional
            Pairs that are evaluated after each epoch. ``evals_result_`` names them ``valid_0``,
            ``valid_1`` and so on. The last pair decides about early stopping and which weights are
            kept, as in XGBoost. A pair that is the training data is called ``training`` and never
            decides. Without a pair that decides, a fraction `validation_fraction` of the rows is
            held out and decides.
        eval_sample_weight : list of array-like, optional
            Row weights of each pair of `eval_set`.
        eval_X : table-like or tuple of table-like, optional
            Rows of one evaluation set, or a tuple with the rows of each. An alternative to
            `eval_set`.
        eval_y : array-like or tuple of array-like, optional
            Targets of the rows of `eval_X`: a tuple if `eval_X` is one.
        sample_weight_eval_set : list of array-like, optional
            XGBoost's name of `eval_sample_weight`; only one of them can be given.
        base_margin : array-like of shape (n_samples,), optional
            Offsets of the rows: numbers that are added to the raw output. An alternative to the
            parameter `offset`, which names a column. Methods that predict then need offsets too: as
            ``base_margin=``, or in a column ``"base_margin"`` of `X`, which is also what an
            exported model reads.
        base_margin_eval_set : list of array-like, optional
            Offsets of the rows of each pair of `eval_set`.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError, TypeError
            If a parameter of the estimator or an argument is invalid. Parameters, columns and
            targets are checked before any training starts.
        KeyboardInterrupt
            If the fit is interrupted.

        Notes
        -----
        If `fit` raises an error, the estimator is unchanged: fitted as before, or not fitted.
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
        with backend.running(), ExitStack() as stack:
            dataset = self._training_dataset(X, y, sample_weight, base_margin, backend, target)
            evals = [
                self._eval_dataset(name, *pair, weight, margin, dataset, backend)
                for (name, pair, weight), margin in zip(pairs, margins, strict=True)
            ]

            def data_digests():
                digests = {"X": dataset.digest()}
                digests |= {f"eval_set[{i}]": valid.digest() for i, valid in enumerate(evals)}
                if resuming:
                    weights = digest(*self.network_.state_dict().values())
                    digests["network"] = f"{weights} after {self.n_iter_} epochs"
                return digests

            checkpoints, random_state = self._open_checkpoints(stack, data_digests)
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
            n_folds = self._resolve_n_folds(rows, names, backend, resuming)
            folds, split = None, False
            if n_folds is not None:
                folds = rows.folds(target.strata, n_folds, random_state)
            else:
                rows = rows.merge_duplicates(batch_size)
            holds_out = folds is None and self.validation_fraction is not None
            if holds_out and set(names) <= {"training"}:
                rows, held_out = rows.hold_out(
                    target.strata, self.validation_fraction, random_state
                )
                split = bool(held_out)
                names = [*["valid_0"] * len(held_out), *names]
                encoded = [*held_out, *encoded]
            if folds is not None:
                logger.info("%d folds of %d rows", len(folds.parts), len(rows))
            elif split:
                logger.info("%d rows to train on, %d held out", len(rows), len(encoded[0]))
            self._train(
                rows,
                dict(zip(names, encoded, strict=True)),
                batch_size,
                random_state,
                backend,
                resuming,
                checkpoints=checkpoints,
                was_held_out=split,
                folds=folds,
            )
            if folds is not None and folds.rows is not None and not resuming:
                outputs = self._fold_outputs(folds, backend)
                self.oof_prediction_ = dataset.expanded(self._predictions(outputs))
            self._choose_engines([(self, validation.sample().table)], backend)
            return self

    def _same_split(self, random_state, resuming):
        """Return a random state that holds out the same rows in each fit of a warm start.

        With another split, weights would be validated on rows that they were trained on.
        """
        if self.random_state is not None:
            return random_state
        if not resuming or not hasattr(self, "_split_seed"):
            self._split_seed = int(random_state.randint(np.iinfo(np.int32).max))
        return check_random_state(self._split_seed)

    def partial_fit(
        self,
        X: TableLike,
        y: TargetLike,
        sample_weight: ArrayLike | str | None = None,
        *,
        base_margin: ArrayLike | None = None,
    ) -> Self:
        """Train for one epoch on these rows.

        The first call fits the blocks on its rows. Later calls keep the blocks and continue from
        the present weights and optimizer state. No rows are held out for validation.

        Parameters
        ----------
        X : table-like of shape (n_samples, n_features)
            Rows of this call.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Target.
        sample_weight : array-like of shape (n_samples,), optional
            Row weights.
        base_margin : array-like of shape (n_samples,), optional
            Offsets of the rows, as in `fit`. They must be given in all calls or in none.

        Returns
        -------
        self : object
            The fitted estimator.
        """
        return self._partial_fit(X, y, sample_weight, base_margin=base_margin)

    @with_library_settings
    @restored_on_error
    def _partial_fit(self, X, y, sample_weight, base_margin=None, **target_params):
        backend = resolve_backend(self.backend, self.n_jobs)
        self._check_parameters()
        check_margin(type(self).__name__, self.offset, base_margin, X, backend)
        resuming = hasattr(self, "network_")
        target = self._new_target(resuming, **target_params)
        with backend.running():
            dataset = self._training_dataset(X, y, sample_weight, base_margin, backend, target)
            if not resuming:
                self._fit_encoder(dataset, backend, with_margin=base_margin is not None)
                self._summarize_data(dataset)
            rows = self._encoded(dataset, backend)
            batch_size = self.batch_size or default_batch_size(len(rows))
            random_state = check_random_state(self.random_state)
            self._train(rows, {}, batch_size, random_state, backend, resuming, epochs=1, keep=True)
            return self

    def _check_unchanged(self):
        """Raise ``ValueError`` if the parameters no longer describe the fitted network."""
        for name, value in self._structure().items():
            # The version that fitted the estimator may not have had the parameter.
            previous = self._fitted_structure.get(name, value)
            if value != previous:
                raise ValueError(
                    f"{type(self).__name__}: {name} changed since the last fit, from {previous} to "
                    f"{value}; clone the estimator to train from scratch"
                )

    def _new_target(self, resuming, **target_params):
        """Return the target of a fit, with the state of the previous fit's if training resumes."""
        target = self._make_target(**target_params)
        if resuming:
            self._check_unchanged()
            target.resume(self._target)
        return target

    def _training_dataset(self, X, y, sample_weight, base_margin, backend, target):
        """Read the training rows, and fit the target on them unless training resumes."""
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

    def _eval_dataset(self, name, X_eval, y_eval, weight, base_margin, dataset, backend):
        """Read the rows of an evaluation set, whose `name` appears in errors."""
        target, y_eval = self._target, self._target.column_order(X_eval, y_eval)
        columns = list(dataset.column_names)
        if base_margin is not None:
            columns.remove(BASE_MARGIN)
        read = partial(
            read_like_fit,
            names=columns,
            fitted_with_names=has_column_names(dataset.source),
            owner=type(self).__name__,
            sparse=layout_of(dataset.sample().table),
        )
        read = partial(read_with_margin, read=read, base_margin=base_margin)
        valid = backend.read_dataset(X_eval, y_eval, weight, read, target.check, name)
        with errors_name(name):
            # Labels that training rows lack raise an error before training starts.
            target.check_known(target.join_samples(valid.map_chunks(target.sample)))
        return valid

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
        for name, block in self.blocks_.items():
            columns = shortened(list(block.feature_names_in_))
            logger.info("block %r, a %s, reads %s", name, type(block).__name__, columns)

    def _predictions(self, outputs):
        """Return predictions for raw outputs: probabilities of classes, or numbers."""
        predict = getattr(self, "predict_proba", self.predict)
        return predict(GivenOutputs(outputs))

    # ------------------------------------------------------------------ predicting

    @property
    def _head(self):
        """The head of the fitted network."""
        return self._target.head_

    def _read(self, X, base_margin=None):
        check_is_fitted(self)
        return self._encoder.read(X, owner=type(self).__name__, base_margin=base_margin)

    def _forward(self, X, output, base_margin=None):
        """Return an output of the network for rows, computed in batches."""
        table = self._read(X, base_margin)
        backend = resolve_backend(self.backend, self.n_jobs)
        frame = self._encoder.encode_table(table, backend)
        return self._run_network(output, frame, backend)

    def _network_functions(self):
        """Return functions of encoded rows that compute the outputs of the network, by name."""
        head, network = self._head, self.network_
        return {
            "combined": lambda frame: network.average_members(frame, head)[:, 0],
            "representation": network.represent,
        }

    def _raw_predict(self, X, base_margin=None):
        """Return the raw outputs of the ensemble, a tensor of shape (n_rows, out_features)."""
        if isinstance(X, GivenOutputs):
            return X.values
        return self._forward(X, "combined", base_margin)

    @with_library_settings
    @of_stored_rows(Vectors("embedding"), check="_read")
    def transform(self, X: TableLike) -> Predictions:
        """Return the learned representation.

        It is the trunk's output, averaged over members, followed by the vectors of blocks that
        bypass the trunk (those of texts, by default). With folds, the representations of all their
        networks are next to each other.

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
        margin = 0.0 if self._encoder.with_margin_ else None
        return self._forward(X, "representation", margin).numpy()

    def representation(self) -> Representation:
        """Return the blocks and the part of the network that compute :meth:`transform`.

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
        # Offsets and columns with monotonic constraints are added after the representation.
        blocks = {
            name: block
            for name, block in self.blocks_.items()
            if name != self._encoder.offset_block and block.monotonic_cst is None
        }
        return Representation(blocks, self.network_, self._network_trunk)

    def _measure(self, X, y, sample_weight=None):
        """Return measures of predictions for rows, as reports show them."""
        with errors_mention("y"):
            y = self._target.check(y)
        outputs = self._raw_predict(X)
        check_consistent_length(Sized(len(outputs)), y)
        weight = torch.from_numpy(check_weight(sample_weight, len(outputs))).float()
        target = self._target.scale(self._target.encode(y))
        return validation(self._target, [(outputs, target, weight)])

    def _summarize_data(self, dataset):
        """Store the summaries of columns and target that reports show."""
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
