"""Mixed clips, smoothed labels, squares of a clip, and a model on larger clips: each against a plain computation."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recipes.config import ClipFormat, ModelConfig
from recipes.data.augment import center, squares
from recipes.evaluation import finetune
from recipes.evaluation.classifier import Encoder, classifier, mixup, multi_hot, multi_label_loss
from recipes.model.positions import fit_positions
from recipes.model.vatt import VATT

CLIP = ClipFormat(frames=4, fps=4, size=32, sample_rate=1024, audio_seconds=1.0)


def model(**changes) -> VATT:
    torch.manual_seed(0)
    return VATT(ModelConfig(), replace(CLIP, **changes), vocabulary=20)


def test_mixup_mixes_clips_and_labels_alike() -> None:
    raw, targets = torch.arange(6.0).view(6, 1).repeat(1, 3), torch.eye(6)
    mixed, mixed_targets = mixup(raw, targets, 0.4, np.random.default_rng(0))
    for clip, target in zip(mixed, mixed_targets, strict=True):
        assert target.sum() == pytest.approx(1) and (target > 0).sum() <= 2
        assert torch.allclose(clip, (target * torch.arange(6.0)).sum())
    assert not torch.equal(mixed, raw)
    assert mixup(raw, targets, 0, np.random.default_rng(0))[0] is raw
    pictures = torch.full((2, 4, 8, 8, 3), 100, dtype=torch.uint8)
    assert (mixup(pictures, torch.eye(2), 5.0, np.random.default_rng(0))[0] - 100).abs().max() < 1e-4


def test_losses_are_their_definitions() -> None:
    logits, targets = torch.randn(5, 7), torch.rand(5, 7)
    soft = targets / targets.sum(1, keepdim=True)
    smoothed = 0.9 * soft + 0.1 / 7
    expected = -(smoothed * logits.log_softmax(1)).sum(1)
    assert torch.allclose(finetune.loss(SimpleNamespace(label_smoothing=0.1))(logits, soft), expected, rtol=1e-5)
    p = logits.sigmoid()
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).sum(1)
    assert torch.allclose(multi_label_loss(logits, targets), expected, rtol=1e-5)
    assert multi_hot([[2], [0, 1]], 3).tolist() == [[0, 0, 1], [1, 1, 0]]


@given(st.integers(4, 12), st.integers(4, 12), st.integers(1, 5))
def test_squares_go_from_end_to_end(height: int, width: int, count: int) -> None:
    video = np.random.default_rng(0).integers(0, 255, (2, height, width, 3), dtype=np.uint8)
    short = min(height, width)
    found = squares(video, short, count)
    assert found.shape == (count, 2, short, short, 3)
    if count > 1:
        assert (found[0] == video[:, :short, :short]).all() and (found[-1] == video[:, -short:, -short:]).all()
    if count % 2:
        assert (abs(found[count // 2].astype(int) - center(video, short)) == 0).all() or abs(height - width) % 2


def test_a_frozen_encoder_stays_as_in_evaluation() -> None:
    inputs = {"raw": torch.randn(2, CLIP.samples), "targets": torch.eye(3)[:2]}

    def loss(modules):
        return modules["objective"](modules["model"](**inputs))["labels"]

    frozen = classifier(Encoder(model(), "audio", frozen=True), 3, 0.0, multi_label_loss).train()
    assert torch.equal(loss(frozen), loss(frozen))  # no dropped tokens
    loss(frozen).sum().backward()
    trained = [name for name, p in frozen.named_parameters() if p.grad is not None]
    assert trained == ["objective.linear.weight", "objective.linear.bias"]
    tuned = classifier(Encoder(model(), "audio", frozen=False), 3, 0.0, multi_label_loss).train()
    assert not torch.equal(loss(tuned), loss(tuned))
    loss(tuned).sum().backward()
    assert all(p.grad is not None for p in tuned.parameters())  # nothing of other modalities is left


def test_positions_of_larger_clips_are_stretched_and_all_else_is_kept() -> None:
    trained = model()
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    fit_positions(trained, ModelConfig(), CLIP)
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    fit_positions(trained, ModelConfig(), replace(CLIP, size=64, frames=8))
    after = trained.state_dict()
    tables = {"tokens.video.row": 4, "tokens.video.column": 4, "tokens.video.time": 2}
    assert {name: len(after[name]) for name in before if after[name].shape != before[name].shape} == tables
    low, high = before["tokens.video.row"]  # two rows become four, between the centres of their patches
    expected = torch.stack([low, 0.75 * low + 0.25 * high, 0.25 * low + 0.75 * high, high])
    assert torch.allclose(after["tokens.video.row"], expected, atol=1e-6)
    assert trained.encode("video", torch.zeros(1, 8, 64, 64, 3, dtype=torch.uint8)).isfinite().all()
