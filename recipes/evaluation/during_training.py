"""Evaluate a run on the clips that it holds out, with all of its processes; keep the best checkpoint."""

import json
import logging
import os
import shutil
from pathlib import Path

from recipes.evaluation.embedding import Embedded, embed
from recipes.evaluation.retrieval import retrieve
from recipes.files import folders, write_atomically
from recipes.training.run import Figures, Run

DIRECTIONS = ("text->video", "audio->video")
BEST = "best"  # in the folder of checkpoints: a checkpoint
FIGURE = "best.json"  # beside it: by what it is the best

log = logging.getLogger(__name__)


def evaluate(run: Run) -> tuple[Figures, Embedded]:
    """Zero-shot retrieval among the clips that a run holds out; every process embeds its share, and has to call this.

    Returns:
        {direction: figures}, which processes other than the first leave empty, and what the model makes of the clips.
    """
    clips, group, config = run.data.held_out, run.group, run.config
    with run.evaluated() as modules:
        embedded = embed(modules, clips, config.evaluate.batch_size, config.data, group)
    return retrieve(embedded, clips, DIRECTIONS) if group.first else {}, embedded


def keep_best(checkpoints: Path, step: int, figures: Figures, name: str | None) -> None:
    """Keep the checkpoint of a step, if it was written, as ``checkpoints/best`` if no earlier one has done as well.

    Args:
        checkpoints: The folder of checkpoints.
        step: Step of the checkpoint.
        figures: The figures of its evaluation.
        name: Direction and figure, as `evaluate.best`; None: nothing is kept.
    """
    checkpoint, best = checkpoints / f"step_{step:08d}", checkpoints / BEST
    if name is None or not checkpoint.is_dir():
        return
    direction, figure = name.split(" ")
    if direction not in figures:
        log.warning("evaluate.best=%s: no clip that is held out has what %s needs", name, direction)
        return
    value = figures[direction][figure]
    if best.is_dir() and (checkpoints / FIGURE).is_file():
        before = json.loads((checkpoints / FIGURE).read_text(encoding="utf-8"))
        sign = -1 if figure.endswith("rank") else 1
        if before["figure"] == name and sign * before["value"] >= sign * value:
            return
    folders.begin(best)
    shutil.copytree(checkpoint, folders.unfinished(best), copy_function=_link, dirs_exist_ok=True)
    folders.finish(best)
    write_atomically(checkpoints / FIGURE, json.dumps({"figure": name, "value": value, "step": step}))
    log.info("step %d is the best so far: %s %g", step, name, value)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a disk without links
        shutil.copy2(source, target)
