"""A world of features, drawn in a second: concepts and attributes that video, sound and text carry.

A clip has a concept, which belongs to a category, and three attributes. Video and text carry all of them; sound
carries the concept and some of the attributes. Clips of one recording share the category and the first attribute.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recipes.data.layouts.youtube8m import AUDIO, RGB
from recipes.research.study.clips import Clips, World, rare_concepts, text_keys

CATEGORIES = 8
PER_CATEGORY = 6  # concepts
CONCEPTS = CATEGORIES * PER_CATEGORY
ATTRIBUTES = 3
VALUES = 6  # of each attribute
WIDTH = 32  # of the vectors behind the features
CLIPS_PER_RECORDING = 4
WORDS = 5
FILLERS = 20  # words without meaning
TAIL = 1.0  # exponent of Zipf's law for the frequency of concepts
NOISE = 0.7  # standard deviation of the features' noise; that of the signal is one
VOCABULARY = 1 + CONCEPTS + ATTRIBUTES * VALUES + FILLERS


def world(clips: int, test_clips: int, seed: int, audio_attributes: int = ATTRIBUTES) -> World:
    """Draw a world.

    Args:
        clips: Number of training clips.
        test_clips: Number of test clips; their concepts are equally frequent.
        seed: Of all draws.
        audio_attributes: How many of the attributes sound carries.
    """
    g = torch.Generator().manual_seed(seed)
    encoder = _Encoder.draw(audio_attributes, g)
    frequency = 1 / torch.arange(1, CONCEPTS + 1) ** TAIL
    train = _draw_clips(clips, frequency[torch.randperm(CONCEPTS, generator=g)], encoder, g)
    test = _draw_clips(test_clips, torch.ones(CONCEPTS), encoder, g)
    return World(train, test, rare_concepts(train.concept, CONCEPTS), VOCABULARY)


@dataclass(frozen=True)
class _Encoder:
    """How concepts and attributes become features."""

    category: Tensor  # (categories, WIDTH)
    concept: Tensor  # (concepts, WIDTH)
    attributes: list[Tensor]  # (values, WIDTH) each
    output: dict[str, Tensor]  # modality: (2 WIDTH, channels)
    hidden: dict[str, Tensor]  # modality: (WIDTH, 2 WIDTH)
    audio_attributes: int

    @classmethod
    def draw(cls, audio_attributes: int, g: torch.Generator) -> "_Encoder":
        category, concept, *attributes = (
            torch.randn(n, WIDTH, generator=g) for n in (CATEGORIES, CONCEPTS, *[VALUES] * ATTRIBUTES)
        )
        channels = {"video": RGB, "audio": AUDIO}
        output = {name: torch.randn(2 * WIDTH, n, generator=g) / (2 * WIDTH) ** 0.5 for name, n in channels.items()}
        hidden = torch.randn(2, WIDTH, 2 * WIDTH, generator=g) / WIDTH**0.5
        return cls(category, concept, attributes, output, dict(zip(channels, hidden, strict=True)), audio_attributes)

    def features(
        self, modality: str, category: Tensor, concept: Tensor, attributes: Tensor, g: torch.Generator
    ) -> Tensor:
        """Noisy features (N, 1, channels), not linear in the concept and the attributes."""
        carried = ATTRIBUTES if modality == "video" else self.audio_attributes
        vector = self.category[category] + self.concept[concept]
        for k in range(carried):
            vector = vector + self.attributes[k][attributes[:, k]]
        signal = torch.tanh(vector @ self.hidden[modality] / 2) @ self.output[modality]
        signal = signal / signal.std()
        return (signal + NOISE * torch.randn(signal.shape, generator=g))[:, None]


def _draw_clips(count: int, frequency: Tensor, encoder: _Encoder, g: torch.Generator) -> Clips:
    recording = torch.arange(count) // CLIPS_PER_RECORDING
    by_category = frequency.view(CATEGORIES, PER_CATEGORY)
    category = torch.multinomial(by_category.sum(1), int(recording[-1]) + 1, replacement=True, generator=g)[recording]
    concept = category * PER_CATEGORY + torch.multinomial(by_category[category], 1, generator=g)[:, 0]
    attributes = torch.randint(VALUES, (count, ATTRIBUTES), generator=g)
    attributes[:, 0] = attributes[recording * CLIPS_PER_RECORDING, 0]
    video, audio = (encoder.features(name, category, concept, attributes, g) for name in ("video", "audio"))

    first = 1 + CONCEPTS  # word ids: padding, concepts, values of the attributes, fillers
    meaning = torch.cat([1 + concept[:, None], first + VALUES * torch.arange(ATTRIBUTES) + attributes], 1)
    fillers = torch.randint(FILLERS, (count, WORDS - meaning.shape[1]), generator=g) + first + ATTRIBUTES * VALUES
    text = torch.cat([meaning, fillers], 1)[:, None]
    return Clips(video, audio, text, text_keys(meaning[:, None]), concept, category, recording)
