"""What every backend must do, as tests, and a small backend that is written by the contract alone.

Subclasses of :class:`BackendContract` in test modules have the fixture ``backend``.
"""

import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial, reduce
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from collected import collect, materialize
from on_workers import make_events
from skorch.callbacks import Callback

from sk_easytensor import (
    MLP,
    CategoryBlock,
    EasyTensorClassifier,
    EasyTensorEmbedder,
    EasyTensorTwoTower,
    NumericBlock,
    TableEncoder,
)
from sk_easytensor.backends import Backend, resolve_backend
from sk_easytensor.data.columns import RowError, row_errors_from
from sk_easytensor.data.summaries import Summary
from sk_easytensor.data.tables import as_table
from sk_easytensor.executor import LocalExecutor
from sk_easytensor.inspection import permutation_importance
from sk_easytensor.training.dataset import Dataset, EncodedDataset
from sk_easytensor.training.splits import Folds
from sk_easytensor.training.table_dataset import (
    BaseRowEncoder,
    BaseTableDataset,
    TableDataset,
    read_dataset,
)
from sk_easytensor.training.train import train_network

N_ROWS = 240

# ---------------------------------------------------------------------- a backend of its own


class ChunkedBackend(Backend):
    """Rows are in chunks that threads work on; summaries are merged from the last to the first."""

    def read_dataset(self, X, y, sample_weight, read, check_target, name=""):
        whole = read_dataset(X, y, sample_weight, read, check_target, name)
        return cut(whole)

    def train(self, network, head, rows, valid_rows, settings, inspection=None):
        rows, valid_rows = rows.joined(), [valid.joined() for valid in valid_rows]
        result = train_network(network, head, rows, valid_rows, settings)
        if inspection is not None:
            result.inspected = inspection.keep_sample(rows, valid_rows)
        return result


def cut(whole, n_chunks=5):
    """Cut rows in memory into chunks of different sizes."""
    bounds = np.unique((len(whole) * np.linspace(0, 1, n_chunks + 1) ** 2).astype(int))
    chunks = [
        TableDataset(whole.table.slice(i, j - i), whole.y[i:j], whole.weight[i:j], whole.source)
        for i, j in pairwise(bounds)
    ]
    return ChunkedTable(chunks, whole.source)


def in_threads(function, chunks):
    """Call a function with each chunk; errors name the row among all rows."""
    firsts = np.cumsum([0] + [len(chunk) for chunk in chunks])[:-1]

    def call(first, chunk):
        with row_errors_from(first):
            return function(chunk)

    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(call, firsts, chunks))


def merged_backwards(summaries):
    return reduce(lambda later, earlier: earlier.merge(later), summaries[::-1])


class ChunkedTable(BaseTableDataset):
    """Chunks of a table with targets and weights."""

    def __init__(self, chunks, source):
        self.chunks = chunks
        self.source = source

    def __len__(self):
        return sum(map(len, self.chunks))

    def digest(self):
        return " ".join(chunk.digest() for chunk in self.chunks)

    def sample(self):
        return self.chunks[-1]

    def select(self, columns):
        return ChunkedTable([chunk.select(columns) for chunk in self.chunks], self.source)

    def filter(self, columns, function):
        chunks = in_threads(lambda chunk: chunk.filter(columns, function), self.chunks)
        return ChunkedTable([chunk for chunk in chunks if len(chunk)] or chunks[:1], self.source)

    def map_chunks(self, function):
        return in_threads(lambda chunk: function(chunk.y), self.chunks)

    def summarize(self, blocks, executor):
        return {
            name: self.select(columns).map_reduce(block.summarize, executor)
            for name, (block, columns) in blocks.items()
        }

    def map_reduce(self, function, executor):
        return merged_backwards(in_threads(lambda chunk: function(chunk.table), self.chunks))

    def collect_sequences(self, by, order_by):
        log = TableDataset(pa.concat_tables([chunk.table for chunk in self.chunks]))
        return cut(log.collect_sequences(by, order_by))

    def encode(self, encoder):
        encoded = in_threads(lambda chunk: chunk.encode(encoder), self.chunks)
        return ChunkedRows(encoded, encoder)


