"""How well the cheap readings of agreement rank samples as the exact ones do, at several points of training."""

import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

import harmony
from recipes.config import Config
from recipes.data import vocabulary
from recipes.data.clips import TrainClips
from recipes.data.loader import train_loader
from recipes.errors import ConfigError, DataError
from recipes.model.build import build, device_of, model_inputs, use_cores
from recipes.model.harmonizer import harmonizer
from recipes.model.vatt import SIZES
from recipes.pretrain import learning_rate, vocabulary_of
from recipes.progress import progress_bar
from recipes.restore import load_config, own_data
from recipes.splits import train_and_test
from recipes.training import checkpoint
from recipes.training.step import train_step

log = logging.getLogger(__name__)

PROBE_SEED = 1  # added to the seed of training: the same clips at every point, in windows training does not see


class Variant(NamedTuple):
    """One way to read the agreement of a sample."""

    attribution: str
    space: str = "parameters"
    wrt: str | None = None

    @property
    def name(self) -> str:
        """As shown."""
        return ", ".join(filter(None, (self.attribution, self.space, self.wrt)))


EXACT = (Variant("loss"), Variant("activation"))
VARIANTS = (
    *EXACT,
    Variant("anchor"),
    *(Variant(attribution, "features") for attribution in ("activation", "loss", "anchor")),
    *(Variant("activation", wrt=part) for part in ("backbone", "last layer")),
)


def compare(config: Config, points: list[int], batches: int, run: Path | None = None) -> list[dict[str, Any]]:
    """Train plainly and compare all variants with the exact cosines on the way.

    The comparison uses the same few batches at every point, without dropout and DropToken, so that every variant reads
    the same function; the losses stage is as in training.

    Args:
        config: The recipe; its `harmonize` and `gram` do not matter.
        points: Steps after which to compare.
        batches: Batches to compare on; their samples are pooled.
        run: A run or checkpoint to compare at instead of training; its configuration counts.

    Returns:
        Records {"step", "variant", "samples", "mean", "negative", and for each exact reading "rank_..." (Spearman's
        correlation) and "sign_..." (share of equal signs)}.
    """
    folder = None if run is None else checkpoint.latest(run)
    if folder is not None:
        config = load_config(folder)
    if not points or min(points) < 0:
        raise ConfigError(f"the points of comparison are numbers of steps from 0 on; got {points}")
    config.harmonize, config.gram.every = "none", 0
    device = device_of(config)
    use_cores(config)
    try:
        train = (train_and_test if folder is None else own_data)(config).train
        tokenizer = vocabulary_of(train, config) if folder is None else vocabulary.load(folder / "vocabulary.json")
        torch.manual_seed(config.train.seed)
        saved = None if folder is None else checkpoint.saved(folder)
        modules = build(config, tokenizer, saved).to(device)
    except (ValueError, OSError) as error:
        raise DataError(str(error)) from error
    if folder is not None:
        checkpoint.load_weights(folder, modules)
        points = [checkpoint.load_facts(folder)["step"]]

    def loader(seed: int) -> Any:
        dataset = TrainClips(train, tokenizer, config.clip, seed, config.augment)
        data = config.data
        return train_loader(
            dataset, config.train.batch_size, seed, data.workers, timeout=data.timeout, prefetch=data.prefetch_gib
        )

    probes = [model_inputs(batch, device) for batch in _readable(loader(config.train.seed + PROBE_SEED), batches)]
    last_layer = f"backbone.layers.{SIZES[config.model.size].layers - 1}."
    optimizer = torch.optim.Adam([p for p in modules.parameters() if p.requires_grad], betas=(0.9, 0.999))
    transform, rate = harmonizer(config), learning_rate(config)
    state, stream = transform.init(), iter(loader(config.train.seed)) if folder is None else iter(())

    rows: list[dict[str, Any]] = []
    goals = sorted(set(points))
    step = 0 if folder is None else goals[0]
    with progress_bar(total=goals[-1] - step + len(goals) * batches * len(VARIANTS), desc="variants") as bar:
        for goal in goals:
            while step < goal:
                for group in optimizer.param_groups:
                    group["lr"] = float(rate(torch.tensor(step)))
                _, state = train_step(config, modules, optimizer, transform, state, next(stream), step, device)
                step += 1
                bar.update()
            rows += measure(modules, probes, last_layer, step, bar.update)
    return rows


