"""A linear classifier on one modality of a trained model, and what it learns from: mixed clips, labels, losses."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.model.vatt import MODALITIES, VATT

Loss = Callable[[Tensor, Tensor], Tensor]  # of logits and targets (b, c): one for each clip (b,)


class Encoder(nn.Module):
    """One modality of a trained model, which is taken over: its other modalities are dropped."""

    def __init__(self, vatt: VATT, modality: str, frozen: bool) -> None:
        """``frozen``: the encoder is not trained, and always in evaluation mode."""
        super().__init__()
        for parts in (vatt.tokens, vatt.aggregate, vatt.output):
            for other in set(MODALITIES) - {modality}:
                del parts[other]
        self.vatt, self.modality, self.frozen = vatt.requires_grad_(not frozen), modality, frozen

    def train(self, mode: bool = True) -> "Encoder":
        """Training mode; a frozen encoder stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def forward(self, raw: Tensor, **labels: Tensor) -> dict[str, Tensor]:
        """Representations (b, d) of pictures (b, t, h, w, 3) from 0 to 255, or of sound (b, s); labels pass through."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return {"representation": self.vatt.encode(self.modality, raw), **labels}


class Head(nn.Module):
    """Logits of the classes from representations, and their loss."""

    def __init__(self, width: int, classes: int, dropout: float, loss: Loss) -> None:
        super().__init__()
        self.dropout, self.linear, self.loss = nn.Dropout(dropout), nn.Linear(width, classes), loss

    def forward(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss term of each clip, from what `Encoder` gives."""
        return {"labels": self.loss(self.logits(embeddings["representation"]), embeddings["targets"])}

    def logits(self, representation: Tensor) -> Tensor:
        """Logits (b, c)."""
        logits: Tensor = self.linear(self.dropout(representation))
        return logits


def classifier(encoder: Encoder, classes: int, dropout: float, loss: Loss) -> nn.ModuleDict:
    """{"model": an encoder, "objective": a new head}, for `recipes.training.step.train_step`."""
    width = encoder.vatt.output[encoder.modality].out_features
    return nn.ModuleDict({"model": encoder, "objective": Head(width, classes, dropout, loss)})


def multi_hot(labels: Sequence[Sequence[int]], classes: int) -> Tensor:
    """Targets (b, c): 1 for each class that a clip has."""
    targets = torch.zeros(len(labels), classes)
    for row, numbers in enumerate(labels):
        targets[row, list(numbers)] = 1
    return targets


def mixup(raw: Tensor, targets: Tensor, alpha: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mix each clip (b, ...) of a batch with another one, and their targets (b, c) alike.

    The shares are drawn from Beta(alpha, alpha), one for each clip; 0 mixes nothing. See Zhang et al., mixup: Beyond
    Empirical Risk Minimization, 2018 (arXiv:1710.09412).
    """
    if alpha == 0:
        return raw, targets
    share = torch.from_numpy(rng.beta(alpha, alpha, len(raw)).astype(np.float32)).to(raw.device)
    other = torch.from_numpy(rng.permutation(len(raw))).to(raw.device)

    def mixed(x: Tensor) -> Tensor:
        own = share.view(-1, *[1] * (x.dim() - 1))
        return own * x + (1 - own) * x[other]

    return mixed(raw), mixed(targets)


def multi_label_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sigmoid cross-entropy (b,), summed over classes."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)
