"""Descriptions of parameters and data, by which fits are compared."""

from __future__ import annotations

import re

import numpy as np
import torch

from sk_easytensor._utils.digests import Digest, array_digest, describe_object
from sk_easytensor._utils.masking import masked
from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.file_dataset import MemoryMappedDataset

__all__ = [
    "describe_data",
    "describe_parameters",
    "digest",
    "joined_descriptions",
]


IRRELEVANT = {"checkpoint_dir", "tracker", "verbose", "n_jobs", "inference_engine"}
"""Parameters that may differ between a fit and the one that resumes it."""


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
