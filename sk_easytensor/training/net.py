"""The training loop: a skorch net, its learning rate schedule, early stopping and interrupts."""

from __future__ import annotations

import math
import re
import signal
import threading
from contextlib import contextmanager
from copy import deepcopy
from time import perf_counter

import numpy as np
import torch
from sklearn.utils import ClassifierTags, RegressorTags
from skorch import NeuralNet
from skorch.callbacks import Callback, EarlyStopping
from torch import nn

from sk_easytensor.training.dataset import BatchIterator
from sk_easytensor.training.distributed import SingleProcess
from sk_easytensor.training.evaluation import EvalPlan, Evaluator, eval_batch_size
from sk_easytensor.training.loop_state import (
    EpochPosition,
    load_callback_states,
    load_loop_state,
    loop_state,
)
from sk_easytensor.training.row_updates import ROW_OPTIMIZERS, RowUpdates, gradient_values

__all__ = [
    "BestEpoch",
    "StepSchedule",
    "StopTraining",
    "TensorNet",
    "WeightedLoss",
    "watched_interrupts",
]


class StopTraining(Exception):
    """Exception that a callback raises to end a training after the current epoch.

    Whichever method of the callback raises it, the epoch is completed and evaluated. The fit then
    ends as with early stopping: with the best weights and without an error. With several workers
    on Ray, all of them stop when one raises it.

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
    """Distinguish ``KeyboardInterrupt`` of SIGINT from one that a callback raises.

    Yields
    ------
    callable
        Called without arguments, returns whether SIGINT arrived within the context. Only the main
        thread of a process receives it; the result is always False in other threads.
    """
    received = []
    previous_handler = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not main or not callable(previous_handler):
        yield lambda: False
        return

    def handler(number, frame):
        received.append(number)
        previous_handler(number, frame)

    signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGINT, previous_handler)


class BestEpoch(EarlyStopping):
    """skorch's early stopping by the loss or metric that the net monitors.

    Parameters
    ----------
    patience : int
        Number of epochs without a better value after which training ends.
    load_best : bool, default=True
        Whether the weights of the best epoch are restored at the end.
    """

    def __init__(self, patience, load_best=True):
        super().__init__(patience=patience, threshold=0, load_best=load_best, sink=_silent)

    def on_train_begin(self, net, **kwargs):
        """Reset the state of earlier trainings."""
        self.monitor, self.lower_is_better = net.monitor, net.lower_is_better
        super().on_train_begin(net, **kwargs)

    def on_epoch_end(self, net, **kwargs):
        """Count the epoch, unless the network itself has become better.

        At first trees have nearly all weight, so that the blend does not show it.
        """
        if self.monitor == "blend_loss":
            first = getattr(net, "initial_scores_", {}).get("valid_loss", np.inf)
            curve = net.history[:, "valid_loss"]
            if curve[-1] < min(curve[:-1], default=first):
                self.misses_ = -1
        super().on_epoch_end(net, **kwargs)

    def start_from(self, net, scores):
        """Use the initial weights, whose losses and metrics are `scores`, as epoch 0."""
        self.dynamic_threshold_ = scores[self.monitor]
        if self.load_best:
            self.best_model_weights_ = deepcopy(net.module_.state_dict())


def _silent(text):
    """Discard the messages of skorch's early stopping."""


class StepSchedule(Callback):
    """Learning rate schedule by step: linear warm-up, constant rate, cosine annealing.

    Parameters
    ----------
    max_epochs : int
        Number of epochs of the whole schedule.
    warm_up : float, default=0.02
        Fraction of the steps in which the rate rises.
    hold : float, default=0.1
        Fraction of the steps before annealing begins, warm-up included.
    final : float, default=0.02
        Ratio of the last rate to the full rate.
    """

    def __init__(self, max_epochs, warm_up=0.02, hold=0.1, final=0.02):
        self.max_epochs = max_epochs
        self.warm_up = warm_up
        self.hold = hold
        self.final = final

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        self.total_ = self.max_epochs * net.group.steps(len(X), net.batch_size)
        self.step_ = 0
        self.rates_ = [group["lr"] for group in net.optimizer_.param_groups]

    def on_batch_begin(self, net, batch=None, training=None, **kwargs):
        factor = self.factor(self.step_ / max(self.total_, 1))
        for group, rate in zip(net.optimizer_.param_groups, self.rates_, strict=True):
            group["lr"] = rate * factor
        self.step_ += 1

    def on_train_end(self, net, X=None, y=None, **kwargs):
        for group, rate in zip(net.optimizer_.param_groups, self.rates_, strict=True):
            group["lr"] = rate

    def factor(self, progress):
        """Return the ratio of the rate to the full rate after a fraction of the steps, 0 to 1."""
        if progress < self.warm_up:
            return (progress + 1e-3) / (self.warm_up + 1e-3)
        if progress < self.hold:
            return 1.0
        fraction = min((progress - self.hold) / (1 - self.hold), 1.0)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * fraction))


