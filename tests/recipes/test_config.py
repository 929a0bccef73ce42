"""The configuration: what it accepts, how it refuses, and that it survives its own file."""

from dataclasses import fields, is_dataclass

import pytest

from recipes import keys
from recipes.config import Config, load
from recipes.errors import ConfigError
from tests.recipes.conftest import DEMO


def test_overrides_win_and_a_saved_configuration_loads_equal(tmp_path):
    config = load(DEMO, ["train.steps=7", "model.video_patch=[2,8,8]", "gram.wrt=null", "run.name=x"])
    assert config.train.steps == 7 and config.model.video_patch == (2, 8, 8) and config.gram.wrt is None
    assert config.folder.name == "x"
    keys.save(config, tmp_path / "config.yaml")
    again = load(tmp_path / "config.yaml")
    assert again == config and keys.differences(config, again) == []
    assert keys.differences(config, load(DEMO, ["train.steps=8"]))[-1] == "train.steps: 7 -> 8"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {step: 3}", r"file\.yaml: key 'train\.step'.*Did you mean"),
        ("train: {steps: soon}", r"file\.yaml: key 'train\.steps'.*'soon'"),
        ("train: [1, 2]", r"file\.yaml: key 'train': expected keys of its own.*train\.KEY="),
        ("train: 3", r"file\.yaml: key 'train': expected keys of its own.*train\.KEY="),
        ("train: {betas: [0.9]}", r"key 'train\.betas'.*length"),
        ("train: {steps: 3", r"file\.yaml: not a YAML file.*line 1"),
        ("harmonize: sometimes", "expected one of"),
        ("train: {batch_size: 1}", r"train\.batch_size=1 must be at least 2"),
        ("clip: {size: 65}", r"clip\.size=65 is not a multiple of 16x16"),
        ("gram: {wrt: '('}", "not a regular expression"),
        ("run: {name: ../elsewhere}", "must be a folder name"),
        ("run: {name: .}", "must be a folder name"),
        ("objective: {temperature: 0}", r"objective\.temperature=0.0 must be more than 0"),
        ("gram: {chunk_size: 0}", r"gram\.chunk_size=0 must be at least 1"),
        ("data: {workers: -1}", r"data\.workers=-1 must be at least 0"),
        ("train: {lr: .nan}", r"train\.lr=nan must be a finite number"),
        ("clip: {fps: 0}", r"clip\.fps=0.0 must be more than 0"),
        ("model: {video_patch: [0, 16, 16]}", r"model\.video_patch=0 must be at least 1"),
        ("augment: {crop_area: [1.0, 0.5]}", r"augment\.crop_area=.*low <= high"),
        ("curriculum: {rule: top}", "expected one of"),
        ("curriculum: {share: 1.5}", r"curriculum\.share=1.5 must be at most 1"),
        ("curriculum: {history: 1.0}", r"curriculum\.history=1.0 must be less than 1"),
        ("{curriculum: {score: batch_agreement}, gram: {attribution: loss}}", "needs gram.attribution=activation"),
        ("curriculum: {score: small_loss}", "rule=threshold compares cosines or ratios.*small_loss"),
        ("{curriculum: {rule: quantile, share: 0.1}, train: {batch_size: 4}}", "keeps none of 4 Gram blocks"),
        ("gamma: {start: 2}", r"gamma=\[2.0, 0.0\] must be cosines"),
        ("gamma: {end: .nan}", r"gamma\.end=nan must be a finite number"),
        ("clip: {size: 100000}", r"clip\.size=100000 must be at most 4096"),
        (
            "clip: {size: 2048, frames: 1024}",
            r"clip\.frames=1024: one clip of 1024 pictures of 2048x2048 would take 12\.0 GiB",
        ),
        ("clip: {audio_seconds: 1.0e+308, sample_rate: 1000}", r"clip\.audio_seconds=1e\+308 must be at most 3600"),
        (f"clip: {{sample_rate: {10**400}}}", r"clip\.sample_rate=10+ must be at most 384000"),
        ("data: {manifest: ''}", r"data\.manifest= is empty"),
        ("train: {seed: -1}", r"train\.seed=-1 must be at least 0"),
        ("train: {device: meta}", "is not a device here"),
        ("curriculum: {rule: cross_check, history: 0.5}", "cross_check has a score of its own"),
        ("{curriculum: {rule: cross_check}, gram: {group_size: 2}}", "cross_check judges single clips"),
        ("{curriculum: {score: small_loss, rule: quantile}, gram: {group_size: 2}}", "need gram.group_size=1"),
        ("realign: {layers: '('}", "not a regular expression"),
        ("{realign: {layers: x}, gram: {space: features}}", "needs gram.space=parameters"),
        ("realign: {layers: x, method: gradvac}", "needs a method without memory"),
        ("train: {compile: true}", r"train\.compile is for plain passes.*reads the graph of every operation"),
        ("{harmonize: none, train: {compile: true}}", r"gram\.every=0"),
        ("train: {device: abacus}", "is not a device here"),
        ("train: {compile: '${train.stops}'}", r"key 'train\.compile'.*train\.stops"),
        (f"train: {{lr: {10**400}}}", "too large"),
    ],
)
def test_wrong_configurations_are_refused_by_file_and_key(tmp_path, text, message):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        load(path)


