"""Several processes that share a batch get what one process gets for the whole batch."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree

import harmony
from harmony import curriculum, realign, score
from tests import processes
from tests.harmony.options import keywords

SIZE = 12
BACKBONE = lambda name: name.startswith("backbone")  # noqa: E731
BY_LAYER = lambda name: name.split(".")[1] if BACKBONE(name) else None  # noqa: E731
TRUST = lambda f: {"weights": torch.stack([torch.ones_like(f["valid"]), f["valid"]], 1)}  # noqa: E731

STANDARDIZED = score.standardized(score.norm_ratio)


class Encoder(nn.Module):
    """A backbone that three modalities share, the third of them partly missing."""

    def __init__(self) -> None:
        super().__init__()
        self.stems = nn.ModuleList(nn.Linear(width, 8) for width in (3, 4, 5))
        self.backbone = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 8))

    def forward(self, x: Tensor, y: Tensor, z: Tensor, valid: Tensor) -> dict[str, Tensor]:
        f = [self.backbone(stem(input)) for stem, input in zip(self.stems, (x, y, z), strict=True)]
        return dict(zip("xyz", f, strict=True)) | {"valid": valid}


class Heads(nn.Module):
    """Batch normalisation and a learnable temperature, over the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(8, 6, bias=False), nn.BatchNorm1d(6))
        self.temperature = nn.Parameter(torch.tensor(0.3))

    def forward(self, f: dict[str, Tensor]) -> dict[str, Tensor]:
        x = self.head(f["x"])
        nce = partial(harmony.losses.info_nce, x, temperature=self.temperature)
        return {"xy": nce(f["y"][:, :6]), "xz": nce(f["z"][:, :6], valid=f["valid"], symmetric=True)}


def modules() -> tuple[Encoder, Heads]:
    torch.manual_seed(0)
    return Encoder().double(), Heads().double()


