"""The keys of a world: where clips come from, and the model that learns from them."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal

from recipes.config import BILLION, ClipFormat, Config, CorpusConfig, ModelConfig, ObjectiveConfig, TrainConfig
from recipes.keys import key, section

USED = ("steps", "batch_size", "lr", "end_lr", "warmup", "optimizer", "betas", "eps", "weight_decay", "clip_norm")


@dataclass
class WorldConfig:
    """Where clips come from, and the model that learns from them."""

    source: Literal["features", "media"] = key("features", "drawn features, or media of the procedural corpus")
    clips: int = key(1024, "training clips; of media at most what the corpus has", least=2, most=BILLION)
    test_clips: int = key(400, "test clips; of media at most what the corpus has", least=2, most=BILLION)
    audio_attributes: int = key(3, "how many of the three attributes sound carries; features only", least=0, most=3)
    evaluate_every: int = key(60, "steps between two evaluations", least=1, most=BILLION)
    corpus: CorpusConfig = section(CorpusConfig, "of media")
    clip: ClipFormat = section(ClipFormat)
    model: ModelConfig = section(ModelConfig)
    objective: ObjectiveConfig = section(ObjectiveConfig)
    train: TrainConfig = section(TrainConfig, "without the seed: see seeds")

    def problems(self) -> Iterator[str]:
        inputs = "features" if self.source == "features" else "raw"
        if self.clip.inputs != inputs:
            yield f"clip.inputs={self.clip.inputs}: source={self.source} needs {inputs}"
        elif inputs == "raw":
            yield from Config(harmonize="none", clip=self.clip, model=self.model).problems()
        for field in fields(TrainConfig):
            value = getattr(self.train, field.name)
            if field.name not in USED and value != field.default:
                yield f"train.{field.name}={value} has no effect on a study: leave it out"
