"""Block of free text: weighted n-grams, a small transformer, or a pretrained language model."""

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

# Free text is detected from a sample of values, each truncated to a number of characters.
SAMPLE, SAMPLE_LENGTH = 20_000, 1_000
# Short texts (mean number of words) need a fraction of distinct values, which titles have and names
# of products or airports do not.
SHORT_WORDS, SHORT_DISTINCT = 2.5, 0.5
# Long texts need a smaller fraction and number of distinct values, which the answers of a
# questionnaire do not have.
LONG_WORDS, LONG_DISTINCT, LONG_MINIMUM = 8.0, 0.02, 50
# Words of this detection contain two consecutive letters, so that dates, codes and numbers are not
# words and the address of a web page is one.
COUNTED_WORD = r"\s\S*?\p{L}{2}|[\p{Han}\p{Hiragana}\p{Katakana}]"


class TextBlock(Block):
    """Read free text.

    Parameters
    ----------
    encoder : {"ngrams", "transformer", "pretrained"}, default="ngrams"
        Text encoder. ``"ngrams"``: the sum of the learned vectors of words and word sequences,
        weighted by TF-IDF; fast, and hard to beat on a few thousand rows. ``"transformer"``: a
        small transformer over sub-words, trained from scratch. ``"pretrained"``: the language
        model `model`, which has learned words that do not occur in the rows; needs
        ``pip install "sk_easytensor[text]"``.
    ngram_range : tuple of two int, default=(1, 2)
        Smallest and largest number of words of an n-gram.
    min_frequency : int, default=3
        Smallest number of training rows of an n-gram; rarer n-grams are left out.
    max_features : int, default=30_000
        Largest number of n-grams of a column; those of the most rows are retained.
    hash_buckets : int or None, default=None
        Number of buckets of a column into which n-grams are hashed, without a vocabulary. None
        learns a vocabulary.
    width : int or None, default=None
        Embedding dimension of each column; by default 32 for n-grams and 64 for the others.
    dropout : float, default=0.1
        Dropout probability of activations (transformer) or components of the vector (the others).
    vocabulary_size : int, default=8192
        Largest number of sub-words of the transformer.
    max_length : int, default=128
        Largest number of sub-words of a text, for the transformer and for the language model, if
        that does not read fewer; longer texts are truncated.
    layers : int, default=2
        Number of layers of the transformer.
    heads : int, default=4
        Number of attention heads of the transformer; must divide `width`.
    model : str, path or None, default=None
        Language model for ``encoder="pretrained"``: the folder of a model of the package
        sentence-transformers, or its name on the Hugging Face hub.
    trainable : bool, default=False
        Whether the language model is fine-tuned with the network, at 0.005 times the learning
        rate. Otherwise its vectors are computed once, when texts are encoded.

    Attributes
    ----------
    ngrams_ : list of pyarrow.Array of large_string
        N-grams of each column, the most frequent first, words separated by a space. Empty if
        n-grams are hashed and for the other encoders.
    idf_ : list of ndarray of float32
        Inverse document frequency of each n-gram or bucket; 0 for an unused bucket.
    counts_ : list of ndarray of int64
        Number of training rows with each n-gram or bucket.
    tokenizer_ : str
        Sub-word tokenizer as JSON, for the transformer and for a fine-tuned language model.
    fingerprint_ : str
        Digest that identifies the language model.

    Notes
    -----
    Texts are converted to Unicode's NFKC form and lower case. Apostrophes are removed. Symbols and
    emoji are separate words, and so is each character of Chinese, Japanese and Thai. The texts of
    a language model are not changed.

    A pickle with a fine-tuned language model contains its weights. A pickle with a frozen one
    contains only `model` and the fingerprint: encoding texts needs the files of the model, and a
    model with another fingerprint is refused. If its files have moved, set the new path with
    ``set_params(model=...)`` on the fitted block. Each process caches the vectors of its most
    recent texts, up to 512 MiB, for the next fit.

    Weights are those of scikit-learn's ``TfidfVectorizer(sublinear_tf=True)``. Summing weighted
    vectors of n-grams is the classifier of Joulin et al., "Bag of Tricks for Efficient Text
    Classification" (2016); the sub-words are byte-level byte pairs (Sennrich, Haddow and Birch,
    "Neural Machine Translation of Rare Words with Subword Units", 2016; Radford et al., 2019),
    which represent every string.

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
        """Return whether the values of a column are free text rather than names or categories."""
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
        self.ngrams_, self.idf_, self.counts_ = [], [], []
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
                "only n-grams are. Export the model with inputs='encoded', and pass it rows that "
                "were encoded with model.blocks_"
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
        """Return vectors of a language model, 0 where missing, or fixed random projections.

        The projections are of the TF-IDF weights or the sub-word counts of each text.
        """
        return self._encoder.flatten(encoding)

    def get_feature_names_out(self, input_features=None):
        indices = range(self._encoder.n_flat)
        names = [f"{name}_{index}" for name in self.feature_names_in_ for index in indices]
        return np.asarray(names, dtype=object)


def _as_texts(table):
    """Return the columns of a table, cast to large strings."""
    return [
        cast_column(column, name, pa.large_string(), block="TextBlock")
        for name, column in zip(table.column_names, table.columns, strict=True)
    ]
