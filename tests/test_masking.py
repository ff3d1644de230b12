"""No password of a URL is displayed, and none is stored with a fitted model."""

import copy
import pickle
import traceback
import warnings
from io import BytesIO
from urllib.parse import quote

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sk_easytensor import (
    MLP,
    CategoryBlock,
    EasyTensorClassifier,
    EasyTensorEmbedder,
    EasyTensorTwoTower,
    NumericBlock,
)
from sk_easytensor._utils.masking import MaskedUrl, mask_error, masked
from sk_easytensor.safe_loading import trusted_types
from sk_easytensor.tracking import MLflowTracker

SECRET = "swordfish42"
WHERE = f"memory://key:{SECRET}@depot77/fit"
QUICK = {"trunk": MLP(width=4), "max_epochs": 2, "random_state": 0}
TREELESS = {**QUICK, "trees": None}


def rows(n_rows=60):
    rng = np.random.default_rng(0)
    return pd.DataFrame({"a": rng.normal(size=n_rows), "c": rng.choice(list("xy"), n_rows)})


X = rows()
y = np.where(X["a"] > 0, "yes", "no")


def displays(estimator):
    """Return everything that displays an estimator."""
    return [
        repr(estimator),
        str(estimator),
        f"{estimator}",
        estimator._repr_html_(),
        repr(make_pipeline(estimator)),
        make_pipeline(estimator)._repr_html_(),
        repr(GridSearchCV(estimator, {"max_epochs": [1]})),
        str(estimator.get_params()),
    ]


# ------------------------------------------------------------------ texts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://u:pw@host/a", "http://***@host/a"),
        ("s3://KEY:a/b+c=@bucket/x", "s3://***@bucket/x"),
        ("https://token@host/a", "https://***@host/a"),
        ("postgresql+psycopg2://u:p@ss@db:5432/x", "postgresql+psycopg2://***@db:5432/x"),
        ("PosixPath('s3:/u:pw@b/x')", "PosixPath('s3:/***@b/x')"),
        ("https://h/a?sv=1&sig=x%3D&b=2#c", "https://h/a?sv=1&sig=***&b=2#c"),
        ("https://h/a?x=1&amp;token=abc", "https://h/a?x=1&amp;token=***"),
        ("('http://u:pw@h', 3)", "('http://***@h', 3)"),
        # None of these has a password.
        ("http://host:80/people/me@home", "http://host:80/people/me@home"),
        ("s3://bucket/me@home.parquet", "s3://bucket/me@home.parquet"),
        ("me@home, you:me@home", "me@home, you:me@home"),
        ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
        ("https://h/a?page=2&b=3", "https://h/a?page=2&b=3"),
    ],
)
def test_texts(text, expected):
    assert masked(text) == expected
    assert masked(expected) == expected


@given(st.text(min_size=4), st.sampled_from(["s3", "http", "postgresql+x"]), st.text(max_size=9))
def test_quoted_passwords_never_remain(password, scheme, around):
    password = "pw" + quote(password, safe="")
    text = f"{around} {scheme}://user:{password}@host/path?access_token={password} {around}"
    assert password not in masked(text).replace(around, "")


def test_errors_are_masked_with_all_that_they_came_from():
    cause = FileNotFoundError(2, "no such file", f"http://u:{SECRET}@h")
    cause.add_note(f"http://u:{SECRET}@h")
    error = ValueError(f"cannot read http://u:{SECRET}@h/x")
    error.__cause__ = cause
    mask_error(error)
    assert str(error) == "cannot read http://***@h/x"
    assert "".join(traceback.format_exception(error)).count("***") == 3


def test_errors_in_attributes_of_errors_are_masked():
    error = RuntimeError("workers failed")
    error.worker_failures = {0: ValueError(f"cannot read http://u:{SECRET}@h/x")}
    error.cause = OSError(f"cannot read http://u:{SECRET}@h/y")
    mask_error(error)
    assert str(error.worker_failures[0]) == "cannot read http://***@h/x"
    assert str(error.cause) == "cannot read http://***@h/y"


# ------------------------------------------------------------------ estimators


def test_parameters_work_and_are_displayed_without_secrets():
    estimator = EasyTensorClassifier(
        checkpoint_dir=WHERE, tracker=MLflowTracker(f"http://u:{SECRET}@h", tags={"a": WHERE})
    )
    for text in displays(estimator):
        assert SECRET not in text
    assert "***@depot77/fit" in repr(estimator)
    assert estimator.checkpoint_dir == WHERE
    assert clone(estimator).checkpoint_dir == WHERE
    # Searches send estimators to other processes before they are fitted.
    sent = pickle.loads(pickle.dumps(estimator))
    assert (sent.checkpoint_dir, type(sent.checkpoint_dir)) == (WHERE, MaskedUrl)
    assert sent.tracker.tracking_uri == f"http://u:{SECRET}@h"
    assert estimator.set_params(checkpoint_dir="fits").checkpoint_dir == "fits"
    assert type(estimator.checkpoint_dir) is str


def fitted_models(where):
    lists = pd.DataFrame({"s": [[1.0, 2.0, float(row)] for row in range(40)]})
    sides = [("c", CategoryBlock(width=4), "c")], [("a", NumericBlock(), "a")]
    quick = {"embedding_dim": 4, "max_epochs": 1, "random_state": 0}
    return [
        (EasyTensorClassifier(**TREELESS, checkpoint_dir=f"{where}/0").fit(X, y), X),
        (EasyTensorTwoTower(*sides, **quick, checkpoint_dir=f"{where}/1").fit(X, y == "yes"), X),
        (EasyTensorEmbedder(**quick, checkpoint_dir=f"{where}/2").fit(lists), lists),
    ]


