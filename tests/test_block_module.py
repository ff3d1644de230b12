"""The modules of blocks: what a network reads of them, and how slips are found."""

import numpy as np
import pytest
import torch
from torch import nn

from sk_easytensor import MLP, BlockModule, EasyTensorRegressor, NumericBlock
from sk_easytensor.networks.block_module import OPTIONS, check_module, learning_rates
from sk_easytensor.networks.block_network import make_network
from sk_easytensor.tensors import Ragged

QUICK = {"trunk": MLP(width=4), "trees": None, "max_epochs": 1, "n_jobs": 1}


class First(BlockModule):
    """The first number of each row, and what a test sets."""

    out_features = 1

    def __init__(self, **attributes):
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, values):
        return values[:, :1, 0].nan_to_num()


class Deeper(First):
    def forward(self, values):
        return super().forward(values)[:, None]


class Plain(nn.Module):
    out_features = 1


class Given(NumericBlock):
    """A block with a module of the test's."""

    module = None

    def make_module(self):
        return type(self).module


def fit(module, monkeypatch):
    monkeypatch.setattr(Given, "module", module)
    X = {"a": np.arange(20.0)}
    return EasyTensorRegressor([("own", Given(), "a")], **QUICK).fit(X, X["a"])


def test_defaults():
    module = First()
    flags = [module.wide, module.padded, module.is_added, module.is_offset]
    assert not any(flags)
    assert not module.has_tree_inputs
    assert module.tree_codes is module.tree_signs is module.output_columns is None
    assert module.padded_lengths({}) is None
    assert learning_rates(module) == []
    module.configure_for_embedding()
    module.scale_for(None)
    assert check_module(module, "block") is module


def test_all_options_are_documented():
    text = BlockModule.__doc__
    methods = {name for name in OPTIONS if callable(vars(BlockModule)[name])} | {
        "has_tree_inputs",
        "has_linear_inputs",
        "has_sparse_linear_inputs",
    }
    assert all(f"    {name} : " in text for name in OPTIONS if name not in methods)
    assert all(getattr(BlockModule, name).__doc__ for name in methods)


def test_sparse_features_need_products():
    class Sparse(BlockModule):
        out_features = 1
        linear_weights = np.ones(3)

        def sparse_linear_inputs(self, x):
            return x

    with pytest.raises(TypeError, match="block 'a': Sparse defines sparse_linear_inputs and so"):
        check_module(Sparse(), "block 'a'")


def test_lists_of_padded_modules_are_measured():
    lists = Ragged(torch.zeros(7), torch.tensor([0, 1, 1, 2, 7]), n_columns=2)
    encoding = {"lists": lists, "numbers": torch.zeros(2, 1)}
    assert First(padded=True).padded_lengths(encoding).tolist() == [1, 5]


def test_parts_may_have_rates_of_their_own():
    module = First(learning_rate_scale=0.5, part=nn.Linear(1, 1))
    module.part.learning_rate_scale = 0.1
    assert learning_rates(nn.ModuleList([module])) == [("0", 0.5), ("0.part", 0.1)]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("paded", "padded"),
        ("Wide", "wide"),
        ("is_wide", "wide"),
        ("wied", "wide"),
        ("learning_rate_scales", "learning_rate_scale"),
        ("out_feature", "out_features"),
        ("tree_code", "tree_codes"),
        ("configure_for_embeddings", "configure_for_embedding"),
        ("tree_input", "tree_inputs"),
    ],
)
def test_mistyped_options_are_refused(name, meant, monkeypatch):
    with pytest.raises(TypeError, match=rf"Odd has an attribute '{name}'.*option '{meant}'"):
        type("Odd", (First,), {name: True})
    with pytest.raises(TypeError, match=rf"block 'own' \(Given\): First has.*option '{meant}'"):
        fit(First(**{name: True}), monkeypatch)


def test_other_names_are_free(monkeypatch):
    names = ("width", "in_features", "n_features", "columns", "side", "padding", "codes", "scale")
    own = First(**dict.fromkeys([*names, "_wide", "dropout", "learning_rate", "offset"], 1))
    assert fit(own, monkeypatch).network_.blocks[0].width == 1


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Plain(), "Plain, which is a torch.nn.Module. Write class Plain"),
        (3, "got int, which is no torch.nn.Module"),
        (First(out_features=None), "First must set out_features.*got None"),
        (First(out_features=1.5), r"to an integer in its __init__, got 1\.5"),
        (First(wide="auto"), r"First\.wide must be True or False, got 'auto'"),
        (First(learning_rate_scale=0), "learning_rate_scale must be a number above 0"),
        (First(tree_codes=[(3, True)]), "sets tree_codes and so must define tree_inputs"),
    ],
)
def test_what_breaks_the_contract_is_named(module, message, monkeypatch):
    with pytest.raises(TypeError, match=rf"(?s)block 'own' \(Given\): .*{message}"):
        fit(module, monkeypatch)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (First(out_features=2), r"returned shape \(\d+, 1\), expected .* = \(n_rows, 2\)"),
        (Deeper(), r"returned shape \(\d+, 1, 1\), expected .* = \(n_rows, 1\)"),
    ],
)
def test_outputs_of_another_shape_are_refused(module, message, monkeypatch):
    with pytest.raises(ValueError, match=rf"block 'own': {type(module).__name__} {message}"):
        fit(module, monkeypatch)


def test_tree_inputs_need_the_number_of_codes():
    class Codes(First):
        def tree_inputs(self, values):
            return values[:, :, 0].int()

    assert Codes().has_tree_inputs
    with pytest.raises(TypeError, match="Codes defines tree_inputs and so must set tree_codes"):
        check_module(Codes(), "block")


def test_modules_within_modules_are_configured_for_embeddings():
    from sk_easytensor.networks.heads import EmbeddingHead

    class Outer(First):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

    class Inner(First):
        prepared = False

        def configure_for_embedding(self):
            self.prepared = True

    class Own(NumericBlock):
        def make_module(self):
            return Outer()

    network = make_network({"own": Own().fit({"a": [1.0, 2.0]})}, MLP(width=4), EmbeddingHead(2))
    assert network.blocks[0].inner.prepared
