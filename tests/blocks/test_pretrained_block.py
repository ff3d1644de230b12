"""What one estimator has learned, as a block of another."""

import os
import pickle
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback

from sk_easytensor import (
    MLP,
    CategoryBlock,
    EasyTensorClassifier,
    EasyTensorRegressor,
    EasyTensorTwoTower,
    EventSequenceBlock,
    NumericBlock,
    PretrainedBlock,
    TableEncoder,
    TextBlock,
)
from sk_easytensor.blocks import BLOCKS
from sk_easytensor.blocks.numeric import LEARNING_RATE_SCALE
from sk_easytensor.blocks.pretrained import ModelSnapshot, scale_learning_rate
from sk_easytensor.networks.block_network import WIDE_RATE
from sk_easytensor.tensors import TensorFrame

ROOT = Path(__file__).parents[2]

N_ROWS = 60
COLUMNS = ["kind", "amount", "town", "size", "note"]


def make_rows(n_rows=N_ROWS, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 6, n_rows)
    words = np.array(["soft", "warm", "dress", "fits", "tight", "lovely"])
    return pd.DataFrame(
        {
            "kind": [rng.choice(["view", "buy", "return"], size).tolist() for size in lengths],
            "amount": [rng.normal(size=size).tolist() for size in lengths],
            "town": rng.choice(["Oslo", "Lima", "Rome"], n_rows),
            "size": rng.normal(size=n_rows),
            "note": [" ".join(rng.choice(words, 5)) for _ in range(n_rows)],
            "age": rng.normal(size=n_rows),
        }
    )


def quick(**params):
    return {"trunk": MLP(width=16), "max_epochs": 2, "n_folds": None, "random_state": 0, **params}


@pytest.fixture(scope="module")
def rows():
    return make_rows()


@pytest.fixture(scope="module")
def target(rows):
    return rows["size"].to_numpy() + (rows["town"] == "Oslo").to_numpy()


@pytest.fixture(scope="module")
def donor(rows, target):
    """A regressor of lists, categories, numbers and text, whose n-grams go past the trunk."""
    blocks = [
        ("events", EventSequenceBlock(), ["kind", "amount"]),
        ("note", TextBlock(width=4, min_frequency=1), ["note"]),
    ]
    return EasyTensorRegressor(blocks, **quick()).fit(rows[COLUMNS], target)


@pytest.fixture(scope="module")
def towers(rows):
    """Two towers, of which the user's reads events and has embeddings of length one."""
    pairs = rows.assign(item=np.arange(N_ROWS) % 7)
    return EasyTensorTwoTower(
        [("events", EventSequenceBlock(), ["kind", "amount"]), ("town", CategoryBlock(), "town")],
        [("item", CategoryBlock(), "item")],
        similarity="cosine",
        embedding_dim=8,
        max_epochs=2,
        random_state=0,
    ).fit(pairs, item_key="item")


@pytest.fixture
def outer(target):
    """A function that makes a quick regressor with a block beside a number of its own."""

    def make(block, columns=tuple(COLUMNS), **params):
        return EasyTensorRegressor([("user", block, list(columns))], **quick(**params))

    return make


def fingerprint(model):
    """Return what a fitted estimator is, as bytes that change with any of its weights."""
    return {name: t.numpy().tobytes() for name, t in model.network_.state_dict().items()}


class Rates(Callback):
    """Notes the learning rate of each parameter, and its gradient's norm, at the first step."""

    def on_grad_computed(self, net, named_parameters, **kwargs):
        if not hasattr(self, "rates"):
            names = {id(parameter): name for name, parameter in named_parameters}
            self.rates = {
                names[id(parameter)]: group["lr"]
                for group in net.optimizer_.param_groups
                for parameter in group["params"]
            }


# ---------------------------------------------------------------------- what is encoded


def test_frozen_vectors_are_what_transform_gives(donor, rows):
    block = PretrainedBlock(donor).fit(rows)
    vectors = block.transform(rows)["vectors"]
    assert vectors.dtype == torch.float32
    assert not vectors.requires_grad
    np.testing.assert_array_equal(vectors[:, 0], donor.transform(rows))
    np.testing.assert_array_equal(block.flatten({"vectors": vectors}), donor.transform(rows))


