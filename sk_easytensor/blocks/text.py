"""Free text: weighted n-grams, a small transformer, or a pretrained language model."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor._utils.validation import check_choice, check_number
from sk_easytensor.blocks.base import Block
from sk_easytensor.blocks.language_models import pretrained_encoder
from sk_easytensor.blocks.text_encoders import NgramEncoder, SubwordEncoder
from sk_easytensor.data.columns import cast_column, sample_values
from sk_easytensor.data.summaries import SummaryMap

__all__ = [
    "TextBlock",
]


ENCODERS = {
    "ngrams": NgramEncoder,
    "transformer": SubwordEncoder,
    "pretrained": pretrained_encoder,
}

# A column of strings is taken for text by its sample of so many values, each cut to a length:
SAMPLE, SAMPLE_LENGTH = 20_000, 1_000
# short texts if most of them differ, as titles do and names of products or airports do not;
SHORT_WORDS, SHORT_DISTINCT = 2.5, 0.5
# long ones unless they come from a short list, as the answers of a questionnaire do.
LONG_WORDS, LONG_DISTINCT, LONG_MINIMUM = 8.0, 0.02, 50
# What counts as a word there: between two spaces it holds two letters in a row, so that dates,
# codes and numbers have none and an address of a web page is one.
COUNTED_WORD = r"\s\S*?\p{L}{2}|[\p{Han}\p{Hiragana}\p{Katakana}]"


class TextBlock(Block):
    """Free text.

    Parameters
    ----------
    encoder : {"ngrams", "transformer", "pretrained"}, default="ngrams"
        How a text becomes a vector. ``"ngrams"``: the sum of the learned vectors of its words
        and word sequences, weighted by TF-IDF; fast, and hard to beat on a few thousand rows.
        ``"transformer"``: a small transformer over sub-words, learned from scratch.
        ``"pretrained"``: the language model `model`, which knows words that no row shows; needs
        ``pip install "sk_easytensor[text]"``.
    ngram_range : tuple of two int, default=(1, 2)
        Fewest and most words of an n-gram.
    min_frequency : int, default=3
        N-grams found in fewer rows are left out.
    max_features : int, default=30_000
        At most so many n-grams a column, those found in most rows.
    hash_buckets : int or None, default=None
        If given, n-grams are hashed into so many buckets a column and no vocabulary is kept.
    width : int or None, default=None
        Size of each column's vector; by default 32 for n-grams and 64 for the others.
    dropout : float, default=0.1
        Fraction of activations (transformer) or vector components (the others) zeroed in
        training.
    vocabulary_size : int, default=8192
        Sub-words, for the transformer.
    max_length : int, default=128
        Sub-words read of each text, for the transformer and for the language model, if that
        does not read fewer.
    layers : int, default=2
        Layers of the transformer.
    heads : int, default=4
        Attention heads of the transformer; divides `width`.
    model : str, path or None, default=None
        The language model, for ``encoder="pretrained"``: the folder of a model of the package
        sentence-transformers, or the name of one on the Hugging Face hub.
    trainable : bool, default=False
        Whether the language model is trained on with the network, at a two-hundredth of its
        learning rate. Otherwise each text is run through it once, when it is encoded.

    Attributes
    ----------
    ngrams_ : list of pyarrow.Array of large_string
        N-grams of each column, the most frequent first, words separated by a space. Empty when
        hashing and for the other encoders.
    idf_ : list of ndarray of float32
        Inverse document frequency of each n-gram or bucket; 0 for a bucket that is not used.
    tokenizer_ : str
        The sub-word tokenizer as JSON, for the transformer and for a language model trained on.
    fingerprint_ : str
        Tells the language model apart from others.

    Notes
    -----
    Texts are brought to Unicode's NFKC form and lower case. Apostrophes are dropped, symbols
    and emoji are words of their own, as is each character of Chinese, Japanese and Thai. A
    language model gets texts as they are.

    Pickles of a language model that was trained on hold its weights. Those of one that was not
    hold `model` and its fingerprint only: to encode texts it has to be there, and another one in
    its place is refused. If it has moved, ``set_params(model=...)`` on the fitted block says
    where. Vectors of the texts a process met last, up to 512 MiB, are kept for the next fit.

    Weights are those of scikit-learn's ``TfidfVectorizer(sublinear_tf=True)``. Summing weighted
    vectors of n-grams is the classifier of Joulin et al., "Bag of Tricks for Efficient Text
    Classification" (2016); the sub-words are byte-level byte pairs (Sennrich, Haddow and Birch,
    "Neural Machine Translation of Rare Words with Subword Units", 2016; Radford et al., 2019),
    so that every string can be written in them.

    Examples
    --------
    >>> block = TextBlock(min_frequency=2).fit({"text": ["Not bad!", "not BAD?", "Good", None]})
    >>> block.ngrams_[0].to_pylist()
    ['bad', 'not', 'not bad']
    >>> block.transform({"text": ["bad", "", "bad bad"]})["ids"].lengths.tolist()
    [1, 0, 1]
    """

    kind = "text"
    accepted = "strings, dictionary columns of strings"

    def __init__(
        self,
        encoder="ngrams",
        *,
        ngram_range=(1, 2),
        min_frequency=3,
        max_features=30_000,
        hash_buckets=None,
        width=None,
        dropout=0.1,
        vocabulary_size=8192,
        max_length=128,
        layers=2,
        heads=4,
        model=None,
        trainable=False,
    ):
        self.encoder = encoder
        self.ngram_range = ngram_range
        self.min_frequency = min_frequency
        self.max_features = max_features
        self.hash_buckets = hash_buckets
        self.width = width
        self.dropout = dropout
        self.vocabulary_size = vocabulary_size
        self.max_length = max_length
        self.layers = layers
        self.heads = heads
        self.model = model
        self.trainable = trainable

    @classmethod
    def accepts(cls, column_type):
        types = pa.types
        if types.is_dictionary(column_type):
            return cls.accepts(column_type.value_type)
        return (
            types.is_string(column_type)
            or types.is_large_string(column_type)
            or types.is_null(column_type)
        )

    @classmethod
    def detects(cls, column):
        """Return whether a column is of free text rather than of names, codes or categories."""
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            return False
        sample = sample_values(column, SAMPLE)
        if len(sample) == 0:
            return False
        sample = pc.utf8_slice_codeunits(sample, 0, SAMPLE_LENGTH)
        blank = pa.scalar(" ", sample.type)
        spaced = pc.binary_join_element_wise(blank, sample, pa.scalar("", sample.type))
        words = pc.mean(pc.count_substring_regex(spaced, COUNTED_WORD)).as_py()
        n_distinct = pc.count_distinct(sample).as_py()
        distinct = n_distinct / len(sample)
        if words >= LONG_WORDS and distinct >= LONG_DISTINCT and n_distinct >= LONG_MINIMUM:
            return True
        return words >= SHORT_WORDS and distinct >= SHORT_DISTINCT

    def check_parameters(self):
        name = "TextBlock"
        check_choice(name, "encoder", self.encoder, ENCODERS)
        try:
            lowest, highest = self.ngram_range
        except (TypeError, ValueError):
            raise ValueError(
                f"{name}: ngram_range must be a pair of integers, got {self.ngram_range!r}"
            ) from None
        check_number(name, "ngram_range[0]", lowest, low=1, integer=True)
        check_number(name, "ngram_range[1]", highest, low=lowest, integer=True)
        check_number(name, "min_frequency", self.min_frequency, low=1, integer=True)
        check_number(name, "max_features", self.max_features, low=1, integer=True)
        check_number(name, "dropout", self.dropout, low=0, high=1)
        # The 256 bytes are always among the sub-words.
        check_number(name, "vocabulary_size", self.vocabulary_size, low=256, integer=True)
        check_number(name, "max_length", self.max_length, low=1, integer=True)
        check_number(name, "layers", self.layers, low=1, integer=True)
        check_number(name, "heads", self.heads, low=1, integer=True)
        for parameter in ("hash_buckets", "width"):
            if getattr(self, parameter) is not None:
                check_number(name, parameter, getattr(self, parameter), low=1, integer=True)
        check_choice(name, "trainable", self.trainable, (False, True))
        if self.encoder == "pretrained" and not isinstance(self.model, (str, os.PathLike)):
            raise ValueError(
                f'{name}: encoder="pretrained" needs model, the folder or name of a language '
                f"model, got {self.model!r}"
            )
        if self.model is not None and not isinstance(self.model, (str, os.PathLike)):
            raise ValueError(
                f"{name}: model must be the folder or name of a language model, or None, got "
                f"{self.model!r}"
            )
        self._encoder.check_parameters()

    @property
    def _encoder(self):
        return ENCODERS[self.encoder](self)

    def summarize(self, table):
        columns = zip(table.column_names, _as_texts(table), strict=True)
        return SummaryMap({name: self._encoder.count(column) for name, column in columns})

    def finish(self, summary):
        self.ngrams_, self.idf_ = [], []
        self._encoder.finish([summary[name] for name in self.feature_names_in_])
        return self

    def encode(self, table):
        return self._encoder.encode(_as_texts(table))

    def make_module(self):
        return self._encoder.make_module()

    def to_onnx(self, graph):
        if self.encoder != "ngrams":
            raise TypeError(
                f"TextBlock with encoder={self.encoder!r} cannot be exported with raw columns: "
                "only n-grams are. Export the model with inputs='encoded', and encode rows with "
                "model.blocks_ before they are given to it"
            )
        columns = list(map(str, self.feature_names_in_))
        reader = {
            "read": "ngrams",
            "columns": columns,
            "ngram_range": list(map(int, self.ngram_range)),
            "ngrams": [column.to_pylist() for column in self.ngrams_],
            "idf": [column.tolist() for column in self.idf_],
        }
        return graph.weighted_ids(reader, columns)

    def flatten(self, encoding):
        """Return a language model's vectors, 0 where missing, or else fixed random projections.

        What is projected are each text's TF-IDF weights or sub-word counts.
        """
        return self._encoder.flatten(encoding)

    def get_feature_names_out(self, input_features=None):
        places = range(self._encoder.n_flat)
        names = [f"{name}_{place}" for name in self.feature_names_in_ for place in places]
        return np.asarray(names, dtype=object)


def _as_texts(table):
    return [
        cast_column(column, name, pa.large_string(), block="TextBlock")
        for name, column in zip(table.column_names, table.columns, strict=True)
    ]
