"""The architectures of every package that is installed."""

import importlib
import importlib.util

from tests.harmony.third_party.architecture import Builder

PACKAGES = (
    "transformers",
    "timm",
    "torchvision",
    "vit_pytorch",
    "x_transformers",
    "torch_geometric",
    "peft",
    "diffusers",
)


def installed(package: str) -> bool:
    """Whether a package, and what it imports itself, is there."""
    return importlib.util.find_spec(package) is not None


def builders(package: str) -> dict[str, Builder]:
    """Name -> architecture of a package."""
    return importlib.import_module(f"tests.harmony.third_party.{package}_models").BUILDERS
