"""The tiny pictures with captions, for what is tried in both tasks."""

import csv
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def retrieval_options(tiny_recipe, tmp_path_factory):
    """Options of a retrieval run on the tiny pictures, with two or three captions each, in two domains."""
    root = Path(tiny_recipe["data"]["train"]).parent
    table = tmp_path_factory.mktemp("captions") / "captions.csv"
    rows = []
    for domain in ("colour", "outline"):
        for shape in ("circle", "square", "cross"):
            for i, picture in enumerate(sorted((root / domain / shape).iterdir())):
                split = "test" if domain == "outline" or i < 2 else "validation" if i < 4 else "train"
                name = picture.relative_to(root).as_posix()
                texts = (f"a {shape} {i}", f"the {shape}, {domain}", f"number {i}: {shape}")[: 2 + i % 2]
                rows += [(name, text, domain, split, f"{domain} {shape} {i}") for text in texts]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "caption", "domain", "split", "identity"), *rows])
    data = {"method": "caption_table", "path": str(table), "root": str(root), "in_distribution": "colour"}
    return {**tiny_recipe, "name": "found", "task": {"method": "retrieval"}, "data": data}
