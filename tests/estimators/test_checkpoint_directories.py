"""Directories of checkpoints with foreign files, concurrent fits, torn files and kills."""

import errno
import json
import os
import shutil
import signal
import socket
import threading
import warnings
from itertools import count

import fsspec
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from joblib import parallel_config
from sklearn.model_selection import GridSearchCV, cross_validate
from skorch.callbacks import Callback

from sk_easytensor import (
    MLP,
    CategoryBlock,
    EasyTensorClassifier,
    EasyTensorEmbedder,
    EasyTensorRegressor,
    EasyTensorTwoTower,
    NumericBlock,
)
from sk_easytensor._utils import storage
from sk_easytensor._utils.storage import LOCK, DirectoryStore, Lock, is_alive, started_at
from sk_easytensor.training.checkpoint import seal, unseal

EPOCHS = 3


def table(seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(30, 2)), np.arange(30) % 2


class Event(Callback):
    """Calls a function at the begin of an epoch; the same for checkpoints, whichever it is."""

    def __init__(self, function=None, epoch=None):
        self.function = function
        self.epoch = epoch

    def on_epoch_begin(self, net, **kwargs):
        if self.epoch in (None, len(net.history)):
            self.function()


class Killed(Exception):
    """Stands for the end of a process."""


def kill():
    raise Killed


def tiny(where=None, kind=EasyTensorClassifier, function=None, epoch=None, **params):
    callbacks = [Event(function or (lambda: None), epoch)]
    quick = {"trees": None, "trunk": MLP(width=4), "max_epochs": EPOCHS, "random_state": 0}
    return kind(checkpoint_dir=where, callbacks=callbacks, **{**quick, **params})


def interrupted(where, epoch, **params):
    """Fit until some epochs are complete, and return the directory of the fit."""
    with pytest.raises(Killed):
        tiny(where, function=kill, epoch=epoch, **params).fit(*table())
    (found,) = where.glob("fit-*")
    return found


def expected(data=None, **params):
    return tiny(**params).fit(*(data or table())).predict_proba(table()[0])


def probabilities(model):
    return model.predict_proba(table()[0])


def files_in(directory):
    """Return the content of all files, by path."""
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------- foreign files

FOREIGN = {
    ".env": "SECRET=1",
    ".gitignore": "*",
    "data.csv": "a,b",
    "train.py": "pass",
    "notes.skops.txt": "",
    "epoch-1.pt": "mine",
    f".data.csv.{'0' * 32}": "mine",
    "fit.json.bak": "{}",
    ".epoch-00003.pt.0123": "mine",
    "raw/table.csv": "a,b",
    "epoch-00001.pt.d/x": "",
}


def add_foreign(directory):
    for name, text in FOREIGN.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {directory / name: text.encode() for name, text in FOREIGN.items()}


@pytest.mark.parametrize("epoch", [1, 3])
def test_foreign_files_stay_what_they_are(epoch, tmp_path):
    foreign = add_foreign(tmp_path)
    foreign |= add_foreign(interrupted(tmp_path, epoch))
    assert np.array_equal(probabilities(tiny(tmp_path).fit(*table())), expected())
    assert np.array_equal(
        probabilities(tiny(tmp_path, learning_rate=0.1).fit(*table())), expected(learning_rate=0.1)
    )
    assert foreign.items() <= files_in(tmp_path).items()


def test_a_subdirectory_with_the_name_of_a_checkpoint_is_no_checkpoint(tmp_path):
    where = interrupted(tmp_path, 2)
    (where / "epoch-00007.pt").mkdir()
    assert np.array_equal(probabilities(tiny(tmp_path).fit(*table())), expected())
    assert (where / "epoch-00007.pt").is_dir()


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"checkpoint_dir .*file.* is not a directory"):
        tiny(tmp_path / "file").fit(*table())
    assert (tmp_path / "file").read_text() == "mine"


# ---------------------------------------------------------------------- several fits


