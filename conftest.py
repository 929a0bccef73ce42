"""The examples in docstrings use `torch` and `harmony` without an import, as PyTorch's own do."""

from typing import Any

import pytest


@pytest.fixture(autouse=True)
def names_of_examples(doctest_namespace: dict[str, Any]) -> None:
    """Give examples their two names; both are imported late, after `tests/conftest.py` has set the threads."""
    import torch

    import harmony

    doctest_namespace |= {"torch": torch, "harmony": harmony}
