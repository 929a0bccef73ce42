"""What a run on many processes takes, as a model: counts of the recipe's own model, and the costs that one puts in."""

import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from recipes.config import Config
from recipes.model.objective import Objective
from recipes.model.vatt import SIZES, VATT
from recipes.training.precision import forward_in

FLOAT = 4  # bytes of what is sent and of all state: float32
ADAM = 4  # floats of a parameter: itself, its gradient and two moments
GIB = 2**30
aten = torch.ops.aten
FORMULAS: dict[Any, Callable[..., int]] = flop_registry | {  # and of attention on a CPU, which it does not know
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
        q.shape, k.shape, v.shape
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(
        g.shape, q.shape, k.shape, v.shape
    ),
}


class Operations(TorchDispatchMode):
    """Counts the floating-point operations of matrix products, convolutions and attention while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.number += formula(*args, **(kwargs or {}), out_val=out)
        return out


@dataclass(frozen=True)
class Counts:
    """What the model of a configuration asks for.

    Attributes:
        parameters, heads: Of the encoder, and of the heads.
        forward: Operations of its forward pass, a clip.
        held: Bytes that its backward pass needs, a clip, in the run's precision.
        losses: Operations of the losses stage, there and back, of the whole batch.
    """

    parameters: int
    heads: int
    forward: float
    held: float
    losses: float


@dataclass(frozen=True)
class Machine:
    """What the processes run on: all of it is put in.

    Attributes:
        speed: Operations a second that a process sustains in training.
        network: Bytes a second that a process sends, and at the same time receives.
        memory: Bytes of a device.
        cores: Of the loader, for each process.
        clips_per_core: Clips a second that a core reads.
        ratio: Time of a harmonized step to that of a plain one.
        ratio_held: Memory of its activations to that of a plain one.
    """

    speed: float
    network: float
    memory: float
    cores: int
    clips_per_core: float
    ratio: float
    ratio_held: float


def count(config: Config) -> Counts:
    """Count on tensors that have shapes and no values: nothing is computed and no memory is taken."""
    with FakeTensorMode():
        model = VATT(config.model, config.clip, config.data.vocabulary)
        objective = Objective(config.objective, SIZES[config.model.size].output)
        encode = forward_in(config.train.precision, torch.device("cpu"))
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        # What is held once, such as weights in another precision, drops out of the difference.
        held = [_held(lambda n=n: encode(model, clips(config, n)), weights) for n in (2, 4)]
        with Operations() as forward:
            encode(model, clips(config, 2))
        with Operations() as losses:
            terms = objective(_embeddings(config, config.train.batch_size))
            torch.stack([t.mean() for t in terms.values()]).sum().backward()
    return Counts(
        parameters=sum(p.numel() for p in model.parameters()),
        heads=sum(p.numel() for p in objective.parameters()),
        forward=forward.number / 2,
        held=(held[1] - held[0]) / 2,
        losses=losses.number,
    )


def clips(config: Config, number: int) -> dict[str, Tensor]:
    """Inputs of the shapes that the loader gives, with all modalities."""
    c = config.clip
    ids = torch.arange(number)
    return {
        "video": torch.randint(0, 255, (number, c.frames, c.size, c.size, 3), dtype=torch.uint8),
        "audio": torch.rand(number, c.samples) - 0.5,
        "text": torch.randint(1, 3, (number, c.narrations, c.words)),
        "audio_valid": torch.ones(number, dtype=torch.bool),
        "text_valid": torch.ones(number, c.narrations, dtype=torch.bool),
        "text_key": ids[:, None] * c.narrations + torch.arange(1, c.narrations + 1),
        "index": ids,
    }


def traffic(counts: Counts, config: Config, processes: int) -> dict[str, float]:
    """Bytes that a process sends in a step, by what they are; it receives as many.

    Sums go round a ring twice; what is gathered goes round once, and so, on average, does what one sends to all.
    """
    once = (processes - 1) / processes
    batch, narrations = config.train.batch_size, config.clip.narrations
    embedding = (2 + narrations) * SIZES[config.model.size].output * FLOAT
    masks = 1 + narrations + 8 * narrations + 8
    harmonized = config.harmonize != "none"
    return {
        "gradients": 2 * once * counts.parameters * FLOAT,
        "gradients of the heads": once * counts.heads * FLOAT,
        "embeddings": once * batch * (embedding + masks),
        "Gram blocks and weights": once * batch / config.gram.group_size * 6 * FLOAT * harmonized,
    }


def predict(counts: Counts, config: Config, processes: int, machine: Machine) -> list[tuple[str, str, str]]:
    """The model of a run.

    Returns:
        Rows of (what, how much, how it follows).
    """
    per_process = config.train.batch_size / processes
    harmonized = config.harmonize != "none"
    ratio, ratio_held = (machine.ratio, machine.ratio_held) if harmonized else (1.0, 1.0)
    sent = traffic(counts, config, processes)
    compute = 3 * counts.forward * per_process * ratio / machine.speed
    losses = counts.losses / machine.speed
    network = sum(sent.values()) / machine.network
    step = compute + losses + network
    loader = per_process / (machine.cores * machine.clips_per_core)
    parameters = counts.parameters + counts.heads
    state = parameters * FLOAT * ADAM
    held = counts.held * min(per_process, config.gram.chunk_size or math.inf) * ratio_held
    slowest = max(step, loader)
    cores = per_process / step / machine.clips_per_core
    rows = [
        ("clips for each process", f"{per_process:g}", f"{config.train.batch_size} / {processes}"),
        ("encoder", f"{compute * 1e3:.0f} ms", f"3 x {counts.forward / 1e9:.0f} G operations a clip, x {ratio:g}"),
        ("losses stage, on every process", f"{losses * 1e3:.1f} ms", f"{counts.losses / 1e9:.0f} G operations"),
        ("network", f"{network * 1e3:.1f} ms", _list(sent)),
        ("step", f"{step * 1e3:.0f} ms", "the sum: nothing overlaps"),
        ("loader", f"{loader * 1e3:.0f} ms", f"{machine.cores} cores, {machine.clips_per_core:g} clips/s each"),
        ("loader cores that keep up", f"{cores:.1f}", "for each process"),
        ("the whole run", f"{config.train.steps * slowest / 86400:.1f} days", f"{config.train.steps} steps"),
        (
            "parameters and optimizer",
            f"{state / GIB:.2f} GiB",
            f"{parameters / 1e6:.0f} M, 16 bytes each",
        ),
        ("held for backward", f"{held / GIB:.2f} GiB", f"{counts.held / 2**20:.0f} MiB a clip, x {ratio_held:g}"),
        ("memory of a process", f"{(state + held) / GIB:.1f} GiB", f"of {machine.memory / GIB:.0f}"),
    ]
    return [*rows, ("what gives out first", _first(loader, network, losses, compute, state + held, machine), "")]


def _first(loader: float, network: float, losses: float, compute: float, memory: float, machine: Machine) -> str:
    if memory > machine.memory:
        return "memory"
    costs = {"the network": network, "the losses stage": losses, "the encoder": compute}
    if loader > sum(costs.values()):
        return "the loader"
    return max(costs, key=costs.__getitem__)


def _list(sent: dict[str, float]) -> str:
    return ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in sent.items() if size)


def _held(forward: Callable[[], Any], weights: set[int]) -> float:
    seen: dict[int, Any] = {}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage._cdata not in weights:
            seen[storage._cdata] = storage
        return t

    with saved_tensors_hooks(keep, lambda t: t):
        forward()
    return sum(storage.nbytes() for storage in seen.values())


def _embeddings(config: Config, number: int) -> dict[str, Tensor]:
    inputs, width = clips(config, number), SIZES[config.model.size].output
    shapes = {"video": (number, width), "audio": (number, width), "text": (number, config.clip.narrations, width)}
    found = {name: torch.zeros(shape, requires_grad=True) for name, shape in shapes.items()}
    return found | {name: inputs[name] for name in ("audio_valid", "text_valid", "text_key", "index")}


# ----------------------------------------------------------------------------------------- checked by a small run
def measured_traffic(config: Path, overrides: list[str], processes: int, steps: tuple[int, int], out: Path) -> float:
    """Bytes that all processes together send in a step of a real run of `recipes.pretrain` on this machine.

    Two runs of different length, each with a network of its own; the difference is that of their steps alone.

    Raises:
        RuntimeError: A run failed, or this machine gives nobody a network of their own (Linux, as root).
    """
    short, long = (_bytes_sent(config, overrides, processes, number, out) for number in steps)
    return (long - short) / (steps[1] - steps[0])


def _bytes_sent(config: Path, overrides: list[str], processes: int, steps: int, out: Path) -> int:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    run += ["-m", "recipes.pretrain", "--config", str(config), *overrides, f"run.dir={out}", "evaluate.limit=2"]
    run += [f"run.name={processes}-{steps}", f"train.steps={steps}", "train.checkpoint_every=1000"]
    apart = ["unshare", "--net", "sh", "-c", 'ip link set lo up && "$@" >&2 && cat /proc/net/dev', "sh", *run]
    done = subprocess.run(apart, capture_output=True, text=True, check=False)
    found = re.search(r"lo:\s*(\d+)", done.stdout)
    if done.returncode or not found:
        raise RuntimeError(f"no measure of {processes} processes: {done.stderr.strip()[-2000:]}")
    return int(found[1])