CHECKPOINT_SECONDS = 600.0
"""Interval of checkpoints within an epoch."""

TIMED_STEPS = 16
"""Steps after which their time first tells how many there are in an interval, and the fewest."""

SMOOTHED = "_smoothed"
"""End of the name in the history of the mean of a metric over the last epochs."""

LOSS_NAME = re.compile(r"train_loss|valid(_\d+)?_loss")
"""Losses of the network, on the scale of training, as skorch names them."""


class WeightedLoss(nn.Module):
    """Weighted mean of a head's loss over rows and members.

    Parameters
    ----------
    head : Head
        Defines the loss of each row and member.
    """

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, outputs, target, weight):
        """Return the mean of weight times loss over the batch, a scalar tensor."""
        return (self.head.loss(outputs, target).mean(1) * weight).mean()


class TensorNet(NeuralNet):
    """A skorch net over :class:`~sk_easytensor.training.dataset.TrainingDataset`.

    Parameters
    ----------
    module : BlockNetwork
        Network, which is trained in place.
    head : Head
        Defines the loss.
    valid_rows : list of TrainingDataset, default=()
        Data sets that are evaluated after each epoch. The loss of the first is recorded as
        ``valid_loss``, which callbacks may monitor, the others as ``valid_1_loss`` and so on.
    others : dict of {str: TreesModule or LinearModule} or None, default=None
        Models that are averaged with the network when it is evaluated.
    plan : EvalPlan or None, default=None
        Names of the validation rows, and metrics.
    seed : int, default=0
        Seed of the sample on which metrics are computed, if there are many validation rows.
    evaluate_first : bool, default=False
        Whether the initial weights are evaluated as epoch 0. They are restored if no epoch is
        better.
    average_decay : float, default=0.0
        Decay of the exponential moving average of the weights. The network is evaluated with the
        average and has it after training; 0 for no averaging.
    gradient_clip : float or None, default=None
        Largest norm of the gradient; None for no clipping.
    checkpoints : Checkpoints or None, default=None
        Checkpoints to which the state after each epoch is written, and from which training
        resumes.
    group : SingleProcess, ProcessGroup or None, default=None
        Workers of the training, each with its shard of the rows; None for a single process.
    **settings
        Passed to :class:`skorch.NeuralNet`.

    Notes
    -----
    The loop differs from skorch's to save time per batch: batches are slices of tensors, the loss
    is summed on the device, and an epoch's history is written once. It also differs in interrupts:
    ``KeyboardInterrupt`` leaves `fit`, unless a callback raised it to end the training, as some of
    skorch's callbacks do.
    """

    def __init__(
        self,
        module,
        *,
        head,
        valid_rows=(),
        others=None,
        plan=None,
        seed=0,
        evaluate_first=False,
        average_decay=0.0,
        gradient_clip=None,
        checkpoints=None,
        group=None,
        **settings,
    ):
        self.head = head
        self.valid_rows = valid_rows
        self.others = {} if others is None else others
        self.plan = EvalPlan() if plan is None else plan
        self.seed = seed
        self.evaluate_first = evaluate_first
        self.average_decay = average_decay
        self.gradient_clip = gradient_clip
        self.checkpoints = checkpoints
        self.group = SingleProcess() if group is None else group
        super().__init__(
            module,
            criterion=WeightedLoss,
            criterion__head=head,
            train_split=None,
            use_caching=True,
            **settings,
        )

    @property
    def _default_callbacks(self):
        return []

    @property
    def monitor(self):
        """Name in the history of the loss or metric that decides which epoch is best."""
        if not self.valid_rows or not self.plan.decides:
            return "train_loss"
        metric = self.plan.stopping_metric
        if metric is not None:
            name = f"{self.plan.names[0]}_{metric.name}"
            return name if metric.n_smoothed == 1 else f"{name}{SMOOTHED}"
        return "blend_loss" if self.others else "valid_loss"

    @property
    def lower_is_better(self):
        """Whether a lower value of the monitor is better."""
        metric = self.plan.stopping_metric
        return self.monitor == "train_loss" or metric is None or not metric.greater_is_better

    def get_dataset(self, X, y=None):
        return X

    def get_iterator(self, dataset, training=False):
        lengths = None if self.head.in_batch else self.module_.padded_lengths
        steps = self.group.steps(len(dataset), self.batch_size) if training else None
        return dataset.batches(self.batch_size, shuffle=training, lengths=lengths, n_batches=steps)

    def infer(self, x, **fit_params):
        return self.module_(x)

    def notify(self, method_name, **cb_kwargs):
        """Call a method of the net, then of the callbacks that implement it.

        A callback that stops the training does so at the end of the epoch. The epoch is then
        complete: it is evaluated, passed to the other callbacks and written as a checkpoint.
        """
        getattr(self, method_name)(self, **cb_kwargs)
        for callback in self._listeners(method_name):
            try:
                getattr(callback, method_name)(self, **cb_kwargs)
            except StopTraining:
                self._ended = True
            except KeyboardInterrupt:
                if self._interrupted():
                    raise
                # skorch's callbacks stop a training by raising KeyboardInterrupt.
                self._ended = True

    def partial_fit(self, X, y=None, **fit_params):
        """Train; see :meth:`fit_loop`."""
        if not self.initialized_:
            self.initialize()
        self._ended = False
        with watched_interrupts() as self._interrupted:
            self.notify("on_train_begin", X=X, y=y)
            self.fit_loop(X, y, **fit_params)
            self.notify("on_train_end", X=X, y=y)
        return self

    def _listeners(self, method_name):
        """Return the callbacks that implement a method."""
        # Calling the empty methods of all callbacks at each batch costs as much as a small layer.
        callbacks = self._callbacks_by_method.get(method_name)
        if callbacks is None:
            base_method = getattr(Callback, method_name)
            callbacks = [
                callback
                for _, callback in self.callbacks_
                if getattr(type(callback), method_name) is not base_method
            ]
            self._callbacks_by_method[method_name] = callbacks
        return callbacks

    def initialize_callbacks(self):
        self._callbacks_by_method = {}
        return super().initialize_callbacks()

    def initialize_optimizer(self, *args, **kwargs):
        """Make the optimizer, which updates large tables by row if it supports that."""
        # Callbacks that read gradients expect dense ones.
        reads_gradients = bool(self._listeners("on_grad_computed"))
        by_row = self.optimizer in ROW_OPTIMIZERS and not reads_gradients
        self.row_updates = RowUpdates(self.module_, by_row)
        super().initialize_optimizer(*args, **kwargs)
        self.row_updates.register(self.optimizer_)
        return self

    def on_train_begin(self, net, **kwargs):
        """Move the validation rows to the device, before callbacks are notified."""
        self.valid_rows = [
            valid.map(self._in_order_of_batches).to(self.device) for valid in self.valid_rows
        ]
        self.evaluator = Evaluator(
            self.module_,
            self.head,
            self.valid_rows,
            self.others,
            self.plan,
            self.group,
            self.seed,
        )

    def fit_loop(self, X, y=None, epochs=None, **fit_params):
        """Train for a number of epochs.

        Parameters
        ----------
        X : TrainingDataset
            Training rows.
        y : None
            Unused; targets are in `X`.
        epochs : int, optional
            Number of epochs; by default ``max_epochs``.

        Raises
        ------
        ValueError
            If the training diverges.
        LostWorkerError
            If another worker stopped.
        """
        rows = X.to(self.device)
        iterator = self.get_iterator(rows, training=True)
        self._parameters = list(self.module_.parameters())
        self._average = WeightAverage(self.module_, self.average_decay, self.row_updates.tables)
        first_valid = self.valid_rows[0] if self.valid_rows else None
        datasets = {"dataset_train": rows, "dataset_valid": first_valid}
        epochs = self.max_epochs if epochs is None else epochs
        if self.evaluate_first and self.valid_rows:
            self._set_training(False)
            self.initial_scores_ = self.evaluator.evaluate(self)
            for callback in self._listeners("on_epoch_end"):
                if hasattr(callback, "start_from"):
                    callback.start_from(self, self.initial_scores_)
        state = self.checkpoints.latest() if self.checkpoints is not None else None
        position = None
        if state is not None:
            position = load_loop_state(self, self._average, state)
            self._ended = position is not None and position.ends
            epochs = 0 if state["ended"] else epochs - len(self.history)
        try:
            for _ in range(epochs):
                epoch_rows = X.for_epoch(len(self.history))
                if epoch_rows is not X:
                    datasets["dataset_train"] = epoch_rows.to(self.device)
                    iterator = self.get_iterator(datasets["dataset_train"], training=True)
                self.notify("on_epoch_begin", **datasets)
                if position is not None:
                    # Callbacks that have just begun the epoch are in the middle of it.
                    load_callback_states(self, state)
                self._average.swap_out()
                self.run_single_epoch(iterator, True, "train", self.train_step, position=position)
                position = None
                self.row_updates.end_epoch()
                self._average.swap_in()
                self._evaluate()
                self._mark_best()
                self._end_epoch(datasets)
                if self._ended:
                    break
        finally:
            # The network has the averaged weights after an interrupt, too.
            self._average.swap_in()
        return self

    def _end_epoch(self, datasets):
        self.notify("on_epoch_end", **datasets)
        # All workers stop together: a single one would wait for the others forever.
        self._ended = self.group.sum([float(self._ended)])[0] > 0
        if self.checkpoints is not None:
            curve = np.asarray(self.history[:, self.monitor])
            best = int(np.argmin(curve if self.lower_is_better else -curve)) + 1
            state = loop_state(self, self._average, self._ended)
            self.checkpoints.write(len(self.history), state, best=best)

    def _write_within(self, position):
        """Write a checkpoint within an epoch."""
        self._average.swap_in()
        state = loop_state(self, self._average, self._ended, position)
        self.checkpoints.write_within(len(state["history"]), state)
        self._average.swap_out()

    def _in_order_of_batches(self, rows):
        """Return validation rows in the order in which they are cut into batches.

        Rows are sorted by the length of their lists, which saves padding, or are in a random order,
        the same in all epochs, if the loss of a row depends on the others of its batch.
        """
        if self.head.in_batch:
            generator = torch.Generator().manual_seed(self.seed)
            order = torch.randperm(len(rows), generator=generator)
            return rows.take(order)
        lengths = self.module_.padded_lengths(rows.frame)
        return rows if lengths is None else rows.take(lengths.argsort(stable=True))

    def run_single_epoch(self, iterator, training, prefix, step_fn, *, position=None, **fit_params):
        self._set_training(training)
        position = EpochPosition() if position is None else position
        pace = None if self.checkpoints is None else Pace(self.group, self.device)
        for batch in position.remaining(iterator, self.module_):
            self.notify("on_batch_begin", batch=batch, training=training)
            step = step_fn(batch)
            position.add(len(batch), step["loss"].detach(), step.pop("unit_loss", 0.0))
            self._average.update()
            self.notify("on_batch_end", batch=batch, training=training, **step)
            if pace is not None and position.steps < len(iterator) and pace.is_due():
                self._write_within(position)
        sums = [float(position.loss), float(position.unit_loss), position.n_rows]
        total, units, n_rows = self.group.sum(sums)
        loss = total / n_rows
        if not math.isfinite(loss):
            raise ValueError(
                f"the {prefix}ing loss became {loss} in epoch {len(self.history)}: training "
                f"diverged. Lower learning_rate (it is {self.lr}), or look for extreme values in y."
            )
        self.history.record(f"{prefix}_loss", loss)
        if "training" not in self.plan.names:
            several = self.head.scale is not None and self.head.out_features > 1
            value = units / n_rows if several else self.head.unit_mean(loss)
            self.history.record(f"training_{self.head.metric}", value)

    def train_step(self, batch, **fit_params):
        self.optimizer_.zero_grad()
        with self._autocast():
            outputs = self.infer(batch.frame)
        loss = self.criterion_(outputs.float(), batch.target, batch.weight)
        loss.backward()
        self.row_updates.coalesce()
        self.group.average_gradients(self._parameters, len(batch))
        if self._listeners("on_grad_computed"):
            named = list(self.module_.named_parameters())
            self.notify("on_grad_computed", named_parameters=named, batch=batch, training=True)
        if self.gradient_clip is not None:
            clip_gradients(self._parameters, self.gradient_clip)
        self.optimizer_.step()
        step = {"loss": loss, "y_pred": outputs.detach()}
        if self.head.scale is not None and self.head.out_features > 1:
            # With several targets of different units, the mean loss cannot be rescaled.
            losses = self.head.unit_loss(step["y_pred"].float(), batch.target)
            step["unit_loss"] = (losses.mean(1) * batch.weight).mean()
        return step

    def _evaluate(self):
        self._set_training(False)
        for name, value in self.evaluator.evaluate(self).items():
            self.history.record(name, value)
        if self.monitor.endswith(SMOOTHED):
            curve = self.history[:, self.monitor.removesuffix(SMOOTHED)]
            last = curve[-self.plan.stopping_metric.n_smoothed :]
            self.history.record(self.monitor, float(np.mean(last)))

    def _mark_best(self):
        # skorch's scoring callbacks record these entries, and its Checkpoint callback reads them.
        for name in [name for name in self.history[-1] if LOSS_NAME.fullmatch(name)]:
            curve = self.history[:, name]
            self.history.record(f"{name}_best", curve[-1] <= min(curve))

    # The following methods are those that scikit-learn's scorers, called by skorch's EpochScoring,
    # need of an estimator. Targets are encoded: classes are numbered, numbers are standardised.

    @property
    def classes_(self):
        return np.arange(max(self.head.out_features, 2))

    @torch.no_grad()
    def forward_iter(self, X, training=False, device="cpu"):
        self._set_training(training)
        for batch in BatchIterator(X, eval_batch_size(X, self.head.in_batch)):
            yield self.infer(batch.frame).to(device)

    def predict_proba(self, X):
        combined = [
            self.head.average_members(outputs.float())[:, 0] for outputs in self.forward_iter(X)
        ]
        return self.head.predict(torch.cat(combined)).cpu().numpy()

    def predict(self, X):
        predictions = self.head.decide(self.predict_proba(X))
        one_column = predictions.ndim == 2 and predictions.shape[1] == 1
        return predictions[:, 0] if one_column else predictions

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.estimator_type = self.head.estimator_type
        tags.classifier_tags = ClassifierTags()
        tags.regressor_tags = RegressorTags()
        return tags

    def _autocast(self):
        return torch.autocast(
            torch.device(self.device).type,
            dtype=torch.bfloat16,
            enabled=supports_bfloat16(self.device),
        )


