"""Scoring on real mp4 files: numbers against brute force, kills, several processes, bad clips, the kept manifest."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.data import vocabulary
from recipes.data.clips import Clip, NarratedClips, collate
from recipes.data.index import load_index
from recipes.evaluation.parts import Parts
from recipes.model.build import build, model_inputs
from recipes.pretrain import pretrain
from recipes.score import cut, main
from recipes.scoring import table
from recipes.scoring.keep import write_kept
from recipes.scoring.measure import Reading, measure
from recipes.scoring.order import shuffled
from recipes.splits import held_out, train_and_test
from recipes.training import checkpoint
from tests.recipes import media

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Here as in the processes that tests start: rounding depends on it."""
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """A tiny run, trained once."""
    from recipes import config as configuration
    from tests.recipes.conftest import DEMO, TINY

    where = [f"run.dir={tmp_path_factory.mktemp('scored')}", f"data.manifest={corpus}"]
    config = configuration.load(DEMO, [*TINY, *where, f"data.test={corpus / 'test.jsonl'}"])
    pretrain(config)
    return config


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A manifest of four videos with two narrations each, one without text, one without sound, and a broken one."""
    folder = tmp_path_factory.mktemp("videos")
    rows = []
    for i in range(7):
        path = media.write(folder / f"{i}.mp4", seconds=3.0, fps=5, size=(64, 48), audio=i != 5)
        texts = [] if i == 4 else ["a red ring", f"the blue disc {i}"]
        rows.append(
            {"video": path.name, "narrations": [{"start": j, "end": j + 1, "text": t} for j, t in enumerate(texts)]}
        )
    media.truncate(folder / "6.mp4", 0.3)
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "m.jsonl"


def command(run, out, **keys):
    """The key=value of a scoring in batches of three."""
    keys = {"checkpoint": run.folder, "out": out, "batch_size": 3} | keys
    return [f"{key}={value}" for key, value in keys.items()]


def scored(run, out, **keys):
    assert main(command(run, out, **keys)) == 0
    return pq.read_table(out)


def loaded(run):
    folder = checkpoint.latest(run.folder)
    tokenizer = vocabulary.load(folder / "vocabulary.json")
    modules = build(run, tokenizer)
    checkpoint.load_weights(folder, modules)
    return modules.eval(), tokenizer


def test_a_row_for_each_clip_and_nulls_where_there_is_nothing_to_measure(run, videos, tmp_path, capsys):
    rows = scored(run, tmp_path / "s.parquet", data=videos).to_pylist()
    assert sorted(row["clip"] for row in rows) == list(range(13))
    by_clip = {row["clip"]: row for row in rows}
    assert [(by_clip[c]["id"], by_clip[c]["narration"]) for c in (0, 1, 8, 9, 11)] == [
        ("0", 0), ("0", 1), ("4", -1), ("5", 0), ("6", 0),
    ]  # fmt: skip
    assert by_clip[1]["caption"] == "the blue disc 0" and by_clip[8]["caption"] == ""
    assert all(by_clip[c]["end"] - by_clip[c]["start"] == pytest.approx(0.8) for c in range(11))
    assert all(-1 <= by_clip[c]["cosine"] <= 1 and by_clip[c]["norm_vt"] > 0 for c in range(8))
    assert by_clip[8]["cosine"] is None and by_clip[8]["loss_vt"] is None and by_clip[8]["loss_va"] > 0
    assert by_clip[9]["cosine"] is None and by_clip[9]["similarity_va"] is None and by_clip[9]["loss_vt"] > 0
    assert all(by_clip[c]["error"] and by_clip[c]["loss_va"] is None for c in (11, 12))
    assert "13 clips, 8 with a cosine, 2 not readable" in capsys.readouterr().out
    facts = table.facts_of(tmp_path / "s.parquet")
    assert facts["step"] == run.train.steps and facts["wrt"] == r"^backbone\."


READINGS = [
    Reading(),
    Reading(wrt=r"layers\.1\."),
    Reading(wrt="last_block"),
    Reading(wrt="last_projection"),
    Reading("loss"),
    Reading("anchor", chunk_size=2),
]
PATTERNS = {"last_block": r"^backbone\.layers\.1\.", "last_projection": r"^backbone\.layers\.1\.mlp\.2\.weight$"}


@pytest.mark.parametrize("reading", READINGS)
def test_the_cosines_are_those_of_brute_force(run, corpus, reading):
    modules, tokenizer = loaded(run)
    clips = NarratedClips(load_index(corpus), tokenizer, run.clip)
    batch = [item for clip in range(5) if isinstance(item := clips[clip, 0], Clip)]
    found = measure(modules, batch, reading)

    modules.double()
    model, objective = modules["model"], modules["objective"]
    inputs = model_inputs(collate(batch), torch.device("cpu"))
    inputs["audio"] = inputs["audio"].double()
    pattern = PATTERNS.get(reading.wrt, reading.wrt)
    weights = [p for name, p in model.named_parameters() if re.search(pattern, name)]

    def gradient(scalar, through):
        return torch.autograd.grad(scalar, through, retain_graph=True, allow_unused=True, materialize_grads=True)

    embeddings = model(**inputs)
    leaves = [embeddings[name] for name in ("video", "audio", "text")]
    losses = list(objective(embeddings).values())
    for b in range(len(batch)):
        gradients = []
        for terms in losses:
            scalar = terms.mean() if reading.attribution == "activation" else terms[b] / len(batch)
            if reading.attribution != "loss":  # through this clip's own encoder alone
                by_leaf = gradient(scalar, leaves)
                scalar = sum((leaf[b] * g[b].detach()).sum() for leaf, g in zip(leaves, by_leaf, strict=True))
            gradients.append(torch.cat([g.flatten() for g in gradient(scalar, weights)]))
        va, vt = gradients
        assert found["cosine"][b] == pytest.approx(float(va @ vt / va.norm() / vt.norm()), abs=2e-5)
        assert found["norm_vt"][b] == pytest.approx(float(vt.norm()) * len(batch), rel=2e-4)
    assert found["loss_va"] == pytest.approx(losses[0].detach().numpy(), rel=1e-4)


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_table(run, corpus, tmp_path):
    whole = scored(run, tmp_path / "whole.parquet", data=corpus, iterations=2)
    out = tmp_path / "torn.parquet"
    parts = tmp_path / ".torn.parquet.parts"
    arguments = command(run, out, data=corpus, iterations=2)
    process = subprocess.Popen(
        [sys.executable, "-m", "recipes.score", *arguments], env=ENVIRONMENT, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not list(parts.glob("part-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert process.returncode == -signal.SIGKILL and not out.exists(), "it was done before it could be killed"
    done = {p.name: p.stat().st_mtime_ns for p in parts.glob("part-*")}
    assert done and (parts / "tuned.safetensors").exists()

    (parts / ".7.123.tmp").write_bytes(b"half a part")  # what a kill within a write leaves
    joined = scored(run, out, data=corpus, iterations=2)
    assert joined.equals(whole) and joined.schema.metadata == whole.schema.metadata
    assert sorted(joined["clip"].to_pylist()) == list(range(len(joined)))
    assert not parts.exists()


def test_parts_that_are_there_are_not_measured_again(run, corpus, tmp_path, monkeypatch, capsys):
    from recipes import score as recipe

    whole = scored(run, tmp_path / "whole.parquet", data=corpus)
    calls = []

    def failing(*arguments):
        calls.append(arguments[2])
        if len(calls) == 2:
            raise OSError("disk full")
        return measured_rows(*arguments)

    measured_rows = recipe.measured_rows
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "measured_rows", failing)
        arguments = command(run, tmp_path / "torn.parquet", data=corpus)
        assert main(arguments) == 2
        assert main([*arguments, "--dry-run"]) == 0
        assert "1 of 2 pools are scored already" in capsys.readouterr().out
        calls.clear()
        calls.extend([None, None])
        assert main(arguments) == 0
    assert calls[2:] == list(range(1, len(cut(len(whole), 12))))
    assert pq.read_table(tmp_path / "torn.parquet").equals(whole)


@pytest.mark.slow
def test_two_processes_write_the_same_table_as_one(run, corpus, tmp_path):
    for name, launcher in {
        "one": [],
        "two": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    }.items():
        arguments = command(run, tmp_path / f"{name}.parquet", data=corpus, iterations=1)
        process = [sys.executable, *launcher, "-m", "recipes.score", *arguments]
        done = subprocess.run(process, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("with a cosine") == 1
    assert pq.read_table(tmp_path / "two.parquet").equals(pq.read_table(tmp_path / "one.parquet"))


def test_draws_are_averaged_and_mates_matter(run, corpus, tmp_path):
    one = scored(run, tmp_path / "1.parquet", data=corpus).sort_by("clip")
    many = scored(run, tmp_path / "8.parquet", data=corpus, draws=8).sort_by("clip")
    other = scored(run, tmp_path / "s.parquet", data=corpus, seed=1).sort_by("clip")
    cosines = [np.array(t["cosine"].to_pylist(), float) for t in (one, many, other)]
    assert np.nanstd(cosines[1]) < np.nanstd(cosines[0])
    assert not np.allclose(cosines[0], cosines[2], equal_nan=True)
    assert one["similarity_vt"].to_pylist() == pytest.approx(many["similarity_vt"].to_pylist(), abs=1e-5, nan_ok=True)


def test_windows_are_spread_over_the_narration_and_averaged(run, corpus, tmp_path):
    one, three = (
        {r["clip"]: r for r in scored(run, tmp_path / f"{n}.parquet", data=corpus, windows=n).to_pylist()}
        for n in (1, 3)
    )
    _, tokenizer = loaded(run)
    index = load_index(corpus)
    clips, middle = NarratedClips(index, tokenizer, run.clip, windows=3), NarratedClips(index, tokenizer, run.clip)
    video, position = clips.place(1)
    narration = video["narrations"][position]
    length = narration["end"] - narration["start"]
    seen = [clips[1, window] for window in range(3)]
    expected = [narration["start"] + share * length - run.clip.seconds / 2 for share in (1 / 6, 1 / 2, 5 / 6)]
    assert [item.start for item in seen] == pytest.approx(expected)
    assert seen[1].start == middle[1, 0].start == one[1]["start"]
    assert (three[1]["start"], three[1]["end"]) == pytest.approx((seen[0].start, seen[2].start + run.clip.seconds))

    modules, _ = loaded(run)
    everything = [[clips[c, window] for c in range(len(clips))] for window in range(3)]
    by_window = [measure(modules, batch, Reading())["similarity_vt"] for batch in everything]
    found = [three[c]["similarity_vt"] for c in range(len(clips))]
    assert found == pytest.approx(np.mean(by_window, axis=0), abs=1e-5)  # mates do not matter to a similarity


def test_another_scoring_is_not_mixed_in(run, corpus, tmp_path, capsys):
    out = tmp_path / "s.parquet"
    before = scored(run, out, data=corpus)
    assert main(command(run, out, data=corpus, seed=5)) == 2
    assert "holds another scoring" in capsys.readouterr().err
    assert pq.read_table(out).equals(before)
    assert main(command(run, out, data=corpus)) == 0  # the same again: nothing to do
    Parts(tmp_path / "t.parquet", table.SCHEMA, {"seed": 1}, []).begin()  # killed before its first part
    assert main(command(run, tmp_path / "t.parquet", data=corpus)) == 2
    assert "what another command began" in capsys.readouterr().err


def test_a_narration_after_the_end_of_its_video_is_not_scored(run, videos, tmp_path):
    narrations = [{"start": 1, "end": 2, "text": "a ring"}, {"start": 9, "end": 10, "text": "a disc"}]
    late = {"video": "0.mp4", "narrations": narrations}
    manifest = videos.with_name("late.jsonl")
    manifest.write_text(json.dumps(late) + "\n")
    rows = {r["narration"]: r for r in scored(run, tmp_path / "s.parquet", data=manifest).to_pylist()}
    assert rows[0]["error"] is None and "outside of the clip" in rows[1]["error"]


def test_a_damaged_checkpoint_is_said(run, tmp_path, capsys):
    folder = shutil.copytree(checkpoint.latest(run.folder), tmp_path / "damaged")
    [file] = (folder / checkpoint.TENSORS).iterdir()
    media.truncate(file, 0.5)
    assert main(command(run, tmp_path / "s.parquet", checkpoint=folder)) == 2
    assert "tensors: damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"wrt": "nothing"}, "matches no parameter"),
        ({"wrt": "("}, "not a regular expression"),
        ({"data": "nowhere.jsonl"}, "there is nothing here"),
        ({"split": "validation"}, "train or test"),
        ({"checkpoint": "nowhere"}, "no checkpoint here"),
        ({"iterations": -1, "batch_size": 1, "draws": 0, "windows": 0}, "batch_size=1 must be at least 2"),
        ({"chunk_size": 0}, "chunk_size=0 must be at least 1"),
        ({"keep": 0}, "keep=0.0 must be more than 0"),
        ({"keep": 1.1}, "keep=1.1 must be at most 1"),
        ({"keep_by": "norm_va"}, "keep_by"),
    ],
)
def test_what_cannot_be_scored_is_said(run, tmp_path, capsys, keys, message):
    for flags in ([], ["--dry-run"]):
        assert main([*command(run, tmp_path / "s.parquet", **keys), *flags]) == 2
        assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_dry_run_says_what_would_be_measured_and_writes_nothing(run, corpus, tmp_path, capsys):
    keys = {"data": corpus, "draws": 2, "windows": 3, "keep": 0.5}
    assert main([*command(run, tmp_path / "s.parquet", **keys), "--dry-run"]) == 0
    plan = capsys.readouterr().out
    clips = sum(max(len(row["narrations"]), 1) for row in load_index(corpus))
    assert f"{clips} clips of {corpus}, in {len(cut(clips, 12))} pool(s)" in plan
    assert "2 draw(s) of mates x 3 window(s)" in plan and "s.kept.jsonl" in plan
    assert main([*command(run, Path(__file__) / "s.parquet", **keys), "--dry-run"]) == 2
    assert "no folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------------------- keep
def test_the_kept_manifest_holds_the_best_and_trains(run, videos, tiny, tmp_path, capsys):
    rows = scored(run, tmp_path / "s.parquet", data=videos, keep=0.5).to_pylist()
    kept = load_index(tmp_path / "s.kept.jsonl")
    cosines = {(r["id"], r["caption"]): r["cosine"] for r in rows}
    there = {(row["id"], n["text"]) for row in kept for n in row["narrations"]}
    measured = sorted((k for k, c in cosines.items() if c is not None), key=cosines.get)
    assert {k for k in there if cosines[k] is not None} == set(measured[4:])
    assert {("5", "a red ring"), ("5", "the blue disc 5")} <= there and "4" in kept["id"]  # nothing speaks against them
    assert "6" not in kept["id"]  # cannot be read
    assert "data.manifest=" in capsys.readouterr().out
    config = tiny(f"data.manifest={tmp_path / 's.kept.jsonl'}", "train.batch_size=2", "run.name=kept")
    assert pretrain(config)["trained"]["text->video"]["pairs"] > 0


def test_by_a_loss_the_small_ones_are_kept_and_all_of_one(run, videos, tmp_path):
    rows = scored(run, tmp_path / "s.parquet", data=videos, keep=0.4, keep_by="loss_vt").to_pylist()
    losses = {(r["id"], r["caption"]): r["loss_vt"] for r in rows if r["loss_vt"] is not None}
    kept = {(row["id"], n["text"]) for row in load_index(tmp_path / "s.kept.jsonl") for n in row["narrations"]}
    assert kept == set(sorted(losses, key=losses.get)[:4])
    scored(run, tmp_path / "s.parquet", data=videos, keep=1)
    assert sum(len(row["narrations"]) for row in load_index(tmp_path / "s.kept.jsonl")) == 10


def test_a_text_over_the_whole_clip_stays_one(run, videos, tmp_path):
    manifest = videos.with_name("whole.jsonl")
    manifest.write_text(
        "".join(json.dumps({"video": f"{i}.mp4", "text": f"a ring {i}", "split": "train"}) + "\n" for i in range(4))
    )
    scored(run, tmp_path / "s.parquet", data=manifest, keep=0.25)
    kept = load_index(tmp_path / "s.kept.jsonl", "train")
    assert len(kept) == 1 and all(row["narrations"][0]["end"] == math.inf for row in kept)


def test_what_is_held_out_is_carried_unchanged_and_tested_on_again(run, videos, tiny, tmp_path):
    """Rows without splits: the tenth that a hash held out is the same from the manifest of kept clips."""
    rows = [{"video": str(videos.with_name(f"{i % 6}.mp4")), "id": f"c{i}", "group": f"film {i}"} for i in range(24)]
    rows = [row | {"start": 0.1 * i, "text": f"a ring {i}"} for i, row in enumerate(rows)]
    for row in rows:  # a file for each, else they are one video
        row["video"] = str(shutil.copy(row["video"], tmp_path / f"{row['id']}.mp4"))
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = train_and_test(tiny(f"data.manifest={manifest}", "data.test=null"))
    kept, table_of = tmp_path / "deep" / "s.kept.jsonl", tmp_path / "deep" / "s.parquet"
    pq.write_table(pa.Table.from_pylist([_scored(i) for i in range(24)]), _made(table_of))
    write_kept(table_of, load_index(manifest), 0.5, "cosine", kept, held_out(str(manifest), True))
    after = train_and_test(tiny(f"data.manifest={kept}", "data.test=null"))
    same = [row | {"split": "", "video": os.path.realpath(row["video"])} for row in after.test.to_list()]
    assert len(before.test) and same == before.test.to_list()
    assert 0 < len(after.train) < len(before.train) and set(after.train["id"]) < set(before.train["id"])


def _scored(clip):
    return {"clip": clip, "cosine": clip / 24, "error": None}


def _made(path):
    path.parent.mkdir()
    return path


# --------------------------------------------------------------------------------------------------------------- parts
@given(number=st.integers(1, 3000), seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_the_order_is_a_permutation(number, seed):
    assert sorted(shuffled(np.arange(number), number, seed)) == list(range(number))


def test_the_order_is_random():
    first = [int(shuffled(np.array([0]), 10, seed)[0]) for seed in range(2000)]
    assert (np.bincount(first, minlength=10) > 130).all()  # 200 expected, deviation 13
    order = shuffled(np.arange(10_000), 10_000, 0)
    assert abs(np.corrcoef(np.arange(10_000), order)[0, 1]) < 0.05


@given(number=st.integers(1, 5000), size=st.integers(2, 300))
def test_pools_cover_everything_and_none_is_small(number, size):
    pools = cut(number, size)
    assert [i for pool in pools for i in pool] == list(range(number))
    assert len(pools) == 1 or min(map(len, pools)) >= size
    assert max(map(len, pools)) < 2 * size


@given(
    values=st.lists(
        st.one_of(st.none(), st.floats(-1, 1, width=32), st.sampled_from([0.0, 0.5])), min_size=1, max_size=60
    ),
    share=st.floats(0, 1),
    sign=st.sampled_from([1, -1]),
)
@settings(deadline=None)
def test_quantiles_are_exact(tmp_path_factory, values, share, sign):
    path = tmp_path_factory.mktemp("q") / "t.parquet"
    columns = {n: [None] * len(values) for n in table.SCHEMA.names} | {"cosine": values}
    pq.write_table(pa.table(columns, schema=table.SCHEMA), path, row_group_size=7)
    there = sorted(sign * v for v in values if v is not None)
    if not there:
        with pytest.raises(ValueError, match="no clip has a cosine"):
            table.quantile(path, "cosine", share, sign)
        return
    q = table.quantile(path, "cosine", share, sign)
    assert q in there
    rank = max(math.ceil(share * len(there)), 1)
    assert sum(v <= q for v in there) >= rank > sum(v < q for v in there)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data_set(run):
    _, tokenizer = loaded(run)

    def peak(number: int) -> int:
        rows = [
            {"id": str(i), "video": "x.mp4", "split": "", "narrations": [{"start": 0.0, "end": 1.0, "text": "a"}] * 3}
            for i in range(number)
        ]
        index = Dataset.from_list(rows)
        del rows
        tracemalloc.start()
        clips = NarratedClips(index, tokenizer, run.clip)
        assert len(clips) == 3 * number and clips.place(3 * number - 1)[1] == 2
        shuffled(np.arange(256), len(clips), 0)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(100)
    assert peak(40_000) < peak(10_000) + 2**20


def test_a_table_of_something_else_is_refused(tmp_path):
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"lacks column\(s\) clip, video"):
        table.facts_of(tmp_path / "x.parquet")
    (tmp_path / "y.parquet").write_text("no")
    with pytest.raises(ValueError, match="not a Parquet file"):
        table.facts_of(Path(tmp_path / "y.parquet"))
