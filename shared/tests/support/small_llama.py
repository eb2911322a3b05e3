"""A small Llama whose prompts hold vision tokens: ordinary tokens, for any Transformers."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

IMAGE, PAD, EOS = 5, 0, 2
LAYERS = 4


def make_model(seed=0, **settings):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=90,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        initializer_range=0.4,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=EOS,
        **settings,
    )
    config.image_token_id = IMAGE
    model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    return model


PROMPTS = [
    [1, 9, IMAGE, IMAGE, IMAGE, 20, 21],
    [1, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, 30, 31, 32, IMAGE, IMAGE, 33],
    [1, 8, IMAGE, 40],
]


def batch(prompts, device="cpu"):
    """Left-padded ids and attention mask."""
    length = max(map(len, prompts))
    rows = [[PAD] * (length - len(prompt)) + prompt for prompt in prompts]
    ids = torch.tensor(rows, device=device)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def new_tokens(output, prompts):
    return output.sequences[:, max(map(len, prompts)) :].tolist()


def hooks(model):
    """All hooks of the model; some releases of Transformers add hooks on first use, which stay."""
    return [
        key
        for module in model.modules()
        for key in (*module._forward_hooks, *module._forward_pre_hooks)
    ]
