"""Fitted estimators as blocks of others."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from sk_easytensor._utils.forking import ForkSafeLock
from sk_easytensor._utils.runtime import seeded
from sk_easytensor._utils.validation import check_choice, check_number
from sk_easytensor.blocks.base import Block, unsupported_column
from sk_easytensor.blocks.vector import UnitScale, VectorProjection
from sk_easytensor.data.summaries import SummaryMap
from sk_easytensor.data.tables import read_like_fit
from sk_easytensor.executor import LocalExecutor
from sk_easytensor.networks.block_module import BlockModule, learning_rates
from sk_easytensor.networks.block_network import BlockNetwork, make_network
from sk_easytensor.networks.two_tower import embed
from sk_easytensor.tensors import TensorFrame

__all__ = [
    "ModelSnapshot",
    "PretrainedBlock",
    "Representation",
    "fitted_part",
]


OWNER = "PretrainedBlock"

# Guards the parts, and lets one thread at a time compute: it uses all that torch gives it.
LOCK = ForkSafeLock()

# Parts by the estimator they come from, so that a hundred clones of a block share one copy.
PARTS = WeakKeyDictionary()


@dataclass
class Representation:
    """What an estimator computes of a row before it predicts.

    Parameters
    ----------
    blocks : dict of {str: Block}
        Fitted.
    network : BlockNetwork
        Trained.
    trunk : object
        What made the network's trunk.
    head : Head, optional
        What made the network's head, if the representation comes after it, as an embedding does.
        Otherwise it is what the network's ``represent`` returns.
    normalized : bool, default=False
        Whether it is scaled to the length 1.
    """

    blocks: dict
    network: BlockNetwork
    trunk: object
    head: object = None
    normalized: bool = False


class ModelSnapshot:
    """Fitted blocks with the weights of the network that reads them; never changed.

    Parameters
    ----------
    owner : str
        Class name of the estimator it comes from.
    representation : Representation
        The estimator's; its weights are copied.
    block : str, optional
        Name of the block that the part consists of; by default all of the representation.

    Attributes
    ----------
    blocks : dict of {str: Block}
        Fitted.
    columns : list of str
        What the blocks read.
    """

    def __init__(self, owner, representation, block=None):
        self.owner = owner
        self.block = block
        self.blocks = dict(representation.blocks)
        self.trunk, self.head, self.normalized = None, None, False
        if block is None:
            self.trunk = representation.trunk
            self.head = representation.head
            self.normalized = representation.normalized
        else:
            self.blocks = {block: self.blocks[block]}
        self._frozen = None
        trained = self._trained(representation)
        self.weights = {name: trained[name].numpy().copy() for name in self._build().state_dict()}

    def __getstate__(self):
        """Return what is pickled: no torch object, so that it loads anywhere."""
        return {**vars(self), "_frozen": None}

    def __deepcopy__(self, memo):
        return self

    def __repr__(self):
        return f"<fitted {self.owner}>"

    def representation(self):
        """Return the part as a representation, of which parts may be taken again.

        Raises
        ------
        ValueError
            If it is a single block.
        """
        if self.block is not None:
            raise ValueError(
                f"{OWNER}: of the {self.owner} nothing but its block {self.block!r} was pickled; "
                f"block must be {self.block!r}"
            )
        network = self.frozen.network
        return Representation(self.blocks, network, self.trunk, self.head, self.normalized)

    def holds(self, representation):
        """Return whether a representation is still the one that the part was copied from."""
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
        """The module, which is not to be trained; it shares the part's memory."""
        if self._frozen is None:
            module = self._build()
            module.load_state_dict(self._tensors(), assign=True)
            self._frozen = module.eval().requires_grad_(False)
        return self._frozen

    def make_module(self):
        """Return a new module with weights of its own that begin as those of the part."""
        module = self._build()
        module.load_state_dict(self._tensors())
        return module

    def encode(self, table):
        """Encode a table with the part's blocks.

        Parameters
        ----------
        table : pyarrow.Table
            With the part's columns.

        Returns
        -------
        dict of {str: torch.Tensor or Ragged}
            Entries as the block names them. If all of the representation is asked for, the
            block's position and a full stop come first.
        """
        encodings = {
            name: block.encode(table.select(list(block.feature_names_in_)))
            for name, block in self.blocks.items()
        }
        return encodings[self.block] if self.block is not None else joined(encodings)

    def encoding_columns(self, encoding):
        """Say which column stands where in each entry, as a block does."""
        if self.block is not None:
            return self.blocks[self.block].encoding_columns(encoding)
        parts = separated(list(self.blocks), encoding)
        columns = {name: block.encoding_columns(parts[name]) for name, block in self.blocks.items()}
        return joined(columns)

    def vectors(self, encoding):
        """Return what the part gives for encoded rows, a float32 tensor of shape (n, size)."""
        frame = TensorFrame({"part": encoding})
        with LOCK:
            module = self.frozen
            backend = LocalExecutor(torch.get_num_threads())
            found = backend.forward(
                lambda rows: module(**rows["part"]).float(),
                frame,
                lengths=module.padded_lengths(encoding),
            )
        # A tensor that may be written to and trained on, as others are.
        return torch.from_numpy(found.numpy())

    def _build(self):
        # The random weights are replaced; drawing them must not show in anything else.
        with seeded(0):
            if self.block is not None:
                return self.blocks[self.block].make_module()
            network = make_network(self.blocks, self.trunk, self.head)
        size = network.representation_features if self.head is None else self.head.out_features
        return RepresentationModule(network, size, self.normalized)

    def _tensors(self):
        return {name: torch.from_numpy(weight) for name, weight in self.weights.items()}

    def _trained(self, representation):
        """Return the tensors of a representation by the names they have in the part."""
        network = representation.network
        if self.block is None:
            state = network.state_dict()
            return {f"network.{name}": tensor.cpu() for name, tensor in state.items()}
        state = network.blocks[network.names.index(self.block)].state_dict()
        return {name: tensor.cpu() for name, tensor in state.items()}