@pytest.mark.parametrize("tower", [False, True])
def test_towers_and_two_towers_give_embeddings(towers, rows, tower):
    block = PretrainedBlock(towers.user_tower_ if tower else towers).fit(rows)
    assert block.feature_names_in_.tolist() == ["kind", "amount", "town"]
    vectors = block.transform(rows)["vectors"][:, 0]
    np.testing.assert_array_equal(vectors, towers.transform(rows))
    np.testing.assert_allclose(vectors.norm(dim=1), 1, rtol=1e-5)


def test_item_towers(towers):
    items = {"item": np.arange(9)}
    block = PretrainedBlock(towers.item_tower_).fit(items)
    found = block.transform(items)["vectors"][:, 0]
    np.testing.assert_array_equal(found, towers.item_tower_.transform(items))


def test_frozen_estimators_of_scikit_learn(donor, rows):
    found = PretrainedBlock(FrozenEstimator(donor)).fit(rows).transform(rows)["vectors"]
    np.testing.assert_array_equal(found[:, 0], donor.transform(rows))


def test_a_single_block(donor, rows):
    block = PretrainedBlock(donor, "events").fit(rows)
    assert block.feature_names_in_.tolist() == ["kind", "amount"]
    module = donor.network_.blocks[donor.network_.names.index("events")].eval()
    expected = module(**donor.blocks_["events"].transform(rows)).detach()
    np.testing.assert_allclose(block.transform(rows)["vectors"][:, 0], expected, atol=1e-6)


def test_rows_are_encoded_alone(donor, rows):
    block = PretrainedBlock(donor).fit(rows)
    whole = block.transform(rows)["vectors"]
    part = [7, 3, 3, 40]
    np.testing.assert_allclose(block.transform(rows.iloc[part])["vectors"], whole[part], atol=1e-5)


def test_trainable_encodings_are_those_of_the_inner_blocks(donor, rows):
    block = PretrainedBlock(donor, trainable=True).fit(rows)
    encoding = block.transform(rows)
    expected = {
        f"{place}.{entry}": value
        for place, inner in enumerate(donor.blocks_.values())
        for entry, value in inner.transform(rows).items()
    }
    frames = [TensorFrame({"user": entries}) for entries in (encoding, expected)]
    assert frames[0].equals(frames[1])
    assert TensorFrame.from_arrow(frames[0].to_arrow()).equals(frames[0])
    columns = block.encoding_columns(encoding)
    events = list(donor.blocks_).index("events")
    assert columns[f"{events}.codes_0"] == ["kind"]
    assert columns[f"{events}.values_0"] == ["amount"]
    single = PretrainedBlock(donor, "events", trainable=True).fit(rows).transform(rows)
    frame = TensorFrame({"user": donor.blocks_["events"].transform(rows)})
    assert TensorFrame({"user": single}).equals(frame)


@pytest.mark.parametrize("block", [None, "events", "note"])
def test_trainable_modules_begin_where_the_estimator_ended(donor, rows, block):
    encoder = PretrainedBlock(donor, block, trainable=True).fit(rows)
    module = encoder.make_module().eval()
    encoding = encoder.transform(rows)
    inner = getattr(module, "inner", module)
    np.testing.assert_allclose(
        inner(**encoding).detach(),
        PretrainedBlock(donor, block).fit(rows).transform(rows)["vectors"][:, 0],
        atol=1e-5,
    )
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_flatten_gives_the_vectors_of_the_estimator_in_both_ways(donor, rows):
    for trainable in (False, True):
        encoder = TableEncoder([("user", PretrainedBlock(donor, trainable=trainable), COLUMNS)])
        matrix = encoder.fit_transform(rows[COLUMNS])
        np.testing.assert_array_equal(matrix, donor.transform(rows))
        names = [f"user__{name}" for name in donor.get_feature_names_out()]
        assert encoder.get_feature_names_out().tolist() == names
    block = PretrainedBlock(donor, "events").fit(rows)
    assert block.get_feature_names_out()[:2].tolist() == ["events_0", "events_1"]
    assert block.flatten(block.transform(rows)).shape[1] == len(block.get_feature_names_out())


