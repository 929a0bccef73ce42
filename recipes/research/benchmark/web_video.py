"""Encode the videos of a data set once more as web video is, to time the loader on: large pictures, few key frames.

python -m recipes.data.corpus out=corpora/square style=wild videos=14 test_videos=2 size=360 fps=25
python -m recipes.research.benchmark.web_video --data corpora/square --out corpora/web --size 640 360 --fps 25 --key-every 250
"""

import argparse
import json
import sys
from fractions import Fraction
from pathlib import Path

import av
from av.video.frame import PictureType

from recipes.data import storage
from recipes.data.index import load_index
from recipes.data.manifest import fields_of
from recipes.progress import progress_bar

SOUND = 44_100  # samples per second


def encode(source: str, path: Path, size: tuple[int, int], fps: int, key_every: int) -> None:
    """Write a video again: H.264 as x264 makes it by default, and AAC.

    Args:
        source: Locator of the video.
        path: The mp4 to write.
        size: (width, height), pixels.
        fps: Pictures a second.
        key_every: Pictures from one key frame to the next at most; x264 puts others where the scene changes.
    """
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


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m recipes.research.benchmark.web_video", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("--data", required=True, help="what recipes.pretrain reads")
    p.add_argument("--out", type=Path, required=True, help="folder to create, with a manifest.jsonl")
    p.add_argument("--size", type=int, nargs=2, default=[640, 360], metavar=("WIDTH", "HEIGHT"))
    p.add_argument("--fps", type=int, default=25)
    p.add_argument("--key-every", type=int, default=250, metavar="PICTURES")
    options = p.parse_args(arguments)
    try:
        options.out.mkdir(parents=True)
        lines = []
        for number, row in enumerate(progress_bar(iterable=load_index(options.data), desc="encode", unit="video")):
            name = f"{number:06d}.mp4"
            encode(row["video"], options.out / name, tuple(options.size), options.fps, options.key_every)
            lines.append(json.dumps(fields_of(row, name), ensure_ascii=False) + "\n")
        (options.out / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"written: {options.out / 'manifest.jsonl'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
