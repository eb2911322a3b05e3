"""The page of `revisit web` in a real browser, on the embedded demo."""

import io
import json
import threading
import time

import pytest
from PIL import Image

pytest.importorskip("torchvision", reason="Qwen2.5-VL's processor needs it")

import transformers

from releases import RELEASE
from revisit import ReVisiTConfig
from revisit.commands import CommandError, page
from revisit.commands.describe import Describer, demo_model
from revisit.evaluation.pictures.picture import GREEDY, REVISIT
from web_server import serving_page

if RELEASE < (4, 57):
    pytest.skip("written for stock releases", allow_module_level=True)

DONE = 90_000  # milliseconds, on a busy machine
USUAL = ReVisiTConfig(layers="all")
SETTINGS = {"layers": "all", "alpha": "1e-5", "divergence": "ag"}


@pytest.fixture(scope="module")
def describer():
    transformers.logging.disable_progress_bar()
    return Describer(demo_model())


@pytest.fixture
def shown(describer):
    return page.Page(describer, made=True)


@pytest.fixture
def address(shown):
    with serving_page(shown) as url:
        yield url


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """An upload: an example of another size."""
    file = tmp_path_factory.mktemp("own") / "my photo.png"
    scene(0).resize((300, 180)).save(file)
    return file


def examples():
    return json.loads(page.EXAMPLES.read_text("utf-8"))["examples"]


def scene(number):
    return page.decode_image(examples()[number]["image"])


def generated(describer, image, config, **more):
    return describer.describe(image.convert("RGB"), config, **more).text


def last_line(shown, **settings):
    """The last line of the answer about an example."""
    *_, line = shown.answer(SETTINGS | {"example": "0"} | settings, b"")
    return line


def press_describe(view, status):
    view.get_by_role("button", name="Describe", exact=True).click()
    view.get_by_text(status).first.wait_for(timeout=DONE)


def caption(view, title):
    """The text of a caption, without the words of greedy decoding and the marks in it."""
    line = view.locator(".text h3", has_text=title).locator("+ p")
    words = """line => {
        for (const each of line.querySelectorAll("del")) each.nextSibling.remove();
        for (const each of line.querySelectorAll("del, .not-there")) each.remove();
    }"""
    line.evaluate(words)
    return line.inner_text()


def test_the_demo_s_model_gives_the_captions_made_in_advance(describer, shown):
    """`prerequisites/demo/examples.py` makes it."""
    for number in (0, len(shown.examples) - 1):
        made = examples()[number]["picture"]
        fresh = json.loads(json.dumps(last_line(shown, example=str(number))["picture"]))
        assert words(fresh, "before", "text", "kind", "instead") == words(
            made, "before", "text", "kind", "instead"
        )
        assert fresh["summary"] == made["summary"] and fresh["boxes"] == made["boxes"]
        for one, two in zip(looks(fresh), looks(made), strict=True):
            assert one["vision_token"] == two["vision_token"]
            assert one["fit"] == pytest.approx(two["fit"], abs=2e-3)
            assert one["fits"] == pytest.approx(two["fits"], abs=1)


def words(picture, *names):
    """These values of the words of both captions."""
    return [
        [[word[name] for name in names] for word in caption["words"]]
        for caption in picture["captions"]
    ]


def looks(picture):
    return [look for of_caption in words(picture, "look") for (look,) in of_caption if look]


def test_the_first_paint_shows_a_hallucination_that_is_gone_and_why(visit, address, shown):
    view = visit(address, viewport={"width": 1280, "height": 900})
    wrong = view.locator(".caption").nth(0).locator(".wrong")
    assert wrong.count() and not view.locator(".caption").nth(1).locator(".wrong").count()
    assert "not there" in view.locator(".caption").nth(0).inner_text().lower()
    struck = view.locator(".caption").nth(1).locator("del")
    gone = {each.inner_text() for each in wrong.all()}
    assert gone & {each.inner_text() for each in struck.all()}
    assert "Greedy decoding names" in view.locator(".summary").inner_text()
    assert view.locator(".word.on").count() == 1 and view.locator(".patch:not(.off)").count() == 1
    dark = "all => all.map(each => each.getAttribute('fill-opacity'))"
    assert len(set(view.locator("rect.fit").evaluate_all(dark))) > 5
    bottom = view.locator(".gallery img").last.bounding_box()
    assert bottom["y"] + bottom["height"] <= 900  # no scrolling
    assert "knows drawn scenes only" in view.locator(".model").inner_text()
    assert view.get_by_text("Made in advance").is_visible()
    for name, target in (("paper", "https://arxiv.org/abs/2506.09522"), ("code", "https://")):
        link = view.get_by_role("link", name=name, exact=True)
        assert link.get_attribute("href").startswith(target)


