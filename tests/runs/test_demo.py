"""The main job on the built-in model and data: `make test-slow`."""

import pytest
from rich.console import Console

from tether.evaluation import Results
from tether.runs.demo import demo


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_gains_in_distribution_keeps_the_shifts_and_saves_little(tmp_path):
    """What README and results claim of one seed, with room for another machine's rounding."""
    console = Console(record=True, width=120)
    report = demo(tmp_path, None, console)
    shown = console.export_text()
    results = Results.load(report.parent / "results.json")
    by_name = {method.name: method for method in results.methods}
    home = {name: method.measures["colour"].mean for name, method in by_name.items()}
    away = {name: method.shifted_mean.value for name, method in by_name.items()}
    for other in ("zero-shot", "full", "wise-ft"):
        assert home["r-adapter"] > home[other] and away["r-adapter"] > away[other]
    assert home["full"] > home["zero-shot"] + 0.01
    assert by_name["r-adapter"].file_bytes < 5e6 < by_name["full"].file_bytes
    assert "Adapter:" in shown and str(report) in shown and "data:image" in report.read_text()