class ChunkedRows(Dataset):
    """Encoded chunks, to whose rows functions are applied once they are joined."""

    def __init__(self, chunks, encoder, functions=()):
        self.chunks = chunks
        self.encoder = encoder
        self.functions = functions

    def __len__(self):
        return sum(map(len, self.chunks))

    def map(self, function):
        return ChunkedRows(self.chunks, self.encoder, (*self.functions, function))

    def map_chunks(self, function):
        return in_threads(lambda chunk: function(self._applied(chunk)), self.chunks)

    def hold_out(self, strata, fraction, random_state):
        if random_state is None:
            whole = materialize(self.chunks, memory=2**40)
            train, valid = whole.hold_out(strata, fraction, None)
            return self._of([train]), [self._of(valid)] if valid else []
        split = [chunk.hold_out(strata, fraction, random_state) for chunk in self.chunks]
        train = [train for train, _ in split]
        valid = [part for _, held_out in split for part in held_out]
        return self._of(train), [self._of(valid)] if valid else []

    def folds(self, strata, n_folds, random_state):
        seed = random_state.randint(2**31 - 1)
        per_chunk = [
            chunk.folds(strata, n_folds, np.random.RandomState(seed)).parts for chunk in self.chunks
        ]
        parts = [
            tuple(map(self._of, zip(*pairs, strict=True))) for pairs in zip(*per_chunk, strict=True)
        ]
        return Folds(parts, len(self))

    def joined(self):
        return self._applied(collect(self.chunks, self.encoder.collector(memory=2**40)))

    def _of(self, chunks):
        return ChunkedRows(chunks, self.encoder, self.functions)

    def _applied(self, rows):
        for function in self.functions:
            rows = rows.map(function)
        return rows


# ---------------------------------------------------------------------- data and helpers


