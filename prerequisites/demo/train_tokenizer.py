"""Train the demo's SentencePiece model, in the layout of LLaMA's (unk 0, bos 1, eos 2, bytes)."""

from __future__ import annotations

import io
from pathlib import Path

import sentencepiece

from captions import QUESTION, training_texts

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives"
    " helpful, detailed, and polite answers to the human's questions."
)
ROLES = ("USER:", "ASSISTANT:")


def train_tokenizer(path: Path) -> None:
    """Write ``tokenizer.model`` to ``path``: every word of the training answers is one piece.

    The fixed sentences of the prompt are one piece each, so that a tiny model does not spend
    half of its time on them.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(training_texts()),
        model_writer=model,
        model_type="bpe",
        vocab_size=704,
        hard_vocab_limit=False,
        byte_fallback=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        user_defined_symbols=[SYSTEM.replace(" ", "▁"), QUESTION.replace(" ", "▁"), *ROLES],
        num_threads=1,
        minloglevel=2,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
