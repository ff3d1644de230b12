"""The training loop: a skorch net, its schedules, and how it is stopped."""

from __future__ import annotations

import math
import re
import signal
import threading
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import torch
from sklearn.utils import ClassifierTags, RegressorTags
from skorch import NeuralNet
from skorch.callbacks import Callback, EarlyStopping
from torch import nn

from sk_easytensor.training.checkpoint import load_loop_state, loop_state
from sk_easytensor.training.dataset import BatchIterator
from sk_easytensor.training.distributed import SingleProcess
from sk_easytensor.training.evaluation import EVAL_BATCH_SIZE, EvalPlan, Evaluator

__all__ = [
    "BestEpoch",
    "StepSchedule",
    "StopTraining",
    "TensorNet",
    "WeightedLoss",
    "watched_interrupts",
]


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


class BestEpoch(EarlyStopping):
    """skorch's early stopping by the loss or metric that the net monitors.

    Parameters
    ----------
    patience : int
        Epochs without a better value after which training ends.
    load_best : bool, default=True
        Whether the weights of the best epoch are restored at the end.
    """

    def __init__(self, patience, load_best=True):
        super().__init__(patience=patience, threshold=0, load_best=load_best, sink=_silent)

    def on_train_begin(self, net, **kwargs):
        """Forget earlier trainings."""
        self.monitor, self.lower_is_better = net.monitor, net.lower_is_better
        super().on_train_begin(net, **kwargs)

    def start_from(self, net, scores):
        """Take the initial weights for epoch 0, which has the given scores."""
        self.dynamic_threshold_ = scores[self.monitor]
        if self.load_best:
            self.best_model_weights_ = deepcopy(net.module_.state_dict())


def _silent(text):
    """Keep skorch's early stopping from printing."""


