"""The facts of the machine, without which a time is worth nothing."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch


def facts(device: str) -> dict[str, Any]:
    """Date, commit, device, versions and threads, as columns of a table."""
    cuda = device == "cuda"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _line("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"),
        "machine": torch.cuda.get_device_name() if cuda else _processor(),
        "driver": _line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if cuda else "",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def described(about: dict[str, Any]) -> str:
    """The facts in a line for people; what is not known is left out."""
    known = {"driver": "driver {}", "threads": "threads: {}", "torch": "torch {}", "commit": "commit {}", "date": "{}"}
    return ", ".join([about["machine"], *(words.format(about[f]) for f, words in known.items() if about.get(f))])


def _line(*command: str) -> str:
    """The first line that a command prints; empty if it cannot be run."""
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return ""
    return lines[0] if lines else ""


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
