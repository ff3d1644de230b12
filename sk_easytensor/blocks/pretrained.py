"""Block that uses a fitted estimator, or one of its blocks, in another estimator."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from sk_easytensor._utils.runtime import ForkSafeLock, seeded
from sk_easytensor._utils.validation import check_choice, check_number
from sk_easytensor.blocks.base import Block, unsupported_column
from sk_easytensor.blocks.vector import UnitScale, VectorProjection
from sk_easytensor.data.summaries import SummaryMap
from sk_easytensor.data.tables import read_like_fit
from sk_easytensor.executor import LocalExecutor
from sk_easytensor.networks.block_module import BlockModule, learning_rates
from sk_easytensor.networks.block_network import BlockNetwork, make_network
from sk_easytensor.networks.ensemble import join_networks
from sk_easytensor.networks.two_tower_network import embed
from sk_easytensor.tensors import TensorFrame

__all__ = [
    "ModelSnapshot",
    "PretrainedBlock",
    "Representation",
    "model_snapshot",
]


OWNER = "PretrainedBlock"

# Lock of the snapshots. One thread computes at a time, because it uses all threads of torch.
LOCK = ForkSafeLock()

# Snapshots by estimator, so that clones of a block share one copy.
SNAPSHOTS = WeakKeyDictionary()


@dataclass
class Representation:
    """Part of a fitted estimator that computes the representation of a row.

    Parameters
    ----------
    blocks : dict of {str: Block}
        Fitted blocks.
    network : BlockNetwork
        Trained network.
    trunk : object
        Parameter object of the network's trunk.
    head : Head, optional
        Head of the network, if the representation is the output of the head, as an embedding is.
        By default the representation is the output of the network's method ``represent``.
    normalized : bool, default=False
        Whether representations are scaled to unit length.
    """

    blocks: dict
    network: BlockNetwork
    trunk: object
    head: object = None
    normalized: bool = False


class ModelSnapshot:
    """Immutable copy of fitted blocks and the weights of the network that reads them.

    Parameters
    ----------
    owner : str
        Class name of the estimator.
    representation : Representation
        Representation of the estimator, whose weights are copied.
    block : str, optional
        Name of the only block to copy; by default the whole representation is copied.

    Attributes
    ----------
    blocks : dict of {str: Block}
        Fitted blocks.
    columns : list of str
        Names of the columns that the blocks read.
    """

    def __init__(self, owner, representation, block=None):
        self.owner = owner
        self.block = block
        self.blocks = dict(representation.blocks)
        self.trunk, self.head, self.normalized, self.n_networks = None, None, False, 1
        if block is None:
            self.trunk = representation.trunk
            self.head = representation.head
            self.normalized = representation.normalized
            self.n_networks = len(representation.network.networks)
        else:
            self.blocks = {block: self.blocks[block]}
        self._frozen = None
        trained = self._trained(representation)
        self.weights = {name: trained[name].numpy().copy() for name in self._build().state_dict()}

    def __getstate__(self):
        """Return the state to pickle, without torch objects, so that it loads on any device."""
        return {**vars(self), "_frozen": None}

    def __deepcopy__(self, memo):
        return self

    def __repr__(self):
        return f"<fitted {self.owner}>"

    def representation(self):
        """Return the snapshot as a representation, of which snapshots can be taken again.

        Returns
        -------
        Representation

        Raises
        ------
        ValueError
            If the snapshot is of a single block.
        """
        if self.block is not None:
            raise ValueError(
                f"{OWNER}: only the block {self.block!r} of the {self.owner} was pickled; "
                f"block must be {self.block!r}"
            )
        network = self.frozen.network
        return Representation(self.blocks, network, self.trunk, self.head, self.normalized)

    def matches(self, representation):
        """Return whether a representation has the blocks and the weights of the snapshot."""
        blocks = representation.blocks
        if any(blocks.get(name) is not block for name, block in self.blocks.items()):
            return False
        trained = self._trained(representation)
        return all(
            name in trained and np.array_equal(trained[name].numpy(), weight, equal_nan=True)
            for name, weight in self.weights.items()
        )

    @property
    def columns(self):
        names = (name for block in self.blocks.values() for name in block.feature_names_in_)
        return list(dict.fromkeys(names))

    @property
    def frozen(self):
        """Module in evaluation mode whose weights are frozen and share the snapshot's memory."""
        if self._frozen is None:
            module = self._build()
            module.load_state_dict(self._tensors(), assign=True)
            self._frozen = module.eval().requires_grad_(False)
        return self._frozen

    def make_module(self):
        """Return a new trainable module, initialized with a copy of the weights."""
        module = self._build()
        module.load_state_dict(self._tensors())
        return module

    def encode(self, table):
        """Encode a table with the blocks of the snapshot.

        Parameters
        ----------
        table : pyarrow.Table
            Table with the columns of the snapshot.

        Returns
        -------
        dict of {str: torch.Tensor or Ragged}
            Encoding of the block. In a snapshot of a whole representation, the names of entries
            begin with the index of the block and a full stop.
        """
        encodings = {
            name: block.encode(table.select(list(block.feature_names_in_)))
            for name, block in self.blocks.items()
        }
        return encodings[self.block] if self.block is not None else join_encodings(encodings)

    def encoding_columns(self, encoding):
        """Return the input column of each part of an encoding, as a block does."""
        if self.block is not None:
            return self.blocks[self.block].encoding_columns(encoding)
        parts = split_encoding(list(self.blocks), encoding)
        columns = {name: block.encoding_columns(parts[name]) for name, block in self.blocks.items()}
        return join_encodings(columns)

    def vectors(self, encoding):
        """Return the outputs for encoded rows, a float32 tensor of shape (n, out_features)."""
        frame = TensorFrame({"part": encoding})
        with LOCK:
            module = self.frozen
            backend = LocalExecutor(torch.get_num_threads())
            outputs = backend.forward(
                lambda rows: module(**rows["part"]).float(),
                frame,
                lengths=module.padded_lengths(encoding),
            )
        # A tensor of inference mode could neither be modified nor used in training.
        return torch.from_numpy(outputs.numpy())

    def _build(self):
        # The random weights are replaced, so the random state must not change.
        with seeded(0):
            if self.block is not None:
                return self.blocks[self.block].make_module()
            network = join_networks(
                [make_network(self.blocks, self.trunk, self.head) for _ in range(self.n_networks)]
            )
        size = network.representation_features if self.head is None else self.head.out_features
        return RepresentationModule(network, size, self.normalized)

    def _tensors(self):
        return {name: torch.from_numpy(weight) for name, weight in self.weights.items()}

    def _trained(self, representation):
        """Return the tensors of a representation by their names in the snapshot."""
        network = representation.network
        if self.block is None:
            state = network.state_dict()
            return {f"network.{name}": tensor.cpu() for name, tensor in state.items()}
        state = network.blocks[network.names.index(self.block)].state_dict()
        return {name: tensor.cpu() for name, tensor in state.items()}


