"""The typed configuration of a run: a YAML file and key=value overrides, checked before any work starts."""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from recipes import keys
from recipes.keys import check, key, section

CONFIGS = Path(__file__).parent / "configs"
DEMO = CONFIGS / "demo.yaml"
BILLION = 10**9  # more than anybody means
CLIP_BYTES = 2**30  # the most that one clip may take
DEVICES = ("cpu", "cuda", "mps", "xpu")  # that hold numbers
BEST = r"(text|audio)->video (R@(1|5|10)|median_rank|mean_rank)"  # figures of the clips that are held out
WITH_MEMORY = ("pcgrad_random", "gradvac", "random")  # methods that `harmony.realign` makes, and that count the steps
LAST_PARTS = ("last_block", "last_projection")  # of the encoder: what `wrt` takes in place of a regular expression

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClipFormat:
    """The shape of a clip. Pictures and sound of a window begin together; the longer of the two is the window.

    Features come one a second: `frames` of them are a clip, at `fps` 1; the keys of pixels and samples are not used.
    """

    inputs: Literal["raw", "features"] = key("raw", "pictures and sound, or what YouTube-8M has in place of them")
    frames: int = key(8, "pictures of a clip", least=1, most=4096)
    fps: float = key(10.0, "pictures a second", more_than=0, most=1000)
    size: int = key(64, "side of the square picture, pixels", least=1, most=4096)
    sample_rate: int = key(16_000, "samples of sound a second", least=1, most=384_000)
    audio_seconds: float = key(0.8, "length of the sound", more_than=0, most=3600)
    narrations: int = key(3, "texts of a clip", least=1, most=256)
    words: int = key(16, "words of a text", least=1, most=4096)

    @property
    def samples(self) -> int:
        """Samples of sound per clip."""
        return round(self.audio_seconds * self.sample_rate)

    @property
    def seconds(self) -> float:
        """Length of the window."""
        return max(self.frames / self.fps, self.audio_seconds)

    @property
    def short_side(self) -> int:
        """Pictures are decoded at this size, a seventh above `size`, before they are cropped."""
        return round(self.size * 8 / 7)

    def problems(self) -> Iterator[str]:
        """What is wrong with a clip as a whole."""
        size = 3 * self.frames * self.size**2 + 4 * self.samples + 8 * self.narrations * self.words
        if self.inputs == "raw" and size > CLIP_BYTES:
            pictures = f"{self.frames} pictures of {self.size}x{self.size}"
            yield f"frames={self.frames}: one clip of {pictures} would take {size / 2**30:.1f} GiB"


@dataclass(frozen=True)
class AugmentConfig:
    """How much to vary a training clip; the defaults are VATT's."""

    crop_area: tuple[float, float] = key((0.08, 1.0), "share of the picture: least, most", more_than=0, most=1)
    crop_aspect: tuple[float, float] = key((0.5, 2.0), "width over height: least, most", more_than=0, most=100)
    flip: float = key(0.5, "probability", least=0, most=1)
    colour: float = key(0.8, "probability of the four below", least=0, most=1)
    brightness: float = key(32 / 255, "largest shift, of the full range", least=0, most=1)
    contrast: tuple[float, float] = key((0.6, 1.4), "factor: least, most", least=0, most=100)
    saturation: tuple[float, float] = key((0.6, 1.4), "factor: least, most", least=0, most=100)
    hue: float = key(0.2, "largest shift, of the full circle", least=0, most=1)
    noise: float = key(0.01, "deviation of the noise on the sound, of its peak", least=0, most=100)

    def problems(self) -> Iterator[str]:
        """Ranges that are none."""
        for name in ("crop_area", "crop_aspect", "contrast", "saturation"):
            low, high = getattr(self, name)
            if low > high:
                yield f"{name}=[{low}, {high}] must be [low, high] with low <= high"


@dataclass
class RunConfig:
    """Where a run writes: everything is under `dir`/`name`."""

    name: str = key("demo", "of the run's folder")
    dir: str = key("runs", "folder of runs")

    def problems(self) -> Iterator[str]:
        """A name that is no folder's."""
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            yield f"name={self.name!r} must be a folder name of letters, digits, '.', '_' and '-'"


