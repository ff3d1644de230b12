"""Parts of fitted estimators that go on without them: fitted blocks and the network behind them.

An estimator lends itself by a method ``representation()``, which returns a
:class:`Representation`: what its ``transform`` computes, as it is at that moment. A
:class:`FittedPart` is a copy of that or of one of its blocks, which nothing changes any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from sklearn.exceptions import NotFittedError
from torch import nn

from sk_easytensor.blocks._base import Block
from sk_easytensor.executor import LocalExecutor
from sk_easytensor.forking import ForkSafeLock
from sk_easytensor.networks.block_network import BlockNetwork, make_network, padded_lengths
from sk_easytensor.networks.two_tower import embed
from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.seeding import seeded

__all__ = ["FittedPart", "Representation", "fitted_part"]

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


class FittedPart:
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
        """Tell whether a representation is still the one that the part was copied from."""
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
                lengths=padded_lengths(module, encoding),
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


class RepresentationModule(nn.Module):
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
        self.padded = any(getattr(block, "padded", False) for block in network.blocks)

    def padded_lengths(self, encoding):
        """Return how long each row's lists become where they are padded, or None."""
        return self.network.padded_lengths(separated(self.network.names, encoding))

    def forward(self, **encoding):
        """Return the representation.

        Parameters
        ----------
        **encoding : torch.Tensor or Ragged
            Entries as :meth:`FittedPart.encode` names them.

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
        With ``representation()``, or a :class:`FittedPart`.
    block : str, optional
        Name of a block; by default all up to the representation.

    Returns
    -------
    FittedPart

    Raises
    ------
    TypeError
        If there is no representation to be had of it.
    NotFittedError
        If it is not fitted.
    ValueError
        If it has no such block; the message lists those there are.
    """
    owner = type(estimator).__name__
    if isinstance(estimator, FittedPart):
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
            kept[block] = FittedPart(owner, representation, block)
        return kept[block]
