"""Checkpoints: the whole state of a training after each epoch, and the way back to it."""

from __future__ import annotations

import hashlib
import io
import json
import re
from pickle import UnpicklingError
from warnings import warn

import numpy as np
import torch
from skops.io import dumps, get_untrusted_types, loads

from sk_easytensor.masking import masked
from sk_easytensor.safe_loading import trusted_types
from sk_easytensor.training.stores import open_store

__all__ = ["Checkpoints", "describe_data", "describe_parameters", "joined_descriptions"]

FORMAT = 1
MAGIC = b"sk_easytensor checkpoint\n"
DESCRIPTION = "fit.json"
EPOCH = re.compile(r"epoch-(\d{5,})\.pt")
NEWEST = 2
"""Checkpoints kept besides the best."""

IRRELEVANT = {"checkpoint_dir", "tracker", "verbose", "n_jobs", "inference_engine"}
"""Parameters with which a fit may be gone on with though they changed."""


class Checkpoints:
    """Checkpoints of one fit.

    Parameters
    ----------
    where : str, os.PathLike or store
        Directory or URL, or an object with the methods of
        :class:`~sk_easytensor.training.stores.DirectoryStore`.
    owner : str
        Name of the estimator, for errors.
    parameters : dict of {str: str}
        What :func:`describe_parameters` returns.

    Raises
    ------
    ValueError
        If there are checkpoints of a fit with other parameters.

    Notes
    -----
    Nothing here is pickled: descriptions are JSON, encoders are written by skops, states are
    tensors, numbers and strings, which torch loads with ``weights_only=True``. Each state carries a
    SHA-256 of its content.
    """

    def __init__(self, where, owner, parameters):
        self.owner = owner
        self.where = where
        self.store = open_store(where)
        self.store.tidy()
        self.description = {"format": FORMAT, "estimator": owner, "parameters": parameters}
        found = self._read_description()
        if found is not None and self._agrees("parameters", found["parameters"], parameters):
            self.description = found

    def seed(self, random_state):
        """Return the random state of the fit, which is that of the checkpoints if there are any.

        Without a `random_state` a fit that is gone on with would otherwise draw other rows to
        validate on.
        """
        if random_state is not None:
            return random_state
        if "seed" not in self.description:
            seed = np.random.SeedSequence().entropy % np.iinfo(np.int32).max
            self.description["seed"] = int(seed)
        return self.description["seed"]

    def keep(self, name, make):
        """Return a fitted encoder that was kept, or make and keep it.

        Parameters
        ----------
        name : str
            Of the encoder.
        make : callable
            Fits it.

        Returns
        -------
        TableEncoder

        Notes
        -----
        It is written by skops, which needs no pickle. One that holds functions or objects of
        types that are not the library's is not kept, but made again.
        """
        file = f"{name}.skops"
        # Before an epoch is complete, nothing tells whether the data are still the same.
        if file in self.store.names() and self._epochs():
            return loads(self.store.read(file), trusted=trusted_types())
        made = make()
        data = dumps(made)
        if not set(get_untrusted_types(data=data)) - set(trusted_types()):
            self._write_description()
            self._write(file, data)
        return made

    def begin(self, data):
        """Note the data of a fit, or compare them with those of the checkpoints.

        Parameters
        ----------
        data : dict of {str: str}
            What :func:`describe_data` returns.

        Raises
        ------
        ValueError
            If there are checkpoints of a fit on other data.
        """
        self._agrees("data", self.description.get("data", data), data)
        self.description["data"] = data
        self._write_description()

    def latest(self):
        """Return the state after the last complete epoch, or None.

        Warns
        -----
        UserWarning
            If a file is torn or was changed; the one before is then taken.
        """
        for epoch in reversed(self._epochs()):
            try:
                return unpack(self.store.read(file_name(epoch)))
            except (OSError, ValueError) as error:
                warn(
                    f"{self.owner}: checkpoint {file_name(epoch)} in {self._place} cannot be read "
                    f"({masked(error)}); going on from the one before",
                    stacklevel=2,
                )
        return None

    def write(self, epoch, state, best):
        """Write the state after an epoch, and remove those no longer needed.

        Parameters
        ----------
        epoch : int
            Complete epochs.
        state : dict
            Nested dictionaries and lists of tensors, numbers and strings.
        best : int
            Epoch whose checkpoint is kept besides the newest two.
        """
        self._write(file_name(epoch), pack(state))
        epochs = self._epochs()
        for old in epochs[:-NEWEST]:
            if old != best:
                self.store.remove(file_name(old))

    # ------------------------------------------------------------------ inside

    @property
    def _place(self):
        return masked(getattr(self.store, "url", repr(self.where)))

    def _epochs(self):
        found = [EPOCH.fullmatch(name) for name in self.store.names()]
        return sorted(int(match[1]) for match in found if match)

    def _write(self, name, data):
        try:
            self.store.write(name, data)
        except OSError as error:
            epochs = self._epochs()
            kept = f"that of epoch {epochs[-1]} is complete" if epochs else "there is none yet"
            raise OSError(
                error.errno,
                f"{self.owner}: checkpoint {name} cannot be written to {self._place} "
                f"({error.strerror or error}); {kept}. Run the same fit again once it can be",
            ) from error

    def _read_description(self):
        if DESCRIPTION not in self.store.names():
            return None
        found = json.loads(self.store.read(DESCRIPTION))
        if found["format"] != FORMAT:
            raise ValueError(
                f"{self.owner}: checkpoint_dir {self._place} holds checkpoints of format "
                f"{found['format']}; this version reads format {FORMAT}. Choose another directory"
            )
        if found["estimator"] != self.owner:
            raise ValueError(
                f"{self.owner}: checkpoint_dir {self._place} holds checkpoints of "
                f"{found['estimator']}; choose another directory"
            )
        return found

    def _write_description(self):
        self._write(DESCRIPTION, json.dumps(self.description, indent=1).encode())

    def _agrees(self, what, found, now):
        """Tell whether what was found is what is there now; refuse to lose an epoch if not."""
        if found == now:
            return True
        if not self._epochs():
            for name in self.store.names():
                self.store.remove(name)
            return False
        names = sorted(name for name in {*found, *now} if found.get(name) != now.get(name))
        changes = "; ".join(
            f"{name} was {found.get(name, 'not there')} and is {now.get(name, 'not there')}"
            for name in names
        )
        raise ValueError(
            f"{self.owner}: checkpoint_dir {self._place} holds checkpoints of a fit with other "
            f"{what}: {changes}. Choose another directory, or remove it to begin anew"
        )


