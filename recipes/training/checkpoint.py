"""Checkpoints: whole or absent, without pickle, on any number of processes. Tensors as safetensors, the rest as JSON.

runs/NAME/checkpoints/latest              name of the newest checkpoint
runs/NAME/checkpoints/step_00000100/      tensors/*.safetensors, state.json, config.yaml, vocabulary.json, ...,
                                          checksums.json: SHA-256 of every other file

Tensors are written by `torch.distributed.checkpoint`: every process writes its part, and any number of processes
can read it.
"""

import json
import logging
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Sequence
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

from recipes.errors import ConfigError
from recipes.files import digest_file, flush, folders, regular, write_atomically
from recipes.training.processes import ALONE, Processes

TENSORS, STATE, CHECKSUMS, LATEST = "tensors", "state.json", "checksums.json", "latest"
CONFIG, VOCABULARY = "config.yaml", "vocabulary.json"  # of the run: in its folder, and in each checkpoint
MOST = 20  # differences that a message lists
KINDS = {int: "a whole number", str: "a text", dict: "an object"}
NAME = re.compile(r"step_(\d+)")  # of a checkpoint's folder

log = logging.getLogger(__name__)


class CheckpointError(ConfigError):
    """A checkpoint, or a file of a run, that cannot be used; the message names the file."""


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
    """Write a checkpoint atomically: a temporary folder, flushed to disk, then renamed. Returns its folder.

    Args:
        folder: The checkpoints' folder of the run.
        step: Number of steps taken.
        modules: Everything with weights and buffers.
        state: Further tensors (optimizer, harmonizer, random states).
        facts: What fits into JSON.
        *beside: Functions that write further files into the checkpoint's folder; the first process calls them.
        keep: How many of the newest checkpoints stay, this one among them.
        processes: All of which have to call this.

    Raises:
        OSError: It could not be written, whichever process failed; the checkpoints before are as they were.
    """
    final = folder / f"step_{step:08d}"
    temporary = folders.unfinished(final)
    tensors = {n: t.detach() for n, t in (modules.state_dict() | state).items()}
    writer = HuggingFaceStorageWriter(str(temporary / TENSORS), save_distributed=True)
    sums: dict[str, str] = {}

    def add_checksums() -> None:  # each process reads its share of the tensors again
        files = sorted(path.relative_to(temporary) for path in (temporary / TENSORS).iterdir())
        sums.update(checksums(temporary, files[processes.rank :: processes.world]))

    try:
        together(processes, lambda: _begin(final), first_only=True)
        together(processes, lambda: _quietly(dcp.save, tensors, storage_writer=writer, no_dist=processes.world == 1))
        together(processes, add_checksums)
        sums |= dict(processes.collect(list(sums.items())))
        together(processes, lambda: _finish(final, {"step": step, **facts}, sums, beside), first_only=True)
        together(processes, lambda: _remove_old(folder, step, keep), first_only=True)
    except OSError as error:
        if processes.first:
            shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(f"the checkpoint of step {step} could not be written: {error}") from error
    return final


def _begin(final: Path) -> None:
    folders.begin(final)
    (folders.unfinished(final) / TENSORS).mkdir()


def _finish(final: Path, facts: dict[str, Any], sums: dict[str, str], beside: Sequence[Callable[[Path], None]]) -> None:
    """Write the files beside the tensors, and give the folder the name that makes it a checkpoint."""
    temporary = folders.unfinished(final)
    state = temporary / STATE
    state.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    for write in beside:
        write(temporary)
    sums = sums | checksums(temporary, (p.relative_to(temporary) for p in temporary.iterdir() if p.is_file()))
    (temporary / CHECKSUMS).write_text(json.dumps(sums, indent=1), encoding="utf-8")
    for file in (p for p in temporary.rglob("*") if p.is_file()):
        shutil.copymode(state, file)  # safetensors lets only the owner read; this has what the umask says
    for file in (*temporary.iterdir(), *(temporary / TENSORS).iterdir(), temporary):
        flush(file)
    folders.finish(final)
    write_atomically(final.with_name(LATEST), final.name)


