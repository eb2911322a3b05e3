"""Open `attach` blocks, and which of them a call is inside."""

import inspect
import threading
from contextvars import ContextVar
from types import FrameType
from typing import NamedTuple

from revisit.transformers.generation import DecoderLogitsProcessor


class Block(NamedTuple):
    """An open `attach` block."""

    processor: DecoderLogitsProcessor
    frame: FrameType  # of the code inside it, which may continue in another context


# The open blocks of all threads, the innermost last, and those opened by this thread (or task).
_blocks: list[Block] = []
_opened: ContextVar[tuple[Block, ...]] = ContextVar("opened", default=())

# Held while models and blocks change. A generator that is garbage collected closes its block
# anywhere, also while its thread holds the lock.
changes = threading.RLock()


def open_block(processor: DecoderLogitsProcessor, opener: str) -> Block:
    """Open a block for the code that called the module `opener`."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") in (__name__, opener, "contextlib"):
        frame = frame.f_back
    assert frame is not None
    block = Block(processor, frame)
    with changes:
        _blocks.append(block)
    _opened.set((*(each for each in _opened.get() if each in _blocks), block))
    return block


def close_block(block: Block) -> None:
    """Close a block, maybe in another context than that in which it was opened."""
    _opened.set(tuple(each for each in _opened.get() if each is not block))
    with changes:
        _blocks.remove(block)


def attached_processors() -> list[DecoderLogitsProcessor]:
    """The processors of the blocks that this thread opened, or that the running code is inside;
    the innermost first."""
    blocks, opened = tuple(_blocks), _opened.get()  # other threads open and close some
    inside = [block for block in blocks if block in opened]
    frame = inspect.currentframe() if len(inside) < len(blocks) else None
    while frame is not None:
        inside += [block for block in blocks if block.frame is frame and block not in inside]
        frame = frame.f_back
    inside.sort(key=blocks.index)
    return [block.processor for block in reversed(inside)]
