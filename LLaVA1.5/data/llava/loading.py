"""A checkpoint, ready to use in one call."""

import logging
from pathlib import Path

import torch
from transformers import CLIPImageProcessor, LlamaTokenizer

from llava.model import LlavaLlamaForCausalLM
from revisit.transformers.checkpoint import check_files


def load_pretrained_model(
    model_path: str | Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: str | dict[str, int | str] | None = None,
) -> tuple[LlamaTokenizer, LlavaLlamaForCausalLM, CLIPImageProcessor]:
    """Tokenizer, model in evaluation mode, and image processor of a LLaVA-1.5 checkpoint.

    `model_path`: a folder or a hub id. `device`: where the model goes, by default the GPU if there
    is one; or `device_map`, as Transformers takes it ("auto" spreads the model over all devices).
    `dtype`: by default float16 with a GPU and float32 without. Raises FileNotFoundError, OSError or
    ValueError where something of the checkpoint is missing or damaged.
    """
    has_gpu = torch.cuda.is_available()
    if device is not None and device_map is not None:
        raise ValueError("device and device_map were both given; give one")
    if device is None and device_map is None:
        device = "cuda" if has_gpu else "cpu"
    if device is not None and torch.device(device).type == "cuda" and not has_gpu:
        raise ValueError(f"device is {device}, but torch finds no GPU; use device='cpu'")
    if dtype is None:
        on_gpu = has_gpu if device is None else torch.device(device).type == "cuda"
        dtype = torch.float16 if on_gpu else torch.float32

    tokenizer = _load_tokenizer(str(model_path))
    model = LlavaLlamaForCausalLM.from_pretrained(
        str(model_path), torch_dtype=dtype, low_cpu_mem_usage=True, device_map=device_map
    )
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer of {model_path} has {len(tokenizer)} tokens and the model "
            f"{model.config.vocab_size}: they do not belong together; fetch the checkpoint again"
        )
    if device is not None:
        model.to(device)
    return tokenizer, model, model.model.vision_tower.processor


def _load_tokenizer(model_path: str) -> LlamaTokenizer:
    """The SentencePiece tokenizer, padding on the left. Raises OSError where it is not there."""
    check_files(model_path)
    folder = Path(model_path)
    if folder.is_dir() and not (folder / "tokenizer.model").is_file():
        raise FileNotFoundError(
            f"no tokenizer.model in {model_path}: fetch it, and tokenizer_config.json, "
            "from where the checkpoint came from"
        )
    logging.getLogger(LlamaTokenizer.__module__).addFilter(_is_no_legacy_warning)
    try:
        tokenizer = LlamaTokenizer.from_pretrained(model_path, padding_side="left")
    except (OSError, RuntimeError, TypeError) as error:
        raise OSError(
            f"cannot read the tokenizer.model of {model_path}: {error}\n"
            "Fetch it again; if it is a hub id, check the name and the network."
        ) from error
    if "pad_token" not in tokenizer.special_tokens_map:  # its attribute would warn
        tokenizer.pad_token = tokenizer.unk_token
    return tokenizer


def _is_no_legacy_warning(record: logging.LogRecord) -> bool:
    """False for the release's warning of LlamaTokenizer: LLaVA-1.5 was published with that
    behaviour."""
    return "legacy behaviour" not in record.getMessage()
