"""The model: its sizes, its masks, its tokens, and exact per-sample gradients through the whole of it."""

import pytest
import torch
from torch.func import functional_call

import harmony
from recipes.config import ClipFormat, ModelConfig, ObjectiveConfig
from recipes.model.objective import Objective
from recipes.model.tokens import VideoTokens, drop_tokens
from recipes.model.vatt import VATT, parameter_counts
from tests.harmony import oracle

CLIP = ClipFormat(frames=4, size=32, sample_rate=4000, audio_seconds=0.32, narrations=2, words=5)
VATT_CLIP = ClipFormat(frames=32, size=224, sample_rate=48_000, audio_seconds=3.2, words=16)
WORDS = 11


def model(**overrides):
    torch.manual_seed(0)
    return VATT(ModelConfig(audio_patch=128, word_width=8, **overrides), CLIP, WORDS)


def batch(size=3):
    torch.manual_seed(1)
    text = torch.randint(1, WORDS, (size, 2, 5))
    text[0, 0, 3:] = 0
    text[1, 1] = 0
    return {
        "video": torch.randint(0, 256, (size, 4, 32, 32, 3), dtype=torch.uint8),
        "audio": torch.rand(size, CLIP.samples) - 0.5,
        "text": text,
        "audio_valid": torch.tensor([True, True, False] + [True] * (size - 3)),
        "text_valid": text.any(-1),
        "text_key": torch.zeros(size, 2, dtype=torch.int64),
        "index": torch.arange(size),
    }


@pytest.mark.parametrize(("size", "millions"), [("small", 20.9), ("base", 87.9), ("medium", 155.0)])
def test_sizes_are_those_of_the_paper_within_three_percent(size, millions):
    with torch.device("meta"):
        counts = parameter_counts(VATT(ModelConfig(size=size), VATT_CLIP, 2**16))
    assert abs(counts["table"] / 1e6 / millions - 1) < 0.03
    parts = sum(n for part, n in counts.items() if part != "table")
    with torch.device("meta"):
        assert parts == sum(p.numel() for p in VATT(ModelConfig(size=size), VATT_CLIP, 2**16).parameters())


def test_padding_words_change_nothing():
    net, inputs = model().eval(), batch()
    shorter = net.encode("text", inputs["text"][0, :1, :3])
    torch.testing.assert_close(net.encode("text", inputs["text"][0, :1]), shorter)


def test_samples_do_not_mix_and_masks_pass_through():
    net, inputs = model(dropout=0.0, drop_token=0.0).train(), batch()
    together = net(**inputs)
    for b in range(3):
        alone = net(**{name: x[b : b + 1] for name, x in inputs.items()})
        for m in ("video", "audio", "text"):
            torch.testing.assert_close(alone[m][0], together[m][b])
    assert all(together[name] is inputs[name] for name in ("text_valid", "text_key", "index"))


def test_video_patches_are_local_and_positions_distinct():
    """A changed pixel changes one token; equal patches differ by their positions alone."""
    torch.manual_seed(0)
    tokens = VideoTokens(frames=4, size=32, patch=(2, 16, 16), width=12)
    video = torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)
    before = tokens(video)
    assert before.shape == (1, 2 * 2 * 2, 12)
    assert len({tuple(t.tolist()) for t in before[0]}) == 8
    video[0, 3, 20, 5] = 255  # second in time, second row, first column: token 4 + 2 + 0
    changed = (tokens(video) != before).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == [6]


def test_drop_token_keeps_a_random_subset_of_each_sample():
    x = torch.arange(10.0).expand(64, 10)[..., None]
    torch.manual_seed(0)
    kept = drop_tokens(x, 0.5)[..., 0]
    assert kept.shape == (64, 5)
    assert all(len(set(row.tolist())) == 5 for row in kept)
    assert len({tuple(sorted(row.tolist())) for row in kept}) > 30
    assert drop_tokens(x, 0.99).shape == (64, 1, 1)