def measure(
    modules: nn.ModuleDict,
    probes: list[dict[str, Tensor]],
    last_layer: str,
    step: int,
    advance: Callable[[], Any] = lambda: None,
) -> list[dict[str, Any]]:
    """The records of one point."""
    read = {variant: [] for variant in VARIANTS}
    for variant, probe in itertools.product(VARIANTS, probes):
        gram = blocks(modules, probe, variant, last_layer)
        read[variant].append((harmony.agreement(gram).cpu(), harmony.defined(gram).cpu()))
        advance()
    cosines = {v: torch.cat([cosine for cosine, _ in pairs]) for v, pairs in read.items()}
    defined = torch.stack([torch.cat([mask for _, mask in pairs]) for pairs in read.values()]).all(0)
    rows = []
    for variant in VARIANTS:
        found = cosines[variant][defined]
        row = {"step": step, "variant": variant.name, "samples": int(defined.sum())}
        row |= {"mean": float(found.mean()), "negative": float((found < 0).float().mean())}
        for exact in EXACT:
            expected = cosines[exact][defined]
            row[f"rank_{exact.attribution}"] = spearman(found, expected)
            row[f"sign_{exact.attribution}"] = float(((found < 0) == (expected < 0)).float().mean())
        rows.append(row)
    return rows


def blocks(modules: nn.ModuleDict, inputs: dict[str, Tensor], variant: Variant, last_layer: str) -> Tensor:
    """Gram blocks (B, K, K) of one variant; neither weights nor running statistics change."""
    model, objective = modules["model"], modules["objective"]
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    buffers = {name: b.clone() for name, b in objective.named_buffers()}
    prefix = {None: "", "backbone": "backbone.", "last layer": last_layer}[variant.wrt]
    model.eval()
    try:
        return harmony.gram_vjp(
            lambda p, batch: functional_call(model, p, kwargs=batch),
            lambda embeddings: functional_call(objective, buffers, (embeddings,)),
            params,
            inputs,
            attribution=variant.attribution,  # type: ignore[arg-type]
            space=variant.space,  # type: ignore[arg-type]
            wrt=(lambda name: name.startswith(prefix)) if prefix else None,
        ).gram
    finally:
        model.train()


def spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two vectors, equal values sharing their mean rank; NaN where one is constant."""
    x, y = (_ranks(v) - _ranks(v).mean() for v in (a, b))
    return float((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt())


def _ranks(values: Tensor) -> Tensor:
    below = (values[:, None] > values).double().sum(1)
    equal = (values[:, None] == values).double().sum(1)
    return below + (equal + 1) / 2


def report(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Markdown table of all points."""
    lines = [
        "## Cheap variants of the agreement against the exact ones",
        "",
        "Spearman's rank correlation and share of equal signs with the exact cosines over all parameters, loss-wise "
        f"and activation-wise; torch {facts['torch']}, {facts['date']}.",
        "",
        "| step | variant | rank, loss | sign, loss | rank, activation | sign, activation | mean cosine | negative |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    columns = ("rank_loss", "sign_loss", "rank_activation", "sign_activation", "mean", "negative")
    lines += [
        f"| {row['step']} | {row['variant']} | " + " | ".join(f"{row[c]:.2f}" for c in columns) + " |" for row in rows
    ]
    samples = ", ".join(f"{row['samples']} at step {row['step']}" for row in rows if row["variant"] == VARIANTS[0].name)
    return "\n".join([*lines, "", f"Samples: {samples}."]) + "\n"


def _readable(batches: Any, count: int) -> list[dict[str, Any]]:
    """The first batches of which two clips or more could be read."""
    found = itertools.islice((b for b in itertools.islice(batches, 10 * count) if len(b.get("id", [])) > 1), count)
    readable = list(found)
    if not readable:
        raise DataError(f"none of the first {10 * count} batches has two clips that can be read")
    return readable
