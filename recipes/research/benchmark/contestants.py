"""The contestants: ways to take one step on a workload, from plain training to every engine and its peers."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import harmony
from harmony import Engine
from harmony.engines import random
from recipes.research.benchmark.workloads import Batch, Workload

Weigh = Callable[[Tensor], Tensor]  # Gram blocks (B, K, K) -> weights (B, K)
ENGINE, TAPE = Engine(), Engine("tape")


class Outcome(NamedTuple):
    """What a step gives: gradients by name, None where no loss reaches a parameter."""

    grads: dict[str, Tensor | None]  # of the encoder
    loss_grads: dict[str, Tensor | None]  # of the losses stage
    gram: Tensor | None = None  # Gram blocks (B, K, K), if the contestant has any


Step = Callable[[Batch], Outcome]
Make = Callable[[Workload, Weigh], Step]


@dataclass(frozen=True)
class Contestant:
    """One way to take a step."""

    make: Make  # (workload, weigh) -> step; raises the reason why it is not available
    attribution: str | None = None  # the reading of its Gram over parameters, which is checked; None if it has none
    part: str | None = None  # of the workload, that its Gram is over; None: what the workload says


@harmony.samplewise
def pcgrad(gram: Tensor) -> Tensor:
    """The weights that all contestants are timed with."""
    return harmony.realign.pcgrad(gram)


@harmony.samplewise
def ones(gram: Tensor) -> Tensor:
    """Weights with which every step is the plain one."""
    return torch.ones(gram.shape[:2], dtype=gram.dtype, device=gram.device)


# -------------------------------------------------------------------------------------------------------- plain steps
def plain(workload: Workload, weigh: Weigh) -> Step:
    """Forward, sum of the losses, backward."""

    return _plain(workload, workload.forward)


def compiled(workload: Workload, weigh: Weigh) -> Step:
    """The plain step, its encoder through `torch.compile`."""
    return _plain(workload, torch.compile(workload.forward, dynamic=False))


def _plain(workload: Workload, forward: Callable[[Batch], dict[str, Tensor]]) -> Step:
    def step(batch: Batch) -> Outcome:
        _clear(workload.model, workload.objective)
        workload.total(forward(batch)).backward()
        return _collect(workload.model, workload.objective)

    return step


def cached(workload: Workload, weigh: Weigh) -> Step:
    """Gradient caching: embeddings without a graph, the losses on all of them, then each chunk once more with a graph.

    References:
        Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021 (arXiv:2101.06983).
    """

    size = _chunk(workload)

    def step(batch: Batch) -> Outcome:
        _clear(workload.model, workload.objective)
        parts, states, chunks = [], [], _split(batch, size)
        with torch.no_grad():
            for chunk in chunks:
                states.append(random.snapshot(chunk.values()))
                parts.append(workload.forward(chunk))
        embeddings = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        leaves = {name: e.requires_grad_() for name, e in embeddings.items() if e.is_floating_point()}
        workload.total(embeddings).backward()
        reached = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        for chunk, state, cotangents in zip(chunks, states, _split(reached, size), strict=True):
            with random.replay(state):
                encoded = workload.forward(chunk)
            torch.autograd.backward([encoded[name] for name in cotangents], list(cotangents.values()))
        return _collect(workload.model, workload.objective)

    return step


def _chunk(workload: Workload, size: int | None = None) -> int:
    """Samples per chunk, by default the workload's; an error if one chunk would hold the whole batch."""
    size = size or workload.spec.chunk
    if size >= workload.spec.batch:
        raise ValueError(f"one chunk of {size} would hold the whole batch of {workload.spec.batch}")
    return size


def _split(batch: Batch, size: int) -> list[Batch]:
    parts = {name: torch.split(x, size) for name, x in batch.items()}
    return [dict(zip(parts, chunk, strict=True)) for chunk in zip(*parts.values(), strict=True)]


def _clear(*modules: nn.Module) -> None:
    for module in modules:
        module.zero_grad(set_to_none=True)


def _collect(model: nn.Module, objective: nn.Module) -> Outcome:
    model_grads, loss_grads = (
        {name: p.grad for name, p in module.named_parameters() if p.requires_grad} for module in (model, objective)
    )
    _clear(model, objective)
    return Outcome(model_grads, loss_grads)


