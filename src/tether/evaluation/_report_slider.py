"""The report's slider: what the highlighted method answers at every alpha of the grid, one at a time.

Everything that it shows is in the page as JSON, and a short script, `report.js`, shows it. Without script the page
is as it would be without a slider.
"""

import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Any

from tether.evaluation._typed_json import encode
from tether.evaluation.results import Method, PathPoint, Results

Thumbnail = Callable[[str, int], str | None]
"""A small picture of a domain, by its index, as a data address; None where it cannot be had."""


def script() -> str:
    """The script of every page that has a slider."""
    return files("tether.evaluation").joinpath("report.js").read_text(encoding="utf-8")


def script_policy() -> str:
    """What a content security policy must allow so that this script runs, and no other."""
    return f"script-src 'sha256-{b64encode(sha256(script().encode()).digest()).decode()}'"


def points(results: Results) -> list[PathPoint]:
    """The highlighted method at single alphas that were measured on every domain; empty where there are too few."""
    method = results.method(results.highlighted)
    shown = [point for point in method.path if not isinstance(point.alpha, Mapping)] if method else []
    whole = [point for point in shown if point.measures]
    return whole if len(whole) > 2 else []


def slider(results: Results, thumbnail: Thumbnail) -> str:
    """A slider, a table with bars that follows it, and the data of both; empty where nothing can be moved."""
    path = points(results)
    method = results.method(results.highlighted)
    if not path or method is None:
        return ""
    start = _chosen(method, path)
    data = {
        "chosen": start,
        "metric": results.metrics[0].title,
        "domains": [
            {"name": domain.name, "kind": domain.kind}
            for domain in results.domains
            if domain.name in path[0].measures
        ],
        "points": [encode(point) for point in path],
        "thumbnails": _thumbnails(results, path, thumbnail),
    }
    has_pictures = any(point.changes for point in path)
    what = "each test set and the pictures below make" if has_pictures else "each test set makes"
    several = " Numbers are means over its runs." if len(method.seeds) > 1 else ""
    if several and has_pictures:
        several += " Pictures are those of the first run."
    return (
        f"<p>Alpha 0 is the zero-shot model, alpha 1 all that {escape(method.name)} learned. Move it to see what "
        f"{what} of it.{several} The choice was made on validation pictures; this is for looking only.</p>"
        f'<p class="slider"><label for="alpha-at">alpha <output id="alpha-now">{path[start].alpha:g}</output></label>'
        f'<input type="range" id="alpha-at" min="0" max="{len(path) - 1}" step="1" value="{start}"></p>'
        '<div class="scroll"><table class="words"><thead><tr><th>test set</th><th></th><th>at this alpha</th>'
        '<th>against alpha 0</th><th>best here</th></tr></thead><tbody id="alpha-rows"></tbody></table></div>'
        f'<script type="application/json" id="alpha-data">{_inert(data)}</script>'
    )


def _chosen(method: Method, path: list[PathPoint]) -> int:
    """The point of the path that is nearest to what the method's first run chose."""
    words = method.alpha.rpartition(": ")[2].replace(",", " ").split()
    try:
        alpha = float(words[0])
    except (IndexError, ValueError):
        alpha = 1.0
    return min(range(len(path)), key=lambda i: abs(path[i].alpha - alpha))


def _thumbnails(results: Results, path: list[PathPoint], thumbnail: Thumbnail) -> dict[str, str]:
    """Every picture that may come up and is not in the page already, once."""
    in_page = {
        (change.domain, one.index) for change in results.changes for one in (*change.gained, *change.lost)
    }
    needed = {
        (change.domain, one.index)
        for point in path
        for change in point.changes
        for one in (*change.gained, *change.lost)
    }
    found = {f"{domain}/{index}": thumbnail(domain, index) for domain, index in sorted(needed - in_page)}
    return {name: address for name, address in found.items() if address}


def _inert(data: Any) -> str:
    """JSON that no parser of HTML takes for the end of a script or the start of a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
