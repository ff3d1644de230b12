"""Fits that are interrupted, gone on with, and end as if nothing had happened."""

import errno
import json
import multiprocessing
import os
import pickle
import resource
import signal
import time

import fsspec
import joblib
import killed_fits
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from skorch.callbacks import Callback, EpochScoring, LRScheduler

from sk_easytensor import (
    MLP,
    BoostedTrees,
    EasyTensorClassifier,
    EasyTensorEmbedder,
    EasyTensorRegressor,
    EasyTensorTwoTower,
    NumericBlock,
    StopTraining,
)
from sk_easytensor._utils.storage import DirectoryStore
from sk_easytensor.backends import LocalBackend
from sk_easytensor.blocks import category
from sk_easytensor.datasets import make_interactions
from sk_easytensor.training import net
from sk_easytensor.training.checkpoint import pack, read_state, seal, unframe, unseal

EPOCHS = 6


class PowerCut(Exception):
    """Ends a fit in the middle."""


class FragileStore(DirectoryStore):
    """A directory that no checkpoint after a number of epochs can be written to."""

    def __init__(self, url, epochs, error=PowerCut):
        super().__init__(url)
        self.last, self.error = f"epoch-{epochs:05}.pt", error

    def write(self, name, data):
        if name.startswith("epoch") and name > self.last:
            raise self.error
        super().write(name, data)


class FragileWithin(DirectoryStore):
    """A directory to which a checkpoint within an epoch can be written some times."""

    def __init__(self, url, times):
        super().__init__(url)
        self.times = times

    def write(self, name, data):
        if name.endswith("-within.pt"):
            if self.times == 0:
                raise PowerCut
            self.times -= 1
        super().write(name, data)


class OneFit(DirectoryStore):
    """A directory for one fit only, as the artifacts of a run are."""

    def inside(self, name):
        return self


class FragileOneFit(FragileStore, OneFit):
    """Both."""


class Count(Callback):
    """Counts the epochs that are trained."""

    def __init__(self, epochs):
        self.epochs = epochs

    def on_epoch_end(self, net, **kwargs):
        self.epochs.append(len(net.history))


def classifier(where=None, **params):
    """Make a classifier that trains for a moment, several batches an epoch."""
    quick = {"batch_size": 64, "max_epochs": EPOCHS, "n_folds": None, "random_state": 0}
    return EasyTensorClassifier(checkpoint_dir=where, **{**quick, **params})


def interrupt(model, X, y=None, *, epochs, **fit_params):
    """Fit until the checkpoint after some epochs is written."""
    where = model.checkpoint_dir
    kind = FragileOneFit if isinstance(where, OneFit) else FragileStore
    store = kind(getattr(where, "url", where), epochs)
    with pytest.raises(PowerCut):
        model.set_params(checkpoint_dir=store).fit(X, y, **fit_params)


def files_in(directory):
    """Return the content of all files, by path."""
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def unpack(data):
    return read_state(unframe(data)[1])


def same(model, expected):
    """Assert that two networks and what is told of their training are equal, bit for bit."""
    for ours, theirs in zip(networks(model), networks(expected), strict=True):
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], tensor), name
    assert model.evals_result_ == expected.evals_result_
    assert model.best_iteration_ == expected.best_iteration_
    assert model.n_iter_ == expected.n_iter_


def networks(model):
    if hasattr(model, "user_tower_"):
        return [model.user_tower_.network_, model.item_tower_.network_]
    return [model.network_]


def fit_in(directory):
    """Return the directory of the one fit that has checkpoints in a directory."""
    (found,) = directory.glob("fit-*")
    return found


def epochs_in(directory):
    return sorted(int(path.stem[6:]) for path in directory.glob("fit-*/epoch-*.pt"))


# ---------------------------------------------------------------------- going on


@pytest.mark.parametrize("epochs", [1, 3, EPOCHS - 1])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"validation_fraction": None},
        {"early_stopping_rounds": 1, "max_epochs": 30},
        {"optimizer": "sgd", "learning_rate": 0.1},
        {"callbacks": [LRScheduler("StepLR", step_size=2, gamma=0.3)]},
    ],
    ids=["default", "no validation", "early stopping", "sgd", "scheduler"],
)
def test_a_classifier_goes_on(epochs, params, labelled, tmp_path):
    expected = classifier(**params).fit(*labelled)
    interrupt(classifier(tmp_path, **params), *labelled, epochs=min(epochs, expected.n_iter_ - 1))
    same(classifier(tmp_path, **params).fit(*labelled), expected)


