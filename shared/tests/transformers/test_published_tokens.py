"""Unpatched Transformers gives the published tokens: its Qwen2.5-VL and its LLaVA class."""

import inspect
import json
import math
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import revisit
from revisit import ReVisiTConfig

ROOT = Path(__file__).parents[3]
QWEN = ROOT / "Qwen2.5-VL" / "tests" / "golden"
LLAVA = ROOT / "LLaVA1.5" / "tests" / "golden"
# Other settings leave fewer candidates than V_cons.
SETTINGS = {"do_sample", "use_revisit", "early_exit_layers", "relative_top"}


def greedy_cases(folder: Path) -> list[dict[str, Any]]:
    cases = json.loads((folder / "cases.json").read_text())
    return [case for case in cases if not case["generate"]["do_sample"]]


def name(case: dict[str, Any]) -> str:
    settings = [f"{key}={value}" for key, value in case["generate"].items() if key != "do_sample"]
    return " ".join([case.get("images") or case["pixel_values"], *settings])


def check(model: Any, inputs: dict[str, Any], case: dict[str, Any]) -> None:
    settings = dict(case["generate"])
    use_revisit = settings.pop("use_revisit", False)
    config = ReVisiTConfig(
        layers=settings.pop("early_exit_layers", "last"),
        alpha=settings.pop("relative_top", 1),
        trace=True,
    )
    settings |= {"max_new_tokens": case["max_new_tokens"]}
    settings |= {"output_scores": True, "return_dict_in_generate": True}
    inputs = {key: value.to(model.device) for key, value in inputs.items()}
    with revisit.attach(model, config) if use_revisit else nullcontext():
        output = model.generate(**inputs, **settings)
    assert output.sequences[0, inputs["input_ids"].shape[1] :].tolist() == case["tokens"]
    for scores, expected in zip(output.scores, case["top_scores"], strict=False):
        tokens, values = zip(*expected, strict=True)
        # -inf there, as in the formula, is finite here: not in V_cons.
        scores = scores.masked_fill(scores < -1e4, -math.inf)
        assert scores[0, list(tokens)].tolist() == pytest.approx(values, abs=1e-4)
    if use_revisit and set(case["generate"]) <= SETTINGS:
        assert [step.candidates for step in output.revisit_trace[0]] == case["candidates"]


on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=on_gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the model is; convolutions on a GPU in float32 too, not in TF32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.cudnn, "allow_tf32", False)
        yield str(request.param)


@pytest.fixture(scope="module")
def qwen(device: str) -> Any:
    family = getattr(transformers, "Qwen2_5_VLForConditionalGeneration", None)
    if family is None:
        pytest.skip("this Transformers has no Qwen2.5-VL")
    return family.from_pretrained(QWEN).float().eval().to(device)


@pytest.fixture(scope="module")
def pixels() -> dict[str, torch.Tensor]:
    return load_file(QWEN / "pixel_values.safetensors")


@pytest.mark.parametrize("case", greedy_cases(QWEN), ids=name)
def test_qwen_gives_the_published_tokens_and_scores(qwen, pixels, case):
    check(qwen, qwen_inputs(qwen, pixels, case), case)


def refined_cases(folder: Path) -> list[dict[str, Any]]:
    return [case for case in greedy_cases(folder) if case["generate"].get("use_revisit")]


@pytest.mark.parametrize("case", refined_cases(QWEN)[::4], ids=name)
def test_kernels_give_the_published_tokens_and_scores(kernels_allowed, qwen, pixels, case):
    check(qwen, qwen_inputs(qwen, pixels, case), case)
    assert len(kernels_allowed) == 1


def qwen_inputs(qwen: Any, pixels: dict[str, torch.Tensor], case: dict[str, Any]) -> dict[str, Any]:
    input_ids = torch.tensor([case["input_ids"]])
    inputs = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values": pixels[case["pixel_values"]],
        "image_grid_thw": torch.tensor(case["image_grid_thw"]),
    }
    # Newer releases take which tokens are of an image, as their processor says.
    if "mm_token_type_ids" in inspect.signature(qwen.forward).parameters:
        inputs["mm_token_type_ids"] = (input_ids == qwen.config.image_token_id).long()
    return inputs


@pytest.fixture(scope="module")
def llava(device: str) -> Any:
    cases = greedy_cases(LLAVA)
    used = {token for case in cases for token in (*case["input_ids"], *case["tokens"])}
    placeholder = next(token for token in range(320) if token not in used)
    return llava_of_transformers(LLAVA, placeholder).to(device)


OF_LLAMA = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "vocab_size",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def llava_of_transformers(folder: Path, placeholder: int) -> Any:
    """A checkpoint in LLaVA-1.5's format, as Transformers' `LlavaForConditionalGeneration`."""
    if not hasattr(transformers, "LlavaForConditionalGeneration"):
        pytest.skip("this Transformers has no LLaVA")
    published = json.loads((folder / "config.json").read_text())
    vision_folder = folder / published["mm_vision_tower"]
    tower = json.loads((vision_folder / "config.json").read_text())
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**{key: published[key] for key in OF_LLAMA}),
        vision_config=transformers.CLIPVisionConfig(**tower.get("vision_config", tower)),
        image_token_index=placeholder,
        vision_feature_layer=published["mm_vision_select_layer"],
        vision_feature_select_strategy="default",
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    weights = {
        **torch.load(folder / "pytorch_model.bin", weights_only=True),
        **torch.load(vision_folder / "pytorch_model.bin", weights_only=True),
    }
    named = {inner_name(key): value for key, value in weights.items()}
    keys = [key for key in model.state_dict() if "position_ids" not in key]
    model.load_state_dict({key: named[inner_name(key)] for key in keys}, strict=False)
    model.generation_config.eos_token_id = published["eos_token_id"]
    model.generation_config.pad_token_id = published["pad_token_id"]
    return model


def inner_name(key: str) -> str:
    """A weight's name inside its tower, projector or decoder, the same in every release."""
    around = "model language_model vision_tower vision_model multi_modal_projector mm_projector"
    inner = re.sub(rf"^(({around.replace(' ', '|')})\.)+", "", key)
    return re.sub("^2(?=[.])", "linear_2", re.sub("^0(?=[.])", "linear_1", inner))


@pytest.fixture(scope="module")
def images() -> dict[str, torch.Tensor]:
    return load_file(LLAVA / "images.safetensors")


@pytest.mark.parametrize("case", greedy_cases(LLAVA), ids=name)
def test_llava_gives_the_published_tokens_and_scores(llava, images, case):
    vision = llava.config.vision_config
    count = (vision.image_size // vision.patch_size) ** 2
    ids = []
    for token in case["input_ids"]:
        ids += [llava.config.image_token_index] * count if token == -200 else [token]
    input_ids = torch.tensor([ids])
    inputs = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values": images[case["images"]],
    }
    check(llava, inputs, case)
