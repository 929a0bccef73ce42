"""A vocabulary of words: built from a corpus, saved with a checkpoint; word vectors from a file."""

import logging
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import NFKC, Lowercase, Sequence
from tokenizers.pre_tokenizers import Split
from tokenizers.trainers import WordLevelTrainer

from recipes.files import regular

PAD, UNK = "[PAD]", "[UNK]"  # ids 0 and 1
UNKNOWN = 1
WORD = r"\w+(?:['’]\w+)*"  # letters and digits, with apostrophes inside: don't


def build(texts: Iterable[str], size: int = 2**16) -> Tokenizer:
    """Builds a vocabulary of at most `size` ids: 0 for padding, 1 for unknown words, then words by falling count."""
    counter = _tokenizer({UNK: 0})
    trainer = WordLevelTrainer(vocab_size=size, special_tokens=[PAD, UNK], show_progress=False)
    counter.train_from_iterator(texts, trainer)
    # Without the trainer's special tokens, which it would find in texts: "[PAD]" in a caption is the word pad.
    return _tokenizer(counter.get_vocab())


def of_words(words: Iterable[str]) -> Tokenizer:
    """The vocabulary whose ids are 0 for padding, 1 for unknown words, then these words in their order."""
    return _tokenizer({word: number for number, word in enumerate([PAD, UNK, *words])})


def save(tok: Tokenizer, path: str | Path) -> None:
    """Writes a vocabulary as JSON, in the format of `tokenizers`."""
    tok.save(str(path))


def load(path: str | Path) -> Tokenizer:
    """Reads a vocabulary that `save` wrote; a FileNotFoundError or ValueError if that is none."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no vocabulary here")
    try:
        tok = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path}: not a vocabulary: {error}") from error
    special = [tok.token_to_id(PAD), tok.token_to_id(UNK)]
    if special != [0, 1]:
        raise ValueError(f"{path}: expected the ids of {PAD} and {UNK} to be 0 and 1; found {special}")
    return tok


def encode(tok: Tokenizer, text: str, words: int) -> np.ndarray:
    """The word ids of a caption, padded or cut: int64 (words,); 1 for an unknown word, 0 after the last one."""
    ids = tok.encode(text).ids[:words]
    return np.array(ids + [0] * (words - len(ids)), np.int64)


def load_vectors(path: str | Path, tok: Tokenizer, dim: int | None = None, seed: int = 0) -> torch.Tensor:
    """Reads pre-trained word vectors in the text format of word2vec and GloVe: a word and its numbers on a line.

    A first line may give count and dimension. Words without a vector get normal noise of the mean and deviation of the
    others, padding gets zeros. If a word occurs twice, the first counts.

    Args:
        dim: the dimension that is required; None: any.
    Returns:
        float32 (V, D).
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a malformed line (says which), another dimension than `dim`, or not one word of the vocabulary.
    """
    vocabulary, known = tok.get_vocab(), {}
    with open(regular(path), encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            line, where = line.rstrip(), f"{path}, line {number}"
            if not line or (number == 1 and re.fullmatch(r"\d+ \d+", line)):
                continue
            dim = dim or line.count(" ")
            word, *numbers = line.rsplit(" ", dim)  # from the right: some files have words with a blank in them
            if len(numbers) != dim:
                raise ValueError(f"{where}: expected a word and {dim} numbers; found {line[:60]!r}")
            row = vocabulary.get(word)
            if row is None or row in known:
                continue
            try:
                known[row] = np.array(numbers, np.float32)
            except ValueError as error:
                raise ValueError(f"{where}: expected {dim} numbers after {word!r}: {error}") from error
            if not np.isfinite(known[row]).all():
                raise ValueError(f"{where}: the vector of {word!r} is not finite")
    if not known:
        raise ValueError(f"{path}: has a vector for none of the {len(vocabulary) - 2} words of the vocabulary")
    rows = np.stack(list(known.values()))
    share = len(known) / (len(vocabulary) - 2)
    logging.getLogger(__name__).info("%s: vectors for %d words, %.1f%%", path, len(known), 100 * share)
    vectors = np.random.default_rng(seed).normal(rows.mean(), rows.std(), (len(vocabulary), rows.shape[1]))
    vectors[list(known)], vectors[0] = rows, 0
    return torch.from_numpy(vectors.astype(np.float32))


def _tokenizer(vocab: dict[str, int]) -> Tokenizer:
    tok = Tokenizer(WordLevel(vocab, unk_token=UNK))
    tok.normalizer = Sequence([NFKC(), Lowercase()])
    tok.pre_tokenizer = Split(Regex(WORD), behavior="removed", invert=True)
    return tok