class RepresentationModule(BlockModule):
    """Module of a block that computes the representation of a whole network.

    Parameters
    ----------
    network : BlockNetwork
        Network whose representation is computed, or the output of its head if it has one.
    out_features : int
        Dimension of the representation.
    normalized : bool
        Whether outputs are scaled to unit length.
    """

    def __init__(self, network, out_features, normalized):
        super().__init__()
        self.network = network
        self.out_features = out_features
        self.normalized = normalized
        self.padded = any(block.padded for block in network.blocks)

    def padded_lengths(self, encoding):
        """Return the length of the longest padded list of each row, or None."""
        return self.network.padded_lengths(split_encoding(self.network.names, encoding))

    def forward(self, **encoding):
        """Return the representation.

        Parameters
        ----------
        **encoding : torch.Tensor or Ragged
            Entries of :meth:`ModelSnapshot.encode`.

        Returns
        -------
        torch.Tensor of float32, shape (batch, out_features)
        """
        frame = split_encoding(self.network.names, encoding)
        if self.network.head is None:
            return self.network.represent(frame).float()
        return embed(self.network, frame, self.normalized)


def join_encodings(encodings):
    """Merge the encodings of several blocks; names begin with the index of the block."""
    return {
        f"{index}.{entry}": value
        for index, encoding in enumerate(encodings.values())
        for entry, value in encoding.items()
    }


