"""Architectures of transformers for text: encoders, decoders, experts, recurrences and state spaces."""

from collections.abc import Callable

import torch
import transformers as t

from tests.harmony.third_party.architecture import (
    B,
    normal,
    whole,
    words,
)
from tests.harmony.third_party.transformers_recipe import (
    BART,
    SPECIAL,
    WIDTH,
    Recipe,
    causal,
    encoder_decoder,
    pooled,
    rows,
    text,
    transformer,
)

T5 = {"vocab_size": 23, "d_model": WIDTH, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, **SPECIAL}
EAGER = {"experts_implementation": "eager"}  # a loop over experts, as the fused product takes no float64
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}


def modernbert() -> Recipe:
    config = t.ModernBertConfig(
        **transformer(vocab_size=23, global_attn_every_n_layers=2, local_attention=4, cls_token_id=1, sep_token_id=2),
        **SPECIAL,
    )
    return text(t.ModernBertModel, config)


def switch() -> Recipe:
    config = t.SwitchTransformersConfig(
        **T5,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
        num_experts=3,
        expert_capacity=8,
        router_jitter_noise=0.0,
        decoder_start_token_id=1,
        num_decoder_layers=2,
        use_cache=False,
    )
    return encoder_decoder(t.SwitchTransformersModel, config)


def reformer() -> Recipe:
    config = t.ReformerConfig(
        vocab_size=23,
        hidden_size=WIDTH,
        attention_head_size=8,
        num_attention_heads=2,
        feed_forward_size=24,
        attn_layers=["local", "local"],
        local_attn_chunk_length=4,
        axial_pos_shape=(2, 4),
        axial_pos_embds_dim=(8, 8),
        max_position_embeddings=8,
        is_decoder=False,
        axial_norm_std=1.0,
    )
    return Recipe(t.ReformerModel, config, {"input_ids": whole(23, 8)}, rows)


def perceiver() -> Recipe:
    config = t.PerceiverConfig(
        num_latents=4,
        d_latents=WIDTH,
        d_model=8,
        num_blocks=1,
        num_self_attends_per_block=2,
        num_self_attention_heads=2,
        num_cross_attention_heads=2,
    )
    return Recipe(t.PerceiverModel, config, {"inputs": normal(6, 8)}, rows)


def longformer() -> Recipe:
    config = t.LongformerConfig(
        **transformer(vocab_size=23, max_position_embeddings=16), attention_window=[4, 4], pad_token_id=0
    )
    everywhere = torch.zeros(B, 8, dtype=torch.long)
    everywhere[:, 0] = 1
    batch = words(23, 8) | {"global_attention_mask": everywhere}
    return Recipe(t.LongformerModel, config, batch, rows)


def big_bird() -> Recipe:
    config = t.BigBirdConfig(
        **transformer(vocab_size=23, max_position_embeddings=80),
        attention_type="block_sparse",
        block_size=4,
        num_random_blocks=1,
        use_cache=False,
    )
    return Recipe(t.BigBirdModel, config, {"input_ids": whole(23, 48, low=3)}, rows)


def packed() -> Recipe:
    """Two texts in one row, told apart by positions that begin again."""
    positions = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 0]])
    batch = {"input_ids": whole(23, 6), "position_ids": positions}
    return Recipe(t.LlamaModel, t.LlamaConfig(**causal()), batch, rows, {"use_cache": False})


