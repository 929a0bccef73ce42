"""Random numbers as a pure function of a seed, a step and a place: no generator, no state beyond the step."""

import math

import torch
from torch import Tensor


def uniform(seed: int, step: Tensor, rows: int, columns: int, device: torch.device) -> Tensor:
    """Numbers (rows, columns) in [0, 1), float64 (float32 on MPS); the same for the same arguments on every device."""
    place = torch.arange(rows * columns, device=device)
    key = mix(step + mix(torch.tensor(seed, device="cpu")))  # on the host, like the step
    bits = mix(mix(place + key) + key)
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return ((bits >> 11) & _low(53)).to(dtype).mul(2.0**-53).view(rows, columns)


def normal(seed: int, step: Tensor, rows: int, columns: int, device: torch.device) -> Tensor:
    """Standard normal numbers (rows, columns), by the Box-Muller transform."""
    u = uniform(seed, step, rows, 2 * columns, device)
    return (-2 * (1 - u[:, :columns]).clamp(min=1e-30).log()).sqrt() * (2 * math.pi * u[:, columns:]).cos()


def mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64: every bit of the input changes half of the bits of the output."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ ((x >> 30) & _low(34))) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & _low(37))) * _signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & _low(33))


def _low(bits: int) -> int:
    """Mask that makes an arithmetic shift to the right a logical one."""
    return (1 << bits) - 1


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x
