import base64
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from PIL import Image

from tether.evaluation._report_slider import script
from tether.evaluation.figures import alpha_figure, domains_figure, robustness_figure
from tether.evaluation.report import report_page, write_report, write_robustness_figure
from tether.evaluation.results import Results

from .demo import demo_results, picture

HOSTILE = (
    "</title></style><script>alert(1)</script><img src=x onerror=alert(2)>"
    "\"' onmouseover='x $\\frac{1}$ 日本 😀"
)


SCRIPT = re.compile(r"<script([^>]*)>(.*?)</script>", re.DOTALL)


class Reader(HTMLParser):
    """Every tag, attribute and text, and whether tags close in order."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.open, self.text, self.wrong = [], [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in {"meta", "img", "br", "input"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def results():
    return demo_results(seeds=2, n=80)


@pytest.fixture(scope="module")
def page(results):
    return report_page(results, picture)


def test_the_page_is_whole_and_says_what_was_found(results, page):
    read = Reader(page)
    assert not read.wrong and not read.open
    text = " ".join(read.text)
    for method in results.methods:
        assert method.name in text
    for domain in results.domains:
        assert domain.name in text and domain.digest[:12] in text
    assert results.alpha.reason in text and results.notes[0] in text
    assert f"{100 * results.method('R-Adapter').shifted_mean.value:.1f} %" in text
    assert read.tags.count("figure") == 3 and "effective robustness" in text


def test_the_page_loads_nothing_and_runs_its_own_script_alone(page):
    read = Reader(page)
    assert not {"link", "iframe", "object", "embed", "form", "base"} & set(read.tags)
    (kind, data), (own_kind, own) = SCRIPT.findall(page)
    assert kind == ' type="application/json" id="alpha-data"' and (own_kind, own) == ("", script())
    assert json.loads(data)["points"] and "<" not in data
    allowed = base64.b64encode(sha256(own.encode()).digest()).decode()
    assert f"script-src 'sha256-{allowed}'\"" in page
    for name, value in read.attributes:
        assert not name.startswith("on"), name
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("data:image/webp;base64,", "#")), value[:80]
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert "default-src 'none'" in page


def test_pictures_are_small_and_where_answers_changed(results, page):
    sources = [value for name, value in Reader(page).attributes if name == "src"]
    shown = sum(len(change.gained) + len(change.lost) for change in results.changes)
    assert len(sources) == shown > 0
    for source in sources[:3]:
        small = Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))
        assert max(small.size) <= 96
    assert len(page) < 1_000_000


def test_a_picture_that_is_not_there_is_named(results):
    page = report_page(results, lambda domain, index: None)
    assert 'class="missing"' in page and "<img" not in page
    assert results.changes[0].gained[0].identity in page
    assert report_page(results) == page


def test_hostile_names_are_shown_and_do_nothing(results):
    names = {method.name: HOSTILE + method.name for method in results.methods}
    domains = {domain.name: HOSTILE + domain.name for domain in results.domains}
    hostile = replace(
        results,
        title=HOSTILE,
        data_set=HOSTILE,
        zero_shot=names["zero-shot"],
        highlighted=names["R-Adapter"],
        domains=tuple(
            replace(d, name=domains[d.name], convention=HOSTILE, digest=HOSTILE) for d in results.domains
        ),
        methods=tuple(
            replace(
                method,
                name=names[method.name],
                description=HOSTILE,
                alpha=HOSTILE,
                measures={domains[name]: measure for name, measure in method.measures.items()},
            )
            for method in results.methods
        ),
        alpha=replace(results.alpha, reason=HOSTILE),
        changes=tuple(
            replace(
                change,
                domain=HOSTILE,
                gained=tuple(
                    replace(p, identity=HOSTILE, truth=HOSTILE, before=HOSTILE, after=HOSTILE)
                    for p in change.gained
                ),
            )
            for change in results.changes
        ),
        differences=tuple(
            replace(d, method=HOSTILE, reference=HOSTILE, where="mean " + HOSTILE)
            for d in results.differences
        ),
        templates=(HOSTILE,),
        settings={HOSTILE: HOSTILE},
        versions={HOSTILE: HOSTILE},
        notes=(HOSTILE,),
    )
    tame, read = Reader(report_page(results, picture)), Reader(report_page(hostile, picture))
    assert not read.wrong and not read.open
    assert SCRIPT.findall(report_page(hostile, picture))[1:] == [("", script())]
    assert not any(name.startswith("on") for name, _ in read.attributes)
    assert set(read.tags) == set(tame.tags)
    assert HOSTILE in "".join(read.text)


def test_without_points_on_every_domain_there_is_no_slider(results):
    earlier = tuple(
        replace(method, path=tuple(replace(point, measures={}) for point in method.path))
        for method in results.methods
    )
    page = report_page(replace(results, methods=earlier), picture)
    assert "<script" not in page and 'id="slider"' not in page and "script-src" not in page


def shown_by_a_browser(page, folder, at=""):
    """The page as it is after its script has run."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert browser, "This test needs Chromium on the path."
    file = folder / "report.html"
    file.write_text(page)
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
        "--dump-dom",
    ]
    done = subprocess.run(
        [browser, *options, f"file://{file}{at}"], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.browser
def test_the_slider_shows_what_was_measured_at_its_alpha(results, page, tmp_path):
    method = results.method(results.highlighted)
    for point in (method.path[2], method.path[-1]):
        shown = shown_by_a_browser(page, tmp_path, f"#alpha={point.alpha:g}")
        assert re.search(rf'<output id="alpha-now">{point.alpha:g}<', shown)
        rows = shown.partition('<tbody id="alpha-rows">')[2].partition("</tbody>")[0].split("<tr")[1:]
        assert len(rows) == len(point.measures) + 1
        for row, (name, value) in zip(rows, point.measures.items(), strict=False):
            base = method.path[0].measures[name]
            sign = "−" if value < base else "+"
            assert (
                name in row
                and f"{100 * value:.1f} %" in row
                and f"{sign}{100 * abs(value - base):.1f}" in row
            )
        section = shown.partition('<div id="changes-at">')[2].partition("</section>")[0]
        for change in point.changes:
            assert f"{change.wrong_to_right} turned right" in section
        assert section.count('<div class="picture"') == sum(
            len(c.gained) + len(c.lost) for c in point.changes
        )
        assert section.count("<img") == section.count('<div class="picture"')
    assert "which was not chosen" in section and 'class="scripted"' in shown


@pytest.mark.browser
def test_a_browser_shows_the_chosen_alpha_first_and_runs_no_foreign_script(page, tmp_path):
    foreign = "<script>document.body.dataset.foreign = 'ran'</script></body>"
    shown = shown_by_a_browser(page.replace("</body>", foreign), tmp_path)
    section = shown.partition('<div id="changes-at">')[2].partition("</section>")[0]
    assert re.search(r'id="alpha-now">[0-9.]+ \(chosen\)<', shown) and "which was not chosen" not in section
    assert "data-foreign" not in shown and 'class="scripted"' in shown


def test_every_trial_is_listed_and_the_chosen_one_marked(results, page):
    section = page[page.index('<section id="tuning">') : page.index('<section id="differences">')]
    assert "R-Adapter: optimizer.lr 0.0003, adapter.drop 0.2" in section and "zero-shot" not in section
    assert "3 trials, 1,200 steps of 6 settings" in section and "the same 4 trials" in section
    assert section.count('<tr class="main"><td>0.0003</td><td>0.2</td><td>60.4</td>') == 1
    assert "<td>0.1</td><td>0.2</td><td>diverged</td>" in section
    untuned = replace(results, methods=tuple(replace(method, tuning=None) for method in results.methods))
    assert 'id="tuning"' not in report_page(untuned)


def test_the_scatter_plot_stands_alone_with_the_names_of_its_marks(results, tmp_path):
    path = tmp_path / "effective_robustness.svg"
    assert write_robustness_figure(results, path)
    root = ElementTree.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and root[0].get("fill") == "white"
    texts = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    for method in results.methods:
        assert method.name in texts
    assert "ordinary models, 95 % interval" in texts
    assert write_robustness_figure(replace(results, baseline=()), path)
    assert "ordinary models" not in path.read_text()
    hostile = [replace(method, name=HOSTILE + method.name) for method in results.methods]
    looks = replace(results, methods=tuple(hostile), zero_shot="", highlighted="")
    assert write_robustness_figure(looks, path)
    assert "{http://www.w3.org/2000/svg}script" not in [one.tag for one in ElementTree.parse(path).iter()]
    path.unlink()
    bare = tuple(replace(method, shifted_mean=None) for method in results.methods)
    assert not write_robustness_figure(replace(results, methods=bare), path) and not path.exists()


def test_figures_share_no_ids_and_take_the_page_colour(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    known = set(ids)
    assert all(target in known for target in re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    assert "currentColor" in page and "#010203" not in page


def test_the_same_results_give_the_same_page(results, page):
    assert report_page(results, picture) == page


def test_empty_results_make_a_page_that_says_so():
    page = report_page(Results(title="nothing yet", data_set="none", domains=(), methods=()))
    read = Reader(page)
    assert not read.wrong and "nothing to compare" in page and "figure" not in read.tags


def test_results_with_one_method_and_one_domain(results):
    domain = results.domains[0]
    method = replace(results.methods[0], shifted_mean=None)
    method = replace(method, measures={domain.name: method.measures[domain.name]})
    single = Results(
        title="one", data_set="one", domains=(domain,), methods=(method,), highlighted="zero-shot"
    )
    read = Reader(report_page(single))
    assert not read.wrong and read.tags.count("figure") == 1
    assert robustness_figure(single) is None and domains_figure(single, ["zero-shot"])


def test_accuracies_of_zero_and_one_have_a_place(results):
    def level(method, value):
        measures = {
            name: replace(
                m,
                values={**m.values, "top1": (value,) * len(m.first)},
                interval=replace(m.interval, low=value, high=value),
            )
            for name, m in method.measures.items()
        }
        mean = replace(method.shifted_mean, value=value, low=value, high=value)
        return replace(method, measures=measures, shifted_mean=mean, path=())

    edge = tuple(level(method, float(i % 2)) for i, method in enumerate(results.methods))
    assert "<svg" in robustness_figure(replace(results, methods=edge))
    assert "<svg" in domains_figure(replace(results, methods=edge), [edge[0].name])


def test_a_grid_of_alphas_is_drawn_as_a_map():
    grid = demo_results(seeds=1, n=80, grid=True)
    svg = alpha_figure(grid.alpha, None)
    assert "alpha of the image tower" in svg and svg.count("alpha of the text tower") == 2
    assert "Each cell is one pair of alphas" in report_page(grid)


def unevaluated(choice, *places):
    """A choice without the simulated accuracy of some points."""
    curve = [
        replace(point, simulated={}, simulated_mean=None) if place in places else point
        for place, point in enumerate(choice.curve)
    ]
    return replace(choice, curve=tuple(curve))


@pytest.mark.parametrize("grid", [False, True])
def test_what_was_not_evaluated_is_not_drawn(grid):
    results = demo_results(seeds=1, n=80, grid=grid)
    last = len(results.alpha.curve) - 1
    whole, some, none = (
        replace(results, alpha=unevaluated(results.alpha, *places))
        for places in ((), (0, 3, last), range(last + 1))
    )
    told = "The copies were looked at only where they decide."
    assert [told in report_page(one) for one in (whole, some, none)] == [False, True, False]
    copies = ["and altered copies of them" in report_page(one) for one in (whole, some, none)]
    assert copies == [True, True, False]
    drawn, fewer, bare = (alpha_figure(one.alpha, None) for one in (whole, some, none))
    shapes = [svg.count("<use ") + svg.count("<path ") for svg in (drawn, fewer, bare)]
    assert shapes == sorted(set(shapes), reverse=True)
    if grid:
        assert [svg.count("alpha of the text tower") for svg in (drawn, fewer, bare)] == [2, 2, 1]
    else:
        named = ["mean of 3 simulated shifts of it" in report_page(one) for one in (whole, some, none)]
        assert named == [True, True, False]


def test_a_curve_of_one_alpha_is_only_told(results):
    alone = replace(results.alpha, curve=results.alpha.curve[:1])
    assert alpha_figure(alone, None) is None
    assert results.alpha.reason in report_page(replace(results, alpha=alone))


def test_the_file_is_written_whole_or_not_at_all(results, tmp_path):
    path = tmp_path / "new" / "report.html"
    write_report(results, path, picture)
    before = path.read_text()
    assert before == report_page(results, picture)

    def broken(domain, index):
        raise RuntimeError("no picture")

    with pytest.raises(RuntimeError):
        write_report(results, path, broken)
    assert path.read_text() == before and [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_many_methods_and_corruptions_stay_readable(results):
    """Fifteen corruptions show as one column, and of fifteen methods only the main two have intervals."""
    corruptions = [
        replace(results.domains[1], name=f"fog {severity}", kind="corruption") for severity in range(1, 16)
    ]
    methods = [
        replace(
            method,
            name=f"{method.name}{suffix}",
            measures={**method.measures, **{c.name: method.measures["noto"] for c in corruptions}},
        )
        for suffix in ("", " again", " once more")
        for method in results.methods
    ]
    many = replace(results, methods=tuple(methods), domains=(*results.domains, *corruptions))
    page = report_page(many, picture)
    assert not Reader(page).wrong
    table = page[page.index("<table>") : page.index("</table>")]
    assert "mean of 15" in table and "fog 3" not in table
    assert "15 test sets" not in page and "21 test sets" in page
    assert "intervals of the two main methods" in page
    few, lots = robustness_figure(results), robustness_figure(many)
    assert lots.count("LineCollection") == 4 and few.count("LineCollection") == 2 * len(results.methods)