def batch(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y, z = (torch.randn(SIZE, width, generator=generator, dtype=torch.float64) for width in (3, 4, 5))
    return {"x": x, "y": y, "z": z, "valid": torch.arange(SIZE) % 5 != 1}


def share(tree: Any, sizes: list[int]) -> Any:
    """This process's rows."""
    start = sum(sizes[: dist.get_rank()])
    return pytree.tree_map(lambda x: x[start : start + sizes[dist.get_rank()]], tree)


def error(got: Any, expected: Any) -> float:
    """Largest deviation of a tree, each tensor relative to its largest entry; NaN equals NaN, and nothing else."""
    pairs = zip(pytree.tree_leaves(got), pytree.tree_leaves(expected), strict=True)
    worst = 0.0
    for a, b in pairs:
        if a is None and b is None:
            continue
        a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
        assert a.shape == b.shape
        deviation = (a - b).abs().masked_fill((a == b) | (a.isnan() & b.isnan()), 0).nan_to_num(torch.inf, torch.inf)
        largest, scale = (x.max() if x.numel() else torch.zeros(()) for x in (deviation, b[b.isfinite()].abs()))
        worst = max(worst, float(largest / scale if scale > 0 else largest))
    return worst


GIVEN = {n: torch.linspace(-1, 1, p.numel()).double().cos().view(p.shape) for n, p in Encoder().named_parameters()}

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "sum": (lambda: harmony.chain(), {}),
    "pcgrad": (lambda: harmony.chain(realign.pcgrad), {}),
    "pcgrad, in chunks": (lambda: harmony.chain(realign.pcgrad), {"chunk_size": 2}),
    "pcgrad, in groups": (lambda: harmony.chain(realign.pcgrad), {"group_size": 2}),
    "pcgrad, groups larger than a chunk": (lambda: harmony.chain(realign.pcgrad), {"group_size": 3, "chunk_size": 2}),
    "pcgrad, loss-wise": (lambda: harmony.chain(realign.pcgrad), {"attribution": "loss"}),
    "pcgrad, loss-wise in groups": (
        lambda: harmony.chain(realign.pcgrad), {"attribution": "loss", "group_size": 2, "chunk_size": 2},
    ),
    "pcgrad, anchor": (lambda: harmony.chain(realign.pcgrad), {"attribution": "anchor"}),
    "pcgrad, features": (lambda: harmony.chain(realign.pcgrad), {"space": "features", "wrt": None}),
    "pcgrad, features, loss-wise": (
        lambda: harmony.chain(realign.pcgrad),
        {"space": "features", "wrt": None, "attribution": "loss", "group_size": 2},
    ),
    "pcgrad, features, anchor in groups": (
        lambda: harmony.chain(realign.pcgrad),
        {"space": "features", "wrt": None, "attribution": "anchor", "group_size": 2},
    ),
    "pcgrad, shared": (lambda: harmony.chain(realign.pcgrad), {"wrt": "shared"}),
    "pcgrad, vmap": (lambda: harmony.chain(realign.pcgrad), {"method": "vmap"}),
    "layerwise": (
        lambda: harmony.chain(curriculum.threshold(-0.2), harmony.layerwise(realign.pcgrad)),
        {"wrt": None, "labels": BY_LAYER},
    ),
    "quantile": (lambda: harmony.chain(curriculum.quantile(0.5), realign.pcgrad), {}),
    "top_k": (lambda: harmony.chain(curriculum.top_k(5)), {}),
    "running_quantile": (lambda: harmony.chain(curriculum.running_quantile(0.6, decay=0.5)), {}),
    "renormalized": (lambda: harmony.chain(curriculum.renormalized(curriculum.threshold(0.0)), realign.pcgrad), {}),
    "weighted": (lambda: curriculum.weighted(curriculum.threshold(-0.2), realign.pcgrad), {"extras": TRUST}),
    "small loss": (lambda: harmony.chain(curriculum.quantile(0.5, score=score.small_loss)), {}),
    "batch agreement": (
        lambda: harmony.chain(curriculum.quantile(0.5, score=score.batch_agreement)), {"products_with": "batch"},
    ),
    "reference agreement": (
        lambda: harmony.chain(curriculum.threshold(0.0, score=score.reference_agreement), realign.pcgrad),
        {"products_with": GIVEN, "group_size": 2},
    ),
    "reference agreement, loss-wise in chunks": (
        lambda: harmony.chain(curriculum.quantile(0.5, score=score.reference_agreement)),
        {"products_with": GIVEN, "attribution": "loss", "chunk_size": 2},
    ),
    "ranks": (
        lambda: harmony.chain(curriculum.quantile(0.5, score.least(score.ranked(score.agreement), STANDARDIZED))), {},
    ),
    "memory of samples": (
        lambda: harmony.chain(curriculum.quantile(0.5, score.ema(score.agreement, 0.5, capacity=64))), {},
    ),
    "hysteresis": (lambda: harmony.chain(curriculum.hysteresis(-0.1, 0.1, capacity=64)), {}),
    "gradvac": (lambda: harmony.chain(realign.gradvac()), {}),
    "pcgrad_random": (lambda: harmony.chain(realign.pcgrad_random(seed=3)), {}),
    "random": (lambda: harmony.chain(realign.random(seed=3)), {}),
    "cagrad": (lambda: harmony.chain(realign.cagrad), {}),
}  # fmt: skip


def steps(make: Any, options: dict[str, Any], sizes: list[int] | None) -> Any:
    """Three steps of a harmonizer with memory: gradients, state and what was seen, of this process's share."""
    encoder, heads = modules()
    params, loss_params = ({n: p.detach() for n, p in m.named_parameters()} for m in (encoder, heads))
    buffers = dict(heads.named_buffers())
    options = {"wrt": BACKBONE} | options | ({} if sizes is None else {"process_group": dist.group.WORLD})
    harmonizer = make()
    step = harmony.harmonized_grad(
        lambda p, b: torch.func.functional_call(encoder, p, (), b),
        lambda p, f: torch.func.functional_call(heads, (p, buffers), (f,)),
        harmonizer,
        **keywords(**options),
    )
    state, found = harmonizer.init(), []
    for number in range(3):
        rows, ids = batch(number), torch.arange(SIZE) + 5 * number
        if sizes is not None:
            rows, ids = share(rows, sizes), share(ids, sizes)
        grads, state, info = step(params, rows, state, ids=ids, loss_params=loss_params)
        found.append([grads, info])
    return found, state, buffers


def compare_all(sizes: list[int], names: list[str]) -> dict[str, float]:
    """The error of each case."""
    return {name: error(steps(*CASES[name], sizes), steps(*CASES[name], None)) for name in names}


GROUPED = [name for name, (_, options) in CASES.items() if options.get("group_size", 1) > 1]


