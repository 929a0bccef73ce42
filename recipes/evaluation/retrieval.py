"""Zero-shot retrieval: videos by text and by sound, texts by video, as VATT evaluates it."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

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
from recipes.evaluation.results import Reported, Result, markdown, reported
from recipes.model.build import device_of, use_cores
from recipes.restore import overrides_of, own_data, restore

NAME = "retrieval"
HELP = "zero-shot retrieval of videos by text and by sound, and of texts by video"
DIRECTIONS = ("text->video", "video->text", "audio->video")
VOID = 0.5  # chance level from which a recall says nothing: of 20 clips or fewer, 10 are the half
WINDOWS = 4  # of a clip of the sets that VATT is evaluated on


class RetrievalSet(NamedTuple):
    """What to retrieve.

    Attributes:
        name: For people, and to find what others report.
        index: The clips and their texts.
        split: Of the data set, where not all of it is meant.
        missing: How many clips are not in it, as their files are not there.
        windows: Of each clip, by the protocol.
        origins: The video that a clip was cut from, by id, where the data set says so.
    """

    name: str
    index: Dataset
    split: str | None = None
    missing: int = 0
    windows: int = 1
    origins: dict[str, str] = {}  # noqa: RUF012


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this task."""
    parser.add_argument("--split", help="rows of --data to evaluate (default: all; of YouCook2 'validation')")
    parser.add_argument(
        "--windows", type=int, help=f"of each clip, averaged (default: 1; of MSR-VTT and YouCook2 {WINDOWS})"
    )


def run(options: argparse.Namespace) -> Result:
    """Evaluate a checkpoint on what `options.data` names, or on what its run held out."""
    overrides = overrides_of(options)
    folder, config, tokenizer, modules = restore(options.checkpoint, device=options.device, overrides=overrides)
    data = load(options.data, options.split, config, tokenizer)
    windows = data.windows if options.windows is None else options.windows
    if windows < 1:
        raise ConfigError(f"--windows {windows}: expected 1 or more")
    leaks = leakage.check(folder, data.index, data.origins, options.allow_leakage)
    modules.to(device_of(config))
    use_cores(config)
    clips = EvalClips(data.index, tokenizer, config.clip, windows)
    embedded = embed(modules, clips, config, config.data.workers)
    figures = retrieve(embedded, clips)
    others = [row for row in reported(NAME, data.name) if row.part in figures]
    counts = {"clips": len(embedded.items), "skipped": len(embedded.skipped), "missing": data.missing}
    return Result(
        task=NAME,
        checkpoint=folder,
        data=data.name,
        protocol={"path": options.data, "split": data.split, "windows": windows, "window": asdict(config.clip)},
        counts=counts,
        leakage=leaks,
        figures=figures,
        table=table({f"{options.checkpoint}{leaks.mark}": figures}, others),
        skipped=embedded.skipped,
    )


def load(data: str | None, split: str | None, config: Config, tokenizer: Tokenizer) -> RetrievalSet:
    """Read MSR-VTT, YouCook2, or whatever else `load_index` reads; None is what the run held out and evaluated.

    Raises:
        ConfigError: A split of held-out clips.
        FileNotFoundError, ValueError: See `load_index`.
    """
    if data is None:
        if split is not None:
            raise ConfigError(f"--split {split}: of what the run held out there is none; name --data")
        test = limited(own_data(config).test, tokenizer, config.clip.words, config.evaluate.limit)
        return RetrievalSet(f"held out of {config.data_name}", test)
    root = Path(data).expanduser()
    layout = next((layout for layout in (msrvtt, youcook2) if (root / layout.TABLE).is_file()), None)
    if layout is None:
        return RetrievalSet(data, load_index(data, split), split)
    split = split or layout.SPLIT
    index = load_index(data, split)
    listed = sum(row["split"] == split for row in layout.annotated(root))
    origins = msrvtt.origins(root) if layout is msrvtt else {}
    return RetrievalSet(layout.TITLE, index, split, listed - len(index), WINDOWS, origins)


def retrieve(
    embedded: Embedded, clips: NarratedClips, directions: Sequence[str] = DIRECTIONS
) -> dict[str, dict[str, Any]]:
    """Retrieval in those directions for which there is anything.

    Args:
        embedded: Those clips that could be read.
        clips: From which intervals know which of them are of one video.
        directions: "query->item".

    Returns:
        {direction: figures}.
    """
    spaces = {"text->video": ("vt", 1), "video->text": ("vt", 0), "audio->video": ("va", 1)}
    valid = {"vt": embedded.text_valid, "va": embedded.audio_valid}
    videos = videos_of(embedded, clips)
    results = {}
    for direction in directions:
        space, query = spaces[direction]
        there = valid[space]
        if there.any():
            queries, items = (embedded.spaces[space][side][there] for side in (query, 1 - query))
            groups = [video for video, has in zip(videos, there.tolist(), strict=True) if has]
            results[direction] = ranking.evaluate(queries, items, groups).as_dict()
    return results


def videos_of(embedded: Embedded, clips: NarratedClips) -> list[str]:
    """The video (or group) that each clip is of, by the id of its first clip."""
    names: dict[str, str] = {}
    rows = (clips.index[clips.row((item, 0))] for item in embedded.items)
    return [names.setdefault(unit(row), row["id"]) for row in rows]


def table(results: dict[str, dict[str, dict[str, Any]]], others: Sequence[Reported] = ()) -> str:
    """Markdown table of {model: {direction: figures}}, and below each direction what others report."""
    rows = []
    for direction in next(iter(results.values())):
        rows += [_row(direction, model, figures[direction]) for model, figures in results.items()]
        rows += [_row(direction, row.cited, row.figures) for row in others if row.part == direction]
    return markdown(rows)


def _row(direction: str, model: str, figures: dict[str, Any]) -> dict[str, str]:
    low, high = figures.get("R@10_interval", (None, None))
    return {
        "task": direction,
        "model": model,
        **{f"R@{k}": _percent(figures.get(f"R@{k}")) for k in ranking.RECALLS},
        "95% interval of R@10": f"{_percent(low)} to {_percent(high)}" if low is not None else "",
        "chance R@10": _percent(figures.get("R@10_chance")),
        "MedR": f"{figures['median_rank']:g}",
        "MeanR": f"{figures['mean_rank']:.1f}" if "mean_rank" in figures else "",
        "clips": _clips(figures),
    }


def _clips(figures: dict[str, Any]) -> str:
    """How many clips were ranked; among so few that chance alone finds most of them, R@10 says nothing."""
    pairs = figures.get("pairs", "")
    return f"{pairs} (R@10 void: by chance {_percent(chance)})" if (chance := void(figures)) else str(pairs)


def void(figures: dict[str, Any]) -> float | None:
    """The R@10 of a random order where it is half or more, so that the figure says nothing; else None."""
    chance = figures.get("R@10_chance")
    return chance if chance is not None and chance >= VOID else None


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
