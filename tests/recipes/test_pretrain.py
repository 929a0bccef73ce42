"""The whole recipe, small, on real mp4 files: to the end, interrupted and resumed, and on every kind of bad input."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from threading import Timer

import av
import numpy as np
import pytest
import torch

from recipes import pretrain as recipe
from recipes.data.clips import EvalClips, TrainClips, collate
from recipes.data.loader import train_loader
from recipes.data.skipped import SKIPPED
from recipes.errors import ConfigError, DataError, Interrupted
from recipes.evaluate import main as evaluate_main
from recipes.evaluation import during_training as evaluation
from recipes.figures import report
from recipes.files import jsonl
from recipes.model.build import build, model_inputs
from recipes.model.harmonizer import harmonizer
from recipes.pretrain import TrainingError, latest_checkpoint, main, pretrain, vocabulary_of
from recipes.splits import train_and_test
from recipes.training import checkpoint, dynamics, metrics
from recipes.training.processes import Processes
from recipes.training.setup import step_options
from recipes.training.step import Learner, idle_step, too_few, train_step
from tests.recipes import media
from tests.recipes.conftest import DEMO, TIMES, TINY
from tests.recipes.faulty import Faulty, Several, hang, segfault


def weights(config):
    folder = checkpoint.latest(config.folder)
    assert folder.name == f"step_{config.train.steps:08d}"
    return checkpoint.read_tensors(folder, "")


def same(a, b):
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])] == []


def test_a_run_trains_evaluates_and_reports(tiny, capsys):
    config = tiny("data.workers=1")
    recipe.run(config)
    out = capsys.readouterr().out
    assert "| text->video | untrained |" in out and "| audio->video | trained |" in out
    folder = config.folder
    results = json.loads((folder / "retrieval.json").read_text())
    assert results["trained"]["text->video"]["pairs"] == len(EvalClips(*held_out(config)))
    rows = metrics.read_metrics(folder)
    assert [row["step"] for row in rows] == [2, 3, 4, 6]
    recorded = dynamics.load(checkpoint.latest(folder) / dynamics.FILE)
    assert [interval.first for interval in recorded.intervals] == [1, 2, 3, 4, 5, 6]
    assert 0 < int(recorded.total(dynamics.TRAINING).moments.number) <= 6 * 4
    assert all(row["loss"] == pytest.approx(row["loss_va"] + row["loss_vt"]) for row in rows)
    assert rows[-1]["lr"] < 2e-3 and rows[-1]["skipped_clips"] == 0
    page = (folder / "report.html").read_text()
    assert 'src="http' not in page and "data:image/png;base64," in page
    assert {p.name for p in (folder / "figures").iterdir()} == {"losses.png", "agreement.png", "cosines.png"}
    assert any((folder / "tensorboard").iterdir())


def held_out(config):
    train, test, _ = train_and_test(config)
    return test, vocabulary_of(train, config), config.clip


@pytest.mark.parametrize("harmonize", ["both", "none"])
def test_a_crashed_and_resumed_run_ends_like_an_uninterrupted_one(tiny, crash, harmonize):
    whole, torn = (tiny(f"run.name={n}", f"harmonize={harmonize}", "gram.every=2") for n in ("whole", "torn"))
    pretrain(whole)
    crash(torn)
    assert latest_checkpoint(torn).name == "step_00000003"
    torch.manual_seed(999)  # whatever the process did in between
    pretrain(torn, resume=True)
    assert same(weights(whole), weights(torn))
    for row, other in zip(metrics.read_metrics(whole.folder), metrics.read_metrics(torn.folder), strict=True):
        assert row | TIMES == other | TIMES
    results = [json.loads((c.folder / "retrieval.json").read_text()) for c in (whole, torn)]
    assert results[0] == results[1]


def test_sigterm_writes_a_checkpoint_and_resuming_goes_on(tiny, monkeypatch):
    whole, torn = tiny("run.name=whole", "data.workers=1"), tiny("run.name=torn", "data.workers=1")
    pretrain(whole)

    calls = []

    def asked(*arguments):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(recipe, "train_step", asked)
        with pytest.raises(Interrupted, match=r"by SIGTERM at step 4: .* --resume goes on") as stopped:
            pretrain(torn)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert latest_checkpoint(torn).name == "step_00000004"
    pretrain(torn, resume=True)
    assert same(weights(whole), weights(torn))


def test_sigterm_ends_a_wait_for_a_clip(tiny, monkeypatch):
    def clips(index, *_):
        Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
        return Several(index, hang)

    monkeypatch.setattr(recipe, "TrainClips", clips)
    with pytest.raises(Interrupted, match="SIGTERM at step 0"):
        pretrain(tiny("run.name=waiting"))


def test_a_clip_that_ends_its_worker_is_counted_and_listed(tiny, monkeypatch):
    def clips(index, tokenizer, fmt, *_):
        faulty = Faulty(index, segfault)
        faulty.tokenizer, faulty.fmt = tokenizer, fmt
        return faulty

    config = tiny("run.name=faulty")
    monkeypatch.setattr(recipe, "TrainClips", clips)
    pretrain(config)
    (listed,) = jsonl.read_rows(config.folder / SKIPPED)
    assert "its worker died twice while reading it (signal 11" in listed["reason"]
    assert metrics.read_metrics(config.folder)[-1]["skipped_clips"] > 0


def killing(function, number=signal.SIGTERM):
    """A function that asks this process to stop before it does its work."""

    def killed(*arguments, **keywords):
        os.kill(os.getpid(), number)
        return function(*arguments, **keywords)

    return killed


@pytest.mark.parametrize(
    ("name", "number", "message", "step"),
    [
        ("train_and_test", signal.SIGINT, "SIGINT: nothing was begun; the same command starts", None),
        ("embed", signal.SIGTERM, "SIGTERM: the same command with --resume goes on from the latest", None),
        ("write", signal.SIGTERM, "SIGTERM at step 2: the same command with --resume", 2),
    ],
)
def test_a_signal_at_any_time_ends_the_run_in_order(tiny, corpus, monkeypatch, capsys, name, number, message, step):
    """At start-up, in an evaluation, in the report; then the run goes on."""
    config = tiny("train.steps=2")
    owner = {"write": report, "embed": evaluation}.get(name, recipe)
    arguments = ["--config", str(DEMO), *TINY, f"run.dir={config.run.dir}", f"data.manifest={corpus}"]
    arguments += [f"data.test={corpus / 'test.jsonl'}", "train.steps=2"]
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killing(getattr(owner, name), number))
        assert main(arguments) == 128 + number
    assert signal.getsignal(signal.SIGTERM) is before
    assert message in capsys.readouterr().err
    begun = "nothing was begun" not in message
    assert config.folder.exists() == begun
    if step is not None:
        assert checkpoint.load_facts(latest_checkpoint(config))["step"] == step
    assert main([*arguments, *["--resume"] * begun]) == 0
    assert not config.folder.with_name("demo.1").exists()
    assert metrics.read_metrics(config.folder)[-1]["step"] == 2


@pytest.mark.parametrize("last", [False, True])
def test_a_checkpoint_that_cannot_be_written_costs_nothing_but_itself(tiny, monkeypatch, last):
    """Files that the system refuses to let grow: a real error of a real write."""
    config, full_at = tiny(), [6 if last else 3]
    write = checkpoint.save

    def limited(folder, step, *arguments, **keywords):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000 if step in full_at else soft, hard))
        try:
            return write(folder, step, *arguments, **keywords)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(checkpoint, "save", limited)
    if last:  # the last one: there is no later one to try
        with pytest.raises(TrainingError, match=r"checkpoint of step 6 could not be written.*free space"):
            pretrain(config)
        assert checkpoint.latest(config.folder).name == "step_00000003"
        full_at.clear()
        pretrain(config, resume=True)
    else:
        pretrain(config)
        assert metrics.read_metrics(config.folder)[-1]["failed_checkpoints"] == 1
    assert [p.name for p in (config.folder / "checkpoints").glob(".*")] == []
    assert checkpoint.latest(config.folder).name == "step_00000006"


@pytest.mark.slow
def test_kill_9_and_resume(tiny, corpus, tmp_path):
    whole = tiny("run.name=whole", "train.steps=40")
    pretrain(whole)
    command = [
        sys.executable,
        "-m",
        "recipes.pretrain",
        "--config",
        str(DEMO),
        *TINY,
        "run.name=torn",
        "train.steps=40",
    ]
    command += [f"run.dir={tmp_path / 'runs'}", f"data.manifest={corpus}", f"data.test={corpus / 'test.jsonl'}"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    torn = tmp_path / "runs" / "torn" / "checkpoints" / "latest"
    while not torn.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    subprocess.run([*command, "--resume"], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert same(weights(whole), weights(tiny("run.name=torn", "train.steps=40")))


@pytest.mark.parametrize(
    "overrides",
    [
        ["harmonize=realign", "gram.group_size=2"],
        ["harmonize=curriculum", "gram.attribution=anchor", "gram.chunk_size=2"],
        ["harmonize=both", "gram.attribution=loss", "gram.space=features"],
        ["harmonize=none", "gram.every=0"],
        ["harmonize=realign", "realign.method=mgda", r"realign.layers=^backbone\.\w+\.\d+"],
        [
            "curriculum.rule=quantile",
            "curriculum.score=batch_agreement",
            "curriculum.history=0.9",
            "realign.method=random",
        ],
        ["harmonize=curriculum", "curriculum.rule=running_quantile", "curriculum.score=small_loss"],
        ["objective.norm=layer", "gamma.schedule=cosine", "gram.wrt=null", "train.clip_norm=1.0"],
    ],
)
def test_every_mode_trains(tiny, overrides):
    config = tiny("train.steps=2", *overrides)
    results = pretrain(config)
    assert results["trained"]["text->video"]["pairs"] > 0
    assert "loss" in metrics.read_metrics(config.folder)[-1]


def test_an_evaluated_checkpoint_gives_the_figures_of_its_run(tiny, tmp_path, capsys):
    config = tiny("train.steps=2")
    results = pretrain(config)
    out = tmp_path / "results.json"
    assert evaluate_main(["retrieval", f"checkpoint={config.folder}", f"out={out}"]) == 0
    assert json.loads(out.read_text())["figures"].items() > results["trained"].items()
    assert "| video->text |" in out.with_suffix(".md").read_text()
    assert evaluate_main(["retrieval", f"checkpoint={tmp_path / 'nothing'}"]) == 2
    assert "no checkpoint here" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- bad input


def manifest(folder, rows):
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def mixed(tmp_path):
    """A manifest with every kind of clip: good, mute, without text, short, stereo, missing, empty, truncated."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for i in range(6):
        media.write(folder / f"good{i}.mp4", seconds=2, size=(48, 48))
    media.write(folder / "mute.mp4", seconds=2, size=(48, 48), audio=False)
    media.write(folder / "short.mp4", seconds=0.3, size=(48, 48))
    media.write(folder / "stereo.mp4", seconds=2, size=(48, 48), sample_rate=44_100, channels=2)
    media.truncate(media.write(folder / "truncated.mp4", seconds=2, size=(48, 48)), 0.5)
    (folder / "empty.mp4").touch()
    rows = [{"video": f"good{i}.mp4", "text": f"<script>alert({i})</script> & a ball"} for i in range(6)]
    rows += [{"video": f"{n}.mp4", "text": f"a {n} one"} for n in ("mute", "short", "stereo", "truncated", "empty")]
    rows += [{"video": "gone.mp4", "text": "missing"}, {"video": "good0.mp4", "id": "silent", "text": None}]
    rows = [{**row, "split": "train"} for row in rows]
    for i in range(4):
        media.write(folder / f"test{i}.mp4", seconds=2, size=(48, 48))
        rows.append(
            {"video": f"test{i}.mp4", "text": f"<img src=x onerror=alert({i})> unheard-of words", "split": "test"}
        )
    return manifest(folder, rows)


