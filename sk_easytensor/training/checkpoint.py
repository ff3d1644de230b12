"""Checkpoints of fits, and training that resumes from them."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import re
from contextlib import suppress
from copy import copy
from pickle import UnpicklingError

import numpy as np
import torch

from sk_easytensor._utils.digests import Digest, array_digest, describe_object
from sk_easytensor._utils.masking import masked
from sk_easytensor._utils.skops import trusted_types
from sk_easytensor._utils.storage import LOCK, Lock, open_store
from sk_easytensor._utils.validation import warn_user
from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.dataset import MemoryMappedDataset

__all__ = [
    "Checkpoints",
    "describe_data",
    "describe_parameters",
    "joined_descriptions",
    "load_loop_state",
    "loop_state",
]


def loop_state(net, average, ended):
    """Return the state that the rest of a training depends on.

    Parameters
    ----------
    net : TensorNet
        Net after an epoch, with the averaged weights in its module.
    average : WeightAverage
        Moving average of the weights.
    ended : bool
        Whether a callback ended the training.

    Returns
    -------
    dict
        Nested dictionaries and lists of tensors, numbers and strings. The state of a callback
        consists of its attributes whose names end in an underscore, if they are such values or
        objects with a ``state_dict``.
    """
    cuda = torch.device(net.device).type == "cuda"
    return {
        "history": [plain(epoch) for epoch in net.history],
        "network": net.module_.state_dict(),
        "average": {"shadow": average.shadow, "steps": average.steps},
        "optimizer": net.optimizer_.state_dict(),
        "callbacks": {name: callback_state(callback) for name, callback in net.callbacks_},
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state(net.device) if cuda else None,
        "ended": ended,
    }


def load_loop_state(net, average, state):
    """Load a state into a net that is about to train.

    Parameters
    ----------
    net : TensorNet
        Initialised net whose callbacks were notified of ``on_train_begin``.
    average : WeightAverage
        Moving average of its weights.
    state : dict
        Result of :func:`loop_state`.
    """
    for epoch in state["history"]:
        net.history.new_epoch()
        for name, value in epoch.items():
            net.history.record(name, value)
    net.module_.load_state_dict(state["network"])
    for shadow, saved in zip(average.shadow, state["average"]["shadow"], strict=True):
        shadow.copy_(saved)
    average.steps, average.swapped = state["average"]["steps"], True
    net.optimizer_.load_state_dict(state["optimizer"])
    for name, callback in net.callbacks_:
        load_callback_state(callback, state["callbacks"].get(name, {}))
    torch.set_rng_state(state["random"])
    if state["random_cuda"] is not None:
        torch.cuda.set_rng_state(state["random_cuda"], net.device)


def callback_state(callback):
    """Return the state of a callback, the attributes whose names end in an underscore."""
    attributes = {name: value for name, value in vars(callback).items() if name.endswith("_")}
    state = {"values": plain(attributes), "objects": {}}
    for name, value in attributes.items():
        if hasattr(value, "state_dict") and not isinstance(value, type):
            state["objects"][name] = plain(value.state_dict())
    return state


def load_callback_state(callback, state):
    """Load the result of :func:`callback_state` into a callback."""
    vars(callback).update(state.get("values", {}))
    for name, value in state.get("objects", {}).items():
        getattr(callback, name).load_state_dict(value)


def plain(values):
    """Return the entries that are numbers, strings, tensors, or lists and dictionaries of them."""
    converted = {name: _plain(value) for name, value in values.items()}
    return {name: value for name, value in converted.items() if value is not NOT_PLAIN}


NOT_PLAIN = object()


def _plain(value):
    """Return a value with NumPy scalars as numbers; `NOT_PLAIN` for values of other types."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str, torch.Tensor)):
        return value
    if isinstance(value, dict):
        items = {key: _plain(item) for key, item in value.items()}
        return NOT_PLAIN if any(item is NOT_PLAIN for item in items.values()) else items
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return NOT_PLAIN if any(item is NOT_PLAIN for item in items) else type(value)(items)
    return NOT_PLAIN


FORMAT = 2
MAGIC = b"sk_easytensor checkpoint 2\n"
DESCRIPTION = "fit.json"
ENCODER = re.compile(r"[a-z]+\.skops")
EPOCH = re.compile(r"epoch-(\d{5,})\.pt")
PART = re.compile(r"^fold\d+-")
N_NEWEST = 2
"""Number of checkpoints that are retained besides the best one."""

