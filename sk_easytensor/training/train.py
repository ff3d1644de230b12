"""Training of a network: the settings, their defaults, and the function that trains."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from inspect import signature
from itertools import zip_longest
from time import perf_counter

import numpy as np
import torch
from skorch.callbacks import (
    Callback,
    EarlyStopping,
    EpochScoring,
    EpochTimer,
    LRScheduler,
    PassthroughScoring,
)

from sk_easytensor.networks.block_module import learning_rates
from sk_easytensor.networks.linear import LinearModule
from sk_easytensor.training.blend import MIN_TREE_ROWS, fit_trees
from sk_easytensor.training.descriptions import describe_data
from sk_easytensor.training.distributed import SingleProcess
from sk_easytensor.training.evaluation import EvalPlan
from sk_easytensor.training.net import BestEpoch, StepSchedule, TensorNet
from sk_easytensor.training.progress import progress_callbacks, show_phase
from sk_easytensor.training.ridge import fit_linear, linear_blocks, reduced_epochs

__all__ = [
    "TrainingResult",
    "TrainingSettings",
    "check_callbacks",
    "default_batch_size",
    "default_max_epochs",
    "default_patience",
    "default_table_epochs",
    "default_table_patience",
    "has_scheduler",
    "join_results",
    "ranking_patience",
    "resolve_device",
    "resolve_optimizer",
    "train_network",
]


LONG_PATIENCE_ROWS = 20_000
"""Number of training rows from which on early stopping waits longer."""


@dataclass
class TrainingSettings:
    """Settings of a training; most names are those of the estimators' parameters.

    Attributes
    ----------
    learning_rate : float
        Full learning rate.
    batch_size : int
        Number of rows of a step, of all workers together.
    max_epochs : int
        Largest number of epochs.
    optimizer : type
        Class of the optimizer, a subclass of :class:`torch.optim.Optimizer`.
    weight_decay : float
        Weight decay of the optimizer, if it has one.
    early_stopping_rounds : int or None
        Number of epochs without a better value after which training ends; None for no early
        stopping.
    automatic_epochs : bool, default=False
        Whether `max_epochs` was chosen by the number of rows, so that a network beside a better
        linear model may have fewer.
    automatic_patience : bool, default=False
        Whether `early_stopping_rounds` was ``"auto"``, which an ``EarlyStopping`` callback of the
        user replaces.
    average_decay : float, default=0.99
        Decay of the moving average of the weights; 0 for no averaging.
    gradient_clip : float or None, default=1.0
        Largest norm of the gradient; None for no clipping.
    device : str, default="cpu"
        torch device of the training.
    verbose : int, default=0
        Whether the losses of each epoch are printed, if above 0.
    callbacks : list, default=[]
        skorch callbacks of the user, or pairs of name and callback.
    annealed : bool, default=True
        Whether the learning rate follows :class:`~sk_easytensor.training.net.StepSchedule`, unless
        a callback of the user sets it.
    optimizer_state : dict or None, default=None
        State of the optimizer of an earlier training, to continue with.
    checkpoints : Checkpoints, SharedCheckpoints or None, default=None
        Checkpoints of the fit.
    group : SingleProcess or ProcessGroup
        Workers of the training.
    trees : BoostedTrees or None, default=None
        Parameters of the trees beside the network; None for no trees.
    min_tree_rows : int, default=100
        Number of training rows from which on trees are fitted.
    linear : bool, default=False
        Whether a linear model is fitted to the features that blocks give for it.
    unseen_linear : dict or None, default=None
        State of a linear model that evaluates validation rows instead of the network's, which has
        seen them in an earlier training.
    held_out : bool, default=False
        Whether the first validation rows were held out of the training rows, so that the linear
        model is fitted on them as well in the end.
    seed : int, default=0
        Seed of trees and samples.
    plan : EvalPlan
        Evaluation sets and metrics.
    evaluate_first : bool, default=False
        Whether the initial weights are evaluated as epoch 0.
    """

    learning_rate: float
    batch_size: int
    max_epochs: int
    optimizer: type
    weight_decay: float
    early_stopping_rounds: int | None
    automatic_epochs: bool = False
    automatic_patience: bool = False
    average_decay: float = 0.99
    gradient_clip: float = 1.0
    device: str = "cpu"
    verbose: int = 0
    callbacks: list = field(default_factory=list)
    annealed: bool = True
    optimizer_state: dict | None = None
    checkpoints: object | None = None
    group: object = field(default_factory=SingleProcess)
    trees: object | None = None
    min_tree_rows: int = MIN_TREE_ROWS
    linear: bool = False
    unseen_linear: dict | None = None
    held_out: bool = False
    seed: int = 0
    plan: object = field(default_factory=EvalPlan)
    evaluate_first: bool = False


def default_batch_size(n_rows):
    """Return the batch size: 32 for tiny tables, 256 from 3,073 rows, 4096 from 819,201 rows."""
    size = 32
    while size < 256 and size * 24 < n_rows:
        size *= 2
    while 256 <= size < 4096 and size * 400 < n_rows:
        size *= 2
    return size


def default_max_epochs(n_rows):
    """Return the largest number of epochs over pairs.

    200 for 200 rows, 54 for 6,400, 12 for 300,000.
    """
    return max(5, min(200, round(1800 / n_rows**0.4)))


def default_patience(max_epochs):
    """Return the patience for pairs, in epochs: an eighth of `max_epochs`, at least 6."""
    return max(6, max_epochs // 8)


def ranking_patience(max_epochs):
    """Return the patience for metrics of rankings, half of `max_epochs`, at least 6.

    Rankings improve most where the learning rate falls. On MovieLens with all columns, 40 epochs
    with the patience for losses ended after 18, with a recall of 0.264 instead of 0.277 after 20.
    """
    return max(6, max_epochs // 2)


def default_table_epochs(n_rows):
    """Return the largest number of epochs over a table.

    106 for 200 rows, 45 for 6,400, 12 for 300,000.
    """
    return min(default_max_epochs(n_rows), round(400 / n_rows**0.25))


def default_table_patience(n_rows, batch_size):
    """Return the patience for tables, in epochs: 4, or 6 for many rows, and at least 64 steps.

    The average of the weights, which is evaluated, lags behind by about a hundred steps. Large
    tables are overfitted late, and their loss falls again once the learning rate does, so that
    their patience is longer.
    """
    steps = -(-n_rows // batch_size)
    return max(6 if n_rows >= LONG_PATIENCE_ROWS else 4, -(-64 // steps))


def resolve_optimizer(optimizer, owner):
    """Return the optimizer class for a name or class; raise ``ValueError`` for anything else."""
    names = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    if isinstance(optimizer, str) and optimizer in names:
        return names[optimizer]
    if isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer):
        return optimizer
    raise ValueError(
        f"{owner}: optimizer must be one of {list(names)} or a torch.optim.Optimizer class, got "
        f"{optimizer!r}"
    )


def resolve_device(device, owner):
    """Return the name of the torch device; ``"auto"`` is CUDA if available, else the CPU.

    Parameters
    ----------
    device : str or torch.device
        ``"auto"`` or a device of torch.
    owner : str
        Class name of the estimator, used in error messages.

    Raises
    ------
    ValueError
        If torch does not know the device or this machine does not have it.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # Fails for unknown devices and for those that this machine does not have.
        torch.zeros(1, device=torch.device(device)).item()
        return str(torch.device(device))
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(
            f"{owner}: device must be 'auto', 'cpu', 'cuda' or another torch device of this "
            f"machine, got {device!r}: {error}"
        ) from error


