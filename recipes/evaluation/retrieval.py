"""Zero-shot retrieval: videos by text and by sound, texts by video, as VATT evaluates it.

python -m recipes.evaluate retrieval checkpoint=runs/demo
python -m recipes.evaluate retrieval checkpoint=runs/demo data=msrvtt out=msrvtt.json
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import Dataset
from tokenizers import Tokenizer

from recipes.config import Config
from recipes.data.clips import EvalClips, NarratedClips
from recipes.data.held_out import limited, unit
from recipes.data.index import load_index
from recipes.data.layouts import msrvtt, youcook2
from recipes.errors import ConfigError
from recipes.evaluation import leakage, ranking
from recipes.evaluation.embedding import Embedded, embed
from recipes.evaluation.leakage import Leakage
from recipes.evaluation.results import EvaluationKeys, Figures, Reported, Result, markdown, percent, reported
from recipes.keys import key
from recipes.restore import EmbeddingKeys, Restored, own_data, restore_with

NAME = "retrieval"
DIRECTIONS = ("text->video", "video->text", "audio->video")
VOID = 0.5  # chance level from which R@10 says nothing: of 20 clips or fewer, 10 are the half
WINDOWS = 4  # of a clip of the sets that VATT is evaluated on


@dataclass
class Keys(EvaluationKeys, EmbeddingKeys):
    """What to retrieve, and how."""

    data: str | None = key(None, "a manifest, or a folder in a layout of docs/data.md; null: what the run held out")
    split: str | None = key(None, "rows of the data to evaluate; null: all, and of YouCook2 'validation'")
    windows: int | None = key(
        None, f"windows of each clip, averaged; null: 1, of MSR-VTT and YouCook2 {WINDOWS}", least=1, most=1000
    )


class RetrievalSet(NamedTuple):
    """What to retrieve."""

    name: str  # for people, by which to find what others report
    index: Dataset
    split: str | None = None  # name of the rows, where not all are meant
    missing: int = 0  # clips without a file
    windows: int = 1  # of each clip, by the protocol
    origins: Mapping[str, str] | None = None  # video that a clip was cut from, by id, where the data set says so


class Job(NamedTuple):
    """What is evaluated, on what: the model, the data, its clips, and what is known of their leakage."""

    restored: Restored
    data: RetrievalSet
    clips: EvalClips
    leakage: Leakage


def prepare(keys: Keys) -> Job:
    """Load the checkpoint and the lists of the data."""
    restored = restore_with(keys)
    data = retrieval_set(keys.data, keys.split, restored.config, restored.tokenizer)
    leaks = leakage.check(restored.folder, data.index, data.origins, keys.allow_leakage)
    clips = EvalClips(data.index, restored.tokenizer, restored.config.clip, keys.windows or data.windows)
    return Job(restored, data, clips, leaks)


def plan(keys: Keys) -> str:
    """What would be retrieved."""
    restored, data, clips, leaks = prepare(keys)
    text = f"{restored.folder} would be evaluated on {data.name}: {len(clips)} clips, {clips.windows} window(s) each"
    return f"{text}; missing: {data.missing}; {leaks.summary}."


def run(keys: Keys) -> Result:
    """Evaluate a checkpoint on what `data` names, or on what its run held out."""
    restored, data, clips, leaks = prepare(keys)
    config = restored.config
    embedded = embed(restored.modules, clips, config.evaluate.batch_size, config.data)
    figures = retrieve(embedded, clips)
    return Result(
        task=NAME,
        checkpoint=restored.folder,
        data=data.name,
        protocol={"path": keys.data, "split": data.split, "windows": clips.windows, "window": asdict(config.clip)},
        counts={"clips": len(embedded.items), "skipped": len(embedded.skipped), "missing": data.missing},
        leakage=leaks,
        figures=figures,
        table=table({f"{keys.checkpoint}{leaks.mark}": figures}, reported(NAME, data.name)),
        skipped=embedded.skipped,
    )


def retrieval_set(data: str | None, split: str | None, config: Config, tokenizer: Tokenizer) -> RetrievalSet:
    """Read MSR-VTT, YouCook2, or whatever else `load_index` reads; None is what the run held out and evaluated."""
    if data is None:
        if split is not None:
            raise ConfigError(f"split={split}: what the run held out has no splits; name data=")
        test = limited(own_data(config).test, tokenizer, config.clip.words, config.evaluate.limit)
        return RetrievalSet(f"held out of {config.data_name}", test)
    root = Path(data).expanduser()
    layout = next((layout for layout in (msrvtt, youcook2) if (root / layout.TABLE).is_file()), None)
    if layout is None:
        return RetrievalSet(data, load_index(data, split), split)
    split = split or layout.SPLIT
    index = load_index(data, split)
    listed = sum(row["split"] == split for row in layout.annotated(root))
    origins = msrvtt.origins(root) if layout is msrvtt else None
    return RetrievalSet(layout.TITLE, index, split, listed - len(index), WINDOWS, origins)


def retrieve(embedded: Embedded, clips: NarratedClips, directions: Sequence[str] = DIRECTIONS) -> dict[str, Figures]:
    """{"query->item": figures of `ranking.evaluate`} for the directions in which anything can be retrieved.

    Args:
        embedded: The clips that could be read.
        clips: The data set they are of: intervals take clips of one video together.
        directions: Of `DIRECTIONS`.
    """
    videos, results = units(embedded, clips), {}
    for direction in directions:
        query, item = direction.split("->")
        space, valid = ("va", embedded.audio_valid) if query == "audio" else ("vt", embedded.text_valid)
        if valid.any():
            queries, items = (embedded.vectors[f"{space}_{modality}"][valid] for modality in (query, item))
            results[direction] = ranking.evaluate(queries, items, videos[valid.numpy()])
    return results


def units(embedded: Embedded, clips: NarratedClips) -> np.ndarray:
    """The video or group of each clip (N,), by the id of its first clip."""
    names: dict[str, str] = {}
    rows = (clips.place(item)[0] for item in embedded.items)
    return np.array([names.setdefault(unit(row), row["id"]) for row in rows])


def table(results: dict[str, dict[str, Figures]], others: Sequence[Reported] = ()) -> str:
    """Markdown table of {model: {direction: figures}}, and below each direction what others report."""
    rows = []
    for direction in next(iter(results.values())):
        rows += [_row(direction, model, figures[direction]) for model, figures in results.items()]
        rows += [_row(direction, row.cited, row.figures) for row in others if row.part == direction]
    return markdown(rows)


def _row(direction: str, model: str, figures: Figures) -> dict[str, str]:
    low, high = figures.get("R@10_interval", (None, None))
    chance = figures.get("R@10_chance")
    void = "" if chance is None or chance < VOID else f" (R@10 void: by chance {percent(chance)})"
    return {
        "task": direction,
        "model": model,
        **{f"R@{k}": percent(figures.get(f"R@{k}")) for k in ranking.RECALLS},
        "95% interval of R@10": f"{percent(low)} to {percent(high)}" if low is not None else "",
        "chance R@10": percent(chance),
        "MedR": f"{figures['median_rank']:g}",
        "MeanR": f"{figures['mean_rank']:.1f}" if "mean_rank" in figures else "",
        "clips": f"{figures.get('pairs', '')}{void}",
    }
