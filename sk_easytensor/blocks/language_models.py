"""Pretrained language models, and the text encoders that use them frozen or fine-tuned."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from contextlib import contextmanager
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sk_easytensor._utils.runtime import ForkSafeLock, seeded
from sk_easytensor._utils.validation import shortened
from sk_easytensor.blocks.text_encoders import (
    TextEncoder,
    empty_lists,
    interleave,
    project_tokens,
)
from sk_easytensor.blocks.vector import VectorProjection
from sk_easytensor.data.ngrams import distinct_texts
from sk_easytensor.data.summaries import SummaryMap
from sk_easytensor.networks.block_module import BlockModule
from sk_easytensor.tensors import Ragged

__all__ = [
    "FineTunedEncoder",
    "FrozenEncoder",
    "LanguageModel",
    "import_package",
    "load_language_model",
    "pretrained_encoder",
    "text_tokenizer",
    "tokenize",
]


# Size of the cache of text vectors, which are used again in the next fold of a search, for example.
CACHE_BYTES = 512 * 2**20

# Memory of a cache entry besides its vector: key, array object, links.
ENTRY_BYTES = 250

# Largest number of models in memory.
MAX_MODELS = 2

# Tokens per forward call: few enough for a processor's cache, many for a GPU.
TOKENS_PER_CALL = {"cpu": 2048, "cuda": 65_536}

# Lock of models and vectors. It is acquired after that of `seeded`, never before it.
LOCK = ForkSafeLock()

LOADED = OrderedDict()


class VectorCache:
    """Least recently used cache of vectors.

    Parameters
    ----------
    limit : int
        Largest size in bytes.
    """

    def __init__(self, limit):
        self.limit = limit
        self.size = 0
        self.entries = OrderedDict()

    def get(self, key):
        """Return the vector of a key, or None if it is not in the cache."""
        vector = self.entries.get(key)
        if vector is not None:
            self.entries.move_to_end(key)
        return vector

    def put(self, key, vector):
        """Add a vector that is not in the cache yet."""
        # A copy, because a view would keep the whole batch alive.
        self.entries[key] = vector.copy()
        self.size += vector.nbytes + ENTRY_BYTES
        while self.size > self.limit:
            _, dropped = self.entries.popitem(last=False)
            self.size -= dropped.nbytes + ENTRY_BYTES


VECTORS = VectorCache(CACHE_BYTES)


class LanguageModel:
    """Model of the package sentence-transformers.

    Parameters
    ----------
    modules : sentence_transformers.SentenceTransformer
        The model. Its first module tokenizes texts and embeds tokens, the others reduce the tokens
        to one vector.

    Attributes
    ----------
    tokenizer : str
        Tokenizer as JSON, without truncation and padding.
    longest : int
        Largest number of tokens of a text, special tokens included.
    dimension : int
        Dimension of the vector of a text.
    prompt : str
        Prefix that the model expects before each text.
    fingerprint : str
        Digest of weights, vocabulary, length, prompt and pooling.
    """

    def __init__(self, modules):
        # Half precision would be slow on most processors and has no NumPy type for pickling.
        self.modules = modules.float().eval().requires_grad_(False)
        self.tokenizer = plain_tokenizer(modules.tokenizer.backend_tokenizer)
        # Some tokenizers use 1e30 for no limit.
        self.longest = int(min(modules.max_seq_length or 512, 1_000_000))
        self.dimension = int(modules.get_embedding_dimension())
        self.prompt = (modules.prompts or {}).get(modules.default_prompt_name) or ""
        self.fingerprint = self._fingerprint()

    def _fingerprint(self):
        # Names of weights and settings differ between versions of the packages; values do not.
        weights = sorted(
            blake2b(repr(tuple(weight.shape)).encode() + weight.numpy().tobytes()).hexdigest()
            for weight in self.modules.parameters()
        )
        vocabulary = sorted(text_tokenizer(self.tokenizer, self.longest).get_vocab().items())
        kinds = [
            (type(module).__name__, str(getattr(module, "pooling_mode", "")))
            for module in self.modules
        ]
        content = repr((weights, vocabulary, kinds, self.longest, self.prompt))
        return blake2b(content.encode(), digest_size=16).hexdigest()

    def vectors(self, texts, max_length):
        """Return the vectors of texts; the vector of each text is computed once per process.

        Parameters
        ----------
        texts : list of str
            Texts to embed.
        max_length : int
            Largest number of tokens of a text, if the model does not read fewer.

        Returns
        -------
        ndarray of float32, shape (len(texts), dimension)
        """
        limit = min(max_length, self.longest)
        owner = f"{self.fingerprint}:{limit}".encode()
        keys = [blake2b(text.encode(), digest_size=16, key=owner).digest() for text in texts]
        vectors = np.empty((len(texts), self.dimension), np.float32)
        # One thread at a time: the model uses all threads of torch, and the vectors that it
        # computes for one thread are in the cache for the next.
        with LOCK:
            unknown = []
            for index, key in enumerate(keys):
                vector = VECTORS.get(key)
                if vector is None:
                    unknown.append(index)
                else:
                    vectors[index] = vector
            if unknown:
                vectors[unknown] = self._run([texts[index] for index in unknown], limit)
                for index in unknown:
                    VECTORS.put(keys[index], vectors[index])
        return vectors

    @torch.inference_mode()
    def _run(self, texts, limit):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.modules.to(device)
        tokens = tokenize(text_tokenizer(self.tokenizer, limit), texts, self.prompt)
        lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
        vectors = np.empty((len(texts), self.dimension), np.float32)
        # A batch has only texts of equal length. Nothing is padded then, and the vector of a text
        # does not depend on the other texts of the batch: on CPUs not even in its last bit.
        order = np.argsort(lengths, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):
            size = max(1, TOKENS_PER_CALL[device] // max(1, int(lengths[group[0]])))
            for start in range(0, len(group), size):
                rows = group[start : start + size]
                ids = torch.tensor([tokens[index] for index in rows], device=device)
                features = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                embedded = self.modules(features)["sentence_embedding"][:, : self.dimension]
                vectors[rows] = embedded.cpu().numpy()
        return vectors


def plain_tokenizer(tokenizer):
    """Return a tokenizer as JSON, without truncation and padding."""
    from tokenizers import Tokenizer

    # A copy, because the model continues to use its own.
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer.to_str()


@lru_cache(maxsize=8)
def text_tokenizer(text, max_length):
    """Load a tokenizer from JSON that truncates texts to `max_length` tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(text)
    # At least one token of the text is read, besides the special tokens.
    n_special = tokenizer.num_special_tokens_to_add(False)
    tokenizer.enable_truncation(max(max_length, n_special + 1))
    return tokenizer


