"""A fitted network with encoded rows, and what it gives of them when some values are shuffled."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cached_property

import numpy as np
import torch

from sk_easytensor._utils.runtime import limited_threads
from sk_easytensor.inspection.explanation import MixedRows, NetworkParts
from sk_easytensor.tensors import Ragged, TensorFrame

__all__ = [
    "MANY_COLUMNS",
    "EncodedModel",
    "GivenOutputs",
]


MANY_COLUMNS = 100
"""A table with more columns is wide: what changes of a row is computed, rather than the row."""


class GivenOutputs:
    """What a network gave of some rows, taken by an estimator in the place of a table.

    ``predict`` and all that scikit-learn's scorers call then go on from there, so that a scorer
    needs neither the table nor the encoded rows.

    Parameters
    ----------
    values : torch.Tensor of shape (n_rows, out_features)
        The ensemble's outputs.
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
        What reads each block of the frame.
    join : callable
        Takes what each module gave, a dictionary of tensors by block, and returns the ensemble's
        outputs, of shape (n_rows, 1, out_features).
    places : dict of {str: dict of {str: dict of {str: list of int}}}
        For each input column the places of the frame where it stands: block to entry to positions
        in the entry's second dimension.
    backend : LocalExecutor
        Where forward passes run.
    network : BlockNetwork, optional
        Where the outputs are those of one network. With it, a column of a wide table is replaced
        in a time that does not depend on the number of other columns.
    head : Head, optional
        Of the network.
    features : list of str, optional
        Names of the features, where a column holds several; those of the columns by default.
    by_feature : callable, optional
        Takes importances of columns, an ndarray whose first dimension is the column, and returns
        those of features.

    Attributes
    ----------
    outputs : torch.Tensor of shape (n_rows, 1, out_features)
        Of the rows as they are.
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
        self.by_feature = by_feature or (lambda found: found)
        self.modules = modules
        self.places = places
        self._join = join
        self._backend = backend
        self._network, self._head = network, head
        read = {name: {"output": self._read(name, frame)} for name in modules}
        self._parts = TensorFrame(read, len(frame))
        self.outputs = self._outputs(self._parts)

    @classmethod
    def of_network(cls, network, head, encoder, frame, backend):
        """Return the model of one network.

        Parameters
        ----------
        network : BlockNetwork
            Trained.
        head : Head
            Of the network.
        encoder : TableEncoder
            Has encoded the rows.
        frame : TensorFrame
            Encoded rows.
        backend : LocalExecutor
            Where forward passes run.
        """
        return cls(
            frame,
            modules=network.readers(),
            join=lambda read: network.average_read(read, head),
            places=encoder.all_column_positions(frame),
            backend=backend,
            network=network,
            head=head,
            features=encoder.features,
            by_feature=lambda found: encoder.by_feature(found, network, frame),
        )

    def columns(self):
        """Return, for each group of columns that can only be shuffled together, where they stand.

        Returns
        -------
        list of (list of int, dict)
            Numbers of the columns, and their places. Columns that no block reads are in none.
        """
        together = {}
        for index, places in enumerate(self.places.values()):
            if places:
                together.setdefault(repr(places), ([], places))[0].append(index)
        return list(together.values())

    def blocks(self):
        """Return the same for whole blocks."""
        return [
            ([index], {name: {entry: _all_positions(found) for entry, found in encoding.items()}})
            for index, (name, encoding) in enumerate(self.frame.items())
        ]

    def permuted(self, places, orders):
        """Return the outputs when the values at some places come from other rows.

        Parameters
        ----------
        places : dict
            Block to entry to positions.
        orders : ndarray of int64, shape (n_repeats, n_rows)
            For each repeat, the row that each row's values are taken from.

        Returns
        -------
        list of torch.Tensor
            The outputs of each repeat.

        Notes
        -----
        What a row gives depends on the row and the value it is lent. The network is asked once
        for each such pair; rows that get back what they had are not asked for at all, and blocks
        that are not concerned have been read before.
        """
        values = self._values(places)
        n_rows = len(self.frame)
        lent = np.concatenate([values[None], values[orders]])
        pairs = np.arange(n_rows) * (values.max(initial=0) + 1) + lent
        _, first, inverse = np.unique(pairs.ravel(), return_index=True, return_inverse=True)
        turn, row = np.divmod(first, n_rows)
        outputs = self.outputs.new_empty(len(first), *self.outputs.shape[1:])
        outputs[turn == 0] = self.outputs[row[turn == 0]]
        for repeat, order in enumerate(orders, start=1):
            asked = np.flatnonzero(turn == repeat)
            if len(asked):
                outputs[asked] = self._shuffled(places, order, row[asked])
        inverse = torch.from_numpy(inverse.reshape(lent.shape))
        return [outputs[rows] for rows in inverse[1:]]

    @cached_property
    def network_parts(self):
        """What the network makes of the rows, a :class:`NetworkParts`."""
        with self.running():
            return NetworkParts(self, self._network, self._head)

    @property
    def linear(self):
        """Whether the time of a shuffle does not depend on the number of other columns."""
        return self._incremental and self.network_parts.is_linear()

    @property
    def _incremental(self):
        # Of narrow tables, rows with equal values keep equal outputs to the last bit.
        return self._network is not None and len(self.places) > MANY_COLUMNS

    def running(self):
        """Compute as the backend does within the context."""
        context = ExitStack()
        context.enter_context(limited_threads(self._backend.n_jobs))
        context.enter_context(torch.inference_mode())
        return context

    def _values(self, places):
        """Return a number for each row, equal where the row lends the same values."""
        moving = {}
        for block, positions in places.items():
            moving[block] = {
                name: entry if isinstance(entry, Ragged) else entry[:, positions[name]]
                for name, entry in self.frame[block].items()
                if positions.get(name)
            }
        hashes = TensorFrame(moving, len(self.frame)).row_hashes()
        return np.unique(hashes, return_inverse=True)[1].reshape(-1)

    def _shuffled(self, places, order, rows):
        """Return the outputs of some rows, after their values were taken from others."""
        order, rows = torch.from_numpy(order), torch.from_numpy(rows)
        if self._incremental:
            with self.running():
                mixed = MixedRows(self.network_parts, rows, order[rows])
                return mixed.replaced(places).combined()
        parts = {name: {"output": part["output"][rows]} for name, part in self._parts.items()}
        for block, positions in places.items():
            if self.is_whole(block, positions):
                part = self._parts[block]["output"][order[rows]]
            else:
                alone = TensorFrame({block: self.frame[block]}, len(self.frame))
                part = self._read(block, alone.permute_column(block, positions, order).take(rows))
            parts[block] = {"output": part}
        return self._outputs(TensorFrame(parts, len(rows)))

    def read(self, block):
        """Return what a block's module gives of the rows, and behind it what it shows trees."""
        return self._parts[block]["output"]

    def read_mixed(self, block, positions, rows, donors):
        """Return what a block's module gives of rows with some values of others.

        Parameters
        ----------
        block : str
            Name of the block.
        positions : dict of {str: list of int}
            Entry to positions, where values are replaced.
        rows, donors : torch.Tensor of int64, shape (batch,)
            The rows, and those that the replaced values come from.
        """
        size = len(rows)
        alone = TensorFrame({block: self.frame[block]}, len(self.frame))
        both = alone.take(torch.cat([rows, donors]))
        order = torch.arange(2 * size).roll(size)
        return self._read(block, both.permute_column(block, positions, order).take(slice(size)))

    def is_whole(self, block, positions):
        """Tell whether these are all the positions of a block."""
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
