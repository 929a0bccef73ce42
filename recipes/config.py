"""The typed configuration of a run: a YAML file and key=value overrides, checked before any work starts."""

import logging
import math
import operator
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recipes import bounds
from recipes.data.augment import AugmentConfig
from recipes.data.clips import ClipFormat

AT_LEAST = {
    "gamma.steps": 1, "curriculum.share": 0, "curriculum.history": 0,
    "curriculum.warmup": 0, "gram.group_size": 1, "gram.chunk_size": 1,
    "gram.every": 0, "gram.probe_every": 1, "corpus.videos": 2,
    "corpus.test_videos": 1, "data.workers": 0, "data.vocabulary": 3, "clip.frames": 1, "clip.size": 1,
    "clip.narrations": 1, "clip.words": 1, "clip.sample_rate": 1, "model.audio_patch": 1, "model.word_width": 1,
    "model.drop_token": 0, "model.dropout": 0, "objective.audio_space": 1, "objective.text_space": 1, "train.steps": 1,
    "train.batch_size": 2, "train.lr": 0, "train.end_lr": 0, "train.warmup": 0, "train.log_every": 1,
    "train.checkpoint_every": 1, "train.keep": 1, "train.max_bad_steps": 1, "train.weight_decay": 0,
    "evaluate.batch_size": 1, "evaluate.limit": 2, "evaluate.every": 0,
}  # fmt: skip
MORE_THAN = {
    "curriculum.temperature": 0,
    "clip.fps": 0,
    "clip.audio_seconds": 0,
    "data.timeout": 0,
    "data.prefetch_gib": 0,
    "objective.temperature": 0,
    "train.clip_norm": 0,
    "train.ema": 0,
    "train.eps": 0,
}
LESS_THAN = {"curriculum.history": 1, "model.drop_token": 1, "model.dropout": 1, "train.ema": 1}
DEVICES = ("cpu", "cuda", "mps", "xpu")  # that hold numbers
BEST = r"(text|audio)->video (R@(1|5|10)|median_rank|mean_rank)"  # figures of the clips that are held out
PLAIN = re.compile(r"\$\{[\w.]+\}")  # names another key; what else begins with ${ calls a resolver
WITH_MEMORY = ("pcgrad_random", "gradvac", "random")  # methods that `harmony.realign` makes, and that count the steps

CONFIGS = Path(__file__).parent / "configs"
DEMO = CONFIGS / "demo.yaml"

log = logging.getLogger(__name__)


class ConfigError(ValueError):
    """A configuration that cannot be run."""


@dataclass
class RunConfig:
    """Where a run writes: everything is under `dir`/`name`."""

    name: str = "demo"
    dir: str = "runs"


@dataclass
class GammaConfig:
    """The curriculum's threshold on the cosine, from `start` to `end`."""

    start: float = -0.3
    end: float = 0.0
    schedule: Literal["linear", "cosine", "constant"] = "linear"  # constant: `start` throughout
    steps: int | None = None  # None: the whole run


@dataclass
class CurriculumConfig:
    """Which clips to learn from: a rule of `harmony.curriculum` on a score of `harmony.score`."""

    rule: Literal["threshold", "soft_threshold", "quantile", "running_quantile", "agreement_weight", "cross_check"] = (
        "threshold"  # cross_check has a score of its own
    )
    score: Literal["agreement", "batch_agreement", "small_loss", "norm_ratio", "gradient_norm"] = "agreement"
    share: float = 0.7  # of the clips that the quantile rules keep
    temperature: float = 0.1  # of soft_threshold
    history: float = 0.0  # weight of a clip's own past in its score
    warmup: int = 0  # steps over which cross_check comes to drop what it would
    renormalize: bool = False  # make up for the clips that are dropped


@dataclass
class RealignConfig:
    """What to make of conflicting gradients: a method of `harmony.realign`."""

    method: Literal[
        "pcgrad", "pcgrad_random", "gradvac", "upgrad", "dualproj", "mgda", "cagrad", "imtl_g", "nash_mtl", "fairgrad",
        "aligned_mtl", "config", "normalized", "mean", "random",
    ] = "pcgrad"  # fmt: skip
    layers: str | None = None  # regular expression: what it finds in a parameter's name has a Gram of its own