def test_estimators_with_such_a_block_lend_themselves(donor, outer, rows, target):
    model = outer(PretrainedBlock(donor, trainable=True)).fit(rows, target)
    for trainable in (False, True):
        block = PretrainedBlock(model, trainable=trainable).fit(rows)
        np.testing.assert_array_equal(block.flatten(block.transform(rows)), model.transform(rows))


# ---------------------------------------------------------------------- modules


def test_flags_of_inner_modules_are_kept(donor, rows):
    frozen = PretrainedBlock(donor).fit(rows).make_module()
    whole = PretrainedBlock(donor, trainable=True).fit(rows)
    events = PretrainedBlock(donor, "events", trainable=True).fit(rows)
    town = PretrainedBlock(donor, "category", trainable=True).fit(rows)
    note = PretrainedBlock(donor, "note", trainable=True).fit(rows)
    flags = {
        name: [module.padded, module.wide]
        for name, module in {
            "frozen": frozen,
            "whole": whole.make_module(),
            "events": events.make_module(),
            "town": town.make_module(),
            "note": note.make_module(),
        }.items()
    }
    assert flags == {
        "frozen": [False, False],
        "whole": [True, False],
        "events": [True, False],
        "town": [False, False],
        "note": [False, True],
    }
    # Texts are lists too, but are not padded: their lengths do not count.
    lengths = torch.tensor(rows["kind"].map(len).to_numpy())
    for block in (whole, events):
        assert block.make_module().padded_lengths(block.transform(rows)).equal(lengths)


def test_widths(donor, rows):
    for trainable in (False, True):
        narrow = PretrainedBlock(donor, width=5, trainable=trainable).fit(rows).make_module()
        assert narrow.out_features == 5
        by_default = PretrainedBlock(donor, trainable=trainable).fit(rows).make_module()
        assert by_default.out_features == min(64, donor.transform(rows).shape[1])


@pytest.mark.parametrize("block", [None, "events", "note"])
def test_learning_rates_are_scaled(donor, outer, rows, target, block):
    rates = Rates()
    pretrained = PretrainedBlock(donor, block, trainable=True, learning_rate_scale=0.25)
    outer(pretrained, learning_rate=0.01, callbacks=[rates]).fit(rows, target)
    inner = [rate for name, rate in rates.rates.items() if ".inner." in name]
    if block == "note":
        inner = [rate for name, rate in rates.rates.items() if name.startswith("blocks.0.")]
    rest = [rate for name, rate in rates.rates.items() if name.startswith(("trunk.", "head."))]
    # Some blocks have rates of their own, which are multiplied.
    own = {None: {1.0, LEARNING_RATE_SCALE, WIDE_RATE}, "events": {1.0}, "note": {WIDE_RATE}}[block]
    # Both are at the same step of one schedule.
    assert sorted(set(inner)) == pytest.approx(sorted(rest[0] * 0.25 * rate for rate in own))
    assert set(rest) == {rest[0]}


def test_learning_rates_set_within_are_multiplied():
    slow, plain = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    slow.learning_rate_scale = 0.01
    module = torch.nn.Sequential(torch.nn.Sequential(slow), plain)
    scale_learning_rate(module, 0.5)
    assert slow.learning_rate_scale == 0.005
    assert plain.learning_rate_scale == 0.5
    assert not hasattr(module, "learning_rate_scale")
    # Its own parameters would else be trained at the full rate.
    module.bias = torch.nn.Parameter(torch.zeros(2))
    scale_learning_rate(module, 0.5)
    assert module.learning_rate_scale == 0.0025