def test_fitted_models_are_saved_without_locations(tmp_path):
    for index, (model, table) in enumerate(fitted_models(f"{WHERE}/saved")):
        # Of a tracker that has recorded, nothing is left either.
        model.tracker = MLflowTracker(f"http://u:{SECRET}@h")
        joblib.dump(model, tmp_path / f"{index}.joblib")
        saved = {
            "pickle": pickle.dumps(model),
            "joblib": (tmp_path / f"{index}.joblib").read_bytes(),
            "skops": skops.io.dumps(model),
        }
        loaded = {
            "pickle": pickle.loads(saved["pickle"]),
            "joblib": joblib.load(tmp_path / f"{index}.joblib"),
            "skops": skops.io.loads(saved["skops"], trusted=trusted_types()),
        }
        for name, data in saved.items():
            assert SECRET.encode() not in data, name
            assert b"depot77" not in data, name
            other = loaded[name]
            assert other.get_params()["checkpoint_dir"] is None
            assert other.get_params()["tracker"] is None
            assert clone(other).checkpoint_dir is None
            np.testing.assert_array_equal(other.transform(table), model.transform(table))
        # The model in memory keeps them, and so do its copies.
        for same in (model, copy.copy(model), copy.deepcopy(model), clone(model)):
            assert same.checkpoint_dir == f"{WHERE}/saved/{index}"
            assert same.tracker.tracking_uri == f"http://u:{SECRET}@h"


def test_backends_are_saved_without_locations():
    pytest.importorskip("ray")
    from sk_easytensor.backends.ray.backend import RayBackend

    model = EasyTensorClassifier(**TREELESS).fit(X, y)
    model.backend = RayBackend(storage_path=WHERE, address=f"ray://u:{SECRET}@h:10001")
    for text in displays(model):
        assert SECRET not in text
    data = pickle.dumps(model)
    assert SECRET.encode() not in data
    backend = pickle.loads(data).backend
    assert (backend.storage_path, backend.address) == (None, None)
    model.backend = RayBackend(address="ray://h:10001")
    assert pickle.loads(pickle.dumps(model)).backend.address == "ray://h:10001"


def test_unfitted_estimators_are_saved_by_skops():
    estimator = EasyTensorClassifier(checkpoint_dir=WHERE)
    loaded = skops.io.loads(skops.io.dumps(estimator), trusted=trusted_types())
    assert loaded.checkpoint_dir == WHERE
    assert SECRET not in repr(loaded)


def test_reports_exports_and_checkpoints_hold_no_secret(tmp_path, capfd):
    fsspec = pytest.importorskip("fsspec")
    where = f"{WHERE}/reported"
    model = EasyTensorClassifier(**TREELESS, checkpoint_dir=where, verbose=1).fit(X, y)
    model.report(tmp_path / "report.html")
    pytest.importorskip("onnxscript")
    model.to_onnx(tmp_path / "model.onnx")
    outputs = [(tmp_path / name).read_bytes() for name in ("report.html", "model.onnx")]
    files, root = fsspec.core.url_to_fs(where)
    outputs += [files.cat_file(path) for path in files.find(root)]
    outputs += [text.encode() for text in capfd.readouterr()]
    assert len(outputs) >= 7
    for data in outputs:
        assert SECRET.encode() not in data


# ------------------------------------------------------------------ errors and warnings


def failures():
    """Yield calls that raise an error about an address."""
    http = f"http://key:{SECRET}@127.0.0.1:9/x.parquet?token={SECRET}"
    quick = {**TREELESS, "max_epochs": 1}

    def changed():
        where = f"{WHERE}/changed"
        EasyTensorClassifier(**quick, checkpoint_dir=where).fit(X, y)
        EasyTensorClassifier(**quick, checkpoint_dir=where, learning_rate=0.2).fit(X, y)

    yield changed
    for where in (f"nosuch://key:{SECRET}@bucket", http, f"{WHERE}/\0"):
        yield lambda where=where: EasyTensorClassifier(**quick, checkpoint_dir=where).fit(X, y)
    for source in (f"{WHERE}/rows.parquet", f"nosuch://key:{SECRET}@b/x.parquet", http):
        yield lambda source=source: EasyTensorClassifier(**quick).fit(source, "c")
    model = EasyTensorClassifier(**quick).fit(X, y)
    yield lambda: model.predict(f"{WHERE}/rows.parquet")
    yield lambda: EasyTensorClassifier(tracker=http).fit(X, y)


def test_errors_name_no_secret():
    for call in failures():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                call()
            except Exception as error:
                text = "".join(traceback.format_exception(error))
                while error is not None:
                    text += repr(error) + repr(vars(error))
                    error = error.__context__
            else:
                text = ""
        text += "".join(str(each.message) for each in caught)
        assert SECRET not in text


def test_torn_checkpoints_are_reported_without_secrets():
    fsspec = pytest.importorskip("fsspec")
    where = f"{WHERE}/torn"
    EasyTensorClassifier(**TREELESS, checkpoint_dir=where).fit(X, y)
    files, root = fsspec.core.url_to_fs(where)
    for path in files.find(root):
        if path.endswith(".pt"):
            files.pipe_file(path, b"torn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        EasyTensorClassifier(**TREELESS, checkpoint_dir=where).fit(X, y)
    messages = [str(each.message) for each in caught]
    assert any("***@depot77/fit/torn" in message for message in messages)
    assert SECRET not in "".join(messages)


def test_masked_urls_are_strings():
    url = MaskedUrl(WHERE)
    assert (url, repr(url)) == (WHERE, repr(masked(WHERE)))
    buffer = BytesIO()
    joblib.dump(url, buffer)
    buffer.seek(0)
    assert repr(joblib.load(buffer)) == repr(url)
