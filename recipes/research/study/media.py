"""A world of media: pictures, sound and captions of the procedural corpus, decoded once and kept in memory."""

from itertools import islice
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset as Index
from tokenizers import Tokenizer

from recipes.config import ClipFormat, CorpusConfig
from recipes.data import vocabulary
from recipes.data.clips import Clip, NarratedClips
from recipes.data.corpus.plan import plan_video
from recipes.data.corpus.thing import COLOURS, SHAPES
from recipes.data.index import load_index
from recipes.data.workers import Loader
from recipes.research.study.clips import Clips, World, rare_concepts, text_keys
from recipes.splits import procedural_corpus

WORDS = 4096  # at most
Truth = dict[str, list[dict]]  # facts about each narration, by the video's id


def world(corpus: CorpusConfig, fmt: ClipFormat, clips: int, test_clips: int) -> World:
    """Read the aligned narrations of a corpus, with the pictures and sound around the middle of each.

    A concept is a coloured shape, a category a shape. At most so many clips are read.
    """
    folder = procedural_corpus(corpus)
    train, test = load_index(folder), load_index(folder / "test.jsonl")
    tokenizer = vocabulary.build((text["text"] for row in train["narrations"] for text in row), WORDS)
    train_clips = _read_clips(train, tokenizer, fmt, _truth(corpus, held_out=False), clips)
    held_out = _read_clips(test, tokenizer, fmt, _truth(corpus, held_out=True), test_clips)
    rare = rare_concepts(train_clips.concept, len(SHAPES) * len(COLOURS))
    return World(train_clips, held_out, rare, tokenizer.get_vocab_size())


def _truth(corpus: CorpusConfig, *, held_out: bool) -> Truth:
    count = corpus.test_videos if held_out else corpus.videos
    plans = (plan_video(corpus.style, corpus.seed, i, held_out=held_out) for i in range(count))
    return {plan.video_id: plan.truth() for plan in plans}


def _read_clips(index: Index, tokenizer: Tokenizer, fmt: ClipFormat, truth: Truth, limit: int) -> Clips:
    """The first readable clips whose text and sound are their own."""
    dataset = NarratedClips(index, tokenizer, fmt)
    shown = {}
    for number in range(len(dataset)):
        row, narration = dataset.place(number)
        facts = truth[Path(row["video"]).stem][narration] if narration >= 0 else {}
        if facts.get("aligned") and facts.get("sound_aligned"):
            shown[number] = facts["shown"]
    loader = Loader(dataset, ([(number, 0)] for number in shown), list, workers=1)
    readable = (clip for (clip,) in loader if isinstance(clip, Clip) and clip.has_audio)
    clips = list(islice(readable, limit))
    video, audio, text = (
        torch.from_numpy(np.stack([getattr(clip, name) for clip in clips])) for name in ("video", "audio", "text")
    )
    shapes = torch.tensor([list(SHAPES).index(shown[clip.index]["shape"]) for clip in clips])
    colours = torch.tensor([list(COLOURS).index(shown[clip.index]["colour"]) for clip in clips])
    recording = torch.tensor([dataset.row((clip.index, 0)) for clip in clips])
    weights = torch.ones(len(clips), 2)
    return Clips(video, audio, text, text_keys(text), shapes * len(COLOURS) + colours, shapes, recording, weights)
