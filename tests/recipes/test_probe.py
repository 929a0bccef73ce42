"""The linear probe: from media in the official layouts to figures, against scikit-learn; and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from recipes.config import ClipFormat
from recipes.data.index import load_index
from recipes.data.labels import Labelled, Split, load_labelled
from recipes.data.skipped import Skipped
from recipes.data.windows import WindowedClips, Windows
from recipes.errors import DataError
from recipes.evaluate import main
from recipes.evaluation import linear
from recipes.evaluation.disjoint import check_disjoint
from recipes.evaluation.embedding import Outputs
from recipes.evaluation.probe import Judged, accuracy, probe
from recipes.evaluation.probe import features as frozen_features
from recipes.restore import restore
from tests.recipes import media

COLOURS = {"Archery": (200, 40, 40), "Bowling": (40, 200, 40), "Diving": (40, 40, 200)}
TONES = {"dog": 300.0, "rain": 700.0, "siren": 1100.0}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ucf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """UCF101's layout: three classes of one colour each, under noise, three clips of a group; two splits."""
    root, rng = tmp_path_factory.mktemp("ucf"), np.random.default_rng(0)
    lists: dict[str, list[str]] = {f"{part}list0{n}.txt": [] for part in ("train", "test") for n in (1, 2)}
    for number, (name, colour) in enumerate(COLOURS.items(), 1):
        for group in range(1, 5):
            for clip in (1, 2):
                file = f"{name}/v_{name}_g{group:02d}_c{clip:02d}.avi"
                noise = rng.integers(-40, 40, (12, 48, 48, 3))
                media.write_avi(root / file, np.clip(noise + colour, 0, 255).astype(np.uint8), fps=10)
                for split, tested in ((1, 1), (2, 4)):
                    part, ending = ("test", "") if group == tested else ("train", f" {number}")
                    lists[f"{part}list0{split}.txt"].append(file + ending)
    lists["classInd.txt"] = [f"{i} {name}" for i, name in enumerate(COLOURS, 1)]
    for name, lines in lists.items():
        (root / name).write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def esc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ESC-50's layout: three classes of one tone each, under noise, in five folds."""
    root, rng = tmp_path_factory.mktemp("esc"), np.random.default_rng(0)
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    clock = np.arange(44_100) / 44_100
    for fold in range(1, 6):
        for target, (category, hertz) in enumerate(TONES.items()):
            sound = 0.5 * np.sin(2 * np.pi * hertz * clock) + rng.uniform(-0.1, 0.1, clock.size)
            media.write_wav(root / "audio" / f"{fold}-{target}-A-{target}.wav", sound)
            lines.append(f"{fold}-{target}-A-{target}.wav,{fold},{target},{category},False,{fold}{target},A")
    (root / "meta").mkdir()
    (root / "meta" / "esc50.csv").write_text("\n".join(lines) + "\n")
    return root


def figures(checkpoint: Path, data: Path, tmp_path: Path, *options: str) -> dict:
    out = tmp_path / "probe.json"
    assert main(["probe", f"checkpoint={checkpoint}", f"data={data}", f"out={out}", *options]) == 0
    return json.loads(out.read_text())


def test_ucf101_from_files_to_figures(checkpoint: Path, ucf: Path, tmp_path: Path) -> None:
    """Colours are separable by a model that is hardly trained; a clip that is broken is counted."""
    root = shutil.copytree(ucf, tmp_path / "ucf")
    broken = root / "Archery" / "v_Archery_g02_c01.avi"
    broken.write_bytes(b"not a video at all")
    result = figures(checkpoint, root, tmp_path, "untrained=true")
    assert result["counts"] == {"clips": 23, "skipped": 1, "classes": 3}
    assert result["skipped"][0]["id"] == "Archery/v_Archery_g02_c01"
    assert result["protocol"]["modality"] == "video"
    assert list(result["figures"]) == [str(checkpoint), "the same, untrained"]
    own = result["figures"][str(checkpoint)]
    assert list(own) == ["1", "2", "mean"]
    assert (own["1"]["train"], own["1"]["test"], own["1"]["chance"]) == (17, 6, pytest.approx(1 / 3))
    assert own["mean"]["logistic"]["top1"] == 1.0
    assert own["mean"]["vatt"]["top1"] > 0.8
    page = (tmp_path / "probe.md").read_text()
    assert "| mean | 100.0 | 61.0 to 100.0 | 33.3 |" in page
    assert "| VATT-MA-Medium (Akbari et al. 2021, arXiv:2104.11178) | linear | mean | 84.4 |" in page


def test_esc50_has_no_pictures(checkpoint: Path, esc: Path, tmp_path: Path) -> None:
    result = figures(checkpoint, esc, tmp_path, "split=3")
    assert result["protocol"]["modality"] == "audio"
    own = result["figures"][str(checkpoint)]
    assert list(own) == ["3"]
    assert own["3"]["logistic"]["top1"] == 1.0


