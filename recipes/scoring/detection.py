"""How well the figures of a table find the clips whose text or sound does not belong, where the truth is known."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from recipes.evaluation import bootstrap, results
from recipes.scoring.table import opened
from recipes.scoring.truth.fact import Fact, Pair
from recipes.scoring.truth.formats import read_truth
from recipes.scoring.truth.matching import match

RESAMPLES = 300
SUBJECT: dict[Pair, str] = {"video-text": "texts", "video-audio": "sounds"}  # what belongs to the picture, or not

Figures = dict[str, np.ndarray]
Row = dict[str, Any]  # of a table of scores


class Detector(NamedTuple):
    """A way to rank clips: high for what belongs."""

    figures: tuple[str, ...]  # columns that it takes
    rank: Callable[..., np.ndarray]  # of these columns, in this order


COSINE = Detector(("cosine",), lambda cosine: cosine)
SIMILARITY_VA = Detector(("similarity_va",), lambda similarity: similarity)
DETECTORS: dict[Pair, dict[str, Detector]] = {
    "video-text": {
        "cosine": COSINE,
        "video-text similarity": Detector(("similarity_vt",), lambda similarity: similarity),
        "video-audio similarity": SIMILARITY_VA,
        "video-text loss, small": Detector(("loss_vt",), lambda loss: -loss),
        "both losses, small": Detector(("loss_va", "loss_vt"), lambda va, vt: -va - vt),
        "video-text norm, small": Detector(("norm_vt",), lambda norm: -norm),
        "norm ratio vt/va, small": Detector(("norm_vt", "norm_va"), lambda vt, va: -vt / va),
        "cosine and similarity, mean rank": Detector(
            ("cosine", "similarity_vt"), lambda cosine, similarity: rankdata(cosine) + rankdata(similarity)
        ),
    },
    "video-audio": {
        "cosine": COSINE,
        "video-audio similarity": SIMILARITY_VA,
        "video-audio loss, small": Detector(("loss_va",), lambda loss: -loss),
        "video-audio norm, small": Detector(("norm_va",), lambda norm: -norm),
    },
}


class Detection(NamedTuple):
    """What a detector finds."""

    auroc: float  # probability that it ranks a clip that belongs above one that does not; 0.5 is chance
    interval: tuple[float, float]  # 95% of it, a bootstrap over videos
    top: float  # share of what belongs among the best 5% of the clips
    bottom: float  # share of it among the worst 5%


class Joined(NamedTuple):
    """The clips of a table about which the truth is known, and that have every figure."""

    figures: Figures  # {name: (N,)}
    aligned: np.ndarray  # (N,), whether text or sound belongs
    videos: np.ndarray  # (N,), what the clips are of
    left_out: dict[str, int]


def joined(scores: Path, truth: Path) -> dict[Pair, Joined]:
    """The clips of a table with the truth about each pair that it speaks of.

    Args:
        scores: A table of scores.
        truth: An annotation in a format that `read_truth` knows.

    Raises:
        ValueError: The truth is of other clips.
    """
    with opened(scores) as table:
        rows = table.read().to_pylist()
    facts = read_truth(truth)
    try:
        pairs = {pair: _join(rows, about, pair) for pair, about in facts.items()}
    except ValueError as error:
        raise ValueError(f"{truth}: {error}") from error
    if rows and all(clips.left_out["rows without a truth"] == len(rows) for clips in pairs.values()):
        first = next(iter(facts.values()))[0]
        raise ValueError(
            f"{truth}: speaks of no row of {scores}: expected videos and texts such as {rows[0]['id']!r}, "
            f"{rows[0]['caption']!r:.60}; found {first.video!r}, {first.text!r:.60}"
        )
    return pairs


def _join(rows: list[Row], facts: list[Fact], pair: Pair) -> Joined:
    places = match(rows, facts)
    known = [(row, facts[place].aligned) for row, place in zip(rows, places, strict=True) if place is not None]
    decided = [(row, aligned) for row, aligned in known if aligned is not None]
    wanted = {name for detector in DETECTORS[pair].values() for name in detector.figures}
    names = sorted(name for name in wanted if any(_is_number(row[name]) for row, _ in decided))
    whole = [(row, aligned) for row, aligned in decided if names and all(_is_number(row[name]) for name in names)]
    return Joined(
        figures={name: np.array([row[name] for row, _ in whole], float) for name in names},
        aligned=np.array([aligned for _, aligned in whole], bool),
        videos=np.array([row["id"] or row["video"] for row, _ in whole]),
        left_out={
            "rows without a truth": len(rows) - len(known),
            "rows that the truth leaves open": len(known) - len(decided),
            "rows that lack a figure": len(decided) - len(whole),
            "truths without a row": len(facts) - len(set(places) - {None}),
        },
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


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


def judge(scores: Path, truth: Path) -> dict[Pair, dict[str, Any]]:
    """Judge every detector of each pair that the truth speaks of.

    Returns:
        {pair: {"clips", "aligned": share that belongs, "left_out": {why: number}, and "detectors": {name: fields of
        `Detection`} or, where nothing can be found, the "reason"}}.

    Raises:
        ValueError: Nothing can be found of any pair.
    """
    judged = {pair: _judge(clips, pair) for pair, clips in joined(scores, truth).items()}
    if not any("detectors" in result for result in judged.values()):
        reasons = "; ".join(f"{pair}: {result['reason']}" for pair, result in judged.items())
        raise ValueError(f"{scores}: nothing to find by {truth}: {reasons}")
    return judged


def _judge(clips: Joined, pair: Pair) -> dict[str, Any]:
    number, belong = len(clips.aligned), int(clips.aligned.sum())
    counts = {"clips": number, "aligned": belong / number if number else None, "left_out": clips.left_out}
    if belong in (0, number):
        return counts | {"reason": f"of {number} {SUBJECT[pair]} {belong} belong; {words(clips.left_out)}"}
    scored = {
        name: detector.rank(*(clips.figures[figure] for figure in detector.figures))
        for name, detector in DETECTORS[pair].items()
        if set(detector.figures) <= set(clips.figures)
    }
    return counts | {"detectors": {n: detect(s, clips.aligned, clips.videos)._asdict() for n, s in scored.items()}}


def words(left_out: dict[str, int]) -> str:
    """What was left out, in a line."""
    return ", ".join(f"{what}: {number}" for what, number in left_out.items())


def markdown(tables: dict[str, dict[Pair, dict[str, Any]]]) -> str:
    """Tables as `judge` gives them, for people: {name of the table: ...}."""
    parts = []
    for name, pairs in tables.items():
        for pair, judged in pairs.items():
            if "reason" in judged:
                parts.append(f"**{name}**, {pair}: nothing to find: {judged['reason']}.")
                continue
            share = f"{100 * judged['aligned']:.1f}% of the {SUBJECT[pair]} belong"
            parts.append(f"**{name}**, {pair}: {judged['clips']} clips, {share}; {words(judged['left_out'])}.")
            parts.append(results.markdown([_line(*detector) for detector in judged["detectors"].items()]))
    return "\n\n".join(parts) + "\n"


def _line(name: str, detection: dict[str, Any]) -> dict[str, str]:
    return {
        "detector": name,
        "AUROC": f"{detection['auroc']:.3f}",
        "95% interval": " to ".join(f"{bound:.3f}" for bound in detection["interval"]),
        "belong in the top 5%": f"{100 * detection['top']:.0f}%",
        "in the bottom 5%": f"{100 * detection['bottom']:.0f}%",
    }
