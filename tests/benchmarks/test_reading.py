"""The benchmark of reading ahead runs, and sees for itself that features are the same."""

from benchmarks import reading


def test_it_prints_the_ratio(capsys):
    options = ["--pictures", "3", "--size", "64", "48", "--batch", "2", "--rounds", "1", "--threads", "1"]
    assert reading.main(options) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("3 pictures of 64 × 48, 1 threads\n")
    assert "ahead ÷ in turn " in printed
