"""Embeddings with their keys: search, changes by key, files."""

import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sk_easytensor.retrieval import EmbeddingIndex
from sk_easytensor.retrieval.embedding_index import DTYPES

N = 50


def vectors(n_rows, seed=0, width=8):
    return np.random.default_rng(seed).normal(size=(n_rows, width)).astype(np.float32)


def table(n_rows=N, first=0):
    rows = np.arange(first, first + n_rows)
    return {
        "price": rows * 1.5,
        "kind": [f"kind {row % 3}" for row in rows],
        "tags": [["a"]] * n_rows,
    }


@pytest.fixture(params=DTYPES)
def index(request):
    keys = [f"item {row}" for row in range(N)]
    return EmbeddingIndex(keys, vectors(N), table(), key="item", dtype=request.param)


def same(found, expected):
    assert found.keys.tolist() == expected.keys.tolist()
    np.testing.assert_array_equal(found.embeddings, expected.embeddings)
    if expected.scales is not None:
        np.testing.assert_array_equal(found.scales, expected.scales)
    assert found.columns.to_pydict() == expected.columns.to_pydict()
    queries = vectors(4, seed=9)
    for options in ({}, {"where": pc.field("price") > 20}):
        keys, scores = found.search(queries, 7, **options)
        others, products = expected.search(queries, 7, **options)
        assert keys.tolist() == others.tolist()
        np.testing.assert_array_equal(scores, products)


def test_the_best_keys_are_found(index):
    queries = vectors(4, seed=9)
    keys, scores = index.search(queries, 5)
    products = queries @ index.vectors().T
    order = np.argsort(-products, axis=1)[:, :5]
    assert keys.tolist() == index.keys[order].tolist()
    np.testing.assert_allclose(scores, np.take_along_axis(products, order, 1), rtol=1e-3, atol=1e-3)


def test_the_nearest_have_the_largest_cosines(index):
    queries = vectors(4, seed=9) * [[1], [10], [0.1], [5]]

    def expected():
        units = index.vectors() / np.linalg.norm(index.vectors(), axis=1, keepdims=True)
        return queries / np.linalg.norm(queries, axis=1, keepdims=True) @ units.T

    for change in (
        lambda: None,
        lambda: index.remove(["item 3"]),
        lambda: index.add(["a"], queries[:1]),
    ):
        change()
        cosines = expected()
        keys, found = index.nearest(queries, 5, excluded=(np.array([1]), np.array([7])))
        cosines[1, 7] = -np.inf
        order = np.argsort(-cosines, axis=1)[:, :5]
        assert keys.tolist() == index.keys[order].tolist()
        np.testing.assert_allclose(found, np.take_along_axis(cosines, order, 1), atol=2e-3)
    assert index.nearest(queries, 1)[0][0] == ["a"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "keys",
    [
        [3, 1, 2],
        ["b", "a", "ä"],
        pd.to_datetime(["2024-01-03", "2024-01-01", "2024-01-02"]),
        pa.array([10**25, 1, 2], pa.decimal128(30)),
        np.array([2**63, 2**64 - 1, 0], dtype=np.uint64),
        pd.Categorical(["b", "a", "c"]),
    ],
    ids=["integers", "strings", "times", "decimals", "unsigned", "categories"],
)
def test_keys_of_any_type_are_stored(keys, dtype, tmp_path):
    index = EmbeddingIndex(keys, vectors(3), dtype=dtype)
    restored = EmbeddingIndex.load(index.save(tmp_path / "index.arrow"))
    for each in (index, restored, pickle.loads(pickle.dumps(index))):
        assert [str(key) for key in each.keys] == [str(key) for key in index.keys]
        assert each.rows(keys).tolist() == [0, 1, 2]
        found, _ = each.search(each.vectors()[[1]], 1)
        assert found.shape == (1, 1)


def test_files_have_all_of_an_index(index, tmp_path):
    path = index.save(tmp_path / "index.arrow")
    assert [file.name for file in tmp_path.iterdir()] == ["index.arrow"]
    for mmap in (True, False):
        same(EmbeddingIndex.load(path, mmap=mmap), index)
    same(pickle.loads(pickle.dumps(index)), index)
    mapped = EmbeddingIndex.load(path)
    assert not mapped.embeddings.flags.owndata
    assert mapped.rows(["item 7", "nothing"], all_known=False).tolist() == [7, -1]
    # A file that is in use is replaced, and what is mapped stays what it was.
    index.remove(["item 0"])
    index.save(path)
    assert len(mapped) == N
    mapped.search(vectors(1), 3)
    assert len(EmbeddingIndex.load(path)) == N - 1


