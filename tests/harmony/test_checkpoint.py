"""States and infos through ``torch.save`` and ``torch.load`` with its default, which admits no code."""

import importlib
import inspect
import io
import pkgutil

import pytest
import torch
from torch.utils import _pytree as pytree

import harmony
from harmony import curriculum, realign, score
from harmony.score import Score, as_score
from harmony.transform import Transform
from tests import zoo


def state_classes():
    """Every class of the library whose name says that it is a state, and those that steps return."""
    names = [m.name for m in pkgutil.walk_packages(harmony.__path__, "harmony.") if ".engines" not in m.name]
    classes = {v for n in names for v in vars(importlib.import_module(n)).values() if isinstance(v, type)}
    others = {"History", "RunningMean", "Moments", "Histogram", "Info"}
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


ARGUMENTS = {
    "quantile": (0.5,),
    "running_quantile": (0.5,),
    "top_k": (2,),
    "hysteresis": (-0.1, 0.1, score.ema(score.agreement, capacity=16), 16),
    "renormalized": (curriculum.threshold(score=score.ema(score.agreement, capacity=16)),),
    "weighted": (curriculum.threshold(score=score.ema(score.agreement, capacity=16)), realign.gradvac()),
    "combined": (score.ema(score.agreement, capacity=16), score.ranked(score.small_loss)),
    "ema": (score.ema(score.agreement, capacity=8), 0.5, 16),
    **{name: (score.ema(score.agreement, capacity=16),) for name in ("least", "negative", "ranked", "standardized")},
}


def made(package, name):
    """A public name of a package as something with a state: a transform, a score, or a curriculum by that score."""
    function = getattr(package, name)
    if package is realign and "gram" in inspect.signature(function).parameters:
        return harmony.chain(function)
    if package is score and name not in ARGUMENTS:
        return as_score(function)
    found = function(*ARGUMENTS.get(name, ()))
    return curriculum.threshold(score=found) if isinstance(found, Score) and name == "ema" else found


NAMES = [
    (package, name)
    for package in (curriculum, realign, score)
    for name in package.__all__
    if name not in ("AnyScore", "Score", "as_score")
]


def loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()))


def same(a, b):
    leaves, spec = pytree.tree_flatten(a)
    others, other_spec = pytree.tree_flatten(b)
    return spec == other_spec and all(map(torch.equal, leaves, others))


@pytest.mark.parametrize(("package", "name"), NAMES, ids=[f"{p.__name__}.{n}" for p, n in NAMES])
def test_a_run_goes_on_from_a_file_as_if_there_had_been_none(package, name):
    transform = made(package, name)
    assert isinstance(transform, Transform | Score)
    generator = torch.Generator().manual_seed(0)
    state = restored = transform.init()
    for _ in range(3):
        g = torch.randn(6, 2, 3, generator=generator, dtype=torch.float64)
        extras = {
            "terms": torch.rand(6, 2, generator=generator),
            "batch_products": torch.randn(6, 2, generator=generator),
            "batch_square": torch.rand((), generator=generator),
            "reference_products": torch.randn(6, 2, generator=generator),
            "reference_square": torch.rand((), generator=generator),
            "similarity": torch.rand(6, generator=generator),
            "sides": torch.rand(6, 3, 6, generator=generator),
            "triplet": torch.randn(6, 3, 4, generator=generator),
            "weights": torch.rand(6, 2, generator=generator),
            "reference_terms": torch.rand(6, 2, generator=generator),
            "first": torch.randn(6, 4, generator=generator),
            "second": torch.randn(6, 3, generator=generator),
            "ids": torch.randint(0, 9, (6,), generator=generator),
        }
        restored = loaded(restored)
        assert same(restored, state)
        got, restored = transform.update(g @ g.mT, restored, **extras)
        expected, state = transform.update(g @ g.mT, state, **extras)
        assert torch.equal(got, expected) and same(restored, state)


def test_chains_and_labels_load_too():
    transform = harmony.layerwise(harmony.chain(curriculum.cross_check(), realign.gradvac(), realign.random()))
    gram = {label: torch.eye(2).expand(3, 2, 2) for label in "ab"}
    extras = {"terms": torch.rand(3, 2), "sides": torch.rand(3, 3, 3)}
    _, state = transform.update(gram, transform.init(), **extras)
    assert same(loaded(state), state)