def has_scheduler(callbacks):
    """Return whether the user's callbacks contain a learning rate scheduler."""
    return any(_is_callback(entry, LRScheduler) for entry in callbacks)


def check_callbacks(callbacks, owner, distributed=False):
    """Raise ``ValueError`` unless `callbacks` is None or a list of supported callbacks.

    Parameters
    ----------
    callbacks : list or None
        skorch callbacks, or pairs of name and callback.
    owner : str
        Class name of the estimator, used in error messages.
    distributed : bool, default=False
        Whether several workers train, with which ``EpochScoring`` does not work.
    """
    if callbacks is None:
        return
    entries = callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]
    if entries is not callbacks or not all(_is_callback(entry, Callback) for entry in entries):
        raise ValueError(
            f"{owner}: callbacks must be a list of skorch callbacks or (name, callback) pairs, "
            f"got {callbacks!r}"
        )
    if any(_is_callback(entry, PassthroughScoring) for entry in entries):
        raise ValueError(
            f"{owner}: callbacks cannot hold PassthroughScoring, which reads a history of batches "
            "that is not recorded; use EpochScoring, or monitor 'train_loss' and 'valid_loss'"
        )
    if distributed and any(_is_callback(entry, EpochScoring) for entry in entries):
        raise ValueError(
            f"{owner}: callbacks cannot hold EpochScoring where several workers train, each of "
            "which has a part of the rows; use eval_metric, which is computed over all of them"
        )


