"""How good a model is on the data it was tuned for and on data that look different, and how sure that is."""

from tether.evaluation.classification import (
    Classifier,
    alpha_sweep,
    class_embeddings,
    evaluate,
    zero_shot_classifier,
)
from tether.evaluation.scores import SplitScores, Sweep

__all__ = [
    "Classifier",
    "SplitScores",
    "Sweep",
    "alpha_sweep",
    "class_embeddings",
    "evaluate",
    "zero_shot_classifier",
]