def test_broken_clips_are_skipped_counted_and_reported(tiny, mixed):
    config = tiny(f"data.manifest={mixed}", "data.test=null", "train.batch_size=13")
    pretrain(config)
    listed = [json.loads(line) for line in (config.folder / "skipped.jsonl").read_text().splitlines()]
    assert {row["id"] for row in listed} == {"truncated", "empty", "gone"}
    assert metrics.read_metrics(config.folder)[-1]["skipped_clips"] == 3 * 6
    page = (config.folder / "report.html").read_text()
    assert "3 clip(s) could not be read" in page and "were skipped 18 time(s) in training" in page
    assert "<script>alert" not in page and "<img src=x" not in page  # captions are text, not markup
    assert "&lt;img src=x onerror=alert(0)&gt;" in page


def test_what_is_no_file_is_skipped_with_its_reason(tiny, mixed):
    """Nothing waits for it, neither what compares videos nor what reads them."""
    folder = mixed.parent
    os.mkfifo(folder / "pipe.mp4")
    (folder / "folder.mp4").mkdir()
    (folder / "device.mp4").symlink_to("/dev/zero")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    reasons = {
        "pipe": "a pipe, not", "folder": "a folder, not", "device": "a device, not", "loop": "symbolic links",
        "nul\0": "not the name of a file",
    }  # fmt: skip
    rows = [json.loads(line) for line in mixed.read_text().splitlines() if '"gone.mp4"' not in line]
    rows = [row for row in rows if row["video"] not in ("truncated.mp4", "empty.mp4")]
    rows += [{"video": f"{name}.mp4", "text": "a word", "split": "train"} for name in reasons]
    config = tiny(f"data.manifest={manifest(folder, rows)}", "data.test=null", "train.batch_size=14", "train.steps=1")
    pretrain(config)
    listed = {row["id"]: row["reason"] for row in jsonl.read_rows(config.folder / SKIPPED)}
    expected = {name.replace("\0", ""): reason for name, reason in reasons.items()}  # an id holds no control character
    assert listed.keys() == expected.keys() and all(expected[name] in why for name, why in listed.items())