@pytest.mark.parametrize("library", ["faiss", "usearch"])
def test_files_hold_an_approximate_index(tmp_path, library):
    keys, embeddings, queries = np.arange(500), vectors(500), vectors(40, seed=3)
    index = EmbeddingIndex(keys, embeddings).build_approximate(queries, library)
    restored = EmbeddingIndex.load(index.save(tmp_path / "index.arrow"))
    expected = index.search(queries, 5)
    np.testing.assert_array_equal(restored.search(queries, 5), expected)
    exact = EmbeddingIndex(keys, embeddings).search(queries, 5)
    assert (expected[0] == exact[0]).mean() > 0.9
    for each in (index, restored):
        each.add([500, 3], 100 * queries[:2])
        each.remove([7])
        assert each.search(queries[:1], 1)[0].tolist() == [[500]]
        assert 7 not in each.search(queries, 400)[0]


@pytest.mark.parametrize("library", ["faiss", "usearch"])
def test_queries_that_are_not_finite_find_nothing(library):
    index = EmbeddingIndex(np.arange(300), vectors(300)).build_approximate(vectors(20), library)
    queries = vectors(2)
    queries[0, 0] = np.nan
    keys, scores = index.search(queries, 4)
    assert keys[0].tolist() == [None] * 4
    assert np.isneginf(scores[0]).all()
    assert None not in keys[1].tolist()


def test_a_search_that_finds_too_little_stays_exact():
    """Half precision does not tell these candidates apart."""
    candidates = 1 + 1e-4 * vectors(500)
    index = EmbeddingIndex(np.arange(500), candidates)
    with pytest.warns(UserWarning, match="faiss finds .*% of the ten best of 30 queries"):
        index.build_approximate(vectors(30))
    assert index.approximate is None


def test_an_approximate_index_of_an_earlier_version_is_named(tmp_path):
    path = EmbeddingIndex(["a"], vectors(1)).save(tmp_path / "index.arrow")
    table = pa.ipc.open_file(path).read_all()
    metadata = {**table.schema.metadata, b"sk_easytensor.graph": b"?"}
    table = table.replace_schema_metadata(metadata)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
        out.write_table(table)
    with pytest.warns(UserWarning, match="of an earlier version; searches are exact until"):
        index = EmbeddingIndex.load(path)
    assert index.approximate is None


def test_a_failed_write_leaves_the_file(index, tmp_path, monkeypatch):
    path = index.save(tmp_path / "index.arrow")
    index.remove(["item 0"])

    def full(*args):
        raise OSError("the disk is full")

    monkeypatch.setattr("sk_easytensor.retrieval.embedding_index.os.replace", full)
    with pytest.raises(OSError, match="the disk is full"):
        index.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["index.arrow"]
    assert len(EmbeddingIndex.load(path)) == N


def test_files_of_others_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing.arrow"):
        EmbeddingIndex.load(tmp_path / "nothing.arrow")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="is no Arrow file"):
        EmbeddingIndex.load(tmp_path / "a.parquet")
    rows = pa.table({"a": [1]})
    with pa.ipc.new_file(tmp_path / "a.arrow", rows.schema) as file:
        file.write_table(rows)
    with pytest.raises(ValueError, match=r"was not written by EmbeddingIndex.save"):
        EmbeddingIndex.load(tmp_path / "a.arrow")


def test_small_types_take_less_memory(tmp_path):
    sizes = {}
    for dtype in DTYPES:
        index = EmbeddingIndex(np.arange(2000), vectors(2000, width=64), dtype=dtype)
        sizes[dtype] = index.save(tmp_path / dtype).stat().st_size
    rows = sizes["float32"] - 2000 * 64 * 4
    assert sizes["float16"] == pytest.approx(rows + 2000 * 64 * 2, rel=0.02)
    assert sizes["int8"] == pytest.approx(rows + 2000 * (64 + 4), rel=0.02)