@dataclass
class GramConfig:
    """How per-sample gradients are read, see `harmony.gram_vjp`."""

    attribution: Literal["activation", "loss", "anchor"] = "activation"
    space: Literal["parameters", "features"] = "parameters"
    wrt: str | None = r"^backbone\."  # regular expression on parameter names; feature space ignores it
    group_size: int = 1
    chunk_size: int | None = None
    every: int = 1  # without harmonization: measure agreement at every n-th step, 0 for never
    probe: list[Literal["layers", "groups", "paths"]] = field(default_factory=list)  # measure also over these parts
    probe_every: int = 100  # at every n-th step; costs up to two harmonized steps each time


@dataclass
class CorpusConfig:
    """The procedural corpus, built on first use where `data.manifest` is not given."""

    style: Literal["narrated", "wild"] = "wild"
    dir: str = "corpora"
    videos: int = 320
    test_videos: int = 60
    seed: int = 0


@dataclass
class SourceConfig:
    """One of several data sets that are trained on together."""

    manifest: str = MISSING
    weight: float = 1.0  # its share of every batch, relative to the others'


@dataclass
class DataConfig:
    """What to train on and what to hold out."""

    manifest: str | None = None  # see docs/data.md; None, and no sources: the procedural corpus
    sources: dict[str, SourceConfig] = field(default_factory=dict)  # by name, in place of a manifest: a mixture
    test: str | None = None  # another manifest to evaluate on; None: the test splits of what is trained on
    workers: int = 1  # processes that read clips, at least one: 0 counts as 1
    timeout: float = 60.0  # seconds that a worker may read one clip
    prefetch_gib: float = 4.0  # of batches that are read ahead, in /dev/shm; one for each worker in any case
    vocabulary: int = 65536  # most frequent words that are kept
    word_vectors: str | None = None  # word2vec or GloVe text file; frozen


@dataclass
class ModelConfig:
    """The shared transformer and the tokenizers in front of it."""

    size: Literal["demo", "small", "base", "medium", "large"] = "demo"
    video_patch: tuple[int, int, int] = (4, 16, 16)  # frames, rows, columns
    audio_patch: int = 128  # samples
    word_width: int = 300
    position_norm: bool = (
        False  # normalise positions before they are added, as VATT's code does and its paper does not say
    )
    drop_token: float = 0.5
    dropout: float = 0.1
    checkpoint: bool = False  # compute a layer's activations again in the backward pass; see docs/engines.md


@dataclass
class ObjectiveConfig:
    """The two common spaces and their losses."""

    audio_space: int = 512
    text_space: int = 256
    norm: Literal["batch", "layer", "none"] = "batch"
    temperature: float = 0.07
    symmetric: bool = False


@dataclass
class TrainConfig:
    """Optimization: Adam or AdamW, warm-up, quarter-period cosine."""

    steps: int = 500_000
    batch_size: int = 32
    seed: int = 0
    lr: float = 1e-4
    end_lr: float = 5e-5
    warmup: int = 10_000  # where that is longer than the run, a tenth of its steps
    optimizer: Literal["adam", "adamw"] = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0  # of adamw, on parameters with two or more axes: not on biases and norms
    init_from: str | None = None  # a run or a checkpoint whose weights and vocabulary to begin with
    clip_norm: float | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the encoder; fp16 with loss scaling
    tf32: bool = False  # let CUDA multiply float32 matrices in TF32
    compile: bool = False  # the encoder of plain passes, for a single process; see docs/engines.md
    ema: float | None = None  # decay of a moving average of the weights, which is then what is evaluated
    device: str = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"  # under torchrun: all parameters in every process, or a part in each
    log_every: int = 50
    checkpoint_every: int = 1000
    keep: int = 2  # checkpoints, the newest
    max_bad_steps: int = 20  # steps in a row without a finite gradient or a readable clip before the run stops

    @property
    def warmup_steps(self) -> int:
        """The length of the warm-up: `warmup`, and where that is longer than the run, a tenth of its steps."""
        return self.warmup if self.warmup <= self.steps else self.steps // 10


