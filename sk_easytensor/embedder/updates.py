"""Embeddings that are updated with further events, without reading the earlier ones again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from sk_easytensor.blocks.sequences import SequenceBlock
from sk_easytensor.data.columns import decoded
from sk_easytensor.data.type_names import type_name
from sk_easytensor.embedder.slices import Sequences
from sk_easytensor.events import collect_sequences, entity_codes, materialize, read_times
from sk_easytensor.networks.two_tower_network import as_embeddings
from sk_easytensor.tensors import Ragged, TensorFrame
from sk_easytensor.training.descriptions import digest as tensor_digest

__all__ = [
    "EmbeddingState",
    "check_incremental",
    "update_state",
]


@dataclass(frozen=True)
class EmbeddingState:
    """Embeddings of users, and what is needed to update them with further events.

    It is the result of :meth:`~sk_easytensor.EasyTensorEmbedder.update` and can be pickled. Its
    size does not grow with the number of events.

    Attributes
    ----------
    users : pyarrow.Table
        Key columns of the users, in the order of their first event.
    embeddings : ndarray of float32, shape (n_users, embedding_dim)
        Embeddings of the users.
    n_events : ndarray of int64, shape (n_users,)
        Number of events of each user so far.
    last_events : pyarrow.Table
        The last event of each user, from which the time to the next one is counted.
    encoder_states : ndarray of float32, shape (n_users, n_components)
        States of the sequence encoders after these events.
    network_digest : str
        Digest of the weights that computed the states.
    """

    users: pa.Table
    embeddings: np.ndarray
    n_events: np.ndarray
    last_events: pa.Table
    encoder_states: np.ndarray
    network_digest: str

    def __len__(self):
        return len(self.embeddings)


def check_incremental(blocks, owner):
    """Raise ``ValueError`` unless the embeddings of blocks can be updated exactly.

    Parameters
    ----------
    blocks : dict of {str: Block}
        Fitted blocks.
    owner : str
        Class name of the estimator, for errors.
    """
    for name, block in blocks.items():
        reason = None
        if not isinstance(block, SequenceBlock):
            reason = f"is a {type(block).__name__}, which reads lists as a whole"
        elif getattr(block, "aggregates", False):
            reason = "has aggregates, which are computed from whole lists"
        elif block.encoder not in ("mean", "gru", "lstm"):
            reason = f"has encoder={block.encoder!r}, which reads later events for earlier ones"
        elif block.encoder != "mean" and block.bidirectional:
            reason = "has bidirectional=True and reads later events for earlier ones"
        elif getattr(block, "stride_", 1) > 1:
            reason = (
                f"has max_steps={block.max_steps} and averages {block.stride_} neighbouring steps, "
                "of which some may follow"
            )
        elif getattr(block, "reads_now", False):
            reason = (
                "has now=None and reads the time from each event to the last one, which every new "
                "event changes"
            )
        if reason is not None:
            raise ValueError(
                f"{owner}.update: block {name!r} {reason}. Embeddings can be updated if blocks are "
                "EventSequenceBlock with now=False, CategorySequenceBlock or NumericSequenceBlock, "
                "with encoder='mean', or with encoder='gru' or 'lstm' and bidirectional=False"
            )


def update_state(tower, user, time, state, events, owner, executor):
    """Return the state after further events.

    Parameters
    ----------
    tower : Tower
        Fitted tower, whose blocks :func:`check_incremental` accepts.
    user : list of str
        Key columns.
    time : str
        Column of times.
    state : EmbeddingState or None
        State before the events; None if there were none.
    events : pyarrow.Table
        Log of further events.
    owner : str
        Class name of the estimator, for errors.
    executor : LocalExecutor
        Executor that encodes the events and runs the network.

    Returns
    -------
    EmbeddingState

    Raises
    ------
    ValueError
        If the state is of another network, if a user has more events than a block reads, or if an
        event is earlier than the last one before.
    TypeError
        If a column is of another type than before.
    """
    network = tower.network_.eval()
    encoders = [encoder for module in network.blocks for encoder in module.sequence_encoders]
    digest = tensor_digest(*network.state_dict().values())
    features = list(tower.feature_names_in_)
    columns = features if time in features else [*features, time]
    if state is None:
        state = _empty(tower.embedding_dim, encoders, digest)
    elif state.network_digest != digest:
        raise ValueError(
            f"{owner}.update: state is of another fit, whose weights differ; begin with "
            "update(None, events) and all events"
        )
    lists = collect_sequences(events, by=user, order_by=time, columns=columns, prefix="")
    keys = pa.table({name: decoded(lists[name]) for name in user})
    new = Sequences(lists.select(columns), owner)
    n_before, n_rows = len(state), len(new)
    if n_rows == 0:
        return state
    position = np.full(n_rows, n_before)
    if n_before:
        _, position = entity_codes(state.users, keys, user, ("state", "events"))
        position = np.minimum(position, n_before)
    has_state = position < n_before
    n_events = np.append(state.n_events, 0)[position] + new.lengths
    _check_lengths(tower.blocks_, n_events, keys, owner)
    items = _joined(state.last_events, new.items, owner)
    first, last = n_before + new.offsets[:-1], n_before + new.offsets[1:] - 1
    _check_order(items, time, position[has_state], first[has_state], keys.filter(has_state), owner)

    # What is read of an event may depend on the one before it, which is encoded again.
    order = np.insert(
        np.arange(n_before, len(items)), new.offsets[:-1][has_state], position[has_state]
    )
    bounds = np.append(0, np.cumsum(new.lengths + has_state))
    table = materialize(items.select(features), order, bounds[:-1], bounds[1:])
    frame = tower.encode(table, executor)
    is_new = np.ones(bounds[-1], dtype=bool)
    is_new[bounds[:-1][has_state]] = False
    frame = _new_items(frame, torch.from_numpy(is_new), torch.from_numpy(new.offsets))
    start = torch.cat([encoder.start(1) for encoder in encoders], dim=1).detach().numpy()
    before = np.concatenate([state.encoder_states, start])[position]
    frame = TensorFrame({**frame.encodings, STATES: {"states": torch.from_numpy(before)}}, n_rows)
    outputs = executor.forward(
        lambda batch: _advance(network, tower.normalized, batch),
        frame,
        lengths=torch.from_numpy(new.lengths),
    ).numpy()

    # Users without a new event keep their rows, and new users follow in order.
    row = np.where(has_state, position, n_before + np.cumsum(~has_state) - 1)
    n_users = n_before + int((~has_state).sum())
    last_row = np.arange(n_users)
    last_row[row] = last
    dim = tower.embedding_dim

    def merged(earlier, latest):
        result = np.concatenate([earlier, np.zeros((n_users - n_before, *earlier.shape[1:]))])
        result[row] = latest
        return result.astype(earlier.dtype)

    return EmbeddingState(
        users=_joined(state.users, keys.filter(~has_state), owner) if n_before else keys,
        embeddings=merged(state.embeddings, outputs[:, :dim]),
        n_events=merged(state.n_events, n_events),
        last_events=items.take(last_row),
        encoder_states=merged(state.encoder_states, outputs[:, dim:]),
        network_digest=digest,
    )


STATES = "__states"
"""Entry of a frame that has the states of encoders. Names of blocks have no double underscore."""


def _empty(embedding_dim, encoders, digest):
    """Return the state of no users."""
    width = sum(encoder.state_features for encoder in encoders)
    vectors, states = (np.zeros((0, n), dtype=np.float32) for n in (embedding_dim, width))
    nothing = pa.table({})
    return EmbeddingState(nothing, vectors, np.zeros(0, np.int64), nothing, states, digest)


def _advance(network, normalized, frame):
    """Return the embeddings and the new states of the encoders, concatenated."""
    encoders = [encoder for module in network.blocks for encoder in module.sequence_encoders]
    widths = [encoder.state_features for encoder in encoders]
    before = iter(frame[STATES]["states"].split(widths, dim=1))
    states, parts = [], {}
    for name, module in zip(network.names, network.blocks, strict=True):
        inputs, outputs = module.item_vectors(**frame[name]), []
        for encoder, (items, offsets) in zip(module.sequence_encoders, inputs, strict=True):
            states.append(encoder.advance(next(before), items, offsets))
            outputs.append(encoder.finish(states[-1]))
        parts[name] = torch.cat(outputs, dim=1)
    return torch.cat([as_embeddings(network.join(parts), normalized), *states], dim=1)


def _new_items(frame, is_new, offsets):
    """Return encoded lists without the items that were encoded before."""
    return frame.map(lambda entry: Ragged(entry.values[is_new], offsets))


def _joined(before, after, owner):
    """Concatenate two tables of events or keys, whose types may differ in width only."""
    after = pa.table({name: decoded(after[name]) for name in after.column_names})
    if not before.num_columns:
        return after
    try:
        return pa.concat_tables([before, after], promote_options="permissive").combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        name = next(
            name
            for name in after.column_names
            if not _can_join(before.schema.field(name), after.schema.field(name))
        )
        kinds = [type_name(table.schema.field(name).type) for table in (before, after)]
        raise TypeError(
            f"{owner}.update: column {name!r} is of type {kinds[1]}, and of type {kinds[0]} in the "
            "events before; convert it"
        ) from error


def _can_join(field, other):
    try:
        pa.unify_schemas([pa.schema([field]), pa.schema([other])], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return False
    return True


def _shown(keys, row):
    """Return the key of a user, for messages."""
    values = list(keys.slice(row, 1).to_pylist()[0].values())
    return repr(values[0] if len(values) == 1 else tuple(values))


def _check_lengths(blocks, n_events, keys, owner):
    """Raise ``ValueError`` if a block would not read all events of a user."""
    for name, block in blocks.items():
        longer = np.flatnonzero(n_events > block.max_length)
        if len(longer):
            row = int(longer[0])
            raise ValueError(
                f"{owner}.update: user {_shown(keys, row)} has {n_events[row]} events "
                f"({len(longer)} users have too many), and block {name!r} reads "
                f"max_length={block.max_length} of them, so that an update cannot be exact; raise "
                "max_length, or compute these embeddings by transform"
            )


def _check_order(items, time, before, after, keys, owner):
    """Raise ``ValueError`` if a new event is earlier than the last one of its user."""
    times = read_times(items, time, "events").to_numpy()
    earlier = np.flatnonzero(times[after] < times[before])
    if len(earlier):
        row = int(earlier[0])
        raise ValueError(
            f"{owner}.update: an event of user {_shown(keys, row)} at {times[after][row]} is "
            f"earlier than the last one before, at {times[before][row]} ({len(earlier)} users have "
            "such events); update with events in order of time"
        )
