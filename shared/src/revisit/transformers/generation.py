"""One generation of a model, and the logits processor that it asks first: what decoders share."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import LogitsProcessor

from revisit.config import DecoderConfig
from revisit.transformers.parts import Model

# The innermost generation of this thread (or task) that a processor has opened.
_running: ContextVar["Generation | None"] = ContextVar("running", default=None)


def running_generation() -> "Generation | None":
    """The innermost generation that runs in this thread with a processor of ours."""
    return _running.get()


class DecoderLogitsProcessor(LogitsProcessor):  # type: ignore[misc]
    """The first of a generation's logits processors, one class for each kind of decoder.

    Several generations may use one at the same time, in threads or one inside another: each has a
    state of its own, and a call is about the innermost generation of its thread.

    Attributes:
        name: of the decoder, for messages.
        model: the model that generates.
        config: the settings.
        latest: the generation opened last.
    """

    name: ClassVar[str]

    def __init__(self, model: Model, config: DecoderConfig) -> None:
        self.model = model
        self.config = config
        self.latest: Generation | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "latest": None}

    def open(
        self,
        inputs: Mapping[str, Any],
        vision_mask: Tensor | None,
        second_inputs: Mapping[str, Any] | None,
    ) -> "Generation":
        """A generation with these inputs, as `generation` takes them."""
        raise NotImplementedError

    @contextmanager
    def generation(
        self,
        inputs: Mapping[str, Any],
        vision_mask: Tensor | None = None,
        second_inputs: Mapping[str, Any] | None = None,
    ) -> Iterator["Generation"]:
        """The span of one generation of this thread.

        Args:
            inputs: what the model is given for its prompts, `input_ids` among it.
            vision_mask: (P, S) bool, true at the vision tokens of the prompts, where the model's
                config cannot tell them.
            second_inputs: what a decoder with a second stream gives it instead.

        Raises:
            ValueError: the decoder cannot work with them; the message says what to pass.
        """
        self.latest = generation = self.open(inputs, vision_mask, second_inputs)
        generation.outer = _running.get()
        inside = _running.set(generation)
        try:
            with generation:
                yield generation
        finally:
            _running.reset(inside)
            generation.outer = None

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The decoder's scores (rows, V) float32 from `scores` (rows, V), the model's own: logits,
        or log-probabilities as in beam search.

        Raises:
            ValueError: it is called outside `generation`, the whole prompts were not read in this
                generation, or the prompts' rows are not those of `scores`.
        """
        generation = self.current()
        decided = generation.step(input_ids, scores)
        generation.asked = True
        return decided

    def current(self) -> "Generation":
        """The innermost generation of this thread that is this processor's."""
        generation = _running.get()
        while generation is not None and generation.processor is not self:
            generation = generation.outer
        if generation is None:
            raise ValueError(
                f"{self.name} saw no prefill: revisit.enable(model) and `with "
                "revisit.attach(model)` decode by model.generate of that model; in a decoding loop "
                "of your own, read the prompts inside `with processor.generation(inputs)`"
            )
        return generation


class Generation:
    """One generation; a context manager for the hooks that it needs.

    Attributes:
        outer: the generation that it runs inside of.
        joined: whether its processor was put among a decoding loop's.
        asked: whether the processor has answered.
    """

    def __init__(self, processor: DecoderLogitsProcessor) -> None:
        self.processor = processor
        self.outer: Generation | None = None
        self.joined = False
        self.asked = False

    def __enter__(self) -> "Generation":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def step(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """One step of the decoding loop, as the processor is called."""
        raise NotImplementedError

    def end(self, output: Any) -> None:
        """Take what `generate` returned.

        Raises:
            ValueError: the processor was never asked, so that the output is plain decoding.
        """
        if not self.asked:
            model, name = type(self.processor.model).__name__, self.processor.name
            raise ValueError(
                f"{model} generated without asking {name}, so its output is plain decoding and was "
                "not returned: its `generate` uses a decoding loop of its own. Decode with "
                "`with processor.generation(inputs)` in a loop of yours (see "
                "revisit.ReVisiTLogitsProcessor)"
            )


def as_normalized(decided: Tensor, scores: Tensor) -> Tensor:
    """`decided` (rows, V), as log-probabilities where the model's own `scores` are.

    Beam search adds them up over tokens, so a decoder's must be of its distribution; elsewhere the
    formula's numbers stay as they are.
    """
    told = scores.logsumexp(-1, keepdim=True).abs() < 1e-2
    return decided - torch.where(told, decided.logsumexp(-1, keepdim=True), 0)
