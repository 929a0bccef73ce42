"""What came of a run: retrieval, a probe of the representation, and which pairs a rule kept."""

import math
from typing import NamedTuple

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from recipes.evaluation import ranking
from recipes.research.study.clips import Clips, World
from recipes.research.study.noise import Noisy

BATCH = 256  # clips that are embedded at once


class Seen(NamedTuple):
    """One step: rows (B,), weights (B, K) of their pairs, and cosines, where gradients were read."""

    rows: Tensor
    weights: Tensor
    cosines: Tensor | None


@torch.no_grad()
def embed(modules: nn.ModuleDict, clips: Clips) -> dict[str, Tensor]:
    """The video's "representation" (N, D), without dropout, and embeddings "va video", "va other", "vt ..." (N, D')."""
    modules.eval()
    parts = []
    for rows in torch.arange(len(clips)).split(BATCH):
        representation = modules["model"](**clips.batch(rows))
        part = {"representation": representation["video"]}
        for space, (video, other) in modules["objective"].project(representation).items():
            part |= {f"{space} video": video, f"{space} other": other.flatten(1)}
        parts.append(part)
    modules.train()
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def retrieve(modules: nn.ModuleDict, world: World) -> dict[str, float]:
    """Retrieval of the videos of the test clips by their texts and by their sounds."""
    embeddings = embed(modules, world.test)
    text, sound = (  # no two test clips are copies of each other
        ranking.ranks(embeddings[f"{space} other"], embeddings[f"{space} video"], tie=0.0) for space in ("vt", "va")
    )
    rare = world.rare[world.test.concept]
    return {
        **{f"text R@{k}": _recall(text, k) for k in ranking.RECALLS},
        "text median rank": float(text.double().median()),
        "text R@10 rare": _recall(text[rare], 10),
        "sound R@10": _recall(sound, 10),
    }


def probe(modules: nn.ModuleDict, world: World) -> float:
    """Test accuracy of a logistic regression of concepts on the video's representation, fitted to clean clips."""
    train, test = (embed(modules, clips)["representation"].double().numpy() for clips in (world.train, world.test))
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    classifier.fit(train, world.train.concept.numpy())
    return float(classifier.score(test, world.test.concept.numpy()))


def kept(seen: list[Seen], noisy: Noisy, rare: Tensor) -> dict[str, float]:
    """What a rule kept in some steps.

    Mean weight of the pairs of each loss, the share of it on aligned pairs, the mean weight of clips of rare concepts;
    mean cosine and share of negative ones, NaN for rules that read no gradients.
    """
    rows = torch.cat([step.rows for step in seen])
    weights = torch.cat([step.weights for step in seen]).double()
    aligned = noisy.aligned[rows].double()
    cosines = torch.cat([torch.empty(0), *(step.cosines for step in seen if step.cosines is not None)]).double()
    cosines = cosines[~cosines.isnan()]
    total, good = weights.sum(0).tolist(), (weights * aligned).sum(0).tolist()
    return {
        **{f"kept {pair}": total[k] / len(rows) for k, pair in enumerate(("va", "vt"))},
        **{f"kept aligned {pair}": good[k] / total[k] if total[k] else math.nan for k, pair in enumerate(("va", "vt"))},
        "kept rare": float(weights[rare[noisy.clips.concept[rows]]].mean()),
        "cosine": float(cosines.mean()),
        "negative": float((cosines < 0).double().mean()),
    }


def _recall(ranks: Tensor, k: int) -> float:
    return float((ranks <= k).double().mean())
