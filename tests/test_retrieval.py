import io
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sk_easytensor.retrieval import ApproximateIndex, search, top_k
from sk_easytensor.retrieval.approximate import FaissCells
from sk_easytensor.retrieval.search import diversified, quantized


def vectors(n_rows, width, seed):
    return np.random.default_rng(seed).normal(size=(n_rows, width)).astype(np.float32)


def brute_force(queries, candidates, k, pairs=()):
    """Sort all products of each query."""
    products = queries.astype(np.float64) @ candidates.astype(np.float64).T
    for query, candidate in pairs:
        products[query, candidate] = -np.inf
    places = np.argsort(-products, axis=1, kind="stable")[:, :k]
    scores = np.take_along_axis(products, places, axis=1)
    return np.where(np.isinf(scores), -1, places), scores


def as_excluded(pairs):
    pairs = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


@pytest.fixture(params=[(256, 1 << 20), (3, 7), (1, 1)], ids=["one block", "blocks", "one by one"])
def block(request, monkeypatch):
    queries, size = request.param
    monkeypatch.setattr(search, "QUERIES", queries)
    monkeypatch.setattr(search, "BLOCK", queries * size)
    monkeypatch.setattr(search, "MIN_BLOCK", 1)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("k", [1, 4, 20])
def test_exact(k):
    queries, candidates = vectors(11, 5, 0), vectors(20, 5, 1)
    places, scores = top_k(queries, candidates, k)
    expected, products = brute_force(queries, candidates, k)
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_allclose(scores, products, rtol=1e-5)
    assert scores.dtype == np.float32
    assert places.dtype == np.int64


@pytest.mark.usefixtures("block")
def test_excluded_pairs_do_not_count():
    queries, candidates = vectors(11, 5, 0), vectors(20, 5, 1)
    random = np.random.default_rng(2)
    pairs = {(int(q), int(c)) for q, c in random.integers(0, [11, 20], (60, 2))}
    pairs |= {(4, candidate) for candidate in range(18)}
    pairs |= {(7, candidate) for candidate in range(20)}
    places, scores = top_k(queries, candidates, 5, excluded=as_excluded(pairs))
    expected, products = brute_force(queries, candidates, 5, pairs)
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_allclose(scores, products, rtol=1e-5)
    assert (places[4] >= 0).sum() <= 2
    assert (places[7] == -1).all()
    assert np.isneginf(scores[7]).all()


@pytest.mark.usefixtures("block")
def test_an_excluded_pair_may_be_given_twice():
    queries, candidates = vectors(3, 2, 0), vectors(4, 2, 1)
    once, _ = top_k(queries, candidates, 4, excluded=as_excluded([(1, 2)]))
    twice, _ = top_k(queries, candidates, 4, excluded=(np.array([1, 1]), np.array([2, 2])))
    np.testing.assert_array_equal(once, twice)


@pytest.mark.usefixtures("block")
def test_ties_are_all_there():
    candidates = np.ones((30, 2), dtype=np.float32)
    candidates[12:] = 0.5
    places, scores = top_k(np.ones((4, 2), np.float32), candidates, 12)
    assert (places == np.arange(12)).all()
    assert (scores == 2).all()
    _, scores = top_k(np.ones((4, 2), np.float32), candidates, 15)
    assert scores[0].tolist() == [2.0] * 12 + [1.0] * 3


def test_products_of_all_pairs_are_never_held(monkeypatch):
    sizes, add = [], search.Best.add
    monkeypatch.setattr(
        search.Best,
        "add",
        lambda self, rows, part: sizes.append(part.size) or add(self, rows, part),
    )
    monkeypatch.setattr(search, "QUERIES", 20)
    monkeypatch.setattr(search, "BLOCK", 20 * 9)
    top_k(vectors(50, 3, 0), vectors(30, 3, 1), 2)
    assert max(sizes) == 20 * 9
    assert sum(sizes) == 50 * 30


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("n_queries", [2, 11])
@pytest.mark.parametrize("packed", [True, False])
def test_small_types(dtype, threads, n_queries, packed, monkeypatch):
    if not packed:
        monkeypatch.setattr(search, "numkong", lambda: None)
    queries, candidates = vectors(n_queries, 24, 0), vectors(80, 24, 1)
    values, scales = quantized(candidates) if dtype == "int8" else (candidates.astype(dtype), None)
    exact = values.astype(np.float32) * (1 if scales is None else scales[:, None])
    np.testing.assert_allclose(exact, candidates, atol=0.02)
    places, scores = top_k(queries, values, 6, scales=scales, threads=threads)
    expected, products = brute_force(queries, exact, 6)
    np.testing.assert_allclose(scores, products, rtol=2e-3, atol=2e-3)
    assert (places == expected).mean() > 0.9


