"""The contract of the modules that blocks make, and its checks."""

from __future__ import annotations

from difflib import get_close_matches

import torch
from torch import nn

from sk_easytensor.tensors import Ragged

__all__ = [
    "BlockModule",
    "check_module",
    "learning_rates",
    "longest_of",
]


LIKE = 0.87
"""Names that are at least so similar to an option, from 0 to 1, are taken for mistyped ones."""


class BlockModule(nn.Module):
    """Base class of the modules that blocks make: what a network reads of them, with defaults.

    A subclass sets ``out_features`` and defines ``forward``; everything else is optional. Options
    that never change are class attributes, the others are set in ``__init__``.

    Attributes
    ----------
    out_features : int
        Columns of the output. It has no default.
    wide : bool, default=False
        Whether the output goes past the trunk, through a linear layer to the outputs of the
        network. For sparse features, because a trunk memorises rare ones.
    padded : bool, default=False
        Whether time and memory grow with the longest list of a batch. Batches are then made of
        rows whose lists have similar lengths.
    learning_rate_scale : float or None, default=None
        Factor on the learning rate of all parameters of the module. None leaves it to the module
        that this one is a part of; without any it is 1. Parts that are other modules of torch may
        have the attribute as well.
    tree_codes : sequence of (int, bool)
        For each column of :meth:`tree_inputs` the number of codes, at most 16,777,216, and whether
        they are in order. Needed where :meth:`tree_inputs` is defined.
    tree_signs : list of int or None, default=None
        For each column of :meth:`tree_inputs` its monotonic constraint: 1, -1, or 0 for none.
    output_columns : ndarray of int64, shape (out_features,), or None, default=None
        Position of the single input column that each output depends on, for modules that read one
        entry. Permutation importances then compute the outputs of one column at a time.
    tree_columns : ndarray of int64 or None, default=None
        The same for :meth:`tree_inputs`; needed where both are defined.
    is_added : bool, default=False
        Whether the outputs are multiplied by positive gates and added to those of the network, so
        that a monotonic module makes a monotonic network.
    is_offset : bool, default=False
        Whether the output, of width 1, is added to the outputs of the network and of the trees.

    Notes
    -----
    An attribute whose name differs from one of these, or from a method below, by a slip of the
    keyboard raises ``TypeError``: of a class when it is defined, of an instance when the network is
    built.

    Examples
    --------
    >>> import torch
    >>> from sk_easytensor import BlockModule
    >>> class LevelModule(BlockModule):
    ...     def __init__(self, n_levels, width=4):
    ...         super().__init__()
    ...         self.out_features = width
    ...         self.embedding = torch.nn.Embedding(n_levels, width)
    ...
    ...     def forward(self, codes):
    ...         return self.embedding(codes[:, 0])
    >>> LevelModule(3)(torch.tensor([[0], [2]])).shape
    torch.Size([2, 4])
    """

    out_features: int | None = None
    wide: bool = False
    padded: bool = False
    learning_rate_scale: float | None = None
    tree_codes: list[tuple[int, bool]] | None = None
    tree_signs: list[int] | None = None
    output_columns = None
    tree_columns = None
    is_added: bool = False
    is_offset: bool = False

    def __init_subclass__(cls, **kwargs):
        """Refuse names of options that are mistyped."""
        super().__init_subclass__(**kwargs)
        refuse_mistyped(cls.__name__, vars(cls))

    def forward(self, **encoding):
        """Read encoded rows.

        Parameters
        ----------
        **encoding : torch.Tensor or Ragged
            The entries of the block's encoding, by name.

        Returns
        -------
        torch.Tensor of float32, shape (n_rows, out_features)
            The output of a row depends on that row alone.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method forward")

    def tree_inputs(self, **encoding):
        """Return what boosted trees may split on; a module without this method offers nothing.

        Parameters
        ----------
        **encoding : torch.Tensor or Ragged
            As for :meth:`forward`.

        Returns
        -------
        torch.Tensor of int32, shape (n_rows, len(tree_codes))
            Codes below those of ``tree_codes``; 0 is a missing value.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method tree_inputs")

    @property
    def has_tree_inputs(self):
        """Whether the class defines :meth:`tree_inputs`."""
        return type(self).tree_inputs is not BlockModule.tree_inputs

    def padded_lengths(self, encoding):
        """Return the length that each row's lists are padded to at least.

        Parameters
        ----------
        encoding : dict of {str: torch.Tensor or Ragged}
            The block's encoding.

        Returns
        -------
        torch.Tensor of int64, shape (n_rows,), or None
            By default the longest list of all entries where ``padded`` is true, else None.
        """
        if not self.padded:
            return None
        return longest_of(
            entry.lengths.reshape(len(entry), -1).amax(1)
            for entry in encoding.values()
            if isinstance(entry, Ragged)
        )

    def configure_for_embedding(self):
        """Prepare for a network that ends in an embedding; called once before training.

        Modules within other modules are prepared too. By default nothing changes.
        """

    def scale_for(self, head):
        """Read the scale of the outputs from a head, where ``is_offset`` is true.

        Parameters
        ----------
        head : Head or None
            The head of the network.
        """


