"""Weights, early stopping, histories, callbacks and going on."""

import pickle
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import make_column_selector
from sklearn.metrics import log_loss
from skorch.callbacks import Callback, Checkpoint, EarlyStopping, EpochScoring, LRScheduler

from sk_easytensor import (
    MLP,
    CategoryBlock,
    EasyTensorRegressor,
    NumericBlock,
    StopTraining,
    TabM,
)
from sk_easytensor.backends import LocalBackend
from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training import dataset

HALF = 2e-3
"""Relative error of a loss that was judged in half precision, as training is where it is fast."""


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 3))
    return X, X[:, 0] + 0.3 * rng.normal(size=80)


@pytest.fixture
def fresh():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(50, 3))
    return X, X[:, 0] + 0.3 * rng.normal(size=50)


# ---------------------------------------------------------------------- weights


@pytest.fixture
def one_batch(regressor):
    """A function that makes regressors that see all rows in every step."""
    return lambda **params: regressor(batch_size=1000, max_epochs=10, **params)


@pytest.mark.parametrize("validation_fraction", [None, 0.2])
def test_weight_two_equals_a_duplicated_row(validation_fraction, one_batch, data):
    X, y = (part[:40] for part in data)  # So few that every value is an edge of a bin.
    twice = np.arange(0, 40, 3)
    weight = np.ones(40)
    weight[twice] = 2
    # Leaving out one of two equal rows is not leaving out a row of weight two.
    params = {"validation_fraction": validation_fraction, "linear": None}
    weighted = one_batch(**params).fit(X, y, sample_weight=weight)
    order = np.random.default_rng(2).permutation(np.r_[np.arange(40), twice])
    doubled = one_batch(**params).fit(X[order], y[order])
    np.testing.assert_allclose(weighted.predict(X), doubled.predict(X), rtol=1e-4, atol=1e-5)


def test_weight_zero_equals_an_absent_row(regressor, data):
    X, y = data
    weight = (np.arange(80) % 3 > 0).astype(float)
    y_spoilt = np.where(weight > 0, y, 1e6)
    weighted = regressor().fit(X, y_spoilt, sample_weight=weight)
    absent = regressor().fit(X[weight > 0], y[weight > 0])
    np.testing.assert_array_equal(weighted.predict(X), absent.predict(X))


def test_weights_are_relative(regressor, data):
    X, y = data
    weight = np.linspace(1, 5, 80)
    model = regressor().fit(X, y, sample_weight=weight)
    scaled = regressor().fit(X, y, sample_weight=1000 * weight)
    np.testing.assert_allclose(scaled.predict(X), model.predict(X), rtol=1e-4, atol=1e-6)


def test_weights_pull_predictions(regressor, data):
    X, _ = data
    y = np.tile([0.0, 1.0], 40)
    weight = np.where(y > 0, 9.0, 1.0)
    model = regressor(max_epochs=15, learning_rate=0.01).fit(X, y, sample_weight=weight)
    assert model.predict(X).mean() == pytest.approx(0.9, abs=0.1)


def test_weights_enter_the_loss(regressor, data, fresh):
    """The validation loss is the weighted mean over its rows."""
    X, y = fresh
    weight = np.linspace(0, 3, 50)
    model = regressor().fit(*data, eval_set=[fresh], eval_sample_weight=[weight])
    expected = np.average((model.predict(X) - y) ** 2, weights=weight)
    assert model.best_score_ == pytest.approx(expected, rel=HALF)


# ---------------------------------------------------------------------- early stopping


def loss_of(model, X, y):
    return np.mean((model.predict(X) - y) ** 2)


@pytest.mark.parametrize("trunk", [MLP(width=16), TabM(members=2, width=16)])
def test_early_stopping_restores_the_best_weights(trunk, regressor, data, fresh):
    X, y = data
    noise = np.random.default_rng(3).permutation(y)
    model = regressor(trunk=trunk, max_epochs=40, learning_rate=0.03, early_stopping_rounds=5)
    model.fit(X, noise, eval_set=[fresh])
    curve = model.evals_result_["valid_0"]["squared_error"]
    assert model.n_iter_ == len(curve) == model.best_iteration_ + 5 < 40
    assert model.best_score_ == min(curve) == curve[model.best_iteration_ - 1]
    assert loss_of(model, *fresh) == pytest.approx(model.best_score_, rel=HALF)
    assert loss_of(model, *fresh) < curve[-1]


def test_callbacks_see_the_last_epoch_before_an_early_stop(regressor, data, recorder, capsys):
    noise = np.random.default_rng(3).permutation(data[1])
    params = {"max_epochs": 40, "learning_rate": 0.03, "early_stopping_rounds": 2}
    model = regressor(callbacks=[recorder], verbose=1, **params).fit(data[0], noise)
    assert recorder.epochs == model.n_iter_ < 40
    assert len(capsys.readouterr().out.splitlines()) == 2 + model.n_iter_


