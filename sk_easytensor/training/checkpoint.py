"""Checkpoints of fits, in files that are complete, of the same fit, and free of code."""

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

from sk_easytensor._utils.masking import masked
from sk_easytensor._utils.skops import trusted_types
from sk_easytensor._utils.storage import LOCK, Lock, open_store
from sk_easytensor._utils.validation import warn_user

__all__ = [
    "Checkpoints",
]


FORMAT = 3
MAGIC = b"sk_easytensor checkpoint 3\n"
DESCRIPTION = "fit.json"
ENCODER = re.compile(r"[a-z]+\.skops")
EPOCH = re.compile(r"epoch-(\d{5,})(-within)?\.pt")
"""Checkpoints after some epochs, and within the next one."""

FOLD = re.compile(r"^fold\d+-")
N_NEWEST = 2
"""Number of checkpoints that are retained besides the best one."""


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
        # Until there is a checkpoint, only digests of a part of the data may have been compared.
        names = self.store.names()
        if file in names and any(EPOCH.search(name) for name in names):
            try:
                content = self._read(file, without_data(self.description))
            except (OSError, ValueError) as error:
                self._warn(f"{file} in {self._path} cannot be read ({error}); it is fitted again")
            else:
                return loads(bytes(content), trusted=trusted_types())
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

    def latest(self, complete=False):
        """Return the newest state, or None if there is none.

        Parameters
        ----------
        complete : bool, default=False
            Whether only states after complete epochs count, not those within an epoch.

        Returns
        -------
        dict or None

        Warns
        -----
        UserWarning
            If a file is corrupt, was changed or is of another fit; the previous one is then used.
        """
        for epoch, is_within in reversed(self._states()):
            if is_within and complete:
                continue
            name = file_name(epoch, is_within)
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
        for old, is_within in self._states():
            # Later checkpoints could not be read, and later epochs overwrite them.
            needed = old == best or old > epoch - N_NEWEST
            if old < epoch and (is_within or not needed):
                with suppress(FileNotFoundError):
                    self.store.remove(self.prefix + file_name(old, is_within))

    def write_within(self, epoch, state):
        """Write the state within an epoch, which replaces an earlier one.

        Parameters
        ----------
        epoch : int
            Number of complete epochs.
        state : dict
            As in :meth:`write`.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        self._write(file_name(epoch, is_within=True), pack(state, self.description))

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

    def _states(self):
        """Return the numbers of complete epochs of all checkpoints, and whether they are within.

        The newest one is the last.
        """
        matches = [EPOCH.fullmatch(name) for name in self._names()]
        return sorted((int(match[1]), match[2] is not None) for match in matches if match)

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
        epochs = [epoch for epoch, is_within in self._states() if not is_within]
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
        for epoch, is_within in reversed(self._states()):
            # Each checkpoint contains the description, which replaces a lost or corrupt fit.json.
            with suppress(OSError, ValueError):
                stored = unframe(self.store.read(self.prefix + file_name(epoch, is_within)))[0]
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

    def _matches(self, entry, description):
        """Return whether a description has the same parameters or data as the present one.

        Parameters
        ----------
        entry : {"parameters", "data"}
            The entry that is compared.
        description : dict
            The other description.

        Raises
        ------
        ValueError
            If they differ and there are checkpoints, which would be overwritten.
        """
        own, other = self.description[entry], description[entry]
        if own == other:
            return True
        if not self._states():
            return False
        before, now = (own, other) if entry == "data" else (other, own)
        names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        changes = "; ".join(
            f"{name} was {before.get(name, 'absent')} and is {now.get(name, 'absent')}"
            for name in names
        )
        raise ValueError(
            f"{self.owner}: checkpoint_dir {self._path} holds checkpoints of a fit with other "
            f"{entry}: {changes}. Choose another directory, or remove it to start again"
        )


# ---------------------------------------------------------------------- files


def file_name(epoch, is_within=False):
    """Return the name of the checkpoint after an epoch, or within the next one."""
    return f"epoch-{epoch:05}{'-within' if is_within else ''}.pt"


def is_own(name):
    """Return whether a name is that of a file that :class:`Checkpoints` writes."""
    name = FOLD.sub("", name)
    return name in (DESCRIPTION, LOCK) or any(p.fullmatch(name) for p in (ENCODER, EPOCH))


def canonical(description):
    """Return a description as JSON bytes, the same for equal descriptions."""
    return json.dumps(description, sort_keys=True, separators=(",", ":")).encode()


def without_data(description):
    """Return the part of a description that is known before the rows are encoded."""
    return {name: value for name, value in description.items() if name != "data"}


def frame(content, description):
    """Return the parts of a file: format, SHA-256 of the rest, description of the fit, content.

    They are not joined, because a content may be as large as the memory that is left.
    """
    rest = [canonical(description) + b"\n", content]
    sha = hashlib.sha256()
    for part in rest:
        sha.update(part)
    return [MAGIC + sha.hexdigest().encode() + b"\n", *rest]


def unframe(data):
    """Return the description and the content of a file that :func:`frame` composed.

    Raises
    ------
    ValueError
        If the bytes are not those that were written.
    """
    start = len(MAGIC) + 65
    digest, rest = data[len(MAGIC) : start - 1], memoryview(data)[start:]
    if data[: len(MAGIC)] != MAGIC or hashlib.sha256(rest).hexdigest().encode() != digest:
        raise ValueError("it is corrupt or was changed")
    end = data.index(b"\n", start)
    return json.loads(data[start:end]), memoryview(data)[end + 1 :]


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
    """Return a state, serialised by torch, as the parts of a file; see :func:`frame`."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return frame(buffer.getbuffer(), description)


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
