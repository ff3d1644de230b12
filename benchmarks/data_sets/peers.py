"""Gradient-boosted trees behind one interface, each fed what it needs.

Every library keeps its defaults, except for what early stopping on the validation part asks for:
2,000 iterations at most and a patience of 50. Two keep more of their own: CatBoost its 1,000
iterations, from which it derives its learning rate, and HistGradientBoosting its patience of 10,
because it predicts with the last iteration and not with the best. Categories go in by each
library's own native route, and dates, which none of the four reads, as numbers. All of this
preparation counts as fit and predict time.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pandas as pd

MAX_ITERATIONS = 2000
PATIENCE = 50
DATE_PARTS = ("year", "month", "day", "dayofweek", "hour", "minute")


class Peer(ABC):
    """A model of one library: `fit` on a problem, then `predict` on a table.

    Parameters
    ----------
    problem : Problem
        What the model is for.
    threads : int
        Threads the library may use.
    time_limit : float
        Seconds after which fitting stops, where the library can be stopped (CatBoost).
    """

    library = ""

    def __init__(self, problem, threads, time_limit):
        self.threads = threads
        self.time_limit = time_limit
        self.note = ""
        self.predicts_values = problem.task == "regression"
        self.model_ = self._make(problem)

    @classmethod
    def installed(cls):
        """Whether the library can be imported."""
        return find_spec(cls.library) is not None

    @classmethod
    def version(cls):
        """Version of the library."""
        return import_module(cls.library).__version__

    @abstractmethod
    def fit(self, problem):
        """Fit on the training part, stopping early on the validation part."""

    def predict(self, X):
        """Predicted values, or class probabilities with one column a class."""
        predict = self.model_.predict if self.predicts_values else self.model_.predict_proba
        return predict(self._prepare(X))

    @abstractmethod
    def iterations(self):
        """Trees (or boosting rounds) kept."""

    @abstractmethod
    def _make(self, problem):
        """Return the model, not fitted."""

    @abstractmethod
    def _prepare(self, X):
        """Return a table as the model takes it."""


class LightGBM(Peer):
    """LightGBM on pandas categories."""

    library = "lightgbm"

    def _make(self, problem):
        import lightgbm

        kind = lightgbm.LGBMRegressor if problem.task == "regression" else lightgbm.LGBMClassifier
        return kind(
            n_estimators=MAX_ITERATIONS,
            n_jobs=self.threads,
            random_state=problem.seed,
            verbose=-1,
        )

    def fit(self, problem):
        import lightgbm

        self.levels_ = category_levels(problem.train.X)
        self.model_.fit(
            self._prepare(problem.train.X),
            problem.train.y,
            eval_set=[(self._prepare(problem.valid.X), problem.valid.y)],
            callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
        )

    def _prepare(self, X):
        return as_categories(dates_to_numbers(X), self.levels_)

    def iterations(self):
        return int(self.model_.best_iteration_)


class XGBoost(Peer):
    """XGBoost on pandas categories."""

    library = "xgboost"

    def _make(self, problem):
        import xgboost

        kind = xgboost.XGBRegressor if problem.task == "regression" else xgboost.XGBClassifier
        return kind(
            n_estimators=MAX_ITERATIONS,
            early_stopping_rounds=PATIENCE,
            enable_categorical=True,
            n_jobs=self.threads,
            random_state=problem.seed,
        )

    def fit(self, problem):
        self.levels_ = category_levels(problem.train.X)
        self.model_.fit(
            self._prepare(problem.train.X),
            problem.train.y,
            eval_set=[(self._prepare(problem.valid.X), problem.valid.y)],
            verbose=False,
        )

    def _prepare(self, X):
        return as_categories(dates_to_numbers(X), self.levels_)

    def iterations(self):
        return int(self.model_.best_iteration) + 1


class CatBoost(Peer):
    """CatBoost on strings, with a deadline."""

    library = "catboost"

    def _make(self, problem):
        import catboost

        if problem.task == "regression":
            kind, loss = catboost.CatBoostRegressor, "RMSE"
        else:
            kind = catboost.CatBoostClassifier
            loss = "Logloss" if problem.task == "binary" else "MultiClass"
        return kind(
            loss_function=loss,
            early_stopping_rounds=PATIENCE,
            thread_count=self.threads,
            random_seed=problem.seed,
            allow_writing_files=False,
            verbose=False,
        )

    def fit(self, problem):
        self.levels_ = category_levels(problem.train.X)
        deadline = _Deadline(self.time_limit)
        self.model_.fit(
            self._prepare(problem.train.X),
            problem.train.y,
            cat_features=list(self.levels_),
            eval_set=(self._prepare(problem.valid.X), problem.valid.y),
            callbacks=[deadline],
        )
        if deadline.passed:
            self.note = (
                f"stopped after {self.time_limit:.0f} s, at {deadline.iterations} iterations"
            )

    def _prepare(self, X):
        return as_strings(dates_to_numbers(X), self.levels_)

    def iterations(self):
        return int(self.model_.tree_count_)


class HistGradientBoosting(Peer):
    """scikit-learn's HistGradientBoosting on ordinal codes.

    It takes at most 255 categories a column, so the rarest levels of wider columns share one.
    """

    library = "sklearn"

    def _make(self, problem):
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        regression = problem.task == "regression"
        kind = HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier
        return kind(
            max_iter=MAX_ITERATIONS,
            early_stopping=True,
            categorical_features=list(category_levels(problem.train.X)),
            random_state=problem.seed,
        )

    def fit(self, problem):
        from sklearn.preprocessing import OrdinalEncoder
        from threadpoolctl import threadpool_limits

        self.levels_ = category_levels(problem.train.X)
        self.encoder_ = OrdinalEncoder(
            handle_unknown="use_encoded_value", unknown_value=np.nan, max_categories=254
        )
        if self.levels_:
            self.encoder_.fit(problem.train.X[list(self.levels_)].astype(object))
        with threadpool_limits(self.threads):
            self.model_.fit(
                self._prepare(problem.train.X),
                problem.train.y,
                X_val=self._prepare(problem.valid.X),
                y_val=problem.valid.y,
            )

    def _prepare(self, X):
        X = dates_to_numbers(X)
        names = list(self.levels_)
        if names:
            codes = self.encoder_.transform(X[names].astype(object))
            X = X.assign(**dict(zip(names, codes.T, strict=True)))
        return X

    def iterations(self):
        return int(self.model_.n_iter_)


PEERS = {
    "LightGBM": LightGBM,
    "XGBoost": XGBoost,
    "CatBoost": CatBoost,
    "HistGB": HistGradientBoosting,
}


def category_levels(X):
    """Levels of every column that is neither a number nor a date."""
    names = X.select_dtypes(exclude=["number", "bool", "datetime"]).columns
    return {name: sorted(X[name].dropna().unique()) for name in names}


def dates_to_numbers(X):
    """Replace every date column by its parts and its distance from 1970 in days."""
    dates = list(X.select_dtypes("datetime").columns)
    parts = {}
    for name in dates:
        moments = X[name].dt
        parts |= {f"{name}_{part}": getattr(moments, part).astype(float) for part in DATE_PARTS}
        parts[f"{name}_days"] = (X[name] - pd.Timestamp(0)) / pd.Timedelta(days=1)
    return X.drop(columns=dates).assign(**parts) if dates else X


def as_categories(X, levels):
    """Cast to pandas categories of the given levels; any other level becomes missing."""
    return X.astype({name: pd.CategoricalDtype(values) for name, values in levels.items()})


def as_strings(X, levels):
    """Cast to strings, with a word for the missing value."""
    return X.assign(**{name: X[name].astype(object).fillna("missing") for name in levels})


class _Deadline:
    """CatBoost callback that ends training after some seconds."""

    def __init__(self, seconds):
        self.end = time.perf_counter() + seconds
        self.iterations = 0
        self.passed = False

    def after_iteration(self, info):
        self.iterations = info.iteration
        self.passed = time.perf_counter() > self.end
        return not self.passed
