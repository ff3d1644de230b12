"""Language models that others have trained, and blocks that read texts by them."""

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

from sk_easytensor._utils.forking import ForkSafeLock
from sk_easytensor._utils.runtime import seeded
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


# Vectors kept for texts that come again, in the next fold of a search for instance.
CACHE_BYTES = 512 * 2**20

# What an entry of the cache takes besides its vector: key, array object, links.
ENTRY_BYTES = 250

# Models kept in memory.
MODELS_KEPT = 2

# Tokens the model reads at a time: little enough for a processor's cache, much for a GPU.
TOKENS = {"cpu": 2048, "cuda": 65_536}

# Guards models and vectors. Taken after that of `seeded`, never before it.
LOCK = ForkSafeLock()

LOADED = OrderedDict()


class VectorCache:
    """Vectors by key, the least recently used dropped above so many bytes.

    Parameters
    ----------
    limit : int
        Bytes.
    """

    def __init__(self, limit):
        self.limit = limit
        self.size = 0
        self.entries = OrderedDict()

    def get(self, key):
        """Return a vector, or None if it is not there."""
        vector = self.entries.get(key)
        if vector is not None:
            self.entries.move_to_end(key)
        return vector

    def put(self, key, vector):
        """Keep a vector that is not there yet."""
        # A copy, because a view would keep the whole batch alive.
        self.entries[key] = vector.copy()
        self.size += vector.nbytes + ENTRY_BYTES
        while self.size > self.limit:
            _, dropped = self.entries.popitem(last=False)
            self.size -= dropped.nbytes + ENTRY_BYTES


VECTORS = VectorCache(CACHE_BYTES)


