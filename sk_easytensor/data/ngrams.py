"""Words and n-grams of texts, counted and looked up without a Python loop over rows.

Texts become flat integer codes of their words once; everything after is arithmetic on those
codes. Strings of n-grams are built only while fitting, one for each distinct n-gram of a chunk.
"""

from __future__ import annotations

from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor._utils.skops import ArrowStateMixin
from sk_easytensor.data.keys import hash_strings
from sk_easytensor.data.summaries import ValueCounts

__all__ = [
    "NgramVocabulary",
    "Words",
    "count_ngrams",
    "distinct_texts",
    "hashed_ngrams",
    "project",
]


# Texts are handled in slices of about so many bytes, which bounds memory.
SLICE_BYTES = 32 * 2**20

# A longer word is cut: base64 and the like must not fill the vocabulary's memory.
LONGEST_WORD = 64

# Apostrophes join ("don't" is one word); the others only modify the emoji before them.
SILENT = r"['\x{2019}\x{FE0E}\x{FE0F}\x{200D}]"

# Above so many look-ups a hash table built for the occasion is faster than binary search.
MANY_KEYS = 16_384

# Entries other than zero that the random projection has for each id.
PROJECTION_ENTRIES = 4

# Symbols are words of their own, and so is each character of a script written without spaces.
SINGLE = (
    r"([^\p{L}\p{N}\p{M}\s]"
    r"|[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])"
)

SEPARATOR = "\x1e"
"""Character that no normalisation changes or composes with another."""


def distinct_texts(column):
    """Cut a column into slices of rows and yield each one's distinct texts.

    Parameters
    ----------
    column : pyarrow.ChunkedArray of large_string

    Yields
    ------
    texts : pyarrow.Array of large_string
        Distinct texts of the slice.
    rows : numpy.ndarray of int64
        For each row of the slice the index of its text, ``len(texts)`` if it is missing.
    """
    if len(column) == 0:
        return
    length = pc.fill_null(pc.binary_length(column), 0).to_numpy()
    part = np.cumsum(length + 8) // SLICE_BYTES
    starts = np.flatnonzero(np.diff(part, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(column)], strict=True):
        encoded = column.slice(start, stop - start).combine_chunks()
        if isinstance(encoded, pa.ChunkedArray):
            encoded = pa.concat_arrays(encoded.chunks)
        encoded = encoded.dictionary_encode()
        indices = pc.fill_null(encoded.indices, len(encoded.dictionary))
        yield encoded.dictionary, indices.to_numpy().astype(np.int64)


class Words:
    """The words of some texts as codes into their distinct words.

    Parameters
    ----------
    texts : pyarrow.Array of large_string
        Without nulls.

    Attributes
    ----------
    distinct : pyarrow.Array of large_string
        Distinct words.
    codes : numpy.ndarray of int64
        All words of all texts, one after the other.
    owner : numpy.ndarray of int64
        The text each word stands in.
    n_texts : int
        Number of texts.

    Examples
    --------
    >>> words = Words(pa.array(["Don't worry, be HAPPY!", ""], pa.large_string()))
    >>> words.distinct.to_pylist(), words.owner.tolist()
    (['dont', 'worry', ',', 'be', 'happy', '!'], [0, 0, 0, 0, 0, 0])
    """

    def __init__(self, texts):
        self.n_texts = len(texts)
        spaced = pc.replace_substring_regex(_normal(texts), SILENT, "")
        spaced = pc.replace_substring_regex(spaced, SINGLE, r" \1 ")
        spaced = pc.utf8_trim_whitespace(spaced)
        # Splitting an empty text would give one empty word.
        filled = np.flatnonzero(pc.binary_length(spaced).to_numpy())
        lists = pc.utf8_split_whitespace(spaced.take(pa.array(filled)))
        encoded = lists.flatten().dictionary_encode()
        self.owner = np.repeat(filled, pc.list_value_length(lists).to_numpy())
        self.codes = encoded.indices.to_numpy().astype(np.int64)
        self.distinct = encoded.dictionary
        longest = pc.max(pc.binary_length(self.distinct)).as_py() or 0
        if longest > LONGEST_WORD:
            cut = pc.utf8_slice_codeunits(self.distinct, 0, LONGEST_WORD).dictionary_encode()
            self.codes = cut.indices.to_numpy().astype(np.int64)[self.codes]
            self.distinct = cut.dictionary

    def chain(self, first, step, ngram_range):
        """Run over all n-grams, making each one's state from that of the n-gram one shorter.

        Parameters
        ----------
        first : numpy.ndarray
            State of each word of the texts; negative for a word no n-gram starts with.
        step : callable
            ``step(states, positions, length)`` returns the states of the n-grams of `length`
            words whose last word stands at `positions`.
        ngram_range : tuple of int
            Fewest and most words.

        Yields
        ------
        length : int
        owner, states : numpy.ndarray
            The text and the state of each n-gram.
        """
        lowest, highest = ngram_range
        states, last = first, np.arange(len(first))
        for length in range(1, highest + 1):
            if length > 1:
                alive = last + 1 < len(self.owner)
                alive[alive] = self.owner[last[alive]] == self.owner[last[alive] + 1]
                last = last[alive] + 1
                states = step(states[alive], last, length)
            if states.dtype.kind == "i":
                alive = states >= 0
                states, last = states[alive], last[alive]
            if length >= lowest:
                yield length, self.owner[last], states


