"""Encode the videos of a data set once more as web video is, to time the loader on: large pictures, few key frames.

python -m recipes.data.corpus out=corpora/square style=wild videos=14 test_videos=2 size=360 fps=25
python -m recipes.research.benchmark web_video data=corpora/square out=corpora/web size=[640,360] fps=25 key_every=250
"""

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.video.frame import PictureType

from recipes.cli import Command
from recipes.data import storage
from recipes.data.index import load_index
from recipes.data.manifest import fields_of
from recipes.keys import key
from recipes.progress import progress_bar

SOUND = 44_100  # samples per second


@dataclass
class WebVideoKeys:
    """What to encode, and how."""

    data: str = key(meaning="what recipes.pretrain reads")
    out: Path = key(meaning="folder to create, with a manifest.jsonl")
    size: tuple[int, int] = key((640, 360), "width and height, pixels", least=2, most=2**14)
    fps: int = key(25, "pictures a second", least=1, most=1000)
    key_every: int = key(250, "pictures from one key frame to the next, at most", least=1)


def run(settings: WebVideoKeys) -> None:
    settings.out.mkdir(parents=True)
    lines = []
    for number, row in enumerate(progress_bar(iterable=load_index(settings.data), desc="encode", unit="video")):
        name = f"{number:06d}.mp4"
        encode(row["video"], settings.out / name, settings.size, settings.fps, settings.key_every)
        lines.append(json.dumps(fields_of(row, name), ensure_ascii=False) + "\n")
    manifest = settings.out / "manifest.jsonl"
    manifest.write_text("".join(lines), encoding="utf-8")
    print(f"written: {manifest}")


def encode(source: str, path: Path, size: tuple[int, int], fps: int, key_every: int) -> None:
    """Write a video as mp4: H.264 as x264 makes it by default, with further key frames at cuts, and AAC."""
    with storage.open_bytes(source) as file, av.open(file) as old, av.open(str(path), "w") as new:
        pictures = new.add_stream("libx264", rate=fps)
        pictures.width, pictures.height, pictures.pix_fmt, pictures.gop_size = *size, "yuv420p", key_every
        sound = new.add_stream("aac", rate=SOUND, layout="mono")
        shown = 0
        for frame in old.decode(old.streams.video[0]):
            while shown <= frame.time * fps:  # a slower video is repeated, a faster one skipped
                picture = frame.reformat(*size, "yuv420p")
                picture.pts, picture.time_base = shown, Fraction(1, fps)
                picture.pict_type = PictureType.NONE  # or it would be a key frame where the old one was
                new.mux(pictures.encode(picture))
                shown += 1
        new.mux(pictures.encode(None))
        old.seek(0)
        for frame in old.decode(audio=0):
            frame.pts = None
            new.mux(sound.encode(frame))
        new.mux(sound.encode(None))


COMMAND = Command("recipes.research.benchmark web_video", __doc__, WebVideoKeys, run)
