"""`tether recipes NAME` says of every option what it means, and is the recipe that a run would have."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tether import recipe as recipes
from tether.cli import main
from tether.cli.recipe_text import recipe_text
from tether.cli.sources import Config, Sources
from tether.errors import TetherError
from tether.recipe_files import names

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
RECIPES = sorted(
    path for path in EXPERIMENTS.rglob("*.yaml") if set(yaml.safe_load(path.read_text())) != {"data"}
)
DATA = sorted(set(EXPERIMENTS.rglob("*.yaml")) - set(RECIPES))


def holds(printed, plain):
    """Whether every option of a plain recipe is printed; an option that came later is printed alone."""
    if not isinstance(plain, dict) or not isinstance(printed, dict):
        return printed == plain
    return all(name in printed and holds(printed[name], value) for name, value in plain.items())


@pytest.mark.parametrize("source", [*names(), *RECIPES], ids=lambda source: Path(source).stem)
def test_what_is_printed_is_the_recipe(source):
    printed = yaml.safe_load(recipe_text(source))
    assert recipes.from_plain(printed) == recipes.read(source)
    assert list(printed) == [field.name for field in dataclasses.fields(recipes.Recipe)]
    assert holds(printed, recipes.to_plain(recipes.read(source)))


@pytest.mark.parametrize("path", DATA, ids=lambda path: path.stem)
def test_data_alone_fits_a_recipe(path):
    data = yaml.safe_load(path.read_text())["data"]
    recipe = recipes.from_plain({"name": "any", "training": {"epochs": 1}, "data": data})
    assert recipe.data.load().in_distribution == path.stem


def test_every_option_of_every_method_has_a_meaning():
    seen: dict[str, Config] = {}

    def visit(config: Config) -> None:
        if config.name in seen:
            return
        seen[config.name] = config
        for option in config.options().values():
            assert option.meaning, f"{config.name}.{option.name} is not explained"
            for other in (*option.methods.values(), *option.configs()):
                visit(other)

    visit(Sources().recipe)
    for config in seen.values():
        assert config.summary, f"{config.name} is not explained"
    assert {"RAdapterConfig", "Select", "FitConfig", "VRFConfig", "VLMixConfig", "ManifestConfig"} <= set(
        seen
    )


def test_meaning_and_default_stand_beside_the_option():
    text = recipe_text("r-adapter")
    assert (
        "\n  drop: 0.2                         # Default. Probability p of adapter drop (paper: 0.2)." in text
    )
    assert "\n  scale: null                       # Default 0.1. Initial value of a learned factor" in text
    assert "# Default null. A running average of what is trained" in text
    assert "null leaves it out" in " ".join(text.replace("#", " ").split())
    assert "One of fp32, bf16." in " ".join(text.replace("#", " ").split())
    assert max(map(len, text.splitlines())) <= 110


def test_options_of_several_regularizers_and_of_own_files_are_printed(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom math import pi\nfrom tether.config import method\n"
        "from tether.families import RegularizerConfig\n\n"
        '@method("mine")\n@dataclass(frozen=True, kw_only=True)\nclass MineConfig(RegularizerConfig):\n'
        '    """What I do."""\n\n    weight: float = 0.5\n    """How much."""\n    angle: float = 2 * pi\n'
    )
    (tmp_path / "own.yaml").write_text(
        "extends: flyp\nname: own\nimports: [mine.py]\nregularizers: [{method: car_ft, weight: 2}, {method: mine}]\n"
    )
    text = recipe_text(tmp_path / "own.yaml")
    car_ft, mine = yaml.safe_load(text)["regularizers"]
    assert car_ft == {"method": "car_ft", "weight": 2, "contexts": None}
    assert mine == {"method": "mine", "weight": 0.5, "angle": "2 * pi"}
    assert "# Default. How much." in text and "# What I do. Others: " in text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "extends: full\noptimizer: {lrr: 1}",
            r"own\.yaml: There is no option 'optimizer\.lrr'; did you mean 'lr'",
        ),
        (
            "extends: full\nadapter: {method: r_adaptor}",
            r"adapter\.method is 'r_adaptor'; did you mean 'r_adapter'",
        ),
        ("extends: full\nimports: [none.py]", r"imports: there is no '.*none\.py' to read"),
        ("name: own", r"Recipe lacks training"),
        ("extends: full\ndata: {method: folder}", r"data lacks train"),
    ],
)
def test_what_is_no_recipe_is_told(text, told, tmp_path):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(TetherError, match=told):
        recipe_text(tmp_path / "own.yaml")


@pytest.mark.parametrize(
    "words", [["recipes"], ["recipes", "r-adapter"], ["recipes", "r-adaptor"], ["train", "x"]]
)
def test_nothing_slow_is_imported_for_it(words):
    code = (
        "import sys\nfrom tether.cli import main\n"
        f"code = main({words})\n"
        "slow = {'torch', 'numpy', 'transformers', 'timm', 'open_clip', 'matplotlib'} & set(sys.modules)\n"
        "assert not slow, slow\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == (2 if words[-1] in ("r-adaptor", "x") else 0), done.stderr
    assert "Traceback" not in done.stderr


def test_a_list_says_what_each_recipe_is(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == names()
    assert all(len(line.split()) > 4 for line in lines)
