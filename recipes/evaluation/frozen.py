"""What a model makes of whole clips, of one modality alone: several windows of each."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from recipes.config import DataConfig
from recipes.data.skipped import Skipped
from recipes.data.windows import WindowedClips, collate
from recipes.data.workers import Loader
from recipes.errors import DataError
from recipes.evaluation.embedding import cut, evaluating
from recipes.progress import progress_bar


class Outputs(NamedTuple):
    """Outputs of the clips that could be read.

    Attributes:
        values: (N, ...) on the CPU.
        rows: Rows of the index, N.
        skipped: The other clips.
    """

    values: Tensor
    rows: list[int]
    skipped: list[Skipped]


def outputs(
    module: nn.Module, encode: Callable[[Tensor], Tensor], clips: WindowedClips, batch_size: int, data: DataConfig
) -> Outputs:
    """Encode every clip in evaluation mode, without gradients.

    Args:
        module: The model, on the device to use; it stays in its mode.
        encode: Output (b, ...) of the windows of a batch (b, n, ...): uint8 pictures, or sound.
        clips: What to read.
        batch_size: Windows that are encoded together; at least those of one clip.
        data: How to read: workers, timeout.

    Raises:
        DataError: Not one clip could be read.
    """
    device = next(module.parameters()).device
    values, rows, skipped = [], [], []
    batches = list(cut(range(len(clips)), clips.count * clips.crops, batch_size))
    with progress_bar(total=len(clips), desc="encoding", unit="clip", leave=False) as bar:
        for batch in Loader(clips, batches, collate, data.workers, data.timeout, data.prefetch_gib):
            skipped += batch["skipped"]
            if "raw" in batch:
                with evaluating(module):
                    values.append(encode(batch["raw"].to(device)).float().cpu())
                rows += batch["row"].tolist()
            bar.update(len(batch["skipped"]) + len(batch.get("row", [])))
    if not rows:
        raise DataError(
            f"none of the {len(clips)} clips could be read; the first is {skipped[0].id}: {skipped[0].reason}"
        )
    return Outputs(torch.cat(values), rows, skipped)  # outside of inference mode, to be trained on
