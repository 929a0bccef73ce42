"""Models of ``transformers``, unchanged, small and with random weights: the tape is exact on them, in closed form.

Optional: skipped where the package is not installed; ``make test-models`` installs and runs.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

import harmony
from tests.harmony.oracle import relative_error

transformers = pytest.importorskip("transformers", reason="run by `make test-models`")

pytestmark = pytest.mark.slow

B = 3
WIDTH = 16


class Model(NamedTuple):
    """A model, keyword arguments for a batch of B samples, and how its output becomes the embeddings."""

    module: nn.Module
    batch: dict[str, Tensor]
    pool: Callable[[Any], Any]


MODELS: dict[str, Callable[[str, float], Model]] = {}
"""Name -> function of the attention implementation and the dropout probability."""

ONLY_EAGER = {"convnext", "swin"}  # no attention, and none but their own


def model(function: Callable[[str, float], Model]) -> Callable[[str, float], Model]:
    """Put a model into ``MODELS`` under the name of its function."""
    MODELS[function.__name__] = function
    return function


def tokens(output: Any) -> Tensor:
    """Token mean, squashed first, so that the gradient differs from token to token."""
    return output.last_hidden_state.tanh().mean(1)


def space(output: Any) -> Tensor:
    """As ``tokens``, of feature maps (B, C, H, W)."""
    return output.last_hidden_state.tanh().mean((2, 3))


def pooled(output: Any) -> Tensor:
    """By the model's own pooler."""
    return output.pooler_output


def both_towers(output: Any) -> Tensor:
    """Image and text features, side by side."""
    return torch.cat([output.image_embeds, output.text_embeds], dim=1)


def pixels(*shape: int) -> dict[str, Tensor]:
    """Images or clips."""
    return {"pixel_values": torch.randn(B, *shape, dtype=torch.float64)}


def words(vocabulary: int, length: int) -> dict[str, Tensor]:
    """Texts of different lengths, padded with zeros."""
    mask = torch.arange(length) < torch.tensor([[length - 1], [2], [length]])
    return {"input_ids": torch.randint(1, vocabulary, (B, length)) * mask, "attention_mask": mask.long()}


def transformer(**extra: Any) -> dict[str, Any]:
    """The sizes most configurations name alike."""
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return sizes | extra


def with_dropout(config: Any, p: float) -> Any:
    """Set all dropout probabilities of a configuration, except for those that skip whole layers of the batch."""
    for name, value in vars(config).items():
        if "layerdrop" in name:
            setattr(config, name, 0.0)
        elif "drop" in name and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(config, name, p)
    return config


def build(cls: Any, config: Any, attention: str, p: float) -> nn.Module:
    """A model with random weights."""
    config._attn_implementation = attention
    return cls(with_dropout(config, p))


@model
def vit(attention: str, p: float) -> Model:
    config = transformers.ViTConfig(**transformer(image_size=8, patch_size=4))
    return Model(build(transformers.ViTModel, config, attention, p), pixels(3, 8, 8), pooled)


@model
def bert(attention: str, p: float) -> Model:
    config = transformers.BertConfig(**transformer(vocab_size=23, max_position_embeddings=9))
    return Model(build(transformers.BertModel, config, attention, p), words(23, 6), pooled)


@model
def distilbert(attention: str, p: float) -> Model:
    config = transformers.DistilBertConfig(
        vocab_size=23, max_position_embeddings=9, dim=WIDTH, n_layers=2, n_heads=2, hidden_dim=24
    )
    return Model(build(transformers.DistilBertModel, config, attention, p), words(23, 6), tokens)


@model
def modernbert(attention: str, p: float) -> Model:
    config = transformers.ModernBertConfig(
        **transformer(
            vocab_size=23,
            global_attn_every_n_layers=2,
            local_attention=4,
            pad_token_id=0,
            bos_token_id=1,
            cls_token_id=1,
            eos_token_id=2,
            sep_token_id=2,
        )
    )
    return Model(build(transformers.ModernBertModel, config, attention, p), words(23, 6), tokens)


@model
def llama(attention: str, p: float) -> Model:
    config = transformers.LlamaConfig(**transformer(vocab_size=23, num_key_value_heads=1, use_cache=False))
    return Model(build(transformers.LlamaModel, config, attention, p), words(23, 6), tokens)


