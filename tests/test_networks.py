"""Trunks, dropout and the way of wide blocks past the trunk."""

import numpy as np
import pytest
import torch

from sk_easytensor import MLP, EasyTensorClassifier, NumericBlock, TabM, TextBlock
from sk_easytensor.networks.heads import BinaryHead, MultilabelHead
from sk_easytensor.networks.trunks import FastDropout


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_tabm_is_a_shared_mlp_on_scaled_inputs(layers):
    torch.manual_seed(0)
    module = TabM(members=3, layers=layers, width=7).make_module(5).eval()
    torch.nn.init.normal_(module.scaling)
    features = torch.randn(11, 5, requires_grad=True)
    expected = module.shared(features[:, None, :] * module.scaling)
    output = module(features)
    assert output.shape == (11, 3, module.out_features)
    torch.testing.assert_close(output, expected)
    parameters = [features, *module.parameters()]
    gradients = [torch.autograd.grad(out.square().sum(), parameters) for out in (output, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_tabm_starts_with_unlike_members():
    torch.manual_seed(0)
    module = TabM(members=4, width=8).make_module(6)
    assert module.scaling.abs().eq(1).all()
    assert len(module.scaling.unique(dim=0)) == 4


def test_members_of_two_classes_are_averaged_as_probabilities():
    log_odds = torch.tensor([[0.3, -1.0, 2.0], [-30.0, -31.0, -29.0], [30.0, 31.0, 29.0]]).double()
    combined = BinaryHead().average_members(log_odds.float()[..., None])
    mean, rest = torch.sigmoid(log_odds).mean(1), torch.sigmoid(-log_odds).mean(1)
    torch.testing.assert_close(combined[:, 0, 0], torch.log(mean / rest).float())
    certain = torch.tensor([[[900.0], [900.0]], [[-900.0], [-900.0]]])
    torch.testing.assert_close(BinaryHead().average_members(certain), certain[:, :1])


@pytest.mark.parametrize("head", [BinaryHead(), MultilabelHead(1)])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_probabilities_do_not_depend_on_how_many_there_are(head, kind):
    torch.manual_seed(0)
    log_odds = torch.cat([5 * torch.randn(999, 1, dtype=kind), torch.tensor([[-1e4], [1e4]])])
    together = head.predict(log_odds)
    assert torch.equal(torch.cat([head.predict(each[None]) for each in log_odds]), together)
    torch.testing.assert_close(together[:, -1], torch.sigmoid(log_odds[:, 0]))


@pytest.mark.parametrize("probability", [0.1, 0.25, 0.9])
def test_dropout_keeps_the_mean(probability):
    torch.manual_seed(0)
    dropout = FastDropout(probability).train()
    outputs = torch.stack([dropout(torch.ones(50, 8, 20)) for _ in range(100)])
    dropped = round(probability * 256) / 256
    torch.testing.assert_close(outputs.unique(), torch.tensor([0.0, 1 / (1 - dropped)]))
    assert float((outputs == 0).float().mean()) == pytest.approx(dropped, abs=0.01)
    assert float(outputs.mean()) == pytest.approx(1, abs=0.03)
    assert (outputs[0] != outputs[1]).any()
    # No unit is dropped more often than others.
    rate = (outputs == 0).float().mean((0, 1, 2))
    assert float((rate - dropped).abs().max()) < 0.05


def test_dropout_is_idle_when_it_should_be():
    features = torch.randn(5, 4)
    assert torch.equal(FastDropout(0.5).eval()(features), features)
    assert torch.equal(FastDropout(0.0).train()(features), features)
    dropout = FastDropout(0.5).train()
    gradient = torch.autograd.functional.jacobian(lambda x: dropout(x).sum(), features)
    assert set(gradient.unique().tolist()) <= {0.0, 2.0}


# ---------------------------------------------------------------------- wide blocks


def reviews(n_rows):
    rng = np.random.default_rng(0)
    y = np.tile([0, 1], n_rows // 2)
    words = np.array(["dress", "colour", "size", "shop", "fabric", "sleeve"])
    mood = np.array(["awful", "lovely"])
    return [f"{' '.join(rng.choice(words, 5))} {mood[k]} {rng.choice(words)}" for k in y], y


@pytest.mark.parametrize("trunk", [MLP(width=16), MLP(layers=0), TabM(members=2, width=16)])
@pytest.mark.parametrize("others", [False, True])
def test_texts_go_past_the_trunk(trunk, others):
    texts, y = reviews(120)
    blocks, X = [("text", TextBlock(), "text")], {"text": texts}
    if others:
        X["amount"] = np.linspace(0, 1, 120)
        blocks.append(("amount", NumericBlock(), "amount"))
    model = EasyTensorClassifier(
        blocks,
        trunk=trunk,
        max_epochs=15,
        n_folds=None,
        learning_rate=0.02,
        batch_size=32,
        random_state=0,
    ).fit(X, y)
    assert model.score(X, y) > 0.95
    new = {name: [values[1], values[0], None] for name, values in X.items()}
    assert model.predict(new)[:2].tolist() == [1, 0]
    assert np.isfinite(model.predict_proba(new)).all()
    encoding = model._encoder.encode(X)["text"]
    with torch.no_grad():
        wide = model.network_.blocks[0].eval()(**encoding).numpy()
    found = model.transform(X)
    assert found.shape == (120, model.network_.trunk.out_features + wide.shape[1])
    np.testing.assert_allclose(found[:, -wide.shape[1] :], wide, rtol=1e-5, atol=1e-7)
    assert len(model.get_feature_names_out()) == found.shape[1]
