"""Fine-tuning, from a folder in Kinetics' layout to accuracies; interrupted, resumed, refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recipes.data.corpus.write import write_mp4
from recipes.data.labels import Labelled, Split, load_labelled
from recipes.evaluate import main
from recipes.evaluation import finetune, tuning
from recipes.evaluation.finetune import accuracy
from recipes.evaluation.labelled import Job
from recipes.evaluation.supervised import table
from recipes.files import locks
from tests.recipes import media
from tests.recipes.conftest import Crash

COLOURS = {"playing piano": (200, 40, 40), "abseiling": (40, 200, 40), "yoga": (40, 40, 200)}
HEADER = "label,youtube_id,time_start,time_end,split"
QUICK = ["batch_size=6", "warmup=2", "lr=0.1", "drop_token=0", "head_dropout=0", "windows=2", "workers=0", "mixup=0.1"]


def clip(path: Path, colour: tuple[int, int, int], rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = rng.integers(-30, 30, (10, 32, 48, 3))
    write_mp4(path, iter(np.clip(noise + colour, 0, 255).astype(np.uint8)), 5, None, 16_000)


@pytest.fixture(scope="module")
def kinetics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of one colour each, in folders of the classes; a clip is cut off, another one missing."""
    root, rng = tmp_path_factory.mktemp("kinetics"), np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        lines = [HEADER]
        for label, colour in COLOURS.items():
            for number in range(count):
                video = f"-{part[0]}{label[:4]}_{number}".replace(" ", "_")
                lines.append(f"{label},{video},{10 * number},{10 * number + 10},{part}")
                name = f"{video}_{10 * number:06}_{10 * number + 10:06}.mp4"
                clip(root / part / label.replace(" ", "_") / name, colour, rng)
        (root / f"{part}.csv").write_text("\n".join(lines) + "\n")
    media.truncate(root / "train/yoga/-tyoga_3_000030_000040.mp4", 0.5)
    media.truncate(root / "val/yoga/-vyoga_1_000010_000020.mp4", 0.5)
    (root / "val/abseiling/-vabse_0_000000_000010.mp4").unlink()
    return root


def run(checkpoint: Path, data: Path, folder: Path, *overrides: str) -> dict:
    """Fine-tune by the command line; the result."""
    options = [f"checkpoint={checkpoint}", f"data={data}", f"dir={folder}"]
    assert main(["finetune", *options, *overrides]) == 0
    return json.loads((folder / "result.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (place,) = (folder / "split-val" / "checkpoints").glob("step_*")
    return {n: t for file in (place / "tensors").glob("*.safetensors") for n, t in load_file(file).items()}


def test_the_tables_and_the_files(kinetics: Path) -> None:
    with pytest.warns(UserWarning, match="1 of 18 clips have no file; left out"):
        data = load_labelled(kinetics)
    assert (data.dataset, data.names) == ("Kinetics", ["abseiling", "playing piano", "yoga"])
    (split,) = data.splits
    assert (split.name, len(split.train), len(split.test)) == ("val", 12, 5)
    row = data.index[0]
    assert (row["id"], data.labels[0], data.sources[0]) == ("-tplay_0_000000_000010", [1], "-tplay_0")
    assert row["video"] == str(kinetics / "train/playing_piano/-tplay_0_000000_000010.mp4")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("yoga,abc,soon,20,train", "line 2: expected a label, an id, and its start and end in seconds"),
        ("yoga,abc,20,10,train", "line 2: expected a label"),
        ("yoga,abc,0,10,train\nabseiling,abc,0,10,train", "line 3: the clip abc_000000_000010 was in the tables"),
    ],
)
def test_a_wrong_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(f"{HEADER}\n{line}\n")
    with pytest.raises(ValueError, match=rf"train\.csv, {message}"):
        load_labelled(tmp_path)


def test_a_table_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("video,caption\na,b\n")
    with pytest.raises(ValueError, match="expected the columns label, youtube_id, time_start, time_end; there is no l"):
        load_labelled(tmp_path)


