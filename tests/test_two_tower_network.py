"""The loss of two towers: what it is made of, and that it estimates the softmax over all items."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from sk_easytensor.embedder.objectives import OBJECTIVES, SessionPairBinary
from sk_easytensor.networks.heads import SampledSoftmaxHead
from sk_easytensor.networks.two_tower_network import InBatchSoftmax, TwoTowerNetwork, embed
from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.pairs import PairFrame, distinct_rows

N_USERS, N_ITEMS, WIDTH = 7, 30, 4


class Lookup(nn.Module):
    """A tower whose embeddings are rows of a table; it counts the rows that it reads."""

    def __init__(self, n_rows, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(n_rows, WIDTH, generator=generator))
        self.read = []

    def forward(self, frame):
        rows = frame["lookup"]["rows"][:, 0]
        self.read.append(len(rows))
        return self.table[rows][:, None, :]

    def padded_lengths(self, frame):
        return None


def rows_frame(n_rows):
    return TensorFrame({"lookup": {"rows": torch.arange(n_rows)[:, None]}})


def make(**params):
    return TwoTowerNetwork(Lookup(N_USERS, 0), Lookup(N_ITEMS, 1), **params)


def make_pairs(user_rows, item_rows):
    return PairFrame(
        rows_frame(N_USERS), rows_frame(N_ITEMS), torch.tensor(user_rows), torch.tensor(item_rows)
    )


@pytest.fixture
def popularity():
    """As of items of which a few are chosen often."""
    weight = 1 / torch.arange(1, N_ITEMS + 1).float()
    return weight / weight.sum()


USER_ROWS, ITEM_ROWS = [0, 1, 2, 0, 3, 1], [4, 4, 0, 7, 0, 9]


def all_logits(network):
    return (network.user.table @ network.item.table.T / network.temperature).detach()


def losses(network, pairs):
    return SampledSoftmaxHead().loss(network(pairs), torch.zeros(len(pairs)))[:, 0]


# ---------------------------------------------------------------------- what it is made of


def test_the_loss_is_a_sampled_softmax(popularity):
    network = make(popularity=popularity, n_rows=40, temperature=0.7)
    logits, expected = all_logits(network).numpy(), []
    for user, own in zip(USER_ROWS, ITEM_ROWS, strict=True):
        denominator = np.exp(logits[user, own])
        for item in sorted(set(ITEM_ROWS) - {own}):
            # Of 40 rows so many have the item, and none of them may be among those drawn.
            present = 1 - (1 - len(USER_ROWS) / 40) ** (40 * float(popularity[item]))
            denominator += np.exp(logits[user, item]) / present
        expected.append(float(np.log(denominator) - logits[user, own]))
    found = losses(network, make_pairs(USER_ROWS, ITEM_ROWS))
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-5)


def test_popular_items_count_less_as_negatives(popularity):
    """Of two items that fit alike, the one that is drawn more often weighs less."""
    network = make(popularity=popularity)
    with torch.no_grad():
        network.item.table[0] = network.item.table[20]
    popular, rare = (network(make_pairs([0, 2], [item, 10]))[1, 0] for item in (0, 20))
    assert popular[0] == rare[0]
    assert popular[1] < rare[1]


def test_an_item_is_not_its_own_negative(popularity):
    network = make(popularity=popularity)
    pairs = make_pairs([0, 1, 2], [5, 5, 5])
    assert losses(network, pairs).tolist() == [0, 0, 0]
    losses(network, pairs).sum().backward()
    assert (network.user.table.grad == 0).all()
    outputs = network(make_pairs([0, 1, 2], [5, 5, 6]))
    assert outputs.shape == (3, 1, 2)
    present = 1 - (1 - 3 / 1_000_000) ** (1_000_000 * popularity[[5, 5, 6]].double().numpy())
    expected = (
        all_logits(network)[[0, 1, 2], [6, 6, 5]] - torch.from_numpy(np.log(present))[[2, 2, 0]]
    )
    torch.testing.assert_close(outputs[:, 0, 1].detach(), expected.float(), rtol=1e-5, atol=1e-5)


def test_sums_without_the_own_item_are_exact():
    """Also where it has nearly all of the weight."""
    logits = torch.tensor([[20.0, 0.0, -3.0], [-80.0, -80.0, -81.0], [5.0, 5.0, 5.0]])
    users, items = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 2, 0])
    own, found = InBatchSoftmax.apply(logits, torch.eye(3), torch.zeros(3), users, items)
    assert torch.equal(own, logits[users, items])
    rows = logits.double()[users].scatter(1, items[:, None], -torch.inf)
    torch.testing.assert_close(found.double(), rows.logsumexp(1), rtol=1e-6, atol=5e-6)


def test_gradients_of_the_softmax_are_those_of_torch():
    """Also with repeated pairs, several pairs a user, and an item with nearly all of the weight."""
    generator = torch.Generator().manual_seed(0)
    users = torch.randn(4, 3, generator=generator).double()
    items = torch.randn(5, 3, generator=generator).double()
    users[1] *= 40
    correction = torch.rand(5, generator=generator).double()
    user_index = torch.tensor([0, 0, 1, 2, 2, 2, 3])
    item_index = torch.tensor([1, 4, 0, 3, 3, 2, 4])

    def plain(users, items):
        logits = users @ items.T
        others = (logits - correction)[user_index].scatter(1, item_index[:, None], -torch.inf)
        return logits[user_index, item_index], others.logsumexp(1)

    def own(users, items):
        return InBatchSoftmax.apply(users, items, correction, user_index, item_index)

    found, expected = [], []
    for compute, gradients in ((own, found), (plain, expected)):
        tables = [users.clone().requires_grad_(), items.clone().requires_grad_()]
        logits, others = compute(*tables)
        (torch.logaddexp(logits, others) - logits).sin().sum().backward()
        gradients += [logits, others, *(table.grad for table in tables)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_users_and_items_are_read_once(popularity):
    network = make(popularity=popularity)
    network(make_pairs(USER_ROWS, ITEM_ROWS))
    assert (network.user.read, network.item.read) == ([4], [4])


def test_pairs_of_a_batch_can_come_in_any_order(popularity):
    network, order = make(popularity=popularity), torch.tensor([3, 1, 5, 0, 4, 2])
    pairs = make_pairs(USER_ROWS, ITEM_ROWS)
    expected = losses(network, pairs)[order]
    torch.testing.assert_close(losses(network, pairs.take(order)), expected)


def test_pairs_with_a_target_have_one_output_each():
    network = make(temperature=2.0)
    with torch.no_grad():
        network.bias.fill_(0.5)
    outputs = network(make_pairs(USER_ROWS, ITEM_ROWS))
    assert outputs.shape == (6, 1, 1)
    expected = all_logits(network)[USER_ROWS, ITEM_ROWS] + 0.5
    torch.testing.assert_close(outputs[:, 0, 0], expected)


@pytest.mark.parametrize("popular", [False, True])
def test_normalised_embeddings(popular, popularity):
    network = make(normalized=True, temperature=0.1, popularity=popularity if popular else None)
    lengths = embed(network.user, rows_frame(N_USERS), True).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(N_USERS))
    expected = functional.cosine_similarity(network.user.table[0], network.item.table[4], dim=0)
    outputs = network(make_pairs(USER_ROWS, ITEM_ROWS))
    torch.testing.assert_close(outputs[0, 0, 0], 10 * expected)
    torch.testing.assert_close(embed(network.user, rows_frame(7), False), network.user.table)


def test_dropout_is_for_training_only(popularity):
    network, pairs = make(popularity=popularity, dropout=0.5), make_pairs(USER_ROWS, ITEM_ROWS)
    assert not torch.equal(network.train()(pairs), network(pairs))
    assert torch.equal(network.eval()(pairs), network(pairs))


# ---------------------------------------------------------------------- embedders


def parts_of_users(target):
    """Return pairs of five parts on either side, and the embeddings of both by one tower."""
    frame = rows_frame(N_ITEMS)
    left, right = frame.take(torch.arange(5)), frame.take(torch.arange(10, 15))
    rows = torch.arange(len(target)) % 5
    others = torch.where(torch.tensor(target) == 1, rows, (rows + 2) % 5)
    return PairFrame(left, right, rows, others)


@pytest.mark.parametrize("kind", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("batch", [[0, 1, 2, 3, 4], [4, 1], [3]], ids=str)
def test_an_embedder_chooses_among_all_users_of_the_batch(kind, batch):
    """The loss is the cross-entropy of a softmax over cosines, whatever the size of the batch."""
    tower = Lookup(N_ITEMS, 1)
    network = kind.make_network(tower, 5, kind.temperature, 0.0)
    pairs = parts_of_users([1] * 5).take(torch.tensor(batch))
    found = kind.head.loss(network(pairs), torch.ones(len(batch)))[:, 0]
    table = tower.table.detach().double().numpy()
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    expected = []
    for user in batch:
        logits = table[user] @ table[[10 + other for other in batch]].T / 0.05
        expected.append(np.log(np.exp(logits).sum()) - logits[batch.index(user)])
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-5, atol=1e-6)


def test_an_embedder_classifies_pairs_of_sessions():
    tower, target = Lookup(N_ITEMS, 1), [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
    kind = SessionPairBinary
    network = kind.make_network(tower, 10, kind.temperature, 0.0)
    with torch.no_grad():
        network.bias.fill_(0.3)
    found = kind.head.loss(network(parts_of_users(target)), torch.tensor(target).float())[:, 0]
    table, expected = tower.table.detach().double().numpy(), []
    for pair, own in enumerate(target):
        user = pair % 5
        logit = table[user] @ table[10 + (user if own else (user + 2) % 5)] + 0.3
        expected.append(np.log1p(np.exp(-logit if own else logit)))
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-5)


# ---------------------------------------------------------------------- what it estimates


def denominators(network, user, own, popularity, n_pairs, n_batches=4000):
    """Return the mean estimate of the softmax's denominator, and what it estimates."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    total, uncorrected = 0.0, 0.0
    logits = all_logits(network)
    for _ in range(n_batches):
        others = torch.multinomial(popularity, n_pairs - 1, True, generator=generator)
        items = [own, *others.tolist()]
        outputs = network(make_pairs([user] * n_pairs, items))[0, 0].detach()
        total += float(outputs.exp().sum())
        uncorrected += float(logits[user, sorted(set(items))].exp().sum())
    true = float(logits[user].exp().sum())
    return total / n_batches / true, uncorrected / n_batches / true


