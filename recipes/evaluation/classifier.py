"""One modality of a trained model with a linear head, and what it learns from: mixed clips, their labels, the loss."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.model.vatt import MODALITIES, VATT


class Classifier(nn.Module):
    """Logits of the classes, from the representation of one modality."""

    def __init__(self, model: VATT, modality: str, classes: int, dropout: float, frozen: bool) -> None:
        """Take over a model; its other modalities are dropped.

        Args:
            model: The trained model.
            modality: "video" or "audio".
            classes: Number of classes.
            dropout: Of the representation, before the head.
            frozen: Train the head alone, on the representations of evaluation mode.
        """
        super().__init__()
        for parts in (model.tokens, model.aggregate, model.output):
            for other in set(MODALITIES) - {modality}:
                del parts[other]
        self.encoder, self.modality, self.frozen = model.requires_grad_(not frozen), modality, frozen
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(model.output[modality].out_features, classes)

    def train(self, mode: bool = True) -> "Classifier":
        """Training mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.train(mode and not self.frozen)
        return self

    def forward(self, raw: Tensor) -> Tensor:
        """Pictures (b, t, h, w, 3) from 0 to 255, or sound (b, s), -> logits (b, c) in float32."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            representation = self.encoder.encode(self.modality, raw)
        return self.head(self.dropout(representation)).float()


def multi_hot(labels: Sequence[Sequence[int]], classes: int) -> Tensor:
    """Targets (b, c): 1 for each class that a clip has."""
    targets = torch.zeros(len(labels), classes)
    for row, numbers in enumerate(labels):
        targets[row, list(numbers)] = 1
    return targets


def mixup(raw: Tensor, targets: Tensor, alpha: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mix every clip of a batch with another one, and their targets alike.

    Args:
        raw: Pictures or sound (b, ...).
        targets: (b, c).
        alpha: The shares are drawn from Beta(alpha, alpha), one for each clip; 0 mixes nothing.
        rng: All randomness.

    Returns:
        Float clips and targets of the same shapes.

    References:
        Zhang et al., mixup: Beyond Empirical Risk Minimization, 2018 (arXiv:1710.09412).
    """
    if alpha == 0:
        return raw, targets
    share = torch.from_numpy(rng.beta(alpha, alpha, len(raw)).astype(np.float32)).to(raw.device)
    other = torch.from_numpy(rng.permutation(len(raw))).to(raw.device)

    def mixed(x: Tensor) -> Tensor:
        own = share.view(-1, *[1] * (x.dim() - 1))
        return own * x + (1 - own) * x[other]

    return mixed(raw), mixed(targets)


def single_label_loss(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy with label smoothing; targets (b, c) are probabilities."""
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)


def multi_label_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sigmoid cross-entropy, summed over classes, its mean over clips."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)
