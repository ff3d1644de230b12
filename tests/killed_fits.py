"""A fit in a process of its own, for tests that kill it."""

import numpy as np
import torch

from sk_easytensor import MLP, BoostedTrees, EasyTensorClassifier


def fit(where, result):
    """Fit with checkpoints in a directory, or without, and store the weights."""
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    X = random.normal(size=(400, 4))
    y = X[:, 0] + random.normal(size=400) > 0
    params = {"batch_size": 32, "max_epochs": 30, "early_stopping_rounds": 30, "random_state": 0}
    quick = {"trunk": MLP(width=16), "trees": BoostedTrees(max_iter=20), "n_folds": None}
    model = EasyTensorClassifier(**params, **quick, checkpoint_dir=where).fit(X, y)
    np.savez(result, *[tensor.numpy() for tensor in model.network_.state_dict().values()])