def tokenize(tokenizer, texts, prompt=""):
    """Return the token ids of each text."""
    if prompt:
        texts = [prompt + text for text in texts]
    return [item.ids for item in tokenizer.encode_batch_fast(texts)]


def load_language_model(model, *, download=True):
    """Load a language model, or return it if it is loaded already.

    Parameters
    ----------
    model : str or path
        A folder, or the name of a model on the Hugging Face hub.
    download : bool, default=True
        Whether a model whose files are not on this machine may be downloaded.

    Returns
    -------
    LanguageModel

    Raises
    ------
    ImportError
        If the package sentence-transformers is not installed.
    ValueError
        If the model does not exist or cannot be used.
    """
    key = (str(model), _signature(model))
    with LOCK:
        if key in LOADED:
            LOADED.move_to_end(key)
            return LOADED[key]
    # Weights that are not in the model's files are random, and must be the same each time.
    with seeded(0), LOCK:
        if key not in LOADED:
            LOADED[key] = _load(model, download)
            while len(LOADED) > MAX_MODELS:
                LOADED.popitem(last=False)
        return LOADED[key]


def _signature(model):
    """Return the names, sizes and times of the files of a model, or None if it is not a folder."""
    if not os.path.isdir(model):
        return None
    files = sorted(path for path in Path(model).rglob("*") if path.is_file())
    stats = [path.stat() for path in files]
    return tuple(
        (str(path), stat.st_size, stat.st_mtime_ns) for path, stat in zip(files, stats, strict=True)
    )


