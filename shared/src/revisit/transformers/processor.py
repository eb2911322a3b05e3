"""ReVisiT as a logits processor of Transformers, and the generation that it belongs to."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from revisit.config import ReVisiTConfig
from revisit.core.batch import refine
from revisit.core.columns import Pool
from revisit.core.head import LMHead
from revisit.core.layers import resolve_layers
from revisit.core.session import Session
from revisit.core.trace import Choice, TraceStep, VisionLayout
from revisit.transformers.parts import (
    Model,
    complete,
    given_decoder,
    is_tied,
    lm_head,
    logits_owners,
    text_decoder,
)
from revisit.transformers.recorder import Recorder
from revisit.transformers.vision import VisionPositions, locate

# The innermost generation of this thread (or task) that a processor has opened.
_running: ContextVar["Generation | None"] = ContextVar("running", default=None)


def running_generation() -> "Generation | None":
    """The innermost generation that runs in this thread with a processor of ours."""
    return _running.get()


class ReVisiTLogitsProcessor(LogitsProcessor):  # type: ignore[misc]
    """Refines next-token scores by the vision token closest to them (paper, section 3).

    It reads the model's own scores, so it must be the first of a generation's processors: warpers
    and penalties then act on the refined scores, as in the published implementation. `enable` and
    `attach` put it there; a decoding loop of one's own opens a generation itself:

        processor = revisit.ReVisiTLogitsProcessor(model, config)
        with processor.generation(inputs):
            ...  # read the prompts, then call processor(input_ids, scores) at every step

    Several generations may use it at the same time, in threads or one inside another: each has its
    own vision states, and a call is about the innermost generation of its thread.

    Args:
        model: the model that generates.
        config: the settings; our defaults if left out.
        lm_head: the LM head's weights, where the model has none in memory as floating point, or
            changes its logits by more than a scale or cap of its config.
        decoder: the module that holds the text decoder's layers, where it cannot be found.

    Raises:
        ValueError: a layer is out of range, or the model's decoder or LM head cannot be found; the
            message says what to pass.
    """

    def __init__(
        self,
        model: Model,
        config: ReVisiTConfig | None = None,
        *,
        lm_head: LMHead | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        self.model = model
        self.config = config if config is not None else ReVisiTConfig()
        self.given_head = lm_head
        self.decoder = text_decoder(model) if decoder is None else given_decoder(model, decoder)
        self.layers = resolve_layers(self.config.layers, len(self.decoder.layers), is_tied(model))
        self.prompts = 0  # decoded so far: the next prompt's number
        self.latest: Generation | None = None
        self.head()  # what cannot work is refused now

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "latest": None}

    def head(self) -> LMHead:
        """The LM head's weights as they are now: a model may be moved or trained on."""
        return self.given_head if self.given_head is not None else lm_head(self.model)

    @contextmanager
    def generation(
        self, inputs: Mapping[str, Any], vision_mask: Tensor | None = None
    ) -> Iterator["Generation"]:
        """The span of one generation of this thread: its prefill is recorded, its steps refined.

        Args:
            inputs: what the model is given for its prompts, `input_ids` among it.
            vision_mask: (P, S) bool, true at the vision tokens of the prompts, where the model's
                config cannot tell them.

        Raises:
            ValueError: the vision tokens cannot be found.
        """
        positions = locate(self.model, inputs, vision_mask)
        owners = logits_owners(self.model)
        weight = self.head().weight
        recorder = Recorder(
            self.decoder, owners, self.layers, positions.mask, weight.device, weight.shape[1]
        )
        self.latest = generation = Generation(self, recorder, positions, _running.get())
        inside = _running.set(generation)
        try:
            with recorder:
                yield generation
        finally:
            _running.reset(inside)
            generation.free()

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Refined scores (rows, V) float32 from `scores` (rows, V): logits or log-probabilities.

        Raises:
            ValueError: it is called outside `generation`, the whole prompts were not read in this
                generation, a prompt has no vision token and `config.no_vision` is `"error"`, or the
                prompts' rows are not those of `scores`.
        """
        return self._current().refine(input_ids, scores)

    def _current(self) -> "Generation":
        generation = _running.get()
        while generation is not None and generation.processor is not self:
            generation = generation.outer
        if generation is None:
            raise ValueError(
                "ReVisiT saw no prefill: revisit.enable(model) and `with revisit.attach(model)` "
                "decode by model.generate of that model; in a decoding loop of your own, read the "
                "prompts inside `with processor.generation(inputs)`"
            )
        return generation

    @property
    def vision_states(self) -> list[Tensor]:
        """For each prompt of the running generation, (len(layers) * N, d), layer by layer."""
        return self._current().recorder.states

    @property
    def trace(self) -> list[list[TraceStep | None]] | None:
        """The steps of each sequence of the latest generation; None unless `config.trace` is set.

        Steps of a sequence without vision tokens are None. A sequence that ended before its
        neighbours goes on with padding, and so does its trace.
        """
        return self.latest.trace() if self.latest and self.config.trace else None


class Generation:
    """One generation: its prompts are recorded, and from then on its sessions refine its steps.

    Attributes:
        joined: whether its processor was put among a decoding loop's.
        asked: whether the processor was called.
        head: the LM head with the scale and cap that were found, once it was asked.
    """

    def __init__(
        self,
        processor: ReVisiTLogitsProcessor,
        recorder: Recorder,
        positions: VisionPositions,
        outer: "Generation | None",
    ) -> None:
        self.processor = processor
        self.recorder = recorder
        self.positions = positions
        self.outer = outer
        self.joined = False
        self.asked = False
        self.head: LMHead | None = None
        self.sessions: list[Session | None] = []  # row by row
        # For a trace: what was generated before each step (rows, t), what it decided row by row,
        # the length of the prompts, and the sequences that came out.
        self.before: list[Tensor] = []
        self.choices: list[list[Choice | None]] = []
        self.layouts: list[VisionLayout] = []
        self.prompt_length = 0
        self.sequences: Tensor | None = None

    def refine(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """One step of the decoding loop, as the processor is called."""
        if not self.asked:
            self._begin(input_ids)
        if scores.shape[0] != len(self.sessions):
            raise ValueError(
                f"the recorded prefill has {len(self.sessions)} rows, the scores {scores.shape[0]}"
            )
        refined, steps = refine(scores, self.sessions)
        if self.processor.config.trace:
            self.before.append(input_ids[:, self.prompt_length :].clone())
            each = zip(scores, steps, strict=True)
            self.choices.append([step and Choice.of(step, row) for row, step in each])
        return refined

    def _begin(self, input_ids: Tensor) -> None:
        """A session for each prompt, shared by its rows."""
        self.asked = True
        recorder, processor = self.recorder, self.processor
        if not recorder.done:
            raise ValueError(_unread(recorder))
        recorder.finish()
        config = processor.config
        without = [prompt for prompt, count in enumerate(recorder.counts) if not count]
        if without and config.no_vision == "error":
            raise ValueError(
                f"prompts {without} of the batch hold no vision token, so ReVisiT has nothing to "
                "compare with: give them an image, or set no_vision='plain' to decode them plainly"
            )
        assert recorder.last is not None and recorder.logits is not None
        name = type(processor.model).__name__
        self.head = head = complete(
            processor.head(), processor.model.config, recorder.last[0], recorder.logits[0], name
        )
        pool = Pool(head, config.cache_bytes)
        for number, states in enumerate(recorder.states, processor.prompts):
            session = Session(states, pool, config, number) if len(states) else None
            self.sessions += [session] * recorder.rows
        processor.prompts += len(recorder.counts)
        if config.trace:
            self.prompt_length = input_ids.shape[1]
            grids = self.positions.grids() or repeat(None, len(recorder.counts))
            self.layouts = [
                VisionLayout(count, processor.layers, each)
                for count, each in zip(recorder.counts, grids, strict=True)
            ]

    def newest(self) -> list[TraceStep | None]:
        """The latest step of each row, while the generation runs: for who streams it.

        Which token was generated is not known to it yet; `config.trace` must be set.
        """
        return [
            choice and choice.read(self.layouts[row // self.recorder.rows], None)
            for row, choice in enumerate(self.choices[-1])
        ]

    def end(self, output: Any) -> None:
        """Take what `generate` returned; a trace goes into it where it is an object.

        Raises:
            ValueError: the processor was never asked, so that the output is not ReVisiT's.
        """
        if not self.asked:
            name = type(self.processor.model).__name__
            raise ValueError(
                f"{name} generated without asking ReVisiT, so its output is plain decoding and was "
                "not returned: its `generate` uses a decoding loop of its own. Decode with "
                "`with processor.generation(inputs)` in a loop of yours (see "
                "revisit.ReVisiTLogitsProcessor)"
            )
        if self.processor.config.trace:
            self.sequences = output if isinstance(output, Tensor) else output.sequences
            if not isinstance(output, Tensor):
                output.revisit_trace = self.trace()

    def trace(self) -> list[list[TraceStep | None]]:
        """The steps of each sequence: those of the rows that it went through, beams change them."""
        if not self.before:
            return []
        whole = self.sequences
        new = self.before[-1] if whole is None else whole[:, self.prompt_length :]
        before = [tokens.tolist() for tokens in self.before]
        share = len(new) // len(self.layouts)
        return [
            self._follow(tokens, row // share, before) for row, tokens in enumerate(new.tolist())
        ]

    def _follow(
        self, tokens: list[int], prompt: int, before: list[list[list[int]]]
    ) -> list[TraceStep | None]:
        rows = range(prompt * self.recorder.rows, (prompt + 1) * self.recorder.rows)
        steps: list[TraceStep | None] = []
        for place, (then, choices) in enumerate(zip(before, self.choices, strict=True)):
            row = next((row for row in rows if then[row] == tokens[:place]), None)
            if row is None:
                break  # a hypothesis that ended
            token = tokens[place] if place < len(tokens) else None
            choice = choices[row]
            steps.append(choice and choice.read(self.layouts[prompt], token))
        return steps

    def free(self) -> None:
        """Let go of all but the trace."""
        self.sessions = []
        self.recorder.states = []
        self.outer = None


def _unread(recorder: Recorder) -> str:
    if recorder.bare:
        return (
            "the model returned a tuple, in which ReVisiT cannot tell the logits: call it with "
            "return_dict=True"
        )
    return (
        "ReVisiT did not see the prompts being read to their end: they must be read in this "
        "generation, by the model itself and not by an assistant, and without past_key_values "
        "that hold a part of them"
    )