def test_nothing_readable_stops_the_run_with_a_reason(tiny, mixed):
    rows = [json.loads(line) for line in mixed.read_text().splitlines()]
    rows = [row for row in rows if row["split"] == "test" or row["video"] in ("truncated.mp4", "empty.mp4", "gone.mp4")]
    config = tiny(f"data.manifest={manifest(mixed.parent, rows)}", "data.test=null", "train.max_bad_steps=3")
    with pytest.raises(TrainingError, match=r"3 steps in a row could not be taken.*fewer than two clips"):
        pretrain(config)


def test_modalities_may_be_missing_altogether(tiny, mixed):
    rows = [json.loads(line) for line in mixed.read_text().splitlines()]
    mute = [media.write(mixed.parent / f"mute{i}.mp4", seconds=2, size=(48, 48), audio=False) for i in range(4)]
    rows = [{"video": path.name, "text": f"mute number {i}", "split": "train"} for i, path in enumerate(mute)] + rows[
        -4:
    ]
    config = tiny(f"data.manifest={manifest(mixed.parent, rows)}", "data.test=null", "train.steps=2")
    pretrain(config)
    last = metrics.read_metrics(config.folder)[-1]
    assert last["loss_va"] == 0 and last["loss_vt"] > 0 and last["kept"] == 1 and last["skipped_steps"] == 0
    assert "agreement_mean" not in last  # no sample has both gradients


