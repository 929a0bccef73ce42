"""One optimizer step: clips are weighed, the loss and the gradient are checked, and the parameters move or stay."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

import harmony
from recipes.training.dynamics import TRAINING, Cosines
from recipes.training.precision import LossScale, forward_in
from recipes.training.processes import ALONE, Processes, clip_gradients

Weigh = Literal["nothing", "terms", "gradients"]
Extras = Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]


@dataclass
class Learner:
    """What a step changes."""

    modules: nn.ModuleDict  # ``objective(model(**inputs))`` gives the loss terms {name: (B,)}
    optimizer: torch.optim.Optimizer
    harmonizer: harmony.Transform = field(default_factory=harmony.chain)
    state: Any = None  # of the harmonizer; a new one by default
    loss_scale: LossScale | None = None  # of float16

    def __post_init__(self) -> None:
        if self.state is None:
            self.state = self.harmonizer.init()


@dataclass(frozen=True)
class StepOptions:
    """How to take a step.

    Clips are weighed by "nothing"; by "terms", the harmonizer sees loss terms and extras, which cost nothing; by
    "gradients", it sees the Gram blocks of per-clip gradients, too.
    """

    weigh: Weigh = "gradients"
    gram: Mapping[str, Any] = field(default_factory=dict)  # keywords of `harmony.backward`: how gradients are read
    extras: Extras | None = None  # ``extras(objective, embeddings)`` is what the harmonizer sees besides
    precision: str = "fp32"  # of the encoder, as `train.precision`
    clip_norm: float | None = None  # that gradients are scaled down to
    clip_only: str | None = None  # "model", for instance: only its gradients are scaled down; None: both as one
    forward: nn.Module | None = None  # called in place of the model by "nothing" and "terms", see `processes.spread`
    processes: Processes = ALONE  # that take the step together


@dataclass(frozen=True)
class StepResult:
    """What one step saw, the same on every process."""

    numbers: dict[str, float] = field(default_factory=dict)  # to log: losses, gradient norm, figures of the harmonizer
    reason: str = ""  # why the step was not taken; empty if it was
    terms: dict[str, Tensor] = field(default_factory=dict)  # losses {name: (B,)} of the whole batch
    weights: Tensor | None = None  # of the terms, (B, K) or (groups, K); None where they were not weighed
    cosines: Tensor | None = None  # agreement (groups,) before realignment, on the host, where it was measured
    defined: Tensor | None = None  # mask (groups,) of the cosines that are defined
    broken: bool = False  # the loss or the gradient is not finite, and float16 does not explain it

    @property
    def taken(self) -> bool:
        """Whether the parameters moved."""
        return not self.reason

    @property
    def values(self) -> dict[str, float]:
        """The numbers that are finite."""
        return {name: value for name, value in self.numbers.items() if math.isfinite(value)}

    @property
    def measured(self) -> Cosines:
        """The cosines that training measured, under the name `TRAINING`."""
        return {} if self.cosines is None else {TRAINING: (self.cosines, self.defined)}

    def shown(self, throughput: float) -> dict[str, str]:
        """For the progress bar."""
        names = {"loss": "loss", "agreement": "cos", "conflicts": "conflicts", "kept": "kept"}
        shown = {short: f"{self.values[name]:.2f}" for name, short in names.items() if name in self.values}
        return shown | {"clips/s": f"{throughput:.0f}"}


class WeighedTerms(nn.Module):
    """Loss terms (B,) of an objective times the weights (B, K) that come with the data, where there are such."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """The objective's terms; how far a pair is trusted weighs them, see `recipes.data.manifest`."""
        terms: dict[str, Tensor] = self.objective(embeddings)
        if "weights" not in embeddings:
            return terms
        weights = embeddings["weights"].unbind(1)
        return {name: term * weight for (name, term), weight in zip(terms.items(), weights, strict=True)}


