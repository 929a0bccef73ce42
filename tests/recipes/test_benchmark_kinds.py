"""What a step costs by kind of model: every workload is held to the definition, and the tables are written."""

import csv
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from recipes.research.benchmark import counting, kinds
from recipes.research.benchmark.__main__ import main
from recipes.research.benchmark.checking import Checker
from recipes.research.benchmark.contestants import CHUNKED, CONTESTANTS, FUSED, PARTS, PLAIN, pcgrad
from recipes.research.benchmark.kinds import KindsKeys
from recipes.research.benchmark.workloads import ANY_LOSSES, BUILDERS, Spec, WorkloadError, build, default
from recipes.research.benchmark.workloads.layers import Adapted, Experts

TINY = {"batch": 12, "tokens": 16, "width": 32, "layers": 4, "heads": 2, "chunk": 6}
THIRD_PARTY = ("bert", "vit", "llama", "whisper")
CHECKED = [FUSED, CHUNKED, "tape, anchor", *(f"tape, {part}" for part in PARTS), "features, activation", "loop"]


@pytest.mark.filterwarnings("ignore:.*cannot batch it")
@pytest.mark.parametrize("name", [name for name in BUILDERS if name != "demo"])
def test_every_kind_of_model_is_held_to_the_definition(name):
    if name in THIRD_PARTY:
        pytest.importorskip("transformers")
    workload = build(Spec(name, **TINY))
    checker = Checker(workload)
    assert all(any(map(workload.selects(part), workload.params)) for part in workload.parts)
    for contestant in CHECKED:
        part = CONTESTANTS[contestant].part
        if part is not None and part not in workload.parts:
            continue
        gradient, gram = checker.check(CONTESTANTS[contestant], workload)
        assert gradient < 1e-4, contestant
        assert (gram is None) == (CONTESTANTS[contestant].attribution is None)
        assert gram is None or gram < 1e-4, contestant


@pytest.mark.parametrize("losses", [3, 4, 8])
def test_any_number_of_losses(losses):
    workload = build(Spec("reference", losses=losses, **TINY))
    gradient, gram = Checker(workload).check(CONTESTANTS[FUSED], workload)
    assert gradient < 1e-4 and gram < 1e-4
    outcome = CONTESTANTS[FUSED].make(workload, pcgrad)(workload.draw(12))
    assert outcome.gram.shape == (12, losses, losses)
    assert all(g is not None and g.count_nonzero() for g in outcome.loss_grads.values())


def test_adapters_alone_are_trained():
    workload = build(Spec("lora", **TINY))
    assert all(name.endswith((".down.weight", ".up.weight")) for name in workload.params)
    assert len(workload.params) == 4 * 4 * 2
    outcome = CONTESTANTS[PLAIN].make(workload, pcgrad)(workload.draw(4))
    assert set(outcome.grads) == set(workload.params) and all(g.count_nonzero() for g in outcome.grads.values())
    matrix = torch.nn.Linear(5, 3)
    adapted = Adapted(matrix, 2)
    x = torch.randn(7, 5)
    low_rank = adapted.up.weight @ adapted.down.weight
    torch.testing.assert_close(adapted(x), x @ (matrix.weight + low_rank).T + matrix.bias)


def test_each_token_goes_to_one_expert():
    experts, x = Experts(8, 3), torch.randn(4, 5, 8)
    share = experts.router(x).softmax(-1)
    dense = torch.stack([expert(x) for expert in experts.experts], -1)
    choice = torch.nn.functional.one_hot(share.argmax(-1), 3)
    assert choice.sum((0, 1)).count_nonzero() > 1
    torch.testing.assert_close(experts(x), (dense * (share * choice)[:, :, None]).sum(-1))
    with FlopCounterMode(display=False) as counter:
        experts(x)
    assert counter.get_total_flops() == 2 * 20 * (8 * 3 + 2 * 8 * 32)  # every token through one MLP


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Spec("cnn", layers=3, tokens=16), "layers= of 4"),
        (Spec("cnn", width=4), "multiple of 8"),
        (Spec("cnn", tokens=17), "tokens=17 is none"),
        (Spec("reference", width=30), "not a multiple of 4 heads"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(spec, message):
    with pytest.raises(WorkloadError, match=message):
        build(spec)


def test_a_part_that_is_not_named_is_refused():
    workload = build(Spec("moe", **TINY))
    with pytest.raises(WorkloadError, match="moe workload does not name its last projection"):
        CONTESTANTS["tape, last projection"].make(workload, pcgrad)
    assert workload.selects("last block")("backbone.layers.3.qkv.weight")


def test_the_resnet_has_the_sizes_of_its_name():
    """ResNet-18 on small pictures has 11.2 million parameters; 0.005 of them go into 1000 classes and batch norms."""
    model = build(Spec("cnn", layers=8, width=512, tokens=16)).model
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(11.17e6, rel=0.01)
    assert model(torch.randn(2, 3, 32, 32), torch.zeros(2))["one"].shape == (2, 512)


def test_calls_are_ops_that_are_no_views():
    x = torch.randn(4, 4)
    assert counting.calls(lambda: (x.t().reshape(2, 8)[0] + 1).exp(), "cpu") == 3  # a copy, a sum, an exponential
    assert counting.calls(lambda: x.view(16)[None].expand(3, 16), "cpu") is None
    turns = iter([3, 1])
    assert counting.calls(lambda: [x + 1 for _ in range(next(turns))], "cpu") == 1  # one step in a few verifies itself


def test_a_tiny_suite_from_end_to_end(tmp_path, capsys, monkeypatch):
    def absent(spec):
        raise WorkloadError("no such package")

    monkeypatch.setitem(BUILDERS, "bert", absent)
    sizes = ["batch=6", "tokens=16", "width=32", "layers=4", "chunk=4", "repeats=2", "losses=[2,3]"]
    assert (
        main(["kinds", "workloads=[reference,lora,cnn,bert]", f"contestants=[{FUSED}]", *sizes, f"out={tmp_path}"]) == 0
    )
    text = (tmp_path / "kinds.md").read_text()
    assert text in capsys.readouterr().out
    with open(tmp_path / "kinds.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    points = [("reference", "2"), ("lora", "2"), ("cnn", "2"), ("bert", "2"), ("reference", "3")]
    assert list(dict.fromkeys((row["workload"], row["losses"]) for row in rows)) == points
    for row in rows:
        assert row["skipped"] or (float(row["ratio"]) > 0 and float(row["calls_ratio"]) >= 1)
    assert text.count("| reference: 4 layers, width 32, 16 tokens |") == 1 and "| 3 | " in text
    assert "- bert: 4 layers, width 32, 16 tokens, K=2, plain: not available: no such package" in text


def test_points_are_the_models_own_sizes_where_none_are_asked_for():
    points = kinds.specs(KindsKeys(workloads=["reference", "vit", "demo"], losses=[2, 4], batch=8))
    shared = {"batch": 8, "chunk": 8}
    expected = [replace(default(name), **shared) for name in ("reference", "vit", "demo")]
    assert points == [*expected, replace(expected[0], losses=4)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kinds", "workloads=[nothing]"], "no 'nothing' among reference"),
        (["kinds", "contestants=[]"], "must name one"),
        (["kinds", "losses=[1]"], "at least 2"),
        (["kinds", "workloads=[]", "losses=[]"], "leave nothing to measure"),
        (["step", "workload=cnn", "losses=3"], f"the cnn workload has two; {', '.join(ANY_LOSSES)} take any number"),
    ],
)
def test_wrong_keys_fail_before_any_work(capsys, arguments, message):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
