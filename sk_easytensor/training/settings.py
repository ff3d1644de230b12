"""How to train: the settings, their defaults and what is accepted for them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from skorch.callbacks import Callback, EpochScoring, LRScheduler, PassthroughScoring

from sk_easytensor.training.evaluation import EvalPlan
from sk_easytensor.training.group import Alone

__all__ = [
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
    group: object = field(default_factory=Alone)
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

    The average of the weights, which is judged, follows them by some hundred steps. Many rows are
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
