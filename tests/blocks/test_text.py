import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.feature_extraction.text import TfidfVectorizer
from tokenizers.decoders import ByteLevel

from sk_easytensor.blocks.text import TextBlock
from sk_easytensor.blocks.text_encoders import TransformerModule, load_tokenizer
from sk_easytensor.data import ngrams as _ngrams
from sk_easytensor.data.ngrams import Words, distinct_texts, project
from sk_easytensor.data.summaries import merge_all
from sk_easytensor.tensors import TensorFrame

REVIEWS = [
    "I love this dress, love it!",
    "Not bad. NOT bad at all",
    None,
    "too small; returned it",
    "",
    "love the colour \U0001f60d\U0001f60d",
    "it runs small, not true to size",
]
TEXTS = st.lists(
    st.none() | st.text("ab é\U0001f600'.,\n日", max_size=12) | st.text(max_size=5),
    min_size=1,
    max_size=6,
)
VARIANTS = {
    "ngrams": {"min_frequency": 1},
    "trigrams": {"min_frequency": 2, "ngram_range": (2, 3), "max_features": 7},
    "hashed": {"min_frequency": 1, "hash_buckets": 13},
    "transformer": {"encoder": "transformer", "width": 8, "heads": 2, "max_length": 5},
}


@pytest.fixture(params=VARIANTS)
def variant(request):
    return TextBlock(**VARIANTS[request.param])


def table_of(*columns):
    names = ["title", "review"][: len(columns)]
    return pa.table({n: pa.array(c, pa.string()) for n, c in zip(names, columns, strict=True)})


def words_of(text):
    words = Words(pa.array([text], pa.large_string()))
    return words.distinct.take(pa.array(words.codes)).to_pylist()


def lists_of(ragged):
    return [part.tolist() for part in torch.split(ragged.values, ragged.lengths.tolist())]


def frame_of(block, table):
    return TensorFrame({"text": block.transform(table)}, table.num_rows)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World!", ["hello", ",", "world", "!"]),
        ("don't can\u2019t", ["dont", "cant"]),
        ("ÉTÉ Straße ﬁne ①", ["été", "straße", "fine", "1"]),
        ("cafe\u0301", ["café"]),
        ("\U0001f600\U0001f600 ok\u2764\ufe0f", ["\U0001f600", "\U0001f600", "ok", "\u2764"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("東京 tower", ["東", "京", "tower"]),
        ("a\u00a0b\u2003c\td\r\n", ["a", "b", "c", "d"]),
        ("4.5 stars", ["4", ".", "5", "stars"]),
        (" \n ", []),
        ("", []),
        ("x" * 100 + " " + "x" * 99, ["x" * 64] * 2),
        ("nul\0 byte", ["nul", "\0", "byte"]),
    ],
)
def test_words(text, expected):
    assert words_of(text) == expected


@given(left=st.text(max_size=20), right=st.text(max_size=20))
def test_words_of_each_text_alone(left, right):
    words = Words(pa.array([left, right], pa.large_string()))
    flat = words.distinct.take(pa.array(words.codes)).to_pylist()
    split = int((words.owner == 0).sum())
    assert (flat[:split], flat[split:]) == (words_of(left), words_of(right))


def test_weights_are_those_of_scikit_learn():
    texts = ["a b a c", "b b b", "c d a b", "d", "a b"] * 3
    peer = TfidfVectorizer(ngram_range=(1, 3), sublinear_tf=True, token_pattern=r"\w+", min_df=4)
    expected = peer.fit_transform(texts).toarray()
    block = TextBlock(ngram_range=(1, 3), min_frequency=4).fit(table_of(texts))
    encoding = block.transform(table_of(texts))
    names = block.ngrams_[0].to_pylist()
    assert sorted(names) == sorted(peer.vocabulary_)
    columns = [peer.vocabulary_[name] for name in names]
    found = np.zeros_like(expected)
    ids, weights = lists_of(encoding["ids"]), lists_of(encoding["weights"])
    for row, (places, values) in enumerate(zip(ids, weights, strict=True)):
        found[row, np.array(columns)[places]] = values
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_document_frequency_counts_rows_once():
    block = TextBlock(min_frequency=2).fit(table_of(["yes yes yes", "no yes", "no", "once"]))
    assert block.ngrams_[0].to_pylist() == ["no", "yes"]
    np.testing.assert_allclose(block.idf_[0], np.log(5 / 3) + 1)


def test_limit_keeps_the_most_frequent_and_breaks_ties_by_value():
    texts = table_of(["b a", "a b", "c b", "b"])
    block = TextBlock(min_frequency=1, max_features=3).fit(texts)
    assert block.ngrams_[0].to_pylist() == ["b", "a", "a b"]
    # "c" and "b a" fell to the limit, "a b" is found though only through its words.
    assert lists_of(block.transform(table_of(["c b a b"]))["ids"]) == [[0, 1, 2]]