@pytest.fixture(scope="module")
def of_two() -> dict[str, float]:
    """Errors of two processes with equal shares."""
    first, second = processes.run(compare_all, 2, [6, 6], list(CASES))
    return {name: max(first[name], second[name]) for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(of_two, name):
    assert of_two[name] < 1e-8


@pytest.fixture(scope="module")
def of_unequal() -> dict[str, float]:
    """Errors of two processes with shares of different size; groups do not reach over both."""
    names = [name for name in CASES if name not in GROUPED]
    first, second = processes.run(compare_all, 2, [5, 7], names)
    return {name: max(first[name], second[name]) for name in names}


@pytest.mark.parametrize("name", [name for name in CASES if name not in GROUPED])
def test_shares_may_differ(of_unequal, name):
    assert of_unequal[name] < 1e-8


@pytest.mark.slow
def test_four_processes_are_one():
    for errors in processes.run(compare_all, 4, [3, 3, 3, 3], [n for n in CASES if n not in GROUPED]):
        assert max(errors.values()) < 1e-8, errors
    for errors in processes.run(compare_all, 4, [1, 2, 4, 5], [n for n in CASES if n not in GROUPED]):
        assert max(errors.values()) < 1e-8, errors


def sharded(encoder: Encoder, mesh: Any) -> Encoder:
    for layer in (*encoder.stems, encoder.backbone):
        fully_shard(layer, mesh=mesh)
    return fully_shard(encoder, mesh=mesh)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    names = [n.removeprefix("_orig_mod.").removeprefix("module.") for n, _ in module.named_parameters()]
    grads = [p.grad for p in module.parameters()]
    return {n: getattr(g, "full_tensor", lambda g=g: g)() for n, g in zip(names, grads, strict=True)}


def wrapped_errors(sizes: list[int]) -> dict[str, float]:
    """Modules in an ordinary loop, two steps of accumulation: harmonized, and the plain loop that they stand in for."""
    harmonizer = harmony.chain(curriculum.quantile(0.5), realign.pcgrad)
    wrappers = {
        "alone": lambda m: m,
        "DDP": DistributedDataParallel,
        "DDP, compiled": lambda m: torch.compile(DistributedDataParallel(m), backend="eager"),
        "FSDP2": partial(sharded, mesh=init_device_mesh("cpu", (dist.get_world_size(),))),
    }
    if dist.get_world_size() == 4:
        wrappers["HSDP"] = partial(sharded, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "parts")))
    found: dict[str, Any] = {}
    for kind, wrap in wrappers.items():
        for mode in ("harmonized", "harmonized in chunks", "plain"):
            encoder, heads = modules()
            wrapped = wrap(encoder)
            for number in range(2):
                rows = batch(number) if kind == "alone" else share(batch(number), sizes)
                if mode == "plain":
                    f = wrapped(**rows)
                    f = f if kind == "alone" else harmony.distributed.gather(f)
                    sum(term.mean() for term in heads(f).values()).backward()
                else:
                    chunks = {"chunk_size": 2} if "chunks" in mode else {}
                    mine = {"process_group": None} if kind == "alone" else {}
                    info, _ = harmony.backward(
                        wrapped, rows, heads, harmonizer, wrt=BACKBONE, **keywords(**chunks, **mine)
                    )
                    assert len(info.agreement) == SIZE
            found[f"{kind}, {mode}"] = [gradients(wrapped), gradients(heads), dict(heads.named_buffers())]
            if kind == "FSDP2" and mode == "harmonized":  # its hooks are back: the plain pass goes on with the shards
                assert wrapped(**share(batch(), sizes))["x"].shape == (sizes[dist.get_rank()], 8)
    return {name: error(x, found["alone, " + name.rpartition(", ")[2]]) for name, x in found.items()}


def test_wrapped_modules_get_the_gradient_of_the_whole_batch():
    for errors in processes.run(wrapped_errors, 2, [5, 7]):
        assert len(errors) == 12 and max(errors.values()) < 1e-8, errors


def measured_error(sizes: list[int]) -> float:
    """What is measured of a wrapped module and its share of the batch, and of the module alone and the whole batch."""
    encoder, heads = modules()
    info = harmony.measure(DistributedDataParallel(encoder), share(batch(), sizes), heads, labels=BY_LAYER)
    encoder, heads = modules()
    return error(info, harmony.measure(encoder, batch(), heads, labels=BY_LAYER, process_group=None))


def test_wrapped_modules_measure_the_whole_batch():
    assert max(processes.run(measured_error, 2, [5, 7])) < 1e-8


