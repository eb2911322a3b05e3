"""The requests of one worker: their vision states, chunk by chunk, then their sessions.

`before` and `after` a forward pass and at `refine` nothing may be raised: an error in a worker ends
the engine, and with it the requests of everybody. What goes wrong there is logged, and the requests
concerned fail (`failure.py`): a step that is plain is never handed out as one of ReVisiT.
"""

import logging
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from revisit.config import ReVisiTConfig
from revisit.core.columns import Cache
from revisit.core.layers import resolve_layers
from revisit.core.left_out import fill_left_out
from revisit.core.rows import refine
from revisit.core.session import Session
from revisit.vllm.admission import admitted_settings, asks, vision_positions
from revisit.vllm.failure import agreed
from revisit.vllm.head import check_head, is_tied, lm_head
from revisit.vllm.memory import Arena, put, rehearse, reserve
from revisit.vllm.runner import Runner, Span

log = logging.getLogger("vllm.revisit")

_IMPOSSIBLE = "the model's logits hold NaN, or are -inf for every token"


class Prompt:
    """A request that asks for ReVisiT.

    Attributes:
        positions: of its N vision tokens, ascending.
        arena: where their hidden states are kept.
        states: (J, N, d) those, layer by layer; None before the first is read.
        read: how many of the vision tokens were read, from the first on.
        session: made when the first token is chosen.
    """

    def __init__(self, config: ReVisiTConfig, positions: list[int], arena: Arena) -> None:
        self.config = config
        self.positions = positions
        self.arena = arena
        self.states: Tensor | None = None
        self.read = 0
        self.session: Session | None = None

    @property
    def complete(self) -> bool:
        """Whether all its vision tokens were read."""
        return self.read == len(self.positions)

    def record(self, span: Span, layers: list[Tensor]) -> None:
        """Keep the hidden states of those vision tokens that a pass has computed.

        Args:
            layers: J of (tokens, d), of all requests in the pass.
        """
        first = bisect_left(self.positions, span.start)
        last = bisect_left(self.positions, span.start + span.length)
        if first == last or first > self.read:  # what lies between was read elsewhere
            return
        if self.states is None:
            width = layers[0].shape[1]
            self.states = self.arena.take(len(layers), len(self.positions), width)
        shift = span.begin - span.start
        rows = put([place + shift for place in self.positions[first:last]], layers[0].device)
        for kept, layer in zip(self.states, layers, strict=True):
            kept[first:last] = layer.index_select(0, rows)
        self.read = max(self.read, last)

    def close(self) -> None:
        """It has ended."""
        if self.session is not None:
            self.session.close()
        if self.states is not None:
            self.arena.give(self.states)