@given(left=TEXTS, right=TEXTS, seed=st.randoms())
@settings(max_examples=15)
@example(left=[None], right=[""], seed=None)
@pytest.mark.parametrize("name", VARIANTS)
def test_merging_parts_equals_one_pass(name, left, right, seed, assert_same_fit):
    table = table_of([*left, *right], [*right, *left])
    block = TextBlock(**VARIANTS[name])
    whole = clone(block).fit(table)
    parts = [table.slice(0, len(left)), table.slice(len(left)), table.slice(0, 0)]
    if seed is not None:
        seed.shuffle(parts)
    block.fit_columns(table).finish(merge_all([block.summarize(part) for part in parts]))
    assert_same_fit(block, whole)


@given(texts=TEXTS, unseen=TEXTS)
@settings(max_examples=8)
@pytest.mark.parametrize("name", VARIANTS)
def test_rows_are_encoded_alone(name, texts, unseen):
    block = TextBlock(**VARIANTS[name]).fit(table_of(texts, texts[::-1]))
    rows = [*texts, *unseen]
    frame = frame_of(block, table_of(rows, rows[::-1]))
    alone = [
        frame_of(block, table_of([one], [other]))
        for one, other in zip(rows, rows[::-1], strict=True)
    ]
    assert TensorFrame.concatenate(alone).equals(frame)


def test_slices_do_not_matter(variant, monkeypatch, assert_same_fit):
    table = table_of(REVIEWS * 3, REVIEWS[::-1] * 3)
    whole = clone(variant).fit(table)
    monkeypatch.setattr(_ngrams, "SLICE_BYTES", 40)
    assert len(list(distinct_texts(table["review"].cast(pa.large_string())))) > 5
    assert_same_fit(variant.fit(table), whole)
    frame = frame_of(variant, table)
    monkeypatch.undo()
    assert frame.equals(frame_of(whole, table))


def test_many_lookups_use_a_hash_table(monkeypatch):
    table = table_of(REVIEWS)
    block = TextBlock(min_frequency=1, ngram_range=(1, 3)).fit(table)
    frame = frame_of(block, table)
    monkeypatch.setattr(_ngrams, "MANY_KEYS", 0)
    assert frame_of(block, table).equals(frame)


def test_missing_and_empty_texts_are_empty_lists(variant):
    texts = [text or "" for text in REVIEWS]
    block = variant.fit(table_of(texts * 2))
    encoding = block.transform(table_of([None, "", " \n", " ".join(texts)]))
    for entry in encoding.values():
        assert (entry.lengths == 0).tolist() == [True, True, True, False]
    module = block.make_module().eval()
    output = module(**encoding)
    assert torch.isfinite(output).all()
    torch.testing.assert_close(output[0], output[1])
    assert not torch.equal(output[0], output[3])


def test_long_text_and_emoji(variant):
    long = ("great \U0001f600 " * 100_000)[: 2**20]
    word = "z" * 2**20
    table = table_of([long, word, "\U0001f600", "great"])
    block = variant.fit(table)
    assert len(pickle.dumps(block)) < 500_000
    encoding = block.transform(table)
    assert torch.isfinite(block.make_module()(**encoding)).all()
    assert np.isfinite(block.flatten(encoding)).all()


def test_columns_share_no_ids():
    table = table_of(["good dress"] * 3, ["good fit"] * 3)
    encoding = TextBlock().fit(table).transform(table.slice(0, 1))
    assert lists_of(encoding["ids"]) == [[0, 1, 2], [3, 4, 5]]
    assert encoding["ids"].n_columns == encoding["weights"].n_columns == 2


def test_dictionary_and_plain_columns_are_the_same(variant, assert_same_fit):
    texts = [*REVIEWS * 2, *REVIEWS[:3]]
    plain = variant.fit(table_of(texts))
    frame = pd.DataFrame({"title": pd.Categorical(texts)})
    other = clone(variant).fit(frame)
    assert_same_fit(plain, other)
    assert TensorFrame({"text": other.transform(frame)}).equals(frame_of(plain, table_of(texts)))


def test_hashing_keeps_no_vocabulary():
    table = table_of(REVIEWS)
    block = TextBlock(hash_buckets=50, min_frequency=1).fit(table)
    assert block.ngrams_ == []
    ids = block.transform(table)["ids"]
    exact = TextBlock(min_frequency=1).fit(table).transform(table)["ids"]
    assert int(ids.values.max()) < 50
    assert (ids.lengths <= exact.lengths).all()
    assert ids.lengths.sum() > 0.7 * exact.lengths.sum()

    rare = TextBlock(hash_buckets=10**6).fit(table)
    assert int((rare.idf_[0] > 0).sum()) == len(TextBlock().fit(table).ngrams_[0]) > 0


