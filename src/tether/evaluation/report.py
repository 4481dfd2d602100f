"""One page that shows and explains a comparison to somebody who was not there: `report.html`, in a single
file.

The page needs nothing else: no network, pictures and figures inside, and one short script of its own that moves
alpha, without which it says the same at the chosen alpha. Every text in it that came from outside (names of classes,
methods, data sets, files) is escaped, and a content security policy forbids every other script and address.
"""

from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from PIL import Image

from tether._files import write_text
from tether.evaluation import _report_parts as parts
from tether.evaluation import _report_slider as moving
from tether.evaluation import _report_text as words
from tether.evaluation._svg import standing_alone
from tether.evaluation.drawing import Drawn, address_of
from tether.evaluation.figures import alpha_figure, domains_figure, robustness_figure
from tether.evaluation.results import Changes, Results

Pictures = Callable[[str, int], Image.Image | None]
"""Gives the picture of a domain by its index in the split, or None where it cannot be had."""

_SIDE = 96
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(
    results: Results, path: Path, pictures: Pictures | None = None, drawings: Sequence[Drawn] = ()
) -> None:
    """Write the page that explains `results`, whole or not at all.

    Args:
        pictures: shown small where an answer changed; without it only the names are listed.
        drawings: test pictures with truth and answer drawn over them.

    Raises:
        TetherError: the file cannot be written.
    """
    page = report_page(results, pictures, drawings)
    write_text(path, page)


def write_robustness_figure(results: Results, path: Path) -> bool:
    """The scatter plot of the report as an SVG file that stands alone, on white and with the methods' names.

    Returns whether there was something to draw: a method with an in-distribution and a shifted accuracy.

    Raises:
        TetherError: the file cannot be written.
    """
    figure = robustness_figure(results, names=True)
    if figure is None:
        return False
    page = f'<?xml version="1.0" encoding="utf-8"?>\n{standing_alone(figure)}'
    write_text(path, page)
    return True


def report_page(results: Results, pictures: Pictures | None = None, drawings: Sequence[Drawn] = ()) -> str:
    """The page as text; see `write_report`."""
    slider = moving.slider(results, lambda domain, index: _thumbnail(pictures, domain, index))
    sections = [
        ("table", "All methods on all domains", parts.main_table(results)),
        ("slider", "Every alpha, by hand", slider),
        ("robustness", "Accuracy where it was tuned, and elsewhere", _robustness(results)),
        ("alpha", "How alpha was chosen", _alpha(results)),
        ("domains", "Accuracy per domain", _domains(results)),
        ("costs", "What each method took", parts.costs_table(results)),
        ("tuning", "How settings were chosen", parts.tuning_tables(results)),
        ("differences", "Which differences are more than chance", parts.differences_table(results)),
        ("changes", "Pictures whose answer changed", _changes(results, pictures)),
        ("drawings", "Answers beside the truth", parts.drawings(results, drawings)),
        ("queries", "What came up first for some captions", _queries(results, pictures)),
        ("made", "How these numbers were made", parts.how_made(results)),
        ("terms", "Terms", words.terms(results)),
    ]
    sections = [section for section in sections if section[2]]
    look = {"slider": ' class="with-script"'}
    links = "".join(
        f'<a href="#{anchor}"{look.get(anchor, "")}>{escape(title)}</a> ' for anchor, title, _ in sections
    )
    body = "".join(
        f'<section id="{anchor}"{look.get(anchor, "")}><h2>{escape(title)}</h2>{content}</section>'
        for anchor, title, content in sections
    )
    policy, script = _POLICY, ""
    if slider:
        policy, script = f"{_POLICY}; {moving.script_policy()}", f"<script>{moving.script()}</script>"
    style = files("tether.evaluation").joinpath("report.css").read_text(encoding="utf-8")
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        f'content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="referrer" '
        'content="no-referrer">'
        f"<title>{escape(results.title)}</title><style>{style}</style></head><body>"
        f"<header><h1>{escape(results.title)}</h1>{parts.summary(results)}<nav>{links}</nav></header>"
        f"<main>{body}</main><footer>Written by tether from results of format {results.version}. "
        f"This page is one file and loads nothing.</footer>{script}</body></html>\n"
    )


def _robustness(results: Results) -> str:
    figure = robustness_figure(results)
    if not figure:
        return ""
    return _figure(figure, words.robustness_caption(results), words.legend(results), "Accuracy scatter plot")


def _alpha(results: Results) -> str:
    if results.alpha is None:
        return ""
    text = f'<p class="lead">{escape(results.alpha.reason)}</p>'
    method = results.method(results.highlighted)
    figure = alpha_figure(results.alpha, method)
    if not figure:
        return text
    return text + _figure(
        figure,
        words.alpha_caption(results.alpha, method),
        words.alpha_legend(results.alpha, method),
        "Accuracy along alpha",
    )


def _domains(results: Results) -> str:
    shown = words.key_methods(results)
    figure = domains_figure(results, shown)
    if not figure:
        return ""
    return _figure(
        figure, words.domains_caption(results), words.legend(results, shown), "Accuracy per domain"
    )


def _figure(svg: str, caption: str, legend: str, name: str) -> str:
    drawing = svg.replace("<svg", f'<svg role="img" aria-label="{escape(name)}"', 1)
    return f"<figure><div>{legend}{drawing}</div><figcaption>{caption}</figcaption></figure>"


def _changes(results: Results, pictures: Pictures | None) -> str:
    if not results.changes:
        return ""
    found = "".join(_domain_changes(change, pictures) for change in results.changes)
    return f'{words.changes_text(results)}<div id="changes-at">{found}</div>'


def _domain_changes(changes: Changes, pictures: Pictures | None) -> str:
    blocks = [parts.changes_head(changes)]
    for title, shown, total, gained in (
        ("Right before, wrong now", changes.lost, changes.right_to_wrong, False),
        ("Wrong before, right now", changes.gained, changes.wrong_to_right, True),
    ):
        if not shown:
            continue
        cards = "".join(
            parts.picture_card(
                picture, changes.domain, _thumbnail(pictures, changes.domain, picture.index), gained=gained
            )
            for picture in shown
        )
        some = f"{len(shown)} of {total}" if len(shown) < total else f"all {total}"
        blocks.append(f'<p><strong>{title}</strong> <span class="soft">({some})</span></p>')
        blocks.append(f'<div class="pictures">{cards}</div>')
    return "".join(blocks)


def _queries(results: Results, pictures: Pictures | None) -> str:
    """A row of pictures per caption, the right one marked."""
    if not results.queries:
        return ""
    blocks = [
        f"<p>The pictures that come first by {escape(results.highlighted)}; the right one is framed.</p>"
    ]
    for query in results.queries:
        cards = "".join(
            parts.found_card(one, _thumbnail(pictures, query.domain, one.index)) for one in query.found
        )
        place = "found first" if query.rank == 1 else f"at place {query.rank}"
        blocks.append(
            f'<p><strong>{escape(query.text)}</strong> <span class="soft">({escape(query.domain)}; its picture is '
            f'{place})</span></p><div class="pictures">{cards}</div>'
        )
    return "".join(blocks)


def _thumbnail(pictures: Pictures | None, domain: str, index: int) -> str | None:
    """A small picture as a data address, at most `_SIDE` pixels to a side; None where there is none."""
    picture = pictures(domain, index) if pictures else None
    return None if picture is None else address_of(picture, _SIDE)
