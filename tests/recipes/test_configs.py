"""The configurations that come with the recipe: they load, and say where they are not the paper's."""

import re
from pathlib import Path

import pytest
import torch

from recipes.config import Config, load
from recipes.keys import as_dict
from recipes.model.objective import Objective
from recipes.model.vatt import VATT, parameter_counts
from tests.recipes.conftest import DEMO

CONFIGS = sorted(path for path in DEMO.parent.glob("*.yaml") if not path.stem.startswith("study"))  # see test_study.py
OF_THE_PAPER = [path for path in CONFIGS if path.stem.startswith("vatt_")]
MILLIONS = {"small": 20.9, "base": 87.9, "medium": 155.0, "large": 306.1}  # VATT, table 6
PAPER = {
    "data.vocabulary": 2**16,
    "data.word_vectors": "word2vec",
    "clip.inputs": "raw",
    "clip.frames": 32,
    "clip.fps": 10,
    "clip.size": 224,
    "clip.sample_rate": 48_000,
    "clip.audio_seconds": 3.2,
    "clip.narrations": 5,
    "clip.words": 16,
    "augment.crop_area": (0.08, 1.0),
    "augment.crop_aspect": (0.5, 2.0),
    "augment.colour": 0.8,
    "augment.brightness": 32 / 255,
    "augment.contrast": (0.6, 1.4),
    "augment.saturation": (0.6, 1.4),
    "augment.hue": 0.2,
    "augment.noise": 0.01,
    "model.size": "medium",
    "model.video_patch": (4, 16, 16),
    "model.audio_patch": 128,
    "model.word_width": 300,
    "model.drop_token": 0.5,
    "model.dropout": 0.1,
    "objective.audio_space": 512,
    "objective.text_space": 256,
    "objective.norm": "batch",
    "objective.temperature": 0.07,
    "objective.symmetric": False,
    "train.steps": 500_000,
    "train.batch_size": 2048,
    "train.lr": 1e-4,
    "train.end_lr": 5e-5,
    "train.warmup": 10_000,
    "train.clip_norm": None,
    "train.precision": "fp32",
    "train.tf32": False,
    "train.ema": None,
    "gamma.steps": None,
    "gram.attribution": "activation",
    "gram.space": "parameters",
    "gram.wrt": r"^backbone\.",
    "gram.group_size": 1,
    "curriculum.rule": "threshold",
    "curriculum.score": "agreement",
    "curriculum.renormalize": False,
    "realign.method": "pcgrad",
    "realign.layers": None,
}
"""What the paper and VATT publish; where they are silent (precision, and what is harmonized how), the plain reading."""


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


@each(CONFIGS)
@pytest.mark.parametrize("harmonize", ["none", "realign", "curriculum", "both"])
def test_every_configuration_loads_in_every_mode(path, harmonize):
    config = load(path, [f"harmonize={harmonize}", "train.device=cpu"])
    assert config.harmonize == harmonize and load(path).harmonize == "both"


@each(OF_THE_PAPER)
def test_the_model_is_the_one_that_was_published(path):
    config = load(path)
    with torch.device("meta"):
        model = VATT(config.model, config.clip, config.data.vocabulary)
        objective = Objective(config.objective, model.output["video"].out_features)
        tokens = {name: model.tokens[name] for name in ("video", "audio", "text")}
    counted = parameter_counts(model)["table"] / 1e6
    assert counted == pytest.approx(MILLIONS[config.model.size], rel=0.03)
    video, positions = tokens["video"], {name: len(part.time) for name, part in tokens.items()}
    positions["video"] *= len(video.row) * len(video.column)
    assert positions == {"video": 1568, "audio": 1200, "text": 16}
    assert (video.patches.in_features, tokens["audio"].patches.in_features) == (3 * 4 * 16 * 16, 128)
    assert config.clip.seconds == pytest.approx(3.2)  # pictures and sound are equally long
    assert (objective.audio_to_va.out_features, objective.text_to_vt.out_features) == (512, 256)


@pytest.mark.parametrize("mixture", ["howto100m_audioset", "howto100m_audioset_youtube8m"])
def test_the_paper_mixes_these_data(mixture):
    sources = load(DEMO.with_name(f"vatt_medium_{mixture}.yaml")).data.sources
    assert list(sources) == mixture.split("_")
    assert all(Path(source.manifest).stem == name for name, source in sources.items())


@each(OF_THE_PAPER)
def test_every_difference_from_the_paper_is_said_in_a_comment(path):
    assert unsaid(path) == []
    assert all(f"harmonize={mode}" in comments(path) for mode in ("none", "realign", "curriculum", "both"))


def test_a_difference_that_is_not_said_is_found():
    assert {"clip.size", "augment.hue", "train.steps"} <= set(unsaid(DEMO))


def unsaid(path) -> list[str]:
    """Keys that are not as published, and that no comment of the file names."""
    config, said = load(path), comments(path)
    apart = [key for key, published in PAPER.items() if not same(value(config, key), published)]
    return [key for key in apart if not re.search(rf"\b{re.escape(key)}\b", said)]


def comments(path) -> str:
    return "\n".join(line.partition("#")[2] for line in path.read_text().splitlines())


def value(config: Config, key: str):
    section, name = key.split(".")
    found = as_dict(config)[section][name]
    return tuple(found) if isinstance(found, list) else found


def same(found, published) -> bool:
    """Whether a value is the published one; numbers up to roundings."""
    return found == published or (isinstance(published, float | tuple) and found == pytest.approx(published))
