"""Base class of the modules that blocks make, and checks of its contract."""

from __future__ import annotations

from difflib import get_close_matches

import torch
from torch import nn

from sk_easytensor.tensors import Ragged

__all__ = [
    "BlockModule",
    "check_module",
    "learning_rates",
    "max_lengths",
]


SIMILARITY = 0.87
"""Smallest similarity, in [0, 1], at which a name is treated as a mistyped option."""


class BlockModule(nn.Module):
    """Base class of the modules that blocks make, with defaults of all attributes networks read.

    A subclass sets ``out_features`` and defines ``forward``; everything else is optional. Options
    that never change are class attributes, the others are set in ``__init__``.

    Attributes
    ----------
    out_features : int
        Number of outputs of a row. It has no default.
    wide : bool, default=False
        Whether the output bypasses the trunk and is added to the outputs of the network through a
        linear layer. Used for sparse features, because a trunk overfits rare ones.
    padded : bool, default=False
        Whether time and memory of a batch depend on its longest list. Batches are then made of
        rows whose lists have similar lengths.
    learning_rate_scale : float or None, default=None
        Factor of the learning rate of all parameters of the module. None uses the factor of the
        module that contains this one, or 1 if none is set. Other torch modules within this one may
        have the attribute too.
    tree_codes : sequence of (int, bool)
        For each column of :meth:`tree_inputs` the number of codes, at most 16,777,216, and whether
        codes are ordered. Required if :meth:`tree_inputs` is defined.
    tree_signs : list of int or None, default=None
        Monotonicity constraint of each column of :meth:`tree_inputs`: 1 (increasing),
        -1 (decreasing) or 0 (none). None means no constraints.
    linear_weights : ndarray of float32 or None, default=None
        Weight of each column of :meth:`linear_inputs`, by which the standardized column is
        multiplied before the penalty of the linear model applies. Required if
        :meth:`linear_inputs` is defined.
    prefers_linear : bool, default=False
        Whether the linear model is usually better than a network where rows are few, so that it
        is fitted for any number of rows. Otherwise it is fitted for few rows only, and the network
        and the trees weigh more.
    output_columns : ndarray of int64, shape (out_features,), or None, default=None
        Index of the single input column on which each output depends, for modules that read one
        entry. Permutation importances then compute the outputs of one column at a time.
    tree_columns : ndarray of int64 or None, default=None
        Index of the input column of each column of :meth:`tree_inputs`; required if both
        ``output_columns`` and :meth:`tree_inputs` are defined.
    linear_columns : ndarray of int64 or None, default=None
        Column of each feature of the linear model; required if `output_columns` is set and
        :meth:`linear_inputs` is defined.
    is_added : bool, default=False
        Whether the outputs are multiplied by positive gates and added to those of the network, so
        that a monotonic module makes a monotonic network.
    is_offset : bool, default=False
        Whether the output, of width 1, is added to the outputs of the network and of the trees.
    sparse : bool, default=False
        Whether the gradients of :meth:`large_tables` are sparse in training. It is set by the
        training, which then updates only the rows that a batch contains.

    Notes
    -----
    An attribute whose name looks like a mistyped option or method raises ``TypeError``: for a class
    when it is defined, for an instance when the network is built.

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
    linear_weights = None
    prefers_linear: bool = False
    output_columns = None
    tree_columns = None
    linear_columns = None
    is_added: bool = False
    is_offset: bool = False
    sparse: bool = False

    def __init_subclass__(cls, **kwargs):
        """Raise ``TypeError`` for mistyped names of options."""
        super().__init_subclass__(**kwargs)
        refuse_mistyped(cls.__name__, vars(cls))

    def forward(self, **encoding):
        """Compute the outputs of encoded rows.

        Parameters
        ----------
        **encoding : torch.Tensor or Ragged
            Entries of the block's encoding, by name.

        Returns
        -------
        torch.Tensor of float32, shape (n_rows, out_features)
            Finite, for missing values too. In evaluation, the output of a row depends on that row
            alone.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method forward")

    def tree_inputs(self, **encoding):
        """Return the features of boosted trees; a module without this method has none.

        Parameters
        ----------
        **encoding : torch.Tensor or Ragged
            Entries of the block's encoding, by name.

        Returns
        -------
        torch.Tensor of int32, shape (n_rows, len(tree_codes))
            Codes from 0, for a missing value, to below the number of ``tree_codes``.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method tree_inputs")

    def linear_inputs(self, **encoding):
        """Return the features of the linear model; a module without this method has none.

        They are not trained, such as standardized numbers or outputs of fixed convolutions: the
        model is fitted in closed form beside the network.

        Parameters
        ----------
        **encoding : torch.Tensor or Ragged
            Entries of the block's encoding, by name.

        Returns
        -------
        torch.Tensor of float32, shape (n_rows, len(linear_weights))
            Finite, for missing values too.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method linear_inputs")

    def sparse_linear_inputs(self, **encoding):
        """Return the features of the linear model, of which most are 0.

        A module that defines it instead of :meth:`linear_inputs` also defines
        :meth:`linear_outputs`. The model is then fitted for any number of rows.

        Parameters
        ----------
        **encoding : torch.Tensor or Ragged
            Entries of the block's encoding, by name.

        Returns
        -------
        scipy.sparse.csr_array of float32, shape (n_rows, len(linear_weights))
        """
        raise NotImplementedError(f"{type(self).__name__} has no method sparse_linear_inputs")

    def linear_outputs(self, weight, **encoding):
        """Return the products of the linear model's features and its coefficients.

        Parameters
        ----------
        weight : torch.Tensor of shape (len(linear_weights), n_outputs)
            Coefficients.
        **encoding : torch.Tensor or Ragged
            Entries of the block's encoding, by name.

        Returns
        -------
        torch.Tensor of shape (n_rows, n_outputs)
        """
        return self.linear_inputs(**encoding) @ weight

    @property
    def has_linear_inputs(self):
        """Whether the class defines :meth:`linear_inputs` or :meth:`sparse_linear_inputs`."""
        is_dense = type(self).linear_inputs is not BlockModule.linear_inputs
        return is_dense or self.has_sparse_linear_inputs

    @property
    def has_sparse_linear_inputs(self):
        """Whether the class defines :meth:`sparse_linear_inputs`."""
        return type(self).sparse_linear_inputs is not BlockModule.sparse_linear_inputs

    @property
    def has_tree_inputs(self):
        """Whether the class defines :meth:`tree_inputs`.

        A class whose modules do not always have features of trees overrides this property.
        """
        return type(self).tree_inputs is not BlockModule.tree_inputs

    def padded_lengths(self, encoding):
        """Return the length of the longest padded list of each row.

        Parameters
        ----------
        encoding : dict of {str: torch.Tensor or Ragged}
            Encoding of the block.

        Returns
        -------
        torch.Tensor of int64, shape (n_rows,), or None
            By default the longest list of all entries if ``padded`` is true, else None.
        """
        if not self.padded:
            return None
        return max_lengths(
            entry.lengths.reshape(len(entry), -1).amax(1)
            for entry in encoding.values()
            if isinstance(entry, Ragged)
        )

    def configure_for_embedding(self):
        """Configure the module for a network whose output is an embedding, before training.

        It is called for modules within other modules too. By default nothing changes.
        """

    def large_tables(self):
        """Return the embedding tables whose gradients are sparse if ``sparse`` is true.

        Returns
        -------
        list of torch.nn.Parameter
            Parameters of shape (n_rows, width), of which a batch contains few rows. By default
            there are none.
        """
        return []

    def scale_for(self, head):
        """Set the scale of the outputs to that of a head, if ``is_offset`` is true.

        Parameters
        ----------
        head : Head or None
            Head of the network.
        """


