"""How good a model is on the data it was tuned for and on data that look different, and how sure that is."""

from typing import TYPE_CHECKING, Any

from tether.evaluation.alpha import AlphaChoice, choose_alpha
from tether.evaluation.classification import evaluate
from tether.evaluation.classifier import (
    Classifier,
    class_embeddings,
    zero_shot_classifier,
    zero_shot_reader,
)
from tether.evaluation.results import Results, results_schema
from tether.evaluation.scores import SplitScores, Sweep
from tether.evaluation.summary import changed_answers, describe_domains, differences, summarise
from tether.evaluation.tables import predictions_csv, to_csv, to_markdown, to_terminal

if TYPE_CHECKING:
    from tether.evaluation.report import write_report

__all__ = [
    "AlphaChoice",
    "Classifier",
    "Results",
    "SplitScores",
    "Sweep",
    "changed_answers",
    "choose_alpha",
    "class_embeddings",
    "describe_domains",
    "differences",
    "evaluate",
    "predictions_csv",
    "results_schema",
    "summarise",
    "to_csv",
    "to_markdown",
    "to_terminal",
    "write_report",
    "zero_shot_classifier",
    "zero_shot_reader",
]


def __getattr__(name: str) -> Any:
    """The report is imported when it is written: it needs matplotlib, which takes a second to import."""
    if name != "write_report":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tether.evaluation.report import write_report

    return write_report
