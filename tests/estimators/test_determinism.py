"""The same seed gives the same bits; predictions depend on nothing but their row."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from sk_easytensor import BoostedTrees, TabM
from sk_easytensor.backends import LocalBackend


@pytest.fixture
def trunk():
    return TabM(members=2, width=16)


def test_same_seed_same_bits(classifier, labelled, trunk):
    frame, y = labelled
    first, second = (classifier(trunk=trunk).fit(frame, y) for _ in range(2))
    np.testing.assert_array_equal(first.predict_proba(frame), second.predict_proba(frame))
    assert first.evals_result_ == second.evals_result_
    np.testing.assert_array_equal(first.feature_importances_, second.feature_importances_)


def test_another_seed_gives_another_model(regressor, mixed):
    frame, y = mixed
    first, second = (regressor(random_state=seed).fit(frame, y) for seed in (0, 1))
    assert (first.predict(frame) != second.predict(frame)).all()


def test_random_state_objects(regressor, mixed):
    frame, y = mixed
    expected = regressor(random_state=3).fit(frame, y).predict(frame)
    state = np.random.RandomState(3)
    np.testing.assert_array_equal(
        regressor(random_state=state).fit(frame, y).predict(frame), expected
    )
    again = regressor(random_state=state).fit(frame, y).predict(frame)
    assert (again != expected).any()


def test_without_a_seed_fits_differ(regressor, mixed):
    frame, y = mixed
    first, second = (regressor(random_state=None).fit(frame, y) for _ in range(2))
    assert (first.predict(frame) != second.predict(frame)).any()


def test_global_seeds_have_no_influence(regressor, mixed):
    frame, y = mixed
    predicted = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the global generator is what this is about
        predicted.append(regressor().fit(frame, y).predict(frame))
    np.testing.assert_array_equal(*predicted)


def test_global_generators_are_not_disturbed(regressor, mixed):
    frame, y = mixed
    torch_before = torch.get_rng_state()
    numpy_before = np.random.get_state()[1].copy()  # noqa: NPY002
    model = regressor().fit(frame, y).partial_fit(frame, y)
    model.predict(frame)
    model.feature_importances_  # noqa: B018
    assert torch.equal(torch.get_rng_state(), torch_before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002


def test_concurrent_fits_equal_sequential_ones(regressor, mixed):
    frame, y = mixed
    trunk = TabM(members=2, width=16, dropout=0.3)
    trees = BoostedTrees(max_iter=20)

    def curve(seed):
        model = regressor(trunk=trunk, trees=trees, batch_size=16, random_state=seed).fit(frame, y)
        return model.predict(frame), model.partial_fit(frame, y).predict(frame)

    seeds = [0, 1, 0, 2]
    before = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        concurrent = list(pool.map(curve, seeds))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(concurrent, [curve(seed) for seed in seeds])


def test_predictions_do_not_depend_on_the_batch(classifier, labelled, trunk):
    frame, y = labelled
    model = classifier(trunk=trunk).fit(frame, y)
    whole = model.predict_proba(frame)
    for size in (1, 7, 64):
        parts = [model.predict_proba(frame[i : i + size]) for i in range(0, len(frame), size)]
        np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(model.predict_proba(frame[::-1])[::-1], whole, rtol=1e-5, atol=1e-7)


def test_predictions_do_not_depend_on_chunks(classifier, labelled):
    frame, y = labelled
    model = classifier().fit(frame, y)
    whole = model.predict_proba(frame)
    model.set_params(backend=LocalBackend(chunk_rows=11))
    np.testing.assert_array_equal(model.predict_proba(frame), whole)


def test_predictions_of_many_rows(regressor, mixed):
    """More rows than are predicted at a time."""
    frame, y = mixed
    model = regressor().fit(frame, y)
    many = np.tile(np.arange(len(frame)), 80)
    assert len(many) > 2 * 4096
    predicted = model.predict(frame.iloc[many].reset_index(drop=True))
    np.testing.assert_allclose(predicted, model.predict(frame)[many], rtol=1e-4, atol=1e-6)


def test_predicting_twice_gives_the_same(classifier, labelled):
    frame, y = labelled
    model = classifier().fit(frame, y)
    np.testing.assert_array_equal(model.predict_proba(frame), model.predict_proba(frame))


def test_fit_does_not_change_its_input(classifier, labelled):
    frame, y = labelled
    weight = np.linspace(1, 2, len(y))
    before = frame.copy(deep=True), y.copy(), weight.copy()
    classifier(class_weight="balanced").fit(frame, y, sample_weight=weight)
    assert frame.equals(before[0])
    np.testing.assert_array_equal(y, before[1])
    np.testing.assert_array_equal(weight, before[2])


FITS_BY_TWO_THREADS = """
import hashlib
import numpy as np
import pandas as pd
from sk_easytensor import *

random = np.random.default_rng(0)
n = 300
words = np.array([f"w{number}" for number in range(50)])
lists = [random.integers(0, 40, 30) for _ in range(n)]
X = {
    "categories": [words[row].tolist() for row in lists],
    "numbers": [row / 7.0 for row in lists],
    "events": [[{"kind": words[i], "size": i / 7.0} for i in row.tolist()] for row in lists],
    "text": [" ".join(words[row]) for row in lists],
}
y = random.integers(0, 2, n)
keys = pd.DataFrame({"user": random.integers(0, 40, 900), "item": random.integers(0, 90, 900)})
towers = [("user", CategoryBlock(), "user")], [("item", CategoryBlock(), "item")]
log = pd.DataFrame(
    {"user": np.repeat(np.arange(n), 30), "time": np.tile(np.arange(30), n) * 1e4, "kind": words[
        np.concatenate(lists)]}
)
quick = dict(max_epochs=1, batch_size=512, random_state=0, n_jobs=2, validation_fraction=None)
small = dict(layers=1, heads=1, width=32)
trunk = MLP(width=8, layers=1)
blocks = {
    "categories": CategorySequenceBlock("transformer", **small),
    "numbers": NumericSequenceBlock("transformer", **small),
    "events": EventSequenceBlock("transformer", **small),
    "text": TextBlock(),
}


def classify(name):
    model = EasyTensorClassifier([("block", blocks[name], name)], trees=None, trunk=trunk, **quick)
    return model.fit({name: X[name]}, y).predict_proba({name: X[name]})


def choose():
    return EasyTensorTwoTower(*towers, n_negatives=64, **quick).fit(keys).decision_function(keys)


def rate():
    return EasyTensorTwoTower(*towers, **quick).fit(keys, keys["item"] / 7.0).predict(keys)


def embed():
    model = EasyTensorEmbedder([("events", EventSequenceBlock("mean"), ["kind"])], **quick)
    return model.fit(log, user="user", time="time").transform(log)


fits = [*[lambda name=name: classify(name) for name in X], choose, rate, embed]
for fit in fits:
    found = {hashlib.sha256(np.ascontiguousarray(fit())).hexdigest() for _ in range(2)}
    print(len(found), end=" ")
"""


def test_fits_by_two_threads_are_equal():
    """In a process of their own, since these tests run with one thread."""
    script = [sys.executable, "-W", "ignore", "-c", FITS_BY_TWO_THREADS]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(script, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.split() == ["1"] * 7, done.stderr
