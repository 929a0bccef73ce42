"""Time and memory to the first step on a synthetic index in HowTo100M's layout, by size.

python -m recipes.research.benchmark startup --config recipes/configs/vatt_small_one_gpu.yaml videos=[5000,10000]

Two sizes are measured, each in a process of its own: the timed phases of `pretrain --dry-run`. Time grows in proportion
from the larger, memory along a line. The videos are small files of noise, so reading their ends is as fast as the cache
of a disk; the evaluation is not measured here.
"""

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from recipes import keys
from recipes.config import Config
from recipes.errors import Failure
from recipes.keys import key, section
from recipes.research.benchmark.suite import RecipeCommand, demo
from recipes.research.benchmark.tables import markdown

WORDS, BYTES = 10, 4096  # of a narration, and of a video
VOCABULARY = 100_000
RUN = """
import json, sys
from recipes.config import load
from recipes.evaluation.plan import rehearse
print(json.dumps(rehearse(load(sys.argv[1]))[0]))
"""
Phases = dict[str, tuple[float, float]]  # seconds, and the peak of memory in GB


@dataclass
class StartupKeys:
    """The sizes, and the run that starts."""

    videos: tuple[int, int] = key((5000, 10_000), "two sizes to measure", least=1)
    narrations: int = key(100, "of a video", least=1)
    to: int = key(1_000_000, "videos to extrapolate to", least=1)
    recipe: Config = section(demo, "the run; its data are those of the synthetic index")

    def problems(self) -> Iterator[str]:
        if self.videos[0] == self.videos[1]:
            yield f"videos={list(self.videos)} must be two sizes"


def run(settings: StartupKeys) -> None:
    """Measure both sizes, and print what follows for a larger one."""
    small, large = sorted(settings.videos)
    first, second = (measure(settings.recipe, videos, settings.narrations) for videos in (small, large))
    rows, total, peak = [], 0.0, 0.0
    for name, (seconds, memory) in second.items():
        more = seconds * settings.to / large
        most = extrapolated((small, large), (first[name][1], memory), settings.to)
        total, peak = total + more, max(peak, most)
        measured = [f"{s:.1f} s, {m:.2f} GB" for s, m in (first[name], second[name])]
        rows.append([name, *measured, f"{more:.0f} s, {most:.1f} GB"])
    rows.append(["to step 0", "", "", f"{total:.0f} s, {peak:.1f} GB"])
    head = ["phase", f"{small} videos", f"{large} videos", f"{settings.to} videos, extrapolated"]
    print("\n".join(markdown(head, rows)))


def measure(recipe: Config, videos: int, narrations: int) -> Phases:
    """The phases of a dry run on so many videos."""
    with tempfile.TemporaryDirectory() as place:
        folder = write_index(Path(place) / "howto100m", videos, narrations)
        data = replace(recipe.data, manifest=str(folder), sources={}, test=None)
        path = Path(place) / "config.yaml"
        keys.save(replace(recipe, data=data, evaluate=replace(recipe.evaluate, untrained=False)), path)
        done = subprocess.run([sys.executable, "-c", RUN, str(path)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise Failure(f"the dry run on {videos} videos failed, see above")
    phases: Phases = json.loads(done.stdout.splitlines()[-1])
    return phases


def write_index(folder: Path, videos: int, narrations: int) -> Path:
    """A folder in HowTo100M's layout, whose videos are noise."""
    rng = random.Random(0)
    (folder / "videos").mkdir(parents=True)
    names = [f"video{number:08d}" for number in range(videos)]
    (folder / "HowTo100M_v1.csv").write_text("video_id\n" + "\n".join(names), encoding="utf-8")
    start = [3.0 * number for number in range(narrations)]
    with (folder / "raw_caption.json").open("w", encoding="utf-8") as file:
        for number, name in enumerate(names):
            (folder / "videos" / f"{name}.mp4").write_bytes(rng.randbytes(BYTES))
            text = [" ".join(_word(rng) for _ in range(WORDS)) for _ in start]
            entry = json.dumps({"start": start, "end": [s + 3 for s in start], "text": text})
            file.write(f"{',' if number else '{'}\n{json.dumps(name)}: {entry}")
        file.write("}")
    return folder


def _word(rng: random.Random) -> str:
    """Words are as rare as in a language: as often as the inverse of their rank."""
    return f"word{int(VOCABULARY ** rng.random()) - 1}"


def extrapolated(x: tuple[float, float], y: tuple[float, float], to: float) -> float:
    """Where a straight line through two points is at ``to``; level where it would fall."""
    return max(y[1] + (y[1] - y[0]) / (x[1] - x[0]) * (to - x[1]), y[1])


COMMAND = RecipeCommand("recipes.research.benchmark startup", __doc__, StartupKeys, run)
