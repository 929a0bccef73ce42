"""Where in the backbone, and along which path, two losses agree: measurements that do not change the training."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import harmony
from recipes.config import GramConfig
from recipes.training.dynamics import Cosines

FAMILIES = ("layers", "groups", "paths")
PATHS = ("va_video", "va_audio", "vt_video", "vt_text")
PAIRS = {
    "video-video": ("va_video", "vt_video"),
    "audio-video": ("va_audio", "vt_video"),
    "video-text": ("va_video", "vt_text"),
    "audio-text": ("va_audio", "vt_text"),
}
"""The four parts of <g_va, g_vt>: what loss va sends through the one encoder, and loss vt through the other."""
Losses = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def probe(gram: GramConfig, modules: nn.ModuleDict, inputs: dict[str, Tensor], process_group: Any = None) -> Cosines:
    """Cosines of each sample's two gradients over parts of the backbone, as `gram.probe` asks for.

    They use the random numbers of the step to come, and change neither these nor running statistics. Gradients are of
    parameters, also where training reads features.

    Returns:
        {"layers/0": (cosines (groups,), defined (groups,)), ..., "layers/norm": ..., "groups/mlp": ...,
        "paths/audio-text": ...}; {} where nothing is asked for.
    """
    blocks: dict[str, Tensor] = {}
    wanted = set(gram.probe)
    if wanted & {"layers", "groups"}:
        parts = gram_of_parts(gram, modules, inputs, process_group)
        for family, which in (("layers", 0), ("groups", 1)):
            if family in wanted:
                blocks |= {f"{family}/{name}": block for name, block in summed(parts, which).items()}
    if "paths" in wanted:
        by_path = gram_of_paths(gram, modules, inputs, process_group)
        for name, pair in PAIRS.items():
            i = [PATHS.index(path) for path in pair]
            blocks[f"paths/{name}"] = by_path[:, i][:, :, i]
    cosines = {name: harmony.agreement(block) for name, block in blocks.items()}
    return {
        name: (cosine.cpu(), (harmony.defined(blocks[name]) & cosine.isfinite()).cpu())
        for name, cosine in cosines.items()
    }


def gram_of_parts(
    gram: GramConfig, modules: nn.ModuleDict, inputs: dict[str, Tensor], process_group: Any = None
) -> dict[str, Tensor]:
    """Gram blocks (groups, 2, 2) of the losses va, vt over the parts of the backbone: {"layer group": block}."""
    return _gram(gram, modules, inputs, _losses, process_group, labels=part_of)


def gram_of_paths(
    gram: GramConfig, modules: nn.ModuleDict, inputs: dict[str, Tensor], process_group: Any = None
) -> Tensor:
    """Gram blocks (groups, 4, 4) of `PATHS` over the backbone; a loss's two paths add up to its gradient."""
    backbone = {"wrt": lambda name: name.startswith("backbone.")}
    return _gram(gram, modules, inputs, _losses_by_path, process_group, **backbone)


def part_of(name: str) -> str | None:
    """The layer and the group of a parameter of the backbone.

    Examples:
        >>> part_of("backbone.layers.3.qkv.weight"), part_of("backbone.layers.0.norm_mlp.bias")
        ('3 attention', '0 norm')
        >>> part_of("backbone.norm.weight"), part_of("tokens.video.project.weight")
        ('norm norm', None)
    """
    match = re.match(r"backbone\.(?:layers\.(\d+)\.)?(\w+)", name)
    if match is None:
        return None
    layer, module = match.groups()
    group = "norm" if module.startswith("norm") else "mlp" if module == "mlp" else "attention"
    return f"{layer or 'norm'} {group}"


def summed(parts: dict[str, Tensor], which: int) -> dict[str, Tensor]:
    """Gram blocks by layer (0) or by group (1): inner products over parts add up."""
    sums: dict[str, Tensor] = {}
    for label, gram in parts.items():
        name = label.split()[which]
        sums[name] = sums[name] + gram if name in sums else gram
    return sums


def _losses(objective: Losses, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
    return objective(embeddings)


def _losses_by_path(objective: Losses, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each loss twice: once it reaches the video alone, once what the video is compared with."""
    audio, text, video = (embeddings[name].detach() for name in ("audio", "text", "video"))
    by_video = objective(embeddings | {"audio": audio, "text": text})
    by_other = objective(embeddings | {"video": video})
    return dict(zip(PATHS, (by_video["va"], by_other["va"], by_video["vt"], by_other["vt"]), strict=True))


def _gram(
    gram: GramConfig,
    modules: nn.ModuleDict,
    inputs: dict[str, Tensor],
    losses: Callable[[Losses, dict[str, Tensor]], dict[str, Tensor]],
    process_group: Any,
    **selection: Callable[[str], Any],
) -> Any:
    """Gram blocks over the parameters that ``wrt`` or ``labels`` select; running statistics stay as they are."""
    model, objective = modules["model"], modules["objective"]
    params, heads = ({n: p.detach() for n, p in m.named_parameters() if p.requires_grad} for m in (model, objective))
    device = next(iter(inputs.values())).device

    def pure(heads: dict[str, Tensor], embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        buffers = {name: b.clone() for name, b in objective.named_buffers()}
        return functional_call(objective, heads | buffers, (embeddings,))

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        return harmony.gram_vjp(
            lambda params, batch: functional_call(model, params, (), batch),
            lambda heads, embeddings: losses(partial(pure, heads), embeddings),
            params,
            inputs,
            loss_params=heads,
            attribution=gram.attribution,
            group_size=gram.group_size,
            process_group=process_group,
            engine=harmony.Engine(chunk_size=gram.chunk_size),
            **selection,
        ).gram
