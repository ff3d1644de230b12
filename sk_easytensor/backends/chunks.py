"""Tables that are read in chunks: Parquet files, wherever they lie."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from itertools import pairwise

import fsspec
import pyarrow as pa
import pyarrow.dataset as pads

from sk_easytensor.plain_types import plain_types

__all__ = ["FragmentChunk", "RowRange", "parquet_chunks", "read_parquet"]


class RowRange:
    """Some consecutive rows, from `start` to `stop`, of rows that are read from one place.

    Subclasses are dataclasses with ``start``, ``stop`` and ``first``, where the first of them is
    among all rows.
    """

    def __len__(self):
        return self.stop - self.start

    def cut(self, n_parts):
        """Return the rows in at most `n_parts` parts of about as many rows."""
        n_parts = max(1, min(n_parts, len(self)))
        bounds = [self.start + len(self) * part // n_parts for part in range(n_parts + 1)]
        return [
            replace(self, start=start, stop=stop, first=self.first + start - self.start)
            for start, stop in pairwise(bounds)
        ]


@dataclass
class FragmentChunk(RowRange):
    """Consecutive rows of a Parquet file.

    Attributes
    ----------
    fragment : pyarrow.dataset.Fragment
        Some row groups of a file.
    schema : pyarrow.Schema
        Of the whole data set; columns that the file lacks are missing values.
    start, stop : int
        Rows of the fragment.
    first : int
        Where its first row is among all rows of the data set.
    """

    fragment: pads.Fragment
    schema: pa.Schema
    start: int
    stop: int
    first: int

    def tables(self, columns, n_rows):
        """Yield the chunk's rows in tables of at most `n_rows` rows, of plain types."""
        yield from map(plain_types, self.stored_tables(columns, n_rows))

    def stored_tables(self, columns, n_rows):
        """Yield the chunk's rows in tables of at most `n_rows` rows, of the types they have."""
        schema = pa.schema([self.schema.field(name) for name in columns])
        batches = self.fragment.scanner(
            schema=self.schema,
            columns=list(columns),
            batch_size=n_rows,
            batch_readahead=1,
            fragment_readahead=1,
            use_threads=False,
        ).to_batches()
        place = 0
        for batch in batches:
            begin, end = max(self.start - place, 0), min(self.stop - place, len(batch))
            place += len(batch)
            if begin < end:
                part = batch.slice(begin, end - begin)
                yield pa.Table.from_batches([part]).cast(schema)
            if place >= self.stop:
                return


def open_parquet(where):
    """Open Parquet files as one data set.

    Parameters
    ----------
    where : str or os.PathLike
        A file, a directory (of which ``key=value`` parts are columns), a glob, or a URL of one of
        them on any file system that fsspec knows.

    Returns
    -------
    pyarrow.dataset.Dataset

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    url = os.fspath(where)
    files, root = fsspec.core.url_to_fs(url)
    if fsspec.core.has_magic(root):
        paths, base = sorted(files.glob(root)), None
        paths = [path for path in paths if not files.isdir(path)]
    elif files.isdir(root):
        paths, base = sorted(files.find(root)), root
        paths = [p for p in paths if not os.path.basename(p).startswith(("_", "."))]
    else:
        paths, base = [root] if files.exists(root) else [], None
    if not paths:
        raise FileNotFoundError(f"there is no Parquet file at {url!r}")
    try:
        return pads.dataset(
            paths,
            filesystem=files,
            format="parquet",
            partitioning="hive" if base else None,
            partition_base_dir=base,
        )
    except pa.ArrowInvalid as error:
        raise ValueError(f"{url!r} cannot be read as Parquet: {error}") from error


def parquet_chunks(where, at_least=1):
    """Return the schema and the chunks of Parquet files.

    Parameters
    ----------
    where : str or os.PathLike
        As :func:`open_parquet` takes.
    at_least : int, default=1
        Chunks to make where rows allow: row groups are read by several tasks then.

    Returns
    -------
    schema : pyarrow.Schema
    chunks : list of FragmentChunk
    """
    found = open_parquet(where)
    chunks, first = [], 0
    for file in found.get_fragments():
        for fragment in file.split_by_row_group():
            n_rows = sum(group.num_rows for group in fragment.row_groups)
            if n_rows:
                chunks.append(FragmentChunk(fragment, found.schema, 0, n_rows, first))
            first += n_rows
    if not chunks:
        raise ValueError(f"{os.fspath(where)!r} holds no row")
    return found.schema, cut_evenly(chunks, at_least)


def cut_evenly(chunks, at_least):
    """Cut chunks until there are enough of them, if they have as many rows."""
    if len(chunks) >= at_least:
        return chunks
    n_rows = sum(map(len, chunks))
    size = max(1, n_rows // at_least)
    return [part for chunk in chunks for part in chunk.cut(-(-len(chunk) // size))]


def read_parquet(where):
    """Read Parquet files as one table."""
    return open_parquet(where).to_table()