def test_fits_that_differ_share_a_directory(tmp_path):
    X, y = table()
    fits = [
        {},
        {"learning_rate": 0.1},
        {"random_state": 1},
        {"max_epochs": 2},
        {"batch_size": 16},
    ]
    for params in [*fits, *fits]:
        model = tiny(tmp_path, **params).fit(X, y)
        assert np.array_equal(probabilities(model), expected(**params))
    weight = np.linspace(0.1, 1, 30)
    for how in ({"sample_weight": weight}, {"eval_set": [(X[:9], y[:9])]}):
        model = tiny(tmp_path).fit(X, y, **how)
        assert np.array_equal(probabilities(model), probabilities(tiny().fit(X, y, **how)))
    for data in ((X, y[::-1]), (X[:20], y[:20]), (X + 1, y), (X, y.astype(str))):
        model = tiny(tmp_path).fit(*data)
        assert np.array_equal(probabilities(model), expected(data))
    regressor = tiny(tmp_path, EasyTensorRegressor).fit(X, y)
    assert np.array_equal(regressor.predict(X), tiny(kind=EasyTensorRegressor).fit(X, y).predict(X))
    assert len(list(tmp_path.iterdir())) == len(fits) + 2 + 4 + 1


def test_random_states_that_go_on_are_others(tmp_path):
    """They have the same key and another position."""
    X, y = table()
    ours, theirs = np.random.RandomState(0), np.random.RandomState(0)
    for _ in range(2):
        found = tiny(tmp_path, random_state=ours).fit(X, y)
        wanted = tiny(random_state=theirs).fit(X, y)
        assert np.array_equal(probabilities(found), probabilities(wanted))
    assert len(list(tmp_path.iterdir())) == 2


def test_warm_starts_share_a_directory(tmp_path):
    X, y = table()
    ours, theirs = tiny(tmp_path, warm_start=True), tiny(warm_start=True)
    for n_fits in (1, 2, 3):
        assert np.array_equal(probabilities(ours.fit(X, y)), probabilities(theirs.fit(X, y)))
        assert len(list(tmp_path.iterdir())) == n_fits


@pytest.mark.xdist_group("joblib")  # Which keeps the processes that it starts.
def test_folds_have_the_scores_that_they_have_without_checkpoints(tmp_path):
    X, y = table()
    params = {"trees": None, "trunk": MLP(width=4), "max_epochs": 2, "random_state": 0}
    how = {"cv": 3, "scoring": "neg_log_loss", "error_score": "raise"}
    wanted = cross_validate(EasyTensorClassifier(**params), X, y, **how)["test_score"]
    model = EasyTensorClassifier(checkpoint_dir=tmp_path, **params)
    for n_jobs in (2, 1):
        # Forked processes begin with all imported.
        with parallel_config("multiprocessing"):
            found = cross_validate(model, X, y, n_jobs=n_jobs, **how)["test_score"]
        assert np.array_equal(found, wanted)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_search(tmp_path):
    X, y = table()
    grid = {"learning_rate": [0.01, 0.1]}
    params = {"trees": None, "trunk": MLP(width=4), "max_epochs": 2, "random_state": 0}
    how = {"cv": 2, "scoring": "neg_log_loss", "error_score": "raise"}
    wanted = GridSearchCV(EasyTensorClassifier(**params), grid, **how).fit(X, y)
    model = EasyTensorClassifier(checkpoint_dir=tmp_path, **params)
    found = GridSearchCV(model, grid, **how).fit(X, y)
    for name in ("mean_test_score", "split0_test_score", "split1_test_score"):
        assert np.array_equal(found.cv_results_[name], wanted.cv_results_[name])
    assert np.array_equal(found.predict_proba(X), wanted.predict_proba(X))
    assert len(list(tmp_path.iterdir())) == 5


def test_an_epoch_of_another_fit_is_not_used(tmp_path):
    where = interrupted(tmp_path / "a", 2)
    other = interrupted(tmp_path / "b", 3, learning_rate=0.1)
    shutil.copy(other / "epoch-00002.pt", where / "epoch-00002.pt")
    shutil.copy(other / "encoder.skops", where / "encoder.skops")
    with pytest.warns(UserWarning, match="it is of another fit") as caught:
        model = tiny(tmp_path / "a").fit(*table())
    messages = [str(warning.message) for warning in caught]
    for name in ("epoch-00002.pt", "encoder.skops"):
        assert any(f"{name} in {where} cannot be read (it is of another" in m for m in messages)
    assert np.array_equal(probabilities(model), expected())


# ---------------------------------------------------------------------- locks