# ---------------------------------------------------------------------- in estimators


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("block", [None, "events"])
def test_the_estimator_is_not_changed(donor, outer, rows, target, trainable, block):
    before, params = fingerprint(donor), donor.get_params()
    predictions = donor.predict(rows)
    model = outer(PretrainedBlock(donor, block, trainable=trainable)).fit(rows, -target)
    model.predict(rows)
    assert fingerprint(donor) == before
    assert donor.get_params() == params
    np.testing.assert_array_equal(donor.predict(rows), predictions)
    assert all(
        parameter.grad is None for parameter in model.blocks_["user"].part_.frozen.parameters()
    )
    names = [name for name, _ in model.network_.named_parameters() if "inner" in name]
    assert bool(names) == trainable


def test_fine_tuning_moves_the_copy_and_freezing_does_not(donor, outer, rows, target):
    model = outer(PretrainedBlock(donor, trainable=True)).fit(rows, target)
    part = model.blocks_["user"].part_
    state = model.network_.blocks[0].inner.state_dict()
    moved = [name for name in part.weights if not np.array_equal(part.weights[name], state[name])]
    assert len(moved) > len(part.weights) / 2
    frozen = outer(PretrainedBlock(donor)).fit(rows, target)
    np.testing.assert_array_equal(
        frozen.blocks_["user"].transform(rows)["vectors"][:, 0], donor.transform(rows)
    )


def test_frozen_vectors_are_computed_once_a_fit(donor, outer, rows, target, monkeypatch):
    seen = []
    vectors = ModelSnapshot.vectors
    monkeypatch.setattr(
        ModelSnapshot, "vectors", lambda part, encoding: seen.append(1) or vectors(part, encoding)
    )
    outer(PretrainedBlock(donor), max_epochs=7).fit(rows, target)
    assert len(seen) == 1


def test_later_training_of_the_estimator_does_not_reach_the_block(rows, target, outer):
    donor = EasyTensorRegressor(**quick()).fit(rows[["town", "size"]], target)
    block = PretrainedBlock(donor)
    columns = ["town", "size"]
    model = outer(block, columns).fit(rows, target)
    before = model.predict(rows)
    donor.partial_fit(rows[columns], -target)
    np.testing.assert_array_equal(model.predict(rows), before)
    again = outer(block, columns).fit(rows, target)
    found = again.blocks_["user"].transform(rows)["vectors"][:, 0]
    np.testing.assert_array_equal(found, donor.transform(rows))


def test_fits_are_repeatable(donor, outer, rows, target):
    for trainable in (False, True):
        model = outer(PretrainedBlock(donor, trainable=trainable))
        torch.manual_seed(1)
        first = clone(model).fit(rows, target).predict(rows)
        after = torch.rand(1)
        second = clone(model).fit(rows, target).predict(rows)
        np.testing.assert_array_equal(first, second)
        torch.manual_seed(1)
        assert torch.rand(1) == after


@pytest.mark.parametrize("trainable", [False, True])
def test_in_a_classifier(donor, rows, target, trainable):
    y = np.where(target > 0.3, "yes", "no")
    block = PretrainedBlock(donor, trainable=trainable)
    model = EasyTensorClassifier([("user", block, COLUMNS)], **quick()).fit(rows, y)
    assert list(model.blocks_) == ["user", "numeric"]
    assert model.blocks_["numeric"].feature_names_in_.tolist() == ["age"]
    assert model.predict_proba(rows).shape == (N_ROWS, 2)


@pytest.mark.parametrize("trainable", [False, True])
def test_in_a_tower(donor, rows, trainable):
    block = PretrainedBlock(donor, "events", trainable=trainable)
    pairs = rows.assign(item=np.arange(N_ROWS) % 7)
    model = EasyTensorTwoTower(
        [("user", block, ["amount", "kind"])],
        [("item", CategoryBlock(), "item")],
        embedding_dim=8,
        max_epochs=2,
        random_state=0,
    ).fit(pairs, item_key="item")
    embeddings = model.user_tower_.transform(rows)
    assert embeddings.shape == (N_ROWS, 8)
    loaded = pickle.loads(pickle.dumps(model.user_tower_))
    np.testing.assert_array_equal(loaded.transform(rows), embeddings)