@dataclass
class GammaConfig:
    """The curriculum's threshold on the cosine, from `start` to `end`."""

    start: float = key(-0.3, "cosine at the first step")
    end: float = key(0.0, "cosine at the last step")
    schedule: Literal["linear", "cosine", "constant"] = key("linear", "constant: `start` throughout")
    steps: int | None = key(None, "from start to end; null: the whole run", least=1, most=BILLION)


@dataclass
class CurriculumConfig:
    """Which clips to learn from: a rule of `harmony.curriculum` on a score of `harmony.score`."""

    rule: Literal["threshold", "soft_threshold", "quantile", "running_quantile", "agreement_weight", "cross_check"] = (
        key("threshold", "cross_check has a score of its own")
    )
    score: Literal["agreement", "batch_agreement", "small_loss", "norm_ratio", "gradient_norm"] = key(
        "agreement", "by which the rule judges"
    )
    share: float = key(0.7, "of the clips that the quantile rules keep", least=0)
    temperature: float = key(0.1, "of soft_threshold", more_than=0, most=10**6)
    history: float = key(0.0, "weight of a clip's own past in its score", least=0, less_than=1)
    warmup: int = key(0, "steps over which cross_check comes to drop what it would", least=0, most=BILLION)
    renormalize: bool = key(False, "make up for the clips that are dropped")


@dataclass
class RealignConfig:
    """What to make of conflicting gradients: a method of `harmony.realign`."""

    method: Literal[
        "pcgrad",
        "pcgrad_random",
        "gradvac",
        "upgrad",
        "dualproj",
        "mgda",
        "cagrad",
        "imtl_g",
        "nash_mtl",
        "fairgrad",
        "aligned_mtl",
        "config",
        "normalized",
        "mean",
        "random",
    ] = key("pcgrad", "see docs/methods.md")
    layers: str | None = key(None, "regular expression: each match in parameter names has a Gram block of its own")

    def problems(self) -> Iterator[str]:
        """A pattern that is none."""
        if not _compiles(self.layers):
            yield f"layers={self.layers!r} is not a regular expression"


@dataclass
class GramConfig:
    """How per-sample gradients are read, see `harmony.gram_vjp`."""

    attribution: Literal["activation", "loss", "anchor"] = key("activation", "what the gradient of a sample is")
    space: Literal["parameters", "features"] = key("parameters", "over which gradients are compared")
    wrt: str | None = key(
        r"^backbone\.",
        "last_block, last_projection, or a regular expression on parameter names; feature space ignores it",
    )
    group_size: int = key(1, "clips that share a Gram block", least=1, most=2**20)
    chunk_size: int | None = key(None, "clips encoded at a time, where memory is short", least=1, most=2**20)
    every: int = key(1, "without harmonization: measure agreement at every n-th step, or 0", least=0, most=BILLION)
    probe: list[Literal["layers", "groups", "paths"]] = key([], "measure also over these parts")
    probe_every: int = key(100, "at every n-th step; costs up to two harmonized steps each time", least=1, most=BILLION)

    def problems(self) -> Iterator[str]:
        """A pattern that is none."""
        if not _compiles(self.wrt):
            yield f"wrt={self.wrt!r} is not a regular expression"


@dataclass
class CorpusConfig:
    """The procedural corpus, built on first use where `data.manifest` is not given."""

    style: Literal["narrated", "wild"] = key("wild", "what is said fits what is seen; or often does not")
    dir: str = key("corpora", "folder of corpora")
    videos: int = key(320, "to train on", least=2, most=10**7)
    test_videos: int = key(60, "held out", least=1, most=10**7)
    seed: int = key(0, "of everything in it", least=0, most=2**32 - 1)


@dataclass
class SourceConfig:
    """One of several data sets that are trained on together."""

    manifest: str = key(meaning="see docs/data.md")
    weight: float = key(1.0, "its share of every batch, relative to the others'", more_than=0, most=BILLION)