def _is_callback(entry, kind):
    """Return whether an entry is an instance or subclass of a class, alone or after a name."""
    if isinstance(entry, tuple) and len(entry) == 2:
        entry = entry[1]
    return isinstance(entry, kind) or (isinstance(entry, type) and issubclass(entry, kind))


@dataclass
class TrainingResult:
    """Result of a training, apart from the network, which is changed in place.

    Attributes
    ----------
    history : list of dict
        One dictionary per epoch: ``train_loss``, ``dur`` (seconds), and the losses and metrics
        that :meth:`Evaluator.evaluate` returns, such as ``valid_loss``.
    curves : dict of {str: dict of {str: list of float}}
        Values of the history by evaluation set and metric, as in ``evals_result_``.
    best_iteration : int
        Epoch, counted from 1, whose weights the network has; 0 for the initial weights.
    best_score : float
        Loss of that epoch, or value of the stopping metric, on validation rows if there are any.
    optimizer_state : dict
        State of the optimizer, with which a later training can continue.
    other_seconds : dict of {str: float}, default={}
        Durations of fitting the other models, ``"trees"`` and ``"linear"``, in seconds.
    linear : LinearModule or None, default=None
        Linear model that has not seen the rows that were held out; None if there are no such rows,
        or no linear model. The network has one that was fitted on them as well, so that its outputs
        for these rows are too good.
    inspected : dict, default={}
        Fitted attributes for importances and reports that are computed from the rows, by name.
    """

    history: list
    curves: dict
    best_iteration: int
    best_score: float
    optimizer_state: dict
    other_seconds: dict = field(default_factory=dict)
    linear: object = None
    inspected: dict = field(default_factory=dict)


def join_results(results):
    """Return the result of an ensemble: means over its networks, times summed.

    Parameters
    ----------
    results : list of TrainingResult
        Result of each network.

    Returns
    -------
    TrainingResult
        Its curves are means at each epoch, for which a network that stopped earlier has its last
        value. Its best epoch is the rounded mean. It has no optimizer state.
    """
    if len(results) == 1:
        return results[0]
    n_epochs = max(len(result.history) for result in results)
    curves = {
        name: {
            metric: _mean_curve([result.curves[name][metric] for result in results], n_epochs)
            for metric in metrics
        }
        for name, metrics in results[0].curves.items()
    }
    seconds = {
        name: sum(result.other_seconds[name] for result in results)
        for name in results[0].other_seconds
    }
    durations = [[epoch.get("dur", 0.0) for epoch in result.history] for result in results]
    return TrainingResult(
        [{"dur": sum(each)} for each in zip_longest(*durations, fillvalue=0.0)],
        curves,
        round(np.mean([result.best_iteration for result in results])),
        float(np.mean([result.best_score for result in results])),
        {},
        seconds,
    )


def _mean_curve(curves, n_epochs):
    """Return the mean of curves of different lengths, as a list of `n_epochs` numbers."""
    longest = [[*curve, *[curve[-1]] * (n_epochs - len(curve))] for curve in curves]
    return np.mean(longest, axis=0).tolist()


