"""Export adapters: the inputs of exported networks, and the outputs of each kind of model."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.base import is_classifier
from sklearn.utils.validation import check_is_fitted
from torch import nn

from sk_easytensor.networks.two_tower_network import embed, embed_with_aggregates
from sk_easytensor.tensors import Padded, Ragged

__all__ = [
    "ClassifierAdapter",
    "EmbedderAdapter",
    "EmbeddingAdapter",
    "EncodedInputs",
    "ExportAdapter",
    "ExportedNetwork",
    "MultiTaskAdapter",
    "NetworkAdapter",
    "PairAdapter",
    "RegressorAdapter",
    "engine_adapter",
    "export_adapter",
]


ROWS, LONGEST = 5, 7
"""Rows and list lengths of the traced example. They differ, so that tracing separates them."""


@dataclass
class EncodedInput:
    """One input of an exported network.

    Attributes
    ----------
    name : str
        Name of the input in the graph.
    block, entry : str
        Block, and entry of its encoding. The entry of an input with lengths of lists is empty.
    example : torch.Tensor
        Example with the dtype and number of dimensions of the input.
    dynamic : dict of {int: str}
        Names of the dimensions whose sizes vary.
    lengths : str or None
        Name of the input with the lengths of the lists; None if the input has no lists.
    """

    name: str
    block: str
    entry: str
    example: torch.Tensor
    dynamic: dict
    lengths: str | None = None


class EncodedInputs:
    """Inputs of an exported network: the encodings of fitted blocks.

    Parameters
    ----------
    blocks : dict of {str: Block}
        Fitted blocks by name.
    prefix : str, default=""
        Prefix of the inputs' names.

    Attributes
    ----------
    inputs : list of EncodedInput
        Inputs in the order of the network's arguments.
    """

    def __init__(self, blocks, prefix=""):
        self.blocks = blocks
        self.inputs = []
        for block_name, block in blocks.items():
            encoding = block.example(ROWS)
            groups = {id(e.offsets) for e in encoding.values() if isinstance(e, Ragged)}
            lengths_of = {}
            for entry, value in encoding.items():
                name = f"{prefix}{block_name}.{entry}"
                if not isinstance(value, Ragged):
                    example = torch.zeros_like(value)
                    self.inputs.append(EncodedInput(name, block_name, entry, example, {0: "rows"}))
                    continue
                group = id(value.offsets)
                lengths = f"{name}.lengths"
                if len(groups) == 1:
                    lengths = f"{prefix}{block_name}.lengths"
                longest = lengths.removesuffix(".lengths") + ".longest"
                shape = (ROWS, value.n_columns, LONGEST, *value.values.shape[1:])
                example = torch.zeros(shape, dtype=value.values.dtype)
                dynamic = {0: "rows", 2: longest}
                lengths = lengths_of.get(group, lengths)
                self.inputs.append(EncodedInput(name, block_name, entry, example, dynamic, lengths))
                if group not in lengths_of:
                    lengths_of[group] = lengths
                    example = torch.arange(ROWS * value.n_columns).reshape(ROWS, -1) % LONGEST
                    self.inputs.append(EncodedInput(lengths, block_name, "", example, {0: "rows"}))

    @property
    def names(self):
        """Names of the inputs, in their order."""
        return [input_.name for input_ in self.inputs]

    def frame(self, tensors):
        """Return the encoding, by block and entry, for tensors in the order of :attr:`names`."""
        by_name = dict(zip(self.names, tensors, strict=True))
        frame = {}
        for input_ in self.inputs:
            if not input_.entry:
                continue
            value = by_name[input_.name]
            if input_.lengths is not None:
                value = Padded(value, by_name[input_.lengths])
            frame.setdefault(input_.block, {})[input_.entry] = value
        return frame

    def arrays(self, frame):
        """Return encoded rows as arrays for the inputs.

        Parameters
        ----------
        frame : TensorFrame
            Encoded rows.

        Returns
        -------
        dict of {str: ndarray}
            Arrays by name of the input.
        """
        arrays = {}
        for input_ in self.inputs:
            if not input_.entry:
                continue
            value = frame[input_.block][input_.entry]
            if input_.lengths is not None:
                padded = value.to_padded()
                if padded.shape[1] == 0:
                    padded = padded.new_zeros(len(padded), 1, *padded.shape[2:])
                shape = (len(value), value.n_columns)
                arrays[input_.lengths] = value.lengths.reshape(shape).cpu().numpy()
                value = padded.unflatten(0, shape)
            arrays[input_.name] = np.ascontiguousarray(value.cpu().numpy())
        return arrays


CLASSES, NUMBER = "probabilities", "predictions"
"""Names of the outputs of tasks, which are followed by ``_`` and the index of the task."""


def export_adapter(model):
    """Return the export adapter of a fitted model.

    Parameters
    ----------
    model : estimator or Tower
        Fitted model.

    Returns
    -------
    ExportAdapter

    Raises
    ------
    TypeError
        If the model is not one of this library that can be exported.
    NotFittedError
        If the model is not fitted.
    """
    adapter = getattr(type(model), "_export_adapter", None)
    if adapter is not None:
        check_is_fitted(model)
        return adapter(model)
    raise TypeError(
        f"a {type(model).__name__} cannot be exported; pass a fitted estimator of this library or "
        "one of its towers"
    )


def engine_adapter(model):
    """Return the adapter for an inference engine, which computes the outputs of the network.

    Parameters
    ----------
    model : estimator or Tower
        Fitted model with one network.

    Returns
    -------
    ExportAdapter
        Adapter whose outputs are those of the model's ``_network_functions()``.
    """
    return type(model)._engine_adapter(model)


class ExportAdapter:
    """Base class: the networks of a model with their blocks, and its outputs in an exported file.

    Parameters
    ----------
    model : estimator or Tower
        Fitted model.

    Attributes
    ----------
    kind : str
        Kind of the outputs, by which :class:`~sk_easytensor.onnx.predictor.OnnxPredictor` chooses
        its methods.
    towers : dict of {str: (blocks, network, encoder)}
        Parts of the model, by the prefix of the names of their encoded inputs.
    outputs : list of str
        Names of the tensors that :meth:`compute` returns.
    warns_of_unknown : bool
        Whether predictions warn of a column of which no value is a known category, as those of the
        model do.
    """

    kind = ""
    outputs = ()
    warns_of_unknown = True

    def __init__(self, model):
        self.model = model
        self.towers = self._towers(model)

    def _towers(self, model):
        return {"": (model.blocks_, model.network_, model._encoder)}

    def compute(self, networks, frames, precise):
        """Return the outputs.

        Parameters
        ----------
        networks : list of BlockNetwork
            Networks of the towers.
        frames : list of dict
            Encoded rows for each network.
        precise : bool
            Whether the last steps are in double precision, as in the model.

        Returns
        -------
        tuple of torch.Tensor
            Tensors whose first dimension is the row, in the order of :attr:`outputs`.
        """
        raise TypeError(f"{type(self).__name__} does not implement compute")

    def scales(self):
        """Return the factors and constants by which predictions are scaled, as one array."""
        return np.ones(1)

    def check_single(self):
        """Raise ``ValueError`` if predictions are outside the range of single precision."""
        sizes = np.abs(self.scales())
        limits = np.finfo(np.float32)
        invalid = sizes[(sizes > limits.max) | ((sizes < limits.tiny) & (sizes > 0))]
        if len(invalid):
            raise ValueError(
                f"y was of the size of {invalid[0]:.3g}, which is outside the single precision of "
                f"this engine ({limits.tiny:.3g} to {limits.max:.3g}); fit on y divided by a "
                "constant"
            )

    def finish(self, graph, values):
        """Add operators after the network to a graph, and return all its outputs.

        Parameters
        ----------
        graph : Graph
            Graph that has the network.
        values : dict of {str: str}
            Values of the graph by name of the output, in the order of :attr:`outputs`.

        Returns
        -------
        dict of {str: str}
            Values of the graph by name of the output.
        """
        return values

    def metadata(self):
        """Return the metadata that predictors need of the outputs, as JSON values."""
        return {"kind": self.kind}


class NetworkAdapter(ExportAdapter):
    """Outputs of the network before they become predictions, and the representation."""

    outputs = ("combined", "representation")

    @property
    def target(self):
        """The fitted target of the model."""
        return self.model._target

    def compute(self, networks, frames, precise):
        combined, representation = networks[0].forward_all(frames[0], self.target.head_)
        return combined[:, 0], representation


class ClassifierAdapter(NetworkAdapter):
    """Probabilities, labels and the representation."""

    kind = "classifier"
    outputs = ("probabilities", "representation")

    def compute(self, networks, frames, precise):
        combined, representation = super().compute(networks, frames, precise)
        probabilities = self.target.head_.predict(combined.double() if precise else combined)
        return probabilities, representation

    def finish(self, graph, values):
        labels = add_labels(graph, values["probabilities"], *self._classes())
        return {"label": labels, **values}

    def _classes(self):
        return self.target.classes_, self.target.head_.kind == "multilabel"

    def metadata(self):
        classes, multilabel = self._classes()
        return {"kind": self.kind, "classes": as_json(classes), "multilabel": multilabel}


class RegressorAdapter(NetworkAdapter):
    """Predictions on the target's scale, and the representation."""

    kind = "regressor"
    outputs = ("predictions", "representation")

    def __init__(self, model):
        super().__init__(model)
        parts = self.target.unscaling()
        self._scale, self._center = (torch.from_numpy(np.array(part)).double() for part in parts)

    def scales(self):
        return torch.cat([self._scale, self._center]).numpy()

    def compute(self, networks, frames, precise):
        combined, representation = super().compute(networks, frames, precise)
        kind = torch.float64 if precise else torch.float32
        values = self.target.head_.predict(combined).to(kind)
        values = values * self._scale.to(kind) + self._center.to(kind)
        return values[:, 0] if self.target.predicts_one else values, representation


