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
from recipes.data.corpus.plan import Plan, plan_video
from recipes.data.corpus.thing import COLOURS, SHAPES
from recipes.data.index import load_index
from recipes.data.loader import list_loader
from recipes.research.study.clips import Clips, World, keys, rare_concepts
from recipes.splits import procedural_corpus

WORDS = 4096  # at most


def world(corpus: CorpusConfig, fmt: ClipFormat, clips: int, test_clips: int) -> World:
    """Read the aligned narrations of a corpus, with what is seen and heard about the middle of each.

    Args:
        corpus: Built if it is not there.
        fmt: Shape of the clips.
        clips: To train on, at most.
        test_clips: To test on, at most.

    Returns:
        Clips whose concept is a shape of a colour, and whose category is the shape.
    """
    folder = procedural_corpus(corpus)
    train, test = load_index(folder), load_index(folder / "test.jsonl")
    captions = (narration["text"] for row in train["narrations"] for narration in row)
    tokenizer = vocabulary.build(captions, WORDS)
    plans = {
        held_out: [plan_video(corpus.style, corpus.seed, i, held_out=held_out) for i in range(count)]
        for held_out, count in ((False, corpus.videos), (True, corpus.test_videos))
    }
    read = _read(train, tokenizer, fmt, plans[False], clips)
    rare = rare_concepts(read.concept, len(SHAPES) * len(COLOURS))
    return World(read, _read(test, tokenizer, fmt, plans[True], test_clips), rare, tokenizer.get_vocab_size())


def _read(index: Index, tokenizer: Tokenizer, fmt: ClipFormat, plans: list[Plan], limit: int) -> Clips:
    truth = {plan.video_id: plan.truth() for plan in plans}
    narrated = NarratedClips(index, tokenizer, fmt)
    told: dict[int, dict] = {}
    for number in range(len(narrated)):
        row, narration = narrated.place(number)
        said = truth[Path(row["video"]).stem]
        if narration >= 0 and said[narration]["aligned"] and said[narration]["sound_aligned"]:
            told[number] = said[narration]["shown"]
    loader = list_loader(narrated, ([(number, 0)] for number in told), workers=1)
    clips = (clip for (clip,) in loader if isinstance(clip, Clip) and clip.has_audio)
    found = [(clip, told[clip.index], narrated.row((clip.index, 0))) for clip in islice(clips, limit)]
    read, shown, recordings = zip(*found, strict=True)
    text = torch.from_numpy(np.stack([clip.text for clip in read]))
    shapes = torch.tensor([list(SHAPES).index(thing["shape"]) for thing in shown])
    colours = torch.tensor([list(COLOURS).index(thing["colour"]) for thing in shown])
    return Clips(
        video=torch.from_numpy(np.stack([clip.video for clip in read])),
        audio=torch.from_numpy(np.stack([clip.audio for clip in read])),
        text=text, text_key=keys(text), concept=shapes * len(COLOURS) + colours, category=shapes,
        recording=torch.tensor(recordings),
    )  # fmt: skip