class RepresentationModule(BlockModule):
    """A network as the module of one block.

    Parameters
    ----------
    network : BlockNetwork
        Without a head it gives its representation.
    out_features : int
        Size of the representation.
    normalized : bool
        Whether outputs have length 1.
    """

    def __init__(self, network, out_features, normalized):
        super().__init__()
        self.network = network
        self.out_features = out_features
        self.normalized = normalized
        self.padded = any(block.padded for block in network.blocks)

    def padded_lengths(self, encoding):
        """Return how long each row's lists become where they are padded, or None."""
        return self.network.padded_lengths(separated(self.network.names, encoding))

    def forward(self, **encoding):
        """Return the representation.

        Parameters
        ----------
        **encoding : torch.Tensor or Ragged
            Entries as :meth:`ModelSnapshot.encode` names them.

        Returns
        -------
        torch.Tensor of float32, shape (batch, out_features)
        """
        frame = separated(self.network.names, encoding)
        if self.network.head is None:
            return self.network.represent(frame).float()
        return embed(self.network, frame, self.normalized)


def joined(encodings):
    """Return the entries of several blocks side by side."""
    return {
        f"{place}.{entry}": value
        for place, encoding in enumerate(encodings.values())
        for entry, value in encoding.items()
    }


def separated(names, encoding):
    """Return side by side entries by block again."""
    parts = {name: {} for name in names}
    for entry, value in encoding.items():
        place, _, entry = entry.partition(".")
        parts[names[int(place)]][entry] = value
    return parts


def fitted_part(estimator, block=None):
    """Return a part of a fitted estimator, the same object as long as that does not change.

    Parameters
    ----------
    estimator : object
        With ``representation()``, or a :class:`ModelSnapshot`.
    block : str, optional
        Name of a block; by default all up to the representation.

    Returns
    -------
    ModelSnapshot

    Raises
    ------
    TypeError
        If there is no representation of it.
    NotFittedError
        If it is not fitted.
    ValueError
        If it has no such block; the message lists those there are.
    """
    owner = type(estimator).__name__
    if isinstance(estimator, ModelSnapshot):
        if estimator.block == block:
            return estimator
        owner = estimator.owner
    if isinstance(estimator, Block):
        raise TypeError(
            f"{OWNER}: estimator is a {owner}, which has no weights of its own; give the "
            "estimator that it was trained in, and its name there: "
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
            f"{owner}, or None for all up to its representation; got {block!r}"
        )
    with LOCK:
        kept = PARTS.setdefault(estimator, {})
        if block not in kept or not kept[block].holds(representation):
            kept[block] = ModelSnapshot(owner, representation, block)
        return kept[block]


