"""The recipe under torchrun: several processes are one, on any number of them, also where one of them dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from recipes.data import vocabulary
from recipes.model.build import build
from recipes.pretrain import pretrain
from recipes.restore import restore
from recipes.training import checkpoint, metrics
from recipes.training.bad_steps import BAD_STEPS
from recipes.training.start import latest_checkpoint
from tests.recipes.conftest import DEMO, TINY
from tests.recipes.test_step_options import taken_again

# What is drawn at random differs from process to process; four clips and batch statistics would blow up roundings.
STILL = ["model.dropout=0", "model.drop_token=0", "objective.norm=layer", "train.lr=3e-4", "train.end_lr=3e-4"]
ROOT = Path(__file__).parents[2]
TWO = ("--standalone", "--nproc-per-node", "2")


@pytest.fixture
def torchrun(corpus, tmp_path):
    """Function of overrides that starts a tiny run on two processes."""

    def start(*overrides: str, launcher: tuple[str, ...] = TWO, resume: bool = False) -> subprocess.Popen[str]:
        where = [f"run.dir={tmp_path / 'runs'}", f"data.manifest={corpus}", f"data.test={corpus / 'test.jsonl'}"]
        command = [sys.executable, "-m", "torch.distributed.run"]
        command += [*launcher, "-m", "recipes.pretrain", "--config", str(DEMO), *["--resume"] * resume]
        paths = os.pathsep.join([str(ROOT), str(ROOT / "src")])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        return subprocess.Popen(
            [*command, *TINY, *STILL, *where, *overrides], env=environment, stderr=subprocess.PIPE, text=True
        )

    return start


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a run to end well, and return what it said."""
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def assert_same_run(config, other) -> None:
    """The same losses, and the same way from where they began, up to roundings.

    Adam makes steps of full size even out of gradients that are nothing but rounding (the bias of the keys), so that
    single weights may differ; the whole way may not.
    """
    a, b = (checkpoint.read_tensors(checkpoint.latest(c.folder), "") for c in (config, other))
    assert {n for n in a if not n.startswith("random.")} == {n for n in b if not n.startswith("random.")}
    tokenizer = vocabulary.load(config.folder / "vocabulary.json")
    torch.manual_seed(config.train.seed)
    start = build(config, tokenizer).state_dict()
    way, apart = (torch.cat([(x[n] - y[n]).flatten() for n in start]).norm() for x, y in ((a, start), (a, b)))
    assert apart < 0.02 * way, (apart, way)
    rows, others = (metrics.read_metrics(c.folder) for c in (config, other))
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    for row, o in zip(rows, others, strict=True):
        assert row["loss"] == pytest.approx(o["loss"], rel=1e-4)
        assert row["gradient_norm"] == pytest.approx(o["gradient_norm"], rel=1e-2)  # Adam does not see its size
        assert row.get("agreement_mean") == pytest.approx(o.get("agreement_mean"), abs=1e-3)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "overrides",
    [
        ["harmonize=both", "curriculum.rule=quantile"],
        ["harmonize=none", "gram.every=0", "train.parallel=fsdp"],
        pytest.param(["harmonize=both", "train.parallel=fsdp", "train.clip_norm=0.5"], marks=SLOW),
        pytest.param(["harmonize=none", "gram.every=2", "train.clip_norm=0.5"], marks=SLOW),
        pytest.param(["harmonize=realign", "realign.method=gradvac", "objective.norm=none"], marks=SLOW),
        pytest.param(["harmonize=curriculum", "curriculum.history=0.5", "gram.probe=[layers,paths]"], marks=SLOW),
    ],
)
def test_two_processes_train_like_one(tiny, torchrun, overrides):
    one, two = (tiny(*STILL, *overrides, f"run.name={name}") for name in ("one", "two"))
    process = torchrun(*overrides, "run.name=two")
    pretrain(one)
    finish(process)
    assert_same_run(one, two)
    assert (two.folder / "report.html").is_file()


@SLOW
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("harmonize", ["both", "none"])
def test_averages_are_those_of_one_process(tiny, torchrun, parallel, harmonize):
    overrides = [f"harmonize={harmonize}", "gram.every=0", "train.ema=0.9"]
    one, two = (tiny(*STILL, *overrides, f"run.name={name}") for name in ("one", "two"))
    process = torchrun(*overrides, "run.name=two", f"train.parallel={parallel}")
    pretrain(one)
    assert "evaluating the moving average" in finish(process)
    assert_same_run(one, two)
    averages = checkpoint.read_tensors(checkpoint.latest(two.folder), "ema.")
    weights = restore(two.folder).modules.state_dict()
    assert all(torch.equal(weights[name.removeprefix("ema.")], average) for name, average in averages.items())
    others = checkpoint.read_tensors(checkpoint.latest(one.folder), "ema.")
    torch.testing.assert_close(averages, others, rtol=1e-2, atol=1e-3)


@SLOW
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("harmonize", ["both", "none"])
def test_float16_and_its_scale_are_those_of_one_process(tiny, torchrun, parallel, harmonize):
    # In a plain pass DDP takes the mean over the processes of gradients that are as many times larger, which overflow
    # earlier. Soft losses overflow nowhere.
    overrides = [f"harmonize={harmonize}", "gram.every=0", "train.precision=fp16", "objective.temperature=2"]
    one, two = (tiny(*STILL, *overrides, f"run.name={name}") for name in ("one", "two"))
    process = torchrun(*overrides, "run.name=two", f"train.parallel={parallel}")
    pretrain(one)
    finish(process)
    assert_same_run(one, two)
    scales = [checkpoint.load_facts(checkpoint.latest(c.folder))["loss_scale"] for c in (one, two)]
    assert scales[0] == scales[1] == {"value": 2.0**16, "good_steps": 6}


