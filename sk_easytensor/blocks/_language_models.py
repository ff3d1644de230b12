"""Pretrained language models: loaded once a process, and run once for each text.

A model is told apart by a fingerprint of its weights and vocabulary rather than by its path, so
that a pickle notices when another model has taken the place of the one it was fitted with, and
so that vectors may be kept for every text a process has met.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import contextmanager
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch

from sk_easytensor.forking import ForkSafeLock
from sk_easytensor.training.seeding import seeded

__all__ = ["LanguageModel", "import_package", "load_language_model", "text_tokenizer", "tokenize"]

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
    """Tell whether a value can only be a path, not a name such as ``"owner/model"``."""
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
