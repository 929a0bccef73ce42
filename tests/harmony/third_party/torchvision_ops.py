"""Declare what torchvision needs on import where its compiled ops cannot be loaded (a build for another torch).

The models of ``torchvision.models`` that classify use none of these ops; detection does, and raises when it runs.
"""

import importlib.util

from torch.library import Library


def declare() -> Library | None:
    """Make ``import torchvision`` work, and keep the result: the declarations live as long as it does."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # operator torchvision::nms does not exist
        library = Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None