LARGEST_WIDTH = 64
"""Of projections, unless a width is given."""


class PretrainedBlock(Block):
    """A fitted estimator, tower or embedder, or one block of it, inside another estimator.

    Parameters
    ----------
    estimator : object
        What was fitted before: an estimator of this library, one of its towers, or anything with
        a method ``representation()`` like theirs. It is read when the block is fitted, never
        changed, and not copied by :func:`~sklearn.base.clone`.
    block : str or None, default=None
        Name of the estimator's block to use, a key of its ``blocks_``. None uses all that its
        ``transform`` gives: the embedding of a tower, the representation of a classifier.
    trainable : bool, default=False
        Whether the weights are trained on, from where they are. Otherwise they stay as they are,
        and each row's vector is computed once, when it is encoded.
    learning_rate_scale : float, default=0.1
        What the learning rate of the weights is multiplied by, if they are trained on.
    width : int or None, default=None
        Size that the vectors are projected to; by default their own, at most 64.
    dropout : float, default=0.1
        Fraction of the projections' components zeroed in training.

    Attributes
    ----------
    part_ : object
        Copies of the fitted blocks' and the network's weights at the time of the fit.

    Notes
    -----
    Columns are found by the names they had when the estimator was fitted; those that it does not
    read are left to other blocks. Nothing is learned from the rows: categories, scales and bins
    are the estimator's.

    Vectors are brought to components of size one, by one factor for all, and projected linearly,
    both when they stay as they are and when what gives them is trained on. The outputs of a block
    that go past the trunk, those of n-grams, are left alone if they are trained on.

    Columns whose vectors are frozen can only be told apart by the estimator: they share the
    importance of the vector evenly.

    Pickles hold the part that is used and none of the rest of the estimator. `estimator` is that
    part when they are loaded, so that the block can be cloned and fitted again.

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
    accepted = "what the blocks of the estimator that it is given read"

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
        """Return the parameters; those of the fitted estimator are not among them.

        Parameters
        ----------
        deep : bool, default=True
            Makes no difference.

        Returns
        -------
        dict
        """
        return super().get_params(deep=False)

    def set_params(self, **params):
        """Set parameters.

        Parameters
        ----------
        **params : dict
            Keys as :meth:`get_params` returns them.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For parameters of the fitted estimator, which is not to be changed.
        """
        for name in params:
            if name.startswith("estimator__"):
                raise ValueError(
                    f"PretrainedBlock: {name!r} cannot be set, because estimator is fitted and "
                    "stays as it is; give another estimator"
                )
        return super().set_params(**params)

    def __sklearn_clone__(self):
        # The estimator would lose what it has learned.
        return type(self)(**self.get_params())

    def __getstate__(self):
        """Return what is pickled: of the estimator no more than the block needs."""
        state = dict(super().__getstate__())
        # Not fitted, or without such a block: fitting the block will say so.
        with suppress(TypeError, ValueError):
            state["estimator"] = fitted_part(self.estimator, self.block)
        return state

    def __repr__(self, N_CHAR_MAX=700):
        # The same before and after pickling, and short.
        estimator = self.estimator
        if isinstance(estimator, BaseEstimator):
            estimator = Named(type(estimator).__name__)
        shown = type(self)(**{**self.get_params(), "estimator": estimator})
        return super(PretrainedBlock, shown).__repr__(N_CHAR_MAX)

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
        """Return True: which types can be read is for the estimator's blocks to say."""
        return True

    def claimed_columns(self, table):
        wanted = set(fitted_part(self.estimator, self.block).columns)
        return [name for name in table.column_names if name in wanted]

    def fit_columns(self, table, *, named=True):
        self.check_parameters()
        part = fitted_part(self.estimator, self.block)
        missing = [name for name in part.columns if name not in table.column_names]
        if missing:
            raise ValueError(
                f"PretrainedBlock: columns are missing: {missing}. Columns are found by the names "
                f"they had when the {part.owner} was fitted; the block is given "
                f"{table.column_names}"
            )
        table = self._read(table, part.columns)
        for block in part.blocks.values():
            for field in table.select(list(block.feature_names_in_)).schema:
                if not block.accepts(field.type):
                    column = table.column(field.name)
                    raise TypeError(unsupported_column(field, type(block).__name__, column))
        super().fit_columns(table, named=named)
        self.part_ = part
        return self

    @staticmethod
    def _read(table, names):
        # Also turns numbers that are all missing into a column without a type, which any block
        # reads: the estimator's blocks were fitted on other rows than these.
        return read_like_fit(table, names, fitted_with_names=True, owner="PretrainedBlock")

    # ------------------------------------------------------------------ encoding

    def summarize(self, table):
        """Return an empty summary: nothing is learned from the rows."""
        return SummaryMap()

    def finish(self, summary):
        return self

    def encode(self, table):
        if table.num_rows == 0:
            # Networks and readers of tables need a row.
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
            entry: [renamed_source(source, new) for source in sources]
            for entry, sources in self.part_.encoding_columns(encoding).items()
        }

    def make_module(self):
        size = self.part_.frozen.out_features
        width = self.width or min(size, LARGEST_WIDTH)
        projection = VectorProjection(size, 1, width, self.dropout, UnitScale())
        if not self.trainable:
            return projection
        inner = self.part_.make_module()
        scale_learning_rate(inner, self.learning_rate_scale)
        return inner if inner.wide else TrainedOnModule(inner, projection)

    def flatten(self, encoding):
        """Return the vectors as the estimator gave them, whether they are trained on or not."""
        if self.trainable:
            return self.part_.vectors(encoding).numpy()
        return encoding["vectors"][:, 0].numpy()

    def get_feature_names_out(self, input_features=None):
        """Return the names of the vectors' components, an ndarray of str.

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
        names = [f"{prefix}{place}" for place in range(part.frozen.out_features)]
        return np.asarray(names, dtype=object)


class Named:
    """Stands for a fitted estimator where a block is shown."""

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"<fitted {self.name}>"


class TrainedOnModule(BlockModule):
    """Project the outputs of a module that is trained on.

    Parameters
    ----------
    inner : BlockModule
        The module that is trained on.
    projection : VectorProjection
        Of one vector a row.
    """

    def __init__(self, inner, projection):
        super().__init__()
        self.inner = inner
        self.projection = projection
        self.out_features = projection.out_features
        self.padded = inner.padded

    def padded_lengths(self, encoding):
        """Return how long each row's lists become where they are padded, or None."""
        return self.inner.padded_lengths(encoding)

    def forward(self, **encoding):
        """Return the projections, a tensor of shape (batch, out_features)."""
        return self.projection(self.inner(**encoding)[:, None])


def renamed_source(source, new):
    """Return a column of an encoding, or a tuple of them, by its new name."""
    if isinstance(source, tuple):
        return tuple(new[name] for name in source)
    return new[source]


def scale_learning_rate(module, scale):
    """Multiply the learning rate of a module's parameters, and what is set for some of them.

    Parameters
    ----------
    module : torch.nn.Module
        Its ``learning_rate_scale``, or those of modules within it, are set.
    scale : float
        Factor.
    """
    own = getattr(module, "learning_rate_scale", None)
    within = [rate for _, rate in learning_rates(module)]
    if own is not None:
        module.learning_rate_scale = own * scale
    elif within and next(module.parameters(recurse=False), None) is None:
        for inner in module.children():
            scale_learning_rate(inner, scale)
    else:
        # Parameters beside modules with a rate of their own cannot be told from theirs: what is
        # set for a module holds for all within it.
        module.learning_rate_scale = scale * min(within, default=1.0)
