"""Test domains of corrupted pictures for any data set: one of all corruptions mixed, or one for each of them."""

from dataclasses import replace
from typing import Literal, get_args

from tether.data.records import PictureBenchmark
from tether.errors import TetherError, near_misses

CorruptedTests = Literal["none", "mixture", "all"]
MIXTURE = "corrupted"
"""Name of the test domain that mixes all corruptions and severities."""


def check_choice(choice: str) -> None:
    """Refuse what is no `CorruptedTests`.

    Raises:
        TetherError: it is something else.
    """
    if choice not in get_args(CorruptedTests):
        raise TetherError(
            f"The corrupted tests are {choice!r}{near_misses(str(choice), get_args(CorruptedTests))}"
        )


def with_corrupted_tests(benchmark: PictureBenchmark, choice: CorruptedTests) -> PictureBenchmark:
    """The benchmark with its in-distribution test corrupted (Hendrycks & Dietterich, ICLR 2019) as further tests.

    Args:
        choice: "none" adds nothing; "mixture" adds one test, "corrupted", with each picture under one of the
            15 corruptions at one of the 5 severities; "all" adds a test for each of these 75, "fog 3" and so
            on.

    Raises:
        TetherError: a test has such a name already, the in-distribution test is altered itself, or the
            corruptions' library is not installed.
    """
    check_choice(choice)
    if choice == "none":
        return benchmark
    from tether.data.corruptions import corrupted, mixed_corruptions

    own = benchmark.tests[benchmark.in_distribution]
    added = {MIXTURE: mixed_corruptions(own)} if choice == "mixture" else corrupted(own)
    if taken := sorted(added.keys() & benchmark.tests.keys()):
        raise TetherError(
            f"{benchmark.name} has a test domain {taken[0]!r} already, which is what a domain of corrupted "
            "pictures is called; give yours another name, or leave these out with corruptions: none."
        )
    return replace(benchmark, tests={**benchmark.tests, **added})
