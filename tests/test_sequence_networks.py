import math

import pytest
import torch

from sk_easytensor.networks.sequences import ENCODERS, POOLINGS, SequenceEncoder, pad

LENGTHS = [3, 0, 1, 5]


def make(encoder, pooling="mean", *, seed=0, **params):
    torch.manual_seed(seed)
    params = {"in_features": 3, "width": 8, "max_length": 8, "heads": 2, "kernel_size": 3, **params}
    return SequenceEncoder(encoder, pooling, **params).eval()


def items(lengths=LENGTHS, seed=1):
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return torch.randn(sum(lengths), 3, generator=generator), offsets


def one(network, rows):
    """Read a single list."""
    return network(rows, torch.tensor([0, len(rows)]))[0]


def test_padding_is_at_the_end():
    values, offsets = items()
    padded, lengths = pad(values, offsets)
    assert padded.shape == (4, 5, 3)
    assert lengths.tolist() == LENGTHS
    for line, part in zip(padded, values.split(LENGTHS), strict=True):
        torch.testing.assert_close(line[: len(part)], part)
        assert (line[len(part) :] == 0).all()
    padded, lengths = pad(values[:0], torch.zeros(3, dtype=torch.int64))
    assert padded.shape == (2, 1, 3)
    assert (padded == 0).all()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_gradients_are_those_of_finite_differences(encoder, pooling, bidirectional):
    network = make(encoder, pooling, bidirectional=bidirectional, width=4).double()
    values, offsets = items([2, 0, 3])
    values = values.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: network(x, offsets).sin(), values, eps=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("encoder", ["mean", "gru", "lstm"])
