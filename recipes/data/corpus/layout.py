"""Builds the corpus: renders every planned video in parallel and lays the files out as HowTo100M does."""

import csv
import json
import os
import shutil
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from recipes.files import locks
from recipes.progress import progress_bar

from .plan import STYLES, Plan, plan_video
from .scene import draw
from .sound import synthesise
from .thing import SHAPES
from .write import write_mp4

AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
KEYS = ("start", "end", "text")  # of a narration, in both layouts
# Labelled manifests: of what is shown or heard in a segment, and which words say it; colour cannot be heard.
LABELS = {
    "shapes.jsonl": ("shown", ("shape",)),
    "colours.jsonl": ("shown", ("colour",)),
    "tags.jsonl": ("heard", ("shape", "texture", "motion")),
}


def build(
    out: Path,
    style: str,
    videos: int = 320,
    test_videos: int = 60,
    seed: int = 0,
    size: int = 96,
    fps: int = 10,
    sample_rate: int = 16000,
    workers: int | None = None,
    force: bool = False,
) -> Path:
    """Build a corpus. The same style, seed and sizes give the same content.

    Written are `videos/<video_id>.mp4`, `HowTo100M_v1.csv` and `raw_caption.json` (training videos), `test.jsonl`
    (a manifest of the held-out videos, clean in every style), `truth.jsonl` (what the training narrations are worth:
    for evaluation, never for training), and labelled manifests of the segments of all videos: `shapes.jsonl` and
    `colours.jsonl` of what is shown, `tags.jsonl` of what is heard. About 2% of the training videos have no
    narration (empty lists in `raw_caption.json`), and about 2% no audio track.

    The folder appears only when it is complete: a build that dies leaves at most a hidden `.partial` folder beside it.

    Args:
        out: folder to create.
        style: `narrated` (mostly aligned) or `wild` (most texts do not belong).
        videos: number of training videos.
        test_videos: number of held-out videos.
        seed: seed of everything.
        size: height and width of the frames in pixels, even.
        fps: frames per second.
        sample_rate: samples per second of the sound; one that AAC knows.
        workers: processes; default all cores, 1 works in this process.
        force: replace a corpus that is already at `out`.

    Returns:
        `out`.

    Raises:
        ValueError: an argument is out of range.
        FileExistsError: `out` exists, and `force` is not given or it is not a corpus.
        locks.Held: Another process builds it.
    """
    _check(style, videos, test_videos, seed, size, fps, sample_rate, workers)
    with locks.hold(Path(out)):
        return _build(Path(out), style, videos, test_videos, seed, size, fps, sample_rate, workers, force)


def _build(
    out: Path, style: str, videos: int, test_videos: int, seed: int, size: int, fps: int, sample_rate: int,
    workers: int | None, force: bool,
) -> Path:  # fmt: skip
    if out.exists() and not force:
        raise FileExistsError(f"{out} exists already; choose another folder, remove it, or use --force to replace it")
    if out.exists() and not (out / "truth.jsonl").is_file():
        raise FileExistsError(f"{out} exists and is not a corpus (it has no truth.jsonl); it is left as it is")

    began = time.perf_counter()
    train = [plan_video(style, seed, index) for index in range(videos)]
    test = [plan_video(style, seed, index, held_out=True) for index in range(test_videos)]
    partial_out = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial_out, ignore_errors=True)  # of a build that was killed
    try:
        (partial_out / "videos").mkdir(parents=True)
        _render_all(train + test, partial_out / "videos", size, fps, sample_rate, workers or os.cpu_count() or 1)
        _write_howto100m(partial_out, train)
        _write_lines(partial_out / "truth.jsonl", [row for plan in train for row in plan.truth()])
        _write_lines(partial_out / "test.jsonl", [_manifest_row(plan) for plan in test])
        for name, (sense, words) in LABELS.items():
            parts = (("train", train), ("test", test))
            rows = [row for split, plans in parts for plan in plans for row in _labelled(plan, split, sense, words)]
            _write_lines(partial_out / name, rows)
        if out.exists():
            shutil.rmtree(out)
        os.replace(partial_out, out)
    finally:
        shutil.rmtree(partial_out, ignore_errors=True)
    narrations = sum(len(plan.narrations) for plan in train)
    held_out = sum(len(plan.narrations) for plan in test)
    megabytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    print(
        f"{out}: {style}, {videos} training videos with {narrations} narrations, {test_videos} held-out with "
        f"{held_out}, {megabytes:.0f} MB, {time.perf_counter() - began:.0f} s"
    )
    return out


