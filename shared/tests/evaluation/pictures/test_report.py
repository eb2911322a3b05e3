"""The report of evaluations, as text and in a real browser."""

import json
import re

import pytest
from PIL import Image

from revisit.commands.main import main as program
from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks import chair
from revisit.evaluation.benchmarks.objects.lemmas import LEMMATIZERS
from revisit.evaluation.pictures.plots import Axes, Point
from revisit.evaluation.pictures.report import Group, Table, compare_report, report, write_report
from revisit.evaluation.pictures.runs import Run
from scored_captions import score_captions

pytest.importorskip("matplotlib")

OBJECTS = {1: ["dog"], 2: ["cat", "chair"], 3: ["pizza"], 4: ["vase"], 7: ["cup"]}
GREEDY = {
    7: "A cup.",
    1: "A dog, a dog and a cat.",
    2: "A cat.",
    3: "A pizza, a pizza and a <fork>.",
    4: "A vase.",
}
REFINED = {1: "A dog.", 2: "A cat on a chair.", 3: "A pizza.", 4: "A vase, a bed.", 7: "A cup."}
SETTINGS = {"question": "What is <b>this</b>?", "max_new_tokens": 48}


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "images"
    made.mkdir()
    for image in (1, 2, 3, 4):  # not 7
        Image.new("RGB", (900, 600), (40 * image, 90, 60)).save(made / f"COCO_{image:012d}.jpg")
    return made


def record(folder, seconds, **settings):
    return {
        "settings": SETTINGS | {"data_path": str(folder)} | settings,
        "images": [f"COCO_{image:012d}.jpg" for image in OBJECTS],
        "runs": [{"device": "cpu", "batch_size": 1, "captions": 5, "seconds": seconds}],
    }


def revisit(layers="last", alpha=1e-5):
    return {"use_revisit": True, "early_exit_layers": layers, "relative_top": alpha}


def run(name, captions, made):
    scored = chair.score(dict(sorted(captions.items())), OBJECTS, LEMMATIZERS["noun"]())
    return Run(name, scored.counts, scored.sentences, made)


@pytest.fixture
def runs(folder):
    return [
        run("greedy", GREEDY, record(folder, 5.0)),
        run("ReVisiT & co", REFINED, record(folder, 5.5, **revisit())),
        run("ReVisiT 2", REFINED, record(folder, 6.0, **revisit(alpha=1e-3))),
    ]


def test_differences_in_the_table_equal_the_bootstrap(runs):
    page = report([Group("Results", runs)])
    gap = chair.paired_bootstrap(runs[0].counts, runs[1].counts)["CHAIRs"]
    ends = [f"{100 * gap[name]:+.1f}" for name in ("difference", "low", "high")]
    assert "40.0" in page and "20.0<br>" in page and ends[0] == "-20.0"
    assert page.count("{} [{}, {}]".format(*ends)) == 6  # two runs: table, LaTeX, CSV


def cards(page):
    """Heading by heading of the first run, the images under it."""
    section = page.split("<section")[2]
    parts = re.split(r"<h3>(Most \w+)</h3>", section)[1:]
    images = [list(map(int, re.findall(r'data-image="(\d+)"', part))) for part in parts[1::2]]
    return dict(zip(parts[::2], images, strict=True))


def test_images_whose_errors_changed_most_are_shown(runs):
    """A hallucinated word and an object that is not named are one error each."""
    found = cards(report([Group("Results", runs)]))
    assert found == {"Most improved": [1, 2, 3], "Most harmed": [4]}
    backwards = cards(report([Group("Results", [runs[1], runs[0]])]))
    assert backwards == {"Most improved": [4], "Most harmed": [1, 2, 3]}


def test_hallucinated_and_repeated_words_are_marked(runs):
    page = report([Group("Results", runs)])
    again = '<span class="again">dog</span><span class="hidden"> (said before)</span>'
    wrong = '<span class="wrong">cat</span><span class="hidden"> (not in the image)</span>'
    assert f'A <span class="right">dog</span>, a {again} and a {wrong}.' in page


def test_images_are_thumbnails_and_an_unreadable_one_is_named(runs, folder):
    (folder / "COCO_000000000002.jpg").write_bytes(b"no image")
    page = report([Group("Results", runs[:2])])
    assert page.count('<img class="thumbnail" src="data:image/jpeg;base64,') == 3
    assert page.count("The file of this image cannot be read") == 1
    assert len(page) < 100_000 and str(folder) not in page


def test_missing_images_have_a_reason_in_their_place(runs, tmp_path):
    away = runs[0]._replace(record=record(tmp_path / "away", 5.0))
    page = report([Group("Results", [away, runs[1]])])
    assert "<img" not in page and f"{tmp_path / 'away'}, is not here" in page
    page = report([Group("Results", [runs[0]._replace(record={}), runs[1]])])
    assert "<img" not in page and "no record of the run says where they are" in page


