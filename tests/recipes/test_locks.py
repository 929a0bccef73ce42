"""Locks end with their process and name it; folders in use, foreign or about to be read stay where they are."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.data import pack
from recipes.data.corpus import Corpus, build
from recipes.data.corpus import debian as debian_corpus
from recipes.errors import ConfigError
from recipes.files import check_place, folders, locks
from recipes.pretrain import pretrain
from recipes.splits import corpus_folder
from tests.recipes import media


def test_a_lock_is_held_once_names_its_holder_and_leaves_nothing(tmp_path):
    run = tmp_path / "runs" / "one"
    with locks.hold(run):
        with (
            pytest.raises(locks.Held, match=rf"one is in use by process {os.getpid()} of .*: wait for it"),
            locks.hold(run),
        ):
            raise AssertionError
        with locks.hold(run.with_name("two")):
            pass
        with pytest.raises(locks.Held), locks.hold(run):  # an attempt that failed takes nothing away
            raise AssertionError
    assert list(tmp_path.iterdir()) == []
    with locks.hold(run):
        run.mkdir()
    assert [path.name for path in run.parent.iterdir()] == ["one"]


def test_a_lock_ends_with_its_process(tmp_path):
    code = "import sys, time, pathlib; from recipes.files import locks\nwith locks.hold(pathlib.Path(sys.argv[1])):\n"
    code += " print('held', flush=True); time.sleep(99)"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(locks.Held, match=f"in use by process {holder.pid} of"), locks.hold(tmp_path / "run"):
            raise AssertionError
        os.kill(holder.pid, signal.SIGKILL)
    with locks.hold(tmp_path / "run"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_is_refused_while_another_of_its_name_lives(tiny, resume):
    config = tiny("train.steps=1")
    if resume:
        pretrain(config)
    before = sorted(config.folder.rglob("*"))
    with locks.hold(config.folder), pytest.raises(ConfigError, match=r"run\.name=demo: .* is in use by process"):
        pretrain(config, resume=resume)
    assert sorted(config.folder.rglob("*")) == before and not config.folder.with_name("demo.1").exists()


def test_a_folder_is_built_by_one_process_at_a_time(corpus, tmp_path):
    out = tmp_path / "corpus"
    with locks.hold(out):
        for work in (
            lambda: build(Corpus(out, "narrated", videos=2, test_videos=1, workers=1)),
            lambda: build(Corpus(out, "narrated", videos=2, test_videos=1, workers=1, force=True)),
            lambda: debian_corpus.build(out, root=tmp_path),
        ):
            with pytest.raises(locks.Held):
                work()
        assert pack.main([f"data={corpus}", f"out={out}"]) == 2
    assert list(tmp_path.iterdir()) == []


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_does_not_move_what_is_no_run_or_holds_its_data(tiny, tmp_path):
    place = tmp_path / "runs" / "demo"
    place.mkdir(parents=True)
    videos = [media.write(place / f"{i}.mp4", seconds=1, size=(48, 48)).name for i in range(3)]
    lines = [
        f'{{"video": "{place / name}", "text": "a", "split": "{"test" if not i else "train"}"}}\n'
        for i, name in enumerate(videos)
    ]
    (place / "manifest.jsonl").write_text("".join(lines))
    elsewhere = tmp_path / "manifest.jsonl"
    elsewhere.write_text("".join(lines))
    vectors = place / "vectors.txt"
    vectors.write_text("a 1 2\n")
    procedural = ["data.manifest=null", f"corpus.dir={tmp_path / 'runs'}"]
    name = corpus_folder(tiny(*procedural).corpus).name
    for message, marked, overrides in [
        ("which is to be read", False, [f"data.manifest={place}", "data.test=null"]),
        ("which is to be read", True, [f"data.manifest={place / 'manifest.jsonl'}", "data.test=null"]),
        ("which is to be read", True, [f"data.manifest={elsewhere}", "data.test=null"]),
        ("which is to be read", True, [f"data.word_vectors={vectors}"]),
        ("which is to be read", True, ["data.manifest=null", f"data.sources.a.manifest={place}"]),
        ("it has no config.yaml", False, []),
        ("which is to be read", False, [*procedural, f"run.name={name}"]),
    ]:
        (place / "config.yaml").unlink(missing_ok=True)
        if marked:
            (place / "config.yaml").write_text("")
        before = snapshot(tmp_path)
        with pytest.raises(ConfigError, match=message):
            pretrain(tiny(*overrides))
        assert snapshot(tmp_path) == before


@pytest.mark.parametrize("mark", ["config.yaml", "split-*", "checkpoints/latest"])
def test_only_folders_of_the_same_kind_are_moved_aside(tmp_path, mark):
    place = tmp_path / "x"
    folders.make(place, mark)
    folders.make(place, mark)  # empty: there was no time to begin
    assert (tmp_path / "x.1").is_dir()
    (place / "videos").mkdir()
    with pytest.raises(FileExistsError, match="cannot be moved aside"):
        folders.make(place, mark)
    file = place / mark.replace("*", "1")
    file.parent.mkdir(exist_ok=True)
    file.touch()
    folders.make(place, mark)
    assert (tmp_path / "x.2" / "videos").is_dir() and list(place.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        folders.make(tmp_path / "file", mark)


def test_a_file_that_could_not_be_written_is_refused_before_the_work(tmp_path):
    check_place(tmp_path / "new" / "deep" / "out.json")
    (tmp_path / "file").touch()
    check_place(tmp_path / "file")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for place in (tmp_path, tmp_path / "file" / "out.json", tmp_path / "nowhere" / "out.json"):
        with pytest.raises(OSError, match="folder"):
            check_place(place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "nowhere"]
