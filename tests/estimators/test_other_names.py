"""Names of other libraries, subclasses of the user's, and what introspection sees."""

import inspect
import pickle
import re

import cloudpickle
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from sk_easytensor import (
    MLP,
    BoostedTrees,
    EasyTensorClassifier,
    EasyTensorEmbedder,
    EasyTensorRegressor,
    EasyTensorTwoTower,
    NumericBlock,
    TableEncoder,
    TabM,
)
from sk_easytensor._utils.validation import OTHER_NAMES, parameter_names

ESTIMATORS = [EasyTensorClassifier, EasyTensorRegressor, EasyTensorTwoTower, EasyTensorEmbedder]
CLASSES = [*ESTIMATORS, TableEncoder, BoostedTrees, MLP, TabM, NumericBlock]


@pytest.fixture
def numbers():
    X = np.random.default_rng(0).normal(size=(60, 2))
    return X, np.where(X[:, 0] > 0, "yes", "no")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("n_estimators", r"use max_epochs \(epochs of the network\) or trees=BoostedTrees\(max_it"),
        ("num_leaves", r"use trees=BoostedTrees\(max_leaf_nodes=\.\.\.\)"),
        ("early_stopping_round", "use early_stopping_rounds"),
        ("iterations", "use max_epochs"),
        ("depth", r"use trunk=TabM\(layers=.* or trees="),
        ("cat_features", "use categorical_features"),
        ("categorical_feature", "use categorical_features"),
        ("n_iter_no_change", "use early_stopping_rounds"),
        ("objective", "use loss"),
        ("eta", "use learning_rate"),
        ("trunk__dropout", r"EasyTensorRegressor\(\)\.set_params\(trunk__dropout=\.\.\.\)"),
        ("lerning_rate", r"did you mean learning_rate\?"),
        ("colour", "parameters are blocks, loss, quantile, "),
    ],
)
def test_unknown_parameters(name, message, numbers):
    start = r"^EasyTensorRegressor\(\) got an unexpected keyword argument "
    with pytest.raises(TypeError, match=f"{start}'{name}': .*{message}"):
        EasyTensorRegressor(**{name: 1})
    if "__" not in name:
        with pytest.raises(ValueError, match=f"Invalid parameter '{name}' for .*: {message}"):
            EasyTensorRegressor().set_params(**{name: 1})
    with pytest.raises(TypeError, match=rf"^EasyTensorRegressor\.fit\(\) got .*'{name}': "):
        EasyTensorRegressor().fit(*numbers, **{name: 1})


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_what_is_named_exists(kind):
    known = parameter_names(kind)
    for name in set(OTHER_NAMES) - set(known):
        start = f"{kind.__name__}() got an unexpected keyword argument '{name}': "
        with pytest.raises(TypeError, match=re.escape(start)) as raised:
            kind(**{name: 1})
        for used in re.findall(r"(?:use|or) (\w+)", str(raised.value).removeprefix(start)):
            assert used in known


def test_errors_of_methods(numbers):
    model = EasyTensorClassifier()
    for method in (model.fit, model.partial_fit):
        owner = rf"^EasyTensorClassifier\.{method.__name__}\(\)"
        with pytest.raises(TypeError, match=rf"{owner} .*'num_leaves': use .* in the constructor"):
            method(*numbers, num_leaves=3)
        with pytest.raises(TypeError, match=rf"{owner} .*of the constructor, Easy.*\(callbacks="):
            method(*numbers, callbacks=[])
        with pytest.raises(TypeError, match=rf"{owner}: missing a required argument: 'y'"):
            method(numbers[0])
    with pytest.raises(TypeError, match=r"^EasyTensorClassifier\(\): too many positional"):
        EasyTensorClassifier(None, "auto")


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_introspection_is_as_written(kind):
    described = inspect.signature(kind)
    assert set(described.parameters) == set(kind()._get_param_names())
    assert "kwargs" not in str(described)
    assert inspect.getsource(kind.__init__).lstrip().startswith("def __init__(")
    assert kind.__init__.__name__ == "__init__"
    assert type(pickle.loads(pickle.dumps(kind()))) is kind


