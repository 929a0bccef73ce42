"""What is measured of a clip among its batch mates: the cosine of its two gradients, and plainer figures beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import harmony
from recipes.data.clips import Clip, collate
from recipes.keys import key
from recipes.model.build import chosen_parameters, model_inputs

FIGURES = ("cosine", "norm_va", "norm_vt", "loss_va", "loss_vt", "similarity_va", "similarity_vt")


@dataclass
class Reading:
    """How the gradients of a clip are read, see `harmony.gram_vjp`."""

    attribution: Literal["activation", "loss", "anchor"] = key("activation", "what a clip's gradient under a loss is")
    space: Literal["parameters", "features"] = key("parameters", "gradients over parameters or features")
    wrt: str | None = key(
        r"^backbone\.",
        "last_block, last_projection, or a regular expression on parameter names; null: the video representation, in "
        "feature space",
    )
    chunk_size: int | None = key(None, "clips encoded at a time, where memory is short", least=1)


def measure(modules: nn.ModuleDict, clips: Sequence[Clip], reading: Reading) -> dict[str, np.ndarray]:
    """Measure the clips of one batch, each against the others.

    Model and objective are frozen and in evaluation mode: what a clip gets depends on the weights, the clip and its
    mates alone.

    Returns:
        {name: float32 (B,)} for `FIGURES`. Cosine, norms and losses of a loss that a clip takes no part in are NaN.
        Norms are those of the clip's share of the batch's mean loss, times the number of clips.
    """
    model, objective = modules["model"], modules["objective"]
    inputs = model_inputs(collate(clips), next(modules.parameters()).device)
    params = {name: p.detach() for name, p in chosen_parameters(reading.wrt, model).items()}
    result = harmony.gram_vjp(
        lambda params, batch: functional_call(model, params, (), batch),
        objective,
        params,
        inputs,
        attribution=reading.attribution,
        space=reading.space,
        engine=harmony.Engine(chunk_size=reading.chunk_size),
    )
    gram = result.gram
    takes_part = torch.stack([inputs["audio_valid"], inputs["text_valid"].any(1)], 1)
    norms = gram.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt() * len(clips)
    cosine = torch.where(takes_part.all(1), harmony.agreement(gram), torch.nan)
    similarities = similarity(objective.project(result.embeddings))
    columns = [cosine]
    for figure in (norms, result.terms, similarities):
        columns += torch.where(takes_part, figure, torch.nan).unbind(1)
    return {name: column.float().cpu().numpy() for name, column in zip(FIGURES, columns, strict=True)}


@torch.no_grad()
def similarity(spaces: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
    """Cosines (B, 2) of video with audio, and of video with the first caption, in the two common spaces."""
    (video_va, audio), (video_vt, text) = spaces["va"], spaces["vt"]
    return torch.stack([F.cosine_similarity(video_va, audio), F.cosine_similarity(video_vt, text[:, 0])], 1)
