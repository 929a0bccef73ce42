"""Model what a run on many processes takes: time, memory, traffic, loader cores, and what gives out first.

python -m recipes.research.benchmark scaling --config recipes/configs/vatt_small_one_gpu.yaml clips_per_core=11
python -m recipes.research.benchmark scaling measure=[2,4] recipe.data.workers=0    traffic, against real runs here

Operations, memory of activations and traffic are counted on the recipe's own model. The keys say how fast a machine
is: their defaults are assumptions about one H100 of a machine with eight, not measurements.
"""

import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recipes import keys
from recipes.config import Config
from recipes.errors import Failure
from recipes.keys import key, section
from recipes.research.benchmark.scaling_counts import FLOAT, Counts, count, traffic
from recipes.research.benchmark.suite import RecipeCommand, demo
from recipes.research.benchmark.tables import markdown

ADAM = 4  # floats of a parameter: itself, its gradient and two moments
GIB = 2**30
STEPS = (4, 12)  # of the two runs whose difference is measured
Row = tuple[str, str, str]  # what, how much, how it follows


@dataclass
class Machine:
    """What each process runs on: all of it is put in."""

    speed: float = key(400.0, "10^12 operations a second, sustained in training", more_than=0)
    network: float = key(25.0, "10^9 bytes a second, sent and at the same time received", more_than=0)
    memory: float = key(80.0, "of the device, GiB", more_than=0)
    cores: int = key(14, "of the loader", least=1)
    clips_per_core: float | None = key(None, "clips a second that a core reads; see the suite loader", more_than=0)
    ratio: float = key(1.35, "time of a harmonized step to that of a plain one", more_than=0)
    ratio_held: float = key(1.96, "memory of its activations to those of a plain step", more_than=0)

    def __str__(self) -> str:
        return (
            f"Put in, for each process: {self.speed:g} T operations/s, {self.network:g} GB/s, {self.cores} loader "
            f"cores, {self.clips_per_core:g} clips/s each; a harmonized step takes {self.ratio:g} times as long as a "
            f"plain one, and {self.ratio_held:g} times the activations."
        )


@dataclass
class ScalingKeys(Machine):
    """The machine, the run, and how many processes."""

    processes: list[int] = key([256], "processes to model", least=1)
    measure: list[int] = key([], "train on so many processes here instead, as root, and measure the traffic", least=2)
    recipe: Config = section(demo, "the run")

    def problems(self) -> Iterator[str]:
        """A number that nothing can stand for."""
        if self.clips_per_core is None and not self.measure:
            yield "clips_per_core= is missing: clips a second that a core reads, see the suite loader"


def run(settings: ScalingKeys) -> None:
    """Print the model of a run, or what real runs send."""
    counts = count(settings.recipe)
    if settings.measure:
        print(compare_traffic(counts, settings.recipe, settings.measure))
        return
    for processes in settings.processes:
        table = markdown(["", "", ""], predict(counts, settings.recipe, processes, settings), words=(0, 2))
        print("\n".join([f"### {processes} processes", "", str(settings), "", *table, ""]))


def predict(counts: Counts, config: Config, processes: int, machine: Machine) -> list[Row]:
    speed, clips_per_core = machine.speed * 1e12, machine.clips_per_core
    per_process = config.train.batch_size / processes
    harmonized = config.harmonize != "none"
    ratio, ratio_held = (machine.ratio, machine.ratio_held) if harmonized else (1.0, 1.0)
    sent = traffic(counts, config, processes)
    encoder = 3 * counts.forward * per_process * ratio / speed
    losses = counts.losses / speed
    network = sum(sent.values()) / (machine.network * 1e9)
    step = encoder + losses + network
    loader = per_process / (machine.cores * clips_per_core)
    parameters = counts.parameters + counts.heads
    state = parameters * FLOAT * ADAM
    held = counts.held * min(per_process, config.gram.chunk_size or math.inf) * ratio_held
    days = config.train.steps * max(step, loader) / 86400
    costs = {"the network": network, "the losses stage": losses, "the encoder": encoder}
    first = "the loader" if loader > step else max(costs, key=costs.__getitem__)
    sizes = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in sent.items() if size)
    return [
        ("clips for each process", f"{per_process:g}", f"{config.train.batch_size} / {processes}"),
        ("encoder", f"{encoder * 1e3:.0f} ms", f"3 x {counts.forward / 1e9:.0f} G operations a clip, x {ratio:g}"),
        ("losses stage, on every process", f"{losses * 1e3:.1f} ms", f"{counts.losses / 1e9:.0f} G operations"),
        ("network", f"{network * 1e3:.1f} ms", sizes),
        ("step", f"{step * 1e3:.0f} ms", "the sum: nothing overlaps"),
        ("loader", f"{loader * 1e3:.0f} ms", f"{machine.cores} cores, {clips_per_core:g} clips/s each"),
        ("loader cores that keep up", f"{per_process / step / clips_per_core:.1f}", "for each process"),
        ("the whole run", f"{days:.1f} days", f"{config.train.steps} steps"),
        ("parameters and optimizer", f"{state / GIB:.2f} GiB", f"{parameters / 1e6:.0f} M, 16 bytes each"),
        ("held for backward", f"{held / GIB:.2f} GiB", f"{counts.held / 2**20:.0f} MiB a clip, x {ratio_held:g}"),
        ("memory of a process", f"{(state + held) / GIB:.1f} GiB", f"of {machine.memory:.0f}"),
        ("what gives out first", "memory" if state + held > machine.memory * GIB else first, ""),
    ]


# ----------------------------------------------------------------------------------------- checked by a small run
def compare_traffic(counts: Counts, config: Config, numbers: list[int]) -> str:
    """Traffic of real runs on this machine against the model's, as a table."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for processes in numbers:
            modelled = processes * sum(traffic(counts, config, processes).values())
            measured = measured_traffic(config, processes, Path(folder))
            sizes = f"{modelled / 2**20:.2f} MiB", f"{measured / 2**20:.2f} MiB"
            rows.append([str(processes), *sizes, f"{measured / modelled:.3f}"])
    return "\n".join(markdown(["processes", "modelled", "measured", "measured / modelled"], rows, words=()))


def measured_traffic(config: Config, processes: int, folder: Path) -> float:
    """Bytes that all processes together send in a step of a real run of `recipes.pretrain` on this machine.

    Two runs of different length, each with a network of its own; the difference is that of their steps alone.
    """
    short, long = (_bytes_sent(config, processes, steps, folder) for steps in STEPS)
    return (long - short) / (STEPS[1] - STEPS[0])


def _bytes_sent(config: Config, processes: int, steps: int, folder: Path) -> int:
    path = folder / "config.yaml"
    keys.save(config, path)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    run += ["-m", "recipes.pretrain", "--config", str(path), f"run.dir={folder}", f"run.name={processes}-{steps}"]
    run += ["evaluate.limit=2", f"train.steps={steps}", "train.checkpoint_every=1000"]
    apart = ["unshare", "--net", "sh", "-c", 'ip link set lo up && "$@" >&2 && cat /proc/net/dev', "sh", *run]
    done = subprocess.run(apart, capture_output=True, text=True, check=False)
    sent = re.search(r"lo:\s*(\d+)", done.stdout)
    if done.returncode or not sent:
        raise Failure(f"no measure of {processes} processes: {done.stderr.strip()[-2000:]}")
    return int(sent[1])


COMMAND = RecipeCommand("recipes.research.benchmark scaling", __doc__, ScalingKeys, run)
