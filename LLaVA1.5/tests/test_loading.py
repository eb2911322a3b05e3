"""Checkpoints in every format, and those that are damaged."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionModel

from llava import IMAGE_TOKEN_INDEX, LlavaLlamaForCausalLM, load_pretrained_model

IDS = torch.tensor([[1, 5, IMAGE_TOKEN_INDEX, 7]])
INDEX = "pytorch_model.bin.index.json"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """The hub cannot be reached: an answer at once instead of after a time."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub._is_offline_mode", True)


def edit_weights(folder: Path, change) -> None:
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    change(weights)
    torch.save(weights, folder / "pytorch_model.bin")


def edit_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_the_weights_have_the_names_of_llava_v1_5(checkpoint):
    names = torch.load(checkpoint / "pytorch_model.bin", weights_only=True).keys()
    assert {name for name in names if ".layers." not in name} == {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
        *(f"model.mm_projector.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")),
    }
    tower = CLIPVisionModel.from_pretrained(checkpoint / "tower")
    assert tower.config.image_size == 56
    assert json.loads((checkpoint / "config.json").read_text())["mm_vision_tower"] == "tower"


@pytest.mark.parametrize("safe", [False, True], ids=["bin", "safetensors"])
@pytest.mark.parametrize("shard", ["10GB", "100KB"], ids=["whole", "sharded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_what_was_saved_is_loaded(small_model, pixels, tmp_path, safe, shard, dtype):
    small_model.save_pretrained(tmp_path, max_shard_size=shard, safe_serialization=safe)
    assert len(list(tmp_path.glob("*-of-*"))) == 0 or shard == "100KB"
    for low_memory in (False, True):
        loaded = LlavaLlamaForCausalLM.from_pretrained(
            tmp_path, torch_dtype=dtype, low_cpu_mem_usage=low_memory
        )
        assert not loaded.training
        weights = loaded.state_dict()
        for name, weight in small_model.state_dict().items():
            if "inv_freq" not in name:
                assert torch.equal(weights[name], weight.to(dtype)), name
    if dtype == torch.float32:
        expected = small_model(IDS, images=pixels[:1]).logits
        assert torch.equal(loaded(IDS, images=pixels[:1]).logits, expected)


def test_float16_files_load_in_float32(small_model, make_model, pixels, tmp_path):
    make_model().half().save_pretrained(tmp_path)
    loaded = LlavaLlamaForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float32 == loaded.model.vision_tower.vision_tower.dtype
    expected = small_model(IDS, images=pixels[:1]).logits
    torch.testing.assert_close(loaded(IDS, images=pixels[:1]).logits, expected, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, "spread"], ids=str)
def test_a_device_map(checkpoint, small_model, pixels, tmp_path, device_map):
    if device_map == "spread":
        parts = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.layers.2"]
        parts += ["model.norm", "model.mm_projector", "lm_head"]
        device_map = {part: "disk" if "layers" in part else "cpu" for part in parts}
    loaded = LlavaLlamaForCausalLM.from_pretrained(
        checkpoint, device_map=device_map, offload_folder=tmp_path / "offload"
    )
    expected = small_model.generate(IDS, images=pixels[:1], max_new_tokens=4)
    assert torch.equal(loaded.generate(IDS, images=pixels[:1], max_new_tokens=4), expected)


def test_keys_of_the_tower_and_of_old_buffers_may_be_there_or_not(checkpoint, small_model, pixels):
    tower = {
        f"model.vision_tower.vision_tower.{name}": weight
        for name, weight in small_model.model.vision_tower.vision_tower.state_dict().items()
    }

    def without_buffers(weights):
        for name in [name for name in weights if "inv_freq" in name]:
            del weights[name]

    expected = small_model(IDS, images=pixels[:1]).logits
    for change in (lambda weights: weights.update(tower), without_buffers):
        edit_weights(checkpoint, change)
        loaded, info = LlavaLlamaForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
        assert info["unexpected_keys"] == info["missing_keys"] == []
        assert torch.equal(loaded(IDS, images=pixels[:1]).logits, expected)


def test_an_index_beside_the_weights_that_are_read_does_not_matter(checkpoint):
    index = {"weight_map": {"lm_head.weight": "pytorch_model-00001-of-00002.bin"}}
    (checkpoint / INDEX).write_text(json.dumps(index))
    LlavaLlamaForCausalLM.from_pretrained(checkpoint)


def test_a_tower_named_at_the_call_or_by_an_absolute_path(
    checkpoint, tmp_path, small_model, pixels
):
    elsewhere = str(shutil.move(checkpoint / "tower", tmp_path / "elsewhere"))
    expected = small_model(IDS, images=pixels[:1]).logits
    settings = {"mm_vision_tower": elsewhere, "torch_dtype": torch.float32}
    loaded = LlavaLlamaForCausalLM.from_pretrained(checkpoint, **settings)
    assert torch.equal(loaded(IDS, images=pixels[:1]).logits, expected)
    edit_config(checkpoint, mm_vision_tower=elsewhere)
    loaded = LlavaLlamaForCausalLM.from_pretrained(checkpoint)
    assert torch.equal(loaded(IDS, images=pixels[:1]).logits, expected)
    loaded.save_pretrained(tmp_path / "again")
    again = LlavaLlamaForCausalLM.from_pretrained(tmp_path / "again")
    assert again.config.mm_vision_tower == "elsewhere"
    assert torch.equal(again(IDS, images=pixels[:1]).logits, expected)


def test_a_hub_id_names_a_folder_of_the_saved_checkpoint(make_model, tmp_path):
    model = make_model(mm_vision_tower="openai/clip-vit-large-patch14-336")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "openai/clip-vit-large-patch14-336/config.json").is_file()
    LlavaLlamaForCausalLM.from_pretrained(tmp_path)


