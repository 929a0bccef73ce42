"""Annotations of corpora and benchmarks: each format as it is published, and which row a fact is about.

The rows are written for these tests; only their form is that of the published files.
"""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.figures.command import main as figures
from recipes.scoring import detection, table
from recipes.scoring.truth.fact import Fact
from recipes.scoring.truth.formats import read_truth
from recipes.scoring.truth.matching import match

CORPUS = [
    {"video_id": "v", "text": "a ball", "aligned": True, "sound_aligned": False},
    {"video_id": "v", "text": "a cube", "aligned": False, "sound_aligned": True},
    {"video_id": "w", "text": "a cone", "aligned": True},
]
HTM_ALIGN = {
    "Qm3xT0aaaaE": [[0, 1.5, 4.25, "hello and welcome"], [1, 12.0, 15.5, "peel  the carrots"], [0, 20, 22, "so"]],
    "b7-_kZaaaaI": [[1, 3.0, 4.0, "so"], [0, 60.0, 61.0, "so"]],
}
VGGSOUNDER = """\
video_id,label,modality,background_music,static_image,voice_over
aaaaaaaaaaA_000030,"dog barking, loudly",AV,False,False,False
aaaaaaaaaaA_000030,rain,A,False,False,False
aaaaaaaaaaE_000001,playing harp,A,False,True,False
aaaaaaaaaaE_000001,people crowd,V,False,True,False
aaaaaaaaaaI_000120,playing drums,AV,True,False,False
aaaaaaaaaaM_000007,wind,A,False,False,False
"""
AVID = [
    {
        "qa_id": "neg_abc_0",
        "video_path": "test_segments/negative/abc_0.mp4",
        "ground_truth": {"exists": "Yes", "injection_type": "LIP_SYNC", "inconsistency_point": "another voice"},
    },
    {
        "qa_id": "pos_abc_0",
        "video_path": "test_segments/positive/abc_0.mp4",
        "ground_truth": {"exists": "No", "injection_type": "", "inconsistency_point": ""},
    },
    {
        "qa_id": "neg_full_xyz",
        "video_path": "test/xyz_injected.mp4",
        "ground_truth": {
            "exists": "Yes",
            "inconsistencies": [
                {"time_range": "from 0.0s to 10.2s", "injection_type": "EMOTION_MISMATCH", "inconsistency_point": "x"},
                {"time_range": "from 18.6s to 38.6s", "injection_type": "BACKGROUND_SOUND", "inconsistency_point": "y"},
            ],
        },
    },
]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """Intervals are tested elsewhere."""
    monkeypatch.setattr(detection, "RESAMPLES", 10)


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def row(name, caption="", start=0.0, end=1.0, narration=0, **values):
    figures = dict.fromkeys(("cosine", "norm_va", "norm_vt", "loss_va", "loss_vt", "similarity_va", "similarity_vt"))
    return {
        "clip": 0, "id": name, "video": f"/videos/{name}.mp4", "narration": narration, "caption": caption,
        "start": start, "end": end, **figures, "error": None, **values,
    }  # fmt: skip


def scores(folder, *rows):
    pq.write_table(pa.Table.from_pylist(list(rows), schema=table.SCHEMA), folder / "scores.parquet")
    return folder / "scores.parquet"


def written(folder, text):
    (folder / "annotation").write_text(text)  # the name says nothing
    return folder / "annotation"


def test_the_truth_of_a_corpus_speaks_of_texts_and_of_sounds(tmp_path):
    facts = read_truth(written(tmp_path, lines(CORPUS)))
    assert [(f.video, f.position, f.text, f.aligned) for f in facts["video-text"]] == [
        ("v", 0, "a ball", True), ("v", 1, "a cube", False), ("w", 0, "a cone", True)
    ]  # fmt: skip
    assert [(f.video, f.position, f.aligned) for f in facts["video-audio"]] == [("v", 0, False), ("v", 1, True)]
    assert list(read_truth(written(tmp_path, lines(CORPUS[2:])))) == ["video-text"]


@pytest.mark.parametrize("indent", [None, 1])
def test_htm_align_says_which_sentences_are_shown(tmp_path, indent):
    facts = read_truth(written(tmp_path, json.dumps(HTM_ALIGN, indent=indent)))
    assert list(facts) == ["video-text"]
    assert facts["video-text"][1] == Fact("video-text", "Qm3xT0aaaaE", True, None, "peel  the carrots", (12.0, 15.5))
    assert [fact.aligned for fact in facts["video-text"]] == [False, True, False, True, False]


def test_vggsounder_leaves_open_what_is_heard_and_seen_beside_a_mark(tmp_path):
    facts = read_truth(written(tmp_path, VGGSOUNDER))
    assert {fact.video: fact.aligned for fact in facts["video-audio"]} == {
        "aaaaaaaaaaA_000030": True,
        "aaaaaaaaaaE_000001": False,  # one thing is heard, another seen
        "aaaaaaaaaaI_000120": None,  # drums under music
        "aaaaaaaaaaM_000007": False,
    }


