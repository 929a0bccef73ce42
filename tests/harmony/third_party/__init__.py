"""Unchanged architectures of other packages: lists of them, and what the engines make of each."""

from tests.harmony.third_party.torchvision_ops import declare

DECLARED = declare()  # before any package imports torchvision
