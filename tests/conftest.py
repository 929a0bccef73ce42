"""Shared settings of the tests: one torch thread a worker, and Hypothesis without deadlines."""

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile("harmony", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("harmony")
