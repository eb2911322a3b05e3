"""`enable`, `disable` and `attach`: every `generate` of a model decodes with a decoder's settings.

The class's `generate` runs as ever (greedy decoding, sampling, beams, streaming, stopping criteria,
caches), with the decoder as its first logits processor: see `entrances.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from revisit.config import (
    CODEConfig,
    DeCoConfig,
    DecoderConfig,
    DoLaConfig,
    ICDConfig,
    M3IDConfig,
    PAIConfig,
    ReVisiTConfig,
    RITUALConfig,
    SIDConfig,
    VCDConfig,
    VISTAConfig,
)
from revisit.core.head import LMHead
from revisit.transformers.blocks import changes, close_block, open_block
from revisit.transformers.contrastive import (
    CODELogitsProcessor,
    ICDLogitsProcessor,
    M3IDLogitsProcessor,
    RITUALLogitsProcessor,
    VCDLogitsProcessor,
)
from revisit.transformers.entrances import generate, install, is_enabled, remove, set_enabled
from revisit.transformers.generation import (
    DecoderLogitsProcessor,
    HiddenStatesLogitsProcessor,
    current_generation,
)
from revisit.transformers.layer_logits import DeCoLogitsProcessor, DoLaLogitsProcessor
from revisit.transformers.model_parts import Model
from revisit.transformers.pai import PAILogitsProcessor
from revisit.transformers.processor import ReVisiTLogitsProcessor
from revisit.transformers.refusals import refuse_open_batching
from revisit.transformers.sid import SIDLogitsProcessor
from revisit.transformers.steering import VISTALogitsProcessor

_DECODERS: dict[type, type[DecoderLogitsProcessor]] = {
    ReVisiTConfig: ReVisiTLogitsProcessor,
    VCDConfig: VCDLogitsProcessor,
    RITUALConfig: RITUALLogitsProcessor,
    M3IDConfig: M3IDLogitsProcessor,
    DoLaConfig: DoLaLogitsProcessor,
    CODEConfig: CODELogitsProcessor,
    ICDConfig: ICDLogitsProcessor,
    DeCoConfig: DeCoLogitsProcessor,
    VISTAConfig: VISTALogitsProcessor,
    PAIConfig: PAILogitsProcessor,
    SIDConfig: SIDLogitsProcessor,
}


def enable(
    model: Model,
    config: DecoderConfig | None = None,
    *,
    lm_head: LMHead | None = None,
    decoder: nn.Module | None = None,
) -> None:
    """Let every later call of the model's `generate` decode with ReVisiT, or with another decoder.

        revisit.enable(model, revisit.ReVisiTConfig(alpha=1e-3))
        model.generate(**inputs)

    This holds in every thread and for every caller: a pipeline, a harness, a server, a trainer. A
    second call changes the settings or the decoder. A copy of the model, also a pickled one, is
    enabled too.

    `generate` also takes `vision_mask`, (rows, prompt length) bool, true at the vision tokens, for
    a model whose config does not name them. With `config.trace` the output object's attribute
    `revisit_trace` has the steps of each sequence.

    A decoder with a second stream runs the model twice a step. For it `generate` takes
    `second_inputs`, which replace the inputs of the same names in the second run:

    - RITUAL needs the pixel values of the transformed images; VCD may take those of other noise.
    - CODE and ICD need the inputs of another prompt (`revisit.transformers.other_prompts`).
    - M3ID and PAI may take other `input_ids` and `attention_mask`; by default, the prompt without
      its vision tokens and the markers around them.

    Args:
        model: a causal vision-language model of Transformers whose prompt holds its vision tokens.
        config: the settings; their class says which decoder it is. The default is ReVisiT.
        lm_head, decoder: as for `ReVisiTLogitsProcessor`, if they cannot be found; only decoders
            that read hidden states use them.

    Raises:
        ValueError: a layer is out of range, or the model's decoder or LM head cannot be found; the
            message says what to pass. The model is not changed.
    """
    model = _unwrapped(model)
    processor = _processor(model, config, lm_head, decoder)
    with changes:
        if not is_enabled(model):
            install(model)
        set_enabled(model, processor)


def disable(model: Model) -> None:
    """Undo `enable`; a model that is not enabled stays as it is."""
    model = _unwrapped(model)
    with changes:
        if is_enabled(model):
            set_enabled(model, None)
            remove(model)


@contextmanager
def attach(
    model: Model,
    config: DecoderConfig | None = None,
    *,
    lm_head: LMHead | None = None,
    decoder: nn.Module | None = None,
) -> Iterator[Any]:
    """`enable` for the calls that this thread makes inside the block.

        with revisit.attach(model, revisit.ReVisiTConfig(trace=True)) as run:
            output = model.generate(**inputs)
        run.trace

    It does not hold in threads that the block starts: to stream from one, use `enable`. A generator
    or coroutine that keeps the block open has its decoder wherever it continues. Inside another
    `attach`, or with an enabled model, the innermost settings count. Arguments and errors are as
    for `enable`. The value of the block is the decoder's logits processor.
    """
    model = _unwrapped(model)
    processor = _processor(model, config, lm_head, decoder)
    with changes:
        install(model)
        block = open_block(processor, __name__)
    try:
        yield processor
    finally:
        with changes:
            close_block(block)
            remove(model)


# By model and seed, how many prompts `decode` has decoded: each call has a new processor.
_prompts: WeakKeyDictionary[nn.Module, dict[int, int]] = WeakKeyDictionary()


def decode(
    model: Model,
    config: ReVisiTConfig,
    *args: Any,
    lm_head: LMHead | None = None,
    decoder: nn.Module | None = None,
    **kwargs: Any,
) -> Any:
    """One call of the class's `generate` with ReVisiT, for code that replaces `generate`.

    It takes what `generate` takes, and `vision_mask`. Raises ValueError as `enable`, and where the
    settings ask for a decoding that ReVisiT cannot join.
    """
    original = partial(type(model).generate, model)
    outer = current_generation()
    if outer is not None and outer.processor.model is model and not outer.in_processors:
        # The model is also enabled, and its `generate` was replaced by the code that calls us.
        return original(*args, **kwargs)
    with attach(model, config, lm_head=lm_head, decoder=decoder) as processor:
        decoded = _prompts.setdefault(model, {})
        processor.prompts = decoded.get(config.seed, 0)
        output = generate(processor, original, args, kwargs, trace_returned=True)
        decoded[config.seed] = processor.prompts
        return output


def _processor(
    model: Model, config: DecoderConfig | None, lm_head: LMHead | None, decoder: nn.Module | None
) -> DecoderLogitsProcessor:
    """The logits processor that decodes by these settings."""
    refuse_open_batching(model)
    config = ReVisiTConfig() if config is None else config
    kind = _DECODERS.get(type(config))
    if kind is None:
        known = ", ".join(each.__name__ for each in _DECODERS)
        raise ValueError(f"config must be one of {known}, got {config!r}")
    if issubclass(kind, HiddenStatesLogitsProcessor):
        return kind(model, config, lm_head=lm_head, decoder=decoder)
    if lm_head is not None or decoder is not None:
        raise ValueError(f"{kind.name} reads only logits: leave out lm_head and decoder")
    return kind(model, config)


def _unwrapped(model: Model) -> Model:
    model = getattr(model, "_orig_mod", model)  # of a torch.compile'd one
    if not hasattr(type(model), "_get_logits_processor"):
        raise ValueError(
            f"{type(model).__name__} is no model of Transformers that generates: pass the model "
            "itself (of a PEFT model, model.get_base_model())"
        )
    return model
