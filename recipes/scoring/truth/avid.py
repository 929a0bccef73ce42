"""AVID: videos into which sound that contradicts the picture was put, whole or cut into segments.

Zixuan Chen and others: AVID: A Benchmark for Omni-Modal Audio-Visual Inconsistency Understanding via Agent-Driven
Construction (2026, arXiv:2604.13593). The fields are those that its evaluation code reads.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipes.data.encoding import read_lines
from recipes.data.manifest import json_object
from recipes.scoring.truth.fact import Fact, Format, object_in
from recipes.scoring.truth.matching import stem

RANGE = re.compile(r"from\s+([\d.]+)s?\s+to\s+([\d.]+)s?", re.IGNORECASE)
BELONGS = {"No": True, "Yes": False}  # by whether an inconsistency exists


def read_avid(path: Path) -> Iterator[Fact]:
    """Read `video_path` and `ground_truth`: `exists`, and for a whole video `inconsistencies`, each a `time_range`.

    In a video with time ranges, sound and picture belong together outside of them.
    """
    for number, line in read_lines(path):
        if line.strip():
            yield from _facts(f"{path}, line {number}", json_object(f"{path}, line {number}", line))


def _facts(where: str, record: dict[str, Any]) -> Iterator[Fact]:
    try:
        video, truth = stem(record["video_path"]), record["ground_truth"]
        belongs = BELONGS[truth["exists"]]
        ranges = [_seconds(part["time_range"]) for part in truth.get("inconsistencies") or ()]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: expected video_path and ground_truth with exists (Yes or No) and, of whole videos, "
            f"inconsistencies with a time_range (from 0.0s to 7.8s); found {record!r:.120}"
        ) from error
    yield Fact("video-audio", video, belongs or bool(ranges))
    yield from (Fact("video-audio", video, False, span=span) for span in ranges)


def _seconds(time_range: str) -> tuple[float, float]:
    match = RANGE.match(time_range)
    if match is None:
        raise ValueError(time_range)
    return float(match[1]), float(match[2])


FORMAT = Format(
    "AVID",
    "JSON lines with qa_id, video_path and ground_truth",
    lambda line: "ground_truth" in object_in(line),
    read_avid,
)
