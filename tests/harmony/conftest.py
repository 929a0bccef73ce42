"""Fixtures for several files."""

from collections import OrderedDict

import pytest

from harmony.engines.tape import grad_rules, topology


@pytest.fixture
def rules(monkeypatch):
    """Replaces the rule of an op; nothing is remembered of what the rules gave before."""
    monkeypatch.setattr(topology, "REMEMBERED", 0)
    monkeypatch.setattr(topology, "_KNOWN", OrderedDict())
    return lambda op, rule: monkeypatch.setitem(grad_rules.RULES, op, rule)
