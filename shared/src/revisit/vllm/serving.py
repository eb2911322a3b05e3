"""The requests of one worker: their vision states, chunk by chunk, then their steps.

An error in a worker ends the engine, and with it the requests of everybody, so that nothing may be
raised around a forward pass. What goes wrong here is logged, and the requests concerned fail
(`failure.py`): a plain step is never returned as one of ReVisiT.
"""

import logging
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from revisit.config import ReVisiTConfig
from revisit.core.kernels import available
from revisit.core.layers import resolve_layers
from revisit.core.session import seeded
from revisit.vllm.admission import admitted_settings, asks, vision_positions
from revisit.vllm.failure import Faults, failed_on_any_rank
from revisit.vllm.head import check_head, is_tied, lm_head
from revisit.vllm.memory import longest_prompt
from revisit.vllm.pytorch_steps import PyTorchSteps
from revisit.vllm.runners import Chunk, RunnerV1

if TYPE_CHECKING:
    from revisit.vllm.kernel_steps import KernelSteps  # it imports Triton

    Steps = PyTorchSteps | KernelSteps

log = logging.getLogger("vllm.revisit")


class Prompt:
    """A request that asks for ReVisiT.

    Attributes:
        positions: of its N vision tokens, ascending.
        recorded: how many of them are recorded, from the first on.
        opened: what `steps` calls it; None before the first is recorded, and after a preemption,
            which gives up what was recorded.
    """

    def __init__(self, config: ReVisiTConfig, positions: list[int], steps: "Steps") -> None:
        self.config, self.positions, self.steps = config, positions, steps
        self.generator = seeded(config, 0)
        self.opened: Any = None
        self.recorded = 0

    @property
    def complete(self) -> bool:
        """Whether all its vision tokens are recorded."""
        return self.recorded == len(self.positions)

    def record(self, chunk: Chunk, layers: list[Tensor]) -> None:
        """Keep the hidden states of the vision tokens that a pass has computed.

        Args:
            layers: J of (tokens, d), of all requests in the pass.
        """
        first = bisect_left(self.positions, chunk.start)
        last = bisect_left(self.positions, chunk.start + chunk.length)
        if first == last or first > self.recorded:  # what lies between was computed elsewhere
            return
        if self.opened is None:
            count = len(layers) * len(self.positions)
            self.opened = self.steps.open(count, self.config, self.generator)
        states = self.steps.states(self.opened).view(len(layers), len(self.positions), -1)
        shift = chunk.row - chunk.start
        rows = [position + shift for position in self.positions[first:last]]
        index = _to_device(rows, layers[0].device)
        for of_layer, layer in zip(states, layers, strict=True):
            of_layer[first:last] = layer.index_select(0, index)
        self.recorded = max(self.recorded, last)
        if self.complete:
            self.steps.start(self.opened)

    def close(self) -> None:
        """It has ended, or begins anew."""
        if self.opened is not None:
            self.steps.close(self.opened)
        self.opened, self.recorded = None, 0