class LanguageModel:
    """A model of the package sentence-transformers.

    Parameters
    ----------
    modules : sentence_transformers.SentenceTransformer
        The model; its first module tokenizes and embeds tokens, the others make one vector.

    Attributes
    ----------
    tokenizer : str
        The tokenizer as JSON, without truncation and padding.
    longest : int
        Tokens the model reads of a text at most, those that mark its ends included.
    dimension : int
        Size of a text's vector.
    prompt : str
        What the model wants to stand before each text.
    fingerprint : str
        Depends on weights, vocabulary, length, prompt and pooling, and on nothing else.
    """

    def __init__(self, modules):
        # Half precision would be slow on most processors and has no NumPy type for pickling.
        self.modules = modules.float().eval().requires_grad_(False)
        self.tokenizer = plain_tokenizer(modules.tokenizer.backend_tokenizer)
        # Some tokenizers say 1e30 for no limit.
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
        about = repr((weights, vocabulary, kinds, self.longest, self.prompt))
        return blake2b(about.encode(), digest_size=16).hexdigest()

    def vectors(self, texts, max_length):
        """Return the vectors of texts; each text is run through the model once a process.

        Parameters
        ----------
        texts : list of str
        max_length : int
            Tokens read of each text, if the model does not read fewer.

        Returns
        -------
        ndarray of float32, shape (len(texts), dimension)
        """
        limit = min(max_length, self.longest)
        owner = f"{self.fingerprint}:{limit}".encode()
        keys = [blake2b(text.encode(), digest_size=16, key=owner).digest() for text in texts]
        found = np.empty((len(texts), self.dimension), np.float32)
        # One thread at a time: the model uses all that torch gives it, and what it computes for
        # one thread spares the next.
        with LOCK:
            unknown = []
            for index, key in enumerate(keys):
                vector = VECTORS.get(key)
                if vector is None:
                    unknown.append(index)
                else:
                    found[index] = vector
            if unknown:
                found[unknown] = self._run([texts[index] for index in unknown], limit)
                for index in unknown:
                    VECTORS.put(keys[index], found[index])
        return found

    @torch.inference_mode()
    def _run(self, texts, limit):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.modules.to(device)
        tokens = tokenize(text_tokenizer(self.tokenizer, limit), texts, self.prompt)
        lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
        vectors = np.empty((len(texts), self.dimension), np.float32)
        # Only texts of equal length are read together. Nothing is padded then, and a text's
        # vector does not depend on the texts beside it: on CPUs not even in its last bit.
        order = np.argsort(lengths, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):
            size = max(1, TOKENS[device] // max(1, int(lengths[group[0]])))
            for start in range(0, len(group), size):
                part = group[start : start + size]
                ids = torch.tensor([tokens[index] for index in part], device=device)
                features = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                found = self.modules(features)["sentence_embedding"][:, : self.dimension]
                vectors[part] = found.cpu().numpy()
        return vectors


def plain_tokenizer(tokenizer):
    """Return a tokenizer as JSON that neither cuts nor pads."""
    from tokenizers import Tokenizer

    # Read anew, because the model goes on using its own.
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer.to_str()


@lru_cache(maxsize=8)
def text_tokenizer(text, max_length):
    """Return the tokenizer written in JSON, cutting texts to `max_length` tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(text)
    # One token of the text is read at least, besides those that mark its ends.
    marks = tokenizer.num_special_tokens_to_add(False)
    tokenizer.enable_truncation(max(max_length, marks + 1))
    return tokenizer


def tokenize(tokenizer, texts, prompt=""):
    """Return the token ids of each text."""
    if prompt:
        texts = [prompt + text for text in texts]
    return [item.ids for item in tokenizer.encode_batch_fast(texts)]


def load_language_model(model, *, download=True):
    """Return a model that is loaded already, or load it.

    Parameters
    ----------
    model : str or path
        A folder, or the name of a model on the Hugging Face hub.
    download : bool, default=True
        Whether a model that this machine does not have may be fetched by its name.

    Returns
    -------
    LanguageModel

    Raises
    ------
    ImportError
        Without the package sentence-transformers.
    ValueError
        If there is no such model or if it cannot be used.
    """
    key = (str(model), _signature(model))
    with LOCK:
        if key in LOADED:
            LOADED.move_to_end(key)
            return LOADED[key]
    # Weights that a model's files do not hold are drawn, and must be the same each time.
    with seeded(0), LOCK:
        if key not in LOADED:
            LOADED[key] = _load(model, download)
            while len(LOADED) > MODELS_KEPT:
                LOADED.popitem(last=False)
        return LOADED[key]


def _signature(model):
    """Return what changes with the files of a model that is a folder."""
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
    # A name may be known to this machine already; only if it is not, it is looked for on the hub.
    attempts = [True, False] if download and not os.path.isdir(model) else [True]
    with _silenced():
        for local in attempts:
            try:
                modules = package.SentenceTransformer(
                    str(model), device="cpu", local_files_only=local
                )
                break
            except Exception as error:  # Files can be wrong in more ways than can be listed.
                reason = error
        else:
            where = "on the Hugging Face hub" if download else "whose files are on this machine"
            raise ValueError(
                f"TextBlock: model={str(model)!r} cannot be loaded: it must be the folder of a "
                f"sentence-transformers model or the name of one {where} "
                f"({type(reason).__name__}: {str(reason).splitlines()[0]})"
            ) from reason
    if not hasattr(getattr(modules, "tokenizer", None), "backend_tokenizer"):
        raise ValueError(
            f"TextBlock: model={str(model)!r} has no tokenizer of the package tokenizers and "
            "cannot be used"
        )
    return LanguageModel(modules)


def import_package():
    """Return the package sentence-transformers or say how to get it."""
    try:
        import sentence_transformers
    except ImportError as error:
        raise ImportError(
            'TextBlock: encoder="pretrained" needs the package sentence-transformers: '
            'pip install "sk_easytensor[text]"'
        ) from error
    return sentence_transformers


def _is_path(model):
    """Return whether a value can only be a path, not a name such as ``"owner/model"``."""
    text = str(model)
    signs = text.startswith((".", "~", os.sep)), text.count("/") > 1, "\\" in text
    return isinstance(model, Path) or any(signs)


@contextmanager
def _silenced():
    """Keep transformers from reporting on the loading of weights."""
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


# Times the learning rate of the network: language models are trained on with rates of some 1e-4.
LEARNING_RATE_SCALE = 0.005

# Tokens the language model reads at a time within a batch, padding included, and the number of
# parts that a batch of less is cut into: texts of like length stand together and save padding.
PART_TOKENS, LENGTH_GROUPS = 16_384, 4

# What may follow a transformer for it to be trained on.
PARTS = ("Pooling", "Dense", "Normalize")


class PretrainedEncoder(TextEncoder):
    """What both ways of using a language model share."""

    def check_parameters(self):
        # Also loads the model, so that nothing is missing once training has begun.
        load_language_model(self.block.model)

    def count(self, column):
        """Return an empty summary: nothing is learned from the texts."""
        return SummaryMap()

    def finish(self, columns):
        block = self.block
        language_model = load_language_model(block.model)
        block.fingerprint_ = language_model.fingerprint
        block._dimension = language_model.dimension
        return language_model

    def _model_of_fit(self):
        """Return the language model, if it is still the one that the block was fitted with.

        Nothing is downloaded: a file that was loaded must not choose what this machine fetches.
        """
        block = self.block
        try:
            language_model = load_language_model(block.model, download=False)
        except ValueError as error:
            columns = getattr(block, "feature_names_in_", np.array([])).tolist()
            raise ValueError(
                f"{error}. The block of columns {columns} was fitted with it: put it there again, "
                "or set the block's parameter model to where it is now. Nothing is downloaded but "
                "by fit"
            ) from error
        if language_model.fingerprint != block.fingerprint_:
            raise ValueError(
                f"TextBlock: model={str(block.model)!r} is not the model that the block was "
                f"fitted with: its fingerprint is {language_model.fingerprint}, that of the "
                f"fitted one {block.fingerprint_}. Set the block's parameter model to where that "
                "one is, or fit again"
            )
        return language_model


class FrozenEncoder(PretrainedEncoder):
    """Vectors of a language model that stays as it is; it runs while texts are encoded."""

    @property
    def n_flat(self):
        return self.block._dimension

    def encode(self, columns):
        language_model = self._model_of_fit()
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
    """Tokens of a language model that is a part of the network and trained with it."""

    def finish(self, columns):
        language_model = super().finish(columns)
        self.block.tokenizer_ = language_model.tokenizer
        self.block._prompt = language_model.prompt
        self.block._longest = language_model.longest
        self.block._architecture = describe(language_model.modules, self.block.model)

    def encode(self, columns):
        return {"tokens": interleave([self._encode_column(column) for column in columns])}

    def _encode_column(self, column):
        block = self.block
        limit = min(block.max_length, block._longest)
        tokenizer = text_tokenizer(block.tokenizer_, limit)
        parts = [empty_lists(torch.int32)]
        for texts, rows in distinct_texts(column):
            # One list more, empty, stands for missing texts.
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
            network.take_weights(self._model_of_fit().modules)
        except ValueError as error:
            # Weights may come from elsewhere: those of a fitted estimator are in its pickle.
            network.lacking = str(error)
        projection = VectorProjection(
            block._dimension, block.n_features_in_, self.width, block.dropout
        )
        return FineTunedModule(network, projection, block.n_features_in_)

    def flatten(self, encoding):
        return project_tokens(encoding["tokens"])


def pretrained_encoder(block):
    """Return the encoder for a block's ``trainable``."""
    return FineTunedEncoder(block) if block.trainable else FrozenEncoder(block)


class FineTunedModule(BlockModule):
    """Read tokens with a language model and project its vectors.

    Parameters
    ----------
    language_model : LanguageNetwork
    projection : VectorProjection
    n_columns : int
        Text columns; they share the language model.
    """

    padded = True
    """Its time grows with the longest text of a batch."""

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
            An empty list is a missing text.

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
            read = torch.cat([self.language_model(lists.take(part)) for part in parts])
            vectors = vectors.index_put((present,), read.to(vectors.dtype))
        return self.projection(vectors.reshape(len(tokens), self.n_columns, dimension))


class LanguageNetwork(nn.Module):
    """A language model's network, built without its files.

    Parameters
    ----------
    architecture : str
        As :func:`describe` returns it.

    Attributes
    ----------
    lacking : str or None
        Why the network has no pretrained weights. None once it has weights from somewhere.
    """

    learning_rate_scale = LEARNING_RATE_SCALE
    """The optimizer's learning rate is multiplied by it for these parameters."""

    def __init__(self, architecture):
        super().__init__()
        modules = import_package().sentence_transformer.modules
        import transformers

        about = json.loads(architecture)
        check_architecture(about)
        config = transformers.AutoConfig.for_model(**about["config"])
        self.transformer = getattr(transformers, about["class"])(config).float()
        self.parts = nn.ModuleList(
            getattr(modules, name)(**part_arguments(arguments))
            for name, arguments in about["parts"]
        )
        self.padding = about["padding"]
        self.lacking = None

    def take_weights(self, modules):
        """Copy the weights of a loaded model."""
        first, *others = modules
        self.transformer.load_state_dict(first.model.state_dict())
        for part, other in zip(self.parts, others, strict=True):
            part.load_state_dict(other.state_dict())

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self.lacking = None

    def forward(self, tokens):
        """Return the vectors of texts.

        Parameters
        ----------
        tokens : Ragged of int32
            A list for each text, none of them empty.

        Returns
        -------
        torch.Tensor of shape (n_texts, dimension)
        """
        if self.lacking is not None:
            raise ValueError(self.lacking)
        ids = tokens.to_padded(self.padding).long()
        mask = torch.arange(ids.shape[1], device=ids.device) < tokens.lengths[:, None]
        features = {"input_ids": ids, "attention_mask": mask.long()}
        features["token_embeddings"] = self.transformer(**features).last_hidden_state
        for part in self.parts:
            features = part(features)
        return features["sentence_embedding"]


def describe(modules, model):
    """Write down how to build a model's network.

    Parameters
    ----------
    modules : sentence_transformers.SentenceTransformer
        The model.
    model : str or path
        Where it is from, for errors.

    Returns
    -------
    str
        JSON of the configurations of its modules, without weights.
    """
    import transformers

    first, *others = modules
    kinds = [type(part).__name__ for part in others]
    network = getattr(first, "model", None)
    name = type(network).__name__
    known = getattr(transformers, name, None) is type(network)
    if not known or first.module_output_name != "token_embeddings" or not set(kinds) <= set(PARTS):
        raise ValueError(
            f"TextBlock: model={str(model)!r} cannot be trained on: trainable=True takes models "
            f"of a transformer of the package transformers and of {', '.join(PARTS)}; this one "
            f"consists of {', '.join([name, *kinds])}"
        )
    config = json.loads(network.config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)
    about = {
        "class": name,
        "config": config,
        "parts": [[k, part.get_config_dict()] for k, part in zip(kinds, others, strict=True)],
        "padding": modules.tokenizer.pad_token_id or 0,
    }
    return json.dumps(about)


def check_architecture(about):
    """Raise ``ValueError`` unless a description is of a network that is built without files.

    It may come from a file of unknown origin. Some classes and settings load other models, or
    code, by their names.

    Parameters
    ----------
    about : dict
        What :func:`describe` wrote down.
    """
    import transformers

    network = getattr(transformers, str(about["class"]), None)
    known = isinstance(network, type) and issubclass(network, transformers.PreTrainedModel)
    kinds = [kind for kind, _ in about["parts"]]
    names = list(names_within(about["config"]))
    if not known or not set(kinds) <= set(PARTS) or names:
        raise ValueError(
            f"TextBlock: the stored language model {shortened(about['class'])} with parts "
            f"{shortened(kinds)} and settings {shortened(names)} cannot be built: it takes a model "
            f"of the package transformers, parts of {', '.join(PARTS)} and no setting that names "
            "another model"
        )


def names_within(config, key=""):
    """Yield the settings of a configuration, nested ones too, that name models or files."""
    if isinstance(config, dict):
        for name, value in config.items():
            yield from names_within(value, str(name))
    elif isinstance(config, list):
        for value in config:
            yield from names_within(value, key)
    elif key == "_name_or_path":
        # Only says where a model came from.
        return
    elif ("backbone" in key and config) or (isinstance(config, str) and "/" in config):
        yield f"{key}={config}"


def part_arguments(arguments):
    """Return the arguments of a module's constructor, its activation as an object."""
    name = arguments.get("activation_function")
    if name is None:
        return arguments
    return {**arguments, "activation_function": getattr(nn, name.rpartition(".")[2])()}