class Pace:
    """Decides after which steps of an epoch a checkpoint is due, the same ones in all workers.

    Parameters
    ----------
    group : SingleProcess or ProcessGroup
        Workers, which agree on the slowest one's time.
    device : str
        Device of the training.

    Notes
    -----
    Workers only communicate after the steps that were agreed on before: a clock that is read in
    each of them would let one write while the others go on.
    """

    def __init__(self, group, device):
        self.group = group
        self.device = torch.device(device)
        self.n_steps, self.next_step, self.begin = 0, TIMED_STEPS, None

    def is_due(self):
        """Count a step; return whether a checkpoint is due after it."""
        self.n_steps += 1
        if self.begin is None:
            # Reading the first rows, and those that a resumed epoch passes over, is not a step.
            self.begin = perf_counter()
        if self.n_steps < self.next_step:
            return False
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = max(self.group.gather(perf_counter() - self.begin)) / (self.n_steps - 1)
        interval = max(TIMED_STEPS, int(CHECKPOINT_SECONDS / seconds))
        if self.n_steps == TIMED_STEPS < interval:
            self.next_step = interval
            return False
        self.next_step = self.n_steps + interval
        return True


def supports_bfloat16(device):
    """Return whether a device multiplies bfloat16 matrices faster than float32 matrices."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported()


def clip_gradients(parameters, limit):
    """Scale gradients so that their total norm is at most `limit`.

    Takes a third of the time of :func:`torch.nn.utils.clip_grad_norm_`, which first groups them by
    device and type.
    """
    gradients = gradient_values(parameters)
    norm = torch.stack(torch._foreach_norm(gradients)).norm()
    torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))


class WeightAverage:
    """Exponential moving average of a module's parameters, which evaluation and prediction use.

    Parameters
    ----------
    module : torch.nn.Module
        Module whose parameters are averaged.
    decay : float
        Decay of the average per step; 0 for no averaging.
    excluded : list of torch.nn.Parameter, default=()
        Parameters that are not averaged.

    Notes
    -----
    Early updates use a smaller decay, ``(1 + t) / (10 + t)`` at step t, so that the weight of the
    initial parameters decreases quickly.
    """

    def __init__(self, module, decay, excluded=()):
        self.decay = decay
        left_out = {id(parameter) for parameter in excluded}
        averaged = [p for p in module.parameters() if p.requires_grad and id(p) not in left_out]
        self.parameters = averaged if decay else []
        self.shadow = [p.detach().clone() for p in self.parameters]
        self.steps = 0
        self.swapped = False

    @torch.no_grad()
    def update(self):
        """Update the average with the parameters after a step."""
        if not self.parameters:
            return
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.shadow, [p.data for p in self.parameters], 1 - decay)

    def swap_in(self):
        """Replace the module's parameters by their average, unless it has the average already."""
        if not self.swapped:
            self._swap()

    def swap_out(self):
        """Replace the average in the module by the parameters of the last step."""
        if self.swapped:
            self._swap()

    def _swap(self):
        for parameter, shadow in zip(self.parameters, self.shadow, strict=True):
            parameter.data, shadow.data = shadow.data, parameter.data
        self.swapped = not self.swapped