class Serving:
    """The requests of a worker with ReVisiT, in memory that is taken here, for all of them.

    Args:
        runner: reads the worker's model runner, its model loaded.
        config: the engine's settings.

    Attributes:
        steps: keeps the prompts, and computes their steps.
        active: the requests with ReVisiT, from their first pass until vLLM says that they have
            ended: the same on all ranks.
        prompts: what is kept of them.
        recording: prompts of which vision tokens are yet to be recorded.
        unfinished: requests of which the latest pass leaves prompt tokens.
        failed: requests that lost a step, and why; they are about to end.
        faults: of the rows of the latest pass; on their way to the host.

    Raises:
        ValueError: the model's LM head or inner layers cannot be read.
    """

    def __init__(self, runner: RunnerV1, config: ReVisiTConfig) -> None:
        model = runner.runner.get_model()
        self.runner = runner
        self.config = config
        self.head = lm_head(model)
        check_head(self.head, model)
        count = runner.runner.model_config.hf_text_config.num_hidden_layers
        self.layers = resolve_layers(config.layers, count, is_tied(model))
        self.inner = sorted({layer for layer in self.layers if layer != count})
        if self.inner:
            _return_inner_layers(runner.runner, model, self.inner)
        self.steps = self._steps()
        self.active: set[str] = set()
        self.prompts: dict[str, Prompt] = {}
        self.recording: dict[str, Prompt] = {}
        self.unfinished: set[str] = set()
        self.failed: dict[str, str] = {}
        self.faults: Faults = []

    def _steps(self) -> "Steps":
        config = self.runner.runner.vllm_config
        prompts, longest = config.scheduler_config.max_num_seqs, longest_prompt(config, self.config)
        steps: Steps
        if available(self.head):
            from revisit.vllm.kernel_steps import KernelSteps

            rows = prompts * (1 + config.num_speculative_tokens)
            most = min(longest, config.model_config.max_model_len * len(self.layers))
            steps = KernelSteps(self.head, self.config, prompts, rows, most)
        else:
            steps = PyTorchSteps(self.head, self.config, prompts)
        log.info(
            "ReVisiT: %d MiB, with room for the vision states of %d tokens at a time; steps by %s",
            self.config.cache_bytes >> 20,
            longest // len(self.layers),
            steps,
        )
        return steps

    def before_pass(self, scheduled: Any) -> None:
        """Requests that end, are preempted or begin with the pass that `scheduled` describes."""
        self.faults = []
        for request in self.active & scheduled.finished_req_ids:
            self.active.discard(request)
            self.failed.pop(request, None)
            self.recording.pop(request, None)
            if prompt := self.prompts.pop(request, None):
                prompt.close()
        for request in self.prompts.keys() & (scheduled.preempted_req_ids or ()):
            prompt = self.recording[request] = self.prompts[request]
            prompt.close()
        for new in scheduled.scheduled_new_reqs:
            # One that is active goes on after a preemption.
            if asks(new.sampling_params) and new.req_id not in self.active:
                self.active.add(new.req_id)
                with self._failing([new.req_id]):
                    config = admitted_settings(new.sampling_params, self.config)
                    prompt = Prompt(config, vision_positions(new.mm_features), self.steps)
                    self.prompts[new.req_id] = self.recording[new.req_id] = prompt

    def after_pass(self) -> None:
        """Record what the pass that ran has computed of vision tokens."""
        if not self.prompts:
            return
        with self._failing(self.active):
            self.runner.after_pass()
            self.unfinished = self.runner.unfinished()
            if self.recording:
                self._record()

    def _record(self) -> None:
        last, inner = self.runner.hidden_states()
        by_layer = dict(zip(self.inner, inner, strict=True))
        layers = [by_layer.get(layer, last) for layer in self.layers]
        for chunk in self.runner.chunks():
            if prompt := self.recording.get(chunk.request):
                with self._failing([chunk.request]):
                    prompt.record(chunk, layers)
                if prompt.complete or chunk.request in self.failed:
                    del self.recording[chunk.request]

    def refine(self, logits: Tensor, context: Any) -> Tensor:
        """Logits (rows, V) of all requests; refined, float32, where one of them asks for it."""
        if self.prompts:
            with self._failing(self.active):
                requests = self.runner.requests(logits.shape[0], context)
                rows = [self._opened(request) for request in requests]
                each = zip(requests, rows, strict=True)
                if refining := {request for request, row in each if row is not None}:
                    with self._failing(refining):
                        refined, faults = self.steps.refine(logits, rows)
                        self.faults.append((requests, faults))
                        return refined
        return logits

    def _opened(self, request: str) -> Any:
        """The opened prompt of a request that chooses a token; None where it decodes plainly."""
        prompt = self.prompts.get(request)
        if prompt is None or request in self.unfinished or request in self.failed:
            return None
        if not prompt.complete:
            self._fail([request], "its vision tokens were not all read here")
            return None
        return prompt.opened

    def failed_on_any_rank(self) -> dict[str, str]:
        """The requests that lost a step, and why; asked after each step, on all ranks."""
        if self.active:
            self.failed.update(failed_on_any_rank(self.failed))
        return dict(self.failed)  # it may be read by another thread

    @contextmanager
    def _failing(self, requests: Iterable[str]) -> Iterator[None]:
        """An error inside fails these requests, and not the engine."""
        try:
            yield
        except Exception as error:
            concerned = sorted(requests)
            log.exception("ReVisiT: an error, by which these requests fail: %s", concerned)
            self._fail(concerned, f"{type(error).__name__}: {error}")

    def _fail(self, requests: Iterable[str], why: str) -> None:
        for request in requests:
            self.failed.setdefault(request, why)


def _to_device(values: list[int], device: torch.device) -> Tensor:
    """Integers of the host as int64 on a device, without waiting for it."""
    pinned = device.type == "cuda"
    tensor = torch.tensor(values, dtype=torch.int64, device="cpu", pin_memory=pinned)
    return tensor.to(device, non_blocking=True)


def _return_inner_layers(runner: Any, model: Any, layers: list[int]) -> None:
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
