"""ReVisiT as a logits processor of Transformers."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from revisit.columns import Columns, LMHead
from revisit.config import ReVisiTConfig
from revisit.decoder import (
    Decoder,
    Model,
    complete,
    given_decoder,
    is_tied,
    lm_head,
    logits_owners,
    text_decoder,
)
from revisit.layers import resolve_layers
from revisit.recorder import Recorder
from revisit.step import Step, refine
from revisit.trace import Choice, TraceStep
from revisit.vision import Grid, VisionPositions, locate


class ReVisiTLogitsProcessor(LogitsProcessor):  # type: ignore[misc]
    """Refines next-token scores by the vision token closest to them (paper, section 3).

    It reads the model's own scores, so it must be the first of a generation's processors: warpers
    and penalties then act on the refined scores, as in the published implementation.

    Several generations may use it at the same time, in threads or one inside another: each has its
    own vision states, and each call is about the innermost generation of its thread.

    Args:
        model: the model that generates.
        config: the settings.
        vision_mask: (P, S) bool, true at the vision tokens of the prompts, where the model's config
            cannot tell them.
        head: the LM head, where the model's own cannot be read.
        decoder: the text decoder, where it cannot be found.

    Raises:
        ValueError: a layer is out of range, or the model's decoder or LM head cannot be found; the
            message says what to pass.
    """

    # The forks move processors with this mark to the front.
    is_revisit = True

    def __init__(
        self,
        model: Model,
        config: ReVisiTConfig,
        vision_mask: Tensor | None = None,
        head: LMHead | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self.vision_mask = vision_mask
        self.head = head if head is not None else lm_head(model)
        self.decoder: Decoder = (
            text_decoder(model) if decoder is None else given_decoder(model, decoder)
        )
        self.layers = resolve_layers(config.layers, len(self.decoder.layers), is_tied(model))
        self._running = threading.local()
        self._latest: _Generation | None = None

    @contextmanager
    def generation(self, inputs: Mapping[str, Any]) -> Iterator[None]:
        """The span of one generation of this thread: its prefill is recorded, its steps refined.

        `attach` opens it around each `generate`; a decoding loop of one's own opens it itself.

        Args:
            inputs: what the model is given for its prompts, `input_ids` among it.

        Raises:
            ValueError: the vision tokens cannot be found.
        """
        positions = locate(self.model, inputs, self.vision_mask)
        owners = logits_owners(self.model)
        device = self.head.weight.device
        recorder = Recorder(self.decoder, owners, self.layers, positions.mask, device)
        running = _Generation(self, recorder, positions)
        stack: list[_Generation] = self._running.__dict__.setdefault("stack", [])
        stack.append(running)
        self._latest = running
        try:
            with recorder:
                yield
        finally:
            stack.pop()
            running.free()

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Refined scores (rows, V) float32 from `scores` (rows, V): logits or log-probabilities.

        Raises:
            ValueError: it is called outside `generation`, the whole prompts were not read in this
                generation, a prompt has no vision token and `config.no_vision` is `"error"`, or the
                prompts' rows are not those of `scores`.
        """
        return self._current().refine(scores)

    def _current(self) -> "_Generation":
        stack: list[_Generation] = self._running.__dict__.get("stack", [])
        if not stack:
            raise ValueError(
                "ReVisiT saw no prefill of this model: call model.generate, of the model that was "
                "attached, inside `with revisit.attach(model, ...)`; or, in a decoding loop of "
                "your own, read the prompts inside `with processor.generation(inputs)`"
            )
        return stack[-1]

    @property
    def vision_states(self) -> list[Tensor]:
        """For each prompt of the running generation, (len(layers) * N, d), layer by layer."""
        return self._current().recorder.states

    @property
    def trace(self) -> list[list[TraceStep | None]] | None:
        """For each row the steps of the latest generation; None unless `config.trace` is set.

        Steps of a row without vision tokens are None. Under beam search a row is a beam, whose
        earlier steps may belong to another hypothesis.
        """
        if not self.config.trace:
            return None
        choices = self._latest.choices if self._latest else []
        return [[choice and choice.read() for choice in row] for row in choices]


class _Generation:
    """What one generation keeps: its vision states, the columns of its prompts, its trace."""

    def __init__(
        self,
        processor: ReVisiTLogitsProcessor,
        recorder: Recorder,
        positions: VisionPositions,
    ) -> None:
        self.processor = processor
        self.config = processor.config
        self.recorder = recorder
        self.positions = positions
        self.columns: list[Columns | None] | None = None
        self.choices: list[list[Choice | None]] = []
        self.grids: list[list[Grid]] | None = None
        self.generator = torch.Generator()
        self.generator.manual_seed(self.config.seed)

    def refine(self, scores: Tensor) -> Tensor:
        if self.columns is None:
            self.columns = self._begin()
        if scores.shape[0] != len(self.columns):
            raise ValueError(
                f"the recorded prefill has {len(self.columns)} rows, the scores {scores.shape[0]}"
            )
        refined, steps = refine(scores, self.columns, self.config, self.generator)
        if self.config.trace:
            for row, decided in enumerate(steps):
                self.choices[row].append(self._choice(row, scores[row], decided))
        return refined

    def _begin(self) -> list[Columns | None]:
        """One set of columns for each prompt, shared by its rows."""
        recorder = self.recorder
        if not recorder.done:
            raise ValueError(
                "ReVisiT did not see the prompts being read to their end: they must be read in "
                "this generation, by the model itself and not by an assistant, and without "
                "past_key_values that hold a part of them"
            )
        recorder.finish()
        without = [prompt for prompt, count in enumerate(recorder.counts) if not count]
        if without and self.config.no_vision == "error":
            raise ValueError(
                f"prompts {without} of the batch hold no vision token, so ReVisiT has nothing to "
                "compare with: give them an image, or set no_vision='plain' to decode them plainly"
            )
        head = self._complete_head()
        budget = self.config.cache_bytes // max(1, sum(count > 0 for count in recorder.counts))
        columns = [
            Columns(states, head, budget) if states.shape[0] else None for states in recorder.states
        ]
        self.choices = [[] for _ in range(len(columns) * recorder.rows)]
        if self.config.trace:
            self.grids = self.positions.grids()
        return [prompt for prompt in columns for _ in range(recorder.rows)]

    def _complete_head(self) -> LMHead:
        recorder, model = self.recorder, self.processor.model
        assert recorder.last is not None and recorder.logits is not None
        name = type(model).__name__
        return complete(
            self.processor.head, model.config, recorder.last[0], recorder.logits[0], name
        )

    def _choice(self, row: int, scores: Tensor, decided: Step | None) -> Choice | None:
        if decided is None:
            return None
        prompt = row // self.recorder.rows
        return Choice(
            vision_state=decided.choice,
            tokens=self.recorder.counts[prompt],
            layers=self.processor.layers,
            grids=self.grids[prompt] if self.grids else None,
            candidates=decided.vocabulary.shape[0],
            divergence=decided.divergence,
            plain_token=scores.argmax(),
            token=decided.scores.argmax(),
        )

    def free(self) -> None:
        """Let go of all but the trace."""
        self.columns = None
        self.recorder.states = []
