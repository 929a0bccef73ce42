"""How a folder of rendered videos comes to be: in as many processes as wanted, and only when it is whole."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from recipes.files import folders
from recipes.progress import progress_bar

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A hidden folder with `videos` in it, which takes the place of `out` at the end; after an error it is gone."""
    folders.begin(out)
    try:
        (folders.unfinished(out) / "videos").mkdir()
        yield folders.unfinished(out)
        folders.finish(out)
    finally:
        shutil.rmtree(folders.unfinished(out), ignore_errors=True)


def render_all(work: Callable[[Item], Result], items: Sequence[Item], workers: int | None, unit: str) -> list[Result]:
    """Applies a picklable function to items in processes (None: all cores; 1: this one); the first failure ends it."""
    bar = {"total": len(items), "desc": "corpus", "unit": unit}
    if workers == 1:
        return list(progress_bar(iterable=map(work, items), **bar))
    # spawn: the caller may have started threads (torch does), which a fork would not survive
    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        try:
            return list(progress_bar(iterable=pool.map(work, items), **bar))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def megabytes(folder: Path) -> float:
    """The size of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
