"""The page in a real browser."""

import re

import pytest

from drawn import CELLS, picture
from revisit.evaluation import EvaluationError
from revisit.evaluation.pictures.html import page, write_html

ON = "getComputedStyle(document.querySelector('.patch.on')).outlineStyle"


@pytest.fixture
def address(tmp_path):
    path = tmp_path / "words.html"
    greedy = picture(
        "greedy.jpg",
        words=[word._replace(tokens=()) for word in picture().words],
        note="Decoded greedily",
    )
    write_html([picture(), greedy], path)
    return path.as_uri()


def on(view, kind):
    return view.locator(f".{kind}.on")


def test_pointing_at_a_word_shows_its_patch_where_it_lies(visit, address):
    view = visit(address)
    view.get_by_role("button", name="dog, changed").first.hover()
    patch, image = on(view, "patch").bounding_box(), view.locator("img").first.bounding_box()
    left, top, right, bottom = CELLS[6]
    expected = {
        "x": image["x"] + left * image["width"],
        "y": image["y"] + top * image["height"],
        "width": (right - left) * image["width"],
        "height": (bottom - top) * image["height"],
    }
    assert patch == pytest.approx(expected, abs=1)
    assert "row 2, column 3" in view.locator(".details ul:visible").inner_text()
    view.get_by_role("heading", level=1).hover()
    assert not on(view, "patch").count()


def test_pointing_at_a_patch_shows_the_words_it_gave(visit, address):
    view = visit(address)
    view.locator(".patch").first.hover()
    assert on(view, "word").all_inner_texts() == ["dog", "runs"]
    assert view.locator(".details ul:visible").count() == 2


def test_the_patch_is_in_the_image_that_the_trace_tells(visit, address):
    view = visit(address)
    view.get_by_role("button", name="script", exact=True).first.hover()
    assert view.locator(".stage").nth(1).locator(".patch.on").count() == 1
    assert on(view, "patch").count() == 1


def test_it_works_by_the_keyboard_alone(visit, address):
    view = visit(address)
    view.keyboard.press("Tab")  # the patches of the first image
    assert on(view, "word").all_inner_texts() == ["dog", "runs"]
    view.keyboard.press("ArrowRight")
    assert on(view, "word").all_inner_texts() == ["."]
    view.keyboard.press("Tab")
    assert on(view, "word").all_inner_texts() == ["A"]
    assert "shows padding" in view.locator(".details ul:visible").inner_text()
    view.keyboard.press("ArrowRight")
    assert on(view, "word").all_inner_texts() == ["dog"] and on(view, "patch").count() == 1
    view.keyboard.press("End")
    view.keyboard.press("ArrowRight")
    assert on(view, "word").all_inner_texts() == ["A"]
    view.keyboard.press("Escape")
    assert not on(view, "word").count()
    view.keyboard.press("Tab")  # the next picture, whose words have no patch
    assert on(view, "word").all_inner_texts() == ["A"] and not on(view, "patch").count()


def test_it_works_by_touch_on_a_phone(visit, address):
    view = visit(address, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert view.evaluate("document.documentElement.scrollWidth") <= 360
    view.get_by_role("button", name="runs", exact=True).first.tap()
    assert on(view, "patch").count() == 1
    shown = on(view, "patch").bounding_box()  # without scrolling there
    assert shown["y"] >= 0 and shown["y"] + shown["height"] <= 740
    view.locator(".patch").nth(1).tap()
    assert on(view, "word").all_inner_texts() == ["."]


def test_a_choice_among_one_candidate_is_drawn_as_none(visit, address):
    view = visit(address)
    view.get_by_role("button", name=".", exact=True).first.hover()
    assert view.evaluate(ON) == "dashed"
    view.get_by_role("button", name="runs", exact=True).first.hover()
    assert view.evaluate(ON) == "solid"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_names_and_contrast_pass_axe(visit, address, accessible, scheme, width):
    view = visit(address, color_scheme=scheme, viewport={"width": width, "height": 800})
    accessible(view)
    view.get_by_role("button", name="dog, changed").first.focus()
    accessible(view)
    paper = view.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 200) == (scheme == "dark")


def test_what_a_caption_says_is_text_and_no_markup():
    made = page([picture("<img src=x onerror=alert(1)>", note="<i>note</i>")])
    assert "<img src=x" not in made and "<i>note" not in made
    assert made.count("</script>") == 1


def test_the_page_asks_nothing_of_the_network():
    made = page([picture()])
    assert not re.findall(r"(?:src|href)=\"(?!data:)[^\"]*\"", made)
    assert "http://" not in made and "https://" not in made
    assert "default-src 'none'" in made


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(EvaluationError, match="cannot write"):
        write_html([picture()], tmp_path / "missing" / "out.html")
