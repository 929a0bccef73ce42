"""The cosines of a run: recorded whole in bounded space, measured in parts without touching training, and summed up."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

import harmony
from harmony.stats import Moments
from recipes.config import Config
from recipes.data.clips import TrainClips
from recipes.data.loader import train_loader
from recipes.errors import ConfigError, DataError
from recipes.figures.command import main
from recipes.figures.dynamics import numbers, runs, text
from recipes.figures.dynamics.runs import Run
from recipes.model.build import build, model_inputs
from recipes.pretrain import pretrain, vocabulary_of
from recipes.splits import train_and_test
from recipes.training import dynamics, probes
from recipes.training.dynamics import TRAINING, Dynamics
from recipes.training.metrics import Metrics
from tests.recipes.test_pretrain import same, weights

LIMIT = 50e6  # bytes of 500k steps at batch 2048
PROBES = ["gram.probe=[layers,groups,paths]", "gram.probe_every=2"]

# cosines nearer to 0 than float64 tells from -1 and 1 do not occur, and would not be told apart
cosine = st.floats(-1, 1, width=32).filter(lambda x: x == 0 or abs(x) > 1e-15)
batch = st.lists(st.tuples(cosine, st.booleans()), max_size=5)
steps = st.lists(st.fixed_dictionaries({}, optional={TRAINING: batch, "layers/0": batch}), min_size=1, max_size=40)


def measured(found):
    return {
        name: (torch.tensor([c for c, _ in pairs]), torch.tensor([m for _, m in pairs], dtype=torch.bool))
        for name, pairs in found.items()
    }


def record(history, most, begin=0, onto=None):
    onto = Dynamics() if onto is None else onto
    for step, found in enumerate(history, begin + 1):
        onto = onto.add(step, measured(found), most)
    return onto


def assert_same(a: Dynamics, b: Dynamics, exactly: bool = True):
    assert a.length == b.length and a.names == b.names
    assert [i[:2] for i in a.intervals] == [i[:2] for i in b.intervals]
    for one, other in zip(a.intervals, b.intervals, strict=True):
        assert one.seen.keys() == other.seen.keys()
        for name in one.seen:
            (counts,), m = one.seen[name]
            (others,), n = other.seen[name]
            assert torch.equal(counts, others)
            tolerance = {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-9, "atol": 1e-9}
            torch.testing.assert_close(torch.stack(m), torch.stack(n), **tolerance)


# ---------------------------------------------------------------------------------------------------------- recording
@settings(deadline=None)
@given(steps, st.integers(1, 12))
def test_nothing_is_lost_and_intervals_are_bounded(history, most):
    recorded = record(history, most)
    assert len(recorded.intervals) <= most
    for name in (TRAINING, "layers/0"):
        values = torch.tensor([c for found in history for c, m in found.get(name, []) if m])
        (counts,), m = recorded.total(name)
        assert torch.equal(counts, harmony.stats.histogram(values, bins=dynamics.BINS).counts)
        assert counts[: dynamics.BINS // 2].sum() == (values < 0).sum()
        expected = harmony.stats.moments(values)
        torch.testing.assert_close(torch.stack(m), torch.stack(expected), rtol=1e-9, atol=1e-9)
    seen = [step for step, found in enumerate(history, 1) if any(m for pairs in found.values() for _, m in pairs)]
    if seen:
        assert (recorded.intervals[0].first, recorded.intervals[-1].last) == (seen[0], seen[-1])
    assert all(a.last < b.first for a, b in zip(recorded.intervals, recorded.intervals[1:], strict=False))


@settings(deadline=None)
@given(steps, st.integers(1, 12), st.data())
def test_merging_is_associative_and_commutative_whoever_saw_what(history, most, data):
    owner = [data.draw(st.integers(0, 2)) for _ in history]
    parts = [record([found if o == i else {} for o, found in zip(owner, history, strict=True)], most) for i in range(3)]
    a, b, c = parts
    whole = record(history, most)
    for merged in (a.merge(b, most).merge(c, most), c.merge(b.merge(a, most), most), b.merge(a.merge(c, most), most)):
        assert_same(merged, whole, exactly=False)


@settings(deadline=None)
@given(steps, st.integers(1, 12), st.data())
def test_saved_and_loaded_in_the_middle_is_as_if_it_had_never_stopped(tmp_path_factory, history, most, data):
    middle = data.draw(st.integers(0, len(history)))
    file = tmp_path_factory.mktemp("dynamics") / dynamics.FILE
    dynamics.save(record(history[:middle], most), file)
    assert_same(record(history[middle:], most, middle, onto=dynamics.load(file)), record(history, most))


def test_a_short_run_keeps_every_step_and_a_checkpoint_without_dynamics_is_an_empty_one(tmp_path):
    history = [{TRAINING: [(0.5, True)]}] * 30
    assert [i[:2] for i in record(history, dynamics.MOST).intervals] == [(s, s) for s in range(1, 31)]
    assert dynamics.load(tmp_path / dynamics.FILE) == Dynamics()


def test_half_a_million_steps_fit_on_the_disk(tmp_path):
    """500k steps at batch 2048, the largest model, all probes at every step; rows are written in part and scaled up."""
    steps, batch, log_every, checkpoint_every = 500_000, 2048, 50, 1000
    layers = [f"layers/{i}" for i in [*range(24), "norm"]]
    names = [*layers, *(f"groups/{g}" for g in ("attention", "mlp", "norm")), *(f"paths/{p}" for p in probes.PAIRS)]
    torch.manual_seed(0)
    values = (0.25 * torch.randn(batch)).clamp(-1, 1)
    one = {TRAINING: dynamics.seen_in(values, torch.ones(batch, dtype=torch.bool))}

    def interval(i, length):
        (counts,), m = one[TRAINING]
        seen = dynamics.Seen(harmony.stats.Histogram(counts * length), Moments(m.number * length, *m[1:]))
        return dynamics.Interval(i * length + 1, (i + 1) * length, dict.fromkeys([TRAINING, *names], seen))

    def recorded(length):
        return Dynamics(length, tuple(interval(i, length) for i in range(min(steps // length, dynamics.MOST))))

    sizes = []
    for length in (1, 512):  # the widest counts at the end, the most intervals on the way
        dynamics.save(recorded(length), tmp_path / dynamics.FILE)
        sizes.append((tmp_path / dynamics.FILE).stat().st_size)

    (tmp_path / "run").mkdir()
    metrics, written = Metrics(tmp_path / "run", 0), 60
    scalars = ("loss", "loss_va", "loss_vt", "gradient_norm", "agreement", "conflicts", "kept")
    for row in range(1, written + 1):
        metrics.add({name: 0.12345678901234567 + row for name in scalars}, values, torch.ones(batch, dtype=torch.bool))
        metrics.write(
            row * log_every, lr=9.123456789e-05, gamma=-0.1234567890, samples_per_second=12345.678901234567,
            skipped_clips=123456, skipped_steps=1234,
        )  # fmt: skip
    used = lambda: sum(f.stat().st_size for f in (tmp_path / "run").rglob("*") if f.is_file())  # noqa: E731
    rows = used()
    metrics.draw_histogram(written * log_every)
    metrics.close()
    histogram = used() - rows
    assert histogram > 1000 and rows > 1000 * 10
    total = Config().train.keep * max(sizes) + rows * steps / log_every / written + histogram * steps / checkpoint_every
    print(f"dynamics {sizes}, rows {rows / written:.0f}, histogram {histogram}, total {total / 1e6:.1f} MB")
    assert total < LIMIT


# ------------------------------------------------------------------------------------------------------------- probes
@pytest.fixture
def batch_of(tiny):
    """Function of overrides that gives a configuration, modules and the inputs of a batch."""

    def make(*overrides):
        config = tiny(*PROBES, *overrides)
        train = train_and_test(config).train
        tokenizer = vocabulary_of(train, config)
        torch.manual_seed(0)
        modules = build(config, tokenizer)
        clips = TrainClips(train, tokenizer, config.clip, 0, config.augment)
        return config, modules, model_inputs(next(iter(train_loader(clips, 4, seed=0, workers=0))), torch.device("cpu"))

    return make


def gram_of_training(config, modules, inputs):
    """The Gram blocks of a plain step, from the same random numbers."""
    with torch.random.fork_rng():
        info, _ = harmony.backward(
            modules["model"], inputs, modules["objective"], harmony.realign.summed,
            wrt=lambda name: name.startswith("backbone."), attribution=config.gram.attribution,
            engine=harmony.Engine(chunk_size=config.gram.chunk_size),
        )  # fmt: skip
    return info.gram


@pytest.mark.parametrize("overrides", [[], ["gram.attribution=loss"], ["objective.norm=layer", "gram.chunk_size=2"]])
def test_parts_add_up_to_what_training_measures(batch_of, overrides):
    config, modules, inputs = batch_of(*overrides)
    parts = probes.gram_of_parts(config.gram, modules, inputs)
    four = probes.gram_of_paths(config.gram, modules, inputs)
    whole = gram_of_training(config, modules, inputs)
    close = {"rtol": 1e-4, "atol": 1e-5 * float(whole.abs().max())}
    for which in (0, 1):
        torch.testing.assert_close(sum(probes.summed(parts, which).values()), whole, **close)
    torch.testing.assert_close(four.reshape(-1, 2, 2, 2, 2).sum((2, 4)), whole, **close)


def test_probes_are_named_measured_where_defined_and_leave_everything_as_it_was(batch_of):
    config, modules, inputs = batch_of()
    inputs["audio_valid"][0] = False
    before = {name: t.clone() for name, t in modules.state_dict().items()}
    random = torch.get_rng_state()
    found = probes.probe(config.gram, modules, inputs)
    assert list(found) == [
        "layers/0", "layers/1", "layers/norm", "groups/norm", "groups/attention", "groups/mlp",
        "paths/video-video", "paths/audio-video", "paths/video-text", "paths/audio-text",
    ]  # fmt: skip
    for cosines, defined in found.values():
        assert defined.tolist() == [False, True, True, True] and (cosines[1:].abs() <= 1).all()
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(t, before[name]) for name, t in modules.state_dict().items())
    assert all(p.grad is None for p in modules.parameters())
    assert probes.probe(Config().gram, modules, inputs) == {}


@pytest.mark.parametrize("harmonize", ["both", "none"])
def test_a_run_with_probes_trains_exactly_as_one_without_and_resumes(tiny, crash, harmonize):
    shared = [f"harmonize={harmonize}", "gram.every=2"]
    plain, whole = tiny("run.name=plain", *shared), tiny("run.name=whole", *shared, *PROBES)
    torn = tiny("run.name=torn", *shared, *PROBES)
    pretrain(plain)
    pretrain(whole)
    assert same(weights(plain), weights(whole))
    crash(torn)
    pretrain(torn, resume=True)
    recorded, other = (runs.load(str(c.folder)).dynamics for c in (whole, torn))
    assert_same(recorded, other)
    every = 2 if harmonize == "none" else 1
    assert recorded.series(TRAINING).first.tolist() == list(range(1, 7, every))
    assert recorded.series("groups/mlp").first.tolist() == [1, 3, 5]


def test_probes_that_do_not_exist_are_refused(tiny):
    with pytest.raises(ConfigError, match=r"gram\.probe"):
        tiny("gram.probe=[heads]")
    with pytest.raises(ConfigError, match="probe_every=0 must be at least 1"):
        tiny("gram.probe_every=0")


# ------------------------------------------------------------------------------------------------------------ numbers
def run_of(values, name="baseline", config=None):
    """A run whose step i has measured the cosines values[i]."""
    recorded = Dynamics()
    for step, row in enumerate(torch.as_tensor(values), 1):
        recorded = recorded.add(step, {TRAINING: (row, torch.ones(len(row), dtype=torch.bool))})
    return Run(name, config or Config(harmonize="none"), recorded)


def normal(mean, steps=40, size=200, seed=0, spread=0.2):
    return (mean + spread * np.random.default_rng(seed).standard_normal((steps, size))).clip(-1, 1)


def test_the_numbers_are_those_of_the_values():
    values = normal(0.05)
    found = numbers.summarise(run_of(values), TRAINING)
    assert found["samples"] == values.size and found["steps"] == [1, 40] and found["blocks"] == 20
    assert found["mean"]["value"] == pytest.approx(values.mean()) and found["std"] == pytest.approx(values.std(ddof=1))
    assert found["negative"]["value"] == (values < 0).mean()
    low, high = found["mean"]["interval"]
    assert low < 0.05 < high and high - low == pytest.approx(4 * 0.2 / values.size**0.5, rel=0.6)
    standard = (values - values.mean()) / values.std()
    skew, kurtosis = (standard**3).mean(), (standard**4).mean() - 3
    statistic = values.size / 6 * (skew**2 + kurtosis**2 / 4)
    assert found["normality"]["jarque_bera"] == pytest.approx(statistic)
    assert found["normality"]["p"] == pytest.approx(chi2.sf(statistic, 2))


def test_a_share_of_none_has_an_interval():
    shares = numbers.summarise(run_of(normal(0.9, spread=0.01)), TRAINING)["negative"]
    assert shares["value"] == 0.0
    assert shares["interval"] == pytest.approx([0.0, 1.959964**2 / (40 * 200 + 1.959964**2)])  # Wilson's


def test_normal_cosines_pass_and_others_do_not():
    good = numbers.summarise(run_of(normal(0.0, seed=1)), TRAINING)["normality"]
    flat = np.random.default_rng(0).uniform(-0.5, 0.5, (40, 200))
    bad = numbers.summarise(run_of(flat), TRAINING)["normality"]
    assert good["p"] > 0.01 and good["kolmogorov_distance"] < 0.02 and good["intervals_normal"] > 0.85
    assert bad["p"] < 1e-6 and bad["kolmogorov_distance"] > 0.04 and bad["intervals_normal"] < 0.1
    assert good["intervals_tested"] == 40 and good["samples_per_interval"] == 200


def test_cosines_of_a_step_that_move_together_widen_the_interval():
    shared = 0.1 * np.random.default_rng(3).standard_normal((40, 1))
    together = normal(0.0, seed=2) + shared
    widths = []
    for values in (normal(0.0, seed=2), together):
        low, high = numbers.summarise(run_of(values), TRAINING)["mean"]["interval"]
        widths.append(high - low)
    assert widths[1] > 3 * widths[0]


def test_too_little_is_said_to_be_too_little():
    one = numbers.summarise(run_of([[0.25, 0.25]]), TRAINING)
    assert one["mean"] == {"value": 0.25, "interval": None} and one["skew"] is None
    assert one["normality"]["p"] is None and one["normality"]["intervals_normal"] is None
    json.dumps(one, allow_nan=False)
    assert "| – |" in text.markdown(text.summary([run_of([[0.25, 0.25]])], None, TRAINING))
    assert "fewer than 5" in numbers.compare(run_of([[0.2]]), run_of(normal(0.1)), TRAINING)["reason"]


def test_the_ratio_of_two_corpora():
    narrated, wild = run_of(normal(0.10), "narrated"), run_of(normal(0.07, seed=5), "wild")
    found = numbers.compare(wild, narrated, TRAINING)
    low, high = found["ratio"]["interval"]
    assert low < 0.7 < high and high - low < 0.25
    assert found["ratio"]["value"] == pytest.approx(found["means"][0] / found["means"][1])
    assert "% below" in text.sentence(found) and "95% interval" in text.sentence(found)
    nothing = numbers.compare(wild, run_of(normal(0.0, seed=7), "zero"), TRAINING)
    assert nothing["ratio"] is None and nothing["difference"]["interval"][0] > 0
    assert "no ratio: the mean of zero may be 0" in text.sentence(nothing)


def test_curves_are_of_the_values_and_columns_have_enough_of_them():
    values = np.concatenate([normal(-0.3, steps=50), normal(0.3, steps=47, seed=1)])
    c = numbers.curves(run_of(values), TRAINING)
    assert c.edges[0] == 0 and c.edges[-1] == 97 and c.samples.sum() == values.size and c.samples.min() >= 400
    assert (c.density.sum(1) * 2 / dynamics.BINS).tolist() == pytest.approx([1] * len(c.mean))
    assert c.samples.max() <= 2.5 * c.samples.min()  # what a run has only begun is no column of its own
    early, late = values[: int(c.edges[1])], values[int(c.edges[-2]) :]
    assert c.mean[0] == pytest.approx(early.mean()) and c.mean[-1] == pytest.approx(late.mean())
    assert c.negative[0] == (early < 0).mean()
    assert c.quantiles[0] == pytest.approx(np.quantile(early, numbers.QUANTILES), abs=0.02)
    assert (
        numbers.extent([c.density]) == 1.0 and numbers.extent([numbers.curves(run_of(normal(0)), TRAINING).density]) < 1
    )


# ------------------------------------------------------------------------------------------------------------ figures
@pytest.mark.slow
def test_the_command_draws_real_runs_of_any_length(tiny, tmp_path, capsys):
    baseline = tiny("run.name=baseline", "harmonize=none", *PROBES)
    single = tiny("run.name=single", "harmonize=realign", "train.steps=1", *PROBES)
    for config in (baseline, single):
        pretrain(config)
    out = tmp_path / "figures"
    folders = [str(c.folder) for c in (baseline, single)]
    command = ["dynamics", f"runs=[{','.join(folders)}]", f"against={folders[0]}", f"out={out}"]
    assert main([*command, "--dry-run"]) == 0 and not out.exists()
    assert "run single: 4 cosines over the shared backbone" in capsys.readouterr().out
    assert main(command) == 0
    assert {f.name for f in out.iterdir()} == {
        "dynamics.png", "dynamics.pdf", "dynamics.json", "dynamics.md", "probes.png"
    }  # fmt: skip
    written = json.loads((out / "dynamics.json").read_text())
    recorded = runs.load(folders[0]).dynamics
    assert written["runs"][0]["samples"] == int(recorded.total(TRAINING).moments.number)
    assert [r["mode"] for r in written["runs"]] == ["baseline", "only realignment"]
    assert len(written["probes"]) == 2 * 10 and written["comparisons"][1]["ratio"] is None
    notes = (out / "dynamics.md").read_text()
    assert text.BEFORE in notes and "| single | only realignment |" in notes and "| single | groups/mlp |" in notes
    assert main(["dynamics", f"runs=[{folders[0]}]", "name=layers/1", f"out={tmp_path / 'layer'}"]) == 0
    assert "layer 1 of the backbone" in (tmp_path / "layer" / "dynamics.md").read_text()
    capsys.readouterr()
    assert main(["dynamics", f"runs=[{folders[0]}]", "name=heads", f"out={tmp_path / 'none'}"]) == 2
    assert "has no cosines 'heads', only backbone, groups/attention" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_runs_without_cosines_are_an_error_that_says_why(tiny, tmp_path, capsys, monkeypatch):
    config = tiny("harmonize=none", "gram.every=0", "train.steps=1")
    pretrain(config)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)  # where runs/demo is, known by its name
    for where, message in [
        ("demo", "no cosines are recorded here"),
        ("empty", "no checkpoint here"),
        ("nowhere", "expected the folder of a run, or the name of one in runs/"),
    ]:
        assert main(["dynamics", f"runs=[{where}]", f"out={tmp_path / 'out'}"]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(DataError):
        runs.load("nowhere")
