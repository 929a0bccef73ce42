"""Find where the time of a clip goes, from its file to the batch in the training process.

python -m recipes.research.benchmark loader --config recipes/configs/demo.yaml [recipe.data.manifest=MANIFEST]
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from itertools import islice
from typing import Any
from unittest.mock import patch

import torch

from recipes.config import Config
from recipes.data import clips, decode, storage, vocabulary
from recipes.data.index import captions
from recipes.data.sampler import BatchSampler
from recipes.data.workers import Loader
from recipes.errors import DataError
from recipes.keys import key, section
from recipes.progress import progress_bar
from recipes.research.benchmark import machine, tables
from recipes.research.benchmark.racing import quartiles
from recipes.research.benchmark.suite import RecipeCommand, SuiteKeys, demo
from recipes.splits import train_and_test

# The functions that make a stage. What one of them calls and is timed itself counts there alone.
STAGES: dict[str, list[tuple[Any, str]]] = {
    "open, header": [(storage, "open_bytes"), (decode, "_open"), (decode.Clip, "__init__")],
    "seek, demux": [(decode.Clip, "_packets")],
    "decode pictures": [(decode.Clip, "pictures")],
    "scale, convert": [(decode, "_rgb")],
    "decode sound": [(decode.Clip, "sound")],
    "augment pictures": [(clips, "augment")],
    "augment sound": [(clips, "add_noise")],
    "tokenize": [(clips, "nearest"), (clips, "encode_captions")],
    "collate": [(clips, "collate")],
}
REST = "the rest"  # rows of the index, random numbers, closing
WHOLE = "all of these"
MOVE = "from a worker to the training process"
SENT = 12  # batches that are moved in a round, and as many to get going


@dataclass
class LoaderKeys(SuiteKeys):
    """What to read."""

    rounds: int = key(9, "batches to read", least=1)
    recipe: Config = section(demo, "the run; its data, clips and batch size count")


class Stopwatch:
    """Seconds of this process by stage, waiting not counted; while one runs, the one around it stands still."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys([*STAGES, REST], 0.0)
        self.running, self.since = [REST], time.process_time()

    def stop(self) -> None:
        """Give the time since the last call to the stage that runs."""
        now = time.process_time()
        self.seconds[self.running[-1]] += now - self.since
        self.since = now

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, on the clock of a stage."""

        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self.stop()
            self.running.append(stage)
            try:
                return function(*args, **kwargs)
            finally:
                self.stop()
                self.running.pop()

        return wrapper

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, the functions of the stages are timed."""
        with ExitStack() as stack:
            for stage, functions in STAGES.items():
                for owner, name in functions:
                    stack.enter_context(patch.object(owner, name, self.timed(stage, getattr(owner, name))))
            yield


def run(settings: LoaderKeys) -> None:
    seconds, counts = measure(settings.recipe, settings.rounds)
    rows = records(seconds, settings.recipe, counts | machine.facts("cpu"))
    text = report(seconds, rows[0])
    tables.show(text, tables.write(settings.out, "loader", rows, text))


def measure(config: Config, rounds: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Read training batches, in this process on one thread, and send one from a worker.

    Each round is one batch, and `SENT` that are sent. Returned are the seconds per clip of each round, by stage, and
    counts: clips per batch, bytes per clip, clips that were read, and those of them that could not be.
    """
    train, _, sources = train_and_test(config)
    tokenizer = vocabulary.build(captions(train), config.data.vocabulary)
    dataset = clips.TrainClips(train, tokenizer, config.clip, config.train.seed, config.augment)
    batches = iter(BatchSampler(sources, config.train.batch_size, config.train.seed))
    seconds: dict[str, list[float]] = {stage: [] for stage in [*STAGES, REST, WHOLE, MOVE]}
    torch.set_num_threads(1)  # as in a worker
    batch = clips.collate([dataset[key] for key in next(batches)])  # the first one is slower
    if "video" not in batch:
        raise DataError(f"no clip of the first batch can be read; the first is {batch['skipped'][0]}")
    size = len(batch["id"])
    tensors = [value for value in batch.values() if isinstance(value, torch.Tensor)]
    counts = {"batch": size, "bytes": sum(t.nbytes for t in tensors) // size, "skipped": 0, "clips": 0}
    for visits in progress_bar(iterable=list(islice(batches, rounds)), desc="loader", unit="round"):
        watch = Stopwatch()
        with watch.watching():
            read = clips.collate([dataset[key] for key in visits])
            watch.stop()
        counts["skipped"] += len(read["skipped"])
        counts["clips"] += len(visits)
        spent = watch.seconds | {WHOLE: sum(watch.seconds.values())}
        for stage, total in spent.items():
            seconds[stage].append(total / len(visits))
        seconds[MOVE].append(move(batch) / size)
    return seconds, counts


class Nothing:
    """Clips that take no time."""

    index = None

    def row(self, key: int) -> int:
        return key

    def __getitem__(self, key: int) -> clips.Skipped:
        return clips.Skipped("", "")


def move(batch: dict[str, Any]) -> float:
    """Seconds that it takes to bring a batch from a worker into this process, where nothing else is done."""
    batches = iter(Loader(Nothing(), [[0]] * 2 * SENT, partial(_ready, batch), workers=1, timeout=60.0))
    for _ in range(SENT):
        next(batches)
    start = time.perf_counter()
    for _ in batches:
        pass
    return (time.perf_counter() - start) / SENT


def _ready(batch: dict[str, Any], _: list[clips.Skipped]) -> dict[str, Any]:
    return batch


def records(seconds: dict[str, list[float]], config: Config, about: dict[str, Any]) -> list[dict[str, Any]]:
    whole = quartiles(seconds[WHOLE])[1]
    clip = {name: getattr(config.clip, name) for name in ("frames", "fps", "size", "sample_rate", "audio_seconds")}
    run_facts = {"clips_per_second": 1 / whole, "data": config.data.manifest or config.corpus.style} | clip | about
    rows = []
    for stage, values in seconds.items():
        low, median, high = (1e3 * value for value in quartiles(values))
        row = {"stage": stage, "ms": median, "ms_low": low, "ms_high": high, "share": median / whole / 1e3}
        rows.append(row | run_facts)
    return rows


def report(seconds: dict[str, list[float]], first: dict[str, Any]) -> str:
    """Markdown table; ``first`` is the record of the first stage."""
    whole = quartiles(seconds[WHOLE])[1]
    cells = []
    for stage, values in seconds.items():
        share = "" if stage == MOVE else f"{quartiles(values)[1] / whole:.0%}"
        cells.append([stage, tables.median([1e3 * value for value in values], 2), share])
    lines = [
        "## What a clip costs: {data}",
        "",
        "{frames} pictures of {size} px at {fps:g} fps, {audio_seconds:g} s of sound at {sample_rate} Hz; {machine}, "
        "torch {torch}, {date}. Time of one core; medians over batches, quartiles in brackets, of {clips} clips, "
        "{skipped} of them skipped.",
        "",
        *tables.markdown(["stage", "ms per clip", "share"], cells),
        "",
        "**{clips_per_second:.1f} clips/s per core**; {megabytes:.2f} MB per clip are moved.",
    ]
    return ("\n".join(lines) + "\n").format(**first, megabytes=first["bytes"] / 1e6)


COMMAND = RecipeCommand("recipes.research.benchmark loader", __doc__, LoaderKeys, run)