def test_what_was_learned_helps(rows):
    """A task of 30 rows is easier with what was learned of a thousand."""
    rng = np.random.default_rng(0)
    towns = [f"town {place}" for place in range(40)]
    worth = dict(zip(towns, rng.normal(size=40), strict=True))
    many, few, new = (pd.DataFrame({"town": rng.choice(towns, n)}) for n in (1000, 30, 500))
    y = {name: part["town"].map(worth) for name, part in zip("mfn", (many, few, new), strict=True)}
    # Three of the 30 rows would not be enough to stop by.
    how = {"trunk": MLP(width=32), "random_state": 0, "validation_fraction": None}
    donor = EasyTensorRegressor([("town", CategoryBlock(), ["town"])], max_epochs=20, **how)
    donor.fit(many, y["m"])
    errors = {}
    for name, block in {
        "scratch": CategoryBlock(),
        "frozen": PretrainedBlock(donor),
        "trainable": PretrainedBlock(donor, trainable=True),
        "block": PretrainedBlock(donor, "town", trainable=True),
    }.items():
        model = EasyTensorRegressor([("town", block, ["town"])], max_epochs=40, **how)
        errors[name] = np.mean((model.fit(few, -y["f"]).predict(new) + y["n"]) ** 2)
    scratch = errors.pop("scratch")
    assert max(errors.values()) < scratch / 2


# ---------------------------------------------------------------------- importances


def test_importances_of_columns_that_can_be_told_apart(donor, outer, rows, target):
    block = PretrainedBlock(donor, trainable=True, learning_rate_scale=1.0)
    model = outer(block, remainder="drop", max_epochs=40)
    importances = pd.Series(model.fit(rows, target).feature_importances_, rows.columns)
    assert importances.sort_values().index[-1] == "size"
    assert importances["age"] == 0
    assert importances.sum() == pytest.approx(1)


def test_importances_of_a_frozen_vector_are_shared(rows, target, outer):
    donor = EasyTensorRegressor(**quick(max_epochs=20)).fit(rows[["town", "size"]], target)
    model = outer(PretrainedBlock(donor), ["town", "size"], remainder="drop", max_epochs=20)
    importances = pd.Series(model.fit(rows, target).feature_importances_, rows.columns)
    assert importances["town"] == importances["size"] == 0.5
    assert importances.drop(["town", "size"]).eq(0).all()


# ---------------------------------------------------------------------- parameters


def test_clones_keep_the_estimator(donor, rows):
    block = PretrainedBlock(donor, "events", trainable=True, learning_rate_scale=0.5).fit(rows)
    other = clone(block)
    assert type(other) is PretrainedBlock
    assert other is not block
    assert other.get_params() == block.get_params()
    assert other.estimator is donor
    assert not hasattr(other, "part_")
    assert other.fit(rows).part_ is block.part_


def test_parameters_do_not_reach_into_the_estimator(donor, outer):
    block = PretrainedBlock(donor)
    assert list(block.get_params(deep=True)) == [
        "block",
        "dropout",
        "estimator",
        "learning_rate_scale",
        "trainable",
        "width",
    ]
    rate = donor.learning_rate
    with pytest.raises(ValueError, match="'estimator__learning_rate' cannot be set"):
        block.set_params(estimator__learning_rate=1.0)
    with pytest.raises(ValueError, match="'estimator__learning_rate' cannot be set"):
        outer(block).set_params(blocks__user__estimator__learning_rate=1.0)
    assert donor.learning_rate == rate


