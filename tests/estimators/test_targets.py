"""The contract of targets: learned chunk by chunk, sent by pickle, scaled and decoded."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone

from sk_easytensor import EasyTensorClassifier, EasyTensorMultiTask, EasyTensorRegressor
from sk_easytensor.estimators.targets.base import Target
from sk_easytensor.estimators.targets.checks import is_text
from sk_easytensor.estimators.targets.classification import ClassificationTarget
from sk_easytensor.estimators.targets.multi_task import MultiTaskTarget
from sk_easytensor.estimators.targets.regression import RegressionTarget
from sk_easytensor.losses import LogLoss, Poisson, Quantile, SquaredError
from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.dataset import EncodedDataset
from sk_easytensor.two_tower.targets import PairTarget

NUMBERS = 1e6 + 100 * np.random.default_rng(0).normal(size=60)
LABELS = np.tile(["no", "perhaps", "yes"], 20)
TASKS = {"label": "multiclass", "amount": "regression", "count": "poisson"}
TARGETS = {
    "two classes": (ClassificationTarget(LogLoss()), LABELS == "yes"),
    "classes": (ClassificationTarget(LogLoss(), {"no": 2.0}), LABELS),
    "labels": (ClassificationTarget(LogLoss()), np.column_stack([LABELS == "yes"] * 2).astype(int)),
    "numbers": (RegressionTarget(SquaredError()), NUMBERS),
    "columns": (RegressionTarget(SquaredError()), np.column_stack([NUMBERS, -NUMBERS])),
    "counts": (RegressionTarget(Poisson()), np.tile([0.0, 1.0, 5.0], 20)),
    "quantiles": (RegressionTarget(Quantile([0.1, 0.9])), NUMBERS),
    "constant": (RegressionTarget(SquaredError()), np.full(60, 7.0)),
    "tasks": (
        MultiTaskTarget(TASKS, {"count": 3.0}),
        pd.DataFrame({"label": LABELS, "amount": NUMBERS, "count": np.tile([0, 4], 30)}),
    ),
    "missing tasks": (
        MultiTaskTarget(TASKS),
        pd.DataFrame(
            {
                "label": np.where(np.arange(60) % 4, LABELS, None),
                "amount": np.where(np.arange(60) % 5, NUMBERS, np.nan),
                "count": np.tile([0, 4], 30),
            }
        ),
    ),
    "pairs": (PairTarget(), NUMBERS),
    "pairs of two classes": (PairTarget(), LABELS == "yes"),
}


def learn(target, y):
    """Return a fitted target with encoded rows, of two chunks."""
    target = clone(target)
    chunks = [target.check(y[:25]), target.check(y[25:])]
    target.fit(target.join_samples([target.sample(chunk) for chunk in chunks]))
    encoded = torch.cat([target.encode(chunk) for chunk in chunks])
    rows = EncodedDataset(TensorFrame({}, len(encoded)), encoded, torch.ones(len(encoded)))
    target.learn_scale(rows)
    return target, rows


@pytest.fixture(params=TARGETS, ids=str)
def learned(request):
    return learn(*TARGETS[request.param])


def test_a_learned_target_is_small_and_survives_pickling(learned):
    target, rows = learned
    data = pickle.dumps(target)
    assert len(data) < 5_000
    loaded = pickle.loads(data)
    assert torch.equal(
        loaded.scale(rows.target).nan_to_num(), target.scale(rows.target).nan_to_num()
    )
    assert loaded.head_.get_params().keys() == target.head_.get_params().keys()


def test_scaled_targets_have_a_loss_in_every_row(learned):
    target, rows = learned
    scaled = target.scaled(rows)
    assert len(scaled) == len(rows) == len(target.strata(rows.target))
    if target.head_.out_features is not None:
        outputs = torch.zeros(len(rows), 1, target.head_.out_features)
        assert target.head_.loss(outputs, scaled.target).isfinite().all()
    assert scaled.target.abs().nan_to_num().max() < 10


@pytest.mark.parametrize("kind", ["numbers", "columns", "counts", "quantiles", "constant"])
def test_numbers_are_decoded_to_what_they_were(kind):
    target, y = TARGETS[kind]
    fitted, rows = learn(target, y)
    np.testing.assert_allclose(fitted.decode(fitted.scale(rows.target)), y, rtol=1e-9)


def test_a_resumed_target_changes_nothing_of_the_first(learned):
    first, rows = learned
    kept = pickle.dumps(first)
    other = clone(first).resume(first)
    doubled = EncodedDataset(rows.frame, rows.target.flip(0), rows.weight)
    other.learn_scale(doubled, resuming=True)
    assert pickle.dumps(first) == kept
    assert torch.equal(other.scale(rows.target).nan_to_num(), first.scale(rows.target).nan_to_num())


def test_a_constant_is_no_more_once_another_value_comes():
    first, rows = learn(*TARGETS["constant"])
    outputs = torch.full((2, 1), 0.5)
    assert first.predict(outputs).tolist() == [7.0, 7.0]
    other = clone(first).resume(first)
    other.learn_scale(EncodedDataset(rows.frame, rows.target + 1, rows.weight), resuming=True)
    assert other.predict(outputs).tolist() == [7.5, 7.5]
    assert first.predict(outputs).tolist() == [7.0, 7.0]


def test_scorers_take_a_target_for_an_estimator_of_outputs():
    target, rows = learn(*TARGETS["classes"])
    metrics, stopping = target.metrics(["accuracy", "auc"], None)
    outputs = torch.nn.functional.one_hot(rows.target, 3).float()
    numbered = target.numbered()
    y = numbered.decode(rows.target)
    assert [metric(numbered, outputs, y, None) for metric in metrics] == [1.0, 1.0]
    assert stopping is metrics[0]
    assert target.predict(outputs).tolist() == LABELS.tolist()
    assert numbered.predict(outputs).tolist() == y.tolist()


def test_tasks_score_the_rows_of_which_they_are_known():
    target, rows = learn(*TARGETS["missing tasks"])
    outputs = torch.zeros(60, target.head_.out_features)
    outputs[:, :3] = torch.nn.functional.one_hot(rows.target[:, 0].nan_to_num().long(), 3)
    found = {name: part.predict(own) for name, part, own in target.split_outputs(outputs)}
    known = ~rows.target[:, 0].isnan().numpy()
    assert found["label"][known].tolist() == LABELS[known].tolist()
    # All numbers are predicted as the mean of the known ones.
    amounts = TARGETS["missing tasks"][1]["amount"]
    np.testing.assert_allclose(found["amount"], np.full(60, amounts.mean()))


def test_a_target_that_lacks_a_method_is_refused():
    class Lacking(Target):
        def check(self, y):
            return y

    with pytest.raises(TypeError, match=r"encode.*fit.*predict"):
        Lacking("an estimator")


@pytest.mark.parametrize(
    "make",
    [
        lambda: EasyTensorClassifier(),
        lambda: EasyTensorRegressor(),
        lambda: EasyTensorMultiTask({"n": "regression"}),
    ],
)
def test_errors_name_the_class_of_the_estimator(make):
    estimator = make()

    class Own(type(estimator)):
        pass

    estimator.__class__ = Own
    estimator.eval_metric = {"n": "no metric"} if hasattr(estimator, "tasks") else "no metric"
    with pytest.raises(ValueError, match="Own: eval_metric 'no metric' is unknown"):
        estimator.fit({"a": [1.0, 2.0]}, [0, 1])


# ---------------------------------------------------------------------- labels that are text


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        (np.array(["a", "b"], dtype=object), True),
        (pd.Series(["a", "b"]), True),
        (pd.Series(["a", None]), False),
        (np.array(["a", None], dtype=object), False),
        (np.array(["a", 1], dtype=object), False),
        (np.array([["a"]], dtype=object), False),
        (np.array([], dtype=object), False),
        (np.array(["a", "b"]), False),
        (["a", "b"], False),
    ],
)
def test_arrays_of_text(y, expected):
    assert is_text(y) is expected


def test_labels_that_are_text_are_checked_and_found_without_sorting_all_rows(monkeypatch):
    rows = np.tile(np.array(["no", "yes", "é", ""], dtype=object), 500)
    sorted_sizes = []
    unique = np.unique

    def counted(values, *args, **kwargs):
        sorted_sizes.append(np.size(values))
        return unique(values, *args, **kwargs)

    monkeypatch.setattr(np, "unique", counted)
    target = ClassificationTarget(LogLoss())
    assert target.check(rows).tolist() == rows.tolist()
    assert target.sample(rows).tolist() == ["", "no", "yes", "é"]
    assert max(sorted_sizes) == 4
