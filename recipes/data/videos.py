"""Which video files a folder holds, whatever their container."""

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

VIDEOS = (".mp4", ".webm", ".mkv")


def videos_by_name(root: Path, endings: tuple[str, ...] = VIDEOS) -> dict[str, str]:
    """Files in `root/videos`, then in `root`, by name without its ending: absolute path; the earlier ending wins."""
    paths: dict[str, str] = {}
    for folder in (root.absolute(), (root / "videos").absolute()):
        names = [os.path.splitext(entry) for entry in (os.listdir(folder) if folder.is_dir() else [])]
        for suffix in reversed(endings):
            paths |= {stem: str(folder / (stem + end)) for stem, end in names if end.lower() == suffix}
    return paths


def walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """A folder and all below it, the less deep first: absolute path, sorted names of its files. Loops of links end."""
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
    """The videos in a folder and below it, by name without its ending; the least deep wins, then the earlier ending."""
    best: dict[str, tuple[int, int, str]] = {}
    for folder, files in walk(root):
        for file in files:
            stem, end = os.path.splitext(file)
            if end.lower() in VIDEOS:
                this = (folder.count(os.sep), VIDEOS.index(end.lower()), os.path.join(folder, file))
                best[stem] = min(best.get(stem, this), this)
    return {stem: path for stem, (_, _, path) in best.items()}
