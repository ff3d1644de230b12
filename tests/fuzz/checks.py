"""What must be true of a fit and of predictions, whatever the table."""

import copy
import pickle
import tempfile
import warnings

import numpy as np
import pandas as pd
from sklearn.base import clone

from sk_easytensor import (
    EasyTensorClassifier,
    EasyTensorEmbedder,
    EasyTensorMultiTask,
    EasyTensorTwoTower,
)

from .cases import FOREIGN_NAMES, build
from .containers import Unbuildable, as_list, attempted, fingerprint, reordered, taken
from .outcomes import Result, classify, frames, signature, written

TOLERANCE, ONNX_TOLERANCE = 1e-5, 1e-4


class Wrong(AssertionError):
    """An answer that is wrong without a word."""

    def __init__(self, what, details=""):
        super().__init__(f"{what}: {details}" if details else what)
        self.what = what


class Refused(Exception):
    """A refusal that is in order, with the error that said it."""


class Run:
    """One case, run.

    Parameters
    ----------
    seed : int
    folder : str
        Empty directory.
    onnx : float
        Share of the cases of which the exported model is compared as well.
    say : callable
        Given a word for each step before it begins.
    """

    def __init__(self, seed, folder, onnx=0.0, say=lambda step: None):
        self.seed, self.folder, self.say = seed, folder, say
        self.random = np.random.default_rng([seed, 1])
        self.with_onnx = self.random.random() < onnx
        self.case = None

    def result(self):
        """Run the case.

        Returns
        -------
        Result
        """
        step = self.say
        step("build")
        try:
            self.case = build(self.seed, self.folder)
        except Unbuildable as error:
            return Result("unbuildable", "unbuildable", str(error)[:60])
        kind = self.case.kind
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                self.check()
        except Refused as refusal:
            return Result("refused", kind, "", str(refusal))
        except Wrong as error:
            return Result("wrong", kind, f"{error.what}", written(error))
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
                raise
            if not of_library(error):
                raise
            return Result("unnamed", kind, f"{self.doing}: {signature(error)}", written(error))
        return Result("ok", kind)

    def step(self, name):
        self.doing = name
        self.say(name)

    def attempt(self, doing, function, *args, **kwargs):
        """Call a method of the library and sort its errors."""
        self.step(doing)
        try:
            return function(*args, **kwargs)
        except Exception as error:
            named = [*self.case.named, *FOREIGN_NAMES, self.folder]
            if of_library(error) and classify(error, named) == "refused":
                raise Refused(f"{doing}: {type(error).__name__}: {error}") from error
            raise

    def check(self):
        case = self.case
        before = {name: fingerprint(value) for name, value in case.fit.items()}
        model = self.attempt("fit", clone_of(case.model).fit, **case.fit)
        for name, value in case.fit.items():
            if fingerprint(value) != before[name]:
                raise Wrong(f"fit changed {name}")
        self.check_training_rows(model)
        if isinstance(model, EasyTensorClassifier):
            self.check_classes(model)
        refusals = []
        found = None
        if "new" in case.new:
            try:
                found = self.check_rows(model, "new", case.new["new"])
            except Refused as refusal:
                if case.plain:
                    raise Wrong("plain rows are refused", str(refusal)) from refusal
                refusals.append(refusal)
        for name, X in case.new.items():
            if name == "new":
                continue
            try:
                if name.startswith("alike"):
                    self.compare(name, found, self.attempt(name, outputs, model, X))
                else:
                    self.check_rows(model, name, X)
            except Refused as refusal:
                if case.plain and name.startswith("alike"):
                    raise Wrong("alike rows are refused", str(refusal)) from refusal
                if name in ("new", "junk"):
                    refusals.append(refusal)
        if self.random.random() < 0.3:
            again = self.attempt("refit", clone_of(case.model).fit, **case.fit)
            self.compare_bits("another fit", model, again, case.fit["X"])
        for X in case.again:
            other = self.attempt("fit alike", clone_of(case.model).fit, X, case.fit["y"])
            self.compare("fit on an alike table", found, outputs(other, case.new["new"]))
        if self.with_onnx and found is not None:
            self.check_onnx(model, case.new["new"])
        if refusals:
            raise refusals[0]

    def check_training_rows(self, model):
        """Predict the rows of fit, all of whose categories are known."""
        X = self.case.fit["X"]
        if isinstance(model, (EasyTensorEmbedder, EasyTensorTwoTower)):
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = self.attempt("training rows", outputs, model, X)
        check_finite("training rows", found)
        for warning in caught:
            if "saw during fit" in str(warning.message):
                raise Wrong("training rows are unseen categories", str(warning.message))

    def check_classes(self, model):
        known = np.asarray(model.classes_)
        found = self.attempt("predict", model.predict, self.case.fit["X"])
        if np.ndim(found) == 1 and not np.isin(found, known).all():
            raise Wrong("predicted classes are not of classes_", f"{found[:5]}, {known[:5]}")
        if isinstance(self.case.fit["y"], str):
            return
        try:
            given = list(dict.fromkeys(as_list(self.case.fit["y"])))
        except TypeError:
            return
        missing = [value for value in given if not (known == value).any()]
        if np.ndim(found) == 1 and missing and "sample_weight" not in self.case.fit:
            raise Wrong("classes of y are not in classes_", f"{missing}, {known}")

    def check_rows(self, model, name, X):
        """Predict rows, in several ways that must not matter."""
        before = fingerprint(X)
        found = self.attempt(name, outputs, model, X)
        check_finite(name, found)
        if fingerprint(X) != before:
            raise Wrong("predict changed X", name)
        self.compare_bits("pickle", model, pickled(model), X)
        if isinstance(model, EasyTensorEmbedder) and "user" in self.case.fit:
            return found
        n = len(found)
        for word, rows in (("permuted", self.random.permutation(n)), ("some", range(min(2, n)))):
            part = attempted(taken, X, rows)
            if part is None:
                continue
            try:
                alone = self.attempt(f"{name}, {word} rows", outputs, model, part)
            except Refused:
                # A table of few rows may hold no value that says what its columns are.
                if self.case.plain:
                    raise
                continue
            # Some rows may have predictions near 0, where those of all rows are not.
            self.compare(f"{name}, {word} rows", found[list(rows)], alone, scale_of=found)
        other = attempted(reordered, X)
        if other is not None and has_names(X):
            self.compare(
                f"{name}, columns reordered", found, self.attempt(name, outputs, model, other)
            )
        return found

    def check_onnx(self, model, X):
        from sk_easytensor.inference import load

        self.step("onnx")
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = model.to_onnx(f"{folder}/model.onnx")
            except (TypeError, RuntimeError, ValueError) as error:
                if isinstance(error, ValueError) and classify(error, self.case.named) != "refused":
                    raise
                if frames(error)[-1].filename.find("sk_easytensor") < 0:
                    raise
                return
            predictor = load(path)
            expected = outputs(model, X)
            if isinstance(model, EasyTensorEmbedder) and model._user is not None:
                # Files read lists, not logs.
                X = model.collect(X)
            try:
                found = outputs(predictor, X)
            except ValueError as error:
                # Columns of items that the estimator looks up in its catalogue.
                if classify(error, self.case.named) != "refused":
                    raise
                return
            self.compare("onnx", expected, found, ONNX_TOLERANCE)

    def compare_bits(self, name, model, other, X):
        self.step(name)
        try:
            first = outputs(model, X)
        except Exception:
            return
        if not np.array_equal(first, outputs(other, X), equal_nan=True):
            raise Wrong(f"{name} predicts otherwise")

    def compare(self, name, expected, found, tolerance=TOLERANCE, scale_of=None):
        label = "alike table" if name.startswith("alike") else name
        if expected is None:
            return
        if np.shape(expected) != np.shape(found):
            raise Wrong(f"{label}: another shape", f"{np.shape(expected)}, {np.shape(found)}")
        scaled = expected if scale_of is None else scale_of
        scale = max(1e-300, float(np.abs(scaled).max(initial=0)))
        difference = np.abs(np.subtract(expected, found)).max(initial=0)
        if not difference <= tolerance * max(scale, 1e-12):
            raise Wrong(f"{label}: other predictions", f"{name}: by {difference} of {scale}")


