"""Training of the networks of an estimator: one, or one for each fold of a cross-validation."""

from __future__ import annotations

import logging
from copy import deepcopy
from functools import partial
from numbers import Integral

import numpy as np
import torch
from sklearn.base import clone

from sk_easytensor._utils.runtime import seeded
from sk_easytensor.estimators.state import to_numpy
from sk_easytensor.inspection import Inspection
from sk_easytensor.metrics import MetricScores
from sk_easytensor.networks.block_network import copy_network, make_network
from sk_easytensor.networks.ensemble import join_networks
from sk_easytensor.training.blend import MIN_TREE_ROWS
from sk_easytensor.training.evaluation import EvalPlan
from sk_easytensor.training.ridge import prefers_linear
from sk_easytensor.training.train import (
    default_table_epochs,
    default_table_patience,
    join_results,
    resolve_optimizer,
)
from sk_easytensor.trees import BoostedTrees

__all__ = [
    "NetworkTrainingMixin",
    "check_n_folds",
]


logger = logging.getLogger("sk_easytensor")

FOLDS_OF_FEW_ROWS = 5
"""Number of folds that ``n_folds="auto"`` means for few rows."""

FEWEST_ROWS, FEW_ROWS = 50, 2_500
"""Smallest and largest number of rows for which ``n_folds="auto"`` means folds."""

SEED_STEP = 100_003
"""Difference of the seeds of the networks of consecutive folds."""


def stratum_sizes(rows, target):
    """Return the number of rows of positive weight in each stratum of a data set."""
    counts = {}
    for strata in rows.map_chunks(partial(known_strata, target=target)):
        for stratum, count in zip(*np.unique(strata, return_counts=True), strict=True):
            counts[stratum] = counts.get(stratum, 0) + int(count)
    return list(counts.values())


def known_strata(rows, target):
    """Return the strata of the rows of positive weight of a chunk."""
    strata = target.strata(rows.target)
    return strata if rows.weight is None else strata[(rows.weight > 0).numpy()]


def check_n_folds(owner, n_folds):
    """Raise ``ValueError`` unless `n_folds` is None, ``"auto"`` or an integer of at least 2."""
    is_number = isinstance(n_folds, Integral) and not isinstance(n_folds, bool) and n_folds >= 2
    is_named = n_folds is None or (isinstance(n_folds, str) and n_folds == "auto")
    if not (is_number or is_named):
        raise ValueError(
            f"{owner}: n_folds must be an integer of at least 2, 'auto' or None, got {n_folds!r}"
        )