def _normal(texts):
    """NFKC and lower case; normalising is skipped for ASCII texts, which it leaves alone."""
    ascii_only = pc.string_is_ascii(texts)
    if not pc.all(ascii_only, min_count=0).as_py():
        other = pc.invert(ascii_only)
        texts = pc.replace_with_mask(texts, other, _composed(texts.filter(other)))
    return pc.utf8_lower(texts)


def _composed(texts):
    """NFKC of all texts at once, joined: Arrow 25 takes characters apart and leaves them so."""
    texts = pc.replace_substring(texts, SEPARATOR, " ")
    offsets = pa.array([0, len(texts)], pa.int32())
    lists = pa.ListArray.from_arrays(offsets, texts)
    joined = pc.binary_join(lists, pa.scalar(SEPARATOR, texts.type))[0].as_py()
    normal = pa.array([normalize("NFKC", joined)], texts.type)
    return pc.list_flatten(pc.split_pattern(normal, SEPARATOR)).cast(texts.type)


def count_ngrams(column, ngram_range, *, capacity, n_buckets=None):
    """Count the rows in which each n-gram occurs.

    Parameters
    ----------
    column : pyarrow.ChunkedArray of large_string
    ngram_range : tuple of int
        Fewest and most words.
    capacity : int
        Bound of the summary.
    n_buckets : int, optional
        Count hash buckets instead of n-grams.

    Returns
    -------
    ValueCounts
        Of strings, words separated by single spaces, or of int64 bucket numbers.
    """
    kind = pa.large_string() if n_buckets is None else pa.int64()
    total = ValueCounts(pa.array([], kind), np.zeros(0, np.int64), 0, 0, capacity=capacity)
    for texts, rows in distinct_texts(column):
        copies = np.bincount(rows, minlength=len(texts) + 1)
        words = Words(texts)
        if n_buckets is None:
            values, counts = _count_strings(words, ngram_range, copies)
        else:
            owner, buckets, _ = hashed_ngrams(words, ngram_range, n_buckets)
            counts = np.bincount(buckets, weights=copies[owner]).astype(np.int64)
            values, counts = pa.array(np.flatnonzero(counts)), counts[counts > 0]
        n_missing = int(copies[len(texts)])
        part = ValueCounts(values, counts, n_missing, len(rows), capacity=capacity)
        total = total.merge(part)
    return total


