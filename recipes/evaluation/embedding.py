"""What a model makes of clips in evaluation mode: embeddings of all modalities, or the outputs of one."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recipes.config import DataConfig
from recipes.data.clips import NarratedClips
from recipes.data.loader import eval_loader
from recipes.data.skipped import Skipped
from recipes.data.windows import WindowedClips, collate
from recipes.data.workers import Loader
from recipes.errors import DataError
from recipes.model.build import model_inputs
from recipes.progress import progress_bar
from recipes.training.processes import ALONE, Processes


@dataclass(frozen=True)
class Embedded:
    """What the model makes of N clips, on the host.

    A clip has the mean of its W windows, for sound the mean of the windows that have sound. Nothing is normalised.

    Attributes:
        vectors: (N, D) each. In the two common spaces "va_video" and "va_audio", "vt_video" and "vt_text"; before the
            heads "model_video", "model_audio" and "model_text".
        audio_valid: (N,) whether any window has sound.
        text_valid: (N,) whether there is a caption with a word.
        items: Positions of the N clips in their data set.
        starts: (N, W) seconds of the file at which the windows begin.
        skipped: The other clips: one of their windows could not be read.
    """

    vectors: dict[str, Tensor]
    audio_valid: Tensor
    text_valid: Tensor
    items: list[int]
    starts: Tensor
    skipped: list[Skipped]


class Outputs(NamedTuple):
    """Outputs (N, ...) of the clips that could be read, on the CPU, their rows of the index, and the other clips."""

    values: Tensor
    rows: list[int]
    skipped: list[Skipped]


def embed(
    modules: nn.ModuleDict, clips: NarratedClips, batch_size: int, data: DataConfig, group: Processes = ALONE
) -> Embedded:
    """Embed all clips.

    Args:
        modules: Model and objective; they stay in their mode.
        clips: Clips with their narrations and windows.
        batch_size: Windows that are embedded together; at least those of one clip.
        data: How to read: workers, timeout.
        group: The processes that share the batches. All of them have to call this, and get the same result.

    Raises:
        DataError: Not one clip could be read.
    """
    batches = list(cut(range(len(clips)), clips.windows, batch_size))
    own, count = range(group.rank, len(batches), group.world), len(clips)
    numbered = []
    with progress_bar(total=count, desc="embedding", unit="clip", leave=False, disable=not group.first) as bar:
        stream = embedded(modules, clips, (batches[n] for n in own), data)
        for number, part in zip(own, stream, strict=True):
            numbered.append((number, part))
            bar.update((len(part.items) + len(part.skipped)) * group.world)
    every = [part for _, part in sorted(group.collect(numbered), key=lambda pair: pair[0])]
    parts = [part for part in every if part.items]
    skipped = [clip for part in every for clip in part.skipped]
    if not parts:
        raise _none_read(f"{count} test clips", skipped)
    return Embedded(
        vectors={name: torch.cat([part.vectors[name] for part in parts]) for name in parts[0].vectors},
        audio_valid=torch.cat([part.audio_valid for part in parts]),
        text_valid=torch.cat([part.text_valid for part in parts]),
        items=[item for part in parts for item in part.items],
        starts=torch.cat([part.starts for part in parts]),
        skipped=skipped,
    )


def embedded(
    modules: nn.ModuleDict, clips: NarratedClips, batches: Iterable[Sequence[int]], data: DataConfig
) -> Iterator[Embedded]:
    """Embed batches of clips, one after another; see `embed`.

    A batch of which no clip could be read has no vectors: its `items` are empty.
    """
    device = next(modules.parameters()).device
    for batch in eval_loader(clips, batches, data.workers, data.timeout, data.prefetch_gib):
        if "video" not in batch:
            nothing = torch.empty(0)
            yield Embedded({}, nothing.bool(), nothing.bool(), [], nothing, batch["skipped"])
            continue
        with _evaluating(modules):
            encoded = modules["model"](**model_inputs(batch, device))
            spaces = modules["objective"].project(encoded)
        vectors = {f"va_{side}": x for side, x in zip(("video", "audio"), spaces["va"], strict=True)}
        vectors |= {f"vt_{side}": x for side, x in zip(("video", "text"), spaces["vt"], strict=True)}
        vectors |= {f"model_{modality}": encoded[modality] for modality in ("video", "audio", "text")}
        yield _pooled(batch, vectors, clips.windows)


def outputs(
    module: nn.Module, encode: Callable[[Tensor], Tensor], clips: WindowedClips, batch_size: int, data: DataConfig
) -> Outputs:
    """Encode one modality of every clip, as `embed` does; `encode` gives outputs (b, ...) of windows (b, n, ...)."""
    device = next(module.parameters()).device
    values, rows, skipped = [], [], []
    batches = list(cut(range(len(clips)), clips.count * clips.crops, batch_size))
    with progress_bar(total=len(clips), desc="encoding", unit="clip", leave=False) as bar:
        for batch in Loader(clips, batches, collate, data.workers, data.timeout, data.prefetch_gib):
            skipped += batch["skipped"]
            if "raw" in batch:
                with _evaluating(module):
                    values.append(encode(batch["raw"].to(device)).float().cpu())
                rows += batch["row"].tolist()
            bar.update(len(batch["skipped"]) + len(batch.get("row", [])))
    if not rows:
        raise _none_read(f"{len(clips)} clips", skipped)
    return Outputs(torch.cat(values), rows, skipped)  # outside of inference mode, to be trained on


def cut(clips: Sequence[int], windows: int, batch_size: int) -> Iterator[Sequence[int]]:
    """Batches of clips: `batch_size` windows in each, and at least one clip."""
    size = max(batch_size // windows, 1)
    return (clips[first : first + size] for first in range(0, len(clips), size))


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients; the module returns to its mode afterwards."""
    training = module.training
    module.eval()
    with torch.inference_mode():
        yield
    module.train(training)


def _none_read(clips: str, skipped: list[Skipped]) -> DataError:
    return DataError(f"none of the {clips} could be read; the first is {skipped[0].id}: {skipped[0].reason}")


def _pooled(batch: dict[str, Any], vectors: dict[str, Tensor], windows: int) -> Embedded:
    """Means over the windows of each clip."""
    heard = batch["audio_valid"].view(-1, windows)
    share = heard / heard.sum(1, keepdim=True).clamp(min=1)

    def pooled(modality: str, x: Tensor) -> Tensor:
        x = x[:, 0] if modality == "text" else x
        x = x.float().cpu().unflatten(0, (-1, windows))
        if modality == "audio":
            return (x * share[:, :, None]).sum(1)
        return x[:, 0] if modality == "text" else x.mean(1)  # the text is the same in each window

    return Embedded(
        vectors={name: pooled(name.partition("_")[2], x) for name, x in vectors.items()},
        audio_valid=heard.any(1),
        text_valid=batch["text_valid"][::windows, 0],
        items=batch["index"][::windows].tolist(),
        starts=batch["start"].view(-1, windows),
        skipped=batch["skipped"],
    )
