"""A manifest of the clips that are worth keeping, as `recipes.pretrain` reads it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from recipes.data import storage
from recipes.data.manifest import fields_of
from recipes.files import replacing
from recipes.scoring import table


def write_kept(scores: Path, index: Dataset, share: float, by: str, out: Path, held_out: Dataset) -> dict[str, int]:
    """Write a manifest of the best clips of a table, to train on, and of all that is held out, to test on.

    Narrations below the cut are taken out of their videos; a video that loses all of them is left out, and so are
    clips that could not be read. Clips without a figure (no sound, no text) stay: nothing speaks against them.

    Args:
        scores: A table of scores.
        index: What was scored.
        share: Of the clips that have the figure, the share to keep; more where the last ones are equal.
        by: A column: "cosine" or a similarity, of which more is better, or a loss, of which less is better.
        out: The manifest to write, JSON lines; paths of videos are relative to it.
        held_out: What is not trained on: it stays as it is, as split "test", whether it was scored or not.

    Returns:
        Counts to train on, before and after: "clips", "kept", "videos", "kept_videos"; and the rows "held_out".
    """
    tested, root, first = set(held_out["id"]), out.absolute().parent, 0
    keep = _keep(scores, share, by, sum(map(_clips, index.select_columns("narrations"))))
    counts = {"clips": 0, "kept": 0, "videos": 0, "kept_videos": 0, "held_out": len(held_out)}
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in index:
            kept = keep[first : first + _clips(row)]
            first += len(kept)
            if row["id"] in tested:
                continue
            for name, number in zip(counts, (len(kept), int(kept.sum()), 1, int(kept.any())), strict=False):
                counts[name] += number
            if kept.any():
                narrations = [n for n, k in zip(row["narrations"], kept, strict=False) if k]
                file.write(_line(row | {"narrations": narrations, "split": row["split"] or "train"}, root))
        for row in held_out:
            file.write(_line(row | {"split": "test"}, root))
        if not counts["videos"]:
            raise ValueError(f"keep: all that {scores} holds is held out, and nothing of it is to be trained on")
    return counts


def _keep(scores: Path, share: float, by: str, clips: int) -> np.ndarray:
    """Which clips to keep, bool (clips,)."""
    sign = 1 if by.startswith("loss") else -1  # the best come first
    cut = table.quantile(scores, by, share, sign)
    keep = np.ones(clips, bool)
    for piece in table.columns(scores, ["clip", by, "error"]):
        worse = sign * piece[by].astype(float) > cut
        keep[piece["clip"]] = ~worse & np.equal(piece["error"], None)
    return keep


def _clips(row: dict[str, Any]) -> int:
    """How many clips a row has."""
    return max(len(row["narrations"]), 1)


def _line(row: dict[str, Any], root: Path) -> str:
    return json.dumps(fields_of(row, storage.relative(row["video"], root)), ensure_ascii=False) + "\n"