@pytest.mark.parametrize("own", [0, 25])
def test_the_denominator_is_that_of_the_softmax_over_all_items(own, popularity):
    network = make(popularity=popularity)
    corrected, uncorrected = denominators(network, 0, own, popularity, n_pairs=12)
    # The own item takes one of the places: 12 pairs are 11 draws of others.
    assert corrected == pytest.approx(1, abs=0.08)
    assert uncorrected < 0.75


def test_with_items_drawn_evenly_the_denominator_is_the_same(popularity):
    network = make(popularity=popularity, n_negatives=10).train()
    corrected, _ = denominators(network, 0, 3, popularity, n_pairs=12)
    assert corrected == pytest.approx(1, abs=0.06)


def test_further_negatives_are_for_training_only(popularity):
    network, pairs = make(popularity=popularity, n_negatives=50), make_pairs(USER_ROWS, ITEM_ROWS)
    torch.manual_seed(0)
    assert not torch.equal(network.train()(pairs), network(pairs))
    assert min(network.item.read) > 10
    assert torch.equal(network.eval()(pairs), network(pairs))
    assert network.item.read[-1] == len(set(ITEM_ROWS))
    assert losses(network.train(), pairs).isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_all_items_as_negatives_make_an_exact_softmax(training, popularity):
    network = make(popularity=popularity, n_negatives="all", temperature=0.7).train(training)
    expected = functional.cross_entropy(
        all_logits(network)[USER_ROWS], torch.tensor(ITEM_ROWS), reduction="none"
    )
    found = losses(network, make_pairs(USER_ROWS, ITEM_ROWS)).detach()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implicit", [True, False], ids=["softmax", "one score a pair"])