def test_best_weights_are_restored_without_early_stopping(regressor, data, fresh):
    noise = np.random.default_rng(3).permutation(data[1])
    model = regressor(max_epochs=25, learning_rate=0.1, early_stopping_rounds=None)
    model.fit(data[0], noise, eval_set=[fresh])
    assert model.n_iter_ == 25
    assert model.best_iteration_ < 25
    assert loss_of(model, *fresh) == pytest.approx(model.best_score_, rel=HALF)


def test_best_score_of_a_classifier_is_the_log_loss(classifier, labelled):
    frame, y = labelled
    model = classifier(trunk=TabM(members=3, width=16), max_epochs=5)
    model.fit(frame[:80], y[:80], eval_set=[(frame[80:], y[80:])])
    expected = log_loss(y[80:], model.predict_proba(frame[80:]))
    assert model.best_score_ == pytest.approx(expected, rel=HALF)


def test_without_validation_the_last_weights_are_kept(regressor, data):
    model = regressor(validation_fraction=None).fit(*data)
    assert list(model.evals_result_) == ["training"]
    assert model.best_iteration_ == model.n_iter_ == 3
    assert model.best_score_ == model.evals_result_["training"]["squared_error"][-1]


def test_several_evaluation_sets(regressor, data, fresh):
    pairs = [fresh, data, (fresh[0][:1], fresh[1][:1])]
    weights = [None, np.linspace(1, 2, 80), None]
    model = regressor(linear=None).fit(*data, eval_set=pairs, eval_sample_weight=weights)
    assert list(model.evals_result_) == ["training", "valid_0", "valid_2"]
    for curves in model.evals_result_.values():
        assert list(curves) == ["squared_error"]
        assert len(curves["squared_error"]) == model.n_iter_
        assert all(isinstance(value, float) for value in curves["squared_error"])
    assert model.best_score_ == min(model.evals_result_["valid_2"]["squared_error"])
    alone = regressor(linear=None).fit(*data, eval_set=[fresh])
    assert alone.evals_result_["valid_0"] == model.evals_result_["valid_0"]


def test_an_evaluation_set_keeps_all_rows_for_training(regressor, data, fresh):
    seen = []

    class Rows(Callback):
        def on_train_begin(self, net, X, **kwargs):
            seen.append(len(X))

    regressor(callbacks=[Rows()]).fit(*data, eval_set=[fresh])
    regressor(callbacks=[Rows()]).fit(*data, eval_set=fresh)
    regressor(callbacks=[Rows()], validation_fraction=0.25).fit(*data)
    regressor(callbacks=[Rows()], validation_fraction=None).fit(*data)
    assert seen == [80, 80, 60, 80]


@pytest.mark.parametrize("empty", [[], ()])
def test_no_evaluation_pair_is_no_evaluation_set(empty, regressor, data):
    expected = regressor().fit(*data)
    for weight in (None, []):
        model = regressor().fit(*data, eval_set=empty, eval_sample_weight=weight)
        assert model.evals_result_ == expected.evals_result_
    model = regressor(validation_fraction=None).fit(*data, eval_set=empty)
    assert list(model.evals_result_) == ["training"]


def test_a_single_pair_may_stand_alone(regressor, data, fresh):
    weight = np.linspace(0, 3, 50)
    expected = regressor().fit(*data, eval_set=[fresh], eval_sample_weight=[weight])
    for alone in (weight, list(weight), pd.Series(weight), [weight], (weight,)):
        model = regressor().fit(*data, eval_set=fresh, eval_sample_weight=alone)
        assert model.evals_result_ == expected.evals_result_
    expected = regressor().fit(*data, eval_set=[fresh]).evals_result_
    for alone in (None, [None]):
        model = regressor().fit(*data, eval_set=fresh, eval_sample_weight=alone)
        assert model.evals_result_ == expected


def test_validation_part_is_stratified(classifier, data):
    X, _ = data
    y = np.repeat([0, 1], [60, 20])
    shares = []

    class Share(Callback):
        def on_epoch_end(self, net, dataset_valid, **kwargs):
            shares.append(float(dataset_valid.target.mean()))

    classifier(callbacks=[Share()], validation_fraction=0.2, max_epochs=1).fit(X, y)
    assert shares == [0.25]


# ---------------------------------------------------------------------- the loop


def test_callbacks_are_called(regressor, data, recorder):
    model = regressor(callbacks=[recorder], max_epochs=4, batch_size=20).fit(*data)
    assert recorder.epochs == model.n_iter_ == 4
    assert len(recorder.rates) >= 4 * 68 // 20


