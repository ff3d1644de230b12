"""Every parameter is documented where the reader is, with the default that it has."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import sk_easytensor
from sk_easytensor import EasyTensorClassifier, EasyTensorRegressor, blocks
from sk_easytensor._utils.docstrings import documented_like
from sk_easytensor.losses import BUILT_IN

DOCS = Path(__file__).parent.parent / "docs"

PARAMETRIZED = [
    found
    for name in sk_easytensor.__all__
    if inspect.isclass(found := getattr(sk_easytensor, name))
    and hasattr(found, "get_params")
    and not inspect.isabstract(found)
]


def documented(kind, section="Parameters"):
    """Return the type and the text of each entry of a section."""
    text = inspect.cleandoc(kind.__doc__)
    found = re.search(rf"^{section}\n-+\n(.*?)(?=^\w[^\n]*\n---|\Z)", text, re.M | re.S)
    entries = {}
    for header, body in re.findall(r"^(\S[^\n]*)\n((?:\n*    [^\n]*\n?)+)", found[1], re.M):
        names, _, described = header.partition(" : ")
        for name in names.split(", "):
            entries[name.lstrip("*")] = described, body
    return entries


@pytest.mark.parametrize("kind", PARAMETRIZED, ids=lambda kind: kind.__name__)
def test_parameters_are_documented_with_their_defaults(kind):
    entries = documented(kind)
    signature = inspect.signature(kind.__init__).parameters
    parameters = {
        name: each for name, each in signature.items() if each.kind is not each.VAR_KEYWORD
    }
    parameters.pop("self")
    assert set(entries) == set(parameters)
    for name, parameter in parameters.items():
        described, body = entries[name]
        assert described, name
        assert body.strip().endswith("."), name
        if parameter.default is not parameter.empty:
            stated = re.search(r"default=(.*)$", described)
            assert stated, name
            assert ast.literal_eval(stated[1]) == parameter.default, name


def test_public_names_have_an_entry_in_the_reference():
    """A new block is missing here until it is exported by the package, too."""
    listed = re.findall(r"^   ([\w.]+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.M)
    names = {name.rpartition(".")[2] for name in listed}
    own = {name for name in blocks.__all__ if name.endswith("Block")}
    assert own <= {*sk_easytensor.__all__}
    assert {*sk_easytensor.__all__, *(kind.__name__ for kind in BUILT_IN.values())} <= names


@pytest.mark.parametrize("name", BUILT_IN)
def test_losses_are_documented_where_their_names_are_used(name):
    kinds = {"regressor": EasyTensorRegressor, "classifier": EasyTensorClassifier}
    for kind in BUILT_IN[name].estimator_types:
        assert f'``"{name}"``' in documented(kinds[kind])["loss"][1]
    guide = (DOCS / "user_guide.md").read_text(encoding="utf-8")
    assert re.search(rf'^\| [^|]*`"{name}"`', guide, re.M)


def test_entries_are_taken_from_another_class():
    class Source:
        """One.

        Parameters
        ----------
        a, b : int, default=1
            A number.

            With a second paragraph.
        c : str
            A name.

        Attributes
        ----------
        a : float
            Fitted.
        """

    @documented_like(Source)
    class Other:
        """Another.

        Parameters
        ----------
        b, c
            As in :class:`Source`.
        d : str
            As in :class:`Source`, more or less.

        Attributes
        ----------
        a
            As in :class:`Source`.

        Notes
        -----
        b
            As in :class:`Source`.
        """

    assert Other.__doc__ == inspect.cleandoc(
        """Another.

        Parameters
        ----------
        b : int, default=1
            A number.

            With a second paragraph.
        c : str
            A name.
        d : str
            As in :class:`Source`, more or less.

        Attributes
        ----------
        a : float
            Fitted.

        Notes
        -----
        b
            As in :class:`Source`.
        """
    )


def test_names_that_the_source_lacks_are_errors():
    with pytest.raises(KeyError, match="no_such"):

        @documented_like(sk_easytensor.EasyTensorClassifier)
        class Other:
            """Another.

            Parameters
            ----------
            no_such
                As in :class:`EasyTensorClassifier`.
            """
