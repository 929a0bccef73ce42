"""Before a contestant is timed, it has to give the plain gradient and the reference engine's Gram blocks."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor, nn

import harmony
from recipes.research.benchmark.contestants import CONTESTANTS, PLAIN, Contestant, Outcome, ones
from recipes.research.benchmark.racing import WrongAnswer, reason
from recipes.research.benchmark.workloads import Workload, build

log = logging.getLogger(__name__)

CHECKED_ON = 12  # samples; no multiple of the usual chunks
TOLERANCE = 1e-3  # relative error in float32; a wrong gradient is off by far more
NOISE = 3  # in half precision: times the error that the plain step itself has there
REFERENCE = harmony.Engine("vmap", chunk_size=CHECKED_ON // 3)


class Checker:
    """Compares contestants with the plain gradient and a reference engine's Gram blocks on one small batch."""

    def __init__(self, workload: Workload, reference: harmony.Engine = REFERENCE) -> None:
        self.workload, self.reference = workload, reference
        self.batch = workload.draw(CHECKED_ON)
        self.grams: dict[tuple[str, str | None], Tensor | None] = {}
        self.expected = self._take(CONTESTANTS[PLAIN], workload)
        self.tolerance = TOLERANCE
        if workload.spec.dtype != "float32":
            exact = self._take(CONTESTANTS[PLAIN], build(replace(workload.spec, dtype="float32")))
            self.tolerance = NOISE * self._gradient_error(exact)

    def check(self, contestant: Contestant, workload: Workload) -> tuple[float, float | None]:
        """Relative errors of gradient and Gram blocks (None: no reference); a WrongAnswer above the tolerance."""
        outcome = self._take(contestant, workload)
        gradient = self._gradient_error(outcome)
        if not gradient <= self.tolerance:
            raise WrongAnswer(f"wrong: with weights 1 its gradient is off by {gradient:.1e} from the plain one")
        reference = self._reference(contestant)
        if outcome.gram is None or reference is None:
            return gradient, None
        gram = relative_error([outcome.gram], [reference])
        if not gram <= 2 * self.tolerance:  # quadratic in the gradient
            raise WrongAnswer(f"wrong: its Gram blocks are off by {gram:.1e} from the reference engine's")
        return gradient, gram

    def _take(self, contestant: Contestant, workload: Workload) -> Outcome:
        """A step with weights 1."""
        with _deterministic(workload.model):
            return contestant.make(workload, ones)(self.batch)

    def _gradient_error(self, outcome: Outcome) -> float:
        """The larger of the errors of the encoder's and the losses' gradients."""
        pairs = zip(outcome[:2], self.expected[:2], strict=True)
        return max(relative_error(list(a.values()), list(b.values())) for a, b in pairs)

    def _reference(self, contestant: Contestant) -> Tensor | None:
        """Gram blocks by the reference engine; None if the contestant has none, or the engine cannot do this model."""
        own, attribution, part = self.workload, contestant.attribution, contestant.part
        if attribution is not None and (attribution, part) not in self.grams:
            keywords = {"loss_params": own.loss_params, "wrt": own.selects(part), "attribution": attribution}
            try:
                with _deterministic(own.model):
                    result = harmony.gram_vjp(
                        own.encode, own.losses, own.params, self.batch, engine=self.reference, **keywords
                    )
                self.grams[attribution, part] = result.gram
            except Exception as error:  # whatever a model makes of vmap
                log.warning("the Gram blocks (%s) are not checked: %s", attribution, reason(error))
                self.grams[attribution, part] = None
        return None if attribution is None else self.grams[attribution, part]


@contextmanager
def _deterministic(model: nn.Module) -> Iterator[None]:
    """Without dropout and DropToken, so that there is one right answer."""
    model.eval()
    try:
        yield
    finally:
        model.train()


def relative_error(actual: list[Tensor | None], expected: list[Tensor | None]) -> float:
    """Norm of the difference of two lists of tensors over the norm of the second; None counts as zeros."""
    difference = norm = 0.0
    for a, b in zip(actual, expected, strict=True):
        difference += _squared(a if b is None else b if a is None else a.double() - b.double())
        norm += _squared(b)
    return (difference / norm) ** 0.5 if norm else difference**0.5


def _squared(x: Tensor | None) -> float:
    return 0.0 if x is None else float(x.double().square().sum())
