"""Every Python block of the README and the documentation runs."""

import re

import pytest
from documents import ROOT, sections

import sk_easytensor.datasets

ELSEWHERE = {"mlflow", "ray"}
"""Marks of the sections that run in the directories of tests of these names."""

README = sections("README.md")
DOCUMENTS = [
    section
    for path in sorted((ROOT / "docs").glob("*.md"))
    for section in sections(path.relative_to(ROOT))
    if not section.marks & ELSEWHERE
]
SHORTER = [("n_trials=30", "n_trials=2"), ("max_epochs=20", "max_epochs=2")]


OUTPUT = re.compile(
    r"^## (?P<heading>[^\n]*)\n(?:(?!^## ).)*?^```text\n(?P<lines>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"\d+\.\d+")
OUTPUTS = {
    f"README: {match['heading']}": match["lines"]
    for match in OUTPUT.finditer((ROOT / "README.md").read_text(encoding="utf-8"))
}


@pytest.mark.parametrize("section", README, ids=lambda section: section.name)
def test_readme_section(section, tmp_path, monkeypatch, capsys):
    """It runs, and prints what the README says, up to differences of processors."""
    monkeypatch.chdir(tmp_path)
    section.run()
    expected, printed = OUTPUTS.get(section.name, ""), capsys.readouterr().out
    if expected:
        assert NUMBER.sub("0", printed) == NUMBER.sub("0", expected)
        values = [list(map(float, NUMBER.findall(text))) for text in (printed, expected)]
        assert values[0] == pytest.approx(values[1], abs=0.05)


def test_outputs_of_the_readme_are_found():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(OUTPUT.findall(text)) == text.count("```text") > 0


@pytest.fixture
def quick(quick_fits, monkeypatch):
    """Few rows and epochs where the documentation leaves them to the library."""
    datasets = sk_easytensor.datasets
    load_flights, load_reviews = datasets.load_flights, datasets.load_clothing_reviews

    def some_flights():
        flights = load_flights()
        aircraft = flights.data["tailnum"].unique()[:20]
        some = flights.data["tailnum"].isin(aircraft)
        flights.update(data=flights.data[some], target=flights.target[some])
        flights.update(events=flights.events[flights.events["tailnum"].isin(aircraft)])
        return flights

    def some_reviews(**how):
        X, y = load_reviews(return_X_y=True)
        return X[:200], y[:200]

    monkeypatch.setattr(datasets, "load_flights", some_flights)
    monkeypatch.setattr(datasets, "load_clothing_reviews", some_reviews)


@pytest.mark.parametrize("section", DOCUMENTS, ids=lambda section: section.name)
@pytest.mark.usefixtures("quick")
def test_section(section, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section.run(SHORTER)


def test_sections_of_a_document(tmp_path):
    text = "<!-- python\na = 1\n-->\n## One\n```python\nb = a\n```\n## Two\n<!-- python ray\n-->\n"
    text += "```console\nno python\n```\n```python\nassert a == 1\nb\n```\n## Three\n"
    (tmp_path / "some.md").write_text(text)
    one, two = sections(tmp_path / "some.md")
    assert (one.name, one.marks, two.name, two.marks) == ("some: One", set(), "some: Two", {"ray"})
    one.run()
    with pytest.raises(NameError) as failed:
        two.run()
    assert failed.traceback[-1].lineno + 1 == text.split("\n").index("b") + 1