def _load(model, download):
    package = import_package()
    if not os.path.isdir(model) and _is_path(model):
        raise ValueError(f"TextBlock: model={str(model)!r} is a folder that does not exist")
    # The hub is queried only if the files of the model are not on this machine.
    attempts = [True, False] if download and not os.path.isdir(model) else [True]
    with _quiet_transformers():
        for local in attempts:
            try:
                modules = package.SentenceTransformer(
                    str(model), device="cpu", local_files_only=local
                )
                break
            except Exception as error:  # Corrupt files raise errors of many classes.
                reason = error
        else:
            accepted = "on the Hugging Face hub" if download else "whose files are on this machine"
            raise ValueError(
                f"TextBlock: model={str(model)!r} cannot be loaded: it must be the folder of a "
                f"sentence-transformers model or the name of one {accepted} "
                f"({type(reason).__name__}: {str(reason).splitlines()[0]})"
            ) from reason
    if not hasattr(getattr(modules, "tokenizer", None), "backend_tokenizer"):
        raise ValueError(
            f"TextBlock: model={str(model)!r} has no tokenizer of the package tokenizers and "
            "cannot be used"
        )
    return LanguageModel(modules)


def import_package():
    """Import sentence-transformers, or raise ``ImportError`` with the command to install it."""
    try:
        import sentence_transformers
    except ImportError as error:
        raise ImportError(
            'TextBlock: encoder="pretrained" needs the package sentence-transformers: '
            'pip install "sk_easytensor[text]"'
        ) from error
    return sentence_transformers


def _is_path(model):
    """Return whether a value is a path rather than a name such as ``"owner/model"``."""
    text = str(model)
    signs = text.startswith((".", "~", os.sep)), text.count("/") > 1, "\\" in text
    return isinstance(model, Path) or any(signs)


@contextmanager
def _quiet_transformers():
    """Turn off the progress bars and warnings of transformers within the context."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


# Factor of the learning rate of fine-tuned language models, which train at rates of about 1e-4.
LEARNING_RATE_SCALE = 0.005

# Tokens per forward call of a fine-tuned model, padding included, and the number of parts into
# which a smaller batch is split: each part has texts of similar length, which saves padding.
PART_TOKENS, LENGTH_GROUPS = 16_384, 4

# Modules that may follow the transformer of a model that is fine-tuned.
PARTS = ("Pooling", "Dense", "Normalize")


class PretrainedEncoder(TextEncoder):
    """Base class of the encoders that use a language model."""

    def check_parameters(self):
        # The model is loaded here, so that errors occur before training starts.
        load_language_model(self.block.model)

    def count(self, column):
        """Return an empty summary, because nothing is learned from the texts."""
        return SummaryMap()

    def finish(self, columns):
        block = self.block
        language_model = load_language_model(block.model)
        block.fingerprint_ = language_model.fingerprint
        block._dimension = language_model.dimension
        return language_model

    def _load_fitted_model(self):
        """Load the language model with which the block was fitted, and check its fingerprint.

        Nothing is downloaded, because the name of the model may come from an untrusted file.
        """
        block = self.block
        try:
            language_model = load_language_model(block.model, download=False)
        except ValueError as error:
            columns = getattr(block, "feature_names_in_", np.array([])).tolist()
            raise ValueError(
                f"{error}. The block of columns {columns} was fitted with it: restore the model, "
                "or set the block's parameter model to its new location. Models are only "
                "downloaded in fit"
            ) from error
        if language_model.fingerprint != block.fingerprint_:
            raise ValueError(
                f"TextBlock: model={str(block.model)!r} is not the model that the block was "
                f"fitted with: its fingerprint is {language_model.fingerprint}, that of the "
                f"fitted one {block.fingerprint_}. Set the block's parameter model to the location "
                "of the fitted model, or fit again"
            )
        return language_model


class FrozenEncoder(PretrainedEncoder):
    """Encode texts as vectors of a frozen language model, which are computed in ``encode``."""

    @property
    def n_flat(self):
        return self.block._dimension

    def encode(self, columns):
        language_model = self._load_fitted_model()
        parts = [self._encode_column(column, language_model) for column in columns]
        return {"vectors": torch.from_numpy(np.stack(parts, axis=1))}

    def _encode_column(self, column, language_model):
        parts = [np.empty((0, language_model.dimension), np.float32)]
        missing = np.full((1, language_model.dimension), np.nan, np.float32)
        for texts, rows in distinct_texts(column):
            vectors = language_model.vectors(texts.to_pylist(), self.block.max_length)
            parts.append(np.concatenate([vectors, missing])[rows])
        return np.concatenate(parts)

    def make_module(self):
        block = self.block
        return VectorProjection(block._dimension, block.n_features_in_, self.width, block.dropout)

    def flatten(self, encoding):
        vectors = encoding["vectors"].numpy()
        return np.nan_to_num(vectors).reshape(len(vectors), vectors.shape[1] * self.n_flat)


class FineTunedEncoder(PretrainedEncoder):
    """Encode texts as tokens of a language model that is fine-tuned within the network."""

    def finish(self, columns):
        language_model = super().finish(columns)
        self.block.tokenizer_ = language_model.tokenizer
        self.block._prompt = language_model.prompt
        self.block._longest = language_model.longest
        self.block._architecture = describe_architecture(language_model.modules, self.block.model)

    def encode(self, columns):
        return {"tokens": interleave([self._encode_column(column) for column in columns])}

    def _encode_column(self, column):
        block = self.block
        limit = min(block.max_length, block._longest)
        tokenizer = text_tokenizer(block.tokenizer_, limit)
        parts = [empty_lists(torch.int32)]
        for texts, rows in distinct_texts(column):
            # An additional empty list is the encoding of missing texts.
            tokens = [*tokenize(tokenizer, texts.to_pylist(), block._prompt), []]
            lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
            offsets = np.append(0, np.cumsum(lengths))
            values = np.concatenate([np.asarray(ids, np.int32) for ids in tokens])
            lists = Ragged(torch.from_numpy(values), torch.from_numpy(offsets))
            parts.append(lists.take(torch.from_numpy(rows)))
        return Ragged.concatenate(parts)

    def make_module(self):
        block = self.block
        network = LanguageNetwork(block._architecture)
        try:
            network.copy_weights(self._load_fitted_model().modules)
        except ValueError as error:
            # The weights may be loaded later, from the state dict of a fitted estimator.
            network.missing_weights = str(error)
        projection = VectorProjection(
            block._dimension, block.n_features_in_, self.width, block.dropout
        )
        return FineTunedModule(network, projection, block.n_features_in_)

    def flatten(self, encoding):
        return project_tokens(encoding["tokens"])


def pretrained_encoder(block):
    """Return the encoder for a block's parameter ``trainable``."""
    return FineTunedEncoder(block) if block.trainable else FrozenEncoder(block)


