"""Runs and the cosines that they recorded, read from their newest checkpoints."""

from dataclasses import dataclass
from pathlib import Path

from recipes import config as configuration
from recipes.config import Config
from recipes.training import checkpoint, dynamics
from recipes.training.dynamics import TRAINING, Dynamics

TERMS = {
    "none": "baseline",
    "realign": "only realignment",
    "curriculum": "only curriculum",
    "both": "realignment and curriculum",
}
BEFORE = "Cosines are those before realignment, in every panel and every number."
RUNS = Path("runs")  # where names of runs are looked up


class DynamicsError(ValueError):
    """A run whose cosines cannot be shown."""


@dataclass(frozen=True, eq=False)
class Run:
    """A run, finished or not: its name, its configuration, its cosines."""

    name: str
    config: Config
    dynamics: Dynamics

    @property
    def term(self) -> str:
        """What the paper calls its mode."""
        return TERMS[self.config.harmonize]

    @property
    def corpus(self) -> str:
        """What it was trained on."""
        return self.config.data_name


def load(where: str) -> Run:
    """Read a run.

    Args:
        where: Its folder, or its name under runs/.

    Returns:
        The run as of its newest checkpoint.

    Raises:
        DynamicsError: There is no such run, it has no checkpoint, or its checkpoint has no cosines.
    """
    folder = next((place for place in (Path(where), RUNS / where) if place.is_dir()), None)
    if folder is None:
        raise DynamicsError(f"{where}: expected the folder of a run, or the name of one in {RUNS}/; there is neither")
    try:
        newest = checkpoint.latest(folder)
    except FileNotFoundError as error:
        raise DynamicsError(str(error)) from None
    recorded = dynamics.load(newest / dynamics.FILE)
    if not recorded.intervals:
        raise DynamicsError(
            f"{newest}: no cosines are recorded here. Either the run is older than their recording, or it measured "
            "none (gram.every=0, or no clip with both sound and text); run it again with gram.every=1"
        )
    return Run(folder.name, configuration.load(newest / "config.yaml", to_train=False), recorded)


def check_name(runs: list[Run], name: str) -> None:
    """Raise a DynamicsError unless every run has cosines of this name."""
    for run in runs:
        if name not in run.dynamics.names:
            hint = "" if name == TRAINING else "; gram.probe asks for more"
            raise DynamicsError(f"run {run.name} has no cosines {name!r}, only {', '.join(run.dynamics.names)}{hint}")


def described(config: Config, name: str) -> str:
    """In words, what the cosines of a name are taken over."""
    if name != TRAINING:
        family, part = name.split("/")
        return {
            "layers": f"layer {part} of the backbone" if part.isdigit() else "the final norm of the backbone",
            "groups": f"the {part} parameters of the backbone",
            "paths": f"the backbone, g_va through the {part.split('-')[0]}, g_vt through the {part.split('-')[-1]}",
        }[family]
    if config.gram.space == "features":
        return "the embeddings (feature space)"
    names = {None: "all parameters of the model", r"^backbone\.": "the shared backbone"}
    return names.get(config.gram.wrt, f"the parameters {config.gram.wrt}")
