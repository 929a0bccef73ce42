"""Which video files a folder holds, whatever their container."""

import os
from pathlib import Path

VIDEOS = (".mp4", ".webm", ".mkv")


def videos_by_name(root: Path) -> dict[str, str]:
    """Finds the videos of a data set, in `root/videos` or in `root` itself.

    Returns:
        Absolute path by file name without its ending; of several, `videos/` comes before the folder itself, and mp4
        before webm before mkv.
    """
    found: dict[str, str] = {}
    for folder in (root.absolute(), (root / "videos").absolute()):
        names = [os.path.splitext(entry) for entry in (os.listdir(folder) if folder.is_dir() else [])]
        for suffix in reversed(VIDEOS):
            found |= {stem: str(folder / (stem + end)) for stem, end in names if end.lower() == suffix}
    return found