IRRELEVANT = {"checkpoint_dir", "tracker", "verbose", "n_jobs", "inference_engine"}
"""Parameters that may differ between a fit and the one that resumes it."""


class Checkpoints:
    """Checkpoints of one fit, in a subdirectory of their own.

    Parameters
    ----------
    directory : str, os.PathLike or store
        Directory or URL, or an object with the methods of
        :class:`~sk_easytensor._utils.storage.DirectoryStore`.
    owner : str
        Class name of the estimator, used in error messages.
    parameters : dict of {str: str}
        Result of :func:`describe_parameters`.
    source : dict of {str: str}, optional
        Digests of the data as passed by the user. The name of the subdirectory is ``fit-`` and 16
        hexadecimal digits of a hash of estimator, parameters and these digests.

    Notes
    -----
    :meth:`open` locks the subdirectory and reads its description, :meth:`close` unlocks it.

    No file is a pickle: descriptions are JSON, encoders are written by skops, states are tensors,
    numbers and strings, which torch loads with ``weights_only=True``. Each file contains a
    description of the fit and a SHA-256 of its content, and is not used if either differs. Files
    of other names are neither read nor removed.
    """

    def __init__(self, directory, owner, parameters, source=None):
        self.owner = owner
        self.directory = directory
        self.description = {
            "format": FORMAT,
            "estimator": owner,
            "parameters": parameters,
            "source": source or {},
        }
        store = open_store(directory)
        # Stores of a single fit have no subdirectories.
        inside = getattr(store, "inside", None)
        name = f"fit-{hashlib.sha256(canonical(self.description)).hexdigest()[:16]}"
        self.prefix = ""
        self.store = store if inside is None else inside(name)
        self._is_named = self.store is not store
        self._stored = self._lock = None

    def open(self):
        """Lock the subdirectory and read its description.

        Raises
        ------
        RuntimeError
            If another fit writes to it.
        ValueError
            If `directory` is not a directory, or contains checkpoints of another version or
            estimator, or of a fit with other parameters.
        OSError
            If the lock cannot be written, for other reasons than missing permissions.
        """
        try:
            self.store.names()
        except NotADirectoryError as error:
            raise ValueError(
                f"{self.owner}: checkpoint_dir {self._path} is not a directory"
            ) from error
        if hasattr(self.store, "create"):
            self._lock_directory()
        if hasattr(self.store, "remove_temporary"):
            self.store.remove_temporary(is_own)
        stored = self._load_description()
        if stored is not None and self._matches("parameters", stored):
            self.description = stored

    def part(self, name):
        """Return checkpoints of a part of the fit, such as a fold, in the same subdirectory.

        Parameters
        ----------
        name : str
            Name of the part, lower-case letters and digits, with which its files begin.

        Returns
        -------
        Checkpoints
        """
        # The seed of the fit is part of the description.
        self._write_description()
        part = copy(self)
        part.prefix, part.description = f"{name}-", without_data(self.description)
        part._stored = None
        stored = part._load_description()
        if stored is not None and part._matches("parameters", stored):
            part.description = stored
        return part

    def close(self):
        """Unlock the subdirectory."""
        if self._lock is not None:
            self._lock.release()

    def __getstate__(self):
        """Return the pickled state, without the lock, which belongs to this process."""
        return {**vars(self), "_lock": None}

    def seed(self, random_state):
        """Return the random state of the fit, or the seed of the checkpoints if that is None.

        With `random_state` None, a resumed fit would otherwise draw other validation rows.
        """
        if random_state is not None:
            return random_state
        if "seed" not in self.description:
            seed = np.random.SeedSequence().entropy % np.iinfo(np.int32).max
            self.description["seed"] = int(seed)
        return self.description["seed"]

    def load_or_fit(self, name, fit):
        """Return the encoder that is stored, or fit and store it.

        Parameters
        ----------
        name : str
            Name of the encoder, lower-case letters.
        fit : callable
            Called without arguments; returns the fitted encoder.

        Returns
        -------
        TableEncoder

        Warns
        -----
        UserWarning
            If the file is corrupt or was changed; the encoder is then fitted again.

        Notes
        -----
        The file is written by skops, which does without pickle. An encoder with functions, or with
        objects of types outside the library, is not stored, and a resumed fit fits it again.
        """
        # Importing skops takes a second: it scans NumPy, SciPy and scikit-learn for types.
        from skops.io import dumps, get_untrusted_types, loads

        file = f"{name}.skops"
        # Until an epoch is complete, only digests of a part of the data may have been compared.
        names = self.store.names()
        if file in names and any(EPOCH.search(name) for name in names):
            try:
                content = self._read(file, without_data(self.description))
            except (OSError, ValueError) as error:
                self._warn(f"{file} in {self._path} cannot be read ({error}); it is fitted again")
            else:
                return loads(content, trusted=trusted_types())
        encoder = fit()
        data = dumps(encoder)
        if not set(get_untrusted_types(data=data)) - set(trusted_types()):
            self._write_description()
            self._write(file, frame(data, without_data(self.description)))
        return encoder

    def begin(self, data):
        """Store the description of the data of a fit, or compare it with that of the checkpoints.

        Parameters
        ----------
        data : dict of {str: str}
            Result of :func:`describe_data`.

        Raises
        ------
        ValueError
            If there are checkpoints of a fit on other data.
        """
        description = {**self.description, "data": data}
        if "data" not in self.description or not self._matches("data", description):
            self.description = description
        self._write_description()

    def latest(self):
        """Return the state after the last complete epoch, or None if there is none.

        Warns
        -----
        UserWarning
            If a file is corrupt, was changed or is of another fit; the previous one is then used.
        """
        for epoch in reversed(self._epochs()):
            name = file_name(epoch)
            try:
                return read_state(self._read(name, self.description))
            except (OSError, ValueError) as error:
                self._warn(
                    f"checkpoint {name} in {self._path} cannot be read ({masked(error)}); "
                    "training resumes from the one before, or starts if there is none"
                )
        return None

    def write(self, epoch, state, best):
        """Write the state after an epoch, and remove checkpoints that are no longer needed.

        Parameters
        ----------
        epoch : int
            Number of complete epochs.
        state : dict
            Nested dictionaries and lists of tensors, numbers and strings.
        best : int
            Epoch whose checkpoint is retained besides the newest two.

        Raises
        ------
        OSError
            If the file cannot be written; the message names the last complete checkpoint.
        """
        self._write(file_name(epoch), pack(state, self.description))
        for old in self._epochs():
            # Later checkpoints could not be read, and later epochs overwrite them.
            if old <= epoch - N_NEWEST and old != best:
                with suppress(FileNotFoundError):
                    self.store.remove(self.prefix + file_name(old))

    # ------------------------------------------------------------------ private

    @property
    def _path(self):
        """Directory or URL for messages, passwords masked."""
        return masked(getattr(self.store, "url", repr(self.directory)))

    def _lock_directory(self):
        self._lock = Lock(self.store, self.owner)
        try:
            self._lock.acquire()
        except OSError as error:
            # A complete fit in a read-only directory writes nothing; others fail when they write.
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise self._unwritable(LOCK, error) from error

    def _warn(self, message):
        warn_user(f"{self.owner}: {message}")

    def _epochs(self):
        """Return the epochs that have a checkpoint, in increasing order."""
        matches = [EPOCH.fullmatch(name) for name in self._names()]
        return sorted(int(match[1]) for match in matches if match)

    def _names(self):
        """Return the names of the files of this part, without its prefix."""
        names, prefix = self.store.names(), self.prefix
        return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]

    def _read(self, name, expected):
        """Return a file's content; raise ``ValueError`` if it is corrupt or of another fit."""
        description, content = unframe(self.store.read(self.prefix + name))
        if description != expected:
            raise ValueError("it is of another fit")
        return content

    def _write(self, name, data):
        try:
            self.store.write(self.prefix + name, data)
        except OSError as error:
            raise self._unwritable(self.prefix + name, error) from error

    def _unwritable(self, name, error):
        epochs = self._epochs()
        complete = f"that of epoch {epochs[-1]} is complete" if epochs else "there is none yet"
        return OSError(
            error.errno,
            f"{self.owner}: checkpoint {name} cannot be written to {self._path} "
            f"({error.strerror or error}); {complete}. Run the same fit again once it can be",
        )

    def _load_description(self):
        """Return the description of the stored checkpoints, or None if there are none."""
        if DESCRIPTION in self._names():
            try:
                stored = unseal(self.store.read(self.prefix + DESCRIPTION))
            except (OSError, ValueError) as error:
                self._warn(
                    f"{DESCRIPTION} in {self._path} cannot be read ({error}); it is written again"
                )
            else:
                self._check_version(stored)
                if self._is_same_fit(stored):
                    self._stored = dict(stored)
                    return stored
                self._warn(f"{DESCRIPTION} in {self._path} is of another fit; it is written again")
        for epoch in reversed(self._epochs()):
            # Each checkpoint contains the description, which replaces a lost or corrupt fit.json.
            with suppress(OSError, ValueError):
                stored = unframe(self.store.read(self.prefix + file_name(epoch)))[0]
                if self._is_same_fit(stored):
                    return stored
        return None

    def _is_same_fit(self, stored):
        """Return False for files that were copied from the subdirectory of another fit."""
        return not self._is_named or all(
            stored.get(part) == self.description[part] for part in ("parameters", "source")
        )

    def _check_version(self, stored):
        contains = f"{self.owner}: checkpoint_dir {self._path} holds checkpoints of"
        if stored.get("format") != FORMAT:
            raise ValueError(
                f"{contains} format {stored.get('format')}; this version reads format {FORMAT}. "
                "Choose another directory"
            )
        if stored.get("estimator") != self.owner:
            raise ValueError(f"{contains} {stored.get('estimator')}; choose another directory")

    def _write_description(self):
        if self.description != self._stored:
            self._write(DESCRIPTION, seal(self.description))
            self._stored = dict(self.description)

    def _matches(self, part, description):
        """Return whether a description has the same parameters or data as the present one.

        Parameters
        ----------
        part : {"parameters", "data"}
            The part that is compared.
        description : dict
            The other description.

        Raises
        ------
        ValueError
            If they differ and there are checkpoints, which would be overwritten.
        """
        own, other = self.description[part], description[part]
        if own == other:
            return True
        if not self._epochs():
            return False
        before, now = (own, other) if part == "data" else (other, own)
        names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        changes = "; ".join(
            f"{name} was {before.get(name, 'absent')} and is {now.get(name, 'absent')}"
            for name in names
        )
        raise ValueError(
            f"{self.owner}: checkpoint_dir {self._path} holds checkpoints of a fit with other "
            f"{part}: {changes}. Choose another directory, or remove it to start again"
        )


