"""Blocks and a network that end in an embedding: a side of two towers, or all of an embedder."""

from __future__ import annotations

from functools import partial

from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from sk_easytensor._utils.runtime import with_library_settings
from sk_easytensor._utils.validation import ParametersMixin
from sk_easytensor.blocks.detection import check_blocks, select_columns
from sk_easytensor.blocks.pretrained import Representation
from sk_easytensor.compose import BlockParametersMixin, TableEncoder
from sk_easytensor.estimators.state import FittedStateMixin
from sk_easytensor.executor import LocalExecutor
from sk_easytensor.export.adapters import EmbeddingAdapter
from sk_easytensor.export.engines import EngineMixin
from sk_easytensor.export.mixin import ExportMixin
from sk_easytensor.networks.block_network import make_network
from sk_easytensor.networks.heads import EmbeddingHead
from sk_easytensor.networks.trunks import Sum
from sk_easytensor.networks.two_tower import embed

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

    It is made by :class:`~sk_easytensor.EasyTensorTwoTower` or
    :class:`~sk_easytensor.EasyTensorEmbedder`, and is of use without it: pickle it alone, where
    only one side is needed.

    Parameters
    ----------
    blocks : list of (str, Block, columns) or None
        As for :class:`~sk_easytensor.TableEncoder`.
    trunk : object
        With ``make_module(in_features)``.
    embedding_dim : int
        Size of an embedding.
    normalized : bool
        Whether embeddings have length 1.
    n_jobs : int or None
        Threads.

    Attributes
    ----------
    blocks_ : dict of {str: Block}
        Fitted blocks.
    network_ : torch.nn.Module
        The trained network.
    n_features_in_ : int
        Columns the tower reads.
    feature_names_in_ : ndarray of str
        Their names.
    inference_engine_ : str
        What runs the network.
    inference_report_ : dict
        What was found of the engines, as in :class:`~sk_easytensor.EasyTensorClassifier`.
    """

    _export_adapter = EmbeddingAdapter
    _engine_adapter = EmbeddingAdapter

    def __init__(self, blocks=None, trunk=None, *, embedding_dim=64, normalized=False, n_jobs=None):
        self.blocks = blocks
        self.trunk = trunk
        self.embedding_dim = embedding_dim
        self.normalized = normalized
        self.n_jobs = n_jobs

    def fit(self, X=None, y=None):
        """Return the tower as it is: it was fitted together with the other one.

        Parameters
        ----------
        X, y : ignored
            There for pipelines.

        Returns
        -------
        self

        Raises
        ------
        NotFittedError
            If it was not, as after ``clone``; wrap it in
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
            Columns for blocks to be chosen for; None for those that the blocks name.
        summarize : callable
            Takes blocks with their columns and returns their summaries over all rows, as
            :meth:`~sk_easytensor.training.table_dataset.BaseTableDataset.summarize` does.
        side : {"user", "item"}
            For error messages.
        source : str
            What the table is called, for error messages.
        checkpoints : Checkpoints or None
            Where the fitted blocks are kept.
        """
        self._owner = f"the {side} tower"
        named = [
            (name, block, select_columns(selector, sample, owner=f"block {name!r}", source=source))
            for name, block, selector in check_blocks(self.blocks)
        ]
        remainder = "auto"
        if columns is None:
            remainder = "drop"
            wanted = {column for _, _, selected in named for column in selected}
            columns = [column for column in sample.column_names if column in wanted]
        sample = sample.select(columns)

        def make():
            return TableEncoder(named, remainder=remainder).fit_table(sample, sample, summarize)

        self._encoder = make() if checkpoints is None else checkpoints.load_or_fit(side, make)
        self.blocks_ = self._encoder.blocks_
        self.n_features_in_ = self._encoder.n_features_in_
        self.feature_names_in_ = self._encoder.feature_names_in_
        self._n_features_out = self.embedding_dim
        return self

    def replace_block(self, name, block):
        """Put another fitted block, which reads the same columns, in the place of one."""
        self.blocks_[name] = block

    def make_network(self):
        """Make a new network that reads the fitted blocks' encodings."""
        self._network_trunk = self.trunk
        as_it_is = isinstance(self.trunk, Sum) and self.trunk.width == self.embedding_dim
        self._head = EmbeddingHead(self.embedding_dim, projected=not as_it_is)
        self.network_ = make_network(self.blocks_, self.trunk, self._head)
        self._use_torch()
        return self.network_

    def read(self, table):
        """Return the tower's columns of a table; raise ``ValueError`` if it lacks some."""
        return self._encoder.read(table, owner=self._owner)

    def encode(self, table, executor):
        """Encode the tower's columns of a table."""
        return self.encoding(executor)(table)

    def encoding(self, executor):
        """Return :meth:`encode` as a function that can be sent: it knows blocks and no network."""
        return partial(encode_table, encoder=self._encoder, owner=self._owner, executor=executor)

    @with_library_settings
    def transform(self, X):
        """Return embeddings.

        Parameters
        ----------
        X : table-like
            Holds the tower's columns.

        Returns
        -------
        ndarray of float32, shape (n_rows, embedding_dim)
        """
        return self.embed(X)

    @with_library_settings
    def embed(self, X):
        """Return embeddings as an array, whatever ``set_output`` says of :meth:`transform`.

        Parameters
        ----------
        X : table-like
            Holds the tower's columns.

        Returns
        -------
        ndarray of float32, shape (n_rows, embedding_dim)
        """
        check_is_fitted(self, "network_")
        executor = LocalExecutor(self.n_jobs)
        return self.embed_frame(self.encode(X, executor), executor).numpy()

    def representation(self):
        """Return blocks and network up to what :meth:`transform` gives.

        Returns
        -------
        Representation
            For :class:`~sk_easytensor.PretrainedBlock`.
        """
        check_is_fitted(self, "network_")
        trunk, head = self._network_trunk, self._head
        return Representation(self.blocks_, self.network_, trunk, head, self.normalized)

    def places(self, frame):
        """Say where columns stand in encoded rows; see :class:`~sk_easytensor.TableEncoder`."""
        return self._encoder.all_column_positions(frame)

    def embed_frame(self, frame, executor):
        """Return the embeddings of encoded rows, as a tensor."""
        return self._run_network("embedding", frame, executor)

    def _network_functions(self):
        network = self.network_.eval()
        return {"embedding": lambda rows: embed(network, rows, self.normalized)}


def encode_table(table, encoder, owner, executor):
    """Read the columns of a table that an encoder was fitted on, and encode them."""
    table = encoder.read(table, owner=owner)
    return encoder.encode_table(table, executor, new_values=True)
