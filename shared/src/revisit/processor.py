"""ReVisiT as a logits processor of Transformers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import LogitsProcessor

from revisit.columns import Columns, LMHead
from revisit.config import ReVisiTConfig
from revisit.layers import resolve_layers
from revisit.recorder import Recorder
from revisit.step import Step, refine
from revisit.trace import Choice, TraceStep
from revisit.vision import Grid, Model, decoder_layers, is_tied, lm_head


class ReVisiTLogitsProcessor(LogitsProcessor):  # type: ignore[misc]
    """Refines next-token scores by the vision token closest to them (paper, section 3).

    It reads the model's own scores, so it must be the first of a generation's processors: warpers
    and penalties then act on the refined scores, as in the published implementation.

    Args:
        recorder: holds the vision states of the running generation.
        head: the LM head that projects them.
        config: the settings.
    """

    # The forks move processors with this mark to the front.
    is_revisit = True

    def __init__(self, recorder: Recorder, head: LMHead, config: ReVisiTConfig) -> None:
        self.recorder = recorder
        self.head = head
        self.config = config
        self._prefill = 0
        self._columns: list[Columns | None] = []
        self._generator = torch.Generator()
        self._choices: list[list[Choice | None]] = []
        self._grids: list[list[Grid]] | None = None

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Refined scores (rows, V) float32 from `scores` (rows, V): logits or log-probabilities.

        Raises:
            ValueError: no prefill was recorded, its rows are not those of `scores`, or a row has no
                vision token and `config.no_vision` is `"error"`.
        """
        self._begin()
        if scores.shape[0] != len(self._columns):
            raise ValueError(
                f"the recorded prefill has {len(self._columns)} rows, the scores {scores.shape[0]}"
            )
        refined, steps = refine(scores, self._columns, self.config, self._generator)
        if self.config.trace:
            for row, decided in enumerate(steps):
                self._keep_choice(row, scores[row], decided)
        return refined

    @property
    def trace(self) -> list[list[TraceStep | None]] | None:
        """For each row the steps of the last generation; None unless `config.trace` is set.

        Steps of a row without vision tokens are None. Under beam search a row is a beam, whose
        earlier steps may belong to another hypothesis.
        """
        if not self.config.trace:
            return None
        return [[choice and choice.read() for choice in row] for row in self._choices]

    def _begin(self) -> None:
        """Take over the vision states of a prefill recorded since the last call."""
        recorder = self.recorder
        if recorder.prefills == self._prefill:
            if not recorder.prefills:
                raise ValueError(
                    "ReVisiT saw no prefill: call generate inside `with revisit.attach(model, ...)`"
                )
            return
        self._prefill = recorder.prefills
        without = [row for row, states in enumerate(recorder.states) if not states.shape[0]]
        if without and self.config.no_vision == "error":
            raise ValueError(
                f"prompts {without} of the batch hold no vision token, so ReVisiT has nothing to "
                "compare with: give them an image, or set no_vision='plain' to decode them plainly"
            )
        distinct = {id(states): states for states in recorder.states if states.shape[0]}
        budget = self.config.cache_bytes // max(1, len(distinct))
        shared = {key: Columns(states, self.head, budget) for key, states in distinct.items()}
        self._columns = [shared.get(id(states)) for states in recorder.states]
        self._generator.manual_seed(self.config.seed)
        self._choices = [[] for _ in self._columns]
        if self.config.trace and recorder.positions is not None:
            self._grids = recorder.positions.grids()

    def _keep_choice(self, row: int, scores: Tensor, decided: Step | None) -> None:
        if decided is None:
            self._choices[row].append(None)
            return
        layers = self.recorder.layers
        choice = Choice(
            vision_state=decided.choice,
            tokens=self.recorder.states[row].shape[0] // len(layers),
            layers=layers,
            grids=self._grids[row] if self._grids else None,
            candidates=decided.vocabulary.shape[0],
            divergence=decided.divergence,
            plain_token=scores.argmax(),
            token=decided.scores.argmax(),
        )
        self._choices[row].append(choice)


@contextmanager
def attach(
    model: Model, config: ReVisiTConfig | None = None, *, vision_mask: Tensor | None = None
) -> Iterator[ReVisiTLogitsProcessor]:
    """Prepare a model of Transformers for ReVisiT: the value is a logits processor for `generate`.

        with revisit.attach(model, ReVisiTConfig(alpha=1e-3)) as processor:
            model.generate(**inputs, logits_processor=[processor])

    Transformers applies its own penalties (such as `repetition_penalty`) before the processors it
    is given, so with those the forks' `use_revisit=True` is the published order.

    Args:
        model: a causal vision-language model whose prompt holds its vision tokens.
        config: the settings; the published defaults if left out.
        vision_mask: (rows, prompt length) bool, true at the vision tokens, where the model's config
            cannot tell them.

    Raises:
        ValueError: a layer is out of range, or the model's decoder, LM head or vision tokens cannot
            be found; the message says what to pass.
    """
    processor = prepare(model, config if config is not None else ReVisiTConfig(), vision_mask)
    with processor.recorder:
        yield processor


def prepare(
    model: Model, config: ReVisiTConfig, vision_mask: Tensor | None, once: bool = False
) -> ReVisiTLogitsProcessor:
    """The logits processor of a model; its recorder hooks the model while it is entered."""
    head = lm_head(model)
    layers = resolve_layers(config.layers, len(decoder_layers(model)), is_tied(model))
    recorder = Recorder(model, layers, head.weight.device, vision_mask, once)
    return ReVisiTLogitsProcessor(recorder, head, config)
