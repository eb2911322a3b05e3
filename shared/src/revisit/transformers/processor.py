"""ReVisiT as a logits processor of Transformers, and the generation that it belongs to."""

from contextlib import suppress
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from revisit.config import ReVisiTConfig
from revisit.core.columns import Cache
from revisit.core.head import LMHead
from revisit.core.rows import refine
from revisit.core.session import Session
from revisit.core.trace import Choice, TraceStep, VisionLayout
from revisit.transformers.generation import (
    Generation,
    HiddenStatesLogitsProcessor,
    Prompts,
    refuse_prefilled_cache,
    refuse_second_inputs,
)
from revisit.transformers.kernels import Kernels, kernels_run
from revisit.transformers.model_parts import calibrated, modules_with_logits
from revisit.transformers.recorder import Recorder
from revisit.transformers.vision_positions import VisionPositions, locate


class ReVisiTLogitsProcessor(HiddenStatesLogitsProcessor):
    """Refines next-token scores by the vision token closest to them (paper, section 3).

    It reads the model's scores, so it must be the first of a generation's processors: warpers
    and penalties then act on the refined scores, as in the published implementation. `enable` and
    `attach` put it there; a decoding loop that you write opens a generation itself:

        processor = revisit.ReVisiTLogitsProcessor(model, config)
        with processor.generation(inputs):
            ...  # read the prompts, then call processor(input_ids, scores) at every step

    Several generations may use it at the same time, as `DecoderLogitsProcessor` says.

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

    name = "ReVisiT"
    config: ReVisiTConfig
    latest: "ReVisiTGeneration | None"
    prompts = 0  # decoded so far: the next prompt's number

    def open(self, prompts: Prompts) -> "ReVisiTGeneration":
        refuse_second_inputs(prompts, self.name)
        refuse_prefilled_cache(prompts.inputs, self.name)
        positions = locate(self.model, prompts.inputs, prompts.vision_mask)
        logits_modules = modules_with_logits(self.model)
        recorder = Recorder(self.decoder, logits_modules, self.layers, positions.mask, self.head())
        without = [prompt for prompt, count in enumerate(recorder.counts) if not count]
        if without and self.config.no_vision == "error":
            raise ValueError(
                f"prompts {without} of the batch hold no vision token, so ReVisiT has nothing to "
                "compare with: give them an image, or set no_vision='plain' to decode them plainly"
            )
        return ReVisiTGeneration(self, recorder, positions)

    @property
    def vision_states(self) -> list[Tensor]:
        """For each prompt of the running generation, (len(layers) * N, d), layer by layer."""
        generation = self.current()
        assert isinstance(generation, ReVisiTGeneration)
        return generation.recorder.states

    @property
    def trace(self) -> list[list[TraceStep | None]] | None:
        """The steps of each sequence of the latest generation; None unless `config.trace` is set.

        Steps of a sequence without vision tokens are None. A sequence that ended before others of
        its batch goes on with padding, and so does its trace.
        """
        return self.latest.trace() if self.latest and self.config.trace else None


class ReVisiTGeneration(Generation):
    """Records its prompts; then kernels, or sessions row by row, refine each step.

    Attributes:
        head: the LM head with the scale and cap that were found in the first step.
        distances: of the latest step, with a trace: D(p_c, q_i) in nats of every vision state (M,),
            row by row.
    """

    processor: ReVisiTLogitsProcessor

    def __init__(
        self, processor: ReVisiTLogitsProcessor, recorder: Recorder, positions: VisionPositions
    ) -> None:
        super().__init__(processor)
        self.recorder = recorder
        self.positions = positions
        self.head: LMHead | None = None
        self.kernels: Kernels | None = None  # on a GPU that runs them
        self.sessions: list[Session | None] = []  # elsewhere, row by row
        self.distances: list[Tensor | None] = []
        # For a trace: what was generated before each step (rows, t), what each step decided row by
        # row, the layout of each prompt's vision tokens, and the sequences that came out.
        self.before: list[Tensor] = []
        self.choices: list[list[Choice | None]] = []
        self.layouts: list[VisionLayout] = []
        self.prompt_length = 0
        self.sequences: Tensor | None = None

    def __enter__(self) -> "ReVisiTGeneration":
        self.recorder.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        """Let go of all but the trace.

        Raises:
            ValueError: no token could be chosen in a step, and no other exception is under way.
        """
        self.recorder.__exit__(*error)
        kernels, self.kernels, self.sessions = self.kernels, None, []
        self.recorder.states = []
        if kernels is not None and error[0] is None:
            kernels.end()

    def step(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not self.called:
            self._begin(input_ids)
        rows = len(self.recorder.counts) * self.recorder.rows
        if scores.shape[0] != rows:
            raise ValueError(f"the recorded prefill has {rows} rows, the scores {scores.shape[0]}")
        trace = self.processor.config.trace
        if trace:
            self.before.append(input_ids[:, self.prompt_length :].clone())
        if self.kernels is not None:
            refined = self.kernels.refine(scores)
            if trace:
                self.choices.append(self.kernels.choices(scores, refined))
                self.distances = self.kernels.distances()
            return refined
        refined, steps = refine(scores, self.sessions)
        if trace:
            each = zip(scores, steps, strict=True)
            self.choices.append([step and Choice.of(step, row) for row, step in each])
            self.distances = [step and step.distances for step in steps]
        return refined

    def _begin(self, input_ids: Tensor) -> None:
        """Kernels for all prompts, or a session for each, shared by its rows."""
        recorder, processor = self.recorder, self.processor
        if not recorder.done:
            raise ValueError(_why_not_read(recorder))
        recorder.finish()
        config = processor.config
        assert recorder.last is not None and recorder.logits is not None
        name = type(processor.model).__name__
        self.head = head = calibrated(
            processor.head(), processor.model.config, recorder.last[0], recorder.logits[0], name
        )
        if any(recorder.counts) and kernels_run(head):
            with suppress(torch.cuda.OutOfMemoryError):  # plain PyTorch takes as little as it needs
                self.kernels = Kernels(
                    head, config, recorder.states, recorder.rows, processor.prompts
                )
        self.filled = self.kernels is not None
        if self.kernels is None:
            cache = Cache(head, config.cache_bytes)
            for number, states in enumerate(recorder.states, processor.prompts):
                session = Session(states, cache, config, number) if len(states) else None
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
        """As for every generation; a trace goes into the output where it is an object."""
        super().end(output)
        if self.processor.config.trace:
            self.sequences = output if isinstance(output, Tensor) else output.sequences
            if not isinstance(output, Tensor):
                output.revisit_trace = self.trace()

    def trace(self) -> list[list[TraceStep | None]]:
        """The steps of each sequence, from the rows that it went through in beam search."""
        if not self.before:
            return []
        whole = self.sequences
        new = self.before[-1] if whole is None else whole[:, self.prompt_length :]
        before = [tokens.tolist() for tokens in self.before]
        rows_of_a_prompt = len(new) // len(self.layouts)
        return [
            self._steps(tokens, row // rows_of_a_prompt, before)
            for row, tokens in enumerate(new.tolist())
        ]

    def _steps(
        self, tokens: list[int], prompt: int, before: list[list[list[int]]]
    ) -> list[TraceStep | None]:
        """The steps of a sequence of new tokens, each from the row that held its start then."""
        rows = range(prompt * self.recorder.rows, (prompt + 1) * self.recorder.rows)
        steps: list[TraceStep | None] = []
        for number, (starts, choices) in enumerate(zip(before, self.choices, strict=True)):
            row = next((row for row in rows if starts[row] == tokens[:number]), None)
            if row is None:
                break  # a hypothesis that ended
            token = tokens[number] if number < len(tokens) else None
            choice = choices[row]
            steps.append(choice and choice.read(self.layouts[prompt], token))
        return steps


def _why_not_read(recorder: Recorder) -> str:
    if recorder.returned_tuple:
        return (
            "the model returned a tuple, in which the logits have no name: call it with "
            "return_dict=True"
        )
    return (
        "ReVisiT did not see the prompts being read to their end: they must be read in this "
        "generation, by the model itself and not by an assistant, and without a KV cache "
        "that holds a part of them"
    )
