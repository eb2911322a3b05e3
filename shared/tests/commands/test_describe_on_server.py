"""`revisit web --base_url`: a model on a server that speaks OpenAI's API."""

import base64
import io
import json
import subprocess
import sys
import threading

import pytest
from PIL import Image

from openai_server import GREEDY, REFINED, serving
from revisit.commands import CommandError, page
from web_server import serving_page

pytest.importorskip("openai", reason="the server is asked with OpenAI's client")

from revisit.commands import describe_on_server
from revisit.commands.describe_on_server import ServerDescriber


@pytest.fixture
def server():
    with serving() as running:
        yield running


@pytest.fixture
def photo(tmp_path):
    file = tmp_path / "my photo.png"
    image = Image.new("RGB", (30, 20), (200, 30, 30))
    image.putpixel((3, 4), (1, 2, 3))
    image.save(file)
    return file


def answer(describer, file, alpha=1e-3):
    """The page's lines about an upload."""
    settings = {"name": file.name, "alpha": str(alpha), "divergence": "js", "layers": "last"}
    return page.Page(describer, made=False).answer(settings, file.read_bytes())


def last_line(describer, file, **settings):
    *_, line = answer(describer, file, **settings)
    return line


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8000/v1", "ftp://there/v1", "http://", "", "file:/"]
)
def test_another_text_than_an_address_is_refused(address):
    with pytest.raises(CommandError, match="is no address; vLLM's is like http://"):
        ServerDescriber(address)


def test_both_columns_stream_the_server_s_words(server, photo):
    *seen, last = answer(ServerDescriber(server.base_url), photo)
    for column, pieces in enumerate((GREEDY, REFINED)):
        shown = [text(line["captions"][column]) for line in seen if "captions" in line]
        assert len({*shown} - {""}) == len(pieces)
        assert text(last["picture"]["captions"][column]) == "".join(pieces)
    assert "a server does not say" in last["picture"]["note"]
    assert not any(word["look"] for word in last["picture"]["captions"][1]["words"])


def text(caption):
    return "".join(word["before"] + word["text"] for word in caption["words"])


def test_the_image_and_the_settings_are_sent_as_vllm_takes_them(server, photo):
    last_line(ServerDescriber(server.base_url), photo)
    (refined,) = [each for each in server.asked if "vllm_xargs" in each]
    (greedy,) = [each for each in server.asked if "vllm_xargs" not in each]
    settings = {"alpha": 1e-3, "divergence": "js"}
    assert json.loads(refined.pop("vllm_xargs")["revisit"]) == settings
    assert refined == greedy
    assert greedy["model"] == "tiny" and greedy["temperature"] == 0 and greedy["stream"] is True
    image, text = greedy["messages"][0]["content"]
    kind, _, data = image["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64" and text["text"].startswith("Please describe")
    sent = Image.open(io.BytesIO(base64.b64decode(data)))
    assert sent.tobytes() == Image.open(photo).tobytes()


def test_a_model_is_requested_by_its_name(server, photo):
    last_line(ServerDescriber(server.base_url, "other"), photo)
    assert {each["model"] for each in server.asked} == {"other"}


TROUBLE = {
    "refuse": "refuses this (HTTP 400): revisit: alpha (relative_top) must be <b>in",
    "cut": "broke off",
    "end": "ended in the middle",
    "error": "ended an answer by 'error'",
    "fail": "failed: EngineCore died",
    "page": "ended in the middle",
    "odd": "no answer of OpenAI's API",
    "silent": "does not answer in time",
}


@pytest.mark.parametrize("manner", TROUBLE)
def test_a_server_in_trouble_is_named_and_the_next_request_works(
    server, photo, manner, monkeypatch
):
    monkeypatch.setattr(describe_on_server, "SILENT", 0.5)
    describer = ServerDescriber(server.base_url)
    server.manner = manner
    before = threading.active_count()
    last = last_line(describer, photo)["error"]
    assert TROUBLE[manner] in last and server.base_url in last
    server.done.set()
    server.manner = "right"
    assert "picture" in last_line(describer, photo)
    assert threading.active_count() <= before + 3  # the server's own, which wait for more


def test_a_server_that_comes_back_is_used_again(photo):
    with serving() as running:
        port = running.server_address[1]
        describer = ServerDescriber(running.base_url)
    last = last_line(describer, photo)["error"]
    assert "cannot be reached" in last and f"127.0.0.1:{port}" in last
    with serving(port):
        assert "picture" in last_line(describer, photo)


@pytest.mark.parametrize("model", [None, "tiny"])
def test_an_address_without_v1_is_refused(server, photo, model):
    last = last_line(ServerDescriber(server.base_url.removesuffix("/v1"), model), photo)["error"]
    assert "(HTTP 404): no reason given; does --base_url end in /v1?" in last


@pytest.mark.parametrize("manner", ["long", "endless"])
def test_a_caption_that_was_cut_by_the_server_or_by_time_has_a_note(
    server, photo, manner, monkeypatch
):
    monkeypatch.setattr(page, "MOST_SECONDS", 0.2)
    server.manner = manner
    line = last_line(ServerDescriber(server.base_url), photo)
    assert "cut at the limit of length or time" in line["picture"]["note"]
    assert manner == "long" or server.left.wait(5)


def test_a_closed_request_closes_the_connection_to_the_server(server, photo):
    server.manner = "endless"
    lines = answer(ServerDescriber(server.base_url), photo)
    next(lines)
    next(lines)
    lines.close()
    assert server.left.wait(5)


def test_a_password_in_the_address_is_not_shown():
    assert ServerDescriber("http://me:secret@127.0.0.1:1/v1").origin == "http://127.0.0.1:1/v1"


def test_settings_are_checked_before_the_server_is_asked(server, photo):
    line = last_line(ServerDescriber(server.base_url), photo, alpha=2)
    assert "must be in [0, 1]" in line["error"] and not server.asked


def test_transformers_is_not_loaded_for_a_model_elsewhere():
    code = (
        "import sys\n"
        "from revisit.commands.describe_on_server import ServerDescriber\n"
        "from revisit.commands import page\n"
        "ServerDescriber('http://127.0.0.1:1/v1')\n"
        "print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


def test_without_the_client_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(describe_on_server, "find_spec", lambda name: None)
    with pytest.raises(CommandError, match=r"pip install .revisit-decoding\[web\]"):
        ServerDescriber("http://127.0.0.1:8000/v1")


@pytest.fixture
def address(server):
    with serving_page(page.Page(ServerDescriber(server.base_url), made=False)) as url:
        yield url


def test_the_page_shows_both_captions_and_that_a_server_gives_no_patches(
    visit, address, server, accessible
):
    view = visit(address, viewport={"width": 360, "height": 740})
    view.get_by_text("Done.").wait_for(timeout=30_000)  # the first example, at once
    for title, pieces in (("Greedy decoding", GREEDY), ("With ReVisiT", REFINED)):
        caption = view.locator(".text h3", has_text=title).locator("+ p")
        assert caption.inner_text().replace("NOT THERE", "") == "".join(pieces)
    assert view.get_by_text("which patch each word came from, a server does not say").count()
    assert view.get_by_text(f"on the server {server.base_url}").count()
    assert not view.get_by_label("layers").count() and not view.locator("button.word").count()
    assert view.evaluate("document.documentElement.scrollWidth") <= 360
    accessible(view)
