"""What the models of transformers can be asked beyond the table: eager attention, closed forms, dropout, masks.

Optional: skipped where the package is not installed; ``make test-models`` installs and runs.
"""

from functools import partial

import pytest
import torch

import harmony
from tests.harmony.third_party.case import Case, case
from tests.harmony.third_party.numbers import by_hand, of_engine, worst

pytest.importorskip("transformers", reason="run by `make test-models`")

from tests.harmony.third_party.transformers_models import build

pytestmark = pytest.mark.slow

TEXTS = ["bert", "llama", "modernbert", "t5_encoder"]
WAVES = ["wav2vec2, group norm", "wav2vec2, layer norm"]
ATTENTIVE = [
    *TEXTS,
    *WAVES,
    "vit",
    "distilbert",
    "clip_vision",
    "clip_text",
    "clip",
    "whisper_encoder",
    "audio_spectrogram",
    "videomae",
]
every_model = pytest.mark.parametrize(
    ("name", "attention"), [(n, a) for n in ATTENTIVE for a in ("eager", "sdpa")] + [("convnext", ""), ("swin", "")]
)


def training(name: str, attention: str = "sdpa", p: float = 0.0) -> Case:
    """A model in training mode, in float64."""
    return case(partial(build, name, attention, p), train=True, dtype=torch.float64, dropout=True)


def assert_exact(given: Case) -> None:
    """The tape takes it, and agrees with autograd by hand."""
    error, where = worst(of_engine(given, "tape", by_parameter=True), by_hand(given), 1e-9)
    assert error < 1e-9, where


@pytest.mark.parametrize("name", ATTENTIVE)
def test_eager_attention(name: str) -> None:
    assert_exact(training(name, "eager"))


@every_model
def test_every_use_has_a_closed_form(name: str, attention: str) -> None:
    """No op runs its own backward once a sample, in training as it is done, with dropout.

    Without, Wav2Vec2 puts its learnt mask into a view, and autograd hides the op that does so (`CopySlices`).
    """
    plan = harmony.plan(*training(name, attention, 0.1).arguments)
    assert plan.engine == "tape", plan.reason
    assert not [row for row in plan.rows if row.choice == "opaque"], plan.reason


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", TEXTS)
def test_first_text_without_padding(name: str, attention: str) -> None:
    """A text alone that needs no mask takes another branch than the batch it stands in."""
    given = training(name, attention)
    given = given._replace(batch={n: x[:, :5] for n, x in given.batch.items()})
    assert given.batch["attention_mask"].sum(1).tolist() == [5, 2, 5]
    assert_exact(given)


@pytest.mark.parametrize("name", WAVES)
def test_first_sample_all_masked(name: str) -> None:
    """No gradient passes what SpecAugment has overwritten."""
    given = training(name)
    batch = {n: x[:2].clone() for n, x in given.batch.items()}
    batch["mask_time_indices"][0] = True
    assert_exact(given._replace(batch=batch))


@every_model
def test_dropout(name: str, attention: str) -> None:
    """Hidden and attention dropout, and drop path: one mask for all losses, another one for each sample."""
    harmony.check(*training(name, attention, 0.3).arguments)
