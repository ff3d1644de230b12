"""Checks of parameters and paths, suggestions for unknown ones, and warnings to user code."""

from __future__ import annotations

import math
import os
import re
import sys
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter, signature
from numbers import Integral, Real
from pathlib import Path
from warnings import warn

__all__ = [
    "OTHER_NAMES",
    "PARQUET_SUFFIXES",
    "SpelledValuesWarning",
    "is_path",
    "parameter_names",
    "path_list",
    "unknown_parameter",
    "warn_of_unseen",
    "warn_user",
    "with_known_keywords",
]


class ParametersMixin:
    """Mixin for parameters that later versions and subclasses of users extend.

    Pickles without a parameter load with its default. A subclass whose ``__init__`` has
    ``**kwargs`` has the parameters of its base class too. Errors about unknown parameters suggest
    known ones.
    """

    def __init_subclass__(cls, **kwargs):
        """Decorate the methods that users call, so that errors suggest known keywords."""
        super().__init_subclass__(**kwargs)
        for name in ("__init__", "fit", "partial_fit"):
            if name in vars(cls):
                setattr(cls, name, with_known_keywords(vars(cls)[name]))

    @classmethod
    def _get_param_names(cls):
        return sorted(parameter_names(cls))

    def set_params(self, **params):
        """Set parameters.

        Parameters
        ----------
        **params : dict
            Values by parameter name, as ``get_params`` returns them.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter is unknown; the message suggests another one.
        """
        known = parameter_names(type(self))
        for name in params:
            if name.partition("__")[0] not in known:
                instead = unknown_parameter(type(self), name, known)
                raise ValueError(
                    f"Invalid parameter {name!r} for estimator {type(self).__name__}: {instead}"
                )
        return super().set_params(**params)

    def __setstate__(self, state):
        """Restore a pickled state."""
        super().__setstate__(state)
        for kind in type(self).__mro__:
            if "__init__" not in vars(kind):
                continue
            for name, parameter in signature(kind.__init__).parameters.items():
                if parameter.default is not Parameter.empty and name not in vars(self):
                    setattr(self, name, parameter.default)


