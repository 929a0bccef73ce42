"""Put captions to the wrong clips, on purpose: a data set with a known share of texts that do not belong.

python -m recipes.data.permute data=corpora/debian/manifest.jsonl out=corpora/debian-permuted

It writes `manifest.jsonl`, which is to be scored or curated, `truth.jsonl`, which no scorer reads, and `trusted.jsonl`:
what a person would say of some of the clips, for `recipes.curate`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recipes import cli
from recipes.cli import Command
from recipes.data import storage
from recipes.data.index import load_index
from recipes.data.manifest import fields_of
from recipes.errors import DataError
from recipes.files import jsonl
from recipes.keys import key


@dataclass
class Permutation:
    """What to permute, and how much."""

    data: str = key(meaning="a manifest, or a folder in any layout; rows with other than one narration are left out")
    out: Path = key(meaning="folder to create")
    share: float = key(1 / 3, "of the clips, drawn at random, that exchange their texts", least=0, most=1)
    seed: int = key(0, "of the draw", least=0)
    labelled: int = key(64, "clips to train on that trusted.jsonl labels, drawn at random", least=0)


def permute(permutation: Permutation) -> Path:
    """Writes a manifest in which a share of the clips have exchanged their texts; returns its path.

    A FileExistsError if ``out`` exists, a DataError if there are too few different texts.
    """
    rows, wrong = _exchanged(permutation)
    out, manifest, truth = permutation.out, [], []
    to_train = [i for i, row in enumerate(rows) if row["split"] not in ("test", "testing")]
    drawn = np.random.default_rng(permutation.seed + 1).permutation(to_train)[: permutation.labelled]
    for i, row in enumerate(rows):
        text = wrong.get(i, _text(row))
        narrations = [row["narrations"][0] | {"text": text}]
        manifest.append(fields_of(row | {"narrations": narrations}, storage.relative(row["video"], out)))
        truth.append({"video_id": row["id"], "text": text, "aligned": i not in wrong})
    labels = [{"split": "train", "text_weight": int(i not in wrong), "sound_weight": 1} for i in drawn]
    trusted = [manifest[i] | label for i, label in zip(drawn, labels, strict=True)]
    out.mkdir(parents=True)
    (out / "trusted.jsonl").write_text(jsonl.as_text(trusted), encoding="utf-8")
    (out / "manifest.jsonl").write_text(jsonl.as_text(manifest), encoding="utf-8")
    (out / "truth.jsonl").write_text(jsonl.as_text(truth), encoding="utf-8")
    return out / "manifest.jsonl"


def _exchanged(permutation: Permutation) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """The rows, and by position the texts of those that get another one."""
    if permutation.out.exists():
        raise FileExistsError(f"{permutation.out} exists already; choose another folder or remove it")
    rows = [row for row in load_index(permutation.data) if len(row["narrations"]) == 1]
    texts = [_text(row) for row in rows]
    rng = np.random.default_rng(permutation.seed)
    chosen = rng.permutation(len(rows))[: round(permutation.share * len(rows))]
    if len(chosen) and len({texts[i] for i in chosen}) < 3:
        raise DataError(
            f"{permutation.data}: of {len(rows)} clips with one narration too few have different texts to exchange"
        )
    return rows, dict(zip(chosen.tolist(), deranged([texts[i] for i in chosen], rng), strict=True))


def _text(row: dict[str, Any]) -> str:
    return row["narrations"][0]["text"]


def deranged(texts: list[str], rng: np.random.Generator) -> list[str]:
    """The same texts in another order, each in a place where an equal one was not; a DataError if none is found."""
    order = rng.permutation(len(texts))
    for _ in range(1000):
        same = [i for i, j in enumerate(order) if texts[i] == texts[j]]
        if not same:
            return [texts[j] for j in order]
        for i in same:  # exchange with any other place
            j = rng.integers(len(texts))
            order[i], order[j] = order[j], order[i]
    raise DataError("the texts cannot be exchanged so that each clip gets another one: one of them is too frequent")


def plan(permutation: Permutation) -> str:
    """How many texts would be exchanged."""
    rows, wrong = _exchanged(permutation)
    return f"{permutation.out}: {len(wrong)} of {len(rows)} texts would be exchanged"


COMMAND = Command("recipes.data.permute", __doc__, Permutation, lambda keys: print(f"written: {permute(keys)}"), plan)
main = COMMAND.main

if __name__ == "__main__":
    cli.exit(main)