def render(plan: Plan, folder: Path, size: int, fps: int, sample_rate: int) -> None:
    """Draw, play and encode one video.

    Args:
        plan: what happens in it.
        folder: where `<video_id>.mp4` is written.
        size: height and width in pixels.
        fps: frames per second.
        sample_rate: samples per second.
    """
    picture, noise = (np.random.default_rng([plan.render_seed, stream]) for stream in range(2))
    frames = (frame for segment in plan.segments for frame in draw(segment, fps, size, picture))
    wave = synthesise(plan.segments, sample_rate, noise) if plan.has_audio else None
    write_mp4(folder / f"{plan.video_id}.mp4", frames, fps, wave, sample_rate)


def _check(
    style: str, videos: int, test_videos: int, seed: int, size: int, fps: int, rate: int, workers: int | None
) -> None:
    """Refuse arguments that cannot give a corpus, before any work."""
    wrong = [
        (style not in STYLES, f"style must be one of {', '.join(STYLES)}, got {style!r}"),
        (videos < 1, f"videos must be at least 1, got {videos}"),
        (test_videos < 0, f"test_videos must be 0 or more, got {test_videos}"),
        (seed < 0, f"seed must be 0 or more, got {seed}"),
        (size < 32 or size % 2 != 0, f"size must be even and at least 32 pixels, got {size}"),
        (fps < 1, f"fps must be at least 1, got {fps}"),
        (rate not in AAC_RATES, f"sample_rate must be one of {', '.join(map(str, AAC_RATES))}, got {rate}"),
        (workers is not None and workers < 1, f"workers must be at least 1, got {workers}"),
    ]
    for is_wrong, message in wrong:
        if is_wrong:
            raise ValueError(message)


def _render_all(plans: list[Plan], folder: Path, size: int, fps: int, sample_rate: int, workers: int) -> None:
    """Render the videos, each in one process, with a progress line; the first failure ends it."""
    work = partial(render, folder=folder, size=size, fps=fps, sample_rate=sample_rate)
    if workers == 1:
        for plan in progress_bar(iterable=plans, desc="corpus", unit="video"):
            work(plan)
        return
    # spawn: the caller may have started threads (torch does), which a fork would not survive
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            for _ in progress_bar(iterable=pool.map(work, plans), total=len(plans), desc="corpus", unit="video"):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write_howto100m(folder: Path, plans: list[Plan]) -> None:
    """Write the index and the captions; a video's task is the shape it starts with, as if one had searched for it."""
    rank: Counter[str] = Counter()
    with open(folder / "HowTo100M_v1.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["video_id", "category_1", "category_2", "rank", "task_id"])
        for plan in plans:
            shape = plan.segments[0].heard.shape
            rank[shape] += 1
            table.writerow([plan.video_id, "Objects", shape.capitalize(), rank[shape], SHAPES.index(shape)])
    captions = {plan.video_id: {key: [vars(n)[key] for n in plan.narrations] for key in KEYS} for plan in plans}
    (folder / "raw_caption.json").write_text(json.dumps(captions), encoding="utf-8")


def _manifest_row(plan: Plan) -> dict[str, Any]:
    narrations = [{key: vars(n)[key] for key in KEYS} for n in plan.narrations]
    return {"id": plan.video_id, "video": f"videos/{plan.video_id}.mp4", "split": "test", "narrations": narrations}


def _labelled(plan: Plan, split: str, sense: str, words: tuple[str, ...]) -> list[dict[str, Any]]:
    """One row of a labelled manifest for each segment in which there is something to see or hear."""
    return [
        {
            "id": f"{plan.video_id}/{number}",
            "video": f"videos/{plan.video_id}.mp4",
            "split": split,
            "start": segment.start,
            "end": segment.end,
            "label": [vars(vars(segment)[sense])[word] for word in words],
        }
        for number, segment in enumerate(plan.segments)
        if sense == "shown" or plan.has_audio
    ]


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
