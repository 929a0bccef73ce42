"""The library's tests that need a CUDA device, run in a process of their own."""

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[3]
CHOSEN = ("-m", "gpu", "tests/harmony")


def outcome(device: str, limit: float) -> str:
    """The tests' outcome in a line."""
    if device != "cuda":
        return "not run: there is no CUDA device"
    if missing := [name for name in ("pytest", "hypothesis") if find_spec(name) is None]:
        return f"not run: {' and '.join(missing)} not installed"
    return last_line(CHOSEN, limit)


def last_line(chosen: Sequence[str], limit: float, root: Path = ROOT) -> str:
    """What pytest says at its end of chosen tests; the settings of the repository, which name plugins, are left out."""
    settings = ["-q", "--no-header", "-c", os.devnull, f"--rootdir={root}", "--import-mode=importlib", "-W", "ignore"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
    command = [sys.executable, "-m", "pytest", *settings, "-p", "no:cacheprovider", *chosen]
    try:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"not finished within {limit:g} s"
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines()
    return lines[-1].strip("= ") if lines else f"pytest ended with {done.returncode} and no word"
