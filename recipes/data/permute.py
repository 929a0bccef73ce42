"""Put captions to the wrong clips, on purpose: a data set with a known share of texts that do not belong.

`python -m recipes.data.permute --data corpora/debian/manifest.jsonl --share 0.33 --out corpora/debian-permuted` writes
`manifest.jsonl`, which is to be scored, and `truth.jsonl`, which no scorer reads.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from recipes.data import storage
from recipes.data.index import load_index
from recipes.data.manifest import fields_of


def permute(data: str, out: Path, share: float, seed: int) -> Path:
    """Write a manifest in which a share of the clips, drawn at random, have exchanged their texts among them.

    Args:
        data: What to permute, as `load_index` reads it; rows with other than one narration are left out.
        out: Folder to create.
        share: Of the clips, in [0, 1].
        seed: Of the draw.

    Returns:
        The manifest.

    Raises:
        FileExistsError: ``out`` exists.
        ValueError: A share that is none; too few different texts to exchange.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"expected a share of the clips, from 0 to 1; got {share:g}")
    if out.exists():
        raise FileExistsError(f"{out} exists already; choose another folder or remove it")
    rows = [row for row in load_index(data) if len(row["narrations"]) == 1]
    texts = [row["narrations"][0]["text"] for row in rows]
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(rows))[: round(share * len(rows))]
    if len(chosen) and len({texts[i] for i in chosen}) < 3:
        raise ValueError(f"{data}: of {len(rows)} clips with one narration too few have different texts to exchange")
    given = deranged([texts[i] for i in chosen], rng)
    wrong = dict(zip(chosen.tolist(), given, strict=True))
    out.mkdir(parents=True)
    with (
        open(out / "manifest.jsonl", "w", encoding="utf-8") as manifest,
        open(out / "truth.jsonl", "w", encoding="utf-8") as truth,
    ):
        for i, row in enumerate(rows):
            text, narration = wrong.get(i, texts[i]), row["narrations"][0]
            fields = fields_of(row | {"narrations": [narration | {"text": text}]}, storage.relative(row["video"], out))
            manifest.write(json.dumps(fields, ensure_ascii=False) + "\n")
            told = {"video_id": row["id"], "text": text, "aligned": i not in wrong}
            truth.write(json.dumps(told, ensure_ascii=False) + "\n")
    return out / "manifest.jsonl"


def deranged(texts: list[str], rng: np.random.Generator) -> list[str]:
    """The same texts in another order in which none is where an equal one was.

    Raises:
        ValueError: There is no such order, or a thousand tries did not find it: one text is too frequent.
    """
    order = rng.permutation(len(texts))
    for _ in range(1000):
        same = [i for i, j in enumerate(order) if texts[i] == texts[j]]
        if not same:
            return [texts[j] for j in order]
        for i in same:  # exchange with any other place
            j = rng.integers(len(texts))
            order[i], order[j] = order[j], order[i]
    raise ValueError("the texts cannot be exchanged so that each clip gets another one: one of them is too frequent")


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m recipes.data.permute", description=__doc__.splitlines()[0])
    p.add_argument("--data", required=True, help="manifest to permute")
    p.add_argument("--out", type=Path, required=True, help="folder to create")
    p.add_argument("--share", type=float, default=1 / 3, help="of the clips (default: a third)")
    p.add_argument("--seed", type=int, default=0)
    options = p.parse_args(arguments)
    try:
        print(f"written: {permute(options.data, options.out, options.share, options.seed)}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