class StepSchedule(Callback):
    """Warm up, hold, and anneal to a small fraction over the planned number of epochs.

    Parameters
    ----------
    max_epochs : int
        Epochs the whole schedule takes.
    warm_up : float, default=0.02
        Fraction of the steps with a rising rate.
    hold : float, default=0.1
        Fraction of the steps before annealing begins.
    final : float, default=0.02
        Last rate over the first.
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
        """Return the rate at some progress, from 0 to 1, over the full rate."""
        if progress < self.warm_up:
            return (progress + 1e-3) / (self.warm_up + 1e-3)
        if progress < self.hold:
            return 1.0
        fraction = min((progress - self.hold) / (1 - self.hold), 1.0)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * fraction))


LOSS_NAME = re.compile(r"train_loss|valid(_\d+)?_loss")
"""Losses of the network, on the scale of training, as skorch names them."""


class WeightedLoss(nn.Module):
    """Weighted mean of a head's loss over rows and members.

    Parameters
    ----------
    head : Head
        Gives the loss of each row and member.
    """

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, outputs, target, weight):
        """Return the mean over the batch of weight times loss."""
        return (self.head.loss(outputs, target).mean(1) * weight).mean()


class TensorNet(NeuralNet):
    """A skorch net over :class:`~sk_easytensor.training.dataset.TrainingDataset`.

    Parameters
    ----------
    module : BlockNetwork
        Trained in place.
    head : Head
        For the loss.
    valid_rows : list of TrainingDataset
        Evaluated after each epoch; the loss of the first is recorded as ``valid_loss``, which
        callbacks may monitor, the others as ``valid_1_loss`` and so on.
    trees : TreesModule or None
        Trees that the network is averaged with when it is evaluated.
    plan : EvalPlan or None
        Names of the validation rows, and metrics.
    seed : int
        Of the sample that metrics are computed on, if there are many validation rows.
    evaluate_first : bool
        Whether the initial weights are evaluated as epoch 0, and kept if no epoch is better.
    average_decay : float
        Decay of the exponential moving average of the weights, with which the network is evaluated
        and left at the end; 0 for none.
    gradient_clip : float or None
        Largest norm of the gradient.
    checkpoints : Checkpoints or None
        Where the state after each epoch is written, and from which training resumes.
    group : SingleProcess or ProcessGroup
        The workers that train together, each with its share of the rows.
    **settings
        Passed to :class:`skorch.NeuralNet`.

    Notes
    -----
    Differs from skorch's loop where that costs time a batch: batches are slices of tensors, the
    loss is summed on the device, and an epoch's history is written once. It also differs where an
    interrupt would be lost: ``KeyboardInterrupt`` leaves `fit`, unless a callback raised it to end
    the training, as skorch's own do.
    """

    def __init__(
        self,
        module,
        *,
        head,
        valid_rows=(),
        trees=None,
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
        self.trees = trees
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
        """Name in the history of what decides which epoch is best."""
        if not self.valid_rows or not self.plan.decides:
            return "train_loss"
        if self.plan.stopping_metric is not None:
            return f"{self.plan.names[0]}_{self.plan.stopping_metric.name}"
        return "valid_loss" if self.trees is None else "blend_loss"

    @property
    def lower_is_better(self):
        """Whether a lower value of the monitor is better."""
        metric = self.plan.stopping_metric
        return self.monitor == "train_loss" or metric is None or not metric.greater_is_better

    def get_dataset(self, X, y=None):
        return X

    def get_iterator(self, dataset, training=False):
        lengths = self.module_.padded_lengths
        steps = self.group.steps(len(dataset), self.batch_size) if training else None
        return dataset.batches(self.batch_size, shuffle=training, lengths=lengths, n_batches=steps)

    def infer(self, x, **fit_params):
        return self.module_(x)

    def notify(self, method_name, **cb_kwargs):
        """Call the callbacks that implement a method, the net's own first.

        A callback that ends the training does so at the end of the epoch, which is complete then:
        evaluated, seen by the other callbacks and kept as a checkpoint.
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
                # skorch's callbacks end a training with the exception of Ctrl-C.
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
        # Asking every callback at every batch costs as much as a small layer.
        found = self._listening.get(method_name)
        if found is None:
            silent = getattr(Callback, method_name)
            found = [
                callback
                for _, callback in self.callbacks_
                if getattr(type(callback), method_name) is not silent
            ]
            self._listening[method_name] = found
        return found

    def initialize_callbacks(self):
        self._listening = {}
        return super().initialize_callbacks()

    def on_train_begin(self, net, **kwargs):
        """Bring the validation rows to the device, before callbacks are notified."""
        self.valid_rows = [valid.to(self.device).map(self._by_length) for valid in self.valid_rows]
        self.evaluator = Evaluator(
            self.module_,
            self.head,
            self.valid_rows,
            self.trees,
            self.plan,
            self.group,
            self.seed,
        )

    def fit_loop(self, X, y=None, epochs=None, **fit_params):
        """Train for some epochs.

        Parameters
        ----------
        X : TrainingDataset
            Training rows.
        y : None
            Unused; targets are in `X`.
        epochs : int, optional
            Instead of ``max_epochs``.
        """
        rows = X.to(self.device)
        iterator = self.get_iterator(rows, training=True)
        self._parameters = list(self.module_.parameters())
        self._average = WeightAverage(self.module_, self.average_decay)
        first_valid = self.valid_rows[0] if self.valid_rows else None
        about = {"dataset_train": rows, "dataset_valid": first_valid}
        epochs = self.max_epochs if epochs is None else epochs
        if self.evaluate_first and self.valid_rows:
            self._set_training(False)
            self.initial_scores_ = self.evaluator.evaluate(self)
            for callback in self._listeners("on_epoch_end"):
                if hasattr(callback, "start_from"):
                    callback.start_from(self, self.initial_scores_)
        state = self.checkpoints.latest() if self.checkpoints is not None else None
        if state is not None:
            load_loop_state(self, self._average, state)
            epochs = 0 if state["ended"] else epochs - len(self.history)
        try:
            for _ in range(epochs):
                fresh = X.for_epoch(len(self.history))
                if fresh is not X:
                    about["dataset_train"] = fresh.to(self.device)
                    iterator = self.get_iterator(about["dataset_train"], training=True)
                self.notify("on_epoch_begin", **about)
                self._average.swap_out()
                self.run_single_epoch(iterator, True, "train", self.train_step)
                self._average.swap_in()
                self._evaluate()
                self._mark_best()
                self._end_epoch(about)
                if self._ended:
                    break
        finally:
            # Also when interrupted: what is kept is the average.
            self._average.swap_in()
        return self

    def _end_epoch(self, about):
        self.notify("on_epoch_end", **about)
        # Workers end together: one that went on alone would wait for the others for ever.
        self._ended = self.group.sum([float(self._ended)])[0] > 0
        if self.checkpoints is not None:
            curve = np.asarray(self.history[:, self.monitor])
            best = int(np.argmin(curve if self.lower_is_better else -curve)) + 1
            state = loop_state(self, self._average, self._ended)
            self.checkpoints.write(len(self.history), state, best=best)

    def _by_length(self, rows):
        """Put rows of like length together, which saves padding."""
        lengths = self.module_.padded_lengths(rows.frame)
        return rows if lengths is None else rows.take(lengths.argsort(stable=True))

    def run_single_epoch(self, iterator, training, prefix, step_fn, **fit_params):
        self._set_training(training)
        total, n_rows, units = 0.0, 0, 0.0
        for batch in iterator:
            self.notify("on_batch_begin", batch=batch, training=training)
            step = step_fn(batch)
            total = total + step["loss"].detach() * len(batch)
            units = units + step.pop("unit_loss", 0.0) * len(batch)
            n_rows += len(batch)
            self._average.update()
            self.notify("on_batch_end", batch=batch, training=training, **step)
        total, units, n_rows = self.group.sum([float(total), float(units), n_rows])
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
        self.group.average_gradients(self._parameters, len(batch))
        if self._listeners("on_grad_computed"):
            named = list(self.module_.named_parameters())
            self.notify("on_grad_computed", named_parameters=named, batch=batch, training=True)
        if self.gradient_clip is not None:
            clip_gradients(self._parameters, self.gradient_clip)
        self.optimizer_.step()
        step = {"loss": loss, "y_pred": outputs.detach()}
        if self.head.scale is not None and self.head.out_features > 1:
            # The loss is a mean over targets whose units differ.
            losses = self.head.unit_loss(step["y_pred"].float(), batch.target)
            step["unit_loss"] = (losses.mean(1) * batch.weight).mean()
        return step

    def _evaluate(self):
        self._set_training(False)
        for name, value in self.evaluator.evaluate(self).items():
            self.history.record(name, value)

    def _mark_best(self):
        # What skorch's own scoring records and its checkpoint callback reads.
        for name in [name for name in self.history[-1] if LOSS_NAME.fullmatch(name)]:
            curve = self.history[:, name]
            self.history.record(f"{name}_best", curve[-1] <= min(curve))

    # What scikit-learn's scorers, called by skorch's EpochScoring, ask of an estimator. Targets are
    # encoded: classes are numbered, numbers are standardised.

    @property
    def classes_(self):
        return np.arange(max(self.head.out_features, 2))

    @torch.no_grad()
    def forward_iter(self, X, training=False, device="cpu"):
        self._set_training(training)
        for batch in BatchIterator(X, EVAL_BATCH_SIZE):
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