def test_grid_search(donor, outer, rows, target):
    before = fingerprint(donor)
    grid = {
        "blocks__user__trainable": [False, True],
        "blocks__user__learning_rate_scale": [0.01, 1.0],
    }
    search = GridSearchCV(outer(PretrainedBlock(donor)), grid, cv=2)
    search.fit(rows, target)
    scores = search.cv_results_["mean_test_score"]
    assert np.isfinite(scores).all()
    # The scale matters to weights that are trained on only.
    by_scale = pd.DataFrame(search.cv_results_["params"]).assign(score=scores)
    differ = by_scale.groupby("blocks__user__trainable")["score"].nunique()
    assert differ.to_dict() == {False: 1, True: 2}
    assert search.best_estimator_.blocks[0][1].estimator is donor
    assert fingerprint(donor) == before


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"trainable": "yes"}, "trainable must be one of"),
        ({"learning_rate_scale": 0}, "learning_rate_scale must be a number greater than 0"),
        ({"width": 0}, "width must be an integer at least 1"),
        ({"dropout": 2}, "dropout must be a number at least 0 and at most 1"),
        ({"block": "town"}, r"block must be one of \['events', 'note', .*'town'"),
    ],
)
def test_parameters_are_checked(donor, rows, params, message):
    with pytest.raises(ValueError, match=message):
        PretrainedBlock(donor, **params).fit(rows)


def test_estimators_that_are_not_fitted(rows, target, outer, towers):
    for estimator in (EasyTensorClassifier(), EasyTensorTwoTower(), clone(towers.user_tower_)):
        name = type(estimator).__name__
        block = PretrainedBlock(estimator)
        clone(block)
        repr(block)
        with pytest.raises(NotFittedError, match=f"{name} that is not fitted"):
            block.fit(rows)
        with pytest.raises(NotFittedError, match=f"{name} that is not fitted"):
            outer(pickle.loads(pickle.dumps(block))).fit(rows, target)


def test_what_is_no_estimator(donor, rows):
    with pytest.raises(TypeError, match=r"must be a fitted estimator.*got None"):
        PretrainedBlock(None).fit(rows)
    with pytest.raises(TypeError, match="must be a fitted estimator"):
        PretrainedBlock(EasyTensorClassifier).fit(rows)
    with pytest.raises(TypeError, match=r"EventSequenceBlock, which has no weights.*block=name"):
        PretrainedBlock(donor.blocks_["events"]).fit(rows)


# ---------------------------------------------------------------------- columns


def test_columns_are_found_by_name(donor, rows, outer, target):
    turned = rows[rows.columns[::-1]]
    block = PretrainedBlock(donor).fit(turned)
    np.testing.assert_array_equal(block.transform(turned)["vectors"][:, 0], donor.transform(rows))
    model = outer(PretrainedBlock(donor), COLUMNS[::-1]).fit(turned, target)
    same = outer(PretrainedBlock(donor)).fit(rows[model.feature_names_in_], target)
    np.testing.assert_array_equal(model.predict(rows), same.predict(turned))


@pytest.mark.parametrize("trainable", [False, True])
def test_missing_and_renamed_columns_are_named(donor, rows, target, outer, trainable):
    block = PretrainedBlock(donor, trainable=trainable)
    with pytest.raises(ValueError, match=r"missing: \['kind'\].*EasyTensorRegressor was fitted"):
        block.fit(rows.rename(columns={"kind": "event"}))
    with pytest.raises(ValueError, match=r"missing: \['size'\]"):
        outer(block, ["kind", "amount", "town", "note"]).fit(rows, target)
    fitted = block.fit(rows)
    renamed = pa.Table.from_pandas(rows[COLUMNS]).rename_columns(["event", *COLUMNS[1:]])
    with pytest.raises(ValueError, match=r"missing: \['kind'\]"):
        fitted.transform(renamed)
    with pytest.raises(ValueError, match=r"missing: \['kind'\]"):
        fitted.encode(renamed)


def test_columns_that_it_does_not_read_are_left_to_others(donor, rows, target, outer):
    model = outer(PretrainedBlock(donor, "category"), COLUMNS).fit(rows, target)
    assert model.blocks_["user"].feature_names_in_.tolist() == ["town"]
    read = {name for block in model.blocks_.values() for name in block.feature_names_in_}
    assert read == set(rows.columns)
    assert model.blocks_["numeric"].feature_names_in_.tolist() == ["size", "age"]


def test_column_types_are_those_the_inner_blocks_read(donor, rows):
    with pytest.raises(TypeError, match=r"'size' of type .*string cannot be read by NumericBlock"):
        PretrainedBlock(donor).fit(rows.assign(size="large"))