def test_queries_of_zeros_and_tiny_rows_are_quantized():
    values, scales = quantized(np.float32([[0, 0], [1e-42, 0], [3, -1.5]]))
    assert values.tolist() == [[0, 0], [0, 0], [127, -64]]
    assert np.isfinite(scales).all()
    places, scores = top_k(np.zeros((1, 2), np.float32), values, 3, scales=scales)
    assert places.tolist() == [[0, 1, 2]]
    assert scores.tolist() == [[0, 0, 0]]


@pytest.mark.usefixtures("block")
@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10_000), st.integers(0, 6), st.integers(0, 25), st.integers(1, 30))
def test_any_selection_is_that_of_sorting(seed, n_queries, n_candidates, k):
    random = np.random.default_rng(seed)
    # Small integers have many ties, of which the first candidate is best.
    queries, candidates = (
        random.integers(-2, 3, (n, 3)).astype(np.float32) for n in (n_queries, n_candidates)
    )
    pairs = random.integers(0, [max(n_queries, 1), max(n_candidates, 1)], (10, 2))
    pairs = pairs if n_queries * n_candidates else pairs[:0]
    allowed = random.random(n_candidates) < random.random()
    excluded = as_excluded({(int(q), int(c)) for q, c in pairs})
    found = top_k(queries, candidates, k, allowed=allowed, excluded=excluded)
    forbidden = [(q, c) for q in range(n_queries) for c in np.flatnonzero(~allowed)]
    places, products = brute_force(queries, candidates, k, [*pairs, *forbidden])
    width = places.shape[1]
    np.testing.assert_array_equal(found[0][:, :width], places)
    np.testing.assert_array_equal(found[1][:, :width], products)
    assert (found[0][:, width:] == -1).all()


@pytest.mark.parametrize("block", [1, 1 << 20])
def test_diverse_selections_are_those_of_the_definition(block, monkeypatch):
    random = np.random.default_rng(0)
    for diversity in (0.0, 0.3, 1.0):
        vectors_ = random.normal(size=(4, 9, 3)).astype(np.float32)
        vectors_ /= np.linalg.norm(vectors_, axis=2, keepdims=True)
        scores = -np.sort(-random.normal(size=(4, 9)).astype(np.float32), axis=1)
        indices = np.tile(np.arange(9), (4, 1))
        indices[3, 6:], scores[3, 6:] = -1, -np.inf
        monkeypatch.setattr(search, "BLOCK", block)
        queries = iter(range(0, 4, 1 if block == 1 else 4))

        def read(part, queries=queries, vectors_=vectors_):
            first = next(queries)
            return vectors_[first : first + len(part)]

        found, own = diversified(indices, scores, read, 7, diversity)
        for query in range(4):
            n = 6 if query == 3 else 9
            span = scores[query, 0] - scores[query, n - 1]
            relevance = (scores[query, :n] - scores[query, n - 1]) / span
            chosen = []
            while len(chosen) < min(7, n):
                likeness = (vectors_[query, :n] @ vectors_[query, chosen].T).max(1, initial=0)
                gain = (1 - diversity) * relevance - diversity * likeness
                gain[chosen] = -np.inf
                chosen.append(int(gain.argmax()))
            assert found[query].tolist() == chosen + [-1] * (7 - len(chosen))
            np.testing.assert_array_equal(own[query, : len(chosen)], scores[query, chosen])


def test_searches_at_once_leave_the_threads_of_blas_as_they_were():
    from threadpoolctl import threadpool_info

    def counts():
        # FAISS brings a BLAS of its own, which exact searches do not use.
        return [
            part["num_threads"]
            for part in threadpool_info()
            if part["user_api"] == "blas" and "faiss" not in part["filepath"]
        ]

    before = counts()
    first, second = search.blas_threads(1), search.blas_threads(1)
    first.__enter__()
    second.__enter__()
    assert set(counts()) == {1}
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert counts() == before


# ---------------------------------------------------------------------- approximate


def recall(places, expected):
    found = [len(set(a) & set(b)) for a, b in zip(places.tolist(), expected.tolist(), strict=True)]
    return np.mean(found) / expected.shape[1]


@pytest.fixture(params=["faiss", "usearch"])
def library(request):
    return request.param


