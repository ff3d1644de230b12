import numpy as np
import pandas as pd
import pytest
from skorch.callbacks import Callback

from sk_easytensor import MLP, BoostedTrees, EasyTensorClassifier, EasyTensorRegressor


def make_mixed(n_rows, seed=0):
    """Return a data frame of every kind of column and a number that depends on some of them."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "amount": rng.normal(size=n_rows),
            "count": rng.integers(0, 9, n_rows),
            "flag": rng.random(n_rows) < 0.5,
            "city": rng.choice(["Oslo", "Lima", "Rome"], n_rows),
            "grade": pd.Categorical(rng.choice(["low", "high"], n_rows)),
            "day": pd.to_datetime("2024-01-01")
            + pd.to_timedelta(rng.integers(0, 500, n_rows), "D"),
        }
    )
    score = frame["amount"] + (frame["city"] == "Oslo") + 0.1 * rng.normal(size=n_rows)
    for name in ("amount", "city", "day"):
        frame.loc[rng.random(n_rows) < 0.1, name] = None
    return frame, score.to_numpy()


@pytest.fixture
def mixed():
    """Mixed columns of 120 rows and a number."""
    return make_mixed(120)


@pytest.fixture
def labelled(mixed):
    """Mixed columns of 120 rows and string labels."""
    frame, score = mixed
    return frame, np.where(score > 0.3, "yes", "no")


@pytest.fixture
def quick():
    """Parameters for tests in which the quality of the model does not matter."""
    # Of labels without noise, trees would be grown to the last of a thousand.
    trees = BoostedTrees(max_iter=20)
    trunk = MLP(width=16)
    return {
        "trunk": trunk,
        "trees": trees,
        "max_epochs": 3,
        "n_folds": None,
        "batch_size": 32,
        "random_state": 0,
    }


@pytest.fixture
def classifier(quick):
    """A function that makes quick classifiers."""
    return lambda blocks=None, **params: EasyTensorClassifier(blocks, **{**quick, **params})


@pytest.fixture
def regressor(quick):
    """A function that makes quick regressors."""
    return lambda blocks=None, **params: EasyTensorRegressor(blocks, **{**quick, **params})


class Recorder(Callback):
    """Counts epochs and notes the learning rate of every training step."""

    def __init__(self):
        self.epochs = 0
        self.rates = []

    def on_batch_end(self, net, training=False, **kwargs):
        if training:
            # The last group is that of parameters without a rate of their own.
            self.rates.append(net.optimizer_.param_groups[-1]["lr"])

    def on_epoch_end(self, net, **kwargs):
        self.epochs += 1


@pytest.fixture
def recorder():
    """A skorch callback that counts epochs and notes learning rates."""
    return Recorder()