def numbers(page, key):
    """The table below a plot: its rows of cells."""
    (body,) = re.findall(rf'aria-label="Numbers: [^"]*, {key}">.*?<tbody>(.*?)</tbody>', page, re.S)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in body.split("</tr>")[:-1]]


def test_plots_show_the_runs_and_their_numbers(runs):
    grid = [Point("", "last", alpha, chairs, chairs, chairs) for alpha, chairs in ((0, 9), (1, 40))]
    axes = Axes("On other scenes", "alpha", "CHAIRs, %", True, ("greedy", 50.0))
    page = report([Group("Results", runs, [(grid, axes)])])
    alphas = numbers(page, "g0-alpha")
    assert [row[:3] for row in alphas] == [["2", "last, ag", "1e-05"], ["3", "last, ag", "0.001"]]
    assert alphas[0][3].startswith("20.0 [")
    assert [row[2] for row in numbers(page, "g0-cost")] == ["1", "1.1", "1.2"]
    assert numbers(page, "g0-more0") == [["last", "0", "9.0"], ["last", "1", "40.0"]]
    assert page.count("<svg") == 3 and "On other scenes. The dashed line: greedy, 50.0" in page


PANEL = re.compile(r'patch_2">\s*<path d="M ([\d.]+) [\d.]+\s+L ([\d.]+)')
MARKERS = re.compile(r'<use href="#g0-alpha-m[^"]*" x="([\d.]+)"')


def first_plot(page):
    return page[page.index("<svg") : page.index("</svg>")]


def test_the_plot_of_a_single_alpha_has_its_point_and_tick_inside(runs):
    """A comparison of greedy decoding with one setting of ReVisiT."""
    svg = first_plot(report([Group("Results", runs[:2])]))
    left, right = map(float, PANEL.search(svg).groups())
    marks = [float(x) for x in MARKERS.findall(svg)]
    assert all(left <= x <= right for x in marks)
    middle = pytest.approx((left + right) / 2, abs=1)
    assert sum(x == middle for x in marks) >= 2  # tick and point
    assert ">1e-05</text>" in svg


def test_no_bar_leaves_0_to_100_percent(runs):
    page = report([Group("Results", runs[:2])])
    low, high = map(float, re.search(r"\[(.*), (.*)\]", numbers(page, "g0-alpha")[0][3]).groups())
    gap = chair.paired_bootstrap(runs[0].counts, runs[1].counts)["CHAIRs"]
    assert 40 + 100 * gap["low"] < 0 and low == 0 and high == pytest.approx(40 + 100 * gap["high"])


def test_series_that_coincide_are_drawn_one_around_the_other(runs):
    both = [runs[0], runs[1], run("js", REFINED, record("", 5.5, **revisit("all")))]
    svg = first_plot(report([Group("Results", both)]))
    widths = [
        re.search(rf"stroke: var\(--{name}\)[^\"]*stroke-width: ([\d.]+)", svg)
        for name in ("first", "second")
    ]
    assert float(widths[0][1]) > float(widths[1][1])


def test_tables_can_be_copied_as_latex_and_csv(runs):
    named = runs[1]._replace(name="50% & _")
    page = report([Group("Results", [runs[0], named])])
    assert r"2 &amp; 50\% \&amp; \_ &amp; 20.0 -20.0 [" in page
    assert "2,50% &amp; _,&#34;20.0 -20.0 [" in page


def test_a_plot_that_cannot_be_drawn_has_a_reason_in_its_place(runs, folder):
    plain = [run("greedy", GREEDY, {}), run("other", REFINED, {})]
    page = report([Group("Results", plain)])
    assert "<svg" not in page
    assert "there is no alpha" in page and "nothing tells how long run 1 took" in page
    elsewhere = record(folder, 5.0)
    elsewhere["runs"][0]["device"] = "cuda"
    page = report([Group("Results", [runs[0], runs[1]._replace(record=elsewhere)])])
    assert "so times do not compare" in page


def test_one_run_alone_has_no_comparison(runs):
    page = report([Group("Results", runs[1:2])])
    assert page.count("<section") == 1 and page.count("<svg") == 2 and "<h3>Most" not in page


def test_captions_and_records_are_text_and_no_markup(runs):
    page = report([Group("<i>group</i>", runs)], "<i>title</i>", [Table("<i>", "<i>", [["<i>"]])])
    assert "<i>" not in page and "<fork>" not in page and "<b>this" not in page
    assert "ReVisiT &amp; co" in page and "&lt;<span" in page


def test_the_page_asks_nothing_of_the_network(runs):
    page = report([Group("Results", runs)])
    assert "http://" not in page and "https://" not in page
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*\"", page)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) > 10
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(ids)


