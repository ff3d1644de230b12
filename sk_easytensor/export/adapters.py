"""Adapters for export: what each kind of model computes from encoded rows."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from sklearn.base import is_classifier
from sklearn.utils.validation import check_is_fitted
from torch import nn

from sk_easytensor.export.encoded_inputs import EncodedInputs
from sk_easytensor.networks.two_tower import embed

__all__ = [
    "ClassifierAdapter",
    "EmbedderAdapter",
    "EmbeddingAdapter",
    "ExportAdapter",
    "ExportedNetwork",
    "MultiTaskAdapter",
    "NetworkAdapter",
    "PairAdapter",
    "RegressorAdapter",
    "engine_adapter",
    "export_adapter",
]


CLASSES, NUMBER = "probabilities", "predictions"
"""What the outputs of tasks are called, before their numbers."""


def export_adapter(model):
    """Return the export adapter of a fitted model.

    Parameters
    ----------
    model : estimator or Tower
        Fitted.

    Returns
    -------
    ExportAdapter

    Raises
    ------
    TypeError
        If it is no model of this library.
    NotFittedError
        If it is not fitted.
    """
    adapter = getattr(type(model), "_export_adapter", None)
    if adapter is not None:
        check_is_fitted(model)
        return adapter(model)
    raise TypeError(
        f"a {type(model).__name__} cannot be exported; give a fitted estimator of this library or "
        "one of its towers"
    )


def engine_adapter(model):
    """Return what an engine computes of a fitted model: what its network gives.

    Parameters
    ----------
    model : estimator or Tower
        Fitted, with one network.

    Returns
    -------
    ExportAdapter
        Its outputs are those of the model's ``_network_functions()``.
    """
    return type(model)._engine_adapter(model)


class ExportAdapter:
    """Base: a network with its blocks, and what is made of its outputs.

    Parameters
    ----------
    model : estimator or Tower
        Fitted.

    Attributes
    ----------
    kind : str
        What :class:`OnnxPredictor` makes of the outputs.
    towers : dict of {str: (blocks, network, encoder)}
        By what the names of encoded inputs begin with.
    outputs : list of str
        Names of what :meth:`compute` returns.
    warns_of_unknown : bool
        Whether columns of which no value is a known category are warned of, as the model does.
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
        """Return the outputs, tensors whose first dimension is the row.

        Parameters
        ----------
        networks : list of BlockNetwork
            Of the towers.
        frames : list of dict
            Encoded rows for each.
        precise : bool
            Whether to end in double precision, as the model itself does.
        """
        raise TypeError(f"{type(self).__name__} does not implement compute")

    def scales(self):
        """Return what predictions are multiplied by and what is added, as an array."""
        return np.ones(1)

    def check_single(self):
        """Raise ``ValueError`` if predictions are beyond single precision."""
        sizes = np.abs(self.scales())
        limits = np.finfo(np.float32)
        wrong = sizes[(sizes > limits.max) | ((sizes < limits.tiny) & (sizes > 0))]
        if len(wrong):
            raise ValueError(
                f"y was of the size of {wrong[0]:.3g}, which the single precision of this engine "
                f"does not reach ({limits.tiny:.3g} to {limits.max:.3g}); fit on y divided by a "
                "constant"
            )

    def finish(self, graph, values):
        """Return all that a graph gives out, by name; `values` are those of :meth:`compute`."""
        return values

    def described(self):
        """Return what :class:`OnnxPredictor` needs to know, as plain values."""
        return {"kind": self.kind}


class NetworkAdapter(ExportAdapter):
    """What the network gives, before predictions are made of it, and the representation."""

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
        labels = labels_of(graph, values["probabilities"], *self._classes())
        return {"label": labels, **values}

    def _classes(self):
        return self.target.classes_, self.target.head_.kind == "multilabel"

    def described(self):
        classes, multilabel = self._classes()
        return {"kind": self.kind, "classes": plain(classes), "multilabel": multilabel}


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
    """What the tasks predict, side by side, and the representation."""

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
        dtype, found = torch.float64 if precise else torch.float32, []
        for kind, part, own in self._parts:
            outputs = combined[:, own]
            if kind == CLASSES:
                found.append(part.head_.predict(outputs.to(dtype)))
                continue
            pair = (torch.from_numpy(np.array(each)) for each in part.unscaling())
            scale, center = (each.to(dtype) for each in pair)
            found.append((part.head_.predict(outputs).to(dtype) * scale + center)[:, 0])
        return *found, representation

    def described(self):
        names = self.model.tasks
        tasks = [
            {
                "name": name,
                "output": output,
                "classes": plain(part.classes_) if kind == CLASSES else None,
            }
            for name, output, (kind, part, _) in zip(names, self.outputs, self._parts, strict=False)
        ]
        return {"kind": self.kind, "tasks": tasks}


class EmbeddingAdapter(ExportAdapter):
    """Embeddings."""

    kind = "embedding"
    outputs = ("embedding",)
    warns_of_unknown = False

    def compute(self, networks, frames, precise):
        return (embed(networks[0], frames[0], self.model.normalized),)


class EmbedderAdapter(EmbeddingAdapter):
    """The embeddings of an embedder's tower."""

    warns_of_unknown = True

    def __init__(self, model):
        super().__init__(model.tower_)


class PairAdapter(ExportAdapter):
    """How well users and items fit, and what follows from it."""

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
        """Probabilities with two classes, predictions without."""
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
        return {"label": labels_of(graph, values["probabilities"], classes, False), **values}

    def described(self):
        classes = self.model._target.classes_
        return {"kind": self.kind, "classes": None if classes is None else plain(classes)}


class ExportedNetwork(nn.Module):
    """The networks of a model and what it predicts, from flat inputs to flat outputs.

    Parameters
    ----------
    adapter : ExportAdapter
        What is computed.
    precise : bool, default=True
        Whether to end in double precision.
    """

    def __init__(self, adapter, *, precise=True):
        super().__init__()
        self.adapter = adapter
        self.precise = precise
        self.parts = [
            EncodedInputs(blocks, prefix) for prefix, (blocks, _, _) in adapter.towers.items()
        ]
        # Copies: exporting must not show in the model.
        networks = [deepcopy(network).float() for _, network, _ in adapter.towers.values()]
        self.networks = nn.ModuleList(networks)
        self.eval().requires_grad_(False)

    def unpack_trees(self):
        """Have trees read without operators on bits, which some runtimes lack."""
        for network in self.networks:
            if network.trees is not None:
                network.trees.unpack()

    @property
    def inputs(self):
        """The encoded inputs of all towers."""
        return [each for part in self.parts for each in part.inputs]

    def forward(self, *tensors):
        """Return the outputs, given the inputs in their order."""
        frames, start = [], 0
        for part in self.parts:
            stop = start + len(part.inputs)
            frames.append(part.frame(tensors[start:stop]))
            start = stop
        return self.adapter.compute(list(self.networks), frames, self.precise)


def plain(classes):
    """Return classes as values that JSON has: strings, numbers or truth values."""
    values = np.asarray(classes).tolist()
    if all(isinstance(value, (bool, int, float)) for value in values):
        return values
    return [str(value) for value in values]


def labels_of(graph, probabilities, classes, multilabel):
    """Add the labels that follow from probabilities to a graph."""
    if multilabel:
        half = graph.op("Greater", probabilities, np.float64(0.5))
        return graph.cast(half, np.int64)
    best = graph.op("ArgMax", probabilities, axis=1, keepdims=0)
    values = np.asarray(plain(classes))
    return graph.op("Gather", values.astype(object) if values.dtype.kind == "U" else values, best)
