"""Checkpoints that are damaged, foreign, or used elsewhere: they work, or an error names the file."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from torch import nn

from recipes import config as configuration
from recipes import keys
from recipes.config import load
from recipes.embed import main as embed_main
from recipes.errors import ConfigError, DataError
from recipes.evaluate import main as evaluate_main
from recipes.evaluation.plan import plan
from recipes.model.build import WORDS
from recipes.pretrain import pretrain
from recipes.restore import own_data, restore
from recipes.training import checkpoint as checkpoints
from recipes.training.checkpoint import CHECKSUMS, LATEST, STATE, CheckpointError
from recipes.training.ema import Ema
from recipes.training.setup import learning_rate, make_optimizer
from recipes.training.start import facts_of, latest_checkpoint
from tests.recipes.conftest import DEMO


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path) -> Path:
    """A run with two checkpoints, of steps 1 and 2, to be damaged."""
    folder = tmp_path / "run"
    shutil.copytree(checkpoint, folder)
    shutil.copytree(folder / "checkpoints" / "step_00000002", folder / "checkpoints" / "step_00000001")
    return folder


def resigned(place: Path) -> None:
    """Make the checksums those of the files as they are."""
    files = [p.relative_to(place) for p in place.rglob("*") if p.is_file() and p.name != CHECKSUMS]
    (place / CHECKSUMS).write_text(json.dumps(checkpoints.checksums(place, files)))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [Path.unlink, truncate, flip, replace_by_folder, lambda path: path.write_bytes(b"")]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(run, damage, caplog):
    newest = run / "checkpoints" / "step_00000002"
    files = sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file())
    assert {str(f) for f in files} >= {STATE, CHECKSUMS, "config.yaml", "vocabulary.json", "dynamics.safetensors"}
    kept = run.parent / "kept"
    shutil.copytree(newest, kept)
    for file in files:
        damage(newest / file)
        if file.name == CHECKSUMS and damage is Path.unlink:
            assert checkpoints.latest(run) == newest and "no checksums" in caplog.text
        else:
            caplog.clear()
            assert checkpoints.latest(run).name == "step_00000001"
            assert str(newest) in caplog.text
            with pytest.raises(CheckpointError, match=str(newest)):
                restore(newest)
        shutil.rmtree(newest)
        shutil.copytree(kept, newest)
    assert checkpoints.latest(run) == newest


@pytest.mark.parametrize("damage", [Path.unlink, truncate, replace_by_folder, lambda p: p.write_text("../../else")])
def test_a_damaged_latest_is_not_needed(run, damage, caplog):
    damage(run / "checkpoints" / LATEST)
    assert checkpoints.latest(run).name == "step_00000002"
    assert LATEST in caplog.text


def test_no_whole_checkpoint_is_refused(run):
    for place in (run / "checkpoints").glob("step_*"):
        flip(place / STATE)
    with pytest.raises(CheckpointError, match="no checkpoint here is whole"):
        restore(run)


WRONG = [None, True, -1, 1.5, "x", [], {"a": "b"}]


def test_facts_of_the_wrong_type_are_refused_by_file_and_key(run):
    place = run / "checkpoints" / "step_00000002"
    config = load(run / "config.yaml", [f"run.dir={run.parent}", f"run.name={run.name}"])
    keys.save(config, run / "config.yaml")
    shutil.rmtree(run / "checkpoints" / "step_00000001")
    facts = json.loads((place / STATE).read_text())
    for key in ("step", "data", "processes", "counts", "results", "loss_scale"):
        for wrong in WRONG:
            if (key, wrong) in (("loss_scale", None), ("data", "x")):  # neither is a wrong type
                continue
            (place / STATE).write_text(json.dumps(facts | {key: wrong}))
            resigned(place)
            with pytest.raises(CheckpointError) as error:
                facts_of(latest_checkpoint(config), config.train.steps)
            assert str(place) in str(error.value)


def test_a_foreign_configuration_calls_no_resolver(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SECRET", "password")
    place = run / "checkpoints" / "step_00000002"
    text = (place / "config.yaml").read_text()
    for value in ("${oc.env:SECRET}", "https://h/${oc.env:SECRET}", "${oc.${run.name}:SECRET}", "${oc.decode:'1'}"):
        file = tmp_path / "c.yaml"
        file.write_text(f'data: {{manifest: "{value}"}}')
        with pytest.raises(ConfigError, match=r"(?s)c\.yaml.*resolver") as error:
            load(file)
        assert "password" not in str(error.value)
        with pytest.raises(ConfigError, match=r"(?s)command line.*resolver"):
            load(DEMO, [f"data.manifest={value}"])
    (place / "config.yaml").write_text(text.replace("clip_norm: null", 'clip_norm: "${oc.env:SECRET}"'))
    resigned(place)
    assert evaluate_main(["retrieval", f"checkpoint={place}"]) == 2
    assert "password" not in capsys.readouterr().err
    (place / "config.yaml").write_text("!!python/object/apply:os.system [exit]")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load(place / "config.yaml")
    with pytest.raises(ConfigError, match="pass data="):
        own_data(load(DEMO, ["data.manifest=https://host/manifest.jsonl"]))
    assert load(DEMO, ["train.warmup=${train.batch_size}"]).train.warmup == 32


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    before = os.umask(0o022)
    try:
        place = checkpoints.save(tmp_path, 1, nn.Linear(2, 2), {}, {})
    finally:
        os.umask(before)
    assert {stat.S_IMODE(p.stat().st_mode) for p in place.rglob("*") if p.is_file()} == {0o644}


def test_a_checkpoint_is_restored_where_device_and_word_vectors_are_not(run):
    place = run / "checkpoints" / "step_00000002"
    text = (place / "config.yaml").read_text()
    moved = text.replace("device: cpu", "device: cuda:7").replace("word_vectors: null", "word_vectors: /gone/vectors")
    assert moved.count("cuda:7") == moved.count("/gone/") == 1
    (place / "config.yaml").write_text(moved)
    resigned(place)
    restored = restore(place, overrides=["data.workers=3"])
    assert restored.config.train.device == "auto" and restored.config.data.workers == 3
    saved = checkpoints.read_tensors(place, WORDS)[WORDS]
    assert torch.equal(restored.modules.state_dict()[WORDS], saved)
    assert restore(place, device="cpu").config.train.device == "cpu"


def test_options_of_restoring_and_a_new_folder_of_results(checkpoint, corpus, tmp_path, capsys):
    out = tmp_path / "new" / "folder" / "r.json"
    options = ["device=cpu", "workers=0", "batch_size=2"]
    data = [f"data={corpus / 'test.jsonl'}"]
    assert evaluate_main(["retrieval", f"checkpoint={checkpoint}", *data, f"out={out}", *options]) == 0
    assert out.is_file()
    for name in ("e.parquet", "e.safetensors"):
        command = [f"checkpoint={checkpoint}", *data, f"out={tmp_path / name}", *options]
        assert embed_main(command) == 0
        written = (tmp_path / name).stat().st_mtime_ns
        assert embed_main(command) == 0 and "finished" in capsys.readouterr().out
        assert (tmp_path / name).stat().st_mtime_ns == written
        assert embed_main([*command, "windows=2"]) == 2


def test_a_run_grows_begins_elsewhere_and_may_use_adamw(tiny):
    short = tiny("run.name=short", "train.steps=2", "evaluate.limit=2")
    pretrain(short)
    longer = tiny("run.name=short", "train.steps=3", "evaluate.limit=2")
    pretrain(longer, resume=True)
    assert checkpoints.latest(longer.folder).name == "step_00000003"
    with pytest.raises(ConfigError, match=r"train\.steps: 3 -> 2"):
        pretrain(short, resume=True)
    adamw = ["train.optimizer=adamw", "train.weight_decay=0.1", "train.lr=0", "train.end_lr=0", "train.steps=1"]
    other = tiny("run.name=other", f"train.init_from={longer.folder}", "evaluate.limit=2", *adamw)
    pretrain(other)
    a, b = (checkpoints.read_tensors(checkpoints.latest(c.folder), "model.") for c in (longer, other))
    assert all(torch.equal(a[name], b[name]) for name in a)  # a rate of 0
    wide = tiny(
        "run.name=wide", f"train.init_from={longer.folder}", "objective.audio_space=8", "objective.text_space=8"
    )
    with pytest.raises(CheckpointError, match=r"(?s)not the weights of this model:.*va\.0\.weight .*va\.0\.bias "):
        pretrain(wide)
    with pytest.raises((CheckpointError, DataError), match="not the weights of this model"):
        plan(wide)
    assert not wide.folder.exists()


def test_weights_decay_and_biases_do_not():
    modules = nn.ModuleDict({"model": nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), "objective": nn.Linear(2, 2)})
    train = configuration.TrainConfig(optimizer="adamw", weight_decay=0.1, betas=(0.5, 0.6), eps=1e-3)
    optimizer = make_optimizer(train, modules)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert [decays[id(p)] for p in modules.parameters()] == [0.1 if p.ndim == 2 else 0 for p in modules.parameters()]
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.6) and optimizer.param_groups[0]["eps"] == 1e-3


def test_averages_with_batch_norm_evaluate_as_computed_independently():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    ema, sgd = Ema(net, 0.5), torch.optim.SGD(net.parameters(), lr=0.1)
    names = ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"]
    expected = {name: net.state_dict()[name].double() for name in names}
    for t in range(20):
        sgd.zero_grad()
        net(torch.randn(8, 3) + t).square().sum().backward()
        sgd.step()
        ema.update()
        d = min(0.5, (1 + t) / (10 + t))
        expected = {n: d * value + (1 - d) * net.state_dict()[n].double() for n, value in expected.items()}
    ema.swap()
    assert int(net[1].num_batches_tracked) == 20
    x, e = torch.randn(4, 3), expected
    hidden = x.double() @ e["0.weight"].T + e["0.bias"]
    normed = (hidden - e["1.running_mean"]) / (e["1.running_var"] + net[1].eps).sqrt()
    torch.testing.assert_close(net.eval()(x).double(), normed * e["1.weight"] + e["1.bias"], rtol=1e-4, atol=1e-4)


def test_a_warm_up_longer_than_the_run_is_a_tenth_of_it():
    config = load(DEMO, ["train.steps=40", "train.warmup=10000", "gamma.steps=50"])
    assert config.train.warmup_steps == 4
    assert float(learning_rate(config.train)(torch.tensor(4))) == pytest.approx(config.train.lr)
    lines = configuration.unfinished_schedules(config)
    assert [line.split(": ")[1].split("=")[0] for line in lines] == ["train.warmup", "gamma.steps"]
    assert configuration.unfinished_schedules(load(DEMO)) == []


def test_every_problem_is_listed_at_once():
    wrong = ["train.batch_size=1", "clip.size=65", "model.video_patch=[0,16,16]", "gram.wrt='('", "model.audio_patch=0"]
    with pytest.raises(ConfigError) as error:
        load(DEMO, wrong)
    for part in ("batch_size=1", "clip.size=65", "video_patch", "gram.wrt", "audio_patch=0"):
        assert part in str(error.value)


@pytest.mark.parametrize("name", ["metrics.jsonl", "skipped.jsonl"])
@pytest.mark.parametrize("row", ["[1]", "{}", '"x"', '{"step": "a", "id": 3}'])
def test_rows_of_the_wrong_type_are_refused_by_file_and_line(run, name, row):
    config = load(run / "config.yaml", [f"run.dir={run.parent}", f"run.name={run.name}", "train.steps=3"])
    keys.save(config, run / "config.yaml")
    (run / name).write_text(row + "\n")
    with pytest.raises(ConfigError, match=f"{name}, line 1"):
        pretrain(config, resume=True)