def test_a_regressor_goes_on(mixed, tmp_path):
    params = {"batch_size": 64, "max_epochs": EPOCHS, "n_folds": None, "random_state": 0}
    expected = EasyTensorRegressor(**params).fit(*mixed)
    interrupt(EasyTensorRegressor(checkpoint_dir=tmp_path, **params), *mixed, epochs=2)
    found = EasyTensorRegressor(checkpoint_dir=tmp_path, **params).fit(*mixed)
    same(found, expected)
    np.testing.assert_array_equal(found.predict(mixed[0]), expected.predict(mixed[0]))


@pytest.mark.parametrize("n_negatives", [0, 7, "all"])
def test_two_towers_go_on(n_negatives, tmp_path):
    data = make_interactions(800, n_users=30, n_items=20, random_state=0)
    params = {"embedding_dim": 4, "max_epochs": 4, "random_state": 0, "n_negatives": n_negatives}
    keys = {"items": data.catalogue, "item_key": "item_id"}
    expected = EasyTensorTwoTower(**params).fit(data.interactions, **keys)
    model = EasyTensorTwoTower(checkpoint_dir=tmp_path, **params)
    interrupt(model, data.interactions, epochs=2, **keys)
    found = EasyTensorTwoTower(checkpoint_dir=tmp_path, **params).fit(data.interactions, **keys)
    same(found, expected)
    np.testing.assert_array_equal(found.item_embeddings_, expected.item_embeddings_)


@pytest.mark.parametrize(
    "objective",
    [
        {"objective": "contrastive"},
        {"objective": "session_pair", "session": "session"},
        {"objective": "session_pair", "session": "session", "session_sampling": "latest"},
        {"objective": "session_pair", "session": "session", "session_loss": "log_loss"},
    ],
    ids=["contrastive", "session_pair", "latest", "log_loss"],
)
def test_an_embedder_goes_on(objective, tmp_path):
    random = np.random.default_rng(0)
    X = {
        "what": [list(random.choice(["a", "b", "c"], 6)) for _ in range(60)],
        "session": [[0, 0, 1, 1, 2, 2]] * 60,
    }
    params = {**objective, "embedding_dim": 4, "max_epochs": 4, "random_state": 0}
    # Several batches, whose order the checkpoint has to restore.
    params["batch_size"] = 16
    expected = EasyTensorEmbedder(**params).fit(X)
    interrupt(EasyTensorEmbedder(checkpoint_dir=tmp_path, **params), X, epochs=2)
    found = EasyTensorEmbedder(checkpoint_dir=tmp_path, **params).fit(X)
    same(found, expected)
    np.testing.assert_array_equal(found.transform(X), expected.transform(X))


@pytest.fixture
def often(monkeypatch):
    """Checkpoints within epochs every 16 steps; the steps are counted."""
    monkeypatch.setattr(net, "CHECKPOINT_SECONDS", 0.0)
    steps, train_step = [], net.TensorNet.train_step

    def counted(self, batch, **kwargs):
        steps.append(len(batch))
        return train_step(self, batch, **kwargs)

    monkeypatch.setattr(net.TensorNet, "train_step", counted)
    return steps


def cases_within_epochs():
    random = np.random.default_rng(0)
    n = 600
    X = pd.DataFrame(
        {
            "number": random.normal(size=n),
            "key": random.integers(0, 300, n).astype(str),
            "list": [
                list(random.choice(["a", "b", "c"], size)) for size in random.integers(1, 40, n)
            ],
        }
    )
    y = (X["number"] + random.normal(size=n) > 0).astype(int)
    quick = {"batch_size": 8, "max_epochs": 3, "n_folds": None, "random_state": 0, "linear": None}
    shop = make_interactions(800, n_users=30, n_items=20, random_state=0)
    towers = {"embedding_dim": 4, "max_epochs": 2, "random_state": 0, "batch_size": 16}
    keys = {"items": shop.catalogue, "item_key": "item_id"}
    return {
        "table": (EasyTensorClassifier(trees=BoostedTrees(max_iter=5), **quick), (X, y), {}),
        "regression": (EasyTensorRegressor(trees=None, **quick), (X, X["number"]), {}),
        "dropout": (EasyTensorClassifier(trunk=MLP(width=8), trees=None, **quick), (X, y), {}),
        "towers": (EasyTensorTwoTower(n_negatives=7, **towers), (shop.interactions,), keys),
        "embedder": (
            EasyTensorEmbedder(embedding_dim=4, max_epochs=2, batch_size=8, random_state=0),
            (X[["list"]],),
            {},
        ),
    }


