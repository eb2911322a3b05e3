"""Prompts, their tokens, and images made ready."""

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, LlamaTokenizer

from llava import (
    IMAGE_TOKEN_INDEX,
    LlavaConfig,
    llava_v1_prompt,
    pad_prompts,
    process_images,
    tokenizer_image_token,
)

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions."
)


@pytest.fixture(scope="module")
def tokenizer(saved_model):
    return LlamaTokenizer.from_pretrained(saved_model)


def test_a_conversation_of_one_turn_and_of_several():
    one = llava_v1_prompt(["<image>\nWhat is this?"])
    assert one == f"{SYSTEM} USER: <image>\nWhat is this? ASSISTANT:"
    three = llava_v1_prompt(["<image>\nWhat is this?", "A cat.", "What colour?"])
    assert three == f"{one} A cat.</s>USER: What colour? ASSISTANT:"
    assert llava_v1_prompt(["<image>\nWhat is this?", "A cat."]) == f"{one} A cat.</s>"
    with pytest.raises(ValueError, match="at least one turn"):
        llava_v1_prompt([])


def test_text_around_images_is_tokenized_piece_by_piece(tokenizer):
    def pieces(text):
        return tokenizer.encode(text)[1:]

    prompt = "USER: <image>\nWhat is <image> this? ASSISTANT: A cat.</s>"
    ids = tokenizer_image_token(prompt, tokenizer)
    assert ids == [
        tokenizer.bos_token_id,
        *pieces("USER: "),
        IMAGE_TOKEN_INDEX,
        *pieces("\nWhat is "),
        IMAGE_TOKEN_INDEX,
        *pieces(" this? ASSISTANT: A cat.</s>"),
    ]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[-1] == tokenizer.eos_token_id
    tensor = tokenizer_image_token(prompt, tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")
    assert torch.equal(tensor, torch.tensor(ids))


def test_a_prompt_that_begins_or_ends_with_an_image_or_has_none(tokenizer):
    bos = tokenizer.bos_token_id
    assert tokenizer_image_token("<image>", tokenizer) == [bos, IMAGE_TOKEN_INDEX]
    assert tokenizer_image_token("<image><image>", tokenizer) == [bos, *[IMAGE_TOKEN_INDEX] * 2]
    assert tokenizer_image_token("What?", tokenizer) == tokenizer("What?").input_ids
    with pytest.raises(ValueError, match="return_tensors is 'np'"):
        tokenizer_image_token("What?", tokenizer, return_tensors="np")


def test_prompts_are_padded_on_the_left():
    ids, mask = pad_prompts([[1, 2], [1, 3, 4, 5]], 9)
    assert ids.tolist() == [[9, 9, 1, 2], [1, 3, 4, 5]]
    assert mask.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]


SQUARE = CLIPImageProcessor(
    size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}, resample=Image.NEAREST
)


def picture_of(pixels):
    """What an image (3, H, W) looks like, as a list of rows of RGB bytes."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (SQUARE.image_mean, SQUARE.image_std))
    return ((pixels * std + mean) * 255).round().long().permute(1, 2, 0).tolist()


@pytest.mark.parametrize("size", [(8, 4), (4, 8), (8, 3), (1, 8), (8, 8)])
def test_an_image_is_padded_to_a_square_of_the_mean_colour(size):
    red = Image.new("RGB", size, (255, 0, 0))
    (pixels,) = process_images([red], SQUARE, LlavaConfig(image_aspect_ratio="pad"))
    left, top = (8 - size[0]) // 2, (8 - size[1]) // 2
    for y, row in enumerate(picture_of(pixels)):
        for x, colour in enumerate(row):
            inside = left <= x < left + size[0] and top <= y < top + size[1]
            # The mean colour of CLIP, 0.481 0.458 0.408, in whole bytes.
            assert colour == ([255, 0, 0] if inside else [122, 116, 104])


def test_without_pad_the_middle_is_cut_out():
    red = Image.new("RGB", (16, 8), (255, 0, 0))
    (pixels,) = process_images([red], SQUARE, LlavaConfig())
    assert picture_of(pixels) == [[[255, 0, 0]] * 8] * 8


def test_images_are_read_as_all_programs_here_read_them():
    """`test_images.py` has every mode and orientation."""
    picture = Image.new("RGB", (8, 4), (255, 0, 0))
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6
    config = LlavaConfig(image_aspect_ratio="pad")
    pixels = process_images([turned, picture.convert("CMYK"), picture], SQUARE, config)
    assert pixels.shape == (3, 3, 8, 8) and pixels.dtype == torch.float32
    assert torch.equal(pixels[0], pixels[2]) and torch.equal(pixels[1], pixels[2])


@pytest.mark.parametrize("aspect", ["pad", None])
@pytest.mark.parametrize("size", [(3, 3), (1, 1), (4, 4), (2, 1), (8, 1), (8, 3), (8, 4), (3, 8)])
def test_a_side_as_long_as_there_are_channels_swaps_no_colours(size, aspect):
    picture = Image.new("RGB", size, (250, 120, 10))
    pixels = process_images([picture], SQUARE, LlavaConfig(image_aspect_ratio=aspect))
    colours = {tuple(colour) for row in picture_of(pixels[0]) for colour in row}
    assert (250, 120, 10) in colours and colours <= {(250, 120, 10), (122, 116, 104)}
