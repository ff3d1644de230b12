import re
from pathlib import Path

import pyarrow as pa
import pytest

import sk_easytensor
from sk_easytensor.data.type_names import in_words, type_name


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        (pa.large_string(), "string", "text"),
        (pa.string_view(), "string", "text"),
        (pa.float64(), "float64", "numbers"),
        (pa.decimal256(40, 2), "decimal(40, 2)", "numbers"),
        (pa.timestamp("us", "UTC"), "datetime64[us, UTC]", "dates"),
        (pa.duration("s"), "timedelta64[s]", "durations"),
        (pa.list_(pa.float64()), "list[float64]", "lists"),
        (pa.list_view(pa.large_string()), "list[string]", "lists"),
        (pa.dictionary(pa.int8(), pa.large_string()), "category[string]", "text"),
        (pa.large_binary(), "bytes", "bytes"),
    ],
)
def test_types_are_named_as_pandas_names_them(kind, name, words):
    assert type_name(kind) == name
    assert in_words(kind) == words


def test_no_message_has_a_type_as_arrow_names_it():
    written = re.compile(r"\{[\w.()]*\.type\}|of type \{kind\}|str\(\w+\.type\)")
    found = [
        f"{path.name}: {match.group()}"
        for path in Path(sk_easytensor.__file__).parent.rglob("*.py")
        for match in written.finditer(path.read_text())
    ]
    # There, kind is what type_name returned.
    assert found == ["base.py: of type {kind}"]
