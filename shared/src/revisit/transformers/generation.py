"""A generation of a model and its first logits processor, as all decoders have them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from revisit.config import DecoderConfig, DoLaConfig, ReVisiTConfig
from revisit.core.head import LMHead
from revisit.core.layers import resolve_layers
from revisit.core.left_out import fill_left_out
from revisit.transformers.model_parts import (
    Model,
    decoder_of,
    is_tied,
    lm_head,
    rounding,
    text_decoder,
)

# The names of the KV cache among the arguments of `generate` and `forward`, the newest first.
CACHES = ("cache", "past_key_values", "cache_params")

# The innermost generation of this thread (or task) that a processor has opened.
_running: ContextVar["Generation | None"] = ContextVar("running", default=None)


def current_generation() -> "Generation | None":
    """The innermost generation that runs in this thread with a processor of ours."""
    generation = _running.get()
    return generation if generation is None or generation.open else None


@contextmanager
def _running_here(generation: "Generation") -> Iterator[None]:
    """Inside, it is the innermost generation of this thread."""
    generation.outer = outer = current_generation()
    _running.set(generation)
    try:
        yield
    finally:
        # Maybe in another context, as where a generator's steps are run by several threads.
        generation.open = False
        generation.outer = None
        if _running.get() is generation:
            _running.set(outer)


@contextmanager
def plain_generation(model: Model) -> Iterator[None]:
    """Inside, `generate` of the model's class decodes plainly, also where a decoder is enabled."""
    generation = Generation(DecoderLogitsProcessor(model, ReVisiTConfig()))
    generation.in_processors = True  # so that no decoding loop gets its processor
    with _running_here(generation):
        yield


class Prompts(NamedTuple):
    """The inputs of a generation, as `DecoderLogitsProcessor.generation` takes them."""

    inputs: Mapping[str, Any]
    vision_mask: Tensor | None
    second_inputs: Mapping[str, Any] | None


class DecoderLogitsProcessor(LogitsProcessor):  # type: ignore[misc]
    """The first of a generation's logits processors, one class for each kind of decoder.

    Several generations may use it at the same time, in threads or one inside another: each has a
    separate state, and a call belongs to the innermost generation of its thread.
    """

    name: ClassVar[str]  # of the decoder, for messages

    def __init__(self, model: Model, config: DecoderConfig) -> None:
        self.model = model
        self.config = config
        self.latest: Generation | None = None  # the one opened last

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "latest": None}

    def open(self, prompts: Prompts) -> "Generation":
        """A new generation of these prompts."""
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
            inputs: the model's inputs for its prompts, `input_ids` among them.
            vision_mask: (P, S) bool, true at the vision tokens of the prompts, where the model's
                config does not name them.
            second_inputs: replaces inputs of the same names in a second stream.

        Raises:
            ValueError: the decoder cannot work with them; the message says what to pass.
        """
        self.latest = generation = self.open(Prompts(inputs, vision_mask, second_inputs))
        generation.prompts = prompt_count(inputs)
        with _running_here(generation), generation:
            yield generation

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The decoder's scores (rows, V) float32 from the model's `scores` (rows, V): logits, or
        log-probabilities as in beam search. A token that it leaves out has a finite score of
        probability 0, so that processors that follow may ban all others.

        Raises:
            ValueError: it is called outside `generation`, the whole prompts were not read in this
                generation, the prompts' rows are not those of `scores`, or rows of one prompt begin
                with different scores.
        """
        generation = self.current()
        decided = generation.step(input_ids, scores)
        if not generation.called and not self.model.training:  # dropout makes rows differ too
            _refuse_unequal_rows(self.model, scores, generation.prompts)
        generation.called = True
        return decided if generation.filled else fill_left_out(decided, scores.to(decided.device))

    def current(self) -> "Generation":
        """The innermost generation of this thread that uses this processor."""
        generation = current_generation()
        while generation is not None and generation.processor is not self:
            generation = generation.outer
        if generation is None:
            raise ValueError(
                f"{self.name} saw no prefill: revisit.enable(model) and `with "
                "revisit.attach(model)` decode by model.generate of that model; in a decoding loop "
                "that you write, read the prompts inside `with processor.generation(inputs)`"
            )
        return generation


