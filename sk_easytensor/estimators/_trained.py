"""What all estimators share that train a network: how to train, and what comes of it."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from sk_easytensor.networks import TabM
from sk_easytensor.parameters import GrowingParametersMixin, check_number
from sk_easytensor.training.settings import (
    TrainingSettings,
    check_callbacks,
    default_patience,
    resolve_device,
    resolve_optimizer,
)

__all__ = ["TrainedEstimator"]


class TrainedEstimator(
    GrowingParametersMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
    """Base of the estimators that train a network; subclasses have the parameters used here."""

    def get_params(self, deep=True):
        """Return the parameters, those of named blocks and of the trunk included.

        The trunk's are there even while ``trunk`` is None, so that ``trunk__dropout`` can be
        searched without naming a trunk.

        Parameters
        ----------
        deep : bool, default=True
            Whether to include nested parameters.

        Returns
        -------
        dict
        """
        params = super().get_params(deep=deep)
        if deep and self.trunk is None:
            defaults = self._default_trunk().get_params()
            params.update({f"trunk__{name}": value for name, value in defaults.items()})
        return params

    def set_params(self, **params):
        """Set parameters, nested ones included.

        Parameters
        ----------
        **params : dict
            Keys as :meth:`get_params` returns them.

        Returns
        -------
        self
        """
        if params.get("trunk", self.trunk) is None and any(k.startswith("trunk__") for k in params):
            params = {**params, "trunk": self._default_trunk()}
        return super().set_params(**params)

    def _default_trunk(self):
        return TabM()

    def _check_parameters(self):
        owner = type(self).__name__
        check_number(owner, "learning_rate", self.learning_rate, low=0, exclusive=True)
        check_number(owner, "weight_decay", self.weight_decay, low=0)
        for name in ("batch_size", "max_epochs", "early_stopping_rounds"):
            value = getattr(self, name)
            automatic = name == "early_stopping_rounds" and value == "auto"
            if value is not None and not automatic:
                check_number(owner, name, value, low=1, integer=True)
        fraction = self.validation_fraction
        if fraction is not None:
            check_number(owner, "validation_fraction", fraction, low=0, high=1, exclusive=True)
        if self.trunk is not None:
            if isinstance(self.trunk, type) or not hasattr(self.trunk, "make_module"):
                raise ValueError(
                    f"{owner}: trunk must have make_module(in_features), such as MLP() or TabM(), "
                    f"got {self.trunk!r}"
                )
            if hasattr(self.trunk, "check_parameters"):
                self.trunk.check_parameters()
        resolve_optimizer(self.optimizer, owner)
        resolve_device(self.device, owner)
        if not isinstance(self.verbose, (bool, np.bool_)):
            check_number(owner, "verbose", self.verbose, low=0, integer=True)
        check_callbacks(self.callbacks, owner)

    def _forget(self):
        """Drop what an earlier fit learned."""
        for name in [name for name in vars(self) if name.endswith("_") and name[0] != "_"]:
            delattr(self, name)

    def _settings(self, batch_size, epochs, *, annealed=True):
        """Return how to train, from the parameters."""
        owner = type(self).__name__
        patience = self.early_stopping_rounds
        if patience == "auto":
            patience = default_patience(epochs)
        return TrainingSettings(
            learning_rate=self.learning_rate,
            batch_size=batch_size,
            max_epochs=epochs,
            optimizer=resolve_optimizer(self.optimizer, owner),
            weight_decay=self.weight_decay,
            early_stopping_rounds=patience,
            device=resolve_device(self.device, owner),
            verbose=self.verbose,
            callbacks=list(self.callbacks or []),
            annealed=annealed,
        )

    def _record_losses(self, result, metric, going_on=False):
        """Set what a user may ask about a training: curves, epochs, the best of them."""
        names = {"train_loss": "training", "valid_loss": "valid_0"}
        evals = self.evals_result_ if going_on else {}
        before = len(next(iter(evals.values()))[metric]) if evals else 0
        for key in result.history[0]:
            if key.endswith("_loss"):
                name = names.get(key, key.removesuffix("_loss"))
                curve = [float(epoch[key]) for epoch in result.history]
                evals.setdefault(name, {metric: []})[metric].extend(curve)
        self.evals_result_ = evals
        self.n_iter_ = before + len(result.history)
        self.best_iteration_ = before + result.best_iteration
        judged = evals["valid_0" if "valid_loss" in result.history[0] else "training"]
        self.best_score_ = judged[metric][self.best_iteration_ - 1 - self.n_iter_]
