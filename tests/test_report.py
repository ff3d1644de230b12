"""Reports are whole pages that ask for nothing and show every string as it is."""

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    log_loss,
    precision_score,
    r2_score,
    recall_score,
    roc_auc_score,
)

from sk_easytensor import (
    BoostedTrees,
    CategoryBlock,
    EasyTensorClassifier,
    EasyTensorEmbedder,
    EasyTensorRegressor,
    EasyTensorTwoTower,
    EventSequenceBlock,
)
from sk_easytensor.estimators.targets.classification import at_thresholds, roc_points
from sk_easytensor.inspection.sample import calibration, residual_bins
from sk_easytensor.report import report

SECTIONS = [
    "data",
    "parameters",
    "blocks",
    "learning-curves",
    "importances",
    "validation",
    "timings",
]
EVIL = "<script>console.error('column')</script>"
EVIL_VALUE = "\"><img src='http://example.invalid/x.png'>&amp;"
QUICK = {"max_epochs": 4, "random_state": 0}
QUICK_TABLE = {**QUICK, "n_folds": None}
VOID = {"meta", "link", "img", "br", "input", "hr", "circle", "rect", "path"}


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    n = 300
    X = pd.DataFrame(
        {
            "size": rng.normal(size=n),
            EVIL: rng.choice([EVIL_VALUE, "plain", None], n),
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 500, n), "D"),
            "text": rng.choice(["a red house", "a blue boat"], n),
            "items": [list("abc"[: i % 4]) for i in range(n)],
            "paid": [[1.5 * k for k in range(i % 3)] for i in range(n)],
            "vector": list(rng.normal(size=(n, 3))),
        }
    )
    X.loc[:29, "size"] = np.nan
    return X, X["size"].fillna(0) + X[EVIL].eq("plain") + 0.1 * rng.normal(size=n)


@pytest.fixture(scope="module")
def models(table):
    X, y = table
    events = pd.DataFrame({"what": [list("ab" * 4)] * 40, "when": [list(range(8))] * 40})
    pairs = pd.DataFrame({"user": np.arange(200) % 20, EVIL: np.arange(200) % 11})
    sides = {
        "user_blocks": [("user", CategoryBlock(), "user")],
        "item_blocks": [(EVIL, CategoryBlock(), EVIL)],
    }
    trees = {"trees": BoostedTrees(max_iter=20)}
    return {
        "binary": EasyTensorClassifier(**trees, **QUICK_TABLE).fit(
            X, np.where(y > 0, EVIL_VALUE, "!")
        ),
        "multiclass": EasyTensorClassifier(**trees, **QUICK_TABLE).fit(X, np.digitize(y, [0, 1])),
        "multilabel": EasyTensorClassifier(**trees, **QUICK_TABLE).fit(
            X[["size", EVIL]], np.column_stack([y > 0, y > 1]).astype(int)
        ),
        "regressor": EasyTensorRegressor(**trees, **QUICK_TABLE).fit(X, y),
        "multioutput": EasyTensorRegressor(
            [("e", EventSequenceBlock(), ["items"])], **trees, **QUICK_TABLE
        ).fit(X[["size", "items"]], np.column_stack([y, -y])),
        "two_tower": EasyTensorTwoTower(**sides, embedding_dim=4, **QUICK).fit(
            pairs, item_key=EVIL
        ),
        "embedder": EasyTensorEmbedder(embedding_dim=4, **QUICK).fit(events),
    }