@pytest.mark.parametrize(("dtype", "least"), [("float16", 0.995), ("int8", 0.97)])
def test_small_types_find_nearly_the_same(dtype, least):
    index = EmbeddingIndex(np.arange(20_000), vectors(20_000, width=32))
    queries = vectors(5, seed=4, width=32)
    expected, _ = index.search(queries, 1000)
    found, _ = index.as_type(dtype).search(queries, 1000)
    overlap = [np.isin(*rows).mean() for rows in zip(expected, found, strict=True)]
    assert np.mean(overlap) > least


@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "remove"]), st.sets(st.integers(0, 30), min_size=1)),
        max_size=6,
    ),
    st.sampled_from(DTYPES),
)
def test_any_changes_give_the_index_of_what_is_left(changes, dtype):
    def rows_of(keys, version):
        return vectors(31, seed=version)[keys], {"price": [key + version for key in keys]}

    content = dict.fromkeys(range(5, 20), 0)
    index = EmbeddingIndex(list(content), *rows_of(list(content), 0), dtype=dtype)
    for version, (change, keys) in enumerate(changes, 1):
        keys = sorted(keys, reverse=True)
        if change == "add":
            index.add(keys, *rows_of(keys, version))
            content.update(dict.fromkeys(keys, version))
            continue
        known = [key for key in keys if key in content]
        if known != keys:
            with pytest.raises(ValueError, match="is not a key of the index"):
                index.remove(keys)
        if known:
            index.remove(known)
            content = {key: value for key, value in content.items() if key not in known}
    keys = list(content)
    embeddings = np.array([vectors(31, seed=version)[key] for key, version in content.items()])
    prices = {"price": [key + version for key, version in content.items()]}
    expected = EmbeddingIndex(
        np.array(keys, dtype=np.int64), embeddings.reshape(-1, 8), prices, dtype=dtype
    )
    assert index.keys.tolist() == keys
    assert index.columns.to_pydict() == {"key": keys, "price": prices["price"]}
    np.testing.assert_array_equal(index.vectors(), expected.vectors())
    assert index.rows(keys).tolist() == list(range(len(keys)))
    assert index.search(vectors(2), 40)[0].tolist() == expected.search(vectors(2), 40)[0].tolist()


def test_columns_that_are_not_passed_are_missing(index):
    index.add(["item 3", "new"], vectors(2), {"price": [1000, 2000]})
    columns = index.columns.to_pylist()
    assert columns[3] == {"item": "item 3", "price": 1000.0, "kind": None}
    assert columns[N] == {"item": "new", "price": 2000.0, "kind": None}
    assert columns[4] == {"item": "item 4", "price": 6.0, "kind": "kind 1"}
    found, _ = index.search(vectors(1), N, where=pc.field("kind") != "kind 0")
    assert not {"item 3", "new", "item 0"} & set(found[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i.add(["a", "a"], vectors(2)), "1 keys in more than one row, such as 'a'"),
        (lambda i: i.add(["a", None], vectors(2)), "key column 'item' is missing in row 1"),
        (lambda i: i.add(["a"], vectors(2)), r"shape \(2, 8\) for 1 keys"),
        (lambda i: i.add(["a"], vectors(1, width=3)), "have 3 columns, those of the index 8"),
        (lambda i: i.add(["a"], vectors(1) * np.nan), "the embedding in row 0 is not finite"),
        (lambda i: i.add(["a"], vectors(1), {"price": ["dear"]}), "'price' .* cannot be converted"),
        (lambda i: i.add(["a"], vectors(1), {"price": [1, 2]}), "columns has 2 rows for 1 keys"),
        (lambda i: i.add(["a"], vectors(1), {"__order": [1]}), r"cannot be named \['__order'\]"),
        (lambda i: i.remove(["item 1", "b"]), "'b' in row 1 of 'item' is not a key"),
        (lambda i: i.search(vectors(1, width=3)), r"shape \(1, 3\); they must have 8 columns"),
        (lambda i: i.search(vectors(1), 0), "k must be an integer at least 1, got 0"),
        (lambda i: i.search(vectors(1), min_score="a"), "min_score must be a number, got 'a'"),
        (lambda i: EmbeddingIndex(["a"], vectors(1), dtype="int4"), "dtype must be .*got 'int4'"),
    ],
)
def test_bad_arguments_change_nothing(index, change, message):
    before = pickle.dumps(index)
    with pytest.raises(ValueError, match=message):
        change(index)
    assert pickle.dumps(index) == before


