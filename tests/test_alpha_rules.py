"""scripts/alpha_rules.py: what the former rule and the present one choose, from what a run keeps."""

import json
import math
from dataclasses import replace
from shutil import copytree

import pytest

from scripts import alpha_rules as tool
from tether.errors import TetherError
from tether.evaluation.alpha import AlphaPoint
from tether.recipe import from_plain
from tether.runs.train import run


def trained(tiny_recipe, folder, **alpha):
    tiny_recipe = {**tiny_recipe, "alpha": {"grid": [0.0, 0.5, 1.0], **alpha}}
    return run(from_plain(tiny_recipe), folder, progress=None)


@pytest.fixture(scope="module")
def auto(tiny_recipe, tmp_path_factory):
    """A finished run that chose its alpha, which no test changes."""
    return trained(tiny_recipe, tmp_path_factory.mktemp("auto"), value="auto")


def rewrite(outcome, change):
    path = outcome.run / "result.json"
    result = json.loads(path.read_text())
    change(result)
    path.write_text(json.dumps(result))


def point(loss, error, simulated, alpha=0.0):
    return AlphaPoint(
        alpha, 0.5, {} if simulated is None else {"grey": simulated}, simulated, loss, error, True
    )


@pytest.mark.parametrize(("b", "c", "n"), [(0, 0, 42), (1, 0, 42), (3, 0, 100), (7, 2, 236), (21, 19, 100)])
def test_a_loss_and_its_error_tell_the_pictures_that_only_one_has_right(b, c, n):
    loss = (b - c) / n
    error = math.sqrt(b + c - (b - c) ** 2 / n) / n
    sums = tool.differences(point(loss, error, 0.5), n)
    assert ((sums > 0).sum(), (sums < 0).sum()) == (b, c)


def test_a_row_has_both_choices_and_the_accuracies_at_them(auto, tmp_path):
    """One picture is lost at the alpha that is best on the shift."""
    outcome = replace(auto, run=copytree(auto.run, tmp_path / auto.run.name))
    n = len(outcome.benchmark.validation)
    assert len(outcome.benchmark.validation.identities) == n

    def one_picture(result):
        for entry, mean in zip(result["validation"], (0.1, 0.3, 0.7), strict=True):
            entry |= {"simulated_mean": mean, "loss": 0.0, "loss_error": 0.0}
        result["validation"][2] |= {"loss": 1 / n, "loss_error": math.sqrt((n - 1) / n) / n}
        result["alpha_reason"] = "Of 3 alphas, 3 lose at most one standard error."

    rewrite(outcome, one_picture)
    row = tool.read(outcome.run)
    assert (row.former, row.now) == (0.5, 1.0)
    scores = outcome.test.at(1.0)
    home = outcome.benchmark.in_distribution
    others = [scores[name].value for name in scores if name != home and not scores[name].split.is_corruption]
    assert row.accuracy == (scores[home].value, pytest.approx(sum(others) / len(others)))
    assert f"| {outcome.run.name} | 0.5 | 1 |" in tool.table([row])


def test_what_was_not_evaluated_is_asked_for_only_where_it_would_decide():
    points = [point(0.0, 0.0, 0.3, 0.5), point(0.2, 0.1, None, 1.0)]
    assert tool.best(points, lambda own: own.loss < 0.1) == 0.5
    assert tool.best([points[1]], lambda own: True) == 1.0
    with pytest.raises(TetherError, match="No simulated shift was evaluated at alpha 1, "):
        tool.best(points, lambda own: True)


def test_what_a_run_says_by_the_exact_test_is_taken_as_it_is(auto):
    assert tool.EXACT_IN_REASON in auto.alpha_reason
    assert tool.read(auto.run).now == auto.alpha


def test_a_run_that_chose_otherwise_is_refused(tiny_recipe, tmp_path):
    with pytest.raises(TetherError, match="did not choose alpha by the rule 'bounded loss'"):
        tool.read(trained(tiny_recipe, tmp_path, value=0.5).run)
    unanswered = trained(tiny_recipe, tmp_path, value="auto", curve=False, grid=[0.0, 0.25, 0.5, 1.0])
    with pytest.raises(TetherError, match="was not evaluated; there are: 0"):
        tool.accuracy(unanswered, next(a for a in (0.25, 0.5) if a != unanswered.alpha))