def _remove_old(folder: Path, step: int, keep: int) -> None:
    """Keep the newest checkpoints up to a step. Later ones, of a run that went on from before them, are damaged."""
    for old in [place for place in _numbered(folder) if _number(place) <= step][:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def checksums(checkpoint: Path, files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files, by their names in a checkpoint."""
    return {name.as_posix(): digest_file(checkpoint / name) for name in files}


def verify(checkpoint: Path) -> None:
    """Read every file of a checkpoint; raise a CheckpointError that names the first one that has changed.

    A checkpoint without checksums is of an older version: it gives a warning and counts as whole.
    """
    listing = checkpoint / CHECKSUMS
    if not listing.exists():
        log.warning("%s: there are no checksums; the files are taken as they are", listing)
        return
    sums = read_json(listing)
    files = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()} - {CHECKSUMS}
    if missing := sorted(sums.keys() - files):
        raise CheckpointError(f"{checkpoint / missing[0]}: damaged checkpoint: this file is missing")
    if more := sorted(files - sums.keys()):
        raise CheckpointError(f"{checkpoint / more[0]}: does not belong to the checkpoint: remove it")
    for name in sorted(files):
        try:
            same = checksums(checkpoint, [Path(name)])[name] == sums[name]
        except OSError as error:
            raise CheckpointError(f"{checkpoint / name}: cannot be read: {error}") from error
        if not same:
            raise CheckpointError(
                f"{checkpoint / name}: damaged, or changed since the checkpoint was written: its checksum is another. "
                "Take another checkpoint, or a whole copy of this one"
            )


def together(processes: Processes, action: Callable[[], Any], first_only: bool = False) -> None:
    """Write or read files in all processes, or in the first alone.

    Raises:
        OSError: Some process could not; all of them raise it.
    """
    failures = processes.collect([_attempt(action) if processes.first or not first_only else ""])
    if failure := "; ".join(dict.fromkeys(filter(None, failures))):
        raise OSError(failure)


def _attempt(action: Callable[[], Any]) -> str:
    """Why an action that writes or reads files failed; empty if it did not."""
    try:
        action()
    except CheckpointException as error:  # what other processes raised, or this one
        causes = {rank: failure[0] for rank, failure in error.failures.items()}
        return "; ".join(f"{cause}" + f" (process {rank})" * (len(causes) > 1) for rank, cause in causes.items())
    except (OSError, SafetensorError, RuntimeError) as error:
        return str(error) or type(error).__name__
    return ""


def latest(folder: Path) -> Path:
    """The newest whole checkpoint of a run: of ``runs/NAME``, of its checkpoints' folder, or the folder itself.

    If the newest is damaged, a warning says so, and the one before takes its place; unless ``folder`` is a checkpoint.

    Raises:
        CheckpointError: There are some, but none is whole.
        FileNotFoundError: There is none.
    """
    if any((folder / name).exists() for name in (TENSORS, STATE)):
        verify(folder)
        return folder
    place = next((place for place in (folder, folder / "checkpoints") if _numbered(place)), None)
    if place is None:
        raise FileNotFoundError(f"{folder}: no checkpoint here; expected a run's folder or one of its checkpoints")
    failures = []
    for checkpoint in _newest_first(place):
        try:
            verify(checkpoint)
            load_facts(checkpoint)
            saved_shapes(checkpoint)
        except CheckpointError as error:
            log.warning("%s. Looking for the checkpoint before", error)
            failures.append(str(error))
        else:
            return checkpoint
    raise CheckpointError(f"{place}: no checkpoint here is whole:\n  " + "\n  ".join(failures))


def _newest_first(place: Path) -> list[Path]:
    """The checkpoints in a folder, newest first, from the one that the file `latest` names; all, if it names none."""
    numbered = _numbered(place)[::-1]
    try:
        named = place / (place / LATEST).read_text(encoding="utf-8").strip()
        return numbered[numbered.index(named) :]
    except (OSError, ValueError) as error:
        log.warning("%s names no checkpoint here (%s): taking the newest beside it", place / LATEST, error)
        return numbered


def _numbered(place: Path) -> list[Path]:
    """The checkpoints in a folder, by number."""
    return sorted((p for p in place.glob("step_*") if NAME.fullmatch(p.name) and p.is_dir()), key=_number)


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def load_weights(checkpoint: Path, modules: nn.Module) -> None:
    """Load weights and buffers into the modules they were saved from, sharded or not; see `load_tensors`."""
    load_tensors(checkpoint, modules.state_dict())


def load_tensors(checkpoint: Path, tensors: dict[str, Tensor]) -> None:
    """Fill tensors, which may be shards, with the saved values of their names.

    Raises:
        CheckpointError: The files are damaged, or of another model.
    """
    shapes = saved_shapes(checkpoint)
    differences = [
        f"{name} {f'has the shape {tuple(shapes[name])}' if name in shapes else 'is not there'}; "
        f"expected {tuple(tensor.shape)}"
        for name, tensor in tensors.items()
        if shapes.get(name) != tensor.shape
    ]
    if differences:
        more = [f"and {len(differences) - MOST} more"] if len(differences) > MOST else []
        raise CheckpointError(
            f"{checkpoint / TENSORS}: not the weights of this model:\n  " + "\n  ".join(differences[:MOST] + more)
        )
    try:
        reader = HuggingFaceStorageReader(str(checkpoint / TENSORS))
        _quietly(dcp.load, tensors, storage_reader=reader, no_dist=True)
    except Exception as error:  # the reader raises what it stumbles over
        raise CheckpointError(f"{checkpoint / TENSORS}: damaged: {error}") from error


def saved_shapes(checkpoint: Path) -> dict[str, torch.Size]:
    """Name and shape of the tensors of a checkpoint; a CheckpointError where its files are damaged."""
    return {name: meta.size for name, meta in _metadata(checkpoint).items()}


def read_tensors(checkpoint: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, whole and on the host."""
    wanted = {n: meta for n, meta in _metadata(checkpoint).items() if n.startswith(prefix)}
    tensors = {name: torch.empty(meta.size, dtype=meta.properties.dtype) for name, meta in wanted.items()}
    if tensors:
        load_tensors(checkpoint, tensors)
    return tensors


def _metadata(checkpoint: Path) -> dict[str, Any]:
    try:
        for file in (checkpoint / TENSORS).iterdir():
            regular(file)
        return HuggingFaceStorageReader(str(checkpoint / TENSORS)).read_metadata().state_dict_metadata
    except Exception as error:  # the reader raises what it stumbles over
        raise CheckpointError(f"{checkpoint / TENSORS}: damaged: {error}") from error


def load_facts(checkpoint: Path, **types: type) -> dict[str, Any]:
    """The JSON facts of a checkpoint, among them its step.

    Raises:
        CheckpointError: The file cannot be read, or lacks a fact of these names and types.
    """
    path = checkpoint / STATE
    facts = read_json(path)
    for key, kind in ({"step": int} | types).items():
        value = facts.get(key)
        if not isinstance(value, kind) or isinstance(value, bool) or (key == "step" and value < 0):
            raise CheckpointError(f"{path}: {key} is {value!r}; expected {KINDS.get(kind, kind.__name__)}")
    return facts


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds a JSON object; a CheckpointError where it does not."""
    try:
        content = json.loads(regular(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object; found {type(content).__name__}")
    return content


def optimizer_tensors(modules: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors: {"optimizer.<parameter>.<entry>": tensor}; none before its first step."""
    if not optimizer.state:
        return {}
    states = get_optimizer_state_dict(modules, optimizer)["state"]
    return {f"optimizer.{name}.{key}": value for name, entries in states.items() for key, value in entries.items()}


def load_optimizer(checkpoint: Path, modules: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore what `optimizer_tensors` gave."""
    if not any(name.startswith("optimizer.") for name in saved_shapes(checkpoint)):
        return
    state = get_optimizer_state_dict(modules, optimizer)  # makes what is to be filled
    names = {(n, key): t for n, entries in state["state"].items() for key, t in entries.items()}
    load_tensors(checkpoint, {f"optimizer.{name}.{key}": tensor for (name, key), tensor in names.items()})
    set_optimizer_state_dict(modules, optimizer, state)


def tree_tensors(prefix: str, tree: Any) -> dict[str, Tensor]:
    """The leaves of a tree of tensors, numbered."""
    return {f"{prefix}.{i}": leaf for i, leaf in enumerate(pytree.tree_leaves(tree))}


def load_tree(prefix: str, like: Any, tensors: dict[str, Tensor]) -> Any:
    """Restore what `tree_tensors` gave, in the structure of ``like``."""
    leaves, spec = pytree.tree_flatten(like)
    names = [f"{prefix}.{i}" for i in range(len(leaves))]
    saved = {name for name in tensors if name.startswith(f"{prefix}.")}
    if saved != set(names):
        raise CheckpointError(f"the checkpoint holds {len(saved)} tensors of the {prefix}, expected {', '.join(names)}")
    return pytree.tree_unflatten([tensors[name] for name in names], spec)


def random_tensors(rank: int = 0) -> dict[str, Tensor]:
    """The states of this process's random generators."""
    cuda = {f"random.{rank}.cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {f"random.{rank}.cpu": torch.get_rng_state()} | cuda


def load_random(tensors: dict[str, Tensor], rank: int = 0) -> None:
    """Restore what `random_tensors` gave; a CheckpointError where there are no such states."""
    try:
        torch.set_rng_state(tensors[f"random.{rank}.cpu"])
        if f"random.{rank}.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors[f"random.{rank}.cuda"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"the checkpoint holds no random state of process {rank}: {error}") from error


def _quietly(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Call a function without the warning that there is no process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        return function(*arguments, **keywords)
