"""Clips of raw media or of features, as `clip.inputs` says."""

from datasets import Dataset as Index
from tokenizers import Tokenizer

from recipes.data.augment import AugmentConfig
from recipes.data.clips import ClipFormat, EvalClips, TrainClips
from recipes.data.features import EvalFeatures, TrainFeatures


def train_clips(index: Index, tokenizer: Tokenizer, fmt: ClipFormat, seed: int, augment: AugmentConfig) -> TrainClips:
    """The clips to train on: see `TrainClips` and `TrainFeatures`."""
    kind = TrainFeatures if fmt.inputs == "features" else TrainClips
    return kind(index, tokenizer, fmt, seed, augment)


def eval_clips(index: Index, tokenizer: Tokenizer, fmt: ClipFormat) -> EvalClips:
    """The clips to evaluate on: see `EvalClips` and `EvalFeatures`."""
    kind = EvalFeatures if fmt.inputs == "features" else EvalClips
    return kind(index, tokenizer, fmt)
