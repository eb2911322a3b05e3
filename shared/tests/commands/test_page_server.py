"""The server of `revisit web`, with another page behind it."""

import http.client
import json
import socket

import pytest

from revisit.commands.page import MOST_BYTES
from web_server import serving_page


class Echo:
    """A page whose answer is the request."""

    def html(self):
        return "the page"

    def answer(self, settings, body):
        yield settings
        yield {"body": body.decode()}


@pytest.fixture
def port():
    with serving_page(Echo()) as url:
        yield int(url.rstrip("/").rpartition(":")[2])


def request(port, method, path, headers, body=b""):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


BYTES = {"Content-Type": "application/octet-stream"}


def test_the_page_and_the_lines_of_an_answer_are_sent(port):
    assert request(port, "GET", "/", {}) == (200, "the page")
    status, lines = request(port, "POST", "/describe?name=a%20b.png&alpha=1", BYTES, b"image")
    settings, body = map(json.loads, lines.splitlines())
    assert (status, settings) == (200, {"name": "a b.png", "alpha": "1"})
    assert body == {"body": "image"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {"Host": "evil.example"}, 404),  # a name that leads to this machine
        ("GET", "/../../etc/passwd", {}, 404),
        ("GET", "/examples.json", {}, 404),
        ("POST", "/describe?example=0", {"Content-Type": "text/plain"}, 404),  # another site's form
        ("POST", "/describe?example=0", BYTES | {"Host": "evil.example"}, 404),
        ("POST", "/describe", BYTES | {"Content-Length": str(MOST_BYTES + 1)}, 413),
        ("POST", "/describe", BYTES | {"Content-Length": "-1"}, 413),
        ("OPTIONS", "/describe", {"Origin": "http://evil.example"}, 501),
        ("PUT", "/", {}, 501),
    ],
)
def test_every_other_request_is_refused(port, method, path, headers, status):
    found, body = request(port, method, path, headers)
    assert found == status and "root:" not in body and "the page" not in body


def test_it_listens_on_no_other_address(port):
    """On Linux a server on all addresses answers at 127.0.0.2 too."""
    socket.create_connection(("127.0.0.1", port), timeout=2).close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", port), timeout=2)