def test_avid_speaks_of_segments_and_of_times_of_whole_videos(tmp_path):
    facts = read_truth(written(tmp_path, lines(AVID)))["video-audio"]
    rows = [
        row("test_segments/negative/abc_0"),
        row("abc_0", video="/data/test_segments/positive/abc_0.mp4"),
        row("xyz", start=4.0, end=6.0, video="/data/test/xyz_injected.mp4"),
        row("xyz", start=10.0, end=14.0, video="/data/test/xyz_injected.mp4"),
        row("abc_0", video="/elsewhere/abc_0.mp4"),
    ]
    aligned = [None if place is None else facts[place].aligned for place in match(rows, facts)]
    assert aligned == [False, True, False, True, None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"begins with ''; expected one of\n.*truth.jsonl.*\n.*HTM-Align.*\n.*VGGSounder.*\n.*AVID"),
        ("a,b\n1,2\n", r"begins with 'a,b'; expected one of"),
        ('{"x": 1}\n', "expected one of"),
        ('{"video_id": "v", "text": "t"}\n', r"line 1: expected .*aligned \(bool\)"),
        (lines([CORPUS[0] | {"sound_aligned": "yes"}]), "expected sound_aligned of v to be true or false; found 'yes'"),
        (json.dumps(HTM_ALIGN)[:90], "not JSON, or cut off"),
        ('{"v": [[2, 0.0, 1.0, "x"]]}', r"sentence 0 of v: expected \[1 or 0, start, end, text\]; found \[2, "),
        ('{"v": [[1, 0.0, 1.0, "x"], [1, 2.0]]}', r"sentence 1 of v: expected .*found \[1, 2\.0\]"),
        ('{"v": [[1, NaN, 1.0, "x"]]}', "sentence 0 of v"),
        (VGGSOUNDER.replace(",V,", ",both,"), r"line 5: expected modality to be A, V, AV.*found 'both'"),
        (VGGSOUNDER.replace("True", "yes"), r"line 4: expected .*True or False; found 'A', 'False', 'yes'"),
        (VGGSOUNDER.replace("voice_over", "voice"), "expected the columns .*there is no voice_over"),
        (VGGSOUNDER.replace("rain", "ra\rin"), "line 3: not CSV"),
        (lines([AVID[0] | {"ground_truth": {"exists": "maybe"}}]), "line 1: expected video_path and ground_truth"),
        (lines([AVID[2]]).replace("from 0.0s", "since 0.0s"), "line 1: expected .*from 0.0s to 7.8s"),
        (lines(AVID[:1]) + "{}\n", "line 2: expected video_path"),
    ],
)
def test_what_is_not_as_the_format_says_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as raised:
        read_truth(written(tmp_path, text))
    assert str(tmp_path / "annotation") in str(raised.value)


@pytest.mark.filterwarnings("ignore:.*not UTF-8")
@given(
    st.sampled_from([lines(CORPUS), json.dumps(HTM_ALIGN), VGGSOUNDER, lines(AVID)]),
    st.floats(0, 1),
    st.integers(0, 40),
    st.sampled_from(["", "null", "[]", "{", '"', "\n", "1e999", "-1", "\0", "\ud800"]),
)
def test_a_damaged_file_is_read_or_refused(tmp_path_factory, text, where, length, instead):
    first = round(where * len(text))
    damaged = text[:first] + instead + text[first + length :]
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_text(damaged, errors="surrogatepass")
    try:
        facts = read_truth(path)
    except ValueError as error:
        assert "damaged" in str(error)
    else:
        for about in facts.values():
            match([row("v", "a ball"), row("Qm3xT0aaaaE", "so")], [fact._replace(position=None) for fact in about])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_truth(tmp_path / "none.json")


def test_sentences_are_matched_by_text_and_the_nearest_time():
    facts = [
        Fact("video-text", "v", True, text="Peel the carrots", span=(12.0, 15.5)),
        Fact("video-text", "v", False, text="so", span=(20.0, 22.0)),
        Fact("video-text", "v", True, text="so", span=(90.0, 92.0)),
    ]
    rows = [
        row("some/folder/v", "so", 80.0, 82.0),
        row("v", "so", 0.0, 2.0),
        row("v", " peel the\tcarrots ", 500.0, 501.0),
        row("v", "something else", 12.0, 15.0),
        row("u", "so", 20.0, 22.0),
        row("v", None, narration=-1),
    ]
    assert match(rows, facts) == [2, 1, 0, None, None, None]


