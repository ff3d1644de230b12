"""Checkpoints of fits, and training that resumes from them."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import re
from contextlib import suppress
from pickle import UnpicklingError

import numpy as np
import torch

from sk_easytensor._utils.describe import describe_object
from sk_easytensor._utils.digests import Digest, array_digest
from sk_easytensor._utils.locks import LOCK, Lock
from sk_easytensor._utils.masking import masked
from sk_easytensor._utils.skops import trusted_types
from sk_easytensor._utils.storage import open_store
from sk_easytensor._utils.validation import warn_user

__all__ = [
    "Checkpoints",
    "describe_data",
    "describe_parameters",
    "joined_descriptions",
    "load_loop_state",
    "loop_state",
]


def loop_state(net, average, ended):
    """Return all that the rest of a training depends on.

    Parameters
    ----------
    net : TensorNet
        After an epoch, with the averaged weights in its module.
    average : WeightAverage
        Of the weights.
    ended : bool
        Whether a callback ended the training.

    Returns
    -------
    dict
        Nested dictionaries and lists of tensors, numbers and strings. Of callbacks, attributes
        whose names end in an underscore are kept if they are such values, or objects with a
        ``state_dict``.
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
    """Bring a net that is about to train to a state that was captured.

    Parameters
    ----------
    net : TensorNet
        Initialised, its callbacks begun.
    average : WeightAverage
        Of its weights.
    state : dict
        What :func:`loop_state` returned.
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
        restore_callback(callback, state["callbacks"].get(name, {}))
    torch.set_rng_state(state["random"])
    if state["random_cuda"] is not None:
        torch.cuda.set_rng_state(state["random_cuda"], net.device)


def callback_state(callback):
    """Return what a callback has learned so far."""
    learned = {name: value for name, value in vars(callback).items() if name.endswith("_")}
    state = {"values": plain(learned), "objects": {}}
    for name, value in learned.items():
        if hasattr(value, "state_dict") and not isinstance(value, type):
            state["objects"][name] = plain(value.state_dict())
    return state


def restore_callback(callback, state):
    """Give a callback what it had learned."""
    vars(callback).update(state.get("values", {}))
    for name, value in state.get("objects", {}).items():
        getattr(callback, name).load_state_dict(value)


def plain(values):
    """Return those of some named values that are numbers, strings, tensors or made of them."""
    converted = {name: _plain(value) for name, value in values.items()}
    return {name: value for name, value in converted.items() if value is not OTHER}


OTHER = object()


def _plain(value):
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str, torch.Tensor)):
        return value
    if isinstance(value, dict):
        items = {key: _plain(item) for key, item in value.items()}
        return OTHER if any(item is OTHER for item in items.values()) else items
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return OTHER if any(item is OTHER for item in items) else type(value)(items)
    return OTHER


FORMAT = 2
MAGIC = b"sk_easytensor checkpoint 2\n"
DESCRIPTION = "fit.json"
ENCODER = re.compile(r"[a-z]+\.skops")
EPOCH = re.compile(r"epoch-(\d{5,})\.pt")
NEWEST = 2
"""Checkpoints kept besides the best."""

IRRELEVANT = {"checkpoint_dir", "tracker", "verbose", "n_jobs", "inference_engine"}
"""Parameters that may change between a fit and the one that resumes it."""


class Checkpoints:
    """Checkpoints of one fit, in a subdirectory of their own.

    Parameters
    ----------
    where : str, os.PathLike or store
        Directory or URL, or an object with the methods of
        :class:`~sk_easytensor._utils.storage.DirectoryStore`.
    owner : str
        Name of the estimator, for errors.
    parameters : dict of {str: str}
        What :func:`describe_parameters` returns.
    source : dict of {str: str}, optional
        Digests of the data as the user gave them. Estimator, parameters and these are what the
        subdirectory is named by: ``fit-`` and 16 hexadecimal digits.

    Notes
    -----
    :meth:`open` locks the subdirectory and reads what is there, :meth:`close` unlocks it.

    Nothing here is pickled: descriptions are JSON, encoders are written by skops, states are
    tensors, numbers and strings, which torch loads with ``weights_only=True``. Each file carries a
    description of the fit and a SHA-256 of its content, and is not used if either is another.
    Files of other names are neither read nor removed.
    """

    def __init__(self, where, owner, parameters, source=None):
        self.owner = owner
        self.where = where
        self.description = {
            "format": FORMAT,
            "estimator": owner,
            "parameters": parameters,
            "source": source or {},
        }
        store = open_store(where)
        # Stores that hold one fit only have no subdirectories.
        inside = getattr(store, "inside", None)
        name = f"fit-{hashlib.sha256(canonical(self.description)).hexdigest()[:16]}"
        self.store = store if inside is None else inside(name)
        self._is_named = self.store is not store
        self._stored = self._lock = None

    def open(self):
        """Lock the subdirectory and read what is there.

        Raises
        ------
        RuntimeError
            If another fit writes to it.
        ValueError
            If `where` is no directory, or holds checkpoints of another version.
        """
        try:
            self.store.names()
        except NotADirectoryError as error:
            raise ValueError(
                f"{self.owner}: checkpoint_dir {self._place} is not a directory"
            ) from error
        if hasattr(self.store, "create"):
            self._lock_directory()
        if hasattr(self.store, "remove_temporary"):
            self.store.remove_temporary(is_own)
        found = self._find_description()
        if found is not None and self._agrees("parameters", found):
            self.description = found

    def close(self):
        """Unlock the subdirectory."""
        if self._lock is not None:
            self._lock.release()

    def __getstate__(self):
        """Return what is sent to other processes; the lock stays with the one that has it."""
        return {**vars(self), "_lock": None}

    def seed(self, random_state):
        """Return the random state of the fit, which is that of the checkpoints if there are any.

        Without a `random_state` a fit that is resumed would otherwise draw other rows to validate
        on.
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

        Warns
        -----
        UserWarning
            If the file is corrupt or was changed; the encoder is then made again.

        Notes
        -----
        It is written by skops, which needs no pickle. One that holds functions or objects of
        types that are not the library's is not kept, but made again.
        """
        # It looks through NumPy, SciPy and scikit-learn for a second when it is imported.
        from skops.io import dumps, get_untrusted_types, loads

        file = f"{name}.skops"
        # Before an epoch is complete, the data may be others than digests of them tell.
        if file in self.store.names() and self._epochs():
            try:
                content = self._read(file, without_data(self.description))
            except (OSError, ValueError) as error:
                self._warn(f"{file} in {self._place} cannot be read ({error}); it is made again")
            else:
                return loads(content, trusted=trusted_types())
        made = make()
        data = dumps(made)
        if not set(get_untrusted_types(data=data)) - set(trusted_types()):
            self._write_description()
            self._write(file, frame(data, without_data(self.description)))
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
        described = {**self.description, "data": data}
        if "data" not in self.description or not self._agrees("data", described):
            self.description = described
        self._write_description()

    def latest(self):
        """Return the state after the last complete epoch, or None.

        Warns
        -----
        UserWarning
            If a file is corrupt, was changed or is of another fit; the one before is then taken.
        """
        for epoch in reversed(self._epochs()):
            name = file_name(epoch)
            try:
                return read_state(self._read(name, self.description))
            except (OSError, ValueError) as error:
                self._warn(
                    f"checkpoint {name} in {self._place} cannot be read ({masked(error)}); "
                    "training resumes from the one before, or starts if there is none"
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
        self._write(file_name(epoch), pack(state, self.description))
        for old in self._epochs():
            # Later ones could not be read, and are written again in time.
            if old <= epoch - NEWEST and old != best:
                with suppress(FileNotFoundError):
                    self.store.remove(file_name(old))

    # ------------------------------------------------------------------ inside

    @property
    def _place(self):
        return masked(getattr(self.store, "url", repr(self.where)))

    def _lock_directory(self):
        self._lock = Lock(self.store, self.owner)
        try:
            self._lock.acquire()
        except OSError as error:
            # A fit that is complete has nothing to write. One that has says so when it writes.
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise self._unwritable(LOCK, error) from error

    def _warn(self, message):
        warn_user(f"{self.owner}: {message}")

    def _epochs(self):
        found = [EPOCH.fullmatch(name) for name in self.store.names()]
        return sorted(int(match[1]) for match in found if match)

    def _read(self, name, expected):
        """Return what a file holds; raise ``ValueError`` if it is corrupt or of another fit."""
        description, content = unframe(self.store.read(name))
        if description != expected:
            raise ValueError("it is of another fit")
        return content

    def _write(self, name, data):
        try:
            self.store.write(name, data)
        except OSError as error:
            raise self._unwritable(name, error) from error

    def _unwritable(self, name, error):
        epochs = self._epochs()
        kept = f"that of epoch {epochs[-1]} is complete" if epochs else "there is none yet"
        return OSError(
            error.errno,
            f"{self.owner}: checkpoint {name} cannot be written to {self._place} "
            f"({error.strerror or error}); {kept}. Run the same fit again once it can be",
        )

    def _find_description(self):
        """Return the description of the checkpoints that are there, if there are any."""
        if DESCRIPTION in self.store.names():
            try:
                found = unseal(self.store.read(DESCRIPTION))
            except (OSError, ValueError) as error:
                self._warn(
                    f"{DESCRIPTION} in {self._place} cannot be read ({error}); it is written again"
                )
            else:
                self._check_version(found)
                if self._may_resume(found):
                    self._stored = dict(found)
                    return found
                self._warn(f"{DESCRIPTION} in {self._place} is of another fit; it is written again")
        for epoch in reversed(self._epochs()):
            # Each has the whole description, so that none is lost with the file of that name.
            with suppress(OSError, ValueError):
                found = unframe(self.store.read(file_name(epoch)))[0]
                if self._may_resume(found):
                    return found
        return None

    def _may_resume(self, found):
        """Tell a description from one that was copied into a subdirectory of another name."""
        return not self._is_named or all(
            found.get(part) == self.description[part] for part in ("parameters", "source")
        )

    def _check_version(self, found):
        holds = f"{self.owner}: checkpoint_dir {self._place} holds checkpoints of"
        if found.get("format") != FORMAT:
            raise ValueError(
                f"{holds} format {found.get('format')}; this version reads format {FORMAT}. Choose "
                "another directory"
            )
        if found.get("estimator") != self.owner:
            raise ValueError(f"{holds} {found.get('estimator')}; choose another directory")

    def _write_description(self):
        if self.description != self._stored:
            self._write(DESCRIPTION, seal(self.description))
            self._stored = dict(self.description)

    def _agrees(self, what, described):
        """Tell whether a description has what this one has; refuse to lose an epoch if not."""
        mine, other = self.description[what], described[what]
        if mine == other:
            return True
        if not self._epochs():
            return False
        was, now = (mine, other) if what == "data" else (other, mine)
        names = sorted(name for name in {*was, *now} if was.get(name) != now.get(name))
        changes = "; ".join(
            f"{name} was {was.get(name, 'not there')} and is {now.get(name, 'not there')}"
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


def is_own(name):
    """Tell whether a name is one of those that are written here."""
    return name in (DESCRIPTION, LOCK) or any(p.fullmatch(name) for p in (ENCODER, EPOCH))


def canonical(description):
    """Return a description as bytes that are the same for equal ones."""
    return json.dumps(description, sort_keys=True, separators=(",", ":")).encode()


def without_data(description):
    """Return what is known of a fit before its rows are encoded."""
    return {name: value for name, value in description.items() if name != "data"}


def frame(content, description):
    """Return content, with a description of the fit, as bytes that tell whether they are whole."""
    rest = canonical(description) + b"\n" + content
    return MAGIC + hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest


def unframe(data):
    """Return the description and the content that :func:`frame` made bytes of.

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
    """Return a description as JSON with a digest of its own."""
    digest = hashlib.sha256(canonical(description)).hexdigest()
    return json.dumps({**description, "sha256": digest}, indent=1).encode()


def unseal(data):
    """Return the description that :func:`seal` made bytes of.

    Raises
    ------
    ValueError
        If the bytes are not those that were written.
    """
    try:
        found = json.loads(data)
    except ValueError as error:
        raise ValueError("it is no JSON: corrupt, or not a file of this library") from error
    digest = found.pop("sha256", None) if isinstance(found, dict) else None
    if digest is None or hashlib.sha256(canonical(found)).hexdigest() != digest:
        raise ValueError("it is corrupt or was changed")
    return found


def pack(state, description):
    """Return a state as bytes that tell whether they are complete."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return frame(buffer.getvalue(), description)


def read_state(content):
    """Return a state from the content that :func:`pack` framed.

    Raises
    ------
    ValueError
        If it holds more than a state may.
    """
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
        return f"RandomState of {array_digest(*map(np.asarray, value.get_state()[1:]))}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_described(item) for item in value)}]"
    if callable(value):
        return describe_object(value)
    text = masked(repr(value))
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def describe_data(network, rows, valid_rows):
    """Describe what a network is trained on, for comparison with another fit.

    Parameters
    ----------
    network : torch.nn.Module
        Before training.
    rows : TrainingDataset
        Training rows.
    valid_rows : list of TrainingDataset
        Those for validation.

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
