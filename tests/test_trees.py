"""Boosted trees beside the network: their tables against scikit-learn, and what becomes of them."""

import numpy as np
import pandas as pd
import pytest
import torch
from collected import materialize
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV

from sk_easytensor import (
    MLP,
    BoostedTrees,
    CategoryBlock,
    DatetimeBlock,
    EasyTensorClassifier,
    EasyTensorRegressor,
    NumericBlock,
    NumericSequenceBlock,
    TabM,
    TextBlock,
)
from sk_easytensor.losses import AbsoluteError, Poisson, Quantile
from sk_easytensor.networks.heads import (
    BinaryHead,
    MulticlassHead,
    MultilabelHead,
    RegressionHead,
    SampledSoftmaxHead,
)
from sk_easytensor.training.blend import tree_rows
from sk_easytensor.training.dataset import EncodedDataset
from sk_easytensor.training.file_dataset import MemoryMappedDataset
from sk_easytensor.trees import boosting as boosted
from sk_easytensor.trees.boosting import TreeDataset, cross_fitted_target_encoding
from sk_easytensor.trees.forest import TreesModule, bit_positions

N_TRAIN, N_VALID = 700, 200
CODES = [(1001, True), (1001, True), (1001, True), (12, False), (402, False)]
QUICK = {"trunk": MLP(width=8), "max_epochs": 3, "n_folds": None, "random_state": 0}


def codes_of(numbers):
    """Codes in order of numbers around 0, 0 of missing ones."""
    codes = np.clip(100 * np.asarray(numbers) + 501, 1, 1000)
    return np.nan_to_num(codes, nan=0).astype(np.int32)