def test_callbacks_may_be_named_and_monitor_losses(regressor, data):
    losses = []

    class Monitor(Callback):
        def on_epoch_end(self, net, **kwargs):
            losses.append((net.history[-1, "train_loss"], net.history[-1, "valid_loss"]))

    model = regressor(callbacks=[("monitor", Monitor())], linear=None).fit(*data)
    training, valid = zip(*losses, strict=True)
    units = model._target.scale_[0] ** 2
    for losses, name in ((training, "training"), (valid, "valid_0")):
        assert model.evals_result_[name]["squared_error"] == pytest.approx(units * np.array(losses))


@pytest.mark.parametrize("stop", [StopTraining, KeyboardInterrupt])
def test_a_callback_may_stop_training(stop, regressor, data):
    class Stop(Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 2:
                raise stop

    assert regressor(callbacks=[Stop()], max_epochs=9).fit(*data).n_iter_ == 2


def test_an_error_in_a_callback_is_raised(regressor, data):
    class Broken(Callback):
        def on_epoch_end(self, net, **kwargs):
            raise RuntimeError("broken callback")

    with pytest.raises(RuntimeError, match="broken callback"):
        regressor(callbacks=[Broken()]).fit(*data)


def test_learning_rate_is_scheduled(regressor, data, recorder):
    regressor(callbacks=[recorder], max_epochs=10, learning_rate=0.01).fit(*data)
    rates = np.array(recorder.rates)
    assert rates.max() == pytest.approx(0.01)
    assert rates[-1] < 0.2 * rates.max()


class SlowBlock(NumericBlock):
    """A block whose module learns at a hundredth of the rate."""

    def make_module(self):
        module = super().make_module()
        module.learning_rate_scale = 0.01
        return module


class Rates(Callback):
    """Notes the rate of every group of parameters in every step, and what is in the groups."""

    def __init__(self):
        self.seen = []
        self.sizes = []

    def on_batch_begin(self, net, training=None, **kwargs):
        if training:
            self.seen.append([group["lr"] for group in net.optimizer_.param_groups])

    def on_train_begin(self, net, **kwargs):
        self.sizes = [len(group["params"]) for group in net.optimizer_.param_groups]


@pytest.mark.parametrize("copied", [False, True])
def test_modules_may_learn_at_rates_of_their_own(copied, regressor, mixed):
    rates = Rates()
    names = ["amount", "count"]
    blocks = [("slow", SlowBlock(), names), ("c", CategoryBlock(), "city")]
    model = regressor(blocks, learning_rate=0.01, warm_start=True, max_epochs=8)
    model.set_params(callbacks=[rates], remainder="drop", validation_fraction=None)
    for rate in (0.01, 0.003):
        rates.seen.clear()
        model.set_params(learning_rate=rate).fit(*mixed)
        slow, other = np.transpose(rates.seen)
        assert other.max() == pytest.approx(rate)
        assert len(set(other)) > 2
        np.testing.assert_allclose(slow, 0.01 * other)
        slow_module = model.network_.blocks[0]
        n_slow = len(list(slow_module.parameters()))
        assert rates.sizes == [n_slow, len(list(model.network_.parameters())) - n_slow]
        if copied:
            model = pickle.loads(pickle.dumps(model.set_params(callbacks=None)))
            model.set_params(callbacks=[rates])


def test_a_slow_module_hardly_changes(regressor, mixed):
    steps = {}
    for block in (NumericBlock(), SlowBlock()):
        blocks = [("n", block, ["amount", "count"]), ("c", CategoryBlock(), "city")]
        params = {"learning_rate": 1e-9, "max_epochs": 1, "remainder": "drop", "warm_start": True}
        model = regressor(blocks, **params).fit(*mixed)
        before = [p.detach().clone() for p in model.network_.blocks[0].parameters()]
        params = {"learning_rate": 0.01, "max_epochs": 5, "validation_fraction": None}
        model.set_params(**params).fit(*mixed)
        after = model.network_.blocks[0].parameters()
        pairs = zip(before, after, strict=True)
        steps[type(block)] = max(float((a.detach() - b).abs().max()) for b, a in pairs)
    assert 0 < steps[SlowBlock] < 0.1 * steps[NumericBlock]


def test_a_skorch_scheduler_replaces_the_schedule(regressor, data, recorder):
    schedule = LRScheduler(policy="StepLR", step_size=1, gamma=0.5)
    for entry in (schedule, ("schedule", schedule)):
        recorder.rates.clear()
        regressor(callbacks=[entry, recorder], batch_size=1000, learning_rate=0.08).fit(*data)
        assert recorder.rates == pytest.approx([0.08, 0.04, 0.02])
    assert regressor(callbacks=[LRScheduler]).fit(*data).n_iter_ == 3


def test_checkpoints_follow_the_best_epoch(regressor, data, tmp_path):
    seen = []

    class History(Callback):
        def on_train_end(self, net, **kwargs):
            seen.extend(net.history[:, ("valid_loss", "valid_loss_best", "event_cp")])

    noise = np.random.default_rng(3).permutation(data[1])
    callbacks = [Checkpoint(dirname=str(tmp_path)), History()]
    model = regressor(callbacks=callbacks, max_epochs=12, learning_rate=0.03).fit(data[0], noise)
    losses, best, saved = map(np.array, zip(*seen, strict=True))
    assert best.tolist() == saved.tolist() == (losses <= np.minimum.accumulate(losses)).tolist()
    assert 0 < best.sum() < len(best) == model.n_iter_
    kept = torch.load(tmp_path / "params.pt")
    for name, value in model.network_.state_dict().items():
        torch.testing.assert_close(kept[name], value)


def test_early_stopping_of_the_user(regressor, data, recorder):
    """It stops, those after it see the last epoch, and the best weights are kept."""
    noise = np.random.default_rng(3).permutation(data[1])
    stopping = ("early_stopping", EarlyStopping(patience=3, sink=lambda text: None))
    params = {"max_epochs": 40, "learning_rate": 0.03, "early_stopping_rounds": None}
    model = regressor(callbacks=[stopping, recorder], **params).fit(data[0], noise)
    curve = model.evals_result_["valid_0"]["squared_error"]
    assert recorder.epochs == len(curve) == model.n_iter_ < 40
    assert model.best_iteration_ == np.argmin(curve) + 1 < model.n_iter_


@pytest.mark.parametrize("method", ["on_epoch_begin", "on_batch_begin", "on_batch_end"])
def test_a_training_ends_with_a_whole_epoch(method, regressor, data, fresh, tmp_path):
    def stop(callback, net, **kwargs):
        if len(net.history) == callback.epoch:
            raise StopTraining

    stopping = type("Stop", (Callback,), {method: stop, "epoch": 2})()
    params = {"callbacks": [stopping], "max_epochs": 9, "checkpoint_dir": tmp_path}
    model = regressor(**params).fit(*data, eval_set=[fresh])
    whole = regressor(max_epochs=9, early_stopping_rounds=None)
    stopping_at_end = type("Stop", (Callback,), {"on_epoch_end": stop, "epoch": 2})()
    whole.set_params(callbacks=[stopping_at_end]).fit(*data, eval_set=[fresh])
    assert model.n_iter_ == whole.n_iter_ == 2
    np.testing.assert_array_equal(model.predict(data[0]), whole.predict(data[0]))
    assert loss_of(model, *fresh) == pytest.approx(model.best_score_, rel=HALF)
    # The fit is complete: run again, it trains no more.
    again = regressor(**params).fit(*data, eval_set=[fresh])
    assert again.n_iter_ == 2
    np.testing.assert_array_equal(again.predict(data[0]), model.predict(data[0]))


def test_every_callback_sees_the_epoch_in_which_one_stops(regressor, data, recorder):
    class Stop(Callback):
        def on_epoch_end(self, net, **kwargs):
            raise KeyboardInterrupt

    model = regressor(callbacks=[Stop(), recorder, Stop()], max_epochs=9).fit(*data)
    assert recorder.epochs == model.n_iter_ == 1


def test_terminals_show_a_progress_bar(regressor, data, capsys, monkeypatch):
    monkeypatch.setattr("sk_easytensor.training.progress.has_moving_output", lambda: True)
    model = regressor(verbose=1, max_epochs=4).fit(*data)
    output = capsys.readouterr()
    assert output.out == ""
    last = output.err.rstrip().rpartition("\r")[2]
    assert f"{model.n_iter_}/4" in last
    for name in ("training", "valid_0"):
        value = model.evals_result_[name]["squared_error"][-1]
        assert f"{name}_squared_error={value:.4g}" in last
    assert f"best={model.best_iteration_}]" in last
    regressor(verbose=2, max_epochs=2).fit(*data)
    output = capsys.readouterr()
    assert output.err == ""
    assert len(output.out.splitlines()) == 4


def test_terminals_show_the_phase_of_a_fit(regressor, data, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("sk_easytensor.training.progress.has_moving_output", lambda: True)
    model = regressor(verbose=1, max_epochs=2).fit(*data)
    phases = ["fitting blocks", "encoding rows", "growing trees", "fitting the linear model"]
    output = capsys.readouterr().err
    places = [output.index(f"{phase} ...") for phase in phases]
    assert places == sorted(places)
    assert model.feature_importances_.sum() == pytest.approx(1)
    assert "computing importances ..." in capsys.readouterr().err
    model.to_onnx(tmp_path / "model.onnx")
    assert "exporting ..." in capsys.readouterr().err
    for verbose in (0, 2):
        regressor(verbose=verbose, max_epochs=2).fit(*data)
        assert "..." not in capsys.readouterr().err


def test_no_phases_elsewhere(regressor, data, capsys):
    """A log file would have a line of each."""
    regressor(verbose=1, max_epochs=2).fit(*data)
    assert capsys.readouterr().err == ""


def test_decisions_are_logged(classifier, labelled, caplog):
    X, y = labelled
    with caplog.at_level("INFO", "sk_easytensor"):
        model = classifier(max_epochs=4).fit(X, y)
    held_out = round(0.15 * len(X))
    assert "block 'category', a CategoryBlock, reads ['city', 'grade']" in caplog.text
    assert f"{len(X) - held_out} rows to train on, {held_out} held out" in caplog.text
    epochs = f"{model.n_iter_} epochs, of which number {model.best_iteration_} is best"
    assert epochs in caplog.text
    assert f"the weight of the trees is {model.tree_weight_}" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO", "sk_easytensor"):
        classifier(max_epochs=1, n_folds=3).fit(X, y)
    assert f"3 folds of {len(X)} rows" in caplog.text


def test_verbose_prints_a_line_an_epoch(regressor, data, capsys):
    regressor(verbose=0).fit(*data)
    regressor(verbose=-1).fit(*data)
    assert capsys.readouterr().out == ""
    regressor(verbose=1, max_epochs=4, linear=None).fit(*data)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["epoch", "training_squared_error", "valid_0_squared_error", "dur"]
    assert [line.split()[0] for line in lines[2:6]] == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    "optimizer", ["adamw", "adam", "sgd", torch.optim.NAdam, torch.optim.RMSprop]
)
def test_optimizers(optimizer, regressor, data):
    kinds = set()

    class Kind(Callback):
        def on_epoch_end(self, net, **kwargs):
            kinds.add(type(net.optimizer_).__name__.lower())

    model = regressor(optimizer=optimizer, callbacks=[Kind()], max_epochs=10, learning_rate=0.01)
    curve = model.fit(*data).evals_result_["training"]["squared_error"]
    assert curve[-1] < curve[0]
    assert kinds == {optimizer if isinstance(optimizer, str) else optimizer.__name__.lower()}


@pytest.mark.parametrize("optimizer", ["adamw", "adam", torch.optim.NAdam])
def test_weight_decay_does_not_outweigh_the_loss(optimizer, regressor):
    X = np.random.default_rng(0).normal(size=(300, 1))
    y = X[:, 0] + 0.1 * np.random.default_rng(1).normal(size=300)
    model = regressor(optimizer=optimizer, max_epochs=40, learning_rate=0.01, trees=None)
    assert model.fit(X, y).score(X, y) > 0.8


def test_gradients_are_clipped(regressor, data):
    norms = []

    class Norm(Callback):
        def on_batch_end(self, net, training=False, **kwargs):
            gradients = [p.grad.norm() for p in net.module_.parameters() if p.grad is not None]
            norms.append(float(torch.stack(gradients).norm()))

    X, y = data
    y = y.copy()
    y[0] = 1e6
    weight = np.ones(80)
    weight[0] = 1e6
    regressor(callbacks=[Norm()], loss="absolute_error").fit(X, y * 1e3, sample_weight=weight)
    assert max(norms) < 1.001


@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_rows_that_are_too_large_for_a_device_are_moved_batch_by_batch(
    kind, classifier, regressor, mixed, monkeypatch
):
    X, y = mixed
    X = X.assign(tags=[["a", "b"][: index % 3] for index in range(len(X))])
    y = y if kind == "regressor" else y > np.median(y)
    make = {"classifier": classifier, "regressor": regressor}[kind]
    expected = make(batch_size=16).fit(X, y)
    moved, take = [], dataset.StreamedDataset.take

    def counted(self, rows):
        batch = take(self, rows)
        moved.append(len(batch))
        return batch

    monkeypatch.setattr(dataset, "is_too_large", lambda rows, device: True)
    monkeypatch.setattr(dataset.StreamedDataset, "take", counted)
    model = make(batch_size=16).fit(X, y)
    np.testing.assert_array_equal(model.predict(X), expected.predict(X))
    assert model.evals_result_ == expected.evals_result_
    assert sum(moved) > len(X)
    assert max(moved) <= 256


@pytest.mark.parametrize(("free", "too_large"), [(1 << 30, False), (1000, True)])
def test_rows_are_compared_with_the_free_memory_of_a_gpu(free, too_large, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 1 << 40))
    frame = TensorFrame({"n": {"value": torch.zeros(100, 2)}})
    rows = dataset.EncodedDataset(frame, torch.zeros(100, 1), torch.ones(100))
    assert dataset.is_too_large(rows, "cuda:0") is too_large
    assert not dataset.is_too_large(rows, "cpu")