def test_a_search_over_another_librarys_name(numbers):
    search = GridSearchCV(EasyTensorClassifier(), {"num_leaves": [7]}, cv=2, error_score="raise")
    with pytest.raises(ValueError, match=r"Invalid parameter 'num_leaves'.*use trees=BoostedTrees"):
        search.fit(*numbers)


# ---------------------------------------------------------------------- subclasses


class Further(EasyTensorClassifier):
    """Passes keywords on."""

    def __init__(self, learning_rate=0.01, *, note="none", **params):
        super().__init__(learning_rate=learning_rate, **params)
        self.note = note


class Narrow(EasyTensorClassifier):
    """Has two parameters only."""

    def __init__(self, max_epochs=2, blocks=None):
        super().__init__(blocks, max_epochs=max_epochs, trunk=MLP(width=4), trees=None)


class Narrower(Narrow):
    """Has one parameter, and one of its own."""

    def __init__(self, note="none"):
        super().__init__(max_epochs=1)
        self.note = note


class Nothing(EasyTensorClassifier):
    """Has no parameter."""

    def __init__(self):
        super().__init__(max_epochs=1, trunk=MLP(width=4), trees=None)


def test_a_subclass_that_passes_keywords_on(numbers):
    model = Further(max_epochs=2, trunk=MLP(width=4), note="mine", random_state=0)
    expected = {"note", *EasyTensorClassifier().get_params(deep=False)}
    assert set(model.get_params(deep=False)) == expected
    assert model.get_params()["trunk__width"] == 4
    assert model.get_params()["learning_rate"] == 0.01
    copy = clone(model).set_params(trunk__width=8, note="other", weight_decay=0.0)
    assert (copy.trunk.width, copy.note, copy.max_epochs) == (8, "other", 2)
    assert pickle.loads(pickle.dumps(copy.fit(*numbers))).predict(numbers[0]).shape == (60,)
    assert "note='other'" in repr(copy)
    with pytest.raises(TypeError, match=r"Further\(\) got an .* 'num_leaves': use trees=Boosted"):
        Further(num_leaves=3)


@pytest.mark.parametrize(
    ("kind", "names"),
    [(Narrow, {"max_epochs", "blocks"}), (Narrower, {"note"}), (Nothing, set())],
)
def test_a_subclass_with_fewer_parameters(kind, names, numbers):
    model = kind()
    assert set(model.get_params()) == names
    model = clone(model).fit(*numbers)
    assert model.predict(numbers[0]).shape == (60,)
    assert pickle.loads(pickle.dumps(model)).get_params() == model.get_params()
    assert repr(model) == f"{kind.__name__}()"
    with pytest.raises(ValueError, match="Invalid parameter 'trunk__width'"):
        model.set_params(trunk__width=8)


def test_a_subclass_of_a_script_is_sent_by_value(numbers):
    scope = {"EasyTensorClassifier": EasyTensorClassifier, "__name__": "__main__"}
    source = """
class Mine(EasyTensorClassifier):
    def __init__(self, max_epochs=1, **params):
        super().__init__(max_epochs=max_epochs, **params)
    def fit(self, X, y):
        return super().fit(X, y)
"""
    exec(source, scope)
    copy = pickle.loads(cloudpickle.dumps(scope["Mine"](trunk=MLP(width=4))))
    assert copy.fit(*numbers).n_iter_ == 1
    with pytest.raises(TypeError, match=r"Mine\(\) got .* 'num_leaves'"):
        type(copy)(num_leaves=3)


# ---------------------------------------------------------------------- blocks


def test_a_block_that_is_not_named_is_named_first():
    message = r"Name the block first: blocks=\[\('numeric', NumericBlock\(\), columns\)\]"
    for model in (EasyTensorClassifier(), TableEncoder()):
        with pytest.raises(ValueError, match=message):
            model.set_params(blocks__numeric__bins=8)
    with pytest.raises(ValueError, match=r"first: user_blocks=\[\('town', Block\(\), columns\)\]"):
        EasyTensorTwoTower().set_params(user_blocks__town__width=8)
