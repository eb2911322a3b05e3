"""What the demo's Qwen2.5-VL reads: tokenizer, chat template and image processor.

The formats are those of Qwen/Qwen2.5-VL-7B-Instruct; the vocabulary is the demo's own.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer
from transformers import Qwen2_5_VLProcessor, Qwen2TokenizerFast, Qwen2VLImageProcessor
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from captions import QUESTION, training_texts

IMAGE_SIDE, PATCH, MERGE = 112, 14, 1
GRID = IMAGE_SIDE // PATCH // MERGE
"""Vision tokens in a row of a square picture."""

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
SPECIAL = (END_OF_TEXT, START, END, VISION_START, VISION_END, IMAGE, VIDEO)
SYSTEM = "You are a helpful assistant."
LONGEST = 1024

CHAT_TEMPLATE = (
    "{%- if messages[0].role != 'system' -%}"
    "{{- '<|im_start|>system\\n" + SYSTEM + "<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\\n' -}}"
    "{%- if message.content is string -%}"
    "{{- message.content -}}"
    "{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type in ('image', 'image_url') -%}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif part.type == 'video' -%}"
    "{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}"
    "{%- else -%}"
    "{{- part.text -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<|im_start|>assistant\\n' -}}"
    "{%- endif -%}"
)


def make_processor() -> Qwen2_5_VLProcessor:
    """The processor with a tokenizer trained on answers to training scenes."""
    images = Qwen2VLImageProcessor(
        min_pixels=4 * (PATCH * MERGE) ** 2,
        max_pixels=IMAGE_SIDE**2,
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=2,
    )
    return Qwen2_5_VLProcessor(images, make_tokenizer(), chat_template=CHAT_TEMPLATE)


def make_tokenizer() -> Qwen2TokenizerFast:
    """Byte-level BPE as Qwen's; every word of the prompt and of the answers is one token."""
    prompt = f"system\nuser\nassistant\n{SYSTEM}\n{QUESTION}\nYes\nNo"
    tokenizer = _byte_level_bpe([prompt, *training_texts()])
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    return Qwen2TokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END_OF_TEXT,
        unk_token=None,
        additional_special_tokens=[text for text in SPECIAL if text != END_OF_TEXT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=LONGEST,
        clean_up_tokenization_spaces=False,
        errors="replace",
        add_prefix_space=False,
    )


def _byte_level_bpe(texts: Iterable[str]) -> Tokenizer:
    """Merged as long as two neighbours can be, so that no word of ``texts`` is left in pieces."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = Sequence(
        [
            Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=4096,
        min_frequency=0,
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