class HostReads(Callback):
    """Counts how often values of tensors are read in Python, which waits for a GPU."""

    METHODS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")

    # The first looks for missing numbers on a CPU only, the second draws on the CPU.
    ON_CPU = ("NumericModule.forward", "FastDropout.forward")

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch
        self.per_epoch = []

    def on_train_begin(self, net, **kwargs):
        self.count = 0
        for name in self.METHODS:
            method = getattr(torch.Tensor, name)
            self.monkeypatch.setattr(torch.Tensor, name, self.counted(method))

    def counted(self, method):
        def call(tensor, *args, **kwargs):
            if sys._getframe(1).f_code.co_qualname not in self.ON_CPU:
                self.count += 1
            return method(tensor, *args, **kwargs)

        return call

    def on_epoch_begin(self, net, **kwargs):
        self.count = 0

    def on_epoch_end(self, net, **kwargs):
        self.per_epoch.append(self.count)

    def on_train_end(self, net, **kwargs):
        self.monkeypatch.undo()


@pytest.mark.parametrize("kind", ["classifier", "regressor", "multioutput"])
def test_values_are_read_once_an_epoch_however_many_batches_there_are(
    kind, classifier, regressor, mixed, monkeypatch
):
    """Reading a value would wait for a GPU. Lists are left out: their lengths are read."""
    X, y = mixed
    X = pd.concat([X] * 6, ignore_index=True)
    y = np.tile(np.asarray(y, dtype=float), 6)
    y = {"classifier": y > np.median(y), "multioutput": np.column_stack([y, -2 * y])}.get(kind, y)
    make = classifier if kind == "classifier" else regressor
    reads = []
    for batch_size in (16, 128):
        watch = HostReads(monkeypatch)
        model = make(
            trees=None, linear=None, batch_size=batch_size, max_epochs=2, callbacks=[watch]
        )
        monkeypatch.setattr("sk_easytensor.training.evaluation.EVAL_BATCH_SIZE", batch_size)
        model.fit(X, y)
        reads.append(watch.per_epoch)
    assert reads[0] == reads[1]
    assert len(reads[0]) == 2
    assert 0 < reads[0][0] < 40