@pytest.mark.parametrize("normalized", [False, True])
def test_the_index_finds_nearly_all(normalized, library):
    queries, candidates = vectors(100, 32, 0), vectors(4000, 32, 1)
    if normalized:
        candidates /= np.linalg.norm(candidates, axis=1, keepdims=True)
    index = ApproximateIndex(candidates, vectors(200, 32, 2), library)
    places, scores = index.search(queries, 10)
    expected, _ = top_k(queries, candidates, 10)
    assert recall(places, expected) >= 0.95
    products = np.einsum("qd,qkd->qk", queries, candidates[places])
    np.testing.assert_allclose(scores, products, atol=2e-2)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert scores.dtype == np.float32
    assert places.dtype == np.int64


def test_the_index_is_the_same_each_time(library):
    queries, candidates = vectors(50, 32, 0), vectors(3000, 32, 1)
    first, again = (
        ApproximateIndex(candidates, queries, library).search(queries, 10) for _ in range(2)
    )
    np.testing.assert_array_equal(first, again)


def test_the_index_is_pickled(library):
    queries, candidates = vectors(50, 32, 0), vectors(3000, 32, 1)
    index = ApproximateIndex(candidates, queries, library)
    data = pickle.dumps(index)
    np.testing.assert_array_equal(pickle.loads(data).search(queries, 10), index.search(queries, 10))
    assert len(data) < 3 * candidates.nbytes


def test_a_search_goes_as_far_as_its_candidates_need(library):
    spread, queries = vectors(4000, 32, 1), vectors(200, 32, 2)
    places = np.random.default_rng(0).integers(0, 40, 4000)
    clustered = 8 * vectors(40, 32, 3)[places] + spread
    easy = ApproximateIndex(clustered, 8 * vectors(40, 32, 3)[places[:200]] + queries, library)
    hard = ApproximateIndex(spread, queries, library)
    assert easy._backend.effort < hard._backend.effort
    expected, _ = top_k(queries, spread, 10)
    assert recall(hard.search(queries, 10)[0], expected) == pytest.approx(hard.recall)
    assert hard.recall >= 0.97
    assert easy.recall >= 0.97


def test_excluded_pairs_are_not_found(library):
    queries, candidates = vectors(100, 8, 0), vectors(500, 8, 1)
    index = ApproximateIndex(candidates, queries, library)
    best, _ = top_k(queries, candidates, 6)
    pairs = {(query, int(best[query, place])) for query in range(50) for place in range(query % 7)}
    places, scores = index.search(queries, 10, excluded=as_excluded(pairs))
    expected, _ = top_k(queries, candidates, 10, excluded=as_excluded(pairs))
    found = {(query, place) for query in range(100) for place in places[query].tolist()}
    assert not pairs & found
    assert recall(places, expected) >= 0.95
    assert (np.diff(scores, axis=1) <= 0).all()
    # All but three candidates are excluded for one query.
    pairs |= {(7, candidate) for candidate in range(497)}
    places, scores = index.search(queries, 10, excluded=as_excluded(pairs))
    assert set(places[7, :3]) == {497, 498, 499}
    assert (places[7, 3:] == -1).all()
    assert np.isneginf(scores[7, 3:]).all()


def test_one_query_with_many_excluded_pairs_does_not_slow_down_the_others(monkeypatch, library):
    queries, candidates = vectors(50, 8, 0), vectors(2000, 8, 1)
    index = ApproximateIndex(candidates, queries, library)
    searched, search = [], index._search
    monkeypatch.setattr(
        index, "_search", lambda part, k, n: searched.append((len(part), k)) or search(part, k, n)
    )
    pairs = {(7, candidate) for candidate in range(1500)} | {(3, 0), (3, 1)}
    index.search(queries, 10, excluded=as_excluded(pairs))
    assert sorted(searched, key=lambda call: call[1]) == [(48, 10), (1, 20), (1, 2000)]


@pytest.mark.parametrize("n_queries", [1, 3])
def test_an_index_with_fewer_candidates_than_asked_for(n_queries, library):
    queries, candidates = vectors(n_queries, 4, 0), vectors(5, 4, 1)
    places, scores = ApproximateIndex(candidates, queries, library).search(queries, 8)
    expected, products = brute_force(queries, candidates, 5)
    np.testing.assert_array_equal(places[:, :5], expected)
    np.testing.assert_allclose(scores[:, :5], products, atol=2e-3)
    assert (places[:, 5:] == -1).all()
    assert np.isneginf(scores[:, 5:]).all()


