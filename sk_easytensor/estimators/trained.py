"""Base class of all estimators that train a network: settings, results, tracking."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from sk_easytensor._utils.masking import UrlParameter
from sk_easytensor._utils.runtime import with_library_settings
from sk_easytensor._utils.storage import check_store
from sk_easytensor._utils.validation import ParametersMixin, check_number, warn_user
from sk_easytensor.backends import resolve_backend
from sk_easytensor.estimators.state import FittedStateMixin
from sk_easytensor.export import ExportMixin
from sk_easytensor.export.engines import check_engine
from sk_easytensor.networks import TabM
from sk_easytensor.report import write_report
from sk_easytensor.tracking.artifacts import MLflowStore, is_in_mlflow
from sk_easytensor.tracking.tracker import RUN, check_tracker
from sk_easytensor.training.checkpoint import Checkpoints
from sk_easytensor.training.descriptions import describe_parameters
from sk_easytensor.training.evaluation import EvalPlan
from sk_easytensor.training.progress import show_phase
from sk_easytensor.training.train import (
    TrainingSettings,
    check_callbacks,
    default_patience,
    resolve_optimizer,
)

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, Self

    from sk_easytensor._utils.typing import ArrayLike, PathLike, TableLike, TargetLike

__all__ = [
    "TrainedEstimator",
]


logger = logging.getLogger("sk_easytensor")

PHASES = {
    "blocks": "fitting blocks",
    "encoding": "encoding rows",
    "engine": "choosing the inference engine",
}
"""Names of the parts of a fit that are shown while they take place."""


class TrainedEstimator(
    FittedStateMixin,
    ExportMixin,
    ParametersMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    """Base class of the estimators that train a network.

    A subclass has the parameters that are read here, such as ``learning_rate`` and ``backend``.
    """

    checkpoint_dir = UrlParameter()

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters, including those of named blocks, of the trunk and of trees.

        Parameters of the trunk are included even if ``trunk`` is None, so that ``trunk__dropout``
        can be searched without a trunk, and those of trees if ``trees`` is ``"auto"``.

        Parameters
        ----------
        deep : bool, default=True
            Whether to include nested parameters.

        Returns
        -------
        dict of {str: object}
            Values of the parameters by name.
        """
        params = super().get_params(deep=deep)
        if deep:
            for parameter, default in self._defaults(params).items():
                nested = default.get_params()
                params.update({f"{parameter}__{name}": value for name, value in nested.items()})
        return params

    def set_params(self, **params: Any) -> Self:
        """Set parameters, nested ones included.

        Parameters
        ----------
        **params : dict
            Values by name, with the names that :meth:`get_params` returns.

        Returns
        -------
        self : object
            The estimator.

        Raises
        ------
        ValueError
            If there is no parameter of a name.
        """
        for parameter, default in self._defaults({**self.get_params(False), **params}).items():
            if any(key.startswith(f"{parameter}__") for key in params):
                params = {**params, parameter: default}
        nested = [key for key in params if key.startswith("trees__")]
        if nested and params.get("trees", getattr(self, "trees", None)) is None:
            raise ValueError(
                f"Invalid parameter {nested[0]!r} for estimator {type(self).__name__}: it has no "
                "trees, because trees is None or not a parameter"
            )
        return super().set_params(**params)

    def _defaults(self, params):
        """Return the objects that ``None`` and ``"auto"`` stand for, by name of the parameter."""
        # A subclass may have fewer parameters.
        return {"trunk": self._default_trunk()} if params.get("trunk", self) is None else {}

    def _default_trunk(self):
        return TabM()

    def _check_validation_fraction(self):
        owner, fraction = type(self).__name__, self.validation_fraction
        if fraction is not None:
            check_number(owner, "validation_fraction", fraction, low=0, high=1, exclusive=True)

    def _check_parameters(self):
        owner = type(self).__name__
        check_number(owner, "learning_rate", self.learning_rate, low=0, exclusive=True)
        check_number(owner, "weight_decay", self.weight_decay, low=0)
        for name in ("batch_size", "max_epochs", "early_stopping_rounds"):
            value = getattr(self, name)
            automatic = name == "early_stopping_rounds" and value == "auto"
            if value is not None and not automatic:
                check_number(owner, name, value, low=1, integer=True)
        self._check_validation_fraction()
        if self.trunk is not None:
            if isinstance(self.trunk, type) or not hasattr(self.trunk, "make_module"):
                raise ValueError(
                    f"{owner}: trunk must have make_module(in_features), such as MLP() or TabM(), "
                    f"got {self.trunk!r}"
                )
            if hasattr(self.trunk, "check_parameters"):
                self.trunk.check_parameters()
        resolve_optimizer(self.optimizer, owner)
        resolve_backend(self.backend, self.n_jobs).resolve_device(self.device, owner)
        if not isinstance(self.verbose, (bool, np.bool_)):
            check_number(owner, "verbose", self.verbose, low=-1, integer=True)
        distributed = resolve_backend(self.backend, None).distributed
        check_callbacks(self.callbacks, owner, distributed)
        check_engine(owner, self.inference_engine)
        check_store(self.checkpoint_dir, owner)
        check_tracker(self.tracker, owner)
        if is_in_mlflow(self.checkpoint_dir) and check_tracker(self.tracker, owner) is None:
            raise ValueError(
                f"{owner}: checkpoint_dir='mlflow' keeps checkpoints in the run of the fit, which "
                "needs tracker='mlflow' or an MLflowTracker; a directory of that name is './mlflow'"
            )
        if is_in_mlflow(self.checkpoint_dir) and distributed:
            raise ValueError(
                f"{owner}: checkpoint_dir='mlflow' keeps checkpoints on this machine first, which "
                f"workers of {self.backend!r} do not reach; give a directory or URL that they reach"
            )

    def _open_checkpoints(self, stack, data_digests):
        """Return the checkpoints to resume from and to write, if any, and the random state.

        Parameters
        ----------
        stack : contextlib.ExitStack
            Context that closes the checkpoints. Until then, no other fit can write to their
            directory.
        data_digests : callable
            Function without arguments that returns digests of the data of the fit, by name.

        Returns
        -------
        checkpoints : Checkpoints or None
            None without a ``checkpoint_dir``.
        random_state : numpy.random.RandomState
        """
        if self.checkpoint_dir is None:
            return None, check_random_state(self.random_state)
        store = self.checkpoint_dir
        if is_in_mlflow(store):
            store = MLflowStore(getattr(self, RUN))
        owner, parameters = type(self).__name__, describe_parameters(self)
        checkpoints = Checkpoints(store, owner, parameters, data_digests())
        # Registered first, because an interrupt may come as soon as they are locked.
        stack.callback(checkpoints.close)
        checkpoints.open()
        return checkpoints, check_random_state(checkpoints.seed(self.random_state))

    def _eval_plan(self, names, metrics=(), scores=None, stopping_metric=None):
        """Return the plan of the evaluation after each epoch.

        Warns
        -----
        UserWarning
            If ``early_stopping_rounds`` is a number and there are no validation rows.
        """
        decides = any(name != "training" for name in names)
        if not decides and self.early_stopping_rounds not in (None, "auto"):
            warn_user(
                f"{type(self).__name__}: early_stopping_rounds={self.early_stopping_rounds} has no "
                "effect without validation rows; give eval_set or validation_fraction",
            )
        return EvalPlan(list(names), decides, list(metrics), scores, stopping_metric)

    def _settings(
        self,
        batch_size,
        epochs,
        plan,
        *,
        annealed=True,
        checkpoints=None,
        patience=default_patience,
    ):
        """Return the settings of the training, from the parameters.

        `patience` is a function of the number of epochs, for ``early_stopping_rounds="auto"``.
        """
        owner, automatic = type(self).__name__, self.early_stopping_rounds == "auto"
        settings = TrainingSettings(
            learning_rate=self.learning_rate,
            batch_size=batch_size,
            max_epochs=epochs,
            optimizer=resolve_optimizer(self.optimizer, owner),
            weight_decay=self.weight_decay,
            early_stopping_rounds=patience(epochs) if automatic else self.early_stopping_rounds,
            device=resolve_backend(self.backend, self.n_jobs).resolve_device(self.device, owner),
            # LightGBM accepts -1 for no output.
            verbose=max(0, self.verbose),
            callbacks=[*(self.callbacks or []), *self._tracking_callbacks()],
            annealed=annealed,
            checkpoints=checkpoints,
            plan=plan,
            automatic_patience=automatic,
        )
        # Reports show what was chosen for None and "auto".
        chosen = ("batch_size", "max_epochs", "early_stopping_rounds", "device")
        self._chosen_parameters = {name: getattr(settings, name) for name in chosen}
        return settings

    def _begin_fold(self, number):
        """Tell the tracker that the epochs that follow are those of a fold."""
        run = getattr(self, RUN, None)
        if run is not None:
            run.begin_fold(number)

    def _tracking_callbacks(self):
        """Return the callbacks that record a tracked fit; none without a tracker."""
        run = getattr(self, RUN, None)
        return [] if run is None else [run.callback]

    def _choose_engines(self, models, backend):
        """Choose the engines that run fitted networks.

        Parameters
        ----------
        models : list of (EngineMixin, pyarrow.Table)
            Objects with a network, each with rows on which engines are compared and timed.
        backend : LocalExecutor
            Executor of forward passes.
        """
        if self.inference_engine == "torch":
            return
        with self._timed("engine"):
            for model, table in models:
                model._choose_engine(self.inference_engine, table, backend)

    @contextmanager
    def _timed(self, part):
        """Add the seconds spent within the context to ``fit_times_``."""
        begin = perf_counter()
        with show_phase(PHASES.get(part, part), self.verbose):
            yield
        times = getattr(self, "fit_times_", {})
        self.fit_times_ = {**times, part: times.get(part, 0.0) + perf_counter() - begin}

    @with_library_settings
    def report(
        self,
        path: PathLike,
        X: TableLike | None = None,
        y: TargetLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Path:
        """Write a report of the fitted model as one page of HTML.

        The page shows the data's columns, the parameters, the blocks, learning curves, importances,
        calibration or residuals on validation rows, and times, as far as the model has them. It
        loads nothing from elsewhere. It holds frequent categories of the data, but no rows.

        Parameters
        ----------
        path : str or path-like
            Path of the file, in an existing directory. The file is written whole or not at all.
        X : table-like, optional
            Test rows, on which a classifier or regressor is evaluated as well. If `fit` had
            offsets, they have the column ``base_margin``.
        y : array-like, optional
            Target of the test rows.
        sample_weight : array-like, optional
            Weights of the test rows.

        Returns
        -------
        pathlib.Path
            Path of the file.

        Raises
        ------
        NotFittedError
            If the model is not fitted.
        FileNotFoundError
            If the directory does not exist.
        ValueError
            If `X` is passed and `y` is not, or the estimator does not predict single rows.
        """
        if X is None and y is None:
            return write_report(self, path)
        owner = type(self).__name__
        if X is None or y is None:
            raise ValueError(f"{owner}: report needs both X and y of the test rows, or neither")
        if not hasattr(self, "_measure"):
            raise ValueError(
                f"{owner}: report evaluates test rows of classifiers and regressors only; leave "
                "out X and y"
            )
        check_is_fitted(self)
        return write_report(self, path, self._measure(X, y, sample_weight))

    def _record_training(self, result, resuming=False):
        """Set the fitted attributes that describe a training: curves, epochs, best epoch, times."""
        seconds = [epoch["dur"] for epoch in result.history if "dur" in epoch]
        times = getattr(self, "fit_times_", {})
        self.fit_times_ = {
            **times,
            "training": times.get("training", 0.0) + sum(seconds),
            "epochs": [*times.get("epochs", []), *seconds],
        }
        previous_epochs = self.n_iter_ if resuming else 0
        previous = self.evals_result_ if resuming else {}
        self.evals_result_ = {
            name: {
                metric: [
                    *previous.get(name, {}).get(metric, [np.nan] * previous_epochs),
                    *result.curves.get(name, {}).get(metric, [np.nan] * len(result.history)),
                ]
                for metric in {**previous.get(name, {}), **result.curves.get(name, {})}
            }
            for name in {**previous, **result.curves}
        }
        self.n_iter_ = previous_epochs + len(result.history)
        if result.best_iteration > 0:
            self.best_iteration_ = previous_epochs + result.best_iteration
        self.best_score_ = float(result.best_score)
        logger.info(
            "%s: %d epochs, of which number %s is best; score %.6g",
            type(self).__name__,
            self.n_iter_,
            getattr(self, "best_iteration_", None),
            self.best_score_,
        )
