"""When to verify what was derived: often at first, rarely later."""

import threading
from collections import Counter
from typing import Any

from harmony.engines.options import Verify

_CALLS: Counter[int] = Counter()
_REMEMBERED = 4096
_LOCK = threading.Lock()


def due(signature: Any, verify: Verify) -> bool:
    """Whether to verify now: with ``"auto"`` at the calls 1, 2, 4, 8, ... with the same signature."""
    if verify != "auto":
        return verify == "always"
    key = hash(signature)
    with _LOCK:
        if len(_CALLS) > _REMEMBERED:
            _CALLS.clear()
        _CALLS[key] += 1
        calls = _CALLS[key]
    return calls & (calls - 1) == 0
