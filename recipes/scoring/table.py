"""The table of scores: one row per clip, read in pieces."""

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recipes.evaluation.parts import CLIP, KEY
from recipes.files import regular
from recipes.scoring.measure import FIGURES

SCHEMA = pa.schema(
    [
        *CLIP,
        pa.field("start", pa.float64()),  # the window, in seconds
        pa.field("end", pa.float64()),
        *(pa.field(name, pa.float32()) for name in FIGURES),  # null where there is none
        pa.field("error", pa.string()),  # why the clip could not be read
    ]
)
ROWS_AT_ONCE = 1 << 16


@contextmanager
def opened(path: Path, names: Iterable[str] = SCHEMA.names) -> Iterator[pq.ParquetFile]:
    """Open a table of scores with these columns; a ValueError if it is damaged, also where reading shows it later."""
    try:
        with pq.ParquetFile(regular(path)) as table:
            types = {field.name: field.type for field in table.schema_arrow}
            missing = [name for name in names if name not in types]
            known = [field for field in SCHEMA if field.name in types]
            wrong = [f for f in known if _kind(types[f.name]) not in (_kind(f.type), "null")]
            listed = [f"{f.name} ({types[f.name]})" for f in wrong]
            problems = [f"lacks column(s) {', '.join(missing)}"] * bool(missing)
            problems += [f"has column(s) of another type: {', '.join(listed)}"] * bool(wrong)
            if problems:
                raise ValueError(f"{path}: {' and '.join(problems)}; expected the table that recipes.score wrote")
            yield table
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file; expected the table that recipes.score wrote") from None
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a Parquet file, or a damaged one: {error}") from error


def _kind(type_: pa.DataType) -> str:
    """Integers, numbers or text."""
    kinds = {"integers": pa.types.is_integer, "numbers": pa.types.is_floating, "text": pa.types.is_string}
    return next((name for name, holds in kinds.items() if holds(type_)), str(type_))


def facts_of(path: Path, names: Iterable[str] = SCHEMA.names) -> dict[str, Any]:
    """What was scored and how, as the table itself says."""
    with opened(path, names) as table:
        text = (table.schema_arrow.metadata or {}).get(KEY, b"{}")
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its own account of what was scored is damaged: {error}") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{path}: its own account of what was scored is no JSON object")
    return facts


def columns(path: Path, names: list[str]) -> Iterator[dict[str, np.ndarray]]:
    """Some columns of a table, a piece at a time; numbers that are null are NaN."""
    with opened(path, names) as table:
        for batch in table.iter_batches(ROWS_AT_ONCE, columns=names):
            yield {name: batch.column(name).to_numpy(zero_copy_only=False) for name in names}


def numbers(path: Path, name: str) -> np.ndarray:
    """A whole column, float32; NaN where it is null."""
    pieces = (piece[name].astype(np.float32) for piece in columns(path, [name]))
    return np.concatenate([np.empty(0, np.float32), *pieces])


def rows_at(path: Path, names: Sequence[str], wanted: Collection[int]) -> dict[int, dict[str, Any]]:
    """Some columns of the rows at some positions, by position."""
    positions, first, rows = np.array(sorted(wanted), np.int64), 0, {}
    with opened(path, names) as table:
        for batch in table.iter_batches(ROWS_AT_ONCE, columns=list(names)):
            here = positions[(positions >= first) & (positions < first + len(batch))]
            rows |= dict(zip(here.tolist(), batch.take(pa.array(here - first)).to_pylist(), strict=True))
            first += len(batch)
    return rows


def quantile(path: Path, name: str, share: float, sign: int = 1) -> float:
    """The smallest value of a column, times sign, such that at least a share of its values are not above it."""
    values = sign * numbers(path, name)
    values = values[np.isfinite(values)]
    if not len(values):
        raise ValueError(f"{path}: no clip has a {name}")
    rank = min(max(int(np.ceil(share * len(values))), 1), len(values))
    return float(np.partition(values, rank - 1)[rank - 1])
