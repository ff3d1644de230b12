"""CoLES as pytorch-lifestream has it, on the same events as the embedder here.

The network is that of its own examples: embeddings of the categories, a GRU, and a contrastive
loss with the hardest negatives among five parts of each user's sequence.
"""

from __future__ import annotations

import logging
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytorch_lightning as lightning
import torch
from ptls.data_load.datasets import inference_data_loader
from ptls.frames import PtlsDataModule
from ptls.frames.coles import ColesDataset, CoLESModule
from ptls.frames.coles.split_strategy import SampleSlices
from ptls.nn import RnnSeqEncoder, TrxEncoder


def coles(users, *, width=128, epochs=40, batch_size=64, learning_rate=2e-3, seed=0):
    """Fit CoLES to the events of all users and return their embeddings.

    Parameters
    ----------
    users : Users
        Of ``embedding_tasks``.
    width : int
        Of the GRU, and so of the embeddings.
    epochs, batch_size, learning_rate, seed
        Of the training.

    Returns
    -------
    ndarray of float32, shape (n_users, width)
    """
    for name in ("lightning", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    records, sizes, numbers = as_records(users)
    lengths = np.array([len(record["event_time"]) for record in records])
    lightning.seed_everything(seed)
    encoder = RnnSeqEncoder(
        trx_encoder=TrxEncoder(
            embeddings={name: {"in": size, "out": 16} for name, size in sizes.items()},
            numeric_values=dict.fromkeys(numbers, "identity"),
            embeddings_noise=0.003,
        ),
        hidden_size=width,
        type="gru",
    )
    model = CoLESModule(
        encoder,
        optimizer_partial=partial(torch.optim.Adam, lr=learning_rate),
        lr_scheduler_partial=partial(torch.optim.lr_scheduler.StepLR, step_size=10, gamma=0.5),
    )
    shortest = max(int(np.median(lengths)) // 4, 2)
    splitter = SampleSlices(split_count=5, cnt_min=shortest, cnt_max=int(np.median(lengths)))
    module = PtlsDataModule(
        train_data=ColesDataset(records, splitter),
        train_num_workers=0,
        train_batch_size=batch_size,
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", enable_checkpointing=False, **quiet
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, module)
        loader = inference_data_loader(records, num_workers=0, batch_size=256)
        return torch.vstack(trainer.predict(model, loader)).float().numpy()


def as_records(users):
    """Return each user's events as tensors, the sizes of categories and the names of numbers."""
    table = users.table
    lengths = table[users.time].list.len().to_numpy()
    events = {name: table[name].list.flatten() for name in table}
    when = pd.to_datetime(events.pop(users.time)).astype("datetime64[s]").astype("int64")
    gaps = np.diff(when, prepend=when[:1])
    gaps[np.cumsum(lengths) - lengths] = 0
    columns, sizes = {"gap": np.log1p(gaps)}, {}
    for name, values in events.items():
        if pd.api.types.is_numeric_dtype(values.dtype):
            number = values.to_numpy(dtype=np.float64, na_value=np.nan)
            scaled = (number - np.nanmean(number)) / np.nanstd(number)
            columns[name] = np.nan_to_num(np.clip(scaled, -5, 5))
        else:
            codes = pd.factorize(values.astype(str))[0] + 1
            columns[name], sizes[name] = codes, codes.max() + 1
    tensors = {
        name: torch.from_numpy(np.asarray(column, dtype=np.int64 if name in sizes else np.float32))
        for name, column in columns.items()
    }
    tensors["event_time"] = torch.from_numpy(np.asarray(when))
    parts = {name: column.split(lengths.tolist()) for name, column in tensors.items()}
    records = [dict(zip(parts, part, strict=True)) for part in zip(*parts.values(), strict=True)]
    return records, sizes, [name for name in columns if name not in sizes]
