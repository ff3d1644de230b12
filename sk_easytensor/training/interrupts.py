"""Ways to end a training early: an exception for callbacks, and Ctrl-C told apart from it."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager

__all__ = ["StopTraining", "watched_interrupts"]


class StopTraining(Exception):
    """Raised by a callback to end a training after the present epoch.

    Whichever method of the callback raises it, the epoch is completed and evaluated. The fit ends
    as it does by early stopping: with the best weights, and without an error. Of several workers
    on Ray, one is enough to end the training of all.

    Examples
    --------
    >>> from skorch.callbacks import Callback
    >>> from sk_easytensor import EasyTensorRegressor, StopTraining
    >>> class StopBelow(Callback):
    ...     def on_epoch_end(self, net, **kwargs):
    ...         if net.history[-1, "train_loss"] < 10.0:
    ...             raise StopTraining
    >>> X = [[float(row)] for row in range(50)]
    >>> EasyTensorRegressor(callbacks=[StopBelow()]).fit(X, range(50)).n_iter_
    1
    """


@contextmanager
def watched_interrupts():
    """Tell ``KeyboardInterrupt`` of a signal from one that a callback raises.

    Yields
    ------
    callable
        Returns whether SIGINT arrived within the context. Only the main thread of a process gets
        it; elsewhere the answer is always False.
    """
    received = []
    before = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not main or not callable(before):
        yield lambda: False
        return

    def note(number, frame):
        received.append(number)
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGINT, before)
