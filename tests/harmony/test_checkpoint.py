"""States and infos through ``torch.save`` and ``torch.load`` with its default, which admits no code."""

import importlib
import pkgutil

import pytest
import torch

import harmony
from tests import zoo


def state_classes():
    """Every class of the library whose name says that it is a state, and those that steps return."""
    names = [m.name for m in pkgutil.walk_packages(harmony.__path__, "harmony.") if ".engines" not in m.name]
    classes = {v for n in names for v in vars(importlib.import_module(n)).values() if isinstance(v, type)}
    others = {"Memory", "Level", "Moments", "Histogram", "Info"}
    own = [c for c in classes if c.__module__.startswith("harmony")]
    return sorted((c for c in own if c.__name__.endswith("State") or c.__name__ in others), key=lambda c: c.__name__)


@pytest.mark.parametrize("cls", state_classes(), ids=lambda c: c.__name__)
def test_every_state_class_loads_by_default(cls, tmp_path):
    state = cls(*[torch.ones(2)] * len(cls._fields))
    torch.save({"harmonizer": (state, ())}, tmp_path / "state.pt")
    restored = torch.load(tmp_path / "state.pt")["harmonizer"][0]
    assert type(restored) is cls and len(restored) == len(state)


def test_the_state_and_the_info_of_a_step_load_by_default(tmp_path):
    case = zoo.shared_backbone()
    harmonizer = harmony.chain(
        harmony.curriculum.running_quantile(0.3), harmony.curriculum.hysteresis(-0.1, 0.1, capacity=16),
        harmony.realign.gradvac(),
    )  # fmt: skip
    step = harmony.harmonized_grad(case.encode, case.losses, harmonizer)
    _, state, info = step(case.params, case.batch, harmonizer.init(), ids=torch.arange(zoo.B))
    torch.save([state, info], tmp_path / "run.pt")
    restored, again = torch.load(tmp_path / "run.pt")
    torch.testing.assert_close(torch.utils._pytree.tree_leaves(restored), torch.utils._pytree.tree_leaves(state))
    torch.testing.assert_close(again.gram, info.gram)
    step(case.params, case.batch, restored, ids=torch.arange(zoo.B))
