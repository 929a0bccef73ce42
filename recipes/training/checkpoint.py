"""Checkpoints: whole or absent, without pickle, on any number of processes. Tensors as safetensors, the rest as JSON.

runs/NAME/checkpoints/latest              name of the newest checkpoint
runs/NAME/checkpoints/step_00000100/      tensors/*.safetensors, state.json, config.yaml, vocabulary.json, ...

Tensors are written by `torch.distributed.checkpoint`: every process writes its part, and any number of processes reads
what it needs.
"""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.utils import _pytree as pytree

from recipes.data import storage
from recipes.training.processes import ALONE, Processes

TENSORS = "tensors"


def save(
    folder: Path,
    step: int,
    modules: nn.Module,
    state: dict[str, Tensor],
    facts: dict[str, Any],
    *beside: Callable[[Path], None],
    keep: int = 2,
    processes: Processes = ALONE,
) -> Path:
    """Write a checkpoint atomically: a temporary folder, flushed to disk, then renamed.

    Args:
        folder: The checkpoints' folder of the run.
        step: Number of steps taken.
        modules: Everything with weights and buffers.
        state: Tensors besides (optimizer, harmonizer, random states).
        facts: What fits into JSON.
        *beside: Functions that write further files into the checkpoint's folder; the first process calls them.
        keep: How many of the newest checkpoints stay, this one among them.
        processes: All of which have to call this.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: It could not be written, whichever process failed; the checkpoints before are as they were.
    """
    final = folder / f"step_{step:08d}"
    temporary = folder / f".{final.name}.tmp"
    failure = attempt(lambda: _clear(folder, final, temporary)) if processes.first else ""
    failure = agreed(failure, processes)
    if not failure:
        tensors = {n: t.detach() for n, t in (modules.state_dict() | state).items()}
        writer = HuggingFaceStorageWriter(str(temporary / TENSORS), save_distributed=True)
        failure = attempt(lambda: _quietly(dcp.save, tensors, storage_writer=writer, no_dist=processes.world == 1))
    if not failure and processes.first:
        failure = attempt(lambda: _finish(folder, final, temporary, {"step": step, **facts}, beside, keep))
    failure = agreed(failure, processes)
    if failure:
        if processes.first:
            shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(f"the checkpoint of step {step} could not be written: {failure}")
    return final


def _clear(folder: Path, final: Path, temporary: Path) -> None:
    for left_over in (temporary, folder / f".{final.name}.old"):
        shutil.rmtree(left_over, ignore_errors=True)
    (temporary / TENSORS).mkdir(parents=True)