@model
def t5_encoder(attention: str, p: float) -> Model:
    config = transformers.T5Config(
        vocab_size=23, d_model=WIDTH, d_kv=8, d_ff=24, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return Model(build(transformers.T5EncoderModel, config, attention, p), words(23, 6), tokens)


@model
def clip_vision(attention: str, p: float) -> Model:
    config = transformers.CLIPVisionConfig(**transformer(image_size=8, patch_size=4))
    return Model(build(transformers.CLIPVisionModel, config, attention, p), pixels(3, 8, 8), pooled)


@model
def clip_text(attention: str, p: float) -> Model:
    config = transformers.CLIPTextConfig(**transformer(vocab_size=23, max_position_embeddings=9, eos_token_id=22))
    return Model(build(transformers.CLIPTextModel, config, attention, p), words(23, 6), tokens)


@model
def clip(attention: str, p: float) -> Model:
    config = transformers.CLIPConfig(
        text_config=transformer(vocab_size=23, max_position_embeddings=9, eos_token_id=22),
        vision_config=transformer(image_size=8, patch_size=4),
        projection_dim=6,
    )
    with_dropout(config.text_config, p)
    with_dropout(config.vision_config, p)
    module = build(transformers.CLIPModel, config, attention, p)
    return Model(module, pixels(3, 8, 8) | words(23, 6), both_towers)


def wav2vec2(norm: str, attention: str, p: float) -> Model:
    """The feature encoder with group norm or with layer norm; SpecAugment on, by a mask learnt and put in place."""
    config = transformers.Wav2Vec2Config(
        **transformer(), conv_dim=(8, 8), conv_kernel=(4, 3), conv_stride=(2, 2), num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, feat_extract_norm=norm, do_stable_layer_norm=norm == "layer",
        conv_bias=norm == "layer", mask_time_prob=0.5, apply_spec_augment=True,
    )  # fmt: skip
    sound = torch.randn(B, 40, dtype=torch.float64)
    hidden = torch.rand(B, 9) < 0.4  # SpecAugment, given: it would draw them from NumPy
    hidden[:, 2] = True
    hidden[:, 5] = False
    module = build(transformers.Wav2Vec2Model, config, attention, p)
    return Model(module, {"input_values": sound, "mask_time_indices": hidden}, tokens)


@model
def wav2vec2_group_norm(attention: str, p: float) -> Model:
    return wav2vec2("group", attention, p)


@model
def wav2vec2_layer_norm(attention: str, p: float) -> Model:
    return wav2vec2("layer", attention, p)


@model
def whisper_encoder(attention: str, p: float) -> Model:
    config = transformers.WhisperConfig(
        d_model=WIDTH, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=24, num_mel_bins=5,
        max_source_positions=6, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=24, vocab_size=23,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    module = build(transformers.models.whisper.modeling_whisper.WhisperEncoder, config, attention, p)
    return Model(module, {"input_features": torch.randn(B, 5, 12, dtype=torch.float64)}, tokens)


@model
def audio_spectrogram(attention: str, p: float) -> Model:
    config = transformers.ASTConfig(
        **transformer(patch_size=4, frequency_stride=3, time_stride=3, max_length=10, num_mel_bins=8)
    )
    sound = torch.randn(B, 10, 8, dtype=torch.float64)
    return Model(build(transformers.ASTModel, config, attention, p), {"input_values": sound}, pooled)


@model
def videomae(attention: str, p: float) -> Model:
    config = transformers.VideoMAEConfig(**transformer(image_size=8, patch_size=4, num_frames=4, tubelet_size=2))
    return Model(build(transformers.VideoMAEModel, config, attention, p), pixels(4, 3, 8, 8), tokens)


@model
def convnext(attention: str, p: float) -> Model:
    config = transformers.ConvNextConfig(hidden_sizes=[8, WIDTH], depths=[1, 1], num_stages=2, patch_size=4)
    return Model(build(transformers.ConvNextModel, config, attention, p), pixels(3, 16, 16), space)


@model
def swin(attention: str, p: float) -> Model:
    config = transformers.SwinConfig(
        image_size=16, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4
    )
    return Model(build(transformers.SwinModel, config, attention, p), pixels(3, 16, 16), pooled)


class Exact(TorchFunctionMode):
    """Inside, casts to float32 give float64: many models compute softmax and RMS norm in float32, whatever comes in."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.float:
            return args[0].double()
        args = [torch.float64 if x is torch.float32 else x for x in args]
        kwargs = {k: torch.float64 if x is torch.float32 else x for k, x in (kwargs or {}).items()}
        return function(*args, **kwargs)


def losses(f: Tensor) -> dict[str, Tensor]:
    """Two losses on one embedding, one of them with in-batch negatives."""
    left, right = f.chunk(2, dim=1)
    return {
        "contrast": harmony.losses.info_nce(left, right, temperature=0.5, symmetric=True),
        "norm": F.softplus(f).pow(2).mean(1),
    }


def case(name: str, attention: str, *, train: bool, p: float = 0.0, dtype: torch.dtype = torch.float64) -> tuple:
    """What the engines take: encode, losses, params, batch. No parameter stays at a one or a zero."""
    torch.manual_seed(0)
    module, batch, pool = MODELS[name](attention, p)
    module.to(dtype).train(train)
    params = {n: w.detach() + 0.1 * torch.randn_like(w) for n, w in module.named_parameters()}
    batch = {n: x.to(dtype) if x.is_floating_point() else x for n, x in batch.items()}

    def encode(p: dict[str, Tensor], x: dict[str, Tensor]) -> Any:
        with Exact() if dtype == torch.float64 else nullcontext():
            return pool(functional_call(module, p, (), x))

    return encode, losses, params, batch


def assert_exact(arguments: tuple, tolerance: float) -> None:
    """Gram blocks and update of the tape are those of a loop over samples."""
    _, gram, pullback = harmony.gram_vjp(*arguments, method="tape")
    _, expected_gram, expected_pullback = harmony.gram_vjp(*arguments, method="loop")
    assert relative_error(gram, expected_gram) < tolerance
    weights = torch.rand(len(gram), gram.shape[1], dtype=gram.dtype)
    update, expected = pullback(weights), expected_pullback(weights)
    scale = max(float(g.abs().max()) for g in expected.values())
    for n, g in expected.items():
        assert float((update[n] - g).abs().max()) < tolerance * scale, n


every_model = pytest.mark.parametrize(
    ("name", "attention"), [(n, a) for n in MODELS for a in ("eager", "sdpa") if a == "eager" or n not in ONLY_EAGER]
)


@every_model
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_agrees_with_a_loop(name: str, attention: str, train: bool) -> None:
    assert_exact(case(name, attention, train=train), 1e-9)


@every_model
def test_every_use_has_a_closed_form(name: str, attention: str) -> None:
    """No op runs its own backward once a sample, in training as it is done, with dropout.

    Without, Wav2Vec2 puts its learnt mask into a view, and autograd hides the op that does so (`CopySlices`).
    """
    plan = harmony.plan(*case(name, attention, train=True, p=0.1))
    assert plan.engine == "tape", plan.reason
    assert not [row for row in plan.rows if row.choice == "isolated"], plan.reason


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["bert", "llama", "modernbert", "t5_encoder"])
def test_first_text_without_padding(name: str, attention: str) -> None:
    """A text alone that needs no mask takes another branch than the batch it stands in."""
    encode, losses, params, batch = case(name, attention, train=True)
    batch = {n: x[:, :5] for n, x in batch.items()}
    assert batch["attention_mask"].sum(1).tolist() == [5, 2, 5]
    assert harmony.plan(encode, losses, params, batch).engine == "tape"
    assert_exact((encode, losses, params, batch), 1e-9)


@pytest.mark.parametrize("name", ["wav2vec2_group_norm", "wav2vec2_layer_norm"])
def test_first_sample_all_masked(name: str) -> None:
    """No gradient passes what SpecAugment has overwritten."""
    encode, losses, params, batch = case(name, "sdpa", train=True)
    batch = {n: x[:2] for n, x in batch.items()}
    batch["mask_time_indices"][0] = True
    assert harmony.plan(encode, losses, params, batch).engine == "tape"
    assert_exact((encode, losses, params, batch), 1e-9)


@pytest.mark.parametrize("name", ["bert", "llama", "modernbert", "swin", "wav2vec2_group_norm"])
def test_float32(name: str) -> None:
    assert_exact(case(name, "eager", train=True, dtype=torch.float32), 1e-4)


@every_model
def test_dropout(name: str, attention: str) -> None:
    """Hidden and attention dropout, and drop path: one mask for all losses, another one for each sample."""
    harmony.check(*case(name, attention, train=True, p=0.3))
