"""Records the hidden states of the vision tokens during prefill."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from revisit.core.head import Head
from revisit.transformers.model_parts import Decoder


class _Eager:
    """No compiled graph runs while anything is recorded: it would run without the hooks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._stance: Any = None

    def __enter__(self) -> None:
        with self._lock:
            set_stance = getattr(getattr(torch, "compiler", None), "set_stance", None)
            if not self._users and set_stance is not None:  # PyTorch 2.6
                self._stance = set_stance("force_eager")
            self._users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and self._stance is not None:
                self._stance.__exit__(None, None, None)
                self._stance = None


eager = _Eager()


@contextmanager
def layer_inputs(
    decoder: Decoder, active: Callable[[], bool], keep: Callable[[int, Tensor], None]
) -> Iterator[None]:
    """Call `keep(k, hidden)` with hidden states 0 to n - 1 of each pass of the decoder.

    They are counted as Transformers counts its `hidden_states`: number k belongs to the k-th call
    of a layer, whichever layer that is.

    Args:
        active: whether a pass that runs now belongs to the generation.

    Raises:
        ValueError: in a pass that does not call n layers, so that the numbers mean something else.
    """
    calls = 0
    returned: Tensor | None = None

    def start(_module: nn.Module, _args: Any) -> None:
        nonlocal calls
        if active():
            calls = 0

    # kwargs=None: where one thread takes a hook off while another is about to call it, PyTorch no
    # longer finds that it was to get keyword arguments.
    def before(_module: nn.Module, args: Any, kwargs: Any = None) -> None:
        nonlocal calls
        if active():
            hidden = args[0] if args else kwargs["hidden_states"]
            reported = returned if decoder.reports_outputs and calls else None
            if calls < decoder.depth:
                keep(calls, hidden if reported is None else reported)
            calls += 1

    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        nonlocal returned
        if active():
            # Not copied: Transformers also reports what is added to it in place later.
            returned = output[0] if isinstance(output, tuple) else output

    def end(module: nn.Module, _args: Any, _output: Any) -> None:
        nonlocal returned
        returned = None
        if active() and calls != decoder.depth:
            raise ValueError(
                f"{type(module).__name__} called {calls} layers in a pass, not {decoder.depth}, so "
                "that the numbers of its inner hidden states are not known: choose layers='last'. "
                "Where the layers are compiled, take torch.compile off them, or use PyTorch 2.6 or "
                "newer"
            )

    with ExitStack() as undo:
        undo.callback(decoder.module.register_forward_pre_hook(start).remove)
        undo.callback(decoder.module.register_forward_hook(end).remove)
        for layer in dict.fromkeys(decoder.layers):
            undo.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
            undo.callback(layer.register_forward_hook(after).remove)
        yield


def product_dtype(like: Tensor, dtype: torch.dtype) -> torch.dtype | None:
    """The dtype that mixed precision, as set here, gives a product of `dtype`; None: the same."""
    one = like.new_ones((1, 1), dtype=dtype)
    made = torch.mm(one, one).dtype
    return None if made == dtype else made


