"""The benchmark, tiny: every contestant gives the plain gradient, wrong ones are caught, and all files are written."""

import csv
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

import harmony
from recipes.research.benchmark import (
    checking,
    contestants,
    machine,
    peak,
    racing,
    step,
    step_plot,
    step_tables,
    variants,
)
from recipes.research.benchmark.__main__ import main
from recipes.research.benchmark.checking import Checker
from recipes.research.benchmark.contestants import CACHED, CONTESTANTS, PLAIN, Contestant, Outcome
from recipes.research.benchmark.racing import Rules, WrongAnswer
from recipes.research.benchmark.step import StepKeys, measure, sweep
from recipes.research.benchmark.step_tables import Result
from recipes.research.benchmark.workloads import Spec, build, default
from tests.recipes.conftest import TINY

TINY_SPEC = Spec(batch=6, tokens=8, width=16, layers=1, heads=2, chunk=4)
LOOP = "loop"


@pytest.mark.parametrize("name", [n for n in CONTESTANTS if n != "vmap, chunks of 16"])
def test_every_contestant_gives_the_plain_gradient_with_weights_one(name):
    """And its Gram blocks are the reference engine's, on a number of samples that no chunk divides."""
    workload = build(Spec(batch=12, tokens=8, width=16, layers=1, heads=2, chunk=5))
    if name == contestants.TORCHJD:
        pytest.importorskip("torchjd")
    gradient, gram = Checker(workload).check(CONTESTANTS[name], workload)
    assert gradient < 1e-5
    assert (gram is None) == (CONTESTANTS[name].attribution is None)
    assert gram is None or gram < 1e-5


@pytest.mark.parametrize("name", [n for n in CONTESTANTS if n.startswith(("tape", "features"))])
def test_on_the_demo_all_parameters_get_their_gradient_though_the_gram_is_over_the_backbone(name):
    workload = build(replace(default("demo"), batch=12))
    gradient, gram = Checker(workload).check(CONTESTANTS[name], workload)
    assert gradient < 1e-4 and (gram is None or gram < 1e-4)


def test_gradient_caching_draws_the_same_tokens_twice():
    """The demo drops tokens at random: the second pass over a chunk must drop the ones the first did."""
    torch.manual_seed(0)
    workload = build(replace(default("demo"), batch=4, chunk=2))
    batch = workload.draw(4)
    torch.manual_seed(1)
    found = contestants.cached(workload, contestants.ones)(batch)
    torch.manual_seed(1)
    chunks = [{name: x[i : i + 2] for name, x in batch.items()} for i in (0, 2)]
    parts = [workload.model(**chunk) for chunk in chunks]
    embeddings = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    workload.total(embeddings).backward()
    expected = [p.grad for p in workload.params.values()]
    assert checking.relative_error(list(found.grads.values()), expected) < 1e-5


@pytest.mark.parametrize("broken", ["gradient", "gram"])
def test_a_wrong_answer_is_caught_and_not_timed(monkeypatch, broken):
    def wrong(workload, weigh):
        right = contestants.harmonized(harmony.Engine("loop"))(workload, weigh)

        def step(batch):
            found = right(batch)
            if broken == "gram":
                return found._replace(gram=found.gram * 1.1)
            return found._replace(grads={name: g * 1.1 for name, g in found.grads.items()})

        return step

    monkeypatch.setitem(CONTESTANTS, "wrong", Contestant(wrong, "activation"))
    workload = build(TINY_SPEC)
    with pytest.raises(WrongAnswer, match="Gram blocks" if broken == "gram" else "weights 1"):
        Checker(workload).check(CONTESTANTS["wrong"], workload)
    found = measure([TINY_SPEC], ["wrong"], Rules(repeats=1))
    assert [r.label for r in found] == [PLAIN, "wrong"]
    assert found[1].skipped.startswith("wrong: ") and not found[1].seconds and len(found[0].seconds) == 1


def test_what_is_too_slow_or_breaks_is_skipped_with_its_reason(monkeypatch):
    def breaks(workload, weigh):
        raise RuntimeError("no such engine\nsecond line")

    monkeypatch.setitem(CONTESTANTS, "breaks", Contestant(breaks))
    results = measure([TINY_SPEC], ["breaks", LOOP], Rules(repeats=2, limit=0.0))
    assert [r.skipped.split(":")[0] for r in results[1:2]] == ["not available"]
    assert "no such engine" in results[1].skipped and "second line" not in results[1].skipped
    assert "more than the limit of 0 s" in results[2].skipped
    text = step_tables.report(results, TINY_SPEC, machine.facts("cpu"))
    assert "| breaks | not available: no such engine |" in text