def test_the_gallery_shows_every_kind(visit, address, shown):
    assert [each["kind"] for each in shown.examples] == ["helps"] * 4 + ["same", "fails"]
    view = visit(address)
    for number, example in enumerate(shown.examples):
        tile = view.locator(f"[data-example='{number}']")
        assert tile.inner_text() == example["label"] and tile.get_by_alt_text(example["title"])
        tile.click()
        assert view.locator("[aria-pressed=true]").count() == 1
        _, refined = words(example["picture"], "before", "text")
        whole = "".join(before + text for before, text in refined).strip()
        assert caption(view, REVISIT) == whole
        greedy, _ = words(example["picture"], "kind")
        assert bool(view.locator(".caption").nth(0).locator(".wrong").count()) == (
            ["wrong"] in greedy
        )


def test_words_and_patches_show_each_other(visit, address):
    view = visit(address)
    word = view.locator(".word").last
    word.hover()
    assert view.locator(".patch:not(.off)").count() == 1
    colour = "each => getComputedStyle(each).getPropertyValue('--hue')"
    assert word.evaluate(colour) == view.locator(".patch:not(.off)").evaluate(colour)
    view.get_by_role("heading", name="ReVisiT", exact=True).hover()
    assert view.locator(".word.on").inner_text() != word.inner_text()
    view.locator(".word").first.focus()
    view.keyboard.press("Escape")
    assert not view.locator(".word.on").count()
    view.locator(".patch").last.hover(force=True)
    assert view.locator(".word.on").count() == 1


def test_an_upload_with_another_question_and_settings(visit, address, describer, photo):
    view = visit(address)
    view.locator("#file").set_input_files(photo)
    assert view.get_by_text("drawn scenes only; for photographs").is_visible()  # before a word
    preview = "each => each.complete && each.naturalWidth"
    view.wait_for_function(f"({preview})(document.querySelector('.stage img')) === 300")
    view.get_by_label("Question").fill("Is there a dog in the image?")
    view.get_by_text("More settings").click()
    view.get_by_label("layers").fill("0,2")
    view.get_by_label("js").check()
    view.locator("#alpha").press("ArrowRight")
    assert view.locator("output").inner_text() == "3.2e-5"
    press_describe(view, "Done.")
    image = Image.open(photo)
    asked = {"question": "Is there a dog in the image?"}
    config = ReVisiTConfig(layers=[0, 2], alpha=10**-4.5, divergence="js")
    assert caption(view, GREEDY) == generated(describer, image, None, **asked)
    assert caption(view, REVISIT) == generated(describer, image, config, **asked)
    assert not view.locator(".wrong").count()  # nothing says what is there


def test_the_last_choice_wins(visit, address, describer, photo, shown):
    """An upload, then an example: the example; and the reverse."""
    view = visit(address)
    view.locator("#file").set_input_files(photo)
    view.get_by_role("button", name=shown.examples[1]["title"]).click()
    assert view.locator("#warning").is_hidden() and view.locator("#file").input_value() == ""
    press_describe(view, "Done.")
    assert caption(view, REVISIT) == generated(describer, scene(1), USUAL)
    view.locator("#file").set_input_files(photo)
    assert not view.locator("[aria-pressed=true]").count()
    press_describe(view, "Done.")
    assert caption(view, REVISIT) == generated(describer, Image.open(photo), USUAL)


