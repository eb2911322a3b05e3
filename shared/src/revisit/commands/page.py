"""The page of `revisit web`: greedy decoding and ReVisiT, and where each word was seen.

A server of the standard library: the page, and `POST /describe`, which answers line by line in JSON
while the words come. Its body is an image, or empty where the address names an example's number.
"""

import base64
import io
import json
import logging
import queue
import socket
import threading
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from PIL import Image

from revisit.commands import CommandError
from revisit.commands.engines.described import QUESTION, Said, Speaker, picture
from revisit.commands.flags import read_layers
from revisit.config import ReVisiTConfig
from revisit.evaluation import EvaluationError
from revisit.evaluation.images import open_image
from revisit.evaluation.pictures.picture import GREEDY, REVISIT, Picture
from revisit.evaluation.pictures.templates import render

MOST_BYTES = 64 * 2**20  # of an image
LONGEST_SIDE = 2048  # pixels that a model is given; a larger image is made smaller
MOST_SECONDS = 60.0  # of one description
MOST_TOKENS = 256
MOST_WAITING = 8  # requests; one is answered at a time
LONGEST_QUESTION = 2000  # characters
EXAMPLES = files("revisit.evaluation.pictures") / "examples.json"

_SILENT = 1.0  # seconds after which a line says that nothing has happened
_ONLY_HERE = ("127.0.0.1", "::1", "localhost")
_LOG = logging.getLogger(__name__)


class Asked(NamedTuple):
    """What is to be described, and how."""

    image: Image.Image
    title: str
    question: str
    config: ReVisiTConfig
    notes: list[str]
    example: int | None = None


class _Cancelled(Exception):
    """The one who asked has gone."""


class Page:
    """What the page shows, and the requests that wait for the model.

    Args:
        speaker: describes images.
        made: whether the examples' captions, made in advance, are this model's.
    """

    def __init__(self, speaker: Speaker, made: bool) -> None:
        self.speaker = speaker
        text = json.loads(EXAMPLES.read_text("utf-8"))
        self.about: str = text["about"]
        self.examples: list[dict[str, Any]] = text["examples"]
        for example in self.examples:
            example["picture"]["images"] = [example["image"]]
        if not made:
            self.about = "Described by this model when the page was opened, or now."
            self.examples = [each | {"picture": None, "label": ""} for each in self.examples]
        self._line: list[object] = []  # who waits; the first is answered
        self._moved = threading.Condition()

    def html(self) -> str:
        """The page, with all that has been described of the examples."""
        speaker = self.speaker
        data = {
            "examples": self.examples,
            "defaults": {"question": QUESTION, "layers": speaker.layers, "alpha": 1e-5},
            "warning": speaker.warning,
            "most_bytes": MOST_BYTES,
        }
        title = "ReVisiT: see where each word comes from"
        return render("page.html", title=title, data=data, speaker=speaker, about=self.about)

    def asked(self, settings: Mapping[str, str], body: bytes) -> Asked:
        """What a request asks for; `CommandError` or `EvaluationError` says what is wrong."""
        try:
            config = ReVisiTConfig(
                layers=read_layers(settings.get("layers", "")),  # type: ignore[arg-type]
                alpha=float(settings.get("alpha", "nan")),
                divergence=settings.get("divergence", "ag"),  # type: ignore[arg-type]
            )
        except ValueError as error:
            raise CommandError(str(error)) from error
        self.speaker.check(config)
        question = settings.get("question", "").strip() or QUESTION
        if len(question) > LONGEST_QUESTION:
            raise CommandError(f"a question has at most {LONGEST_QUESTION} characters")
        number = settings.get("example", "")
        if not number:
            title = settings.get("name", "image")
            image, notes = open_image(title, file=io.BytesIO(body))
            if max(image.size) > LONGEST_SIDE:
                notes.append(f"made smaller from {image.width} x {image.height} pixels")
                image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
            return Asked(image, title, question, config, notes)
        if not number.isdecimal() or int(number) >= len(self.examples):
            raise CommandError(f"there is no example {number}")
        chosen = self.examples[int(number)]
        image = decode_image(chosen["image"])
        return Asked(image, chosen["title"], question, config, [], int(number))

    def answer(self, settings: Mapping[str, str], body: bytes) -> Iterator[dict[str, Any]]:
        """What the page is sent, line by line; a failure is a line, and ends this request only.

        `{}` where nothing has happened, `waiting` for so many requests, `captions` so far, and at
        the end the `picture`, or what is wrong as `error`.
        """
        me = object()
        try:
            asked = self.asked(settings, body)
            with self._moved:
                if len(self._line) > MOST_WAITING:
                    raise CommandError(f"{MOST_WAITING} others are waiting already; try again")
                self._line.append(me)
            while ahead := self._ahead(me):
                yield {"waiting": ahead}
            yield from self._describe(asked)
        except (CommandError, EvaluationError) as error:
            yield {"error": str(error)}
        except Exception:
            _LOG.exception("a request failed")
            yield {"error": "this failed; the server's log says why. Try another image."}
        finally:
            with self._moved:
                if me in self._line:
                    self._line.remove(me)
                self._moved.notify_all()

    def _ahead(self, me: object) -> int:
        """How many are before this request, after waiting a while where there are some."""
        with self._moved:
            if self._line[0] is not me:
                self._moved.wait(_SILENT)
            return self._line.index(me)

    def _describe(self, asked: Asked) -> Iterator[dict[str, Any]]:
        """Both descriptions at once, each in a thread of its own."""
        heard: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        gone = threading.Event()

        def describe(name: str, config: ReVisiTConfig | None) -> None:
            def so_far(words: Any) -> None:
                if gone.is_set():
                    raise _Cancelled
                heard.put((name, words))

            try:
                said = self.speaker.describe(
                    asked.image,
                    config,
                    question=asked.question,
                    max_new_tokens=MOST_TOKENS,
                    max_seconds=MOST_SECONDS,
                    heard=so_far,
                )
                heard.put((name, said))
            except BaseException as error:
                heard.put((name, error))

        threads = [
            threading.Thread(target=describe, args=each, daemon=True)
            for each in ((GREEDY, None), (REVISIT, asked.config))
        ]
        for thread in threads:
            thread.start()
        try:
            yield from self._listen(asked, heard)
        finally:
            gone.set()
            for thread in threads:
                thread.join()

    def _listen(
        self, asked: Asked, heard: "queue.SimpleQueue[tuple[str, Any]]"
    ) -> Iterator[dict[str, Any]]:
        words: dict[str, Any] = {GREEDY: [], REVISIT: []}
        said: dict[str, Said] = {}
        truth = None if asked.example is None else self.examples[asked.example]["truth"]
        while len(said) < len(words):
            try:
                name, news = heard.get(timeout=_SILENT)
            except queue.Empty:
                yield {}
                continue
            if isinstance(news, BaseException):
                raise news
            if isinstance(news, Said):
                said[name] = news
            words[name] = news.words if isinstance(news, Said) else news
            yield {"captions": Picture(asked.title, [], words, truth=truth).words_json()}
        notes = list(asked.notes)
        if any(each.stopped for each in said.values()):
            notes.append("a description was cut at the limit of length or time")
        if self.speaker.origin:
            notes.append("which patch each word came from, a server does not say")
        in_order = {name: said[name] for name in words}
        made = picture(self.speaker, asked.title, asked.image, in_order, truth, "; ".join(notes))
        shown = made.as_json()
        if asked.example is not None and self._usual(asked):
            self.examples[asked.example]["picture"] = shown
        yield {"picture": shown}

    def _usual(self, asked: Asked) -> bool:
        layers = read_layers(self.speaker.layers)
        return asked.question == QUESTION and asked.config == ReVisiTConfig(layers=layers)  # type: ignore[arg-type]

    def prepare(self) -> None:
        """Describe the first example, where nothing was made in advance for the model."""
        if self.examples[0]["picture"] is None:
            settings = {"example": "0", "layers": self.speaker.layers, "alpha": "1e-5"}
            for line in self.answer(settings, b""):
                if "error" in line:
                    raise CommandError(line["error"])


