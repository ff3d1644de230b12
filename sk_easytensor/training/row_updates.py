"""Updates of large embedding tables, whose cost depends on the rows that a batch contains."""

from __future__ import annotations

import torch

from sk_easytensor.networks.block_module import BlockModule
from sk_easytensor.training.distributed import sparse_rows

__all__ = [
    "ROW_OPTIMIZERS",
    "RowUpdates",
    "gradient_values",
]


ROW_OPTIMIZERS = (torch.optim.AdamW, torch.optim.Adam)
"""Optimizers whose large tables are updated by row; subclasses may change what a step does."""


SMALLEST_DECAY = 0.9
"""Factor of the weight decay of several steps from which on it is applied."""

LARGEST_SCALE = 1e6
"""Limit of the scale of stored second moments, at which a table's moments are scaled back."""


class RowUpdates:
    """Sparse gradients of a network's large tables, and row-wise Adam for them.

    Parameters
    ----------
    network : torch.nn.Module
        Network whose block modules have :meth:`~BlockModule.large_tables`. Their attribute
        ``sparse`` is set.
    enabled : bool
        Whether their gradients are sparse.

    Attributes
    ----------
    tables : list of torch.nn.Parameter
        Tables with sparse gradients.
    pending_decays : list of float
        Factor of the weight decay that is still to be applied to each table.

    Notes
    -----
    A step changes only the rows that occur in its batch. The state of the optimizer is one number a
    row, the moving average of the mean square of the row's gradient, which decays at every step as
    Adam's does (Kingma and Ba, 2015). There is no average of gradients: Adam applies the gradient
    of a row that no later batch contains in ten parts or so, and this update at once. Weight decay
    is applied to all rows every hundred steps or so, whenever it would change them by a tenth, and
    at the end of an epoch. The moving average of the weights leaves these tables out, because most
    rows did not change in the steps over which it averages.
    """

    def __init__(self, network, enabled):
        self.tables = []
        self._modules = [m for m in network.modules() if isinstance(m, BlockModule)]
        for module in self._modules:
            module.sparse = enabled
            if enabled:
                self.tables += [t for t in module.large_tables() if t.requires_grad]
        self.pending_decays = [1.0] * len(self.tables)

    def register(self, optimizer):
        """Update the tables before each step of an optimizer, which then finds no gradients.

        Parameters
        ----------
        optimizer : torch.optim.Adam or torch.optim.AdamW
            Its groups give learning rates, betas, epsilon and weight decay of the tables.
        """
        if self.tables:
            optimizer.register_step_pre_hook(self._update)

    def disable(self):
        """Let the network have dense gradients again, after the training."""
        for module in self._modules:
            module.sparse = False

    def coalesce(self):
        """Sum the gradients of rows that occur several times in a batch."""
        for table in self.tables:
            if table.grad is None:
                # A module may not have read the table. All workers have a gradient of it.
                rows = torch.empty(1, 0, dtype=torch.int64, device=table.device)
                values = torch.empty(0, table.shape[1], dtype=table.dtype, device=table.device)
                table.grad = sparse_rows(rows, values, table.shape)
            elif not table.grad.is_sparse:
                table.grad = table.grad.to_sparse(1)
            table.grad = table.grad.coalesce()

    def end_epoch(self):
        """Apply the weight decay that is pending."""
        for index in range(len(self.tables)):
            self._decay(index)

    @torch.no_grad()
    def _decay(self, index):
        if self.pending_decays[index] != 1.0:
            self.tables[index].mul_(self.pending_decays[index])
            self.pending_decays[index] = 1.0

    @torch.no_grad()
    def _update(self, optimizer, args, kwargs):
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        for index, table in enumerate(self.tables):
            if table.grad is None:
                continue
            group = groups[id(table)]
            rows, values = table.grad.indices()[0], table.grad.values()
            self.pending_decays[index] *= 1 - group["lr"] * group["weight_decay"]
            if self.pending_decays[index] < SMALLEST_DECAY:
                self._decay(index)
            self._update_rows(table, rows, values, group, optimizer.state[table])
            table.grad = None

    def _update_rows(self, table, rows, values, group, state):
        beta = group["betas"][1]
        if not state:
            # The key that torch's Adam expects of any state.
            state["step"] = torch.zeros(())
            # The moments divided by beta ** scaled_steps, so that those of all other rows decay
            # without being touched.
            state["row_moments"] = torch.zeros(len(table), device=table.device)
            state["scaled_steps"] = torch.zeros(())
        state["step"] += 1
        state["scaled_steps"] += 1
        scale = beta ** -int(state["scaled_steps"])
        if scale > LARGEST_SCALE:
            state["row_moments"] /= scale / beta**-1
            state["scaled_steps"].fill_(1)
            scale = beta**-1
        moments = state["row_moments"][rows] + (1 - beta) * scale * values.square().mean(1)
        state["row_moments"][rows] = moments
        corrected = moments / (scale * (1 - beta ** int(state["step"])))
        table.index_add_(
            0, rows, values / (corrected.sqrt()[:, None] + group["eps"]), alpha=-group["lr"]
        )


def gradient_values(parameters):
    """Return the gradients of parameters as dense tensors, those of rows that occur if sparse."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return [gradient._values() if gradient.is_sparse else gradient for gradient in gradients]
