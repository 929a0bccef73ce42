"""``plan`` proposes a Gram over the last block, with what it would save."""

import pytest
import torch
from torch import nn

import harmony
from tests import zoo

WIDTH = 6


def chain(params, x):
    """Three layers of one product and one tanh each."""
    for number in range(3):
        x = torch.tanh(x @ params[f"blocks.{number}.w"])
    return x


def losses(out):
    return {"first": out[:, 0], "norm": out.square().sum(1)}


PARAMS = {f"blocks.{n}.w": zoo.randn(WIDTH, WIDTH) for n in range(3)}
BATCH = zoo.randn(4, WIDTH)


def flops(plan):
    return sum(row.flops for row in plan.rows if row.choice != "update only")


def test_a_proposal_is_what_the_plan_of_it_costs():
    plan = harmony.plan(chain, losses, PARAMS, BATCH)
    block, projection = plan.cheaper
    assert (block.wrt, projection.wrt) == ("last_block", "last_projection")
    assert block.part == projection.part == "blocks.2.w"
    own = harmony.plan(chain, losses, PARAMS, BATCH, wrt="last_block")
    assert block.work == pytest.approx(flops(own) / flops(plan)) and own.update == "backward"
    assert block.passes == 1 / 5  # tanh, of three times tanh and twice the product before it
    line = f'cheaper: wrt="last_block" (blocks.2.w): {block.work:.0%} of the MFLOP, passes through 20% of the ops'
    assert line in str(plan).splitlines()


def test_the_line_names_the_block():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 4)
    plan = harmony.plan(encoder, torch.randn(3, 5, 8), lambda out: losses(out.mean(1)))
    block, projection = map(str, plan.cheaper)
    assert block.startswith('wrt="last_block" (layers.3): ')
    assert projection.startswith('wrt="last_projection" (layers.3.linear2.weight): ')
    assert 0 < plan.cheaper[1].work < plan.cheaper[0].work < 0.5
    assert 0 < plan.cheaper[1].passes < plan.cheaper[0].passes < 0.5


@pytest.mark.parametrize(
    "options",
    [{"wrt": "shared"}, {"wrt": "last_block"}, {"labels": lambda name: name}, {"engine": harmony.Engine("loop")}],
)
def test_nothing_is_proposed_to_who_has_chosen(options):
    assert not harmony.plan(chain, losses, PARAMS, BATCH, **options).cheaper


def test_nothing_is_proposed_where_names_have_no_blocks_or_the_block_is_most_of_the_work():
    assert not harmony.plan(*zoo.raw(lambda x, w: x @ w, BATCH, w=zoo.randn(WIDTH, WIDTH))).cheaper
    large = {"blocks.0.w": zoo.randn(WIDTH, 2), "blocks.1.w": zoo.randn(2, 300)}

    def two(params, x):
        return x @ params["blocks.0.w"] @ params["blocks.1.w"]

    assert not harmony.plan(two, losses, large, BATCH).cheaper


def test_a_block_that_not_every_loss_reaches_is_not_proposed():
    def early(params, x):
        return {"middle": torch.tanh(x @ params["blocks.0.w"]), "end": chain(params, x)}

    def apart(out):
        return {"middle": out["middle"].sum(1), "end": out["end"].sum(1)}

    assert not harmony.plan(early, apart, PARAMS, BATCH).cheaper


def test_layers_side_by_side_have_no_ops_for_passes_to_go_through():
    params = {f"blocks.{n}.w": zoo.randn(WIDTH, WIDTH) for n in range(6)}

    def beside(params, x):
        return [x @ w for w in params.values()]

    def of_all(out):
        return losses(sum(out))

    assert [proposal.passes for proposal in harmony.plan(beside, of_all, params, BATCH).cheaper] == [0, 0]