@pytest.fixture(scope="module")
def numbers():
    """Two columns with gaps and outliers, and one without any number."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(N_TRAIN + N_VALID, 3))
    numbers[rng.random(len(numbers)) < 0.1, 0] = np.nan
    numbers[rng.random(len(numbers)) < 0.1, 0] = 1e6
    numbers[:, 2] = np.nan
    return numbers


@pytest.fixture(scope="module")
def columns(numbers):
    """Codes of the numbers, and few and many categories."""
    rng = np.random.default_rng(1)
    few, many = rng.integers(0, 9, len(numbers)), rng.integers(0, 300, len(numbers))
    # Some codes occur in validation rows only, some nowhere.
    few[-5:], many[-5:] = 11, 401
    return np.column_stack([codes_of(numbers), few, many]).astype(np.int32)


@pytest.fixture(scope="module")
def score(numbers, columns):
    number = np.nan_to_num(numbers[:, 0], nan=1.0).clip(-3, 3)
    step = 2 * (numbers[:, 1] > 0.3) + (columns[:, 3] % 3) + 0.2 * (columns[:, 4] % 7)
    return number + step


TARGETS = {
    "number": (RegressionHead(), lambda z: z[:, None]),
    "median": (RegressionHead(AbsoluteError()), lambda z: z[:, None]),
    "quantile": (RegressionHead(Quantile(0.8)), lambda z: z[:, None]),
    "poisson": (RegressionHead(Poisson()), lambda z: np.maximum(z, 0)[:, None]),
    "two numbers": (RegressionHead(n_outputs=2), lambda z: np.column_stack([z, -(z**2)])),
    "binary": (BinaryHead(), lambda z: (z > z.mean()).astype(float)),
    "classes": (MulticlassHead(4), lambda z: np.digitize(z, [0, 2, 4])),
    "labels": (MultilabelHead(2), lambda z: np.column_stack([z > 1, z > 3]).astype(float)),
}


def grow(head, columns, target, trees=None, weight=None):
    rows = TreeDataset(columns[:N_TRAIN], target[:N_TRAIN], weight)
    valid = TreeDataset(columns[N_TRAIN:], target[N_TRAIN:], None)
    return (trees or BoostedTrees(max_iter=40)).grow(head, rows, valid, CODES, seed=0)


@pytest.mark.parametrize("leaves", [15, 31])
@pytest.mark.parametrize("kind", TARGETS)
def test_tables_give_what_scikit_learn_does(kind, leaves, columns, score, monkeypatch):
    head, make_target = TARGETS[kind]
    boosters, of = [], boosted.TreeTables.of

    def spied(booster, kept, *others):
        boosters.append((booster, kept, others[0]))
        return of(booster, kept, *others)

    monkeypatch.setattr(boosted.TreeTables, "of", spied)
    trees = BoostedTrees(max_iter=40, max_leaf_nodes=leaves)
    grown = grow(head, columns, make_target(score), trees)
    assert grown[0].values.shape[1] == leaves
    assert grown[0].open_leaves.dtype == {15: np.int16, 31: np.int32}[leaves]
    module = TreesModule(grown, 0.5)
    expected = []
    for booster, kept, own in boosters:
        assert 0 < kept <= 40
        booster._predictors = booster._predictors[:kept]
        expected.append(booster._raw_predict(own.matrices[1]))
    found = module(torch.from_numpy(columns[N_TRAIN:]))
    np.testing.assert_allclose(found, np.concatenate(expected, axis=1), rtol=1e-5, atol=2e-5)
    monkeypatch.setattr("sk_easytensor.trees.forest.MAX_LOOKUP_ENTRIES", 0)
    assert torch.equal(module(torch.from_numpy(columns[N_TRAIN:])), found)
    module.unpack()
    unpacked = module(torch.from_numpy(columns[N_TRAIN:]))
    torch.testing.assert_close(unpacked, found, rtol=1e-5, atol=2e-5)
    # What is pickled gives the same, bit for bit.
    again = TreesModule.of_state(TreesModule(grown, 0.25, 1.1).state())
    assert (again.share, again.temperature) == (0.25, 1.1)
    assert torch.equal(again(torch.from_numpy(columns[N_TRAIN:])), found)


@pytest.mark.parametrize("there", [[0, 3], [0, 1, 3], [2]])
def test_classes_without_training_rows_are_unlikely(there, columns, score):
    target = np.array(there)[np.digitize(score, np.quantile(score, [0.4, 0.7])) % len(there)]
    target[-1] = 1
    grown = grow(MulticlassHead(4), columns, target)
    if len(there) == 1:
        # No tree tells anything: the network stands alone.
        assert grown is None
        return
    outputs = torch.softmax(TreesModule(grown, 0.5)(torch.from_numpy(columns[N_TRAIN:])), 1)
    absent = [index for index in range(4) if index not in there]
    assert float(outputs[:, absent].max()) < 0.02
    hits = outputs.argmax(1).numpy()[:-1] == target[N_TRAIN:-1]
    assert hits.mean() > 0.7


def test_a_target_that_never_varies_keeps_its_value(columns, score):
    target = np.column_stack([score, np.full(len(score), 3.0)])
    grown = grow(RegressionHead(n_outputs=2), columns, target)
    outputs = TreesModule(grown, 0.5)(torch.from_numpy(columns))
    assert torch.equal(outputs[:, 1], torch.full((len(columns),), 3.0))
    labels = np.column_stack([score > 1, score < 1e9]).astype(float)
    grown = grow(MultilabelHead(2), columns, labels)
    share = torch.sigmoid(TreesModule(grown, 0.5)(torch.from_numpy(columns)))[:, 1]
    assert share.numpy() == pytest.approx((N_TRAIN + 0.5) / (N_TRAIN + 1))


def test_trees_of_single_leaves_are_none(score):
    """Without validation rows nothing else would end with none of them."""
    rows = TreeDataset(np.ones((300, 1), np.int32), score[:300, None], None)
    assert BoostedTrees().grow(RegressionHead(), rows, None, [(2, True)], 0) is None
    X = {"a": np.ones(300)}
    model = EasyTensorRegressor(validation_fraction=None, **QUICK).fit(X, score[:300])
    assert model.tree_weight_ == 0
    assert np.isfinite(model.predict(X)).all()


def test_validation_rows_that_tell_nothing_are_as_good_as_none(columns):
    rows = TreeDataset(columns[:300], np.arange(300) % 2, None)
    classes = TreeDataset(columns[300:400], np.full(100, 2), None)
    alone = BoostedTrees(max_iter=5).grow(MulticlassHead(3), rows, None, CODES, 0)
    grown = BoostedTrees(max_iter=5).grow(MulticlassHead(3), rows, classes, CODES, 0)
    assert np.array_equal(grown[0].values, alone[0].values)
    weightless = TreeDataset(columns[300:400], np.arange(100) % 2, np.zeros(100, np.float32))
    grown = BoostedTrees(max_iter=5).grow(MulticlassHead(3), rows, weightless, CODES, 0)
    assert np.array_equal(grown[0].values, alone[0].values)


def test_columns_without_numbers_in_rows_of_weight(columns, numbers):
    weight = (np.arange(N_TRAIN) % 2).astype(np.float32)
    gaps = columns.copy()
    gaps[1:N_TRAIN:2, 0] = 0
    target = numbers[:, 1:2].clip(-1, 1)
    grown = grow(RegressionHead(), gaps, target, weight=weight)
    assert 1 in grown[0].columns
    assert not {0, 2} & set(grown[0].columns)


def test_codes_that_cannot_be_told_apart_share_rows(columns):
    many = np.arange(N_TRAIN + N_VALID) * 37 % 50
    target = many % 3
    rows = TreeDataset(many[:N_TRAIN, None].astype(np.int32), target[:N_TRAIN], None)
    grown = BoostedTrees(max_iter=3).grow(MulticlassHead(3), rows, None, [(5000, False)], 0)
    assert len(grown[0].code_rows) == 5000
    assert len(grown[0].open_leaves) <= 254


def test_tables_stay_within_bounds(columns, score, monkeypatch):
    head, target = RegressionHead(), score[:, None]
    whole = grow(head, columns, target)[0]
    monkeypatch.setattr("sk_easytensor.trees.forest.MAX_TABLE_BYTES", whole.open_leaves.nbytes // 3)
    part = grow(head, columns, target)[0]
    assert part.open_leaves.nbytes <= whole.open_leaves.nbytes // 3
    assert np.array_equal(part.values, whole.values[: part.n_trees])
    monkeypatch.setattr("sk_easytensor.trees.forest.MAX_UNPACKED_VALUES", 1)
    with pytest.raises(RuntimeError, match=r"lower trees__max_leaf_nodes or"):
        TreesModule([part], 0.5).unpack()


@pytest.mark.parametrize(("n_rows", "leaves", "fewest"), [(4999, 15, 3), (5000, 31, 20)])
def test_many_rows_have_trees_of_more_and_larger_leaves(n_rows, leaves, fewest):
    codes = np.minimum(np.arange(n_rows), 200).astype(np.int32)[:, None]
    codes[n_rows - 10 :] = 201
    target = np.sin(codes / 9) + 9 * (codes == 201)

    def grow(trees):
        rows = TreeDataset(codes, target, None)
        grown = trees.grow(RegressionHead(), rows, None, [(202, True)], 0)
        outputs = TreesModule(grown, 0.5)(torch.from_numpy(codes))
        return grown[0].values.shape[1], bool(outputs[-1] != outputs[-11])

    trees = BoostedTrees(max_iter=1)
    # Ten rows of their own are enough for a leaf where there are few in all.
    assert grow(trees)[1] == (fewest <= 10)
    assert grow(trees.set_params(min_samples_leaf=1)) == (leaves, True)
    assert grow(trees.set_params(max_leaf_nodes=4)) == (4, True)


@pytest.mark.parametrize("kind", [torch.int16, torch.int32])
def test_places_of_bits(kind):
    places = torch.arange(15 if kind == torch.int16 else 31)
    bits = (2**places).to(kind)
    assert torch.equal(bit_positions(bits), places.int())
    graph = torch.export.export(Places(), (bits,)).module()
    assert torch.equal(graph(bits), places.int())


class Places(torch.nn.Module):
    def forward(self, bits):
        return bit_positions(bits)


def test_targets_of_all_sizes(numbers):
    X = {"a": numbers[:300, 1]}
    model = EasyTensorRegressor(loss="gamma", **QUICK).fit(X, np.exp(60 * X["a"]))
    assert np.isfinite(model.predict(X)).all()


def test_interrupted_trees_end_the_fit(table, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(BoostedTrees, "grow", interrupt)
    with pytest.raises(KeyboardInterrupt):
        EasyTensorRegressor(**QUICK).fit(*table)


def test_no_trees_where_they_cannot_be(columns, score):
    assert grow(SampledSoftmaxHead(), columns, score) is None
    assert grow(RegressionHead(n_outputs=51), columns, np.tile(score[:, None], 51)) is None


def test_weights_are_those_of_the_trees(columns, score):
    """A row of weight zero is as good as absent: its target does not matter."""
    weight = np.ones(N_TRAIN, dtype=np.float32)
    weight[::3] = 0
    other = score.copy()
    other[:N_TRAIN:3] = 50
    pair = [grow(RegressionHead(), columns, y[:, None], weight=weight) for y in (score, other)]
    first, second = (TreesModule(each, 0.5)(torch.from_numpy(columns)) for each in pair)
    assert float((first - second).abs().max()) < 1e-4


def test_the_best_iteration_is_the_last_that_is_kept(columns):
    noise = np.random.default_rng(1).normal(size=(len(columns), 1))
    grown = grow(RegressionHead(), columns, noise, BoostedTrees(max_iter=60, n_iter_no_change=60))
    assert grown is None or grown[0].n_trees < 20


# ---------------------------------------------------------------------- many categories


@given(
    codes=st.lists(st.integers(0, 4), min_size=2, max_size=40),
    place=st.integers(0, 39),
    shift=st.floats(-10, 10),
    weighted=st.booleans(),
)
def test_a_row_is_not_told_its_own_target(codes, place, shift, weighted):
    codes = np.array(codes)
    place %= len(codes)
    weight = np.linspace(1, 2, len(codes)) if weighted else None
    before = np.linspace(-1, 1, len(codes))
    after = before.copy()
    after[place] += shift
    told = [cross_fitted_target_encoding(codes, 6, target, weight, 0) for target in (before, after)]
    means = [np.average(target, weights=weight) for target in (before, after)]
    # It reaches the row by the mean of all rows alone.
    assert abs(told[1][0][place] - told[0][0][place]) <= abs(means[1] - means[0]) + 1e-9
    # A category without rows is what all rows are.
    assert told[1][1][5] == pytest.approx(means[1])


def test_categories_are_smoothed_means():
    codes, target = np.repeat([0, 1], [90, 10]), np.repeat([1.0, 0.0], [90, 10])
    inside, values = cross_fitted_target_encoding(codes, 3, target, None, 0)
    assert values == pytest.approx([(90 + 9) / 100, 9 / 20, 0.9])
    assert inside[:90].min() > 0.98
    assert inside[90:].max() < 0.6


# ---------------------------------------------------------------------- what blocks show


def shown_by(block, X):
    """The codes that a fitted block shows trees, and the module that shows them."""
    module = block.fit(X).make_module()
    shown = module.tree_inputs(**block.transform(X))
    assert shown.dtype == torch.int32
    assert [int(most) for most in shown.amax(0)] < [size for size, _ in module.tree_codes]
    return shown, module


def test_numbers_are_shown_as_parts_of_bins():
    numbers = np.concatenate([[np.nan, np.inf, -np.inf], np.arange(9.0), np.linspace(0, 8, 999)])
    block = NumericBlock(bins=8)
    shown, module = shown_by(block, pd.DataFrame({"n": numbers, "none": np.nan}))
    # Missing, eight bins of 128 parts, and the last edge.
    assert module.tree_codes == [(1026, True), (1026, True)]
    assert shown[:3, 0].tolist() == [0, 1025, 1]
    assert shown[3:12, 0].tolist() == [1 + 128 * index for index in range(9)]
    assert (shown[12:, 0].diff() > 0).all()
    assert not shown[:, 1].any()


def test_categories_are_shown_as_codes():
    shown, module = shown_by(CategoryBlock(), pd.DataFrame({"c": ["a", "b", "a", None]}))
    assert module.tree_codes == [(4, False)]
    assert shown[:, 0].tolist() == [2, 3, 2, 0]


def test_dates_are_shown_as_instants_and_places_in_cycles():
    days = pd.date_range("2024-01-01", periods=800, freq="D")
    X = pd.DataFrame({"day": days.append(pd.DatetimeIndex([None]))})
    shown, module = shown_by(DatetimeBlock(), X)
    # The instant, and where the day stands in its week, month and year.
    assert module.tree_codes[1:] == [(1025, True)] * 3
    assert not shown[-1].any()
    assert (shown[:-1, 0].diff() > 0).all()
    for index, starts in enumerate([days.day_of_week == 0, days.day == 1, days.day_of_year == 1]):
        assert (shown[:-1, 1 + index][starts] == 1).all()
        grows = shown[:-1, 1 + index].diff() > 0
        assert grows.tolist() == [not begins for begins in starts[1:]]


@pytest.mark.parametrize("position", [0.0, 1.0, 64.5, 100.25, 127.875, 128.0])
def test_rounding_moves_no_likely_number_across_a_border(position):
    """Runtimes round as they like, and numbers are often edges or halfway between two."""
    module = NumericBlock().fit({"a": np.arange(129.0)}).make_module()
    near = torch.tensor([position - 1e-4, position, position + 1e-4]).clamp(0, 128)
    codes = module.tree_inputs(torch.stack([near, near], dim=1)[:, None])
    assert len(codes.unique()) == 1


@pytest.mark.parametrize("hour", [0, 6, 12, 18])
def test_rounding_moves_no_likely_time_across_a_border(hour):
    days = pd.date_range("2024-01-01", periods=60, freq="6h")
    block = DatetimeBlock(cycles=["day"]).fit({"t": days})
    times = block.transform({"t": [days[0] + pd.Timedelta(hours=hour)]})["times"]
    near = times + torch.tensor([-1e-6, 0.0, 1e-6])[:, None, None]
    codes = block.make_module().tree_inputs(near)
    assert len(codes[:, 1].unique()) == 1


# ---------------------------------------------------------------------- estimators


@pytest.fixture(scope="module")
def table():
    """A frame and a number with steps that trees find at once."""
    rng = np.random.default_rng(0)
    X = pd.DataFrame(
        {"a": rng.random(600), "b": rng.random(600), "c": rng.choice(list("xyz"), 600)}
    )
    X.loc[::9, "a"] = None
    y = 3.0 * ((X["a"] * 10 % 2 > 1) ^ (X["c"] == "x")) + 0.1 * rng.normal(size=600)
    return X, y.to_numpy()


@pytest.fixture(scope="module")
def model(table):
    X, y = table
    return EasyTensorRegressor(**QUICK).fit(X[:400], y[:400], eval_set=[(X[400:], y[400:])])


def test_trees_help(table, model):
    X, y = table
    alone = EasyTensorRegressor(**QUICK, trees=None)
    alone.fit(X[:400], y[:400], eval_set=[(X[400:], y[400:])])
    assert alone.tree_weight_ == 0
    assert alone.network_.trees is None
    assert 0.5 < model.tree_weight_ <= 1
    assert model.score(X[400:], y[400:]) > alone.score(X[400:], y[400:]) + 0.3
    # The network is trained without them, and evaluated with them.
    training = alone.evals_result_["training"]["squared_error"]
    n_epochs = min(model.n_iter_, alone.n_iter_)
    assert model.evals_result_["training"]["squared_error"][:n_epochs] == training[:n_epochs]
    curves = (each.evals_result_["valid_0"]["squared_error"] for each in (model, alone))
    assert all(with_trees < network for with_trees, network in zip(*curves, strict=False))


def test_the_best_score_is_that_of_both(table, model):
    X, y = table
    error = np.mean((model.predict(X[400:]) - y[400:]) ** 2)
    assert model.best_score_ == pytest.approx(error, rel=1e-4)
    assert model.best_score_ == min(model.evals_result_["valid_0"]["squared_error"])
    classes = np.digitize(y, [1, 3])
    several = EasyTensorClassifier(**QUICK)
    several.fit(X[:400], classes[:400], eval_set=[(X[400:], classes[400:])])
    probabilities = several.predict_proba(X[400:])
    assert several.best_score_ == pytest.approx(log_loss(classes[400:], probabilities), rel=1e-4)
    np.testing.assert_allclose(
        several.decision_function(X[400:]), np.log(probabilities), rtol=1e-4, atol=1e-5
    )


def test_validation_rows_tell_how_sure_classes_are(table, model):
    """Who learns from wrong labels and is judged by right ones is less sure than it may be."""
    X = table[0]
    right = X["b"].to_numpy() > 0.5
    wrong = right ^ (np.random.default_rng(0).random(600) < 0.25)
    classifier = EasyTensorClassifier(trees=BoostedTrees(max_iter=20), linear=None, **QUICK)
    classifier.fit(X[:400], wrong[:400], eval_set=[(X[400:], right[400:])])
    joined = classifier.network_.trees
    assert joined.temperature < 0.9
    log_odds, temperature = classifier.decision_function(X), joined.temperature
    joined.temperature = 1.0
    np.testing.assert_allclose(log_odds * temperature, classifier.decision_function(X), rtol=1e-4)
    assert model.network_.trees.temperature == 1


def test_shares_are_equal_without_validation_rows(table):
    model = EasyTensorRegressor(**QUICK, validation_fraction=None).fit(*table)
    assert (model.tree_weight_, model.linear_weight_) == (0.5, 0)
    assert model.network_.trees.grown[0].n_trees == 100


def test_a_network_that_still_improves_is_not_stopped(table):
    """At first trees have all weight, so that the loss of the blend does not change."""
    X, _ = table
    y = (X["b"].to_numpy() > 0.5) * 4.0
    quick = {**QUICK, "max_epochs": 12, "early_stopping_rounds": 1, "linear": None}
    model = EasyTensorRegressor(trees=BoostedTrees(), learning_rate=2e-4, **quick).fit(X, y)
    assert model.tree_weight_ > 0.9
    assert model.n_iter_ == 12


def test_a_network_that_knows_better_counts_more(table):
    X, _ = table
    y = X["b"].to_numpy() * 4
    trees = BoostedTrees(max_iter=1)
    params = {"max_epochs": 40, "learning_rate": 0.02, "n_folds": None, "random_state": 0}
    model = EasyTensorRegressor(trees=trees, **params)
    assert model.fit(X, y).tree_weight_ < 0.2


def test_a_network_that_counts_for_nothing_is_not_asked(table, model, monkeypatch):
    X, network = table[0], model.network_
    monkeypatch.setattr(network.trees, "share", 0.0)
    asked = []
    hook = network.trunk.register_forward_hook(lambda *_: asked.append(1))
    predicted = model.predict(X)
    frame, head = model._encoder.encode(X), model._head
    with torch.no_grad():
        read = {name: reader(**frame[name]) for name, reader in network.readers().items()}
        joined = network.average_read(read, head)
        assert not asked
        assert torch.equal(joined, network.average_members(frame, head))
    model.transform(X)
    assert asked
    hook.remove()
    # Next to none is rounded to the same numbers.
    monkeypatch.setattr(network.trees, "share", 1e-12)
    np.testing.assert_allclose(predicted, model.predict(X), rtol=1e-6)
    monkeypatch.setattr(network.trees, "share", 0.5)
    assert np.abs(predicted - model.predict(X)).max() > 0.1


def test_importances_see_what_trees_see(table, model):
    by_column = dict(zip(table[0].columns, model.feature_importances_, strict=True))
    assert by_column["b"] < 0.05
    assert min(by_column["a"], by_column["c"]) > 0.2


def test_rows_in_files_are_read_piece_by_piece(table, model):
    """What trees see of rows that are too many for memory is what they see of others."""
    X, _ = table
    frame = model._encoder.encode(X)
    rows = EncodedDataset(frame, torch.arange(600.0)[:, None], torch.ones(600))
    spilled = materialize([rows.take(slice(i, i + 100)) for i in range(0, 600, 100)], memory=1)
    assert isinstance(spilled, MemoryMappedDataset)
    whole, pieces = (tree_rows(model.network_, each, 600, 0) for each in (rows, spilled))
    order = np.argsort(pieces.target[:, 0])
    np.testing.assert_array_equal(whole.columns, pieces.columns[order])
    np.testing.assert_array_equal(whole.target, pieces.target[order])
    assert whole.weight is pieces.weight is None
    part = tree_rows(model.network_, spilled, 60, 0)
    assert len(part.target) == len(np.unique(part.target)) == 60


@pytest.mark.parametrize("rows", [60, 99])
def test_few_rows_have_no_trees(rows, table):
    X, y = table
    model = EasyTensorRegressor(**QUICK, validation_fraction=None).fit(X[:rows], y[:rows])
    assert model.tree_weight_ == 0


def test_texts_and_lists_are_not_for_trees():
    texts = ["a long and winding road", "a short and straight street"] * 60
    X = {"text": texts, "list": [[1.0, 2.0, 3.0], [3.0]] * 60}
    blocks = [("text", TextBlock(), "text"), ("list", NumericSequenceBlock(), "list")]
    model = EasyTensorClassifier(blocks, **QUICK).fit(X, [0, 1] * 60)
    assert model.tree_weight_ == 0


def test_parameters_can_be_searched(table):
    X, y = table
    search = GridSearchCV(
        EasyTensorRegressor(**QUICK), {"trees__max_iter": [1, 50]}, cv=2, error_score="raise"
    )
    assert search.fit(X, y).best_params_ == {"trees__max_iter": 50}
    model = EasyTensorClassifier()
    assert model.get_params()["trees__max_leaf_nodes"] == "auto"
    assert "trees__max_leaf_nodes" not in EasyTensorClassifier(trees=None).get_params()
    assert clone(model).trees == "auto"
    with pytest.raises(ValueError, match="no trees, because trees is None"):
        EasyTensorClassifier(trees=None).set_params(trees__max_iter=5)
    model.set_params(trees__max_leaf_nodes=4, trunk__members=3)
    assert repr(model.trees) == "BoostedTrees(max_leaf_nodes=4)"
    assert model.trunk.members == 3
    assert clone(model).trees.max_leaf_nodes == 4


def test_the_default_trunk_beside_trees_is_small():
    parameters = EasyTensorClassifier().get_params()
    assert (parameters["trunk__members"], parameters["trunk__width"]) == (4, 96)
    assert (TabM().members, TabM().width) == (8, 128)


def test_going_on_keeps_the_trees(table):
    X, y = table
    model = EasyTensorRegressor(**QUICK, warm_start=True).fit(X, y)
    before = model.network_.trees.grown
    model.fit(X, y)
    assert model.network_.trees.grown is before
    model.partial_fit(X, y)
    assert model.network_.trees.grown is before
    with pytest.raises(ValueError, match="trees changed since the last fit"):
        model.set_params(trees=None).fit(X, y)


def test_partial_fit_grows_none(table):
    model = EasyTensorRegressor(**QUICK).partial_fit(*table)
    assert model.tree_weight_ == 0
    assert model.network_.trees is None


def test_equal_fits_have_equal_trees(table, model):
    X, y = table
    again = EasyTensorRegressor(**QUICK).fit(X[:400], y[:400], eval_set=[(X[400:], y[400:])])
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
