"""VGGSounder: the classes in each test clip of VGGSound, and whether each is heard, seen or both.

Daniil Zverev and others: VGGSounder: Audio-Visual Evaluations for Foundation Models (2025, arXiv:2508.08237).
"""

from collections.abc import Iterator
from pathlib import Path

from recipes.data.layouts.layout import read_table
from recipes.scoring.truth.fact import Fact, Format

MODALITIES = ("A", "V", "AV")  # in which a class is perceived
MARKS = ("background_music", "static_image", "voice_over")  # of the clip
COLUMNS = ("video_id", "label", "modality", *MARKS)


def read_vggsounder(path: Path) -> Iterator[Fact]:
    """Read one row for each class of a clip: `video_id`, `label`, `modality` and the three marks.

    Sound and picture belong together where a class is both heard and seen, and no mark is set. They do not where
    each class is only heard or only seen. A class that is heard and seen beside a mark (music or a voice laid over the
    sound, one still for a picture) does not decide it.
    """
    shared: dict[str, bool] = {}
    marked: dict[str, bool] = {}
    for where, fields in read_table(path, COLUMNS):
        video, modality, marks = fields["video_id"], fields["modality"], [fields[name] for name in MARKS]
        if modality not in MODALITIES or not set(marks) <= {"True", "False"}:
            raise ValueError(
                f"{where}: expected modality to be {', '.join(MODALITIES)}, and {', '.join(MARKS)} to be True or "
                f"False; found {modality!r:.20}, {', '.join(map(repr, marks)):.80}"
            )
        shared[video] = shared.get(video, False) or modality == "AV"
        marked[video] = marked.get(video, False) or "True" in marks
    for video, both in shared.items():
        yield Fact("video-audio", video, None if both and marked[video] else both)


FORMAT = Format(
    "VGGSounder",
    f"CSV with the columns {', '.join(COLUMNS)}",
    lambda line: {"video_id", "label", "modality"} <= set(line.strip().split(",")),
    read_vggsounder,
)