def test_frozen_word_vectors_are_used_and_not_trained():
    vectors = torch.randn(WORDS, 6)
    net = VATT(ModelConfig(audio_patch=128), CLIP, WORDS, vectors)
    words = net.tokens["text"].words.weight
    assert torch.equal(words, vectors) and not words.requires_grad


@pytest.mark.parametrize("attribution", ["activation", "anchor"])
def test_per_sample_gradients_of_the_backbone_are_exact(attribution):
    net = model(dropout=0.0, drop_token=0.0).double()
    objective = Objective(ObjectiveConfig(audio_space=6, text_space=5, temperature=0.5), 96).double()
    inputs = {name: x.double() if x.is_floating_point() else x for name, x in batch(4).items()}
    params = {n: p.detach() for n, p in net.named_parameters()}

    def encode(p, b):
        return functional_call(net, p, (), b)

    gram = harmony.gram_vjp(
        encode, objective, params, inputs, attribution=attribution, wrt=lambda n: n.startswith("backbone.")
    ).gram
    grads = oracle.per_sample_gradients(encode, objective, params, inputs, attribution)
    expected = oracle.gram_blocks({n: g for n, g in grads.items() if n.startswith("backbone.")})
    assert oracle.relative_error(gram, expected) < 1e-10
    # The third has no sound: batch normalisation must not give it a gradient through its neighbours.
    assert harmony.defined(gram).tolist() == [True, True, False, True]


def test_features_in_place_of_pictures_and_sound_with_exact_gradients_of_every_parameter():
    torch.manual_seed(0)
    clip = ClipFormat(inputs="features", frames=4, fps=1, narrations=2, words=5)
    net = VATT(ModelConfig(word_width=8, dropout=0.0, drop_token=0.0), clip, WORDS).double()
    objective = Objective(ObjectiveConfig(audio_space=6, text_space=5, temperature=0.5), 96).double()
    inputs = batch(4) | {"video": torch.randn(4, 4, 1024).double(), "audio": torch.randn(4, 4, 128).double()}
    params = {n: p.detach() for n, p in net.named_parameters()}

    def encode(p, b):
        return functional_call(net, p, (), b)

    gram = harmony.gram_vjp(encode, objective, params, inputs).gram
    grads = oracle.per_sample_gradients(encode, objective, params, inputs, "activation")
    assert oracle.relative_error(gram, oracle.gram_blocks(grads)) < 1e-10


def test_running_statistics_move_once_a_step():
    net, inputs = model(), batch(4)
    for norm in ("batch", "layer", "none"):
        objective = Objective(ObjectiveConfig(audio_space=6, text_space=5, norm=norm), 96)
        terms = objective(net(**inputs))
        assert all(t.shape == (4,) and t.isfinite().all() for t in terms.values())
        moved = [int(b) for n, b in objective.named_buffers() if n.endswith("num_batches_tracked")]
        assert moved == ([1, 1, 1] if norm == "batch" else [])


def test_a_clip_that_is_twice_in_a_batch_is_no_negative_of_itself():
    torch.manual_seed(0)
    objective = Objective(ObjectiveConfig(audio_space=6, text_space=4, norm="none"), 8).double()
    f = {m: torch.randn(3, 8).double() for m in ("video", "audio")}
    f |= {
        "text": torch.randn(3, 1, 8).double(),
        "audio_valid": torch.ones(3).bool(),
        "text_valid": torch.ones(3, 1).bool(),
    }
    f |= {"text_key": torch.tensor([[5], [6], [7]]), "index": torch.arange(3)}
    twice = {name: torch.cat([x, x[:1]]) for name, x in f.items()}
    twice["text_key"] = torch.tensor([[5], [6], [7], [8]])  # another narration is nearest to its other window
    for loss, terms in objective(twice).items():
        alone = objective(f)[loss]
        torch.testing.assert_close(terms[0], terms[3])
        # p(own) = 2a / (2a + rest), against a / (a + rest): the odds double
        odds = lambda term: 1 / (term.exp() - 1)  # noqa: E731
        torch.testing.assert_close(odds(terms[0]), 2 * odds(alone[0]))
