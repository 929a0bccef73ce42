"""What processes of a launch agree on: names for a meeting, whatever died before, and one decision for all."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
from torch import nn
from torch.distributed import HashStore

from recipes import pretrain as recipe
from recipes.errors import ConfigError
from recipes.training import launch
from recipes.training.processes import Processes, digest
from recipes.training.start import TrainingError, check_agreement, check_same

SOON = timedelta(seconds=30)


def meet(store, ranks, world):
    """The names that processes of some ranks come to, each in its own time."""
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(lambda rank: launch.meeting(store, rank, world, SOON), ranks))


def test_a_meeting_has_one_name_and_each_its_own():
    store = HashStore()
    names = [set(meet(store, ranks, 3)) for ranks in ([0, 1, 2], [2, 1, 0], [1, 0, 2])]
    assert all(len(of_one) == 1 for of_one in names) and len(set.union(*names)) == 3


def test_processes_that_died_before_the_meeting_are_not_waited_for_and_do_not_answer():
    store = HashStore()
    for died in ([1], [0, 1], [0], [2]):
        for rank in died:  # each leaves what it can alone
            with pytest.raises(RuntimeError, match=r"did not (come|answer)"):
                launch.meeting(store, rank, 3, timedelta(0))
        assert len(set(meet(store, [1, 2, 0], 3))) == 1


def test_who_does_not_come_is_named():
    with pytest.raises(RuntimeError, match=r"processes \[1, 2\] of 3 did not come"):
        launch.meeting(HashStore(), 0, 3, timedelta(0))


def test_a_launch_knows_its_run_by_its_store_or_by_an_agent_that_is_left(tmp_path, monkeypatch):
    store = HashStore()
    name = launch.name_of(store)
    assert name == launch.name_of(store) != launch.name_of(HashStore())
    assert not launch.signed(tmp_path, [name])
    launch.sign(tmp_path, [name, "agent a", "agent b"])
    assert launch.signed(tmp_path, [name]) and launch.signed(tmp_path, ["new store", "agent b", "agent c"])
    assert not launch.signed(tmp_path, ["new store", "agent c"]) and not launch.signed(tmp_path, [])
    assert launch.shared(tmp_path, [name]) and not launch.shared(tmp_path / "of another node", [name], patience=0)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert launch.agent() == ""  # a shell may start many runs
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert launch.agent() == launch.agent() != ""


def test_the_same_launch_goes_on_and_another_begins_anew(tiny):
    one, other = (Processes(launch=(name,)) for name in ("one", "other"))
    config = tiny("train.steps=1")
    for group, folders in ((one, 1), (one, 1), (other, 2)):
        recipe.pretrain(config, group=group)
        assert len(list(config.folder.parent.iterdir())) == folders


def test_another_configuration_is_refused_by_all_processes(tiny, monkeypatch):
    group = Processes(1, 3)
    monkeypatch.setattr(Processes, "decide", lambda self, decision: tiny("train.lr=0.5"))
    with pytest.raises(ConfigError, match=r"different configurations:\n  process 1: train.lr: 0.5 -> 0.002"):
        check_same(tiny(), group)
    with pytest.raises(ConfigError, match=r"process 1: train\.parallel"):  # may change on resume, for all of them
        check_same(tiny("train.lr=0.5", "train.parallel=fsdp"), group)
    check_same(tiny("train.lr=0.5", "data.workers=1"), group)


@pytest.mark.parametrize(("name", "value"), [("step", 3), ("weights", "else"), ("training videos", "others")])
def test_processes_that_do_not_begin_alike_stop(monkeypatch, name, value):
    modules = nn.ModuleDict({"model": nn.Linear(2, 2), "objective": nn.BatchNorm1d(2)})
    alike = {"step": 2, "training videos": "videos", "weights": digest(modules)}
    group = Processes(0, 2, group=object())
    for theirs in (alike, {**alike, name: value}):
        monkeypatch.setattr(Processes, "collect", lambda self, items, other=theirs: [*items, other])
        if theirs == alike:
            check_agreement(group, 2, "videos", modules)
        else:
            with pytest.raises(TrainingError, match=f"do not begin alike:\n  process 1: {name} {value}, where"):
                check_agreement(group, 2, "videos", modules)


def test_a_digest_is_of_values_and_names():
    torch.manual_seed(0)
    one = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.BatchNorm1d(2)})
    before = digest(one)
    assert before == digest(one)
    one["b"].num_batches_tracked += 1
    assert before != digest(one)
