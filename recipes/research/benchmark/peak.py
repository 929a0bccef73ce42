"""Peak memory of one call, measured in a process of its own: what it takes above what the process held before.

python -m recipes.research.benchmark.peak MODULE REQUEST

calls ``MODULE.one_step(**REQUEST)``, REQUEST in JSON, which returns a function and its device, and prints the bytes.
"""

import gc
import importlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WARM_UP = 2  # samples of the step before the one that is measured
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def alone(module: str, request: dict[str, Any], timeout: float) -> int:
    """Peak memory, in bytes, of the function that ``module.one_step(**request)`` returns, in a process of its own."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    command = [sys.executable, "-m", __name__, module, json.dumps(request)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"the measurement of memory took more than {timeout:g} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"]
        raise RuntimeError(lines[-1])
    return int(done.stdout.strip().splitlines()[-1])


def of_call(call: Callable[[], Any], device: str) -> int:
    """Bytes that a call and its result take at most in this process, above what is held before."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        outcome = call()
        torch.cuda.synchronize()
        taken = torch.cuda.max_memory_allocated() - before
    else:
        before = _resident()
        outcome = call()
        taken = _peak_resident() - before
    del outcome
    return max(taken, 0)


def _resident() -> int:
    """Resident bytes now; the peak counts from here on.

    `ru_maxrss` cannot be reset and is inherited from the parent: it is the last resort of systems other than Linux.
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
    step, device = importlib.import_module(sys.argv[1]).one_step(**json.loads(sys.argv[2]))
    print(of_call(step, device))
