"""What came of a case, and of which kind an error is."""

import linecache
import re
import traceback
from dataclasses import dataclass
from pathlib import Path

import sk_easytensor

PACKAGE = str(Path(sk_easytensor.__file__).parent)

OUTCOMES = ("ok", "refused", "unbuildable", "unnamed", "wrong", "crash", "hang")
FAULTS = ("unnamed", "wrong", "crash", "hang")

PARAMETERS = (
    "X", "y", "sample_weight", "eval_set", "eval_sample_weight", "items", "item_key",
    "user_key", "user",
    "time", "tasks", "blocks", "user_blocks", "item_blocks", "categorical_features",
    "monotonic_cst",
    "offset", "session_gap", "session", "class_weight", "validation_fraction", "n_folds", "trees",
    "trunk", "loss",
    "base_margin", "learning_rate", "batch_size", "max_epochs", "calendar", "aggregates",
)  # fmt: skip
LONG = [*(name for name in PARAMETERS if "_" in name), "remainder"]

SCIKIT_LEARN = (
    r"Found array with \d+ (sample|feature)", r"Expected 2D array",
    r"inconsistent numbers of samples",
    r"Unknown label type", r"This .* estimator requires y", r"dimension 3", r"Found array with dim",
    r"Complex data not supported", r"np.matrix is not supported",
)  # fmt: skip
"""What scikit-learn's own checks of estimators want to read, so that the library says it too."""


@dataclass
class Result:
    """What came of a case: an outcome, a signature that faults are grouped by, and the details."""

    outcome: str
    kind: str = ""
    signature: str = ""
    details: str = ""


def frames(error):
    return traceback.extract_tb(error.__traceback__)


def is_deliberate(error):
    """Tell whether a ``raise`` statement of the library, or of scikit-learn, raised an error."""
    last = frames(error)[-1]
    ours = last.filename.startswith(PACKAGE) or f"{'sklearn'}/" in last.filename.replace("\\", "/")
    line = linecache.getline(last.filename, last.lineno).strip()
    return ours and line.startswith("raise")


def names_something(message, names):
    """Tell whether a message names a column, a row, a parameter or a file."""
    if re.search(r"\brows? \d+", message) or any(re.search(text, message) for text in SCIKIT_LEARN):
        return True
    if re.search("no Parquet file at '|' cannot be read as Parquet", message):
        return True
    # Columns of arrays and of lists of rows have the names x0, x1 and so on.
    if re.search(r"\b(X|y)\b|'x\d+['.]", message) or any(name in message for name in LONG):
        return True
    if re.search(
        rf"(['\"]|\b)({'|'.join(PARAMETERS)})(['\"]|=| '| must| needs| has| holds| names)", message
    ):
        return True
    if any(len(str(name)) > 8 and str(name) in message for name in names):
        return True
    written = {repr(name)[:40] for name in names} | {repr(str(name))[:40] for name in names}
    return any(text in message for text in written)


def classify(error, names):
    """Return whether an error is a clean refusal or one that helps nobody.

    Parameters
    ----------
    error : BaseException
        Raised by a method of an estimator.
    names : list
        Names of the table's columns.

    Returns
    -------
    str
        ``"refused"`` or ``"unnamed"``.
    """
    fits = isinstance(error, (ValueError, TypeError, OSError))
    fits = fits and not isinstance(error, UnicodeError)
    named = is_deliberate(error) and names_something(str(error), names)
    return "refused" if fits and named else "unnamed"


def signature(error):
    """Return where an error came from, the same for errors of one cause."""
    own = [frame for frame in frames(error) if frame.filename.startswith(PACKAGE)]
    place = "outside"
    if own:
        path = Path(own[-1].filename).relative_to(PACKAGE).as_posix()
        place = f"{path}:{own[-1].lineno} in {own[-1].name}"
    return f"{type(error).__name__} at {place}"


def written(error):
    return "".join(traceback.format_exception(error))
