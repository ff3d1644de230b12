"""Two towers as one model of pairs, whose columns can be shuffled among the pairs."""

from __future__ import annotations

from sk_easytensor.inspection._encoded import EncodedModel
from sk_easytensor.networks.two_tower import as_embeddings
from sk_easytensor.tensors import TensorFrame

__all__ = ["pair_model"]


def pair_model(towers, table, score, backend):
    """Encode pairs for both towers.

    Parameters
    ----------
    towers : dict of {str: Tower}
        The user tower and the item tower, by the names of their sides.
    table : pyarrow.Table
        Pairs, with the columns of both.
    score : callable
        Takes users and items, tensors of shape (n_pairs, embedding_dim), and returns tensors of
        shape (n_pairs,).
    backend : LocalBackend
        Where forward passes run.

    Returns
    -------
    EncodedModel
        Blocks are named ``side__block``. A column that both towers read is shuffled in both.
    """
    encodings, modules, places = {}, {}, {}
    for side, tower in towers.items():
        frame, network = tower.encode(table, backend), tower.network_
        encodings |= {_joint(side, name): frame[name] for name in network.names}
        pairs = zip(network.names, network.blocks, strict=True)
        modules |= {_joint(side, name): module for name, module in pairs}
        for column, found in tower.places(frame).items():
            places.setdefault(column, {}).update(
                {_joint(side, name): positions for name, positions in found.items()}
            )

    def join(parts):
        embeddings = []
        for side, tower in towers.items():
            own = {name: parts[_joint(side, name)] for name in tower.network_.names}
            embeddings.append(as_embeddings(tower.network_.join(own), tower.normalized))
        return score(*embeddings)[:, None, None]

    frame = TensorFrame(encodings, len(table))
    # In the order of the table's columns; those that no tower reads are in no place.
    places = {column: places.get(column, {}) for column in table.column_names}
    return EncodedModel(frame, modules, join, places, backend)


def _joint(side, name):
    return f"{side}__{name}"
