"""Further optimisation of a checkpoint on the data that is to be scored, as in the paper, before it is scored."""

from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

from recipes.config import Config
from recipes.data.clips import TrainClips
from recipes.data.loader import train_loader
from recipes.files import replacing
from recipes.model.build import model_inputs
from recipes.progress import progress_bar
from recipes.training.step import Learner, StepOptions, train_step


def tune(
    modules: nn.ModuleDict,
    config: Config,
    train: Dataset,
    tokenizer: Tokenizer,
    iterations: int,
    batch_size: int,
    seed: int,
    file: Path,
) -> None:
    """Train on in place: plainly, at the configuration's last learning rate, with a fresh optimizer.

    The weights are kept in ``file``. What an earlier process left there is loaded instead, so that a scoring that was
    killed goes on with the same weights.
    """
    if file.exists():
        modules.load_state_dict(load_file(file))
        return
    device = next(modules.parameters()).device
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam([p for p in modules.parameters() if p.requires_grad], lr=config.train.end_lr)
    learner = Learner(modules, optimizer)
    plain = StepOptions(weigh="nothing", precision=config.train.precision, clip_norm=config.train.clip_norm)
    modules.train()
    clips = TrainClips(train, tokenizer, config.clip, seed, config.augment)
    data = config.data
    loader = train_loader(clips, batch_size, seed, data.workers, timeout=data.timeout, prefetch=data.prefetch_gib)
    with progress_bar(total=iterations, desc="further optimisation", unit="step") as bar:
        for _, batch in zip(range(iterations), loader, strict=False):
            if len(batch.get("id", [])) > 1:
                train_step(learner, model_inputs(batch, device), plain)
            bar.update()
    with replacing(file) as temporary:
        save_file({name: t.detach().contiguous().cpu() for name, t in modules.state_dict().items()}, temporary)
