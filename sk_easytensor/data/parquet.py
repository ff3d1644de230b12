"""Tables that are read in chunks: Parquet files, wherever they lie."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise

import fsspec
import pyarrow as pa
import pyarrow.dataset as pads

from sk_easytensor.data.arrow_columns import UNREADABLE
from sk_easytensor.data.type_names import type_name
from sk_easytensor.data.types import (
    common_type,
    index_columns,
    needed,
    plain_types,
    register_extensions,
)

__all__ = [
    "FragmentChunk",
    "RowRange",
    "parquet_chunks",
    "read_parquet",
    "unified",
]


READERS = 16
"""Files of which the schemas are read at the same time."""


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
        stored = [self.schema.names[place] for place in needed(self.schema.names, columns)]
        for table in self.stored_tables(stored, n_rows):
            yield plain_types(table).select(columns)

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
        for batch in named_errors(batches, [self.fragment], self.schema, columns):
            begin, end = max(self.start - place, 0), min(self.stop - place, len(batch))
            place += len(batch)
            if begin < end:
                part = batch.slice(begin, end - begin)
                yield pa.Table.from_batches([part]).cast(schema)
            if place >= self.stop:
                return


def open_parquet(where, names=None):
    """Open Parquet files as one data set.

    Parameters
    ----------
    where : str or os.PathLike
        A file, a directory (of which ``key=value`` parts are columns), a glob, or a URL of one of
        them on any file system that fsspec knows.
    names : sequence of str, optional
        Columns that are wanted, as they are called once their types are plain. Others may occur
        twice in a file and be of several types. By default all are wanted, and so they are if
        there are none of these.

    Returns
    -------
    pyarrow.dataset.Dataset
        Of the columns that are wanted.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If files cannot be read as Parquet, or a column that is wanted occurs twice in one.
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
    options = {
        "filesystem": files,
        "format": "parquet",
        "partitioning": "hive" if base else None,
        "partition_base_dir": base,
    }
    register_extensions()
    try:
        try:
            found = pads.dataset(paths, **options)
        except pa.ArrowInvalid:
            # Arrow infers no schema where a name occurs twice; columns of paths have no type then.
            first = pads.dataset(paths[:1], schema=pa.schema([]), **options)
            schema = next(first.get_fragments()).physical_schema
            fields = [field for field in schema if schema.names.count(field.name) == 1]
            if len(fields) == len(schema):
                raise
            found = pads.dataset(paths, schema=pa.schema(fields, schema.metadata), **options)
        fragments = list(found.get_fragments())
        with ThreadPoolExecutor(min(READERS, len(fragments))) as pool:
            schemas = list(pool.map(lambda fragment: fragment.physical_schema, fragments))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{url!r} cannot be read as Parquet: {error}") from error
    # The data set itself knows the first file's columns, and those in the names of directories.
    schemas = [(paths[0], found.schema), *zip((f.path for f in fragments), schemas, strict=True)]
    if names is not None:
        schemas = narrowed(schemas, names)
    return pads.FileSystemDataset(fragments, unified(schemas), found.format, found.filesystem)


def narrowed(schemas, names):
    """Return schemas of the columns that are wanted, or as they are if no part has any of them."""
    found, any_wanted = [], False
    for part, schema in schemas:
        wanted = needed(schema.names, names)
        any_wanted = any_wanted or bool(wanted)
        # The index of a frame is known as such.
        kept = {*wanted, *map(schema.names.index, index_columns(schema))}
        fields = [schema.field(place) for place in sorted(kept)]
        found.append((part, pa.schema(fields, schema.metadata)))
    return found if any_wanted else schemas


def unified(schemas):
    """Return the schema of a table whose parts have other columns, or columns of other types.

    Parameters
    ----------
    schemas : list of (str, pyarrow.Schema)
        Name of each part, for messages, and its schema.

    Returns
    -------
    pyarrow.Schema
        With the columns of all parts. Columns that hold the index of a frame of pandas, as the
        metadata says, are left out, as they are of a frame in memory.

    Raises
    ------
    TypeError
        Naming a column, and two parts, whose types have none in common.
    ValueError
        If a column is the index in some parts only, or occurs twice in one.
    """
    distinct = {}
    for part, schema in schemas:
        # Not every version of Arrow hashes schemas with metadata.
        distinct.setdefault(schema.serialize().to_pybytes(), (schema, part))
    types, parts, indices = {}, {}, {}
    for schema, part in distinct.values():
        indices |= {name: part for name in index_columns(schema)}
    for schema, part in distinct.values():
        index = index_columns(schema)
        check_once(schema.names, part)
        for field in schema:
            name = field.name
            if name in index:
                continue
            if name in indices:
                raise ValueError(
                    f"column {name!r} is the index of the data frame in {indices[name]} but not "
                    f"in {part}; write the files with index=False, or with reset_index()"
                )
            known = types.setdefault(name, field.type)
            try:
                types[name] = common_type(known, field.type)
            except (*UNREADABLE, TypeError) as error:
                raise TypeError(
                    f"column {name!r} is of type {type_name(known)} in {parts[name]} and of type "
                    f"{type_name(field.type)} in {part}; write it with one type in all files"
                ) from error
            parts.setdefault(name, part)
    return pa.schema(types)


def check_once(names, part):
    """Raise ``ValueError`` if a name occurs twice in a part of a table."""
    if len(set(names)) < len(names):
        twice = [name for name, count in Counter(names).items() if count > 1]
        raise ValueError(
            f"column names occur more than once in {part}: {twice}. Names must be unique."
        )


def named_errors(batches, fragments, schema, columns):
    """Yield batches; if they cannot be read, name the column and the file.

    Raises
    ------
    TypeError
        If a value of one file is none of the type that the column has in all files together.
    OSError
        If a file is damaged or cannot be reached.
    """
    try:
        yield from batches
    except OSError as error:
        for fragment in fragments:
            try:
                fragment.to_table(schema=schema, columns=columns)
            except OSError as reason:
                raise OSError(f"{fragment.path} cannot be read: {reason}") from error
        raise
    except UNREADABLE as error:
        for fragment in fragments:
            for name in columns:
                try:
                    fragment.to_table(schema=schema, columns=[name])
                except UNREADABLE as reason:
                    raise TypeError(
                        f"column {name!r} of {fragment.path} cannot be read as "
                        f"{type_name(schema.field(name).type)}, the type that the files have in "
                        f"common: {str(reason).splitlines()[0]}"
                    ) from error
        raise


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


def read_parquet(where, names=None):
    """Read Parquet files as one table.

    Parameters
    ----------
    where : str or os.PathLike
        As :func:`open_parquet` takes.
    names : sequence of str, optional
        Columns that are wanted; of those that there are, only these are read. All if there are
        none of them.

    Returns
    -------
    pyarrow.Table
    """
    found = open_parquet(where, names)
    columns = found.schema.names

    def read():
        yield found.to_table(columns=columns)

    return next(named_errors(read(), found.get_fragments(), found.schema, columns))
