"""Ctrl-C at any moment: it is raised, and nothing that was learned is lost."""

import os
import signal
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback

from sk_easytensor import EasyTensorEmbedder, EasyTensorTwoTower
from sk_easytensor.training.net import watched_interrupts


class Interrupt(Callback):
    """Sends the process SIGINT in a method of callbacks, once, and counts epochs."""

    def __init__(self, method, epoch=2):
        self.method = method
        self.epoch = epoch

    def on_train_begin(self, net, **kwargs):
        self.sent = False
        self.epochs = 0

    def _interrupt(self, net):
        if not self.sent and len(net.history) == self.epoch:
            self.sent = True
            signal.raise_signal(signal.SIGINT)

    def on_epoch_begin(self, net, **kwargs):
        if self.method == "on_epoch_begin":
            self._interrupt(net)

    def on_batch_end(self, net, training, **kwargs):
        if self.method == ("in training" if training else "in validation"):
            self._interrupt(net)

    def on_epoch_end(self, net, **kwargs):
        self.epochs += 1
        if self.method == "on_epoch_end":
            self._interrupt(net)


METHODS = ["on_epoch_begin", "in training", "in validation", "on_epoch_end"]


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupt_is_raised_and_the_fit_resumes(method, classifier, labelled, tmp_path):
    params = {"checkpoint_dir": tmp_path, "max_epochs": 4, "early_stopping_rounds": None}
    expected = classifier(max_epochs=4, early_stopping_rounds=None).fit(*labelled)
    interrupted = classifier(**params, callbacks=[Interrupt(method)])
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit(*labelled)
    with pytest.raises(NotFittedError):
        interrupted.predict(labelled[0])
    model = classifier(**params, callbacks=[Interrupt(None)]).fit(*labelled)
    assert model.callbacks[0].epochs < 4, "it began anew"
    X = labelled[0]
    np.testing.assert_array_equal(model.predict_proba(X), expected.predict_proba(X))
    assert model.evals_result_ == expected.evals_result_


@contextmanager
def signal_after(seconds):
    """Send SIGINT to the process from outside while the context runs."""
    done = threading.Event()

    def send():
        if not done.wait(seconds):
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_signals_at_random_moments(classifier, labelled, tmp_path):
    """Thirty signals: each fit is completed by others, and all end with the same model."""
    X, y = labelled
    begin = time.perf_counter()
    expected = classifier(max_epochs=6).fit(X, y).predict_proba(X)
    seconds = time.perf_counter() - begin
    random = np.random.default_rng(0)
    n_interrupts, n_fits = 0, 0
    while n_interrupts < 30:
        model = classifier(max_epochs=6, checkpoint_dir=tmp_path / str(n_fits))
        try:
            with signal_after(random.uniform(0, seconds)):
                model.fit(X, y)
                # A signal that comes too late for the fit is no matter of the fit.
                time.sleep(0)
        except KeyboardInterrupt:
            n_interrupts += 1
            continue
        np.testing.assert_array_equal(model.predict_proba(X), expected)
        n_fits += 1
    model = classifier(max_epochs=6, checkpoint_dir=tmp_path / str(n_fits)).fit(X, y)
    np.testing.assert_array_equal(model.predict_proba(X), expected)


def test_an_interrupt_leaves_the_former_model(classifier, labelled):
    X, y = labelled
    model = classifier(warm_start=True).fit(X, y)
    before, curves = model.predict_proba(X), model.evals_result_
    for warm in (True, False):
        model.set_params(warm_start=warm, callbacks=[Interrupt("in training", epoch=1)])
        with pytest.raises(KeyboardInterrupt):
            model.fit(X, y)
        np.testing.assert_array_equal(model.predict_proba(X), before)
        assert model.evals_result_ == curves
    model.set_params(callbacks=[Interrupt("in training", epoch=1)])
    with pytest.raises(KeyboardInterrupt):
        model.partial_fit(X, y)
    np.testing.assert_array_equal(model.predict_proba(X), before)


def test_a_search_does_not_go_on_after_an_interrupt(classifier, labelled):
    model = classifier(callbacks=[Interrupt("in validation", epoch=1)])
    search = GridSearchCV(model, {"learning_rate": [0.1, 0.01]}, cv=2, error_score=0.0)
    with pytest.raises(KeyboardInterrupt):
        search.fit(*labelled)


def test_other_estimators_raise_it_too(labelled):
    pairs = {"user": list("abcd") * 10, "item": list("xyxz") * 10}
    params = {"max_epochs": 2, "callbacks": [Interrupt("in training", epoch=1)], "random_state": 0}
    with pytest.raises(KeyboardInterrupt):
        EasyTensorTwoTower(**params).fit(pairs, items={"item": list("xyz")}, item_key="item")
    events = {"kind": [["a", "b", "a", "c"]] * 10 + [["c", "b", "d"]] * 10}
    params["callbacks"] = [Interrupt("in training", epoch=1)]
    with pytest.raises(KeyboardInterrupt):
        EasyTensorEmbedder(**params).fit(events)


def test_the_former_handler_of_signals_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    with watched_interrupts() as interrupted:
        assert not interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interrupted()
    assert signal.getsignal(signal.SIGINT) is before


def test_fits_in_other_threads_watch_no_signals(classifier, labelled):
    found = []
    thread = threading.Thread(target=lambda: found.append(classifier().fit(*labelled)))
    thread.start()
    thread.join()
    assert found[0].n_iter_ == 3