OPTIONS = sorted(
    name for name in vars(BlockModule) if not name.startswith("_") and name != "forward"
)
"""Names of the attributes and methods that a network reads."""


def refuse_mistyped(owner, names):
    """Raise ``TypeError`` for the first name that looks like a mistyped option.

    Parameters
    ----------
    owner : str
        Class name, for the error message.
    names : iterable of str
        Names of attributes and methods.
    """
    plain = {_plain(option): option for option in OPTIONS}
    for name in names:
        if name.startswith("_") or name in OPTIONS or hasattr(nn.Module, name):
            continue
        intended = plain.get(_plain(name.removeprefix("is_")))
        if intended is None:
            anagrams = [
                candidate for candidate in plain if sorted(candidate) == sorted(_plain(name))
            ]
            matches = anagrams or get_close_matches(_plain(name), plain, 1, SIMILARITY)
            intended = plain[matches[0]] if matches else None
        if intended is not None:
            raise TypeError(
                f"{owner} has an attribute {name!r}, which no network reads. If you mean the "
                f"option {intended!r} of BlockModule, correct the name; else use a less similar "
                f"name. Options are {', '.join(OPTIONS)}"
            )


def _plain(name):
    return name.replace("_", "").lower()


def check_module(module, label):
    """Return a module if it fulfils the contract of block modules.

    Parameters
    ----------
    module : BlockModule
        Module to check.
    label : str
        Name and class of the block that made it, for error messages.

    Returns
    -------
    BlockModule

    Raises
    ------
    TypeError
        If it does not. The message names the block, the class of the module and the attribute.
    """
    owner = type(module).__name__
    if not isinstance(module, BlockModule):
        kind = "a torch.nn.Module" if isinstance(module, nn.Module) else "no torch.nn.Module"
        raise TypeError(
            f"{label}: make_module must return a module whose class is a subclass of "
            f"sk_easytensor.BlockModule, got {owner}, which is {kind}. Write "
            f"class {owner}(BlockModule) and set self.out_features in its __init__"
        )
    refuse_mistyped(f"{label}: {owner}", vars(module))
    size = module.out_features
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise TypeError(
            f"{label}: {owner} must set out_features, the number of columns of its output, to "
            f"an integer in its __init__, got {size!r:.60}"
        )
    for name in ("wide", "padded", "is_added", "is_offset", "sparse"):
        if not isinstance(getattr(module, name), bool):
            raise TypeError(
                f"{label}: {owner}.{name} must be True or False, got {getattr(module, name)!r:.60}"
            )
    scale = module.learning_rate_scale
    if scale is not None and (
        not isinstance(scale, (int, float)) or isinstance(scale, bool) or not scale > 0
    ):
        raise TypeError(
            f"{label}: {owner}.learning_rate_scale must be a number above 0 or None, "
            f"got {scale!r:.60}"
        )
    if module.has_tree_inputs and module.tree_codes is None:
        raise TypeError(
            f"{label}: {owner} defines tree_inputs and so must set tree_codes, for each of its "
            "columns the number of codes and whether they are ordered"
        )
    if module.has_sparse_linear_inputs and (
        type(module).linear_outputs is BlockModule.linear_outputs
    ):
        raise TypeError(
            f"{label}: {owner} defines sparse_linear_inputs and so must define linear_outputs, "
            "their products with coefficients"
        )
    if module.has_linear_inputs and module.linear_weights is None:
        raise TypeError(
            f"{label}: {owner} defines linear_inputs and so must set linear_weights, the weight of "
            "each of its columns"
        )
    if not module.has_tree_inputs and module.tree_codes is not None:
        raise TypeError(f"{label}: {owner} sets tree_codes and so must define tree_inputs")
    return module


def learning_rates(network):
    """Return the factors of the learning rate that modules of a network set.

    Parameters
    ----------
    network : torch.nn.Module
        Network with block modules.

    Returns
    -------
    list of (str, float)
        Names of modules, as in ``named_modules``, and their factors.
    """
    # Block modules may contain any torch modules, which need not have the attribute.
    scales = [
        (name, getattr(module, "learning_rate_scale", None))
        for name, module in network.named_modules()
    ]
    return [(name, scale) for name, scale in scales if scale is not None]


def max_lengths(lengths):
    """Return the maximum of several lengths of each row.

    Parameters
    ----------
    lengths : iterable of torch.Tensor of int64, shape (n_rows,), or None
        Lengths of each row; None is ignored.

    Returns
    -------
    torch.Tensor of int64, shape (n_rows,), or None
        None if there are no lengths.
    """
    tensors = [tensor for tensor in lengths if tensor is not None]
    return torch.stack(tensors).amax(0) if tensors else None