@pytest.mark.parametrize("case", ["table", "regression", "dropout", "towers", "embedder"])
@pytest.mark.parametrize("times", [1, 3])
def test_a_fit_goes_on_within_an_epoch(case, times, often, tmp_path, monkeypatch):
    # Large tables are updated by row, whose weight decay may be pending.
    monkeypatch.setattr(category, "MAX_SCALED_ROWS", 100)
    monkeypatch.setattr(category, "LARGE_TABLE", 1)
    model, data, params = cases_within_epochs()[case]
    expected = clone(model).fit(*data, **params)
    n_steps = len(often)
    interrupted = clone(model).set_params(checkpoint_dir=FragileWithin(tmp_path, times))
    with pytest.raises(PowerCut):
        interrupted.fit(*data, **params)
    found = clone(model).set_params(checkpoint_dir=tmp_path).fit(*data, **params)
    same(found, expected)
    # Of the steps since the last checkpoint, 16 are repeated.
    assert len(often) == 2 * n_steps + 16
    # A complete epoch replaces those within it.
    assert not list(tmp_path.glob("fit-*/*-within.pt"))


class Draw(Callback):
    """Draws numbers where an epoch begins."""

    def on_epoch_begin(self, net, **kwargs):
        torch.rand(3)


class Rate(Callback):
    """Lowers the learning rate of the second epoch, by a list that is part of its state."""

    def __init__(self):
        self.epochs_ = []

    def on_epoch_begin(self, net, **kwargs):
        self.epochs_.append(len(net.history))

    def on_batch_begin(self, net, training=False, **kwargs):
        for group in net.optimizer_.param_groups:
            group["lr"] = 1e-2 / len(self.epochs_)


class Stop(Callback):
    """Ends the training in the first epoch, before its first checkpoint."""

    def on_batch_end(self, net, training=False, **kwargs):
        self.steps_ = getattr(self, "steps_", 0) + bool(training)
        if self.steps_ == 11:
            raise StopTraining


@pytest.mark.parametrize(
    "callback",
    [Draw(), Rate(), Stop(), EpochScoring("accuracy", lower_is_better=False, on_train=True)],
    ids=["draw", "rate", "stop", "scoring"],
)
def test_callbacks_go_on_within_an_epoch(callback, often, tmp_path):
    model, data, _ = cases_within_epochs()["table"]
    model.set_params(callbacks=[callback])
    expected = clone(model).fit(*data)
    with pytest.raises(PowerCut):
        clone(model).set_params(checkpoint_dir=FragileWithin(tmp_path, 1)).fit(*data)
    found = clone(model).set_params(checkpoint_dir=tmp_path).fit(*data)
    same(found, expected)


def test_a_damaged_checkpoint_within_an_epoch_is_passed_over(often, tmp_path):
    model, data, _ = cases_within_epochs()["table"]
    expected = clone(model).fit(*data)
    with pytest.raises(PowerCut):
        clone(model).set_params(checkpoint_dir=FragileWithin(tmp_path, 4)).fit(*data)
    (part,) = tmp_path.glob("fit-*/*-within.pt")
    part.write_bytes(part.read_bytes()[:-10])
    with pytest.warns(UserWarning, match=rf"{part.name} in .* cannot be read .* the one before"):
        found = clone(model).set_params(checkpoint_dir=tmp_path).fit(*data)
    same(found, expected)


def test_short_epochs_have_no_checkpoints_within(tmp_path):
    model, data, _ = cases_within_epochs()["table"]
    clone(model).set_params(checkpoint_dir=FragileWithin(tmp_path, 0)).fit(*data)


def test_a_fit_is_interrupted_again_and_again(labelled, tmp_path):
    expected = classifier().fit(*labelled)
    for epochs in range(1, EPOCHS):
        interrupt(classifier(tmp_path), *labelled, epochs=epochs)
        assert max(epochs_in(tmp_path)) == epochs
    same(classifier(tmp_path).fit(*labelled), expected)


def test_checkpoints_change_nothing_that_is_learned(labelled, tmp_path):
    same(classifier(tmp_path).fit(*labelled), classifier().fit(*labelled))


