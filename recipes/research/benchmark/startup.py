"""Time and memory to the first step on a synthetic index in HowTo100M's layout, by size: `pretrain --dry-run` on it.

python -m recipes.research.benchmark.startup --config recipes/configs/vatt_small_one_gpu.yaml --videos 5000 10000 --to 1000000

Two sizes are measured, each in a process of its own; time grows in proportion from the larger, memory along a line.
The videos are small files of noise, so reading their ends is as fast as the cache of a disk; the evaluation is not
measured here.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from recipes.evaluation.results import markdown

WORDS, BYTES = 10, 4096  # of a narration, and of a video
RUN = """
import json, sys
from recipes.config import load
from recipes.evaluation.plan import rehearse
print(json.dumps(rehearse(load(sys.argv[1], sys.argv[2:]))[0]))
"""


def write_index(folder: Path, videos: int, narrations: int) -> Path:
    """A folder in HowTo100M's layout, whose videos are noise."""
    rng = random.Random(0)
    words = [f"word{i}" for i in range(100_000)]
    (folder / "videos").mkdir(parents=True)
    names = [f"video{number:08d}" for number in range(videos)]
    (folder / "HowTo100M_v1.csv").write_text("video_id\n" + "\n".join(names), encoding="utf-8")
    with (folder / "raw_caption.json").open("w", encoding="utf-8") as file:
        for number, name in enumerate(names):
            (folder / "videos" / f"{name}.mp4").write_bytes(rng.randbytes(BYTES))
            start = [3.0 * n for n in range(narrations)]
            # words are as rare as in a language: of a rank in proportion to its inverse
            text = [" ".join(words[int(100_000 ** rng.random()) - 1] for _ in range(WORDS)) for _ in start]
            entry = json.dumps({"start": start, "end": [s + 3 for s in start], "text": text})
            file.write(f"{',' if number else '{'}\n{json.dumps(name)}: {entry}")
        file.write("}")
    return folder


def measure(config: Path, videos: int, narrations: int, overrides: list[str]) -> dict[str, list[float]]:
    """The phases of a dry run on so many videos: {phase: [seconds, GB]}."""
    with tempfile.TemporaryDirectory() as place:
        folder = write_index(Path(place) / "howto100m", videos, narrations)
        command = [sys.executable, "-c", RUN, str(config), f"data.manifest={folder}", "evaluate.untrained=false"]
        done = subprocess.run([*command, *overrides], check=True, stdout=subprocess.PIPE, text=True)
    phases: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return phases


def line(x: tuple[float, float], y: tuple[float, float], to: float) -> float:
    """Where a straight line through two points is; level where it would fall."""
    return max(y[1] + (y[1] - y[0]) / (x[1] - x[0]) * (to - x[1]), y[1])


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m recipes.research.benchmark.startup", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("--config", type=Path, required=True)
    p.add_argument("--videos", type=int, nargs=2, default=(5000, 10000), help="two sizes to measure")
    p.add_argument("--narrations", type=int, default=100, help="of a video (default: %(default)s)")
    p.add_argument("--to", type=int, default=1_000_000, help="videos to extrapolate to (default: %(default)s)")
    p.add_argument("overrides", nargs="*", metavar="key=value")
    options = p.parse_intermixed_args(arguments)
    sizes = tuple(sorted(options.videos))
    measured = [measure(options.config, n, options.narrations, options.overrides) for n in sizes]
    rows, total, peak = [], 0.0, 0.0
    for name in measured[0]:
        seconds = measured[1][name][0] * options.to / sizes[1]
        memory = line(sizes, (measured[0][name][1], measured[1][name][1]), options.to)
        total, peak = total + seconds, max(peak, memory)
        rows.append(
            {
                "phase": name,
                **{
                    f"{n} videos": f"{m[name][0]:.1f} s, {m[name][1]:.2f} GB"
                    for n, m in zip(sizes, measured, strict=True)
                },
                f"{options.to} videos, extrapolated": f"{seconds:.0f} s, {memory:.1f} GB",
            }
        )
    rows.append({"phase": "to step 0", f"{options.to} videos, extrapolated": f"{total:.0f} s, {peak:.1f} GB"})
    print(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