def supports_bfloat16(device):
    """Tell whether a device multiplies bfloat16 matrices faster than float32 ones."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported()


def clip_gradients(parameters, limit):
    """Scale gradients down to a norm of `limit` over all of them, if it is larger.

    In a third of the time of :func:`torch.nn.utils.clip_grad_norm_`, which first sorts them by
    device and type.
    """
    gradients = [each.grad for each in parameters if each.grad is not None]
    norm = torch.stack(torch._foreach_norm(gradients)).norm()
    torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))


class WeightAverage:
    """Exponential moving average of a module's parameters, swapped in to evaluate and keep.

    Parameters
    ----------
    module : torch.nn.Module
        Whose parameters are averaged.
    decay : float
        0 for no averaging.

    Notes
    -----
    Early updates use a smaller decay, ``(1 + t) / (10 + t)`` at step t, so that the average
    forgets the initial weights quickly.
    """

    def __init__(self, module, decay):
        self.decay = decay
        self.parameters = [p for p in module.parameters() if p.requires_grad] if decay else []
        self.shadow = [p.detach().clone() for p in self.parameters]
        self.steps = 0
        self.swapped = False

    @torch.no_grad()
    def update(self):
        """Take in the weights of one more step."""
        if not self.parameters:
            return
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.shadow, [p.data for p in self.parameters], 1 - decay)

    def swap_in(self):
        """Put the average into the module."""
        if not self.swapped:
            self._swap()

    def swap_out(self):
        """Put the training weights back."""
        if self.swapped:
            self._swap()

    def _swap(self):
        for parameter, shadow in zip(self.parameters, self.shadow, strict=True):
            parameter.data, shadow.data = shadow.data, parameter.data
        self.swapped = not self.swapped