def test_batch_size_and_epochs_are_obeyed(regressor, data, recorder):
    model = regressor(batch_size=10, max_epochs=2, validation_fraction=None, callbacks=[recorder])
    model.fit(*data)
    assert len(recorder.rates) == 2 * 8
    assert model.n_iter_ == 2


def test_defaults_follow_the_number_of_rows():
    from sk_easytensor.training.train import (
        default_batch_size,
        default_max_epochs,
        default_table_patience,
    )

    sizes = [default_batch_size(n) for n in (1, 100, 10_000, 100_000, 5_000_000)]
    epochs = [default_max_epochs(n) for n in (1, 100, 10_000, 100_000, 5_000_000)]
    assert sizes == sorted(sizes)
    assert epochs == sorted(epochs, reverse=True)
    assert sizes[0] >= 1
    assert epochs[-1] >= 1
    # So many epochs of 100 rows have 64 steps.
    cases = [(100, 32), (6_400, 256), (19_999, 256), (20_000, 256), (300_000, 512)]
    assert [default_table_patience(*case) for case in cases] == [16, 4, 4, 6, 6]


# ---------------------------------------------------------------------- going on


def test_partial_fit_trains_an_epoch_a_call(regressor, data, recorder):
    model = regressor(callbacks=[recorder])
    losses = []
    for _ in range(12):
        assert model.partial_fit(*data) is model
        losses.append(loss_of(model, *data))
    assert recorder.epochs == model.n_iter_ == model.best_iteration_ == 12
    assert losses[-1] < 0.8 * losses[0]
    assert list(model.evals_result_) == ["training"]
    assert len(model.evals_result_["training"]["squared_error"]) == 12


