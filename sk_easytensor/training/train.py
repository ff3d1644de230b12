"""How a network is trained: the settings, and one function that does it."""

from __future__ import annotations

from dataclasses import dataclass, field
from inspect import signature
from time import perf_counter

import torch
from skorch.callbacks import (
    Callback,
    EarlyStopping,
    EpochScoring,
    EpochTimer,
    LRScheduler,
    PassthroughScoring,
    PrintLog,
)

from sk_easytensor.networks.block_module import learning_rates
from sk_easytensor.training.blend import fit_trees
from sk_easytensor.training.checkpoint import describe_data
from sk_easytensor.training.distributed import SingleProcess
from sk_easytensor.training.evaluation import EvalPlan
from sk_easytensor.training.net import BestEpoch, StepSchedule, TensorNet

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
    "resolve_device",
    "resolve_optimizer",
    "train_network",
]


MANY_ROWS = 20_000
"""Training rows from which on early stopping waits longer."""


@dataclass
class TrainingSettings:
    """How to train; names are those of the estimators' parameters."""

    learning_rate: float
    batch_size: int
    max_epochs: int
    optimizer: type
    weight_decay: float
    early_stopping_rounds: int | None
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
    seed: int = 0
    plan: object = field(default_factory=EvalPlan)
    evaluate_first: bool = False


def default_batch_size(n_rows):
    """Rows a batch: 32 for tiny tables, 256 from some thousand rows, 4096 for millions."""
    size = 32
    while size < 256 and size * 24 < n_rows:
        size *= 2
    while 256 <= size < 4096 and size * 400 < n_rows:
        size *= 2
    return size


def default_max_epochs(n_rows):
    """Epochs of pairs at most: 200 for two hundred rows, 54 for 6,400, 12 for 300,000."""
    return max(5, min(200, round(1800 / n_rows**0.4)))


