"""Losses of regressors and classifiers: the base class, and the built-in losses.

A new loss is one subclass of :class:`Loss`. An estimator accepts it as ``loss=``, and likewise a
``torch.nn.Module`` or another callable on raw outputs and targets. A
built-in loss also has an entry in ``BUILT_IN``.
"""

from __future__ import annotations

import math
from copy import copy, deepcopy
from functools import partial
from itertools import pairwise
from numbers import Real

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import nn
from torch.nn import functional

from sk_easytensor._utils.digests import describe_object
from sk_easytensor._utils.validation import check_number, shortened

__all__ = [
    "AbsoluteError",
    "Expectile",
    "Focal",
    "Gamma",
    "Huber",
    "LogLoss",
    "Loss",
    "Poisson",
    "Quantile",
    "SquaredError",
    "Tweedie",
]


class LossError(ValueError):
    """Raised for a loss that returns anything but a loss for each row."""


class Loss(BaseEstimator):
    """Base class of losses; a subclass only needs the method :meth:`loss`.

    Parameters of a subclass are those of its ``__init__``, as in scikit-learn: they can be searched
    as ``loss__<parameter>``.

    Attributes
    ----------
    name : str, default="loss"
        Name of the loss in ``evals_result_``.
    estimator_types : tuple of str, default=("regressor", "classifier")
        Kinds of estimators that can use the loss.
    link : {"identity", "log"}, default="identity"
        For regressors: whether raw outputs are predictions or their logarithms. Classifiers
        predict through a sigmoid, or through a softmax for three classes or more.
    n_predictions : int, default=1
        Raw outputs for each row of a regressor whose `y` has one column. `predict` returns as many
        columns.
    standardized : bool, default=False
        For regressors. If False, :meth:`loss` receives outputs and targets in units of `y`. If
        True, it receives them divided by the scale of the training targets, with their mean
        subtracted if the link is the identity, and :meth:`in_units` converts its values. In either
        case the network itself is trained on the standardized scale, where an output of 0, the
        initial level, predicts the mean of `y`. Built-in losses of regressors are standardized.
    tree_loss : str or None, default=None
        ``loss`` of scikit-learn's ``HistGradientBoostingRegressor`` with which boosted trees are
        fitted: ``"squared_error"``, ``"absolute_error"`` or ``"quantile"``, with the link ``"log"``
        ``"poisson"`` or ``"gamma"``; for classifiers ``"log_loss"``. With None there are no trees.

    Examples
    --------
    A loss by which a prediction that is too low costs several times as much as one that is too
    high:

    >>> import numpy as np
    >>> from sk_easytensor import EasyTensorRegressor
    >>> from sk_easytensor.losses import Loss
    >>> class Asymmetric(Loss):
    ...     name = "asymmetric"
    ...     estimator_types = ("regressor",)
    ...
    ...     def __init__(self, factor=3.0):
    ...         self.factor = factor
    ...
    ...     def loss(self, outputs, targets):
    ...         error = targets - outputs
    ...         return error.abs() * (1 + (self.factor - 1) * (error > 0))
    >>> X = np.linspace(0, 1, 200)[:, None]
    >>> model = EasyTensorRegressor(loss=Asymmetric(4.0), random_state=0).fit(X, X[:, 0])
    >>> list(model.evals_result_["valid_0"])
    ['asymmetric']
    """

    name = "loss"
    estimator_types = ("regressor", "classifier")
    link = "identity"
    n_predictions = 1
    standardized = False
    tree_loss = None

    def loss(self, outputs, targets):
        """Return the loss of each row.

        Parameters
        ----------
        outputs : torch.Tensor of shape (n,) or (n, n_outputs)
            Raw outputs. For regressors they have shape (n,), (n, n_targets) if `y` has several
            columns, or (n, n_predictions). For classifiers they are log-odds of shape (n,) for two
            classes, logits of shape (n, n_classes) for more, or log-odds of shape (n, n_labels) for
            several labels.
        targets : torch.Tensor of shape (n,) or (n, n_targets)
            Targets of a regressor as floats. For classifiers 0.0 and 1.0 for two classes or for
            labels, and class indices of dtype int64 for three classes or more.

        Returns
        -------
        torch.Tensor of shape (n,), or of shape (n, n_targets), which is averaged
            Losses, which are differentiable with respect to `outputs`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method loss")

    def check_parameters(self, owner):
        """Check the parameters of the loss; by default all are valid.

        Parameters
        ----------
        owner : str
            Class name of the estimator, used in error messages.

        Raises
        ------
        ValueError
            If a parameter is not valid.
        """

    def check_target(self, y):
        """Check targets of training or validation rows; by default all are valid.

        Parameters
        ----------
        y : ndarray
            Finite numbers of dtype float64, of shape (n_samples,) or (n_samples, n_targets), or
            class labels.

        Raises
        ------
        ValueError
            If the loss is not defined for a target.
        """

    def check_range(self, low, high, names):
        """Check the range of the training targets; by default all are valid.

        Parameters
        ----------
        low, high : ndarray of float64, shape (n_targets,)
            Minimum and maximum of each column, in rows of positive weight.
        names : list of str
            Name of each column in error messages.

        Raises
        ------
        ValueError
            If nothing can be learned from a column.
        """

    def check_classes(self, kind, n_classes):
        """Check the classes of a classifier; by default all are valid.

        Parameters
        ----------
        kind : {"binary", "multiclass", "multilabel"}
            Kind of the target of a classifier.
        n_classes : int
            Number of classes, or of labels.

        Raises
        ------
        ValueError
            If parameters of the loss do not fit the classes.
        """

    def in_units(self, losses, targets, scale):
        """Return losses of standardized targets in units of `y`.

        Parameters
        ----------
        losses : torch.Tensor of float64, or float
            Losses that :meth:`loss` returned for standardized outputs and targets.
        targets : torch.Tensor of float64, or float
            Standardized targets.
        scale : torch.Tensor of float64, or float
            Scale by which targets were divided.

        Returns
        -------
        torch.Tensor of float64, or float
        """
        raise NotImplementedError(f"{type(self).__name__} has no method in_units")

    def normalize(self, outputs):
        """Convert outputs to a valid form, such as increasing order; by default unchanged.

        Parameters
        ----------
        outputs : torch.Tensor of shape (..., n_outputs)
            Means over members, or over network and trees.

        Returns
        -------
        torch.Tensor of shape (..., n_outputs)
        """
        return outputs

    def tree_parameters(self):
        """Return parameters of ``HistGradientBoostingRegressor``, one dict for each raw output."""
        return [{"loss": self.tree_loss}] * self.n_predictions

    def without_offset(self, targets, weights, offsets):
        """Return targets and weights for which trees without offsets have the same loss.

        Parameters
        ----------
        targets : torch.Tensor of shape (n, 1)
            Standardized targets.
        weights : torch.Tensor of shape (n,)
            Row weights.
        offsets : torch.Tensor of shape (n, 1)
            Offsets on the scale of the outputs.

        Returns
        -------
        targets : torch.Tensor of shape (n, 1)
        weights : torch.Tensor of shape (n,)
        """
        return targets - offsets, weights

    def likelihood(self, mean_loss):
        """Return the mean negative log-likelihood of a row, by which trees are weighted.

        Parameters
        ----------
        mean_loss : float
            Mean of :meth:`loss`.

        Returns
        -------
        float
        """
        return mean_loss


# ---------------------------------------------------------------------- regression


class SquaredError(Loss):
    """Squared error, whose minimizer is the conditional mean."""

    name = tree_loss = "squared_error"
    estimator_types = ("regressor",)
    standardized = True

    def loss(self, outputs, targets):
        return (outputs - targets) ** 2

    def in_units(self, losses, targets, scale):
        return scale**2 * losses

    def likelihood(self, mean_loss):
        # The likelihood of normal errors, with the most likely standard deviation.
        return 0.5 * math.log(max(mean_loss, 1e-300))


class AbsoluteError(Loss):
    """Absolute error, whose minimizer is the conditional median."""

    name = tree_loss = "absolute_error"
    estimator_types = ("regressor",)
    standardized = True

    def loss(self, outputs, targets):
        return (outputs - targets).abs()

    def in_units(self, losses, targets, scale):
        return scale * losses

    def likelihood(self, mean_loss):
        # The likelihood of Laplace errors, with the most likely scale.
        return math.log(max(mean_loss, 1e-300))


class Huber(AbsoluteError):
    """Squared error up to one standard deviation of the target, and absolute error beyond.

    Trees do not have this loss and are fitted with absolute error, the nearest to it.
    """

    name = "huber"

    def loss(self, outputs, targets):
        return functional.huber_loss(outputs, targets, reduction="none")

    def in_units(self, losses, targets, scale):
        return scale**2 * losses


class Quantile(AbsoluteError):
    """Pinball loss of one quantile or several.

    Parameters
    ----------
    quantile : float or list of float, default=0.5
        Quantile between 0 and 1, or an increasing list of them. For a list, `predict` returns a
        column for each quantile, and predictions never cross: they are sorted in each row, which
        does not increase the loss (Chernozhukov, Fernández-Val and Galichon, "Quantile and
        Probability Curves Without Crossing", 2010). Averages of network and trees are sorted as
        well.
    """

    name = tree_loss = "quantile"

    def __init__(self, quantile=0.5):
        self.quantile = quantile

    @property
    def _several(self):
        return isinstance(self.quantile, (list, tuple, np.ndarray))

    @property
    def n_predictions(self):
        """Number of quantiles."""
        return len(self.quantile) if self._several else 1

    def check_parameters(self, owner):
        values = list(self.quantile) if self._several else [self.quantile]
        for value in values:
            check_number(owner, "quantile", value, low=0, high=1, exclusive=True)
        if not values or any(lower >= upper for lower, upper in pairwise(values)):
            raise ValueError(
                f"{owner}: quantile must be a number or a list of increasing numbers between 0 and "
                f"1, got {shortened(self.quantile)}"
            )

    def loss(self, outputs, targets):
        if not self._several:
            return pinball(self.quantile, targets - outputs)
        levels = torch.tensor(self.quantile, dtype=outputs.dtype, device=outputs.device)
        if outputs.ndim == 1:
            return pinball(levels, targets - outputs)
        return pinball(levels, targets[:, None] - outputs).mean(-1)

    def normalize(self, outputs):
        return outputs if self.n_predictions == 1 else outputs.sort(-1).values

    def tree_parameters(self):
        values = self.quantile if self._several else [self.quantile]
        return [{"loss": "quantile", "quantile": float(value)} for value in values]


def pinball(quantile, error):
    """Return the pinball loss of targets minus outputs."""
    return torch.maximum(quantile * error, (quantile - 1) * error)


class Expectile(SquaredError):
    """Asymmetric squared error, whose minimizer is an expectile (Newey and Powell, 1987).

    Parameters
    ----------
    expectile : float, default=0.5
        Weight between 0 and 1 of squared errors of targets above the prediction. The weight of
        those below is ``1 - expectile``. With 0.5 the loss is half the squared error, and only then
        are there trees, because those of scikit-learn do not have this loss.
    """

    name = "expectile"

    def __init__(self, expectile=0.5):
        self.expectile = expectile

    @property
    def tree_loss(self):
        """Squared error if `expectile` is 0.5, otherwise None."""
        return "squared_error" if self.expectile == 0.5 else None

    def check_parameters(self, owner):
        check_number(owner, "expectile", self.expectile, low=0, high=1, exclusive=True)

    def loss(self, outputs, targets):
        error = targets - outputs
        return torch.where(error > 0, self.expectile, 1 - self.expectile) * error**2


class _LogLinkLoss(Loss):
    """Base class of losses of non-negative numbers, predicted by the exponential of outputs."""

    estimator_types = ("regressor",)
    link = "log"
    standardized = True

    def check_target(self, y):
        if (y < 0).any():
            raise ValueError(f"loss={self.name!r} needs y >= 0, got {y.min()}")

    def check_range(self, low, high, names):
        for index in np.flatnonzero(high == 0):
            raise ValueError(
                f"loss={self.name!r} needs at least one value above 0, and {names[index]} (where "
                "sample_weight is positive) has only 0"
            )


class Poisson(_LogLinkLoss):
    """Half the Poisson deviance, without the term that depends only on the target."""

    name = tree_loss = "poisson"

    def loss(self, outputs, targets):
        return torch.exp(outputs) - targets * outputs

    def in_units(self, losses, targets, scale):
        logs = torch.log(scale) if isinstance(scale, torch.Tensor) else math.log(scale)
        return scale * losses - scale * logs * targets

    def without_offset(self, targets, weights, offsets):
        # Rates are weighted by their exposures.
        factor = torch.exp(offsets)
        return targets / factor, weights * factor[:, 0]


class Gamma(_LogLinkLoss):
    """Half the gamma deviance, without the term that depends only on the target."""

    name = tree_loss = "gamma"

    def check_target(self, y):
        if (y <= 0).any():
            raise ValueError(f"loss='gamma' needs y > 0, got {y.min()}")

    def loss(self, outputs, targets):
        return outputs + targets * torch.exp(-outputs)

    def in_units(self, losses, targets, scale):
        logs = torch.log(scale) if isinstance(scale, torch.Tensor) else math.log(scale)
        return losses + logs

    def without_offset(self, targets, weights, offsets):
        # The spread of a target grows with its exposure, so that all rates have equal weight.
        return targets / torch.exp(offsets), weights


class Tweedie(_LogLinkLoss):
    """Half the Tweedie deviance, without the term that depends only on the target.

    It is for targets that are 0 in many rows and positive in the others, such as claims.

    Parameters
    ----------
    power : float, default=1.5
        Power of the mean to which the variance is proportional, between 1 (Poisson) and 2 (gamma);
        ``tweedie_variance_power`` in LightGBM.

    Notes
    -----
    Boosted trees are fitted with the Poisson loss, the nearest one of scikit-learn, which has the
    same minimizer, the conditional mean.
    """

    name = "tweedie"
    tree_loss = "poisson"

    def __init__(self, power=1.5):
        self.power = power

    def check_parameters(self, owner):
        check_number(owner, "power", self.power, low=1, high=2, exclusive=True)

    def loss(self, outputs, targets):
        lower, higher = 1 - self.power, 2 - self.power
        mean = torch.exp(higher * outputs) / higher
        return mean - targets * torch.exp(lower * outputs) / lower

    def in_units(self, losses, targets, scale):
        return scale ** (2 - self.power) * losses

    def without_offset(self, targets, weights, offsets):
        weights = weights * torch.exp((2 - self.power) * offsets[:, 0])
        return targets / torch.exp(offsets), weights


# ---------------------------------------------------------------------- classification


class LogLoss(Loss):
    """Logistic loss, also called cross-entropy. For several labels, it is the mean over labels."""

    name = tree_loss = "log_loss"
    estimator_types = ("classifier",)

    def loss(self, outputs, targets):
        if targets.dtype == torch.int64:
            return functional.cross_entropy(outputs, targets, reduction="none")
        return functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")


class Focal(Loss):
    """Focal loss of Lin, Goyal, Girshick, He and Dollár (2017), for rare classes.

    It is ``-alpha * (1 - p)**gamma * log(p)``, where `p` is the probability of the class of the
    row. Rows with large `p` have less weight, so that probabilities are drawn towards the middle:
    they are not calibrated. Boosted trees do not have this loss, so that there are none.

    Parameters
    ----------
    gamma : float, default=2.0
        Exponent, at least 0, by which rows with large `p` have less weight. With 0 the loss is log
        loss.
    alpha : float, list of float or None, default=None
        Weights of the classes. For two classes, or for labels, it is the weight of the second
        class, or of labels that are present, between 0 and 1; the other class has ``1 - alpha``.
        For three classes or more it is a list with a weight for each, in the order of ``classes_``.
        None stands for a weight of 1.
    """

    name = "focal"
    estimator_types = ("classifier",)

    def __init__(self, gamma=2.0, alpha=None):
        self.gamma = gamma
        self.alpha = alpha

    def check_parameters(self, owner):
        check_number(owner, "gamma", self.gamma, low=0)
        if isinstance(self.alpha, (list, tuple, np.ndarray)):
            for index, value in enumerate(self.alpha):
                check_number(owner, f"alpha[{index}]", value, low=0)
        elif self.alpha is not None:
            check_number(owner, "alpha", self.alpha, low=0, high=1)

    def check_classes(self, kind, n_classes):
        if self.alpha is None:
            return
        if kind == "multiclass":
            if isinstance(self.alpha, Real) or len(self.alpha) != n_classes:
                raise ValueError(
                    f"Focal: alpha must be a list of {n_classes} numbers, a weight for each class, "
                    f"got {shortened(self.alpha)}"
                )
        elif not isinstance(self.alpha, Real):
            raise ValueError(
                f"Focal: alpha must be a number for a {kind} target, got {shortened(self.alpha)}"
            )

    def loss(self, outputs, targets):
        if targets.dtype != torch.int64:
            sign = 2 * targets - 1
            log_p = functional.logsigmoid(sign * outputs)
            losses = -torch.exp(self.gamma * functional.logsigmoid(-sign * outputs)) * log_p
            if self.alpha is None:
                return losses
            return torch.where(targets > 0.5, self.alpha, 1 - self.alpha) * losses
        log_p = functional.log_softmax(outputs, -1).gather(-1, targets[:, None])[:, 0]
        # The gradient of a power below 1 is infinite at 0.
        others = (-torch.expm1(log_p)).clamp_min(torch.finfo(outputs.dtype).tiny)
        losses = -(others**self.gamma) * log_p
        if self.alpha is None:
            return losses
        return torch.tensor(self.alpha, dtype=losses.dtype, device=losses.device)[targets] * losses


# ---------------------------------------------------------------------- the parameter loss


BUILT_IN = {
    kind.name: kind
    for kind in (
        SquaredError,
        AbsoluteError,
        Huber,
        Quantile,
        Expectile,
        Poisson,
        Gamma,
        Tweedie,
        LogLoss,
        Focal,
    )
}
"""Built-in losses by name."""

TREE_LOSSES = {
    ("regressor", "identity"): ("squared_error", "absolute_error", "quantile"),
    ("regressor", "log"): ("poisson", "gamma"),
    ("classifier", "identity"): ("log_loss",),
    ("classifier", "log"): ("log_loss",),
}
"""What boosted trees can be grown with, by kind of estimator and link, so that what they predict is
on the scale of the raw outputs."""


def loss_names(estimator_type):
    """Return the names of the built-in losses of a kind of estimators."""
    return [name for name, kind in BUILT_IN.items() if estimator_type in kind.estimator_types]


class CallableLoss(Loss):
    """A loss that is a ``torch.nn.Module`` or another callable.

    Parameters
    ----------
    function : callable
        Function of outputs and targets, in the form of :meth:`Loss.loss`, that returns the losses
        of the rows or their mean.
    """

    def __init__(self, function):
        self.function = function

    @property
    def name(self):
        """Name of the function or of the class of the callable."""
        function = self.function
        while isinstance(function, partial):
            function = function.func
        name = getattr(function, "__name__", type(function).__name__)
        return name if name.isidentifier() else "loss"

    def loss(self, outputs, targets):
        if isinstance(self.function, nn.Module):
            self.function.to(outputs.device)
        return self.function(outputs, targets)

    def __getstate__(self):
        """Return the state, with a module moved to the CPU."""
        state = dict(super().__getstate__())
        if isinstance(self.function, nn.Module):
            state["function"] = deepcopy(self.function).cpu()
        return state


def resolve_loss(loss, owner, estimator_type, **parameters):
    """Return the loss that the parameter ``loss`` of an estimator stands for.

    Parameters
    ----------
    loss : str, Loss, torch.nn.Module or callable
        Value of the parameter.
    owner : str
        Class name of the estimator, used in error messages.
    estimator_type : {"regressor", "classifier"}
        Kind of the estimator.
    **parameters
        Parameters of a loss that is given by its name.

    Returns
    -------
    Loss
        A copy of a loss, so that the estimator's parameters do not share it.

    Raises
    ------
    ValueError
        If `loss` is not a loss, is not for this kind of estimators, or has invalid parameters.
    """
    names = loss_names(estimator_type)
    if isinstance(loss, str) and loss in names:
        resolved = BUILT_IN[loss](**parameters)
    elif isinstance(loss, Loss):
        resolved = deepcopy(loss)
        if isinstance(resolved.estimator_types, str):
            raise ValueError(
                f"{owner}: {type(loss).__name__}.estimator_types must be a tuple, such as "
                f"({resolved.estimator_types!r},), got {shortened(resolved.estimator_types)}"
            )
        if estimator_type not in resolved.estimator_types:
            raise ValueError(
                f"{owner}: loss={shortened(loss)} is for a "
                f"{' or '.join(resolved.estimator_types)}; use one of {names}"
            )
        if resolved.link not in ("identity", "log"):
            raise ValueError(
                f"{owner}: {type(loss).__name__}.link must be 'identity' or 'log', got "
                f"{shortened(resolved.link)}"
            )
        if resolved.standardized and type(resolved).in_units is Loss.in_units:
            raise ValueError(
                f"{owner}: {type(loss).__name__} is standardized, which needs a method in_units; "
                "define it or leave standardized at False"
            )
        if type(resolved).loss is Loss.loss:
            raise ValueError(
                f"{owner}: {type(loss).__name__} has no method loss(outputs, targets), which "
                "returns the loss of each row"
            )
        _check_tree_loss(resolved, owner, estimator_type)
    elif callable(loss) and not isinstance(loss, type):
        resolved = CallableLoss(without_reduction(loss) if isinstance(loss, nn.Module) else loss)
    else:
        hint = f"; create an instance, {loss.__name__}()" if isinstance(loss, type) else ""
        raise ValueError(
            f"{owner}: loss must be one of {names}, a Loss of sk_easytensor.losses, a "
            f"torch.nn.Module or a callable on outputs and targets, got {shortened(loss)}{hint}"
        )
    resolved.check_parameters(owner)
    return resolved


def _check_tree_loss(loss, owner, estimator_type):
    """Raise ``ValueError`` for a loss of trees whose predictions are not raw outputs."""
    known = TREE_LOSSES[estimator_type, loss.link]
    if loss.tree_loss is not None and loss.tree_loss not in known:
        link = f" with link={loss.link!r}" if estimator_type == "regressor" else ""
        raise ValueError(
            f"{owner}: {type(loss).__name__}.tree_loss must be one of {list(known)}{link}, or None "
            f"for no trees, got {shortened(loss.tree_loss)}"
        )


def without_reduction(module):
    """Return a copy of a module that returns a loss for each row if it is a loss of torch."""
    copied = deepcopy(module)
    if isinstance(copied, nn.modules.loss._Loss):
        # A mean with weights of classes is not the mean of the losses of single rows.
        copied.reduction = "none"
    return copied


def with_checked_mean(loss):
    """Return a copy of a loss that checks a mean against the losses of single rows.

    Parameters
    ----------
    loss : Loss
        Loss of a user.

    Returns
    -------
    Loss
        Copy whose method ``loss`` raises :class:`LossError` if the value for all rows is neither
        the mean nor the sum of the values for single rows. This is the case for a correlation.
    """

    def checked(outputs, targets):
        result = loss.loss(outputs, targets)
        if len(outputs) > 1 and isinstance(result, torch.Tensor) and result.ndim == 0:
            rows = row_losses(loss, outputs, targets).detach()
            errors = [(result - rows.mean()).abs(), (result - rows.sum()).abs() / rows.numel()]
            tolerance = 0.01 * rows.abs().mean()
            if result.isfinite() and not any(error <= tolerance for error in errors):
                raise LossError(
                    f"loss {loss.name!r} is {result.item():.4g} for {len(outputs)} rows, which is "
                    f"not the mean of the losses of single rows, {rows.mean().item():.4g}; return "
                    "one loss for each row"
                )
        return result

    other = copy(loss)
    other.loss = checked
    return other


def describe_loss(loss):
    """Return a string that identifies a loss, and is the same in all processes."""
    return repr(loss) if isinstance(loss, (str, Loss)) else describe_object(loss)


def row_losses(loss, outputs, targets):
    """Return the losses of single rows, also if the loss returns a mean over rows.

    Parameters
    ----------
    loss : Loss
        Loss to evaluate.
    outputs, targets : torch.Tensor
        Parameters of :meth:`Loss.loss`.

    Returns
    -------
    torch.Tensor of shape (n,) or (n, n_targets)

    Raises
    ------
    LossError
        If the result is not a tensor of floats, or has another shape.
    """

    def checked(result, shape):
        is_tensor = isinstance(result, torch.Tensor)
        if not is_tensor or not result.is_floating_point():
            kind = f"a tensor of {result.dtype}" if is_tensor else f"a {type(result).__name__}"
            raise LossError(
                f"loss {loss.name!r} returns {kind}; it must return a torch.Tensor of floating "
                "point numbers"
            )
        if tuple(result.shape) not in {(), shape[:1], shape}:
            raise LossError(
                f"loss {loss.name!r} returns a tensor of shape {tuple(result.shape)} for "
                f"{shape[0]} rows; it must return one loss for each row, of shape ({shape[0]},), "
                "or their mean"
            )
        return result

    shape = tuple(targets.shape)
    losses = checked(loss.loss(outputs, targets), shape)
    if losses.ndim > 0:
        return losses
    # The mean is replaced by the losses of single rows, because rows have weights.
    of_single_rows = torch.func.vmap(lambda output, target: loss.loss(output[None], target[None]))
    return checked(of_single_rows(outputs, targets), shape)