def test_with_another_model_the_first_result_is_made_at_start(describer, monkeypatch):
    other = page.Page(describer, made=False)
    assert not any(each["picture"] or each["label"] for each in other.examples)
    other.prepare()
    assert other.examples[0]["picture"]["captions"] and not other.examples[1]["picture"]
    assert "Made in advance" not in other.html()
    monkeypatch.setattr(describer, "describe", lambda *_, **__: 1 / 0)
    other.examples[0]["picture"] = None
    with pytest.raises(CommandError, match="this failed"):
        other.prepare()


def test_an_example_without_captions_is_described_when_it_is_chosen(visit, describer):
    with serving_page(page.Page(describer, made=False)) as address:
        view = visit(address)
        view.get_by_text("Done.").wait_for(timeout=DONE)
        assert caption(view, REVISIT) == generated(describer, scene(0), USUAL)


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


UPLOADS = [
    ("notes.txt", b"no image", "notes.txt is not an image that can be read"),
    ("empty.png", b"", "empty.png is not an image that can be read"),
    ("cut.png", png(Image.new("RGB", (64, 64), "red"))[:70], "cut.png"),
    ("http:%2F%2Fa.b%2Fc.png", b"<svg/>", "is not an image that can be read"),
    ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image"),
    ("thin.png", png(Image.new("RGB", (900, 3))), "the model cannot read this image"),
    ("huge.png", png(Image.new("1", (9000, 9000))), "9000 x 9000 pixels"),
]


def test_bad_uploads_and_settings_have_an_error_and_the_next_request_works(
    visit, address, tmp_path
):
    view = visit(address)
    for name, data, message in UPLOADS:
        (tmp_path / name).write_bytes(data)
        view.locator("#file").set_input_files(tmp_path / name)
        press_describe(view, message)
        assert view.get_by_role("alert").inner_text().count(message) == 1
        assert str(tmp_path) not in view.content()
    view.get_by_role("button", name="scene").first.click()
    view.get_by_text("More settings").click()
    for layers, message in (("0,99", "99"), ("middle", "layers must be one of")):
        view.get_by_label("layers").fill(layers)
        press_describe(view, message)
    view.get_by_label("layers").fill("all")
    press_describe(view, "Done.")
    assert view.get_by_role("alert").inner_text() == ""


def test_a_photograph_of_24_megapixels_is_made_smaller(shown):
    file = io.BytesIO()
    Image.new("RGB", (6000, 4000), "teal").save(file, "JPEG")
    request = shown.read(SETTINGS | {"name": "sea.jpg"}, file.getvalue())
    assert request.image.size == (2048, 1365)
    assert request.notes == ["made smaller from 6000 x 4000 pixels"]


def test_it_works_by_the_keyboard_alone(visit, address):
    view = visit(address)
    view.keyboard.press("Tab")  # paper
    view.keyboard.press("Tab")  # code
    view.keyboard.press("Tab")
    assert view.evaluate("document.activeElement.className").split() == ["word", "on"]
    first = view.locator(".word.on").inner_text()
    view.keyboard.press("ArrowRight")
    assert view.locator(".word.on").inner_text() != first
    view.keyboard.press("Tab")
    assert view.evaluate("document.activeElement.id") == "file"
    view.keyboard.press("Tab")
    view.keyboard.press("Tab")
    view.keyboard.press("Enter")  # the second example
    assert view.locator("[aria-pressed=true]").get_attribute("data-example") == "1"
    for _ in range(20):
        view.keyboard.press("Tab")
        if view.evaluate("document.activeElement.id") == "start":
            break
    view.keyboard.press("Enter")
    view.get_by_text("Done.").wait_for(timeout=DONE)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_names_and_contrast_pass_axe(visit, address, accessible, scheme, width, shown):
    view = visit(address, viewport={"width": width, "height": 800}, color_scheme=scheme)
    view.get_by_text("More settings").click()
    accessible(view)
    view.get_by_role("button", name=shown.examples[-1]["title"]).click()
    view.locator(".word").last.focus()
    accessible(view)
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    inside = "all => all.filter(e => getComputedStyle(e).overflowY !== 'visible').length"
    assert not view.locator("main :is(div, p, form)").evaluate_all(inside)
    image, caption = (view.locator(each).first.bounding_box() for each in (".stage", ".caption"))
    assert (caption["y"] > image["y"] + image["height"]) == (width == 375)


