"""Exported models: files with a digest, and predictions by onnxruntime, without torch."""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np

from sk_easytensor._utils.validation import warn_of_unseen
from sk_easytensor.data.keys import UNSEEN, has_enough_values
from sk_easytensor.data.sparse import SparseLayout
from sk_easytensor.data.tables import read_like_fit
from sk_easytensor.onnx.readers import category_values, readers

__all__ = [
    "DIGEST",
    "FORMAT",
    "METADATA",
    "OnnxPredictor",
    "check_sealed",
    "load",
    "sealed",
]


DIGEST = "sk_easytensor.sha256"
"""Key of the metadata whose value is the digest."""


def sealed(model):
    """Return a serialized model with its SHA-256 as an entry of its metadata.

    Parameters
    ----------
    model : bytes
        Result of ``SerializeToString``, without the entry.

    Returns
    -------
    bytes
        Model with the entry at the end. Fields of a protobuf message may come in any order, and
        entries of a repeated field in several places, so that all readers of ONNX find the entry
        among the metadata.
    """
    return model + entry(hashlib.sha256(model).hexdigest())


def check_sealed(data, name):
    """Check the digest that :func:`sealed` added.

    Parameters
    ----------
    data : bytes
        Content of a file.
    name : str
        Name of the file, used in the message.

    Raises
    ------
    ValueError
        If there is no digest, or it is not that of the content.
    """
    model = memoryview(data)[: -len(entry("0" * 64))]
    if data[len(model) :] != entry(hashlib.sha256(model).hexdigest()):
        raise ValueError(
            f"{name} is corrupt, was changed after it was exported, or was not written by to_onnx "
            "of this library. Export the model again"
        )


def entry(digest):
    """Return a serialized metadata entry: field 14, of a key in field 1 and a value in field 2."""
    pair = b"\x0a" + sized(DIGEST.encode()) + b"\x12" + sized(digest.encode())
    return b"\x72" + sized(pair)


def sized(data):
    """Return at most 127 bytes, preceded by their number."""
    return bytes([len(data)]) + data


FORMAT = 1
"""Version of the metadata. It is increased when older predictors cannot read new files."""

METADATA = "sk_easytensor"
"""Key of the metadata that predictors read."""

BATCH_SIZE = 8_192
"""Rows that pass through the graph at once."""


def load(path, **params):
    """Load a file that ``to_onnx`` wrote, after a check of its digest.

    Parameters
    ----------
    path : str, path-like or bytes
        Path of the file, or its content.
    **params
        Parameters of :class:`OnnxPredictor`.

    Returns
    -------
    OnnxPredictor

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the SHA-256 in the metadata is not that of the content: the file is corrupt, or was
        changed after it was exported. The message names the file.
    """
    return OnnxPredictor(path, **params)


