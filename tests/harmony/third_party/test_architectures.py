"""Unchanged architectures of other packages: exact on the tape, exact by a fallback, or refused, as the table says.

Optional: architectures of packages that are not installed are skipped; ``make test-models`` installs and runs.
"""

import pytest
import torch

from tests.harmony.third_party.case import Case, case
from tests.harmony.third_party.expected import Expected, expected
from tests.harmony.third_party.numbers import by_hand, summed, worst
from tests.harmony.third_party.packages import PACKAGES, builders
from tests.harmony.third_party.verdict import judge

pytestmark = pytest.mark.slow

RUNS = [
    pytest.param(line, mode, precision, id=f"{line.package}-{line.name}-{mode}-{precision}")
    for line in expected()
    for mode in ("eval", "train")
    for precision in ("float64", "float32")
    if getattr(line, mode) != "-" and (precision == "float32" or line.float64 == "yes")
]


@pytest.mark.parametrize(("line", "mode", "precision"), RUNS)
def test_exact_or_refused(line: Expected, mode: str, precision: str) -> None:
    """In float64 parameter by parameter; in float32 in the ordinary way. Both against ``backward()`` by hand."""
    pytest.importorskip(line.package, reason="run by `make test-models`")
    double = precision == "float64"
    engine, reason, numbers = judge(built(line, mode, precision), by_parameter=double)
    assert engine == getattr(line, mode), reason
    if numbers is None:
        assert "encode" in reason, reason
        return
    tolerance = 1e-9 if double else 1e-4
    reference = by_hand(built(line, mode, precision))
    error, where = worst(numbers, reference if double else summed(reference), tolerance)
    if error >= tolerance and not double and line.float64 == "yes":  # rounded as much by hand, in another direction
        error, where = worst(numbers, summed(by_hand(built(line, mode, "float64"))), tolerance)
    assert error < tolerance, where


ON_CUDA = [
    pytest.param(line, mode, id=f"{line.package}-{line.name}-{mode}")
    for line in expected()
    for mode in [max(("train", "eval"), key=lambda mode: (getattr(line, mode) == "tape", mode))]
]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize(("line", "mode"), ON_CUDA)
def test_exact_or_refused_on_cuda(line: Expected, mode: str) -> None:
    """The kernels of a CUDA device, in float32."""
    with torch.device("cuda"):
        test_exact_or_refused(line, mode, "float32")


def built(line: Expected, mode: str, precision: str) -> Case:
    """The architecture of a line."""
    return case(builders(line.package)[line.name], train=mode == "train", dtype=getattr(torch, precision))


@pytest.mark.parametrize("package", PACKAGES)
def test_table_is_complete(package: str) -> None:
    """Every architecture has a line, and every line an architecture."""
    pytest.importorskip(package, reason="run by `make test-models`")
    assert [line.name for line in expected() if line.package == package] == list(builders(package))


def test_wide() -> None:
    """What the documentation counts."""
    exact = [line for line in expected() if "tape" in (line.eval, line.train)]
    assert len(exact) >= 60
    assert len({line.package for line in exact}) >= 6