def split_encoding(names, encoding):
    """Split a merged encoding into the encodings of its blocks: see :func:`join_encodings`."""
    parts = {name: {} for name in names}
    for entry, value in encoding.items():
        index, _, entry = entry.partition(".")
        parts[names[int(index)]][entry] = value
    return parts


def model_snapshot(estimator, block=None):
    """Return a snapshot of a fitted estimator, the same object until its weights change.

    Parameters
    ----------
    estimator : object
        Estimator with a method ``representation()``, or a :class:`ModelSnapshot`.
    block : str, optional
        Name of a block; by default the snapshot is of the whole representation.

    Returns
    -------
    ModelSnapshot

    Raises
    ------
    TypeError
        If the estimator has no method ``representation()``.
    NotFittedError
        If the estimator is not fitted.
    ValueError
        If the estimator has no block of this name; the message lists the existing ones.
    """
    owner = type(estimator).__name__
    if isinstance(estimator, ModelSnapshot):
        if estimator.block == block:
            return estimator
        owner = estimator.owner
    if isinstance(estimator, Block):
        raise TypeError(
            f"{OWNER}: estimator is a {owner}, which has no weights of its own; give the "
            "estimator that it was trained in, and the name of the block: "
            f"{OWNER}(model, block=name)"
        )
    if isinstance(estimator, type) or not hasattr(estimator, "representation"):
        raise TypeError(
            f"{OWNER}: estimator must be a fitted estimator of this library or one of its towers, "
            f"or have a method representation(), got {estimator!r}"
        )
    try:
        representation = estimator.representation()
    except NotFittedError as error:
        raise NotFittedError(
            f"{OWNER}: estimator is a {owner} that is not fitted; fit it first"
        ) from error
    if block is not None and block not in representation.blocks:
        raise ValueError(
            f"{OWNER}: block must be one of {list(representation.blocks)}, the blocks of the "
            f"{owner}, or None for its whole representation; got {block!r}"
        )
    with LOCK:
        snapshots = SNAPSHOTS.setdefault(estimator, {})
        if block not in snapshots or not snapshots[block].matches(representation):
            snapshots[block] = ModelSnapshot(owner, representation, block)
        return snapshots[block]


MAX_WIDTH = 64
"""Largest default width of projections."""