def default_patience(max_epochs):
    """Epochs of pairs to wait for a better validation loss: an eighth of them, at least 6."""
    return max(6, max_epochs // 8)


def default_table_epochs(n_rows):
    """Epochs over a table at most: 106 for two hundred rows, 45 for 6,400, 12 for 300,000."""
    return min(default_max_epochs(n_rows), round(400 / n_rows**0.25))


def default_table_patience(n_rows, batch_size):
    """Epochs over a table to wait for a better validation loss: 4 or 6, and at least 64 steps.

    The average of the weights, which is evaluated, lags behind by some hundred steps. Many rows are
    overfitted late, and the loss falls again once the learning rate does: the wait is longer.
    """
    steps = -(-n_rows // batch_size)
    return max(6 if n_rows >= MANY_ROWS else 4, -(-64 // steps))


def resolve_optimizer(optimizer, owner):
    """Return the optimizer class for a name or class."""
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
    """Return the torch device for a name; ``"auto"`` means CUDA where there is one."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # Fails for what torch does not know and for what this machine does not have.
        torch.zeros(1, device=torch.device(device)).item()
        return str(torch.device(device))
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(
            f"{owner}: device must be 'auto', 'cpu', 'cuda' or another torch device of this "
            f"machine, got {device!r}: {error}"
        ) from error


def has_scheduler(callbacks):
    """Tell whether a user's callbacks set the learning rate."""
    return any(_is_callback(entry, LRScheduler) for entry in callbacks)


def check_callbacks(callbacks, owner, distributed=False):
    """Raise ``ValueError`` unless `callbacks` is None or a list of callbacks that can be called."""
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
            "that is not kept; use EpochScoring, or monitor 'train_loss' and 'valid_loss'"
        )
    if distributed and any(_is_callback(entry, EpochScoring) for entry in entries):
        raise ValueError(
            f"{owner}: callbacks cannot hold EpochScoring where several workers train, each of "
            "which has a part of the rows; use eval_metric, which is computed over all of them"
        )


def _is_callback(entry, kind):
    """Tell whether an entry is a callback of a kind: an object or class, with a name or without."""
    if isinstance(entry, tuple) and len(entry) == 2:
        entry = entry[1]
    return isinstance(entry, kind) or (isinstance(entry, type) and issubclass(entry, kind))


@dataclass
class TrainingResult:
    """What training leaves behind, besides the network it changed in place.

    Attributes
    ----------
    history : list of dict
        One entry an epoch: ``train_loss``, ``valid_loss``, ``valid_1_loss`` and so on, ``dur``,
        its seconds, and what :meth:`Evaluator.evaluate` returns.
    curves : dict of {str: dict of {str: list of float}}
        Values of the history by set of rows and metric, as in ``evals_result_``.
    best_iteration : int
        Epoch, counted from 1, whose weights the network has; 0 if it has those that it began with.
    best_score : float
        Loss of that epoch, or the metric that decided, on validation rows if there are any.
    optimizer_state : dict
        For going on later.
    tree_seconds : float
        How long growing trees took.
    inspected : dict
        What an estimator keeps of its rows for importances and reports, by attribute.
    """

    history: list
    curves: dict
    best_iteration: int
    best_score: float
    optimizer_state: dict
    tree_seconds: float = 0.0
    inspected: dict = field(default_factory=dict)


def train_network(network, head, rows, valid_rows, settings):
    """Train a network in place.

    Parameters
    ----------
    network : BlockNetwork
        Its weights are changed; with validation rows the best ones are kept. Trees are grown first
        if the settings have any, and averaged with it when it is evaluated.
    head : Head
        Gives the loss.
    rows : TrainingDataset
        Training rows.
    valid_rows : list of TrainingDataset
        The first decides about early stopping.
    settings : TrainingSettings
        How to train.

    Returns
    -------
    TrainingResult
    """
    if settings.checkpoints is not None:
        settings.checkpoints.begin(describe_data(network, rows, valid_rows))
    callbacks = []
    if settings.annealed and not has_scheduler(settings.callbacks):
        callbacks.append(("easytensor_schedule", StepSchedule(settings.max_epochs)))
    callbacks.append(("easytensor_timer", EpochTimer()))
    if settings.verbose > 0:
        callbacks.append(("easytensor_print_log", PrintLog(keys_ignored=_unprinted(valid_rows))))
    callbacks += [
        callback if isinstance(callback, tuple) else (f"callback_{index}", callback)
        for index, callback in enumerate(settings.callbacks)
    ]
    callbacks += _stopping_callbacks(settings, valid_rows)
    begin = perf_counter()
    # Networks of two towers have none.
    trees = getattr(network, "trees", None)
    if trees is None:
        deciding = valid_rows[:1] if settings.plan.decides else []
        trees = fit_trees(network, head, rows, deciding, settings)
    tree_seconds = perf_counter() - begin
    net = TensorNet(
        network,
        head=head,
        valid_rows=valid_rows,
        trees=trees,
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
        # The moments go on; learning rate and weight decay are those of this call.
        load_moments(net, settings.optimizer_state["state"])
    net.partial_fit(rows)
    best, scores = _best_epoch(net)
    if trees is not None:
        network.trees = trees
        if valid_rows and settings.plan.decides:
            trees.share = scores["blend_share"]
            trees.temperature = scores["blend_temperature"]
    network.to("cpu").eval()
    history = [_plain(epoch) for epoch in net.history]
    return TrainingResult(
        history,
        _curves(net, history),
        best,
        scores[_reported(net)],
        {"state": moments(net)},
        tree_seconds,
    )


def _unprinted(valid_rows):
    """Return what the log of a training leaves out: losses on the scale of training."""
    others = [f"valid_{index}_loss" for index in range(len(valid_rows))]
    return ["train_loss", "valid_loss", "blend_loss", *others]


def _stopping_callbacks(settings, valid_rows):
    """Return the callbacks that end a training and restore its best weights.

    A user's own that restore weights, such as ``EarlyStopping(load_best=True)``, take the place of
    ours; a user's own early stopping takes the place of ``early_stopping_rounds="auto"``.
    """
    if not valid_rows or not settings.plan.decides:
        return []
    own = [_callback(entry) for entry in settings.callbacks]
    restored = any(getattr(callback, "load_best", False) for callback in own)
    stopped = any(isinstance(callback, EarlyStopping) for callback in own)
    patience = settings.early_stopping_rounds
    if stopped and settings.automatic_patience:
        patience = None
    # Patience longer than the training still restores the best weights at its end.
    patience = patience or settings.max_epochs + 1
    return [("easytensor_early_stopping", BestEpoch(patience, load_best=not restored))]


def _callback(entry):
    return entry[1] if isinstance(entry, tuple) else entry


def _best_epoch(net):
    """Return the epoch whose weights a trained net has, counted from 1, and its scores."""
    restoring = [each for _, each in net.callbacks_ if getattr(each, "load_best", False)]
    best = getattr(restoring[0], "best_epoch_", None) if restoring else None
    if best == 0 and hasattr(net, "initial_scores_"):
        return 0, net.initial_scores_
    best = best or len(net.history)
    return best, net.history[best - 1]


def _reported(net):
    """Return the name in the history of what ``best_score_`` is."""
    if not net.valid_rows or not net.plan.decides:
        return f"training_{net.head.metric}"
    metric = net.plan.stopping_metric
    return f"{net.plan.names[0]}_{net.head.metric if metric is None else metric.name}"


def _curves(net, history):
    """Return values by epoch of each set of rows and metric, those of callbacks included."""
    metrics = [net.head.metric, *[metric.name for metric in net.plan.metrics]]
    sets = ["training", *sorted({*net.plan.names} - {"training"})]
    found = {}
    for name in sets if net.valid_rows else sets[:1]:
        for metric in metrics:
            key = f"{name}_{metric}"
            if history and key in history[0]:
                curve = [epoch[key] for epoch in history]
                found.setdefault(name, {})[metric] = curve
    for _, callback in net.callbacks_:
        if isinstance(callback, EpochScoring) and all(callback.name_ in epoch for epoch in history):
            curves = found.setdefault("training" if callback.on_train else net.plan.names[0], {})
            curves[callback.name_] = [epoch[callback.name_] for epoch in history]
    return found


def moments(net):
    """Return what an optimizer remembers of each parameter, by the parameter's name."""
    remembered = net.optimizer_.state
    named = net.module_.named_parameters()
    return {name: remembered[each] for name, each in named if each in remembered}


def load_moments(net, kept):
    """Let an optimizer go on with what another remembered.

    Parameters
    ----------
    net : TensorNet
        Initialised.
    kept : dict of {str: dict}
        What :func:`moments` returned.
    """
    state = net.optimizer_.state_dict()
    grouped = [each for group in net.optimizer_.param_groups for each in group["params"]]
    position = {id(each): index for index, each in enumerate(grouped)}
    state["state"] = {
        position[id(each)]: kept[name]
        for name, each in net.module_.named_parameters()
        if name in kept and id(each) in position
    }
    net.optimizer_.load_state_dict(state)


def _plain(epoch):
    return {name: value for name, value in epoch.items() if name != "batches"}


def _parameter_groups(network, learning_rate):
    """Return patterns of parameter names with rates of their own.

    They are those of modules with an attribute ``learning_rate_scale``, which multiplies the
    learning rate for the module's parameters.
    """
    return [(f"{name}.*", {"lr": learning_rate * scale}) for name, scale in learning_rates(network)]


def _optimizer_arguments(optimizer, weight_decay):
    """Return what an optimizer's constructor takes of what we would like to give it."""
    taken = signature(optimizer).parameters
    arguments = {}
    if "weight_decay" in taken:
        arguments["optimizer__weight_decay"] = weight_decay
    if "fused" in taken:
        arguments["optimizer__fused"] = True
    return arguments