# ------------------------------------------------------------------------------------------------------------ Harmony
def harmonized(engine: Engine = ENGINE, chunked: bool = False, part: str | None = None, **keywords: Any) -> Make:
    """`harmony.harmonized_grad` with this engine and these keywords.

    Args:
        engine: The engine.
        chunked: Whether to work in the workload's chunks.
        part: Of the workload, to take the Gram over; None: what the workload says.
        **keywords: More of `harmony.harmonized_grad`.
    """

    def make(workload: Workload, weigh: Weigh) -> Step:
        harmonizer = harmony.chain(weigh)
        options = _options(workload, engine, chunked, {"wrt": workload.selects(part)} | keywords)
        grad = harmony.harmonized_grad(workload.encode, workload.losses, harmonizer, **options)

        def step(batch: Batch) -> Outcome:
            (grads, loss_grads), _, info = grad(
                workload.params, batch, harmonizer.init(), loss_params=workload.loss_params
            )
            return Outcome(grads, loss_grads, info.gram)

        return step

    return make


def pulled_back(engine: Engine) -> Make:
    """`harmony.gram_vjp`, weights, pullback: the three calls of somebody who writes a rule of their own."""

    def make(workload: Workload, weigh: Weigh) -> Step:
        options = _options(workload, engine, False, {})

        def step(batch: Batch) -> Outcome:
            result = harmony.gram_vjp(
                workload.encode, workload.losses, workload.params, batch, loss_params=workload.loss_params, **options
            )
            return Outcome(*result.pullback(weigh(result.gram)), result.gram)

        return step

    return make


def _options(workload: Workload, engine: Engine, chunked: bool, keywords: dict[str, Any]) -> dict[str, Any]:
    if chunked or engine.chunk_size is not None:
        engine = replace(engine, chunk_size=_chunk(workload, engine.chunk_size))
    options = {"wrt": workload.wrt, "engine": engine, **keywords}
    return options | {"wrt": None} if options.get("space") == "features" else options


# -------------------------------------------------------------------------------------------------------------- peers
def torchjd(workload: Workload, weigh: Weigh) -> Step:
    """TorchJD's autogram: Gramian of the terms (B, K), weights from its diagonal blocks, one weighted backward.

    Its weightings solve for all B K rows at once; this step weighs the (B, K, K) blocks, which is cheaper. It works on
    a copy of the model, as its hooks stay in the modules.
    """
    try:
        from torchjd.autogram import Engine
    except ImportError:
        raise ImportError("TorchJD is not installed: pip install 'gradient-harmony[benchmark]'") from None
    if workload.spec.compiled:
        raise ValueError("TorchJD's hooks do not work in compiled modules")
    model, objective = copy.deepcopy(workload.model), copy.deepcopy(workload.objective)
    engine = Engine(model.get_submodule(workload.watched), batch_dim=0)

    def step(batch: Batch) -> Outcome:
        _clear(model, objective)
        with workload.precision():
            terms = torch.stack(list(objective(model(**batch)).values()), dim=1) / len(next(iter(batch.values())))
        gramian = engine.compute_gramian(terms).reshape(*terms.shape, *terms.shape)
        gram = gramian.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (B, K, B, K) -> (K, K, B) -> (B, K, K)
        terms.backward(weigh(gram))
        return _collect(model, objective)._replace(gram=gram)

    return step


# ---------------------------------------------------------------------------------------------------------------- all
PLAIN, CACHED, FUSED, CHUNKED, TORCHJD = "plain", "gradient caching", "tape", "tape, chunked", "TorchJD autogram"
FEATURES = {how: harmonized(space="features", attribution=how) for how in ("activation", "anchor", "loss")}
UPDATES = {way: pulled_back(Engine("tape", update=way)) for way in ("tape", "kept", "backward")}
PARTS = ("last block", "last projection")
CHUNKS = {size: harmonized(Engine("vmap", chunk_size=size)) for size in (4, 8, 16)}
CONTESTANTS = {
    PLAIN: Contestant(plain),
    CACHED: Contestant(cached),
    FUSED: Contestant(harmonized(TAPE), "activation"),
    **{f"tape, update={way}": Contestant(make, "activation") for way, make in UPDATES.items()},
    "tape, verify=always": Contestant(harmonized(Engine("tape", verify="always")), "activation"),
    CHUNKED: Contestant(harmonized(TAPE, chunked=True), "activation"),
    "tape, anchor": Contestant(harmonized(TAPE, attribution="anchor"), "anchor"),
    **{f"tape, {part}": Contestant(harmonized(TAPE, part=part), "activation", part) for part in PARTS},
    **{f"features, {attribution}": Contestant(make) for attribution, make in FEATURES.items()},
    "vmap": Contestant(harmonized(Engine("vmap")), "activation"),
    **{f"vmap, chunks of {size}": Contestant(make, "activation") for size, make in CHUNKS.items()},
    "loop": Contestant(harmonized(Engine("loop")), "activation"),
    TORCHJD: Contestant(torchjd, "activation"),
}
