"""A world of features: concepts and attributes that video, sound and words tell parts of. Made in a second, no media.

A clip has a concept, one of a category, and three attributes. Its video and its words tell all of them, its sound the
concept and some of the attributes. Clips of one recording share category and first attribute.
"""

import torch
from torch import Tensor

from recipes.data.layouts.youtube8m import AUDIO, RGB
from recipes.research.study.clips import Clips, World, keys, rare_concepts

CATEGORIES, CONCEPTS = 8, 6  # concepts of each category
ATTRIBUTES, VALUES = 3, 6
WIDTH = 32  # of what is behind the features
CLIPS_A_RECORDING = 4
WORDS = 5
FILLERS = 20  # words that say nothing
TAIL = 1.0  # exponent of Zipf's law, by which concepts are frequent or rare
NOISE = 0.7  # of features, beside a signal of one


def world(clips: int, test_clips: int, seed: int, heard: int = ATTRIBUTES) -> World:
    """Draw a world.

    Args:
        clips: To train on.
        test_clips: To test on; their concepts are all equally frequent.
        seed: Of everything.
        heard: How many of the attributes sound tells.
    """
    g = torch.Generator().manual_seed(seed)
    embed = [torch.randn(n, WIDTH, generator=g) for n in (CATEGORIES, CATEGORIES * CONCEPTS, *[VALUES] * ATTRIBUTES)]
    mix = {size: torch.randn(2 * WIDTH, size, generator=g) / (2 * WIDTH) ** 0.5 for size in (RGB, AUDIO)}
    within = torch.randn(2, WIDTH, 2 * WIDTH, generator=g) / WIDTH**0.5
    number = CATEGORIES * CONCEPTS
    frequency = 1 / torch.arange(1, number + 1) ** TAIL
    frequency = frequency[torch.randperm(number, generator=g)]
    train = _clips(clips, frequency, heard, embed, mix, within, g)
    test = _clips(test_clips, torch.ones(number), heard, embed, mix, within, g)
    words = 1 + number + ATTRIBUTES * VALUES + FILLERS
    return World(train, test, rare_concepts(train.concept, number), words)


def _clips(
    count: int, frequency: Tensor, heard: int, embed: list[Tensor], mix: dict[int, Tensor], within: Tensor,
    g: torch.Generator,
) -> Clips:  # fmt: skip
    recording = torch.arange(count) // CLIPS_A_RECORDING
    by_category = frequency.view(CATEGORIES, CONCEPTS)
    category = torch.multinomial(by_category.sum(1), int(recording[-1]) + 1, replacement=True, generator=g)[recording]
    concept = category * CONCEPTS + torch.multinomial(by_category[category], 1, generator=g)[:, 0]
    attributes = torch.randint(VALUES, (count, ATTRIBUTES), generator=g)
    attributes[:, 0] = attributes[recording * CLIPS_A_RECORDING, 0]

    of_concept = embed[0][category] + embed[1][concept]
    told = [of_concept, *(table[attributes[:, k]] for k, table in enumerate(embed[2:]))]
    video = _seen(sum(told), within[0], mix[RGB], g)
    audio = _seen(sum(told[: 1 + heard]), within[1], mix[AUDIO], g)
    first = 1 + CATEGORIES * CONCEPTS
    said = [1 + concept, *(first + k * VALUES + attributes[:, k] for k in range(ATTRIBUTES))]
    fillers = first + ATTRIBUTES * VALUES + torch.randint(FILLERS, (count, WORDS - len(said)), generator=g)
    text = torch.cat([torch.stack(said, 1), fillers], 1)[:, None]
    return Clips(video, audio, text, keys(text[..., : len(said)]), concept, category, recording)


def _seen(hidden: Tensor, within: Tensor, mix: Tensor, g: torch.Generator) -> Tensor:
    """Noisy features (N, 1, C) of what is behind them (N, WIDTH), not linear in it."""
    signal = torch.tanh(hidden @ within / 2) @ mix
    signal = signal / signal.std()
    return (signal + NOISE * torch.randn(signal.shape, generator=g))[:, None]