def shortened(value, to_text=repr, length=60):
    """Return ``to_text(value)``, truncated to at most `length` characters."""
    text = to_text(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."


def check_choice(owner, name, value, choices):
    """Raise ``ValueError`` unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{owner}: {name} must be one of {list(choices)}, got {value!r}")


def check_number(
    owner, name, value, *, low=None, high=None, integer=False, exclusive=False, others=""
):
    """Raise ``ValueError`` unless `value` is a finite number within the bounds.

    Parameters
    ----------
    owner, name : str
        Class name and parameter name, for the error message.
    value : object
        Value to check.
    low, high : number, optional
        Bounds, inclusive unless `exclusive`.
    integer : bool, default=False
        Whether the value must be an integer.
    exclusive : bool, default=False
        Whether the bounds are exclusive.
    others : str, default=""
        Other values that are accepted, for the error message, such as ``" or None"``.

    Raises
    ------
    ValueError
        If the value is not accepted. The message names parameter, value and bounds.
    """
    kind = Integral if integer else Real
    fits = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    if fits and low is not None:
        fits = value > low if exclusive else value >= low
    if fits and high is not None:
        fits = value < high if exclusive else value <= high
    if not fits:
        noun = "an integer" if integer else "a number"
        bounds = []
        if low is not None:
            bounds.append(f"{'greater than' if exclusive else 'at least'} {low}")
        if high is not None:
            bounds.append(f"{'less than' if exclusive else 'at most'} {high}")
        expected = " ".join([noun, " and ".join(bounds)]).strip()
        raise ValueError(f"{owner}: {name} must be {expected}{others}, got {value!r}")


PACKAGE = str(Path(__file__).parent.parent)


class SpelledValuesWarning(UserWarning):
    """A column of texts that are numbers or dates is read as categories or as text.

    Examples
    --------
    >>> import warnings
    >>> from sk_easytensor import SpelledValuesWarning
    >>> warnings.simplefilter("ignore", SpelledValuesWarning)
    """


def warn_user(message, category=UserWarning):
    """Issue a warning at the first line outside this package.

    Parameters
    ----------
    message : str
        Message of the warning.
    category : type, default=UserWarning
        Class of the warning.
    """
    level, frame = 1, sys._getframe()
    # Decorators of methods are frames too, so the number of frames is not constant.
    while frame is not None and frame.f_code.co_filename.startswith(PACKAGE):
        level, frame = level + 1, frame.f_back
    warn(message, category, stacklevel=level)


def warn_of_unseen(column, n_rows, block, noun="category"):
    """Warn about a column of which no value is a known category, or can be read.

    Parameters
    ----------
    column : str
        Name of the column.
    n_rows : int
        Number of rows of the table.
    block : str
        Class name of the block that reads the column.
    noun : str, default="category"
        What values are; texts that are no numbers or dates are missing.
    """
    seen, meaning = f"a {noun} that {block} saw during fit", "unseen ones"
    if noun != "category":
        seen, meaning = f"a {noun} in the format that {block} saw during fit", "missing"
    warn_user(
        f"column {column!r}: no value of its {n_rows} rows is {seen}, so that all are read as "
        f"{meaning}; check that the values are written as they were"
    )


ROUNDS = ("max_epochs (epochs of the network)", "trees=BoostedTrees(max_iter=...)", "max_iter")
LEAVES = ("trees=BoostedTrees(max_leaf_nodes=...)", "max_leaf_nodes")
SIZE = ("trunk=TabM(layers=..., width=...)", "trees=BoostedTrees(max_leaf_nodes=...)")
LEAF_ROWS = ("trees=BoostedTrees(min_samples_leaf=...)", "min_samples_leaf")
PENALTY = (
    "weight_decay (of the network)",
    "trees=BoostedTrees(l2_regularization=...)",
    "l2_regularization",
)
BINS = ("blocks=[('numeric', NumericBlock(bins=...), columns)]", "bins")
COLUMNS = ("trunk=TabM(dropout=...)", "trees=BoostedTrees(max_features=...)", "max_features")
PATIENCE = ("early_stopping_rounds", "n_iter_no_change")
CATEGORIES = ("categorical_features", "blocks=[('category', CategoryBlock(), columns)]")
LOSS = ("loss",)
TRUNK = ("trunk=MLP(layers=..., width=...)",)

OTHER_NAMES = {
    "n_estimators": ROUNDS,
    "num_iterations": ROUNDS,
    "num_iteration": ROUNDS,
    "num_boost_round": ROUNDS,
    "num_round": ROUNDS,
    "num_trees": ROUNDS,
    "iterations": ROUNDS,
    "max_iter": ROUNDS,
    "epochs": ROUNDS,
    "n_epochs": ROUNDS,
    "eta": ("learning_rate",),
    "lr": ("learning_rate",),
    "learning_rate_init": ("learning_rate",),
    "shrinkage_rate": ("learning_rate",),
    "num_leaves": LEAVES,
    "max_leaves": LEAVES,
    "max_leaf_nodes": LEAVES,
    "depth": SIZE,
    "max_depth": SIZE,
    "min_child_samples": LEAF_ROWS,
    "min_data_in_leaf": LEAF_ROWS,
    "min_samples_leaf": LEAF_ROWS,
    "min_child_weight": LEAF_ROWS,
    "reg_lambda": PENALTY,
    "lambda_l2": PENALTY,
    "l2_leaf_reg": PENALTY,
    "l2_regularization": PENALTY,
    "reg_alpha": PENALTY,
    "lambda_l1": PENALTY,
    "max_bin": BINS,
    "max_bins": BINS,
    "border_count": BINS,
    "subsample": COLUMNS,
    "bagging_fraction": COLUMNS,
    "colsample_bytree": COLUMNS,
    "feature_fraction": COLUMNS,
    "rsm": COLUMNS,
    "max_features": COLUMNS,
    "early_stopping": PATIENCE,
    "early_stopping_round": PATIENCE,
    "early_stopping_rounds": PATIENCE,
    "n_iter_no_change": PATIENCE,
    "od_wait": PATIENCE,
    "patience": PATIENCE,
    "objective": LOSS,
    "loss": LOSS,
    "loss_function": LOSS,
    "criterion": LOSS,
    "alpha": ("quantile (with loss='quantile')", *PENALTY),
    "tweedie_variance_power": ("loss=sk_easytensor.losses.Tweedie(power=...)",),
    "variance_power": ("loss=sk_easytensor.losses.Tweedie(power=...)",),
    "quantile_alpha": ("quantile (with loss='quantile')",),
    "expectile_alpha": ("loss=sk_easytensor.losses.Expectile(...)",),
    "categorical_feature": CATEGORIES,
    "categorical_features": CATEGORIES,
    "cat_features": CATEGORIES,
    "enable_categorical": CATEGORIES,
    "text_features": ("blocks=[('text', TextBlock(), columns)]",),
    "embedding_features": ("blocks=[('vector', VectorBlock(), columns)]",),
    "seed": ("random_state",),
    "random_seed": ("random_state",),
    "nthread": ("n_jobs",),
    "num_threads": ("n_jobs",),
    "thread_count": ("n_jobs",),
    "verbosity": ("verbose",),
    "silent": ("verbose",),
    "verbose_eval": ("verbose",),
    "logging_level": ("verbose",),
    "is_unbalance": ("class_weight='balanced'",),
    "auto_class_weights": ("class_weight='balanced'",),
    "scale_pos_weight": ("class_weight",),
    "class_weights": ("class_weight",),
    "init_score": ("base_margin", "offset"),
    "monotone_constraints": ("monotonic_cst",),
    "monotone_constraint": ("monotonic_cst",),
    "init_model": ("warm_start=True",),
    "xgb_model": ("warm_start=True",),
    "device_type": ("device",),
    "task_type": ("device",),
    "gpu_id": ("device",),
    "tree_method": ("device",),
    "hidden_layer_sizes": TRUNK,
    "layers": TRUNK,
    "width": TRUNK,
    "dropout": ("trunk=TabM(dropout=...)",),
    "module": ("trunk",),
    "solver": ("optimizer",),
    "validation_split": ("validation_fraction",),
    "eval_fraction": ("validation_fraction",),
    "metric": ("eval_metric", "callbacks=[skorch.callbacks.EpochScoring(...)]"),
    "custom_metric": ("eval_metric", "callbacks=[skorch.callbacks.EpochScoring(...)]"),
    "eval_metric": ("callbacks=[skorch.callbacks.EpochScoring(...)]",),
    "scoring": ("eval_metric", "callbacks=[skorch.callbacks.EpochScoring(...)]"),
    "validation_data": ("eval_set=[(X, y)]",),
    "X_val": ("eval_set=[(X, y)]",),
    "y_val": ("eval_set=[(X, y)]",),
    "class_names": ("classes",),
}
"""Names in LightGBM, XGBoost, CatBoost, HistGradientBoosting, MLPClassifier and skorch, with the
corresponding parameters here. Errors only suggest those that begin with an existing parameter."""


def parameter_names(kind):
    """Return the names of the parameters of a class, in order.

    The parameters of base classes are included as long as ``__init__`` has ``**kwargs``.
    """
    names = []
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = list(signature(base.__init__).parameters.values())[1:]
        names += [
            parameter.name
            for parameter in parameters
            if parameter.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
        ]
        if all(parameter.kind != Parameter.VAR_KEYWORD for parameter in parameters):
            break
    return list(dict.fromkeys(names))


def unknown_parameter(kind, name, known, *, of_fit=False):
    """Return advice about the parameter to use instead of an unknown one.

    Parameters
    ----------
    kind : type
        Class that was created or whose method was called.
    name : str
        Unknown parameter.
    known : iterable of str
        Parameters of the called method.
    of_fit : bool, default=False
        Whether a method was called rather than the class.

    Returns
    -------
    str
        Advice for the error message.
    """
    owner, constructor_names, known = kind.__name__, parameter_names(kind), list(known)
    root, nested, _ = name.partition("__")
    if nested and root in constructor_names:
        return f"nested parameters are set by {owner}().set_params({name}=...)"
    if of_fit and name in constructor_names:
        return f"it is a parameter of the constructor, {owner}({name}=...)"
    firsts = {instead: re.match(r"\w+", instead)[0] for instead in OTHER_NAMES.get(name, ())}
    suggestions = [instead for instead, first in firsts.items() if first in known]
    if suggestions:
        return f"use {' or '.join(suggestions)}"
    suggestions = [instead for instead, first in firsts.items() if first in constructor_names]
    if suggestions:
        return f"use {' or '.join(suggestions)} in the constructor"
    if name in OTHER_NAMES and OTHER_NAMES[name] is LOSS:
        return "the target decides the loss"
    similar = get_close_matches(name, [*known, *constructor_names], n=1, cutoff=0.75)
    if similar:
        suffix = "" if similar[0] in known else " of the constructor"
        return f"did you mean {similar[0]}{suffix}?"
    return f"parameters are {', '.join(known)}"


def with_known_keywords(method):
    """Decorate a method so that errors about its arguments name the class and an alternative.

    Python's own errors name the base class that defines the method.
    """
    call_signature = signature(method)
    keywords = parameters_by_keyword(call_signature)

    @wraps(method)
    def checked(self, *args, **params):
        try:
            call_signature.bind(self, *args, **params)
        except TypeError as error:
            kind, is_method = type(self), method.__name__ != "__init__"
            call = f"{kind.__name__}.{method.__name__}()" if is_method else f"{kind.__name__}()"
            unknown = [name for name in params if name not in keywords]
            if not unknown:
                raise TypeError(f"{call}: {error}") from None
            instead = unknown_parameter(kind, unknown[0], keywords, of_fit=is_method)
            raise TypeError(
                f"{call} got an unexpected keyword argument {unknown[0]!r}: {instead}"
            ) from None
        return method(self, *args, **params)

    return checked


def parameters_by_keyword(call_signature):
    """Return the parameters of a signature that accept keywords, without ``self``."""
    kinds = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    names = [
        name for name, parameter in call_signature.parameters.items() if parameter.kind in kinds
    ]
    return names[1:]


PARQUET_SUFFIXES = (".parquet", ".pq")
"""Ends of strings by which a list of them is a list of files."""


def is_path(X):
    """Return whether `X` is a path or URL of Parquet files, or a list of them.

    Examples
    --------
    >>> is_path("rows"), is_path(["a.parquet", "b.parquet"]), is_path(["a text", "another"])
    (True, True, False)
    """
    if isinstance(X, (list, tuple)):
        return len(X) > 0 and all(map(_is_file, X))
    return isinstance(X, (str, os.PathLike))


def path_list(X):
    """Return the path or paths for which :func:`is_path` is true, as a list of strings."""
    return list(map(os.fspath, X if isinstance(X, (list, tuple)) else [X]))


def _is_file(X):
    """Return whether an entry of a list is a path; texts are not."""
    if isinstance(X, str):
        # Web addresses are more often texts.
        is_url = "://" in X and not X.lower().startswith(("http://", "https://"))
        return X.lower().endswith(PARQUET_SUFFIXES) or is_url or os.path.isdir(X)
    return isinstance(X, os.PathLike)