class Slow:
    """The model, a word at a time when it is let."""

    def __init__(self, describer, monkeypatch):
        self.asked = 0
        self.go = threading.Semaphore(0)
        self.quick = threading.Event()
        real = describer.describe

        def describe(image, config, *, on_words, **more):
            self.asked += 1

            def slowly(words):
                while not self.quick.is_set() and not self.go.acquire(timeout=0.01):
                    on_words(words)
                on_words(words)

            return real(image, config, on_words=slowly, **more)

        monkeypatch.setattr(describer, "describe", describe)


@pytest.fixture
def slow(describer, monkeypatch):
    made = Slow(describer, monkeypatch)
    yield made
    made.quick.set()


def wait_until(true):
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_second_tab_says_that_it_waits(visit, address, slow):
    first, second = visit(address), visit(address)
    press_describe(first, "Describing")
    press_describe(second, "Waiting: the model is describing for 1 other first.")
    slow.quick.set()
    for view in (first, second):
        view.get_by_text("Done.").wait_for(timeout=DONE)


@pytest.mark.parametrize("how", ["stop", "reload", "choose"])
def test_a_stopped_description_ends_on_the_server_too(visit, address, slow, how, shown):
    before = threading.active_count()
    view = visit(address)
    press_describe(view, "Describing")
    slow.go.release(8)
    view.locator(".summary").wait_for(state="detached")  # what was made in advance has gone
    view.locator(".caption").nth(1).get_by_text("The").first.wait_for()
    if how == "stop":
        view.get_by_role("button", name="Stop").click()
        view.get_by_text("Stopped.").wait_for()
        assert "The" in view.locator(".caption").nth(1).inner_text()  # what was said stays
        assert view.get_by_role("button", name="Stop").is_disabled()
    elif how == "reload":
        view.reload()
    else:
        view.get_by_role("button", name=shown.examples[2]["title"]).click()
    wait_until(lambda: not shown._queue)
    wait_until(lambda: threading.active_count() <= before + 2)  # the browser's connections
    slow.quick.set()
    press_describe(view, "Done.")


def test_too_many_requests_are_refused(shown, slow):
    waiting = [shown.answer(SETTINGS | {"example": "0"}, b"") for _ in range(page.MOST_WAITING + 2)]
    first, *others, last = waiting
    next(first)
    for each in others:
        assert next(each) == {"waiting": pytest.approx(4.5, abs=4)}
    assert "others are waiting" in next(last)["error"]
    for each in waiting:
        each.close()
    assert not shown._queue


def test_words_stream_in_both_captions(shown):
    lines = list(shown.answer(SETTINGS | {"example": "0"}, b""))
    for column in (0, 1):
        lengths = [len(line["captions"][column]["words"]) for line in lines if "captions" in line]
        assert lengths == sorted(lengths) and len(set(lengths)) > 8


def test_a_description_that_ends_at_the_limit_of_time_has_a_note(shown, monkeypatch):
    monkeypatch.setattr(page, "MOST_SECONDS", 0.0)
    assert "cut at the limit of length or time" in last_line(shown)["picture"]["note"]


def test_an_error_of_the_model_ends_its_request_only(shown, describer, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(describer.model, "generate", lambda **_: 1 / 0)
        assert "this failed" in last_line(shown)["error"] and "ZeroDivisionError" in caplog.text
    assert "picture" in last_line(shown)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"example": "99"}, "there is no example 99"),
        ({"example": "-1"}, "there is no example -1"),
        ({"alpha": "2"}, "alpha (relative_top) must be in [0, 1]"),
        ({"alpha": "x"}, "could not convert"),
        ({"question": "a" * 3000}, "at most 2000 characters"),
        ({"example": "", "name": "/etc/passwd"}, "/etc/passwd is not an image"),  # never opened
    ],
)
def test_a_request_out_of_range_has_an_error(shown, settings, message):
    assert message in last_line(shown, **settings)["error"]