def test_partial_fit_learns_one_batch_at_a_time(classifier, data, recorder):
    X, _ = data
    y = X[:, 0] + X[:, 1] > 0
    model = classifier(batch_size=80, learning_rate=0.01, callbacks=[recorder])
    for _ in range(60):
        model.partial_fit(X, y, classes=[False, True])
    assert recorder.rates == [0.01] * 60
    assert log_loss(y, model.predict_proba(X)) < 0.15


def test_partial_fit_keeps_blocks_and_target_scale(regressor, data):
    X, y = data
    model = regressor().partial_fit(X, y)
    blocks = model.blocks_
    model.partial_fit(X * 100, y * 100)
    assert model.blocks_ is blocks
    assert np.isfinite(model.predict(X)).all()


def test_partial_fit_takes_classes(classifier, data):
    X, _ = data
    first, second = np.tile(["a", "b"], 40), np.tile(["b", "c"], 40)
    model = classifier().partial_fit(X, first, classes=["a", "b", "c"])
    model.partial_fit(X, second).partial_fit(X[:1], ["c"])
    assert model.classes_.tolist() == ["a", "b", "c"]
    assert model.predict_proba(X).shape == (80, 3)
    with pytest.raises(ValueError, match=r"not seen before: \['d'\]"):
        model.partial_fit(X, np.tile(["a", "d"], 40))
    one = classifier().partial_fit(X, np.full(80, 1), classes=[0, 1])
    assert one.predict_proba(X).shape == (80, 2)