@pytest.mark.filterwarnings("ignore:.*have no file")
def test_it_learns_colours_and_leaves_out_broken_clips(
    checkpoint: Path, kinetics: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out.json"
    result = run(checkpoint, kinetics, tmp_path / "work", f"out={out}", "steps=40", *QUICK)
    figures = result["figures"]["val"]
    assert figures["top1"] == 1 and figures["clips"] == 4 and figures["skipped"] == 1
    assert [clip["id"] for clip in result["skipped"]] == ["-vyoga_1_000010_000020"]
    assert result["protocol"]["steps"] == 40 and result["protocol"]["crops"] == 3
    (skipped,) = (tmp_path / "work" / "split-val" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(skipped)["id"] == "-tyoga_3_000030_000040"
    assert json.loads(out.read_text()) == result
    assert "| val | 100.0 | 100.0 | 33.3 | 100.0 | 4 |" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*have no file")
def test_a_run_that_died_goes_on_as_if_it_had_not(
    checkpoint: Path, kinetics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    options = ["steps=6", "checkpoint_every=2", *QUICK, "drop_token=0.5", "head_dropout=0.5"]
    whole = run(checkpoint, kinetics, tmp_path / "whole", *options)
    with monkeypatch.context() as patch:
        take_step, calls = tuning.take_step, []

        def crashing(*arguments):
            calls.append(1)
            if len(calls) == 6:
                raise Crash
            return take_step(*arguments)

        patch.setattr(tuning, "take_step", crashing)
        with pytest.raises(Crash):
            run(checkpoint, kinetics, tmp_path / "died", *options)
    resumed = run(checkpoint, kinetics, tmp_path / "died", "--resume", *options)
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "died")
    assert expected.keys() == found.keys() and any(name.startswith("optimizer.") for name in found)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert resumed["figures"] == whole["figures"]

    place = [f"checkpoint={checkpoint}", f"data={kinetics}", f"dir={tmp_path / 'died'}", "--resume"]
    assert main(["finetune", *place, *options, "lr=0.2"]) == 2
    assert "was begun with another configuration:\n  lr: 0.1 -> 0.2" in capsys.readouterr().err


def test_steps_that_are_not_finite_are_not_taken(checkpoint, corpus: Path, tmp_path: Path, capsys) -> None:
    """A learning rate that is far too large ends the training before it has wasted its time."""
    options = [f"checkpoint={checkpoint}", f"data={corpus / 'shapes.jsonl'}", f"dir={tmp_path / 'work'}"]
    assert main(["finetune", *options, "steps=50", "checkpoint_every=1", "log_every=1", *QUICK, "lr=1e30"]) == 2
    assert (
        "20 steps in a row could not be taken, the last one because the loss is not finite" in capsys.readouterr().err
    )
    rows = [json.loads(line) for line in (tmp_path / "work/split-test/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["skipped_steps"] == 20 and rows[-1]["step"] == len(rows) < 50


def test_a_dry_run_says_what_would_be_done(checkpoint: Path, corpus: Path, tmp_path: Path, capsys) -> None:
    options = [f"checkpoint={checkpoint}", f"data={corpus / 'shapes.jsonl'}", f"dir={tmp_path / 'work'}", "steps=7"]
    assert main(["finetune", "--dry-run", *options]) == 0
    printed = capsys.readouterr().out
    assert "would train the video path and a linear head for 7 steps of 64 clips" in printed
    data = load_labelled(corpus / "shapes.jsonl").splits[0]
    assert f"split test: {len(data.train)} clips to train on, {len(data.test)} to test on" in printed
    assert "  size: 32" in printed  # the clips of the checkpoint
    assert not (tmp_path / "work").exists()
    assert main(["finetune", "--dry-run", *options, f"dir={checkpoint}"]) == 2
    assert "cannot be moved aside" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["steps=0", "label_smoothing=1"], "steps=0 must be at least 1\n  - label_smoothing=1.0 must be less than 1"),
        (["step=10"], "key 'step'"),
        (["clip.size=33"], "clip.size=33 is not a multiple of 16x16"),
        (["split=2"], "split=2: no such split; the data have val"),
        (["steps"], "override 'steps': expected key=value"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*have no file")
def test_what_cannot_be_run_is_refused_before_work(
    overrides: list[str], message: str, checkpoint: Path, kinetics: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = [f"checkpoint={checkpoint}", f"data={kinetics}", f"dir={tmp_path / 'work'}"]
    assert main(["finetune", *options, *overrides]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_a_folder_in_use_or_of_something_else_is_left_alone(
    checkpoint: Path, kinetics: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "work").mkdir()
    options = [f"checkpoint={checkpoint}", f"data={kinetics}", f"dir={tmp_path / 'work'}", "steps=1"]
    with locks.hold(tmp_path / "work"):
        assert main(["finetune", *options]) == 2
        assert "work is in use by process" in capsys.readouterr().err
    (tmp_path / "work" / "mine.txt").touch()
    assert main(["finetune", *options]) == 2
    assert "cannot be moved aside" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["work"]


def test_larger_clips_than_it_was_trained_on(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    """The procedural corpus, on 48 pixels in place of 32."""
    result = run(checkpoint, corpus / "shapes.jsonl", tmp_path / "work", "steps=1", "clip.size=48", *QUICK)
    assert 0 <= result["figures"]["test"]["top1"] <= result["figures"]["test"]["top5"] <= 1


def test_several_labels_are_for_tagging(checkpoint: Path, corpus: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["finetune", f"checkpoint={checkpoint}", f"data={corpus / 'tags.jsonl'}"]) == 2
    assert "has 3 labels: finetune needs exactly one for each clip; tagging takes several" in capsys.readouterr().err


def test_the_same_video_in_both_parts_is_refused(
    checkpoint: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [json.loads(line) for line in (corpus / "shapes.jsonl").read_text().splitlines()]
    for row in rows:
        row |= {"video": str(corpus / row["video"]), "split": "test" if row["id"].endswith("/0") else "train"}
    (tmp_path / "leaky.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["finetune", f"checkpoint={checkpoint}", f"data={tmp_path / 'leaky.jsonl'}"]) == 2
    assert "are of the same file as clips to train on" in capsys.readouterr().err


def test_accuracy_counts_ties_against_us() -> None:
    logits = torch.tensor([[3.0, 1, 2, 0, 0, 0, 0], [3, 3, 2, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6]])
    assert accuracy(logits, [[0], [1], [0]]) == {
        "top1": pytest.approx(1 / 3), "top5": pytest.approx(2 / 3), "top1_chance": 1 / 7, "top5_chance": 5 / 7
    }  # fmt: skip


def test_figures_of_kinetics_stand_beside_those_reported() -> None:
    data = Labelled(None, [], [str(number) for number in range(400)], [Split("val", [], [])], [], "Kinetics")
    figures = {"val": {"top1": 0.5, "top5": 0.75, "top1_chance": 1 / 400, "top5_chance": 5 / 400, "clips": 4}}
    lines = table(finetune.TASK, "runs/demo", Job(None, data, [], None), figures).splitlines()
    assert lines[2] == "| runs/demo | val | 50.0 | 75.0 | 0.2 | 1.2 | 4 |"
    assert any(line.startswith("| VATT-MA-Medium (") and "| 79.9 | 94.9 |" in line for line in lines)
    manifest = Job(None, data._replace(dataset=""), [], None)
    assert len(table(finetune.TASK, "runs/demo", manifest, figures).splitlines()) == 3