@pytest.mark.parametrize("trainable", [False, True])
def test_columns_that_are_missing_altogether(donor, rows, trainable):
    empty = rows.assign(town=np.nan, note=np.nan)
    block = PretrainedBlock(donor, trainable=trainable).fit(empty)
    found = block.flatten(block.transform(empty))
    np.testing.assert_array_equal(found, donor.transform(empty))


def test_fitted_preprocessing_is_that_of_the_estimator(donor, rows):
    shifted = rows.assign(size=rows["size"] * 100 + 7, town="Paris")
    block = PretrainedBlock(donor).fit(shifted)
    np.testing.assert_array_equal(
        block.transform(shifted)["vectors"][:, 0], donor.transform(shifted)
    )


def test_renamed(donor, rows):
    for trainable in (False, True):
        block = PretrainedBlock(donor, trainable=trainable).fit(rows)
        names = [f"other {name}" for name in block.feature_names_in_]
        renamed = block.renamed(names)
        table = pa.Table.from_pandas(rows[block.feature_names_in_]).rename_columns(names)
        found, expected = renamed.transform(table), block.transform(rows)
        assert TensorFrame({"user": found}).equals(TensorFrame({"user": expected}))
        read = [
            source for sources in renamed.encoding_columns(found).values() for source in sources
        ]
        assert {name for source in read for name in np.atleast_1d(source)} == set(names)
        assert renamed.part_ is block.part_


def test_it_is_never_chosen(donor):
    assert PretrainedBlock not in BLOCKS
    assert not PretrainedBlock.detects(pa.chunked_array([["a", "b"]]))


def test_arrays_without_names(target):
    X = np.random.default_rng(0).normal(size=(N_ROWS, 3))
    donor = EasyTensorRegressor(**quick()).fit(X, target)
    model = EasyTensorRegressor([("user", PretrainedBlock(donor), [2, 0, 1])], **quick())
    model.fit(X, target)
    found = model.blocks_["user"].transform(X[:, :3])["vectors"][:, 0]
    np.testing.assert_array_equal(found, donor.transform(X))


# ---------------------------------------------------------------------- pickles


def test_models_load_where_the_estimator_is_not(donor, outer, rows, target, tmp_path):
    blocks = [
        PretrainedBlock(donor, block, trainable=trainable)
        for block in (None, "events")
        for trainable in (False, True)
    ]
    models = [outer(block).fit(rows, target) for block in blocks]
    joblib.dump(models, tmp_path / "models.joblib")
    rows.to_pickle(tmp_path / "rows.pickle")
    script = (
        "import joblib, numpy, pandas; rows = pandas.read_pickle('rows.pickle');"
        "models = joblib.load('models.joblib');"
        "numpy.save('found.npy', [model.predict(rows) for model in models]);"
        "print({type(model.blocks[0][1].estimator).__name__ for model in models})"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "{'ModelSnapshot'}"
    expected = [model.predict(rows) for model in models]
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), expected)


def test_loaded_models_can_be_fitted_again(donor, outer, rows, target):
    model = outer(PretrainedBlock(donor, trainable=True)).fit(rows, target)
    loaded = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(
        clone(loaded).fit(rows, target).predict(rows), model.predict(rows)
    )
    np.testing.assert_array_equal(
        loaded.set_params(blocks__user__block="events").fit(rows, target).predict(rows),
        outer(PretrainedBlock(donor, "events", trainable=True)).fit(rows, target).predict(rows),
    )
    single = pickle.loads(pickle.dumps(PretrainedBlock(donor, "events")))
    with pytest.raises(ValueError, match=r"only the block 'events' of the .* was pickled"):
        single.set_params(block="note").fit(rows)


def test_training_goes_on_after_pickling(donor, outer, rows, target):
    model = outer(PretrainedBlock(donor, trainable=True), warm_start=True).fit(rows, target)
    loaded = pickle.loads(pickle.dumps(model))
    assert repr(loaded.blocks[0][1]) == repr(model.blocks[0][1])
    np.testing.assert_array_equal(
        loaded.fit(rows, target).predict(rows), model.fit(rows, target).predict(rows)
    )