def test_what_is_not_used_is_not_held_against_it(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text("{harmonize: realign, curriculum: {history: 0.5}, gram: {group_size: 2}}")
    load(path)
    path.write_text("{harmonize: none, realign: {layers: x}, gram: {space: features}}")
    load(path)


def test_an_unknown_section_is_listed_once(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("{cells: {a: {kind: x, share: 0.5}, b: {kind: y}}, train: {step: 3}}")
    with pytest.raises(ConfigError) as error:
        load(path)
    assert str(error.value).count("'cells'") == 2 and str(error.value).count("\n  - ") == 2  # twice in its sentence


def test_every_problem_is_listed_at_once(tmp_path):
    with pytest.raises(ConfigError) as error:
        load(DEMO, ["train.steps=0", "model.dropout=1.5", "gram.group_size=0"])
    assert str(error.value).count("\n  - ") == 3


def leaves(node, key=""):
    """Every key of a configuration with its value; those of a list share one."""
    for field in fields(node):
        value, name = getattr(node, field.name), f"{key}{field.name}"
        yield from leaves(value, f"{name}.") if is_dataclass(value) else [(name, value)]


NUMBERS = [key for key, value in leaves(Config()) if isinstance(value, int | float | tuple) and value is not True]
TEXTS = [key for key, value in leaves(Config()) if isinstance(value, str) or value is None]


@pytest.mark.parametrize("key", [key for key in NUMBERS if not isinstance(dict(leaves(Config()))[key], bool)])
def test_every_number_is_finite_and_bounded(key):
    value = dict(leaves(Config()))[key]
    large = () if key.endswith("lr") else ("1e30", str(10**30))  # a run that explodes says so
    for number in ("inf", "-inf", "nan", *large):
        text = f"[{','.join([number] * len(value))}]" if isinstance(value, tuple) else number
        with pytest.raises(ConfigError, match=None if isinstance(value, tuple) else key.partition(".")[0]):
            load(DEMO, ["harmonize=both", f"{key}={text}"])


@pytest.mark.parametrize("key", TEXTS)
def test_no_text_is_empty_and_no_name_too_long(key):
    with pytest.raises(ConfigError, match="no value"):
        load(DEMO, [f"{key}="])
    with pytest.raises(ConfigError, match="100"):
        load(DEMO, ["run.name=" + 300 * "x"])


def test_a_tilde_is_the_home_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(DEMO, ["run.dir=~/runs", "run.name=x"]).folder == tmp_path / "runs" / "x"
