"""Two towers from their blocks to their weights."""

from __future__ import annotations

from functools import partial

import numpy as np
from sklearn.base import clone

from sk_easytensor.estimators._pair_rows import PairMaker
from sk_easytensor.estimators._pairs import fit_shared, key_blocks
from sk_easytensor.estimators._rows import divided, total_weight
from sk_easytensor.estimators._tower import Tower
from sk_easytensor.networks.two_tower import TwoTowerNetwork
from sk_easytensor.training.pairs import PairMaking, item_counts
from sk_easytensor.training.seeding import seeded
from sk_easytensor.training.settings import default_batch_size, default_max_epochs
from sk_easytensor.validation import errors_name

__all__ = ["TowerTrainingMixin"]


class TowerTrainingMixin:
    """Fits the blocks of both towers, encodes pairs and trains the network."""

    def _fit_towers(self, table, backend, checkpoints):
        catalogue = self._catalogue
        trunk = self._default_trunk() if self.trunk is None else self.trunk
        how = {
            "embedding_dim": self.embedding_dim,
            "normalized": self.similarity == "cosine",
            "n_jobs": self.n_jobs,
        }
        users = key_blocks(self.user_blocks, self._user_key, self.embedding_dim)
        items = key_blocks(self.item_blocks, catalogue.key, self.embedding_dim)
        self.user_tower_ = Tower(users, clone(trunk), **how)
        self.item_tower_ = Tower(items, clone(trunk), **how)
        user_columns = catalogue.user_columns(table) if self.user_blocks is None else None
        item_columns = catalogue.item_columns if self.item_blocks is None else None
        with errors_name("user_blocks"):
            self.user_tower_.fit_blocks(
                table, user_columns, backend, "user", checkpoints=checkpoints
            )
        with errors_name("item_blocks"):
            source = "items" if catalogue.given else "X"
            self.item_tower_.fit_blocks(
                catalogue.table, item_columns, backend, "item", source, checkpoints
            )
        fit_shared(
            self.shared_blocks,
            self.user_tower_,
            table,
            self.item_tower_,
            catalogue.table,
            backend,
        )

    def _read_pairs(self, records, evals, backend):
        """Return rows of encoded pairs, the same of each set to judge by, and the items."""
        maker = PairMaker(
            self.user_tower_, self.item_tower_, self._catalogue, self._target, backend
        )
        rows, judges = records.encoded(maker), []
        for where, valid in evals:
            with errors_name(where):
                # What columns there are can be told by a row, wherever the others are.
                first = valid.sample()
                maker.make_rows(first.table.slice(0, 1), first.y[:1], first.weight[:1])
                judges.append(valid.encoded(maker))
        items = self._catalogue.encoded(self.item_tower_, [rows, *judges], backend)
        pairs = PairMaking(items)
        judges = [valid.map(pairs) for valid in judges]
        for (where, _), valid in zip(evals, judges, strict=True):
            with errors_name(where):
                # Items that are not known are refused before anything is trained.
                valid.each(item_counts)
        return rows.map(pairs), judges, items

    def _train_towers(self, rows, evals, random_state, backend, checkpoints):
        rows = rows.map(partial(divided, by=sum(rows.each(total_weight)) / len(rows)))
        seed = int(random_state.randint(np.iinfo(np.int32).max))
        batch_size = self.batch_size or max(512, default_batch_size(len(rows)))
        epochs = self.max_epochs or default_max_epochs(len(rows))
        popularity, counts = None, sum(rows.each(item_counts))
        if self._target.chosen:
            # Rows are drawn alike, whatever their weights. Items that only validation has count
            # as if they had been drawn once.
            popularity = counts.clamp(min=1).float() / len(rows)
        temperature = self.temperature
        if temperature is None:
            temperature = 0.1 if self.similarity == "cosine" else 1.0
        self._target.learn_scale(rows)
        self._target.head.scale = self._target.scale_of_loss
        with seeded(seed):
            user, item = self.user_tower_.make_network(), self.item_tower_.make_network()
            for name in self.shared_blocks:
                item.blocks[item.names.index(name)] = user.blocks[user.names.index(name)]
            network = TwoTowerNetwork(
                user,
                item,
                normalized=self.similarity == "cosine",
                temperature=temperature,
                dropout=self.dropout,
                popularity=popularity,
                n_rows=len(rows),
                n_negatives=self.n_negatives,
            )
            rows = rows.map(self._target.scaled)
            plan = self._eval_plan(evals)
            evals = [valid.map(self._target.scaled) for valid in evals.values()]
            settings = self._settings(batch_size, epochs, plan, checkpoints=checkpoints)
            result = backend.train(network, self._target.head, rows, evals, settings)
        self._temperature = temperature
        self._bias = 0.0 if network.popularity is not None else float(network.bias.detach())
        self._record_training(result)
