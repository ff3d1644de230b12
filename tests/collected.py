"""Pieces of encoded rows as one data set, in memory or in files."""

from sk_easytensor.training.file_dataset import RowCollector


def collect(pieces, collector):
    """Add all pieces to a collector, and return its rows."""
    for piece in pieces:
        collector.append(piece)
    return collector.finish()


def materialize(pieces, memory):
    """Store pieces of encoded rows, as :class:`RowCollector` does."""
    return collect(pieces, RowCollector(memory))
