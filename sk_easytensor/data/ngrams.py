"""Count and look up words and n-grams of texts without a Python loop over rows.

Texts are converted once to flat integer codes of their words; the rest is arithmetic on these
codes. Strings of n-grams are built only during fit, one for each distinct n-gram of a chunk.
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
    "project",
    "weighted_ngrams",
]


# Texts are processed in slices of about this many bytes, which bounds memory.
SLICE_BYTES = 32 * 2**20

# Longer words are truncated, so that base64 and the like do not fill the memory.
LONGEST_WORD = 64

# Removed characters: apostrophes join words ("don't"); the others modify the emoji before them.
SILENT = r"['\x{2019}\x{FE0E}\x{FE0F}\x{200D}]"

# For more look-ups than this, building a hash table is faster than binary search.
MANY_KEYS = 16_384

# Number of non-zero entries of the random projection for each id.
PROJECTION_ENTRIES = 4

# Each symbol is a word, and so is each character of a script written without spaces.
SINGLE = (
    r"([^\p{L}\p{N}\p{M}\s]"
    r"|[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])"
)

SEPARATOR = "\x1e"
"""Separator that normalisation neither changes nor composes with another character."""


def distinct_texts(column):
    """Yield the distinct texts of consecutive slices of a column.

    Parameters
    ----------
    column : pyarrow.ChunkedArray of large_string
        Texts, null where missing.

    Yields
    ------
    texts : pyarrow.Array of large_string
        Distinct texts of the slice.
    rows : numpy.ndarray of int64
        Index of the text of each row of the slice, ``len(texts)`` where it is missing.
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
    """Words of texts as codes into their distinct words.

    Parameters
    ----------
    texts : pyarrow.Array of large_string
        Texts without nulls.

    Attributes
    ----------
    distinct : pyarrow.Array of large_string
        Distinct words.
    codes : numpy.ndarray of int64
        Index in `distinct` of each word of all texts, in order.
    owner : numpy.ndarray of int64
        Index of the text of each word.
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
        not_empty = np.flatnonzero(pc.binary_length(spaced).to_numpy())
        lists = pc.utf8_split_whitespace(spaced.take(pa.array(not_empty)))
        encoded = lists.flatten().dictionary_encode()
        self.owner = np.repeat(not_empty, pc.list_value_length(lists).to_numpy())
        self.codes = encoded.indices.to_numpy().astype(np.int64)
        self.distinct = encoded.dictionary
        longest = pc.max(pc.binary_length(self.distinct)).as_py() or 0
        if longest > LONGEST_WORD:
            truncated = pc.utf8_slice_codeunits(self.distinct, 0, LONGEST_WORD).dictionary_encode()
            self.codes = truncated.indices.to_numpy().astype(np.int64)[self.codes]
            self.distinct = truncated.dictionary

    def chain(self, first, step, ngram_range):
        """Compute a state for all n-grams, each from the state of the n-gram one word shorter.

        Parameters
        ----------
        first : numpy.ndarray
            State of each word of the texts; a negative integer if no n-gram starts with the word.
        step : callable
            ``step(states, positions, length)`` returns the states of the n-grams of `length`
            words whose last word is at `positions`.
        ngram_range : tuple of int
            Smallest and largest number of words of an n-gram.

        Yields
        ------
        length : int
            Number of words of the n-grams.
        owner : numpy.ndarray of int64
            Index of the text of each n-gram.
        states : numpy.ndarray
            State of each n-gram.
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
    """Return texts in NFKC and lower case; ASCII texts need no normalisation."""
    ascii_only = pc.string_is_ascii(texts)
    if not pc.all(ascii_only, min_count=0).as_py():
        other = pc.invert(ascii_only)
        texts = pc.replace_with_mask(texts, other, _composed(texts.filter(other)))
    return pc.utf8_lower(texts)


def _composed(texts):
    """Return texts in NFKC, joined for one call of Python; Arrow 25 leaves them decomposed."""
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
        Texts, null where missing.
    ngram_range : tuple of int
        Smallest and largest number of words of an n-gram.
    capacity : int
        Capacity of the summary: see :class:`ValueCounts`.
    n_buckets : int, optional
        Number of hash buckets to count instead of n-grams.

    Returns
    -------
    ValueCounts
        Counts of strings, with words separated by single spaces, or of int64 bucket numbers.
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
    """Return the distinct pairs of owner and id, sorted, and the count of each."""
    width = int(ids.max(initial=0)) + 1
    keys = np.sort(owner * width + ids)
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    counts = np.diff(starts, append=len(keys))
    owner, ids = np.divmod(keys[starts], width)
    return owner, ids, counts