class MultiTaskAdapter(NetworkAdapter):
    """Predictions of each task, and the representation."""

    kind = "tasks"

    def __init__(self, model):
        super().__init__(model)
        columns = self.target.head_.columns()
        self._parts = [
            (CLASSES if is_classifier(part) else NUMBER, part, own)
            for part, own in zip(self.target.parts_.values(), columns, strict=True)
        ]
        self.outputs = [f"{kind}_{i}" for i, (kind, _, _) in enumerate(self._parts)]
        self.outputs.append("representation")

    def scales(self):
        numbers = [part.unscaling() for kind, part, _ in self._parts if kind == NUMBER]
        return np.concatenate([np.ones(1), *(np.concatenate(pair) for pair in numbers)])

    def compute(self, networks, frames, precise):
        combined, representation = super().compute(networks, frames, precise)
        dtype, predictions = torch.float64 if precise else torch.float32, []
        for kind, part, own in self._parts:
            outputs = combined[:, own]
            if kind == CLASSES:
                predictions.append(part.head_.predict(outputs.to(dtype)))
                continue
            scale, center = (
                torch.from_numpy(np.array(value)).to(dtype) for value in part.unscaling()
            )
            predictions.append((part.head_.predict(outputs).to(dtype) * scale + center)[:, 0])
        return *predictions, representation

    def metadata(self):
        names = self.model.tasks
        tasks = [
            {
                "name": name,
                "output": output,
                "classes": as_json(part.classes_) if kind == CLASSES else None,
            }
            for name, output, (kind, part, _) in zip(names, self.outputs, self._parts, strict=False)
        ]
        return {"kind": self.kind, "tasks": tasks}


