"""Updates of large embedding tables, whose cost depends on the rows that a batch contains."""

from __future__ import annotations

import torch

from sk_easytensor.networks.block_module import BlockModule

__all__ = [
    "ROW_OPTIMIZERS",
    "RowUpdates",
    "gradient_values",
]


ROW_OPTIMIZERS = (torch.optim.AdamW, torch.optim.Adam)
"""Optimizers whose large tables are updated by row; subclasses may change what a step does."""


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

    Notes
    -----
    A step changes only the rows that occur in its batch. The state of the optimizer is one number a
    row, the moving average of the mean square of the row's gradient, which decays at every step as
    Adam's does (Kingma and Ba, 2015). There is no average of gradients: Adam applies the gradient
    of a row that no later batch contains in ten parts or so, and this update at once. Weight decay
    is applied once an epoch, for all steps of the epoch. The moving average of the weights leaves
    these tables out, because most rows did not change in the steps over which it averages.
    """

    def __init__(self, network, enabled):
        self.tables = []
        for module in network.modules():
            if isinstance(module, BlockModule):
                module.sparse = enabled
                if enabled:
                    self.tables += [t for t in module.large_tables() if t.requires_grad]
        self._decays = [1.0] * len(self.tables)

    def register(self, optimizer):
        """Update the tables before each step of an optimizer, which then finds no gradients.

        Parameters
        ----------
        optimizer : torch.optim.Adam or torch.optim.AdamW
            Its groups give learning rates, betas, epsilon and weight decay of the tables.
        """
        if self.tables:
            optimizer.register_step_pre_hook(self._update)

    def coalesce(self):
        """Sum the gradients of rows that occur several times in a batch."""
        for table in self.tables:
            if table.grad is not None:
                table.grad = table.grad.coalesce()

    @torch.no_grad()
    def end_epoch(self):
        """Apply the weight decay of all steps since the last call."""
        for table, decay in zip(self.tables, self._decays, strict=True):
            if decay != 1.0:
                table.mul_(decay)
        self._decays = [1.0] * len(self.tables)

    @torch.no_grad()
    def _update(self, optimizer, args, kwargs):
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        for index, table in enumerate(self.tables):
            if table.grad is None:
                continue
            group = groups[id(table)]
            rows, values = table.grad.indices()[0], table.grad.values()
            self._decays[index] *= 1 - group["lr"] * group["weight_decay"]
            self._update_rows(table, rows, values, group, optimizer.state[table])
            table.grad = None

    def _update_rows(self, table, rows, values, group, state):
        beta = group["betas"][1]
        if not state:
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