@pytest.fixture
def step(tiny):
    """Everything `train_step` needs, and a good batch."""
    config = tiny()
    train = train_and_test(config).train
    tokenizer = vocabulary_of(train, config)
    torch.manual_seed(0)
    modules = build(config, tokenizer)
    learner = Learner(modules, torch.optim.Adam(modules.parameters(), lr=1e-3), harmonizer(config))
    clips = TrainClips(train, tokenizer, config.clip, 0, config.augment)
    batch = next(iter(train_loader(clips, 4, seed=0, workers=0)))

    def take(batch):
        before = {n: t.clone() for n, t in modules.state_dict().items()}
        learner.state = learner.harmonizer.init()
        few = too_few([len(batch["id"])])
        inputs = model_inputs(batch, torch.device("cpu"))
        result = idle_step(learner, few) if few else train_step(learner, inputs, step_options(config, 0))
        take.state = learner.state
        moved = [n for n, t in modules.state_dict().items() if not torch.equal(t, before[n])]
        return result, moved

    return take, batch, clips


def test_nan_in_a_loss_leaves_everything_as_it_was(step):
    take, batch, _ = step
    bad = {**batch, "audio": batch["audio"].clone()}
    bad["audio"][1, 5] = torch.nan
    result, moved = take(bad)
    assert result.reason == "the loss is not finite" and moved == []
    assert result.cosines is not None and not result.defined[1]
    result, moved = take(batch)
    assert result.taken and any("running_mean" in n for n in moved) and any("backbone" in n for n in moved)