def test_a_learned_temperature_starts_at_the_given_one(implicit, popularity):
    params = {"popularity": popularity if implicit else None, "temperature": 0.7}
    fixed, learned = make(**params), make(**params, learned_temperature=True)
    pairs = make_pairs(USER_ROWS, ITEM_ROWS)
    torch.testing.assert_close(fixed(pairs), learned(pairs), rtol=1e-6, atol=1e-6)
    assert learned.final_temperature == pytest.approx(0.7)
    learned(pairs)[:, 0, 0].sum().backward()
    gradient = learned.log_temperature.grad
    assert gradient is not None
    assert gradient != 0


def test_one_item_alone():
    network = TwoTowerNetwork(
        Lookup(N_USERS, 0), Lookup(1, 1), popularity=torch.ones(1), n_negatives=3
    )
    pairs = PairFrame(
        rows_frame(N_USERS), rows_frame(1), torch.arange(3), torch.zeros(3, dtype=torch.int64)
    )
    assert losses(network.train(), pairs).tolist() == [0, 0, 0]


# ---------------------------------------------------------------------- pairs


def test_distinct_rows_come_in_the_order_of_their_first():
    values = torch.tensor([[3.0, 1.0], [2.0, 2.0], [3.0, 1.0], [0.0, 0.0], [2.0, 2.0]])
    distinct, rows = distinct_rows(TensorFrame({"n": {"values": values}}))
    assert distinct["n"]["values"].tolist() == [[3, 1], [2, 2], [0, 0]]
    assert rows.tolist() == [0, 1, 0, 2, 1]


def test_pairs_are_chosen_and_moved():
    pairs = make_pairs(USER_ROWS, ITEM_ROWS)
    for chosen in (pairs.take(slice(1, 3)), pairs.take(torch.tensor([1, 2])).to("cpu")):
        assert chosen.user_rows.tolist() == [1, 2]
        assert chosen.item_rows.tolist() == [4, 0]
        assert len(chosen) == 2
        assert len(chosen.users) == N_USERS