@given(st.lists(st.tuples(st.sampled_from(["a", "x/a", "b"]), st.sampled_from(["s", "t"])), min_size=1), st.randoms())
def test_every_row_gets_its_own_fact_whatever_the_order(names, random):
    """Facts of distinct (video, text, time): each row made from a fact finds that fact."""
    facts = [
        Fact("video-text", name, None, text=text, span=(10.0 * i, 10.0 * i + 1)) for i, (name, text) in enumerate(names)
    ]
    order = random.sample(range(len(facts)), len(facts))
    rows = [row(facts[i].video, facts[i].text.upper(), *facts[i].span) for i in order]
    assert match(rows, facts) == order


def test_the_command_judges_sounds_by_vggsounder_and_counts_what_it_leaves_out(tmp_path, capsys):
    sound = {"loss_va": 1.0, "norm_va": 1.0}
    path = scores(
        tmp_path,
        row("test/aaaaaaaaaaA_000030", similarity_va=0.9, **sound, narration=-1),
        row("test/aaaaaaaaaaE_000001", similarity_va=0.1, **sound, narration=-1),
        row("test/aaaaaaaaaaI_000120", similarity_va=0.5, **sound, narration=-1),
        row("test/aaaaaaaaaaM_000007", narration=-1),  # silent
        row("test/unknown", similarity_va=0.5, **sound, narration=-1),
        row("test/another", similarity_va=0.5, **sound, narration=-1),
    )
    truth = written(tmp_path, VGGSOUNDER + "aaaaaaaaaaQ_000000,wind,V,False,False,False\n")
    command = ["detection", f"scores=[{path}]", f"truth={truth}", f"out={tmp_path / 'out'}"]
    left_out = (
        "rows without a truth: 2, rows that the truth leaves open: 1, rows that lack a figure: 1, "
        "truths without a row: 1"
    )
    assert figures([*command, "--dry-run"]) == 0
    assert f"video-audio: 2 clips, 1 sounds belong; {left_out}" in capsys.readouterr().out
    assert figures(command) == 0
    printed = capsys.readouterr().out
    assert f"**scores**, video-audio: 2 clips, 50.0% of the sounds belong; {left_out}." in printed
    assert "| video-audio similarity | 1.000 |" in printed and "cosine" not in printed
    judged = json.loads((tmp_path / "out/detection.json").read_text())["scores"]["video-audio"]
    assert judged["left_out"]["truths without a row"] == 1 and "video-audio loss, small" in judged["detectors"]


def test_a_corpus_judges_texts_and_sounds_in_one_table(tmp_path):
    truth = [
        {"video_id": f"v{i}", "text": f"text {i}", "aligned": i % 2 == 0, "sound_aligned": i < 10} for i in range(20)
    ]
    rows = [
        row(
            f"v{i}", f"text {i}", cosine=0.1, norm_va=1.0, norm_vt=1.0, loss_va=float(i >= 10), loss_vt=0.5,
            similarity_va=0.1 * (i < 10), similarity_vt=0.1 * (i % 2),
        )
        for i in range(20)
    ]  # fmt: skip
    judged = detection.judge(scores(tmp_path, *rows), written(tmp_path, lines(truth)))
    texts, sounds = judged["video-text"]["detectors"], judged["video-audio"]["detectors"]
    assert texts["video-text similarity"]["auroc"] == 0.0 and texts["video-audio similarity"]["auroc"] == 0.5
    assert sounds["video-audio similarity"]["auroc"] == sounds["video-audio loss, small"]["auroc"] == 1.0
    assert "video-text similarity" not in sounds
    one_sided = written(tmp_path, lines(line | {"sound_aligned": True} for line in truth))
    judged = detection.judge(tmp_path / "scores.parquet", one_sided)
    assert "of 20 sounds 20 belong" in judged["video-audio"]["reason"] and "detectors" in judged["video-text"]
    assert "video-audio: nothing to find: of 20 sounds 20 belong" in detection.markdown({"t": judged})


def test_texts_alone_are_judged_without_sound(tmp_path):
    rows = [
        row(video, text, start, end, number, similarity_vt=float(alignable), loss_vt=0.1 * number, norm_vt=1.0)
        for video, sentences in HTM_ALIGN.items()
        for number, (alignable, start, end, text) in enumerate(sentences)
    ]
    judged = detection.judge(scores(tmp_path, *rows), written(tmp_path, json.dumps(HTM_ALIGN)))["video-text"]
    assert judged["clips"] == 5 and set(judged["left_out"].values()) == {0}
    assert judged["detectors"]["video-text similarity"]["auroc"] == 1.0
    assert set(judged["detectors"]) == {"video-text similarity", "video-text loss, small", "video-text norm, small"}


def test_a_truth_of_other_videos_is_refused_with_examples(tmp_path):
    path = scores(tmp_path, row("mine", "my text", similarity_vt=0.5))
    message = "speaks of no row of .*such as 'mine', 'my text'; found 'Qm3xT0aaaaE', 'hello and welcome'"
    with pytest.raises(ValueError, match=message):
        detection.judge(path, written(tmp_path, json.dumps(HTM_ALIGN)))