def test_unseen_ngrams_are_left_out():
    block = TextBlock(min_frequency=1).fit(table_of(["a b", "c d"]))
    assert block.transform(table_of(["x", "a d", "b x a"]))["ids"].lengths.tolist() == [0, 2, 2]


def test_module_sums_weighted_vectors():
    table = table_of(REVIEWS, REVIEWS[::-1])
    block = TextBlock(min_frequency=1, width=4).fit(table)
    encoding = block.transform(table)
    module = block.make_module().eval()
    assert module.out_features == 8
    counts = torch.from_numpy(np.concatenate(block.counts_))
    assert counts.max() == 3
    vectors = module.table.weight * torch.sqrt(counts / (counts + 200))[:, None]
    lists = [lists_of(encoding[name]) for name in ("ids", "weights")]
    for table in (vectors, module.table.weight):
        output = module(**encoding).reshape(-1, 4)
        for row, (ids, weights) in enumerate(zip(*lists, strict=True)):
            expected = (torch.tensor(weights) @ table[ids]).float()
            torch.testing.assert_close(output[row], expected)
        # Towers and embedders do not shrink the vectors of rare n-grams.
        module.configure_for_embedding()


def test_sub_words_spell_the_words():
    table = table_of(REVIEWS * 3)
    block = TextBlock("transformer", vocabulary_size=270).fit(table)
    tokenizer = load_tokenizer(block.tokenizer_)
    assert tokenizer.get_vocab_size() == 270
    text = "unheard-of wörds \U0001f984"
    (pieces,) = lists_of(block.transform(table_of([text]))["tokens"])
    spelled = "".join(tokenizer.id_to_token(piece) for piece in pieces)
    assert ByteLevel().decode([spelled]) == " unheard - of wörds \U0001f984"


def test_sub_words_of_a_text_are_cut():
    table = table_of(REVIEWS * 3)
    whole = TextBlock("transformer", max_length=1000).fit(table).transform(table)["tokens"]
    short = TextBlock("transformer", max_length=4).fit(table).transform(table)["tokens"]
    assert lists_of(short) == [pieces[:4] for pieces in lists_of(whole)]


def test_tokenizer_breaks_ties_the_same_each_time():
    # Hash tables with random seeds stand behind the training.
    texts = table_of([f"w{i * i % 97} v{i % 13}x{i % 7}" for i in range(300)])
    blocks = [TextBlock("transformer", vocabulary_size=400).fit(texts) for _ in range(4)]
    assert len({block.tokenizer_ for block in blocks}) == 1


def test_transformer_ignores_padding_and_reads_order():
    table = table_of(["small not true", "true not small"], ["one", "two words here"])
    block = TextBlock("transformer", width=16).fit(table)
    torch.manual_seed(0)
    module = block.make_module().eval()
    output = module(**block.transform(table))
    alone = [module(**block.transform(table.slice(row, 1))) for row in range(2)]
    torch.testing.assert_close(output, torch.cat(alone))
    assert not torch.allclose(output[0, :16], output[1, :16], atol=1e-3)


