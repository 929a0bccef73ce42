"""Builds the labelling page: draws clips, cuts them out of their videos, and writes the page."""

import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from recipes.config import ClipFormat
from recipes.data import storage
from recipes.data.decode import BrokenClip, Clip, open_clip
from recipes.data.recording import Media as Recording
from recipes.data.skipped import Skipped
from recipes.data.workers import guarded
from recipes.figures import player
from recipes.figures.html import render
from recipes.figures.label.choice import Choice
from recipes.figures.label.keys import LabelKeys
from recipes.figures.label.sample import Drawn, draw
from recipes.figures.page_media import Media, report_unreadable
from recipes.files import check_place, digest, jsonl, write_atomically
from recipes.progress import progress_bar

SHORTEST, LONGEST = 1.0, 5.0  # seconds of a window, where it is the time of a text
WHOLE = {"start": None, "end": None}
TRUSTED = "trusted.jsonl"  # what the page saves


def plan(keys: LabelKeys) -> str:
    """Which clips would be shown; raises what `build` raises before it reads a clip."""
    check_place(keys.out)
    drawn = draw(keys)
    return f"{len(drawn.clips)} clips would be on the page: {drawn.how}\n{advice(home(keys))}"


def build(keys: LabelKeys) -> list[Path]:
    """Write the page to `out`, and media that it may not hold into a folder NAME_files beside it."""
    check_place(keys.out)
    drawn = draw(keys)
    keys.out.parent.mkdir(parents=True, exist_ok=True)
    media, clips, broken = Media(keys.out), [], []
    for choice, cut in _cuts(keys, drawn.clips):
        if isinstance(cut, Skipped):
            broken.append(cut)
            continue
        start, end, has_sound, files = cut
        row = row_of(choice, start, end, home(keys))
        clips.append({"row": row, "sound": has_sound, "addresses": media.add(len(clips), files)})
    report_unreadable(broken, len(clips))
    write_atomically(keys.out, page(clips, drawn, keys, broken))
    media.remove_old()
    return [keys.out]


def page(clips: list[dict[str, Any]], drawn: Drawn, keys: LabelKeys, broken: list[Skipped]) -> str:
    """The page as HTML; a clip is {"row": of the trusted manifest, "sound": whether it has any, "addresses"}."""
    rows = jsonl.as_text(clip["row"] for clip in clips)
    return render(
        "label.html.j2",
        facts={"name": f"harmony-label-{digest([rows.encode()])[:16]}", "file": TRUSTED, "clips": clips},
        how=drawn.how,
        advice=advice(home(keys)),
        broken=len(broken),
        reasons=Counter(clip.reason for clip in broken).most_common(5),
    )


def home(keys: LabelKeys) -> Path | None:
    """The folder in which the trusted manifest belongs: beside what names the clips; None: anywhere, that is a URL."""
    source = keys.data or str(keys.scores)
    if storage.is_url(source):
        return None
    place = Path(source).expanduser().absolute()
    return place if place.is_dir() else place.parent


def advice(folder: Path | None) -> str:
    """Where to put the trusted manifest, for people."""
    if folder is None:
        return f"{TRUSTED} can lie anywhere on this machine."
    return f"Save {TRUSTED} as {folder / TRUSTED}: the paths of videos in it are relative to that folder."


def row_of(choice: Choice, start: float, end: float, folder: Path | None) -> dict[str, Any]:
    """What the trusted manifest says of a clip, before it has its weights; in ``folder`` its `video` is found."""
    video = choice.video
    if not storage.is_url(video):
        video = os.path.abspath(video) if folder is None else storage.relative(video, folder)
    part = {"start": round(start, 3), "end": round(end, 3)}
    return {"id": choice.id, "video": video, "group": choice.group, "split": "train", **part, "text": choice.text}


def cut_clip(choice: Choice, seconds: float | None, folder: Path) -> tuple[float, float, bool, dict[str, bytes]]:
    """Read what is shown of a clip: start and end in seconds, whether it has sound, and the files of its player."""
    with open_clip(choice.video) as clip:
        start, end = _window(clip, choice, seconds)
        played = player.read_window(clip, start, end)
    if not choice.text and played.sound is None:
        raise BrokenClip(choice.video, "it has neither a text nor a sound")
    return start, end, played.sound is not None, player.files_of(played, folder)


def _window(clip: Clip, choice: Choice, seconds: float | None) -> tuple[float, float]:
    """What was scored, or a window about the middle, where `recipes.score` has it, as far as that is of the clip."""
    if seconds is None and choice.part is None:
        return choice.start, choice.end
    length = seconds or min(max(choice.end - choice.start, SHORTEST), LONGEST)
    recording = Recording(choice.part or WHOLE, clip, ClipFormat(audio_seconds=length), "audio")  # as long as the sound
    start = recording.start_about({"start": choice.start, "end": choice.end}, 0.5)
    return start, min(start + length, recording.end)


def _cuts(keys: LabelKeys, clips: list[Choice]) -> Iterator[tuple[Choice, Any]]:
    """Clips with what `cut_clip` gives, or a `Skipped`."""
    with TemporaryDirectory() as scratch, progress_bar(total=len(clips), desc="clips", unit="clip", leave=False) as bar:
        cut = partial(cut_clip, seconds=keys.seconds, folder=Path(scratch))
        for result in guarded(cut, ((choice.video, choice) for choice in clips), keys.workers):
            yield result
            bar.update()
