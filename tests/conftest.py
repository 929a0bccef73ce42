"""Shared settings of the tests: one torch thread a worker; Hypothesis without deadlines, the same examples in CI."""

import os

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile(
    "harmony", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("harmony")