# ---------------------------------------------------------------------- files


def file_name(epoch):
    """Return the name of the checkpoint after an epoch."""
    return f"epoch-{epoch:05}.pt"


def is_own(name):
    """Return whether a name is that of a file that :class:`Checkpoints` writes."""
    name = PART.sub("", name)
    return name in (DESCRIPTION, LOCK) or any(p.fullmatch(name) for p in (ENCODER, EPOCH))


def canonical(description):
    """Return a description as JSON bytes, the same for equal descriptions."""
    return json.dumps(description, sort_keys=True, separators=(",", ":")).encode()


def without_data(description):
    """Return the part of a description that is known before the rows are encoded."""
    return {name: value for name, value in description.items() if name != "data"}


def frame(content, description):
    """Return the bytes of a file: format, SHA-256 of the rest, description of the fit, content."""
    rest = canonical(description) + b"\n" + content
    return MAGIC + hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest


def unframe(data):
    """Return the description and the content of a file that :func:`frame` composed.

    Raises
    ------
    ValueError
        If the bytes are not those that were written.
    """
    start = len(MAGIC) + 65
    digest, rest = data[len(MAGIC) : start - 1], data[start:]
    if data[: len(MAGIC)] != MAGIC or hashlib.sha256(rest).hexdigest().encode() != digest:
        raise ValueError("it is corrupt or was changed")
    description, _, content = rest.partition(b"\n")
    return json.loads(description), content