@dataclass
class DataConfig:
    """What to train on and what to hold out."""

    manifest: str | None = key(None, "see docs/data.md; null, and no sources: the procedural corpus")
    sources: dict[str, SourceConfig] = key({}, "by name, in place of a manifest: a mixture")
    test: str | None = key(None, "another manifest to evaluate on; null: the test splits of what is trained on")
    workers: int = key(1, "processes that read clips, at least one: 0 counts as 1", least=0, most=1024)
    timeout: float = key(60.0, "seconds that a worker may read one clip", more_than=0, most=7 * 86_400)
    prefetch_gib: float = key(4.0, "of batches read ahead, in /dev/shm; a worker reads one", more_than=0, most=2**14)
    vocabulary: int = key(65536, "most frequent words that are kept", least=3, most=10**8)
    vocabulary_file: str | None = key(None, "vocabulary.json of another run, in place of words that are counted")
    word_vectors: str | None = key(None, "word2vec or GloVe text file; frozen")

    def problems(self) -> Iterator[str]:
        """Two answers to one question."""
        if self.manifest and self.sources:
            yield "manifest and sources exclude each other"


@dataclass
class ModelConfig:
    """The shared transformer and the tokenizers in front of it."""

    size: Literal["demo", "small", "base", "medium", "large"] = key("demo", "of the transformer")
    video_patch: tuple[int, int, int] = key((4, 16, 16), "frames, rows, columns", least=1, most=4096)
    audio_patch: int = key(128, "samples", least=1, most=2**20)
    word_width: int = key(300, "of a word's vector", least=1, most=2**14)
    position_norm: bool = key(False, "normalise positions before they are added, as VATT's code does")
    drop_token: float = key(0.5, "share of the tokens of video and sound that training drops", least=0, less_than=1)
    dropout: float = key(0.1, "in the transformer", least=0, less_than=1)
    checkpoint: bool = key(False, "compute a layer's activations again in the backward pass; see docs/engines.md")


@dataclass
class ObjectiveConfig:
    """The two common spaces and their losses."""

    audio_space: int = key(512, "width of the space of video and sound", least=1, most=2**16)
    text_space: int = key(256, "width of the space of video and text", least=1, most=2**16)
    norm: Literal["batch", "layer", "none"] = key("batch", "in the heads")
    temperature: float = key(0.07, "of the similarities", more_than=0, most=10**6)
    symmetric: bool = key(False, "contrast both ways")


@dataclass
class TrainConfig:
    """Optimization: Adam or AdamW, warm-up, quarter-period cosine."""

    steps: int = key(500_000, "of the optimizer", least=1, most=BILLION)
    batch_size: int = key(32, "clips, of all processes together", least=2, most=2**20)
    seed: int = key(0, "of weights, order and everything random", least=0, most=2**32 - 1)
    lr: float = key(1e-4, "learning rate after the warm-up", least=0)
    end_lr: float = key(5e-5, "learning rate at the last step", least=0)
    warmup: int = key(10_000, "steps; where that is longer than the run, a tenth of its steps", least=0, most=BILLION)
    optimizer: Literal["adam", "adamw"] = key("adam", "adamw lets weights decay")
    betas: tuple[float, float] = key((0.9, 0.999), "of Adam's two averages", least=0, less_than=1)
    eps: float = key(1e-8, "of Adam", more_than=0, most=1)
    weight_decay: float = key(0.0, "of adamw, on all but biases and norms", least=0, most=1000)
    init_from: str | None = key(None, "a run or a checkpoint whose weights and vocabulary to begin with")
    clip_norm: float | None = key(None, "longest gradient of all parameters together", more_than=0)
    precision: Literal["fp32", "bf16", "fp16"] = key("fp32", "of the encoder; fp16 with loss scaling")
    tf32: bool = key(False, "let CUDA multiply float32 matrices in TF32")
    compile: bool = key(False, "the encoder of plain passes, for a single process; see docs/engines.md")
    ema: float | None = key(None, "decay of an average of the weights, which is evaluated", more_than=0, less_than=1)
    device: str = key("auto", "cpu, cuda, ...; auto: a GPU where there is one")
    parallel: Literal["ddp", "fsdp"] = key("ddp", "under torchrun: all parameters in every process, or a part in each")
    log_every: int = key(50, "steps", least=1, most=BILLION)
    checkpoint_every: int = key(1000, "steps", least=1, most=BILLION)
    keep: int = key(2, "checkpoints, the newest", least=1, most=10**6)
    max_bad_steps: int = key(20, "steps in a row that cannot be taken before the run stops", least=1, most=BILLION)

    @property
    def warmup_steps(self) -> int:
        """The length of the warm-up: `warmup`, and where that is longer than the run, a tenth of its steps."""
        return self.warmup if self.warmup <= self.steps else self.steps // 10

    def problems(self) -> Iterator[str]:
        """What does not fit together."""
        if self.weight_decay and self.optimizer == "adam":
            yield f"weight_decay={self.weight_decay} needs train.optimizer=adamw"
        if not device_exists(self.device):
            yield f"device={self.device!r} is not a device here"


