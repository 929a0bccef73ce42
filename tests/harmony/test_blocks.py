"""``wrt="last_block"`` and ``"last_projection"``: found in the names that real models have, or refused in words."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import harmony
from harmony.blocks import last_block, last_part

LINEAR = ("weight", "bias")


def of(modules: str, *others: str) -> list[str]:
    """Names of a block: weights and biases of modules, and others."""
    return [f"{module}.{p}" for module in modules.split() for p in LINEAR] + list(others)


def listed(prefix: str, numbers: int, block: list[str]) -> list[str]:
    return [f"{prefix}{n}.{name}" for n in range(numbers) for name in block]


BERT = of(
    "attention.self.query attention.self.key attention.self.value attention.output.dense attention.output.LayerNorm "
    "intermediate.dense output.dense output.LayerNorm"
)
TIMM = of("norm1 attn.qkv attn.proj norm2 mlp.fc1 mlp.fc2")
RESNET = ["conv1.weight", *of("bn1"), "conv2.weight", *of("bn2")]
STAGE = [*RESNET, "downsample.0.weight", *of("downsample.1")]
MIXTRAL = [
    *(f"self_attn.{p}_proj.weight" for p in "qkvo"),
    "block_sparse_moe.gate.weight",
    *(f"block_sparse_moe.experts.{e}.w{w}.weight" for e in range(8) for w in (1, 2, 3)),
    "input_layernorm.weight",
]
SWIN = of("norm1 attn.qkv attn.proj norm2 mlp.0 mlp.3", "attn.relative_position_bias_table")
T5 = ["layer.0.SelfAttention.q.weight", "layer.0.layer_norm.weight", "layer.1.DenseReluDense.wi.weight"]
VATT = of("norm_attention qkv out norm_mlp mlp.0 mlp.2")

FOUND = {
    "BERT": (
        [*of("embeddings.LayerNorm"), *listed("encoder.layer.", 12, BERT), *of("pooler.dense")],
        "encoder.layer.11.",
    ),
    "ViT of timm": ([*of("patch_embed.proj"), *listed("blocks.", 12, TIMM), *of("norm head")], "blocks.11."),
    "ViT of torchvision": (
        [
            "class_token",
            *listed("encoder.layers.encoder_layer_", 12, of("ln_1 mlp.0 mlp.3")),
            *of("encoder.ln heads.head"),
        ],
        "encoder.layers.encoder_layer_11.",
    ),
    "ResNet": (
        [
            "conv1.weight",
            *of("bn1"),
            *(f"layer{s}.{name}" for s in (1, 2, 3, 4) for name in listed("", 1, STAGE if s > 1 else RESNET)),
            *(f"layer{s}.1.{name}" for s in (1, 2, 3, 4) for name in RESNET),
            *of("fc"),
        ],
        "layer4.1.",
    ),
    "Swin of torchvision": (
        [
            *of("features.0.0 features.0.2"),
            *(f"features.{s}.{name}" for s in (1, 3, 5, 7) for name in listed("", 2, SWIN)),
            *(f"features.{s}.{name}" for s in (2, 4, 6) for name in of("reduction norm")),
            *of("norm head"),
        ],
        "features.7.1.",
    ),
    "experts": (["embed_tokens.weight", *listed("layers.", 32, MIXTRAL), "norm.weight"], "layers.31."),
    "encoder of T5 alone": (listed("encoder.block.", 6, T5), "encoder.block.5."),
    "VATT": (
        ["tokens.video.time", *of("tokens.video.patches"), *listed("backbone.layers.", 6, VATT)],
        "backbone.layers.5.",
    ),
    "encoder and deep head": ([*listed("0.layers.", 3, TIMM), *of("1.0.dense 1.2.out")], "0.layers.2."),
    "perceptron": (of("0 2 4"), "4."),
    "trunk of layers": (of("trunk.0 trunk.2 left.out right.out"), "trunk.2."),
    "named layers": (of("fc1 fc2 fc10"), "fc10."),
}


@pytest.mark.parametrize("model", FOUND)
def test_the_last_block_of_models(model):
    names, expected = FOUND[model]
    assert last_block(names) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            of("left right"),
            r"got names without repeated blocks: left\.weight, left\.bias, right\.weight, right\.bias\. ",
        ),
        (["weight_ih_l0", "weight_ih_l1"], "without repeated blocks"),
        ([], "without repeated blocks"),
        (
            listed("encoder.block.", 6, T5) + listed("decoder.block.", 6, T5),
            r"got 2 lists, with last blocks encoder\.block\.5, decoder\.block\.5\. Choose one: "
            r"wrt=lambda name: name.startswith\('decoder\.block\.5\.'\)",
        ),
    ],
)
def test_names_without_one_list_of_blocks_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        last_block(names)


words = st.text("abcdefghij_", min_size=1, max_size=6)
paths = st.lists(words, min_size=2, max_size=3).map(".".join)
"""Names of parameters of submodules, without numbers."""


@settings(max_examples=100, deadline=None)
@given(
    words,
    st.integers(2, 12),
    st.lists(paths, min_size=1, max_size=6, unique=True),
    st.lists(paths, max_size=4),
    st.sampled_from(["", "module.", "model.bert."]),
    st.randoms(),
)
def test_any_repeated_block_is_found_in_any_order_behind_any_prefix(name, count, block, others, prefix, random):
    names = list({f"{prefix}{name}" for name in [*listed(f"{name}.", count, block), *others]})
    random.shuffle(names)
    assert last_block(names) == f"{prefix}{name}.{count - 1}."


def test_the_last_projection_is_the_last_matrix_of_the_block():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2)
    assert last_part("last_projection", dict(encoder.named_parameters())) == ["layers.1.linear2.weight"]
    block = last_part("last_block", dict(encoder.named_parameters()))
    assert block == [f"layers.1.{name}" for name, _ in encoder.layers[1].named_parameters()]
    norms = nn.Sequential(nn.LayerNorm(3), nn.LayerNorm(3))
    with pytest.raises(ValueError, match=r"two axes or more in the last block, and 1\. has 1\.weight \(3,\), 1\.bias"):
        last_part("last_projection", dict(norms.named_parameters()))


THIRD = {
    "transformers": [
        ("BertModel", "BertConfig", "encoder.layer.2."),
        ("ViTModel", "ViTConfig", "layers.2."),
        ("LlamaModel", "LlamaConfig", "layers.2."),
        ("RobertaForMaskedLM", "RobertaConfig", "roberta.encoder.layer.2."),
    ]
}


@pytest.mark.parametrize(("model", "config", "expected"), THIRD["transformers"])
def test_models_of_transformers(model, config, expected):
    transformers = pytest.importorskip("transformers")
    size = {"num_hidden_layers": 3, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
    module = getattr(transformers, model)(getattr(transformers, config)(vocab_size=9, **size))
    params = dict(module.named_parameters())
    assert last_block(params).endswith(expected)
    (matrix,) = last_part("last_projection", params)
    assert params[matrix].shape == (8, 12) and matrix.startswith(last_block(params))


@pytest.mark.parametrize(
    ("package", "model", "expected"),
    [
        ("timm", "vit_tiny_patch16_224", "blocks.11."),
        ("timm", "resnet18", "layer4.1."),
        ("torchvision.models", "resnet18", "layer4.1."),
        ("torchvision.models", "vit_b_16", "encoder.layers.encoder_layer_11."),
        ("torchvision.models", "swin_t", "features.7.1."),
    ],
)
def test_models_of_pictures(package, model, expected):
    try:
        models = importlib.import_module(package)
    except (ImportError, RuntimeError) as error:  # torchvision, for another torch
        pytest.skip(f"{package}: {error}")
    with torch.device("meta"):
        module = (models.create_model if package == "timm" else models.get_model)(model)
    assert last_block(dict(module.named_parameters())) == expected


ENCODER = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2).double()
BATCH = torch.randn(5, 4, 8, generator=torch.Generator().manual_seed(0)).double()


def losses(out):
    return {"first": out[:, 0].square().sum(1), "last": (out[:, -1] - 1).square().sum(1)}


@pytest.mark.parametrize(
    ("word", "prefix"), [("last_block", "layers.1."), ("last_projection", "layers.1.linear2.weight")]
)
def test_a_step_over_a_last_part_is_that_over_its_parameters(word, prefix):
    def step(wrt):
        ENCODER.zero_grad()
        info, _ = harmony.backward(ENCODER, BATCH, losses, harmony.realign.pcgrad, wrt=wrt)
        return info.gram, [p.grad for p in ENCODER.parameters()]

    torch.testing.assert_close(step(word), step(lambda name: name.startswith(prefix)), rtol=0, atol=0)
    rows = harmony.plan(ENCODER, BATCH, losses, wrt=word).rows
    counted = [row.name for row in rows if row.choice not in ("update only", "unused")]
    assert counted == [name for name, _ in ENCODER.named_parameters() if name.startswith(prefix)]
    harmony.check(ENCODER, BATCH, losses, wrt=word)


def test_parameters_of_functions_have_blocks_too():
    params = {"blocks": [{"w": torch.eye(3)}, {"w": torch.eye(3)}], "head": torch.ones(3)}

    def encode(p, x):
        return torch.tanh(torch.tanh(x @ p["blocks"][0]["w"]) @ p["blocks"][1]["w"]) * p["head"]

    def two(out):
        return {"sum": out.sum(1), "square": out.square().sum(1)}

    batch = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    gram = harmony.gram_vjp(encode, two, params, batch, wrt="last_block").gram
    torch.testing.assert_close(gram, harmony.gram_vjp(encode, two, params, batch, wrt=lambda n: n == "blocks.1.w").gram)


def test_a_wrong_choice_fails_before_the_encoder_runs():
    def encode(params, x):
        raise AssertionError("it ran")

    params = {"left": torch.ones(3, 2), "right": torch.ones(3, 2)}
    with pytest.raises(ValueError, match="names without repeated blocks: left, right"):
        harmony.gram_vjp(encode, losses, params, torch.ones(4, 3), wrt="last_block")