class EmbeddingAdapter(ExportAdapter):
    """Embeddings of a tower."""

    kind = "embedding"
    outputs = ("embedding",)
    warns_of_unknown = False

    def compute(self, networks, frames, precise):
        return (embed_with_aggregates(networks[0], frames[0], self.model.normalized),)


class EmbedderAdapter(EmbeddingAdapter):
    """Embeddings of the tower of an embedder."""

    warns_of_unknown = True

    def __init__(self, model):
        super().__init__(model.tower_)


class PairAdapter(ExportAdapter):
    """Scores of pairs of users and items, and predictions of the target."""

    kind = "pairs"
    warns_of_unknown = False

    def _towers(self, model):
        towers = {"user/": model.user_tower_, "item/": model.item_tower_}
        return {
            prefix: (tower.blocks_, tower.network_, tower._encoder)
            for prefix, tower in towers.items()
        }

    @property
    def outputs(self):
        """Scores, and probabilities of a target of two classes or predictions of other targets."""
        second = "predictions" if self.model._target.classes_ is None else "probabilities"
        return ("scores", second)

    def compute(self, networks, frames, precise):
        model = self.model
        normalized = model.user_tower_.normalized
        users, items = (embed(*pair, normalized) for pair in zip(networks, frames, strict=True))
        if precise:
            users, items = users.double(), items.double()
        scores = (users * items).sum(1) / model._temperature + model._bias
        target = model._target
        if target.classes_ is None:
            return scores, scores * target.scale_ + target.center_
        positive = torch.sigmoid(scores)
        return scores, torch.stack([1 - positive, positive], dim=1)

    def scales(self):
        return np.array([self.model._target.scale_, self.model._target.center_])

    def finish(self, graph, values):
        classes = self.model._target.classes_
        if classes is None:
            return values
        return {"label": add_labels(graph, values["probabilities"], classes, False), **values}

    def metadata(self):
        classes = self.model._target.classes_
        return {"kind": self.kind, "classes": None if classes is None else as_json(classes)}


