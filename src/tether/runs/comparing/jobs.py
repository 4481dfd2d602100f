"""The single runs that a comparison is made of, each with the hashes by which its directory is found again."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tether.recipe import Recipe, to_plain
from tether.runs.files import training_part, without_logs


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run that is needed.

    Attributes:
        label: what it is, for people.
        test: whether the test splits are to be looked at.
        may_diverge: whether a loss that is not finite is an answer rather than an error.
    """

    recipe: Recipe
    label: str
    test: bool = True
    may_diverge: bool = False

    @cached_property
    def name(self) -> str:
        """The recipe's name and the hash of what decides its result: the run's directory is NAME-001."""
        options = without_logs(to_plain(self.recipe))
        options.pop("search", None)  # says nothing about a single run
        return f"{self.recipe.name}-{_digest(options)}"

    @cached_property
    def training(self) -> str:
        """Hash of all that decides the trained weights."""
        return training_hash(to_plain(self.recipe))


def training_hash(options: Mapping[str, Any]) -> str:
    """Hash of what of a recipe, as plain data, decides the trained weights."""
    return _digest(training_part(options))


def _digest(options: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:10]
