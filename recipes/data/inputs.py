"""Clips of raw media or of features, as `clip.inputs` says."""

from datasets import Dataset as Index
from tokenizers import Tokenizer

from recipes.data.augment import AugmentConfig
from recipes.data.clips import ClipFormat, EvalClips, NarratedClips, TrainClips
from recipes.data.features import EvalFeatures, NarratedFeatures, TrainFeatures


def train_clips(index: Index, tokenizer: Tokenizer, fmt: ClipFormat, seed: int, augment: AugmentConfig) -> TrainClips:
    """The clips to train on: see `TrainClips` and `TrainFeatures`."""
    kind = TrainFeatures if fmt.inputs == "features" else TrainClips
    return kind(index, tokenizer, fmt, seed, augment)


def eval_clips(index: Index, tokenizer: Tokenizer, fmt: ClipFormat, windows: int = 1) -> EvalClips:
    """The clips to evaluate on: see `EvalClips` and `EvalFeatures`."""
    kind = EvalFeatures if fmt.inputs == "features" else EvalClips
    return kind(index, tokenizer, fmt, windows)


def narrated_clips(index: Index, tokenizer: Tokenizer, fmt: ClipFormat, windows: int = 1) -> NarratedClips:
    """All clips of an index, those without words too: see `NarratedClips` and `NarratedFeatures`."""
    kind = NarratedFeatures if fmt.inputs == "features" else NarratedClips
    return kind(index, tokenizer, fmt, windows)
