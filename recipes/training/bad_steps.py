"""A dump of a step whose loss or gradient was not finite: what went in, what came out, to be looked at afterwards.

runs/NAME/bad_steps/step_00000100/    facts.json, inputs.safetensors, README.txt
"""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from recipes.trimodal.build import INPUTS

BAD_STEPS = "bad_steps"
MOST = 5  # dumps of a run: one is a batch of raw video

README = """\
Step {step} was not taken: {reason}. Its clips, loss terms, gradient norms and cosines are in facts.json, and its batch,
as the model takes it, in inputs.safetensors. To take it again, with the weights of the newest checkpoint:

    from pathlib import Path
    from safetensors.torch import load_file
    from recipes.trimodal.restore import restore
    modules = restore(Path({checkpoint!r}), averaged=False).modules
    print(modules["objective"](modules["model"](**load_file({inputs!r}))))
"""


def dump(
    folder: Path, step: int, reason: str, modules: nn.ModuleDict, batch: dict[str, Any], measured: dict[str, Any]
) -> Path | None:
    """Write what is known of a bad step, whole or not at all.

    Args:
        folder: The run's folder.
        step: Number of the step.
        reason: Why it was not taken.
        modules: {"model", "objective"}, the gradients of the step in ``.grad``.
        batch: The clips, as `collate` gives them.
        measured: {name: value, list or tensor}: loss terms, cosines.

    Returns:
        The folder of the dump; None where the run has `MOST` of them already.
    """
    place = folder / BAD_STEPS / f"step_{step:08d}"
    if place.exists() or len(list(place.parent.glob("step_*"))) >= MOST:
        return None
    temporary = place.with_name(f".{place.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    facts = {
        "step": step,
        "reason": reason,
        "clips": [
            {"id": clip, "captions": captions, "start": start}
            for clip, captions, start in zip(batch["id"], batch["captions"], batch["start"].tolist(), strict=True)
        ],
        **{name: _plain(value) for name, value in measured.items()},
        "parameters": {name: {"norm": _norm(p), "gradient_norm": _norm(p.grad)} for name, p in named(modules)},
    }
    save_file({name: batch[name].contiguous() for name in INPUTS if name in batch}, temporary / "inputs.safetensors")
    (temporary / "facts.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")
    readme = README.format(step=step, reason=reason, checkpoint=str(folder), inputs=str(place / "inputs.safetensors"))
    (temporary / "README.txt").write_text(readme, encoding="utf-8")
    os.replace(temporary, place)
    return place


def named(modules: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters that are trained."""
    return [(name, p) for name, p in modules.named_parameters() if p.requires_grad]


def _norm(x: Tensor | None) -> Any:
    """Of a shard, where the tensor is sharded: only the first process is here, and must not wait for the others."""
    x = x.to_local() if isinstance(x, DTensor) else x
    return None if x is None else _plain(x.detach().float().norm())


def _plain(value: Any) -> Any:
    """Numbers as JSON has them; those that it has not, as words: "nan", "inf"."""
    value = value.detach().tolist() if isinstance(value, Tensor) else value
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