RECIPES: dict[str, Callable[[], Recipe]] = {
    # text
    "bert": lambda: text(t.BertModel, t.BertConfig(**transformer(vocab_size=23, max_position_embeddings=9)))._replace(
        pool=pooled
    ),
    "albert": lambda: text(
        t.AlbertModel, t.AlbertConfig(**transformer(vocab_size=23, max_position_embeddings=9, embedding_size=8))
    ),
    "roberta": lambda: text(
        t.RobertaModel, t.RobertaConfig(**transformer(vocab_size=23, max_position_embeddings=12, pad_token_id=0))
    ),
    "distilbert": lambda: text(
        t.DistilBertModel,
        t.DistilBertConfig(vocab_size=23, max_position_embeddings=9, dim=WIDTH, n_layers=2, n_heads=2, hidden_dim=24),
    ),
    "electra": lambda: text(
        t.ElectraModel, t.ElectraConfig(**transformer(vocab_size=23, max_position_embeddings=9, embedding_size=8))
    ),
    "deberta_v2": lambda: text(
        t.DebertaV2Model,
        t.DebertaV2Config(
            **transformer(
                vocab_size=23, max_position_embeddings=9, relative_attention=True, pos_att_type=["p2c", "c2p"]
            )
        ),
    ),
    "mpnet": lambda: text(t.MPNetModel, t.MPNetConfig(**transformer(vocab_size=23, max_position_embeddings=12))),
    "convbert": lambda: text(
        t.ConvBertModel,
        t.ConvBertConfig(**transformer(vocab_size=23, max_position_embeddings=9, embedding_size=8, conv_kernel_size=3)),
    ),
    "funnel": lambda: text(
        t.FunnelModel,
        t.FunnelConfig(
            vocab_size=23, block_sizes=[1, 1], num_decoder_layers=1, d_model=WIDTH, n_head=2, d_head=8, d_inner=24
        ),
    ),
    "nystromformer": lambda: text(
        t.NystromformerModel,
        t.NystromformerConfig(
            **transformer(
                vocab_size=23, max_position_embeddings=9, num_landmarks=8, segment_means_seq_len=8, conv_kernel_size=3
            )
        ),
    )._replace(batch=words(23, 8)),
    "fnet": lambda: text(
        t.FNetModel,
        t.FNetConfig(
            vocab_size=23, hidden_size=WIDTH, num_hidden_layers=2, intermediate_size=24, max_position_embeddings=9
        ),
    ),
    "roformer": lambda: text(
        t.RoFormerModel, t.RoFormerConfig(**transformer(vocab_size=23, max_position_embeddings=9))
    ),
    "xlnet": lambda: text(t.XLNetModel, t.XLNetConfig(vocab_size=23, d_model=WIDTH, n_layer=2, n_head=2, d_inner=24)),
    "modernbert": modernbert,
    "longformer": longformer,
    "big_bird": big_bird,
    "reformer": reformer,
    "perceiver": perceiver,
    "canine": lambda: Recipe(
        t.CanineModel,
        t.CanineConfig(
            **transformer(
                max_position_embeddings=32,
                num_hash_buckets=32,
                num_hash_functions=2,
                local_transformer_stride=4,
                downsampling_rate=4,
                upsampling_kernel_size=4,
            )
        ),
        words(23, 16),
        rows,
    ),
    "llama": lambda: text(t.LlamaModel, t.LlamaConfig(**causal()), use_cache=False),
    "llama, packed": packed,
    "gpt2": lambda: text(
        t.GPT2Model, t.GPT2Config(vocab_size=23, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=9, use_cache=False)
    ),
    "gpt_neox": lambda: text(t.GPTNeoXModel, t.GPTNeoXConfig(**transformer(vocab_size=23, use_cache=False))),
    "bloom": lambda: text(
        t.BloomModel, t.BloomConfig(vocab_size=23, hidden_size=WIDTH, n_layer=2, n_head=2, use_cache=False)
    ),
    "gemma2": lambda: text(t.Gemma2Model, t.Gemma2Config(**causal(head_dim=8, sliding_window=3)), use_cache=False),
    "qwen3": lambda: text(t.Qwen3Model, t.Qwen3Config(**causal(head_dim=8)), use_cache=False),
    "phi": lambda: text(t.PhiModel, t.PhiConfig(**causal(num_key_value_heads=2)), use_cache=False),
    "opt": lambda: text(
        t.OPTModel,
        t.OPTConfig(
            vocab_size=23,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=24,
            word_embed_proj_dim=WIDTH,
            max_position_embeddings=9,
        ),
        use_cache=False,
    ),
    "olmo2": lambda: text(t.Olmo2Model, t.Olmo2Config(**causal()), use_cache=False),
    # encoder-decoder
    "t5_encoder": lambda: text(t.T5EncoderModel, t.T5Config(**T5, feed_forward_proj="gated-gelu")),
    "t5": lambda: encoder_decoder(t.T5Model, t.T5Config(**T5, decoder_start_token_id=1)),
    "bart": lambda: encoder_decoder(t.BartModel, t.BartConfig(**BART)),
    "pegasus": lambda: encoder_decoder(t.PegasusModel, t.PegasusConfig(**BART)),
    # experts
    "mixtral": lambda: text(
        t.MixtralModel, t.MixtralConfig(**causal(num_local_experts=3, num_experts_per_tok=2, **EAGER)), use_cache=False
    ),
    "mixtral, grouped": lambda: text(
        t.MixtralModel, t.MixtralConfig(**causal(num_local_experts=3, num_experts_per_tok=2)), use_cache=False
    ),
    "qwen2_moe": lambda: text(
        t.Qwen2MoeModel,
        t.Qwen2MoeConfig(**causal(**EAGER, **EXPERTS, shared_expert_intermediate_size=12)),
        use_cache=False,
    ),
    "qwen3_moe": lambda: text(
        t.Qwen3MoeModel, t.Qwen3MoeConfig(**causal(**EAGER, **EXPERTS, head_dim=8)), use_cache=False
    ),
    "olmoe": lambda: text(
        t.OlmoeModel, t.OlmoeConfig(**causal(**EAGER, num_experts=4, num_experts_per_tok=2)), use_cache=False
    ),
    "deepseek_v3": lambda: text(
        t.DeepseekV3Model,
        t.DeepseekV3Config(
            **causal(
                **EAGER,
                num_key_value_heads=2,
                n_routed_experts=4,
                num_experts_per_tok=2,
                n_group=1,
                topk_group=1,
                moe_intermediate_size=12,
                first_k_dense_replace=1,
                kv_lora_rank=8,
                q_lora_rank=8,
                qk_rope_head_dim=4,
                qk_nope_head_dim=4,
                v_head_dim=8,
                n_shared_experts=1,
            )
        ),
        use_cache=False,
    ),
    "gpt_oss": lambda: text(
        t.GptOssModel,
        t.GptOssConfig(**causal(**EAGER, num_local_experts=3, num_experts_per_tok=2, head_dim=8, sliding_window=3)),
        use_cache=False,
    ),
    "switch": switch,
    # recurrences and state spaces
    "mamba": lambda: text(
        t.MambaModel,
        t.MambaConfig(vocab_size=23, hidden_size=WIDTH, num_hidden_layers=2, state_size=4, use_cache=False),
    ),
    "mamba2": lambda: text(
        t.Mamba2Model,
        t.Mamba2Config(
            vocab_size=23,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            state_size=4,
            num_heads=4,
            head_dim=8,
            n_groups=1,
            chunk_size=4,
            use_cache=False,
        ),
    ),
    "falcon_mamba": lambda: text(
        t.FalconMambaModel,
        t.FalconMambaConfig(vocab_size=23, hidden_size=WIDTH, num_hidden_layers=2, state_size=4, use_cache=False),
    ),
    "rwkv": lambda: text(
        t.RwkvModel,
        t.RwkvConfig(
            vocab_size=23, hidden_size=WIDTH, num_hidden_layers=2, attention_hidden_size=WIDTH, use_cache=False
        ),
    ),
    "recurrent_gemma": lambda: text(
        t.RecurrentGemmaModel,
        t.RecurrentGemmaConfig(**causal(lru_width=WIDTH, attention_window_size=4, num_hidden_layers=3)),
        use_cache=False,
    ),
    "jamba": lambda: text(
        t.JambaModel,
        t.JambaConfig(
            **causal(
                **EAGER,
                num_experts=2,
                num_experts_per_tok=1,
                mamba_d_state=4,
                use_mamba_kernels=False,
                attn_layer_period=2,
                attn_layer_offset=1,
                expert_layer_period=2,
                expert_layer_offset=1,
            )
        ),
        use_cache=False,
    ),
}