def test_a_second_fit_at_once_is_refused(tmp_path):
    def again():
        with pytest.raises(RuntimeError) as caught:
            tiny(tmp_path).fit(*table())
        errors.append(str(caught.value))

    errors = []
    model = tiny(tmp_path, function=again, epoch=2).fit(*table())
    assert np.array_equal(probabilities(model), expected())
    (where,) = tmp_path.iterdir()
    (message,) = errors
    for part in (str(where), f"process {os.getpid()}", repr(socket.gethostname()), LOCK):
        assert part in message
    assert not (where / LOCK).exists()


def test_a_thread_is_refused_too(tmp_path):
    def fit():
        try:
            tiny(tmp_path).fit(*table())
        except RuntimeError as error:
            errors.append(error)

    def start():
        thread = threading.Thread(target=fit)
        thread.start()
        thread.join()

    errors = []
    tiny(tmp_path, function=start, epoch=2).fit(*table())
    assert len(errors) == 1


@pytest.mark.parametrize("error", [Killed, KeyboardInterrupt, SystemExit])
def test_a_fit_that_ends_leaves_no_lock(error, tmp_path):
    def stop():
        assert list(tmp_path.glob(f"fit-*/{LOCK}"))
        if error is KeyboardInterrupt:
            signal.raise_signal(signal.SIGINT)
        raise error

    with pytest.raises(error):
        tiny(tmp_path, function=stop, epoch=1).fit(*table())
    assert not list(tmp_path.glob(f"*/{LOCK}"))


def in_a_fork(function):
    """Call a function in a forked child, and return the child's exit code."""
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_the_lock_of_a_process_that_was_killed_is_taken_over(tmp_path):
    where = interrupted(tmp_path, 2)

    def lock():
        Lock(DirectoryStore(where), "model").acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_fork(lock) == -signal.SIGKILL
    assert (where / LOCK).exists()
    assert np.array_equal(probabilities(tiny(tmp_path).fit(*table())), expected())
    assert not list(tmp_path.glob(f"*/{LOCK}"))


def test_a_forked_child_does_not_unlock(tmp_path):
    def fork():
        codes.append(in_a_fork(unwind))
        assert list(tmp_path.glob(f"fit-*/{LOCK}"))

    def unwind():
        for lock in list(storage._held.values()):
            lock.release()

    codes = []
    tiny(tmp_path, function=fork, epoch=1).fit(*table())
    assert codes == [0]


def test_a_description_of_another_fit_is_written_again(tmp_path):
    tiny(tmp_path).fit(*table(1))
    (other,) = tmp_path.glob("fit-*/fit.json")
    tiny(tmp_path).fit(*table())
    (mine,) = set(tmp_path.glob("fit-*/fit.json")) - {other}
    mine.write_bytes(other.read_bytes())
    with pytest.warns(UserWarning, match=r"fit\.json in .* is of another fit; it is written again"):
        model = tiny(tmp_path).fit(*table())
    assert np.array_equal(probabilities(model), expected())
    assert mine.read_bytes() != other.read_bytes()


def lock_of(**about):
    here = {"host": socket.gethostname(), "pid": os.getpid(), "started": started_at(os.getpid())}
    return json.dumps({**here, "token": "0" * 32, **about}).encode()


@pytest.mark.parametrize(
    "lock",
    [
        lock_of(pid=1, started="not when it started") if started_at(1) else lock_of(),
        lock_of(pid=2**22 + 1),
        # Of this process, which an interrupt kept from releasing it.
        lock_of(),
    ],
    ids=["a number that is used again", "no process", "this process"],
)
def test_locks_that_nobody_holds_are_taken_over(lock, tmp_path):
    (interrupted(tmp_path, 2) / LOCK).write_bytes(lock)
    assert np.array_equal(probabilities(tiny(tmp_path).fit(*table())), expected())


@pytest.mark.parametrize(
    ("lock", "message"),
    [
        (lock_of(host="elsewhere", pid=7), "process 7 on host 'elsewhere'.* remove the file"),
        (lock_of(pid=os.getppid(), started=started_at(os.getppid())), "process .* Wait until"),
        (b"", "a process that the file does not name"),
        (b"[]", "a process that the file does not name"),
        (lock_of(pid="x"), "a process that the file does not name"),
    ],
    ids=["another host", "another process", "empty", "a list", "no number"],
)
def test_locks_that_may_be_held_are_respected(lock, message, tmp_path):
    where = interrupted(tmp_path, 2)
    (where / LOCK).write_bytes(lock)
    before = files_in(tmp_path)
    with pytest.raises(RuntimeError, match=message):
        tiny(tmp_path).fit(*table())
    assert files_in(tmp_path) == before


