"""Blocks fitted on sequences that are cut into pieces as short as what they read of a list."""

from __future__ import annotations

from sk_easytensor.backends.local import LocalBackend
from sk_easytensor.summaries import SummaryMap
from sk_easytensor.views import Sequences, consecutive_stretches

__all__ = ["InPieces"]

LOOKED_AT = 1000
"""Users whose pieces say which types there are."""


class InPieces:
    """A backend for fitting blocks, which sees pieces of the sequences of a table.

    Blocks read one end of long lists, whereas parts are cut from anywhere: in pieces as short as
    that, they see all events.

    Parameters
    ----------
    backend : LocalBackend
        Where tables are summarised.
    table : pyarrow.Table or table of a backend
        Columns of lists, those that decide about the length of a row included.
    length : int or None
        Events of a piece; None for sequences as they are.
    owner : str
        Who asks, for errors.
    """

    def __init__(self, backend, table, length, owner):
        self.backend = backend
        self.table = table
        self.length = length
        self.owner = owner

    def some_rows(self, table):
        """Return pieces of some sequences, with the columns of a table."""
        some = self.backend.some_rows(self.table).slice(0, LOOKED_AT)
        pieces = read_pieces(some, self.length, self.owner, lambda pieces: pieces)
        return pieces.select(table.column_names)

    def summarize(self, table, blocks):
        """Summarise the pieces of all sequences for all blocks in one pass."""
        reading = PieceReading(self.length, self.owner, blocks, self.backend)
        columns = list(self.table.column_names)
        return self.backend.summarize(self.table, {"pieces": (reading, columns)})["pieces"]


class PieceReading:
    """Summarises the pieces of a table of lists for some blocks.

    Parameters
    ----------
    length, owner
        As of :class:`InPieces`.
    blocks : dict of {str: tuple of (Block, list of str)}
        Blocks and the columns each reads.
    backend : LocalBackend
        Says how many threads there are, and how many rows a block gets at a time.
    """

    column_wise = False

    def __init__(self, length, owner, blocks, backend):
        self.length = length
        self.owner = owner
        self.blocks = blocks
        self.inner = LocalBackend(backend.n_jobs, backend.chunk_rows)

    def summarize(self, table):
        """Return the summaries of a chunk of rows, by name of block."""
        return SummaryMap(read_pieces(table, self.length, self.owner, self._summaries))

    def _summaries(self, pieces):
        return self.inner.summarize(pieces, self.blocks)


def read_pieces(table, length, owner, function):
    """Call a function with a table of the pieces of sequences; errors name rows of `table`."""
    sequences = Sequences(table, owner)
    whole = sequences.whole
    pieces = whole if length is None else consecutive_stretches(sequences, length)
    return sequences.read(pieces, function)