class Page(HTMLParser):
    """Elements, the text of each section, and what would be fetched."""

    def __init__(self, html):
        super().__init__()
        self.open, self.sections, self.tags, self.fetched = [], {}, [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.fetched += [
            attributes[k] for k in ("src", "href", "srcset", "data") if k in attributes
        ]
        if tag not in VOID:
            self.open.append((tag, attributes.get("id")))

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for tag, name in self.open:
            if tag == "section":
                self.sections[name] = self.sections.get(name, "") + data + " "


def read(model, folder):
    path = model.report(folder / "report.html")
    html = path.read_text(encoding="utf-8")
    return html, Page(html)


KINDS = [
    "binary",
    "multiclass",
    "multilabel",
    "regressor",
    "multioutput",
    "two_tower",
    "embedder",
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_section_and_no_request(kind, models, tmp_path):
    html, page = read(models[kind], tmp_path)
    assert list(page.sections) == SECTIONS
    assert all(address.startswith(("#", "data:")) for address in page.fetched)
    assert "script" not in page.tags
    assert {f"#{name}" for name in SECTIONS} <= set(page.fetched)
    assert not re.findall(r"@import|url\((?!data:)", html)
    assert page.open == []
    assert not {"img", "iframe", "object", "embed"} & set(page.tags)


@pytest.mark.parametrize("kind", ["binary", "two_tower"])
def test_strings_of_the_user_are_escaped(kind, models, tmp_path):
    html, page = read(models[kind], tmp_path)
    assert EVIL not in html
    assert "<img" not in html
    assert EVIL in page.sections["data"]
    assert EVIL in page.sections["blocks"]
    if kind == "binary":
        assert EVIL_VALUE in page.sections["data"]
        assert EVIL[:20] in page.sections["importances"]
        assert EVIL_VALUE in page.sections["validation"].replace("\\", "")


def test_columns_are_described(models, table, tmp_path):
    text = read(models["binary"], tmp_path)[1].sections["data"]
    X, y = table
    assert "300 rows, 7 columns" in text
    assert "30 (10.0%)" in text
    assert f"plain ({X[EVIL].eq('plain').sum()})" in text
    assert str(X["day"].min()) in text
    assert "3 dimensions" in text
    assert f"{(y > 0).sum()}" in text
    numbers = read(models["regressor"], tmp_path)[1].sections["data"]
    assert f"{y.median():.4g}" in numbers
    events = read(models["embedder"], tmp_path)[1].sections["data"]
    assert "40 rows, 2 columns, 40 users" in events
    assert "2 categories: a (160), b (160)" in events


@pytest.mark.parametrize("fields", [["at"], ["value"], ["what"], ["at", "value"], ["at", "what"]])
def test_events_of_any_fields_are_described(fields, tmp_path):
    event = {"at": pd.Timestamp("2024-01-01"), "value": 2.0, "what": "tea"}
    X = pd.DataFrame({name: [[event[name]] * (row % 2) for row in range(20)] for name in fields})
    blocks = [("e", EventSequenceBlock("mean", pooling="mean", width=4), fields)]
    model = EasyTensorRegressor(blocks, trees=None, max_epochs=1, random_state=0)
    # A target that does not vary has residuals and measures as well.
    model.fit(X, np.ones(20))
    words = model.report(tmp_path / "page.html").read_text(encoding="utf-8")
    assert words.count("of each event") == len(fields)


@pytest.mark.parametrize("weighted", [False, True])
def test_decisions_by_threshold(weighted):
    random = np.random.default_rng(0)
    probabilities = random.random(200)
    happened = random.random(200) < probabilities
    weight = random.integers(0, 3, 200) if weighted else np.ones(200)
    for threshold, above, *scores in at_thresholds(happened, probabilities, weight):
        decided = probabilities >= threshold
        assert above == pytest.approx(np.average(decided, weights=weight))
        for score, function in zip(scores, (precision_score, recall_score, f1_score), strict=True):
            assert score == pytest.approx(function(happened, decided, sample_weight=weight))
    assert np.isnan(at_thresholds(happened, probabilities / 10, weight)[-1, 2])


def test_the_parameters_that_were_chosen(tmp_path):
    X = pd.DataFrame({"a": np.arange(400.0)})
    model = EasyTensorRegressor(max_epochs=2, random_state=0).fit(X, X["a"])
    rows = re.findall(r"<tr><td>(\w+)</td><td>(.*?)</td><td>(.*?)</td>", report.parameters(model))
    used = {name: text for name, _, text in rows}
    assert used["batch_size"] == "32"
    assert used["n_folds"] == "5"
    assert used["device"] == "&#x27;cpu&#x27;"
    assert int(used["early_stopping_rounds"]) > 3
    # Given, and not chosen.
    assert used["max_epochs"] == used["trunk"] == ""


def test_parameters_and_timings(models, tmp_path):
    for model in models.values():
        sections = read(model, tmp_path)[1].sections
        assert "max_epochs" in sections["parameters"]
        assert "changed" in sections["parameters"]
        assert f"median of {model.n_iter_}" in sections["timings"]
        times = model.fit_times_
        assert len(times["epochs"]) == model.n_iter_
        assert times["training"] == pytest.approx(sum(times["epochs"]))
        assert min(times["blocks"], times["training"]) > 0
        for name, text in (("trees", "boosted trees"), ("linear", "linear model")):
            is_fitted = getattr(getattr(model, "network_", None), name, None) is not None
            assert (f"fitting the {text}" in sections["timings"]) == is_fitted


def test_the_linear_model_has_a_weight_and_a_time(tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    X = {"x": [np.sin(np.arange(30) * (0.3 + 0.2 * k) + rng.normal()) for k in y]}
    model = EasyTensorClassifier(max_epochs=1, random_state=0).fit(X, y)
    sections = read(model, tmp_path)[1].sections
    assert model.linear_weight_ > 0
    assert (
        f"weight of the linear model is {model.linear_weight_:.0%}" in sections["learning-curves"]
    )
    assert "boosted trees" not in sections["learning-curves"]
    assert model.fit_times_["linear"] > 0
    assert "fitting the linear model" in sections["timings"]


def test_curves_and_bars_are_drawn(models, tmp_path):
    model = models["regressor"]
    html, page = read(model, tmp_path)
    assert page.tags.count("svg") >= 3
    curve = re.search(r"<title>squared_error by epoch</title>(.*?)</svg>", html, re.S)[1]
    drawn = [path for path in re.findall(r'd="M([^"]*)"', curve) if path.count("L") == 3]
    assert len(drawn) == 2
    levels = [float(point.split()[1]) for point in drawn[1].split("L")]
    losses = np.array(model.evals_result_["valid_0"]["squared_error"])
    slope, offset = np.polyfit(losses, levels, 1)
    assert slope < 0
    # Coordinates are rounded to tenths.
    np.testing.assert_allclose(levels, slope * losses + offset, atol=0.15)
    bars = re.search(r"<title>Permutation importance.*?</svg>", html, re.S)[0]
    assert bars.count("<rect") == 7
    assert f"epoch {model.best_iteration_}" in page.sections["learning-curves"]


def test_what_does_not_apply_says_why(models, table, tmp_path):
    for kind in ("two_tower", "embedder"):
        sections = read(models[kind], tmp_path)[1].sections
        assert "Left out: a model of this kind keeps no validation rows" in sections["importances"]
        assert "Left out:" in sections["validation"]
    X, y = table
    model = EasyTensorRegressor(validation_fraction=None, **QUICK_TABLE).fit(X, y)
    assert "fewer than 32 rows were held out" in read(model, tmp_path)[1].sections["validation"]
    empty = pd.DataFrame({"empty": np.full(100, np.nan)})
    model = EasyTensorRegressor(**QUICK_TABLE).fit(empty, np.arange(100.0))
    sections = read(model, tmp_path)[1].sections
    assert "Left out: no column raises the loss" in sections["importances"]
    assert "always missing" in sections["data"]


def test_after_loading_it_is_the_same(models, tmp_path):
    import pickle

    for kind in KINDS:
        before, _ = read(models[kind], tmp_path)
        after, _ = read(pickle.loads(pickle.dumps(models[kind])), tmp_path)
        # scikit-learn numbers the diagrams of a process.
        number = r"sk-(container|estimator)-id-\d+"
        assert re.sub(number, "", before) == re.sub(number, "", after)


# ---------------------------------------------------------------------- validation


def test_measures_are_those_of_the_rows_held_out(table):
    X, y = table
    classes = np.where(y > 0, "yes", "no")
    model = EasyTensorClassifier(**QUICK_TABLE, trees=None).fit(
        X[:200], classes[:200], eval_set=[(X[200:], classes[200:])]
    )
    model.feature_importances_  # noqa: B018
    measures = model._validation["measures"]
    probabilities = model.predict_proba(X[200:])
    assert model._validation["rows"] == 100
    assert measures["log loss"] == pytest.approx(log_loss(classes[200:], probabilities), rel=1e-5)
    assert measures["log loss"] == pytest.approx(model.best_score_, rel=1e-2)
    assert measures["accuracy"] == accuracy_score(classes[200:], model.predict(X[200:]))
    np.testing.assert_allclose(
        model._validation["calibration"],
        calibration(probabilities[:, 1], classes[200:] == "yes", np.ones(100)),
        rtol=1e-5,
    )
    model = EasyTensorRegressor(**QUICK_TABLE).fit(X[:200], y[:200], eval_set=[(X[200:], y[200:])])
    model.feature_importances_  # noqa: B018
    predicted = model.predict(X[200:])
    assert model._validation["measures"]["R²"] == pytest.approx(r2_score(y[200:], predicted))
    np.testing.assert_allclose(
        model._validation["residuals"][0],
        residual_bins(predicted, y[200:].to_numpy(), np.ones(100)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_test_rows_are_evaluated_too(table, tmp_path):
    X, y = table
    classes = np.where(y > 0, "yes", "no")
    weight = np.arange(100) % 3
    model = EasyTensorClassifier(**QUICK_TABLE, trees=None).fit(X[:200], classes[:200])
    page = model.report(tmp_path / "report.html", X[200:], classes[200:], weight).read_text()
    probabilities = model.predict_proba(X[200:])
    loss = log_loss(classes[200:], probabilities, sample_weight=weight)
    test = page[page.index('<section id="test">') :]
    assert "On 100 test rows." in test
    assert f"<td>log loss</td><td>{loss:.4g}</td>" in test
    auc = roc_auc_score(classes[200:], probabilities[:, 1], sample_weight=weight)
    assert f"<td>ROC AUC</td><td>{auc:.4g}</td>" in test
    share = np.average(classes[200:] == "yes", weights=weight)
    prior = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    assert f"<td>log loss of the frequencies of classes</td><td>{prior:.4g}</td>" in test
    assert "<title>ROC curve</title>" in test
    assert test.index("ROC") < test.index('<section id="timings">')
    model = EasyTensorRegressor(**QUICK_TABLE).fit(X[:200], y[:200])
    page = model.report(tmp_path / "report.html", X[200:], y[200:]).read_text()
    test = page[page.index('<section id="test">') :]
    assert f"<td>R²</td><td>{r2_score(y[200:], model.predict(X[200:])):.4g}</td>" in test
    assert f"<td>root mean squared error of the mean</td><td>{y[200:].std(ddof=0):.4g}</td>" in test


def test_test_rows_that_cannot_be_evaluated(models, table, tmp_path):
    X, y = table
    model = models["regressor"]
    with pytest.raises(ValueError, match="report needs both X and y"):
        model.report(tmp_path / "report.html", X)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.report(tmp_path / "report.html", X, y[:10])
    with pytest.raises(ValueError, match="of classifiers and regressors only"):
        models["embedder"].report(tmp_path / "report.html", X, y)
    assert list(tmp_path.iterdir()) == []


def test_points_of_a_roc_curve_are_on_it():
    rng = np.random.default_rng(0)
    happened = rng.random(2000) < 0.3
    points = roc_points(happened, rng.random(2000) + 0.5 * happened, np.ones(2000))
    assert len(points) == 25
    assert points[0].tolist() == [0, 0]
    assert points[-1].tolist() == [1, 1]
    assert (np.diff(points, axis=0) >= 0).all()


def test_calibration_counts_weights():
    probabilities = np.repeat(np.linspace(0.05, 0.95, 10), 40)
    happened = np.random.default_rng(0).random(400) < probabilities
    table = calibration(probabilities, happened, np.ones(400))
    np.testing.assert_allclose(table[:, 0], np.linspace(0.05, 0.95, 10))
    np.testing.assert_allclose(table[:, 1], happened.reshape(10, 40).mean(axis=1))
    only = calibration(probabilities, happened, happened.astype(float))
    np.testing.assert_array_equal(only[happened.reshape(10, 40).any(axis=1), 1], 1)
    none = calibration(probabilities, happened, np.repeat([0.0, 1.0], 200))
    assert np.isnan(none[:5]).all()
    assert np.isfinite(none[5:]).all()


def test_residual_bins_are_quantiles_by_prediction():
    predicted = np.repeat(np.arange(10.0), 101)
    actual = predicted + np.tile(np.linspace(-1, 1, 101), 10) * (1 + predicted)
    table = residual_bins(predicted, actual, np.ones(1010))
    np.testing.assert_allclose(table[:, 0], np.arange(10))
    spread = np.outer(1 + np.arange(10), [-0.9, -0.5, 0, 0.5, 0.9])
    np.testing.assert_allclose(table[:, 1:], spread, atol=0.02 * 10)
    doubled = residual_bins(np.repeat(predicted, 2), np.repeat(actual, 2), np.ones(2020))
    weighted = residual_bins(predicted, actual, np.full(1010, 2.0))
    np.testing.assert_allclose(weighted, doubled)


# ---------------------------------------------------------------------- the file


def test_unfitted(tmp_path):
    for make in (EasyTensorClassifier, EasyTensorEmbedder, EasyTensorTwoTower):
        with pytest.raises(NotFittedError):
            make().report(tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_there_whole_or_not_at_all(models, tmp_path, monkeypatch):
    path = models["embedder"].report(str(tmp_path / "report.html"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    before = path.read_text(encoding="utf-8")
    with monkeypatch.context() as patch:

        def full(*names):
            raise OSError("no space left on device")

        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="no space left"):
            models["two_tower"].report(path)
    assert path.read_text(encoding="utf-8") == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(FileNotFoundError, match=r"directory '.*missing' does not exist"):
        models["embedder"].report(tmp_path / "missing" / "report.html")
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OSError, match="directory"):
        models["embedder"].report(folder)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "report.html"]


# ---------------------------------------------------------------------- in a browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browse():
    """A function that renders a page and returns its elements and its console."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser of {BROWSERS} is installed")

    def dumped(path, profile):
        command = [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--enable-logging=stderr",
            f"--user-data-dir={profile}",
            "--virtual-time-budget=2000",
            "--dump-dom",
            path.as_uri(),
        ]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return result.stdout, re.findall(r"CONSOLE.*", result.stderr)

    return dumped


@pytest.mark.parametrize("kind", ["binary", "regressor", "two_tower"])
def test_a_browser_renders_it_with_an_empty_console(kind, models, browse, tmp_path):
    path = models[kind].report(tmp_path / "report.html")
    dom, console = browse(path, tmp_path / "profile")
    assert console == []
    assert list(Page(dom).sections) == SECTIONS
    assert dom.count("<svg") >= 1


def test_the_browsers_console_is_heard(browse, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(f"<html><body>{EVIL}</body></html>", encoding="utf-8")
    _, console = browse(path, tmp_path / "profile")
    assert any('"column"' in line for line in console)


def test_a_browser_would_refuse_requests_and_scripts(models, browse, tmp_path):
    path = models["embedder"].report(tmp_path / "report.html")
    request = f"<img src='http://example.invalid/x.png'>{EVIL}</body>"
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", request), encoding="utf-8")
    _, console = browse(path, tmp_path / "profile")
    assert any("the image" in line for line in console)
    assert any("script" in line for line in console)
    assert all("Content Security Policy" in line for line in console)
