"""The model of a run on many processes: what it counts, against values worked out by hand and against real runs."""

import shutil
from dataclasses import replace

import pytest
import torch

from recipes import config as configuration
from recipes.evaluation.plan import activation_bytes
from recipes.model.vatt import SIZES, VATT
from recipes.research.benchmark.__main__ import main
from recipes.research.benchmark.scaling import Machine, predict
from recipes.research.benchmark.scaling_counts import Counts, count, operations, traffic
from recipes.research.benchmark.workloads import random_clips
from tests.recipes.conftest import DEMO, TINY

MEDIUM = DEMO.parent / "vatt_medium_howto100m_audioset.yaml"
MACHINE = Machine(clips_per_core=3.0, ratio=2.0, ratio_held=3.0)


def test_operations_of_products_and_of_attention_there_and_back() -> None:
    x, w = torch.randn(7, 5, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    q, k, v = (torch.randn(2, 4, 9, 16, requires_grad=True) for _ in range(3))
    assert operations(lambda: (x @ w).sum().backward()) == 3 * 2 * 7 * 5 * 3
    attended = []
    forward = operations(lambda: attended.append(torch.nn.functional.scaled_dot_product_attention(q, k, v)))
    assert forward == 2 * 2 * (2 * 4) * 9 * 9 * 16
    assert operations(lambda: attended[0].sum().backward()) == 2.5 * forward  # the scores are computed again


def test_the_forward_pass_of_a_transformer_by_hand() -> None:
    """Two operations for each weight of the transformer and each token, and those of attention."""
    config = configuration.load(MEDIUM, ["model.drop_token=0.5"])
    size, clip = SIZES["medium"], config.clip
    video, audio = 1 + 8 * 14 * 14 // 2, 1 + clip.samples // 128 // 2
    lengths = [video, audio, *[1 + clip.words] * clip.narrations]
    weights = 4 * size.width**2 + 2 * size.width * size.mlp
    expected = sum(size.layers * (2 * n * weights + 4 * n * n * size.width) for n in lengths)
    expected += 2 * 8 * 14 * 14 * (4 * 16 * 16 * 3 + size.width) * size.width  # patches of pixels, all of them
    assert count(config).forward == pytest.approx(expected, rel=0.01)  # the other projections come on top


def test_what_is_held_is_what_a_real_forward_pass_keeps() -> None:
    """Shapes without values keep the same bytes as tensors with values."""
    config = configuration.load(DEMO, TINY)
    model = VATT(config.model, config.clip, 50)
    kept = [activation_bytes(model, random_clips(config.clip, 3, number), "fp32") for number in (3, 6)]
    assert count(config).held == pytest.approx((kept[1] - kept[0]) / 3, rel=0.01)


def test_a_share_for_each_process_and_what_gives_out_first() -> None:
    config = configuration.load(MEDIUM, [])
    counts = Counts(parameters=99_000_000, heads=1_000_000, forward=4e11, held=2**30, losses=1e9)
    rows = {what: found for what, found, _ in predict(counts, config, 256, MACHINE)}
    assert rows["clips for each process"] == "8" and rows["encoder"] == "48 ms"
    assert rows["parameters and optimizer"] == "1.49 GiB" and rows["memory of a process"] == "25.5 GiB"
    assert rows["loader"] == "190 ms" and rows["what gives out first"] == "the loader"
    assert sum(traffic(counts, config, 1).values()) == 0
    fast = replace(MACHINE, clips_per_core=100.0)
    assert predict(counts, config, 256, fast)[-1][1] == "the encoder"
    assert predict(counts, config, 16, fast)[-1][1] == "memory"


def test_the_command_prints_a_table(capsys) -> None:
    arguments = ["scaling", "--config", str(DEMO), "processes=[2,4]", "clips_per_core=50"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "### 2 processes" in out and "### 4 processes" in out and "| what gives out first |" in out
    assert main([*arguments, "recipe.model.size=huge"]) == 2
    assert main(arguments[:-1]) == 2
    assert "clips_per_core= is missing" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None or shutil.which("ip") is None, reason="Linux tools")
def test_traffic_is_that_of_real_runs(corpus, capsys) -> None:
    """With the words that the corpus has, as each has parameters."""
    settings = [s for s in TINY if not s.startswith("train.steps")]
    where = [f"data.manifest={corpus}", f"data.test={corpus / 'test.jsonl'}", "data.vocabulary=60"]
    recipe = [f"recipe.{override}" for override in (*settings, *where)]
    if main(["scaling", "measure=[2]", *recipe]) == 2:
        pytest.skip(capsys.readouterr().err)
    ratio = float(capsys.readouterr().out.strip().splitlines()[-1].split("|")[-2])
    assert 0.95 < ratio < 1.15
