"""Heads into the two common spaces, and the two contrastive losses: the losses stage of the recipe."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

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
        """Loss terms (B,) of video-audio (NCE) and video-text (MIL-NCE).

        A caption that clip b has, too, is no negative of clip b; nor is the clip itself, which comes twice in a batch
        where an epoch ends. A sample takes no part in the loss of a modality it lacks; its video still counts in the
        batch statistics of that loss, as a constant.
        """
        video, has_audio, has_text = embeddings["video"], embeddings["audio_valid"], embeddings["text_valid"]
        video_va = self.video_to_va(_only(has_audio, video))
        video_vt = self.va_to_vt(_once_more(self.video_to_va, _only(has_text.any(1), video)))
        index, keys = embeddings["index"], embeddings["text_key"]
        same_clip = index[:, None] == index
        fits = same_captions(keys) | same_clip[:, :, None]
        keywords = {"temperature": self.config.temperature, "symmetric": self.config.symmetric}
        return {
            "va": harmony.losses.info_nce(
                video_va, self.audio_to_va(embeddings["audio"]), valid=has_audio, positives=same_clip, **keywords
            ),
            "vt": harmony.losses.mil_nce(
                video_vt, self.text_to_vt(embeddings["text"]), valid=has_text, positives=fits, **keywords
            ),
        }

    def project(self, embeddings: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """The two common spaces: {"va": (video (B, D), audio (B, D)), "vt": (video (B, D'), text (B, P, D'))}."""
        video_va = self.video_to_va(embeddings["video"])
        return {
            "va": (video_va, self.audio_to_va(embeddings["audio"])),
            "vt": (self.va_to_vt(video_va), self.text_to_vt(embeddings["text"])),
        }

    @torch.no_grad()
    def sides(self, embeddings: dict[str, Tensor]) -> Tensor:
        """Similarities (B, 3, B) of video with audio, video with text, audio with text: of the text that fits best.

        Audio reaches the space of text through the heads of video, which no loss trains for audio. Running statistics
        stay as they are.
        """
        audio_va = self.audio_to_va(embeddings["audio"])
        video_va = _once_more(self.video_to_va, embeddings["video"])
        in_text_space = (_once_more(self.va_to_vt, x) for x in (video_va, audio_va))
        video, audio, text = (F.normalize(x, dim=-1) for x in (*in_text_space, self.text_to_vt(embeddings["text"])))
        with_audio = F.normalize(video_va, dim=-1) @ F.normalize(audio_va, dim=-1).T
        with_text = [
            torch.einsum("bd,cpd->bcp", x, text).masked_fill(~embeddings["text_valid"], -1).amax(2)
            for x in (video, audio)
        ]
        return torch.stack([with_audio, *with_text], 1)


def same_captions(keys: Tensor) -> Tensor:
    """Mask (B, B, P) of keys (B, P), 0 for none: [b, b', p] is True where caption p of b' is also one of b."""
    equal = torch.zeros(len(keys), *keys.shape, dtype=torch.bool, device=keys.device)
    for own in keys.unbind(1):
        equal |= own[:, None, None] == keys
    return equal & (keys != 0)


def _only(valid: Tensor, x: Tensor) -> Tensor:
    """The same values (B, D), with gradients for the valid samples alone."""
    return torch.where(valid[:, None], x, x.detach())


def _once_more(head: nn.Module, x: Tensor) -> Tensor:
    """Apply a head to a second batch in one step without another update of its running statistics."""
    output: Tensor = functional_call(head, {name: b.clone() for name, b in head.named_buffers()}, (x,))
    return output


def _norm(kind: str, width: int) -> nn.Module:
    return {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": nn.Identity}[kind](width)