def test_one_call_gives_all_that_is_needed(checkpoint):
    tokenizer, model, processor = load_pretrained_model(checkpoint, device="cpu")
    assert model.dtype == torch.float32 and not model.training
    assert processor.crop_size == {"height": 56, "width": 56}
    assert tokenizer.padding_side == "left" and tokenizer.pad_token_id is not None
    assert not tokenizer.is_fast
    _, model, _ = load_pretrained_model(checkpoint, dtype=torch.bfloat16, device_map="auto")
    assert model.dtype == torch.bfloat16


def test_transformers_does_not_warn_of_the_published_tokenizer(checkpoint):
    code = f"import llava; llava.load_pretrained_model({str(checkpoint)!r}, device='cpu')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "legacy behaviour" not in done.stderr and "pad_token" not in done.stderr


def test_a_bin_file_cannot_run_code(checkpoint, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    with (checkpoint / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"model.norm.weight": Trap()}, file)
    with pytest.raises(OSError, match="cannot read the checkpoint"):
        LlavaLlamaForCausalLM.from_pretrained(checkpoint)
    assert not (tmp_path / "sprung").exists()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def lose(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def save_as(folder: Path, kind: str) -> None:
    """Save the weights again: "safe" and "shards" may be in `kind`."""
    model = LlavaLlamaForCausalLM.from_pretrained(folder)
    if kind == "bin shards":
        lose(folder / "pytorch_model.bin")  # which would be read before them
    shard_size = "100KB" if "shards" in kind else "10GB"
    model.save_pretrained(folder, max_shard_size=shard_size, safe_serialization="safe" in kind)


@pytest.mark.parametrize("low_memory", [False, True], ids=["", "low_memory"])
@pytest.mark.parametrize(
    ("kind", "spoil", "file", "error", "message"),
    [
        ("bin", cut, "pytorch_model.bin", OSError, r"read the checkpoint .*pytorch_model\.bin"),
        ("safe", cut, "model.safetensors", OSError, r"read the checkpoint .*"),
        ("bin shards", cut, "*-00002-of-*", OSError, r"read the checkpoint .*-00002-of"),
        ("safe shards", cut, "*-00002-of-*", OSError, r"read the checkpoint .*"),
        ("bin shards", lose, "*-00002-of-*", FileNotFoundError, r"index\.json names .*-00002-of"),
        ("bin shards", cut, INDEX, OSError, r"index\.json is not an index of weights"),
        ("bin", lose, "pytorch_model.bin", OSError, r"no file named pytorch_model"),
        ("bin", lose, "config.json", FileNotFoundError, r"no config\.json in .*checkpoint"),
        ("bin", cut, "config.json", OSError, r"cannot read the checkpoint .*config\.json"),
        ("bin", lose, "tower", OSError, r"no vision tower 'tower' for .*checkpoint: .*hub"),
        ("bin", lose, "tower/pytorch_model.bin", OSError, r"vision tower 'tower'.*no file named"),
        ("bin", cut, "tower/pytorch_model.bin", OSError, r"vision tower 'tower'.*cannot read"),
        ("bin", lose, "tower/preprocessor_config.json", OSError, r"tower 'tower'.*preprocessor_c"),
    ],
)
def test_a_file_that_is_cut_or_lost_is_named(
    checkpoint, kind, spoil, file, error, message, low_memory
):
    if kind != "bin":
        save_as(checkpoint, kind)
    (path,) = checkpoint.glob(file)
    spoil(path)
    with pytest.raises(error, match=f"(?s){message}"):
        LlavaLlamaForCausalLM.from_pretrained(checkpoint, low_cpu_mem_usage=low_memory)


def lose_key(folder):
    edit_weights(folder, lambda weights: weights.pop("model.mm_projector.2.bias"))


def widen_head(folder):
    edit_weights(folder, lambda weights: weights.update({"lm_head.weight": torch.zeros(320, 40)}))


def lose_tower_key(folder):
    edit_weights(folder / "tower", lambda weights: weights.pop("vision_model.pre_layrnorm.weight"))


@pytest.mark.parametrize("low_memory", [False, True], ids=["", "low_memory"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lose_key, ValueError, r"1 weights are missing .*: model\.mm_projector\.2\.bias"),
        (
            widen_head,
            ValueError,
            r"lm_head\.weight: \(320, 40\) in the files, \(320, 32\) by config",
        ),
        (lose_tower_key, ValueError, r"no vision tower 'tower'.*pre_layrnorm\.weight"),
        ({"model_type": "llama"}, ValueError, r"model_type 'llama', not 'llava'"),
        ({"text_config": {}, "mm_vision_tower": None}, ValueError, r"LLaVA in another format"),
        ({"mm_vision_tower": "/nowhere/clip"}, OSError, r"tower '/nowhere/clip'.*does not exist"),
    ],
)
def test_a_checkpoint_of_another_model_is_named(checkpoint, change, error, message, low_memory):
    if isinstance(change, dict):
        edit_config(checkpoint, **change)
    else:
        change(checkpoint)
    with pytest.raises(error, match=f"(?s){message}"):
        LlavaLlamaForCausalLM.from_pretrained(checkpoint, low_cpu_mem_usage=low_memory)


