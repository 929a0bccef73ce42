"""How a sample stands in its batch: standardized values and places. Both leave some samples out."""

import torch
from torch import Tensor


def standardize(values: Tensor, mask: Tensor) -> Tensor:
    """Values (B,) less their mean, over their standard deviation; both are taken where ``mask`` is true."""
    number = mask.sum().clamp(min=1)
    deviation = values - torch.where(mask, values, 0).sum() / number
    std = (torch.where(mask, deviation, 0).square().sum() / number).sqrt()
    return deviation / torch.where(std > 0, std, 1)


def places(values: Tensor) -> Tensor:
    """Place (B,) of each value, 0 for the largest; of equal values the first comes first, NaN comes last."""
    order = torch.where(values.isnan(), -torch.inf, values).sort(descending=True, stable=True).indices
    return torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))
