"""The page of `revisit web`: captions by greedy decoding and by ReVisiT, and each word's patch."""

import base64
import io
import json
import logging
import queue
import threading
from collections.abc import Generator, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from revisit.commands import CommandError
from revisit.commands.engines.description import QUESTION, Description, picture
from revisit.commands.flags import read_layers
from revisit.config import ReVisiTConfig
from revisit.evaluation import EvaluationError
from revisit.evaluation.images import open_image
from revisit.evaluation.pictures.picture import GREEDY, REVISIT, Picture
from revisit.evaluation.pictures.templates import render

if TYPE_CHECKING:
    from revisit.commands.describe import Describer
    from revisit.commands.describe_on_server import ServerDescriber

MOST_BYTES = 64 * 2**20  # of an image
LONGEST_SIDE = 2048  # pixels of an image for the model; a larger one is made smaller
MOST_SECONDS = 60.0  # of one description
MOST_TOKENS = 256
MOST_WAITING = 8  # requests; one is answered at a time
LONGEST_QUESTION = 2000  # characters
EXAMPLES = files("revisit.evaluation.pictures") / "examples.json"

_IDLE = 1.0  # seconds without news after which an empty line is sent
_LOG = logging.getLogger(__name__)

Lines = Generator[dict[str, Any], None, None]
"""The lines of an answer, each a JSON object."""


class Request(NamedTuple):
    """An image to describe, and how."""

    image: Image.Image
    title: str
    question: str
    config: ReVisiTConfig
    notes: list[str]
    example: dict[str, Any] | None = None


class _Cancelled(Exception):
    """The browser has closed the connection."""


