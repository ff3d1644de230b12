"""Train a network on encoded rows: settings in, history out.

The same function runs in this process and in a worker of a cluster.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from skorch.callbacks import EarlyStopping, PrintLog

from sk_easytensor.training.net import TensorNet
from sk_easytensor.training.schedules import StepSchedule

__all__ = ["TrainingResult", "TrainingSettings", "default_batch_size", "default_max_epochs", "train_network"]


@dataclass
class TrainingSettings:
    """How to train; names are those of the estimators' parameters."""

    learning_rate: float
    batch_size: int
    max_epochs: int
    optimizer: type
    weight_decay: float
    early_stopping_rounds: int | None
    average_decay: float = 0.99
    gradient_clip: float = 1.0
    device: str = "cpu"
    verbose: int = 0
    callbacks: list = field(default_factory=list)
    optimizer_state: dict | None = None


@dataclass
class TrainingResult:
    """What training leaves behind, besides the network it changed in place.

    Attributes
    ----------
    history : list of dict
        One entry an epoch: ``train_loss``, ``valid_loss``, ``valid_1_loss``, ..., ``dur``.
    best_iteration : int
        Epoch, counted from 1, whose weights the network has.
    optimizer_state : dict
        For going on later.
    """

    history: list
    best_iteration: int
    optimizer_state: dict


def default_batch_size(n_rows):
    """Rows a batch: 32 for tiny tables, 256 from some thousand rows, 4096 for millions."""
    size = 32
    while size < 256 and size * 24 < n_rows:
        size *= 2
    while 256 <= size < 4096 and size * 400 < n_rows:
        size *= 2
    return size


def default_max_epochs(n_rows):
    """Epochs at most: 200 for a few hundred rows, 60 for 6,400, 13 for 300,000."""
    return max(5, min(200, round(2000 / n_rows**0.4)))


def train_network(network, head, rows, valid_rows, settings):
    """Train a network in place.

    Parameters
    ----------
    network : BlockNetwork
        Its weights are changed; with validation rows the best ones are kept.
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
    callbacks = [("schedule", StepSchedule(settings.max_epochs))]
    stopping = None
    if valid_rows:
        # Patience longer than the training still restores the best weights at its end.
        patience = settings.early_stopping_rounds or settings.max_epochs + 1
        stopping = EarlyStopping(
            monitor="valid_loss", patience=patience, threshold=0, load_best=True, sink=_silent
        )
        callbacks.append(("early_stopping", stopping))
    if settings.verbose:
        callbacks.append(("print_log", PrintLog()))
    callbacks += [
        callback if isinstance(callback, tuple) else (f"user_{index}", callback)
        for index, callback in enumerate(settings.callbacks)
    ]
    net = TensorNet(
        network,
        head=head,
        valid_rows=valid_rows,
        average_decay=settings.average_decay,
        gradient_clip=settings.gradient_clip,
        optimizer=settings.optimizer,
        lr=settings.learning_rate,
        batch_size=settings.batch_size,
        max_epochs=settings.max_epochs,
        device=settings.device,
        verbose=settings.verbose,
        callbacks=callbacks,
        **_optimizer_arguments(network, settings),
    )
    net.initialize()
    if settings.optimizer_state is not None:
        net.optimizer_.load_state_dict(settings.optimizer_state)
    net.partial_fit(rows)
    history = [_plain(epoch) for epoch in net.history]
    best = stopping.best_epoch_ if stopping is not None and stopping.best_epoch_ else len(history)
    network.to("cpu").eval()
    return TrainingResult(history, best, net.optimizer_.state_dict())


def _silent(text):
    """Keep skorch's early stopping from printing."""


def _plain(epoch):
    return {name: value for name, value in epoch.items() if name != "batches"}


def _optimizer_arguments(network, settings):
    """Weight decay acts on matrices only, never on biases, scalings and embeddings."""
    arguments = {"optimizer__weight_decay": settings.weight_decay}
    if issubclass(settings.optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        arguments["optimizer__fused"] = True
    return arguments
