"""Which video files a folder holds, whatever their container."""

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

VIDEOS = (".mp4", ".webm", ".mkv")


def videos_by_name(root: Path, endings: tuple[str, ...] = VIDEOS) -> dict[str, str]:
    """Finds the videos of a data set, or other files, in `root/videos` or in `root` itself.

    Returns:
        Absolute path by file name without its ending; of several, `videos/` comes before the folder itself, and mp4
        before webm before mkv, or as `endings` come.
    """
    found: dict[str, str] = {}
    for folder in (root.absolute(), (root / "videos").absolute()):
        names = [os.path.splitext(entry) for entry in (os.listdir(folder) if folder.is_dir() else [])]
        for suffix in reversed(endings):
            found |= {stem: str(folder / (stem + end)) for stem, end in names if end.lower() == suffix}
    return found


def walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """A folder and all below it: absolute path, and the names of its files, sorted.

    Links are followed, but no folder is entered twice, so that a loop of links ends; those that are not so deep come
    first.
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
    """Finds the videos in a folder and all folders below it.

    Returns:
        Absolute path by file name without its ending; of several, one that is not so deep comes first, and mp4 before
        webm before mkv.
    """
    found: dict[str, tuple[int, int, str]] = {}
    for folder, files in walk(root):
        for file in files:
            stem, end = os.path.splitext(file)
            if end.lower() in VIDEOS:
                this = (folder.count(os.sep), VIDEOS.index(end.lower()), os.path.join(folder, file))
                found[stem] = min(found.get(stem, this), this)
    return {stem: path for stem, (_, _, path) in found.items()}
