"""Which video files a folder holds, whatever their container."""

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

VIDEOS = (".mp4", ".webm", ".mkv")


def videos_by_name(root: Path, endings: tuple[str, ...] = VIDEOS) -> dict[str, str]:
    """The videos, or other files, in `root/videos` and in `root`: absolute path by file name without its ending.

    Of several of one name, `videos/` wins over the folder itself, and an earlier ending over a later one.
    """
    paths: dict[str, str] = {}
    for folder in (root.absolute(), (root / "videos").absolute()):
        names = [os.path.splitext(entry) for entry in (os.listdir(folder) if folder.is_dir() else [])]
        for suffix in reversed(endings):
            paths |= {stem: str(folder / (stem + end)) for stem, end in names if end.lower() == suffix}
    return paths


def walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """A folder and all below it, the less deep first: absolute path, and the names of its files, sorted.

    Links are followed, but no folder is entered twice, so that a loop of links ends.
    """
    left, entered = deque([str(root.absolute())]), set()
    while left:
        folder = left.popleft()
        try:
            status, names = os.stat(folder), sorted(os.listdir(folder))
        except OSError:  # it may not be read
            continue
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        folders = [name for name in names if os.path.isdir(os.path.join(folder, name))]
        yield folder, sorted(set(names) - set(folders))
        left.extend(os.path.join(folder, name) for name in folders)


def videos_below(root: Path) -> dict[str, str]:
    """The videos in a folder and below it: absolute path by file name without its ending.

    Of several of one name, the least deep wins, then the earlier of `VIDEOS`.
    """
    best: dict[str, tuple[int, int, str]] = {}
    for folder, files in walk(root):
        for file in files:
            stem, end = os.path.splitext(file)
            if end.lower() in VIDEOS:
                this = (folder.count(os.sep), VIDEOS.index(end.lower()), os.path.join(folder, file))
                best[stem] = min(best.get(stem, this), this)
    return {stem: path for stem, (_, _, path) in best.items()}