def _count_strings(words, ngram_range, copies):
    n_words = len(words.distinct)
    strings = {1: words.distinct}

    def step(states, last, length):
        encoded = pa.array(states * n_words + words.codes[last]).dictionary_encode()
        keys = encoded.dictionary.to_numpy()
        strings[length] = pc.binary_join_element_wise(
            strings[length - 1].take(pa.array(keys // n_words)),
            words.distinct.take(pa.array(keys % n_words)),
            pa.scalar(" ", pa.large_string()),
        )
        return encoded.indices.to_numpy().astype(np.int64)

    values, counts = [], []
    for length, owner, states in words.chain(words.codes, step, ngram_range):
        owner, states, _ = count_pairs(owner, states)
        values.append(strings[length])
        count = np.bincount(states, weights=copies[owner], minlength=len(strings[length]))
        counts.append(count.astype(np.int64))
    return pa.concat_arrays(values), np.concatenate(counts)


def count_pairs(owner, ids):
    """Return the distinct pairs, sorted, and how often each occurs."""
    width = int(ids.max(initial=0)) + 1
    keys = np.sort(owner * width + ids)
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    counts = np.diff(starts, append=len(keys))
    owner, ids = np.divmod(keys[starts], width)
    return owner, ids, counts


class NgramVocabulary(ArrowStateMixin):
    """The n-grams a column keeps, as a trie of integer codes.

    Parameters
    ----------
    ngrams : pyarrow.Array of large_string
        Words separated by single spaces; the position of an n-gram is its id.
    ngram_range : tuple of int
        Fewest and most words.
    """

    def __init__(self, ngrams, ngram_range):
        self.ngram_range = ngram_range
        lists = pc.split_pattern(ngrams, " ")
        encoded = lists.flatten().dictionary_encode()
        self.words = encoded.dictionary
        codes = encoded.indices.to_numpy().astype(np.int64)
        sizes = pc.list_value_length(lists).to_numpy()
        starts = np.cumsum(sizes) - sizes
        states = codes[starts]
        ids = np.arange(len(ngrams))
        # Level by level: the sorted keys of the n-grams, prefixes included, and their ids, -1
        # for a prefix that is not kept itself.
        self.keys, self.ids = [np.arange(len(self.words))], []
        for length in range(1, ngram_range[1] + 1):
            if length > 1:
                alive = sizes >= length
                states, starts, sizes, ids = states[alive], starts[alive], sizes[alive], ids[alive]
                keys = states * len(self.words) + codes[starts + length - 1]
                keys, states = np.unique(keys, return_inverse=True)
                self.keys.append(keys)
            level = np.full(len(self.keys[-1]), -1)
            level[states[sizes == length]] = ids[sizes == length]
            self.ids.append(level)

    def count(self, words):
        """Return (text, id, occurrences) of the known n-grams of each text, sorted."""
        found = pc.index_in(words.distinct, value_set=self.words)
        table = pc.fill_null(found, -1).to_numpy().astype(np.int64)
        codes = table[words.codes]

        def step(states, last, length):
            keys = np.where(codes[last] < 0, -1, states * len(self.words) + codes[last])
            return _find(keys, self.keys[length - 1])

        owners, ids = [], []
        for length, owner, states in words.chain(codes, step, self.ngram_range):
            found = self.ids[length - 1][states]
            owners.append(owner[found >= 0])
            ids.append(found[found >= 0])
        return count_pairs(np.concatenate(owners), np.concatenate(ids))


def hashed_ngrams(words, ngram_range, n_buckets):
    """Return (text, bucket, occurrences) of the n-grams of each text, sorted."""
    hashes = hash_strings(words.distinct)[words.codes]

    def step(states, last, length):
        return mix(states + np.uint64(length)) + hashes[last]

    owners, buckets = [], []
    for _, owner, states in words.chain(hashes, step, ngram_range):
        owners.append(owner)
        buckets.append((mix(states) % np.uint64(n_buckets)).astype(np.int64))
    return count_pairs(np.concatenate(owners), np.concatenate(buckets))


def project(offsets, ids, weights, n_dimensions):
    """Multiply sparse lists by a fixed sparse matrix of random signs.

    Parameters
    ----------
    offsets : numpy.ndarray of int64, shape (n_lists + 1,)
        Where each list starts among the ids.
    ids : numpy.ndarray of int
    weights : numpy.ndarray of float
    n_dimensions : int

    Returns
    -------
    numpy.ndarray of float32, shape (n_lists, n_dimensions)

    Notes
    -----
    Li, Hastie and Church, "Very sparse random projections" (2006), with a fixed number of
    entries for each id. The matrix is a hash of the id and so needs no storing.
    """
    n_lists = len(offsets) - 1
    row = np.repeat(np.arange(n_lists) * n_dimensions, np.diff(offsets))
    projected = np.zeros(n_lists * n_dimensions)
    for index in range(PROJECTION_ENTRIES):
        random = mix(ids.astype(np.uint64) * np.uint64(PROJECTION_ENTRIES) + np.uint64(index))
        sign = 1.0 - 2.0 * (random >> np.uint64(63)).astype(np.float64)
        place = row + (random % np.uint64(n_dimensions)).astype(np.int64)
        projected += np.bincount(place, weights=sign * weights, minlength=len(projected))
    projected /= np.sqrt(PROJECTION_ENTRIES)
    return projected.reshape(n_lists, n_dimensions).astype(np.float32)


def _find(keys, known):
    """Return each key's position among the sorted known ones, -1 where there is none."""
    if len(keys) > MANY_KEYS:
        found = pc.index_in(pa.array(keys), value_set=pa.array(known))
        return pc.fill_null(found, -1).to_numpy().astype(np.int64)
    if len(known) == 0:
        return np.full(len(keys), -1)
    place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[place] == keys, place, -1)


def mix(state):
    """Scramble 64-bit integers (the finaliser of splitmix64; Steele, Lea and Flood, 2014)."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
