"""The page of `revisit web` in a real browser, on the embedded demo."""

import json
import re
import socket
import threading
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page is made with Gradio")
pytest.importorskip("torchvision", reason="Qwen2.5-VL's processor needs it")

import transformers

from revisit import ReVisiTConfig
from revisit.commands import page
from revisit.commands.describe import Describer, demo_model

DONE = 60_000  # milliseconds, on a busy machine


@pytest.fixture(scope="module")
def describer():
    transformers.logging.disable_progress_bar()
    return Describer(demo_model())


@pytest.fixture(scope="module")
def address(describer):
    app = page.build(describer, page.examples())
    _, served, _ = page.launch(app, "127.0.0.1", None)
    yield served
    app.close(verbose=False)


@pytest.fixture
def photo(tmp_path):
    """An upload: an example of another size."""
    file = tmp_path / "my photo.png"
    Image.open(page.examples()["scene 4"]).convert("RGB").resize((300, 180)).save(file)
    return file


def describe(view, *, status="Done."):
    view.get_by_role("button", name="Describe", exact=True).click()
    view.get_by_text(status).wait_for(timeout=DONE)


def said(view, title):
    column = view.locator(".said", has=view.get_by_role("heading", name=title))
    return column.locator("p").inner_text()


def spoken(describer, file, config):
    return describer.describe(Image.open(file).convert("RGB"), config).text


def test_an_example_is_described_both_ways_and_pointed_at(visit, address, describer):
    view = visit(address)
    describe(view)
    file = page.examples()["scene 1"]
    assert said(view, "Greedy decoding") == spoken(describer, file, None)
    assert said(view, "ReVisiT") == spoken(describer, file, ReVisiTConfig())
    frame = view.frame_locator("iframe.picture")
    frame.locator(".patch").first.hover()
    assert frame.locator(".word.on").count()
    view.get_by_text("The trace as a table").click()
    rows = view.locator("tbody tr")
    assert rows.count() == frame.locator(".word").count()
    assert re.fullmatch(r"\d+", rows.first.locator("td").nth(2).inner_text())


def test_an_upload_is_described_and_a_control_changes_it(visit, address, describer, photo):
    view = visit(address)
    view.locator("input[type=file]").set_input_files(photo)
    view.get_by_text("my photo").first.wait_for()
    describe(view)
    plain = spoken(describer, photo, None)
    assert said(view, "Greedy decoding") == plain
    assert said(view, "ReVisiT") == spoken(describer, photo, ReVisiTConfig())
    frame = view.frame_locator("iframe.picture")
    assert frame.get_by_role("heading", name="my photo.png").count()
    view.get_by_label("alpha").fill("1")  # a single candidate at every step
    view.get_by_label("js").check()
    view.get_by_role("button", name="Describe", exact=True).click()
    frame.get_by_text("0 of ").wait_for(timeout=DONE)
    assert said(view, "ReVisiT") == plain


def test_a_bad_upload_is_told_and_the_next_request_works(visit, address, tmp_path):
    view = visit(address)
    (tmp_path / "notes.txt").write_text("no image")
    Image.new("RGB", (900, 3)).save(tmp_path / "thin.png")
    for name, message in {
        "notes.txt": "notes.txt is not an image that can be read",
        "thin.png": "the model cannot read this image",
    }.items():
        view.locator("input[type=file]").set_input_files(tmp_path / name)
        view.get_by_text(name.split(".")[0]).first.wait_for()
        describe(view, status=message)
        assert str(tmp_path) not in view.content()
        view.get_by_label("Remove").or_(view.get_by_label("Clear")).first.click()
    describe(view)


def test_settings_out_of_range_are_told(visit, address):
    view = visit(address)
    view.get_by_label("alpha").fill("2")
    describe(view, status="alpha (relative_top) must be in [0, 1]")
    view.get_by_label("alpha").fill("0.001")
    view.get_by_label("layers").fill("0,99")
    view.keyboard.press("Enter")
    describe(view, status="99")


