"""InternVL3, the paper's third family: a tiny checkpoint of its shape, evaluated and shown."""

import pytest

pytest.importorskip("transformers.models.internvl", reason="this release has no InternVL")
pytest.importorskip("torchvision", reason="InternVL's image processor needs it")

import torch
import transformers
from PIL import Image

import revisit
from revisit import ReVisiTConfig
from revisit.commands import describe
from revisit.commands.engines.description import picture
from revisit.evaluation.answer_files import read_answers
from revisit.evaluation.benchmarks.chair import Chair
from revisit.evaluation.evaluate import evaluate
from revisit.evaluation.run import Generation, Place, Run

SIDE, TOKENS = 32, 4
"""Of a tile: pixels along a side, and vision tokens."""
SPECIAL = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
TEMPLATE = (
    "{% for message in messages %}{% for part in message.content %}{% if part.type == 'image' %}"
    "<IMG_CONTEXT>\n{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %} Answer:"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """InternVL3's shape: InternViT, pixel shuffle, Qwen2.5; tiles and a thumbnail."""
    folder = tmp_path_factory.mktemp("internvl")
    tokenizer = transformers.AutoTokenizer.from_pretrained(describe.demo_model())
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL.values())})
    tokenizer.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, extra_special_tokens=SPECIAL)
    square = {"height": SIDE, "width": SIDE}
    processor = transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(size=square, crop_to_patches=True, max_patches=4),
        tokenizer,
        transformers.InternVLVideoProcessor(size=square),
        image_seq_length=TOKENS,
        chat_template=TEMPLATE,
    )
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    vision = transformers.InternVLVisionConfig(
        **sizes, num_hidden_layers=2, image_size=[SIDE, SIDE], patch_size=[8, 8]
    )
    text = transformers.Qwen2Config(
        **sizes,
        num_hidden_layers=3,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = transformers.InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=TOKENS,
        downsample_ratio=0.5,
    )
    torch.manual_seed(0)
    transformers.InternVLForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Four images of other shapes, so of other numbers of tiles."""
    folder = tmp_path_factory.mktemp("val2014")
    for number, size in enumerate([(64, 64), (96, 32), (32, 96), (70, 40)], 1):
        noise = torch.randint(
            256, (*size[::-1], 3), generator=torch.Generator().manual_seed(number)
        )
        name = f"COCO_val2014_{number:012d}.png"
        Image.fromarray(noise.byte().numpy()).save(folder / name)
    return folder


@pytest.mark.parametrize("decoder", [None, ReVisiTConfig(layers="all", alpha=1e-3)])
def test_captions_of_a_batch_are_those_of_each_image_alone(checkpoint, images, tmp_path, decoder):
    from revisit.commands.engines.transformers import chat_inputs, load_model
    from revisit.commands.eval import _any_model

    run = Run(
        model_path=str(checkpoint),
        benchmark=Chair(data_path=images, num_eval_samples=4),
        decoder=decoder,
        generation=Generation(max_new_tokens=8),
        place=Place(device="cpu", dtype="float32", batch_size=3),
        output_path=tmp_path,
    )
    family = _any_model()
    assert evaluate([run], family.load, family.own_dtype) == 0
    captions = read_answers(tmp_path / "captions.jsonl", run.benchmark.form)

    model, processor = load_model(str(checkpoint), "cpu")
    if decoder is not None:
        revisit.enable(model, decoder)
    alone = {}
    for path in sorted(images.iterdir()):
        image = Image.open(path).convert("RGB")
        inputs = chat_inputs(processor, [[image]], [run.benchmark.question])
        output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        new = output[0, inputs["input_ids"].shape[1] :]
        text = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
        alone[int(path.stem[-12:])] = text
    assert captions == alone and len(set(alone.values())) > 1


def test_the_patches_of_a_tiled_image_lie_where_their_tiles_do(checkpoint, images):
    describer = describe.Describer(str(checkpoint))
    wide = Image.open(images / "COCO_val2014_000000000002.png")
    boxes = [box for _, box in describer.boxes(wide)]
    tiles = [boxes[start : start + TOKENS] for start in range(0, len(boxes), TOKENS)]
    assert len(tiles) == 4  # three tiles side by side, and the thumbnail
    for number, tile in enumerate([*tiles[:3], tiles[3]]):
        left, right = (number / 3, (number + 1) / 3) if number < 3 else (0, 1)
        assert min(box[0] for box in tile) == pytest.approx(left, abs=0.03)
        assert max(box[2] for box in tile) == pytest.approx(right, abs=0.03)
        assert min(box[1] for box in tile) == pytest.approx(0, abs=0.03)
        assert max(box[3] for box in tile) == pytest.approx(1, abs=0.03)


def test_words_are_shown_with_patches_of_their_tiles(checkpoint, images):
    describer = describe.Describer(str(checkpoint))
    wide = Image.open(images / "COCO_val2014_000000000002.png")
    said = describer.describe(wide, ReVisiTConfig(), max_new_tokens=6)
    shown = picture(describer.boxes, "wide", wide, {"ReVisiT": said})
    assert not shown.note and len(shown.boxes) == 16
    steps = [token.step for word in said.words for token in word.tokens]
    assert steps and all(0 <= step.vision_token < 16 for step in steps if step is not None)
