"""Labelled data sets in their official formats: what is read, and what a person is told about lists that are wrong."""

import json
from pathlib import Path

import numpy as np
import pytest

from recipes.data.decode import open_clip
from recipes.data.index import load_index
from recipes.data.labels import Split, load_labelled
from tests.recipes import media

PICTURES = np.zeros((4, 32, 48, 3), np.uint8)


def clips(root: Path, *names: str) -> None:
    for name in names:
        media.write_avi(root / name, PICTURES)


def ucf(root: Path) -> Path:
    lists = root / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_bytes(b"1 Archery\r\n2 BabyCrawling\r\n")
    (lists / "trainlist01.txt").write_text(
        "Archery/v_Archery_g08_c01.avi 1\nBabyCrawling/v_BabyCrawling_g09_c01.avi 2\n"
    )
    (lists / "testlist01.txt").write_text("Archery/v_Archery_g01_c02.avi\nBabyCrawling/v_BabyCrawling_g01_c01.avi\n")
    (lists / "trainlist02.txt").write_text("Archery/v_Archery_g01_c02.avi 1\n")
    (lists / "testlist02.txt").write_text("Archery/v_Archery_g08_c01.avi\n")
    clips(root / "UCF-101", "Archery/v_Archery_g08_c01.avi", "Archery/v_Archery_g01_c02.avi")
    clips(root / "UCF-101", "BabyCrawling/v_BabyCrawling_g09_c01.avi", "BabyCrawling/v_BabyCrawling_g01_c01.avi")
    return root


def hmdb(root: Path) -> Path:
    lists = root / "testTrainMulti_7030_splits"
    lists.mkdir(parents=True)
    wave, clap = "A_Beautiful_Mind_(x)_wave_u_cm_np1_fr_med_7.avi", "#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi"
    for split, (first, second, third) in enumerate(["122", "211", "012"], 1):
        (lists / f"clap_test_split{split}.txt").write_text(f"{clap} {first} \nother.avi {second} \n")
        (lists / f"wave_test_split{split}.txt").write_text(f"{wave} {third} \n")
    clips(root / "hmdb51_org", f"clap/{clap}", "clap/other.avi", f"wave/{wave}")
    return root


def esc(root: Path, folds: int = 5) -> Path:
    (root / "meta").mkdir(parents=True)
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, folds + 1):
        for target, category in ((0, "dog"), (36, "vacuum_cleaner")):
            name = f"{fold}-10{fold}{target}-A-{target}.wav"
            media.write_wav(root / "audio" / name, np.full(2205, 0.1 * fold))
            lines.append(f"{name},{fold},{target},{category},{target == 0},10{fold}{target},A")
    (root / "meta" / "esc50.csv").write_text("\n".join(lines) + "\n")
    return root


def test_ucf101(tmp_path: Path) -> None:
    data = load_labelled(ucf(tmp_path))
    assert data.names == ["Archery", "BabyCrawling"]
    by_id = dict(zip(data.index["id"], range(4), strict=True))
    test, train = by_id["Archery/v_Archery_g01_c02"], by_id["Archery/v_Archery_g08_c01"]
    crawl_test, crawl = by_id["BabyCrawling/v_BabyCrawling_g01_c01"], by_id["BabyCrawling/v_BabyCrawling_g09_c01"]
    assert [data.labels[i] for i in (test, train, crawl_test, crawl)] == [[0], [0], [1], [1]]
    assert data.splits == [
        Split("1", sorted([train, crawl]), sorted([test, crawl_test])),
        Split("2", [test], [train]),
    ]
    assert data.sources[test] == "Archery/v_Archery_g01"
    assert load_index(tmp_path).to_list() == data.index.to_list()
    with open_clip(data.index["video"][test]) as clip:
        assert clip.window(0.0, 2, 25.0, 8000, 800, None).video.shape == (2, 32, 48, 3)


def test_hmdb51(tmp_path: Path) -> None:
    data = load_labelled(hmdb(tmp_path))
    assert data.names == ["clap", "wave"]
    assert data.index["id"][0] == "clap/#20_Rhythm_clap_u_nm_np1_fr_goo_0"
    assert data.labels == [[0], [0], [1]]
    assert data.splits == [Split("1", [0], [1, 2]), Split("2", [1, 2], [0]), Split("3", [1], [2])]