def _finish(
    folder: Path, final: Path, temporary: Path, facts: dict[str, Any], beside: tuple[Callable[[Path], None], ...],
    keep: int,
) -> None:  # fmt: skip
    """The files beside the tensors, and the name that makes it a checkpoint."""
    (temporary / "state.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    for write in beside:
        write(temporary)
    for file in (*temporary.iterdir(), *(temporary / TENSORS).iterdir(), temporary):
        _flush(file)
    if final.exists():  # the same step again: at no moment is there neither
        os.replace(final, folder / f".{final.name}.old")
    os.replace(temporary, final)
    write_atomically(folder / "latest", final.name)
    shutil.rmtree(folder / f".{final.name}.old", ignore_errors=True)
    for old in sorted(folder.glob("step_*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def attempt(action: Callable[[], Any]) -> str:
    """Why an action that writes or reads files failed; empty if it did not."""
    try:
        action()
    except CheckpointException as error:  # what other processes raised, or this one
        causes = {rank: failure[0] for rank, failure in error.failures.items()}
        return "; ".join(f"{cause}" + f" (process {rank})" * (len(causes) > 1) for rank, cause in causes.items())
    except (OSError, SafetensorError, RuntimeError) as error:
        return str(error) or type(error).__name__
    return ""


def agreed(failure: str, processes: Processes) -> str:
    """Why any of the processes failed."""
    return "; ".join(dict.fromkeys(f for f in processes.collect([failure]) if f))


def latest(folder: Path) -> Path:
    """The newest checkpoint of a run: of ``runs/NAME``, of its checkpoints' folder, or the folder itself if it is one.

    Raises:
        FileNotFoundError: There is none.
    """
    for place in (folder, folder / "checkpoints"):
        if (place / TENSORS).is_dir():
            return place
        if (place / "latest").is_file():
            named = place / (place / "latest").read_text(encoding="utf-8").strip()
            whole = [named] if named.is_dir() else sorted(place.glob("step_*"))
            if whole:
                return whole[-1]
    raise FileNotFoundError(f"{folder}: no checkpoint here; expected a run's folder or one of its checkpoints")


def load_weights(checkpoint: Path, modules: nn.Module) -> None:
    """Load weights and buffers into the modules they were saved from, sharded or not.

    Raises:
        ValueError: The files are damaged, or of another model.
    """
    load(checkpoint, modules.state_dict())


def load(checkpoint: Path, tensors: dict[str, Tensor]) -> None:
    """Fill tensors, which may be shards, by what is saved under their names.

    Raises:
        ValueError: The files are damaged, or lack one of them.
    """
    shapes = saved(checkpoint)
    for name, tensor in tensors.items():
        if name not in shapes or shapes[name] != tensor.shape:
            found = f"has the shape {tuple(shapes[name])}" if name in shapes else "is not there"
            raise ValueError(
                f"{checkpoint / TENSORS}: not the weights of this model: {name} {found}; expected {tuple(tensor.shape)}"
            )
    try:
        reader = HuggingFaceStorageReader(str(checkpoint / TENSORS))
        _quietly(dcp.load, tensors, storage_reader=reader, no_dist=True)
    except (CheckpointException, SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{checkpoint / TENSORS}: damaged: {error}") from error


def saved(checkpoint: Path) -> dict[str, torch.Size]:
    """Name and shape of the tensors of a checkpoint.

    Raises:
        ValueError: The files are damaged.
    """
    return {name: meta.size for name, meta in _metadata(checkpoint).items()}


def read(checkpoint: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, whole and on the host."""
    wanted = {n: meta for n, meta in _metadata(checkpoint).items() if n.startswith(prefix)}
    tensors = {name: torch.empty(meta.size, dtype=meta.properties.dtype) for name, meta in wanted.items()}
    if tensors:
        load(checkpoint, tensors)
    return tensors


def _metadata(checkpoint: Path) -> dict[str, Any]:
    try:
        for file in (checkpoint / TENSORS).iterdir():
            storage.regular(file)
        return HuggingFaceStorageReader(str(checkpoint / TENSORS)).read_metadata().state_dict_metadata
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"{checkpoint / TENSORS}: damaged: {error}") from error


def load_facts(checkpoint: Path) -> dict[str, Any]:
    """The JSON facts of a checkpoint: its step among them."""
    path = storage.regular(checkpoint / "state.json")
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return facts


def optimizer_tensors(modules: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors: {"optimizer.<parameter>.<entry>": tensor}; none before its first step."""
    if not optimizer.state:
        return {}
    states = get_optimizer_state_dict(modules, optimizer)["state"]
    return {f"optimizer.{name}.{key}": value for name, entries in states.items() for key, value in entries.items()}


def load_optimizer(checkpoint: Path, modules: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put back what `optimizer_tensors` gave."""
    if not any(name.startswith("optimizer.") for name in saved(checkpoint)):
        return
    state = get_optimizer_state_dict(modules, optimizer)  # makes what is to be filled
    names = {(n, key): t for n, entries in state["state"].items() for key, t in entries.items()}
    load(checkpoint, {f"optimizer.{name}.{key}": tensor for (name, key), tensor in names.items()})
    set_optimizer_state_dict(modules, optimizer, state)


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


def random_tensors(rank: int = 0) -> dict[str, Tensor]:
    """The states of this process's random generators."""
    cuda = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {f"random.{rank}.{kind}": state for kind, state in ({"cpu": torch.get_rng_state()} | cuda).items()}


def load_random(tensors: dict[str, Tensor], rank: int = 0) -> None:
    """Put back what `random_tensors` gave."""
    torch.set_rng_state(tensors[f"random.{rank}.cpu"])
    if f"random.{rank}.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors[f"random.{rank}.cuda"])


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


def _quietly(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Without the warning that there is no process group: a single process is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        return function(*arguments, **keywords)
