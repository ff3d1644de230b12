"""Programs may set torch's global settings as they like."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from threading import Barrier

import numpy as np
import pandas as pd
import pytest
import torch

from sk_easytensor import (
    CategoryBlock,
    EasyTensorClassifier,
    EasyTensorEmbedder,
    EasyTensorRegressor,
    EasyTensorTwoTower,
    NumericBlock,
    TabM,
)
from sk_easytensor._utils.runtime import already_set, library_settings


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def all_at_once():
    with ExitStack() as stack:
        for name, make in SETTINGS.items():
            if name != "all":
                stack.enter_context(make())
        yield


SETTINGS = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "cpu": lambda: default_device("cpu"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "deterministic": deterministic,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "meta": lambda: default_device("meta"),
    "device context": lambda: torch.device("meta"),
    "all": all_at_once,
}


def settings():
    nested = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return (
        nested,
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_cache_enabled(),
    )


def rows():
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"a": rng.normal(size=120), "c": rng.choice(list("xyz"), 120)})
    lists = pd.DataFrame({"s": [list(rng.normal(size=2)) for _ in range(40)]})
    return X, X["a"] + (X["c"] == "x"), lists


def models():
    """Return fitted estimators of each kind."""
    X, y, lists = rows()
    quick = {"trunk": TabM(members=2, width=8), "max_epochs": 2, "random_state": 0}
    sides = [("c", CategoryBlock(width=4), "c")], [("a", NumericBlock(), "a")]
    return {
        "classifier": EasyTensorClassifier(**quick).fit(X, y > 0),
        "regressor": EasyTensorRegressor(**quick).partial_fit(X, y),
        "two_tower": EasyTensorTwoTower(*sides, embedding_dim=4, max_epochs=1, random_state=0).fit(
            X, y > 0
        ),
        "embedder": EasyTensorEmbedder(embedding_dim=4, max_epochs=1, random_state=0).fit(lists),
    }


def outputs(fitted):
    """Return what fitted estimators say of rows."""
    X, y, lists = rows()
    classifier, regressor, two_tower, embedder = fitted.values()
    return [
        classifier.predict_proba(X),
        classifier.decision_function(X),
        classifier.transform(X),
        classifier.feature_importances_,
        classifier.explain(X[:3], background=X[:9], random_state=0).values,
        regressor.predict(X),
        two_tower.predict_proba(X),
        two_tower.transform(X),
        np.array(two_tower.score(X, y > 0)),
        embedder.transform(lists),
    ]


@pytest.fixture(scope="module")
def expected():
    """Fitted estimators, as pickles, and their outputs, all by torch's own settings."""
    fitted = models()
    return pickle.dumps(fitted), outputs(fitted)


@pytest.mark.parametrize("name", SETTINGS)
def test_fits_and_predictions_are_the_same(name, expected):
    pickled, arrays = expected
    with SETTINGS[name]():
        before = settings()
        found = outputs(models()), outputs(pickle.loads(pickled))
        assert settings() == before
    for each in found:
        for one, other in zip(each, arrays, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
    assert already_set()


def test_models_are_exported(expected, tmp_path):
    pytest.importorskip("onnxscript")
    inference = pytest.importorskip("sk_easytensor.inference")
    X, *_ = rows()
    model = pickle.loads(expected[0])["classifier"]
    with all_at_once():
        path = model.to_onnx(tmp_path / "model.onnx")
    np.testing.assert_allclose(
        inference.load(path).predict_proba(X), model.predict_proba(X), atol=1e-5
    )


def test_settings_are_restored_after_an_error(expected):
    X, *_ = rows()
    model = pickle.loads(expected[0])["classifier"]
    with all_at_once():
        before = settings()
        with pytest.raises(ValueError, match="missing"):
            model.predict(X[["a"]])
        assert settings() == before


def test_the_last_thread_restores_what_threads_share():
    barrier = Barrier(2, timeout=10)

    def first():
        with library_settings():
            barrier.wait()
        barrier.wait()

    def second():
        with library_settings():
            barrier.wait()
            barrier.wait()
            # The other thread has left the context, and this one still computes.
            return torch.get_default_dtype()

    with default_dtype(torch.float64), ThreadPoolExecutor(2) as pool:
        running = pool.submit(first), pool.submit(second)
        assert [each.result() for each in running] == [None, torch.float32]
        assert torch.get_default_dtype() is torch.float64
