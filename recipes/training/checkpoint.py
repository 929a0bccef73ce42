"""Checkpoints: whole or absent, without pickle. Weights and state as safetensors, the rest as JSON.

runs/NAME/checkpoints/latest              name of the newest checkpoint
runs/NAME/checkpoints/step_00000100/      model.safetensors, state.safetensors, state.json, config.yaml, vocabulary.json
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def save(
    folder: Path,
    step: int,
    modules: nn.Module,
    state: dict[str, Tensor],
    facts: dict[str, Any],
    *beside: Callable[[Path], None],
    keep: int = 2,
) -> Path:
    """Write a checkpoint atomically: a temporary folder, flushed to disk, then renamed.

    Args:
        folder: The checkpoints' folder of the run.
        step: Number of steps taken.
        modules: Everything with weights and buffers.
        state: Tensors besides (optimizer, harmonizer, random states).
        facts: What fits into JSON.
        *beside: Functions that write further files into the checkpoint's folder.
        keep: How many of the newest checkpoints stay, this one among them.

    Returns:
        The checkpoint's folder.
    """
    final = folder / f"step_{step:08d}"
    temporary = folder / f".{final.name}.tmp"
    for left_over in (temporary, folder / f".{final.name}.old"):
        shutil.rmtree(left_over, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(
        {n: t.detach().contiguous().cpu() for n, t in modules.state_dict().items()}, temporary / "model.safetensors"
    )
    save_file({n: t.detach().contiguous().cpu() for n, t in state.items()}, temporary / "state.safetensors")
    (temporary / "state.json").write_text(json.dumps({"step": step, **facts}, indent=1), encoding="utf-8")
    for write in beside:
        write(temporary)
    for file in temporary.iterdir():
        _flush(file)
    _flush(temporary)
    if final.exists():  # the same step again: at no moment is there neither
        os.replace(final, folder / f".{final.name}.old")
    os.replace(temporary, final)
    write_atomically(folder / "latest", final.name)
    shutil.rmtree(folder / f".{final.name}.old", ignore_errors=True)
    for old in sorted(folder.glob("step_*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest(folder: Path) -> Path:
    """The newest checkpoint of a run: of ``runs/NAME``, of its checkpoints' folder, or the folder itself if it is one.

    Raises:
        FileNotFoundError: There is none.
    """
    for place in (folder, folder / "checkpoints"):
        if (place / "model.safetensors").is_file():
            return place
        if (place / "latest").is_file():
            named = place / (place / "latest").read_text(encoding="utf-8").strip()
            whole = [named] if named.is_dir() else sorted(place.glob("step_*"))
            if whole:
                return whole[-1]
    raise FileNotFoundError(f"{folder}: no checkpoint here; expected a run's folder or one of its checkpoints")


def load_weights(checkpoint: Path, modules: nn.Module) -> None:
    """Load weights and buffers into the modules they were saved from.

    Raises:
        ValueError: The file is damaged, or of another model.
    """
    try:
        modules.load_state_dict(load_file(checkpoint / "model.safetensors"))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{checkpoint / 'model.safetensors'}: not the weights of this model: {error}") from error


def load_state(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the JSON facts of a checkpoint."""
    return load_file(checkpoint / "state.safetensors"), load_facts(checkpoint)


def load_facts(checkpoint: Path) -> dict[str, Any]:
    """The JSON facts of a checkpoint: its step among them."""
    facts: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return facts


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors: {"optimizer.<parameter>.<entry>": tensor}."""
    states = optimizer.state_dict()["state"]
    return {f"optimizer.{i}.{key}": value for i, entries in states.items() for key, value in entries.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".", 2)
            state.setdefault(int(i), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def tree_tensors(prefix: str, tree: Any) -> dict[str, Tensor]:
    """The leaves of a tree of tensors, numbered."""
    return {f"{prefix}.{i}": leaf for i, leaf in enumerate(pytree.tree_leaves(tree))}


def load_tree(prefix: str, like: Any, tensors: dict[str, Tensor]) -> Any:
    """Put back what `tree_tensors` gave, into the structure of ``like``."""
    leaves, spec = pytree.tree_flatten(like)
    saved = sum(name.startswith(f"{prefix}.") for name in tensors)
    if saved != len(leaves):
        raise ValueError(f"the checkpoint holds {saved} tensors of the {prefix}, expected {len(leaves)}.")
    return pytree.tree_unflatten([tensors[f"{prefix}.{i}"] for i in range(len(leaves))], spec)


def random_tensors() -> dict[str, Tensor]:
    """The states of torch's random generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"random.cpu": torch.get_rng_state(), **{f"random.cuda.{i}": s for i, s in enumerate(cuda)}}


def load_random(tensors: dict[str, Tensor]) -> None:
    """Put back what `random_tensors` gave."""
    torch.set_rng_state(tensors["random.cpu"])
    for i in range(torch.cuda.device_count()):
        if f"random.cuda.{i}" in tensors:
            torch.cuda.set_rng_state(tensors[f"random.cuda.{i}"], i)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    _flush(temporary)
    os.replace(temporary, path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
