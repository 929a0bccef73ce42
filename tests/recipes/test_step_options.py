"""Precision, averaged weights, recomputed activations and dumps of bad steps, on the recipe's own model and loop."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file

from recipes.config import Config, GramConfig, ObjectiveConfig, TrainConfig
from recipes.errors import ConfigError
from recipes.model.objective import Objective
from recipes.pretrain import TrainingError, pretrain
from recipes.restore import restore
from recipes.training import bad_steps, checkpoint, dynamics, metrics
from recipes.training.bad_steps import BAD_STEPS, MOST
from recipes.training.ema import Ema
from recipes.training.precision import GROW_AFTER, LossScale, forward_in, loss_scale
from recipes.training.processes import Processes
from recipes.training.setup import step_options
from recipes.training.start import check_processes
from recipes.training.step import Learner, train_step
from tests.recipes.test_model import batch, model


def tensors(config):
    return checkpoint.read_tensors(checkpoint.latest(config.folder), "")


def same(a, b):
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize(("precision", "harmonize"), [("bf16", "both"), ("fp16", "none"), ("fp16", "both")])
def test_half_precision_trains_like_float32_and_resumes_exactly(tiny, crash, precision, harmonize):
    options = [f"harmonize={harmonize}", "gram.every=2", "model.dropout=0"]
    exact = tiny("run.name=exact", *options)
    whole, torn = (tiny(f"run.name={n}", f"train.precision={precision}", *options) for n in ("whole", "torn"))
    for config in (exact, whole):
        pretrain(config)
    first, other = (metrics.read_metrics(c.folder)[0]["loss"] for c in (exact, whole))
    assert other == pytest.approx(first, rel=0.05) and other != first
    crash(torn)
    pretrain(torn, resume=True)
    assert same(tensors(whole), tensors(torn))
    scales = [checkpoint.load_facts(checkpoint.latest(c.folder))["loss_scale"] for c in (whole, torn)]
    assert scales[0] == scales[1] and (scales[0] is not None) == (precision == "fp16")


def test_only_the_encoder_is_in_half_precision():
    net, inputs = model(dropout=0.0, drop_token=0.0), batch()
    seen = []
    net.backbone.register_forward_hook(lambda module, args, out: seen.append(args[0].dtype))
    net.backbone.layers[0].qkv.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    embeddings = forward_in("bf16", torch.device("cpu"))(net, inputs)
    assert torch.bfloat16 in seen
    assert {embeddings[m].dtype for m in ("video", "audio", "text")} == {torch.float32}
    assert embeddings["text_valid"].dtype == torch.bool and embeddings["index"].dtype == torch.int64


def test_the_loss_scale_falls_at_once_and_grows_slowly():
    scale = loss_scale(TrainConfig(precision="fp16"))
    scale.update(finite=False)
    assert scale.value == 2**15 and loss_scale(TrainConfig()) is None
    for _ in range(GROW_AFTER):
        scale.update(finite=True)
    assert scale.value == 2**16 and LossScale(**asdict(scale)) == scale
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.full((2,), 2.0**17)
    scale.unscale([p, torch.nn.Parameter(torch.ones(1))])  # one without a gradient
    assert p.grad.tolist() == [2, 2]


def test_a_scale_that_is_too_large_is_halved_until_gradients_fit(tiny, monkeypatch):
    monkeypatch.setattr(LossScale.__init__, "__defaults__", (2.0**40, 0))
    config = tiny("train.precision=fp16", "train.steps=6")
    pretrain(config)
    assert metrics.read_metrics(config.folder)[-1]["skipped_steps"] > 0
    scale = checkpoint.load_facts(checkpoint.latest(config.folder))["loss_scale"]
    assert scale["value"] < 2.0**40 and not (config.folder / BAD_STEPS).exists()


def test_averages_follow_the_weights_are_evaluated_and_resume_exactly(tiny, crash):
    whole, torn = (tiny(f"run.name={n}", "train.ema=0.9") for n in ("whole", "torn"))
    pretrain(whole)
    crash(torn)
    pretrain(torn, resume=True)
    found = tensors(whole)
    assert same(found, tensors(torn))
    name = "model.backbone.norm.weight"
    assert not torch.equal(found[f"ema.{name}"], found[name])
    weights = restore(whole.folder).modules.state_dict()[name]
    assert torch.equal(weights, found[f"ema.{name}"])
    assert torch.equal(restore(whole.folder, averaged=False).modules.state_dict()[name], found[name])


def test_an_average_by_its_definition():
    net = torch.nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    ema, expected = Ema(net, 0.9), net.weight.detach().clone()
    for t in range(100):  # the decay is reached after 80
        with torch.no_grad():
            net.weight += torch.randn(2, 2)
        ema.update()
        decay = min(0.9, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * net.weight.detach()
    before = net.weight.detach().clone()
    torch.testing.assert_close(ema.tensors(), {"ema.weight": expected, "ema_updates": torch.tensor(100)})
    ema.swap()
    torch.testing.assert_close(net.weight.detach(), expected)
    ema.swap()
    assert torch.equal(net.weight, before)


@pytest.mark.parametrize("options", [["harmonize=both"], ["harmonize=none", "gram.every=0"]])
def test_recomputed_activations_change_nothing(tiny, options):
    kept, again = (tiny(f"run.name={flag}", f"model.checkpoint={flag}", *options) for flag in ("false", "true"))
    for config in (kept, again):
        pretrain(config)
    a, b = (tensors(c) for c in (kept, again))
    weights = [name for name in a if name.startswith("model.")]
    for state in (a, b):  # the bias of the keys has no gradient but roundings, which Adam magnifies
        for name in weights:
            if name.endswith("qkv.bias"):
                query, _, value = state[name].chunk(3)
                state[name] = torch.cat([query, value])
    torch.testing.assert_close({n: a[n] for n in weights}, {n: b[n] for n in weights}, rtol=1e-3, atol=1e-5)


def test_probes_of_recomputed_layers_measure_the_same(tiny):
    options = ["gram.probe=[layers,groups,paths]", "gram.probe_every=2"]
    kept, again = (tiny(f"run.name={flag}", f"model.checkpoint={flag}", *options) for flag in ("false", "true"))
    found = []
    for config in (kept, again):
        pretrain(config)
        found.append(dynamics.load(checkpoint.latest(config.folder) / dynamics.FILE))
    assert found[0].names == found[1].names and len(found[0].names) > 8
    for name in found[0].names:
        a, b = (recorded.series(name).seen.moments for recorded in found)
        torch.testing.assert_close(a.number, b.number)
        torch.testing.assert_close(a.mean[0], b.mean[0], rtol=1e-3, atol=1e-4)  # the first, before roundings grow


def test_plain_training_in_chunks_is_plain_training():
    """Of a batch larger than memory: harmonize=none with features and chunks."""
    grads = []
    for gram in (GramConfig(every=0), GramConfig(space="features", chunk_size=2)):
        net = model(dropout=0.0, drop_token=0.0)
        objective = Objective(ObjectiveConfig(audio_space=6, text_space=5, temperature=0.5), 96)
        modules = torch.nn.ModuleDict({"model": net, "objective": objective}).double()
        inputs = {name: x.double() if x.is_floating_point() else x for name, x in batch(5).items()}
        learner = Learner(modules, torch.optim.SGD(modules.parameters(), lr=0.0))
        result = train_step(learner, inputs, step_options(Config(harmonize="none", gram=gram), step=0))
        assert result.taken and (result.cosines is None) == (gram.every == 0)
        grads.append({name: p.grad for name, p in modules.named_parameters()})
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-10, atol=1e-12)


def test_a_layer_is_run_again_in_the_backward_pass():
    net, runs = model(checkpoint=True), []
    net.backbone.layers[0].register_forward_pre_hook(lambda *_: runs.append(1))
    net(**batch())["video"].sum().backward()
    assert len(runs) == 4  # video, audio, text, and the one that the backward pass needs


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.batch_size=5"], "batch_size=5 must be a multiple of the 2 processes"),
        (["train.parallel=fsdp", "gram.probe=[layers]"], "needs train.parallel=ddp"),
        (["harmonize=none", "gram.every=0", "train.compile=true"], "train.compile is for a single process"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(tiny, overrides, message):
    config = tiny(*overrides)
    check_processes(config.train, config.gram, Processes(0, 1))
    with pytest.raises(ConfigError, match=message):
        check_processes(config.train, config.gram, Processes(0, 2))


@pytest.mark.slow
def test_a_compiled_encoder_trains_like_an_eager_one_and_resumes_exactly(tiny, crash):
    options = ["harmonize=none", "gram.every=0", "objective.norm=layer"]
    still = [*options, "model.dropout=0", "model.drop_token=0"]
    eager, compiled = (tiny(f"run.name={flag}", f"train.compile={flag}", *still) for flag in ("false", "true"))
    for config in (eager, compiled):
        pretrain(config)
    for a, b in zip(*(metrics.read_metrics(c.folder) for c in (eager, compiled)), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
    whole, torn = (tiny(f"run.name={name}", "train.compile=true", *options) for name in ("whole", "torn"))
    pretrain(whole)
    crash(torn)
    pretrain(torn, resume=True)
    assert same(tensors(whole), tensors(torn))


@pytest.mark.parametrize("harmonize", ["both", "none"])
def test_an_exploding_run_stops_and_leaves_what_it_takes_to_see_why(tiny, harmonize):
    explode = ["train.lr=1e30", "train.warmup=0", "train.max_bad_steps=8", "train.checkpoint_every=1"]
    config = tiny(f"harmonize={harmonize}", "train.steps=40", *explode)
    with pytest.raises(TrainingError, match=r"8 steps in a row.*not finite.*bad_steps"):
        pretrain(config)
    dumps = sorted((config.folder / BAD_STEPS).iterdir())
    assert len(dumps) == MOST
    facts = json.loads((dumps[0] / "facts.json").read_text())
    assert "not finite" in facts["reason"] and len(facts["clips"]) == 4 and facts["clips"][0]["captions"]
    assert len(facts["terms"]["va"]) == 4 and facts["parameters"]["model.backbone.norm.weight"]["norm"] is not None
    inputs = load_file(dumps[0] / "inputs_0000.safetensors")
    assert inputs["video"].dtype == torch.uint8 and len(inputs["video"]) == 4
    assert {name: len(terms) for name, terms in taken_again(dumps[0]).items()} == {"va": 4, "vt": 4}


def taken_again(dump):
    """The loss terms of a bad step, by what its dump tells its reader to do."""
    lines = (dump / "README.txt").read_text().splitlines()
    code = "\n".join(line.strip() for line in lines if line.startswith("    "))
    found = {}
    exec(code.replace("print(", "again = ("), found)
    return found["again"]


def test_a_dump_that_cannot_be_written_ends_no_run(tiny, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bad_steps, "save_file", full)
    config = tiny("train.lr=1e30", "train.warmup=0", "train.max_bad_steps=3")
    with pytest.raises(TrainingError, match="3 steps in a row"):
        pretrain(config)
    assert "could not be dumped: [Errno 28] No space left on device" in caplog.text
    assert list((config.folder / BAD_STEPS).iterdir()) == []