@dataclass
class _Pass:
    """Forward pass of a learner: loss terms, their weights, and the buffers as they were before."""

    buffers: dict[str, Tensor]
    terms: dict[str, Tensor]
    losses: dict[str, Tensor]
    weights: Tensor | None = None
    info: harmony.Info | None = None
    measured: dict[str, Tensor] = field(default_factory=dict)


def train_step(learner: Learner, inputs: dict[str, Tensor], options: StepOptions) -> StepResult:
    """Take one optimizer step, or say why it was not taken; gradients stay in ``.grad``.

    A loss or gradient that is not finite, or a batch of which the harmonizer keeps nothing, leaves the parameters,
    the running statistics and the optimizer as they were.

    Args:
        learner: Changed in place.
        inputs: What the model takes, on its device: the clips of this process. To weigh them takes an "index" (b,).
        options: How.
    """
    if options.weigh != "gradients":
        return co_teach([learner], inputs, options)[0]
    return _update(learner, _harmonized_pass(learner, inputs, options), options)


def co_teach(learners: Sequence[Learner], inputs: dict[str, Tensor], options: StepOptions) -> list[StepResult]:
    """Take a step of each of two learners on one batch, each weighed by the other; a lone learner weighs its own clips.

    The clips are weighed by nothing or by terms, see `train_step`.
    """
    passes = [_forward_pass(learner, inputs, options) for learner in learners]
    weights = [passed.weights for passed in reversed(passes)]
    for learner, passed, given in zip(learners, passes, weights, strict=True):
        passed.weights = given
        _backward_pass(learner, passed)
    return [_update(learner, passed, options) for learner, passed in zip(learners, passes, strict=True)]


def idle_step(learner: Learner, reason: str) -> StepResult:
    """A step that is not taken for lack of clips; schedules of the harmonizer move on."""
    learner.state = idle_state(learner.harmonizer, learner.state)
    return StepResult(reason=reason)


def idle_state(harmonizer: harmony.Transform, state: Any) -> Any:
    """The harmonizer's state after a batch of no clips."""
    gram, ids = torch.zeros(0, 2, 2), torch.zeros(0, dtype=torch.int64)
    extras = {"terms": gram[:, 0], "ids": ids, "sides": torch.zeros(0, 3, 0)}
    extras |= {"batch_products": gram[:, 0], "batch_square": gram.new_zeros(())}
    return harmonizer.update({"the rest": gram} if harmonizer.layerwise else gram, state, **extras)[1]


def too_few(shares: Sequence[int]) -> str:
    """Why these numbers of clips, one for each process, make no step; empty if they do: a contrast takes two."""
    if sum(shares) < 2:
        return "fewer than two clips of the batch could be read"
    return "none of the clips of one process could be read" if min(shares) < 1 else ""