def test_the_procedural_corpus(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    """Of the test clips none was trained on; of the training clips all were, and the probe may be fitted to them."""
    data = load_labelled(corpus / "shapes.jsonl")
    result = figures(checkpoint, corpus / "shapes.jsonl", tmp_path)
    assert result["counts"]["clips"] == len(data.index)
    assert result["figures"][str(checkpoint)]["test"]["test"] == len(data.splits[0].test)
    swapped = [json.loads(line) for line in (corpus / "shapes.jsonl").read_text().splitlines()]
    for row in swapped:
        row["video"], row["split"] = str(corpus / row["video"]), {"train": "test", "test": "train"}[row["split"]]
    (tmp_path / "swapped.jsonl").write_text("\n".join(map(json.dumps, swapped)))
    assert main(["probe", f"checkpoint={checkpoint}", f"data={tmp_path / 'swapped.jsonl'}"]) == 2


def test_the_figures_are_those_of_scikit_learn(checkpoint: Path, ucf: Path, tmp_path: Path) -> None:
    """Fitted here on the training clips of each split alone: what is tested on is not used before."""
    result = figures(checkpoint, ucf, tmp_path)["figures"][str(checkpoint)]
    _, config, _, modules = restore(checkpoint)
    data = load_labelled(ucf)
    clips = WindowedClips(data.index, config.clip, "video", 4)
    frozen = frozen_features(modules["model"], clips, config.evaluate.batch_size, config.data)
    x, y = frozen.values.numpy().mean(1), np.array(data.labels)[:, 0]
    for split in data.splits:
        groups = np.array(data.sources)[split.train]
        folds = StratifiedGroupKFold(4, shuffle=True, random_state=0).split(groups, y[split.train], groups)
        search = GridSearchCV(
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
            {"logisticregression__C": linear.STRENGTHS}, cv=[next(folds)],
        ).fit(x[split.train], y[split.train])  # fmt: skip
        assert result[split.name]["C"] == search.best_params_["logisticregression__C"]
        assert result[split.name]["logistic"]["top1"] == search.score(x[split.test], y[split.test])


def features(labels: np.ndarray, distance: float, rng: np.random.Generator) -> Outputs:
    """Four windows of each clip around the place of its class."""
    places = distance * np.eye(16)[labels]
    windows = places[:, None] + rng.normal(size=(len(labels), 4, 16))
    return Outputs(torch.from_numpy(windows).float(), list(range(len(labels))), [])


def labelled(tmp_path: Path, labels: np.ndarray, train: int) -> Labelled:
    rows = [{"id": str(i), "video": f"https://example.org/{i}.mp4", "label": str(n)} for i, n in enumerate(labels)]
    rows = [row | {"split": "train" if i < train else "test"} for i, row in enumerate(rows)]
    path = tmp_path / "labels.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return load_labelled(path)


@pytest.mark.parametrize("seed", [0, 1])
def test_shuffled_labels_give_chance(tmp_path: Path, seed: int) -> None:
    """Features that part the classes perfectly tell nothing of classes dealt at random."""
    rng = np.random.default_rng(seed)
    labels = np.arange(300) % 3
    shown = features(labels, 6.0, rng)
    honest = labelled(tmp_path, labels, 180)
    by_skill = probe(honest, honest.splits, shown, CPU)["test"]
    shuffled = labelled(tmp_path, rng.permutation(labels), 180)
    by_chance = probe(shuffled, shuffled.splits, shown, CPU)["test"]
    for classifier in ("logistic", "vatt"):
        assert by_skill[classifier]["top1"] > 0.99
        assert 120 * by_chance[classifier]["top1"] <= binom.ppf(0.999, 120, 0.4)


def test_the_head_is_linear_and_probabilities_are_averaged() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 4
    windows = features(labels, 4.0, rng).values
    head = linear.vatt_head(windows, torch.from_numpy(labels), 4)
    narrow, _, wide = head
    weight = (wide.weight @ narrow.weight).detach().double().numpy()
    bias = (wide.weight @ narrow.bias + wide.bias).detach().double().numpy()
    for clip, probabilities in zip(windows.double().numpy(), linear.averaged(head, windows), strict=True):
        powers = [np.exp(weight @ window + bias) for window in clip]
        assert probabilities.numpy() == pytest.approx(np.mean([p / p.sum() for p in powers], axis=0), abs=1e-5)


def test_accuracy_and_its_interval() -> None:
    hits = np.arange(400) % 4 > 0
    single = accuracy([Judged(hits, np.arange(400).astype(str))])
    assert single["top1"] == 0.75
    spread = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert single["interval"] == pytest.approx([0.75 - spread, 0.75 + spread], abs=0.01)
    grouped = accuracy([Judged(np.arange(400) % 100 < 75, (np.arange(400) % 100).astype(str))])
    wider = np.diff(grouped["interval"]) / np.diff(single["interval"])
    assert wider == pytest.approx(2.0, abs=0.3)  # four clips of a group are one
    both = accuracy([Judged(hits, np.arange(400).astype(str)), Judged(~hits, np.arange(400, 800).astype(str))])
    assert both["top1"] == 0.5
    none = accuracy([Judged(np.zeros(23, bool), np.arange(23).astype(str))])
    assert none["interval"] == pytest.approx([0.0, 1.959964**2 / (23 + 1.959964**2)])  # Wilson's of 0 of 23


def test_windows_go_from_the_first_second_to_the_last(tmp_path: Path) -> None:
    media.write(tmp_path / "a.mp4", seconds=4.0, size=(64, 64))
    media.write(tmp_path / "silent.mp4", audio=False)
    rows = [{"video": "a.mp4", "label": "x"}, {"video": "a.mp4", "label": "x", "start": 1.0, "end": 2.0}]
    rows.append({"video": "silent.mp4", "label": "x"})
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    index = load_index(path)
    fmt = ClipFormat(frames=5, fps=10.0, size=32, sample_rate=8000, audio_seconds=0.5)

    def firsts(number: int, count: int) -> list[int]:
        item = WindowedClips(index, fmt, "video", count)[number]
        assert isinstance(item, Windows)
        assert item.raw.shape == (count, 5, 32, 32, 3)
        return [media.number_of(window[0]) // 2 for window in item.raw]  # half of the first bar is cropped away

    assert firsts(0, 3) == [0 // 2, 17 // 2, 35 // 2]
    assert firsts(1, 2) == [10 // 2, 15 // 2]
    assert firsts(0, 1) == firsts(0, 3)[1:2]
    heard = WindowedClips(index, fmt, "audio", 2, rows=[0])[0]
    assert isinstance(heard, Windows)
    assert [media.frequency_of(sound, 8000) for sound in heard.raw] == pytest.approx([300, 600], abs=5)
    assert WindowedClips(index, fmt, "audio", 2)[2] == Skipped("silent", "it has no sound")


def test_parts_that_share_a_video_are_refused(ucf: Path, esc: Path, checkpoint: Path, tmp_path: Path, capsys) -> None:
    root = shutil.copytree(ucf, tmp_path / "ucf")
    lists = root / "testlist01.txt", root / "trainlist01.txt"
    official = [file.read_text() for file in lists]
    moved = "Archery/v_Archery_g01_c02.avi"
    lists[0].write_text(official[0].replace(f"{moved}\n", ""))
    lists[1].write_text(official[1] + f"{moved} 1\n")
    assert main(["probe", f"checkpoint={checkpoint}", f"data={root}"]) == 2
    complaint = capsys.readouterr().err
    assert "split 1: 1 clip(s) to test on were cut from the same video as clips to train on" in complaint
    assert "Archery/v_Archery_g01_c01 and Archery/v_Archery_g01_c02" in complaint
    for file, text in zip(lists, official, strict=True):
        file.write_text(text)
    shutil.copy(root / "Diving" / "v_Diving_g03_c01.avi", root / "Diving" / "v_Diving_g01_c01.avi")
    data = load_labelled(root)
    with pytest.raises(DataError, match=r"split 1: 1 clip.*are the same bytes"):
        check_disjoint(data, data.splits[0])
    check_disjoint(data, data.splits[1])  # both are to be trained on
    sounds = load_labelled(esc)
    for split in sounds.splits:
        check_disjoint(sounds, split)
    with pytest.raises(DataError, match="are of the same file"):
        check_disjoint(sounds, Split("9", [0, 1, 2], [2, 3]))


def test_what_cannot_be_probed(ucf: Path, checkpoint: Path, tmp_path: Path, capsys) -> None:
    def complaint(*options: str) -> str:
        assert main(["probe", f"checkpoint={checkpoint}", *options]) == 2
        return capsys.readouterr().err

    assert "data= is missing: a labelled data set" in complaint()
    assert "split=7: no such split; the data have 1, 2" in complaint(f"data={ucf}", "split=7")
    assert "windows=0 must be at least 1" in complaint(f"data={ucf}", "windows=0")
    assert "none of the 24 clips could be read" in complaint(f"data={ucf}", "modality=audio")
    for name, label in (("a", "x|y"), ("b", "x")):
        media.write_avi(tmp_path / f"{name}.avi", np.full((4, 48, 48, 3), len(label), np.uint8))
    (tmp_path / "m.csv").write_text("video,label,split\na.avi,x|y,train\nb.avi,x,test\n")
    assert "the clip a has 2 labels: probe needs exactly one for each clip" in complaint(f"data={tmp_path / 'm.csv'}")
    (tmp_path / "m.csv").write_text("video,label,split\na.avi,x,train\nb.avi,x,test\n")
    assert "1 of 1 class(es) are to train on and 1 to test on" in complaint(f"data={tmp_path / 'm.csv'}")
