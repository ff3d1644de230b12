"""Neural networks for tables behind the interface of ``peers.py``: RealMLP-TD and TabM-D.

Both are those of pytabkit with its tuned defaults, except that they select their epoch by log loss
where the task is a classification, and RealMLP does without label smoothing then, as its authors
advise where probabilities count. Neither takes missing numbers: those become the median.

pytabkit is no dependency of this library, not even of its benchmarks: install it into an
environment of its own and name the models there::

    pip install pytabkit -e .
    python benchmarks/data_sets/tabular.py --data DIR --models EasyTensor,RealMLP,TabM --seeds 1
"""

from __future__ import annotations

from abc import abstractmethod
from importlib.metadata import version

from peers import Peer, as_strings, category_levels, dates_to_numbers

__all__ = ["NEURAL_PEERS"]


class NeuralPeer(Peer):
    """A model of pytabkit."""

    library = "pytabkit"

    @classmethod
    def version(cls):
        return version(cls.library)

    def _make(self, problem):
        regression = problem.task == "regression"
        return self._kind(regression)(
            device="cpu",
            n_threads=self.threads,
            random_state=problem.seed,
            **({} if regression else self._for_probabilities()),
        )

    @abstractmethod
    def _kind(self, regression):
        """Return the class of the model."""

    def _for_probabilities(self):
        return {"val_metric_name": "cross_entropy"}

    def fit(self, problem):
        X = dates_to_numbers(problem.train.X)
        self.levels_ = category_levels(problem.train.X)
        self.medians_ = X.drop(columns=list(self.levels_)).median().fillna(0)
        self.model_.fit(
            self._prepare(problem.train.X),
            problem.train.y,
            self._prepare(problem.valid.X),
            problem.valid.y,
            cat_col_names=list(self.levels_),
        )

    def _prepare(self, X):
        numbers = dates_to_numbers(X)
        numbers[self.medians_.index] = numbers[self.medians_.index].fillna(self.medians_)
        return as_strings(numbers, self.levels_)

    def iterations(self):
        """Unknown: pytabkit does not tell which epoch it kept."""
        return 0


class RealMLP(NeuralPeer):
    """Holzmueller, Grinsztajn and Steinwart, "Better by Default" (2024)."""

    def _kind(self, regression):
        from pytabkit import RealMLP_TD_Classifier, RealMLP_TD_Regressor

        return RealMLP_TD_Regressor if regression else RealMLP_TD_Classifier

    def _for_probabilities(self):
        return super()._for_probabilities() | {"use_ls": False}


class TabM(NeuralPeer):
    """Gorishniy, Kotelnikov and Babenko, "TabM" (2025)."""

    def _kind(self, regression):
        from pytabkit import TabM_D_Classifier, TabM_D_Regressor

        return TabM_D_Regressor if regression else TabM_D_Classifier


NEURAL_PEERS = {"RealMLP": RealMLP, "TabM": TabM}