class OnnxPredictor:
    """Predictor of a fitted model in an ONNX file, from tables with the columns of fit.

    It requires NumPy, pyarrow and onnxruntime, and neither torch nor scikit-learn.

    Parameters
    ----------
    path : str, path-like or bytes
        Path of a file that ``to_onnx(path)`` wrote with ``inputs="raw"``, or its content.
    n_jobs : int or None, default=None
        Number of threads; None for one, -1 for all cores.
    providers : list, optional
        Execution providers of onnxruntime; by default the CPU.

    Attributes
    ----------
    feature_names_in_ : ndarray of str
        Columns that the model was fitted on. Columns that no block reads may be missing.
    classes_ : ndarray, or dict of {str: ndarray} for several tasks
        Class labels. Only classifiers and pairs with two classes have them.
    metadata_ : dict
        Metadata of the file.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file was not written by ``to_onnx`` with ``inputs="raw"``, is corrupt or was changed,
        or is of a newer format.
    ImportError
        If onnxruntime is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from sk_easytensor import EasyTensorClassifier
    >>> X, y = {"size": [1.0, 2.0, 3.0, 4.0]}, ["small", "small", "large", "large"]
    >>> model = EasyTensorClassifier(max_epochs=2, random_state=0).fit(X, y)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     predictor = OnnxPredictor(model.to_onnx(f"{folder}/model.onnx"))
    >>> predictor.classes_.tolist(), predictor.predict_proba([{"size": 2.5}]).shape
    (['large', 'small'], (1, 2))
    """

    def __init__(self, path, *, n_jobs=None, providers=None):
        self._name = "the content of the file"
        data = path
        if not isinstance(path, bytes):
            path = self._name = os.fspath(path)
            if not os.path.isfile(path):
                raise FileNotFoundError(f"file {path!r} does not exist")
            with open(path, "rb") as file:
                data = file.read()
        check_sealed(data, self._name)
        try:
            self._session = open_session(data, n_jobs, providers)
        except ImportError:
            raise
        except Exception as error:
            # Errors of onnxruntime have no other common class.
            raise ValueError(f"{self._name} cannot be read as an ONNX file: {error}") from error
        self.metadata_ = read_metadata(self._session, self._name)
        if self.metadata_["inputs"] != "raw":
            raise ValueError(
                f"{self._name} was exported with inputs={self.metadata_['inputs']!r}, so that its "
                "inputs are encoded rows; export the model with inputs='raw' to predict from "
                "tables"
            )
        self._readers = readers(self.metadata_["readers"])
        self._inputs = {value.name for value in self._session.get_inputs()}
        features = self.metadata_["features"]
        self.feature_names_in_ = np.array([feature["name"] for feature in features], dtype=object)
        self._sparse = self.metadata_.get("sparse")
        if self._sparse is not None:
            self._sparse = SparseLayout(**self._sparse)
        self._columns = list(self.feature_names_in_)
        if self.metadata_["named"]:
            self._columns = [feature["name"] for feature in features if feature["blocks"]]
        if self._sparse is not None:
            self.feature_names_in_ = np.array(self._sparse.features, dtype=object)
        self._watched = self.metadata_["watched"]
        answer = self.metadata_["answer"]
        self.kind = answer["kind"]
        if answer.get("classes") is not None:
            self.classes_ = class_array(answer["classes"])
        if self.kind == "tasks":
            self.classes_ = {
                task["name"]: class_array(task["classes"])
                for task in answer["tasks"]
                if task["classes"] is not None
            }

    def run(self, X, *outputs):
        """Return outputs of the graph.

        Parameters
        ----------
        X : table-like
            Data frame of any kind, Arrow table, dictionary of lists, list of dictionaries, or
            2-D array or sparse matrix if the model was fitted on one.
        *outputs : str
            Names of the outputs, which are the keys of ``metadata_["outputs"]``.

        Returns
        -------
        list of ndarray
            Arrays whose first dimension is the row, in the order of `outputs`.

        Raises
        ------
        ValueError
            If a column is missing or has values that cannot be read. The message names the column.
        RuntimeError
            If an output has NaN or infinity. The message has the output and the number of rows.

        Warns
        -----
        UserWarning
            If no value of a column is a category seen during fit. The message names the column.
        """
        names = [self.metadata_["outputs"][name] for name in outputs]
        if self._watched is not None:
            names.append(self._watched["output"])
        table = read_like_fit(
            X,
            self._columns,
            fitted_with_names=self.metadata_["named"],
            owner=self.metadata_["estimator"],
            sparse=self._sparse,
        )
        parts = []
        for start in range(0, len(table), BATCH_SIZE):
            rows = table.slice(start, BATCH_SIZE)
            arrays = {}
            for read in self._readers:
                arrays.update(read(rows))
            arrays = {name: values for name, values in arrays.items() if name in self._inputs}
            parts.append(self._session.run(names, arrays))
        if self._watched is not None:
            self._warn_of_unseen(table, np.max([part.pop() for part in parts], axis=0))
        results = parts[0]
        if len(parts) > 1:
            results = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
        for name, values in zip(outputs, results, strict=True):
            check_finite(name, values, self._name)
        return results

    def predict(self, X):
        """Return the predictions of the model's ``predict``.

        Parameters
        ----------
        X : table-like
            Rows, in a form that :meth:`run` accepts.

        Returns
        -------
        ndarray of shape (n_rows,) or (n_rows, n_outputs), or dict of them for several tasks
        """
        if self.kind == "tasks":
            return {
                name: self.classes_[name][values.argmax(axis=1)]
                if name in self.classes_
                else values
                for name, values in self._by_task(X).items()
            }
        if "predictions" in self.metadata_["outputs"]:
            return self.run(X, "predictions")[0]
        probabilities = self.predict_proba(X)
        if self.metadata_["answer"].get("multilabel"):
            return (probabilities > 0.5).astype(np.int64)
        return self.classes_[probabilities.argmax(axis=1)]

    def predict_proba(self, X):
        """Return class probabilities.

        Parameters
        ----------
        X : table-like
            Rows, in a form that :meth:`run` accepts.

        Returns
        -------
        ndarray of float64, shape (n_rows, n_classes), or dict of them for several tasks

        Raises
        ------
        AttributeError
            If the model has no class probabilities.
        """
        if self.kind == "tasks":
            by_task = self._by_task(X)
            return {name: by_task[name] for name in self.classes_}
        return self._only("predict_proba", "probabilities", X)

    def decision_function(self, X):
        """Return the scores of pairs of users and items, float64 of shape (n_rows,)."""
        return self._only("decision_function", "scores", X)

    def transform(self, X):
        """Return embeddings, or the representations of the model's ``transform``, float32."""
        name = "embedding" if "embedding" in self.metadata_["outputs"] else "representation"
        return self._only("transform", name, X)

    def _warn_of_unseen(self, table, highest):
        """Warn of the columns whose highest code is that of unseen categories."""
        for index in np.flatnonzero(highest == UNSEEN):
            column = self._watched["columns"][index]
            if column is not None and has_enough_values(category_values(table, column)):
                warn_of_unseen(column["name"], len(table), column["block"])

    def _by_task(self, X):
        tasks = self.metadata_["answer"]["tasks"]
        results = self.run(X, *(task["output"] for task in tasks))
        return {task["name"]: values for task, values in zip(tasks, results, strict=True)}

    def _only(self, method, output, X):
        if output not in self.metadata_["outputs"]:
            raise AttributeError(
                f"{method} is not available for a {self.metadata_['estimator']}; the file provides "
                f"{list(self.metadata_['outputs'])}"
            )
        return self.run(X, output)[0]