@pytest.fixture
def address(runs, tmp_path):
    path = tmp_path / "report.html"
    tables = [Table("Where it lies", "A note.", [["model", "hits"], ["tiny", "98%"]])]
    write_report([Group("One", runs), Group("Two", runs[:2])], path, tables=tables)
    return path.as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_names_and_contrast_pass_axe(visit, address, accessible, scheme, width):
    view = visit(address, color_scheme=scheme, viewport={"width": width, "height": 800})
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    for details in view.locator("summary").all():
        details.click()
    accessible(view)
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    paper = view.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 200) == (scheme == "dark")


def test_plots_take_the_page_s_colours_by_night(visit, address):
    """The text of a plot is as dark or as light as that of the page."""
    fill = "getComputedStyle(document.querySelector('svg text')).fill"
    ink = "getComputedStyle(document.body).color"
    found = set()
    for scheme in ("light", "dark"):
        view = visit(address, color_scheme=scheme)
        assert view.evaluate(fill) == view.evaluate(ink)
        found.add(view.evaluate(ink))
    assert len(found) == 2


def test_tables_and_numbers_are_reached_by_the_keyboard_alone(visit, address):
    view = visit(address, viewport={"width": 360, "height": 740})
    view.keyboard.press("Tab")
    table = view.get_by_role("region", name="Results g0")
    assert table.evaluate("each => each === document.activeElement")
    table.evaluate("each => each.addEventListener('scroll', () => each.dataset.moved = 'yes')")
    view.keyboard.press("ArrowRight")
    view.locator("[data-moved]").wait_for()
    view.get_by_text("Numbers of this plot").first.press("Enter")
    assert view.get_by_role("region", name=re.compile("Numbers: CHAIRs")).first.is_visible()


def test_a_table_is_sorted_by_the_column_that_is_pressed(visit, address):
    view = visit(address)
    table = view.locator("table.sortable").first
    order = "rows => rows.map(row => row.cells[0].textContent)"
    table.get_by_role("button", name="CHAIRs", exact=True).click()
    assert table.locator("tbody tr").evaluate_all(order)[-1] == "1"
    table.get_by_role("button", name="CHAIRs", exact=True).press("Enter")
    assert table.locator("tbody tr").evaluate_all(order)[0] == "1"
    assert table.locator("[aria-sort=descending]").inner_text().startswith("CHAIRs")


def test_a_table_is_copied(visit, address):
    view = visit(address)
    view.context.grant_permissions(["clipboard-read", "clipboard-write"])
    view.get_by_text("CSV", exact=True).first.click()
    view.get_by_role("button", name="Copy CSV").first.click()
    view.get_by_text("Copied").wait_for()
    assert view.evaluate("navigator.clipboard.readText()").startswith("run,,CHAIRs,CHAIRi")


@pytest.fixture
def results(tmp_path, folder):
    """Files of `revisit score chair`, the baseline first."""
    both = (("greedy", GREEDY, {}), ("refined", REFINED, revisit()))
    return [
        score_captions(tmp_path, name, captions, OBJECTS, record(folder, 5.0, **settings))
        for name, captions, settings in both
    ]


def test_revisit_compare_writes_the_report_of_its_results(results, tmp_path, runs):
    out = tmp_path / "out.html"
    assert program(["compare", *map(str, results), "--report", str(out)]) == 0
    name = "revisit (early_exit_layers last, relative_top 1e-05)"
    record = runs[1].record | {"runs": runs[0].record["runs"]}
    group = [runs[0], runs[1]._replace(name=name, record=record)]
    assert out.read_text("utf-8") == report([Group("Results", group)])


def test_times_are_of_a_token_where_all_records_count_tokens(runs):
    for number, each in enumerate(runs, 1):
        each.record["runs"][0]["tokens"] = 50 * number
    page = report([Group("Results", runs)])
    assert [row[2] for row in numbers(page, "g0-cost")] == ["1", "0.55", "0.4"]
    assert "time of a token, run 1 = 1" in page
    del runs[1].record["runs"][0]["tokens"]
    assert "time of a caption, run 1 = 1" in report([Group("Results", runs)])


def test_results_of_other_images_or_programs_are_refused(results, tmp_path):
    saved = json.loads(results[1].read_text())
    saved["sentences"].pop()
    files = [results[0], tmp_path / "fewer.json", tmp_path / "answers.json"]
    files[1].write_text(json.dumps(saved))
    files[2].write_text('{"answered": []}')
    with pytest.raises(EvaluationError, match="give results of one --seed"):
        compare_report(tmp_path / "out.html", files[:2], ["a", "b"])
    message = r"answers\.json is not a result of .revisit score chair"
    with pytest.raises(EvaluationError, match=message):
        compare_report(tmp_path / "out.html", files[::2], ["a", "b"])


def test_plots_without_matplotlib_are_refused_with_what_to_install(runs, monkeypatch):
    monkeypatch.setattr("revisit.evaluation.pictures.plots.find_spec", lambda name: None)
    with pytest.raises(EvaluationError, match=r"pip install .revisit-decoding\[pictures\]"):
        report([Group("Results", runs)])