@pytest.mark.parametrize("params", [{}, {"early_stopping_rounds": 1, "max_epochs": 30}])
def test_a_complete_fit_is_not_repeated(params, labelled, tmp_path):
    first = classifier(tmp_path, callbacks=[Count(trained := [])], **params).fit(*labelled)
    assert len(trained) == first.n_iter_
    trained.clear()
    same(classifier(tmp_path, callbacks=[Count(trained)], **params).fit(*labelled), first)
    assert trained == []


def test_only_the_epochs_that_are_left_are_trained(labelled, tmp_path):
    interrupt(classifier(tmp_path, callbacks=[Count([])]), *labelled, epochs=4)
    classifier(tmp_path, callbacks=[Count(trained := [])]).fit(*labelled)
    assert trained == [5, 6]


def test_without_a_random_state_the_split_stays(labelled, tmp_path):
    interrupt(classifier(tmp_path, random_state=None), *labelled, epochs=2)
    seed = json.loads((fit_in(tmp_path) / "fit.json").read_bytes())["seed"]
    found = classifier(tmp_path, random_state=None).fit(*labelled)
    same(found, classifier(random_state=seed).fit(*labelled))


def test_a_warm_start_has_checkpoints_of_its_own(labelled, tmp_path):
    expected, model = (classifier(warm_start=True).fit(*labelled) for _ in range(2))
    expected.fit(*labelled)
    broken = joblib.load(dump(model, tmp_path / "model"))
    interrupt(broken.set_params(checkpoint_dir=tmp_path / "fit"), *labelled, epochs=2)
    same(model.set_params(checkpoint_dir=tmp_path / "fit").fit(*labelled), expected)


def dump(model, path):
    joblib.dump(model, path)
    return path


def test_partial_fit_writes_no_checkpoint(labelled, tmp_path):
    classifier(tmp_path / "fit").partial_fit(*labelled)
    assert not (tmp_path / "fit").exists()


def test_any_file_system(labelled):
    where = "memory://fits/7"
    expected = classifier().fit(*labelled)
    interrupt(classifier(where), *labelled, epochs=3)
    found = classifier(where).fit(*labelled)
    same(found, expected)
    files = fsspec.filesystem("memory")
    names = {path.rsplit("/")[-1] for path in files.find("/fits/7")}
    assert names >= {"fit.json"}
    assert "fit.lock" not in names
    # An estimator holds the URL and no open file system; a saved model holds neither.
    assert pickle.loads(pickle.dumps(classifier(where))).checkpoint_dir == where
    assert pickle.loads(pickle.dumps(found)).checkpoint_dir is None


def test_a_killed_process_goes_on(tmp_path):
    """Wherever it is killed, in the middle of a step or of writing a checkpoint."""
    # Processes that begin with all imported, which takes seconds.
    context = multiprocessing.get_context("fork")
    where = tmp_path / "fit"
    parts, expected = tmp_path / "parts.npz", tmp_path / "whole.npz"

    def start():
        process = context.Process(target=killed_fits.fit, args=(where, parts))
        process.start()
        return process

    random, killed = np.random.default_rng(), []
    for _ in range(3):
        process = start()
        first = max(epochs_in(where), default=0) if where.exists() else 0
        while process.is_alive() and (
            not where.exists() or max(epochs_in(where), default=0) <= first + random.integers(1, 8)
        ):
            time.sleep(0.002)
        time.sleep(random.random() * 0.03)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        killed.append(max(epochs_in(where)))
    assert killed == sorted(set(killed))
    assert killed[-1] < 30
    process = start()
    process.join()
    assert process.exitcode == 0
    killed_fits.fit(None, expected)
    found, wanted = np.load(parts), np.load(expected)
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted.files)


# ---------------------------------------------------------------------- what is kept


def test_the_newest_two_and_the_best_are_kept(tmp_path):
    random = np.random.default_rng(0)
    X, y = random.normal(size=(80, 3)), random.integers(0, 2, 80)
    model = classifier(tmp_path, max_epochs=12, learning_rate=0.1).fit(X, y)
    assert model.best_iteration_ < model.n_iter_ - 1
    assert epochs_in(tmp_path) == [model.best_iteration_, model.n_iter_ - 1, model.n_iter_]
    assert sorted(os.listdir(fit_in(tmp_path)))[-1] == "fit.json"


