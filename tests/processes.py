"""Run a function in several processes that share a gloo group, and collect what each of them returns."""

import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run(function: Callable[..., Any], processes: int, *arguments: Any) -> list[Any]:
    """``[function(*arguments) on process 0, 1, ...]``; what a process raises fails the test with its traceback."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_run, (function, processes, folder, arguments), nprocs=processes, start_method="spawn")
        results = [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(processes)]
    failures = [result["failed"] for result in results if "failed" in result]
    assert not failures, "\n".join(failures)
    return [result["returned"] for result in results]


def _run(rank: int, function: Callable[..., Any], processes: int, folder: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=processes)
    try:
        result = {"returned": function(*arguments)}
    except Exception:
        result = {"failed": f"process {rank}:\n{traceback.format_exc()}"}
    torch.save(result, Path(folder) / f"{rank}.pt")
    if "failed" not in result:  # the others may wait for this one for ever
        dist.barrier()
    dist.destroy_process_group()
