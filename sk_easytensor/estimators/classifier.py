"""Classification of table rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sklearn.base import ClassifierMixin

from sk_easytensor._utils.runtime import with_library_settings
from sk_easytensor.estimators.base import BaseEasyTensor
from sk_easytensor.estimators.stored import Values, of_stored_rows
from sk_easytensor.estimators.targets.classification import ClassificationTarget
from sk_easytensor.export.adapters import ClassifierAdapter
from sk_easytensor.losses import describe_loss, resolve_loss

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Literal, Self

    from sk_easytensor._utils.typing import (
        ArrayLike,
        BackendLike,
        BlockSpec,
        CallbackSpec,
        ColumnSelection,
        EngineName,
        LossLike,
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
    from sk_easytensor.trees import BoostedTrees

__all__ = [
    "EasyTensorClassifier",
]


class EasyTensorClassifier(ClassifierMixin, BaseEasyTensor):
    """Classifier for tables of numbers, categories, dates, texts and vectors.

    Parameters
    ----------
    blocks : list of (str, Block, columns) or None, default=None
        Name, block and columns of each block, as in
        :class:`~sklearn.compose.ColumnTransformer`. For a sparse `X`, names and positions are those
        of the columns of the matrix, as in :class:`~sk_easytensor.TableEncoder`. None chooses a
        block for each column by its type.
    loss : str, Loss, torch.nn.Module or callable, default="log_loss"
        Loss that training minimizes: ``"log_loss"``, ``"focal"``, a loss of
        :mod:`sk_easytensor.losses` with its parameters such as ``Focal(gamma=1.0)``, or a loss of
        your own. A callable takes raw outputs and targets, and returns a loss for each row, or a
        mean, which is then computed for each row alone. Outputs and targets are log-odds and 0.0 or
        1.0, of shape (n,) for two classes and (n, n_labels) for labels; for more classes they are
        logits of shape (n, n_classes) and class indices. A callable is checked on a few rows before
        training. Boosted trees are used with ``"log_loss"`` only, because scikit-learn's trees do
        not support the other losses.
    remainder : {"auto", "drop"}, default="auto"
        Handling of columns that no block names: ``"auto"`` chooses blocks for them by type,
        ``"drop"`` leaves them out.
    categorical_features : str, int, list, slice, mask, callable or None, default=None
        Columns that are categories whatever their type, such as numbers that are labels. They are
        selected as in `blocks`, also for a sparse `X`. A :class:`~sk_easytensor.CategoryBlock`
        reads them, also with ``remainder="drop"``.
    offset : str, int or None, default=None
        Name or position of a column of `X` whose numbers are added to the raw output, the
        log-odds of the second class, in training and in prediction. The model learns the difference
        between these numbers and the log-odds. The column is not a feature unless `blocks` names
        it. It is required wherever rows are predicted, and must not have missing values. Offsets
        are for two classes only. With offsets there are no trees, because scikit-learn's trees
        start from one log-odds for all rows, and no temperature. An array can be given to `fit` as
        ``base_margin`` instead.
    monotonic_cst : dict of {str: int}, array-like of shape (n_features,) or None, default=None
        Columns of numbers along which predictions (the probability of the second class) must not
        decrease (1) or not increase (-1), by name or for all columns in order; 0 for the others.
        As in :class:`~sklearn.ensemble.HistGradientBoostingClassifier`. The network adds a
        monotonic function of each such column, times a positive factor that depends on the other
        columns, to its output, and trees have scikit-learn's constraint: predictions are monotonic
        by construction. `transform` does not use these columns. Missing values have no order.
        Constraints are for two classes only.
    trunk : MLP, TabM or None, default=None
        Network between blocks and head; None for ``TabM(members=4, width=96,
        dropout=0.0)``. ``trunk__<parameter>`` can be set in either case.
    trees : BoostedTrees, "auto" or None, default="auto"
        Boosted trees that are fitted beside the network, on the columns of the blocks for numbers,
        categories and dates. The outputs of trees and network are averaged, with weights that are
        chosen on validation rows (equal weights without any), and then divided by a temperature
        near one, which is chosen in the same way. ``"auto"`` stands for ``BoostedTrees()``, None
        for a network alone. ``trees__<parameter>`` can be set in the first two cases. No trees are
        fitted with fewer than 100 training rows, without a column that they can use, or by
        `partial_fit`.
    linear : "auto" or None, default="auto"
        ``"auto"`` fits a ridge regression beside network and trees. If validation rows can tell its
        weight, it reads n-grams of texts and sparse matrices (of 50,000 rows at most), and numbers,
        categories, dates and vectors of up to 2,500 training rows. In any case it reads the many
        features that :class:`~sk_easytensor.NumericSequenceBlock` has of each series, of 2,500 rows
        at most. Its penalty has the smallest leave-one-out loss, or that of validation rows beside
        n-grams, and in the end it is fitted on rows held out for validation as well. Its outputs
        are averaged with those of network and trees. None fits none. There is none either beside
        losses other than log loss and squared error, with an offset, with fewer than 10 training
        rows, or by `partial_fit`.
    learning_rate : float, default=2.4e-2
        Highest learning rate of the schedule.
    batch_size : int or None, default=None
        Rows of each training step; None for 32 to 4,096, by the number of rows.
    max_epochs : int or None, default=None
        Maximum number of passes over the training rows; None for 5 to 400, by the number of rows.
    optimizer : str or torch.optim.Optimizer class, default="adamw"
        Optimizer of the network: ``"adamw"``, ``"adam"``, ``"sgd"`` or a class.
        ``"adamw"`` and ``"adam"`` update embedding tables of a million entries or more by row:
        a step changes only the rows that occur in its batch. Their moments are one number a row,
        and they are not part of the average of the weights over steps.
    weight_decay : float, default=5e-2
        Weight decay of the optimizer, which is no part of the gradient for ``"adamw"``, ``"adam"``
        and other optimizers that have ``decoupled_weight_decay``.
    early_stopping_rounds : int, "auto" or None, default="auto"
        Number of epochs without a better validation loss after which training stops. Where trees or
        a linear model are averaged with the network, an epoch in which the network alone has become
        better does not count. ``"auto"`` is 4, or 6 from 20,000 training rows on, or as many epochs
        as have 64 steps if that is more. None never stops early. With validation rows, the weights
        of the best epoch are kept in any case.
    eval_metric : str, callable, list of them or None, default=None
        Metrics that are computed on validation rows after each epoch, beside the loss: names of
        scikit-learn's scorers, LightGBM's and XGBoost's names such as ``"auc"``, or functions of
        targets (numbered classes) and predictions (probabilities, of the second class if there
        are two) that return a number or, as for LightGBM, ``(name, value, greater_is_better)``.
        A higher number is better if the function's name ends in ``_score``; otherwise a lower one
        is.
    stopping_metric : str, callable or None, default=None
        The entry of `eval_metric` that decides about early stopping and the weights that are
        kept, or ``"loss"``. None for the first entry, and for the loss without any.
    validation_fraction : float or None, default=0.15
        Fraction of the rows that is held out for validation when `fit` gets no ``eval_set``; None
        to train on all rows.
    n_folds : int, "auto" or None, default="auto"
        Number of folds of cross-validation. With folds, a network and trees are trained for each
        fold, whose rows they hold out instead of `validation_fraction`, and predictions are
        averages over folds. All rows are learned from, and `oof_prediction_` predicts each by the
        models that did not. Fit and predictions take up to `n_folds` times as long. `fit` gets no
        ``eval_set`` then. None for one network. ``"auto"`` for 5 folds where one split of few rows
        would decide by chance: for 50 to 2,500 rows that `fit` would hold out a part of, in this
        process and without `warm_start`, unless all columns are time series.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes; 1 for each class if None. They multiply the sample weights of the
        rows given to `fit`, but not those of ``eval_set``.
    warm_start : bool, default=False
        Whether another `fit` resumes from the present blocks, weights and optimizer state.
    random_state : int, RandomState or None, default=None
        Seed of the initial weights, the batches and the validation split. With an int, repeated
        fits on the same machine are equal bit for bit.
    n_jobs : int or None, default=None
        Maximum number of threads: None for one (unless in a joblib context), -1 for all cores.
        Training uses fewer where batches are small.
    device : str, default="auto"
        Torch device to train on; ``"auto"`` uses CUDA if it is available, and the CPU otherwise.
    verbose : int, default=0
        1 for the phase and a progress bar of the epochs in terminals and notebooks, and elsewhere a
        line for each epoch; 2 for a line for each epoch; 0 or -1 for nothing. Whatever it is, the
        logger ``sk_easytensor`` says, at level ``INFO``, what was decided: blocks and their
        columns, rows held out, the best epoch, weights of trees and linear model.
    callbacks : list of skorch callbacks or None, default=None
        Callbacks that are called during training. They can monitor ``train_loss`` and
        ``valid_loss``, which are losses of the network alone on standardised targets. An
        ``LRScheduler`` replaces the schedule of the learning rate, a callback with
        ``load_best=True`` the choice of weights, and an ``EarlyStopping`` the automatic
        `early_stopping_rounds`. ``EpochScoring`` gets encoded targets.
    backend : "local", "ray" or Backend, default="local"
        Where blocks are fitted, rows encoded and predicted, and the network trained: in this
        process, on a Ray cluster, or by a :class:`~sk_easytensor.backends.Backend`.
    checkpoint_dir : str, path-like or None, default=None
        Directory, or URL that fsspec supports such as ``s3://bucket/fits``. After each epoch, and
        every ten minutes within one, the whole state of the training is written to a subdirectory,
        whose name is a digest of parameters and data, so that each fit of a search has its own. The
        same `fit`, run again after an interruption, resumes from there; a second one at the same
        time raises an error. Files of other names are neither read nor removed. See the user guide,
        "Interrupted fits".
    tracker : "mlflow", MLflowTracker or None, default=None
        Tracker that records each `fit` as a run in MLflow; None to record nothing. See the user
        guide, "Tracking runs with MLflow". Saved models hold neither `tracker` nor
        `checkpoint_dir`.
    inference_engine : {"torch", "auto", "onnxruntime", "tensorrt"}, default="torch"
        Engine that runs the network when the fitted model predicts or transforms; blocks encode
        rows in the same way with any engine. With ``"auto"``, `fit` ends by exporting the network,
        which takes seconds, and chooses the fastest engine available on this machine whose outputs
        agree with torch's on rows of the `eval_set` that decides, or of `X`, to 1e-5 and 1e-4 of
        their size. An engine by name is used if it agrees. If none does, torch is used and a
        warning states the difference. ``"torch"`` is the default because an export would slow down
        quick fits, and because the fastest engine depends on more than the data: between two fits
        with ``"auto"``, predictions may differ in the last digits. `partial_fit` resets the engine
        to torch.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels, of the type of the target: integers and booleans keep their type, also those
        of nullable, Arrow and categorical types. For multilabel targets ``arange(n_labels)``.
    n_classes_ : int
        Number of classes, or of labels.
    n_features_in_ : int
        Number of columns of `X` in `fit`.
    feature_names_in_ : ndarray of str
        Names of the columns of `X` in `fit`, if it had names.
    blocks_ : dict of {str: Block}
        Fitted blocks by name, including those chosen automatically.
    network_ : torch.nn.Module
        The trained network, on the CPU; with `n_folds` the ensemble of the networks of all folds.
    evals_result_ : dict of {str: dict of {str: list of float}}
        Losses and metrics by epoch, of network and trees together, means over folds:
        ``{"training": {"log_loss": [...]}, "valid_0": {"log_loss": [...], "auc": [...]}}``. The
        training loss is the mean over an epoch's batches, of the network alone and with dropout,
        unless the training data are in ``eval_set``.
    best_iteration_ : int
        Epoch, counted from 1, whose weights are kept; with folds their rounded mean.
    best_score_ : float
        Value in `evals_result_`, at `best_iteration_`, of the validation loss or of the metric that
        decides; with folds the mean of the values at the best epoch of each.
    tree_weight_, linear_weight_ : float
        Weights of the outputs of the trees and of the linear model, between 0 and 1; the network's
        weight is ``1 - tree_weight_ - linear_weight_``. 0 without such a model.
    n_iter_ : int
        Number of epochs run; the largest of all folds.
    oof_prediction_ : ndarray of float64, shape (n_samples, n_classes)
        With `n_folds`, probabilities of each row of `X` by the models of the fold that held it out,
        as `predict_proba` returns them; NaN for rows of weight zero. Not available if rows are in
        other processes, as on Ray.
    run_id_ : str or None
        With a `tracker`, identifier of the run in MLflow; None if it could not be created.
    feature_importances_ : ndarray of shape (n_features,)
        Permutation importance of each column, scaled to sum to 1; 0 within one standard error.
    importances_std_ : ndarray of shape (n_features,)
        Standard error of each importance.
    inference_engine_ : str
        Engine that runs the network: ``"torch"``, ``"onnxruntime"`` or ``"tensorrt"``.
    inference_report_ : dict
        Comparison of the engines, unless `inference_engine` is ``"torch"``. ``"rows"`` is the
        number of rows that they were compared on, ``"relative"`` and ``"absolute"`` are the
        tolerances. ``"engines"`` has, for each engine, ``"seconds"`` for these rows, ``"speed_up"``
        over torch and ``"difference"``, the largest of any output; or the reason why it is
        ``"unavailable"`` or ``"failed"``.
    fit_times_ : dict
        Durations in seconds: of fitting ``"blocks"``, of ``"encoding"``, ``"training"``,
        ``"trees"`` and the ``"linear"`` model, of choosing an ``"engine"``, and ``"epochs"``, a
        list with that of each epoch.

    See Also
    --------
    EasyTensorRegressor : Regressor with the same parameters.
    TableEncoder : The preprocessing alone.

    Examples
    --------
    >>> from sk_easytensor import EasyTensorClassifier
    >>> X = {"age": [20, 25, 60, 65] * 10, "city": ["Oslo", "Lima", "Lima", None] * 10}
    >>> y = ["young", "young", "old", "old"] * 10
    >>> model = EasyTensorClassifier(random_state=0).fit(X, y)
    >>> model.predict({"age": [22, 63], "city": ["Rome", "Oslo"]})
    array(['young', 'old'], dtype='<U5')
    """

    _export_adapter = ClassifierAdapter

    def __init__(
        self,
        blocks: Sequence[BlockSpec] | None = None,
        *,
        loss: LossLike = "log_loss",
        remainder: Literal["auto", "drop"] = "auto",
        categorical_features: ColumnSelection | None = None,
        offset: str | int | None = None,
        monotonic_cst: MonotonicConstraints | None = None,
        trunk: Trunk | None = None,
        trees: BoostedTrees | Literal["auto"] | None = "auto",
        linear: Literal["auto"] | None = "auto",
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
        class_weight: dict[Any, float] | Literal["balanced"] | None = None,
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
        super().__init__(
            blocks,
            remainder=remainder,
            categorical_features=categorical_features,
            offset=offset,
            monotonic_cst=monotonic_cst,
            trunk=trunk,
            trees=trees,
            linear=linear,
            learning_rate=learning_rate,
            batch_size=batch_size,
            max_epochs=max_epochs,
            optimizer=optimizer,
            weight_decay=weight_decay,
            early_stopping_rounds=early_stopping_rounds,
            eval_metric=eval_metric,
            stopping_metric=stopping_metric,
            validation_fraction=validation_fraction,
            n_folds=n_folds,
            warm_start=warm_start,
            random_state=random_state,
            n_jobs=n_jobs,
            device=device,
            verbose=verbose,
            callbacks=callbacks,
            backend=backend,
            checkpoint_dir=checkpoint_dir,
            tracker=tracker,
            inference_engine=inference_engine,
        )
        self.loss = loss
        self.class_weight = class_weight

    def partial_fit(
        self,
        X: TableLike,
        y: TargetLike,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | str | None = None,
        *,
        base_margin: ArrayLike | None = None,
    ) -> Self:
        """Train for one epoch on these rows.

        Parameters
        ----------
        X : table-like of shape (n_samples, n_features)
            Rows of this call. The blocks are fitted on those of the first call.
        y : array-like of shape (n_samples,) or (n_samples, n_labels)
            Class of each row.
        classes : array-like of shape (n_classes,), optional
            All classes that occur in any call; required in the first call if its rows lack some.
        sample_weight : array-like of shape (n_samples,), optional
            Row weights.
        base_margin : array-like of shape (n_samples,), optional
            Offsets of the rows, as in `fit`. They must be given in all calls or in none.

        Returns
        -------
        self : object
            The fitted estimator.
        """
        return self._partial_fit(X, y, sample_weight, base_margin, classes=classes)

    @with_library_settings
    @of_stored_rows(Values("probability"), check="_read")
    def predict_proba(self, X: TableLike, base_margin: ArrayLike | None = None) -> Predictions:
        """Return class probabilities.

        Parameters
        ----------
        X : table-like of shape (n_samples, n_features)
            Rows to classify.
        base_margin : array-like of shape (n_samples,) or number, optional
            Offsets of the rows, if `fit` was given ``base_margin``.

        Returns
        -------
        ndarray of float64, shape (n_samples, n_classes)
            Probabilities, in the order of ``classes_``. For multilabel targets the probability of
            each label.
        """
        outputs = self._raw_predict(X, base_margin)
        return self._target.predict_proba(outputs)

    @with_library_settings
    @of_stored_rows(Values("log_probability"), check="_read")
    def predict_log_proba(self, X: TableLike, base_margin: ArrayLike | None = None) -> Predictions:
        """Return logarithms of class probabilities.

        These are finite even where :meth:`predict_proba` rounds to 0.

        Parameters
        ----------
        X : table-like of shape (n_samples, n_features)
            Rows to classify.
        base_margin : array-like of shape (n_samples,) or number, optional
            Offsets of the rows, if `fit` was given ``base_margin``.

        Returns
        -------
        ndarray of float64, shape (n_samples, n_classes)
            Logarithms of probabilities, in the order of ``classes_``. For multilabel targets those
            of the probability of each label.
        """
        outputs = self._raw_predict(X, base_margin)
        return self._target.predict_log_proba(outputs)

    @with_library_settings
    @of_stored_rows(Values("decision"), check="_read")
    def decision_function(self, X: TableLike, base_margin: ArrayLike | None = None) -> Predictions:
        """Return log-odds (two classes, multilabel) or log-probabilities (more classes).

        Parameters
        ----------
        X : table-like of shape (n_samples, n_features)
            Rows to classify.
        base_margin : array-like of shape (n_samples,) or number, optional
            Offsets of the rows, if `fit` was given ``base_margin``.

        Returns
        -------
        ndarray of float32, shape (n_samples,) or (n_samples, n_classes)
            Log-odds of the second class, or a column for each class or label.
        """
        outputs = self._raw_predict(X, base_margin)
        return self._target.decision_function(outputs)

    @with_library_settings
    @of_stored_rows(Values("prediction"), check="_read")
    def predict(self, X: TableLike, base_margin: ArrayLike | None = None) -> Predictions:
        """Return the most probable class of each row.

        Parameters
        ----------
        X : table-like of shape (n_samples, n_features)
            Rows to classify.
        base_margin : array-like of shape (n_samples,) or number, optional
            Offsets of the rows, if `fit` was given ``base_margin``.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_labels)
            Labels of ``classes_``. For multilabel targets 1 for each label that is more probable
            than not, and 0 for the others.
        """
        outputs = self._raw_predict(X, base_margin)
        return self._target.predict(outputs)

    @property
    def n_classes_(self) -> int:
        """Number of classes, or of labels."""
        return len(self.classes_)

    def _structure(self):
        return {**super()._structure(), "loss": describe_loss(self.loss)}

    def _make_target(self, classes=None):
        owner = type(self).__name__
        loss = resolve_loss(self.loss, owner, "classifier")
        return ClassificationTarget(loss, self.class_weight, classes, owner)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
