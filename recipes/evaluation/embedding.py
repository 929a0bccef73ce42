"""Embeddings of clips in evaluation mode: several windows of each, averaged."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recipes.config import Config
from recipes.data.clips import NarratedClips, Skipped
from recipes.data.loader import eval_loader
from recipes.errors import DataError
from recipes.model.build import model_inputs
from recipes.progress import progress_bar
from recipes.training.processes import ALONE, Processes


@dataclass(frozen=True)
class Embedded:
    """Clips as the model sees them, on the host; N of them in W windows each.

    Of the windows' vectors a clip has the mean, of sound that of the windows with sound. Nothing is normalised.

    Attributes:
        spaces: The two common spaces: {"va": (video (N, D), audio (N, D)), "vt": (video (N, D'), text (N, D'))}.
        representations: What the model makes of "video", "audio" and "text" before the heads, each (N, E).
        audio_valid: (N,) whether there is sound in any window.
        text_valid: (N,) whether there is a caption with a word.
        items: Which of the clips they were read from each is, N positions.
        ids: Of their rows, N.
        starts: (N, W) seconds of the file at which the windows begin.
        skipped: The clips that are missing here, as one of their windows could not be read.
    """

    spaces: dict[str, tuple[Tensor, Tensor]]
    representations: dict[str, Tensor]
    audio_valid: Tensor
    text_valid: Tensor
    items: list[int]
    ids: list[str]
    starts: Tensor
    skipped: list[Skipped]


def embed(
    modules: nn.ModuleDict, clips: NarratedClips, config: Config, workers: int, group: Processes = ALONE
) -> Embedded:
    """Embed all clips.

    Args:
        modules: Model and objective; left in the mode they are in.
        clips: With their narrations and windows.
        config: Of the run: its `evaluate`, and `data.timeout`.
        workers: Processes that read.
        group: The processes that share the batches; all of them have to call this, and get the same.

    Raises:
        DataError: Not one clip could be read.
    """
    batches = list(cut(range(len(clips)), clips.windows, config))
    own, count = range(group.rank, len(batches), group.world), len(clips)
    numbered = []
    with progress_bar(total=count, desc="embedding", unit="clip", leave=False, disable=not group.first) as bar:
        done = embedded(modules, clips, (batches[n] for n in own), config, workers)
        for number, part in zip(own, done, strict=True):
            numbered.append((number, part))
            bar.update((len(part.items) + len(part.skipped)) * group.world)
    every = [part for _, part in sorted(group.collect(numbered), key=lambda numbered: numbered[0])]
    parts = [part for part in every if part.items]
    skipped = [clip for part in every for clip in part.skipped]
    if not parts:
        raise DataError(
            f"none of the {count} test clips could be read; the first is {skipped[0].id}: {skipped[0].reason}"
        )
    return Embedded(
        {name: tuple(torch.cat([p.spaces[name][i] for p in parts]) for i in (0, 1)) for name in ("va", "vt")},
        {name: torch.cat([p.representations[name] for p in parts]) for name in parts[0].representations},
        torch.cat([p.audio_valid for p in parts]), torch.cat([p.text_valid for p in parts]),
        [item for p in parts for item in p.items], [name for p in parts for name in p.ids],
        torch.cat([p.starts for p in parts]), skipped,
    )  # fmt: skip


def cut(clips: Sequence[int], windows: int, config: Config) -> Iterator[Sequence[int]]:
    """Batches of clips: `evaluate.batch_size` windows in each, or one clip."""
    size = max(config.evaluate.batch_size // windows, 1)
    return (clips[first : first + size] for first in range(0, len(clips), size))


def embedded(
    modules: nn.ModuleDict, clips: NarratedClips, batches: Iterable[Sequence[int]], config: Config, workers: int
) -> Iterator[Embedded]:
    """Embed batches of clips, one after another, in evaluation mode; see `embed`.

    A batch of which no clip could be read has no tensors: its `items` are empty.
    """
    device = next(modules.parameters()).device
    for batch in eval_loader(clips, batches, workers, config.data.timeout, config.data.prefetch_gib):
        if "video" not in batch:
            nothing = torch.empty(0)
            yield Embedded({}, {}, nothing.bool(), nothing.bool(), [], [], nothing, batch["skipped"])
            continue
        training = modules.training
        modules.eval()
        with torch.inference_mode():
            encoded = modules["model"](**model_inputs(batch, device))
            spaces = modules["objective"].project(encoded)
        modules.train(training)
        yield _pooled(batch, encoded, spaces, clips.windows)


def _pooled(
    batch: dict[str, Any], encoded: dict[str, Tensor], spaces: dict[str, tuple[Tensor, Tensor]], windows: int
) -> Embedded:
    """Means over the windows of each clip."""
    heard = batch["audio_valid"].view(-1, windows)
    share = heard / heard.sum(1, keepdim=True).clamp(min=1)

    def video(x: Tensor) -> Tensor:
        return _host(x, windows).mean(1)

    def audio(x: Tensor) -> Tensor:
        return (_host(x, windows) * share[:, :, None]).sum(1)

    def text(x: Tensor) -> Tensor:  # the same in each window
        return _host(x[:, 0], windows)[:, 0]

    return Embedded(
        {
            "va": (video(spaces["va"][0]), audio(spaces["va"][1])),
            "vt": (video(spaces["vt"][0]), text(spaces["vt"][1])),
        },
        {"video": video(encoded["video"]), "audio": audio(encoded["audio"]), "text": text(encoded["text"])},
        heard.any(1), batch["text_valid"][::windows, 0], batch["index"][::windows].tolist(), batch["id"][::windows],
        batch["start"].view(-1, windows), batch["skipped"],
    )  # fmt: skip


def _host(x: Tensor, windows: int) -> Tensor:
    """(N W, D) on the device as float32 (N, W, D) on the host."""
    return x.float().cpu().unflatten(0, (-1, windows))
