"""Exported models: files with a digest, and predictions by onnxruntime without torch."""

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
"""Key of the metadata."""


def sealed(model):
    """Return a serialised model with an entry of its metadata that has its SHA-256.

    Parameters
    ----------
    model : bytes
        As ``SerializeToString`` gives it, without the entry.

    Returns
    -------
    bytes
        The entry comes last. Fields of a protobuf message may come in any order, and one that is
        repeated in several places, so that all readers of ONNX find it among the metadata.
    """
    return model + entry(hashlib.sha256(model).hexdigest())


def check_sealed(data, where):
    """Raise ``ValueError`` unless bytes are those that :func:`sealed` returned.

    Parameters
    ----------
    data : bytes
        What is in a file.
    where : str
        The file, for the message.
    """
    model = memoryview(data)[: -len(entry("0" * 64))]
    if data[len(model) :] != entry(hashlib.sha256(model).hexdigest()):
        raise ValueError(
            f"{where} is corrupt, was changed after it was exported, or was not written by to_onnx "
            "of this library. Export the model again"
        )


def entry(digest):
    """Return an entry of the metadata of a model (field 14: key is field 1, value field 2)."""
    pair = b"\x0a" + sized(DIGEST.encode()) + b"\x12" + sized(digest.encode())
    return b"\x72" + sized(pair)


def sized(data):
    """Return bytes, fewer than 128, behind their number."""
    return bytes([len(data)]) + data


FORMAT = 1
"""Version of what files say of themselves; raised when older readers cannot read new ones."""

METADATA = "sk_easytensor"
"""Key of the file's metadata."""

BATCH = 8_192
"""Rows that go through the graph at once."""


def load(path, **params):
    """Read a file that ``to_onnx`` wrote, if it is as it was written.

    Parameters
    ----------
    path : str, path-like or bytes
        The file, or what is in it.
    **params
        As for :class:`OnnxPredictor`.

    Returns
    -------
    OnnxPredictor

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        Naming the file, if a SHA-256 in its metadata is not that of the rest: it is corrupt, or was
        changed after it was exported.
    """
    return OnnxPredictor(path, **params)