def test_a_changed_index_finds_what_a_new_one_finds(library):
    queries, candidates = vectors(60, 16, 0), vectors(900, 16, 1)
    index = ApproximateIndex(candidates[:700], queries, library)
    index.add(candidates[700:])
    index.remove(np.array([3, 5, 650]))
    candidates = np.delete(candidates, [3, 5, 650], axis=0)
    candidates[[0, 800]] = vectors(2, 16, 3)
    index.replace(np.array([0, 800]), candidates[[0, 800]])
    restored = ApproximateIndex.from_bytes(index.to_bytes())
    expected, _ = top_k(queries, candidates, 10)
    for each in (index, restored, pickle.loads(pickle.dumps(index))):
        assert len(each) == 897
        places, scores = each.search(queries, 10)
        assert recall(places, expected) >= 0.95
        products = np.einsum("qd,qkd->qk", queries, candidates[places])
        np.testing.assert_allclose(scores, products, atol=2e-2)


def test_cells_that_hold_too_few_are_not_the_only_ones_searched():
    clustered = 20 * vectors(40, 8, 0)[np.arange(4000) % 40] + vectors(4000, 8, 1)
    index = ApproximateIndex(clustered, clustered[:100], "faiss")
    assert index._backend.effort < index._backend.index.nlist / 3
    places, scores = index.search(clustered[:3], 3000)
    assert (places >= 0).all()
    assert np.isfinite(scores).all()
    assert len(np.unique(places[0])) == 3000


@pytest.mark.parametrize("size", [1e-30, 1e6, 1e30])
def test_embeddings_of_any_size_are_found(size, library):
    if library == "usearch" and size != 1e6:
        pytest.skip("products in single precision are not of that size")
    queries, candidates = vectors(50, 8, 0), vectors(900, 8, 1)
    index = ApproximateIndex(candidates * np.float32(size), queries, library)
    assert index.recall >= 0.97


def test_a_candidate_that_is_much_larger_than_those_of_the_start_is_found(library):
    queries, candidates = vectors(50, 8, 0), vectors(900, 8, 1)
    index = ApproximateIndex(candidates, queries, library)
    index.add(1e7 * queries[:1])
    places, scores = index.search(queries[:1], 5)
    assert places[0, 0] == 900
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("size", [1e2, 1e4, 1e5])
def test_a_long_candidate_does_not_hide_the_others(size, library):
    queries, candidates = vectors(100, 32, 0), vectors(4000, 32, 1)
    candidates[7] *= np.float32(size)
    index = ApproximateIndex(candidates, queries, library)
    expected, _ = top_k(queries, candidates, 10)
    assert recall(index.search(queries, 10)[0], expected) >= 0.96


def test_the_number_of_threads_of_faiss_is_left():
    faiss = pytest.importorskip("faiss")
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    try:
        queries, candidates = vectors(20, 8, 0), vectors(200, 8, 1)
        ApproximateIndex(candidates, queries).search(queries, 3, threads=1)
        assert faiss.omp_get_max_threads() == 2
    finally:
        faiss.omp_set_num_threads(before)


@pytest.mark.parametrize("n", [(0, 5), (5, 0)])
def test_no_candidates_or_queries(n, library):
    with pytest.raises(ValueError, match=f"candidates and queries, got {n[0]} and {n[1]}"):
        ApproximateIndex(vectors(n[0], 4, 0), vectors(n[1], 4, 0), library)


@pytest.mark.parametrize("change", [{"sizes": np.array([3])}, {"vectors": np.zeros((7, 2))}])
def test_arrays_that_do_not_fit_are_refused(change):
    """What is read are arrays, not a format of FAISS that names files to open."""
    content = ApproximateIndex(vectors(60, 4, 0), vectors(5, 4, 1))._backend.to_bytes()
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        arrays = {**arrays, **change}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    with pytest.raises(ValueError, match="its arrays do not fit each other"):
        FaissCells.from_bytes(buffer.getvalue())


@pytest.mark.parametrize(("library", "module"), [("faiss", "faiss"), ("usearch", "usearch.index")])
def test_a_missing_package_is_named(monkeypatch, library, module):
    import sys

    monkeypatch.setitem(sys.modules, module, None)
    message = rf"index='{library}' needs .* pip install 'sk_easytensor\[retrieval\]'"
    with pytest.raises(ImportError, match=message):
        ApproximateIndex(vectors(5, 4, 0), vectors(1, 4, 0), library)