def test_a_batch_of_one_has_nothing_to_contrast(step):
    take, _, clips = step
    result, moved = take(collate([clips[0, 0]]))
    assert "fewer than two clips" in result.reason and moved == []
    assert take.state[0].step == 1  # the schedule follows the steps, taken or not


def test_a_wrong_command_line_fails_before_any_work(tmp_path, corpus, capsys):
    runs = tmp_path / "runs"
    for arguments, message in [
        (["train.stepz=3"], "train.stepz"),
        (["train.steps=many"], "train.steps"),
        (["harmonize=most"], "Invalid value 'most', expected one of"),
        (["clip.frames=5"], "clip.frames=5 is not a multiple of 4"),
        (["steps"], "expected key=value"),
        ([f"data.manifest={tmp_path / 'nothing'}"], "there is nothing here"),
        ([f"data.manifest={corpus}", f"data.test={corpus}"], "are both in training and in test"),
        (
            ["data.word_vectors=nothing.txt", f"data.manifest={corpus}", f"data.test={corpus / 'test.jsonl'}"],
            "nothing.txt",
        ),
        (["--resume"], "there is no run to resume"),
        ([f"data.manifest={corpus}", f"data.test={corpus / 'test.jsonl'}", "gram.wrt=^typo"], "matches no parameter"),
        (
            [f"data.manifest={corpus}", f"data.test={corpus / 'test.jsonl'}", "realign.layers=^typo"],
            "realign.layers='^typo' matches no parameter",
        ),
        (
            [f"data.manifest={corpus}", f"data.test={corpus / 'test.jsonl'}", "realign.layers=last_block"],
            "realign.layers='last_block' matches no parameter",
        ),
    ]:
        code = main(["--config", str(DEMO), f"run.dir={runs}", "data.workers=0", *arguments])
        assert (code, message in (error := capsys.readouterr().err), error.startswith("error: ")) == (2, True, True), (
            error
        )
    assert not runs.exists()
    assert main(["--config", str(tmp_path / "none.yaml")]) == 2


def test_a_run_is_never_overwritten_and_resumes_only_with_its_own_configuration(tiny):
    config = tiny("train.steps=2")
    pretrain(config)
    before = (config.folder / "report.html").read_text()
    with pytest.raises(ConfigError, match=r"train.lr: 0.002 -> 0.1"):
        pretrain(tiny("train.steps=2", "train.lr=0.1"), resume=True)
    pretrain(
        tiny("train.steps=2", "data.workers=1", "gram.probe=[paths]"), resume=True
    )  # nothing left to train; these may change
    before = (config.folder / "report.html").read_text()
    pretrain(config)
    assert (config.folder.with_name("demo.1") / "report.html").read_text() == before


def test_unreadable_test_clips_are_an_error_that_names_one(tiny, mixed):
    rows = [json.loads(line) for line in mixed.read_text().splitlines()]
    rows = [{**row, "split": "test" if row["video"] in ("truncated.mp4", "empty.mp4") else "train"} for row in rows]
    with pytest.raises(DataError, match=r"none of the 2 test clips could be read; the first is (truncated|empty)"):
        pretrain(tiny(f"data.manifest={manifest(mixed.parent, rows)}", "data.test=null"))