def test_partial_fit_wants_the_same_columns(regressor, mixed, data):
    model = regressor().partial_fit(*data)
    with pytest.raises(
        ValueError, match="X has 2 features, but EasyTensorRegressor is expecting 3"
    ):
        model.partial_fit(data[0][:, :2], data[1])
    frame, y = mixed
    model = regressor().partial_fit(frame, y)
    model.partial_fit(frame[frame.columns[::-1]], y)
    with pytest.raises(ValueError, match=r"columns are missing: \['city'\]"):
        model.partial_fit(frame.drop(columns="city"), y)


def test_partial_fit_after_fit_goes_on(regressor, data):
    model = regressor().fit(*data).partial_fit(*data)
    assert model.n_iter_ == model.best_iteration_ == 4
    training = model.evals_result_["training"]["squared_error"]
    assert len(training) == 4
    assert model.best_score_ == training[-1]


def test_partial_fit_weights(regressor, data):
    X, y = data
    weight = (np.arange(80) % 2).astype(float)
    model = regressor().partial_fit(X, y, sample_weight=weight)
    absent = regressor().partial_fit(X[1::2], y[1::2])
    np.testing.assert_array_equal(model.predict(X), absent.predict(X))


def test_warm_start_goes_on(regressor, data, fresh):
    model = regressor(warm_start=True, linear=None).fit(*data, eval_set=[fresh])
    first = model.evals_result_["valid_0"]["squared_error"][-1]
    blocks = model.blocks_
    model.fit(*data, eval_set=[fresh])
    assert model.blocks_ is blocks
    assert model.n_iter_ == 6
    assert [len(curves["squared_error"]) for curves in model.evals_result_.values()] == [6, 6]
    assert model.best_score_ < first
    assert loss_of(model, *fresh) == pytest.approx(model.best_score_, rel=HALF)


def test_without_warm_start_fit_starts_afresh(regressor, data):
    model = regressor().fit(*data)
    once = model.predict(data[0])
    np.testing.assert_array_equal(model.fit(*data).predict(data[0]), once)
    assert model.n_iter_ == 3


def test_warm_start_refuses_new_labels_and_columns(classifier, data):
    X, _ = data
    model = classifier(warm_start=True).fit(X, np.tile([0, 1], 40))
    with pytest.raises(ValueError, match="not seen before"):
        model.fit(X, np.tile([0, 2], 40))
    with pytest.raises(ValueError, match="X has 2 features"):
        model.fit(X[:, :2], np.tile([0, 1], 40))


class Groups(Callback):
    """Notes the optimizer, its settings and whether it has moments when training begins."""

    def __init__(self):
        self.seen = []

    def on_train_begin(self, net, **kwargs):
        group, moments = net.optimizer_.param_groups[-1], len(net.optimizer_.state) > 0
        kind = type(net.optimizer_).__name__
        self.seen.append((kind, group["lr"], group["weight_decay"], moments))


@pytest.fixture(params=["kept", "pickled"])
def resuming(request, regressor, mixed):
    """A regressor with warm_start and callable selectors, fitted once."""
    blocks = [("n", NumericBlock(), make_column_selector(dtype_include="number"))]
    model = regressor(blocks, warm_start=True, learning_rate=0.01, weight_decay=0.1).fit(*mixed)
    return model if request.param == "kept" else pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("again", ["fit", "partial_fit"])