def decode_image(url: str) -> Image.Image:
    """The image in a `data:` URL of ours."""
    return open_image("example", file=io.BytesIO(base64.b64decode(url.partition(",")[2]))).image


class Server(ThreadingHTTPServer):
    """Listens once `serve_forever` is called: the address is taken before a model is loaded.

    Raises:
        CommandError: nothing can listen there.
    """

    daemon_threads = True
    page: Page

    def __init__(self, host: str, port: int) -> None:
        try:
            self.address_family = socket.getaddrinfo(host, port)[0][0]
            super().__init__((host, port), _Handler, bind_and_activate=False)
            self.server_bind()
        except OSError as error:
            raise CommandError(
                f"cannot listen on --host {host} --port {port}: {error.strerror}; is that an "
                "address of this machine, and the port free?"
            ) from error
        self.only_here = host in _ONLY_HERE

    @property
    def url(self) -> str:
        """Where the page is."""
        host, port = self.server_address[:2]
        return f"http://[{host!s}]:{port}/" if ":" in str(host) else f"http://{host!s}:{port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who has gone is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = 60  # seconds for each read

    def log_message(self, *_: Any) -> None:
        """Nobody reads it."""

    def do_GET(self) -> None:
        if not self._is_ours() or self.path != "/":
            return self._refuse(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        self._begin(HTTPStatus.OK, "text/html; charset=utf-8")
        self.wfile.write(self.server.page.html().encode())

    def do_POST(self) -> None:
        address = urlsplit(self.path)
        # A page of another site cannot send this type without asking, and is not answered then.
        ours = self.headers.get_content_type() == "application/octet-stream"
        if not self._is_ours() or address.path != "/describe" or not ours:
            return self._refuse(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            most = f"an image of at most {MOST_BYTES // 2**20} MiB is taken"
            return self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, most)
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            return None
        self._begin(HTTPStatus.OK, "application/x-ndjson")
        lines = self.server.page.answer(dict(parse_qsl(address.query)), body)
        try:
            for line in lines:
                self.wfile.write(json.dumps(line).encode() + b"\n")
                self.wfile.flush()
        except OSError:  # who asked has gone
            pass
        finally:
            lines.close()  # type: ignore[attr-defined]

    def _is_ours(self) -> bool:
        """Whether it was asked by this machine's name: another that leads here is a trick."""
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        return not self.server.only_here or host in _ONLY_HERE

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._begin(status, "application/x-ndjson")
        self.wfile.write(json.dumps({"error": why}).encode() + b"\n")

    def _begin(self, status: HTTPStatus, kind: str) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "frame-ancestors 'none'",
            "Referrer-Policy": "no-referrer",
        }.items():
            self.send_header(name, value)
        self.end_headers()
