"""Peak memory of one step, measured in a process of its own: what it takes above model, batch and a warm-up.

python -m recipes.research.benchmark.memory '{"contestant": "plain", "spec": {...}}' prints bytes.
"""

import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from recipes.research.benchmark.contestants import CONTESTANTS, pcgrad
from recipes.research.benchmark.workloads import Spec, build

WARM_UP = 2  # samples
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak(spec: Spec, contestant: str, timeout: float) -> int:
    """Peak memory of a step in bytes, above what the process held with the model, the batch and a warm-up.

    Raises:
        RuntimeError: The process failed; the message is the last line it wrote.
        subprocess.TimeoutExpired: It took too long.
    """
    return alone(__name__, {"contestant": contestant, "spec": asdict(spec)}, timeout)


def alone(module: str, request: dict[str, Any], timeout: float) -> int:
    """The last number that a module prints, run in a process of its own with a request in JSON; raises as `peak`."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    command = [sys.executable, "-m", module, json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"]
        raise RuntimeError(lines[-1])
    return int(done.stdout.strip().splitlines()[-1])


def measure(spec: Spec, contestant: str) -> int:
    """The same in this process."""
    workload = build(spec)
    step = CONTESTANTS[contestant].make(workload, pcgrad)
    step(workload.draw(WARM_UP))
    batch = workload.draw(spec.batch)
    return peak_of(lambda: step(batch), spec.device)


def peak_of(call: Callable[[], Any], device: str) -> int:
    """Bytes that a call, and what it returns, take at most above what is held before it, in this process."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        outcome = call()
        torch.cuda.synchronize()
        found = torch.cuda.max_memory_allocated() - before
    else:
        before = _resident()
        outcome = call()
        found = _peak_resident() - before
    del outcome
    return max(found, 0)


def _resident() -> int:
    """Resident bytes now; the peak is counted from here on.

    On Linux the kernel's mark is reset. `ru_maxrss` cannot be, and a new process inherits its parent's: it is the last
    resort of other systems.
    """
    if CLEAR.exists():
        CLEAR.write_text("5")
        return _status("VmRSS")
    return _peak_resident()


def _peak_resident() -> int:
    if STATUS.exists():
        return _status("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(key: str) -> int:
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(measure(Spec(**given["spec"]), given["contestant"]))
