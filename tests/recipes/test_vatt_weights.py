"""VATT's weights from a checkpoint in TensorFlow's format, which the test writes, into a run that can be evaluated."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

import harmony
from recipes import config as configuration
from recipes.data.tfrecord import masked_crc
from recipes.data.vocabulary import encode
from recipes.import_vatt import ENCODER, HEADS, VALUE, main
from recipes.model.tensor_bundle import ENTRY, HEADER, MAGIC, TensorBundle
from recipes.model.vatt import VATT
from recipes.restore import restore
from tests.recipes.conftest import DEMO, TINY

RECIPE = [f"recipe.{override}" for override in (*TINY, "model.word_width=8")]
WIDTH, MLP, SPACE, WORDS = 96, 192, 16, 6
SHAPES = {  # of VATT's variables at the size of the demo, for 4x32x32 pixels and 20 patches of sound
    f"{ENCODER}/raw_to_embeddings/video/kernel": (4, 16, 16, 3, WIDTH),
    f"{ENCODER}/raw_to_embeddings/audio/kernel": (128, 1, WIDTH),
    f"{ENCODER}/raw_to_embeddings/text/embeddings": (WORDS, 8),
    f"{ENCODER}/pre_proj/text/kernel": (8, WIDTH),
    **{f"{ENCODER}/raw_to_embeddings/{m}/bias": (WIDTH,) for m in ("video", "audio")},
    **{f"{ENCODER}/pre_proj/{m}/kernel": (WIDTH, WIDTH) for m in ("video", "audio")},
    **{f"{ENCODER}/post_proj/{m}/kernel": (WIDTH, WIDTH) for m in ("video", "audio", "text")},
    **{f"{ENCODER}/{p}/{m}/bias": (WIDTH,) for p in ("pre_proj", "post_proj") for m in ("video", "audio", "text")},
    **{
        f"{ENCODER}/pos_embedding_lookup/{m}/{axis}_position_embeddings/embeddings": (length, WIDTH)
        for m, axis, length in [
            ("video", "temporal", 1), ("video", "vertical", 2), ("video", "horizontal", 2), ("audio", "temporal", 20),
            ("text", "temporal", 8),
        ]
    },
    **{
        f"{ENCODER}/pos_embedding_lookup/{m}/layernorm/{part}": (WIDTH,)
        for m in ("video", "audio", "text")
        for part in ("gamma", "beta")
    },
    **{f"{ENCODER}/{m}_agg_embedding": (WIDTH,) for m in ("vid", "aud", "txt")},
    **{
        f"{ENCODER}/tx/layers/{layer}/{name}": shape
        for layer in range(2)
        for name, shape in {
            **{f"mha/{part}/kernel": (WIDTH, WIDTH) for part in "qkvo"},
            **{f"mha/{part}/bias": (WIDTH,) for part in "qkvo"},
            **{f"layer_norm/{part}": (WIDTH,) for part in ("gamma", "beta")},
            **{f"feed_forward/layer_norm/{part}": (WIDTH,) for part in ("gamma", "beta")},
            "feed_forward/mlp/wi/kernel": (WIDTH, MLP), "feed_forward/mlp/wi/bias": (MLP,),
            "feed_forward/mlp/wo/kernel": (MLP, WIDTH), "feed_forward/mlp/wo/bias": (WIDTH,),
        }.items()
    },
    **{f"{ENCODER}/tx/final_layer_norm/{part}": (WIDTH,) for part in ("gamma", "beta")},
    **{f"{HEADS}/{head}/kernel": (WIDTH, SPACE) for head in ("vid_to_hid", "aud_to_va", "txt_to_vat")},
    **{f"{HEADS}/{head}/bias": (SPACE,) for head in ("aud_to_va", "txt_to_vat")},
    **{f"{HEADS}/{head}/dense/kernel": (SPACE, SPACE) for head in ("hid_to_va", "va_to_vat")},
    **{
        f"{HEADS}/{norm}/{part}": (SPACE,)
        for norm in ("hid_to_va/pre_bn", "hid_to_va/bn", "va_to_vat/bn")
        for part in ("gamma", "beta", "moving_mean", "moving_variance")
    },
}  # fmt: skip


def varint(number: int) -> bytes:
    head = b""
    while number >= 0x80:
        head, number = head + bytes([number & 0x7F | 0x80]), number >> 7
    return head + bytes([number])


def block(items: list[tuple[bytes, bytes]]) -> bytes:
    """A block of a LevelDB table: a restart, with a whole key, at every 16th entry."""
    data, restarts, last = b"", [], b""
    for place, (key, value) in enumerate(items):
        if place % 16 == 0:
            restarts, last = [*restarts, len(data)], b""
        shared = next((i for i, (a, b) in enumerate(zip(last, key, strict=False)) if a != b), min(len(last), len(key)))
        data += b"".join([*map(varint, (shared, len(key) - shared, len(value))), key[shared:], value])
        last = key
    data += struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))
    return data + b"\0" + struct.pack("<I", masked_crc(data + b"\0"))


def write_bundle(prefix: Path, tensors: dict[str, np.ndarray]) -> None:
    """What `tf.train.Checkpoint.write` writes: an index of two blocks, and the bytes of the tensors in a row."""
    entries, data = [(b"", HEADER(num_shards=1).SerializeToString())], b""
    for name, tensor in sorted(tensors.items()):
        raw = tensor.astype("<f4").tobytes()
        entry = ENTRY(dtype=1, offset=len(data), size=len(raw), crc32c=masked_crc(raw))
        for size in tensor.shape:
            entry.shape.dim.add(size=size)
        entries.append((name.encode(), entry.SerializeToString()))
        data += raw
    index, places = b"", []
    for part in (entries[:40], entries[40:]):
        written = block(part)
        places.append((part[-1][0], varint(len(index)) + varint(len(written) - 5)))
        index += written
    ends = []
    for part in ([], places):  # the meta index, and the index of the blocks
        written = block(part)
        ends.append(varint(len(index)) + varint(len(written) - 5))
        index += written
    index += b"".join(ends).ljust(40, b"\0") + struct.pack("<Q", MAGIC)
    prefix.with_name(f"{prefix.name}.index").write_bytes(index)
    prefix.with_name(f"{prefix.name}.data-00000-of-00001").write_bytes(data)


@pytest.fixture(scope="module")
def variables() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"{name}/{VALUE}": rng.uniform(0.1, 0.5, shape).astype("<f4") for name, shape in SHAPES.items()}


@pytest.fixture
def prefix(variables: dict[str, np.ndarray], tmp_path: Path) -> Path:
    write_bundle(tmp_path / "ckpt-500000", variables)
    return tmp_path / "ckpt-500000"


def convert(prefix: Path, *options: str) -> int:
    return main([f"weights={prefix}", f"out={prefix.parent / 'vatt'}", f"model={DEMO}", *RECIPE, *options])


def test_a_bundle_is_read_tensor_by_tensor(prefix: Path, variables: dict[str, np.ndarray]) -> None:
    bundle = TensorBundle(prefix)
    assert bundle.shapes() == {name: tensor.shape for name, tensor in variables.items()}
    assert all(np.array_equal(bundle.tensor(name), tensor) for name, tensor in variables.items())


def test_damage_is_found(prefix: Path, variables: dict[str, np.ndarray]) -> None:
    name = max(variables)
    data = prefix.with_name("ckpt-500000.data-00000-of-00001")
    data.write_bytes(data.read_bytes()[:-1] + b"\7")
    with pytest.raises(ValueError, match="do not match their checksum"):
        TensorBundle(prefix).tensor(name)
    index = prefix.with_name("ckpt-500000.index")
    whole = index.read_bytes()
    for damaged in (whole[:100] + b"\7" + whole[101:], whole[:-20], b""):
        index.write_bytes(damaged)
        with pytest.raises(ValueError, match="not the index of a TensorFlow checkpoint, or damaged"):
            TensorBundle(prefix)


def test_the_model_computes_with_the_weights(prefix: Path, variables: dict[str, np.ndarray]) -> None:
    """Against the operations of VATT's code: convolutions over patches, normalised positions, q, k and v apart."""
    (prefix.parent / "words.txt").write_text("the\nof\ncat\n")
    assert convert(prefix, "--dry-run") == 0 and not (prefix.parent / "vatt").exists()
    assert convert(prefix, f"words={prefix.parent / 'words.txt'}") == 0
    _, config, tokenizer, modules = restore(prefix.parent / "vatt")
    assert config.model.position_norm
    model = modules["model"].eval()

    def v(name: str) -> torch.Tensor:
        return torch.from_numpy(variables[f"{ENCODER}/{name}/{VALUE}"])

    def embedded(modality: str, patches: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        projected = F.gelu(patches @ v(f"pre_proj/{modality}/kernel") + v(f"pre_proj/{modality}/bias"))
        norm = (v(f"pos_embedding_lookup/{modality}/layernorm/{part}") for part in ("gamma", "beta"))
        return projected + F.layer_norm(positions, (WIDTH,), *norm, eps=1e-6)

    def table(modality: str, axis: str) -> torch.Tensor:
        return v(f"pos_embedding_lookup/{modality}/{axis}_position_embeddings/embeddings")

    video = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    kernel, bias = v("raw_to_embeddings/video/kernel"), v("raw_to_embeddings/video/bias")
    pixels = (video / 127.5 - 1).permute(0, 4, 1, 2, 3)
    patches = F.conv3d(pixels, kernel.permute(4, 3, 0, 1, 2), bias, stride=(4, 16, 16)).flatten(2).transpose(1, 2)
    positions = table("video", "temporal")[0] + table("video", "vertical")[:, None] + table("video", "horizontal")
    expected = embedded("video", patches, positions.flatten(0, 1))
    torch.testing.assert_close(model.tokens["video"](video), expected, rtol=1e-4, atol=1e-3)

    sound = torch.randn(2, 2560)
    kernel, bias = v("raw_to_embeddings/audio/kernel"), v("raw_to_embeddings/audio/bias")
    patches = F.conv1d(sound[:, None], kernel.permute(2, 1, 0), bias, stride=128).transpose(1, 2)
    expected = embedded("audio", patches, table("audio", "temporal"))
    torch.testing.assert_close(model.tokens["audio"](sound), expected, rtol=1e-4, atol=1e-3)

    ids = torch.from_numpy(encode(tokenizer, "the cat!", 8))[None]
    assert ids.tolist() == [[2, 4, 0, 0, 0, 0, 0, 0]]  # there 1 and 3
    words = v("raw_to_embeddings/text/embeddings")[torch.tensor([[1, 3, 0, 0, 0, 0, 0, 0]])]
    expected = embedded("text", words, table("text", "temporal"))
    torch.testing.assert_close(model.tokens["text"](ids), expected, rtol=1e-4, atol=1e-3)

    x = torch.randn(3, WIDTH)
    heard = model.backbone.layers[1].qkv(x).chunk(3, dim=-1)
    for part, found in zip("qkv", heard, strict=True):
        expected = x @ v(f"tx/layers/1/mha/{part}/kernel") + v(f"tx/layers/1/mha/{part}/bias")
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert modules["objective"].video_to_va[4].running_var.tolist() == pytest.approx(
        variables[f"{HEADS}/hid_to_va/bn/moving_variance/{VALUE}"].tolist()
    )


def test_what_is_not_vatts_model_is_refused(
    prefix: Path, variables: dict[str, np.ndarray], capsys: pytest.CaptureFixture
) -> None:
    missing = f"{ENCODER}/tx/layers/1/mha/q/kernel"
    write_bundle(prefix, {name: tensor for name, tensor in variables.items() if not name.startswith(missing)})
    assert convert(prefix) == 2 and f"has no variable {missing}" in capsys.readouterr().err
    write_bundle(prefix, variables)
    assert convert(prefix, "recipe.clip.size=64") == 2
    assert "model.tokens.video.row has the shape (2, 96); expected (4, 96)" in capsys.readouterr().err
    assert not (prefix.parent / "vatt").exists()
    assert convert(prefix.with_name("ckpt-1")) == 2 and "there is no such file" in capsys.readouterr().err


def test_gradients_of_normalised_positions_are_exact() -> None:
    """The tape against the reference, for a model with VATT's LayerNorm of the position tables."""
    config = configuration.load(DEMO, [*TINY, "model.position_norm=true"])
    model = VATT(config.model, config.clip, vocabulary=9).eval()
    video, sound = torch.randint(0, 256, (3, 4, 32, 32, 3), dtype=torch.uint8), torch.randn(3, 2560)
    parameters = {name: p for name, p in model.named_parameters() if "text" not in name}

    def encode(parameters, batch):
        named = {f"model.{name}": p for name, p in parameters.items()}
        return {modality: functional_call(Encoder(model), named, (modality, raw)) for modality, raw in batch.items()}

    def losses(embeddings):
        return {"va": (embeddings["video"] * embeddings["audio"]).sum(1), "v": (embeddings["video"] ** 2).sum(1)}

    batch = {"video": video, "audio": sound}
    reference, tape = (
        harmony.gram_vjp(encode, losses, parameters, batch, engine=harmony.Engine(method)).gram
        for method in ("vmap", "tape")
    )
    torch.testing.assert_close(tape, reference, rtol=1e-4, atol=1e-5 * float(reference.abs().max()))


class Encoder(torch.nn.Module):
    """The encoder as a module that is called, for `functional_call`."""

    def __init__(self, model: VATT) -> None:
        super().__init__()
        self.model = model

    def forward(self, modality: str, raw: torch.Tensor) -> torch.Tensor:
        return self.model.encode(modality, raw)
