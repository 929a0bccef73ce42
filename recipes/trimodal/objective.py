"""Heads into the two common spaces, and the two contrastive losses: the losses stage of the recipe."""

from torch import Tensor, nn

import harmony
from recipes.config import ObjectiveConfig


class Objective(nn.Module):
    """Fine and coarse spaces (FAC): video meets audio in one, and through it text in the other.

    Batch normalisation couples samples; it is allowed here, behind the per-sample encoder.

    References:
        Akbari et al., VATT, 2021 (arXiv:2104.11178), section 3.4, equations 4 to 6.
    """

    def __init__(self, config: ObjectiveConfig, width: int) -> None:
        super().__init__()
        va, vt = config.audio_space, config.text_space
        self.config = config
        self.video_to_va = nn.Sequential(
            nn.Linear(width, va), _norm(config.norm, va), nn.ReLU(), nn.Linear(va, va), _norm(config.norm, va)
        )
        self.va_to_vt = nn.Sequential(nn.ReLU(), nn.Linear(va, vt), _norm(config.norm, vt))
        self.audio_to_va = nn.Linear(width, va)
        self.text_to_vt = nn.Linear(width, vt)

    def forward(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss terms (B,) of video-audio (NCE) and video-text (MIL-NCE); a missing modality takes no part."""
        spaces = self.project(embeddings)
        keywords = {"temperature": self.config.temperature, "symmetric": self.config.symmetric}
        video, audio = spaces["va"]
        video_vt, text = spaces["vt"]
        return {
            "va": harmony.losses.info_nce(video, audio, valid=embeddings["audio_valid"], **keywords),
            "vt": harmony.losses.mil_nce(
                video_vt, text, valid=embeddings["text_valid"], positives=embeddings["same_text"], **keywords
            ),
        }

    def project(self, embeddings: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """The two common spaces: {"va": (video (B, D), audio (B, D)), "vt": (video (B, D'), text (B, P, D'))}."""
        video_va = self.video_to_va(embeddings["video"])
        return {
            "va": (video_va, self.audio_to_va(embeddings["audio"])),
            "vt": (self.va_to_vt(video_va), self.text_to_vt(embeddings["text"])),
        }


def _norm(kind: str, width: int) -> nn.Module:
    return {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": nn.Identity}[kind](width)
