"""Linear classifiers on frozen features: scikit-learn's logistic regression, and the head of VATT's released code."""

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of scikit-learn: the inverse of the regularization
PARTS = 4  # of the training clips; one of them chooses C

HIDDEN, DROPOUT, PENALTY = 128, 0.9, 0.1  # of VATT's head; the penalty is on the squares of the last layer's weights
LR, BATCH, EPOCHS = 5e-4, 64, 1000  # an epoch sees one window of every clip


def logistic(features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> tuple[Pipeline, float]:
    """Fit a logistic regression on standardized features (N, D), of two classes or more.

    Returns also its C, which is the most accurate on a quarter of the clips, of `groups` (N,) that the other three
    quarters lack; of several, the smallest. The model is then fitted on all clips.
    """
    name = "logisticregression__C"
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    quarter = _quarter(labels, groups)
    if quarter is None:
        return model.set_params(**{name: STRENGTHS[0]}).fit(features, labels), STRENGTHS[0]
    search = GridSearchCV(model, {name: STRENGTHS}, cv=[quarter]).fit(features, labels)
    return search.best_estimator_, search.best_params_[name]


def _quarter(labels: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Rows to fit and rows to judge C; None where the clips are too few or too alike to be parted."""
    parts = min(PARTS, len(np.unique(groups)), np.bincount(np.unique(labels, return_inverse=True)[1]).max())
    if parts < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer clips than parts
        folds = StratifiedGroupKFold(parts, shuffle=True, random_state=0).split(labels, labels, groups)
        fitted, judged = next(iter(folds))
    return (fitted, judged) if len(judged) and len(np.unique(labels[fitted])) > 1 else None


def vatt_head(windows: Tensor, labels: Tensor, classes: int) -> nn.Sequential:
    """Train VATT's head, whose narrow layer has nothing nonlinear, on features (N, W, D); each window is an example."""
    examples, targets = windows.flatten(0, 1), labels.repeat_interleave(windows.shape[1])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        narrow, wide = nn.Linear(examples.shape[1], HIDDEN), nn.Linear(HIDDEN, classes)
        for layer in (narrow, wide):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        head = nn.Sequential(narrow, nn.Dropout(DROPOUT), wide).to(examples.device)
        optimizer = torch.optim.Adam(head.parameters(), LR, eps=1e-7)
        for _ in range(max(1, EPOCHS // windows.shape[1])):  # as many steps as with one window of every clip
            for batch in torch.randperm(len(examples)).to(examples.device).split(BATCH):
                penalty = PENALTY * wide.weight.square().sum()
                loss = F.cross_entropy(head(examples[batch]), targets[batch]) + penalty
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return head.eval()


def averaged(head: nn.Module, windows: Tensor) -> Tensor:
    """Probabilities (N, C) of clips: the means over their windows (N, W, D)."""
    with torch.no_grad():
        return head(windows).softmax(-1).mean(1)
