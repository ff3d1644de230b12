"""Targets, probabilities and class weights of the classifier."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.exceptions import NotFittedError

from sk_easytensor import EasyTensorClassifier, TabM
from sk_easytensor.estimators.stored import StoredCall, Values
from sk_easytensor.estimators.targets.classification import ClassificationTarget
from sk_easytensor.inspection import GivenOutputs
from sk_easytensor.losses import LogLoss
from sk_easytensor.two_tower.targets import PairTarget

LEARNS = {"max_epochs": 15, "learning_rate": 0.02}


@pytest.fixture
def numbers():
    return np.random.default_rng(0).normal(size=(200, 2))


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0, 1]),
        np.array(["no", "yes"]),
        np.array(["no", "yes"], dtype=object),
        np.array([False, True]),
        np.array([-1.0, 1.0]),
        np.array([2**60, 2**60 + 1]),
    ],
    ids=["int", "str", "object", "bool", "float", "large"],
)
def test_binary_labels(labels, classifier, numbers):
    y = labels[(numbers[:, 0] > 0).astype(int)]
    model = classifier(**LEARNS).fit(numbers, y)
    assert model.classes_.tolist() == labels.tolist()
    predicted = model.predict(numbers)
    assert predicted.dtype == y.dtype
    assert (predicted == y).mean() > 0.9
    probabilities = model.predict_proba(numbers)
    assert probabilities.shape == (200, 2)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
    decision = model.decision_function(numbers)
    assert decision.shape == (200,)
    np.testing.assert_array_equal(decision > 0, predicted == labels[1])


LARGE = [2**53, 2**53 + 1]

TYPED_LABELS = {
    "Int64": lambda y: pd.Series(y, dtype="Int64"),
    "array": lambda y: pd.array(y, dtype="Int64"),
    "arrow": lambda y: pd.Series(y, dtype="int64[pyarrow]"),
    "polars": pl.Series,
    "chunked": lambda y: pa.chunked_array([y]),
    "objects": lambda y: pd.Series(y, dtype=object),
    "categories": lambda y: pd.Series(pd.Categorical(y)),
}


@pytest.mark.parametrize("labels", [LARGE, [False, True]], ids=["large", "booleans"])
@pytest.mark.parametrize("kind", TYPED_LABELS)
def test_integers_and_booleans_stay_what_they_are(kind, labels):
    make = TYPED_LABELS[kind]
    if isinstance(labels[0], bool) and kind in ("Int64", "array", "arrow"):
        name = "bool[pyarrow]" if kind == "arrow" else "boolean"
        make = (
            (lambda y: pd.array(y, dtype=name))
            if kind == "array"
            else (lambda y: pd.Series(y, dtype=name))
        )
    for target in (ClassificationTarget(LogLoss()), PairTarget()):
        y = target.check(make(labels * 2))
        values = target.sample(y)
        assert values.dtype == np.array(labels).dtype
        assert values.tolist() == labels
    target = ClassificationTarget(LogLoss()).fit(values)
    assert target.classes_.dtype == values.dtype
    assert target.classes_.tolist() == labels
    assert target.encode(y).tolist() == [0, 1, 0, 1]


def test_nullable_labels_are_predicted_as_they_are(classifier, numbers, tmp_path):
    rows = (numbers[:, 0] > 0).astype(int)
    for values, kind in ((np.array(LARGE)[rows], "Int64"), (rows == 1, "boolean")):
        y = pd.Series(values, dtype=kind)
        frame = pd.DataFrame(numbers, columns=["a", "b"]).assign(label=y)
        frame.to_parquet(tmp_path / "rows.parquet")
        quick = {"max_epochs": 1, "trees": None}
        of_path = classifier(**quick).fit(str(tmp_path / "rows.parquet"), "label")
        model = classifier(**quick).fit(frame[["a", "b"]], y)
        for each in (model, of_path):
            assert each.classes_.tolist() == np.unique(values).tolist()
            assert each.predict(frame).dtype == values.dtype


def test_large_labels_of_another_integer_type_do_not_merge(classifier, numbers):
    model = classifier(max_epochs=1, trees=None)
    y = np.array(LARGE)[(numbers[:, 0] > 0).astype(int)]
    model.fit(numbers, y, eval_set=[(numbers, y.astype(np.uint64))])
    assert model._target.encode(np.array(LARGE, dtype=np.uint64)).tolist() == [0, 1]
    assert model._target.encode(np.array([2.0**53])).tolist() == [0]
    with pytest.raises(ValueError, match="not seen before"):
        model._target.encode(np.array([2**53 + 2], dtype=np.uint64))


def test_multiclass_labels(classifier, numbers):
    labels = np.array(["left", "middle", "right"])
    y = labels[np.digitize(numbers[:, 0], [-0.5, 0.5])]
    model = classifier(**LEARNS).fit(numbers, y)
    assert model.classes_.tolist() == ["left", "middle", "right"]
    assert model.score(numbers, y) > 0.8
    probabilities = model.predict_proba(numbers)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(labels[probabilities.argmax(1)], model.predict(numbers))
    decision = model.decision_function(numbers)
    assert decision.shape == (200, 3)
    np.testing.assert_array_equal(decision.argmax(1), probabilities.argmax(1))


@pytest.mark.parametrize("make", [np.asarray, pd.DataFrame, csr_matrix, lambda y: y.astype(bool)])
def test_multilabel(make, classifier, numbers):
    y = np.column_stack([numbers[:, 0] > 0, numbers[:, 1] > 0, numbers[:, 0] < 0]).astype(int)
    model = classifier(**LEARNS).fit(numbers, make(y))
    assert model.classes_.tolist() == [0, 1, 2]
    assert (model.predict(numbers) == y).mean() > 0.9
    assert model.predict_proba(numbers).shape == (200, 3)
    assert model.decision_function(numbers).shape == (200, 3)
    assert model.evals_result_["valid_0"]["log_loss"][-1] < 0.5
    with pytest.raises(ValueError, match="y must have 3 columns"):
        classifier().fit(numbers, make(y), eval_set=[(numbers, y[:, :2])])


def test_multilabel_partial_fit(classifier, numbers):
    y = np.column_stack([numbers[:, 0] > 0, numbers[:, 1] > 0]).astype(int)
    model = classifier().partial_fit(numbers, csr_matrix(y)).partial_fit(numbers, y)
    assert model.predict(numbers).shape == (200, 2)


def test_a_rare_class_is_kept(classifier, numbers):
    y = np.array(["common", "other"] * 100, dtype=object)
    y[7] = "rare"
    model = classifier().fit(numbers, y)
    assert model.classes_.tolist() == ["common", "other", "rare"]
    assert model.predict_proba(numbers).shape == (200, 3)


def test_member_probabilities_are_averaged(classifier, numbers):
    y = (numbers[:, 0] > 0).astype(int)
    model = classifier(trunk=TabM(members=3, width=16)).fit(numbers, y)
    assert model.transform(numbers).shape == (200, 16)
    assert model.predict_proba(numbers).shape == (200, 2)


# ---------------------------------------------------------------------- class weights


@pytest.fixture
def unbalanced():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(300, 1))
    return X, np.where(rng.random(300) < 0.15 + 0.1 * (X[:, 0] > 0), "rare", "common")


def rare_probability(model, X, y, **fit_params):
    model.set_params(max_epochs=8, learning_rate=0.01).fit(X, y, **fit_params)
    return model.predict_proba(X)[:, list(model.classes_).index("rare")].mean()


def test_class_weights_shift_probabilities(classifier, unbalanced):
    plain = rare_probability(classifier(), *unbalanced)
    balanced = rare_probability(classifier(class_weight="balanced"), *unbalanced)
    weights = {"rare": 20.0, "common": 1.0}
    heavy = rare_probability(classifier(class_weight=weights), *unbalanced)
    assert plain == pytest.approx(0.2, abs=0.1)
    assert balanced == pytest.approx(0.5, abs=0.1)
    assert heavy > 0.7


def test_class_weights_equal_sample_weights(classifier, unbalanced):
    X, y = unbalanced
    by_class = classifier(class_weight={"rare": 4.0}).fit(X, y)
    by_row = classifier().fit(X, y, sample_weight=np.where(y == "rare", 4.0, 1.0))
    np.testing.assert_allclose(by_class.predict_proba(X), by_row.predict_proba(X), rtol=1e-5)


def test_class_weights_multiply_sample_weights(classifier, unbalanced):
    X, y = unbalanced
    rows = np.linspace(1, 2, len(y))
    both = classifier(class_weight={"rare": 4.0, "common": 1.0}).fit(X, y, sample_weight=rows)
    product = rows * np.where(y == "rare", 4.0, 1.0)
    by_row = classifier().fit(X, y, sample_weight=product)
    np.testing.assert_allclose(both.predict_proba(X), by_row.predict_proba(X), rtol=1e-5)


@pytest.mark.parametrize(
    "weights",
    [
        {"rare": -1.0},
        {"rare": np.nan},
        {"rare": "much"},
        {"rare": 0.0, "common": 0.0},
        {"unknown": 1.0},
        "even",
        3.0,
    ],
    ids=str,
)
def test_bad_class_weights(weights, classifier, unbalanced, recorder):
    with pytest.raises(ValueError, match="class_weight"):
        classifier(class_weight=weights, callbacks=[recorder]).fit(*unbalanced)
    assert recorder.epochs == 0


def test_class_weights_of_what_is_no_class(classifier, numbers, recorder):
    labels = np.tile(["0", "1"], len(numbers) // 2)
    by_label = classifier(class_weight={"0": 1.0, "1": 5.0}).fit(numbers, labels)
    assert by_label._target.class_weights_.tolist() == [1 / 8, 5 / 8]
    model = classifier(class_weight={"0": 1.0, "1": 5.0}, callbacks=[recorder])
    message = r"keys that are no class: \['0', '1'\]; the classes are \[0, 1\]"
    with pytest.raises(ValueError, match=message):
        model.fit(numbers, labels.astype(int))
    model.set_params(class_weight={"0": 1.0, 1: 5.0})
    with pytest.raises(ValueError, match=r"no class: \[1\]; the classes are \['0', '1'\]"):
        model.fit(numbers, labels)
    assert recorder.epochs == 0
    # As in scikit-learn: a class that these rows lack may have a weight.
    classifier(class_weight={"0": 1.0, "1": 5.0, "2": 1.0}).fit(numbers, labels)


@pytest.mark.parametrize("classes", [2, 3, "labels"])
def test_log_probabilities(classes, classifier, numbers):
    if classes == "labels":
        y = (numbers[:, :2] > 0).astype(int)
    else:
        y = np.arange(len(numbers)) % classes
    model = classifier().fit(numbers, y)
    logs = model.predict_log_proba(numbers)
    np.testing.assert_allclose(logs, np.log(model.predict_proba(numbers)), rtol=1e-9)
    # Where probabilities are 0, their logarithms are not infinite.
    outputs = torch.full((1, model._head.out_features), -1e4)
    outputs[0, 0] = 0 if classes == 3 else 1e4
    sure = model.predict_log_proba(GivenOutputs(outputs))
    assert np.isfinite(sure).all()
    assert sure.min() == -1e4
    assert model.n_classes_ == (2 if classes == "labels" else classes)
    assert not hasattr(classifier(), "n_classes_")
    call = StoredCall(model, "predict_log_proba", {}, Values("log_probability"), "_read")
    assert call.results.names(call)[-1] == f"log_probability_{model.classes_[-1]}"


def test_class_weights_of_labels_raise(classifier, numbers):
    y = (numbers > 0).astype(int)
    with pytest.raises(ValueError, match="class_weight is not defined for multilabel"):
        classifier(class_weight="balanced").fit(numbers, y)


# ---------------------------------------------------------------------- the fitted estimator


@pytest.mark.parametrize(
    "method", ["predict", "predict_proba", "decision_function", "transform", "score"]
)
def test_unfitted_raises(method, numbers):
    arguments = (numbers, numbers[:, 0]) if method == "score" else (numbers,)
    with pytest.raises(NotFittedError):
        getattr(EasyTensorClassifier(), method)(*arguments)
    with pytest.raises(NotFittedError):
        EasyTensorClassifier().feature_importances_  # noqa: B018


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_transform_gives_named_columns(library, classifier, labelled):
    frame, y = labelled
    model = classifier().set_output(transform=library).fit(frame, y)
    represented = model.transform(frame)
    assert list(represented.columns) == [f"easytensorclassifier{i}" for i in range(16)]
    assert list(model.get_feature_names_out()) == list(represented.columns)
    assert type(represented).__module__.startswith(library)
    plain = model.set_output(transform="default").transform(frame)
    assert plain.dtype == np.float32
    np.testing.assert_array_equal(represented.to_numpy(), plain)


def test_fit_again_starts_afresh(classifier, labelled, numbers):
    model = classifier().fit(*labelled)
    y = (numbers[:, 0] > 0).astype(int)
    again = model.fit(numbers, y).predict_proba(numbers)
    np.testing.assert_array_equal(again, classifier().fit(numbers, y).predict_proba(numbers))
    assert model.n_features_in_ == 2
    assert not hasattr(model, "feature_names_in_")


def test_no_configuration_learns_mixed_columns(labelled):
    frame, y = labelled
    frame, y = pd.concat([frame] * 2, ignore_index=True), np.tile(y, 2)
    model = EasyTensorClassifier(random_state=0, max_epochs=30).fit(frame, y)
    assert model.score(frame, y) > 0.8