def products_with_sharded(sizes: list[int]) -> float:
    """Products with a gradient that is spread over the processes as its parameters are, and with it as a whole."""
    encoder, heads = modules()
    expected = harmony.measure(encoder, batch(), heads, products_with=GIVEN, process_group=None).products
    wrapped = sharded(encoder, init_device_mesh("cpu", (dist.get_world_size(),)))
    given = {n: distribute_tensor(GIVEN[n], p.device_mesh, p.placements) for n, p in wrapped.named_parameters()}
    return error(harmony.measure(wrapped, share(batch(), sizes), heads, products_with=given).products, expected)


def test_a_given_gradient_may_be_sharded():
    assert max(processes.run(products_with_sharded, 2, [5, 7])) < 1e-8


@pytest.mark.slow
def test_four_wrapped_modules_get_the_gradient_of_the_whole_batch():
    for errors in processes.run(wrapped_errors, 4, [3, 2, 4, 3]):
        assert len(errors) == 15 and max(errors.values()) < 1e-8, errors


def shared_with_experts() -> tuple[Tensor, Tensor]:
    """Both losses use an expert in the second half of the samples, one of them in the first: in shares, and whole."""
    torch.manual_seed(0)
    params = {name: torch.randn(4, 4, dtype=torch.float64) for name in ("stem", "expert", "left", "right")}
    x = torch.randn(6, 4, dtype=torch.float64)
    x[:3, 0], x[3:, 0] = -1, 1

    def encode(p: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        h, routed = x @ p["stem"], x[:, 0] > 0
        left = right = (h @ p["expert"]).tanh()
        if not routed.all():
            right = torch.where(routed[:, None], right, h) if routed.any() else h
        return {"left": left @ p["left"], "right": right @ p["right"]}

    def losses(f: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: f[name].sin().sum(1) for name in f}

    mine = {"wrt": "shared", "process_group": dist.group.WORLD}
    own = harmony.gram_vjp(encode, losses, params, share(x, [3, 3]), **keywords(**mine)).gram
    both = lambda name: name in ("stem", "expert")  # noqa: E731
    return own, harmony.gram_vjp(encode, losses, params, x, wrt=both).gram


def test_shared_is_what_the_samples_of_all_processes_share():
    for own, whole in processes.run(shared_with_experts, 2):
        torch.testing.assert_close(own, whole)


def gather_errors() -> dict[str, float]:
    """Gathering is linear: its adjoint is a sum over processes."""
    rank, world = dist.get_rank(), dist.get_world_size()
    sizes = [rank + 1 for rank in range(world)]
    whole = torch.arange(sum(sizes) * 3, dtype=torch.float64).view(-1, 3)
    x = share(whole, sizes).clone().requires_grad_()
    gathered = harmony.distributed.gather(x)
    weight = (rank + 1.0) * torch.cos(whole)  # every process sends something else back
    (gathered * weight).sum().backward()
    expected = share(torch.cos(whole), sizes) * sum(r + 1 for r in range(world))
    masks = harmony.distributed.gather(share(whole[:, 0] % 2 == 0, sizes))
    assert masks.dtype == torch.bool and torch.equal(masks, whole[:, 0] % 2 == 0)
    return {"rows": error(gathered.detach(), whole), "gradient": error(x.grad, expected)}


def test_gather_refuses_what_has_no_rows_in_common():
    for tree in ({"x": torch.ones(2), "y": torch.ones(3)}, torch.ones(()), {"x": torch.ones(2), "y": 1}):
        with pytest.raises(ValueError, match="same number of rows; got"):
            harmony.distributed.gather(tree)


def test_gather_carries_gradients():
    for errors in processes.run(gather_errors, 2):
        assert max(errors.values()) < 1e-12, errors


def refused() -> str:
    """Sharded over two processes, and a batch of this one alone."""
    encoder, heads = modules()
    module = sharded(encoder, init_device_mesh("cpu", (2,)))
    with pytest.raises(ValueError, match="sharded over 2 processes, and the batch is shared among 1") as caught:
        harmony.gram_vjp(
            lambda p, b: torch.func.functional_call(module, p, (), b), copy.deepcopy(heads),
            dict(module.named_parameters()), batch(),
        )  # fmt: skip
    return str(caught.value)


@pytest.mark.slow
def test_parameters_and_batch_must_be_spread_over_the_same_processes():
    assert all("process_group" in message for message in processes.run(refused, 2))
