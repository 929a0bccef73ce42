"""How well the figures of a table find the clips whose text does not belong, where the truth is known."""

import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from recipes.evaluation import bootstrap, results
from recipes.files import jsonl
from recipes.scoring.table import SCHEMA, opened

RESAMPLES = 300

Figures = dict[str, np.ndarray]
# More is better for each: it should be high for a text that belongs.
DETECTORS: dict[str, Callable[[Figures], np.ndarray]] = {
    "cosine": lambda f: f["cosine"],
    "video-text similarity": lambda f: f["similarity_vt"],
    "video-audio similarity": lambda f: f["similarity_va"],
    "video-text loss, small": lambda f: -f["loss_vt"],
    "both losses, small": lambda f: -f["loss_va"] - f["loss_vt"],
    "video-text norm, small": lambda f: -f["norm_vt"],
    "norm ratio vt/va, small": lambda f: -f["norm_vt"] / f["norm_va"],
    "cosine and similarity, mean rank": lambda f: rankdata(f["cosine"]) + rankdata(f["similarity_vt"]),
}


class Detection(NamedTuple):
    """What a detector finds."""

    auroc: float  # probability that it ranks a clip whose text belongs above one whose text does not; 0.5 is chance
    interval: tuple[float, float]  # 95% of it, a bootstrap over videos
    top: float  # share of texts that belong among the best 5% of the clips
    bottom: float  # share of them among the worst 5%


def joined(scores: Path, truth: Path) -> tuple[Figures, np.ndarray, np.ndarray]:
    """The clips of a table that have every figure, with the truth about their texts.

    Args:
        scores: A table of scores.
        truth: JSON lines of ``video_id``, ``text`` and ``aligned``: the narrations of each video in their order.

    Returns:
        {name: figures (N,)}, whether the texts belong (N,), and the videos they are of (N,).
    """
    narrations = defaultdict(list)
    for line in jsonl.read_rows(truth, video_id=str, text=str, aligned=bool):
        narrations[line["video_id"]].append(line)
    if not narrations:
        raise ValueError(f"{truth}: expected JSON lines with video_id, text and aligned, such as a corpus' truth.jsonl")
    with opened(scores) as table:
        rows = [row for row in table.read().to_pylist() if row["cosine"] is not None]
    names = [name for name in SCHEMA.names if any(isinstance(row[name], float) for row in rows)]
    rows = [row for row in rows if all(isinstance(row[n], float) and math.isfinite(row[n]) for n in names)]
    if not rows:
        raise ValueError(f"{scores}: no clip has a cosine and every other figure")
    aligned = []
    for row in rows:
        position, of_video = row["narration"], narrations.get(row["id"], [])
        known = position is not None and 0 <= position < len(of_video)
        expected = of_video[position] if known else {"text": None}
        if expected["text"] != row["caption"]:
            raise ValueError(
                f"{truth}: expected narration {position} of {row['id']} to be {row['caption']!r}, as in {scores}; "
                f"found {expected['text']!r}"
            )
        aligned.append(expected["aligned"])
    figures = {name: np.array([row[name] for row in rows], float) for name in names}
    return figures, np.array(aligned, bool), np.array([row["id"] for row in rows])


def detect(score: np.ndarray, aligned: np.ndarray, videos: np.ndarray, share: float = 0.05) -> Detection:
    """Judge the score (N,) of one detector, NaN as the median; clips of one video are resampled together.

    Examples:
        >>> import numpy as np
        >>> aligned = np.array([True, True, False, False] * 5)
        >>> result = detect(aligned + 0.0, aligned, np.arange(20).astype(str))
        >>> result.auroc, result.top, result.bottom
        (1.0, 1.0, 0.0)
    """
    defined = score[np.isfinite(score)]
    score = np.nan_to_num(score, nan=float(np.median(defined)) if defined.size else 0.0)
    _, video = np.unique(videos, return_inverse=True)
    clips_of = np.split(np.argsort(video, kind="stable"), np.cumsum(np.bincount(video))[:-1])
    resampled = []
    for drawn_videos in bootstrap.draws(len(clips_of), seed=0, resamples=RESAMPLES):
        drawn = np.concatenate([clips_of[v] for v in drawn_videos])
        if aligned[drawn].any() and not aligned[drawn].all():
            resampled.append(roc_auc_score(aligned[drawn], score[drawn]))
    order = np.argsort(score, kind="stable")
    number = max(round(share * len(score)), 1)
    return Detection(
        auroc=float(roc_auc_score(aligned, score)),
        interval=bootstrap.interval(np.array(resampled)),
        top=float(aligned[order[-number:]].mean()),
        bottom=float(aligned[order[:number]].mean()),
    )


def judge(scores: Path, truth: Path) -> dict[str, Any]:
    """Judge every detector: {"clips", "aligned": share that belongs, "detectors": {name: fields of `Detection`}}."""
    figures, aligned, videos = joined(scores, truth)
    if len(set(aligned.tolist())) < 2:
        raise ValueError(f"{scores}: nothing to find: of {len(aligned)} texts {int(aligned.sum())} belong")
    detectors = {name: detect(rank(figures), aligned, videos)._asdict() for name, rank in DETECTORS.items()}
    return {"clips": len(aligned), "aligned": float(aligned.mean()), "detectors": detectors}


def markdown(tables: dict[str, dict[str, Any]]) -> str:
    """Tables as `judge` gives them, for people: {name of the table: ...}."""
    parts = []
    for name, judged in tables.items():
        parts.append(f"**{name}**: {judged['clips']} clips, {100 * judged['aligned']:.1f}% of the texts belong.")
        rows = [
            {
                "detector": detector,
                "AUROC": f"{d['auroc']:.3f}",
                "95% interval": " to ".join(f"{bound:.3f}" for bound in d["interval"]),
                "belong in the top 5%": f"{100 * d['top']:.0f}%",
                "in the bottom 5%": f"{100 * d['bottom']:.0f}%",
            }
            for detector, d in judged["detectors"].items()
        ]
        parts.append(results.markdown(rows))
    return "\n\n".join(parts) + "\n"
