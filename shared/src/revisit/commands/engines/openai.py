"""A model behind a server that speaks OpenAI's protocol, as the evaluation asks it."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from PIL import Image

from revisit.commands.engines import requests
from revisit.config import ReVisiTConfig
from revisit.evaluation import EvaluationError
from revisit.evaluation.captioner import Answer, unusable_images
from revisit.evaluation.run import Run

_REQUESTS = 32  # at a time
_WRONG_REQUEST = (400, 413, 422, 500)  # statuses that may be about one request alone
_RETRIES = 5  # of a request that found no server, or a busy one


class _Refused(EvaluationError):
    """Why the server gives no answer to a request."""


class ServerCaptioner:
    """A model on a server, with many requests at a time.

    Args:
        run: one that `choose.load` let pass; `model_path` is the name that the server has for the
            model.

    Raises:
        ValueError: the client is not installed, nobody answers, or the server has no such model.
    """

    batch_size = requests.AT_ONCE

    def __init__(self, run: Run) -> None:
        try:
            import openai
        except ImportError as error:
            raise ValueError(f"--engine openai: `pip install openai` ({error})") from error
        base_url = str(run.place.base_url)
        self.client = requests.connect(base_url, max_retries=_RETRIES)
        self.model = run.model_path
        try:
            names = [model.id for model in self.client.models.list()]
        except openai.OpenAIError as error:
            raise ValueError(f"no answer of {base_url}: {error}") from error
        if self.model not in names:
            raise ValueError(f"{base_url} serves {names}: --model is one of these names")
        self.decode(run)
        self.settings = {"engine": "openai", "base_url": base_url}

    def decode(self, run: Run) -> None:
        """Decode from now on as a run says.

        Raises:
            EvaluationError: a server cannot.
        """
        requests.check(run)
        self.run = run
        self.body = requests.sampling(run)
        # OpenAI's client has no arguments for these.
        self.extra: dict[str, Any] = {
            name: self.body.pop(name)
            for name in ("top_k", "repetition_penalty")
            if name in self.body
        }

    def answer(
        self, images: Sequence[Image.Image | None], questions: Sequence[str]
    ) -> list[Answer]:
        """The answer to each question about the image beside it.

        Raises:
            EvaluationError: the server refuses a request, or cannot be reached any more.
            UnusableImages: it refuses some for their images alone.
        """
        seeds = torch.randint(2**31, (len(images),)).tolist()
        pool = ThreadPoolExecutor(_REQUESTS)
        try:
            answers = list(pool.map(self._ask, images, questions, seeds))
        finally:
            pool.shutdown(cancel_futures=True)

        def ask_again(row: int, image: Image.Image) -> None:
            known = image is images[row]
            answer = answers[row] if known else self._ask(image, questions[row], seeds[row])
            if isinstance(answer, _Refused):
                raise answer

        error = next((each for each in answers if isinstance(each, _Refused)), None)
        if error is not None:
            raise unusable_images(error, images, ask_again) from error
        return [each for each in answers if isinstance(each, Answer)]

    def _ask(self, image: Image.Image | None, question: str, seed: int) -> "Answer | _Refused":
        import openai

        content: Any = [{"type": "text", "text": question}]
        if image is not None:
            content.insert(0, {"type": "image_url", "image_url": {"url": requests.png_url(image)}})
        extra = dict(self.extra)
        if isinstance(config := self.run.decoder, ReVisiTConfig):
            # The layers are the server's: it refuses others.
            settings = {"layers": config.layers, **(requests.settings(self.run, seed) or {})}
            extra["vllm_xargs"] = {"revisit": json.dumps(settings)}
        try:
            reply = self.client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": content}],
                seed=seed,
                extra_body=extra,
                **self.body,
            )
        except openai.APIStatusError as error:
            message = f"the server answers {error.status_code}: {error.message}"
            if error.status_code in _WRONG_REQUEST:
                return _Refused(message)
            raise EvaluationError(message) from error
        except openai.APIConnectionError as error:
            raise EvaluationError(
                f"the server does not answer ({error}); the same command continues"
            ) from error
        if not reply.choices:
            reason = (reply.model_extra or {}).get("error", "no choices")
            return _Refused(f"the server gives no answer: {reason}")
        choice, text = reply.choices[0], reply.choices[0].message.content
        if choice.finish_reason not in requests.WHOLE or text is None:
            reason = getattr(choice, "stop_reason", None) or "its log may say why"
            ended = f"the server ended an answer by {choice.finish_reason!r}"
            return _Refused(f"{ended}, without text" if text is None else f"{ended}: {reason}")
        return Answer(text.strip(), reply.usage.completion_tokens if reply.usage else 0)
