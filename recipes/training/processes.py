"""The processes of a run under torchrun: their messages, and how the model is spread over them."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

import harmony
from recipes import files
from recipes.model.vatt import VATT
from recipes.training import launch

PATIENCE = timedelta(hours=12)  # for the others: the first reads an index of 10^8 narrations and counts their words
T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from the one of this rank; the first (0) writes."""

    rank: int = 0
    world: int = 1
    group: Any = None  # None where there is but one process
    store: Any = None  # for messages that may take long to come
    launch: tuple[str, ...] = ()  # names of their launch by torchrun, the same in each; empty without torchrun
    turns: Iterator[int] = field(default_factory=count, repr=False)

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    @contextmanager
    def first_ahead(self) -> Iterator[None]:
        """Inside, the first process finishes before the others begin: it makes what they read."""
        turn = f"turn {next(self.turns)}"
        if self.store is not None and not self.first:
            launch.wait_for(self.store, turn)
            if failure := self.store.get(turn).decode():
                raise RuntimeError(f"the first process failed: {failure}")
        outcome = "it was interrupted"
        try:
            yield
            outcome = ""
        except Exception as error:
            outcome = str(error) or type(error).__name__
            raise
        finally:
            if self.store is not None and self.first:
                self.store.set(turn, outcome)

    def wait(self) -> None:
        """Wait until every process is here."""
        self.exchange(0)

    def exchange(self, *numbers: int) -> list[list[int]]:
        """The numbers of all processes, a row for each. This does not wait for a device."""
        if self.group is None:
            return [list(numbers)]
        own = torch.tensor(numbers)
        rows = own.new_empty(self.world, len(numbers))
        dist.all_gather(list(rows.unbind()), own, group=self.group)
        return rows.tolist()

    def collect(self, items: Sequence[Any]) -> list[Any]:
        """The items of all processes, in the order of the processes."""
        if self.group is None:
            return list(items)
        lists: list[list[Any]] = [[] for _ in range(self.world)]
        dist.all_gather_object(lists, list(items), group=self.group)
        return [item for of_one in lists for item in of_one]

    def decide(self, decision: Callable[[], T]) -> T:
        """What the first process decides. If that raises an error, all processes raise it."""
        if self.group is None:
            return decision()
        outcome: list[Any] = [None, None]
        try:
            outcome[0] = decision() if self.first else None
        except Exception as error:
            outcome[1] = error
        dist.broadcast_object_list(outcome, group=self.group, group_src=0, device=torch.device("cpu"))
        value, failure = outcome
        if failure is not None:
            raise failure
        return value

    def agree(self, tensor: Tensor) -> Tensor:
        """The values of the first process, in all."""
        if self.group is not None:
            dist.broadcast(tensor, group=self.group, group_src=0)
        return tensor

    def gather(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """The embeddings of the whole batch, with gradients."""
        return embeddings if self.group is None else harmony.distributed.gather(embeddings, self.group)


ALONE = Processes()


@contextmanager
def joined(patience: timedelta = PATIENCE) -> Iterator[Processes]:
    """Join the processes that torchrun has started, which wait for one another; without torchrun there is one."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield Processes(launch=tuple(filter(None, [launch.agent()])))
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    store, rank, world = next(dist.rendezvous("env://", timeout=patience))
    own = dist.PrefixStore(launch.meeting(store, rank, world, patience), store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=patience, rank=rank, world_size=world, store=own)
    names: list[str] = [""] * world
    dist.all_gather_object(names, launch.agent())
    names = [launch.name_of(store), *dict.fromkeys(filter(None, names))]
    processes = Processes(rank, world, dist.group.WORLD, dist.PrefixStore("messages", own), tuple(names))
    yield processes
    with processes.first_ahead():  # they leave together: one that is gone would not be started again with the others
        pass
    dist.destroy_process_group()  # not after an error: others may be in the middle of a message


def seed_of(seed: int, rank: int, step: int = 0) -> int:
    """The seed of a process's random numbers (dropped tokens, dropout) from a step on; the run's own for the first."""
    if rank == 0 and step == 0:
        return seed
    return int(np.random.SeedSequence([seed, rank, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def spread(model: VATT, parallel: str, group: Processes, device: torch.device, plain: bool) -> nn.Module:
    """Spread a model over processes as `train.parallel` says; "fsdp" makes its parameters shards, in place.

    Returns:
        What to call in a plain pass, if there are any: a harmonized step sums its gradients itself.
    """
    if group.group is None:
        return model
    if parallel == "ddp":
        ids = [device] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, process_group=group.group) if plain else model
    mesh = init_device_mesh(device.type, (group.world,))
    for layer in model.backbone.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def clip_gradients(modules: nn.Module, limit: float) -> Tensor:
    """Scale the gradients of all parameters, shards or not, down to a norm; returns their norm before."""
    params = [p for p in modules.parameters() if p.grad is not None]
    kinds = [[p for p in params if isinstance(p, DTensor) == sharded] for sharded in (False, True)]
    norms = [whole(get_total_norm([p.grad for p in kind])) for kind in kinds if kind]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    for kind in kinds:
        if kind and math.isfinite(limit):
            clip_grads_with_norm_(kind, limit, norm)
    return norm


def digest(modules: nn.Module) -> str:
    """Hash of weights and buffers; shards are put together, so all processes have to call this."""

    def pieces() -> Iterator[bytes]:
        for name, t in sorted(modules.state_dict().items()):
            yield name.encode()
            yield memoryview(whole(t.detach()).cpu().contiguous().flatten().view(torch.uint8).numpy())

    return files.digest(pieces())


def whole(t: Tensor) -> Tensor:
    """A tensor without shards; of a tensor with shards, all processes have to call this."""
    return t.full_tensor() if isinstance(t, DTensor) else t


def local(t: Tensor) -> Tensor:
    """This process's part of a tensor, in the same memory."""
    return t.to_local() if isinstance(t, DTensor) else t
