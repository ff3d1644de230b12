"""How vectors that another model gives enter a network."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["UnitScale", "VectorProjection"]


class VectorProjection(nn.Module):
    """Bring vectors to a scale and project them linearly, column by column.

    Parameters
    ----------
    dimension : int
        Size of the vectors.
    n_columns : int
        Vectors a row.
    width : int
        Size of each column's projection.
    dropout : float
        Fraction of the projections' components zeroed in training.
    norm : torch.nn.Module, optional
        What vectors go through first; by default layer normalisation.
    """

    def __init__(self, dimension, n_columns, width, dropout=0.0, norm=None):
        super().__init__()
        self.dimension = dimension
        self.out_features = n_columns * width
        # The components of vectors of length one are small, and smaller in larger models.
        self.norm = nn.LayerNorm(dimension) if norm is None else norm
        self.projections = nn.ModuleList(nn.Linear(dimension, width) for _ in range(n_columns))
        self.missing = nn.Parameter(torch.zeros(n_columns, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors):
        """Return the projections of all columns.

        Parameters
        ----------
        vectors : torch.Tensor of shape (batch, n_columns, dimension)
            NaN for missing ones.

        Returns
        -------
        torch.Tensor of shape (batch, n_columns * width)
        """
        absent = vectors[..., :1].isnan()
        hidden = self.norm(vectors.masked_fill(absent, 0.0)).unbind(1)
        pairs = zip(self.projections, hidden, strict=True)
        projected = torch.stack([projection(column) for projection, column in pairs], dim=1)
        return self.dropout(torch.where(absent, self.missing, projected).flatten(1))


class UnitScale(nn.Module):
    """Divide by one number, so that components are of size one in the mean of the first batch.

    Notes
    -----
    Directions and lengths keep what they say, which normalising each vector or each component
    would take away. Learning a scale from the first batch is the idea of Salimans and Kingma,
    "Weight Normalization" (2016). It is kept with the weights.
    """

    def __init__(self):
        super().__init__()
        # Zero until there was a batch.
        self.register_buffer("factor", torch.zeros(()))

    def forward(self, vectors):
        """Return the vectors times the factor."""
        if self.training and self.factor == 0:
            size = vectors.detach().float().square().mean().sqrt()
            self.factor.copy_(torch.where(size > 0, 1 / size, 0.0))
        return vectors * torch.where(self.factor > 0, self.factor, 1.0)