def test_pickles_hold_what_is_needed_and_once(rows, target, outer):
    rng = np.random.default_rng(0)
    many = pd.DataFrame(
        {
            "secret": [f"secret {row}" for row in rng.permutation(4000)],
            "town": rng.choice(["Oslo", "Lima"], 4000),
        }
    )
    blocks = [
        ("secret", CategoryBlock(min_frequency=1, width=32), "secret"),
        ("town", CategoryBlock(width=4), "town"),
    ]
    donor = EasyTensorRegressor(blocks, **quick()).fit(many, rng.normal(size=4000))
    model = outer(PretrainedBlock(donor, "town"), ["town"]).fit(rows, target)
    text = pickle.dumps(model)
    assert b"secret" not in text
    assert b"EasyTensorRegressor" in text  # The model itself; the estimator is none of it:
    assert text.count(b"evals_result_") == pickle.dumps(
        EasyTensorRegressor(**quick()).fit(rows[["town"]], target)
    ).count(b"evals_result_")
    whole = PretrainedBlock(donor).fit(many)
    size = sum(weight.nbytes for weight in whole.part_.weights.values())
    both = len(pickle.dumps([clone(whole), whole]))
    assert size < len(pickle.dumps(whole)) < 1.5 * size
    assert both < len(pickle.dumps(whole)) + 2000
    assert b"torch" not in pickle.dumps(whole)


def test_two_towers_leave_their_catalogue_behind(towers, rows):
    block = PretrainedBlock(towers).fit(rows)
    assert b"item" not in pickle.dumps(block)
    loaded = pickle.loads(pickle.dumps(block))
    np.testing.assert_array_equal(loaded.transform(rows)["vectors"][:, 0], towers.transform(rows))


def test_copies_share_the_weights(donor, rows):
    block = PretrainedBlock(donor).fit(rows)
    assert deepcopy(block).part_ is block.part_
    assert PretrainedBlock(donor, trainable=True).fit(rows).part_ is block.part_


def test_repr_is_short(donor):
    expected = "PretrainedBlock(block='events', estimator=<fitted EasyTensorRegressor>)"
    assert repr(PretrainedBlock(donor, "events")) == expected


def test_numbers_alone(rows, target, outer):
    """A vector of a single number has something to say as well."""
    blocks = [("size", NumericBlock(embedding="none"), ["size"])]
    donor = EasyTensorRegressor(blocks, remainder="drop", **quick()).fit(rows, target)
    model = outer(PretrainedBlock(donor, "size"), ["size"], remainder="drop", max_epochs=60)
    assert model.fit(rows, rows["size"]).score(rows, rows["size"]) > 0.5


def test_vectors_are_brought_to_size_one_once(towers, rows):
    block = PretrainedBlock(towers, dropout=0.0).fit(rows)
    module = block.make_module()
    vectors = block.transform(rows)["vectors"]
    linear = module.projections[0]
    before = module.eval()(vectors)
    np.testing.assert_allclose(before.detach(), linear(vectors[:, 0]).detach(), atol=1e-6)
    # Their length is one, so that the mean square of their eight components is an eighth.
    module.train()(vectors)
    expected = linear(vectors[:, 0] * 8**0.5).detach()
    np.testing.assert_allclose(module(vectors).detach(), expected, atol=1e-5)
    module(vectors * 100)
    np.testing.assert_allclose(module.eval()(vectors).detach(), expected, atol=1e-5)
    other = block.make_module().eval()
    other.load_state_dict(module.state_dict())
    np.testing.assert_array_equal(other(vectors).detach(), module(vectors).detach())


def test_vectors_of_zeros_have_no_scale(towers, rows):
    module = PretrainedBlock(towers).fit(rows).make_module()
    assert torch.isfinite(module(torch.zeros(3, 1, 8))).all()
    assert module.norm.factor == 0
