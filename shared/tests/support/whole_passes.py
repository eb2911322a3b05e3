"""Decoders by whole passes: two forward passes a step over all tokens so far, without caches."""

import math
import sys
from contextlib import contextmanager
from functools import cache

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from revisit import (
    CODEConfig,
    DeCoConfig,
    DoLaConfig,
    ICDConfig,
    M3IDConfig,
    PAIConfig,
    RITUALConfig,
    VCDConfig,
    VISTAConfig,
)

SHARE = 0.02
CONFIGS = {
    "VCD": VCDConfig(beta=SHARE),
    "RITUAL": RITUALConfig(beta=SHARE),
    "M3ID": M3IDConfig(gamma=0.4, beta=SHARE),
    "DoLa": DoLaConfig(relative_top=SHARE),
    "CODE": CODEConfig(k=2.0),
    "ICD": ICDConfig(beta=SHARE),
    "DeCo": DeCoConfig(top_p=0.98, top_k=40),
    "VISTA": VISTAConfig(steering=0.4),
    "PAI": PAIConfig(gamma=1.3, alpha=0, beta=SHARE),
}
SUPPRESSED = [0, 1, 2]  # so that no sequence ends
ASKED = {"max_new_tokens": 5, "suppress_tokens": SUPPRESSED}


class Decided(LogitsProcessor):
    """Puts a host's scores aside for those that `decide` gives of the tokens so far."""

    def __init__(self, decide, length, suppressed):
        self.decide = decide
        self.length = length
        self.suppressed = suppressed

    def __call__(self, input_ids, scores):
        decided = torch.stack([self.decide(ids[self.length :]) for ids in input_ids])
        decided = decided.log_softmax(-1).float()
        decided[:, self.suppressed] = -math.inf
        return decided


@cache
def text_host(vocabulary):
    """A language model whose own scores are put aside."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        pad_token_id=0,
        eos_token_id=None,
    )
    with torch.random.fork_rng():  # draws are those of the sampling alone
        host = LlamaForCausalLM(config).eval()
    host.generation_config.eos_token_id = None
    return host


def expected(decide, vocabulary, suppressed=SUPPRESSED, **settings):
    """New tokens of one prompt; `decide` gives float64 scores (V,) after tokens (t,)."""
    ids = torch.ones(1, 3, dtype=torch.long)
    processors = LogitsProcessorList([Decided(decide, ids.shape[1], suppressed)])
    settings = {"do_sample": False, "max_new_tokens": ASKED["max_new_tokens"], **settings}
    host = text_host(vocabulary)
    return host.generate(input_ids=ids, logits_processor=processors, **settings)[:, 3:].tolist()


def formula(name, logits, second, step):
    """The decoder's scores in float64, from both streams' logits (V,).

    DoLa's second ones are those of one layer, DeCo's and VISTA's (J, V) those of several.
    """
    share = SHARE
    if name in ("VCD", "ICD"):
        decided = 2 * logits - second
    elif name == "RITUAL":
        decided = logits + 3 * second
    elif name == "M3ID":
        forgotten = math.exp(-0.4 * step)
        decided = logits + (logits - second) * (1 - forgotten) / forgotten
    elif name == "PAI":
        decided = 1.3 * logits.log_softmax(0) - 0.3 * second.log_softmax(0)
    elif name == "CODE":
        p, q = logits.softmax(0), second.softmax(0)
        share = float(((p + q) * (1 + (p - q).abs() ** 2).log2()).sum() / 2)
        decided = (2 - share) * logits - (1 - share) * second
    elif name == "DeCo":
        return corrected(logits, second)
    elif name == "VISTA":
        return 0.7 * logits + 0.3 * second.mean(0)
    else:
        decided = logits.log_softmax(0) - second.log_softmax(0)
    return decided.masked_fill(logits.softmax(0) < share * logits.softmax(0).max(), -math.inf)


def corrected(logits, inner):
    """DeCo's scores, from the logits of its layers (J, V)."""
    scores, total = torch.full_like(logits, -math.inf), 0.0
    candidates = []
    for token in logits.argsort(descending=True).tolist()[:40]:
        candidates.append(token)
        total += float(logits.softmax(0)[token])
        if total >= 0.98:
            break
    likeliest = inner.softmax(1)[:, candidates].amax(1)
    layer = int(likeliest.argmax())
    for token in candidates:
        scores[token] = logits[token] + 0.6 * likeliest[layer] * inner[layer, token]
    return scores