SLIM = """
import sys
NEEDLESS = {"torch", "sklearn", "scipy", "pandas", "usearch", "faiss", "joblib", "fsspec"}
class Absent:
    def find_spec(self, name, *args):
        if name.partition(".")[0] in NEEDLESS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from sk_easytensor.retrieval import EmbeddingIndex
index = EmbeddingIndex.load(sys.argv[1])
index.add(["new"], index.vectors()[:1] * 100)
print(*index.search(index.vectors()[:1], 2)[0][0])
"""


def test_indexes_need_numpy_and_pyarrow_only(index, tmp_path):
    path = index.save(tmp_path / "index.arrow")
    command = [sys.executable, "-c", SLIM, str(path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.stderr == ""
    assert run.stdout.split()[0] == "new"


def test_keys_of_other_types_are_those_of_the_index():
    index = EmbeddingIndex([7, 8], vectors(2))
    index.add(["7", "9"], vectors(2, seed=1))
    assert index.keys.tolist() == [7, 8, 9]
    for keys in (["007"], ["seven"], [1.5]):
        with pytest.raises(ValueError, match="'key'"):
            index.add(keys, vectors(1))
    texts = EmbeddingIndex(["a"], vectors(1))
    texts.add([True], vectors(1, seed=1)).add(pd.to_datetime(["2024-01-31"]), vectors(1, seed=2))
    assert texts.rows(texts.keys).tolist() == [0, 1, 2]


@pytest.mark.parametrize("unit", ["ns", "us", "s"])
def test_dates_stay_dates_where_results_are_missing(unit):
    days = np.array(["2024-01-01", "2024-01-02"], dtype=f"M8[{unit}]")
    index = EmbeddingIndex(days, np.eye(2, dtype=np.float32))
    found, _ = index.search([[1.0, 0.0]], min_score=0.5)
    assert str(found[0, 0])[:10] == "2024-01-01"
    assert found[0, 1] is None


def test_columns_may_have_any_name(tmp_path):
    index = EmbeddingIndex(["A", "B"], vectors(2), {"embedding": ["x", "y"]}, key="film")
    for each in (index, EmbeddingIndex.load(index.save(tmp_path / "index"))):
        found, _ = each.search(vectors(1), where=pc.field("embedding") == "y")
        assert found.tolist() == [["B", None]]
        assert each.to_arrow().column_names == ["film", "embedding"]
    keyed = EmbeddingIndex(["A", "B"], vectors(2), key="embedding")
    assert EmbeddingIndex.load(keyed.save(tmp_path / "keyed")).keys.tolist() == ["A", "B"]
    with pytest.raises(ValueError, match="keys is named 'embedding'"):
        keyed.to_arrow()


def test_large_numbers_in_half_precision():
    large = EmbeddingIndex(["a", "b"], [[1e5, 0], [0, 1]])
    with pytest.raises(ValueError, match="of up to 1e\\+05 are too large for float16; use int8"):
        large.as_type("float16")
    index = EmbeddingIndex(["a", "b"], [[1, 0], [0, 1]], dtype="float16")
    for n_queries in (1, 5):
        keys, scores = index.search(np.tile(np.float32([[1e6, 1]]), (n_queries, 1)), 2)
        assert keys.tolist() == [["a", "b"]] * n_queries
        np.testing.assert_allclose(scores[:, 0], 1e6, rtol=1e-3)


def test_stored_embeddings_cannot_be_changed_by_accident(index):
    with pytest.raises(ValueError, match="read-only"):
        EmbeddingIndex(["a"], vectors(1)).vectors()[:] = 0
    index.vectors([0, 1])[:] = 0
    assert index.vectors().any(axis=1).all()


@pytest.mark.parametrize("library", [None, "faiss", "usearch"])
def test_an_index_of_one_row_and_of_none(library):
    index = EmbeddingIndex(["a"], vectors(1))
    if library:
        index.build_approximate(vectors(3), library)
    excluded = np.array([0]), np.array([0])
    assert index.nearest(vectors(1), 5, excluded=excluded)[0].tolist() == [[None]]
    index.remove(["a"])
    for call in (index.search, index.nearest):
        keys, scores = call(vectors(2), 3)
        assert keys.shape == scores.shape == (2, 0)