# ---------------------------------------------------------------------- files


def file_name(epoch):
    """Return the name of the checkpoint after an epoch."""
    return f"epoch-{epoch:05}.pt"


def pack(state):
    """Return a state as bytes that tell whether they are complete."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    return MAGIC + hashlib.sha256(data).hexdigest().encode() + b"\n" + data


def unpack(data):
    """Return the state that :func:`pack` made bytes of.

    Raises
    ------
    ValueError
        If the bytes are not those that were written.
    """
    start = len(MAGIC) + 65
    digest, content = data[len(MAGIC) : start - 1], data[start:]
    if data[: len(MAGIC)] != MAGIC or hashlib.sha256(content).hexdigest().encode() != digest:
        raise ValueError("it is torn or was changed")
    try:
        return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except UnpicklingError as error:
        raise ValueError("it holds more than tensors, numbers and strings") from error


# ---------------------------------------------------------------------- descriptions


def describe_parameters(estimator):
    """Describe what a fit does, for comparison with another's.

    Parameters
    ----------
    estimator : estimator
        Before the fit.

    Returns
    -------
    dict of {str: str}
        Parameters, nested ones included, but for those that have no influence on what is learned.
    """
    return {
        name: _described(value)
        for name, value in sorted(estimator.get_params().items())
        if name.partition("__")[0] not in IRRELEVANT
    }


def _described(value):
    if hasattr(value, "get_params"):
        return type(value).__name__
    if isinstance(value, np.random.RandomState):
        return f"RandomState of {digest(value.get_state()[1])}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_described(item) for item in value)}]"
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    text = masked(repr(value))
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def describe_data(network, rows, valid_rows):
    """Describe what a network is trained on, for comparison with another fit.

    Parameters
    ----------
    network : torch.nn.Module
        Before training.
    rows : EncodedRows
        Training rows.
    valid_rows : list of EncodedRows
        Those to judge by.

    Returns
    -------
    dict of {str: str}
    """
    described = {}
    for name, part in [("training", rows)] + [
        (f"validation {index}", part) for index, part in enumerate(valid_rows)
    ]:
        # One piece is in memory at a time.
        rows, targets, weights = Digest(), Digest(), Digest()
        for piece in part.parts():
            rows.add(*piece.frame.content())
            targets.add(piece.target)
            weights.add(piece.weight)
        described[f"{name} rows"] = f"{len(part)} rows of {rows}"
        described[f"{name} targets"] = str(targets)
        described[f"{name} weights"] = str(weights)
    described["network"] = digest(*network.state_dict().values())
    return described


def joined_descriptions(several):
    """Join what :func:`describe_data` returned of the shares of several workers.

    Parameters
    ----------
    several : list of dict of {str: str}
        In the order of the workers.

    Returns
    -------
    dict of {str: str}
        Rows are those of all workers.
    """
    if len(several) == 1:
        return several[0]
    joined = {}
    for name in several[0]:
        texts = [described[name] for described in several]
        counts, digests = zip(*(text.rpartition(" rows of ")[::2] for text in texts), strict=True)
        summed = hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]
        joined[name] = f"{sum(map(int, counts))} rows of {summed}" if counts[0] else summed
    return joined


def digest(*arrays):
    """Return a short digest of arrays and tensors."""
    return str(Digest().add(*arrays))


class Digest:
    """A short digest of arrays and tensors, some after the others."""

    def __init__(self):
        self._summed = hashlib.sha256()

    def add(self, *arrays):
        """Take in some more."""
        for array in arrays:
            if isinstance(array, torch.Tensor):
                array = array.detach().cpu().numpy()
            self._summed.update(str((array.dtype, array.shape)).encode())
            self._summed.update(np.ascontiguousarray(array))
        return self

    def __str__(self):
        return self._summed.hexdigest()[:16]
