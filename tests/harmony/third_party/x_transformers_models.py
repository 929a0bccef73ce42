"""Architectures of x_transformers: one stack, many ways to attend and to place tokens."""

from typing import Any

import x_transformers as x

from tests.harmony.third_party.architecture import Architecture, Builder, normal, tokens, vector, whole


def encoder(**settings: Any) -> Builder:
    """An encoder of word embeddings with this variation."""

    def build() -> Architecture:
        layers = x.Encoder(dim=16, depth=2, heads=2, attn_dim_head=8, **settings)
        module = x.TransformerWrapper(num_tokens=24, max_seq_len=8, attn_layers=layers)
        return Architecture(module, (whole(23, 6),), tokens)

    return build


def decoder(**settings: Any) -> Builder:
    """A causal decoder with this variation."""

    def build() -> Architecture:
        layers = x.Decoder(dim=16, depth=2, heads=2, attn_dim_head=8, **settings)
        module = x.TransformerWrapper(num_tokens=24, max_seq_len=8, attn_layers=layers)
        return Architecture(module, (whole(23, 6),), tokens)

    return build


def continuous() -> Architecture:
    layers = x.Encoder(dim=16, depth=2, heads=2, attn_dim_head=8)
    module = x.ContinuousTransformerWrapper(dim_in=5, dim_out=6, max_seq_len=8, attn_layers=layers)
    return Architecture(module, (normal(6, 5),), tokens)


def vit() -> Architecture:
    layers = x.Encoder(dim=16, depth=2, heads=2, attn_dim_head=8)
    module = x.ViTransformerWrapper(image_size=16, patch_size=4, num_classes=6, attn_layers=layers)
    return Architecture(module, (normal(3, 16, 16),), vector)


def pair() -> Architecture:
    module = x.XTransformer(
        dim=16,
        enc_num_tokens=23,
        enc_depth=1,
        enc_heads=2,
        enc_max_seq_len=8,
        enc_attn_dim_head=8,
        dec_num_tokens=23,
        dec_depth=1,
        dec_heads=2,
        dec_max_seq_len=8,
        dec_attn_dim_head=8,
    )
    return Architecture(module.encoder, (whole(23, 6),), tokens)


BUILDERS: dict[str, Builder] = {
    "encoder": encoder(),
    "encoder, rotary": encoder(rotary_pos_emb=True),
    "encoder, alibi": encoder(alibi_pos_bias=True, alibi_num_heads=1),
    "encoder, T5 bias": encoder(rel_pos_bias=True),
    "encoder, dynamic bias": encoder(dynamic_pos_bias=True),
    "encoder, GLU": encoder(ff_glu=True, ff_swish=True),
    "encoder, RMS norm": encoder(use_rmsnorm=True, attn_qk_norm=True),
    "encoder, talking heads": encoder(attn_pre_talking_heads=True),
    "encoder, memories": encoder(attn_num_mem_kv=2),
    "encoder, sandwich": encoder(sandwich_norm=True),
    "encoder, macaron": encoder(macaron=True),
    "encoder, gated residual": encoder(gate_residual=True),
    "encoder, sparse top-k": encoder(attn_sparse_topk=3),
    "decoder": decoder(),
    "decoder, one key head": decoder(attn_one_kv_head=True),
    "decoder, shifted tokens": decoder(shift_tokens=1),
    "decoder, hyper-connections": decoder(num_residual_streams=2),
    "continuous": continuous,
    "ViT": vit,
    "encoder of a pair": pair,
}