def train_network(network, head, rows, valid_rows, settings):
    """Train a network in place.

    Parameters
    ----------
    network : BlockNetwork
        Network whose weights are changed; with validation rows it has the weights of the best
        epoch afterwards. Trees are fitted first if the settings have any, and averaged with the
        network when it is evaluated.
    head : Head
        Defines the loss.
    rows : TrainingDataset
        Training rows.
    valid_rows : list of TrainingDataset
        Validation rows; the first data set decides about early stopping.
    settings : TrainingSettings
        Settings of the training.

    Returns
    -------
    TrainingResult

    Raises
    ------
    ValueError
        If the training diverges, if checkpoints are of a fit on other data, or if a metric is not
        finite on the validation rows.
    """
    if settings.checkpoints is not None:
        settings.checkpoints.begin(describe_data(network, rows, valid_rows))
    deciding = valid_rows[:1] if settings.plan.decides else []
    decider = deciding[0] if deciding else None
    if settings.automatic_epochs:
        names, n_rows = linear_blocks(network, head, rows, decider, settings)
        if names:
            epochs = reduced_epochs(network, n_rows, settings.max_epochs)
            settings = replace(settings, max_epochs=epochs)
    callbacks = []
    if settings.annealed and not has_scheduler(settings.callbacks):
        callbacks.append(("easytensor_schedule", StepSchedule(settings.max_epochs)))
    callbacks.append(("easytensor_timer", EpochTimer()))
    callbacks += progress_callbacks(settings.verbose, _unprinted(valid_rows))
    callbacks += [
        callback if isinstance(callback, tuple) else (f"callback_{index}", callback)
        for index, callback in enumerate(settings.callbacks)
    ]
    callbacks += _stopping_callbacks(settings, valid_rows)
    # Two-tower networks have no attributes for other models.
    trees, linear = getattr(network, "trees", None), getattr(network, "linear", None)
    begin = perf_counter()
    if trees is None:
        with show_phase("growing trees", settings.verbose):
            trees = fit_trees(network, head, rows, deciding, settings)
    seconds, begin = {"trees": perf_counter() - begin}, perf_counter()
    final = linear
    if linear is None and settings.linear:
        held_out = decider if settings.held_out else None
        with show_phase("fitting the linear model", settings.verbose):
            linear, final = fit_linear(network, head, rows, held_out, decider, settings)
    elif linear is not None and settings.unseen_linear is not None:
        linear = LinearModule.of_state(settings.unseen_linear)
    elif linear is not None and settings.held_out:
        # The model of the earlier training may have been fitted on these rows.
        again = replace(settings, linear=True)
        unseen, _ = fit_linear(network, head, rows, None, decider, again)
        if unseen is not None:
            unseen.share, unseen.temperature = linear.share, linear.temperature
            unseen.is_final = True
            linear = unseen
    seconds["linear"] = perf_counter() - begin
    others = {
        name: model for name, model in (("trees", trees), ("linear", linear)) if model is not None
    }
    net = TensorNet(
        network,
        head=head,
        valid_rows=valid_rows,
        others=others,
        plan=settings.plan,
        seed=settings.seed,
        evaluate_first=settings.evaluate_first,
        average_decay=settings.average_decay,
        gradient_clip=settings.gradient_clip,
        checkpoints=settings.checkpoints,
        group=settings.group,
        optimizer=settings.optimizer,
        lr=settings.learning_rate,
        batch_size=settings.batch_size,
        max_epochs=settings.max_epochs,
        device=settings.device,
        verbose=settings.verbose,
        callbacks=callbacks,
        optimizer__param_groups=_parameter_groups(network, settings.learning_rate),
        **_optimizer_arguments(settings.optimizer, settings.weight_decay),
    )
    net.initialize()
    if settings.optimizer_state is not None:
        # Moments are loaded; learning rate and weight decay are those of these settings.
        load_optimizer_state(net, settings.optimizer_state["state"])
    net.partial_fit(rows)
    net.row_updates.disable()
    best, scores = _best_epoch(net)
    if linear is not None:
        final.is_final = True
        others["linear"] = final
    unseen = None if linear is final else linear.to("cpu")
    for name, model in others.items():
        setattr(network, name, model)
    weighted = [*others.items(), *([] if unseen is None else [("linear", unseen)])]
    for name, model in weighted:
        if f"{name}_share" in scores:
            model.share = scores[f"{name}_share"]
            model.temperature = scores[f"{name}_temperature"]
    network.to("cpu").eval()
    history = [_plain(epoch) for epoch in net.history]
    return TrainingResult(
        history,
        _curves(net, history),
        best,
        scores[_score_name(net)],
        {"state": optimizer_state(net)},
        seconds,
        unseen,
    )


def _unprinted(valid_rows):
    """Return the entries of the history that are not printed: losses on the scale of training."""
    names = [f"valid_{index}_loss" for index in range(len(valid_rows))]
    return ["train_loss", "valid_loss", "blend_loss", *names]


