"""A world of features, drawn in a second: concepts and attributes that video, sound and text carry.

A clip has a concept, which belongs to a category, and three attributes. Video and text carry all of them; sound
carries the concept and some of the attributes. Clips of one recording share the category and the first attribute.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recipes.data.layouts.youtube8m import AUDIO, RGB
from recipes.research.study.clips import Clips, World, rare_concepts, text_keys

CATEGORIES, PER_CATEGORY = 8, 6  # concepts per category
CONCEPTS = CATEGORIES * PER_CATEGORY
ATTRIBUTES, VALUES = 3, 6
WIDTH = 32  # of the vectors behind the features
CLIPS_PER_RECORDING = 4
WORDS, FILLERS = 5, 20  # of a text; words without meaning
TAIL = 1.0  # exponent of Zipf's law for the frequency of concepts
NOISE = 0.7  # standard deviation of the features' noise; that of the signal is one


@dataclass(frozen=True)
class _Modality:
    """How a modality encodes the meaning of a clip."""

    vectors: list[Tensor]  # (values, WIDTH) for category, concept and the attributes that the modality carries
    hidden: Tensor  # (WIDTH, 2 WIDTH)
    output: Tensor  # (2 WIDTH, channels)

    def features(self, meaning: Tensor, g: torch.Generator) -> Tensor:
        """Noisy features (N, 1, channels) of meanings (N, 2 + ATTRIBUTES), not linear in them."""
        vector = sum(vectors[meaning[:, k]] for k, vectors in enumerate(self.vectors))
        signal = torch.tanh(vector @ self.hidden / 2) @ self.output
        signal = signal / signal.std()
        return (signal + NOISE * torch.randn(signal.shape, generator=g))[:, None]


def world(clips: int, test_clips: int, seed: int, audio_attributes: int = ATTRIBUTES) -> World:
    """Draw a world; the concepts of its test clips are equally frequent, and sound carries so many attributes."""
    g = torch.Generator().manual_seed(seed)
    vectors = [torch.randn(n, WIDTH, generator=g) for n in (CATEGORIES, CONCEPTS, *[VALUES] * ATTRIBUTES)]
    outputs = [torch.randn(2 * WIDTH, n, generator=g) / (2 * WIDTH) ** 0.5 for n in (RGB, AUDIO)]
    hidden = torch.randn(2, WIDTH, 2 * WIDTH, generator=g) / WIDTH**0.5
    carried = (ATTRIBUTES, audio_attributes)
    modalities = [_Modality(vectors[: 2 + carried[i]], hidden[i], outputs[i]) for i in range(2)]
    frequency = 1 / torch.arange(1, CONCEPTS + 1) ** TAIL
    train = _draw_clips(clips, frequency[torch.randperm(CONCEPTS, generator=g)], modalities, g)
    test = _draw_clips(test_clips, torch.ones(CONCEPTS), modalities, g)
    words = 1 + CONCEPTS + ATTRIBUTES * VALUES + FILLERS
    return World(train, test, rare_concepts(train.concept, CONCEPTS), words)


def _draw_clips(count: int, frequency: Tensor, modalities: list[_Modality], g: torch.Generator) -> Clips:
    recording = torch.arange(count) // CLIPS_PER_RECORDING
    by_category = frequency.view(CATEGORIES, PER_CATEGORY)
    category = torch.multinomial(by_category.sum(1), int(recording[-1]) + 1, replacement=True, generator=g)[recording]
    concept = category * PER_CATEGORY + torch.multinomial(by_category[category], 1, generator=g)[:, 0]
    attributes = torch.randint(VALUES, (count, ATTRIBUTES), generator=g)
    attributes[:, 0] = attributes[recording * CLIPS_PER_RECORDING, 0]
    meaning = torch.cat([category[:, None], concept[:, None], attributes], 1)
    video, audio = (modality.features(meaning, g) for modality in modalities)

    first = 1 + CONCEPTS  # word ids: padding, concepts, values of the attributes, fillers
    words = torch.cat([1 + concept[:, None], first + VALUES * torch.arange(ATTRIBUTES) + attributes], 1)
    fillers = first + ATTRIBUTES * VALUES + torch.randint(FILLERS, (count, WORDS - words.shape[1]), generator=g)
    text = torch.cat([words, fillers], 1)[:, None]
    return Clips(video, audio, text, text_keys(words[:, None]), concept, category, recording, torch.ones(count, 2))