def test_what_a_killed_writer_left_is_removed(labelled, tmp_path):
    interrupt(classifier(tmp_path), *labelled, epochs=2)
    where = fit_in(tmp_path)
    (where / f".epoch-00003.pt.{'0123' * 8}").write_bytes(b"half")
    classifier(tmp_path).fit(*labelled)
    assert not [name for name in os.listdir(where) if name.startswith(".")]


def truncated(data):
    return data[: len(data) // 2]


def flipped(data):
    place = len(data) // 2
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def of_something_else(data):
    return b"".join(pack({"model": CODE}, unframe(data)[0]))


class Code:
    """What a pickle could run when it is loaded."""

    def __reduce__(self):
        return os.putenv, ("RAN", "1")


CODE = Code()


@pytest.mark.parametrize("change", [truncated, flipped, of_something_else, lambda data: b""])
def test_a_damaged_checkpoint_is_passed_over(change, labelled, tmp_path):
    interrupt(classifier(tmp_path), *labelled, epochs=4)
    file = fit_in(tmp_path) / "epoch-00004.pt"
    file.write_bytes(change(file.read_bytes()))
    model = classifier(tmp_path, callbacks=None)
    with pytest.warns(
        UserWarning, match="epoch-00004.pt in .* cannot be read .* from the one before"
    ):
        model.fit(*labelled)
    same(model, classifier().fit(*labelled))
    assert "RAN" not in os.environ


def test_all_damaged(labelled, tmp_path):
    interrupt(classifier(tmp_path), *labelled, epochs=2)
    for epoch in (1, 2):
        (fit_in(tmp_path) / f"epoch-{epoch:05}.pt").write_bytes(b"?")
    with pytest.warns(UserWarning, match="cannot be read"):
        model = classifier(tmp_path).fit(*labelled)
    same(model, classifier().fit(*labelled))


def test_states_are_read_without_pickle(tmp_path):
    state = {"weights": torch.arange(3.0), "epochs": [1, None, 0.5], "name": "x"}
    assert unpack(b"".join(pack(state, {})))["epochs"] == [1, None, 0.5]
    with pytest.raises(ValueError, match="more than tensors, numbers and strings"):
        unpack(b"".join(pack({"model": CODE}, {})))


# ---------------------------------------------------------------------- encoders


class Passes:
    """Counts the passes over the data that fit encoders."""

    def __init__(self, monkeypatch):
        self.tables = []
        summarize = LocalBackend.summarize
        monkeypatch.setattr(
            LocalBackend, "summarize", lambda *args: self.tables.append(1) or summarize(*args)
        )


def test_encoders_are_fitted_once(labelled, tmp_path, monkeypatch):
    expected = classifier().fit(*labelled)
    passes = Passes(monkeypatch)
    interrupt(classifier(tmp_path), *labelled, epochs=2)
    assert len(passes.tables) == 1
    found = classifier(tmp_path).fit(*labelled)
    assert len(passes.tables) == 1
    same(found, expected)
    np.testing.assert_array_equal(
        found.predict_proba(labelled[0]), expected.predict_proba(labelled[0])
    )


def test_an_encoder_with_code_of_ones_own_is_fitted_again(labelled, tmp_path, monkeypatch):
    blocks = [("numbers", NumericBlock(), lambda X: ["amount", "count"])]
    expected = classifier(blocks=blocks).fit(*labelled)
    interrupt(classifier(tmp_path, blocks=blocks), *labelled, epochs=2)
    passes = Passes(monkeypatch)
    same(classifier(tmp_path, blocks=blocks).fit(*labelled), expected)
    assert len(passes.tables) == 1


@pytest.mark.parametrize("params", [{}, {"learning_rate": 0.02}])
def test_a_fit_that_was_killed_before_its_first_epoch_may_change(params, labelled, tmp_path):
    """Nothing is lost by it."""
    interrupt(classifier(OneFit(tmp_path)), *labelled, epochs=0)
    assert sorted(os.listdir(tmp_path)) == ["encoder.skops", "fit.json"]
    (tmp_path / "data.csv").write_text("a,b")
    X, y = labelled[0].assign(amount=labelled[0]["amount"] * 100), labelled[1]
    expected = classifier(**params).fit(X, y)
    found = classifier(OneFit(tmp_path), **params).fit(X, y)
    assert (tmp_path / "data.csv").read_text() == "a,b"
    same(found, expected)
    np.testing.assert_array_equal(found.predict_proba(X), expected.predict_proba(X))


# ---------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"learning_rate": 0.02}, "other parameters: learning_rate was 0.024 and is 0.02"),
        ({"random_state": 1}, "random_state was 0 and is 1"),
        ({"trunk__dropout": 0.5}, "trunk__dropout was"),
        ({"callbacks": [Count([])]}, r"callbacks was None and is \[Count\]"),
    ],
)
def test_other_parameters_are_refused(params, message, labelled, tmp_path):
    interrupt(classifier(OneFit(tmp_path)), *labelled, epochs=2)
    before = files_in(tmp_path)
    with pytest.raises(ValueError, match=message):
        classifier(OneFit(tmp_path)).set_params(**params).fit(*labelled)
    assert before == files_in(tmp_path)