def _stopping_callbacks(settings, valid_rows):
    """Return the callbacks that stop a training and restore its best weights.

    Callbacks of the user that restore weights, such as ``EarlyStopping(load_best=True)``, replace
    the restoring here; early stopping of the user replaces ``early_stopping_rounds="auto"``.
    """
    if not valid_rows or not settings.plan.decides:
        return []
    user_callbacks = [_callback(entry) for entry in settings.callbacks]
    restores = any(getattr(callback, "load_best", False) for callback in user_callbacks)
    stops = any(isinstance(callback, EarlyStopping) for callback in user_callbacks)
    patience = settings.early_stopping_rounds
    if stops and settings.automatic_patience:
        patience = None
    # With a patience longer than the training, the best weights are still restored at its end.
    patience = patience or settings.max_epochs + 1
    return [("easytensor_early_stopping", BestEpoch(patience, load_best=not restores))]


def _callback(entry):
    return entry[1] if isinstance(entry, tuple) else entry


def _best_epoch(net):
    """Return the epoch whose weights a trained net has, counted from 1, and its scores."""
    restoring = [
        callback for _, callback in net.callbacks_ if getattr(callback, "load_best", False)
    ]
    best = getattr(restoring[0], "best_epoch_", None) if restoring else None
    if best == 0 and hasattr(net, "initial_scores_"):
        return 0, net.initial_scores_
    best = best or len(net.history)
    return best, net.history[best - 1]


def _score_name(net):
    """Return the name in the history of the loss or metric that ``best_score_`` reports."""
    if not net.valid_rows or not net.plan.decides:
        return f"training_{net.head.metric}"
    metric = net.plan.stopping_metric
    return f"{net.plan.names[0]}_{net.head.metric if metric is None else metric.name}"


def _curves(net, history):
    """Return the values of each evaluation set and metric by epoch, with those of callbacks."""
    metrics = [net.head.metric, *net.plan.metric_names]
    sets = ["training", *sorted({*net.plan.names} - {"training"})]
    curves = {}
    for name in sets if net.valid_rows else sets[:1]:
        for metric in metrics:
            key = f"{name}_{metric}"
            if history and key in history[0]:
                curve = [epoch[key] for epoch in history]
                curves.setdefault(name, {})[metric] = curve
    for _, callback in net.callbacks_:
        if isinstance(callback, EpochScoring) and all(callback.name_ in epoch for epoch in history):
            own = curves.setdefault("training" if callback.on_train else net.plan.names[0], {})
            own[callback.name_] = [epoch[callback.name_] for epoch in history]
    return curves


def optimizer_state(net):
    """Return the optimizer's state of each parameter, such as its moments, by parameter name."""
    state = net.optimizer_.state
    named = net.module_.named_parameters()
    return {name: state[parameter] for name, parameter in named if parameter in state}


def load_optimizer_state(net, saved):
    """Load the state of another optimizer; parameters are matched by name.

    Parameters
    ----------
    net : TensorNet
        Initialised net.
    saved : dict of {str: dict}
        Result of :func:`optimizer_state`.
    """
    state = net.optimizer_.state_dict()
    grouped = [p for group in net.optimizer_.param_groups for p in group["params"]]
    position = {id(parameter): index for index, parameter in enumerate(grouped)}
    by_row = {id(table) for table in net.row_updates.tables}
    state["state"] = {
        position[id(parameter)]: saved[name]
        for name, parameter in net.module_.named_parameters()
        if name in saved
        and id(parameter) in position
        # A table has another state if an earlier training did not update it by row, or did.
        and ("row_moments" in saved[name]) == (id(parameter) in by_row)
    }
    net.optimizer_.load_state_dict(state)


def _plain(epoch):
    return {name: value for name, value in epoch.items() if name != "batches"}


def _parameter_groups(network, learning_rate):
    """Return patterns of parameter names, and the learning rates of the parameters that match.

    The patterns are those of modules with an attribute ``learning_rate_scale``, which multiplies
    the learning rate for the module's parameters.
    """
    return [(f"{name}.*", {"lr": learning_rate * scale}) for name, scale in learning_rates(network)]


def _optimizer_arguments(optimizer, weight_decay):
    """Return the arguments of an optimizer that its constructor supports."""
    supported = signature(optimizer).parameters
    arguments = {}
    if "weight_decay" in supported:
        arguments["optimizer__weight_decay"] = weight_decay
    if "decoupled_weight_decay" in supported:
        # As a part of the gradient, which is divided by its size, it would outweigh the loss.
        arguments["optimizer__decoupled_weight_decay"] = True
    if "fused" in supported:
        arguments["optimizer__fused"] = True
    return arguments