class OnnxPredictor:
    """A fitted model in an ONNX file: what it predicts, from the user's own columns.

    It needs NumPy, pyarrow and onnxruntime, and neither torch nor scikit-learn.

    Parameters
    ----------
    path : str, path-like or bytes
        A file that ``to_onnx(path)`` wrote, with raw columns, or what is in it.
    n_jobs : int or None, default=None
        Threads; None for one, -1 for all cores.
    providers : list, optional
        Of onnxruntime; by default the processor.

    Attributes
    ----------
    feature_names_in_ : ndarray of str
        Columns of fit. Those that no block read need not be there.
    classes_ : ndarray
        Of classifiers, and of pairs with two classes.
    metadata_ : dict
        What the file says of itself.

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
        self._where = "what was given"
        data = path
        if not isinstance(path, bytes):
            path = self._where = os.fspath(path)
            if not os.path.isfile(path):
                raise FileNotFoundError(f"there is no file {path!r}")
            with open(path, "rb") as file:
                data = file.read()
        check_sealed(data, self._where)
        try:
            self._session = open_session(data, n_jobs, providers)
        except ImportError:
            raise
        except Exception as error:
            # Those of onnxruntime have no common class but this.
            raise ValueError(f"{self._where} cannot be read as an ONNX file: {error}") from error
        self.metadata_ = read_metadata(self._session, self._where)
        if self.metadata_["inputs"] != "raw":
            raise ValueError(
                f"{self._where} was exported with inputs={self.metadata_['inputs']!r}, which takes "
                "what the model's blocks make of a table; export it with inputs='raw' to predict "
                "from columns"
            )
        self._readers = readers(self.metadata_["readers"])
        self._inputs = {value.name for value in self._session.get_inputs()}
        features = self.metadata_["features"]
        self.feature_names_in_ = np.array([each["name"] for each in features], dtype=object)
        self._sparse = self.metadata_.get("sparse")
        if self._sparse is not None:
            self._sparse = SparseLayout(**self._sparse)
        self._columns = list(self.feature_names_in_)
        if self.metadata_["named"]:
            self._columns = [each["name"] for each in features if each["blocks"]]
        if self._sparse is not None:
            self.feature_names_in_ = np.array(self._sparse.features, dtype=object)
        self._watched = self.metadata_["watched"]
        answer = self.metadata_["answer"]
        self.kind = answer["kind"]
        if answer.get("classes") is not None:
            self.classes_ = class_array(answer["classes"])
        if self.kind == "tasks":
            self.classes_ = {
                each["name"]: class_array(each["classes"])
                for each in answer["tasks"]
                if each["classes"] is not None
            }

    def run(self, X, *outputs):
        """Return some of the graph's outputs.

        Parameters
        ----------
        X : table-like
            Data frame of any kind, Arrow table, dictionary of lists, list of dictionaries, or
            2-D array or sparse matrix if `fit` was given one of the two.
        *outputs : str
            Which; as in ``metadata_["outputs"]``.

        Returns
        -------
        list of ndarray

        Raises
        ------
        RuntimeError
            If the graph gives NaN or infinity, with the output and the number of rows.

        Warns
        -----
        UserWarning
            Naming a column of which no value is a category that fit saw.
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
        for start in range(0, len(table), BATCH):
            rows = table.slice(start, BATCH)
            given = {}
            for read in self._readers:
                given.update(read(rows))
            given = {name: values for name, values in given.items() if name in self._inputs}
            parts.append(self._session.run(names, given))
        if self._watched is not None:
            self._warn_of_unseen(table, np.max([part.pop() for part in parts], axis=0))
        found = parts[0]
        if len(parts) > 1:
            found = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
        for name, values in zip(outputs, found, strict=True):
            check_finite(name, values, self._where)
        return found

    def predict(self, X):
        """Return what the model's ``predict`` does.

        Parameters
        ----------
        X : table-like
            As for :meth:`run`.

        Returns
        -------
        ndarray of shape (n_rows,) or (n_rows, n_outputs), or dict of them for several tasks
        """
        if self.kind == "tasks":
            found = self._by_task(X)
            return {
                name: self.classes_[name][values.argmax(axis=1)]
                if name in self.classes_
                else values
                for name, values in found.items()
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
            As for :meth:`run`.

        Returns
        -------
        ndarray of float64, shape (n_rows, n_classes), or dict of them for several tasks

        Raises
        ------
        AttributeError
            If the model gives none.
        """
        if self.kind == "tasks":
            found = self._by_task(X)
            return {name: found[name] for name in self.classes_}
        return self._only("predict_proba", "probabilities", X)

    def decision_function(self, X):
        """Return how well the users and items of pairs fit, float64 of shape (n_rows,)."""
        return self._only("decision_function", "scores", X)

    def transform(self, X):
        """Return embeddings, or what the model's ``transform`` gives, float32."""
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
        found = self.run(X, *(each["output"] for each in tasks))
        return {each["name"]: values for each, values in zip(tasks, found, strict=True)}

    def _only(self, method, output, X):
        if output not in self.metadata_["outputs"]:
            raise AttributeError(
                f"{method} is not available for a {self.metadata_['estimator']}; the file provides "
                f"{list(self.metadata_['outputs'])}"
            )
        return self.run(X, output)[0]


def class_array(classes):
    """Return class labels as an array; strings as objects."""
    classes = np.asarray(classes)
    return classes.astype(object) if classes.dtype.kind == "U" else classes


def check_finite(output, values, where):
    """Raise ``RuntimeError`` if an output holds NaN or infinity.

    Parameters
    ----------
    output : str
        Name of the output, for the message.
    values : ndarray
        Whose first dimension is the row.
    where : str
        What computed it, for the message.
    """
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return
    wrong = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    raise RuntimeError(
        f"{where} gives NaN or infinity in output {output!r} for {wrong.sum()} of {len(values)} "
        f"rows, the first of them row {wrong.argmax()}. Export the model again with this version "
        "of sk_easytensor"
    )


def open_session(model, n_jobs=None, providers=None):
    """Return a session of onnxruntime.

    Parameters
    ----------
    model : str or bytes
        A path, or what is in a file.
    n_jobs : int or None
        Threads; None for one, -1 for all cores.
    providers : list, optional
        Of onnxruntime; by default the processor.

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


def read_metadata(session, where):
    """Return what a file says of itself.

    Raises
    ------
    ValueError
        If it is from a newer version, or not of this library.
    """
    found = session.get_modelmeta().custom_metadata_map.get(METADATA)
    if found is None:
        raise ValueError(f"{where} was not written by to_onnx of this library")
    metadata = json.loads(found)
    if metadata["format"] > FORMAT:
        raise ValueError(
            f"{where} is of format {metadata['format']}, written by sk_easytensor "
            f"{metadata['version']}; this version reads formats up to {FORMAT}. Update "
            "sk_easytensor where the file is read"
        )
    return metadata
