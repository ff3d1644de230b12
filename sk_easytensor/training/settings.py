"""How to train: the settings, their defaults and what is accepted for them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from skorch.callbacks import Callback

__all__ = [
    "TrainingSettings",
    "check_callbacks",
    "default_batch_size",
    "default_max_epochs",
    "resolve_device",
    "resolve_optimizer",
]


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


def is_callback(entry):
    """Tell whether skorch takes an object as a callback: one, a class, or either with a name."""
    if isinstance(entry, tuple) and len(entry) == 2:
        entry = entry[1]
    return isinstance(entry, Callback) or (isinstance(entry, type) and issubclass(entry, Callback))


def check_callbacks(callbacks, owner):
    """Raise ``ValueError`` unless `callbacks` is None or a list of what skorch takes."""
    if callbacks is None:
        return
    if not isinstance(callbacks, (list, tuple)) or not all(map(is_callback, callbacks)):
        raise ValueError(
            f"{owner}: callbacks must be a list of skorch callbacks or (name, callback) pairs, "
            f"got {callbacks!r}"
        )