@SLOW
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("harmonize", ["both", "none"])
def test_a_bad_step_is_dumped_by_all_processes_and_stops_them(tiny, torchrun, parallel, harmonize):
    overrides = [f"harmonize={harmonize}", "train.lr=1e30", "train.end_lr=1e30", "train.warmup=0", "train.steps=40"]
    overrides += ["train.max_bad_steps=3", "train.checkpoint_every=1", f"train.parallel={parallel}"]
    process = torchrun(*overrides, "run.name=two")
    _, said = process.communicate(timeout=300)
    assert process.returncode != 0 and "3 steps in a row" in said, said
    dumps = sorted((tiny("run.name=two").folder / BAD_STEPS).iterdir())
    assert 1 <= len(dumps) <= 3
    facts = json.loads((dumps[0] / "facts.json").read_text())
    assert len(facts["clips"]) == len(facts["terms"]["va"]) == 4
    assert len({clip["id"] for clip in facts["clips"]}) > 2
    again = taken_again(dumps[0])
    assert {name: len(terms) for name, terms in again.items()} == {"va": 4, "vt": 4}


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a run has written a file."""
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes that torchrun has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children]


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_the_run_goes_on_by_itself(tiny, torchrun):
    overrides = ["train.steps=40", "train.checkpoint_every=5", "train.log_every=5"]
    one, two = (tiny(*STILL, *overrides, f"run.name={name}") for name in ("one", "two"))
    process = torchrun(*overrides, "run.name=two", launcher=(*TWO, "--max-restarts", "1"))
    wait_for(two.folder / "checkpoints" / "latest", process)
    os.kill(workers_of(process)[1], signal.SIGKILL)
    said = finish(process)
    assert "resuming at step" in said
    pretrain(one)
    assert_same_run(one, two)
    assert not two.folder.with_name("two.1").exists()  # nothing was begun anew


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_run_goes_on_with_another_number_of_processes(tiny, torchrun, parallel):
    overrides = ["train.steps=40", "train.checkpoint_every=5", "train.log_every=5"]
    one, two = (tiny(*STILL, *overrides, f"run.name={name}") for name in ("one", "two"))
    process = torchrun(*overrides, "run.name=two", f"train.parallel={parallel}")
    wait_for(two.folder / "checkpoints" / "latest", process)
    for pid in [*workers_of(process), process.pid]:
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert int(latest_checkpoint(two).name.removeprefix("step_")) < 40
    pretrain(two, resume=True)
    pretrain(one)
    assert_same_run(one, two)


@pytest.mark.slow
def test_sigterm_of_one_process_stops_all_after_the_same_step(tiny, torchrun):
    overrides = ["train.steps=2000", "train.checkpoint_every=5"]
    two = tiny(*STILL, *overrides, "run.name=two")
    process = torchrun(*overrides, "run.name=two")
    wait_for(two.folder / "checkpoints" / "latest", process)
    os.kill(workers_of(process)[1], signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode != 0  # else a scheduler would take the run for done
    assert said.count("interrupted by SIGTERM at step") == 2 and "exitcode  : 143" in said
    assert 5 <= checkpoint.load_facts(latest_checkpoint(two))["step"] < 2000


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def last_step(config) -> int:
    """The last step that a run has written down."""
    rows = metrics.read_metrics(config.folder)
    return rows[-1]["step"] if rows else 0


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "name"), [("ddp", ()), ("fsdp", ("--rdzv-id", "nodes"))])
def test_two_nodes_survive_six_kills_and_lose_nothing(tiny, torchrun, parallel, name):
    """Training processes of either node are killed, and of both at once; the losses are those of a quiet run."""
    overrides = ["train.steps=80", "train.checkpoint_every=5", "train.log_every=1", f"train.parallel={parallel}"]
    overrides += ["harmonize=none", "gram.every=0"] if parallel == "fsdp" else []
    quiet, killed = (tiny(*STILL, *overrides, f"run.name={of}") for of in ("quiet", "killed"))
    finish(torchrun(*overrides, "run.name=quiet"))
    where = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}", "--max-restarts", "12")
    launcher = ("--nnodes", "2", "--nproc-per-node", "1", *where, *name)
    nodes = [torchrun(*overrides, "run.name=killed", launcher=launcher) for _ in range(2)]
    try:
        for victims in (nodes[1:], nodes[:1], nodes) * 2:
            begun, deadline = last_step(killed), time.monotonic() + 120
            while last_step(killed) < begun + 7:
                assert time.monotonic() < deadline and all(node.poll() is None for node in nodes)
                time.sleep(0.02)
            for pid in [pid for node in victims for pid in workers_of(node)]:
                os.kill(pid, signal.SIGKILL)
        said = [finish(node) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert sum(text.count("resuming at step") for text in said) >= 6
    rows, others = metrics.read_metrics(quiet.folder), metrics.read_metrics(killed.folder)
    assert [(row["step"], row["loss"]) for row in rows] == [(row["step"], row["loss"]) for row in others]
    assert not killed.folder.with_name("killed.1").exists()
