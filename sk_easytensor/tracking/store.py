"""Checkpoints among the artifacts of a run."""

from __future__ import annotations

from sk_easytensor.masking import masked
from sk_easytensor.training.stores import DirectoryStore

__all__ = ["FOLDER", "MLflowStore", "is_in_mlflow"]

FOLDER = "checkpoints"


class MLflowStore(DirectoryStore):
    """A directory whose files are artifacts of a run too.

    Parameters
    ----------
    run : TrackedRun
        Of the fit. What an interrupted fit left among its artifacts is fetched first, so that
        the machine that goes on needs nothing on its disk.

    Notes
    -----
    While the server does not answer, checkpoints are written on this machine only, and sent with
    the rest of the record.
    """

    def __init__(self, run):
        self._run = run
        local = run.artifacts / FOLDER
        local.mkdir(parents=True, exist_ok=True)
        run.fetch(FOLDER)
        super().__init__(local)
        self.url = f"artifact {FOLDER!r} of run {run.record.run_id} at {masked(run.uri)}"

    def inside(self, name):
        """Return the store itself: a run is that of one fit."""
        return self

    def write(self, name, data):
        """Write bytes under a name, here and among the artifacts."""
        super().write(name, data)
        self._run.send_file(f"{FOLDER}/{name}")

    def remove(self, name):
        """Remove a name that is there."""
        super().remove(name)
        self._run.remove_file(f"{FOLDER}/{name}")


def is_in_mlflow(checkpoint_dir):
    """Tell whether checkpoints are to be kept among a run's artifacts."""
    return isinstance(checkpoint_dir, str) and checkpoint_dir == "mlflow"