@pytest.mark.parametrize("name", ["/nowhere/llava", "./llava", "a/b/c"])
def test_a_folder_that_does_not_exist(name):
    with pytest.raises(FileNotFoundError, match=f"no checkpoint at {name}"):
        LlavaLlamaForCausalLM.from_pretrained(name)


def test_a_hub_id_without_network():
    with pytest.raises(OSError, match=r"(?s)no folder someone/llava here.*network"):
        LlavaLlamaForCausalLM.from_pretrained("someone/llava")
    with pytest.raises(OSError, match=r"(?s)no folder someone/llava here.*network"):
        load_pretrained_model("someone/llava", device="cpu")


def test_a_checkpoint_without_its_tokenizer(checkpoint):
    cut(checkpoint / "tokenizer.model")
    with pytest.raises(OSError, match=r"cannot read the tokenizer\.model"):
        load_pretrained_model(checkpoint, device="cpu")
    (checkpoint / "tokenizer.model").unlink()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.model in .*checkpoint"):
        load_pretrained_model(checkpoint, device="cpu")
    with pytest.raises(FileNotFoundError, match="no checkpoint at /nowhere/llava"):
        load_pretrained_model("/nowhere/llava", device="cpu")


def test_a_tokenizer_of_another_model(checkpoint, make_model):
    make_model(vocab_size=100).save_pretrained(checkpoint)
    with pytest.raises(ValueError, match="do not belong together"):
        load_pretrained_model(checkpoint, device="cpu")


def test_device_settings_that_exclude_each_other(checkpoint):
    with pytest.raises(ValueError, match="give one"):
        load_pretrained_model(checkpoint, device="cpu", device_map="auto")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="finds no GPU"):
            load_pretrained_model(checkpoint, device="cuda")


def test_saved_safetensors_have_no_tower(small_model, tmp_path):
    small_model.save_pretrained(tmp_path, safe_serialization=True)
    assert not any("tower" in name for name in load_file(tmp_path / "model.safetensors"))