def of_library(error):
    """Tell whether an error came through the library, and not from this fuzzer alone."""
    return any("sk_easytensor/" in frame.filename.replace("\\", "/") for frame in frames(error))


def clone_of(model):
    """Return an unfitted copy; parameters that clone refuses are copied as they are."""
    try:
        return clone(model)
    except Exception:
        return copy.deepcopy(model)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def has_names(X):
    if isinstance(X, pd.DataFrame):
        return all(isinstance(name, str) for name in X.columns)
    return not isinstance(X, list) or isinstance(X[0], dict)


def outputs(model, X):
    """Return what a model makes of rows, as an array of numbers."""
    exported = getattr(model, "metadata_", None)
    name = type(model).__name__ if exported is None else exported["estimator"]
    if name == EasyTensorEmbedder.__name__:
        return np.asarray(model.transform(X))
    if name == EasyTensorTwoTower.__name__:
        return np.asarray(model.decision_function(X))[:, None]
    if isinstance(model, EasyTensorMultiTask) or getattr(model, "kind", "") == "tasks":
        return task_outputs(model, X)
    known = getattr(model, "classes_", None)
    return two_axes(model.predict(X) if known is None else model.predict_proba(X))


def task_outputs(model, X):
    shares = model.predict_proba(X) if model.classes_ else {}
    numbers = model.predict(X)
    parts = [shares.get(task, numbers[task]) for task in numbers]
    return np.column_stack([two_axes(part) for part in parts])


def two_axes(values):
    array = np.asarray(values, dtype=float)
    return array[:, None] if array.ndim == 1 else array


def check_finite(name, found):
    if not np.isfinite(found).all():
        raise Wrong(f"{name}: predictions are not finite", str(found.ravel()[:5]))
