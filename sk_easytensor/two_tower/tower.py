"""Blocks and a network that compute embeddings: a side of two towers, or a whole embedder."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import nn

from sk_easytensor._utils.runtime import with_library_settings
from sk_easytensor._utils.validation import ParametersMixin
from sk_easytensor.blocks.base import load_matching
from sk_easytensor.blocks.detection import check_blocks, select_columns
from sk_easytensor.blocks.pretrained import Representation
from sk_easytensor.blocks.sequences import AggregatedBlock
from sk_easytensor.compose import BlockParametersMixin, TableEncoder
from sk_easytensor.estimators.state import FittedStateMixin
from sk_easytensor.executor import LocalExecutor
from sk_easytensor.export import ExportMixin
from sk_easytensor.export.adapters import EmbeddingAdapter
from sk_easytensor.export.engines import EngineMixin
from sk_easytensor.networks.block_network import make_network
from sk_easytensor.networks.heads import EmbeddingHead
from sk_easytensor.networks.trunks import Sum
from sk_easytensor.networks.two_tower_network import embed_with_aggregates

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    import numpy as np

    from sk_easytensor._utils.typing import BlockSpec, Predictions, TableLike, Trunk

__all__ = [
    "Tower",
]


class Tower(
    EngineMixin,
    FittedStateMixin,
    ExportMixin,
    BlockParametersMixin,
    ParametersMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    """A fitted tower: a transformer from its own columns to embeddings.

    Towers are created by :class:`~sk_easytensor.EasyTensorTwoTower` or
    :class:`~sk_easytensor.EasyTensorEmbedder`. A tower can be used and pickled without them, where
    only one side is needed.

    Parameters
    ----------
    blocks : list of (str, Block, columns) or None, default=None
        Name, block and columns of each block, as in :class:`~sk_easytensor.TableEncoder`.
    trunk : object, default=None
        Network between blocks and embedding, such as :class:`~sk_easytensor.Sum`: an object with a
        method ``make_module(in_features)``.
    embedding_dim : int, default=64
        Size of the embeddings.
    normalized : bool, default=False
        Whether embeddings are scaled to length 1.
    aggregates : bool, default=False
        Whether embeddings are followed by aggregates of lists, as in
        :class:`~sk_easytensor.EasyTensorEmbedder`.
    n_jobs : int or None, default=None
        Maximum number of threads: None for one (unless in a joblib context), -1 for all cores.

    Attributes
    ----------
    blocks_ : dict of {str: Block}
        Fitted blocks by name.
    network_ : torch.nn.Module
        The trained network, on the CPU.
    n_features_in_ : int
        Number of columns that the tower reads.
    feature_names_in_ : ndarray of str
        Names of the columns that the tower reads.
    inference_engine_ : str
        Engine that runs the network: ``"torch"``, ``"onnxruntime"`` or ``"tensorrt"``.
    inference_report_ : dict
        Comparison of the engines, as in :class:`~sk_easytensor.EasyTensorClassifier`.
    """

    _export_adapter = EmbeddingAdapter
    _engine_adapter = EmbeddingAdapter

    aggregates = False
    """Towers that were stored before there were aggregates have none."""

    def __init__(
        self,
        blocks: Sequence[BlockSpec] | None = None,
        trunk: Trunk | None = None,
        *,
        embedding_dim: int = 64,
        normalized: bool = False,
        aggregates: bool = False,
        n_jobs: int | None = None,
    ) -> None:
        self.blocks = blocks
        self.trunk = trunk
        self.embedding_dim = embedding_dim
        self.normalized = normalized
        self.aggregates = aggregates
        self.n_jobs = n_jobs

    def fit(self, X: object = None, y: object = None) -> Self:
        """Do nothing: the tower is fitted by the estimator that created it.

        Parameters
        ----------
        X, y : ignored
            Not used; present for pipelines.

        Returns
        -------
        self : object
            The tower, unchanged.

        Raises
        ------
        NotFittedError
            If the tower is not fitted, for example after ``clone``. Wrap it in
            :class:`~sklearn.frozen.FrozenEstimator` where it may be cloned.
        """
        check_is_fitted(self, "network_")
        return self

    def fit_blocks(self, sample, columns, summarize, side, source="X", checkpoints=None):
        """Fit the blocks.

        Parameters
        ----------
        sample : pyarrow.Table
            Some rows of the tower's side.
        columns : list of str or None
            Columns that are read; blocks are chosen for those that `blocks` does not name. None to
            read only columns that `blocks` names.
        summarize : callable
            Function that takes blocks with their columns and returns their summaries over all rows,
            as :meth:`~sk_easytensor.training.table_dataset.BaseTableDataset.summarize` does.
        side : {"user", "item"}
            Side of the tower, for errors and checkpoints.
        source : str, default="X"
            Name of the table, for errors.
        checkpoints : Checkpoints or None, default=None
            Checkpoints that store the fitted blocks.

        Returns
        -------
        self : object
            The tower, with fitted blocks and without a network.
        """
        self._owner = f"the {side} tower"
        blocks = [
            (name, block, select_columns(selector, sample, owner=f"block {name!r}", source=source))
            for name, block, selector in check_blocks(self.blocks)
        ]
        remainder = "auto"
        if columns is None:
            remainder = "drop"
            selected = {column for _, _, names in blocks for column in names}
            columns = [column for column in sample.column_names if column in selected]
        sample = sample.select(columns)

        def make():
            encoder = TableEncoder(blocks, remainder=remainder)
            return encoder.fit_table(sample, sample, summarize, for_embedding=True)

        self._encoder = make() if checkpoints is None else checkpoints.load_or_fit(side, make)
        self.blocks_ = self._encoder.blocks_
        self.n_features_in_ = self._encoder.n_features_in_
        self.feature_names_in_ = self._encoder.feature_names_in_
        self._n_features_out = self.embedding_dim
        if self.aggregates:
            parts = [part for block in self.blocks_.values() for part in all_aggregates(block)]
            self._n_features_out += sum(part.out_features for part in parts)
        return self

    def replace_block(self, name, block):
        """Replace a block by another fitted block, which reads the same columns."""
        self.blocks_[name] = block

    def make_network(self):
        """Create a new network, whose input is the encoding of the fitted blocks, and return it."""
        self._network_trunk = self.trunk
        fits = isinstance(self.trunk, Sum) and self.trunk.width == self.embedding_dim
        self._head = EmbeddingHead(self.embedding_dim, projected=not fits)
        self.network_ = make_network(self.blocks_, self.trunk, self._head)
        self._add_aggregates()
        self._use_torch()
        return self.network_

    def copy_weights(self, previous):
        """Copy what another tower has learned, where blocks of the same name are of the same type.

        Parameters
        ----------
        previous : Tower
            Fitted tower; its blocks may know other categories.
        """
        network, earlier = self.network_, previous.network_
        modules = dict(zip(earlier.names, earlier.blocks, strict=True))
        for name, module in zip(network.names, network.blocks, strict=True):
            block, other = self.blocks_[name], previous.blocks_.get(name)
            if type(other) is type(block):
                block.copy_weights(module, other, modules[name])
        if network.names == earlier.names:
            load_matching(network.trunk, earlier.trunk)
            load_matching(network.head, earlier.head)

    def __setstate__(self, state):
        """Restore a pickled state."""
        super().__setstate__(state)
        if hasattr(self, "network_"):
            self._add_aggregates()

    def _add_aggregates(self):
        """Add the aggregates to the network, where they have no weights."""
        if self.aggregates:
            parts = [nn.ModuleList(all_aggregates(block)) for block in self.blocks_.values()]
            self.network_.aggregates = nn.ModuleList(parts)

    def read(self, table):
        """Return the tower's columns of a table; raise ``ValueError`` if it lacks some."""
        return self._encoder.read(table, owner=self._owner)

    def encode(self, table, executor):
        """Return the encoded rows of a table, a :class:`~sk_easytensor.tensors.TensorFrame`."""
        return self.encoding(executor)(table)

    def encoding(self, executor):
        """Return :meth:`encode` as a picklable function, which does not hold the network."""
        return partial(encode_table, encoder=self._encoder, owner=self._owner, executor=executor)

    @with_library_settings
    def transform(self, X: TableLike) -> Predictions:
        """Return embeddings.

        Parameters
        ----------
        X : table-like
            Rows with the tower's columns.

        Returns
        -------
        ndarray of float32, shape (n_rows, embedding_dim)
            Followed by more columns with ``aggregates=True``.
        """
        return self.embed(X)

    @with_library_settings
    def embed(self, X: TableLike) -> np.ndarray:
        """Return embeddings as an array, regardless of ``set_output``.

        Parameters
        ----------
        X : table-like
            Rows with the tower's columns.

        Returns
        -------
        ndarray of float32, shape (n_rows, embedding_dim)
        """
        check_is_fitted(self, "network_")
        executor = LocalExecutor(self.n_jobs)
        return self.embed_frame(self.encode(X, executor), executor).numpy()

    def representation(self) -> Representation:
        """Return the blocks and the network that compute :meth:`transform`.

        Returns
        -------
        Representation
            Input of :class:`~sk_easytensor.PretrainedBlock`.

        Raises
        ------
        NotFittedError
            If the tower is not fitted.
        """
        check_is_fitted(self, "network_")
        trunk, head = self._network_trunk, self._head
        return Representation(self.blocks_, self.network_, trunk, head, self.normalized)

    def all_column_positions(self, frame):
        """Return the positions of every column in encoded rows.

        See :meth:`~sk_easytensor.TableEncoder.all_column_positions`.
        """
        return self._encoder.all_column_positions(frame)

    def embed_frame(self, frame, executor):
        """Return the embeddings of encoded rows, a tensor of shape (n_rows, embedding_dim)."""
        return self._run_network("embedding", frame, executor)

    def _network_functions(self):
        network = self.network_.eval()
        return {"embedding": lambda rows: embed_with_aggregates(network, rows, self.normalized)}


def all_aggregates(block):
    """Return modules of all aggregates of a block's lists; none for other kinds of blocks."""
    if not isinstance(block, AggregatedBlock):
        return []
    return block.make_aggregates(list(block.known_aggregates))


def encode_table(table, encoder, owner, executor):
    """Read the columns of an encoder from a table, and encode them."""
    table = encoder.read(table, owner=owner)
    return encoder.encode_table(table, executor, new_values=True)
