"""One training step: clips weighed by terms, two learners that teach each other, and what is clipped."""

import pytest
import torch
from torch import Tensor, nn

import harmony
from recipes.training.step import Learner, StepOptions, co_teach, train_step

INPUTS = {"x": torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), "index": torch.arange(4)}
TERMS = StepOptions(weigh="terms")


class Encoder(nn.Module):
    """A layer, whose embeddings know their clips."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, index: Tensor) -> dict[str, Tensor]:
        return {"z": self.layer(x), "index": index}


class Objective(nn.Module):
    """Two loss terms for each clip, and a statistic of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)

    def forward(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        z = self.norm(self.head(embeddings["z"]))
        return {"a": z[:, 0] ** 2, "b": (z[:, 1] - 1) ** 2}


def learner(seed: int = 0, keep: list[int] | None = None) -> Learner:
    """A small learner whose harmonizer keeps some clips."""
    torch.manual_seed(seed)
    modules = nn.ModuleDict({"model": Encoder(), "objective": Objective()})
    kept = torch.ones(4) if keep is None else torch.zeros(4).index_fill(0, torch.tensor(keep, dtype=torch.int64), 1.0)

    def update(gram: Tensor, state: int, *, ids: Tensor, terms: Tensor, **_: Tensor) -> tuple[Tensor, int]:
        assert terms.shape == (4, 2) and not terms.requires_grad
        return kept[ids, None].expand(-1, 2), state + 1

    return Learner(modules, torch.optim.SGD(modules.parameters(), lr=0.1), harmony.Transform(lambda: 0, update))


def gradients(modules: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in modules.named_parameters()}


def test_terms_are_weighed_as_gradients_are():
    by_terms, by_gradients = learner(keep=[0, 2]), learner(keep=[0, 2])
    result = train_step(by_terms, INPUTS, TERMS)
    expected = train_step(by_gradients, INPUTS, StepOptions(weigh="gradients", gram={"attribution": "loss"}))
    assert result.taken and by_terms.state == by_gradients.state == 1 and result.cosines is None
    assert result.numbers["kept"] == expected.numbers["kept"] == 0.5
    torch.testing.assert_close(result.weights, expected.weights)
    torch.testing.assert_close(gradients(by_terms.modules), gradients(by_gradients.modules))


def test_two_learners_are_weighed_by_each_other():
    pair = [learner(0, keep=[0, 2]), learner(1, keep=[1])]
    alone = [learner(0, keep=[1]), learner(1, keep=[0, 2])]
    results = co_teach(pair, INPUTS, TERMS)
    for one, other, result in zip(pair, alone, results, strict=True):
        expected = train_step(other, INPUTS, TERMS)
        torch.testing.assert_close(result.weights, expected.weights)
        torch.testing.assert_close(one.modules.state_dict(), other.modules.state_dict())


def test_a_batch_of_which_nothing_is_kept_changes_nothing():
    one = learner(keep=[])
    before = {name: t.clone() for name, t in one.modules.state_dict().items()}
    result = train_step(one, INPUTS, TERMS)
    assert result.reason == "the curriculum kept no sample" and not result.broken
    torch.testing.assert_close(one.modules.state_dict(), before)


@pytest.mark.parametrize("part", ["model", "objective"])
def test_one_module_alone_is_clipped(part):
    free, clipped = learner(), learner()
    train_step(free, INPUTS, StepOptions(weigh="nothing"))
    result = train_step(clipped, INPUTS, StepOptions(weigh="nothing", clip_norm=1e-3, clip_only=part))
    norms = {name: torch.stack([g.norm() for g in gradients(m).values()]).norm() for name, m in clipped.modules.items()}
    assert norms[part] == pytest.approx(1e-3, rel=1e-3) and result.numbers["gradient_norm"] > 1e-3
    other = "objective" if part == "model" else "model"
    torch.testing.assert_close(gradients(clipped.modules[other]), gradients(free.modules[other]))