OPTIONS = sorted(
    name for name in vars(BlockModule) if not name.startswith("_") and name != "forward"
)
"""Names that a network reads of a module."""


def refuse_mistyped(owner, names):
    """Raise ``TypeError`` for the first name that is an option but for a slip.

    Parameters
    ----------
    owner : str
        Class name for the message.
    names : iterable of str
        Names of attributes and methods.
    """
    plain = {_plain(option): option for option in OPTIONS}
    for name in names:
        if name.startswith("_") or name in OPTIONS or hasattr(nn.Module, name):
            continue
        meant = plain.get(_plain(name.removeprefix("is_")))
        if meant is None:
            anagrams = [each for each in plain if sorted(each) == sorted(_plain(name))]
            close = anagrams or get_close_matches(_plain(name), plain, 1, LIKE)
            meant = plain[close[0]] if close else None
        if meant is not None:
            raise TypeError(
                f"{owner} has an attribute {name!r}, which no network reads. If the option "
                f"{meant!r} of BlockModule is meant, write it so; else use a name that is less "
                f"similar. Options are {', '.join(OPTIONS)}"
            )


def _plain(name):
    return name.replace("_", "").lower()


def check_module(module, made_by):
    """Return a module that a block made, if it follows the contract.

    Parameters
    ----------
    module : BlockModule
        Made by the block.
    made_by : str
        The block, for messages.

    Returns
    -------
    BlockModule

    Raises
    ------
    TypeError
        Naming the block, the class of the module and what it lacks.
    """
    owner = type(module).__name__
    if not isinstance(module, BlockModule):
        kind = "a torch.nn.Module" if isinstance(module, nn.Module) else "no torch.nn.Module"
        raise TypeError(
            f"{made_by}: make_module must return a module whose class is a subclass of "
            f"sk_easytensor.BlockModule, got {owner}, which is {kind}. Write "
            f"class {owner}(BlockModule) and set self.out_features in its __init__"
        )
    refuse_mistyped(f"{made_by}: {owner}", vars(module))
    size = module.out_features
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise TypeError(
            f"{made_by}: {owner} must set out_features, the number of columns of its output, to "
            f"an integer in its __init__, got {size!r:.60}"
        )
    for name in ("wide", "padded", "is_added", "is_offset"):
        if not isinstance(getattr(module, name), bool):
            raise TypeError(
                f"{made_by}: {owner}.{name} must be True or False, "
                f"got {getattr(module, name)!r:.60}"
            )
    scale = module.learning_rate_scale
    if scale is not None and (
        not isinstance(scale, (int, float)) or isinstance(scale, bool) or not scale > 0
    ):
        raise TypeError(
            f"{made_by}: {owner}.learning_rate_scale must be a number above 0 or None, "
            f"got {scale!r:.60}"
        )
    if module.has_tree_inputs and module.tree_codes is None:
        raise TypeError(
            f"{made_by}: {owner} defines tree_inputs and so must set tree_codes, for each of its "
            "columns the number of codes and whether they are in order"
        )
    if not module.has_tree_inputs and module.tree_codes is not None:
        raise TypeError(f"{made_by}: {owner} sets tree_codes and so must define tree_inputs")
    return module


def learning_rates(network):
    """Return the factors on the learning rate that modules of a network set.

    Parameters
    ----------
    network : torch.nn.Module
        With block modules somewhere within it.

    Returns
    -------
    list of (str, float)
        Names of modules, as ``named_modules`` gives them, and their factors.
    """
    # Parts of block modules may be any modules of torch.
    found = [
        (name, getattr(module, "learning_rate_scale", None))
        for name, module in network.named_modules()
    ]
    return [(name, scale) for name, scale in found if scale is not None]


def longest_of(lengths):
    """Return the largest of several lengths of each row, or None where there are none.

    Parameters
    ----------
    lengths : iterable of torch.Tensor of int64, shape (n_rows,), or None

    Returns
    -------
    torch.Tensor of int64, shape (n_rows,), or None
    """
    found = [each for each in lengths if each is not None]
    return torch.stack(found).amax(0) if found else None
