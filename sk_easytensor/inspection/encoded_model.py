"""A fitted network with encoded rows, and its outputs after some values are shuffled."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cached_property

import numpy as np
import torch

from sk_easytensor._utils.runtime import limited_threads
from sk_easytensor.inspection.explanation import EnsembleParts, NetworkParts
from sk_easytensor.tensors import Ragged, TensorFrame

__all__ = [
    "MANY_COLUMNS",
    "EncodedModel",
    "GivenOutputs",
]


MANY_COLUMNS = 100
"""A table with more columns is wide: only the change of the output by a column is computed."""


class GivenOutputs:
    """Outputs of a network for some rows, which an estimator accepts in place of a table.

    ``predict`` and the other methods that scikit-learn's scorers call start from these outputs, so
    that a scorer needs neither the table nor the encoded rows.

    Parameters
    ----------
    values : torch.Tensor of shape (n_rows, out_features)
        Outputs of the ensemble.
    """

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)


class EncodedModel:
    """A fitted network and the encoded rows to evaluate it on.

    Parameters
    ----------
    frame : TensorFrame
        Encoded rows.
    modules : dict of {str: torch.nn.Module}
        Module of each block of the frame.
    join : callable
        Function of the modules' outputs, a dictionary of tensors by block, that returns the
        outputs of the ensemble, of shape (n_rows, 1, out_features).
    places : dict of {str: dict of {str: dict of {str: list of int}}}
        Positions of each input column in the frame: from column to block to entry to positions in
        the second dimension of the entry.
    backend : LocalExecutor
        Executor of forward passes.
    network : BlockNetwork, optional
        Network, if the outputs are those of a single one. With it, the time to replace a column of
        a wide table does not depend on the number of other columns.
    head : Head, optional
        Head of the network.
    features : list of str, optional
        Names of the features, if a column has several; by default the names of the columns.
    by_feature : callable, optional
        Function of importances of columns, an ndarray whose first dimension is the column, that
        returns importances of features.

    Attributes
    ----------
    outputs : torch.Tensor of shape (n_rows, 1, out_features)
        Outputs of the unchanged rows.
    """

    def __init__(
        self,
        frame,
        modules,
        join,
        places,
        backend,
        network=None,
        head=None,
        features=None,
        by_feature=None,
    ):
        self.frame = frame
        self.features = list(places) if features is None else features
        self.by_feature = by_feature or (lambda importances: importances)
        self.modules = modules
        self.places = places
        self._join = join
        self._backend = backend
        self._network, self._head = network, head
        outputs = {name: {"output": self._read(name, frame)} for name in modules}
        self._parts = TensorFrame(outputs, len(frame))
        self.outputs = self._outputs(self._parts)

    @classmethod
    def of_network(cls, network, head, encoder, frame, backend):
        """Return the model of one network.

        Parameters
        ----------
        network : BlockNetwork
            Trained network.
        head : Head
            Head of the network.
        encoder : TableEncoder
            Encoder of the rows.
        frame : TensorFrame
            Encoded rows.
        backend : LocalExecutor
            Executor of forward passes.

        Returns
        -------
        EncodedModel
        """
        return cls(
            frame,
            modules=network.readers(),
            join=lambda outputs: network.average_read(outputs, head),
            places=encoder.all_column_positions(frame),
            backend=backend,
            network=network,
            head=head,
            features=encoder.features,
            by_feature=lambda importances: encoder.by_feature(importances, network, frame),
        )

    def columns(self):
        """Return the groups of columns that can only be shuffled together.

        Returns
        -------
        list of (list of int, dict)
            Indices of the columns of each group, and their positions in the frame: from block to
            entry to positions. Columns that no block reads are in no group.
        """
        groups = {}
        for index, places in enumerate(self.places.values()):
            if places:
                groups.setdefault(repr(places), ([], places))[0].append(index)
        return list(groups.values())

    def blocks(self):
        """Return a group for each block, in the form of :meth:`columns`."""
        return [
            ([index], {name: {entry: _all_positions(values) for entry, values in encoding.items()}})
            for index, (name, encoding) in enumerate(self.frame.items())
        ]

    def permuted(self, places, orders):
        """Return the outputs after the values at some positions were taken from other rows.

        Parameters
        ----------
        places : dict of {str: dict of {str: list of int}}
            Positions whose values are shuffled: from block to entry to positions.
        orders : ndarray of int64, shape (n_repeats, n_rows)
            For each repeat, the row that each row's values are taken from.

        Returns
        -------
        list of torch.Tensor of shape (n_rows, 1, out_features)
            Outputs of each repeat.

        Notes
        -----
        The output of a row depends on the row and on the values that it receives. The forward pass
        runs once for each distinct pair of both. Rows that receive equal values keep their
        outputs, and the modules of other blocks do not run again.
        """
        values = self._values(places)
        n_rows = len(self.frame)
        received = np.concatenate([values[None], values[orders]])
        pairs = np.arange(n_rows) * (values.max(initial=0) + 1) + received
        _, first, inverse = np.unique(pairs.ravel(), return_index=True, return_inverse=True)
        repeat_of_pair, row = np.divmod(first, n_rows)
        outputs = self.outputs.new_empty(len(first), *self.outputs.shape[1:])
        unchanged = repeat_of_pair == 0
        outputs[unchanged] = self.outputs[row[unchanged]]
        for repeat, order in enumerate(orders, start=1):
            changed = np.flatnonzero(repeat_of_pair == repeat)
            if len(changed):
                outputs[changed] = self._shuffled(places, order, row[changed])
        inverse = torch.from_numpy(inverse.reshape(received.shape))
        return [outputs[rows] for rows in inverse[1:]]

    @cached_property
    def network_parts(self):
        """Intermediate results of the network, :class:`NetworkParts` or :class:`EnsembleParts`."""
        networks, head = self._network.networks, self._head
        with self.running():
            if len(networks) == 1:
                return NetworkParts(self, self._network, head)
            models = [self._of_member(network) for network in networks]
            return EnsembleParts([model.network_parts for model in models], head)

    def _of_member(self, network):
        """Return the model of one network of an ensemble, with the same rows."""
        head = self._head

        def join(outputs):
            return network.average_read(outputs, head)

        return EncodedModel(
            self.frame, network.readers(), join, self.places, self._backend, network, head
        )

    @property
    def linear(self):
        """Whether the time to shuffle a column does not depend on the number of other columns."""
        return self._incremental and self.network_parts.is_linear()

    @property
    def _incremental(self):
        # The full forward pass of narrow tables keeps outputs of equal rows equal to the last bit.
        return self._network is not None and len(self.places) > MANY_COLUMNS

    def running(self):
        """Return a context with the threads of the backend and without gradients."""
        context = ExitStack()
        context.enter_context(limited_threads(self._backend.n_jobs))
        context.enter_context(torch.inference_mode())
        return context

    def _values(self, places):
        """Return a number for each row, equal for rows with equal values at the positions."""
        selected = {}
        for block, positions in places.items():
            selected[block] = {
                name: entry if isinstance(entry, Ragged) else entry[:, positions[name]]
                for name, entry in self.frame[block].items()
                if positions.get(name)
            }
        hashes = TensorFrame(selected, len(self.frame)).row_hashes()
        return np.unique(hashes, return_inverse=True)[1].reshape(-1)

    def _shuffled(self, places, order, rows):
        """Return the outputs of some rows, with values at the positions taken from other rows."""
        order, rows = torch.from_numpy(order), torch.from_numpy(rows)
        if self._incremental:
            with self.running():
                mixed = self.network_parts.mixed(rows, order[rows])
                return mixed.replaced(places).combined()
        parts = {name: {"output": part["output"][rows]} for name, part in self._parts.items()}
        for block, positions in places.items():
            if self.is_whole(block, positions):
                part = self._parts[block]["output"][order[rows]]
            else:
                frame = TensorFrame({block: self.frame[block]}, len(self.frame))
                part = self._read(block, frame.permute_column(block, positions, order).take(rows))
            parts[block] = {"output": part}
        return self._outputs(TensorFrame(parts, len(rows)))

    def read(self, block):
        """Return the outputs of a block's module, followed by its inputs of trees, as columns."""
        return self._parts[block]["output"]

    def read_mixed(self, block, positions, rows, donors):
        """Return the outputs of a block's module for rows with some values of other rows.

        Parameters
        ----------
        block : str
            Name of the block.
        positions : dict of {str: list of int}
            Positions of the replaced values, by entry.
        rows, donors : torch.Tensor of int64, shape (batch,)
            Indices of the rows, and of the rows that the replaced values come from.
        """
        size = len(rows)
        frame = TensorFrame({block: self.frame[block]}, len(self.frame))
        both = frame.take(torch.cat([rows, donors]))
        order = torch.arange(2 * size).roll(size)
        return self._read(block, both.permute_column(block, positions, order).take(slice(size)))

    def is_whole(self, block, positions):
        """Return whether ``positions`` are all positions of a block."""
        return all(
            positions.get(name) == _all_positions(entry)
            for name, entry in self.frame[block].items()
        )

    def _read(self, block, frame):
        module = self.modules[block]
        return self._backend.forward(
            lambda batch: module(**batch[block]),
            TensorFrame({block: frame[block]}, len(frame)),
            lengths=module.padded_lengths(frame[block]),
        )

    def _outputs(self, parts):
        return self._backend.forward(
            lambda batch: self._join({name: part["output"] for name, part in batch.items()}),
            parts,
        )


def _all_positions(entry):
    return list(range(entry.n_columns if isinstance(entry, Ragged) else entry.shape[1]))
