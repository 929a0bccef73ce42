"""One training step: harmonized or plain gradients, the checks before the update, and what to report of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import harmony
from recipes.config import Config
from recipes.model.build import model_inputs
from recipes.model.harmonizer import gram_options
from recipes.training.bad_steps import dump
from recipes.training.dynamics import TRAINING, Cosines
from recipes.training.precision import LossScale, forward_in
from recipes.training.probes import probe
from recipes.training.processes import ALONE, Processes, clip_gradients


@dataclass(frozen=True)
class StepResult:
    """What one step saw, on the host.

    Attributes:
        values: Scalars to log; those that are not finite are left out.
        cosines: Agreement (B,) before realignment; None where it was not measured.
        defined: Mask (B,) of the samples that have one.
        reason: Why the step was not taken; empty if it was.
        probes: Cosines over parts of the backbone, where they were asked for.
        undumped: Whether it was to be dumped, and could not be.
    """

    values: dict[str, float]
    cosines: Tensor | None = None
    defined: Tensor | None = None
    reason: str = ""
    probes: Cosines = field(default_factory=dict)
    undumped: bool = False

    @property
    def measured(self) -> Cosines:
        """All cosines, those of training under the name `TRAINING`."""
        of_training = {} if self.cosines is None else {TRAINING: (self.cosines, self.defined)}
        return of_training | self.probes

    @property
    def taken(self) -> bool:
        """Whether the parameters moved."""
        return not self.reason

    def shown(self, throughput: float) -> dict[str, str]:
        """For the progress bar."""
        names = {"loss": "loss", "agreement": "cos", "conflicts": "conflicts", "kept": "kept"}
        shown = {short: f"{self.values[name]:.2f}" for name, short in names.items() if name in self.values}
        return shown | {"clips/s": f"{throughput:.0f}"}


def train_step(
    config: Config,
    modules: nn.ModuleDict,
    optimizer: torch.optim.Optimizer,
    transform: harmony.Transform,
    state: Any,
    batch: dict[str, Any],
    step: int,
    device: torch.device,
    shares: Sequence[int] | None = None,
    forward: nn.Module | None = None,
    processes: Processes = ALONE,
    loss_scale: LossScale | None = None,
) -> tuple[StepResult, Any]:
    """Take one optimizer step, or say why it was not taken.

    A batch of fewer than two clips has nothing to contrast; a loss or gradient that is not finite, or a batch of
    which the curriculum kept nothing, leaves the parameters, the running statistics and the optimizer as they were.

    Args:
        config: The run's.
        modules: {"model", "objective"}.
        optimizer: Of their parameters.
        transform: The harmonizer.
        state: Its state.
        batch: This process's clips.
        step: Number of the step, from 0.
        device: To compute on.
        shares: How many clips each of the processes has; None: this one is alone.
        forward: What to call in place of the model in a plain pass, see `processes.spread`.
        processes: All of which take the step together.
        loss_scale: Of float16; it is updated.

    Returns:
        What the step saw, the same on every process, and the harmonizer's next state.
    """
    shares = [len(batch.get("id", []))] if shares is None else shares
    if min(shares) < 1 or sum(shares) < 2:
        state = _idle(transform, state)  # schedules follow the steps, taken or not
        few = "fewer than two clips of the batch" if sum(shares) < 2 else "none of the clips of one process"
        return StepResult({}, reason=f"{few} could be read"), state
    model, objective = modules["model"], modules["objective"]
    inputs = model_inputs(batch, device)
    probes = probe(config, modules, inputs, processes.group) if step % config.gram.probe_every == 0 else {}
    buffers = {name: b.clone() for name, b in modules.named_buffers()}
    optimizer.zero_grad(set_to_none=True)
    encode = forward_in(config.train, device)
    scale = None if loss_scale is None else loss_scale.tensor(device)

    if config.harmonize == "none" and not (config.gram.every and step % config.gram.every == 0):
        embeddings = processes.gather(encode(model if forward is None else forward, inputs))
        terms = objective(embeddings)
        losses = {name: term.mean() for name, term in terms.items()}
        total = torch.stack(list(losses.values())).sum()
        (total if scale is None else total * scale).backward()
        measured, info = {}, None
    else:
        info, state = harmony.backward(
            model,
            inputs,
            objective,
            transform,
            state,
            forward=encode,
            ids=batch["index"].to(device),
            extras=extras_of(config, objective),
            process_group=processes.group,
            loss_scale=scale,
            **gram_options(config),
        )
        losses, terms = info.values, dict(zip(info.values, info.terms.unbind(1), strict=True))
        measured = {
            "agreement": info.agreement.nanmean(),
            "conflicts": harmony.stats.conflict_rate(info.gram),
            "kept": info.kept / len(info.weights),
        }

    if loss_scale is not None:
        loss_scale.unscale(modules.parameters())
    norm = clip_gradients(modules, config.train.clip_norm or math.inf)
    device_values = {"loss": sum(losses.values()), **{f"loss_{k}": v for k, v in losses.items()}, "gradient_norm": norm}
    device_values |= measured
    # The decision below needs the numbers on the host: the one place where a step waits for the device. Those of one
    # process, whichever way the last digit fell elsewhere: all have to decide alike.
    decisive = processes.agree(torch.stack([v.detach().to(widest(device)) for v in device_values.values()]))
    numbers = dict(zip(device_values, decisive.tolist(), strict=True))
    values = {name: v for name, v in numbers.items() if math.isfinite(v)}

    reason = ""
    if not math.isfinite(numbers["loss"]):
        reason = "the loss is not finite"
    elif not math.isfinite(numbers["gradient_norm"]):
        reason = "the gradient is not finite"
    elif numbers.get("kept") == 0:
        reason = "the curriculum kept no sample"
    if loss_scale is not None:
        loss_scale.update(math.isfinite(numbers["gradient_norm"]))
    if reason:
        for name, b in modules.named_buffers():
            b.copy_(buffers[name])
    else:
        optimizer.step()
    cosines = None if info is None else info.agreement.cpu()
    defined = None if info is None else (info.defined & info.agreement.isfinite()).cpu()
    overflow = loss_scale is not None and math.isfinite(numbers["loss"])  # to be expected: the scale is too large
    undumped = False
    if reason.endswith("not finite") and not overflow:
        measured = {"loss": numbers, "terms": terms, "cosines": cosines}
        undumped = dump(config.folder, step, reason, modules, batch, measured, processes)
    return StepResult(values, cosines, defined, reason, probes, undumped), state


def widest(device: torch.device) -> torch.dtype:
    """The widest floating-point numbers that a device has: Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def extras_of(config: Config, objective: nn.Module) -> Callable[[dict[str, Tensor]], dict[str, Tensor]] | None:
    """What the curriculum sees of the embeddings."""
    if not (config.has_curriculum and config.curriculum.rule == "cross_check"):
        return None
    return lambda embeddings: {"sides": objective.sides(embeddings)}


def _idle(transform: harmony.Transform, state: Any) -> Any:
    """The harmonizer's state after a batch of no clips."""
    gram = torch.zeros(0, 2, 2)
    none = torch.zeros(0, dtype=torch.int64)
    extras = {"terms": gram[:, 0], "batch_products": gram[:, 0], "ids": none, "sides": torch.zeros(0, 3, 0)}
    return transform.update({"the rest": gram} if transform.layerwise else gram, state, **extras)[1]
