"""Runs and the cosines that they recorded, read from their newest checkpoints."""

from dataclasses import dataclass
from pathlib import Path

from recipes import config as configuration
from recipes.config import Config
from recipes.errors import DataError
from recipes.training import checkpoint, dynamics
from recipes.training.dynamics import TRAINING, Dynamics

MODES = {
    "none": "baseline",
    "realign": "only realignment",
    "curriculum": "only curriculum",
    "both": "realignment and curriculum",
}
RUNS = Path("runs")  # where the names of runs are looked up


@dataclass(frozen=True, eq=False)
class Run:
    """A run, finished or not: its name, its configuration, its cosines."""

    name: str
    config: Config
    dynamics: Dynamics

    @property
    def mode(self) -> str:
        """What the paper calls its way of harmonizing."""
        return MODES[self.config.harmonize]

    @property
    def corpus(self) -> str:
        """What it was trained on."""
        return self.config.data_name

    @property
    def probes(self) -> dict[str, list[str]]:
        """The names of its probes by family: {"layers": ["layers/0", ...], ...}."""
        names = [name for name in self.dynamics.names if "/" in name]
        families = dict.fromkeys(name.split("/")[0] for name in names)
        return {family: [name for name in names if name.startswith(f"{family}/")] for family in families}

    def over(self, name: str) -> str:
        """What the cosines of a name are taken over, in words."""
        family, _, part = name.partition("/")
        if family == "layers":
            return f"layer {part} of the backbone" if part.isdigit() else "the final norm of the backbone"
        if family == "groups":
            return f"the {part} parameters of the backbone"
        if family == "paths":
            first, second = part.split("-")
            return f"the backbone, g_va through the {first}, g_vt through the {second}"
        gram = self.config.gram
        if gram.space == "features":
            return "the embeddings (feature space)"
        parts = {
            None: "all parameters of the model",
            r"^backbone\.": "the shared backbone",
            "last_block": "the last block of the backbone",
            "last_projection": "the last projection of the backbone",
        }
        return parts.get(gram.wrt, f"the parameters {gram.wrt}")


def load(place: str) -> Run:
    """Load a run, its folder or its name under runs/, as of its newest checkpoint; a DataError if it has no cosines."""
    folder = next((path for path in (Path(place), RUNS / place) if path.is_dir()), None)
    if folder is None:
        raise DataError(f"{place}: expected the folder of a run, or the name of one in {RUNS}/; there is neither")
    newest = checkpoint.latest(folder)
    recorded = dynamics.load(newest / dynamics.FILE)
    if not recorded.intervals:
        raise DataError(
            f"{newest}: no cosines are recorded here. Either the run is older than their recording, or it measured "
            "none (gram.every=0, or no clip with both sound and text); run it again with gram.every=1"
        )
    return Run(folder.name, configuration.load(newest / "config.yaml", to_train=False), recorded)


def check_name(runs: list[Run], name: str) -> None:
    """Raise a DataError unless every run has cosines of this name."""
    for run in runs:
        if name not in run.dynamics.names:
            hint = "" if name == TRAINING else "; gram.probe asks for more"
            raise DataError(f"run {run.name} has no cosines {name!r}, only {', '.join(run.dynamics.names)}{hint}")
