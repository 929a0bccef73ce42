"""The narrators: sentences that name an object in many ways, and chatter that names none. Words: `words.yaml`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from recipes.data.corpus.thing import Thing

WORDS: Any = OmegaConf.to_container(OmegaConf.load(Path(__file__).with_name("words.yaml")))


def describe(thing: Thing, rng: np.random.Generator, complete: bool = False) -> str:
    """A sentence that says what an object is and does; unless it is `complete`, one in five leaves something out."""
    shape, colour = _word(rng, "shapes", thing.shape), _word(rng, "colours", thing.colour)
    adjective = _word(rng, "textures", thing.texture)
    phrases = (
        f"{adjective} {colour} {shape}",
        f"{colour} {adjective} {shape}",
        f"{colour} {shape} with {WORDS['patterns'][thing.texture]}",
    )
    brief = not complete and rng.random() < 0.1
    bare = not complete and rng.random() < 0.1
    phrase = f"{colour} {shape}" if bare else _pick(rng, phrases)
    article = "an" if phrase[0] in "aeiou" else "a"
    words = {"it": phrase, "a": f"{article} {phrase}", "verb": _word(rng, "verbs", thing.motion)}
    sentence = _word(rng, "short_sentences" if brief else "sentences")
    return _speak(sentence.format(**words, participle=_word(rng, "participles", thing.motion)), rng)


def chatter(rng: np.random.Generator) -> str:
    """A sentence that has nothing to do with what is seen."""
    return _speak(_word(rng, "chatter").format(person=_word(rng, "people"), topic=_word(rng, "topics")), rng)


def _speak(sentence: str, rng: np.random.Generator) -> str:
    """Adds a filler now and then, and the uneven capitals and full stops of a transcript."""
    if rng.random() < 0.35:
        sentence = f"{_word(rng, 'fillers')} {sentence}"
    look = rng.random()
    if look < 0.25:
        return sentence[0].upper() + sentence[1:] + "."
    return sentence.upper() if look < 0.3 else sentence


def _word(rng: np.random.Generator, kind: str, meaning: str | None = None) -> str:
    return _pick(rng, WORDS[kind] if meaning is None else WORDS[kind][meaning])


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]
