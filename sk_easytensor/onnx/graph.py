"""ONNX graphs, built node by node, to which a block's ``to_onnx`` adds its encoding.

A :class:`Graph` names its values and records which columns of the table are its inputs. A value is
the name of a tensor; every method that adds one returns its name.
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
"""Element types of inputs, by kind of the column."""


@dataclass
class Lists:
    """Parallel lists within a graph, padded.

    Attributes
    ----------
    values : dict of {str: str}
        Names of the items of each field, of shape (rows, longest).
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
        Specifications by which :class:`~sk_easytensor.inference.OnnxPredictor` reads the inputs
        from a table. They are JSON values, stored in the file.
    watched : list of (codes, axes, columns)
        Codes whose maxima :meth:`highest_codes` returns; see :meth:`watch`.
    """

    def __init__(self):
        self.readers, self.watched = [], []
        self._nodes, self._initializers, self._inputs, self._outputs = [], [], {}, []
        self._constants, self._count = {}, 0

    # ------------------------------------------------------------------ values

    def op(self, kind, *inputs, domain="", **attributes):
        """Add an operator and return the name of its output.

        Parameters
        ----------
        kind : str
            Name of the operator, such as ``"Add"``.
        *inputs : str, number or ndarray
            Names of values; numbers and arrays become constants.
        domain : str, default=""
            Domain of the operator.
        **attributes
            Attributes of the operator.

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
        """Return a value converted to a NumPy dtype."""
        return self.op("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def stack(self, values, axis):
        """Join values along a new axis."""
        axes = np.array([axis])
        return self.op("Concat", *[self.op("Unsqueeze", v, axes) for v in values], axis=axis)

    def _name(self, kind):
        self._count += 1
        return f"encode/{kind}_{self._count}"

    # ------------------------------------------------------------------ columns

    def column(self, name, kind, **settings):
        """Return an input with a column of the table.

        Parameters
        ----------
        name : str
            Name of the column.
        kind : {"number", "category", "time", "seconds", "hashed"}
            Form of the values: float64, NaN where missing; strings, U+FFFF where missing;
            microseconds since 1970 as int64, the least integer where missing; seconds since 1970
            as float64, NaN where missing; or codes of hashed strings as int64, 0 where missing.
        **settings
            Further settings of the reader: `format` of numbers and times that are texts, results of
            :mod:`sk_easytensor.data.spelling`; `zone` of times, `buckets` of hashes and `types` of
            categories and hashes, the families of types seen during fit. Without `types`, all
            families are read.

        Returns
        -------
        str
            Value of shape (rows,).
        """
        reader = {"read": kind, "column": str(name), **settings}
        return self._read(reader, lambda name: self.input(name, KINDS[kind], ["rows"]))

    def vector(self, name, length):
        """Return a column of vectors, float64 of shape (rows, length), NaN where missing."""
        reader = {"read": "vector", "column": str(name), "length": length}
        return self._read(
            reader, lambda name: self.input(name, TensorProto.DOUBLE, ["rows", length])
        )

    def lists(self, fields, *, max_length, keep, owner):
        """Return inputs with columns of lists that describe the same items.

        Parameters
        ----------
        fields : dict of {str: dict}
            ``column`` and ``kind`` of each field, the latter as in :meth:`column`. A field of a
            struct also has ``inner``, its name within the struct.
        max_length : int
            Largest number of items that are read of a list.
        keep : {"last", "first"}
            Which items of longer lists are read.
        owner : str
            Class name of the block, used in error messages.

        Returns
        -------
        Lists
        """
        names = {field: self._free(field) for field in fields}
        lengths = self._free(f"{next(iter(fields))}.lengths")
        longest = f"{lengths.removesuffix('.lengths')}.longest"
        self.readers.append(
            {
                "read": "lists",
                "fields": [{"name": names[field], **spec} for field, spec in fields.items()],
                "lengths": lengths,
                "max_length": max_length,
                "keep": keep,
                "owner": owner,
            }
        )
        values = {
            field: self.input(names[field], KINDS[spec["kind"]], ["rows", longest])
            for field, spec in fields.items()
        }
        self.input(lengths, TensorProto.INT64, ["rows"])
        return Lists(values, lengths)

    def cut(self, lists, *, max_length, keep):
        """Truncate lists to the largest number of items that a block reads.

        Parameters
        ----------
        lists : Lists
            Lists of numbers. Strings are looked up before.
        max_length, keep
            Parameters of :meth:`lists`.

        Returns
        -------
        Lists
        """
        first = next(iter(lists.values.values()))
        size = self.op("Slice", self.op("Shape", first), [1], [2])
        longest = self.op("Min", size, np.array([max_length]))
        lengths = self.op("Min", lists.lengths, np.int64(max_length))
        index = self.op("Range", np.int64(0), self.op("Squeeze", longest), np.int64(1))
        start = np.int64(0)
        if keep == "last":
            start = self.op("Sub", lists.lengths, lengths)
            start = self.op("Unsqueeze", start, np.array([1]))
        else:
            start = self.op("Unsqueeze", self.op("Sub", lengths, lengths), np.array([1]))
        index = self.op("Add", index, start)
        last = self.op("Sub", self.op("Squeeze", size), np.int64(1))
        index = self.op("Min", index, last)
        values = {
            name: self.op("GatherElements", value, index, axis=1)
            for name, value in lists.values.items()
        }
        return Lists(values, lengths)

    def precomputed(self, reader, prefix, inputs):
        """Return inputs that the predictor computes before it runs the graph.

        Parameters
        ----------
        reader : dict
            Specification of a reader, with the key ``"read"`` and JSON values.
        prefix : str
            Prefix of the names of the inputs.
        inputs : dict of {str: (dtype, shape)}
            Arrays that the reader returns.

        Returns
        -------
        dict of {str: str}
            Names of the inputs in the graph.
        """
        names = {name: self._free(f"{prefix}.{name}") for name in inputs}
        self.readers.append({**reader, "names": names})
        return {
            name: self.input(names[name], helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
            for name, (dtype, shape) in inputs.items()
        }

    def weighted_ids(self, reader, columns):
        """Return lists of ids and weights that are computed before the graph runs.

        Parameters
        ----------
        reader : dict
            Specification of a reader, as in :meth:`precomputed`, that returns ids, weights and
            lengths.
        columns : list of str
            Columns with a list in each row.

        Returns
        -------
        dict of {str: tuple of str}
            Entries ``ids`` and ``weights`` of an encoding.
        """
        lists = ["rows", len(columns), f"{columns[0]}.longest"]
        inputs = {"ids": (np.int32, lists), "weights": (np.float32, lists)}
        inputs["lengths"] = (np.int64, lists[:2])
        names = self.precomputed(reader, columns[0], inputs)
        return {entry: (names[entry], names["lengths"]) for entry in ("ids", "weights")}

    def input(self, name, kind, shape):
        """Add an input of an ONNX element type and a shape, in which strings name dynamic sizes."""
        self._inputs[name] = helper.make_tensor_value_info(name, kind, shape)
        return name

    def _read(self, reader, add_input):
        """Return the input of a reader, which blocks share if they read a column the same way."""
        for existing in self.readers:
            if {**existing, "name": None} == {**reader, "name": None}:
                return existing["name"]
        reader["name"] = self._free(reader["column"])
        self.readers.append(reader)
        return add_input(reader["name"])

    def _free(self, name):
        """Return a name that no input has, which is that of the column if possible."""
        # Names of ONNX values must not be empty.
        name = name or "column"
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
        """Look up the codes of categories.

        Parameters
        ----------
        strings : str
            Name of a tensor of strings.
        categories : list of str
            Known categories, whose codes are 2, 3 and so on.
        also : dict of {str: str}, optional
            Further spellings, with their categories.

        Returns
        -------
        str
            Codes of int64: 0 where missing, 1 where unknown.
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
        """Include columns in :meth:`highest_codes`, which shows whether any category is known.

        Parameters
        ----------
        codes : str
            Name of a tensor of int32.
        columns : list of dict or None
            Columns of the codes, for warnings of :class:`~sk_easytensor.inference.OnnxPredictor`:
            ``name``, ``block``, ``column`` and, within structs, ``inner``. None for columns that
            have no known category.
        axes : tuple of int, default=(0,)
            Axes of rows and items. The remaining axis is that of the columns.
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
        """Return the index of the last entry of a sorted table that is not above each value.

        Parameters
        ----------
        values : str
            Values of shape (..., n_tables). None may be below the first entry of its table.
        tables : list of ndarray
            Increasing tables of one dtype.

        Returns
        -------
        index : str
            Indices of int64, in the shape of the values.
        look_up : callable
            Function of indices that returns the entries of the values' tables.
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

        def look_up(index):
            return self.op("Gather", flat, self.op("Add", index, first))

        index = self.op("Mul", self.cast(self.op("IsNaN", self.cast(values, float)), int), 0)
        for step in 2 ** np.arange(steps)[::-1]:
            ahead = self.op("Add", index, np.int64(step))
            below = self.op("LessOrEqual", look_up(ahead), values)
            index = self.op("Where", below, ahead, index)
        return index, look_up

    # ------------------------------------------------------------------ model

    def append(self, model, inputs):
        """Append the nodes of another model, with values of this graph as its inputs.

        Parameters
        ----------
        model : onnx.ModelProto
            Model with the same versions of operators.
        inputs : dict of {str: str}
            Value for each input of the model.

        Returns
        -------
        list of str
            Outputs of the model.
        """
        model = compose.add_prefix(model, "network/")
        graph = model.graph
        renamed = {f"network/{name}": value for name, value in inputs.items()}
        for node in graph.node:
            for index, name in enumerate(node.input):
                node.input[index] = renamed.get(name, name)
        self._nodes += graph.node
        self._initializers += graph.initializer
        return [output.name for output in graph.output]

    def output(self, value, name, dtype, shape):
        """Add an output, and return its name, to which ``'`` is added if a column has it."""
        while name in self._inputs:
            name += "'"
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self._outputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def model(self, producer, version, metadata):
        """Return the graph as a model, after a check by ONNX.

        Parameters
        ----------
        producer, version : str
            Name and version of the library that writes the model.
        metadata : dict of {str: str}
            Metadata of the model.

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