def test_going_on_takes_a_changed_optimizer(again, resuming, mixed):
    groups = Groups()
    resuming.set_params(callbacks=[groups])
    changes = [
        {},
        {"learning_rate": 0.002},
        {"weight_decay": 0.3},
        {"optimizer": "sgd"},
        {"optimizer": torch.optim.NAdam},
    ]
    for params in changes:
        getattr(resuming.set_params(**params), again)(*mixed)
    assert groups.seen == [
        ("AdamW", 0.01, 0.1, True),
        ("AdamW", 0.002, 0.1, True),
        ("AdamW", 0.002, 0.3, True),
        ("SGD", 0.002, 0.3, False),
        ("NAdam", 0.002, 0.3, False),
    ]


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"loss": "absolute_error"}, "loss"),
        ({"loss": "quantile", "quantile": 0.3}, "loss"),
        ({"trunk": TabM(width=16)}, "trunk"),
        ({"trunk__width": 8}, "trunk"),
        ({"remainder": "drop"}, "remainder"),
        ({"blocks": None}, "blocks"),
        ({"blocks": [("n", NumericBlock(), ["amount", "count"])]}, "blocks"),
        ({"blocks__n": CategoryBlock()}, "blocks"),
        ({"blocks__n__width": 3}, "blocks"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
def test_going_on_refuses_another_network(params, name, resuming, mixed):
    before = resuming.predict(mixed[0])
    resuming.set_params(**params)
    for again in ("fit", "partial_fit"):
        with pytest.raises(
            ValueError, match=f"EasyTensorRegressor: {name} changed since the last fit"
        ):
            getattr(resuming, again)(*mixed)
    np.testing.assert_array_equal(resuming.predict(mixed[0]), before)
    assert resuming.set_params(warm_start=False).fit(*mixed).n_iter_ == 3


@pytest.mark.parametrize("again", ["fit", "partial_fit"])
def test_going_on_survives_pickling(again, regressor, data):
    """The restored optimizer goes on as the one that stayed in memory."""
    model = regressor(warm_start=True, validation_fraction=None).fit(*data)
    restored = pickle.loads(pickle.dumps(model))
    getattr(model, again)(*data)
    getattr(restored, again)(*data)
    np.testing.assert_array_equal(restored.predict(data[0]), model.predict(data[0]))
    assert restored.evals_result_ == model.evals_result_


def test_partial_fit_goes_on_without_an_optimizer_state(regressor, data):
    model = regressor().fit(*data)
    restored = pickle.loads(pickle.dumps(model)).partial_fit(*data)
    assert restored.n_iter_ == 4


# ---------------------------------------------------------------------- backend, threads


def test_chunks_of_rows_train_the_same_model(regressor, mixed):
    whole = regressor().fit(*mixed)
    chunked = regressor(backend=LocalBackend(chunk_rows=50)).fit(*mixed)
    np.testing.assert_array_equal(chunked.predict(mixed[0]), whole.predict(mixed[0]))


def test_threads_are_restored(regressor, data):
    during = []

    class Threads(Callback):
        def on_batch_end(self, net, **kwargs):
            during.append(torch.get_num_threads())

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        model = regressor(n_jobs=1, callbacks=[Threads()]).fit(*data)
        assert torch.get_num_threads() == 3
        model.predict(data[0])
        model.feature_importances_  # noqa: B018
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert set(during) == {1}


def test_threads_are_restored_after_an_error(regressor, data):
    class Broken(Callback):
        def on_epoch_end(self, net, **kwargs):
            raise RuntimeError("broken callback")

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(RuntimeError):
            regressor(callbacks=[Broken()]).fit(*data)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_n_jobs_sets_threads_within_the_limit_of_the_environment(monkeypatch):
    from sk_easytensor._utils.runtime import resolve_threads

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [resolve_threads(n_jobs) for n_jobs in (None, 1, 2)] == [1, 1, 2]
    assert resolve_threads(-1) >= 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert [resolve_threads(n_jobs) for n_jobs in (None, 2, -1)] == [1, 1, 1]


def test_a_large_learning_rate_does_not_leave_nan(data):
    model = EasyTensorRegressor(
        trunk=MLP(width=16), max_epochs=5, learning_rate=10.0, random_state=0
    ).fit(*data)
    assert np.isfinite(model.predict(data[0])).all()


SCORES = {
    "binary": (lambda score: score > 0, "classifier", ["accuracy", "roc_auc", "neg_log_loss"]),
    "multiclass": (lambda score: np.digitize(score, [-0.5, 0.5]), "classifier", ["accuracy"]),
    "multilabel": (
        lambda score: np.column_stack([score > 0, score > 1]).astype(int),
        "classifier",
        ["accuracy"],
    ),
    "numbers": (lambda score: 1e3 + 7 * score, "regressor", ["r2"]),
    "two_numbers": (lambda score: np.column_stack([score, -score]), "regressor", ["r2"]),
}


class LastEpoch(Callback):
    """Keeps the history's last entry."""

    def on_epoch_end(self, net, **kwargs):
        self.scores_ = dict(net.history[-1])


@pytest.mark.parametrize("kind", SCORES)
def test_epoch_scoring_scores_each_epoch(kind, mixed, request):
    target, maker, names = SCORES[kind]
    X, y = mixed[0], target(mixed[1])
    last = LastEpoch()
    scorings = [
        (f"{name}_{part}", EpochScoring(name, name=f"{part}_{name}", on_train=part == "train"))
        for name in names
        for part in ("train", "valid")
    ]
    make = request.getfixturevalue(maker)
    # Callbacks see the network, beside which no trees stand yet.
    model = make(max_epochs=20, callbacks=[*scorings, last], early_stopping_rounds=None, trees=None)
    model.fit(X, y, eval_set=[(X, y)])
    scores = {name: last.scores_[f"valid_{name}"] for name in names}
    for part in ("train", "valid"):
        assert all(np.isfinite(last.scores_[f"{part}_{name}"]) for name in names)
    if model.best_iteration_ == model.n_iter_ and names[0] in ("accuracy", "r2"):
        assert scores[names[0]] == pytest.approx(model.score(X, y), abs=1e-6)
    if "neg_log_loss" in names:
        assert scores["neg_log_loss"] == pytest.approx(-last.scores_["valid_loss"], rel=1e-5)
