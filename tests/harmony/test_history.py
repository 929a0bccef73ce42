"""The bounded history of single samples, against a dictionary."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harmony.history import empty_history, recall, remember

ids = st.integers(-(2**62), 2**62) | st.integers(0, 9)
batches = st.lists(st.lists(st.tuples(ids, st.floats(-5, 5, width=32), st.booleans()), max_size=8), max_size=6)


def columns(batch):
    return (
        torch.tensor([i for i, _, _ in batch], dtype=torch.int64),
        torch.tensor([v for _, v, _ in batch], dtype=torch.float32),
        torch.tensor([m for _, _, m in batch], dtype=torch.bool),
    )


@given(batches)
def test_it_remembers_the_last_row_of_each_id(batches):
    table, expected = empty_history(100_003), {}
    for batch in batches:
        table = remember(table, *columns(batch))
        expected |= {i: v for i, v, m in batch if m}
    asked = [*expected, 12345678901]
    values, known = recall(table, torch.tensor(asked, dtype=torch.int64))
    for i, value, k in zip(asked, values.tolist(), known.tolist(), strict=True):
        assert k == (i in expected)  # a hundred thousand places: hardly two of these share one
        assert not k or value == expected[i]


@given(batches, st.integers(1, 4))
def test_in_little_room_it_forgets_but_never_confuses(batches, capacity):
    table, expected = empty_history(capacity), {}
    for batch in batches:
        before = table
        table = remember(table, *columns(batch))
        expected |= {i: v for i, v, m in batch if m}
        assert len(table.ids) == capacity + 1 and before is not table
        asked = torch.tensor(sorted({*expected, 7}), dtype=torch.int64)
        values, known = recall(table, asked)
        assert all(
            expected.get(i) == v for i, v, k in zip(asked.tolist(), values.tolist(), known.tolist(), strict=True) if k
        )
        assert int(known.sum()) <= capacity
        if any(m for _, _, m in batch):
            last = next(i for i, _, m in reversed(batch) if m)
            assert recall(table, torch.tensor([last]))[1].all()  # the newest is always known


def test_ids_are_integers_of_any_width():
    table = remember(empty_history(8), torch.tensor([3], dtype=torch.int32), torch.tensor([2.0]), torch.tensor([True]))
    values, known = recall(table, torch.tensor([3], dtype=torch.uint8))
    assert known.all() and values.tolist() == [2]
    with pytest.raises(TypeError, match=r"ids must be integers; got torch\.float32"):
        recall(table, torch.tensor([3.0]))


def test_the_old_memory_is_not_changed():
    old = empty_history(4)
    remember(old, torch.tensor([1]), torch.tensor([2.0]), torch.tensor([True]))
    assert not recall(old, torch.tensor([1]))[1].any()
