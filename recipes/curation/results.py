"""What comes of a curation: the table of scores and weights, the manifest to train on, and what a person is told."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from recipes.curation.calibration import Calibration, HeldOut, calibrate, resampled
from recipes.curation.filters import Trusted, group_of, write_row
from recipes.curation.judging import SPACES
from recipes.data import storage
from recipes.evaluation import bootstrap
from recipes.evaluation.results import markdown
from recipes.files import replacing

SCORES = pa.schema(
    [
        pa.field("clip", pa.int64()),
        pa.field("id", pa.string()),
        pa.field("video", pa.string()),
        pa.field("narration", pa.int32()),  # position in the video's list; -1 for a video without any
        pa.field("caption", pa.string()),
        pa.field("start", pa.float64()),  # of the window, in seconds
        *(pa.field(f"{figure}_{space}", pa.float32()) for figure in ("score", "spread") for space in SPACES),
        pa.field("error", pa.string()),  # why the clip could not be read
    ]
)
WEIGHTS = [pa.field(f"weight_{space}", pa.float32()) for space in SPACES]
NOTHING = 0.01  # a weight below it counts as zero
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)  # of the pairs that a threshold would keep


class Verdict:
    """What the filters can say of one pair of modalities."""

    def __init__(self, scores: np.ndarray, spread: np.ndarray, judges: int, held_out: HeldOut, draws: int) -> None:
        """Calibrate, also with trusted recordings that are drawn anew."""
        self.scores, self.auroc = scores, held_out.auroc
        self.pairs, self.right = int(np.isfinite(scores).sum()), len(held_out.right)
        self.calibration = calibrate(scores, spread, judges, held_out)
        self.drawn = resampled(scores, spread, judges, held_out, draws)
        self.able = held_out.right.mean() > held_out.wrong.mean() and bootstrap.interval(
            np.array([fitted.right.mean - fitted.wrong.mean for fitted in self.drawn])
        )[0] > 0

    def weights(self) -> np.ndarray:
        """Weights (N,): probabilities that pairs are right; 1 where there is no pair, or the filters know nothing."""
        if not self.able:
            return np.ones(len(self.scores))
        known = np.isfinite(self.scores)
        weights = np.where(known, self.calibration.posterior(np.where(known, self.scores, 0.0)), 1.0)
        return np.where(weights < NOTHING, 0.0, weights)

    def share(self) -> dict[str, float]:
        """The share of right pairs, with its interval."""
        low, high = bootstrap.interval(np.array([fitted.share for fitted in self.drawn]))
        return {"share": self.calibration.share, "low": low, "high": high}

    def thresholds(self, others: dict[str, np.ndarray]) -> list[dict[str, float]]:
        """Precision and recall of what each share of the pairs would keep, and precision if all wrong ones were of
        another kind, of which held-out scores ``others`` are known."""
        known = np.sort(self.scores[np.isfinite(self.scores)])
        rows = []
        for share in SHARES:
            threshold = float(known[min(int((1 - share) * len(known)), len(known) - 1)])
            row = {"kept": share, "threshold": threshold}
            for name in ("precision", "recall"):
                row[name] = float(getattr(self.calibration, name)(threshold))
                drawn = np.array([getattr(fitted, name)(threshold) for fitted in self.drawn], float)
                row[f"{name} low"], row[f"{name} high"] = bootstrap.interval(drawn)
            for kind, scores in others.items():
                if len(scores):
                    row[f"precision, {kind}"] = self._precision_of(threshold, scores)
            rows.append(row)
        return rows

    def _precision_of(self, threshold: float, wrong: np.ndarray) -> float:
        """If the wrong pairs scored as these do; filters apart, so it is a lower bound."""
        share = self.calibration.share
        kept, passed = share * float(self.calibration.recall(np.array(threshold))), float((wrong > threshold).mean())
        return kept / max(kept + (1 - share) * passed, 1e-12)


def told(space: str, verdict: Verdict, others: dict[str, np.ndarray]) -> str:
    """What a person is told of one pair of modalities, in Markdown."""
    share = verdict.share()
    lines = [
        f"### Video and {SPACES[space]}",
        "",
        f"{verdict.pairs} pairs; {verdict.right} trusted ones, each judged by a filter that did not learn from it. A "
        f"filter tells a trusted pair from an exchanged one with AUROC {verdict.auroc:.3f}.",
        "",
    ]
    if not verdict.able:
        return "\n".join([*lines, "**The filters cannot tell them apart: all weights stay 1.**"])
    lines += [
        f"**{share['share']:.0%} of the pairs are right** (95% interval {share['low']:.0%} to {share['high']:.0%}).",
        "",
    ]
    rows = []
    for row in verdict.thresholds(others):
        shown = {"keeping the best": f"{row['kept']:.0%}", "score above": f"{row['threshold']:.2f}"}
        for name in ("precision", "recall"):
            shown[name] = f"{row[name]:.0%} ({row[f'{name} low']:.0%} to {row[f'{name} high']:.0%})"
        shown |= {name: f"{row[name]:.0%}" for name in row if name.startswith("precision, ")}
        rows.append(shown)
    return "\n".join([*lines, markdown(rows).strip()])


def write_table(scores: Path, weights: dict[str, np.ndarray], out: Path) -> None:
    """Write the table of scores again, with the weights (N,) of each pair of modalities."""
    with pq.ParquetFile(scores) as table, replacing(out) as temporary:
        columns = pa.schema([*table.schema_arrow, *WEIGHTS], metadata=table.schema_arrow.metadata)
        first = 0
        with pq.ParquetWriter(temporary, columns) as writer:
            for batch in table.iter_batches(1 << 16):
                rows = slice(first, first := first + len(batch))
                added = [pa.array(weights[space][rows], pa.float32()) for space in SPACES]
                writer.write_table(pa.table([*batch.columns, *added], schema=columns))


def write_weighed(
    out: Path, data: Dataset, weights: dict[str, np.ndarray], readable: np.ndarray, trusted: Trusted, test: Dataset
) -> dict[str, int]:
    """Write the manifest to train on: the data with weights, what is trusted as it was labelled, and what is held out.

    Args:
        out: The manifest to write.
        data: Rows that were judged; their clips follow each other in the weights.
        weights: Of each pair, (N,).
        readable: Which clips could be read, bool (N,): the others are left out.
        trusted: The trusted clips; a pair of the data that is one of them has its weight.
        test: What is held out.

    Returns:
        Counts: "videos" of the data, "kept" of them, "trusted" and "held out" rows.
    """
    labelled = {(storage.same(row["video"]), text_of(row)): row for row in trusted.index}
    root, first = out.parent, 0
    counts = {"videos": len(data), "kept": 0, "trusted": len(trusted.index), "held out": len(test)}
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in data:
            clips = slice(first, first := first + max(len(row["narrations"]), 1))
            weighed = weigh_row(row, {space: weights[space][clips] for space in SPACES}, readable[clips], labelled)
            if weighed is not None:
                counts["kept"] += 1
                write_row(file, weighed | {"split": "train"}, root)
        for row in trusted.index:
            write_row(file, row | {"split": "train"}, root, "trusted/")
        for row in test:
            write_row(file, row | {"split": "test"}, root)
    return counts


def weigh_row(
    row: dict[str, Any], weights: dict[str, np.ndarray], readable: np.ndarray, labelled: dict[Any, Any]
) -> dict[str, Any] | None:
    """A row with its weights; None if nothing of it is worth anything.

    The weight of its sound is the mean over its clips. What somebody has labelled is left to the labelled row.
    """
    if not readable.any():
        return None
    place = storage.same(row["video"])
    narrations = [
        narration | {"weight": round(float(weight), 4)}
        for narration, weight, ok in zip(row["narrations"], weights["vt"], readable, strict=False)
        if ok and (place, narration["text"]) not in labelled
    ]
    if row["narrations"] and not narrations:
        return None
    sound = round(float(weights["va"][readable].mean()), 4)
    if sound == 0 and all(narration["weight"] == 0 for narration in narrations):
        return None
    return row | {"narrations": narrations, "sound_weight": sound}


def text_of(row: dict[str, Any]) -> str:
    """The text of a trusted row; empty without one."""
    return row["narrations"][0]["text"] if row["narrations"] else ""


def as_json(verdicts: dict[str, Verdict], others: dict[str, dict[str, np.ndarray]]) -> str:
    """The numbers of a report."""
    numbers = {
        space: {
            "auroc": verdict.auroc,
            "pairs": verdict.pairs,
            "trusted": verdict.right,
            "able": bool(verdict.able),
            **verdict.share(),
            "thresholds": verdict.thresholds(others[space]),
        }
        for space, verdict in verdicts.items()
    }
    return json.dumps(numbers, indent=1)
