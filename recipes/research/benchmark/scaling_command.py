"""Model what a run on many processes takes: time, memory, traffic, loader cores, and what gives out first.

python -m recipes.research.benchmark.scaling_command --config recipes/configs/vatt_medium_howto100m_audioset.yaml --processes 256 [key=value ...]
python -m recipes.research.benchmark.scaling_command --config recipes/configs/demo.yaml --measure 2         traffic against that of real runs here

Operations, memory of activations and traffic are counted on the recipe's own model. How fast a machine is, is put in by
the options: their defaults are assumptions about one H100 of a machine with eight, not measurements.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from recipes import config as configuration
from recipes.config import Config
from recipes.errors import ConfigError
from recipes.research.benchmark.scaling import GIB, Counts, Machine, count, measured_traffic, predict, traffic

STEPS = (4, 12)  # of the two runs whose difference is measured


def model(counts: Counts, config: Config, processes: int, machine: Machine) -> str:
    """The model of a run as a table."""
    rows = predict(counts, config, processes, machine)
    put_in = (
        f"Put in, for each process: {machine.speed / 1e12:g} T operations/s, {machine.network / 1e9:g} GB/s, "
        f"{machine.cores} loader cores, {machine.clips_per_core:g} clips/s each; a harmonized step takes "
        f"{machine.ratio:g} times as long as a plain one, and {machine.ratio_held:g} times the activations."
    )
    return "\n".join([put_in, "", "| | | |", "|---|---:|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def measure(counts: Counts, config: Config, path: Path, overrides: list[str], processes: list[int]) -> str:
    """Traffic of real runs on this machine against the model's, as a table."""
    lines = ["| processes | modelled | measured | measured / modelled |", "|---:|---:|---:|---:|"]
    with tempfile.TemporaryDirectory() as folder:
        for number in processes:
            modelled = number * sum(traffic(counts, config, number).values())
            found = measured_traffic(path, overrides, number, STEPS, Path(folder))
            sizes = f"{modelled / 2**20:.2f} MiB | {found / 2**20:.2f} MiB"
            lines.append(f"| {number} | {sizes} | {found / modelled:.3f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m recipes.research.benchmark.scaling_command",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--config", type=Path, required=True)
    p.add_argument("--processes", type=int, action="append", metavar="N", help="may be repeated (default: 256)")
    p.add_argument("--measure", type=int, action="append", metavar="N", help="train on so many here instead")
    p.add_argument("--speed", type=float, default=400, help="10^12 operations/s (default: %(default)s)")
    p.add_argument("--network", type=float, default=25, help="10^9 bytes/s each way (default: %(default)s)")
    p.add_argument("--memory", type=float, default=80, help="GiB (default: %(default)s)")
    p.add_argument("--cores", type=int, default=14, help="of the loader (default: %(default)s)")
    p.add_argument("--clips-per-core", type=float, required="--measure" not in (arguments or sys.argv))
    p.add_argument("--ratio", type=float, default=1.35, help="of a harmonized step's time (default: %(default)s)")
    p.add_argument("--ratio-held", type=float, default=1.96, help="of its activations (default: %(default)s)")
    p.add_argument("overrides", nargs="*", metavar="key=value", help="override keys of the configuration")
    options = p.parse_args(arguments)
    try:
        config = configuration.load(options.config, options.overrides)
        counts = count(config)
        if options.measure:
            print(measure(counts, config, options.config, options.overrides, options.measure))
            return 0
        machine = Machine(
            options.speed * 1e12, options.network * 1e9, options.memory * GIB, options.cores, options.clips_per_core,
            options.ratio, options.ratio_held,
        )  # fmt: skip
        for processes in options.processes or [256]:
            print(f"### {processes} processes\n\n{model(counts, config, processes, machine)}\n")
    except (ConfigError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
