"""Audio tagging, from AudioSet's official tables and files of sound to figures; the whole model and a frozen one."""

import json
from pathlib import Path

import numpy as np
import pytest

from recipes.data.labels import load_labelled
from recipes.evaluate import main
from tests.recipes import media
from tests.recipes.test_audioset import table, touch

CLASSES = {"/m/09x0r": "Speech", "/t/dd00088": "Gargling", "/m/04rlf": "Music", "/m/0dgw9r": "Human sounds, others"}
TONES = {"/m/09x0r": 300.0, "/t/dd00088": 700.0, "/m/04rlf": 1100.0}  # the fourth class has no clip to test on
QUICK = ["batch_size=6", "warmup=2", "drop_token=0", "mixup=0", "windows=3", "workers=0"]


def names(root: Path) -> None:
    lines = [f'{number},{mid},"{name}"' for number, (mid, name) in enumerate(CLASSES.items())]
    root.mkdir(exist_ok=True)
    (root / "class_labels_indices.csv").write_text("index,mid,display_name\n" + "\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def audioset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten-second segments as wav files, some cut out and some not, each of one or two tones; one clip is silent."""
    root, rng = tmp_path_factory.mktemp("audioset"), np.random.default_rng(0)
    names(root)
    clock = np.arange(15 * 4000) / 4000
    for part, count in (("balanced_train", 18), ("eval", 9)):
        segments = []
        for number in range(count):
            labels = [list(TONES)[number % 3]] + [list(TONES)[(number + 1) % 3]] * (number % 2)
            sound = sum(0.3 * np.sin(2 * np.pi * TONES[mid] * clock + rng.uniform(0, 6)) for mid in labels)
            video, cut = f"{part}{number:04}", number % 2
            wave = (
                sound[:40_000] if cut else np.where(clock < 3, 0, sound)
            )  # the whole one is silent before its segment
            media.write_wav(root / "videos" / f"{video}{'_3' * cut}.wav", wave, 4000)
            segments.append(f'{video}, 3.000, 13.000, "{",".join(labels)}"')
        table(root, part, *segments, *(['silent, 0.000, 10.000, "/m/04rlf"'] if part == "eval" else []))
    media.write(root / "videos" / "silent.mp4", audio=False)
    return root


def run(checkpoint: Path, data: Path, folder: Path, *overrides: str) -> dict:
    """Tag by the command line; the result."""
    options = [f"checkpoint={checkpoint}", f"data={data}", f"dir={folder}"]
    assert main(["tagging", *options, *overrides]) == 0
    return json.loads((folder / "result.json").read_text())


def test_the_tables_with_their_labels(audioset: Path) -> None:
    data = load_labelled(audioset)
    assert (data.dataset, data.names) == ("AudioSet", list(CLASSES.values()))
    (split,) = data.splits
    assert (split.name, len(split.train), len(split.test)) == ("eval", 18, 10)
    assert data.labels[:3] == [[0], [1, 2], [2]]
    assert (data.index[0]["start"], data.index[0]["end"]) == (3.0, 13.0)
    assert data.index[1]["video"].endswith("balanced_train0001_3.wav") and data.index[1]["start"] is None


def test_a_label_that_is_not_a_class(tmp_path: Path) -> None:
    names(tmp_path)
    table(tmp_path, "eval", 'abc, 30.000, 40.000, "/m/09x0r,/m/nothing"')
    touch(tmp_path, "abc.mp4")
    with pytest.raises(ValueError, match=r"eval_segments\.csv, line 4: the label /m/nothing is not in .*indices\.csv"):
        load_labelled(tmp_path)


def test_a_wrong_table_of_classes(tmp_path: Path) -> None:
    (tmp_path / "class_labels_indices.csv").write_text("index,mid,display_name\n0,/m/09x0r,Speech\n2,/m/04rlf,Music\n")
    with pytest.raises(ValueError, match=r"line 3: expected 1,mid,display_name; found"):
        load_labelled(tmp_path)


@pytest.mark.parametrize("how", [["lr=0.05"], ["frozen=true", "lr=0.5"]], ids=["all", "frozen"])
def test_it_learns_tones(how: list[str], checkpoint: Path, audioset: Path, tmp_path: Path, capsys) -> None:
    result = run(checkpoint, audioset, tmp_path / "work", "steps=60", *how, *QUICK)
    figures = result["figures"]["eval"]
    assert figures["map"] > 0.9 > figures["map_chance"] + 0.3 and figures["auc"] > 0.9
    assert (figures["clips"], figures["skipped"], figures["classes"], figures["left_out"]) == (9, 1, 3, [3])
    assert result["skipped"] == [{"id": "silent", "reason": "it has no sound"}]
    printed = capsys.readouterr().out
    assert any(
        line.startswith("| VATT-MA-Medium (") and "| 39.3 | 97.0 | 2.884 |" in line for line in printed.splitlines()
    )
    assert "not judged, as the test clips have none of them or nothing else: Human sounds, others." in printed


def test_the_procedural_corpus_can_be_heard(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    result = run(checkpoint, corpus / "tags.jsonl", tmp_path / "work", "steps=2", *QUICK)
    figures = result["figures"]["test"]
    assert 0 < figures["map"] <= 1 and figures["clips"] == result["counts"]["test"]


def test_without_data_there_is_nothing_to_learn(checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["tagging", f"checkpoint={checkpoint}"]) == 2
    assert "data= is missing: a labelled data set" in capsys.readouterr().err
