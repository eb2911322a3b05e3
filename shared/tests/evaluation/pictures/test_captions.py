"""Captions as a page, in a real browser."""

import re

import pytest

from drawn import CELLS, picture
from revisit.evaluation.pictures.picture import REVISIT, page


@pytest.fixture
def address(tmp_path):
    path = tmp_path / "words.html"
    path.write_text(page([picture(truth=["dog"]), picture("greedy.jpg", captions={})]), "utf-8")
    return path.as_uri()


def word(view, text):
    return view.get_by_role("button", name=text).first


def test_pointing_at_a_word_outlines_its_patch_where_it_lies(visit, address):
    view = visit(address)
    word(view, "dog; greedy").hover()
    patch = view.locator(".patch:not(.off)").first.bounding_box()
    image = view.locator("img").first.bounding_box()
    left, top, right, bottom = CELLS[6]
    expected = {
        "x": image["x"] + left * image["width"],
        "y": image["y"] + top * image["height"],
        "width": (right - left) * image["width"],
        "height": (bottom - top) * image["height"],
    }
    assert patch == pytest.approx(expected, abs=4)  # the line's width
    assert "row 2, column 3" in view.locator(".why").first.inner_text()


def test_patches_are_the_darker_the_less_they_fit(visit, address):
    view = visit(address)
    word(view, "dog; greedy").hover()
    dark = [float(each.get_attribute("fill-opacity")) for each in view.locator("rect.fit").all()]
    assert dark[6] == 0 and dark[0] == max(dark) > 0.5
    assert dark[7:16] == sorted(dark[7:16], reverse=True)
    word(view, "runs").hover()  # how well each fits it was not kept
    assert {each.get_attribute("fill-opacity") for each in view.locator("rect.fit").all()} == {"0"}


def test_the_patch_is_in_the_image_of_the_trace(visit, address):
    view = visit(address)
    word(view, "script").hover()
    assert view.locator(".stage").nth(1).locator(".patch:not(.off)").count() == 1
    assert view.locator(".stage").nth(0).locator(".patch:not(.off)").count() == 0


def test_words_that_name_nothing_are_quiet(visit, address):
    view = visit(address)
    caption = view.locator(".text h3", has_text=REVISIT).locator("+ p")
    assert caption.locator("button").all_inner_texts() == ["dog", "runs", "script", "b"]
    assert caption.inner_text().startswith("A sofa dog runs. ")


def test_what_is_not_there_is_struck_in_both_captions(visit, tmp_path):
    path = tmp_path / "words.html"
    path.write_text(page([picture(truth=[])]), "utf-8")
    view = visit(path.as_uri())
    assert view.locator(".caption .wrong").all_inner_texts() == ["sofa", "dog", "dog"]
    line = "each => getComputedStyle(each).textDecorationLine"
    assert set(view.locator(".caption .wrong").evaluate_all(f"all => all.map({line})")) == {
        "line-through"
    }


def test_it_works_by_the_keyboard_alone(visit, address):
    view = visit(address)
    on = view.locator(".word.on")
    assert on.inner_text() == "dog"  # which ReVisiT changed
    view.keyboard.press("Tab")
    assert view.evaluate("document.activeElement.textContent") == "dog"
    view.keyboard.press("ArrowRight")
    assert on.inner_text() == "runs"
    view.keyboard.press("End")
    view.keyboard.press("ArrowRight")
    assert on.inner_text() == "dog"
    view.keyboard.press("Escape")
    assert not on.count()
    assert "Point at a coloured word" in view.locator(".why").first.inner_text()


def test_it_works_by_touch_on_a_phone(visit, address):
    view = visit(address, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert view.evaluate("document.documentElement.scrollWidth") <= 360
    word(view, "runs").tap()
    assert view.locator(".word.on").inner_text() == "runs"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_names_and_contrast_pass_axe(visit, address, accessible, scheme, width):
    view = visit(address, color_scheme=scheme, viewport={"width": width, "height": 800})
    accessible(view)
    word(view, "runs").focus()
    accessible(view)
    paper = view.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 200) == (scheme == "dark")


def test_a_caption_is_text_and_no_markup(visit, tmp_path):
    made = page([picture("<img src=x onerror=alert(1)>", note="<i>note</i>")])
    assert "<img src=x" not in made and "<i>note" not in made
    assert made.count("</script>") == 2
    (tmp_path / "page.html").write_text(made, "utf-8")
    view = visit((tmp_path / "page.html").as_uri())
    assert not view.locator(".caption b").count()
    assert "</script><b>" in view.locator(".caption").nth(1).inner_text()


def test_the_page_asks_nothing_of_the_network():
    made = page([picture()])
    assert not re.findall(r"(?:src|href)=\"(?!data:)[^\"]*\"", made)
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", made)
    assert "default-src 'none'" in made
