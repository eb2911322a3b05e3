"""The requests of one worker: their vision states, chunk by chunk, then their steps.

`before` and `after` a forward pass and at `refine` nothing may be raised: an error in a worker ends
the engine, and with it the requests of everybody. What goes wrong there is logged, and the requests
concerned fail (`failure.py`): a step that is plain is never handed out as one of ReVisiT.
"""

import logging
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from revisit.config import ReVisiTConfig
from revisit.core.kernels import available
from revisit.core.layers import resolve_layers
from revisit.core.session import seeded
from revisit.vllm.admission import admitted_settings, asks, vision_positions
from revisit.vllm.failure import Faults, agreed
from revisit.vllm.head import check_head, is_tied, lm_head
from revisit.vllm.memory import longest_prompt, put
from revisit.vllm.plain import Plain
from revisit.vllm.runner_v1 import RunnerV1
from revisit.vllm.runner_v2 import RunnerV2
from revisit.vllm.span import Span

if TYPE_CHECKING:
    from revisit.vllm import kernels  # it imports Triton

    Steps = Plain | kernels.Kernels

log = logging.getLogger("vllm.revisit")


class Prompt:
    """A request that asks for ReVisiT.

    Attributes:
        positions: of its N vision tokens, ascending.
        read: how many of them were read, from the first on.
        opened: what `steps` calls it; None before the first is read, and after a preemption,
            which gives up what was read.
    """

    def __init__(self, config: ReVisiTConfig, positions: list[int], steps: "Steps") -> None:
        self.config = config
        self.positions = positions
        self.steps = steps
        self.generator = seeded(config, 0)
        self.opened: Any = None
        self.read = 0

    @property
    def complete(self) -> bool:
        """Whether all its vision tokens were read."""
        return self.read == len(self.positions)

    def record(self, span: Span, layers: list[Tensor]) -> None:
        """Keep the hidden states of the vision tokens that a pass has computed.

        Args:
            layers: J of (tokens, d), of all requests in the pass.
        """
        first = bisect_left(self.positions, span.start)
        last = bisect_left(self.positions, span.start + span.length)
        if first == last or first > self.read:  # what lies between was read elsewhere
            return
        if self.opened is None:
            count = len(layers) * len(self.positions)
            self.opened = self.steps.open(count, self.config, self.generator)
        states = self.steps.states(self.opened).view(len(layers), len(self.positions), -1)
        shift = span.begin - span.start
        rows = put([place + shift for place in self.positions[first:last]], layers[0].device)
        for kept, layer in zip(states, layers, strict=True):
            kept[first:last] = layer.index_select(0, rows)
        self.read = max(self.read, last)
        if self.complete:
            self.steps.start(self.opened)

    def close(self) -> None:
        """It has ended, or begins anew."""
        if self.opened is not None:
            self.steps.close(self.opened)
        self.opened, self.read = None, 0


