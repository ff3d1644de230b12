"""Linear model beside a network: its outputs from many fixed features of some blocks."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from sk_easytensor.networks.heads import weighted_mean

__all__ = [
    "LinearModule",
    "indicator_weights",
]


class LinearModule(nn.Module):
    """Linear model, and the blend of its outputs with those of the network and the trees.

    Attributes
    ----------
    is_final : bool
        Whether the weights are not chosen again, because the model was fitted on validation rows.
    prior_share : float
        Weight of the other models before it is chosen, to which a penalty keeps it near.

    Parameters
    ----------
    names : list of str
        Names of the blocks with features of the model.
    weights : list of ndarray of float32, shape (n_features of the block, out_features)
        Coefficients of the features of each block.
    intercept : ndarray of float32, shape (out_features,)
        Intercept.
    share : float
        Weight of the outputs of the other models, in [0, 1]; the linear model has the rest.
    temperature : float, default=1.0
        Divisor of the weighted mean.
    few_rows : int, default=0
        Number of validation rows below which the penalty of weights grows: they would decide by
        chance.
    """

    def __init__(self, names, weights, intercept, share, temperature=1.0, few_rows=0):
        super().__init__()
        self.few_rows = few_rows
        self.names = list(names)
        self.arrays = [np.asarray(weight, dtype=np.float32) for weight in weights]
        for index, weight in enumerate(self.arrays):
            # Not part of the state dict, as the trees.
            tensor = torch.from_numpy(np.array(weight))
            self.register_buffer(f"weight_{index}", tensor, persistent=False)
        intercept = torch.from_numpy(np.array(intercept, dtype=np.float32))
        self.register_buffer("intercept", intercept, persistent=False)
        self.share = self.prior_share = share
        self.temperature = temperature
        self.is_final = False

    @classmethod
    def of_state(cls, state):
        """Return the module of a :meth:`state`."""
        module = cls(**state)
        module.is_final = True
        return module

    def state(self):
        """Return the state to pickle, of arrays and numbers."""
        return {
            "names": self.names,
            "weights": self.arrays,
            "intercept": self.intercept.cpu().numpy(),
            "share": self.share,
            "temperature": self.temperature,
        }

    @property
    def out_features(self):
        """Number of outputs."""
        return len(self.intercept)

    def weight(self, name):
        """Return the coefficients of a block's features, of shape (n_features, out_features)."""
        return getattr(self, f"weight_{self.names.index(name)}")

    def outputs(self, contributions):
        """Return the outputs, of shape (batch, 1, out_features), from those of all blocks."""
        return (sum(contributions) + self.intercept)[:, None, :]

    def join_outputs(self, combined, outputs):
        """Return the blend of the outputs of the other models and of the linear model.

        Parameters
        ----------
        combined : torch.Tensor of shape (batch, 1, out_features), or None
            Outputs of the other models; None if their weight is 0.
        outputs : torch.Tensor of shape (batch, 1, out_features)
            Outputs of the linear model.

        Returns
        -------
        torch.Tensor of shape (batch, 1, out_features)
        """
        if combined is None:
            combined = outputs
        return weighted_mean(combined, outputs, self.share, self.temperature)

    @property
    def needs_others(self):
        """Whether the weight of the other models is above 0."""
        return self.share > 0


def indicator_weights(fractions):
    """Return weights of indicators in a linear model, the square roots of their deviations.

    Standardized, the indicators of rare values would be penalized least.

    Parameters
    ----------
    fractions : ndarray of float64
        Fraction of rows for which each indicator is 1.
    """
    return (fractions * (1 - fractions)) ** 0.25
