"""The two-tower estimator, and the training of its towers."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted
from skorch.callbacks import EpochScoring

from sk_easytensor._utils.digests import table_digest
from sk_easytensor._utils.docstrings import documented_like
from sk_easytensor._utils.runtime import seeded, with_library_settings
from sk_easytensor._utils.validation import check_choice, check_number
from sk_easytensor.backends import resolve_backend
from sk_easytensor.compose import BlockParametersMixin, blocks_diagram
from sk_easytensor.data.key_index import check_key_type
from sk_easytensor.data.tables import as_table, has_column_names
from sk_easytensor.data.validation import errors_name
from sk_easytensor.estimators.classifier import EasyTensorClassifier
from sk_easytensor.estimators.eval_sets import deciding_first, eval_names
from sk_easytensor.estimators.state import restored_on_error
from sk_easytensor.estimators.stored import Vectors, of_stored_rows
from sk_easytensor.estimators.trained import TrainedEstimator
from sk_easytensor.export.adapters import PairAdapter
from sk_easytensor.metrics import resolve_stopping_metric
from sk_easytensor.networks import Sum
from sk_easytensor.networks.heads import SampledSoftmaxHead
from sk_easytensor.networks.two_tower_network import TwoTowerNetwork
from sk_easytensor.report.report import summarize_table
from sk_easytensor.retrieval.approximate import check_index
from sk_easytensor.tracking import tracked
from sk_easytensor.training.pairs import PairResampling, item_counts
from sk_easytensor.training.train import (
    default_batch_size,
    default_max_epochs,
    default_patience,
    ranking_patience,
)
from sk_easytensor.two_tower.evaluation import RankingEvaluation, resolve_ranking_metrics
from sk_easytensor.two_tower.pairs import (
    ItemCatalogue,
    PairEncoder,
    fit_shared,
    key_blocks,
    pair_sets,
    summarize_side,
    without_unknown_items,
)
from sk_easytensor.two_tower.recommend import PairScoringMixin, RecommendingMixin
from sk_easytensor.two_tower.targets import PairTarget
from sk_easytensor.two_tower.tower import Tower
from sk_easytensor.two_tower.upkeep import UpkeepMixin

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Literal, Self

    from sk_easytensor._utils.typing import (
        ArrayLike,
        BackendLike,
        BlockSpec,
        CallbackSpec,
        EngineName,
        EvalSet,
        OptimizerLike,
        PathLike,
        Predictions,
        RandomStateLike,
        TableLike,
        TargetLike,
        Trunk,
    )
    from sk_easytensor.blocks.pretrained import Representation
    from sk_easytensor.tracking import MLflowTracker

__all__ = [
    "EasyTensorTwoTower",
    "TowerTrainingMixin",
]


MAX_BATCH_SCORES = 2**28
"""Largest number of scores of a batch with ``n_negatives="all"``: 1 GB in single precision."""

RANKING_SEED = 0
"""Seed of the users that are ranked for after each epoch."""


def is_named(value, name):
    """Return whether the value of a parameter is a name and not a number."""
    return isinstance(value, str) and value == name


def default_validation_fraction(n_pairs):
    """Return the fraction of pairs that are held out by default.

    Parameters
    ----------
    n_pairs : int
        Number of pairs.

    Returns
    -------
    float

    Examples
    --------
    >>> [round(default_validation_fraction(n), 4) for n in (5_000, 20_000, 100_000, 10_000_000)]
    [0.1, 0.05, 0.03, 0.005]
    """
    return min(0.1, max(1_000 / n_pairs, min(0.03, 50_000 / n_pairs)))


class TowerTrainingMixin:
    """Methods that fit the blocks of both towers, encode pairs and train the network."""

    def _fit_towers(self, interactions, catalogue, executor, checkpoints):
        trunk = self._default_trunk() if self.trunk is None else self.trunk
        params = {
            "embedding_dim": self.embedding_dim,
            "normalized": self.similarity == "cosine",
            "n_jobs": self.n_jobs,
        }
        user_columns = catalogue.user_columns(interactions) if self.user_blocks is None else None
        item_columns = catalogue.item_columns if self.item_blocks is None else None
        keys, width = (self._user_key, catalogue.index.key), self.embedding_dim
        sample, table = interactions.sample().table, catalogue.dataset.sample().table
        own = sample if user_columns is None else sample.select(user_columns)
        users = key_blocks(self.user_blocks, keys[0], width, own)
        items = key_blocks(self.item_blocks, keys[1], width, table)
        self.user_tower_ = Tower(users, clone(trunk), **params)
        self.item_tower_ = Tower(items, clone(trunk), **params)
        with errors_name("user_blocks"):
            self.user_tower_.fit_blocks(
                sample,
                user_columns,
                partial(summarize_side, interactions, executor),
                "user",
                checkpoints=checkpoints,
            )
        with errors_name("item_blocks"):
            source = "items" if catalogue.has_catalogue else "X"
            self.item_tower_.fit_blocks(
                table,
                item_columns,
                partial(summarize_side, catalogue.dataset, executor),
                "item",
                source,
                checkpoints,
            )
        fit_shared(
            self.shared_blocks,
            self.user_tower_,
            interactions,
            self.item_tower_,
            catalogue.dataset,
            executor,
        )

    def _read_pairs(self, interactions, evals, catalogue, executor):
        """Return the encoded pairs of training rows and of each evaluation set, and the items."""
        sets = [interactions, *(valid for _, valid in evals)]
        # Rankings, for which users have to be recognized, are evaluated in this process only.
        is_known = all(self._user_key in rows.column_names for rows in sets)
        user_key = self._user_key if is_known and not executor.distributed else None
        encoder = PairEncoder(
            self.user_tower_, self.item_tower_, catalogue.index, self._target, executor, user_key
        )
        rows, validation = interactions.encode(encoder), []
        for name, valid in evals:
            with errors_name(name):
                # One row shows missing columns, also where the other rows are on other machines.
                first = valid.sample()
                encoder.encode(first.table.slice(0, 1), first.y[:1], first.weight[:1])
                validation.append(valid.encode(encoder))
        items = catalogue.encoded(self.item_tower_, [rows, *validation], executor)
        pairs = PairResampling(items)
        validation = [valid.map(pairs) for valid in validation]
        for (name, _), valid in zip(evals, validation, strict=True):
            with errors_name(name):
                # Unknown items raise an error before training starts.
                valid.map_chunks(item_counts)
        return rows.map(pairs), validation, items

    def _train_towers(self, rows, evals, random_state, backend, checkpoints, previous=None):
        rows = rows.normalize_weights()
        ranking, stopping_metric = self._ranking(rows, list(evals.values()), backend)
        seed = int(random_state.randint(np.iinfo(np.int32).max))
        batch_size = self.batch_size or max(512, default_batch_size(len(rows)))
        epochs = self.max_epochs or default_max_epochs(len(rows))
        popularity, counts = None, sum(rows.map_chunks(item_counts))
        if self._target.is_implicit:
            self._check_n_scores(len(counts), min(batch_size, len(rows)))
            # Rows are drawn with equal probability, regardless of their weights. Items that only
            # validation rows have count as one row.
            popularity = counts.clamp(min=1).float() / len(rows)
        is_learned = is_named(self.temperature, "learned")
        temperature = self.temperature
        if temperature is None or is_learned:
            temperature = 0.1 if self.similarity == "cosine" else 1.0
        if is_learned and previous is not None:
            temperature = previous[2]
        self._target.learn_scale(rows)
        with seeded(seed):
            user, item = self.user_tower_.make_network(), self.item_tower_.make_network()
            if previous is not None:
                self.user_tower_.copy_weights(previous[0])
                self.item_tower_.copy_weights(previous[1])
            for name in self.shared_blocks:
                item.blocks[item.names.index(name)] = user.blocks[user.names.index(name)]
            network = TwoTowerNetwork(
                user,
                item,
                normalized=self.similarity == "cosine",
                temperature=temperature,
                learned_temperature=is_learned,
                dropout=self.dropout,
                popularity=popularity,
                n_rows=len(rows),
                n_negatives=self.n_negatives,
            )
            rows = rows.map(self._target.scaled)
            plan = self._eval_plan(evals, stopping_metric=stopping_metric)
            plan.ranking = ranking
            evals = [valid.map(self._target.scaled) for valid in evals.values()]
            patience = default_patience if stopping_metric is None else ranking_patience
            settings = self._settings(
                batch_size, epochs, plan, checkpoints=checkpoints, patience=patience
            )
            result = backend.train(network, self._target.head_, rows, evals, settings)
        self._temperature = network.final_temperature
        self._bias = 0.0 if network.popularity is not None else float(network.bias.detach())
        self._record_training(result)

    def _check_n_scores(self, n_items, batch_size):
        """Raise ``ValueError`` if the scores of a batch and all items would take too much memory.

        Parameters
        ----------
        n_items : int
            Number of items.
        batch_size : int
            Number of pairs of a batch.
        """
        if is_named(self.n_negatives, "all") and n_items * batch_size > MAX_BATCH_SCORES:
            raise ValueError(
                f"{type(self).__name__}: with n_negatives='all' a batch has a score of each of its "
                f"{batch_size:,} pairs and {n_items:,} items, and at most {MAX_BATCH_SCORES:,} are "
                "allowed; use a number, such as n_negatives=10_000, or a smaller batch_size"
            )

    def _check_ranking(self, y, backend):
        """Raise ``ValueError`` for metrics and scores that the fit cannot compute."""
        for entry in self.callbacks or ():
            callback = entry[1] if isinstance(entry, tuple) else entry
            named = isinstance(getattr(callback, "scoring", None), str)
            if y is None and named and isinstance(callback, EpochScoring):
                raise ValueError(
                    f"{type(self).__name__}: EpochScoring({callback.scoring!r}) compares "
                    "predictions with a target, which a fit without y does not have; use "
                    "eval_metric=['ndcg@10', ...], or a function of net, X and y"
                )
        if self.eval_metric in (None, "auto"):
            return
        if y is not None or backend.distributed:
            needs = "a fit without y" if y is not None else "backend='local'"
            raise ValueError(
                f"{type(self).__name__}: eval_metric={self.eval_metric!r} ranks the items that "
                f"users chose, which needs {needs}; use eval_metric=None"
            )

    def _ranking(self, rows, validation, backend):
        """Return the evaluation of rankings, and the metric that decides, None for the loss."""
        owner = type(self).__name__
        metrics = resolve_ranking_metrics(self.eval_metric, owner)
        if not metrics or not validation or not self._target.is_implicit or backend.distributed:
            return None, None
        ranking = RankingEvaluation(metrics, rows, RANKING_SEED)
        if self.eval_metric == "auto" and not ranking.is_telling(validation[0]):
            return None, None
        loss = self._target.head_.metric
        return ranking, resolve_stopping_metric(self.stopping_metric, metrics, loss, owner)


@documented_like(EasyTensorClassifier)
class EasyTensorTwoTower(
    UpkeepMixin,
    RecommendingMixin,
    PairScoringMixin,
    TowerTrainingMixin,
    BlockParametersMixin,
    TrainedEstimator,
):
    """Embeddings of users and items in one space: retrieval, recommendation and matching.

    One network computes an embedding of the user's columns, another one an embedding of the item's
    columns. They share only the blocks that `shared_blocks` names. The product of the two
    embeddings is the score of the pair. Each user and each item is embedded once, regardless of the
    number of pairs that are scored.

    Parameters
    ----------
    user_blocks, item_blocks : list of (str, Block, columns) or None, default=None
        Name, block and columns of each block of either side, as in
        :class:`~sk_easytensor.TableEncoder`. Columns that no block names are not used. None
        requires a catalogue of items in `fit` and chooses blocks by type: for items from all
        columns of the catalogue, for users from all columns of `X` that the catalogue does not
        have. Keys are then categories, and so are integers of columns whose names end in ``id``,
        ``code`` and the like; the logger ``sk_easytensor`` says which.
    embedding_dim : int, default=64
        Size of the embeddings.
    similarity : {"dot", "cosine"}, default="dot"
        Score of a pair: the dot product of the embeddings, or the cosine of their angle.
    temperature : float, "learned" or None, default=None
        Number that scores are divided by; None for 1.0 with dot products and 0.1 with cosines.
        ``"learned"`` trains it from there on, with `warm_start` from that of the last fit.
    shared_blocks : list of str, default=()
        Names of blocks that both towers have, and whose vocabulary and weights they share.
    unknown_items : {"error", "drop"}, default="error"
        Handling of rows of `fit` and evaluation sets whose `item_key` is not that of a known item:
        an error, or to leave them out with a warning that says how many.
    n_negatives : int or "all", default=0
        Number of items that are drawn uniformly from all items and added to those of each training
        batch. ``"all"``: the loss is a softmax over all items, which small catalogues allow: each
        step embeds them all, and has a score of each pair and item. Used only if `fit` has no `y`.
    dropout : float, default=0.3
        Fraction of the embeddings' components that are set to zero in training.
    index : {"exact", "faiss", "usearch"}, default="exact"
        Search for the best items: ``"exact"`` computes all products. The others are approximate:
        ``"faiss"`` looks at the nearest cells of items, ``"usearch"`` searches a graph of
        neighbors, which takes longer to build.
    trunk : object or None, default=None
        Network between blocks and embedding; each tower has one of its own. None for
        :class:`~sk_easytensor.Sum`, which adds up the outputs of the blocks.
    learning_rate : float, default=1e-2
        Highest learning rate of the schedule.
    batch_size : int or None, default=None
        Pairs of each training step; None for at least 512, by the number of pairs.
    max_epochs : int or None, default=None
        Maximum number of passes over the pairs; None for a number by that of the pairs.
    weight_decay : float, default=0.1
        Weight decay of the optimizer.
    eval_metric : str, list of str or None, default="auto"
        Ranking metrics of the evaluation sets, computed after each epoch over all items, for up to
        2,000 users and without the items of their training pairs: ``"ndcg@10"``, ``"recall@20"``
        and so on, of ``ndcg``, ``recall``, ``precision``, ``hit_rate``, ``mrr`` and ``map``.
        Pairs count alike, whatever their weights. ``"auto"`` is ``["ndcg@10", "recall@10"]``, if
        `fit` has no `y`, half of the pairs of the set that decides are of users with training
        pairs, 50 at least, its weights are equal, and ``backend="local"``. Otherwise, and with
        None, there is only the loss.
    stopping_metric : str or None, default=None
        The entry of `eval_metric` that decides about early stopping and the weights that are kept;
        None for the first one. ``"loss"`` lets the loss decide. Where a ranking metric decides, it
        is its mean over the last three epochs that does, because that of one epoch has much noise,
        and ``early_stopping_rounds="auto"`` is half of the epochs.
    validation_fraction : float, "auto" or None, default="auto"
        Fraction of the pairs that is held out for validation when `fit` gets no ``eval_set``; None
        to train on all pairs. ``"auto"`` is 0.03, but at least 1,000 pairs, as long as these are
        not more than a tenth, and at most 50,000.
    validation : {"random", "last"}, default="random"
        Which pairs are held out: random ones, or the last of `X`. If `X` is in the order of time,
        the last pairs are as far from the others as those that the model has to predict.
    warm_start : bool, default=False
        Whether `fit` begins with the weights of the last fit: the vectors of users, items and other
        categories that both have, and blocks and trunks of the same form. All else begins anew.
        With further interactions every day, a few epochs are then enough (`max_epochs`).
    optimizer, early_stopping_rounds, random_state, n_jobs, device, verbose
        As in :class:`~sk_easytensor.EasyTensorClassifier`.
    callbacks, backend, checkpoint_dir, tracker
        As in :class:`~sk_easytensor.EasyTensorClassifier`.
    inference_engine : {"torch", "auto", "onnxruntime", "tensorrt"}, default="torch"
        Engine that computes embeddings with the fitted network, as in
        :class:`~sk_easytensor.EasyTensorClassifier`. Each tower has its own
        ``inference_engine_``.

    Attributes
    ----------
    user_tower_, item_tower_ : Tower
        Fitted towers. Each is a transformer of its own columns, and can be pickled alone.
    item_index_, user_index_ : EmbeddingIndex
        Keys, embeddings and columns of the items, if `fit` had an `item_key`, and of the users, if
        it had a `user_key`. Columns of lists are left out. See
        :class:`~sk_easytensor.retrieval.EmbeddingIndex`.
    item_keys_ : ndarray, shape (n_items,)
        Keys of the items, if `fit` had an `item_key`.
    item_embeddings_ : ndarray of float32, shape (n_items, embedding_dim)
        Embeddings of the items, if `fit` had an `item_key`.
    user_keys_ : ndarray, shape (n_users,)
        Keys of the users, if `fit` had a `user_key`.
    user_embeddings_ : ndarray of float32, shape (n_users, embedding_dim)
        Embeddings of the users, if `fit` had a `user_key`.
    classes_ : ndarray, shape (2,)
        Class labels, if `y` has two classes.
    evals_result_ : dict of {str: dict of {str: list of float}}
        Losses by epoch, such as ``{"training": {"softmax_loss": [...]}, "valid_0": {...}}``. The
        training loss is the mean over an epoch's batches.
    n_iter_, best_iteration_, best_score_
        As in :class:`~sk_easytensor.EasyTensorClassifier`.

    Notes
    -----
    Without `y` every row is an item that a user chose, and the loss is a softmax over the items
    of a batch, corrected for how often each is drawn (Yi et al., "Sampling-Bias-Corrected Neural
    Modeling for Large Corpus Item Recommendations", 2019); see
    :class:`~sk_easytensor.networks.two_tower_network.TwoTowerNetwork`. The loss is the log loss of
    the score for a `y` of two classes, and the squared error for numbers.

    Examples
    --------
    >>> from sk_easytensor import CategoryBlock
    >>> X = {"user": ["ann", "ann", "bob", "bob"], "film": ["Alien", "Heat", "Up", "Coco"]}
    >>> model = EasyTensorTwoTower(
    ...     user_blocks=[("user", CategoryBlock(), "user")],
    ...     item_blocks=[("film", CategoryBlock(), "film")],
    ...     embedding_dim=8,
    ...     max_epochs=2,
    ...     validation_fraction=None,
    ...     random_state=0,
    ... )
    >>> model = model.fit(X, item_key="film")
    >>> films, scores = model.recommend({"user": ["ann", "eve"]}, k=3)
    >>> films.shape, model.user_tower_.transform({"user": ["eve"]}).shape
    ((2, 3), (1, 8))
    """

    _export_adapter = PairAdapter

    block_parameters = ("user_blocks", "item_blocks")

    def __init__(
        self,
        user_blocks: Sequence[BlockSpec] | None = None,
        item_blocks: Sequence[BlockSpec] | None = None,
        *,
        embedding_dim: int = 64,
        similarity: Literal["dot", "cosine"] = "dot",
        temperature: float | Literal["learned"] | None = None,
        shared_blocks: Sequence[str] = (),
        unknown_items: Literal["error", "drop"] = "error",
        n_negatives: int | Literal["all"] = 0,
        dropout: float = 0.3,
        index: Literal["exact", "faiss", "usearch"] = "exact",
        trunk: Trunk | None = None,
        learning_rate: float = 1e-2,
        batch_size: int | None = None,
        max_epochs: int | None = None,
        optimizer: OptimizerLike = "adamw",
        weight_decay: float = 0.1,
        early_stopping_rounds: int | Literal["auto"] | None = "auto",
        eval_metric: str | Sequence[str] | None = "auto",
        stopping_metric: str | None = None,
        validation_fraction: float | Literal["auto"] | None = "auto",
        validation: Literal["random", "last"] = "random",
        warm_start: bool = False,
        random_state: RandomStateLike | None = None,
        n_jobs: int | None = None,
        device: str = "auto",
        verbose: int = 0,
        callbacks: Sequence[CallbackSpec] | None = None,
        backend: BackendLike = "local",
        checkpoint_dir: PathLike | None = None,
        tracker: MLflowTracker | Literal["mlflow"] | None = None,
        inference_engine: EngineName = "torch",
    ) -> None:
        self.user_blocks = user_blocks
        self.item_blocks = item_blocks
        self.embedding_dim = embedding_dim
        self.similarity = similarity
        self.temperature = temperature
        self.shared_blocks = shared_blocks
        self.unknown_items = unknown_items
        self.n_negatives = n_negatives
        self.dropout = dropout
        self.index = index
        self.trunk = trunk
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.early_stopping_rounds = early_stopping_rounds
        self.eval_metric = eval_metric
        self.stopping_metric = stopping_metric
        self.validation_fraction = validation_fraction
        self.validation = validation
        self.warm_start = warm_start
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.device = device
        self.verbose = verbose
        self.callbacks = callbacks
        self.backend = backend
        self.checkpoint_dir = checkpoint_dir
        self.tracker = tracker
        self.inference_engine = inference_engine

    def _default_trunk(self):
        return Sum(width=self.embedding_dim)

    def _check_validation_fraction(self):
        if self.validation_fraction != "auto":
            super()._check_validation_fraction()

    def _check_parameters(self):
        super()._check_parameters()
        owner = type(self).__name__
        check_number(owner, "embedding_dim", self.embedding_dim, low=1, integer=True)
        check_choice(owner, "similarity", self.similarity, ("dot", "cosine"))
        check_choice(owner, "validation", self.validation, ("random", "last"))
        if not (self.temperature is None or is_named(self.temperature, "learned")):
            others = ", 'learned' or None"
            check_number(
                owner, "temperature", self.temperature, low=0, exclusive=True, others=others
            )
        if isinstance(self.shared_blocks, str) or not all(
            isinstance(name, str) for name in self.shared_blocks
        ):
            raise ValueError(
                f"{owner}: shared_blocks must be a list of names, got {self.shared_blocks!r}"
            )
        check_choice(owner, "warm_start", self.warm_start, (False, True))
        check_choice(owner, "unknown_items", self.unknown_items, ("error", "drop"))
        if not is_named(self.n_negatives, "all"):
            check_number(
                owner, "n_negatives", self.n_negatives, low=0, integer=True, others=" or 'all'"
            )
        check_number(owner, "dropout", self.dropout, low=0, high=0.99)
        metrics = resolve_ranking_metrics(self.eval_metric, owner)
        resolve_stopping_metric(self.stopping_metric, metrics, SampledSoftmaxHead().metric, owner)
        check_index(owner, self.index)

    # ------------------------------------------------------------------ fitting

    @with_library_settings
    @tracked
    @restored_on_error
    def fit(
        self,
        X: TableLike,
        y: TargetLike | None = None,
        sample_weight: ArrayLike | str | None = None,
        *,
        items: TableLike | None = None,
        item_key: str | None = None,
        user_key: str | None = None,
        eval_set: Sequence[Any] | EvalSet | None = None,
        eval_sample_weight: Sequence[ArrayLike | None] | ArrayLike | None = None,
    ) -> Self:
        """Fit both towers.

        Parameters
        ----------
        X : table-like of shape (n_pairs, n_features), path of Parquet files or Ray Dataset
            Interactions: the user's columns, and the item's columns or its key.
        y : array-like of shape (n_pairs,) or str, optional
            Two classes or numbers. For a stored `X`, the name of the column that holds them.
            Without `y` every row is an item that the user chose.
        sample_weight : array-like of shape (n_pairs,) or str, optional
            Row weights. For a stored `X`, the name of the column that holds them.
        items : table-like or path, optional
            Catalogue: a row for each item, with its key and columns.
        item_key : str, optional
            Column of keys of items; required with `items`. Without a catalogue, the first row of
            each key has the item's columns.
        user_key : str, optional
            Column of keys of users. With it, `fit` stores the embedding of each user's last row,
            and the items of each user.
        eval_set : list of (X, y) pairs or of X, optional
            Sets that are evaluated after each epoch. The last one decides about early stopping and
            which weights are kept, as in XGBoost. An entry that is `X` itself is called
            ``training`` in ``evals_result_`` and never decides.
        eval_sample_weight : list of array-like, optional
            Row weights of each entry of `eval_set`.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError, TypeError
            If a parameter of the estimator or an argument is invalid. Parameters, columns and
            targets are checked before any training starts.

        Notes
        -----
        On Ray, no process has all interactions: tasks read them chunk by chunk, and each worker
        stores its shard, encoded, in memory or in files on its machine. All items, of a catalogue
        or of the interactions, are in the memory of this process and of each worker. With
        `user_key`, the last row of each user and the pairs of user and item are in the memory of
        this process. Without `y`, the softmax of each worker is over the items of its own part of a
        batch, ``batch_size / num_workers`` rows: with more workers, a larger `batch_size` pays off.
        """
        backend = resolve_backend(self.backend, self.n_jobs)
        self._check_parameters()
        with backend.running(), ExitStack() as stack:
            self._check_ranking(y, backend)
            target = PairTarget(type(self).__name__)
            interactions = backend.read_dataset(X, y, sample_weight, as_table, target.check)
            catalogue = ItemCatalogue(interactions, items, item_key, self.item_blocks, backend)
            interactions = self._known(interactions, catalogue, "X")
            sample = interactions.sample()
            # Rows that are read later are checked by the unfitted target, as these are.
            sampled = None if y is None else interactions.map_chunks(target.sample)
            target = clone(target).fit(None if y is None else target.join_samples(sampled))
            self._check_user_key(user_key, sample.table)
            pairs = pair_sets(eval_set, eval_sample_weight)
            evals = [
                (name, backend.read_dataset(X_eval, y_eval, weight, as_table, target.check, name))
                for name, X_eval, y_eval, weight in pairs
            ]
            evals = [(name, self._known(rows, catalogue, name)) for name, rows in evals]
            sources = [(X_eval, y_eval) for _, X_eval, y_eval, _ in pairs]
            names = eval_names(sources, X, y, [valid for _, valid in evals], interactions)

            def data_digests():
                digests = {"X": interactions.digest()}
                digests |= {name: valid.digest() for name, valid in evals}
                if items is not None:
                    digests["items"] = table_digest(catalogue.dataset.table)
                return digests | {"item_key": repr(item_key), "user_key": repr(user_key)}

            checkpoints, random_state = self._open_checkpoints(stack, data_digests)
            previous = None
            if self.warm_start and self.__sklearn_is_fitted__():
                previous = self.user_tower_, self.item_tower_, self._temperature
            self._clear_state()
            self._items, self._target, self._user_key = catalogue.index, target, user_key
            vars(self).update(target.fitted_attributes())
            with self._timed("blocks"):
                self._fit_towers(interactions, catalogue, backend, checkpoints)
            self._data_summary = summarize_table(sample.table)
            with self._timed("encoding"):
                users = self._read_users(interactions, backend)
                rows, evals, items = self._read_pairs(interactions, evals, catalogue, backend)
            evals = {names[index]: evals[index] for index in deciding_first(names)}
            if set(evals) <= {"training"} and self.validation_fraction is not None:
                fraction = self.validation_fraction
                if fraction == "auto":
                    fraction = default_validation_fraction(len(rows))
                draw = None if self.validation == "last" else random_state
                rows, held_out = rows.hold_out(target.strata, fraction, draw)
                evals = {**dict(zip(["valid_0"], held_out, strict=False)), **evals}
            self._train_towers(rows, evals, random_state, backend, checkpoints, previous)
            towers = [(self.user_tower_, sample.table)]
            towers.append((self.item_tower_, catalogue.dataset.sample().table))
            self._choose_engines(towers, backend)
            self._store_items(items, catalogue, sample.table, backend)
            if users is not None:
                self._store_users(*users, backend)
        self._n_features_out = self.embedding_dim
        self.n_features_in_ = sample.table.num_columns
        if has_column_names(X):
            self.feature_names_in_ = np.asarray(sample.table.column_names, dtype=object)
        return self

    def _known(self, rows, catalogue, name):
        """Return interactions without those of unknown items, if these are to be left out."""
        if self.unknown_items == "error":
            return rows
        return without_unknown_items(rows, catalogue.index, name)

    def _check_user_key(self, user_key, table):
        if user_key is None:
            return
        if user_key not in table.column_names:
            raise ValueError(
                f"{type(self).__name__}: user_key names column {user_key!r}, which X does not "
                f"have; it has {table.column_names}"
            )
        check_key_type(table.schema.field(user_key).type, user_key, type(self).__name__)

    def _clear_state(self):
        super()._clear_state()
        # A fit without `user_key` must not keep the pairs of a previous fit.
        self._seen = None

    def __sklearn_is_fitted__(self):
        return hasattr(self, "n_features_in_")

    def _check_user_columns(self, table):
        """Raise ``ValueError`` if a table lacks columns of users."""
        self.user_tower_.read(table)

    @with_library_settings
    @of_stored_rows(Vectors("embedding"), check="_check_user_columns")
    def transform(self, X: TableLike) -> Predictions:
        """Return the embeddings of users.

        Parameters
        ----------
        X : table-like
            Rows with the user tower's columns.

        Returns
        -------
        ndarray of float32, shape (n_rows, embedding_dim)
            Embeddings.
        """
        check_is_fitted(self)
        return self.user_tower_.embed(as_table(X, columns=self._columns_read()))

    def _sk_visual_block_(self):
        from sklearn.utils._repr_html.estimator import _VisualBlock

        if not hasattr(self, "user_tower_"):
            return _VisualBlock("single", self, names=type(self).__name__)
        towers = {"user_tower_": self.user_tower_, "item_tower_": self.item_tower_}
        diagrams = [blocks_diagram(tower) for tower in towers.values()]
        return _VisualBlock("parallel", diagrams, names=list(towers))

    def representation(self) -> Representation:
        """Return the blocks and the network of the user tower.

        Returns
        -------
        Representation
            Input of :class:`~sk_easytensor.PretrainedBlock`.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        """
        check_is_fitted(self)
        return self.user_tower_.representation()

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags
