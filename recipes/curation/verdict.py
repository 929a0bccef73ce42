"""What the filters can say of a pair of modalities, and the report that says it."""

import json
from typing import Any

import numpy as np

from recipes.curation.calibration import HeldOut, calibrate, resampled
from recipes.curation.judging import SPACES
from recipes.evaluation import bootstrap
from recipes.evaluation.results import markdown

UNSURE = 0.5  # width of the interval of the share from which nothing is known
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)  # of the pairs that a threshold would keep


class Verdict:
    """What the filters can say of one pair of modalities."""

    def __init__(
        self, scores: np.ndarray, spread: np.ndarray, unseen: np.ndarray, judges: int, held_out: HeldOut, draws: int
    ) -> None:
        """Calibrate by the clips that no filter has learnt from, also with trusted recordings that are drawn anew."""
        self.scores, self.auroc = scores, held_out.auroc
        self.pairs, self.right = int(np.isfinite(scores).sum()), len(held_out.right)
        self.able = held_out.enough and self.pairs > 0
        if not self.able:
            return
        to_fit = scores[unseen], spread[unseen], judges, held_out
        self.calibration, self.drawn = calibrate(*to_fit), resampled(*to_fit, draws)
        gaps = np.array([fitted.right.mean - fitted.wrong.mean for fitted in (self.calibration, *self.drawn)])
        low, high = self.interval()
        self.able = bool(bootstrap.interval(gaps)[0] > 0 and high - low <= UNSURE)

    def weights(self) -> np.ndarray:
        """Weights (N,): probabilities that pairs are right; 1 where there is no pair, or the filters know nothing."""
        if not self.able:
            return np.ones(len(self.scores))
        return self.calibration.weights(self.scores)

    def interval(self) -> tuple[float, float]:
        """95% interval of the share of right pairs."""
        return bootstrap.interval(np.array([fitted.share for fitted in self.drawn]))

    def thresholds(self, others: dict[str, np.ndarray]) -> list[dict[str, float]]:
        """Precision and recall of what each share of the pairs would keep.

        They are sums of the probabilities that pairs are right. Of another kind of wrong pairs, of which held-out
        scores ``others`` are known: the precision if all wrong ones were of that kind.
        """
        known = np.sort(self.scores[np.isfinite(self.scores)])[::-1]
        right = np.stack([np.cumsum(fitted.posterior(known)) for fitted in (self.calibration, *self.drawn)])
        rows = []
        for share in SHARES:
            number = max(round(share * len(known)), 1)
            row = {"kept": share, "threshold": float(known[number - 1])}
            sums = right[:, number - 1]
            for name, values in (("precision", sums / number), ("recall", sums / np.maximum(right[:, -1], 1e-9))):
                row[name] = float(values[0])
                row[f"{name} low"], row[f"{name} high"] = bootstrap.interval(values[1:])
            for kind, scores in others.items():
                if len(scores):
                    row[f"precision, {kind}"] = self._precision_of(row["threshold"], scores)
            rows.append(row)
        return rows

    def _precision_of(self, threshold: float, wrong: np.ndarray) -> float:
        """If the wrong pairs scored as these do; filters apart, so it is a lower bound."""
        share = self.calibration.share
        kept, passed = share * self.calibration.recall(threshold), float((wrong > threshold).mean())
        return kept / max(kept + (1 - share) * passed, 1e-12)


def as_markdown(space: str, verdict: Verdict, others: dict[str, np.ndarray]) -> str:
    """The part of the report about one pair of modalities."""
    lines = [
        f"### Video and {SPACES[space]}",
        "",
        f"{verdict.pairs} pairs; {verdict.right} trusted ones, each judged by a filter that did not learn from it. A "
        f"filter tells a trusted pair from an exchanged one with AUROC {verdict.auroc:.3f}.",
        "",
    ]
    if not verdict.able:
        return "\n".join([*lines, "**The filters cannot say how many are right: all weights stay 1.**"])
    low, high = verdict.interval()
    share = f"**{verdict.calibration.share:.0%} of the pairs are right** (95% interval {low:.0%} to {high:.0%})."
    lines += [share, ""]
    rows = []
    for row in verdict.thresholds(others):
        shown = {"keeping the best": f"{row['kept']:.0%}", "score above": f"{row['threshold']:.2f}"}
        for name in ("precision", "recall"):
            shown[name] = f"{row[name]:.0%} ({row[f'{name} low']:.0%} to {row[f'{name} high']:.0%})"
        shown |= {name: f"{row[name]:.0%}" for name in row if name.startswith("precision, ")}
        rows.append(shown)
    return "\n".join([*lines, markdown(rows).strip()])


def as_json(verdicts: dict[str, Verdict], others: dict[str, dict[str, np.ndarray]]) -> str:
    """The numbers of a report."""
    numbers = {space: _numbers(verdict, others[space]) for space, verdict in verdicts.items()}
    return json.dumps(numbers, indent=1)


def _numbers(verdict: Verdict, others: dict[str, np.ndarray]) -> dict[str, Any]:
    numbers = {"pairs": verdict.pairs, "trusted": verdict.right, "able": verdict.able}
    if not verdict.able:
        return numbers
    low, high = verdict.interval()
    share = {"auroc": verdict.auroc, "share": verdict.calibration.share, "low": low, "high": high}
    return numbers | share | {"thresholds": verdict.thresholds(others)}
