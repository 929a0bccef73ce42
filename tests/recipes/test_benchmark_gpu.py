"""The suite for a GPU, on small sizes of a CPU: its tables, its rows of failure, and that it needs torch alone."""

import csv
import json
import os
import subprocess
import sys
from importlib.metadata import distribution, requires
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from recipes.research.benchmark import gpu, gpu_tests
from recipes.research.benchmark.__main__ import main
from recipes.research.benchmark.contestants import PLAIN, TORCHJD, Contestant
from recipes.research.benchmark.gpu import BACKBONE, COMPILED, CONTESTANTS, HARMONIZED, PEERS, GpuKeys
from recipes.research.benchmark.workloads.trimodal import VATT_MEDIUM, VATT_SMALL

LOOP = "loop over samples"
ROOT = Path(gpu_tests.__file__).parents[3]
SCRIPT = """
from importlib.util import find_spec
from pathlib import Path
import sys

assert find_spec("torch") and not any(map(find_spec, ["omegaconf", "yaml", "tqdm", "einops", "matplotlib", "pytest"]))

from recipes.errors import ConfigError
from recipes.research.benchmark import gpu
from recipes.research.benchmark.__main__ import main

assert main(["gpu", "--help"]) == 0
assert gpu.COMMAND.load(None, []) == gpu.GpuKeys()
try:
    gpu.COMMAND.load(None, ["repeats=3"])
except ConfigError as error:
    assert "pip install omegaconf" in str(error)
else:
    raise AssertionError("omegaconf is not installed")
gpu.run(gpu.GpuKeys(Path(sys.argv[1]), device="cpu", repeats=1, contestants=[gpu.BACKBONE]))
"""


def test_the_suite_from_end_to_end(tmp_path, capsys, monkeypatch):
    def breaks(workload, weigh):
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(CONTESTANTS, "breaks", Contestant(breaks))
    names = [*HARMONIZED, LOOP, "breaks"]
    chosen = f"contestants=[{','.join(names)}]"
    assert main(["gpu", "device=cpu", "repeats=2", f"out={tmp_path}", chosen]) == 0
    out = capsys.readouterr().out
    assert {p.name for p in tmp_path.iterdir()} == {"gpu.csv", "gpu.md", "gpu.json"}
    assert (tmp_path / "gpu.md").read_text() in out
    assert "| breaks | not available: no such kernel |" in out
    assert "Tests on the device: not run: there is no CUDA device" in out

    with open(tmp_path / "gpu.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["contestant"] for row in rows] == [PLAIN, *names]
    for row in rows[:-1]:
        assert not row["skipped"] and int(row["rounds"]) == 2 and float(row["ratio"]) > 0 and row["torch"]
        assert (float(row["calls_ratio"]) > 1) == (row["contestant"] != PLAIN)
    assert rows[-1]["skipped"] == "not available: no such kernel" and rows[-1]["seconds"] == ""

    everything = json.loads((tmp_path / "gpu.json").read_text())
    assert everything["about"]["torch"] == torch.__version__ and {"commit", "driver", "date"} <= set(
        everything["about"]
    )
    errors = {row["step"]: row for row in everything["exactness"]}
    assert all(row["gradient"] < 1e-5 for name, row in errors.items() if name != "breaks")
    assert all(errors[name]["gram"] < 1e-5 for name in HARMONIZED if name != "in feature space")
    assert [row["contestant"] for row in everything["steps"]] == [PLAIN, *names]


def test_a_model_that_would_begin_too_late_is_left_out(tmp_path, capsys):
    keys = GpuKeys(tmp_path, device="cpu", repeats=1, seconds=0, contestants=[BACKBONE], tests=False)
    gpu.run(keys)
    assert "| plain | left out: begun after 0 s |" in capsys.readouterr().out
    assert json.loads((tmp_path / "gpu.json").read_text())["tests"] == "not run: tests=false"


def test_a_model_that_cannot_be_built_is_a_row(tmp_path, monkeypatch, capsys):
    def too_large(spec, build=gpu.build):
        if spec.batch == 12:
            raise torch.OutOfMemoryError("no room")
        return build(spec)

    monkeypatch.setattr(gpu, "build", too_large)
    gpu.run(GpuKeys(tmp_path, device="cpu", repeats=1, contestants=[BACKBONE]))
    assert "| plain | out of memory: no room |" in capsys.readouterr().out


def test_on_a_gpu_the_models_are_vatts_and_peers_come_last():
    *models, peers, last = gpu.models("cuda", tuple(CONTESTANTS))
    assert all(model.names == (PLAIN, *HARMONIZED) for model in models)
    assert {*peers.names, *last.names} == {PLAIN, *PEERS} and peers.spec == models[0].spec
    assert last.names == (PLAIN, TORCHJD) and last.spec.dtype == "float32" and last.tf32
    sizes = {(m.spec.width, m.spec.layers, m.spec.heads, m.spec.tokens) for m in models}
    assert sizes == {tuple(s[k] for k in ("width", "layers", "heads", "tokens")) for s in (VATT_SMALL, VATT_MEDIUM)}
    assert [m.spec.dtype for m in models if m.tf32] == ["float32"]
    assert len(gpu.models("cuda", (PLAIN, BACKBONE))) == 4 and len(gpu.models("cuda", (PLAIN,))) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_device_the_command_says_what_to_do(capsys):
    assert main(["gpu"]) == 2
    assert "there is no CUDA device here; device=cpu tries the suite" in capsys.readouterr().err


def test_it_needs_torch_alone(tmp_path):
    """In a folder of torch, what torch requires, and numpy, as on a borrowed machine."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for name in required("torch", {"numpy"}):
        package = distribution(name)
        for top in {file.parts[0] for file in package.files} - {"..", "__pycache__"}:
            (packages / top).symlink_to(package.locate_file(top))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (packages, ROOT / "src", ROOT)))}
    command = [sys.executable, "-S", "-c", SCRIPT, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| Gram over the backbone |" in done.stdout and (tmp_path / "out" / "gpu.json").is_file()


def required(name, names):
    """Add a package, and whatever it requires, to a set of names."""
    if name not in names:
        names.add(name)
        for requirement in map(Requirement, requires(name) or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                required(requirement.name, names)
    return names


def test_the_outcome_of_tests_is_the_last_line_of_pytest(tmp_path, monkeypatch):
    file = tmp_path / "test_two.py"
    file.write_text("def test_right(): pass\ndef test_wrong(): assert 0\n")
    assert gpu_tests.last_line([str(file)], 60).startswith("1 failed, 1 passed in")
    file.write_text("import time\ntime.sleep(60)\n")
    assert gpu_tests.last_line([str(file)], 1) == "not finished within 1 s"
    assert gpu_tests.outcome("cpu", 1) == "not run: there is no CUDA device"
    monkeypatch.setattr(gpu_tests, "find_spec", lambda name: None)
    assert gpu_tests.outcome("cuda", 1) == "not run: pytest and hypothesis not installed"


@pytest.mark.slow
def test_the_compiled_step_takes_part(tmp_path):
    gpu.run(GpuKeys(tmp_path, device="cpu", repeats=2, contestants=[COMPILED], tests=False))
    everything = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["step"] for row in everything["exactness"]] == [PLAIN]
    assert everything["steps"][1]["rounds"] == 2 and everything["steps"][1]["calls"] is None
