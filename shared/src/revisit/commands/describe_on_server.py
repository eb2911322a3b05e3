"""A model on a vLLM server with ReVisiT (docs/vllm.md), asked as OpenAI's API is."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from revisit.commands import CommandError
from revisit.commands.engines import requests
from revisit.commands.engines.description import QUESTION, Description, OnWords
from revisit.config import ReVisiTConfig
from revisit.evaluation.pictures.picture import Box
from revisit.evaluation.pictures.words import split

CONNECTING, SILENT = 5.0, 60.0
"""Seconds to wait for a connection, and for each next word."""

_LONGEST_MESSAGE = 300  # characters of a server's error that are shown


class ServerDescriber:
    """Describes images by a server, which gets no request before `check_reachable` or `describe`.

    Args:
        base_url: as `http://127.0.0.1:8000/v1`.
        model: its name on the server; None takes the first that the server lists.

    Raises:
        CommandError: the OpenAI client is not installed, or `base_url` is no address.
    """

    warning = ""
    layers = "last"  # the server decides

    def __init__(self, base_url: str, model: str | None = None) -> None:
        if find_spec("openai") is None:
            raise CommandError('--base_url needs OpenAI: pip install "revisit-decoding[web]"')
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise CommandError(
                f"--base_url {base_url} is no address; vLLM's is like http://127.0.0.1:8000/v1"
            )
        import openai

        self.name = self.title = model or "the model"
        self.origin = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self.model = model
        timeout = openai.Timeout(SILENT, connect=CONNECTING)
        self.client = requests.connect(base_url, timeout=timeout, max_retries=0)

    def check(self, config: ReVisiTConfig) -> None:
        """Nothing to check here: the server refuses what it cannot decode."""

    def describe(
        self,
        image: Image.Image,
        config: ReVisiTConfig | None,
        *,
        question: str = QUESTION,
        max_new_tokens: int = 256,
        max_seconds: float | None = None,
        on_words: OnWords | None = None,
    ) -> Description:
        """See `Describer.describe`; of `config` only alpha and divergence are sent."""
        with self._named_errors():
            request = self._request(image, config, question, max_new_tokens)
            return self._stream(request, max_seconds, on_words)

    def check_reachable(self) -> None:
        """Raises `CommandError` where no server answers."""
        with self._named_errors():
            self.client.models.list(timeout=CONNECTING)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Turn what fails in a request, and an answer out of form, into `CommandError`."""
        import openai

        try:
            yield
        except CommandError:
            raise
        except (openai.APIError, ValueError, TypeError, AttributeError) as error:
            raise CommandError(f"the server {self.origin} {_problem(error)}") from error

    def boxes(self, image: Image.Image) -> list[tuple[int, Box | None]]:
        """Always ValueError: a server does not say which vision tokens it chose."""
        raise ValueError("a server does not say which patch each word came from")

    def _request(
        self, image: Image.Image, config: ReVisiTConfig | None, question: str, max_new_tokens: int
    ) -> dict[str, Any]:
        content = [
            {"type": "image_url", "image_url": {"url": requests.png_url(image)}},
            {"type": "text", "text": question},
        ]
        extra = {}
        if config is not None:
            settings = {"alpha": config.alpha, "divergence": config.divergence}
            extra = {"vllm_xargs": {"revisit": json.dumps(settings)}}
        return {
            "model": self._model(),
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": max_new_tokens,
            "extra_body": extra,
        }

    def _model(self) -> str:
        if self.model is None:
            models = list(self.client.models.list().data)
            if not models:
                raise CommandError(f"the server {self.origin} names no model: give --model")
            self.model = str(models[0].id)
        return self.model

    def _stream(
        self, request: dict[str, Any], max_seconds: float | None, on_words: OnWords | None
    ) -> Description:
        began = time.monotonic()
        text, reason = "", None
        with self.client.chat.completions.create(**request, stream=True) as stream:
            for chunk in stream:
                for choice in chunk.choices:
                    text += choice.delta.content or ""
                    reason = choice.finish_reason or reason
                if on_words is not None:
                    on_words(split(text))
                if max_seconds is not None and time.monotonic() - began > max_seconds:
                    reason = "time"
                    break
        if reason is None:
            raise CommandError(f"the server {self.origin} ended in the middle; try again")
        if reason not in (*requests.WHOLE, "time"):
            raise CommandError(f"the server {self.origin} ended an answer by {reason!r}")
        return Description(text.strip(), split(text), None, reason != "stop")


def _problem(error: Exception) -> str:
    """What an error of OpenAI's client means, after the name of the server."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        return "does not answer in time"
    if isinstance(error, openai.APIConnectionError):
        return "cannot be reached, or broke off: is it running, and --base_url right?"
    if not isinstance(error, openai.APIError):
        return (
            "says what is no answer of OpenAI's API: is it vLLM's, and does --base_url end in /v1?"
        )
    message = error.body.get("message") if isinstance(error.body, dict) else None
    if isinstance(error, openai.APIStatusError):
        message = message or "no reason given; does --base_url end in /v1?"
        return f"refuses this (HTTP {error.status_code}): {str(message)[:_LONGEST_MESSAGE]}"
    return f"failed: {str(message or error.message)[:_LONGEST_MESSAGE]}"  # an event of the stream
