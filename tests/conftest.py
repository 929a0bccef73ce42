"""Shared settings of the tests: one thread a process, as several round differently; the same examples in CI."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # here, before torch is imported, and in the processes that tests start

from hypothesis import HealthCheck, settings

settings.register_profile(
    "harmony", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("harmony")
