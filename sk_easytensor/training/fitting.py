"""Train a network on encoded rows: settings in, history out.

The same function runs in this process and in a worker of a cluster.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from inspect import signature
from time import perf_counter

from skorch.callbacks import EarlyStopping, EpochTimer, PrintLog

from sk_easytensor.training.checkpoints import describe_data
from sk_easytensor.training.net import JUDGING_BATCH, TensorNet
from sk_easytensor.training.schedules import StepSchedule
from sk_easytensor.training.settings import has_scheduler
from sk_easytensor.training.trees import grow_trees, join_trees

__all__ = ["TrainingResult", "train_network"]


@dataclass
class TrainingResult:
    """What training leaves behind, besides the network it changed in place.

    Attributes
    ----------
    history : list of dict
        One entry an epoch: ``train_loss``, ``valid_loss``, ``valid_1_loss`` and so on, and
        ``dur``, its seconds.
    best_iteration : int
        Epoch, counted from 1, whose weights the network has.
    optimizer_state : dict
        For going on later.
    tree_seconds : float
        How long growing trees and finding how they are joined took.
    joined_loss : float or None
        Validation loss of network and trees; None without both.
    inspected : dict
        What an estimator keeps of its rows for importances and reports, by attribute.
    """

    history: list
    best_iteration: int
    optimizer_state: dict
    tree_seconds: float = 0.0
    joined_loss: float | None = None
    inspected: dict = field(default_factory=dict)


def train_network(network, head, rows, valid_rows, settings):
    """Train a network in place.

    Parameters
    ----------
    network : BlockNetwork
        Its weights are changed; with validation rows the best ones are kept. Trees stand beside it
        then if the settings ask for them.
    head : Head
        Gives the loss.
    rows : EncodedRows
        Training rows.
    valid_rows : list of EncodedRows
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
    if settings.verbose:
        callbacks.append(("easytensor_print_log", PrintLog()))
    callbacks += [
        callback if isinstance(callback, tuple) else (f"callback_{index}", callback)
        for index, callback in enumerate(settings.callbacks)
    ]
    stopping = None
    if valid_rows:
        # Patience longer than the training still restores the best weights at its end.
        patience = settings.early_stopping_rounds or settings.max_epochs + 1
        stopping = EarlyStopping(
            monitor="valid_loss", patience=patience, threshold=0, load_best=True, sink=_silent
        )
        callbacks.append(("easytensor_early_stopping", stopping))
    net = TensorNet(
        network,
        head=head,
        valid_rows=valid_rows,
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
    # An epoch that the user interrupted has no losses.
    history = [_plain(epoch) for epoch in net.history if "train_loss" in epoch]
    if not history:
        raise KeyboardInterrupt("interrupted before the first epoch was complete")
    best = stopping.best_epoch_ if stopping is not None and stopping.best_epoch_ else len(history)
    network.eval()
    begin, loss = perf_counter(), None
    grow_trees(network, head, rows, valid_rows, settings)
    # Networks of two towers have none.
    if getattr(network, "trees", None) is not None and valid_rows:
        network.to(settings.device)
        loss = join_trees(network, head, net.valid_rows[0], JUDGING_BATCH, settings)
    network.to("cpu")
    seconds = perf_counter() - begin
    return TrainingResult(history, best, {"state": moments(net)}, seconds, loss)


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
        What :func:`moments` returned. Of earlier versions, which kept positions instead of names,
        nothing is used: groups of parameters have changed since.
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


def _silent(text):
    """Keep skorch's early stopping from printing."""


def _plain(epoch):
    return {name: value for name, value in epoch.items() if name != "batches"}


def _parameter_groups(network, learning_rate):
    """Return patterns of parameter names with rates of their own.

    They are those of modules with an attribute ``learning_rate_scale``, which multiplies the
    learning rate for the module's parameters.
    """
    return [
        (f"{name}.*", {"lr": learning_rate * module.learning_rate_scale})
        for name, module in network.named_modules()
        if hasattr(module, "learning_rate_scale")
    ]


def _optimizer_arguments(optimizer, weight_decay):
    """Return what an optimizer's constructor takes of what we would like to give it."""
    taken = signature(optimizer).parameters
    arguments = {}
    if "weight_decay" in taken:
        arguments["optimizer__weight_decay"] = weight_decay
    if "fused" in taken:
        arguments["optimizer__fused"] = True
    return arguments