class PretrainedBlock(Block):
    """Use a fitted estimator, tower or embedder, or one of its blocks, in another estimator.

    Parameters
    ----------
    estimator : object
        Fitted estimator of this library, one of its towers, or any object with a method
        ``representation()`` like theirs. It is read when the block is fitted, never modified, and
        not copied by :func:`~sklearn.base.clone`.
    block : str or None, default=None
        Name of the estimator's block to use, a key of its ``blocks_``. None uses the output of its
        ``transform``: the embedding of a tower, the representation of a classifier.
    trainable : bool, default=False
        Whether the weights are fine-tuned. Otherwise they are frozen, and the vector of each row
        is computed once, when the row is encoded.
    learning_rate_scale : float, default=0.1
        Factor of the learning rate of the weights, if they are fine-tuned.
    width : int or None, default=None
        Dimension to which vectors are projected; by default that of the vectors, at most 64.
    dropout : float, default=0.1
        Dropout probability of the projected components.

    Attributes
    ----------
    part_ : object
        Snapshot of the fitted blocks and the weights at the time of the fit.

    Notes
    -----
    Columns are matched by the names they had when the estimator was fitted; other columns are read
    by other blocks. Nothing is learned from the rows: categories, scales and bins are those of the
    estimator.

    Vectors are scaled by one common factor to components of root mean square 1 and projected
    linearly, whether the weights are frozen or fine-tuned. The outputs of a fine-tuned block that
    bypass the trunk, those of n-grams, are neither scaled nor projected.

    The columns of a frozen vector have equal importances, because only the estimator could
    separate their effects.

    A pickle contains the snapshot but not the rest of the estimator. After loading, `estimator` is
    the snapshot, so that the block can be cloned and fitted again.

    Examples
    --------
    >>> from sk_easytensor import EasyTensorRegressor
    >>> X = {"size": [1.0, 2.0, 3.0, 4.0] * 5, "town": ["Oslo", "Lima"] * 10}
    >>> donor = EasyTensorRegressor(max_epochs=1, random_state=0).fit(X, X["size"])
    >>> block = PretrainedBlock(donor, block="category").fit(X)
    >>> block.feature_names_in_.tolist()
    ['town']
    >>> block = PretrainedBlock(donor).fit(X)
    >>> vectors = block.transform(X)["vectors"]
    >>> vectors.shape, bool((vectors[:, 0].numpy() == donor.transform(X)).all())
    (torch.Size([20, 1, 96]), True)
    """

    kind = "pretrained"
    accepted = "columns that the blocks of the fitted estimator accept"

    def __init__(
        self,
        estimator,
        block=None,
        *,
        trainable=False,
        learning_rate_scale=0.1,
        width=None,
        dropout=0.1,
    ):
        self.estimator = estimator
        self.block = block
        self.trainable = trainable
        self.learning_rate_scale = learning_rate_scale
        self.width = width
        self.dropout = dropout

    # ------------------------------------------------------------------ parameters

    def get_params(self, deep=True):
        """Return the parameters of the block, without those of the fitted estimator.

        Parameters
        ----------
        deep : bool, default=True
            Ignored.

        Returns
        -------
        dict
            Values by parameter name.
        """
        return super().get_params(deep=False)

    def set_params(self, **params):
        """Set parameters of the block.

        Parameters
        ----------
        **params : dict
            Values by parameter name, as :meth:`get_params` returns them.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter of the fitted estimator is set.
        """
        for name in params:
            if name.startswith("estimator__"):
                raise ValueError(
                    f"PretrainedBlock: {name!r} cannot be set, because estimator is fitted and "
                    "not modified; give another estimator"
                )
        return super().set_params(**params)

    def __sklearn_clone__(self):
        # Cloning the estimator would discard its fitted attributes.
        return type(self)(**self.get_params())

    def __getstate__(self):
        """Return the state to pickle, with a snapshot in place of the estimator."""
        state = dict(super().__getstate__())
        # An estimator that is not fitted or has no such block raises an error in fit.
        with suppress(TypeError, ValueError):
            state["estimator"] = model_snapshot(self.estimator, self.block)
        return state

    def __repr__(self, N_CHAR_MAX=700):
        # Short, and the same before and after pickling.
        estimator = self.estimator
        if isinstance(estimator, BaseEstimator):
            estimator = Named(type(estimator).__name__)
        copy = type(self)(**{**self.get_params(), "estimator": estimator})
        return super(PretrainedBlock, copy).__repr__(N_CHAR_MAX)

    def check_parameters(self):
        name = "PretrainedBlock"
        check_choice(name, "trainable", self.trainable, (False, True))
        scale = self.learning_rate_scale
        check_number(name, "learning_rate_scale", scale, low=0, exclusive=True)
        if self.width is not None:
            check_number(name, "width", self.width, low=1, integer=True)
        check_number(name, "dropout", self.dropout, low=0, high=1)

    # ------------------------------------------------------------------ columns

    @classmethod
    def accepts(cls, column_type):
        """Return True; types are checked by the estimator's blocks in :meth:`fit_columns`."""
        return True

    def claimed_columns(self, table):
        columns = set(model_snapshot(self.estimator, self.block).columns)
        return [name for name in table.column_names if name in columns]

    def fit_columns(self, table, *, named=True):
        self.check_parameters()
        part = model_snapshot(self.estimator, self.block)
        missing = [name for name in part.columns if name not in table.column_names]
        if missing:
            raise ValueError(
                f"PretrainedBlock: columns are missing: {missing}. Columns are matched by the "
                f"names they had when the {part.owner} was fitted; the columns of the block are "
                f"{table.column_names}"
            )
        table = self._read(table, part.columns)
        for block in part.blocks.values():
            for field in table.select(list(block.feature_names_in_)).schema:
                if not block.reads(field):
                    column = table.column(field.name)
                    raise TypeError(unsupported_column(field, type(block).__name__, column))
        super().fit_columns(table, named=named)
        self.part_ = part
        return self

    @staticmethod
    def _read(table, names):
        # Also converts numeric columns without values to type null, which all blocks accept,
        # because the estimator's blocks were fitted on other rows.
        return read_like_fit(table, names, fitted_with_names=True, owner="PretrainedBlock")

    # ------------------------------------------------------------------ encoding

    def summarize(self, table):
        """Return an empty summary, because nothing is learned from the rows."""
        return SummaryMap()

    def finish(self, summary):
        return self

    def encode(self, table):
        if table.num_rows == 0:
            # Networks and as_table need at least one row.
            return TensorFrame({"block": self.example(1)}).take(slice(0, 0))["block"]
        encoding = self._inner_encoding(table)
        if self.trainable:
            return encoding
        return {"vectors": self.part_.vectors(encoding)[:, None]}

    def _inner_encoding(self, table):
        part = self.part_
        table = self._read(table, list(self.feature_names_in_))
        return part.encode(table.rename_columns(part.columns))

    def encoding_columns(self, encoding):
        names = list(self.feature_names_in_)
        if not self.trainable:
            return {"vectors": [names[0] if len(names) == 1 else tuple(names)]}
        new = dict(zip(self.part_.columns, names, strict=True))
        return {
            entry: [rename_source(source, new) for source in sources]
            for entry, sources in self.part_.encoding_columns(encoding).items()
        }

    def make_module(self):
        size = self.part_.frozen.out_features
        width = self.width or min(size, MAX_WIDTH)
        projection = VectorProjection(size, 1, width, self.dropout, UnitScale())
        if not self.trainable:
            return projection
        inner = self.part_.make_module()
        scale_learning_rate(inner, self.learning_rate_scale)
        return inner if inner.wide else FineTunedProjection(inner, projection)

    def flatten(self, encoding):
        """Return the vectors of the fitted estimator, before any fine-tuning."""
        if self.trainable:
            return self.part_.vectors(encoding).numpy()
        return encoding["vectors"][:, 0].numpy()

    def get_feature_names_out(self, input_features=None):
        """Return the names of the components of the vectors.

        Parameters
        ----------
        input_features : None
            Ignored.

        Returns
        -------
        ndarray of str
        """
        part = self.part_
        prefix = part.owner.lower() if part.block is None else f"{part.block}_"
        names = [f"{prefix}{index}" for index in range(part.frozen.out_features)]
        return np.asarray(names, dtype=object)


