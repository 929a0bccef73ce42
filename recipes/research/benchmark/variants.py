"""Correlate the cheap readings of agreement with the exact ones, at several points of training.

python -m recipes.research.benchmark variants points=[0,100,200,400] batches=4 [run=runs/demo]
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.func import functional_call

import harmony
from recipes.config import Config
from recipes.data import vocabulary
from recipes.data.clips import TrainClips
from recipes.data.index import captions
from recipes.data.loader import train_loader
from recipes.errors import DataError
from recipes.keys import key, section
from recipes.model.build import build, device_of, model_inputs, use_cores
from recipes.progress import progress_bar
from recipes.research.benchmark import machine, tables
from recipes.research.benchmark.correlation import equal_signs, spearman
from recipes.research.benchmark.suite import RecipeCommand, SuiteKeys, demo
from recipes.restore import own_data, restore
from recipes.splits import train_and_test
from recipes.training import checkpoint
from recipes.training.setup import learning_rate, make_optimizer, set_learning_rate, step_options
from recipes.training.step import Learner, train_step

PROBE_SEED = 1  # added to the seed of training: the same clips at every point, in windows training does not see
COLUMNS = ("rank_loss", "sign_loss", "rank_activation", "sign_activation", "mean", "negative")


@dataclass
class VariantsKeys(SuiteKeys):
    """When to compare, and in which training."""

    points: list[int] = key([0, 100, 200, 400], "steps after which to compare", least=0)
    batches: int = key(4, "compared at each point; their samples are pooled", least=1)
    run: Path | None = key(None, "folder or checkpoint of a run: compare there, train nothing")
    recipe: Config = section(demo, "the run; its `harmonize` and `gram` do not matter")

    def problems(self) -> Iterator[str]:
        if not self.points:
            yield "points=[] must name a step, from 0 on"


class Variant(NamedTuple):
    """One way to read the agreement of a sample."""

    attribution: str
    space: str = "parameters"
    wrt: str | None = None

    @property
    def name(self) -> str:
        return ", ".join(filter(None, (self.attribution, self.space, self.wrt)))


EXACT = (Variant("loss"), Variant("activation"))
VARIANTS = (
    *EXACT,
    Variant("anchor"),
    *(Variant(attribution, "features") for attribution in ("activation", "loss", "anchor")),
    *(Variant("activation", wrt=part) for part in ("backbone", "last_block", "last_projection")),
)


@dataclass
class Training:
    """A plain training, its data, and where it stands."""

    config: Config
    modules: nn.ModuleDict
    train: Dataset
    tokenizer: Tokenizer
    step: int = 0

    def batches(self, seed: int) -> Iterator[dict[str, Any]]:
        """Batches of training clips, in the order and the windows of a seed."""
        config, data = self.config, self.config.data
        clips = TrainClips(self.train, self.tokenizer, config.clip, seed, config.augment)
        size, limits = config.train.batch_size, {"timeout": data.timeout, "prefetch": data.prefetch_gib}
        return iter(train_loader(clips, size, seed, data.workers, **limits))


def run(settings: VariantsKeys) -> None:
    training = begin(settings.recipe) if settings.run is None else resume(settings.run)
    points = sorted(set(settings.points)) if settings.run is None else [training.step]
    rows = compare(training, points, settings.batches)
    about = machine.facts(device_of(training.config.train).type)
    text = report(rows, about)
    tables.show(text, tables.write(settings.out, "variants", [row | about for row in rows], text))


def begin(config: Config) -> Training:
    """An untrained model and the data of a configuration."""
    train = train_and_test(config).train
    tokenizer = vocabulary.build(captions(train), config.data.vocabulary)
    torch.manual_seed(config.train.seed)
    return Training(config, build(config, tokenizer), train, tokenizer)


def resume(folder: Path) -> Training:
    """A trained model, on the data of its run."""
    restored = restore(folder, averaged=False)
    step = checkpoint.load_facts(restored.folder)["step"]
    return Training(restored.config, restored.modules, own_data(restored.config).train, restored.tokenizer, step)


def compare(training: Training, points: list[int], batches: int) -> list[dict[str, Any]]:
    """Train plainly and compare all variants with the exact cosines at some steps, in order; returns records.

    The same few batches are used at every point, without dropout and DropToken, so that every variant reads the same
    function; the losses stage is as in training. ``rank_...`` is Spearman's correlation with an exact reading, and
    ``sign_...`` the share of equal signs.
    """
    config, seed, device = training.config, training.config.train.seed, device_of(training.config.train)
    config.harmonize, config.gram.every = "none", 0
    use_cores(config.train, config.data)
    modules = training.modules.to(device)
    probes = [model_inputs(batch, device) for batch in _readable(training.batches(seed + PROBE_SEED), batches)]
    learner = Learner(modules, make_optimizer(config.train, modules))
    rate, stream = learning_rate(config.train), training.batches(seed)
    rows: list[dict[str, Any]] = []
    total = points[-1] - training.step + len(points) * batches * len(VARIANTS)
    with progress_bar(total=total, desc="variants") as bar:
        for point in points:
            while training.step < point:
                set_learning_rate(learner.optimizer, float(rate(torch.tensor(training.step))))
                batch = next(stream)
                if len(batch.get("id", [])) > 1:
                    train_step(learner, model_inputs(batch, device), step_options(config, training.step))
                training.step += 1
                bar.update()
            rows += measure(modules, probes, point, bar.update)
    return rows


def measure(
    modules: nn.ModuleDict,
    probes: list[dict[str, Tensor]],
    step: int,
    advance: Callable[[], Any] = lambda: None,
) -> list[dict[str, Any]]:
    """The records of one point."""
    cosines, masks = {}, []
    for variant in VARIANTS:
        grams = []
        for probe in probes:
            grams.append(blocks(modules, probe, variant))
            advance()
        cosines[variant] = torch.cat([harmony.agreement(gram).cpu() for gram in grams])
        masks.append(torch.cat([harmony.defined(gram).cpu() for gram in grams]))
    defined = torch.stack(masks).all(0)
    rows = []
    for variant in VARIANTS:
        own = cosines[variant][defined]
        row = {"step": step, "variant": variant.name, "samples": int(defined.sum())}
        row |= {"mean": float(own.mean()), "negative": float((own < 0).float().mean())}
        for exact in EXACT:
            expected = cosines[exact][defined]
            row[f"rank_{exact.attribution}"] = spearman(own, expected)
            row[f"sign_{exact.attribution}"] = equal_signs(own, expected)
        rows.append(row)
    return rows


def blocks(modules: nn.ModuleDict, inputs: dict[str, Tensor], variant: Variant) -> Tensor:
    """Gram blocks (B, K, K) of one variant; neither weights nor running statistics change."""
    model, objective = modules["model"], modules["objective"]
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    buffers = {name: b.clone() for name, b in objective.named_buffers()}
    model.eval()
    try:
        return harmony.gram_vjp(
            lambda p, batch: functional_call(model, p, kwargs=batch),
            lambda embeddings: functional_call(objective, buffers, (embeddings,)),
            params,
            inputs,
            attribution=variant.attribution,
            space=variant.space,
            wrt=(lambda name: name.startswith("backbone.")) if variant.wrt == "backbone" else variant.wrt,
        ).gram
    finally:
        model.train()


def report(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    head = ["step", "variant", "rank, loss", "sign, loss", "rank, activation", "sign, activation", "mean cosine"]
    cells = [[str(row["step"]), row["variant"], *(f"{row[c]:.2f}" for c in COLUMNS)] for row in rows]
    samples = ", ".join(f"{row['samples']} at step {row['step']}" for row in rows if row["variant"] == EXACT[0].name)
    lines = [
        "## Cheap variants of the agreement against the exact ones",
        "",
        "Spearman's rank correlation and share of equal signs with the exact cosines over all parameters, loss-wise "
        f"and activation-wise; torch {about['torch']}, {about['date']}.",
        "",
        *tables.markdown([*head, "negative"], cells, words=(1,)),
        "",
        f"Samples: {samples}.",
    ]
    return "\n".join(lines) + "\n"


def _readable(batches: Iterator[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The first batches of which two clips or more could be read."""
    readable = [batch for batch in itertools.islice(batches, 10 * count) if len(batch.get("id", [])) > 1]
    if not readable:
        raise DataError(f"none of the first {10 * count} batches has two clips that can be read")
    return readable[:count]


COMMAND = RecipeCommand("recipes.research.benchmark variants", __doc__, VariantsKeys, run)