class Serving:
    """What a worker keeps of its requests, in memory that is taken here, for all of them.

    Args:
        runner: reads the worker's model runner, its model loaded.
        config: the engine's settings.

    Attributes:
        steps: where the prompts are kept, and what computes their steps.
        asking: the requests with ReVisiT, from their first pass until vLLM says that they have
            ended: the same on all ranks.
        prompts: what is kept of them.
        reading: requests of which vision tokens are yet to be read.
        unfinished: requests of which the pass that ran leaves tokens to read.
        lost: requests of which a step went wrong, and why; they are about to fail.
        faults: of the rows of the latest pass; on their way to the host.

    Raises:
        ValueError: the model's LM head or inner layers cannot be read.
    """

    def __init__(self, runner: RunnerV1 | RunnerV2, config: ReVisiTConfig) -> None:
        model = runner.runner.get_model()
        self.runner = runner
        self.config = config
        self.head = lm_head(model)
        check_head(self.head, model)
        count = runner.runner.model_config.hf_text_config.num_hidden_layers
        self.layers = resolve_layers(config.layers, count, is_tied(model))
        self.inner = sorted({layer for layer in self.layers if layer != count})
        if self.inner:
            _read_inner(runner.runner, model, self.inner)
        self.steps = self._steps()
        self.asking: set[str] = set()
        self.prompts: dict[str, Prompt] = {}
        self.reading: dict[str, Prompt] = {}
        self.unfinished: set[str] = set()
        self.lost: dict[str, str] = {}
        self.faults: Faults = []

    def _steps(self) -> "Steps":
        config = self.runner.runner.vllm_config
        prompts, longest = config.scheduler_config.max_num_seqs, longest_prompt(config, self.config)
        steps: Steps
        if available(self.head):
            from revisit.vllm.kernels import Kernels

            rows = prompts * (1 + config.num_speculative_tokens)
            most = min(longest, config.model_config.max_model_len * len(self.layers))
            steps = Kernels(self.head, self.config, prompts, rows, most)
        else:
            steps = Plain(self.head, self.config, prompts)
        log.info(
            "ReVisiT: %d MiB, with room for the vision states of %d tokens at a time; steps by %s",
            self.config.cache_bytes >> 20,
            longest // len(self.layers),
            steps,
        )
        return steps

    def lost_on_any_rank(self) -> dict[str, str]:
        """The requests that lost a step, and why; asked after each step, on all ranks."""
        if self.asking:
            self.lost.update(agreed(self.lost))
        return dict(self.lost)  # it may be read by another thread

    @contextmanager
    def _losing(self, requests: Iterable[str]) -> Iterator[None]:
        """What goes wrong inside is the end of these requests, and not of the engine."""
        try:
            yield
        except Exception as error:
            concerned = sorted(requests)
            log.exception("ReVisiT: an error, by which these requests fail: %s", concerned)
            self._lose(concerned, f"{type(error).__name__}: {error}")

    def _lose(self, requests: Iterable[str], why: str) -> None:
        for request in requests:
            self.lost.setdefault(request, why)

    def before(self, scheduled: Any) -> None:
        """Requests that end, give way and begin, before the pass that `scheduled` describes."""
        self.faults = []
        for request in self.asking & scheduled.finished_req_ids:
            self.asking.discard(request)
            self.lost.pop(request, None)
            self.reading.pop(request, None)
            if prompt := self.prompts.pop(request, None):
                prompt.close()
        for request in self.prompts.keys() & (scheduled.preempted_req_ids or ()):
            prompt = self.reading[request] = self.prompts[request]
            prompt.close()
        for new in scheduled.scheduled_new_reqs:
            # One that is known goes on after a preemption.
            if asks(new.sampling_params) and new.req_id not in self.asking:
                self.asking.add(new.req_id)
                with self._losing([new.req_id]):
                    config = admitted_settings(new.sampling_params, self.config)
                    prompt = Prompt(config, vision_positions(new.mm_features), self.steps)
                    self.prompts[new.req_id] = self.reading[new.req_id] = prompt

    def after(self) -> None:
        """Keep what the pass that ran has of prompts that are being read."""
        if not self.prompts:
            return
        with self._losing(self.asking):
            self.runner.ran()
            self.unfinished = self.runner.unfinished()
            if self.reading:
                self._read()

    def _read(self) -> None:
        last, inner = self.runner.hidden_states()
        read = dict(zip(self.inner, inner, strict=True))
        layers = [read.get(layer, last) for layer in self.layers]
        for span in self.runner.spans():
            if prompt := self.reading.get(span.request):
                with self._losing([span.request]):
                    prompt.record(span, layers)
                if prompt.complete or span.request in self.lost:
                    del self.reading[span.request]

    def refine(self, logits: Tensor, context: Any) -> Tensor:
        """Logits (rows, V) of all requests; refined, float32, where one of them asks for it."""
        if self.prompts:
            with self._losing(self.asking):
                requests = self.runner.rows(logits.shape[0], context)
                rows = [self._opened(request) for request in requests]
                refining = {
                    name for name, row in zip(requests, rows, strict=True) if row is not None
                }
                if refining:
                    with self._losing(refining):
                        refined, faults = self.steps.refine(logits, rows)
                        self.faults.append((requests, faults))
                        return refined
        return logits

    def _opened(self, request: str) -> Any:
        """The prompt of a request that chooses a token now; None where it decodes plainly."""
        prompt = self.prompts.get(request)
        if prompt is None or request in self.unfinished or request in self.lost:
            return None
        if not prompt.complete:
            self._lose([request], "its vision tokens were not all read here")
            return None
        return prompt.opened


def _read_inner(runner: Any, model: Any, layers: list[int]) -> None:
    """Let the model return the hidden states of inner layers too, as EAGLE-3 has it do."""
    name = type(model).__name__
    if not hasattr(model, "set_aux_hidden_state_layers"):
        raise ValueError(
            f"{name} gives its last hidden state alone in vLLM: choose layers='last' for ReVisiT"
        )
    if runner.use_aux_hidden_state_outputs:
        raise ValueError(
            "a speculative decoder reads hidden states of inner layers already: choose "
            "layers='last' for ReVisiT, or another speculative decoder"
        )
    model.set_aux_hidden_state_layers(tuple(layers))
    runner.use_aux_hidden_state_outputs = True