def test_esc50(tmp_path: Path) -> None:
    data = load_labelled(esc(tmp_path))
    assert data.names == ["dog", "vacuum_cleaner"]
    assert data.labels == [[0], [1]] * 5
    assert [split.name for split in data.splits] == ["1", "2", "3", "4", "5"]
    for number, split in enumerate(data.splits):
        assert split.test == [2 * number, 2 * number + 1]
        assert sorted(split.train + split.test) == list(range(10))
    assert data.sources[0] == "1010"
    with open_clip(data.index["video"][2]) as clip:
        sound = clip.sound(0.0, 44_100, 2205)
    assert sound == pytest.approx(np.full(2205, 0.2), abs=1e-3)


def test_a_labelled_manifest_has_folds_or_a_split(tmp_path: Path) -> None:
    clips(tmp_path, "a.avi", "b.avi", "c.avi")
    rows = [{"video": f"{name}.avi", "label": label} for name, label in zip("abc", ["x|y", ["y"], "z"], strict=True)]
    file = tmp_path / "m.jsonl"

    def load(**columns: list[object]) -> list[Split]:
        lines = (row | {name: values[i] for name, values in columns.items()} for i, row in enumerate(rows))
        file.write_text("\n".join(map(json.dumps, lines)))
        data = load_labelled(file)
        assert data.names == ["x", "y", "z"]
        assert data.labels == [[0, 1], [1], [2]]
        return data.splits

    assert load(split=["train", "test", "val"]) == [Split("test", [0], [1])]
    assert load(fold=[1, 2, 1]) == [Split("1", [1], [0, 2]), Split("2", [0, 2], [1])]
    assert load_index(file)["narrations"][:] == [[], [], []]  # a label is enough where there is no text
    with pytest.raises(ValueError, match=r"m\.jsonl, line 3: expected a 'fold', as other rows have one; found none"):
        load(fold=[1, 2, None])
    with pytest.raises(ValueError, match="what is to be tested on"):
        load()
    with pytest.raises(ValueError, match=r"split test: 3 clip\(s\) to train on and 0 to test on"):
        load(split=["train"] * 3)
    (tmp_path / "m.csv").write_text("video,label,split\na.avi,x|y,train\nb.avi,y,test\nc.avi,,test\n")
    with pytest.raises(ValueError, match=r"m\.csv, line 4: expected 'label' to be the name of a class"):
        load_labelled(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text("video,label,split\na.avi,x|y,train\nb.avi,y,test\n")
    assert load_labelled(tmp_path / "m.csv").labels == [[0, 1], [1]]


def test_files_that_are_missing_are_counted_and_without_any_nothing_begins(tmp_path: Path) -> None:
    videos = sorted((ucf(tmp_path) / "UCF-101").glob("*/*.avi"))
    extra = "Archery/v_Archery_g25_c07.avi 1\n"
    lists = tmp_path / "ucfTrainTestlist"
    (lists / "trainlist01.txt").write_text((lists / "trainlist01.txt").read_text() + extra)
    with pytest.warns(UserWarning, match="1 of 5 clips have no file; left out"):
        assert len(load_labelled(tmp_path).index) == 4
    for video in videos:
        video.unlink()
    with pytest.raises(FileNotFoundError, match="not one of the 5 files in its lists is here; the first would be"):
        load_labelled(tmp_path)


@pytest.mark.parametrize(
    ("make", "file", "line", "complaint"),
    [
        (ucf, "ucfTrainTestlist/classInd.txt", "Archery", "line 3: expected a number and the name of a class"),
        (ucf, "ucfTrainTestlist/trainlist01.txt", "v_Archery_g08_c01.avi 1", "line 3: expected Class/file.avi"),
        (ucf, "ucfTrainTestlist/testlist01.txt", "Bowling/v.avi", "line 3: expected a class of classInd.txt"),
        (hmdb, "testTrainMulti_7030_splits/clap_test_split1.txt", "x.avi 3 ", "line 3: expected a file and 0"),
        (esc, "meta/esc50.csv", "a.wav,one,0,dog,True,1,A", "line 12: expected a file, the numbers of its fold"),
        (esc, "meta/esc50.csv", "a.wav,1,0,cat,True,1,A", "line 12: class 0 is 'cat' here, 'dog' above"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, make, file: str, line: str, complaint: str) -> None:
    path = make(tmp_path) / file
    path.write_text(path.read_text().rstrip("\n") + f"\n{line}\n")
    with pytest.raises(ValueError, match=f"{path.name}, {complaint}"):
        load_labelled(tmp_path)


def test_no_layout_says_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a folder with one of classInd\.txt, testTrain.*, meta/esc50\.csv"):
        load_labelled(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is nothing here"):
        load_labelled(tmp_path / "none")
