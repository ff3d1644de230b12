"""Read Parquet files, local or remote, as a whole or in chunks."""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import fsspec
import pyarrow as pa
import pyarrow.dataset as pads

from sk_easytensor._utils.validation import PARQUET_SUFFIXES, path_list
from sk_easytensor.data.arrow_columns import ARROW_ERRORS
from sk_easytensor.data.type_names import type_name
from sk_easytensor.data.types import (
    common_type,
    index_columns,
    plain_types,
    register_extensions,
    source_positions,
)

__all__ = [
    "FragmentChunk",
    "RowRange",
    "parquet_chunks",
    "read_parquet",
    "unify_schemas",
]


READERS = 16
"""Largest number of files whose schemas are read in parallel."""

CHUNK_ROWS = 262_144
"""Largest number of rows of small files that form one chunk."""

CHUNKS_PER_PART = 20
"""Smallest number of chunks of small files, for each of the chunks that are asked for."""


class RowRange:
    """Consecutive rows, from `start` to `stop`, of a file or an object.

    Subclasses are dataclasses with ``start``, ``stop`` and ``first``, the index of row `start`
    among all rows of the data set.
    """

    def __len__(self):
        return self.stop - self.start

    def cut(self, n_parts):
        """Split the rows into at most `n_parts` parts of about equal length."""
        n_parts = max(1, min(n_parts, len(self)))
        bounds = [self.start + len(self) * part // n_parts for part in range(n_parts + 1)]
        return [
            replace(self, start=start, stop=stop, first=self.first + start - self.start)
            for start, stop in pairwise(bounds)
        ]


@dataclass
class FragmentChunk(RowRange):
    """Consecutive rows of Parquet files.

    Attributes
    ----------
    fragments : list of pyarrow.dataset.Fragment
        Row groups of a file, or of several small files.
    sizes : list of int
        Number of rows of each fragment.
    schema : pyarrow.Schema
        Schema of the whole data set; columns that a file does not have are null.
    start, stop : int
        First row and end of the rows within the fragments.
    first : int
        Index of the first row among all rows of the data set.
    """

    fragments: list
    sizes: list
    schema: pa.Schema
    start: int
    stop: int
    first: int

    def tables(self, columns, n_rows):
        """Yield tables of at most `n_rows` rows, converted to plain types."""
        names = self.schema.names
        stored = [names[index] for index in source_positions(names, columns)]
        for table in self.stored_tables(stored, n_rows):
            yield plain_types(table).select(columns)

    def stored_tables(self, columns, n_rows):
        """Yield tables of at most `n_rows` rows, with the types of the files."""
        schema = pa.schema([self.schema.field(name) for name in columns])
        held, n_held = [], 0
        for batch in self._batches(columns, n_rows):
            # Batches of small files are joined.
            if held and n_held + len(batch) > n_rows:
                yield pa.Table.from_batches(held).cast(schema)
                held, n_held = [], 0
            held.append(batch)
            n_held += len(batch)
        if held:
            yield pa.Table.from_batches(held).cast(schema)

    def _batches(self, columns, n_rows):
        """Yield record batches of the rows from `start` to `stop`."""
        ends = list(accumulate(self.sizes))
        first, last = bisect_right(ends, self.start), bisect_left(ends, self.stop)
        fragments, n_read = self.fragments[first : last + 1], ends[first] - self.sizes[first]
        several = len(fragments) > 1
        dataset = pads.FileSystemDataset(
            fragments, self.schema, fragments[0].format, fragments[0].filesystem
        )
        batches = dataset.scanner(
            columns=list(columns),
            batch_size=n_rows,
            batch_readahead=1,
            fragment_readahead=READERS if several else 1,
            use_threads=several,
        ).to_batches()
        for batch in locate_errors(batches, fragments, self.schema, columns):
            begin, end = max(self.start - n_read, 0), min(self.stop - n_read, len(batch))
            n_read += len(batch)
            if begin < end:
                yield batch.slice(begin, end - begin)
            if n_read >= self.stop:
                return


def open_parquet(path, names=None):
    """Open Parquet files as one data set.

    Parameters
    ----------
    path : str, os.PathLike or list of these
        A file, a directory, a glob, or a URL of one of these on any file system that fsspec
        supports. The ``key=value`` parts of paths in directories, globs and lists become columns,
        and so do those directly above a wildcard. Of a directory with files that end in
        ``.parquet`` or ``.pq``, only these are read. Entries of a list are read in their order.
    names : sequence of str, optional
        Columns to read, by the names that they have after conversion to plain types. Other
        columns may occur twice in a file and be of several types. By default, and if none of the
        columns exists, all columns are read.

    Returns
    -------
    pyarrow.dataset.Dataset
        Data set with the selected columns.

    Raises
    ------
    FileNotFoundError
        If there is no file at the path.
    ValueError
        If files cannot be read as Parquet, or a selected column occurs twice in a file.
    TypeError
        If the types of a selected column in two files have no common type.
    """
    url = shown_path(path)
    files, paths, base = find_files(path)
    options = {
        "filesystem": files,
        "format": "parquet",
        "partitioning": "hive" if base else None,
        "partition_base_dir": base,
    }
    register_extensions()
    try:
        try:
            dataset = pads.dataset(paths, **options)
        except pa.ArrowTypeError:
            # The files have columns of the same names as the parts of their paths.
            options["partitioning"] = None
            dataset = pads.dataset(paths, **options)
        except pa.ArrowInvalid:
            # Arrow infers no schema where a name occurs twice; partition columns are dropped then.
            first = pads.dataset(paths[:1], schema=pa.schema([]), **options)
            schema = next(first.get_fragments()).physical_schema
            fields = [field for field in schema if schema.names.count(field.name) == 1]
            if len(fields) == len(schema):
                raise
            dataset = pads.dataset(paths, schema=pa.schema(fields, schema.metadata), **options)
        fragments = list(dataset.get_fragments())
        with ThreadPoolExecutor(min(READERS, len(fragments))) as pool:
            schemas = list(pool.map(lambda fragment: fragment.physical_schema, fragments))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{url!r} cannot be read as Parquet: {error}") from error
    # The schema of the data set has the first file's columns and the partition columns.
    schemas = [(paths[0], dataset.schema), *zip((f.path for f in fragments), schemas, strict=True)]
    if names is not None:
        schemas = select_fields(schemas, names)
    schema = unify_schemas(schemas)
    return pads.FileSystemDataset(fragments, schema, dataset.format, dataset.filesystem)


def shown_path(path):
    """Return a path, or a list of them, as it is named in messages."""
    first, *rest = path_list(path)
    return first + (f" and {len(rest)} more" if rest else "")


def find_files(path):
    """Find the files of a path, a directory, a glob or a list of these.

    Parameters
    ----------
    path : str, os.PathLike or list of these
        As for :func:`open_parquet`.

    Returns
    -------
    files : fsspec.AbstractFileSystem
        File system.
    paths : list of str
        Paths of the files.
    base : str or None
        Directory below which ``key=value`` parts of paths are columns; None for a single file.

    Raises
    ------
    FileNotFoundError
        If there is no file at the path, or at one of a list.
    ValueError
        If the entries of a list are on different file systems.
    """
    if isinstance(path, (list, tuple)):
        found = [find_files(each) for each in path]
        files, paths = found[0][0], [name for _, names, _ in found for name in names]
        for each, (other, _, _) in zip(path, found, strict=True):
            if other != files:
                raise ValueError(
                    f"{os.fspath(path[0])!r} and {os.fspath(each)!r} are on different file systems"
                )
        return files, paths, hive_base(os.path.commonpath([os.path.dirname(p) for p in paths]))
    url = os.fspath(path)
    files, root = fsspec.core.url_to_fs(url)
    if fsspec.core.has_magic(root):
        fixed = root.split("/")
        fixed = fixed[: next(i for i, part in enumerate(fixed) if fsspec.core.has_magic(part))]
        paths, base = sorted(files.glob(root)), hive_base("/".join(fixed))
        paths = [path for path in paths if not files.isdir(path)]
    elif files.isdir(root):
        paths, base = sorted(files.find(root)), root
        paths = [p for p in paths if not os.path.basename(p).startswith(("_", "."))]
        # Beside data there may be a page that describes it.
        paths = [p for p in paths if p.lower().endswith(PARQUET_SUFFIXES)] or paths
    else:
        paths, base = [root] if files.exists(root) else [], None
    if not paths:
        raise FileNotFoundError(f"there is no Parquet file at {url!r}")
    return files, paths, base


def hive_base(directory):
    """Return a directory, or if it is a ``key=value`` part of a path, the one above these."""
    parts = directory.split("/")
    while "=" in parts[-1]:
        parts.pop()
    return "/".join(parts) or "/"


def select_fields(schemas, names):
    """Return schemas of the selected columns, or the whole schemas if no part has any of them."""
    selected, any_selected = [], False
    for part, schema in schemas:
        positions = source_positions(schema.names, names)
        any_selected = any_selected or bool(positions)
        # Index columns are retained, so that the metadata still identifies them.
        retained = {*positions, *map(schema.names.index, index_columns(schema))}
        fields = [schema.field(index) for index in sorted(retained)]
        selected.append((part, pa.schema(fields, schema.metadata)))
    return selected if any_selected else schemas


def unify_schemas(schemas):
    """Return the common schema of the parts of a table, whose columns and types may differ.

    Parameters
    ----------
    schemas : list of (str, pyarrow.Schema)
        Name of each part, for messages, and its schema.

    Returns
    -------
    pyarrow.Schema
        Schema with the columns of all parts. Columns that the metadata of pandas identifies as
        the index of a data frame are left out, as for a data frame in memory.

    Raises
    ------
    TypeError
        If the types of a column in two parts have no common type. The message names the column
        and both parts.
    ValueError
        If a column is an index column in some parts only, or occurs twice in a part.
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
        check_unique(schema.names, part)
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
            except (*ARROW_ERRORS, TypeError) as error:
                raise TypeError(
                    f"column {name!r} is of type {type_name(known)} in {parts[name]} and of type "
                    f"{type_name(field.type)} in {part}; write it with one type in all files"
                ) from error
            parts.setdefault(name, part)
    return pa.schema(types)


def check_unique(names, part):
    """Raise ``ValueError`` if a name occurs twice in a part of a table."""
    if len(set(names)) < len(names):
        twice = [name for name, count in Counter(names).items() if count > 1]
        raise ValueError(
            f"column names occur more than once in {part}: {twice}. Names must be unique."
        )


def locate_errors(batches, fragments, schema, columns):
    """Yield batches; errors of reading are raised again with the column and the file.

    Raises
    ------
    TypeError
        If a value of a file cannot be cast to the common type of the column.
    OSError
        If a file is corrupt or cannot be reached.
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
    except ARROW_ERRORS as error:
        for fragment in fragments:
            for name in columns:
                try:
                    fragment.to_table(schema=schema, columns=[name])
                except ARROW_ERRORS as reason:
                    raise TypeError(
                        f"column {name!r} of {fragment.path} cannot be read as "
                        f"{type_name(schema.field(name).type)}, the type that the files have in "
                        f"common: {str(reason).splitlines()[0]}"
                    ) from error
        raise


def parquet_chunks(path, at_least=1):
    """Return the schema and the chunks of Parquet files.

    Parameters
    ----------
    path : str, os.PathLike or list of these
        A path, glob or URL, as for :func:`open_parquet`.
    at_least : int, default=1
        Number of chunks to make if there are enough rows. Row groups are then split, and read by
        several tasks.

    Returns
    -------
    schema : pyarrow.Schema
        Schema of all files.
    chunks : list of FragmentChunk
        Chunks in the order of the rows.

    Raises
    ------
    FileNotFoundError
        If there is no file at the path.
    ValueError
        If the files have no rows or cannot be read as Parquet.
    """
    dataset = open_parquet(path)
    fragments = [
        (fragment, sum(group.num_rows for group in fragment.row_groups))
        for file in dataset.get_fragments()
        for fragment in file.split_by_row_group()
    ]
    n_rows = sum(size for _, size in fragments)
    if not n_rows:
        raise ValueError(f"{shown_path(path)!r} holds no row")
    # Small files are read together, but shares of the rows can still be nearly equal.
    limit = min(CHUNK_ROWS, n_rows // (CHUNKS_PER_PART * at_least))
    chunks, first = [], 0
    for fragment, size in fragments:
        last = chunks[-1] if chunks else None
        if last is not None and len(last) + size <= limit:
            last.fragments.append(fragment)
            last.sizes.append(size)
            last.stop += size
        elif size:
            chunks.append(FragmentChunk([fragment], [size], dataset.schema, 0, size, first))
        first += size
    return dataset.schema, cut_evenly(chunks, at_least)


def cut_evenly(chunks, at_least):
    """Split chunks into at least `at_least` chunks, if they have as many rows."""
    if len(chunks) >= at_least:
        return chunks
    n_rows = sum(map(len, chunks))
    size = max(1, n_rows // at_least)
    return [part for chunk in chunks for part in chunk.cut(-(-len(chunk) // size))]


def read_parquet(path, names=None):
    """Read Parquet files as one table.

    Parameters
    ----------
    path : str, os.PathLike or list of these
        A path, glob or URL, as for :func:`open_parquet`.
    names : sequence of str, optional
        Columns to read. By default, and if none of them exists, all columns are read.

    Returns
    -------
    pyarrow.Table

    Raises
    ------
    FileNotFoundError
        If there is no file at the path.
    ValueError, TypeError, OSError
        If the files cannot be read, or their types differ: see :func:`open_parquet`.
    """
    dataset = open_parquet(path, names)
    columns = dataset.schema.names

    def read():
        yield dataset.to_table(columns=columns)

    return next(locate_errors(read(), dataset.get_fragments(), dataset.schema, columns))
