"""Correlate the cheap readings of agreement with the exact ones, at several points of training.

python -m recipes.research.benchmark variants points=[0,100,200,400] batches=4 [run=runs/demo]
"""

import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.func import functional_call

import harmony
from recipes.config import Config
from recipes.data import vocabulary
from recipes.data.clips import TrainClips
from recipes.data.loader import train_loader
from recipes.errors import DataError
from recipes.keys import key, section
from recipes.model.build import build, device_of, model_inputs, use_cores
from recipes.model.harmonizer import harmonizer
from recipes.model.vatt import SIZES
from recipes.pretrain import vocabulary_of
from recipes.progress import progress_bar
from recipes.research.benchmark import machine, tables
from recipes.research.benchmark.suite import RecipeCommand, SuiteKeys, demo
from recipes.restore import load_config, own_data
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
        """No point."""
        if not self.points:
            yield "points=[] must name a step, from 0 on"


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


@dataclass
class Training:
    """A plain training, its clips, and where it stands."""

    config: Config
    modules: nn.ModuleDict
    loader: Callable[[int], Any]  # seed -> batches
    step: int = 0


def run(settings: VariantsKeys) -> None:
    """Compare, write."""
    training = begin(settings.recipe) if settings.run is None else resume(settings.run)
    points = sorted(set(settings.points)) if settings.run is None else [training.step]
    rows = compare(training, points, settings.batches)
    about = machine.facts(device_of(training.config).type)
    text = report(rows, about)
    tables.show(text, tables.write(settings.out, "variants", [row | about for row in rows], text))


def begin(config: Config) -> Training:
    """An untrained model and the data of a configuration."""
    train = train_and_test(config).train
    return _training(config, train, vocabulary_of(train, config))


def resume(run: Path) -> Training:
    """A trained model, on the data of its run."""
    folder = checkpoint.latest(run)
    config = load_config(folder)
    tokenizer = vocabulary.load(folder / "vocabulary.json")
    training = _training(config, own_data(config).train, tokenizer, checkpoint.saved(folder))
    checkpoint.load_weights(folder, training.modules)
    training.step = checkpoint.load_facts(folder)["step"]
    return training


def _training(config: Config, train: Any, tokenizer: Any, saved: Any = None) -> Training:
    config.harmonize, config.gram.every = "none", 0
    use_cores(config)
    torch.manual_seed(config.train.seed)
    modules = build(config, tokenizer, saved).to(device_of(config))

    def loader(seed: int) -> Any:
        dataset = TrainClips(train, tokenizer, config.clip, seed, config.augment)
        data = config.data
        return train_loader(
            dataset, config.train.batch_size, seed, data.workers, timeout=data.timeout, prefetch=data.prefetch_gib
        )

    return Training(config, modules, loader)


def compare(training: Training, points: list[int], batches: int) -> list[dict[str, Any]]:
    """Train plainly and compare all variants with the exact cosines on the way.

    The comparison uses the same few batches at every point, without dropout and DropToken, so that every variant reads
    the same function; the losses stage is as in training.

    Args:
        training: Where to begin.
        points: Steps at which to compare, in order.
        batches: Batches to compare on; their samples are pooled.

    Returns:
        Records {"step", "variant", "samples", "mean", "negative", and for each exact reading "rank_..." (Spearman's
        correlation) and "sign_..." (share of equal signs)}.
    """
    config, modules = training.config, training.modules
    device, seed = device_of(config), config.train.seed
    probes = [model_inputs(batch, device) for batch in _readable(training.loader(seed + PROBE_SEED), batches)]
    learner = Learner(modules, make_optimizer(config.train, modules), harmonizer(config))
    rate, stream = learning_rate(config.train), iter(training.loader(seed))
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
            last_layer = f"backbone.layers.{SIZES[config.model.size].layers - 1}."
            rows += measure(modules, probes, last_layer, point, bar.update)
    return rows


def measure(
    modules: nn.ModuleDict,
    probes: list[dict[str, Tensor]],
    last_layer: str,
    step: int,
    advance: Callable[[], Any] = lambda: None,
) -> list[dict[str, Any]]:
    """The records of one point."""
    cosines, masks = {}, []
    for variant in VARIANTS:
        grams = []
        for probe in probes:
            grams.append(blocks(modules, probe, variant, last_layer))
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
            row[f"sign_{exact.attribution}"] = float(((own < 0) == (expected < 0)).float().mean())
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
            attribution=variant.attribution,
            space=variant.space,
            wrt=(lambda name: name.startswith(prefix)) if prefix else None,
        ).gram
    finally:
        model.train()


def spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two vectors, equal values sharing their mean rank; NaN if one is constant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's, of constants
        return float(spearmanr(a, b).statistic)


def report(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """Markdown table of all points."""
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


def _readable(batches: Any, count: int) -> list[dict[str, Any]]:
    """The first batches of which two clips or more could be read."""
    some = (batch for batch in itertools.islice(batches, 10 * count) if len(batch.get("id", [])) > 1)
    readable = list(itertools.islice(some, count))
    if not readable:
        raise DataError(f"none of the first {10 * count} batches has two clips that can be read")
    return readable


COMMAND = RecipeCommand("recipes.research.benchmark variants", __doc__, VariantsKeys, run)