class FineTunedModule(BlockModule):
    """Encode texts with a fine-tuned language model and project the vectors.

    Parameters
    ----------
    language_model : LanguageNetwork
        Model of all columns.
    projection : VectorProjection
        Projection of the vectors of each column.
    n_columns : int
        Number of text columns.
    """

    padded = True
    """True, because the time of a batch depends on its longest text."""

    def __init__(self, language_model, projection, n_columns):
        super().__init__()
        self.out_features = projection.out_features
        self.n_columns = n_columns
        self.language_model = language_model
        self.projection = projection

    def forward(self, tokens):
        """Return the vectors of all columns.

        Parameters
        ----------
        tokens : Ragged of int32
            Tokens of each text and column; an empty list is a missing text.

        Returns
        -------
        torch.Tensor of shape (batch, n_columns * width)
        """
        lists = Ragged(tokens.values, tokens.offsets)
        lengths = lists.lengths
        order = torch.argsort(lengths, stable=True)
        present = order[int((lengths == 0).sum()) :]
        dimension = self.projection.dimension
        vectors = self.projection.missing.new_full((len(lengths), dimension), torch.nan)
        if len(present):
            n_parts = -(-len(present) * int(lengths.max()) // PART_TOKENS)
            parts = present.chunk(max(n_parts, LENGTH_GROUPS))
            embedded = torch.cat([self.language_model(lists.take(part)) for part in parts])
            vectors = vectors.index_put((present,), embedded.to(vectors.dtype))
        return self.projection(vectors.reshape(len(tokens), self.n_columns, dimension))


class LanguageNetwork(nn.Module):
    """Network of a language model, built from its configuration.

    Parameters
    ----------
    architecture : str
        Configuration from :func:`describe_architecture`.

    Attributes
    ----------
    missing_weights : str or None
        Message about the reason why no pretrained weights are loaded; None if weights are loaded.
    """

    learning_rate_scale = LEARNING_RATE_SCALE
    """Factor of the learning rate of these parameters."""

    def __init__(self, architecture):
        super().__init__()
        modules = import_package().sentence_transformer.modules
        import transformers

        description = json.loads(architecture)
        check_architecture(description)
        config = transformers.AutoConfig.for_model(**description["config"])
        self.transformer = getattr(transformers, description["class"])(config).float()
        self.parts = nn.ModuleList(
            getattr(modules, name)(**part_arguments(arguments))
            for name, arguments in description["parts"]
        )
        self.padding = description["padding"]
        self.missing_weights = None

    def copy_weights(self, modules):
        """Copy the weights of a loaded sentence-transformers model."""
        first, *rest = modules
        self.transformer.load_state_dict(first.model.state_dict())
        for part, source in zip(self.parts, rest, strict=True):
            part.load_state_dict(source.state_dict())

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self.missing_weights = None

    def forward(self, tokens):
        """Return the vectors of texts.

        Parameters
        ----------
        tokens : Ragged of int32
            Tokens of each text, at least one.

        Returns
        -------
        torch.Tensor of shape (n_texts, dimension)

        Raises
        ------
        ValueError
            If no pretrained weights are loaded.
        """
        if self.missing_weights is not None:
            raise ValueError(self.missing_weights)
        ids = tokens.to_padded(self.padding).long()
        mask = torch.arange(ids.shape[1], device=ids.device) < tokens.lengths[:, None]
        features = {"input_ids": ids, "attention_mask": mask.long()}
        features["token_embeddings"] = self.transformer(**features).last_hidden_state
        for part in self.parts:
            features = part(features)
        return features["sentence_embedding"]


def describe_architecture(modules, model):
    """Return the configuration from which a model's network is built.

    Parameters
    ----------
    modules : sentence_transformers.SentenceTransformer
        The model.
    model : str or path
        Folder or name of the model, for error messages.

    Returns
    -------
    str
        Configurations of its modules as JSON, without weights.

    Raises
    ------
    ValueError
        If the model has modules that cannot be fine-tuned.
    """
    import transformers

    first, *rest = modules
    kinds = [type(part).__name__ for part in rest]
    network = getattr(first, "model", None)
    name = type(network).__name__
    known = getattr(transformers, name, None) is type(network)
    if not known or first.module_output_name != "token_embeddings" or not set(kinds) <= set(PARTS):
        raise ValueError(
            f"TextBlock: model={str(model)!r} cannot be fine-tuned: trainable=True accepts models "
            f"of a transformer of the package transformers and of {', '.join(PARTS)}; this one "
            f"consists of {', '.join([name, *kinds])}"
        )
    config = json.loads(network.config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)
    description = {
        "class": name,
        "config": config,
        "parts": [[k, part.get_config_dict()] for k, part in zip(kinds, rest, strict=True)],
        "padding": modules.tokenizer.pad_token_id or 0,
    }
    return json.dumps(description)


def check_architecture(description):
    """Check that a configuration builds a network without loading models or code.

    The configuration may come from an untrusted file, and some classes and settings load other
    models, or code, by name.

    Parameters
    ----------
    description : dict
        Configuration from :func:`describe_architecture`.

    Raises
    ------
    ValueError
        If a class is not accepted, or a setting refers to another model.
    """
    import transformers

    network = getattr(transformers, str(description["class"]), None)
    known = isinstance(network, type) and issubclass(network, transformers.PreTrainedModel)
    kinds = [kind for kind, _ in description["parts"]]
    names = list(model_references(description["config"]))
    if not known or not set(kinds) <= set(PARTS) or names:
        raise ValueError(
            f"TextBlock: the stored language model {shortened(description['class'])} with parts "
            f"{shortened(kinds)} and settings {shortened(names)} cannot be built: accepted are "
            f"models of the package transformers, parts of {', '.join(PARTS)} and no setting that "
            "names another model"
        )


def model_references(config, key=""):
    """Yield the settings of a nested configuration that refer to models or files."""
    if isinstance(config, dict):
        for name, value in config.items():
            yield from model_references(value, str(name))
    elif isinstance(config, list):
        for value in config:
            yield from model_references(value, key)
    elif key == "_name_or_path":
        # The origin of the model, from which nothing is loaded.
        return
    elif ("backbone" in key and config) or (isinstance(config, str) and "/" in config):
        yield f"{key}={config}"


def part_arguments(arguments):
    """Return the arguments of a module's constructor, with its activation as an object."""
    name = arguments.get("activation_function")
    if name is None:
        return arguments
    return {**arguments, "activation_function": getattr(nn, name.rpartition(".")[2])()}