class Serving:
    """What a worker keeps of its requests, in memory that is taken here, for all of them.

    Args:
        runner: the face of the worker's model runner, its model loaded.
        config: the engine's settings.

    Attributes:
        bytes: of that memory: `cache_bytes`, half for columns and half for vision states, and what
            is noted besides for each of `max_num_seqs` prompts, in the host's memory.
        reserved: on a GPU the half for columns, until the first request comes.
        asking: the requests with ReVisiT, from their first pass until vLLM says that they have
            ended: the same on all ranks.
        prompts: what is kept of them.
        lost: those of which a step went wrong, and why; they are about to fail.
        reading: those of which vision tokens are yet to be read.
        unfinished: those of which the pass that ran leaves tokens to read.
        latest: the requests of the latest step and their sessions, while none comes, goes or reads.

    Raises:
        ValueError: the model's LM head or inner layers cannot be read.
    """

    def __init__(self, runner: Runner, config: ReVisiTConfig) -> None:
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
        self._take_memory()
        self.asking: set[str] = set()
        self.prompts: dict[str, Prompt] = {}
        self.lost: dict[str, str] = {}
        self.reading: dict[str, Prompt] = {}
        self.unfinished: set[str] = set()
        self.latest: tuple[list[str], list[Session | None]] | None = None

    def _take_memory(self) -> None:
        # A column is as long as a prompt has vision states, and a state as wide as the LM head:
        # about as many tokens ever become plausible. So both get as much.
        half = self.config.cache_bytes // 2
        self.most = self.runner.runner.scheduler_config.max_num_seqs
        self.cache = Cache(self.head, half)
        self.arena = Arena(half, self.head.dtype, self.head.device)
        self.bytes = 2 * half + self.most * 8 * self.head.size
        self.reserved = reserve(half, self.head.device)
        log.info(
            "ReVisiT: %d MiB, with room for the vision states of %d tokens",
            self.bytes >> 20,
            self.arena.table.numel() // (len(self.layers) * self.head.width),
        )

    def rehearse(self) -> None:
        """A step of all requests, for vLLM to profile."""
        rehearse(self.head, self.config, self.most)

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
        self.latest = None
        for request in requests:
            self.lost.setdefault(request, why)

    def before(self, scheduled: Any) -> None:
        """Requests that end and that begin, before the pass that `scheduled` tells."""
        if scheduled.finished_req_ids or scheduled.scheduled_new_reqs:
            self.latest = None
        for request in self.asking & scheduled.finished_req_ids:
            self.asking.discard(request)
            self.lost.pop(request, None)
            self.reading.pop(request, None)
            if prompt := self.prompts.pop(request, None):
                prompt.close()
        for new in scheduled.scheduled_new_reqs:
            # One that is known goes on after a preemption: what was read of it holds.
            if asks(new.sampling_params) and new.req_id not in self.asking:
                self.asking.add(new.req_id)
                with self._losing([new.req_id]):
                    config = admitted_settings(new.sampling_params, self.config)
                    prompt = Prompt(config, vision_positions(new.mm_features), self.arena)
                    self.prompts[new.req_id] = self.reading[new.req_id] = prompt

    def after(self) -> None:
        """Keep what the pass that ran tells of prompts that are being read."""
        if not self.prompts:
            return
        with self._losing(self.asking):
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
                sessions = self._sessions(requests)
                if any(sessions):
                    with self._losing(
                        name for name, each in zip(requests, sessions, strict=True) if each
                    ):
                        return self._refine(logits, requests, sessions)
        return logits

    def _refine(
        self, logits: Tensor, requests: list[str], sessions: list[Session | None]
    ) -> Tensor:
        try:
            refined, _ = refine(logits, sessions)
        except ValueError:
            good = (~logits.isnan().any(1) & ~logits.isneginf().all(1)).tolist()
            kept = [each if fine else None for each, fine in zip(sessions, good, strict=True)]
            if kept == sessions:
                raise
            each = zip(requests, sessions, kept, strict=True)
            self._lose((name for name, had, has in each if had is not has), _IMPOSSIBLE)
            sessions = kept
            refined, _ = refine(logits, sessions)
        return filled(refined, logits, sessions)

    def _sessions(self, requests: list[str]) -> list[Session | None]:
        """The sessions of the rows of a step; made anew only where something has changed."""
        if self.latest is not None and self.latest[0] == requests and not self.unfinished:
            return self.latest[1]
        sessions = [self._session(request) for request in requests]
        self.latest = None if self.unfinished else (list(requests), sessions)
        return sessions

    def _session(self, request: str) -> Session | None:
        """The session of a request that chooses a token now; None where it decodes plainly."""
        prompt = self.prompts.get(request)
        if prompt is None or request in self.unfinished or request in self.lost:
            return None
        if prompt.session is None:
            self.reserved = None  # the columns take it
            if not prompt.complete or prompt.states is None:
                self._lose([request], "its vision tokens were not all read here")
                return None
            with self._losing([request]):
                prompt.session = Session(prompt.states.flatten(0, 1), self.cache, prompt.config)
        return prompt.session


def filled(refined: Tensor, logits: Tensor, sessions: Sequence[Session | None]) -> Tensor:
    """What processors after ReVisiT are given: finite scores beyond V_cons, written in place.

    Row by row: temporaries of all rows at once would take more memory than all else does.
    """
    for row, session in enumerate(sessions):
        if session is not None:
            each = slice(row, row + 1)
            refined[each] = fill_left_out(refined[each], logits[each])
    return refined


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
