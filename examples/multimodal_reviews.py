"""Text, categories and numbers in one model
=========================================

Text, categories and numbers in one model, beside what one would build by hand.

Customers' reviews of clothes: who recommends the piece? EasyTensorClassifier gets the table as it
is, texts and missing values included. Beside it stand gradient-boosted trees without the texts,
the same trees with a text pipeline in front, and a linear model that reads nothing but the texts.
All of them are fitted here, on the same rows, and measured on the same 20% held out.

Run it with ``python examples/multimodal_reviews.py``; it takes a minute or two and leaves a picture
of feature importances and learning curves behind.
"""

import argparse
import time
import warnings
from dataclasses import dataclass
from functools import partial

import lightgbm
import matplotlib
import numpy as np
import pandas as pd
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from sk_easytensor import EasyTensorClassifier
from sk_easytensor.datasets import load_clothing_reviews

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TEXTS = ["title", "review_text"]


@dataclass
class Rows:
    """Features and target of some rows."""

    X: pd.DataFrame
    y: pd.Series


def main():
    """Fit all models, print the comparison and save the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", default="multimodal_reviews.png", help="file of the picture")
    options = parser.parse_args()

    train, valid, test = split(load_clothing_reviews())
    print(f"{len(train.X)} rows to train on, {len(valid.X)} to stop on, {len(test.X)} held out")
    print(f"columns: {', '.join(train.X.columns)}\n")

    results = {}
    model = EasyTensorClassifier(random_state=0, n_jobs=2, verbose=1)
    seconds = timed(lambda: model.fit(train.X, train.y, eval_set=[(valid.X, valid.y)]))
    results["EasyTensor (the table as it is)"] = measure(model.predict_proba(test.X), test, seconds)

    for name, fit_and_predict in {
        "LightGBM (without texts)": lightgbm_without_texts,
        "LightGBM (TF-IDF, SVD-64)": lightgbm_with_texts,
        "Logistic regression (TF-IDF, C=3)": partial(logistic_regression_on_words, C=3),
        "Logistic regression (TF-IDF, C=10)": partial(logistic_regression_on_words, C=10),
    }.items():
        print(f"fitting {name}")
        probabilities, seconds = fit_and_predict(train, valid, test)
        results[name] = measure(probabilities, test, seconds)

    print_results(results)
    save_picture(model, options.output)
    print(f"\nFeature importances and learning curves: {options.output}")


def split(reviews):
    """Split into 64% for training, 16% for early stopping and 20% held out."""
    X, X_test, y, y_test = train_test_split(
        reviews.data, reviews.target, test_size=0.2, stratify=reviews.target, random_state=0
    )
    X, X_valid, y, y_valid = train_test_split(X, y, test_size=16 / 80, stratify=y, random_state=0)
    return Rows(X, y), Rows(X_valid, y_valid), Rows(X_test, y_test)


def timed(work):
    """Seconds that a call takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def measure(probabilities, test, seconds):
    """Metrics on the held-out rows."""
    return {
        "AUC": roc_auc_score(test.y, probabilities[:, 1]),
        "log loss": log_loss(test.y, probabilities),
        "fit seconds": seconds,
    }


def lightgbm_without_texts(train, valid, test):
    """Trees on categories and numbers."""
    begin = time.perf_counter()
    table = to_lightgbm_columns(train)
    model = fit_lightgbm(table(train.X), train.y, table(valid.X), valid.y)
    seconds = time.perf_counter() - begin
    return model.predict_proba(table(test.X)), seconds


def lightgbm_with_texts(train, valid, test):
    """Trees on categories, numbers and 64 components of the words' TF-IDF weights."""
    begin = time.perf_counter()
    table = to_lightgbm_columns(train)
    words = make_pipeline(words_to_weights(), TruncatedSVD(64, random_state=0))
    words.fit(joined_texts(train.X))

    def features(X):
        components = words.transform(joined_texts(X))
        names = [f"text_{index}" for index in range(components.shape[1])]
        return pd.concat([table(X), pd.DataFrame(components, index=X.index, columns=names)], axis=1)

    model = fit_lightgbm(features(train.X), train.y, features(valid.X), valid.y)
    seconds = time.perf_counter() - begin
    return model.predict_proba(features(test.X)), seconds


def logistic_regression_on_words(train, valid, test, C):
    """A linear model on the TF-IDF weights of words and pairs of words, texts only."""
    begin = time.perf_counter()
    model = make_pipeline(words_to_weights(), LogisticRegression(C=C, max_iter=1000))
    model.fit(joined_texts(train.X), train.y)
    seconds = time.perf_counter() - begin
    return model.predict_proba(joined_texts(test.X)), seconds


def words_to_weights():
    """TF-IDF weights of words and pairs of words seen in three rows or more."""
    return TfidfVectorizer(ngram_range=(1, 2), min_df=3, sublinear_tf=True)


def joined_texts(X):
    """One text a row."""
    return X["title"].fillna("") + " " + X["review_text"].fillna("")


def to_lightgbm_columns(train):
    """Return a function that drops the texts and turns strings into training categories."""
    table = train.X.drop(columns=TEXTS)
    strings = table.select_dtypes(exclude="number").columns
    levels = {name: pd.CategoricalDtype(table[name].dropna().unique()) for name in strings}
    return lambda X: X.drop(columns=TEXTS).astype(levels)


def fit_lightgbm(X, y, X_valid, y_valid):
    """Fit LightGBM with early stopping, in one thread: more gain nothing on so few rows."""
    model = lightgbm.LGBMClassifier(n_estimators=2000, n_jobs=1, random_state=0, verbose=-1)
    stopping = lightgbm.early_stopping(50, verbose=False)
    with warnings.catch_warnings():
        # The newest LightGBM has another name for eval_set, which older ones do not know.
        warnings.filterwarnings("ignore", message="The argument 'eval_set' is deprecated")
        return model.fit(X, y, eval_set=[(X_valid, y_valid)], callbacks=[stopping])


def print_results(results):
    """Print one aligned line a model."""
    table = pd.DataFrame(results).T
    formats = {"AUC": "{:.4f}", "log loss": "{:.4f}", "fit seconds": "{:.1f}"}
    print("\nOn the 20% held out:")
    print(table.to_string(formatters={name: form.format for name, form in formats.items()}))


def save_picture(model, path):
    """Draw feature importances and learning curves."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")

    order = np.argsort(model.feature_importances_)
    errors = model.importances_std_[order]
    left.barh(model.feature_names_in_[order], model.feature_importances_[order], xerr=errors)
    left.set_title("Feature importances")

    for part, label in {"training": "training", "valid_0": "validation"}.items():
        curve = model.evals_result_[part]["log_loss"]
        right.plot(np.arange(1, len(curve) + 1), curve, label=label)
    best = model.best_iteration_
    right.axvline(best, color="gray", linestyle="--", label=f"best epoch: {best}")
    right.set_title("Learning curves")
    right.set_xlabel("epoch")
    right.xaxis.get_major_locator().set_params(integer=True)
    right.set_ylabel("log loss")
    right.legend()

    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
