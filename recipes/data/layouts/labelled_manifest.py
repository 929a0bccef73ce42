"""A labelled manifest: a manifest with the classes of each clip, and folds or a split."""

from pathlib import Path
from typing import Any

from recipes.data import manifest
from recipes.data.encoding import clean
from recipes.data.layouts.layout import Labels

PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test"}  # other splits are left alone


def read_labelled_manifest(path: str | Path) -> Labels:
    """Reads a manifest whose rows have a `label` (several: a list, or separated by `|`) and a `fold` or `split`.

    Each fold is a split, which tests on it and trains on the others; without folds, there is one split, "test".
    """
    located = list(manifest.located(path))
    folded = any(_fold(fields) for _, fields, _ in located)
    rows, folds = [], []
    for where, fields, row in located:
        fold, part = _fold(fields), PARTS.get(row["split"].casefold())
        if folded and not fold:
            raise ValueError(f"{where}: expected a 'fold', as other rows have one; found none")
        rows.append(row | {"labels": _labels(where, fields), "parts": {} if folded or not part else {"test": part}})
        folds.append(fold)
    for row, own in zip(rows, folds, strict=True) if folded else ():
        row["parts"] = {fold: "test" if fold == own else "train" for fold in folds}
    if rows and not any(row["parts"] for row in rows):
        raise ValueError(f"{path}: no row has a 'fold', or a 'split' that is train or test: what is to be tested on?")
    return sorted({label for row in rows for label in row["labels"]}), rows


def _fold(fields: dict[str, Any]) -> str:
    fold = fields.get("fold")
    return "" if fold is None else clean(str(fold))


def _labels(where: str, fields: dict[str, Any]) -> list[str]:
    label = fields.get("label")
    labels = label.split("|") if isinstance(label, str) else label
    if not isinstance(labels, list) or not all(isinstance(name, str) and name.strip() for name in labels):
        raise ValueError(
            f"{where}: expected 'label' to be the name of a class, or several in a list or separated by '|'; "
            f"found {label!r:.80}"
        )
    return list(dict.fromkeys(clean(name) for name in labels))
