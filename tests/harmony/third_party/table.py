"""Print the table of docs/third_party.md: ``python -m tests.harmony.third_party.table [package ...]``."""

import datetime
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from statistics import median

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import harmony
from tests.harmony.third_party.architecture import Builder
from tests.harmony.third_party.case import Case, case
from tests.harmony.third_party.expected import Expected, expected
from tests.harmony.third_party.packages import PACKAGES, builders, installed
from tests.harmony.third_party.verdict import judge, short

SAMPLES, REPEATS = 8, 7
DISTRIBUTIONS = {"x_transformers": "x-transformers", "vit_pytorch": "vit-pytorch", "torch_geometric": "torch-geometric"}


def larger(given: Case) -> Case:
    """The same architecture on SAMPLES samples."""
    return given._replace(
        batch=pytree.tree_map(lambda x: x[torch.arange(SAMPLES) % len(x)], given.batch),
    )


def plain_step(given: Case) -> list[Tensor]:
    """The gradient of the sum of the losses."""
    params = {n: p.detach().requires_grad_() for n, p in given.params.items()}
    total = torch.stack([term.mean() for term in given.losses(given.encode(params, given.batch)).values()]).sum()
    return list(torch.autograd.grad(total, list(params.values()), allow_unused=True))


def harmonized_step(given: Case) -> dict[str, Tensor]:
    """The same of realigned gradients."""
    result = harmony.gram_vjp(*given.arguments)
    return result.pullback(harmony.realign.pcgrad(result.gram))


def cost(given: Case) -> float:
    """A harmonized step in plain steps: median of interleaved repeats."""
    ratios = []
    for _ in range(REPEATS + 1):
        plain, harmonized = _seconds(plain_step, given), _seconds(harmonized_step, given)
        ratios.append(harmonized / plain)
    return median(ratios[1:])


def _seconds(step: Callable[[Case], object], given: Case) -> float:
    given.module.train().eval()  # some cache in eval mode what is made of parameters, and clear it here
    start = time.perf_counter()
    step(given)
    return time.perf_counter() - start


def row(line: Expected, build: Builder) -> str:
    """One line of the table: what happens in either mode, why, and the cost in eval mode."""
    cells, reasons, costs = [], [], "-"
    for mode in ("eval", "train"):
        if getattr(line, mode) == "-":
            cells.append("-")
            continue
        given = larger(case(build, train=mode == "train", dtype=torch.float32))
        engine, reason, numbers = judge(given, by_parameter=False)
        cells.append(f"exact ({engine})" if numbers else engine)
        reasons += [short(reason)] if reason else []
        if mode == "eval" and numbers:
            costs = f"{cost(given):.1f}"
    why = "; ".join(dict.fromkeys(reasons)).replace("|", "\\|")
    return f"| {line.name} | {cells[0]} | {cells[1]} | {costs} | {why} |"


def main(packages: list[str]) -> None:
    """Print the tables of these packages."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    today = datetime.datetime.now(tz=datetime.UTC).date()
    print(f"Measured {today}, torch {torch.__version__}, one thread, {SAMPLES} samples in float32.")
    for package in packages:
        if not installed(package):
            continue
        lines = builders(package)
        print(f"\n## {package} {version(DISTRIBUTIONS.get(package, package))}\n")
        print("| architecture | eval | train | cost | why |\n| --- | --- | --- | --- | --- |")
        for line in expected():
            if line.package == package:
                print(row(line, lines[line.name]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(PACKAGES))