@dataclass(eq=False)
class Recorder:
    """Keeps the vision positions of the chosen layers of one prefill, in one thread.

    A context manager: it hooks the chosen layers until the prompts have been read, in one pass or
    in chunks, and takes the hooks off then. On leaving, also by an exception, no hook is left.

    Args:
        decoder: the text decoder.
        logits_modules: modules whose forward may return the logits.
        layers: indices of hidden states; 0 is the embedding, n the output after the final norm.
        mask: (P, S) bool, true at the vision tokens of the P prompts. The decoder may read each
            prompt several times, in neighbouring rows (beams).
        head: the LM head, in whose dtype and on whose device the states are kept.

    Attributes:
        counts: N, how many vision tokens each prompt has.
        states: for each prompt, (len(layers) * N, d) hidden states, layer by layer.
        rows: how many rows of the decoder each prompt has.
        last: (rows, d) the decoder's output at the last position of the prompts.
        logits: (rows, V) the model's logits there, in the dtype that they were computed in.
        returned_tuple: whether the model returned a tuple, whose parts have no names.
    """

    decoder: Decoder
    logits_modules: list[nn.Module]
    layers: tuple[int, ...]
    mask: Tensor
    head: Head

    def __post_init__(self) -> None:
        self.rows = 1
        self.counts: list[int] = self.mask.sum(1).tolist()
        self.states: list[Tensor] = []
        self.last: Tensor | None = None
        self.logits: Tensor | None = None
        self.returned_tuple = False
        # For each vision token, which one it is among all of them, prompt by prompt.
        self._numbers = self.mask.flatten().cumsum(0).view_as(self.mask) - 1
        self._seen = 0  # positions of the prompts
        # Of the pass that runs: the rows and positions of its vision tokens, their numbers, and the
        # layers kept of it so far.
        self._read_at: tuple[Tensor, Tensor]
        self._stored_at: Tensor
        self._stored: set[int] = set()
        self._buffer: Tensor | None = None  # (layers, vision tokens of all prompts, d)
        self._precision: torch.dtype | None = None
        self._undo = ExitStack()
        self._thread = 0

    def __enter__(self) -> "Recorder":
        self._thread = threading.get_ident()
        with ExitStack() as undo:
            undo.enter_context(eager)
            if min(self.layers) < self.decoder.depth:
                undo.enter_context(layer_inputs(self.decoder, self._active, self._keep))
            module = self.decoder.module
            undo.callback(module.register_forward_hook(self._after_pass).remove)
            for module in self.logits_modules:
                undo.callback(module.register_forward_hook(self._keep_logits).remove)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.finish()

    def finish(self) -> None:
        """Take every hook off."""
        self._undo.close()

    @property
    def done(self) -> bool:
        """Whether the whole prompts were read, and answered with logits."""
        return self._seen == self.mask.shape[1] and self.logits is not None

    def _active(self) -> bool:
        """Whether it is this generation that runs the model: others may at the same time."""
        return threading.get_ident() == self._thread and not self.done

    def _after_pass(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if not self._active():
            return
        final: Tensor = output[0]
        self._keep(self.decoder.depth, final)
        self._stored.clear()
        self._seen += final.shape[1]
        if self._seen == self.mask.shape[1]:
            self.last = final[:, -1].detach()
            self._precision = product_dtype(final, self.head.dtype)
            assert self._buffer is not None
            self.states = [each.flatten(0, 1) for each in torch.split(self._buffer, self.counts, 1)]
            self._buffer = None

    def _keep(self, layer: int, hidden: Tensor) -> None:
        """Keep the vision positions of a pass over the next positions of the prompts."""
        if layer not in self.layers:
            return
        if hidden.ndim != 3 or hidden.shape[2] != self.head.width:
            # Several streams, in a further dimension or side by side.
            last = layer == self.decoder.depth
            raise ValueError(
                f"hidden state {layer} of {type(self.decoder.module).__name__} has shape "
                f"{tuple(hidden.shape)}, not (rows, positions, {self.head.width}), so the LM head "
                "cannot read it: "
                + ("pass decoder, whose output it reads" if last else "choose layers='last'")
            )
        prompts, length = self.mask.shape
        end = self._seen + hidden.shape[1]
        if hidden.shape[0] % prompts or end > length:
            raise ValueError(
                f"the vision tokens were located in prompts of shape ({prompts}, {length}), but "
                f"the decoder reads {tuple(hidden.shape[:2])} after {self._seen} positions: pass "
                "vision_mask for the sequence that it reads"
            )
        self.rows = hidden.shape[0] // prompts
        if self._buffer is None:
            shape = (len(self.layers), sum(self.counts), hidden.shape[2])
            self._buffer = torch.empty(shape, dtype=self.head.dtype, device=self.head.device)
        if not self._stored:
            vision = self.mask[:, self._seen : end]
            # Rows of one prompt hold the same: the first of each is kept.
            row, column = vision.nonzero().to(hidden.device).unbind(1)
            self._read_at = (row * self.rows, column)
            self._stored_at = self._numbers[:, self._seen : end][vision].to(self.head.device)
        row, column = (index.to(hidden.device) for index in self._read_at)
        kept = hidden.detach()[row, column].to(self._buffer)
        for index, chosen in enumerate(self.layers):
            if chosen == layer:
                self._buffer[index].index_copy_(0, self._stored_at, kept)
        self._stored.add(layer)

    def _keep_logits(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if self._seen == self.mask.shape[1] and self._active():
            logits = getattr(output, "logits", None)
            self.returned_tuple = isinstance(output, tuple)
            if isinstance(logits, Tensor):
                self.logits = logits[:, -1].detach().to(self._precision)
                self.finish()