def make_rows(n_rows=N_ROWS):
    """Return a table of numbers and categories, with a number that tells rows apart, and labels."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "number": np.arange(n_rows),
            "amount": rng.normal(size=n_rows),
            "city": rng.choice(["Oslo", "Lima", "Rome"], n_rows),
        }
    )
    frame.loc[::7, "amount"] = None
    return frame, np.where(rng.random(n_rows) < 0.3, "yes", "no")


class Numbers(Summary):
    """The row numbers of chunks, in the order in which they were merged."""

    def __init__(self, numbers):
        self.numbers = numbers

    def merge(self, other):
        return Numbers([*self.numbers, *other.numbers])


def numbers_of(table):
    return Numbers(table["number"].to_pylist())


def refuse_number(table, number):
    """Raise the error of a row, counted within the table."""
    found = table["number"].to_pylist()
    if number in found:
        raise RowError("column 'number' is wrong in row {row}", found.index(number))
    return Numbers(found)


class NumberEncoder(BaseRowEncoder):
    """Encodes nothing but the number of a row, which is its target too."""

    columns = ["number"]

    def encode(self, table, y, weight):
        return self.encode_targets(table, y, weight)

    def encode_targets(self, table, y, weight):
        numbers = table.select(["number"])
        block = NumericBlock().fit_columns(numbers)
        block = block.finish(block.summarize(numbers))
        frame = LocalExecutor().encode(numbers, {"n": (block, ["number"])})
        target = torch.tensor(numbers["number"].to_pylist(), dtype=torch.float32)
        return EncodedDataset(frame, target, torch.from_numpy(weight).float())


def targets_of(rows):
    return rows.target


def halved(rows):
    return EncodedDataset(rows.frame, rows.target / 2, rows.weight)


def parity(target):
    return target.numpy().astype(np.int64) % 2


def read(backend, X, y, weight=None):
    return backend.read_dataset(X, y, weight, as_table, np.asarray)


def all_targets(rows):
    return torch.cat(rows.map_chunks(targets_of)).tolist()


def column_of(predictions, name):
    """Return predictions of stored rows, an array or the column of a data set, as a list."""
    if hasattr(predictions, "to_pandas"):
        return predictions.to_pandas()[name].tolist()
    return predictions.tolist()


class Failing(Callback):
    def on_epoch_end(self, net, **kwargs):
        raise ZeroDivisionError("of a callback")


# ---------------------------------------------------------------------- the contract


class BackendContract:
    """Tests of a backend, which subclasses give as a fixture."""

    quick = {
        "trunk": MLP(width=8),
        "trees": None,
        "max_epochs": 2,
        "batch_size": 32,
        "random_state": 0,
    }

    def test_it_is_a_backend(self, backend):
        assert isinstance(backend, Backend)
        assert resolve_backend(backend, n_jobs=None) is backend
        assert (
            repr(pickle.loads(pickle.dumps(backend.without_secrets()))).split(" at ")[0]
            == (repr(backend).split(" at ")[0])
        )

    def test_tables_say_what_they_hold(self, backend):
        X, y = make_rows()
        with backend.running():
            table, other = read(backend, X, y), read(backend, X[:-1], y[:-1])
            assert len(table) == N_ROWS
            assert table.column_names == ["number", "amount", "city"]
            assert table.sample().table.column_names == table.column_names
            assert table.select(["city"]).column_names == ["city"]
            assert table.digest() == read(backend, X, y).digest()
            assert table.digest() != other.digest()

    def test_chunks_are_all_rows_of_positive_weight_once(self, backend):
        X, y = make_rows()
        weight = (X["number"] % 3).to_numpy(dtype=float)
        with backend.running():
            table = read(backend, X, y, weight)
            found = np.concatenate(table.map_chunks(np.asarray))
            numbers = table.map_reduce(numbers_of, backend).numbers
        assert found.tolist() == y[weight > 0].tolist()
        assert numbers == X["number"][weight > 0].tolist()

    def test_errors_name_the_row_among_all(self, backend):
        X, y = make_rows()
        with backend.running(), pytest.raises(RowError, match="'number' is wrong in row 201"):
            read(backend, X, y).map_reduce(partial(refuse_number, number=201), backend)

    def test_blocks_are_those_of_one_machine(self, backend):
        X, y = make_rows()
        table, frames = as_table(X), []
        with backend.running():
            data = read(backend, X, y)
            for summarize in (
                partial(data.summarize, executor=backend),
                partial(LocalExecutor().summarize, table),
            ):
                encoder = TableEncoder([("city", CategoryBlock(), ["city"])])
                encoder.fit_table(table, X, summarize)
                frames.append(encoder.encode_table(table, backend))
        assert frames[0].equals(frames[1])

    def test_functions_are_applied_to_encoded_rows(self, backend):
        X, y = make_rows()
        with backend.running():
            rows = read(backend, X, y).encode(NumberEncoder())
            assert len(rows) == N_ROWS
            assert all_targets(rows) == list(range(N_ROWS))
            assert all_targets(rows.map(halved).map(halved)) == [n / 4 for n in range(N_ROWS)]
            assert len(rows.merge_duplicates(batch_size=N_ROWS)) == N_ROWS

    def test_rows_are_held_out_evenly_and_once(self, backend):
        X, y = make_rows()
        with backend.running():
            rows = read(backend, X, y).encode(NumberEncoder())
            train, (valid,) = rows.hold_out(parity, 0.25, np.random.RandomState(0))
            again = rows.hold_out(parity, 0.25, np.random.RandomState(0))[1][0]
            parts = all_targets(train), all_targets(valid)
            assert all_targets(again) == parts[1]
            assert (len(train), len(valid)) == (len(parts[0]), len(parts[1]))
        assert sorted(parts[0] + parts[1]) == list(range(N_ROWS))
        assert len(parts[1]) == pytest.approx(N_ROWS / 4, abs=8)
        assert sum(n % 2 for n in parts[1]) == pytest.approx(N_ROWS / 8, abs=8)

    def test_the_last_rows_are_held_out(self, backend):
        X, y = make_rows()
        with backend.running():
            rows = read(backend, X, y).encode(NumberEncoder())
            train, (valid,) = rows.hold_out(parity, 0.25, None)
            first = N_ROWS - round(N_ROWS / 4)
            assert sorted(all_targets(train)) == list(range(first))
            assert sorted(all_targets(valid)) == list(range(first, N_ROWS))
            assert rows.hold_out(parity, 0.1 / N_ROWS, None)[1] == []

    def test_each_row_is_held_out_by_one_fold(self, backend):
        X, y = make_rows()
        with backend.running():
            rows = read(backend, X, y).encode(NumberEncoder())
            parts = rows.folds(parity, 3, np.random.RandomState(0)).parts
            held_out = [all_targets(valid) for _, valid in parts]
            for (train, _), valid in zip(parts, held_out, strict=True):
                assert sorted(all_targets(train) + valid) == list(range(N_ROWS))
                assert len(valid) == pytest.approx(N_ROWS / 3, abs=8)
                assert sum(n % 2 for n in valid) == pytest.approx(N_ROWS / 6, abs=8)
        assert sorted(np.concatenate(held_out)) == list(range(N_ROWS))

    def test_a_network_for_each_fold(self, backend):
        X, y = make_rows()
        model = EasyTensorClassifier(**self.quick, n_folds=2, backend=backend).fit(X, y)
        assert len(model.network_.networks) == 2
        assert len(model.evals_result_["valid_0"]["log_loss"]) == 2
        # All are 0 where none is above its error.
        assert round(model.feature_importances_.sum(), 9) in (0, 1)
        assert (model.importances_std_ >= 0).all()
        again = pickle.loads(pickle.dumps(model))
        np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))

    def test_too_few_rows_are_not_held_out(self, backend):
        X, y = make_rows(3)
        with backend.running():
            rows = read(backend, X, y).encode(NumberEncoder())
            train, valid = rows.hold_out(parity, 0.01, np.random.RandomState(0))
        assert (len(train), valid) == (3, [])

    def test_a_classifier_learns_what_one_machine_learns(self, backend):
        X, y = make_rows()
        fit = {"sample_weight": np.arange(N_ROWS) % 3, "eval_set": [(X[:50], y[:50])]}
        params = {**self.quick, "validation_fraction": None}
        expected = EasyTensorClassifier(**params).fit(X, y, **fit)
        model = EasyTensorClassifier(**params, backend=backend).fit(X, y, **fit)
        np.testing.assert_allclose(model.predict_proba(X), expected.predict_proba(X), atol=1e-6)
        curves = [each.evals_result_["valid_0"]["log_loss"] for each in (model, expected)]
        assert curves[0] == pytest.approx(curves[1], abs=1e-6)
        assert model.feature_importances_.sum() == pytest.approx(1)
        again = pickle.loads(pickle.dumps(model))
        np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))

    def test_validation_rows_and_resumed_training(self, backend):
        X, y = make_rows()
        model = EasyTensorClassifier(**self.quick, backend=backend, warm_start=True).fit(X, y)
        assert len(model.evals_result_["valid_0"]["log_loss"]) == 2
        assert len(model.fit(X, y).evals_result_["valid_0"]["log_loss"]) == 4

    def test_stored_tables_are_predicted_and_scored(self, backend, tmp_path):
        X, y = make_rows()
        stored = str(tmp_path / "rows.parquet")
        X.assign(label=y).to_parquet(stored)
        params = {**self.quick, "validation_fraction": None}
        model = EasyTensorClassifier(**params, backend=backend).fit(stored, "label")
        expected = EasyTensorClassifier(**params).fit(X, y)
        found = column_of(model.predict(stored), "prediction")
        assert found == expected.predict(X).tolist()
        result = permutation_importance(model, stored, "label", n_repeats=1, random_state=0)
        assert list(result.names) == ["number", "amount", "city"]
        assert np.isfinite(result.importances_mean).all()

    @pytest.mark.parametrize(
        ("X", "y", "weight", "error", "message"),
        [
            ("rows", "lable", None, ValueError, r"columns are missing: \['lable'\]"),
            ("nowhere.parquet", "label", None, FileNotFoundError, "no Parquet file"),
            (None, None, [-1.0] * N_ROWS, ValueError, "[Nn]egative|at least 0"),
            (None, None, [0.0] * N_ROWS, ValueError, "weight"),
        ],
    )
    def test_wrong_input_is_named(self, backend, tmp_path, X, y, weight, error, message):
        frame, labels = make_rows()
        frame.assign(label=labels).to_parquet(tmp_path / "rows.parquet")
        where = {"rows": str(tmp_path / "rows.parquet"), None: frame}.get(X, X)
        model = EasyTensorClassifier(**self.quick, backend=backend)
        with pytest.raises(error, match=message):
            model.fit(where, labels if y is None else y, sample_weight=weight)
        assert not hasattr(model, "network_")

    def test_errors_of_the_training_come_out(self, backend):
        model = EasyTensorClassifier(**self.quick, callbacks=[Failing()], backend=backend)
        with pytest.raises(ZeroDivisionError, match="of a callback"):
            model.fit(*make_rows())

    def test_devices_that_there_are_not(self, backend):
        with pytest.raises(ValueError, match="device must be 'auto'"):
            backend.resolve_device("gpuu", "an estimator")

    def test_two_towers_learn_what_one_machine_learns(self, backend):
        rng = np.random.default_rng(0)
        pairs = pd.DataFrame({"user": rng.integers(0, 12, 200), "item": rng.integers(0, 9, 200)})
        blocks = (
            [("user", CategoryBlock(), "user")],
            [("item", CategoryBlock(), "item")],
        )
        params = {"embedding_dim": 4, "max_epochs": 2, "batch_size": 64, "random_state": 0}
        params["validation_fraction"] = None
        keys = {"item_key": "item", "user_key": "user"}
        expected = EasyTensorTwoTower(*blocks, **params).fit(pairs, **keys)
        model = EasyTensorTwoTower(*blocks, **params, backend=backend).fit(pairs, **keys)
        np.testing.assert_allclose(
            model.decision_function(pairs), expected.decision_function(pairs), atol=1e-5
        )
        assert model.user_keys_.tolist() == expected.user_keys_.tolist()
        assert model.item_keys_.tolist() == expected.item_keys_.tolist()

    def test_an_embedder_learns_of_a_log(self, backend):
        log = make_events(30)
        params = {"embedding_dim": 4, "max_epochs": 1, "random_state": 0}
        params["validation_fraction"] = None
        of = {"user": "user", "time": "time"}
        expected = EasyTensorEmbedder(**params).fit(log, **of)
        model = EasyTensorEmbedder(**params, backend=backend).fit(log, **of)
        assert model.n_users_ == expected.n_users_ == 30
        assert model.evals_result_.keys() == expected.evals_result_.keys()
        np.testing.assert_allclose(model.transform(log), expected.transform(log), atol=1e-5)
