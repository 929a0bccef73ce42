"""Zero-shot retrieval: videos by text and by sound, texts by video."""

import argparse
from typing import Any

from recipes.data.clips import NarratedClips
from recipes.data.index import load_index
from recipes.data.inputs import eval_clips
from recipes.data.splits import train_and_test
from recipes.evaluation import ranking
from recipes.evaluation.embedding import Embedded, embed
from recipes.evaluation.results import Result
from recipes.trimodal.build import device_of
from recipes.trimodal.restore import restore

NAME = "retrieval"
HELP = "zero-shot retrieval of videos by text and by sound, and of texts by video"
DIRECTIONS = ("text->video", "video->text", "audio->video")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this task."""
    parser.add_argument("--windows", type=int, default=1, help="of each clip, averaged (default: %(default)s)")


def run(options: argparse.Namespace) -> Result:
    """Evaluate a checkpoint on what `options.data` names, or on what its run held out."""
    folder, config, tokenizer, modules = restore(options.checkpoint)
    modules.to(device_of(config))
    index = train_and_test(config).test if options.data is None else load_index(options.data)
    clips = eval_clips(index, tokenizer, config.clip, options.windows)
    embedded = embed(modules, clips, config, config.data.workers)
    results = retrieve(embedded, clips)
    return Result(
        task=NAME,
        checkpoint=str(folder),
        data=options.data or config.data_name,
        protocol={"windows": options.windows},
        counts={"clips": len(embedded.items), "skipped": len(embedded.skipped)},
        figures=results,
        table=table({str(options.checkpoint): results}),
        skipped=embedded.skipped,
    )


def retrieve(
    embedded: Embedded, clips: NarratedClips, directions: tuple[str, ...] = DIRECTIONS
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
    """The video that each clip is of, by the id of the first row that has it."""
    names: dict[str, str] = {}
    for row in clips.index.select_columns(["id", "video"]):
        names.setdefault(row["video"], row["id"])
    videos = clips.index["video"][:]
    return [names[videos[clips.row((item, 0))]] for item in embedded.items]


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Markdown table of {model: {direction: figures}}."""
    lines = ["| task | model | R@1 | R@5 | R@10 | 95% interval of R@10 | chance R@10 | MedR | clips |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for task in next(iter(results.values())):
        for model, by_task in results.items():
            r = by_task[task]
            low, high = r["R@10_interval"]
            recalls = " | ".join(f"{100 * r[f'R@{k}']:.1f}" for k in ranking.RECALLS)
            lines.append(
                f"| {task} | {model} | {recalls} | {100 * low:.1f} to {100 * high:.1f} | {100 * r['R@10_chance']:.1f} "
                f"| {r['median_rank']:g} | {r['pairs']} |"
            )
    return "\n".join(lines)