class Named:
    """Placeholder for a fitted estimator in the representation of a block."""

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"<fitted {self.name}>"


class FineTunedProjection(BlockModule):
    """Project the outputs of a fine-tuned module.

    Parameters
    ----------
    inner : BlockModule
        Module that is fine-tuned.
    projection : VectorProjection
        Projection of one vector per row.
    """

    def __init__(self, inner, projection):
        super().__init__()
        self.inner = inner
        self.projection = projection
        self.out_features = projection.out_features
        self.padded = inner.padded

    def padded_lengths(self, encoding):
        """Return the length of the longest padded list of each row, or None."""
        return self.inner.padded_lengths(encoding)

    def forward(self, **encoding):
        """Return the projections, a tensor of shape (batch, out_features)."""
        return self.projection(self.inner(**encoding)[:, None])


def rename_source(source, new):
    """Return the new name of a column, or of each column of a tuple."""
    if isinstance(source, tuple):
        return tuple(new[name] for name in source)
    return new[source]


def scale_learning_rate(module, scale):
    """Multiply the learning rates of a module and of the modules within it.

    Parameters
    ----------
    module : torch.nn.Module
        Module whose ``learning_rate_scale``, or that of its submodules, is set.
    scale : float
        Factor of the learning rates.
    """
    module_scale = getattr(module, "learning_rate_scale", None)
    inner_rates = [rate for _, rate in learning_rates(module)]
    if module_scale is not None:
        module.learning_rate_scale = module_scale * scale
    elif inner_rates and next(module.parameters(recurse=False), None) is None:
        for inner in module.children():
            scale_learning_rate(inner, scale)
    else:
        # The module has parameters beside submodules with a factor. A factor of the module
        # applies to all of them, so the smallest one is used.
        module.learning_rate_scale = scale * min(inner_rates, default=1.0)
