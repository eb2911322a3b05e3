"""Decoders by whole passes: two forward passes a step over all tokens so far, without caches."""

import math
import sys
from contextlib import contextmanager, nullcontext
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
from revisit.transformers.model_parts import is_tied, text_decoder

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


# What the second streams read.
SECOND = {
    "VCD": "noisy",
    "RITUAL": "transformed",
    "M3ID": "text",
    "PAI": "text",
    "CODE": "rewritten",
    "ICD": "rewritten",
    "SID": "first",
}


class Reference:
    """A decoder of one prompt, by whole passes of another copy of the model.

    Args:
        model: what makes the passes.
        name: of the decoder.
        image: whether the prompt has one.
    """

    def __init__(self, model, name, image):
        self.model = model
        self.name = name
        self.image = image
        self.decoder = text_decoder(model)
        self.weight = model.get_output_embeddings().weight.double()
        self.directions = None  # VISTA's

    def run(self, stream, tokens):
        """The output with hidden states after a stream's prompt and then `tokens` (t,).

        The stream is "first" or one of `SECOND`.
        """
        raise NotImplementedError

    @torch.no_grad()
    def scores(self, tokens):
        """The decoder's float64 scores (V,) after tokens (t,)."""
        with self.changes("first"):
            output = self.run("first", tokens)
        logits = output.logits[0, -1].double()
        if self.name in SECOND:
            with self.changes("second"):
                second = self.run(SECOND[self.name], tokens).logits[0, -1].double()
        else:
            second = self.layer_logits(logits, [state[0, -1] for state in output.hidden_states])
        return formula(self.name, logits, second, len(tokens))

    def changes(self, stream):
        """What the decoder does in a pass: VISTA, where there is an image."""
        if self.name != "VISTA" or not self.image:
            return nullcontext()
        layers, nothing = self.decoder.layers, torch.zeros(0, dtype=torch.long)
        if self.directions is None:
            self.directions = added(
                layers, lambda: self.run("first", nothing), lambda: self.run("text", nothing)
            )
        return steered(layers, self.directions)

    def layer_logits(self, logits, states):
        """float64 logits (J, V) of the layers that DeCo or VISTA reads; for DoLa (V,), of the one
        that diverges most. `states` are the hidden states (d) of the last position."""
        count = len(self.decoder.layers)
        if self.name.startswith("DoLa"):
            start = 2 if is_tied(self.model) else 0
            layers = range(start, max(1, count // 2) + (start == 2), 2)
            if self.name == "DoLa, high":
                layers = range(count // 2, count, 2)
            return premature(logits, [self.weight @ states[k].double() for k in layers])
        last = min(round(28 / 32 * count), count - 1)
        layers = range(round(20 / 32 * count), last + 1)
        if self.name == "VISTA":
            layers = range(min(round(26 / 32 * count), count - 1), count)
        norm = self.decoder.module.norm if self.name == "DeCo" else torch.nn.Identity()
        return torch.stack([self.weight @ norm(states[k]).double() for k in layers])

    def generate(self, suppressed=SUPPRESSED, **settings):
        """New tokens of each row of the prompt."""
        ids = torch.ones(1, 3, dtype=torch.long)
        processors = LogitsProcessorList([Decided(self.scores, ids.shape[1], suppressed)])
        settings = {"do_sample": False, "max_new_tokens": ASKED["max_new_tokens"], **settings}
        host = text_host(len(self.weight))
        return host.generate(input_ids=ids, logits_processor=processors, **settings)[:, 3:].tolist()


class Decided(LogitsProcessor):
    """Replaces a host's scores by what `decide` gives for the tokens so far."""

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
    """A language model whose scores are replaced."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        pad_token_id=0,
        eos_token_id=None,
    )
    with torch.random.fork_rng():  # so that only the sampling draws
        host = LlamaForCausalLM(config).eval()
    host.generation_config.eos_token_id = None
    return host


def formula(name, logits, second, step):
    """The decoder's scores in float64, from both streams' logits (V,).

    DoLa's second logits are of one layer, DeCo's and VISTA's (J, V) of several layers.
    """
    share = SHARE
    if name in ("VCD", "ICD"):
        decided = 2 * logits - second
    elif name == "SID":
        decided = 3 * logits - 2 * second
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


def premature(logits, candidates):
    """Of candidate logits (V,), the ones whose distribution diverges most, by Jensen-Shannon."""
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
def computed(layers, change):
    """Passes of one prompt in which these layers' attention is computed in float64.

    `change` gives a layer's scores (heads, Q, keys), before the softmax, from its number, the
    scores and `seen` (Q, keys).
    """
    modules = [layer.self_attn for layer in layers]
    interface = sys.modules[type(modules[0]).__module__].ALL_ATTENTION_FUNCTIONS
    plain = interface["sdpa"]

    def attend(module, query, key, value, attention_mask, scaling=None, **settings):
        mask = attention_mask
        number = next((n for n, each in enumerate(modules) if module is each), None)
        if number is None:
            return plain(module, query, key, value, mask, scaling=scaling, **settings)
        groups = query.shape[1] // key.shape[1]
        keys, values = (each[0].double().repeat_interleave(groups, 0) for each in (key, value))
        scores = scaling * query[0].double() @ keys.transpose(1, 2)
        if mask is None:
            mask = torch.ones(1, 1, *scores.shape[1:], dtype=torch.bool).tril()
        seen = mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] > -1e30
        weights = change(number, scores, seen).masked_fill(~seen, -math.inf).softmax(-1)
        return (weights @ values).transpose(0, 1).unsqueeze(0).to(query.dtype), None

    interface["sdpa"] = attend
    try:
        yield
    finally:
        interface["sdpa"] = plain


def raised(layers, vision, start, alpha):
    """PAI's passes: from position `start` on, each attends more to the tokens at `vision` (S,)."""

    def change(_number, scores, _seen):
        at = vision.nonzero().flatten()
        scores[:, start:, at] += alpha * scores[:, start:, at].abs()
        return scores

    return computed(layers, change)


def least_attended(layers, vision, start, rank):
    """SID's passes: the first layer chooses, for each position from `start` on, the `rank` tokens
    at `vision` (S,) that it attends to least, and the others see no more of them. Positions before
    `start` see what it sees."""
    hidden = []  # of each position

    def change(number, scores, seen):
        if number == 0:
            hidden.clear()
            weights = scores.masked_fill(~seen, -math.inf).softmax(-1).mean(0)
            for position in range(len(seen)):
                attended = weights[max(position, start)].tolist()
                tokens = sorted(vision.nonzero().flatten().tolist(), key=attended.__getitem__)
                hidden.append(tokens[rank:])
        else:
            for position, tokens in enumerate(hidden):
                scores[:, position, tokens] = -math.inf
        return scores

    return computed(layers, change)