class HiddenStatesLogitsProcessor(DecoderLogitsProcessor):
    """A decoder that reads hidden states of the model's layers, and its LM head.

    Arguments and errors are those of `ReVisiTLogitsProcessor`.
    """

    def __init__(
        self,
        model: Model,
        config: DecoderConfig | None = None,
        *,
        lm_head: LMHead | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__(model, ReVisiTConfig() if config is None else config)
        self.lm_head = lm_head
        self.decoder = text_decoder(model) if decoder is None else decoder_of(model, decoder)
        self.layers = self.chosen_layers()
        self.head()  # raises now where it cannot be found

    def chosen_layers(self) -> tuple[int, ...]:
        """The indices of the hidden states that the settings name in this model."""
        if not isinstance(self.config, ReVisiTConfig | DoLaConfig):
            raise ValueError(f"the settings are not those of {self.name}: {self.config!r}")
        tied = is_tied(self.model, self.lm_head)
        return resolve_layers(self.config.layers, self.decoder.depth, tied)

    def head(self) -> LMHead:
        """The LM head's weights as they are now: a model may be moved or trained on."""
        return self.lm_head if self.lm_head is not None else lm_head(self.model)


class Generation:
    """One generation; a context manager for the hooks that it needs."""

    def __init__(self, processor: DecoderLogitsProcessor) -> None:
        self.processor = processor
        self.prompts: int | None = None  # how many, if known; rows of a prompt are neighbours
        self.open = True  # until it ends
        self.outer: Generation | None = None  # the one that it runs inside of
        self.in_processors = False  # whether its processor is in a decoding loop's list
        self.called = False  # whether the processor has been called
        self.filled = False  # whether `step` gives tokens that it leaves out finite scores

    def __enter__(self) -> "Generation":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def step(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """One step of the decoding loop, as the processor is called."""
        raise NotImplementedError

    def end(self, output: Any) -> None:
        """Take the output of `generate`; raises ValueError if the processor was never called."""
        if not self.called:
            model, name = type(self.processor.model).__name__, self.processor.name
            raise ValueError(
                f"{model} generated without calling {name}, so its output is plain decoding and "
                "was not returned: its class replaces the decoding loop of Transformers. Decode "
                "with `with processor.generation(inputs)` in a loop of yours (see "
                "revisit.ReVisiTLogitsProcessor)"
            )


def holds(model: Model, module: Any) -> bool:
    """Whether the module is the model, or inside it."""
    return any(part is module for part in model.modules())


def setting(model: Model, arguments: Mapping[str, Any], name: str) -> Any:
    """A setting as `generate` reads it: the argument, else that of the generation config."""
    config = arguments.get("generation_config") or getattr(model, "generation_config", None)
    return arguments[name] if name in arguments else getattr(config, name, None)


def prompt_count(inputs: Mapping[str, Any]) -> int | None:
    """P, the number of prompts; None where neither `input_ids` nor `inputs_embeds` is there."""
    prompts = (inputs.get(name) for name in ("input_ids", "inputs_embeds"))
    return next((len(each) for each in prompts if each is not None), None)


def refuse_second_inputs(prompts: Prompts, name: str) -> None:
    """Refuse inputs for a second stream, which the decoder `name` has not; raises ValueError."""
    if prompts.second_inputs is not None:
        raise ValueError(f"{name} has no second stream: leave out second_inputs")


def refuse_chunked_prefill(model: Model, inputs: Mapping[str, Any], name: str) -> None:
    """Refuse prompts that `generate` would read in chunks; raises ValueError."""
    if setting(model, inputs, "prefill_chunk_size"):
        raise ValueError(f"{name} cannot read prompts in chunks: leave out prefill_chunk_size")


def refuse_prefilled_cache(inputs: Mapping[str, Any], name: str) -> None:
    """Refuse a KV cache that holds a part of the prompts; raises ValueError before it changes."""
    for key in CACHES:
        cache = inputs.get(key)
        if cache is None:
            continue
        if cache[0][0].shape[-2] if isinstance(cache, tuple) else cache.get_seq_length():
            raise ValueError(
                f"{name} must see the prompts being read from their beginning, images among them: "
                f"leave out {key}, which holds a part of them, and give the whole conversation"
            )


def _refuse_unequal_rows(model: Model, scores: Tensor, prompts: int | None) -> None:
    """Refuse rows of one prompt whose first scores (rows, V) differ.

    Releases 4.x of Transformers, and some families since, make rows of a prompt by repeating each
    image alone, so that the rows of a prompt with several images get the wrong ones.
    """
    if not prompts or len(scores) % prompts or len(scores) == prompts:
        return
    rows = scores.float().view(prompts, -1, scores.shape[1])
    unmasked = (rows > torch.finfo(scores.dtype).min / 2).all(1, keepdim=True)
    rows = rows.where(unmasked, 0)
    first = rows[:, :1]
    center = first.sum(-1, keepdim=True) / unmasked.sum(-1, keepdim=True)
    spread = (first - center).where(unmasked, 0).norm(dim=-1)
    apart = (rows - first).norm(dim=-1).amax(-1) / spread.squeeze(-1).clamp(min=1e-6)
    different = (apart > rounding(model.dtype)).nonzero().flatten().tolist()
    if different:
        name = type(model).__name__
        raise ValueError(
            f"the rows of prompts {different} of the batch read different images: where "
            f"num_beams or num_return_sequences make several rows of a prompt, {name} of this "
            "Transformers does not repeat its images together, whatever the decoder. Decode it in "
            "one row (to sample, give it several times in the batch), or try a newer Transformers"
        )


def normalized_like(decided: Tensor, scores: Tensor) -> Tensor:
    """`decided` (rows, V), normalized to log-probabilities where the model's `scores` are.

    Beam search adds log-probabilities over tokens. Elsewhere the formula's numbers stay.
    """
    normalized = scores.logsumexp(-1, keepdim=True).abs() < 1e-2
    return decided - torch.where(normalized, decided.logsumexp(-1, keepdim=True), 0)