def test_it_works_by_the_keyboard_alone(visit, address):
    view = visit(address)
    button = view.get_by_role("button", name="Describe", exact=True)
    button.wait_for()
    for _ in range(30):
        view.keyboard.press("Tab")
        if button.evaluate("each => each === document.activeElement"):
            break
    view.keyboard.press("Enter")
    view.get_by_text("Done.").wait_for(timeout=DONE)
    frame = view.frame_locator("iframe.picture")
    for _ in range(5):  # into the frame: to the patches
        view.keyboard.press("Tab")
        if frame.locator(".patch.on").count():
            break
    assert frame.locator(".word.on").count()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_names_and_contrast_pass_axe(visit, address, accessible, scheme):
    phone = {"viewport": {"width": 360, "height": 740}, "color_scheme": scheme}
    view = visit(address, **phone)
    describe(view)
    assert view.evaluate("document.documentElement.scrollWidth") <= 360
    accessible(view)
    accessible(view.locator("iframe.picture").element_handle().content_frame())


def ask(describer, file, **settings):
    asked = {"layers": "last", "alpha": 1e-5, "divergence": "ag", **settings}
    return page.answer(describer, {}, str(file), None, *asked.values())


def test_words_stream_in_both_columns(describer, photo):
    seen = list(ask(describer, photo))
    for column in ("greedy", "refined"):
        lengths = [len(getattr(each, column)) for each in seen]
        assert lengths == sorted(lengths) and len(set(lengths)) > 10
    both = [each for each in seen if "</p>" in each.greedy and each.status != seen[-1].status]
    assert len(both) > 20 and seen[-1].picture and not any(each.picture for each in seen[:-1])


def test_a_description_ends_at_the_limit_of_time_and_says_so(describer, photo, monkeypatch):
    monkeypatch.setattr(page, "MOST_SECONDS", 0.0)
    last = list(ask(describer, photo))[-1]
    assert "cut at the limit of length or time" in last.picture


def test_who_has_gone_is_not_described_to_any_longer(describer, photo):
    before = threading.active_count()
    asked = ask(describer, photo)
    next(asked)
    assert threading.active_count() == before + 2
    asked.close()
    assert threading.active_count() == before


def test_an_error_of_the_model_ends_its_request_only(describer, photo, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(describer.model, "generate", lambda **_: 1 / 0)
        assert "This failed" in list(ask(describer, photo))[-1].status
        assert "ZeroDivisionError" in caplog.text
    assert "Done." in list(ask(describer, photo))[-1].status


def test_too_many_pixels_are_refused(describer, photo, monkeypatch):
    monkeypatch.setattr(page, "MOST_PIXELS", 1000)
    (only,) = ask(describer, photo)
    assert "300 x 180 pixels" in only.status and str(photo.parent) not in only.status


def test_no_file_of_the_server_can_be_read(address, photo):
    for path in ("/etc/passwd", str(photo), str(Path(page.__file__))):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}gradio_api/file={quote(path)}")
        assert refused.value.code in (403, 404)


def test_a_request_cannot_name_an_image_of_the_server(address, photo):
    """Only what was uploaded is opened."""
    given = {"path": str(photo), "meta": {"_type": "gradio.FileData"}}
    config = json.load(urllib.request.urlopen(f"{address}config"))
    number = next(each["id"] for each in config["dependencies"] if each["targets"])
    asked = {
        "data": [given, None, "last", 1e-5, "ag"],
        "fn_index": number,
        "session_hash": "told",
    }
    join = urllib.request.Request(
        f"{address}gradio_api/queue/join",
        json.dumps(asked).encode(),
        {"Content-Type": "application/json"},
    )
    urllib.request.urlopen(join)
    stream = urllib.request.urlopen(f"{address}gradio_api/queue/data?session_hash=told", timeout=30)
    told = []
    for line in stream:
        told.append(line.decode())
        if "process_completed" in told[-1]:
            break
    assert '"success":false' in told[-1]
    assert "Done." not in "".join(told)


def test_it_listens_on_no_other_address(address):
    """Linux gives a machine all of 127.0.0.0/8: who listens everywhere is reached by 127.0.0.2."""
    port = int(address.rstrip("/").rpartition(":")[2])
    socket.create_connection(("127.0.0.1", port), timeout=2).close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", port), timeout=2)