def test_everybody_takes_every_round_and_the_order_rotates(monkeypatch):
    seen = []

    def recorder(name):
        def make(workload, weigh):
            step = contestants.plain(workload, weigh)

            def recorded(batch):
                seen.append((name, float(batch["video"].sum())))
                return step(batch)

            return recorded

        return make

    names = [PLAIN, "second", "third"]
    for name in names:
        monkeypatch.setitem(CONTESTANTS, name, Contestant(recorder(name)))
    results = measure([TINY_SPEC], names, Rules(repeats=3))
    rounds = [seen[-15:-6][i : i + 3] for i in (0, 3, 6)]  # in the last six, calls are counted
    assert [[name for name, _ in r] for r in rounds] == [names[i:] + names[:i] for i in range(3)]
    assert all(len({inputs for _, inputs in r}) == 1 for r in rounds)  # the same batch within a round
    assert len({r[0][1] for r in rounds}) == 3  # a fresh one in the next
    assert results[0].ratios == [1.0] * 3 and all(len(r.seconds) == 3 for r in results)


def test_a_tiny_step_suite_from_end_to_end(tmp_path, capsys):
    sizes = "batch=[6,12] tokens=[8] width=[16,32] heads=2 layers=1 chunk=4 repeats=2 limit=30 memory=none"
    names = [PLAIN, CACHED, "features, loss", LOOP]
    chosen = f'contestants=[{PLAIN},{CACHED},"features, loss",{LOOP}]'
    assert main(["step", *sizes.split(), f"out={tmp_path}", chosen]) == 0
    out = capsys.readouterr().out
    files = {p.name for p in tmp_path.iterdir()}
    assert files == {"step-reference.csv", "step-reference.md", "step-reference.png"}
    assert all(str(tmp_path / name) in out for name in files)

    with open(tmp_path / "step-reference.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["batch"], r["width"]) for r in rows[::4]] == [("6", "16"), ("12", "16"), ("6", "32")]
    assert [r["contestant"] for r in rows] == names * 3
    for row in rows:
        assert row["skipped"] == "" and int(row["rounds"]) == 2 and row["torch"] == torch.__version__
        assert 0 < float(row["seconds_q1"]) <= float(row["seconds"]) <= float(row["seconds_q3"])
        assert float(row["gradient_error"]) < 1e-4
        assert (float(row["ratio"]) == 1) == (row["contestant"] == PLAIN)

    text = (tmp_path / "step-reference.md").read_text()
    assert text in out and "### By batch" in text and "### By width" in text and "### By tokens" not in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.count("|") in (9, 4)
    picture = Image.open(tmp_path / "step-reference.png")
    picture.verify()
    assert picture.format == "PNG" and min(picture.size) > 500


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own():
    """The peak of a plain step is, within a factor, what its graph keeps for the backward pass."""
    spec = Spec(batch=64, tokens=128, width=64, layers=2, heads=2)
    workload, saved = build(spec), {}

    def keep(x):
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        graph = workload.total(workload.forward(workload.draw(spec.batch)))
    kept = sum(saved.values())
    assert graph.requires_grad and kept > 20e6
    assert 0.7 * kept < peak.alone(step.__name__, {"contestant": PLAIN, "spec": vars(spec)}, timeout=120) < 2 * kept


def test_growth_and_comparisons_of_known_times():
    results = []
    contestants = {PLAIN: (1, 1), "tape": (1, 2), "vmap": (1, 4), "TorchJD autogram": (2, 1), CACHED: (1, 1.5)}
    for batch in (8, 16, 32):
        for label, (power, factor) in (contestants | {"tape, chunked": (1, 2.1)}).items():
            seconds = [factor * batch**power * noise for noise in (0.9, 1.0, 1.2)]
            ratios = [s / (batch * noise) for s, noise in zip(seconds, (0.9, 1.0, 1.2), strict=True)]
            memory = int(factor * 2**20)
            results.append(Result(Spec(batch=batch), label, seconds=seconds, ratios=ratios, memory=memory))
    exponents = step_tables.growth(results, Spec())
    assert exponents["tape"] == pytest.approx(1) and exponents["TorchJD autogram"] == pytest.approx(2)
    lines = step_tables.comparisons(results)
    assert "tape, chunked / gradient caching 1.40" in lines[0] and "vmap / tape 2.00" in lines[0]
    assert "TorchJD autogram / tape 16.00" in lines[2]
    rows = step_tables.records(results, {})
    assert [r["memory_ratio"] for r in rows[:3]] == pytest.approx([1, 2, 4])
    assert racing.quartiles([3.0]) == (3.0, 3.0, 3.0) and math.isnan(racing.quartiles([])[1])


def test_a_sweep_goes_along_its_axes_and_refuses_what_a_workload_has_not(capsys):
    base, points = sweep(StepKeys(batch=[8, 32], tokens=[64, 128], width=[256, 512]))
    assert base == Spec() and points[0] == base
    sizes = {(32, 128, 256), (8, 128, 256), (32, 64, 256), (32, 128, 512)}
    assert {(p.batch, p.tokens, p.width) for p in points} == sizes
    assert sweep(StepKeys(batch=[4, 8], tokens=[16], layers=3))[0] == Spec(batch=4, tokens=16, layers=3)
    for arguments, message in (
        (["workload=demo", "width=[64]"], "has its own size"),
        (["workload=demo", "layers=2"], "has its own size"),
        (["width=[30]"], "not a multiple of 4 heads"),
        (["contestants=[nobody]"], "no 'nobody' among plain"),
        (["batch=[0]"], "at least 1"),
    ):
        assert main(["step", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_dry_run_names_the_points(capsys):
    assert main(["step", "--dry-run", "workload=demo", "batch=[8,32]", "contestants=[tape]"]) == 0
    assert "5 rounds at each of 2 points of the demo workload: B=32" in capsys.readouterr().out


def test_a_profile_is_of_one_contestant(capsys):
    assert main(["step", "batch=[4]", "tokens=[8]", "width=[16]", "profile=tape"]) == 0
    assert "aten::" in capsys.readouterr().out


@pytest.mark.parametrize("suite", ["step", "kinds", "gpu", "realign"])
def test_racing_needs_no_package_of_the_recipes_data(suite):
    seen = "print([name for name in ('av', 'datasets', 'tokenizers') if name in sys.modules])"
    code = f"import sys; import recipes.research.benchmark.{suite}; {seen}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_variants_rank_as_they_should(corpus, tmp_path, capsys, monkeypatch):
    """A tiny recipe, trained two steps: the exact readings agree with themselves, the others are within range."""
    monkeypatch.setattr(variants, "use_cores", lambda *sections: None)
    recipe = [*TINY, f"data.manifest={corpus}", f"data.test={corpus / 'test.jsonl'}"]
    overrides = [f"recipe.{override}" for override in recipe]
    assert main(["variants", "points=[0,2]", "batches=2", f"out={tmp_path}", *overrides]) == 0
    with open(tmp_path / "variants.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["step"] for r in rows] == ["0"] * len(variants.VARIANTS) + ["2"] * len(variants.VARIANTS)
    by_name = {(r["step"], r["variant"]): r for r in rows}
    for point in ("0", "2"):
        assert float(by_name[point, "loss, parameters"]["rank_loss"]) == pytest.approx(1)
        assert float(by_name[point, "activation, parameters"]["rank_activation"]) == pytest.approx(1)
    for row in rows:
        assert int(row["samples"]) > 3
        assert all(-1.001 <= float(row[c]) <= 1.001 for c in ("mean", "rank_loss", "rank_activation"))
        assert all(0 <= float(row[c]) <= 1 for c in ("negative", "sign_loss", "sign_activation"))
    assert by_name["0", "activation, parameters"]["mean"] != by_name["2", "activation, parameters"]["mean"]
    text = (tmp_path / "variants.md").read_text()
    assert text in capsys.readouterr().out and text.count("| anchor, features |") == 2


def test_spearman_of_known_ranks():
    a = torch.tensor([0.1, 0.2, 0.3, 0.4])
    assert variants.spearman(a, a**3) == pytest.approx(1)
    assert variants.spearman(a, -a) == pytest.approx(-1)
    assert variants.spearman(a, torch.tensor([2.0, 1.0, 4.0, 3.0])) == pytest.approx(0.6)
    assert variants.spearman(a, torch.tensor([1.0, 1.0, 2.0, 2.0])) == pytest.approx(0.8944, abs=1e-4)
    assert math.isnan(variants.spearman(a, torch.ones(4)))


def test_one_point_is_drawn_too(tmp_path):
    results = [Result(TINY_SPEC, PLAIN, seconds=[0.1, 0.2], ratios=[1.0, 1.0])]
    step_plot.save(tmp_path / "one.png", results, TINY_SPEC)
    assert Image.open(tmp_path / "one.png").size[0] > 500


def test_weights_one_and_pcgrad():
    gram = torch.tensor([[[1.0, -0.5], [-0.5, 1.0]]])
    assert contestants.ones(gram).tolist() == [[1.0, 1.0]]
    assert torch.equal(contestants.pcgrad(gram), harmony.realign.pcgrad(gram))
    assert Outcome({}, {}).gram is None
