"""Evaluate a checkpoint: zero-shot text->video and audio->video retrieval on clips it has not seen.

python -m recipes.evaluate retrieval --checkpoint runs/demo [--data MANIFEST] [--out results.json]
"""

import argparse
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recipes import retrieval
from recipes.config import Config, ConfigError
from recipes.data.clips import EvalClips, Skipped
from recipes.data.index import load_index
from recipes.data.inputs import eval_clips
from recipes.data.loader import eval_loader
from recipes.data.splits import DataError, train_and_test
from recipes.data.workers import WorkerError
from recipes.progress import progress_bar
from recipes.training import checkpoint
from recipes.trimodal.build import device_of, model_inputs
from recipes.trimodal.restore import restore


@dataclass(frozen=True)
class Embedded:
    """Held-out clips in the two common spaces: video, audio (N, D) and video, text (N, D'), with what they are."""

    spaces: dict[str, tuple[Tensor, Tensor]]
    audio_valid: Tensor  # (N,)
    text_valid: Tensor  # (N,)
    videos: list[str]
    items: list[int]  # positions in the clips they were read from
    skipped: list[Skipped]


def embed(modules: nn.ModuleDict, clips: EvalClips, config: Config, workers: int) -> Embedded:
    """Embed every clip with its one caption, if it has one, in evaluation mode."""
    device = next(modules.parameters()).device
    training = modules.training
    modules.eval()
    parts, heard, told, videos, items, skipped, position = [], [], [], [], [], [], 0
    count = len(clips) if config.evaluate.limit is None else min(config.evaluate.limit, len(clips))
    loader = eval_loader(clips, config.evaluate.batch_size, workers, config.data.timeout, count)
    with torch.inference_mode(), progress_bar(total=count, desc="embedding", unit="clip", leave=False) as bar:
        for batch in loader:
            size = len(batch.get("id", [])) + len(batch["skipped"])
            if "video" in batch:
                spaces = modules["objective"].project(modules["model"](**model_inputs(batch, device)))
                parts.append({name: tuple(x.float().cpu() for x in pair) for name, pair in spaces.items()})
                heard.append(batch["audio_valid"])
                told.append(batch["text_valid"][:, 0])
                videos += batch["id"]
                items += batch["index"].tolist()
            skipped += batch["skipped"]
            position += size
            bar.update(size)
    modules.train(training)
    if not parts:
        raise DataError(
            f"none of the {count} test clips could be read; the first is {skipped[0].id}: {skipped[0].reason}"
        )
    joined = {name: tuple(torch.cat([p[name][i] for p in parts]) for i in (0, 1)) for name in ("va", "vt")}
    joined["vt"] = (joined["vt"][0], joined["vt"][1][:, 0])
    return Embedded(joined, torch.cat(heard), torch.cat(told), videos, items, skipped)


def retrieve(embedded: Embedded) -> dict[str, dict[str, Any]]:
    """Zero-shot retrieval of videos by text and by sound, where there is any: {task: figures}."""
    tasks = {"text->video": ("vt", embedded.text_valid), "audio->video": ("va", embedded.audio_valid)}
    results = {}
    for task, (space, valid) in tasks.items():
        if valid.any():
            video, query = (x[valid] for x in embedded.spaces[space])
            groups = [v for v, there in zip(embedded.videos, valid.tolist(), strict=True) if there]
            results[task] = retrieval.evaluate(query, video, groups).as_dict()
    return results


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Markdown table of {model: {task: result}}."""
    lines = ["| task | model | R@1 | R@5 | R@10 | 95% interval of R@10 | chance R@10 | MedR | clips |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for task in next(iter(results.values())):
        for model, by_task in results.items():
            r = by_task[task]
            low, high = r["R@10_interval"]
            recalls = " | ".join(f"{100 * r[f'R@{k}']:.1f}" for k in retrieval.RECALLS)
            lines.append(
                f"| {task} | {model} | {recalls} | {100 * low:.1f} to {100 * high:.1f} | {100 * r['R@10_chance']:.1f} "
                f"| {r['median_rank']:g} | {r['pairs']} |"
            )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.evaluate", description=__doc__)
    parser.add_argument("task", choices=["retrieval"])
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run's folder, or one of its checkpoints")
    parser.add_argument("--data", type=Path, help="manifest of the clips; default: what the run held out")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    options = parser.parse_args(arguments)
    try:
        _, config, tokenizer, modules = restore(options.checkpoint)
        modules.to(device_of(config))
        index = train_and_test(config).test if options.data is None else load_index(options.data)
        embedded = embed(modules, eval_clips(index, tokenizer, config.clip), config, config.data.workers)
    except (ConfigError, OSError, ValueError, WorkerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    results = retrieve(embedded)
    print(table({str(options.checkpoint): results}))
    if embedded.skipped:
        print(f"{len(embedded.skipped)} clip(s) skipped, first: {embedded.skipped[0]}", file=sys.stderr)
    if options.out:
        checkpoint.write_atomically(options.out, json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())