@pytest.mark.parametrize("layers", [1, 2])
def test_lists_are_read_in_parts(encoder, pooling, layers):
    """The vectors are those of whole lists, and those of empty lists before the first part."""
    network = make(encoder, pooling, layers=layers, dropout=0.5)
    lengths = [3, 1, 8, 5]
    values, offsets = items(lengths)
    values = 5 * values
    with torch.no_grad():
        state = network.start(4)
        assert state.shape == (4, network.state_features)
        nothing = network(values[:0], torch.zeros(5, dtype=torch.int64))
        torch.testing.assert_close(network.finish(state), nothing)
        for first, last in ((0, 1), (1, 3), (3, 8)):
            rows = [row for row in range(4) if lengths[row] > first]
            parts = [values[offsets[row] : offsets[row + 1]][first:last] for row in rows]
            ends = torch.tensor([0, *map(len, parts)]).cumsum(0)
            state[rows] = network.advance(state[rows], torch.cat(parts), ends)
        expected = network(values, offsets)
    torch.testing.assert_close(network.finish(state), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_only_the_own_items_have_a_gradient(encoder):
    network = make(encoder, bidirectional=True)
    values, offsets = items()
    values.requires_grad_()
    network(values, offsets)[2].sin().sum().backward()
    assert (values.grad[3] != 0).any()
    assert (values.grad[[0, 1, 2, 4, 5, 6, 7, 8]] == 0).all()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_only_empty_lists_have_the_learned_vector(encoder):
    network = make(encoder)
    with torch.no_grad():
        network.empty.fill_(7.0)
    output = network(*items())
    assert (output[:, :-1] == 7).all(dim=1).tolist() == [False, True, False, False]
    output.sum().backward()
    assert network.empty.grad.tolist() == [1] * 8
    nothing = network(torch.zeros(0, 3), torch.zeros(3, dtype=torch.int64))
    assert (nothing[:, :-1] == 7).all()


def test_the_last_feature_is_the_length():
    network = make("conv", max_length=8)
    length = network(*items())[:, -1]
    expected = torch.tensor(LENGTHS).add(1).log() / math.log(9)
    torch.testing.assert_close(length, expected)


def test_convolutions_see_their_neighbours_and_no_others():
    network = make("conv", "last", layers=1)
    values, _ = items([5])
    before = one(network, values)
    for place, seen in enumerate([False, False, False, True, True]):
        changed = values.clone()
        changed[place] += 1
        assert torch.allclose(one(network, changed), before) != seen
    deeper = make("conv", "last", layers=2)
    before = one(deeper, values)
    changed = values.clone()
    changed[2] += 1
    assert not torch.allclose(one(deeper, changed), before)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_beyond_both_ends_convolutions_see_zeros(layers):
    network = make("conv", "mean", layers=layers)
    values, _ = items([4])
    # A list beside a longer one is padded, one alone is not.
    together = network(torch.cat([values, torch.randn(7, 3)]), torch.tensor([0, 4, 11]))[0]
    torch.testing.assert_close(one(network, values), together)
    # With kernels turned around, so are lists.
    backwards = make("conv", "mean", layers=layers)
    for layer in backwards.reader.layers:
        layer.weight.data = layer.weight.data.flip(2)
    torch.testing.assert_close(one(backwards, values.flip(0)), one(network, values))


@pytest.mark.parametrize("latest_first", [True, False])
def test_positions_are_counted_from_the_end_that_is_kept(latest_first):
    network = make("transformer", "mean", layers=1, latest_first=latest_first)
    values, _ = items([5])
    three = values[-3:] if latest_first else values[:3]
    seen = {}
    network.reader.dropout.register_forward_hook(lambda *args: seen.update(hidden=args[2]))
    one(network, values)
    whole = seen["hidden"][0]
    one(network, three)
    part = seen["hidden"][0]
    torch.testing.assert_close(whole[-3:] if latest_first else whole[:3], part)
    places = [2, 1, 0] if latest_first else [0, 1, 2]
    projected = network.reader.project(three)
    torch.testing.assert_close(part - projected, network.reader.positions[places])


def test_longest_lists_fit_the_positions():
    network = make("transformer", max_length=4)
    assert torch.isfinite(network(*items([4, 1]))).all()


def test_attention_does_not_see_padding():
    network = make("transformer", "last", layers=2)
    values, _ = items([3])
    alone = one(network, values)
    for length in (4, 8):
        beside = network(
            torch.cat([values, torch.randn(length, 3) * 50]), torch.tensor([0, 3, 3 + length])
        )
        torch.testing.assert_close(beside[0], alone)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("encoder", ["gru", "lstm"])
def test_pooling_sees_the_items_beside_the_states(encoder, bidirectional):
    """An item changes the pooled vector, though the recurrent network ignores it."""
    network = make(encoder, "mean", bidirectional=bidirectional)
    with torch.no_grad():
        for layers in (network.reader.forwards, network.reader.backwards):
            for parameter in layers.parameters():
                parameter.zero_()
    values, _ = items([5])
    other = values.clone()
    other[2] += 1
    assert not torch.equal(one(network, values), one(network, other))


@pytest.mark.parametrize("encoder", ["gru", "lstm"])
def test_reading_backwards_is_reading_the_turned_list(encoder):
    network = make(encoder, "last", bidirectional=True)
    values, _ = items([5])
    turned = make(encoder, "last", bidirectional=True)
    reader = turned.reader
    reader.forwards, reader.backwards = reader.backwards, reader.forwards
    with torch.no_grad():
        for parameter in reader.skip.parameters():
            parameter.copy_(parameter.roll(len(parameter) // 2, 0))
    forwards, backwards = one(network, values)[:-1].chunk(2)
    found = one(turned, values.flip(0))[:-1]
    torch.testing.assert_close(torch.cat([backwards, forwards]), found)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_list_is_read_alike_beside_longer_ones(encoder, bidirectional, pooling):
    network = make(encoder, pooling, layers=2, bidirectional=bidirectional)
    values, offsets = items()
    alone = [one(network, part) for part in values.split(LENGTHS)]
    torch.testing.assert_close(network(values, offsets), torch.stack(alone))


def runs_in_half_precision(encoder):
    """Return whether torch has a kernel for this kind of processor; not all have one for LSTMs."""
    if encoder != "lstm":
        return True
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.nn.LSTM(4, 4)(torch.zeros(2, 1, 4))
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("encoder", ENCODERS)
def test_half_precision_is_close(encoder):
    if not runs_in_half_precision(encoder):
        pytest.skip("torch has no LSTM in half precision for this processor")
    network = make(encoder, "attention", bidirectional=True)
    values, offsets = items()
    expected = network(values, offsets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(values, offsets)
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.1)
    found.float().sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in network.parameters())


@pytest.mark.parametrize("encoder", ["gru", "lstm"])
def test_the_last_state_of_both_directions_has_read_the_whole_list(encoder):
    network = make(encoder, "last", bidirectional=True)
    values, _ = items([5])
    before = one(network, values)
    for place in (0, 2, 4):
        changed = values.clone()
        changed[place] += 1
        after = one(network, changed)
        assert (after[:8] != before[:8]).any()
        assert (after[8:-1] != before[8:-1]).any()


@pytest.mark.parametrize("encoder", ["gru", "lstm"])
def test_without_reading_backwards_the_first_states_know_nothing_later(encoder):
    values, _ = items([4])
    changed = values.clone()
    changed[-1] += 1
    for bidirectional in (False, True):
        network = make(encoder, "mean", bidirectional=bidirectional)
        states = []
        network.reader.register_forward_hook(lambda *args, states=states: states.append(args[2][0]))
        one(network, values)
        one(network, changed)
        assert torch.allclose(states[0][:3], states[1][:3]) != bidirectional


def test_poolings():
    values, offsets = items()
    network = make("mean", "mean")
    hidden = network.reader.project(values)
    parts = hidden.split(LENGTHS)
    torch.testing.assert_close(network(values, offsets)[3, :-1], parts[3].mean(0))
    for pooling, expected in [
        ("last", parts[3][-1]),
        ("mean_max", torch.cat([parts[3].mean(0), parts[3].amax(0)])),
    ]:
        other = make("mean", pooling)
        other.reader = network.reader
        torch.testing.assert_close(other(values, offsets)[3, :-1], expected)
    attentive = make("mean", "attention")
    attentive.reader = network.reader
    share = attentive.score(parts[0]).softmax(0)
    torch.testing.assert_close(attentive(values, offsets)[0, :-1], (share * parts[0]).sum(0))
    with torch.no_grad():
        attentive.score.weight.zero_()
    torch.testing.assert_close(attentive(values, offsets)[0, :-1], parts[0].mean(0))