def test_processes_that_have_ended_are_not_alive():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    # Nobody has waited for it: its number is still taken.
    assert not is_alive(child)
    os.waitpid(child, 0)
    assert not is_alive(child)
    assert is_alive(os.getpid(), started_at(os.getpid()))


def test_of_many_that_create_a_file_one_succeeds(tmp_path):
    store, succeeded = DirectoryStore(tmp_path), []

    def create(number):
        try:
            store.create("x", str(number).encode())
            succeeded.append(number)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=create, args=[n]) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "x").read_text() == str(succeeded[0])
    assert len(succeeded) == len(os.listdir(tmp_path)) == 1


def test_a_lock_that_changed_hands_is_not_taken(tmp_path):
    store = DirectoryStore(tmp_path)
    store.create("x", b"new")
    store.remove_if("x", lambda data: data == b"old")
    assert files_in(tmp_path) == {tmp_path / "x": b"new"}
    store.remove_if("x", lambda data: data == b"new")
    assert files_in(tmp_path) == {}


def test_file_systems_in_memory_are_locked_too():
    where = "memory://locked"
    errors = []

    def again():
        try:
            tiny(where).fit(*table())
        except RuntimeError as error:
            errors.append(error)

    tiny(where, function=again, epoch=2).fit(*table())
    assert len(errors) == 1
    assert not fsspec.filesystem("memory").glob(f"/locked/*/{LOCK}")


# ---------------------------------------------------------------------- torn files


