"""What the narrators say: sentences that name an object in many ways, and chatter that names none."""

import numpy as np

from recipes.data.corpus.thing import Thing

SHAPE_WORDS = {
    "circle": ("circle", "circle", "disc"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "ring": ("ring", "ring", "hoop"),
    "cross": ("cross", "cross", "plus sign"),
    "diamond": ("diamond", "diamond", "rhombus"),
    "heart": ("heart",),
}
COLOUR_WORDS = {
    "red": ("red", "red", "scarlet"),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "cyan": ("cyan", "turquoise"),
    "blue": ("blue",),
    "purple": ("purple", "purple", "violet"),
    "white": ("white",),
}
ADJECTIVES = {
    "plain": ("plain", "plain", "solid"),
    "striped": ("striped", "striped", "stripy"),
    "dotted": ("dotted", "dotted", "spotted"),
    "checked": ("checked", "checked", "checkered"),
}
PATTERNS = {"plain": "no pattern", "striped": "stripes", "dotted": "dots", "checked": "checks"}
VERBS = {
    "drifts": ("drifts along", "drifts slowly", "floats across", "is drifting by"),
    "bounces": ("bounces", "bounces up and down", "is bouncing", "hops up and down"),
    "spins": ("spins", "spins slowly", "is spinning", "turns around and around"),
    "swings": ("swings", "swings from side to side", "is swinging", "sways back and forth"),
    "pulses": ("pulses", "is pulsing", "grows and shrinks", "pulses bigger and smaller"),
}
PARTICIPLES = {
    "drifts": ("drifting along", "drifting slowly", "floating across"),
    "bounces": ("bouncing", "bouncing up and down", "hopping up and down"),
    "spins": ("spinning", "spinning slowly", "turning around and around"),
    "swings": ("swinging", "swinging from side to side", "swaying back and forth"),
    "pulses": ("pulsing", "growing and shrinking", "pulsing bigger and smaller"),
}
FULL = (
    "here {a} {verb}",
    "now look at the {it}, it {verb}",
    "you can see {a} {participle}",
    "this is {a} and it {verb}",
    "next we have {a} {participle}",
    "there is {a}, see how it {verb}",
    "the {it} {verb}",
    "watch the {it}, it {verb} again",
    "i really like this {it} {participle} here",
    "and that is how the {it} {verb}",
    "listen to the {it} while it {verb}",
)
BRIEF = ("this one is {a}", "we start with {a}", "here we have {a}", "so that is the {it}", "just {a} this time")
FILLERS = ("okay so", "um", "alright", "you know", "and", "right", "so", "well", "uh")
CHATTER = (
    "don't forget to subscribe",
    "hit the like button if this helped",
    "so yesterday my {person} called me about the {topic}",
    "let me know in the comments what you think of the {topic}",
    "thanks for watching my channel",
    "i have been meaning to talk about the {topic} for weeks",
    "my {person} says hello by the way",
    "we will come back to this after a short break",
    "this video is sponsored by my {person}",
    "sorry about the noise, that is my {person} with the {topic}",
    "i could not sleep last night because of the {topic}",
    "so before we go on, a word about the {topic}",
    "has anyone of you tried the {topic}",
    "welcome back everybody",
    "you can find the link in the description below",
    "i bought the {topic} for my {person} last summer",
    "it took me three hours to set up the {topic}",
    "my {person} never liked the {topic}",
    "in the last episode we talked about the {topic}",
    "please share this with your {person}",
)
PEOPLE = ("brother", "sister", "neighbour", "mother", "boss", "friend", "uncle", "teacher", "dentist", "cousin")
TOPICS = (
    *("weather", "new camera", "microphone", "kitchen", "holidays", "train", "garden", "coffee machine", "dog"),
    *("football game", "tax form", "birthday cake", "car", "wedding", "phone", "soup"),
)


def describe(thing: Thing, rng: np.random.Generator, complete: bool = False) -> str:
    """A sentence that says what an object is and does.

    A complete one names shape, colour, texture and motion; of the others one in five leaves something out.
    """
    shape, colour = _pick(rng, SHAPE_WORDS[thing.shape]), _pick(rng, COLOUR_WORDS[thing.colour])
    adjective = _pick(rng, ADJECTIVES[thing.texture])
    phrases = (
        f"{adjective} {colour} {shape}",
        f"{colour} {adjective} {shape}",
        f"{colour} {shape} with {PATTERNS[thing.texture]}",
    )
    brief = not complete and rng.random() < 0.1
    bare = not complete and rng.random() < 0.1
    phrase = f"{colour} {shape}" if bare else _pick(rng, phrases)
    article = "an" if phrase[0] in "aeiou" else "a"
    words = {"it": phrase, "a": f"{article} {phrase}", "verb": _pick(rng, VERBS[thing.motion])}
    sentence = _pick(rng, BRIEF if brief else FULL)
    return _speak(sentence.format(**words, participle=_pick(rng, PARTICIPLES[thing.motion])), rng)


def chatter(rng: np.random.Generator) -> str:
    """A sentence that has nothing to do with what is seen."""
    return _speak(_pick(rng, CHATTER).format(person=_pick(rng, PEOPLE), topic=_pick(rng, TOPICS)), rng)


def _speak(sentence: str, rng: np.random.Generator) -> str:
    """Adds a filler now and then, and the uneven capitals and full stops of a transcript."""
    if rng.random() < 0.35:
        sentence = f"{_pick(rng, FILLERS)} {sentence}"
    look = rng.random()
    if look < 0.25:
        return sentence[0].upper() + sentence[1:] + "."
    return sentence.upper() if look < 0.3 else sentence


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
