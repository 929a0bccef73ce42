"""A world of media: pictures, sound and captions of the procedural corpus, decoded once and kept in memory."""

from itertools import islice
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset as Index
from tokenizers import Tokenizer

from recipes.config import CorpusConfig
from recipes.data import vocabulary
from recipes.data.clips import Clip, ClipFormat, NarratedClips
from recipes.data.corpus.plan import plan_video
from recipes.data.corpus.thing import COLOURS, SHAPES
from recipes.data.index import load_index
from recipes.data.loader import list_loader
from recipes.research.study.clips import Clips, World, rare_concepts, text_keys
from recipes.splits import procedural_corpus

WORDS = 4096  # at most

Thing = dict[str, str]  # what a clip shows: its shape and its colour, among others


def world(corpus: CorpusConfig, fmt: ClipFormat, clips: int, test_clips: int) -> World:
    """Read the aligned narrations of a corpus, with the pictures and sound around the middle of each.

    Args:
        corpus: Built if it does not exist.
        fmt: Shape of the clips.
        clips: Most clips to train on.
        test_clips: Most clips to test on.

    Returns:
        Clips whose concept is a coloured shape, and whose category is the shape.
    """
    folder = procedural_corpus(corpus)
    train, test = load_index(folder), load_index(folder / "test.jsonl")
    captions = (narration["text"] for row in train["narrations"] for narration in row)
    tokenizer = vocabulary.build(captions, WORDS)
    train_clips = _read_clips(train, tokenizer, fmt, _truth(corpus, held_out=False), clips)
    held_out = _read_clips(test, tokenizer, fmt, _truth(corpus, held_out=True), test_clips)
    rare = rare_concepts(train_clips.concept, len(SHAPES) * len(COLOURS))
    return World(train_clips, held_out, rare, tokenizer.get_vocab_size())


def _truth(corpus: CorpusConfig, *, held_out: bool) -> dict[str, list[dict]]:
    """The truth about each narration of each video, by the video's id."""
    count = corpus.test_videos if held_out else corpus.videos
    plans = (plan_video(corpus.style, corpus.seed, i, held_out=held_out) for i in range(count))
    return {plan.video_id: plan.truth() for plan in plans}


def _read_clips(
    index: Index, tokenizer: Tokenizer, fmt: ClipFormat, truth: dict[str, list[dict]], limit: int
) -> Clips:
    dataset = NarratedClips(index, tokenizer, fmt)
    shown = _aligned_narrations(dataset, truth)
    loader = list_loader(dataset, ([(number, 0)] for number in shown), workers=1)
    readable = (clip for (clip,) in loader if isinstance(clip, Clip) and clip.has_audio)
    clips = list(islice(readable, limit))
    things = [shown[clip.index] for clip in clips]
    text = torch.from_numpy(np.stack([clip.text for clip in clips]))
    shapes = torch.tensor([list(SHAPES).index(thing["shape"]) for thing in things])
    colours = torch.tensor([list(COLOURS).index(thing["colour"]) for thing in things])
    return Clips(
        video=torch.from_numpy(np.stack([clip.video for clip in clips])),
        audio=torch.from_numpy(np.stack([clip.audio for clip in clips])),
        text=text,
        text_key=text_keys(text),
        concept=shapes * len(COLOURS) + colours,
        category=shapes,
        recording=torch.tensor([dataset.row((clip.index, 0)) for clip in clips]),
    )


def _aligned_narrations(dataset: NarratedClips, truth: dict[str, list[dict]]) -> dict[int, Thing]:
    """What the clips show whose text and sound are their own, by the clip's number."""
    shown = {}
    for number in range(len(dataset)):
        row, narration = dataset.place(number)
        facts = truth[Path(row["video"]).stem][narration] if narration >= 0 else {}
        if facts.get("aligned") and facts.get("sound_aligned"):
            shown[number] = facts["shown"]
    return shown