def seal(description):
    """Return a description as JSON bytes with its digest as a further entry."""
    digest = hashlib.sha256(canonical(description)).hexdigest()
    return json.dumps({**description, "sha256": digest}, indent=1).encode()


def unseal(data):
    """Return the description from the bytes that :func:`seal` returned.

    Raises
    ------
    ValueError
        If the bytes are not those that were written.
    """
    try:
        description = json.loads(data)
    except ValueError as error:
        raise ValueError("it is no JSON: corrupt, or not a file of this library") from error
    digest = description.pop("sha256", None) if isinstance(description, dict) else None
    if digest is None or hashlib.sha256(canonical(description)).hexdigest() != digest:
        raise ValueError("it is corrupt or was changed")
    return description


def pack(state, description):
    """Return a state, serialised by torch, as the bytes of a file; see :func:`frame`."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return frame(buffer.getvalue(), description)


def read_state(content):
    """Return a state from the content of a file that :func:`pack` composed.

    Raises
    ------
    ValueError
        If it contains objects other than tensors, numbers, strings, lists and dictionaries.
    """
    try:
        return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except UnpicklingError as error:
        raise ValueError("it holds more than tensors, numbers and strings") from error


# ---------------------------------------------------------------------- descriptions


def describe_parameters(estimator):
    """Describe the parameters of a fit, for comparison with another fit.

    Parameters
    ----------
    estimator : estimator
        Estimator before the fit.

    Returns
    -------
    dict of {str: str}
        Parameters by name, nested ones included, without those that do not change the model.
    """
    return {
        name: _described(value)
        for name, value in sorted(estimator.get_params().items())
        if name.partition("__")[0] not in IRRELEVANT
    }


def _described(value):
    if hasattr(value, "checkpoint_description"):
        return value.checkpoint_description()
    if hasattr(value, "get_params"):
        return type(value).__name__
    if isinstance(value, np.random.RandomState):
        return f"RandomState of {array_digest(*map(np.asarray, value.get_state()[1:]))}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_described(item) for item in value)}]"
    if callable(value):
        return describe_object(value)
    text = masked(repr(value))
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def describe_data(network, rows, valid_rows):
    """Describe the encoded data and the initial network of a fit, for comparison with another.

    Parameters
    ----------
    network : torch.nn.Module
        Network before training.
    rows : TrainingDataset
        Training rows.
    valid_rows : list of TrainingDataset
        Validation rows.

    Returns
    -------
    dict of {str: str}
        Numbers of rows and digests, by name.
    """
    description = {}
    for name, part in [("training", rows)] + [
        (f"validation {index}", part) for index, part in enumerate(valid_rows)
    ]:
        sums = sums_of_hashes(part)
        description[f"{name} rows"] = f"{len(part)} rows of {sums['rows']:016x}"
        description[f"{name} targets"] = f"{sums['targets']:016x}"
        description[f"{name} weights"] = f"{sums['weights']:016x}"
    description["network"] = digest(*network.state_dict().values())
    return description


def sums_of_hashes(rows):
    """Return sums of hashes of rows, which depend neither on their order nor on their division.

    Parameters
    ----------
    rows : TrainingDataset
        Rows in memory or in files, which may be a worker's shard of all rows.

    Returns
    -------
    dict of {str: int}
        Sums modulo 2**64 of the hashes of ``rows``, and of rows with their ``targets`` and with
        their ``weights``.
    """
    sums = dict.fromkeys(["rows", "targets", "weights"], 0)
    in_files = isinstance(rows, MemoryMappedDataset)
    for piece in rows.stored_parts() if in_files else rows.parts():
        piece = piece.to("cpu")
        own = {"hash": torch.from_numpy(piece.frame.row_hashes())}
        others = {"rows": {}, "targets": {"y": piece.target}, "weights": {"weight": piece.weight}}
        for name, other in others.items():
            pairs = TensorFrame({"rows": own, "others": other}, len(piece))
            total = pairs.row_hashes().view(np.uint64).sum(dtype=np.uint64)
            sums[name] = (sums[name] + int(total)) % 2**64
    return sums


def joined_descriptions(descriptions):
    """Combine the results of :func:`describe_data` for the shards of several workers.

    Parameters
    ----------
    descriptions : list of dict of {str: str}
        Descriptions in the order of the workers.

    Returns
    -------
    dict of {str: str}
        Description of the rows of all workers, which does not depend on their number.
    """
    joined = dict(descriptions[0])
    for name in joined.keys() - {"network"}:
        texts = [description[name] for description in descriptions]
        counts, sums = zip(*(text.rpartition(" rows of ")[::2] for text in texts), strict=True)
        total = f"{sum(int(each, 16) for each in sums) % 2**64:016x}"
        joined[name] = f"{sum(map(int, counts))} rows of {total}" if counts[0] else total
    return joined


def digest(*arrays):
    """Return a short digest of arrays and tensors."""
    return str(Digest().add(*arrays))
