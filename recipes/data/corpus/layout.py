"""Builds the corpus: renders every planned video in parallel and lays the files out as HowTo100M does."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recipes import keys
from recipes.data.corpus.folder import render_all, whole_folder
from recipes.data.corpus.plan import STYLES, Plan, plan_video
from recipes.data.corpus.scene import draw
from recipes.data.corpus.sound import synthesise
from recipes.data.corpus.thing import SHAPES
from recipes.data.corpus.write import write_mp4
from recipes.files import jsonl, locks
from recipes.keys import key

AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
NARRATION = ("start", "end", "text")  # its fields, in both layouts
# Labelled manifests: of what is shown or heard in a segment, and which words say it; colour cannot be heard.
LABELS = {
    "shapes.jsonl": ("shown", ("shape",)),
    "colours.jsonl": ("shown", ("colour",)),
    "tags.jsonl": ("heard", ("shape", "texture", "motion")),
}


@dataclass
class Corpus:
    """A corpus that is to be built. The same style, seed and sizes give the same content."""

    out: Path = key(meaning="folder to create")
    style: Literal["narrated", "wild"] = key(meaning="narrations mostly fit what is seen; or most do not")
    videos: int = key(320, "to train on", least=1, most=10**7)
    test_videos: int = key(60, "held out", least=0, most=10**7)
    seed: int = key(0, "of everything", least=0)
    labelled: int = key(256, "training narrations that trusted.jsonl labels, as a person would", least=0, most=10**7)
    size: int = key(96, "height and width of the pictures, pixels; even", least=32, most=4096)
    fps: int = key(10, "pictures a second", least=1, most=1000)
    sample_rate: int = key(16000, "samples of sound a second")
    workers: int | None = key(None, "processes; null: as many as there are cores; 1: this one", least=1, most=1024)
    force: bool = key(False, "replace a corpus that is already at out=")

    def problems(self) -> Iterator[str]:
        """What cannot be encoded."""
        if self.style not in STYLES:
            yield f"style={self.style!r} must be one of {', '.join(STYLES)}"
        if self.size % 2:
            yield f"size={self.size} must be even"
        if self.sample_rate not in AAC_RATES:
            yield f"sample_rate={self.sample_rate} must be one of {', '.join(map(str, AAC_RATES))}"


def build(corpus: Corpus) -> Path:
    """Builds a corpus, and returns its folder.

    It holds `videos/<video_id>.mp4`, `HowTo100M_v1.csv` and `raw_caption.json` (training videos), `test.jsonl` (a
    manifest of the held-out videos, clean in every style), `truth.jsonl` (what the training narrations are worth: for
    evaluation, never for training), `trusted.jsonl` (labels of a few training narrations, as `figures label` exports
    them: for `recipes.curate`), and the labelled manifests of `LABELS` (segments of all videos).

    Raises:
        ConfigError: A key is out of range.
        FileExistsError: There is something in its place, and `force` is not given or it is not a corpus.
        locks.Held: Another process builds it.
    """
    keys.check(corpus)
    out = corpus.out
    with locks.hold(out):
        check_out(corpus)
        train, test = _plans(corpus)
        with whole_folder(out) as folder:
            work = partial(render, folder=folder / "videos", corpus=corpus)
            render_all(work, train + test, corpus.workers, "video")
            _write_howto100m(folder, train)
            for name, rows in _manifests(train, test, _labels(train, corpus)):
                (folder / name).write_text(jsonl.as_text(rows), encoding="utf-8")
    return out


def check_out(corpus: Corpus) -> None:
    """Raises a FileExistsError if the folder is taken."""
    out = corpus.out
    if out.exists() and not corpus.force:
        raise FileExistsError(f"{out} exists already; choose another folder, remove it, or replace it: force=true")
    if out.exists() and not (out / "truth.jsonl").is_file():
        raise FileExistsError(f"{out} exists and is not a corpus (it has no truth.jsonl); it is left as it is")


def summary(corpus: Corpus) -> str:
    """What the corpus holds, for people."""
    narrations, held_out = (sum(len(plan.narrations) for plan in plans) for plans in _plans(corpus))
    return (
        f"{corpus.out}: {corpus.style}, {corpus.videos} training videos with {narrations} narrations, "
        f"{corpus.test_videos} held-out with {held_out}"
    )


def render(plan: Plan, folder: Path, corpus: Corpus) -> None:
    """Draw, play and encode one video as `<video_id>.mp4`."""
    picture, noise = (np.random.default_rng([plan.render_seed, stream]) for stream in range(2))
    frames = (frame for segment in plan.segments for frame in draw(segment, corpus.fps, corpus.size, picture))
    wave = synthesise(plan.segments, corpus.sample_rate, noise) if plan.has_audio else None
    write_mp4(folder / f"{plan.video_id}.mp4", frames, corpus.fps, wave, corpus.sample_rate)


def _plans(corpus: Corpus) -> tuple[list[Plan], list[Plan]]:
    train = [plan_video(corpus.style, corpus.seed, index) for index in range(corpus.videos)]
    return train, [plan_video(corpus.style, corpus.seed, index, held_out=True) for index in range(corpus.test_videos)]


def _write_howto100m(folder: Path, plans: list[Plan]) -> None:
    """Writes the index and the captions; the task of a video is its first shape, as if one had searched for that."""
    rank: Counter[str] = Counter()
    with open(folder / "HowTo100M_v1.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["video_id", "category_1", "category_2", "rank", "task_id"])
        for plan in plans:
            shape = plan.segments[0].heard.shape
            rank[shape] += 1
            table.writerow([plan.video_id, "Objects", shape.capitalize(), rank[shape], SHAPES.index(shape)])
    captions = {plan.video_id: {name: [vars(n)[name] for n in plan.narrations] for name in NARRATION} for plan in plans}
    (folder / "raw_caption.json").write_text(json.dumps(captions), encoding="utf-8")


def _labels(plans: list[Plan], corpus: Corpus) -> list[dict[str, Any]]:
    """What somebody would say of some narrations, drawn at random, that had looked at their clips."""
    clips = [(number, row) for plan in plans for number, row in enumerate(plan.truth())]
    drawn = np.random.default_rng([corpus.seed, len(clips)]).permutation(len(clips))[: corpus.labelled]
    return [
        {
            "id": f"{row['video_id']}#{number}",
            "video": f"videos/{row['video_id']}.mp4",
            "group": row["video_id"],
            "split": "train",
            **{name: row[name] for name in NARRATION},
            "text_weight": int(row["aligned"]),
            "sound_weight": int(row["sound_aligned"]),
        }
        for number, row in (clips[place] for place in sorted(drawn))
    ]


def _manifests(
    train: list[Plan], test: list[Plan], labels: list[dict[str, Any]]
) -> Iterator[tuple[str, Iterable[dict[str, Any]]]]:
    """Names and rows of the other files: the truth, what is held out, and the labels of both."""
    yield "trusted.jsonl", labels
    yield "truth.jsonl", (row for plan in train for row in plan.truth())
    yield "test.jsonl", map(_manifest_row, test)
    for name, (sense, words) in LABELS.items():
        parts = (("train", train), ("test", test))
        yield name, (row for split, plans in parts for plan in plans for row in _labelled(plan, split, sense, words))


def _manifest_row(plan: Plan) -> dict[str, Any]:
    narrations = [{name: vars(n)[name] for name in NARRATION} for n in plan.narrations]
    return {"id": plan.video_id, "video": f"videos/{plan.video_id}.mp4", "split": "test", "narrations": narrations}


def _labelled(plan: Plan, split: str, sense: str, words: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """One row of a labelled manifest for each segment in which there is something to see or hear."""
    if sense == "heard" and not plan.has_audio:
        return
    for number, segment in enumerate(plan.segments):
        yield {
            "id": f"{plan.video_id}/{number}",
            "video": f"videos/{plan.video_id}.mp4",
            "split": split,
            "start": segment.start,
            "end": segment.end,
            "label": [vars(vars(segment)[sense])[word] for word in words],
        }