class Page:
    """What the page shows, and the requests that wait for the model.

    Args:
        describer: describes the images.
        made: whether the examples' captions, made in advance, are of this describer's model.
    """

    def __init__(self, describer: "Describer | ServerDescriber", made: bool) -> None:
        self.describer = describer
        saved = json.loads(EXAMPLES.read_text("utf-8"))
        self.about: str = saved["about"]
        self.examples: list[dict[str, Any]] = saved["examples"]
        for example in self.examples:
            example["picture"]["images"] = [example["image"]]
        if not made:
            self.about = "Described by this model when the page was opened, or now."
            self.examples = [each | {"picture": None, "label": ""} for each in self.examples]
        self._queue: list[object] = []  # the first request is being answered
        self._queue_changed = threading.Condition()

    def html(self) -> str:
        """The page, with the captions that the examples have so far."""
        title = "ReVisiT: see where each word comes from"
        return render("page.html", title=title, page=self, question=QUESTION, most_bytes=MOST_BYTES)

    def read(self, settings: Mapping[str, str], body: bytes) -> Request:
        """A request from its settings and its body.

        Raises:
            CommandError, EvaluationError: a setting is out of range, or the image cannot be read.
        """
        try:
            config = ReVisiTConfig(
                layers=read_layers(settings.get("layers", "")),  # type: ignore[arg-type]
                alpha=float(settings.get("alpha", "nan")),
                divergence=settings.get("divergence", "ag"),  # type: ignore[arg-type]
            )
        except ValueError as error:
            raise CommandError(str(error)) from error
        self.describer.check(config)
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
            return Request(image, title, question, config, notes)
        if not number.isdecimal() or int(number) >= len(self.examples):
            raise CommandError(f"there is no example {number}")
        example = self.examples[int(number)]
        image = decode_image(example["image"])
        return Request(image, example["title"], question, config, [], example)

    def answer(self, settings: Mapping[str, str], body: bytes) -> Lines:
        """The lines of an answer; a failure is a line too, and ends this request only.

        `{}` where nothing is new, `waiting` with the number of requests before this one, `captions`
        so far, and at the end the `picture`, or as `error` what is wrong.
        """
        place = object()
        try:
            request = self.read(settings, body)
            with self._queue_changed:
                if len(self._queue) > MOST_WAITING:
                    raise CommandError(f"{MOST_WAITING} others are waiting already; try again")
                self._queue.append(place)
            while ahead := self._ahead(place):
                yield {"waiting": ahead}
            yield from self._describe(request)
        except (CommandError, EvaluationError) as error:
            yield {"error": str(error)}
        except Exception:
            _LOG.exception("a request failed")
            yield {"error": "this failed; the server's log says why. Try another image."}
        finally:
            with self._queue_changed:
                if place in self._queue:
                    self._queue.remove(place)
                self._queue_changed.notify_all()

    def _ahead(self, place: object) -> int:
        """The number of requests before this one, after a wait for the queue to move."""
        with self._queue_changed:
            if self._queue[0] is not place:
                self._queue_changed.wait(_IDLE)
            return self._queue.index(place)

    def _describe(self, request: Request) -> Lines:
        """Both descriptions at once, each in a thread."""
        news: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        closed = threading.Event()

        def describe(decoder: str, config: ReVisiTConfig | None) -> None:
            def on_words(words: Any) -> None:
                if closed.is_set():
                    raise _Cancelled
                news.put((decoder, words))

            try:
                description = self.describer.describe(
                    request.image,
                    config,
                    question=request.question,
                    max_new_tokens=MOST_TOKENS,
                    max_seconds=MOST_SECONDS,
                    on_words=on_words,
                )
                news.put((decoder, description))
            except BaseException as error:
                news.put((decoder, error))

        threads = [
            threading.Thread(target=describe, args=each, daemon=True)
            for each in ((GREEDY, None), (REVISIT, request.config))
        ]
        for thread in threads:
            thread.start()
        try:
            yield from self._lines(request, news)
        finally:
            closed.set()
            for thread in threads:
                thread.join()

    def _lines(self, request: Request, news: "queue.SimpleQueue[tuple[str, Any]]") -> Lines:
        """A line for each list of words, Description or exception of a decoder, and the picture."""
        words: dict[str, Any] = {GREEDY: [], REVISIT: []}
        descriptions: dict[str, Description] = {}
        truth = request.example and request.example["truth"]
        while len(descriptions) < len(words):
            try:
                decoder, latest = news.get(timeout=_IDLE)
            except queue.Empty:
                yield {}
                continue
            if isinstance(latest, BaseException):
                raise latest
            if isinstance(latest, Description):
                descriptions[decoder] = latest
                latest = latest.words
            words[decoder] = latest
            yield {"captions": Picture(request.title, [], words, truth=truth).words_json()}
        notes = list(request.notes)
        if any(each.stopped for each in descriptions.values()):
            notes.append("a description was cut at the limit of length or time")
        if self.describer.origin:
            notes.append("which patch each word came from, a server does not say")
        boxes, note = self.describer.boxes, "; ".join(notes)
        in_order = {decoder: descriptions[decoder] for decoder in words}
        shown = picture(boxes, request.title, request.image, in_order, truth, note).as_json()
        if request.example is not None and self._has_defaults(request):
            request.example["picture"] = shown
        yield {"picture": shown}

    def _has_defaults(self, request: Request) -> bool:
        layers = read_layers(self.describer.layers)
        default = ReVisiTConfig(layers=layers)  # type: ignore[arg-type]
        return request.question == QUESTION and request.config == default

    def prepare(self) -> None:
        """Describe the first example, unless its captions were made in advance.

        Raises:
            CommandError: the model cannot.
        """
        if self.examples[0]["picture"] is None:
            settings = {"example": "0", "layers": self.describer.layers, "alpha": "1e-5"}
            for line in self.answer(settings, b""):
                if "error" in line:
                    raise CommandError(line["error"])


def decode_image(url: str) -> Image.Image:
    """The image in a `data:` URL of an example."""
    return open_image("example", file=io.BytesIO(base64.b64decode(url.partition(",")[2]))).image
