"""Fit a trained model to clips of another shape: more frames, larger pictures, longer sound."""

import torch.nn.functional as F
from torch import Tensor

from recipes.config import ClipFormat, ModelConfig
from recipes.model.tokens import AudioTokens, VideoTokens
from recipes.model.vatt import SIZES, VATT


def fit_positions(model: VATT, config: ModelConfig, clip: ClipFormat) -> None:
    """Stretch the position tables of video and audio to the shape of a raw clip, linearly, in place."""
    width = SIZES[config.size].width
    fitted = {
        "video": VideoTokens(clip.frames, clip.size, config.video_patch, width, config.position_norm),
        "audio": AudioTokens(clip.samples, config.audio_patch, width, config.position_norm),
    }
    for modality, tokens in fitted.items():
        trained = model.tokens[modality].state_dict()
        wanted = tokens.state_dict()
        tokens.load_state_dict({name: _stretched(trained[name], len(wanted[name])) for name in wanted})
        model.tokens[modality] = tokens


def _stretched(table: Tensor, length: int) -> Tensor:
    """A table (n, d), interpolated to (length, d)."""
    if len(table) == length:
        return table
    return F.interpolate(table.T[None], length, mode="linear")[0].T
