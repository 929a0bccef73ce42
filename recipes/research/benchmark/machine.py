"""The facts of the machine, without which a time is worth nothing."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch


def facts(device: str) -> dict[str, Any]:
    """Date, device, versions and threads, as columns of a table."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def described(about: dict[str, Any]) -> str:
    return f"{about['machine']}, threads: {about['threads']}, torch {about['torch']}, {about['date']}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
