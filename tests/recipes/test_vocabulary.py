"""The vocabulary: which ids words get, what counts as a word, and vectors from files as people have them."""

import random
from pathlib import Path

import pytest
import torch

from recipes.data import vocabulary

TEXTS = ["The red ball, the RED cube!", "a ball don't roll", "Café: the ball"]


def test_ids_are_by_count_then_alphabet_whatever_the_order() -> None:
    expected = ["[PAD]", "[UNK]", "ball", "the", "red", "a", "café", "cube", "don't", "roll"]
    for seed in range(5):
        texts = random.Random(seed).sample(TEXTS, len(TEXTS))
        vocab = vocabulary.build(texts).get_vocab()
        assert sorted(vocab, key=vocab.get) == expected


def test_size_counts_the_special_entries() -> None:
    assert vocabulary.build(TEXTS, size=4).get_vocab_size() == 4
    assert vocabulary.encode(vocabulary.build(TEXTS, size=4), "ball the red", 3).tolist() == [2, 3, 1]


def test_encode_pads_and_cuts_and_knows_unknown_words() -> None:
    tok = vocabulary.build(TEXTS)
    ids = vocabulary.encode(tok, "The GREEN ball...", 5)
    assert ids.dtype == "int64" and ids.tolist() == [3, 1, 2, 0, 0]
    assert vocabulary.encode(tok, "the ball the ball", 3).tolist() == [3, 2, 3]


@pytest.mark.parametrize("text", ["", "  ", "?!... -- <>", "\n"])
def test_text_without_a_word_is_no_text(text: str) -> None:
    assert not vocabulary.encode(vocabulary.build(TEXTS), text, 4).any()


def test_names_of_special_entries_in_a_caption_are_words() -> None:
    tok = vocabulary.build(["pad pad", "unk"])
    assert vocabulary.encode(tok, "[PAD] [UNK] pad", 3).tolist() == [2, 3, 2]


def test_saved_and_loaded(tmp_path: Path) -> None:
    tok = vocabulary.build(TEXTS)
    vocabulary.save(tok, tmp_path / "vocabulary.json")
    again = vocabulary.load(tmp_path / "vocabulary.json")
    assert again.get_vocab() == tok.get_vocab()
    assert (vocabulary.encode(again, "the red DON'T x", 6) == vocabulary.encode(tok, "the red DON'T x", 6)).all()


def test_load_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no vocabulary"):
        vocabulary.load(tmp_path / "none.json")
    (tmp_path / "odd.json").write_text("{}")
    with pytest.raises(ValueError, match=r"odd\.json: not a vocabulary"):
        vocabulary.load(tmp_path / "odd.json")
    text = vocabulary.build(TEXTS).to_str().replace('"[PAD]":0', '"[PAD]":9')
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(ValueError, match=r"to be 0 and 1; found \[9, 1\]"):
        vocabulary.load(tmp_path / "odd.json")


@pytest.mark.parametrize("header", ["", "4 3\n"])
def test_vectors(tmp_path: Path, header: str, caplog: pytest.LogCaptureFixture) -> None:
    tok = vocabulary.build(TEXTS)
    path = tmp_path / "vectors.txt"
    path.write_text(header + "ball 1 2 3\nnot here 0 0 0\nred -1 0.5 1e-2 \nball 9 9 9\n")
    with caplog.at_level("INFO"):
        vectors = vocabulary.load_vectors(path, tok)
    assert vectors.shape == (10, 3) and vectors.dtype == torch.float32
    assert vectors[tok.token_to_id("ball")].tolist() == [1, 2, 3]
    assert vectors[tok.token_to_id("red")].tolist() == pytest.approx([-1, 0.5, 0.01])
    assert not vectors[0].any() and vectors[1:].any(1).all()
    assert torch.equal(vectors, vocabulary.load_vectors(path, tok, dim=3))  # the noise is seeded
    assert "vectors for 2 words, 25.0%" in caplog.text


def test_words_without_a_vector_are_like_those_with_one(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    words = [f"w{i}" for i in range(200)]
    tok = vocabulary.build(words)
    rows = (0.3 * torch.randn(100, 50, generator=generator) + 0.1).tolist()
    path = tmp_path / "vectors.txt"
    path.write_text("".join(f"{w} {' '.join(map(str, row))}\n" for w, row in zip(words, rows, strict=False)))
    vectors = vocabulary.load_vectors(path, tok)
    missing = vectors[[tok.token_to_id(w) for w in words[100:]]]
    assert missing.mean().item() == pytest.approx(0.1, abs=0.02)
    assert missing.std().item() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("ball 1 2 3\nred 1 2\n", r"vectors\.txt, line 2: expected a word and 3 numbers"),
        ("ball 1 2 3\nred 1 two 3\n", r"vectors\.txt, line 2: expected 3 numbers after 'red'"),
        ("ball 1 2 nan\n", r"vectors\.txt, line 1: .* not finite"),
        ("other 1 2 3\n", "none of the 8 words"),
        ("", "none of the 8 words"),
    ],
)
def test_malformed_vectors(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        vocabulary.load_vectors(path, vocabulary.build(TEXTS))