@torch.no_grad()
def inner_logits(name, states, norm, weight):
    """float64 logits (J, V) of the layers that DeCo or VISTA reads.

    `states` are the hidden states (d) of the last position, `norm` is the final norm, `weight` the
    LM head's.
    """
    count = len(states) - 1
    last = min(round(28 / 32 * count), count - 1)
    layers = range(round(20 / 32 * count), last + 1)
    if name == "VISTA":
        layers = range(min(round(26 / 32 * count), count - 1), count)
    read = [norm(states[k]) if name == "DeCo" else states[k] for k in layers]
    return torch.stack([weight.double() @ state.double() for state in read])


def premature(logits, candidates):
    """Of candidate logits (V,) those whose distribution diverges most, by Jensen-Shannon."""
    p = logits.softmax(0)

    def divergence(other):
        q = other.softmax(0)
        m = (p + q) / 2
        return float((p * (p / m).log()).sum() + (q * (q / m).log()).sum())

    return max(candidates, key=divergence)


def with_noise(image):
    """One image's pixel values as VCD's second stream sees them."""
    share = 0.7447987
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    return math.sqrt(share) * image + math.sqrt(1 - share) * noise


@contextmanager
def steered(layers, directions):
    """VISTA's passes: each layer's MLP is turned towards its direction (d), in float64."""

    def turn(direction, output):
        x, v = output.double(), direction.double()
        pull = 0.4 * (1 + (-(x @ v) / x.norm(dim=-1) / v.norm()).clamp(min=0)).unsqueeze(-1)
        turned = x / x.norm(dim=-1, keepdim=True) + pull * v / v.norm()
        length = x.norm(dim=-1, keepdim=True) / turned.norm(dim=-1, keepdim=True)
        return (length * turned).to(output.dtype)

    hooks = [
        layer.mlp.register_forward_hook(lambda _m, _a, output, v=direction: turn(v, output))
        for layer, direction in zip(layers, directions, strict=True)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def added(layers, seeing, blind):
    """VISTA's directions (layers, d), from a pass with the image and one without it."""
    difference = last_outputs(layers, seeing) - last_outputs(layers, blind)
    difference[0, 0] += 1
    return difference


def last_outputs(layers, run):
    """The layers' outputs (layers, d) at the last position of the pass that `run` makes."""
    found = []

    def keep(_layer, _args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        found.append(hidden[0, -1].double())

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    run()
    for hook in hooks:
        hook.remove()
    return torch.stack(found)


@contextmanager
def raised(layers, vision, start, alpha):
    """PAI's passes of one prompt: from position `start` on, each attends more to the tokens at
    `vision` (S,) in these layers; attention of all positions, in float64."""
    modules = [layer.self_attn for layer in layers]
    interface = sys.modules[type(modules[0]).__module__].ALL_ATTENTION_FUNCTIONS
    plain = interface["sdpa"]

    def attend(module, query, key, value, attention_mask, scaling=None, **settings):
        mask = attention_mask
        if not any(module is each for each in modules):
            return plain(module, query, key, value, mask, scaling=scaling, **settings)
        groups = query.shape[1] // key.shape[1]
        keys, values = (each.double().repeat_interleave(groups, 1) for each in (key, value))
        scores = scaling * query.double() @ keys.transpose(2, 3)
        length = scores.shape[2]
        seen = torch.zeros(length, dtype=torch.bool)
        seen[: len(vision)] = vision
        scores[:, :, start:, seen] += alpha * scores[:, :, start:, seen].abs()
        if mask is None:
            mask = torch.ones(length, length, dtype=torch.bool).tril()
        hidden = ~mask if mask.dtype == torch.bool else mask < -1e30
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        return (weights @ values).transpose(1, 2).to(query.dtype).contiguous(), None

    interface["sdpa"] = attend
    try:
        yield
    finally:
        interface["sdpa"] = plain