def widest(device: torch.device) -> torch.dtype:
    """The widest floating-point numbers that a device has: Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _harmonized_pass(learner: Learner, inputs: dict[str, Tensor], options: StepOptions) -> _Pass:
    """Forward and backward pass of harmonized gradients."""
    objective, device = learner.modules["objective"], _device_of(inputs)
    buffers = _begin(learner)
    extras = options.extras
    info, learner.state = harmony.backward(
        learner.modules["model"],
        inputs,
        WeighedTerms(objective),
        learner.harmonizer,
        learner.state,
        forward=forward_in(options.precision, device),
        ids=inputs["index"],
        extras=None if extras is None else lambda embeddings: extras(objective, embeddings),
        process_group=options.processes.group,
        loss_scale=None if learner.loss_scale is None else learner.loss_scale.tensor(device),
        **options.gram,
    )
    terms = dict(zip(info.values, info.terms.unbind(1), strict=True))
    measured = {
        "agreement": info.agreement.nanmean(),
        "conflicts": harmony.stats.conflict_rate(info.gram),
        "kept": info.kept / len(info.weights),
    }
    return _Pass(buffers, terms, dict(info.values), info.weights, info, measured)


def _forward_pass(learner: Learner, inputs: dict[str, Tensor], options: StepOptions) -> _Pass:
    """Forward pass, and the weights that this learner gives the clips."""
    buffers = _begin(learner)
    model = learner.modules["model"] if options.forward is None else options.forward
    embeddings = options.processes.gather(forward_in(options.precision, _device_of(inputs))(model, inputs))
    objective = learner.modules["objective"]
    terms = WeighedTerms(objective)(embeddings)
    passed = _Pass(buffers, terms, {name: term.mean() for name, term in terms.items()})
    if options.weigh == "terms":
        stacked = torch.stack(list(terms.values()), 1).detach()
        every_loss = torch.eye(stacked.shape[1]).expand(len(stacked), -1, -1)  # rules read only which losses a clip has
        extras = {} if options.extras is None else options.extras(objective, embeddings)
        passed.weights, learner.state = learner.harmonizer.update(
            every_loss.to(stacked), learner.state, terms=stacked, ids=embeddings["index"], **extras
        )
        passed.measured = {"kept": passed.weights.any(1).float().mean()}
    return passed


def _backward_pass(learner: Learner, passed: _Pass) -> None:
    """Gradients of the plain or weighed losses."""
    losses = list(passed.losses.values())
    if passed.weights is not None:
        losses = list((passed.weights * torch.stack(list(passed.terms.values()), 1)).mean(0).unbind())
    total = torch.stack(losses).sum()
    scale = None if learner.loss_scale is None else learner.loss_scale.tensor(total.device)
    (total if scale is None else total * scale).backward()


def _update(learner: Learner, passed: _Pass, options: StepOptions) -> StepResult:
    """Move the parameters by the gradients, where everything is finite; else undo what the forward pass changed."""
    scale, modules = learner.loss_scale, learner.modules
    if scale is not None:
        scale.unscale(modules.parameters())
    limit = options.clip_norm or math.inf
    norm = clip_gradients(modules, math.inf if options.clip_only else limit)
    if options.clip_only is not None and limit < math.inf:
        clip_gradients(modules[options.clip_only], limit)
    losses = {f"loss_{name}": loss for name, loss in passed.losses.items()}
    values = {"loss": sum(passed.losses.values()), **losses, "gradient_norm": norm, **passed.measured}
    # The decision below needs the numbers on the host: the one place where a step waits for the device. All processes
    # take those of the first, whichever way the last digit fell elsewhere: they have to decide alike.
    stacked = torch.stack([v.detach().to(widest(norm.device)) for v in values.values()])
    numbers = dict(zip(values, options.processes.agree(stacked).tolist(), strict=True))
    finite = math.isfinite(numbers["gradient_norm"])
    if scale is not None:
        scale.update(finite)
    reason = _why_not(numbers)
    if reason:
        for name, buffer in modules.named_buffers():
            buffer.copy_(passed.buffers[name])
    else:
        learner.optimizer.step()
    info, weights = passed.info, passed.weights
    return StepResult(
        numbers,
        reason,
        terms={name: term.detach() for name, term in passed.terms.items()},
        weights=None if weights is None else weights.detach(),
        cosines=None if info is None else info.agreement.cpu(),
        defined=None if info is None else (info.defined & info.agreement.isfinite()).cpu(),
        broken=not math.isfinite(numbers["loss"]) or (not finite and scale is None),
    )


def _why_not(numbers: dict[str, float]) -> str:
    """Why a step with such losses and gradients is not taken; empty if it is."""
    if not math.isfinite(numbers["loss"]):
        return "the loss is not finite"
    if not math.isfinite(numbers["gradient_norm"]):
        return "the gradient is not finite"
    return "the curriculum kept no sample" if numbers.get("kept") == 0 else ""


def _begin(learner: Learner) -> dict[str, Tensor]:
    """Clear the gradients; returns the buffers as they are before the forward pass."""
    learner.optimizer.zero_grad(set_to_none=True)
    return {name: b.clone() for name, b in learner.modules.named_buffers()}


def _device_of(inputs: dict[str, Tensor]) -> torch.device:
    return next(iter(inputs.values())).device
