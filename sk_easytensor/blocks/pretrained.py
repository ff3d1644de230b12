"""What another estimator has learned, as a block: its preprocessing and weights go along."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from sklearn.base import BaseEstimator
from torch import nn

from sk_easytensor.blocks._base import Block, unsupported_column
from sk_easytensor.blocks._parts import fitted_part
from sk_easytensor.blocks._projections import UnitScale, VectorProjection
from sk_easytensor.networks.block_network import padded_lengths
from sk_easytensor.parameters import check_choice, check_number
from sk_easytensor.summaries import SummaryMap
from sk_easytensor.tables import read_like_fit

__all__ = ["PretrainedBlock"]

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

    def takes(self, table):
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
        return inner if getattr(inner, "wide", False) else TrainedOnModule(inner, projection)

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


class TrainedOnModule(nn.Module):
    """Project the outputs of a module that is trained on.

    Parameters
    ----------
    inner : torch.nn.Module
        With ``out_features``.
    projection : VectorProjection
        Of one vector a row.
    """

    def __init__(self, inner, projection):
        super().__init__()
        self.inner = inner
        self.projection = projection
        self.out_features = projection.out_features
        self.padded = getattr(inner, "padded", False)

    def padded_lengths(self, encoding):
        """Return how long each row's lists become where they are padded, or None."""
        return padded_lengths(self.inner, encoding)

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
    within = [
        inner.learning_rate_scale
        for inner in module.modules()
        if hasattr(inner, "learning_rate_scale")
    ]
    if own is not None:
        module.learning_rate_scale = own * scale
    elif within and next(module.parameters(recurse=False), None) is None:
        for inner in module.children():
            scale_learning_rate(inner, scale)
    else:
        # Parameters beside modules with a rate of their own cannot be told from theirs: what is
        # set for a module holds for all within it.
        module.learning_rate_scale = scale * min(within, default=1.0)
