"""A dump of a step whose loss or gradient was not finite: its clips, its inputs and its numbers, for people to look at.

runs/NAME/bad_steps/step_00000100/    facts.json, inputs_0000.safetensors of each process, README.txt
"""

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from recipes.files import folders
from recipes.model.build import INPUTS
from recipes.training.checkpoint import together
from recipes.training.processes import ALONE, Processes, whole
from recipes.training.step import StepResult

log = logging.getLogger(__name__)

BAD_STEPS = "bad_steps"
MOST = 5  # dumps of a run: one is a batch of raw video

README = """\
Step {step} was not taken: {reason}. Its clips, loss terms, gradient norms and cosines are in facts.json, and its batch,
as the model takes it, in inputs_*.safetensors, a file for each process. To take it again, with the weights of the
newest checkpoint:

    from pathlib import Path
    import torch
    from safetensors.torch import load_file
    from recipes.restore import restore
    parts = [load_file(file) for file in sorted(Path({place!r}).glob("inputs_*.safetensors"))]
    batch = {{name: torch.cat([part[name] for part in parts]) for name in parts[0]}}
    modules = restore(Path({checkpoint!r}), averaged=False).modules
    print(modules["objective"](modules["model"](**batch)))
"""


def dump(
    folder: Path,
    step: int,
    result: StepResult,
    modules: nn.ModuleDict,
    batch: dict[str, Any],
    processes: Processes = ALONE,
) -> bool:
    """Write what is known of a bad step, whole or not at all, in all processes; a run has at most `MOST` dumps.

    Args:
        folder: The run's folder.
        step: Number of the step.
        result: What the step saw, the same in every process.
        modules: The gradients of the step are in ``.grad``.
        batch: This process's clips, as `collate` gives them.
        processes: All of which have to call this.

    Returns:
        Whether the dump could not be written: a message says so, and training goes on.
    """
    place = folder / BAD_STEPS / f"step_{step:08d}"
    enough = place.exists() or len(list(place.parent.glob("step_*"))) >= MOST
    if processes.exchange(enough)[0][0]:  # as the first sees it
        return False
    facts = {"step": step, "reason": result.reason, "clips": processes.collect(_clips(batch))}
    facts |= {"loss": result.numbers, "terms": result.terms, "cosines": result.cosines}
    trained = ((name, p) for name, p in modules.named_parameters() if p.requires_grad)
    facts["parameters"] = {name: {"norm": _norm(p), "gradient_norm": _norm(p.grad)} for name, p in trained}
    texts = {
        "facts.json": json.dumps(_plain(facts), indent=1, ensure_ascii=False),
        "README.txt": README.format(step=step, reason=result.reason, checkpoint=str(folder), place=str(place)),
    }
    unfinished = folders.unfinished(place)
    inputs = {name: batch[name].contiguous() for name in INPUTS}
    try:
        together(processes, lambda: folders.begin(place), first_only=True)
        together(processes, lambda: save_file(inputs, unfinished / f"inputs_{processes.rank:04d}.safetensors"))
        together(processes, lambda: _finish(place, texts), first_only=True)
    except OSError as error:
        if processes.first:
            shutil.rmtree(unfinished, ignore_errors=True)
        log.error("step %d, %s, could not be dumped: %s", step, result.reason, error)
        return True
    return False


def _finish(place: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (folders.unfinished(place) / name).write_text(text, encoding="utf-8")
    folders.finish(place)


def _clips(batch: dict[str, Any]) -> list[dict[str, Any]]:
    columns = batch["id"], batch["captions"], batch["start"].tolist()
    return [{"id": clip, "captions": texts, "start": start} for clip, texts, start in zip(*columns, strict=True)]


def _norm(x: Tensor | None) -> Tensor | None:
    return None if x is None else whole(x.detach().float().norm())


def _plain(value: Any) -> Any:
    """Values for JSON; numbers that are not finite become words: "nan", "inf"."""
    value = value.detach().tolist() if isinstance(value, Tensor) else value
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
