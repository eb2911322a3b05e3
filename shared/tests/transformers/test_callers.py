"""Who else calls `generate`: a pipeline, a thread, a training loop, `transformers serve`."""

import base64
import json
import shutil
import sys
import threading
import urllib.request
from pathlib import Path

import pytest
import torch
from PIL import Image

import revisit
from releases import RELEASE
from revisit import ReVisiTConfig
from server_process import free_port, server_process

if RELEASE < (5, 0):
    pytest.skip("tried on the newest release", allow_module_level=True)

from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    TextIteratorStreamer,
    pipeline,
)

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "prerequisites" / "demo"
IMAGES = sorted((DEMO / "coco" / "val2014").glob("*.jpg"))
QUESTION = "Please describe this image in detail."
CONFIG = ReVisiTConfig()
SETTINGS = {"max_new_tokens": 40, "do_sample": False}


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(DEMO / "qwen-tiny", dtype="float32").eval()


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(DEMO / "qwen-tiny", padding_side="left")


def inputs_of(processor, *images):
    """One prompt for each image; None is a prompt without one."""
    texts = []
    for image in images:
        content = [{"type": "text", "text": QUESTION}]
        if image is not None:
            content.insert(0, {"type": "image"})
        chat = [{"role": "user", "content": content}]
        texts.append(processor.apply_chat_template(chat, add_generation_prompt=True))
    opened = [Image.open(image).convert("RGB") for image in images if image is not None]
    return processor(text=texts, images=opened or None, padding=True, return_tensors="pt")


def describe(model, processor, *images):
    """The model's description of each image."""
    inputs = inputs_of(processor, *images)
    output = model.generate(**inputs, **SETTINGS)
    return processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], True)


@pytest.fixture(scope="module")
def image(model, processor):
    """An image that ReVisiT describes otherwise than greedy decoding."""
    for path in IMAGES:
        plain = describe(model, processor, path)
        with revisit.attach(model, CONFIG):
            if describe(model, processor, path) != plain:
                return path
    raise AssertionError("ReVisiT changes no caption")


@pytest.fixture(scope="module")
def expected(model, processor, image):
    with revisit.attach(model, CONFIG):
        return describe(model, processor, image)[0]


@pytest.fixture
def enabled(model):
    revisit.enable(model, CONFIG)
    yield model
    revisit.disable(model)


def test_a_pipeline_decodes_with_revisit(enabled, processor, image, expected):
    ask = pipeline("image-text-to-text", model=enabled, processor=processor)
    content = [{"type": "image", "image": Image.open(image)}, {"type": "text", "text": QUESTION}]
    (answer,) = ask(
        text=[{"role": "user", "content": content}],
        return_full_text=False,
        generate_kwargs=SETTINGS,
    )
    assert answer["generated_text"] == expected


def test_text_is_streamed_from_a_thread(enabled, processor, image, expected):
    streamer = TextIteratorStreamer(
        processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60
    )
    arguments = {**inputs_of(processor, image), **SETTINGS, "streamer": streamer}
    thread = threading.Thread(target=enabled.generate, kwargs=arguments)
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == expected
    assert len(pieces) > 3


def test_a_batch_with_and_without_images(model, processor, image, expected):
    greedy = describe(model, processor, None)[0]
    config = ReVisiTConfig(no_vision="plain")
    with revisit.attach(model, config):
        assert describe(model, processor, image, None) == [expected, greedy]


def test_a_batch_of_text_alone(model, processor):
    greedy = describe(model, processor, None, None)
    with revisit.attach(model, ReVisiTConfig(no_vision="plain")):
        assert describe(model, processor, None, None) == greedy
    message = r"prompts \[0, 1\] of the batch hold no vision token"
    with revisit.attach(model, CONFIG), pytest.raises(ValueError, match=message):
        describe(model, processor, None, None)


def test_a_training_loop_generates_between_its_steps(processor, image):
    """Weights that were trained since `enable` are the ones that are read."""
    model = AutoModelForImageTextToText.from_pretrained(DEMO / "qwen-tiny", dtype="float32")
    revisit.enable(model, CONFIG)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    inputs = inputs_of(processor, image)
    for _ in range(2):
        model.train()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.eval()
        fresh = AutoModelForImageTextToText.from_config(model.config).eval()
        fresh.load_state_dict(model.state_dict())
        fresh.generation_config = model.generation_config
        with revisit.attach(fresh, CONFIG):
            assert describe(model, processor, image) == describe(fresh, processor, image)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of `transformers serve` for a checkpoint that holds `custom_generate/`."""
    for package in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(package, reason="transformers serve needs it")
    folder = tmp_path_factory.mktemp("served") / "qwen"
    shutil.copytree(DEMO / "qwen-tiny", folder)
    shutil.copytree(ROOT / "custom_generate", folder / "custom_generate")
    port = free_port()
    flags = f"--trust-remote-code --port {port} --device cpu --dtype float32"
    command = [Path(sys.executable).with_name("transformers"), "serve", folder, *flags.split()]
    offline = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder.parent / "modules")}
    with server_process(command, port, folder.parent / "log", offline) as address:
        yield address, str(folder)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_transformers_serve_decodes_with_the_folder_of_a_checkpoint(
    server, image, expected, stream
):
    address, folder = server
    pixels = base64.b64encode(image.read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{pixels}"}},
        {"type": "text", "text": QUESTION},
    ]
    body = {
        "model": folder,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": SETTINGS["max_new_tokens"],
        "temperature": 0,
        "stream": stream,
    }
    request = urllib.request.Request(
        f"{address}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        answer = response.read().decode()
    if not stream:
        assert json.loads(answer)["choices"][0]["message"]["content"] == expected
        return
    lines = [line.removeprefix("data: ") for line in answer.splitlines() if line]
    events = [json.loads(line) for line in lines if line != "[DONE]"]
    pieces = [each["choices"][0]["delta"].get("content") for each in events]
    assert "".join(piece for piece in pieces if piece) == expected
    assert len(events) > 3
