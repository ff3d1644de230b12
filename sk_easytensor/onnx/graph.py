"""ONNX graphs, built node by node: what a block's ``to_onnx`` writes its encoding in.

A :class:`Graph` gives values their names and knows which columns of the user's it reads. Values are
names of tensors; every method that makes one returns its name.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from sk_easytensor.onnx.readers import MISSING_STRING

__all__ = [
    "Graph",
    "Lists",
]


OPSET, ML_OPSET, IR_VERSION = 20, 2, 10
"""Versions of the operators and of the file format that are written."""

KINDS = {
    "number": TensorProto.DOUBLE,
    "category": TensorProto.STRING,
    "time": TensorProto.INT64,
    "seconds": TensorProto.DOUBLE,
    "hashed": TensorProto.INT64,
}
"""Element types of the columns a graph reads, by how they are read."""


@dataclass
class Lists:
    """Parallel lists within a graph, padded.

    Attributes
    ----------
    values : dict of {str: str}
        For each field the name of its items, of shape (rows, longest).
    lengths : str
        Name of the lengths, int64 of shape (rows,).
    """

    values: dict
    lengths: str


class Graph:
    """An ONNX graph that is being built.

    Attributes
    ----------
    readers : list of dict
        How each column that the graph takes is read, for :class:`~sk_easytensor.inference.\
OnnxPredictor`; plain values, kept in the file.
    watched : list of (codes, axes, columns)
        Codes of which :meth:`highest_codes` gives the highest: see :meth:`watch`.
    """

    def __init__(self):
        self.readers, self.watched = [], []
        self._nodes, self._initializers, self._inputs, self._outputs = [], [], {}, []
        self._constants, self._count, self._given = {}, 0, {}

    # ------------------------------------------------------------------ values

    def op(self, kind, *inputs, domain="", **attributes):
        """Add an operator and return the name of its output.

        Parameters
        ----------
        kind : str
            Such as ``"Add"``.
        *inputs : str, number or ndarray
            Names of values; numbers and arrays become constants.
        domain : str
            Of the operator.
        **attributes
            As the operator has them.

        Returns
        -------
        str
        """
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        output = self._name(kind)
        node = helper.make_node(kind, names, [output], domain=domain, **attributes)
        self._nodes.append(node)
        return output

    def constant(self, value):
        """Return the name of a constant: an array, a number (float64, int64 or bool) or a list."""
        array = np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes() if array.dtype != object else value)
        if array.dtype == object or key not in self._constants:
            name = self._name("constant")
            self._initializers.append(numpy_helper.from_array(array, name))
            if array.dtype == object:
                return name
            self._constants[key] = name
        return self._constants[key]

    def cast(self, value, dtype):
        """Return a value as another NumPy dtype."""
        return self.op("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def stack(self, values, axis):
        """Join values along a new axis."""
        axes = np.array([axis])
        return self.op("Concat", *[self.op("Unsqueeze", v, axes) for v in values], axis=axis)

    def _name(self, kind):
        self._count += 1
        return f"encode/{kind}_{self._count}"

    # ------------------------------------------------------------------ columns

    def column(self, name, kind, **how):
        """Return a column of the user's.

        Parameters
        ----------
        name : str
            Of the column.
        kind : {"number", "category", "time", "seconds", "hashed"}
            How it is read: float64 with NaN; strings, with one that stands for missing ones;
            microseconds since 1970, with the least integer for missing ones; seconds, float64
            with NaN; or codes of hashed strings.
        **how
            Further settings of the reader: `zone` of times, `buckets` of hashes.

        Returns
        -------
        str
            Of shape (rows,).
        """
        reader = {"read": kind, "column": str(name), **how}
        return self._read(reader, lambda given: self.input(given, KINDS[kind], ["rows"]))

    def vector(self, name, length):
        """Return a column of vectors, float64 of shape (rows, length), NaN where missing."""
        reader = {"read": "vector", "column": str(name), "length": length}
        return self._read(
            reader, lambda given: self.input(given, TensorProto.DOUBLE, ["rows", length])
        )

    def lists(self, fields, *, max_length, keep, owner):
        """Return columns of lists that describe the same items, cut to their longest.

        Parameters
        ----------
        fields : dict of {str: dict}
            For each field ``column``, ``kind`` as for :meth:`column` and, for fields of structs,
            ``inner``, the name within the struct.
        max_length : int
            Items read of each list.
        keep : {"last", "first"}
            Which those are.
        owner : str
            Class name of the block, for error messages.

        Returns
        -------
        Lists
        """
        names = {field: self._free(field) for field in fields}
        lengths = self._free(f"{next(iter(fields))}.lengths")
        longest = f"{lengths.removesuffix('.lengths')}.longest"
        fields_read = [{"name": names[field], **how} for field, how in fields.items()]
        self.readers.append(
            {
                "read": "lists",
                "fields": fields_read,
                "lengths": lengths,
                "max_length": max_length,
                "keep": keep,
                "owner": owner,
            }
        )
        values = {
            field: self.input(names[field], KINDS[how["kind"]], ["rows", longest])
            for field, how in fields.items()
        }
        self.input(lengths, TensorProto.INT64, ["rows"])
        return Lists(values, lengths)

    def cut(self, lists, *, max_length, keep):
        """Leave out what is beyond the longest length that a block reads.

        Parameters
        ----------
        lists : Lists
            Of numbers: strings are looked up before.
        max_length, keep
            As for :meth:`lists`.

        Returns
        -------
        Lists
        """
        first = next(iter(lists.values.values()))
        size = self.op("Slice", self.op("Shape", first), [1], [2])
        longest = self.op("Min", size, np.array([max_length]))
        kept = self.op("Min", lists.lengths, np.int64(max_length))
        place = self.op("Range", np.int64(0), self.op("Squeeze", longest), np.int64(1))
        start = np.int64(0)
        if keep == "last":
            start = self.op("Sub", lists.lengths, kept)
            start = self.op("Unsqueeze", start, np.array([1]))
        else:
            start = self.op("Unsqueeze", self.op("Sub", kept, kept), np.array([1]))
        place = self.op("Add", place, start)
        last = self.op("Sub", self.op("Squeeze", size), np.int64(1))
        place = self.op("Min", place, last)
        values = {
            name: self.op("GatherElements", value, place, axis=1)
            for name, value in lists.values.items()
        }
        return Lists(values, kept)

    def given(self, reader, prefix, inputs):
        """Return values that are computed before the graph, by what reads the file.

        Parameters
        ----------
        reader : dict
            How; with ``"read"``, and plain values.
        prefix : str
            What the names of the inputs begin with.
        inputs : dict of {str: (dtype, shape)}
            What the reader gives.

        Returns
        -------
        dict of {str: str}
            Their names in the graph.
        """
        names = {name: self._free(f"{prefix}.{name}") for name in inputs}
        self.readers.append({**reader, "names": names})
        return {
            name: self.input(names[name], helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
            for name, (dtype, shape) in inputs.items()
        }

    def weighted_ids(self, reader, columns):
        """Return lists of ids and weights that are computed before the graph.

        Parameters
        ----------
        reader : dict
            As for :meth:`given`; it gives ids, weights and lengths.
        columns : list of str
            That have a list a row each.

        Returns
        -------
        dict of {str: tuple of str}
            The entries ``ids`` and ``weights`` of an encoding.
        """
        lists = ["rows", len(columns), f"{columns[0]}.longest"]
        inputs = {"ids": (np.int32, lists), "weights": (np.float32, lists)}
        inputs["lengths"] = (np.int64, lists[:2])
        given = self.given(reader, columns[0], inputs)
        return {name: (given[name], given["lengths"]) for name in ("ids", "weights")}

    def input(self, name, kind, shape):
        """Add an input of an element type of ONNX and a shape, in which strings are sizes."""
        self._inputs[name] = helper.make_tensor_value_info(name, kind, shape)
        return name

    def _read(self, reader, make):
        """Return the input of a reader, the same one if two blocks read a column alike."""
        for known in self.readers:
            if {**known, "name": None} == {**reader, "name": None}:
                return known["name"]
        reader["name"] = self._free(reader["column"])
        self.readers.append(reader)
        return make(reader["name"])

    def _free(self, name):
        """Return a name that no input has: that of the column, if it can be."""
        while name in self._inputs or any(name in self._names(reader) for reader in self.readers):
            name += "'"
        return name

    @staticmethod
    def _names(reader):
        fields = [field["name"] for field in reader.get("fields", [])]
        return [
            reader.get("name"),
            reader.get("lengths"),
            *fields,
            *reader.get("names", {}).values(),
        ]

    # ------------------------------------------------------------------ look-ups

    def codes(self, strings, categories, also=()):
        """Look categories up.

        Parameters
        ----------
        strings : str
            Name of a tensor of strings.
        categories : list of str
            Known ones, whose codes are 2 and so on.
        also : dict of {str: str}, optional
            Further spellings of categories.

        Returns
        -------
        str
            Of int64: 0 where missing, 1 where unknown.
        """
        codes = {MISSING_STRING: 0, **{word: 2 + i for i, word in enumerate(categories)}}
        for word, category in dict(also).items():
            if category in codes:
                codes.setdefault(word, codes[category])
        return self.op(
            "LabelEncoder",
            strings,
            domain="ai.onnx.ml",
            keys_strings=list(codes),
            values_int64s=list(codes.values()),
            default_int64=1,
        )

    def watch(self, codes, columns, axes=(0,)):
        """Have the highest code of columns given out, which says whether any category is known.

        Parameters
        ----------
        codes : str
            Name of a tensor of int32.
        columns : list of dict or None
            How :class:`~sk_easytensor.inference.OnnxPredictor` finds the values: ``name`` for
            messages, ``block``, ``column`` and, within structs, ``inner``. None for columns that
            have no known category.
        axes : tuple of int
            Axes of rows and items; what is left are the columns.
        """
        if any(columns):
            self.watched.append((codes, axes, columns))

    def highest_codes(self):
        """Return the highest codes of all watched columns, int32 of shape (columns,)."""
        parts = []
        for codes, axes, columns in self.watched:
            highest = self.op("ReduceMax", codes, np.array(axes), keepdims=0)
            parts.append(self.op("Reshape", highest, np.array([len(columns)])))
        return self.op("Concat", *parts, axis=0)

    def search(self, values, tables):
        """Return how many entries of a sorted table are not above each value, less one.

        Parameters
        ----------
        values : str
            Of shape (..., n_tables); none may be below the first entry of its table.
        tables : list of ndarray
            Increasing, of one dtype.

        Returns
        -------
        place : str
            Of int64, in the shape of the values.
        look_up : callable
            Returns the entries at some places of the values' tables.
        """
        steps = max(int(np.ceil(np.log2(max(map(len, tables))))), 1)
        size = 2**steps
        dtype = tables[0].dtype
        highest = np.inf if dtype.kind == "f" else np.iinfo(dtype).max
        padded = np.full((len(tables), size + 1), highest, dtype)
        for row, table in zip(padded, tables, strict=True):
            row[: len(table)] = table
        flat = self.constant(padded.reshape(-1))
        first = self.constant(np.arange(len(tables)) * (size + 1))

        def look_up(place):
            return self.op("Gather", flat, self.op("Add", place, first))

        place = self.op("Mul", self.cast(self.op("IsNaN", self.cast(values, float)), int), 0)
        for step in 2 ** np.arange(steps)[::-1]:
            ahead = self.op("Add", place, np.int64(step))
            below = self.op("LessOrEqual", look_up(ahead), values)
            place = self.op("Where", below, ahead, place)
        return place, look_up

    # ------------------------------------------------------------------ the whole

    def append(self, model, inputs):
        """Run another model on values of this graph.

        Parameters
        ----------
        model : onnx.ModelProto
            Of the same versions.
        inputs : dict of {str: str}
            For each of its inputs the value to give it.

        Returns
        -------
        list of str
            Its outputs.
        """
        model = compose.add_prefix(model, "network/")
        graph = model.graph
        renamed = {f"network/{name}": value for name, value in inputs.items()}
        for node in graph.node:
            for place, name in enumerate(node.input):
                node.input[place] = renamed.get(name, name)
        self._nodes += graph.node
        self._initializers += graph.initializer
        return [output.name for output in graph.output]

    def output(self, value, name, dtype, shape):
        """Give a value out under a name, which may get a mark if a column has it."""
        while name in self._inputs:
            name += "'"
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self._outputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def model(self, producer, version, metadata):
        """Return the graph as a model, checked.

        Parameters
        ----------
        producer, version : str
            Who made it.
        metadata : dict of {str: str}
            Kept in the file.

        Returns
        -------
        onnx.ModelProto
        """
        graph = helper.make_graph(
            self._nodes, producer, list(self._inputs.values()), self._outputs, self._initializers
        )
        model = helper.make_model(
            graph,
            producer_name=producer,
            producer_version=version,
            ir_version=IR_VERSION,
            opset_imports=[
                helper.make_opsetid("", OPSET),
                helper.make_opsetid("ai.onnx.ml", ML_OPSET),
            ],
        )
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model)
        return model