@dataclass
class EvalConfig:
    """Zero-shot retrieval among clips of what is held out: at the end, before training, and in between."""

    batch_size: int = 32
    limit: int | None = 4096  # the most clips, drawn by a hash from as many videos as there are; null: all narrations
    untrained: bool = True  # also before the first step
    every: int = 0  # also after every n-th step, which gets a checkpoint; 0: at the end alone
    best: str | None = None  # figure by which the best checkpoint stays as checkpoints/best: "text->video R@10"


@dataclass
class Config:
    """One run."""

    run: RunConfig = field(default_factory=RunConfig)
    harmonize: Literal["none", "realign", "curriculum", "both"] = "both"
    realign: RealignConfig = field(default_factory=RealignConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    gamma: GammaConfig = field(default_factory=GammaConfig)
    gram: GramConfig = field(default_factory=GramConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    data: DataConfig = field(default_factory=DataConfig)
    clip: ClipFormat = field(default_factory=ClipFormat)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvalConfig = field(default_factory=EvalConfig)

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return Path(self.run.dir).expanduser() / self.run.name

    @property
    def data_name(self) -> str:
        """What is trained on, for people."""
        weights = sum(source.weight for source in self.data.sources.values())
        mixture = [f"{name} {source.weight / weights:.0%}" for name, source in self.data.sources.items()]
        return ", ".join(mixture) or self.data.manifest or f"procedural corpus, {self.corpus.style}"

    @property
    def has_curriculum(self) -> bool:
        """Whether clips are dropped or weighed."""
        return self.harmonize in ("curriculum", "both")

    @property
    def has_realignment(self) -> bool:
        """Whether conflicting gradients are realigned."""
        return self.harmonize in ("realign", "both")


def load(path: str | Path, overrides: Sequence[str] | None = None, to_train: bool = True) -> Config:
    """Read a configuration file and apply overrides.

    Values may name other keys (``${train.steps}``). Resolvers (``${oc.env:HOME}``) are refused, also in a user's own
    file: a run's configuration is copied into its checkpoints, which others load, and must mean the same there.

    Args:
        path: YAML file with any of the keys of `Config`.
        overrides: ``key=value`` pairs, nested keys joined by dots: ``train.steps=100``.
        to_train: False for a run that was trained, maybe elsewhere: a device that is not here becomes "auto".

    Raises:
        ConfigError: Unknown key, wrong type, or values that do not fit together; the message names file and key.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file")
    for override in overrides or []:
        if "=" not in override:
            raise ConfigError(f"override {override!r}: expected key=value, for example train.steps=100")
        if not override.partition("=")[2].strip():
            raise ConfigError(f"override {override!r}: it has no value; null stands for none")
    where = str(path)
    try:
        config = OmegaConf.merge(OmegaConf.structured(Config), without_resolvers(OmegaConf.load(path)))
        where = "command line"
        config = OmegaConf.merge(config, without_resolvers(OmegaConf.from_dotlist(list(overrides or []))))
        loaded: Config = OmegaConf.to_object(config)  # type: ignore[assignment]
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        key = getattr(error, "full_key", None)
        raise ConfigError(f"{where}: {f'key {key!r}: ' if key else ''}{str(error).splitlines()[0]}") from None
    except Exception as error:  # a YAML syntax error comes with its line
        raise ConfigError(f"{where}: not a YAML file of keys and values: {error}") from None
    asked = any(override.startswith("train.device=") for override in overrides or [])
    if not to_train and not asked and not _device_exists(loaded.train.device):
        log.info("%s: trained on %s, which is not here: taking what is", path, loaded.train.device)
        loaded.train.device = "auto"
    check(loaded)
    return loaded


def without_resolvers(node: Any) -> Any:
    """What was read, if no value of it calls a resolver.

    Raises:
        ValueError: One does; the message names it.
    """
    values = [OmegaConf.to_container(node, resolve=False)]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            values += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            values += value
        elif isinstance(value, str) and "${" in PLAIN.sub("", value):
            raise ValueError(f"{value!r} calls a resolver: write the value itself; only other keys may be named")
    return node


def check(config: Config) -> None:
    """Raise a ConfigError that lists every value that cannot work, all at once."""
    t, h, w = (max(1, axis) for axis in config.model.video_patch)
    problems = [
        f"{key}={value} must be {kind} {bound}"
        for kind, compare, limits in (
            ("at least", operator.ge, AT_LEAST),
            ("more than", operator.gt, MORE_THAN),
            ("less than", operator.lt, LESS_THAN),
        )
        for key, bound in limits.items()
        if (value := _value(config, key)) is not None and not compare(value, bound)
    ]
    problems += bounds.problems(config)
    if min(config.model.video_patch) < 1:
        problems.append(f"model.video_patch={list(config.model.video_patch)} must be positive")
    clip, patch = config.clip, max(1, config.model.audio_patch)
    raw = clip.inputs == "raw"
    samples = patch if any(problem.startswith("clip.") for problem in problems) else clip.samples
    train = config.train
    problems += [
        message
        for wrong, message in [
            (raw and clip.frames % t, f"clip.frames={clip.frames} is not a multiple of {t} (model.video_patch)"),
            (
                raw and (clip.size % h or clip.size % w),
                f"clip.size={clip.size} is not a multiple of {h}x{w} (model.video_patch)",
            ),
            (
                raw and (samples % patch or samples < patch),
                f"clip.audio_seconds * clip.sample_rate = {samples} samples is not a multiple of "
                f"model.audio_patch={patch}",
            ),
            (not raw and clip.fps != 1, f"clip.inputs=features come one a second: clip.fps={clip.fps:g} must be 1"),
            (
                not raw and not (config.data.manifest or config.data.sources),
                "clip.inputs=features needs data.manifest or data.sources, see docs/data.md",
            ),
            (config.data.manifest and config.data.sources, "data.manifest and data.sources exclude each other"),
            (
                config.evaluate.best is not None and not re.fullmatch(BEST, config.evaluate.best),
                f"evaluate.best={config.evaluate.best!r} must be text->video or audio->video, a blank, and R@1, R@5, "
                "R@10, median_rank or mean_rank",
            ),
            *(
                (not 0 < source.weight < math.inf, f"data.sources.{name}.weight={source.weight} must be more than 0")
                for name, source in config.data.sources.items()
            ),
            (
                config.train.compile and (config.harmonize != "none" or config.gram.every == 1),
                "train.compile is for plain passes, harmonize=none with gram.every=0 (or more than 1): a step that "
                "measures gradients reads the graph of every operation, and a compiled encoder has but one",
            ),
            (not _compiles(config.gram.wrt), f"gram.wrt={config.gram.wrt!r} is not a regular expression"),
            *_harmonizer_problems(config),
            (
                not _compiles(config.realign.layers),
                f"realign.layers={config.realign.layers!r} is not a regular expression",
            ),
            (
                not all(0 < low <= high for low, high in (config.augment.crop_area, config.augment.crop_aspect)),
                "augment.crop_area and augment.crop_aspect must be [low, high] with 0 < low <= high",
            ),
            (config.augment.crop_area[1] > 1, "augment.crop_area is a share of the picture: at most 1"),
            (
                not re.fullmatch(r"\w[\w.-]*", config.run.name),
                f"run.name={config.run.name!r} must be a folder name of letters, digits, '.', '_' and '-'",
            ),
            (not all(0 <= beta < 1 for beta in train.betas), f"train.betas={list(train.betas)} must be in [0, 1)"),
            (
                train.weight_decay and train.optimizer == "adam",
                f"train.weight_decay={train.weight_decay} needs train.optimizer=adamw",
            ),
            (not _device_exists(config.train.device), f"train.device={config.train.device!r} is not a device here"),
        ]
        if wrong
    ]
    if problems:
        raise ConfigError("the configuration cannot be run:\n" + "\n".join(f"  - {p}" for p in problems))


def unfinished_schedules(config: Config) -> list[str]:
    """What to tell of schedules that are longer than the run."""
    steps, gamma, rule = config.train.steps, config.gamma, config.curriculum
    rising = gamma.schedule != "constant" and gamma.steps is not None and rule.rule.endswith("threshold")
    lines = {
        f"train.warmup={config.train.warmup}: the warm-up takes a tenth of the run instead, "
        f"{config.train.warmup_steps} steps": config.train.warmup > steps,
        f"gamma.steps={gamma.steps}: the run ends before gamma.end={gamma.end} is reached": config.has_curriculum
        and rising
        and (gamma.steps or 0) > steps,
        f"curriculum.warmup={rule.warmup}: the run ends before the rule drops what it would": config.has_curriculum
        and rule.rule == "cross_check"
        and rule.warmup > steps,
    }
    return [f"longer than train.steps={steps}: {line}" for line, holds in lines.items() if holds]


def _harmonizer_problems(config: Config) -> list[tuple[bool, str]]:
    """What cannot be harmonized so: whether it is wrong, and why."""
    rule, gamma, gram = config.curriculum, config.gamma, config.gram
    groups = -(-config.train.batch_size // gram.group_size) if gram.group_size > 0 else 1
    numbers = [gamma.start] + [gamma.end] * (gamma.schedule != "constant")
    problems = {
        f"curriculum.share={rule.share} must be at most 1": rule.share > 1,
        f"curriculum.share={rule.share} keeps none of {groups} Gram blocks": rule.rule == "quantile"
        and 0 <= rule.share < 0.5 / groups,
        f"gamma={numbers} must be cosines, between -1 and 1": rule.rule.endswith("threshold")
        and not all(-1 <= g <= 1 for g in numbers),
        f"curriculum.rule={rule.rule} compares cosines or ratios: it needs another score than {rule.score}, or a "
        "quantile rule": not rule.rule.endswith("quantile") and rule.score in ("small_loss", "gradient_norm"),
        "curriculum.score=batch_agreement needs gram.attribution=activation": rule.score == "batch_agreement"
        and gram.attribution != "activation",
        "curriculum.score=small_loss and curriculum.history are of single clips: they need gram.group_size=1": (
            rule.score == "small_loss" or rule.history > 0
        )
        and gram.group_size > 1,
        "curriculum.rule=cross_check has a score of its own: leave curriculum.score and curriculum.history alone": (
            rule.rule == "cross_check" and (rule.score != "agreement" or rule.history > 0)
        ),
        "curriculum.rule=cross_check judges single clips: it needs gram.group_size=1": rule.rule == "cross_check"
        and gram.group_size > 1,
    }
    method = config.realign.method
    layers = {
        "realign.layers needs gram.space=parameters: features have no layers": gram.space == "features",
        f"realign.layers needs a method without memory, not realign.method={method}": method in WITH_MEMORY,
    }
    layered = config.has_realignment and config.realign.layers is not None
    return [(config.has_curriculum and wrong, why) for why, wrong in problems.items()] + [
        (layered and wrong, why) for why, wrong in layers.items()
    ]


def save(config: Config, path: Path) -> None:
    """Write the whole configuration as YAML; `load` reads it back."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(as_dict(config))), encoding="utf-8")


def as_dict(config: Config) -> dict[str, Any]:
    """Nested dictionaries of plain values."""
    return asdict(config)


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, its keys joined by dots."""
    if not isinstance(tree, dict):
        return {prefix: list(tree) if isinstance(tree, tuple) else tree}
    return {k: v for key, sub in tree.items() for k, v in flat(sub, f"{prefix}.{key}" if prefix else key).items()}


def differences(old: Config, new: Config) -> list[str]:
    """Keys whose values differ, as ``key: old -> new``."""
    a, b = flat(as_dict(old)), flat(as_dict(new))
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in a | b if a.get(key) != b.get(key)]


def _value(config: Config, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def _device_exists(name: str) -> bool:
    try:
        return name == "auto" or torch.empty(0, device=name).device.type in DEVICES
    except (RuntimeError, AssertionError):  # unknown, or a build without CUDA
        return False


def _compiles(pattern: str | None) -> bool:
    try:
        re.compile(pattern or "")
    except re.error:
        return False
    return True