class ExportedNetwork(nn.Module):
    """Module from encoded inputs to the outputs of a model, all of them separate tensors.

    Parameters
    ----------
    adapter : ExportAdapter
        Adapter of the model.
    precise : bool, default=True
        Whether the last steps are in double precision.
    """

    def __init__(self, adapter, *, precise=True):
        super().__init__()
        self.adapter = adapter
        self.precise = precise
        self.parts = [
            EncodedInputs(blocks, prefix) for prefix, (blocks, _, _) in adapter.towers.items()
        ]
        # Copies, because the export changes modules.
        networks = [deepcopy(network).float() for _, network, _ in adapter.towers.values()]
        self.networks = nn.ModuleList(networks)
        self.eval().requires_grad_(False)

    def unpack_trees(self):
        """Evaluate trees without bitwise operators, which some runtimes lack."""
        for tower in self.networks:
            for network in tower.networks:
                if network.trees is not None:
                    network.trees.unpack()

    @property
    def inputs(self):
        """Encoded inputs of all towers."""
        return [input_ for part in self.parts for input_ in part.inputs]

    def forward(self, *tensors):
        """Return the outputs for tensors in the order of :attr:`inputs`."""
        frames, start = [], 0
        for part in self.parts:
            stop = start + len(part.inputs)
            frames.append(part.frame(tensors[start:stop]))
            start = stop
        return self.adapter.compute(list(self.networks), frames, self.precise)


def as_json(classes):
    """Return classes as a list of JSON values: all numbers or booleans, or all strings."""
    values = np.asarray(classes).tolist()
    if all(isinstance(value, (bool, int, float)) for value in values):
        return values
    return [str(value) for value in values]


def add_labels(graph, probabilities, classes, multilabel):
    """Add operators that turn probabilities into labels to a graph, and return the labels."""
    if multilabel:
        half = graph.op("Greater", probabilities, np.float64(0.5))
        return graph.cast(half, np.int64)
    best = graph.op("ArgMax", probabilities, axis=1, keepdims=0)
    values = np.asarray(as_json(classes))
    return graph.op("Gather", values.astype(object) if values.dtype.kind == "U" else values, best)
