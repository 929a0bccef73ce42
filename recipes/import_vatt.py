"""VATT's published weights as a checkpoint: the modality-agnostic model, ut_fac_medium of google-research/vatt.

python -m recipes.import_vatt weights=ckpt-500000 words=words.txt out=runs/vatt [recipe.clip.size=320]

What is taken over, and what is not, is in docs/evaluation.md.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from recipes import cli
from recipes import keys as typed_keys
from recipes.config import CONFIGS, Config
from recipes.data import vocabulary
from recipes.data.encoding import read_lines
from recipes.files import folders
from recipes.keys import key, section
from recipes.model.build import build
from recipes.model.tensor_bundle import TensorBundle
from recipes.model.vatt import MODALITIES
from recipes.training import checkpoint

ENCODER = "model/layer_with_weights-0/_base_layer/unified_backbone/unified_transformer"
HEADS = "model/layer_with_weights-0/_head_layer/_bridge_heads/0"
VALUE = ".ATTRIBUTES/VARIABLE_VALUE"
POSITIONS, WORDS = f"{ENCODER}/pos_embedding_lookup", f"{ENCODER}/raw_to_embeddings/text/embeddings"
AXES = {"time": "temporal", "row": "vertical", "column": "horizontal"}
LINEAR = {"weight": "kernel", "bias": "bias"}
NORM = {"weight": "gamma", "bias": "beta"}
BATCH_NORM = NORM | {"running_mean": "moving_mean", "running_var": "moving_variance"}
UNBIASED = {  # linear layers of the heads without a bias in VATT; here it is zero
    "objective.video_to_va.0": "vid_to_hid",
    "objective.video_to_va.3": "hid_to_va/dense",
    "objective.va_to_vt.1": "va_to_vat/dense",
}

Read = Callable[[str], Tensor]  # gives a variable of VATT's by its name between the model and `.ATTRIBUTES`


@dataclass
class Keys:
    """What to convert."""

    weights: Path = key(meaning="VATT's checkpoint, without .index")
    words: Path | None = key(None, "its vocabulary, a word a line; null: no text can be read")
    out: Path = key(meaning="folder of a run to make")
    model: Path = key(CONFIGS / "vatt_medium_howto100m_audioset.yaml", "configuration of the model")
    recipe: Config = section(Config)


def complete(keys: Keys) -> Keys:
    """The keys with the configuration that `model` names."""
    return replace(keys, recipe=typed_keys.fill(Config, keys.model))


def prepare(keys: Keys) -> tuple[TensorBundle, Tokenizer]:
    """Read the index of the checkpoint, and its vocabulary."""
    bundle = TensorBundle(keys.weights)
    count = bundle.shapes().get(f"{WORDS}/{VALUE}", (1,))[0] - 1
    known = [] if keys.words is None else [line.strip() for _, line in read_lines(keys.words)]
    if len(known) > count:
        raise ValueError(f"{keys.words}: has {len(known)} words; the checkpoint has vectors for {count}")
    unknown = [f"[{number}]" for number in range(len(known), count)]  # brackets: no word of a text is like it
    tokenizer = vocabulary.of_words(known + unknown)
    if tokenizer.get_vocab_size() != count + 2:
        raise ValueError(f"{keys.words}: a word occurs twice; the line of a word is its id")
    return bundle, tokenizer


def plan(keys: Keys) -> str:
    """What would be converted."""
    bundle, tokenizer = prepare(keys)
    count = len(bundle.shapes())
    return f"{keys.out} would get {count} variables of {keys.weights}, and {tokenizer.get_vocab_size()} words"


def run(keys: Keys) -> None:
    """Write a run's folder with VATT's weights."""
    bundle, tokenizer = prepare(keys)
    config = keys.recipe
    config.model.position_norm = True
    config.objective.norm = "batch"
    config.data.word_vectors = None
    modules = build(config, tokenizer)
    load(bundle, modules)
    folders.make(keys.out, "checkpoints/latest")
    number = keys.weights.name.rpartition("-")[2]
    step, facts = int(number) if number.isdecimal() else 0, {"source": str(keys.weights)}

    def beside(place: Path) -> None:
        typed_keys.save(config, place / checkpoint.CONFIG)
        vocabulary.save(tokenizer, place / checkpoint.VOCABULARY)

    print(f"wrote {checkpoint.save(keys.out / 'checkpoints', step, modules, {}, facts, beside)}")


def load(bundle: TensorBundle, modules: nn.ModuleDict) -> None:
    """Load VATT's weights into a model of the same sizes."""

    def read(name: str) -> Tensor:
        try:
            return torch.from_numpy(bundle.tensor(f"{name}/{VALUE}").copy())
        except KeyError:
            raise ValueError(f"{bundle.prefix}: has no variable {name}: not VATT's modality-agnostic model") from None

    state = modules.state_dict()
    loaded = weights(read, len(modules["model"].backbone.layers))
    for name, tensor in loaded.items():
        if name not in state or state[name].shape != tensor.shape:
            wanted = tuple(state[name].shape) if name in state else "nothing of this name"
            raise ValueError(f"{bundle.prefix}: {name} has the shape {tuple(tensor.shape)}; expected {wanted}")
    missing = [name for name in state if name not in loaded and not name.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(f"{bundle.prefix}: gives nothing for {', '.join(missing[:5])}")
    modules.load_state_dict(loaded, strict=False)


def weights(read: Read, layers: int) -> dict[str, Tensor]:
    """The weights of {"model": VATT, "objective": Objective} by our names, for a number of layers."""

    def tensor(name: str) -> Tensor:  # a kernel is (..., in, out), of a convolution in the order of its patch
        return read(name).flatten(0, -2).T if name.endswith("/kernel") else read(name)

    loaded = {
        f"{ours}.{part}": tensor(f"{theirs}/{their_part}")
        for ours, theirs, parts in same_modules(layers)
        for part, their_part in parts.items()
    }
    loaded |= {f"{ours}.bias": torch.zeros(len(loaded[f"{ours}.weight"])) for ours in UNBIASED}
    for modality, short in zip(MODALITIES, ("vid", "aud", "txt"), strict=True):
        loaded[f"model.aggregate.{modality}"] = read(f"{ENCODER}/{short}_agg_embedding")
        for axis in AXES if modality == "video" else ("time",):
            table = f"{POSITIONS}/{modality}/{AXES[axis]}_position_embeddings/embeddings"
            loaded[f"model.tokens.{modality}.{axis}"] = read(table)
    words = read(WORDS)  # id 0 is padding in both; id 1, our unknown word, goes in between
    loaded["model.tokens.text.words.weight"] = torch.cat([words[:1], torch.zeros_like(words[:1]), words[1:]])
    for number in range(layers):
        for part, their_part in LINEAR.items():
            three = [tensor(f"{ENCODER}/tx/layers/{number}/mha/{name}/{their_part}") for name in "qkv"]
            loaded[f"model.backbone.layers.{number}.qkv.{part}"] = torch.cat(three)
    return loaded


def same_modules(layers: int) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Modules that both have: our name, VATT's name, and {our part: VATT's part}."""
    for modality in MODALITIES:
        yield f"model.tokens.{modality}.project", f"{ENCODER}/pre_proj/{modality}", LINEAR
        yield f"model.tokens.{modality}.position_norm", f"{POSITIONS}/{modality}/layernorm", NORM
        yield f"model.output.{modality}", f"{ENCODER}/post_proj/{modality}", LINEAR
        if modality != "text":
            yield f"model.tokens.{modality}.patches", f"{ENCODER}/raw_to_embeddings/{modality}", LINEAR
    for number in range(layers):
        ours, theirs = f"model.backbone.layers.{number}", f"{ENCODER}/tx/layers/{number}"
        yield f"{ours}.norm_attention", f"{theirs}/layer_norm", NORM
        yield f"{ours}.out", f"{theirs}/mha/o", LINEAR
        yield f"{ours}.norm_mlp", f"{theirs}/feed_forward/layer_norm", NORM
        yield f"{ours}.mlp.0", f"{theirs}/feed_forward/mlp/wi", LINEAR
        yield f"{ours}.mlp.2", f"{theirs}/feed_forward/mlp/wo", LINEAR
    yield "model.backbone.norm", f"{ENCODER}/tx/final_layer_norm", NORM
    yield "objective.audio_to_va", f"{HEADS}/aud_to_va", LINEAR
    yield "objective.text_to_vt", f"{HEADS}/txt_to_vat", LINEAR
    yield "objective.video_to_va.1", f"{HEADS}/hid_to_va/pre_bn", BATCH_NORM
    yield "objective.video_to_va.4", f"{HEADS}/hid_to_va/bn", BATCH_NORM
    yield "objective.va_to_vt.2", f"{HEADS}/va_to_vat/bn", BATCH_NORM
    for ours, theirs in UNBIASED.items():
        yield ours, f"{HEADS}/{theirs}", {"weight": "kernel"}


COMMAND = cli.Command("recipes.import_vatt", __doc__, Keys, run, plan, complete=complete)
main = COMMAND.main

if __name__ == "__main__":
    cli.exit(main)
