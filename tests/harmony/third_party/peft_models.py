"""Adapters of peft on a small BERT: low rank, scaled, of orthogonal rotations, of prompts."""

from typing import Any

import peft
import transformers
from torch import nn

from tests.harmony.third_party.architecture import Architecture, Builder, of, tokens, words

ON = {"target_modules": ["query", "value"]}


def bert() -> nn.Module:
    """What is adapted."""
    config = transformers.BertConfig(
        vocab_size=23,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertModel(config)


def adapted(method: str, **settings: Any) -> Builder:
    """BERT with this adapter: only what the adapter adds is trained."""

    def build() -> Architecture:
        config = getattr(peft, f"{method}Config")(**settings)
        module = peft.get_peft_model(bert(), config)
        return Architecture(module, words(23, 6), of("last_hidden_state", tokens))

    return build


PROMPT = {"task_type": "FEATURE_EXTRACTION", "num_virtual_tokens": 3}
BUILDERS: dict[str, Builder] = {
    "LoRA": adapted("Lora", r=2, init_lora_weights=False, **ON),
    "DoRA": adapted("Lora", r=2, init_lora_weights=False, use_dora=True, **ON),
    "rsLoRA, embedding": adapted(
        "Lora", r=2, init_lora_weights=False, use_rslora=True, target_modules=["query", "word_embeddings"]
    ),
    "AdaLoRA": adapted("AdaLora", init_r=2, target_r=2, total_step=10, init_lora_weights=False, **ON),
    "IA3": adapted(
        "IA3", init_ia3_weights=False, feedforward_modules=["output.dense"], target_modules=["query", "output.dense"]
    ),
    "LoHa": adapted("LoHa", r=2, init_weights=False, **ON),
    "LoKr": adapted("LoKr", r=2, init_weights=False, **ON),
    "OFT": adapted("OFT", r=0, oft_block_size=4, init_weights=False, **ON),
    "BOFT": adapted("BOFT", boft_block_size=4, init_weights=False, **ON),
    "VeRA": adapted("Vera", r=2, init_weights=False, **ON),
    "FourierFT": adapted("FourierFT", n_frequency=6, init_weights=False, **ON),
    "HRA": adapted("HRA", r=2, init_weights=False, **ON),
    "LN tuning": adapted("LNTuning", target_modules=["LayerNorm"]),
    "prompt tuning": adapted("PromptTuning", **PROMPT),
    "p-tuning": adapted("PromptEncoder", encoder_hidden_size=8, **PROMPT),
    "prefix tuning": adapted("PrefixTuning", **PROMPT),
}