def test_parameters_without_influence_may_change(labelled, tmp_path):
    interrupt(classifier(tmp_path), *labelled, epochs=2)
    same(classifier(tmp_path, n_jobs=1).fit(*labelled), classifier().fit(*labelled))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, y: (X[:100], y[:100]), "training rows was 102 rows of .* and is 85 rows"),
        (lambda X, y: (X.assign(amount=X["amount"].abs()), y), "training rows was"),
        (lambda X, y: (X, y[::-1]), "training targets was"),
    ],
)
def test_other_data_are_refused(change, message, labelled, tmp_path):
    interrupt(classifier(OneFit(tmp_path)), *labelled, epochs=2)
    before = files_in(tmp_path)
    with pytest.raises(ValueError, match=f"other data: .*{message}"):
        classifier(OneFit(tmp_path)).fit(*change(*labelled))
    assert before == files_in(tmp_path)


def test_other_weights_and_evaluation_sets_are_refused(labelled, tmp_path):
    X, y = labelled
    interrupt(classifier(OneFit(tmp_path)), X, y, epochs=2)
    weight = np.linspace(1, 2, len(y))
    with pytest.raises(ValueError, match="training weights was"):
        classifier(OneFit(tmp_path)).fit(X, y, sample_weight=weight)
    with pytest.raises(ValueError, match="validation 0 rows was"):
        classifier(OneFit(tmp_path)).fit(X, y, eval_set=[(X[:60], y[:60])])


def test_another_estimator_is_refused(mixed, labelled, tmp_path):
    interrupt(classifier(OneFit(tmp_path)), *labelled, epochs=1)
    with pytest.raises(ValueError, match="holds checkpoints of EasyTensorClassifier"):
        EasyTensorRegressor(n_folds=None, checkpoint_dir=OneFit(tmp_path)).fit(*mixed)


def test_a_newer_format_is_refused(labelled, tmp_path):
    interrupt(classifier(tmp_path), *labelled, epochs=1)
    file = fit_in(tmp_path) / "fit.json"
    file.write_bytes(seal({**unseal(file.read_bytes()), "format": 99}))
    with pytest.raises(ValueError, match="checkpoints of format 99; this version reads format 3"):
        classifier(tmp_path).fit(*labelled)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (7, "checkpoint_dir must be a path, a URL .*, got 7"),
        ("", "checkpoint_dir must be a path"),
        ("carrier-pigeon://x", "'carrier-pigeon://x' cannot be used: Protocol not known"),
    ],
)
def test_places_that_are_none(where, message, labelled):
    with pytest.raises(ValueError, match=message):
        classifier(where).fit(*labelled)


# ---------------------------------------------------------------------- failing to write


class LimitFiles(Callback):
    """After some epochs, lets no file of the process grow beyond a kilobyte."""

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))


def test_a_full_disk(labelled, tmp_path):
    """The error says what is kept, which is complete."""
    params = {"callbacks": [LimitFiles()]}
    try:
        with pytest.raises(OSError, match=r"epoch-00004.pt cannot .*; that of epoch 3 is complete"):
            classifier(tmp_path, **params).fit(*labelled)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert epochs_in(tmp_path)[-1] == 3
    where = fit_in(tmp_path)
    assert unpack((where / "epoch-00003.pt").read_bytes())["ended"] is False
    assert not [name for name in os.listdir(where) if name.startswith(".") or "lock" in name]


def test_a_directory_that_turned_read_only(labelled, tmp_path):
    error = OSError(errno.EROFS, "Read-only file system")
    model = classifier(FragileStore(tmp_path, 2, error))
    with pytest.raises(OSError, match=r"\(Read-only file system\); that of epoch 2 is complete"):
        model.fit(*labelled)
    same(classifier(tmp_path).fit(*labelled), classifier().fit(*labelled))
