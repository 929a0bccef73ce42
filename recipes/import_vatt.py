"""VATT's published weights as a checkpoint: the modality-agnostic model, ut_fac_medium of google-research/vatt.

python -m recipes.import_vatt --weights ckpt-500000 --words words.txt --out runs/vatt

What is taken over, and what is not, is in docs/evaluation.md.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from recipes import config as configuration
from recipes import keys
from recipes.config import CONFIGS, Config
from recipes.data import vocabulary
from recipes.data.encoding import read_lines
from recipes.errors import ConfigError
from recipes.files import folders
from recipes.model.build import build
from recipes.model.tensor_bundle import TensorBundle
from recipes.model.vatt import MODALITIES
from recipes.training import checkpoint

ENCODER = "model/layer_with_weights-0/_base_layer/unified_backbone/unified_transformer"
HEADS = "model/layer_with_weights-0/_head_layer/_bridge_heads/0"
VALUE = ".ATTRIBUTES/VARIABLE_VALUE"
AXES = {"time": "temporal", "row": "vertical", "column": "horizontal"}

log = logging.getLogger(__name__)
Read = Callable[[str], Tensor]


def weights(read: Read, layers: int) -> dict[str, Tensor]:
    """The weights of {"model": VATT, "objective": Objective} by their names here.

    Args:
        read: Gives a variable of VATT's by its name between the model and `.ATTRIBUTES`.
        layers: Of the transformer.
    """
    found: dict[str, Tensor] = {}

    def linear(ours: str, theirs: str, bias: bool = True) -> None:
        kernel = read(f"{theirs}/kernel")  # (..., in, out), of a convolution in the order of its patch
        found[f"{ours}.weight"] = kernel.flatten(0, -2).T
        found[f"{ours}.bias"] = read(f"{theirs}/bias") if bias else torch.zeros(kernel.shape[-1])

    def norm(ours: str, theirs: str, running: bool = False) -> None:
        parts = {"weight": "gamma", "bias": "beta"}
        parts |= {"running_mean": "moving_mean", "running_var": "moving_variance"} if running else {}
        found.update({f"{ours}.{part}": read(f"{theirs}/{name}") for part, name in parts.items()})

    for modality, short in zip(MODALITIES, ("vid", "aud", "txt"), strict=True):
        tokens, positions = f"model.tokens.{modality}", f"{ENCODER}/pos_embedding_lookup/{modality}"
        if modality == "text":  # id 0 is padding there, too; ours for unknown words, 1, is put in between
            words = read(f"{ENCODER}/raw_to_embeddings/text/embeddings")
            found[f"{tokens}.words.weight"] = torch.cat([words[:1], torch.zeros_like(words[:1]), words[1:]])
        else:
            linear(f"{tokens}.patches", f"{ENCODER}/raw_to_embeddings/{modality}")
        linear(f"{tokens}.project", f"{ENCODER}/pre_proj/{modality}")
        for axis in AXES if modality == "video" else ("time",):
            found[f"{tokens}.{axis}"] = read(f"{positions}/{AXES[axis]}_position_embeddings/embeddings")
        norm(f"{tokens}.position_norm", f"{positions}/layernorm")
        found[f"model.aggregate.{modality}"] = read(f"{ENCODER}/{short}_agg_embedding")
        linear(f"model.output.{modality}", f"{ENCODER}/post_proj/{modality}")
    for layer in range(layers):
        ours, theirs = f"model.backbone.layers.{layer}", f"{ENCODER}/tx/layers/{layer}"
        norm(f"{ours}.norm_attention", f"{theirs}/layer_norm")
        for part in "qkv":
            linear(part, f"{theirs}/mha/{part}")
        for kind in ("weight", "bias"):
            found[f"{ours}.qkv.{kind}"] = torch.cat([found.pop(f"{part}.{kind}") for part in "qkv"])
        linear(f"{ours}.out", f"{theirs}/mha/o")
        norm(f"{ours}.norm_mlp", f"{theirs}/feed_forward/layer_norm")
        linear(f"{ours}.mlp.0", f"{theirs}/feed_forward/mlp/wi")
        linear(f"{ours}.mlp.2", f"{theirs}/feed_forward/mlp/wo")
    norm("model.backbone.norm", f"{ENCODER}/tx/final_layer_norm")

    linear("objective.video_to_va.0", f"{HEADS}/vid_to_hid", bias=False)
    norm("objective.video_to_va.1", f"{HEADS}/hid_to_va/pre_bn", running=True)
    linear("objective.video_to_va.3", f"{HEADS}/hid_to_va/dense", bias=False)
    norm("objective.video_to_va.4", f"{HEADS}/hid_to_va/bn", running=True)
    linear("objective.va_to_vt.1", f"{HEADS}/va_to_vat/dense", bias=False)
    norm("objective.va_to_vt.2", f"{HEADS}/va_to_vat/bn", running=True)
    linear("objective.audio_to_va", f"{HEADS}/aud_to_va")
    linear("objective.text_to_vt", f"{HEADS}/txt_to_vat")
    return found


def load(bundle: TensorBundle, modules: nn.ModuleDict) -> None:
    """Load VATT's weights into a model of the same sizes.

    Raises:
        ValueError: A variable is missing, or has another shape than the model asks for; the message names it.
    """

    def read(name: str) -> Tensor:
        try:
            return torch.from_numpy(bundle.read(f"{name}/{VALUE}").copy())
        except KeyError:
            raise ValueError(f"{bundle.prefix}: has no variable {name}: not VATT's modality-agnostic model") from None

    state = modules.state_dict()
    found = weights(read, len(modules["model"].backbone.layers))
    for name, tensor in found.items():
        if name not in state or state[name].shape != tensor.shape:
            wanted = tuple(state[name].shape) if name in state else "nothing of this name"
            raise ValueError(f"{bundle.prefix}: {name} has the shape {tuple(tensor.shape)}; expected {wanted}")
    left = [name for name in state if name not in found and not name.endswith("num_batches_tracked")]
    if left:
        raise ValueError(f"{bundle.prefix}: gives nothing for {', '.join(left[:5])}")
    modules.load_state_dict(found, strict=False)


def convert(prefix: Path, words: Path | None, config: Config, out: Path) -> Path:
    """Write a run's folder with VATT's weights.

    Args:
        prefix: VATT's checkpoint, without `.index`.
        words: Its vocabulary, a word a line, from id 1 on; None: no text can be read.
        config: Of the model; `position_norm` is set.
        out: The run's folder.

    Returns:
        The checkpoint's folder.
    """
    config.model.position_norm = True
    config.objective.norm = "batch"
    config.data.word_vectors = None
    bundle = TensorBundle(prefix)
    table = f"{ENCODER}/raw_to_embeddings/text/embeddings/{VALUE}"
    count = bundle.shapes().get(table, (1,))[0] - 1
    known = [] if words is None else [line.strip() for _, line in read_lines(words)]
    if len(known) > count:
        raise ValueError(f"{words}: has {len(known)} words; the checkpoint has vectors for {count}")
    names = known + [f"[{number}]" for number in range(len(known), count)]  # brackets: no word of a text is like it
    tokenizer = vocabulary.of_words(names)
    if tokenizer.get_vocab_size() != count + 2:
        raise ValueError(f"{words}: a word occurs twice; the line of a word is its id")
    modules = build(config, tokenizer)
    load(bundle, modules)
    folders.make(out, "checkpoints/latest")
    step = int(prefix.name.rpartition("-")[2]) if prefix.name.rpartition("-")[2].isdecimal() else 0
    return checkpoint.save(
        out / "checkpoints", step, modules, {}, {"source": str(prefix)},
        lambda place: keys.save(config, place / "config.yaml"),
        lambda place: vocabulary.save(tokenizer, place / "vocabulary.json"),
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m recipes.import_vatt",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--weights", type=Path, required=True, help="VATT's checkpoint, without .index")
    p.add_argument("--words", type=Path, help="its vocabulary, a word a line; without it no text can be read")
    p.add_argument("--out", type=Path, required=True, help="folder of a run to make")
    p.add_argument(
        "--config",
        type=Path,
        default=CONFIGS / "vatt_medium_howto100m_audioset.yaml",
        help="of the model (default: VATT's medium size)",
    )
    p.add_argument("overrides", nargs="*", metavar="key=value")
    options = p.parse_args(arguments)
    try:
        config = configuration.load(options.config, options.overrides)
        log.info("wrote %s", convert(options.weights, options.words, config, options.out))
    except (ConfigError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())
