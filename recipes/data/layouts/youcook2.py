"""YouCook2's layout: long videos of cooking; each annotated segment is a clip, its sentence the text."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipes.data import manifest
from recipes.data.encoding import read_text
from recipes.data.layouts.layout import Layout, Row, with_files

TABLE = "youcookii_annotations_trainval.json"
TITLE = "YouCook2"
SPLIT = "validation"  # what is evaluated: the sentences of the test videos are not published


def read_youcook2(root: Path) -> Iterator[Row]:
    """Reads the annotations, in order, and `<video id>.<mp4|webm|mkv>` in any folder below; ids are `VIDEO:0`, ..."""
    return with_files(root, annotated(root))


def annotated(root: Path) -> list[Row]:
    """The rows of the annotations, with or without files: `video` is the name of one without its ending."""
    path = root / TABLE
    try:
        videos = json.loads(read_text(path))["database"].items()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path}: expected {{"database": {{video id: {{...}}}}}}; {error!r}') from error
    rows = []
    for name, video in videos:
        try:
            rows += [_row(name, segment, video["subset"]) for segment in video["annotations"]]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f'{path}, video {name!r}: expected {{"subset": "validation", "annotations": [{{"id": 0, "segment": '
                f'[seconds, seconds], "sentence": "..."}}, ...]}}; {type(error).__name__}: {error}'
            ) from error
    return rows


def _row(name: str, segment: Any, split: Any) -> Row:
    start, end = segment["segment"]
    fields = {"text": segment["sentence"], "split": split, "start": start, "end": end}
    return manifest.row(f"segment {segment['id']}", fields, name, f"{name}:{segment['id']}")


LAYOUT = Layout(TITLE, (TABLE,), read_youcook2)