def class_array(classes):
    """Return class labels as an array, strings as an array of objects."""
    classes = np.asarray(classes)
    return classes.astype(object) if classes.dtype.kind == "U" else classes


def check_finite(output, values, source):
    """Raise ``RuntimeError`` if an output has NaN or infinity.

    Parameters
    ----------
    output : str
        Name of the output, used in the message.
    values : ndarray
        Values of the output, whose first dimension is the row.
    source : str
        File or engine that computed the values, used in the message.
    """
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return
    invalid = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    raise RuntimeError(
        f"{source} gives NaN or infinity in output {output!r} for {invalid.sum()} of {len(values)} "
        f"rows, the first of them row {invalid.argmax()}. Export the model again with this version "
        "of sk_easytensor"
    )


def open_session(model, n_jobs=None, providers=None):
    """Return a session of onnxruntime.

    Parameters
    ----------
    model : str or bytes
        Path of a file, or its content.
    n_jobs : int or None, default=None
        Number of threads; None for one, -1 for all cores.
    providers : list, optional
        Execution providers of onnxruntime; by default the CPU.

    Returns
    -------
    onnxruntime.InferenceSession

    Raises
    ------
    ImportError
        If onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            "reading exported models needs onnxruntime: pip install onnxruntime, or "
            "pip install 'sk_easytensor[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    if n_jobs != -1:
        options.intra_op_num_threads = n_jobs or 1
    providers = ["CPUExecutionProvider"] if providers is None else providers
    return onnxruntime.InferenceSession(model, options, providers=providers)


def read_metadata(session, name):
    """Return the metadata of a model of this library.

    Raises
    ------
    ValueError
        If the file was not written by this library, or by a newer version.
    """
    text = session.get_modelmeta().custom_metadata_map.get(METADATA)
    if text is None:
        raise ValueError(f"{name} was not written by to_onnx of this library")
    metadata = json.loads(text)
    if metadata["format"] > FORMAT:
        raise ValueError(
            f"{name} is of format {metadata['format']}, written by sk_easytensor "
            f"{metadata['version']}; this version reads formats up to {FORMAT}. Update "
            "sk_easytensor where the file is read"
        )
    return metadata