class NetworkTrainingMixin:
    """Methods that decide on folds, train a network for each, and compute out-of-fold outputs."""

    def _resolve_n_folds(self, rows, names, backend, resuming):
        """Return the number of folds of a fit, or None for one network.

        Parameters
        ----------
        rows : Dataset
            Encoded rows.
        names : list of str
            Names of the evaluation sets.
        backend : Backend
            Backend of the fit.
        resuming : bool
            Whether the networks of a former fit are trained again.
        """
        owner, decided = type(self).__name__, not set(names) <= {"training"}
        if self.n_folds is None:
            return None
        n_networks = len(self.network_.networks) if resuming else 1
        keeps_folds = n_networks > 1 and not decided
        holds_out = not decided and self.validation_fraction is not None
        begins_folds = holds_out and not backend.distributed and not self.warm_start
        if self.n_folds == "auto" and not (keeps_folds or begins_folds):
            # Decided before targets are read again, which takes tasks on a cluster.
            return None
        # Rows of a class whose weight is 0 cannot be held out.
        sizes = stratum_sizes(rows, self._target)
        n_rows = sum(sizes)
        if self.n_folds == "auto":
            if keeps_folds and n_rows >= n_networks:
                # Networks of folds do not see the rows that they were validated on.
                return n_networks
            is_small = FEWEST_ROWS <= n_rows <= FEW_ROWS
            if not (begins_folds and is_small) or self._is_linear():
                return None
            # Without a row of each class, some metrics are not defined.
            is_scored = self.eval_metric is None or min(sizes) >= FOLDS_OF_FEW_ROWS
            return FOLDS_OF_FEW_ROWS if is_scored else None
        if decided:
            raise ValueError(
                f"{owner}: n_folds={self.n_folds} holds out rows of X to decide about early "
                "stopping, so that eval_set cannot decide; set n_folds=None, or evaluate the "
                "fitted model on the rows of eval_set"
            )
        if n_rows < self.n_folds:
            raise ValueError(
                f"{owner}: n_folds={self.n_folds} must be at most the number of rows of positive "
                f"weight, got {n_rows} of them"
            )
        return self.n_folds

    def _is_linear(self):
        """Return whether a linear model will read all blocks.

        It is fitted on all rows without folds, and folds of the network do not improve it.
        """
        if self.linear is None:
            return False
        with seeded(0):
            network = make_network(self.blocks_, self._new_trunk(), self._head)
        return prefers_linear(network, self._head)

    def _train(
        self,
        rows,
        evals,
        batch_size,
        random_state,
        backend,
        resuming,
        *,
        epochs=None,
        keep=False,
        checkpoints=None,
        was_held_out=False,
        folds=None,
    ):
        """Train one network, or one for each fold, and set the fitted attributes.

        Parameters
        ----------
        rows : Dataset
            Training rows; with `folds` all rows.
        evals : dict of {str: Dataset}
            Rows to evaluate, by name; the first data set decides about early stopping.
        was_held_out : bool, default=False
            Whether the rows that decide were held out of the rows that `fit` was given.
        folds : Folds, optional
            Training and validation rows of each network.
        """
        seed = int(random_state.randint(np.iinfo(np.int32).max))
        if resuming:
            # With the same seed, every call would shuffle rows and drop units in the same way.
            seed += self.n_iter_
        target, encoder, offset = self._target, self._encoder, None
        if encoder.offset_block is not None:
            offset = (encoder.offset_block, encoder.offset_column_)
        rows = rows.normalize_weights()
        target.learn_scale(rows, resuming=resuming, offset=offset)
        if not resuming:
            target.check_loss(rows)
            self._network_trunk = self._new_trunk()
        previous = list(self.network_.networks) if resuming else None
        parts = self._parts_of_networks(rows, evals, folds, previous)
        networks, results = [], []
        for number, (train, valid) in enumerate(parts):
            settings = self._network_settings(
                train, valid, batch_size, seed, number, resuming, epochs=epochs, keep=keep
            )
            settings.checkpoints, settings.held_out = checkpoints, was_held_out
            if len(parts) > 1:
                settings.checkpoints = checkpoints and checkpoints.part(f"fold{number}")
                self._begin_fold(number)
            if folds is not None:
                # Otherwise some folds might have trees and others not.
                settings.min_tree_rows = 0
                settings.trees = settings.trees if len(rows) >= MIN_TREE_ROWS else None
            train, *valid = (part.map(target.scaled) for part in (train, *valid.values()))
            with seeded(settings.seed):
                # If this training fails, the previous network must be unchanged.
                network = copy_network(previous[number]) if resuming else self._new_network()
                inspection = Inspection(target, encoder, settings.seed, len(parts))
                result = backend.train(network, target.head_, train, valid, settings, inspection)
            networks.append(network)
            results.append(result)
        self._store_networks(networks, results, resuming, keep)

    def _store_networks(self, networks, results, resuming, keep):
        """Set the fitted attributes of trained networks."""
        self.network_ = join_networks(networks).eval()
        result = join_results(results)
        self._record_training(result, resuming)
        before = self.fit_times_
        added = {name: before.get(name, 0.0) + s for name, s in result.other_seconds.items()}
        self.fit_times_ = {**before, **added}
        self.tree_weight_, self.linear_weight_ = self._target.model_weights(networks)
        logger.info(
            "%s: the weight of the trees is %s, of the linear model %s",
            type(self).__name__,
            self.tree_weight_,
            self.linear_weight_,
        )
        self._use_torch()
        self._n_features_out = self.network_.representation_features
        for name in ("_importances", "_importances_std", "oof_prediction_"):
            vars(self).pop(name, None)
        self._fitted_structure = self._structure()
        self._optimizer_state = None
        if keep or self.warm_start:
            states = [result.optimizer_state for result in results]
            kind = resolve_optimizer(self.optimizer, type(self).__name__).__name__
            unseen = [result.linear and result.linear.state() for result in results]
            self._optimizer_state = {"kind": kind, "networks": states, "linear": unseen}
        vars(self).update(Inspection.join([result.inspected for result in results]))

    def _parts_of_networks(self, rows, evals, folds, previous):
        """Return training rows, and rows to evaluate by name, for each network to train.

        Without folds, several networks have the same rows: those of a former fit, which
        `partial_fit` continues, or those that it begins with.
        """
        if folds is None:
            n_networks = self.n_folds if isinstance(self.n_folds, Integral) else 1
            return [(rows, evals)] * (n_networks if previous is None else len(previous))
        return [
            (train.normalize_weights(), {"valid_0": valid, **evals}) for train, valid in folds.parts
        ]

    def _new_trunk(self):
        return self._default_trunk() if self.trunk is None else clone(self.trunk)

    def _new_network(self):
        return make_network(self.blocks_, self._network_trunk, self._head)

    def _network_settings(
        self, rows, evals, batch_size, seed, number, resuming, *, epochs=None, keep=False
    ):
        """Return the settings of the training of one network, whose number is that of its fold."""
        is_automatic = epochs is None and self.max_epochs is None
        if epochs is None:
            epochs = self.max_epochs or default_table_epochs(len(rows))
        plan = EvalPlan()
        if not keep:
            metrics, stopping = self._target.metrics(self.eval_metric, self.stopping_metric)
            plan = self._eval_plan(evals, metrics, MetricScores(self._target, metrics), stopping)
        # With one epoch a call, the number of epochs is unknown, and so is a schedule's length.
        settings = self._settings(
            batch_size,
            epochs,
            plan,
            annealed=not keep,
            patience=lambda _: default_table_patience(len(rows), batch_size),
        )
        settings.evaluate_first = resuming
        state, kind = getattr(self, "_optimizer_state", None), settings.optimizer.__name__
        if resuming and state is not None and state["kind"] == kind:
            settings.optimizer_state = deepcopy(state["networks"][number])
        if resuming and state is not None:
            # A pickled state has tensors.
            settings.unseen_linear = to_numpy(state.get("linear", {number: None})[number])
        settings.seed = (seed + number * SEED_STEP) % 2**32
        if not resuming and not keep and self.trees is not None:
            settings.trees = BoostedTrees() if self.trees == "auto" else self.trees
        settings.automatic_epochs = is_automatic
        settings.linear = not resuming and not keep and self.linear is not None
        return settings

    def _fold_outputs(self, folds, backend):
        """Return the raw outputs for each row of the network that did not train on it.

        Returns
        -------
        torch.Tensor of shape (n_rows, out_features)
            NaN for rows that no fold held out.
        """
        outputs = [
            backend.forward(
                partial(network.average_members, head=self._head),
                valid.frame,
                lengths=network.padded_lengths(valid.frame),
            )[:, 0]
            for network, (_, valid) in zip(self.network_.networks, folds.parts, strict=True)
        ]
        joined = torch.full((folds.n_rows, outputs[0].shape[1]), torch.nan)
        joined[torch.from_numpy(np.concatenate(folds.rows))] = torch.cat(outputs)
        return joined