def test_a_run_does_not_go_on_with_other_videos(tiny, mixed):
    overrides = [f"data.manifest={mixed}", "data.test=null", "train.steps=2"]
    pretrain(tiny(*overrides))
    mixed.write_text("\n".join(mixed.read_text().splitlines()[1:]))
    with pytest.raises(DataError, match="the training videos are not those"):
        pretrain(tiny(*overrides), resume=True)


def test_data_errors_come_before_the_run_folder(tiny, tmp_path):
    config = tiny(f"data.manifest={tmp_path}")
    with pytest.raises(DataError, match=r"HowTo100M_v1\.csv"):
        pretrain(config)
    assert not config.folder.exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.batch_size=4"], "batch_size=4 must be a multiple of the 3 processes"),
        (["train.batch_size=6", "train.parallel=fsdp", "gram.probe=[paths]"], "gram.probe .* needs train.parallel=ddp"),
    ],
)
def test_what_processes_cannot_share_is_refused_before_any_work(tiny, overrides, message):
    config = tiny(*overrides)
    with pytest.raises(ConfigError, match=message):
        pretrain(config, group=Processes(rank=0, world=3))
    assert not config.folder.exists()


def test_a_mixture_trains_and_resumes(tiny, crash, corpus, tmp_path):
    """Shares of every batch, and a source without text; a run that died goes on as if it had not."""
    videos = [media.write(tmp_path / f"{name}.mp4", seconds=2.0) for name in ("x", "y", "z")]
    rows = [{"video": path.name, "text": None} for path in videos]
    (tmp_path / "silent.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sources = [f"data.sources.spoken.manifest={corpus}", f"data.sources.other.manifest={tmp_path / 'silent.jsonl'}"]
    mixture = ["data.manifest=null", *sources, "data.sources.spoken.weight=3", f"data.test={corpus / 'test.jsonl'}"]
    whole, halves = (tiny(*mixture, f"run.name={name}") for name in ("whole", "halves"))
    assert pretrain(whole)["trained"]
    crash(halves)
    pretrain(halves, resume=True)
    a, b = (checkpoint.read_tensors(checkpoint.latest(config.folder), "model.") for config in (whole, halves))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert "spoken 75%, other 25%" in (whole.folder / "report.html").read_text()


def test_sound_that_is_no_number_costs_its_clip_alone(tiny, mixed):
    """One inf among the samples of one clip; all clips of an epoch are in one batch."""
    samples = np.zeros((1, 32_000), np.float32)
    samples[0, ::100] = np.inf
    with av.open(str(mixed.parent / "loud.mkv"), "w") as file:
        pictures = file.add_stream("mpeg4", rate=5)
        pictures.width, pictures.height, pictures.pix_fmt = 48, 48, "yuv420p"
        sound = file.add_stream("pcm_f32le", rate=16_000, layout="mono")
        for number in range(10):
            file.mux(pictures.encode(av.VideoFrame.from_ndarray(media.picture(number, (48, 48)), format="rgb24")))
        chunk = av.AudioFrame.from_ndarray(samples, "flt", "mono")
        chunk.sample_rate = 16_000
        file.mux(sound.encode(chunk))
        for stream in (pictures, sound):
            file.mux(stream.encode(None))
    rows = [json.loads(line) for line in mixed.read_text().splitlines()]
    rows = [row for row in rows if row["video"].startswith(("good", "test"))]
    rows.append({"video": "loud.mkv", "text": "a loud one", "split": "train"})
    config = tiny(
        f"data.manifest={manifest(mixed.parent, rows)}", "data.test=null", "train.batch_size=8", "train.steps=2"
    )
    pretrain(config)
    (listed,) = jsonl.read_rows(config.folder / SKIPPED)
    assert listed["id"] == "loud" and "not finite" in listed["reason"]
    (row,) = metrics.read_metrics(config.folder)
    assert row["skipped_steps"] == 0 and row["skipped_clips"] == 2 and np.isfinite(row["loss"])