def test_transformer_layers_learn():
    torch.manual_seed(0)
    texts = [f"{a} {b}" for a in "abcdef" for b in "abcdef"] * 4
    # Which word comes first decides, so that a bag of words cannot tell.
    target = torch.tensor([float(text[0] < text[2]) for text in texts])
    block = TextBlock("transformer", width=16, heads=2, layers=1, dropout=0).fit(table_of(texts))
    encoding = block.transform(table_of(texts))
    net = block.make_module()
    head = torch.nn.Linear(net.out_features, 1)
    optimizer = torch.optim.AdamW([*net.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(120):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            head(net(**encoding))[:, 0], target
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    assert all(weight.grad is not None for weight in net.parameters())


def test_modules_run_on_an_empty_batch():
    module = TransformerModule(10, 1, max_length=4, width=8, layers=1, heads=2)
    block = TextBlock("transformer", width=8).fit(table_of(REVIEWS))
    assert module(block.transform(table_of(["love"]))["tokens"].take(slice(0, 0))).shape == (0, 8)


@pytest.mark.parametrize("encoder", ["ngrams", "transformer"])
def test_flatten_keeps_distances(encoder):
    rng = np.random.default_rng(0)
    words = np.array([f"w{index}" for index in range(300)])
    texts = [" ".join(rng.choice(words, 20)) for _ in range(200)]
    table = table_of([*texts, *texts], texts + texts[::-1])
    block = TextBlock(encoder, min_frequency=1).fit(table)
    flat = block.flatten(block.transform(table))
    names = block.get_feature_names_out()
    assert flat.shape == (400, 128) == (len(table), len(names))
    assert flat.dtype == np.float32
    assert [names[0], names[63], names[64]] == ["title_0", "title_63", "review_0"]
    np.testing.assert_array_equal(flat[:200, :64], flat[200:, :64])
    np.testing.assert_array_equal(flat[:200], block.flatten(block.transform(table.slice(0, 200))))


def test_projection_keeps_inner_products():
    rng = np.random.default_rng(0)
    dense = rng.random((60, 500)) * (rng.random((60, 500)) < 0.1)
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    row, ids = np.nonzero(dense)
    offsets = np.searchsorted(row, np.arange(61))
    found = project(offsets, ids, dense[row, ids], 1024)
    np.testing.assert_allclose(found @ found.T, dense @ dense.T, atol=0.25)


def test_projection_never_changes():
    found = project(np.array([0, 2, 2]), np.array([0, 5]), np.array([1.0, 2.0]), 4)
    assert found.tolist() == [[1.0, 0.5, 0.5, -1.0], [0.0, 0.0, 0.0, 0.0]]


NAMES = ["Los Angeles International Airport", "John F Kennedy Airport", "Oslo Airport Gardermoen"]


@pytest.mark.parametrize(
    ("values", "is_text"),
    [
        ([f"this is review number {i}, and I liked it" for i in range(300)], True),
        (["Great dress", "Not for me at all", "Runs a bit small", "Love love love it"], True),
        ([f"{name} {i % 10}" for i in range(3000) for name in NAMES], False),
        ([f"item {i % 4000} soft cotton" for i in range(20_000)], False),
        ([f"id-{i}" for i in range(300)], False),
        ([f"https://example.com/a/path/of/words/{i}" for i in range(300)], False),
        ([f"2024-01-{i % 28 + 1:02d} 10:{i % 60:02d}:00" for i in range(300)], False),
        ([f"{i} {i + 1} {i + 2} {i + 3}" for i in range(300)], False),
        (["I neither agree nor disagree with the statement above at all"] * 50 + ["No"], False),
        ([f"よい商品でした。また買います{i}" for i in range(300)], True),
        ([f"{c} {i}" for i, c in enumerate("abcd" * 50)], False),
        ([None, None], False),
        (["", None], False),
        ([], False),
    ],
)
def test_detects(values, is_text):
    for kind in (pa.string(), pa.large_string()):
        assert TextBlock.detects(pa.chunked_array([pa.array(values, kind)])) is is_text


def test_detects_ignores_missing_values_and_other_types():
    texts = [f"the review of customer number {i}" for i in range(50)]
    mostly_missing = pa.chunked_array([pa.array([*texts, *[None] * 2000])])
    assert TextBlock.detects(mostly_missing)
    assert not TextBlock.detects(
        pa.chunked_array([mostly_missing.combine_chunks()]).dictionary_encode()
    )
    assert not TextBlock.detects(pa.chunked_array([[1, 2]]))


def test_clone_and_pickle(variant):
    assert clone(variant).get_params() == variant.get_params()
    table = table_of(REVIEWS)
    block = pickle.loads(pickle.dumps(variant.fit(table)))
    assert frame_of(block, table).equals(frame_of(variant, table))
    state = variant.make_module().state_dict()
    block.make_module().load_state_dict(state)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"encoder": "lstm"}, "encoder must be one of"),
        ({"ngram_range": 2}, "ngram_range must be a pair"),
        ({"ngram_range": (2, 1)}, r"ngram_range\[1\] must be an integer at least 2"),
        ({"ngram_range": (0, 1)}, r"ngram_range\[0\]"),
        ({"min_frequency": 0}, "min_frequency"),
        ({"max_features": 1.5}, "max_features"),
        ({"hash_buckets": 0}, "hash_buckets"),
        ({"width": 0}, "width"),
        ({"dropout": -0.1}, "dropout"),
        ({"vocabulary_size": 10}, "vocabulary_size"),
        ({"max_length": 0}, "max_length"),
        ({"layers": 0}, "layers"),
        ({"encoder": "transformer", "width": 10, "heads": 4}, "multiple of heads"),
    ],
)
def test_wrong_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        TextBlock(**parameters).fit(table_of(["a"]))


def test_wrong_type_is_named():
    with pytest.raises(TypeError, match="'n' of type int64 cannot be read by TextBlock"):
        TextBlock().fit({"n": [1, 2]})