@dataclass
class EvalConfig:
    """Zero-shot retrieval among clips of what is held out: at the end, before training, and in between."""

    batch_size: int = key(32, "clips embedded together", least=1, most=2**20)
    limit: int | None = key(4096, "the most clips, of as many videos as there are; null: all", least=2, most=BILLION)
    untrained: bool = key(True, "also before the first step")
    every: int = key(0, "also after every n-th step, which gets a checkpoint; 0: never", least=0, most=BILLION)
    best: str | None = key(None, 'figure by which the best checkpoint stays as checkpoints/best: "text->video R@10"')

    def problems(self) -> Iterator[str]:
        """A figure that is none."""
        if self.best is not None and not re.fullmatch(BEST, self.best):
            figures = "R@1, R@5, R@10, median_rank or mean_rank"
            yield f"best={self.best!r} must be text->video or audio->video, a blank, and {figures}"


@dataclass
class Config:
    """One run."""

    run: RunConfig = section(RunConfig)
    harmonize: Literal["none", "realign", "curriculum", "both"] = key("both", "which of the two techniques to apply")
    realign: RealignConfig = section(RealignConfig)
    curriculum: CurriculumConfig = section(CurriculumConfig)
    gamma: GammaConfig = section(GammaConfig)
    gram: GramConfig = section(GramConfig)
    corpus: CorpusConfig = section(CorpusConfig)
    data: DataConfig = section(DataConfig)
    clip: ClipFormat = section(ClipFormat)
    augment: AugmentConfig = section(AugmentConfig)
    model: ModelConfig = section(ModelConfig)
    objective: ObjectiveConfig = section(ObjectiveConfig)
    train: TrainConfig = section(TrainConfig)
    evaluate: EvalConfig = section(EvalConfig)

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

    def problems(self) -> Iterator[str]:
        """What sections say that does not fit together."""
        yield from self._input_problems()
        if self.has_curriculum:
            yield from self._curriculum_problems()
        if self.has_realignment and self.realign.layers is not None:
            if self.gram.space == "features":
                yield "realign.layers needs gram.space=parameters: features have no layers"
            if self.realign.method in WITH_MEMORY:
                yield f"realign.layers needs a method without memory, not realign.method={self.realign.method}"
        if self.train.compile and (self.harmonize != "none" or self.gram.every == 1):
            yield (
                "train.compile is for plain passes, harmonize=none with gram.every=0 (or more than 1): a step that "
                "measures gradients reads the graph of every operation, and a compiled encoder has but one"
            )

    def _input_problems(self) -> Iterator[str]:
        """Clips that the model cannot take."""
        clip = self.clip
        if clip.inputs == "features":
            if clip.fps != 1:
                yield f"clip.inputs=features come one a second: clip.fps={clip.fps:g} must be 1"
            if not (self.data.manifest or self.data.sources):
                yield "clip.inputs=features needs data.manifest or data.sources, see docs/data.md"
        elif not keys.problems(clip):
            (t, h, w), patch = (max(1, axis) for axis in self.model.video_patch), max(1, self.model.audio_patch)
            if clip.frames % t:
                yield f"clip.frames={clip.frames} is not a multiple of {t} (model.video_patch)"
            if clip.size % h or clip.size % w:
                yield f"clip.size={clip.size} is not a multiple of {h}x{w} (model.video_patch)"
            if clip.samples % patch or clip.samples < patch:
                samples = f"clip.audio_seconds * clip.sample_rate = {clip.samples} samples"
                yield f"{samples} is not a multiple of model.audio_patch={patch}"

    def _curriculum_problems(self) -> Iterator[str]:
        """Rules that cannot judge so."""
        rule, gamma, gram = self.curriculum, self.gamma, self.gram
        groups = -(-self.train.batch_size // max(gram.group_size, 1))
        if rule.share > 1:
            yield f"curriculum.share={rule.share} must be at most 1"
        if rule.rule == "quantile" and 0 <= rule.share < 0.5 / groups:
            yield f"curriculum.share={rule.share} keeps none of {groups} Gram blocks"
        cosines = [gamma.start] + [gamma.end] * (gamma.schedule != "constant")
        if rule.rule.endswith("threshold") and not all(-1 <= cosine <= 1 for cosine in cosines):
            yield f"gamma={cosines} must be cosines, between -1 and 1"
        if not rule.rule.endswith("quantile") and rule.score in ("small_loss", "gradient_norm"):
            yield f"curriculum.rule={rule.rule} compares cosines or ratios: {rule.score} needs a quantile rule"
        if rule.score == "batch_agreement" and gram.attribution != "activation":
            yield "curriculum.score=batch_agreement needs gram.attribution=activation"
        if (rule.score == "small_loss" or rule.history > 0) and gram.group_size > 1:
            yield "curriculum.score=small_loss and curriculum.history are of single clips: they need gram.group_size=1"
        if rule.rule == "cross_check":
            if rule.score != "agreement" or rule.history > 0:
                yield "curriculum.rule=cross_check has a score of its own: leave curriculum.score and .history alone"
            if gram.group_size > 1:
                yield "curriculum.rule=cross_check judges single clips: it needs gram.group_size=1"


def load(path: str | Path, overrides: Sequence[str] | None = None, to_train: bool = True) -> Config:
    """Read the configuration of a run, see `recipes.keys.load`.

    Args:
        path: YAML file with any of the keys of `Config`.
        overrides: ``key=value`` pairs, nested keys joined by dots: ``train.steps=100``.
        to_train: False for a run that was trained, maybe elsewhere: a device that is not here becomes "auto".

    Raises:
        ConfigError: Unknown key, wrong type, or values that do not fit together; the message names file and key.
    """
    config = keys.fill(Config, path, overrides or [])
    chosen = any(override.startswith("train.device=") for override in overrides or [])
    if not to_train and not chosen and not device_exists(config.train.device):
        log.info("%s: trained on %s, which is not here: taking what is", path, config.train.device)
        config.train.device = "auto"
    check(config)
    return config


def unfinished_schedules(config: Config) -> list[str]:
    """Warnings about schedules that are longer than the run."""
    steps, gamma, rule = config.train.steps, config.gamma, config.curriculum
    tenth = f"the warm-up takes a tenth of the run instead, {config.train.warmup_steps} steps"
    lengths = {f"train.warmup={config.train.warmup}: {tenth}": config.train.warmup}
    if config.has_curriculum and rule.rule.endswith("threshold") and gamma.schedule != "constant":
        lengths[f"gamma.steps={gamma.steps}: the run ends before gamma.end={gamma.end} is reached"] = gamma.steps or 0
    if config.has_curriculum and rule.rule == "cross_check":
        lengths[f"curriculum.warmup={rule.warmup}: the run ends before the rule drops what it would"] = rule.warmup
    return [f"longer than train.steps={steps}: {line}" for line, length in lengths.items() if length > steps]


def device_exists(name: str) -> bool:
    """Whether torch can compute on a device here."""
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
