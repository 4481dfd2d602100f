"""What it takes to add a method: a file of one's own, which a recipe imports, and nothing else."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tether import recipe as recipes
from tether.adapters import load_adapter
from tether.cli import main
from tether.config import method, methods_of
from tether.errors import TetherError
from tether.families import AdapterConfig, ObjectiveConfig

pytestmark = pytest.mark.usefixtures("own_methods")

OWN = {
    "adapter": """
        from dataclasses import dataclass
        from tether.adapters.base_weights import BaseWeightsAttached
        from tether.config import method
        from tether.families import AdapterConfig

        @method("own_adapter")
        @dataclass(frozen=True, kw_only=True)
        class OwnConfig(AdapterConfig):
            part: str = "ln_final"
            def attach(self, model, *, seed=0):
                return OwnAttached(model, self, seed=seed)

        class OwnAttached(BaseWeightsAttached):
            def _chosen(self):
                return [name for name, _ in self.module.named_parameters() if self.config.part in name]
    """,
    "objective": """
        from dataclasses import dataclass
        from tether.config import method
        from tether.families import ObjectiveConfig

        @method("own_objective")
        @dataclass(frozen=True, kw_only=True)
        class OwnConfig(ObjectiveConfig):
            def loss(self):
                return lambda image, text, labels, scale, *, index: -(image * text[index]).sum(1).mean()
    """,
    "regularizers": """
        from dataclasses import dataclass
        from tether.config import method
        from tether.families import RegularizerConfig

        @method("own_regularizers")
        @dataclass(frozen=True, kw_only=True)
        class OwnConfig(RegularizerConfig):
            weight: float = 0.1
            def term(self, shared):
                return Term()

        class Term:
            separable = True
            def __call__(self, step):
                return step.given.image.var(0).sum()
    """,
    "optimizer": """
        from dataclasses import dataclass
        import torch
        from tether.config import method
        from tether.families import OptimizerConfig

        @method("own_optimizer")
        @dataclass(frozen=True, kw_only=True)
        class OwnConfig(OptimizerConfig):
            lr: float = 1e-3
            head_lr: float | None = None
            weight_decay: float = 0.0
            def optimizer(self, groups, anchors):
                return torch.optim.Adagrad(groups, self.lr)
    """,
    "ensemble": """
        from dataclasses import dataclass
        from tether.config import method
        from tether.ensembles.output import OutputConfig
        from tether.families import EnsembleConfig

        @method("own_ensemble")
        @dataclass(frozen=True, kw_only=True)
        class OwnConfig(EnsembleConfig):
            needs_validation = False
            def fit(self, pair, *, train, validation, seed=0):
                halves = OutputConfig(weight=0.5, fit_temperatures=False)
                return halves.fit(pair, train=train, validation=validation, seed=seed)
    """,
    "task": """
        from dataclasses import dataclass
        from typing import ClassVar
        import torch
        from tether.config import method
        from tether.evaluation.scores import SplitScores
        from tether.evaluation.scoring import Metric
        from tether.families import TaskConfig
        from tether.tasks.classification import Classification

        @method("own_task")
        @dataclass(frozen=True, kw_only=True)
        class OwnConfig(TaskConfig):
            def make(self, recipe, model, benchmark, *, progress=None):
                return Own(recipe, model, benchmark, progress)
            def scores(self, benchmark, split, tensors):
                return OwnScores(split=split, classes=len(benchmark.class_names), **tensors)

        class OwnScores(SplitScores):
            metrics: ClassVar = (Metric(name="confidence", title="mean confidence"), *SplitScores.metrics)
            @property
            def primary(self):
                return self.confidences
            def values(self):
                return {"confidence": self.value, **{m.name: getattr(self, m.name) for m in SplitScores.metrics}}

        class Own(Classification):
            def reader(self, splits):
                make = super().reader(splits)
                return lambda alpha: Reader(make(alpha))

        class Reader:
            def __init__(self, classifier):
                self.classifier = classifier
            def __call__(self, features):
                return self.classifier(features)
            def scorer(self, split):
                return Scorer(self.classifier.scorer(split))

        class Scorer:
            def __init__(self, scorer):
                self.scorer = scorer
            def rows(self, output, index):
                return self.scorer.rows(output, index)
            def scores(self, rows):
                own = self.scorer.scores(rows)
                return OwnScores(split=own.split, classes=own.classes, **own.tensors())
    """,
    "data": """
        from dataclasses import dataclass
        from tether.config import method
        from tether.data.folder import FolderConfig
        from tether.families import DataConfig

        @method("own_data")
        @dataclass(frozen=True, kw_only=True)
        class OwnConfig(DataConfig):
            root: str
            def load(self):
                return FolderConfig(train=self.root, templates="{}").load()
    """,
}


@pytest.mark.parametrize("question", OWN)
def test_a_method_in_a_file_of_its_own_works_in_a_recipe(question, tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = f"own_{question}_file"
    Path(f"{name}.py").write_text(dedent(OWN[question]))
    block = {"method": f"own_{question}"}
    if question == "data":
        block["root"] = tiny_recipe["data"]["train"]
    options = {
        **tiny_recipe,
        "imports": [f"{name}.py"],
        question: [block] if question == "regularizers" else block,
    }
    recipe = recipes.from_plain(options)
    assert recipes.from_plain(recipes.to_plain(recipe)) == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    Path("own.yaml").write_text(json.dumps(options))
    assert main(["train", "own.yaml"]) == 0
    run = Path("runs") / f"{recipe.name}-001"
    assert (run / "result.json").is_file()
    if question == "task":
        numbers = json.loads((run / "result.json").read_text())["test"]["1.0"]["outline"]
        assert 0 < numbers["confidence"] < 1 and list(numbers)[3] == "confidence"
    if question == "adapter":
        assert type(load_adapter(run / "adapter").config).__name__ == "OwnConfig"


def test_a_file_that_is_not_there_or_has_anothers_name_is_refused(tiny_recipe, tmp_path):
    with pytest.raises(TetherError, match=r"there is no file .*none\.py"):
        recipes.from_plain({**tiny_recipe, "imports": [str(tmp_path / "none.py")]})
    (tmp_path / "json.py").write_text("")
    with pytest.raises(TetherError, match="name of another module"):
        recipes.from_plain({**tiny_recipe, "imports": [str(tmp_path / "json.py")]})
    with pytest.raises(TetherError, match=r"'no_such_module' cannot be imported .*ends in \.py"):
        recipes.from_plain({**tiny_recipe, "imports": ["no_such_module"]})
    (tmp_path / "wrong_import.py").write_text("import no_such_module")
    with pytest.raises(TetherError, match=r"wrong_import\.py cannot be imported"):
        recipes.from_plain({**tiny_recipe, "imports": [str(tmp_path / "wrong_import.py")]})


def test_two_methods_of_one_question_with_one_name_are_an_error():
    class Other(ObjectiveConfig):
        def loss(self): ...

    taken = next(iter(methods_of(ObjectiveConfig)))
    with pytest.raises(TetherError, match=f"both call themselves '{taken}'"):
        method(taken)(Other)
    method(next(iter(methods_of(AdapterConfig))))(Other)  # a name is one question's


def test_a_method_is_found_without_an_import_of_its_file():
    code = (
        "from tether.config import methods_of; from tether.families import EnsembleConfig; "
        "print(*methods_of(EnsembleConfig))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.split() == ["fisher", "output", "vrf"]