def cut(data):
    return data[: len(data) // 2]


def flipped(data):
    if not data:
        return data
    position = len(data) // 2
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


CHANGES = {
    "empty": lambda data: b"",
    "list": lambda data: b"[]",
    "object": lambda data: b"{}",
    "text": lambda data: b"\xff\x00",
    "cut": cut,
    "flipped": flipped,
}


@pytest.mark.parametrize("random_state", [0, None])
@pytest.mark.parametrize("change", CHANGES)
def test_a_torn_description_loses_no_epoch(change, random_state, tmp_path):
    """Without a random state, too, whose seed the file held."""
    file = interrupted(tmp_path, 2, random_state=random_state) / "fit.json"
    whole = unseal(file.read_bytes())
    file.write_bytes(CHANGES[change](file.read_bytes()))
    begun = count()
    with pytest.warns(UserWarning, match=r"fit\.json in .* cannot be read .* written again"):
        model = tiny(tmp_path, function=begun.__next__, random_state=random_state).fit(*table())
    assert next(begun) == EPOCHS - 1
    assert unseal(file.read_bytes()) == whole
    seed = whole.get("seed", random_state)
    assert np.array_equal(probabilities(model), expected(random_state=seed))


def test_a_description_that_is_gone_loses_no_epoch(tmp_path):
    file = interrupted(tmp_path, 2) / "fit.json"
    file.unlink()
    begun = count()
    tiny(tmp_path, function=begun.__next__).fit(*table())
    assert next(begun) == EPOCHS - 1
    assert file.exists()


@pytest.mark.parametrize("change", CHANGES)
def test_a_torn_encoder_is_made_again(change, tmp_path):
    file = interrupted(tmp_path, 2) / "encoder.skops"
    whole = file.read_bytes()
    file.write_bytes(CHANGES[change](whole))
    with pytest.warns(UserWarning, match=r"encoder\.skops in .* cannot be read .* fitted again"):
        model = tiny(tmp_path).fit(*table())
    assert np.array_equal(probabilities(model), expected())
    assert len(file.read_bytes()) == len(whole)


def test_any_flipped_bit_of_any_file_is_noticed(tmp_path):
    where = interrupted(tmp_path / "fits", 3)
    random = np.random.default_rng(0)
    for name in ("fit.json", "encoder.skops", "epoch-00002.pt"):
        for _ in range(4):
            copied = tmp_path / "copy"
            shutil.copytree(tmp_path / "fits", copied)
            file = copied / where.name / name
            data = bytearray(file.read_bytes())
            data[random.integers(len(data))] ^= 1 << random.integers(8)
            file.write_bytes(data)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                model = tiny(copied).fit(*table())
            assert np.array_equal(probabilities(model), expected())
            if name != "fit.json" or unseal_or_none(data) is None:
                assert any(name in str(w.message) for w in caught), name
            shutil.rmtree(copied)


def unseal_or_none(data):
    try:
        return unseal(bytes(data))
    except ValueError:
        return None


def test_epochs_that_cannot_be_read_do_not_cost_those_that_are_written(tmp_path):
    """They are later than what is written, and of no use."""
    where = interrupted(tmp_path, 3, max_epochs=5)
    for epoch in (1, 2):
        (where / f"epoch-{epoch:05}.pt").rename(where / f"epoch-{epoch + 2:05}.pt")
    for file in where.glob("epoch-*"):
        file.write_bytes(b"torn")
    with pytest.warns(UserWarning, match="epoch-0000[34]"), pytest.raises(Killed):
        tiny(tmp_path, function=kill, epoch=2, max_epochs=5).fit(*table())
    begun = count()
    with pytest.warns(UserWarning, match="epoch-0000[34]"):
        tiny(tmp_path, function=begun.__next__, max_epochs=5).fit(*table())
    assert next(begun) == 4


def test_a_description_of_another_version_is_no_torn_one(tmp_path):
    file = interrupted(tmp_path, 2) / "fit.json"
    file.write_bytes(seal({**unseal(file.read_bytes()), "format": 99}))
    before = files_in(tmp_path)
    with pytest.raises(ValueError, match="checkpoints of format 99"):
        tiny(tmp_path).fit(*table())
    assert files_in(tmp_path) == before


# ---------------------------------------------------------------------- read-only directories


class ReadOnly(DirectoryStore):
    """A directory on a file system that is read-only, which root respects as well."""

    def write(self, name, data):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    create = take = write

    def remove(self, name):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@pytest.mark.parametrize(
    "kind", [EasyTensorClassifier, EasyTensorRegressor, EasyTensorEmbedder, EasyTensorTwoTower]
)
def test_a_complete_fit_needs_to_write_nothing(kind, tmp_path):
    X, y = table()
    given = X, y
    params = {"trunk": MLP(width=4), "max_epochs": 2, "random_state": 0}
    how = {}
    if kind is EasyTensorEmbedder:
        given = ({"a": [list("abcd")] * 30},)
        params["embedding_dim"] = 4
    elif kind is EasyTensorTwoTower:
        given = ({"user": list("abcdef") * 5, "item": list("uvwxy") * 6},)
        blocks = {f"{side}_blocks": [(side, CategoryBlock(), side)] for side in ("user", "item")}
        params |= {"embedding_dim": 4, **blocks}
    else:
        params["trees"] = None
    wanted = kind(checkpoint_dir=tmp_path, **params).fit(*given, **how)
    before = files_in(tmp_path)
    found = kind(checkpoint_dir=ReadOnly(tmp_path), **params).fit(*given, **how)
    assert files_in(tmp_path) == before
    assert found.evals_result_ == wanted.evals_result_
    assert len(list(tmp_path.iterdir())) == 1


def test_a_complete_fit_with_code_of_ones_own_needs_to_write_nothing(tmp_path):
    params = {"blocks": [("numbers", NumericBlock(), lambda X: [0, 1])]}
    tiny(tmp_path, **params).fit(*table())
    model = tiny(ReadOnly(tmp_path), **params).fit(*table())
    assert np.array_equal(probabilities(model), expected(**params))


def test_a_new_fit_in_a_read_only_directory_is_refused_before_it_trains(tmp_path):
    begun = count()
    with pytest.raises(OSError, match=r"cannot be written .*Read-only file system.* none yet"):
        tiny(ReadOnly(tmp_path), function=begun.__next__).fit(*table())
    assert next(begun) == 0


# ---------------------------------------------------------------------- anything, in any order

EXAMPLES = int(os.environ.get("CHECKPOINT_EXAMPLES", "4"))
"""CI has a few; ``CHECKPOINT_EXAMPLES=2000`` looks harder."""

PARAMETERS = [{}, {"learning_rate": 0.1}, {"max_epochs": 2}]
_known = {}


def known(parameters, data):
    """Return what a fit without checkpoints predicts."""
    key = parameters, data
    if key not in _known:
        _known[key] = expected(table(data), **PARAMETERS[parameters])
    return _known[key]


@st.composite
def fits(draw):
    return draw(st.integers(0, len(PARAMETERS) - 1)), draw(st.integers(0, 1))


class Directory(RuleBasedStateMachine):
    """Fits, kills, other parameters and data, foreign and torn files in one directory."""

    @initialize()
    def begin(self):
        from tempfile import mkdtemp

        self.root, self.foreign = mkdtemp(prefix="checkpoints-"), {}

    def fit(self, which, **how):
        parameters, data = which
        with warnings.catch_warnings():
            # Torn files are warned of.
            warnings.simplefilter("ignore")
            return tiny(self.root, **how, **PARAMETERS[parameters]).fit(*table(data))

    @rule(which=fits())
    def whole(self, which):
        assert np.array_equal(probabilities(self.fit(which)), known(*which))

    @rule(which=fits(), epoch=st.integers(1, 3))
    def error(self, which, epoch):
        try:
            model = self.fit(which, function=kill, epoch=epoch)
        except Killed:
            return
        # There was nothing left to train.
        assert np.array_equal(probabilities(model), known(*which))

    @rule(which=fits(), epoch=st.integers(1, 3))
    def killed(self, which, epoch):
        """What a process leaves that is killed, without the process."""

        def leave():
            for folder in self.directories():
                lock = os.path.join(self.root, folder, LOCK)
                if not os.path.exists(lock):
                    continue
                with open(lock) as file:
                    # Others are of processes that were killed before.
                    if json.load(file)["pid"] == os.getpid():
                        left.append(os.path.dirname(lock))
            raise Killed

        left = []
        try:
            self.fit(which, function=leave, epoch=epoch)
        except Killed:
            (path,) = left
            for name in (LOCK, f".epoch-{epoch:05}.pt.{'ab' * 16}", f".{LOCK}.{'ab' * 16}"):
                with open(os.path.join(path, name), "wb") as file:
                    file.write(lock_of(pid=2**22 + 1))

    @rule(which=fits(), other=fits(), epoch=st.integers(1, 3))
    def at_once(self, which, other, epoch):
        def second():
            if which == other:
                with pytest.raises(RuntimeError, match="another fit writes checkpoints"):
                    self.fit(other)
            else:
                found.append(probabilities(self.fit(other)))

        found = []
        model = self.fit(which, function=second, epoch=epoch)
        assert np.array_equal(probabilities(model), known(*which))
        assert all(np.array_equal(each, known(*other)) for each in found)

    def directories(self):
        return sorted(path for path in os.listdir(self.root) if path.startswith("fit-"))

    @rule(name=st.sampled_from(sorted(FOREIGN)), inside=st.booleans(), which=st.integers(0, 9))
    def foreign_file(self, name, inside, which):
        folder = self.root
        if inside and self.directories():
            folder = os.path.join(folder, self.directories()[which % len(self.directories())])
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(FOREIGN[name])
        self.foreign[path] = FOREIGN[name]

    @rule(change=st.sampled_from(sorted(CHANGES)), which=st.integers(0, 99))
    def torn_file(self, change, which):
        paths = [
            os.path.join(self.root, folder, name)
            for folder in self.directories()
            for name in sorted(os.listdir(os.path.join(self.root, folder)))
            if name in ("fit.json", "encoder.skops") or name.startswith("epoch-0")
        ]
        paths = [path for path in paths if path not in self.foreign and os.path.isfile(path)]
        if paths:
            path = paths[which % len(paths)]
            with open(path, "rb") as file:
                data = file.read()
            with open(path, "wb") as file:
                file.write(CHANGES[change](data))

    @rule(which=st.integers(0, 99), other=st.integers(0, 99))
    def epochs_that_cross(self, which, other):
        folders = self.directories()
        if folders:
            one, two = folders[which % len(folders)], folders[other % len(folders)]
            for name in ("epoch-00001.pt", "epoch-00002.pt", "encoder.skops", "fit.json"):
                source = os.path.join(self.root, one, name)
                if os.path.exists(source) and one != two:
                    shutil.copy(source, os.path.join(self.root, two, name))

    @invariant()
    def foreign_files_are_what_they_were(self):
        for path, text in getattr(self, "foreign", {}).items():
            with open(path) as file:
                assert file.read() == text

    def teardown(self):
        shutil.rmtree(self.root, ignore_errors=True)


class TestDirectory(Directory.TestCase):
    settings = settings(
        max_examples=EXAMPLES,
        stateful_step_count=8 if EXAMPLES < 100 else 30,
        phases=[p for p in Phase if p is not Phase.shrink or EXAMPLES >= 100],
        deadline=None,
        derandomize=EXAMPLES < 100,
        suppress_health_check=list(HealthCheck),
    )