class NgramVocabulary(ArrowStateMixin):
    """Vocabulary of the n-grams of a column, as a trie of integer codes.

    Parameters
    ----------
    ngrams : pyarrow.Array of large_string
        N-grams, with words separated by single spaces; the index of an n-gram is its id.
    ngram_range : tuple of int
        Smallest and largest number of words of an n-gram.
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
        # For each length: the sorted keys of the n-grams, prefixes included, and their ids, -1
        # for a prefix that is not itself in the vocabulary.
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
        matches = pc.index_in(words.distinct, value_set=self.words)
        known_codes = pc.fill_null(matches, -1).to_numpy().astype(np.int64)
        codes = known_codes[words.codes]

        def step(states, last, length):
            keys = np.where(codes[last] < 0, -1, states * len(self.words) + codes[last])
            return _find(keys, self.keys[length - 1])

        owners, ids = [], []
        for length, owner, states in words.chain(codes, step, self.ngram_range):
            level_ids = self.ids[length - 1][states]
            owners.append(owner[level_ids >= 0])
            ids.append(level_ids[level_ids >= 0])
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


def weighted_ngrams(texts, idf, ngram_range, vocabulary=None):
    """Return the n-grams of texts with their TF-IDF weights, whose squares sum to 1 in each text.

    Parameters
    ----------
    texts : pyarrow.Array of large_string
        Without nulls.
    idf : ndarray of float32
        Inverse document frequency of each id; 0 for hash buckets that were empty during fit.
    ngram_range : tuple of int
        Smallest and largest number of words of an n-gram.
    vocabulary : NgramVocabulary, optional
        Gives n-grams their ids; without one they are hashed into ``len(idf)`` buckets.

    Returns
    -------
    ids : ndarray of int64
        N-grams, text by text.
    weights : ndarray of float64
        ``(1 + log(occurrences)) * idf``, divided by the norm of the text.
    offsets : ndarray of int64, shape (n_texts + 2,)
        The n-grams of text ``i`` are ``ids[offsets[i]:offsets[i + 1]]``. The additional list at the
        end is empty and stands for missing texts.
    """
    words = Words(texts)
    if vocabulary is not None:
        owner, ids, occurrences = vocabulary.count(words)
    else:
        owner, ids, occurrences = hashed_ngrams(words, ngram_range, len(idf))
        used = idf[ids] > 0
        owner, ids, occurrences = owner[used], ids[used], occurrences[used]
    weights = (1 + np.log(occurrences)) * idf[ids]
    weights /= np.sqrt(np.bincount(owner, weights=weights**2, minlength=len(texts)))[owner]
    return ids, weights, np.searchsorted(owner, np.arange(len(texts) + 2))


def project(offsets, ids, weights, n_dimensions):
    """Multiply sparse lists by a fixed sparse matrix of random signs.

    Parameters
    ----------
    offsets : numpy.ndarray of int64, shape (n_lists + 1,)
        Offset of each list among the ids.
    ids : numpy.ndarray of int
        Ids of all lists.
    weights : numpy.ndarray of float
        Weight of each id.
    n_dimensions : int
        Number of components of the projection.

    Returns
    -------
    numpy.ndarray of float32, shape (n_lists, n_dimensions)

    Notes
    -----
    Li, Hastie and Church, "Very sparse random projections" (2006), with a fixed number of
    entries for each id. The matrix is computed from a hash of the id and is not stored.
    """
    n_lists = len(offsets) - 1
    row = np.repeat(np.arange(n_lists) * n_dimensions, np.diff(offsets))
    projected = np.zeros(n_lists * n_dimensions)
    for index in range(PROJECTION_ENTRIES):
        random = mix(ids.astype(np.uint64) * np.uint64(PROJECTION_ENTRIES) + np.uint64(index))
        sign = 1.0 - 2.0 * (random >> np.uint64(63)).astype(np.float64)
        entry = row + (random % np.uint64(n_dimensions)).astype(np.int64)
        projected += np.bincount(entry, weights=sign * weights, minlength=len(projected))
    projected /= np.sqrt(PROJECTION_ENTRIES)
    return projected.reshape(n_lists, n_dimensions).astype(np.float32)


def _find(keys, known):
    """Return the index of each key among the sorted known keys, -1 for an unknown key."""
    if len(keys) > MANY_KEYS:
        matches = pc.index_in(pa.array(keys), value_set=pa.array(known))
        return pc.fill_null(matches, -1).to_numpy().astype(np.int64)
    if len(known) == 0:
        return np.full(len(keys), -1)
    index = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[index] == keys, index, -1)


def mix(state):
    """Hash 64-bit integers (the finaliser of splitmix64; Steele, Lea and Flood, 2014)."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
