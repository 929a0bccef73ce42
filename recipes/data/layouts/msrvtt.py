"""MSR-VTT's layout for retrieval, split 1k-A: a thousand clips with one sentence each."""

import json
from collections.abc import Iterator
from pathlib import Path

from recipes.data import manifest
from recipes.data.encoding import read_text
from recipes.data.layouts.layout import Layout, Row, read_table, with_files

TABLE = "MSRVTT_JSFUSION_test.csv"
ABOUT = "MSRVTT_data.json"  # not needed; knows which videos on YouTube the clips are from
SPLIT = "test"
TITLE = "MSR-VTT 1k-A"


def read_msrvtt(root: Path) -> Iterator[Row]:
    """Reads the table, in its order, and `<video_id>.<mp4|webm|mkv>` in any folder below."""
    return with_files(root, annotated(root))


def annotated(root: Path) -> list[Row]:
    """The rows of the table, with or without files: `video` is the name of one without its ending."""
    rows = []
    for where, fields in read_table(root / TABLE, ("video_id", "sentence")):
        name, sentence = fields["video_id"], fields["sentence"]
        if not (name and sentence.strip()):
            raise ValueError(f"{where}: expected a video_id and a sentence; found {name!r}, {sentence!r}")
        rows.append(manifest.row(where, {"text": sentence, "split": SPLIT}, name, name))
    return rows


def origins(root: Path) -> dict[str, str]:
    """The YouTube URL that each clip was cut from, by id; {} without `MSRVTT_data.json`, a ValueError if it is odd."""
    path = root / ABOUT
    if not path.is_file():
        return {}
    try:
        videos = json.loads(read_text(path))["videos"]
        return {video["video_id"]: str(video["url"]) for video in videos if video.get("url")}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path}: expected {{"videos": [{{"video_id", "url", ...}}]}}; {error!r}') from error


LAYOUT = Layout(TITLE, (TABLE,), read_msrvtt)
