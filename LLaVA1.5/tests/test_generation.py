"""Generation over batches, several images and all of Transformers' decoding strategies."""

import pytest
import torch
from transformers import LlamaTokenizer, TextIteratorStreamer

from llava import IMAGE_TOKEN_INDEX, pad_prompts

IMAGE = IMAGE_TOKEN_INDEX
PLAIN: dict = {}
SCORES = {"output_scores": True, "return_dict_in_generate": True}
REVISIT = {"use_revisit": True, "early_exit_layers": "all", "relative_top": 0.01}
both_decoders = pytest.mark.parametrize("decoder", [PLAIN, REVISIT], ids=["greedy", "revisit"])

# Prompts of different length with one, three and two images.
PROMPTS = [[1, 5, 7, IMAGE, 11, 13], [1, IMAGE, IMAGE, 30, IMAGE, 40, 50, 60], [1, IMAGE, IMAGE, 9]]
TEXT = [1, 21, 22, 23, 24]


def rows_of(prompts, pixels):
    """The images of each prompt: (k, 3, H, W) each."""
    counts = [prompt.count(IMAGE) for prompt in prompts]
    return pixels[: sum(counts)].split(counts)


def batch(model, prompts, pixels, **settings):
    """New tokens of each row of a padded batch; rows of a prompt follow each other."""
    ids, mask = pad_prompts(prompts, 0)
    stacked = torch.cat(rows_of(prompts, pixels))
    images = stacked if len(stacked) else None
    output = model.generate(ids, images=images, attention_mask=mask, **settings)
    assert torch.equal(output[:, : ids.shape[1]].unique(dim=0), ids.unique(dim=0))
    return output[:, ids.shape[1] :].tolist()


def alone(model, prompts, pixels, **settings):
    """The same, each prompt by itself; rows padded to the longest."""
    rows = []
    for prompt, images in zip(prompts, rows_of(prompts, pixels), strict=True):
        rows += batch(model, [prompt], images, **settings)
    length = max(map(len, rows))
    return [row + [0] * (length - len(row)) for row in rows]


@both_decoders
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_cache": False},
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2},
        {"encoder_repetition_penalty": 1.5},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2, "repetition_penalty": 1.3},
        {"min_new_tokens": 8, "early_exit_layers": "last"},
        {"bad_words_ids": [[5], [7, 9]]},
    ],
    ids=str,
)
def test_a_batch_gives_each_row_what_it_gives_alone(small_model, pixels, decoder, settings):
    settings = {"max_new_tokens": 8, **decoder, **settings}
    expected = alone(small_model, PROMPTS, pixels, **settings)
    assert batch(small_model, PROMPTS, pixels, **settings) == expected
    # The other way round: other neighbours, other padding.
    flipped = torch.cat(rows_of(PROMPTS, pixels)[::-1])
    count = len(expected) // len(PROMPTS)
    rows = batch(small_model, PROMPTS[::-1], flipped, **settings)
    blocks = [rows[i : i + count] for i in range(0, len(rows), count)]
    assert [row for block in blocks[::-1] for row in block] == expected


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}],
    ids=["greedy", "groups of beams"],
)
def test_prompts_without_an_image_beside_prompts_with_one(small_model, pixels, settings):
    prompts = [TEXT, *PROMPTS, TEXT[:2]]
    settings = {"max_new_tokens": 6, **settings}
    expected = alone(small_model, prompts, pixels, **settings)
    assert batch(small_model, prompts, pixels, **settings) == expected


@both_decoders
def test_the_images_decide_the_answer(small_model, pixels, decoder):
    prompts = [PROMPTS[1]]
    first = batch(small_model, prompts, pixels[:3], max_new_tokens=8, **decoder)
    other = batch(small_model, prompts, pixels[3:], max_new_tokens=8, **decoder)
    swapped = batch(small_model, prompts, pixels[[1, 0, 2]], max_new_tokens=8, **decoder)
    assert first != other and first != swapped


def test_images_come_as_one_tensor_by_prompt_or_as_a_list(small_model, pixels):
    ids, mask = pad_prompts([PROMPTS[2], [1, 5, IMAGE, 8, IMAGE, 4]], 0)
    forms = [
        pixels[:4],
        pixels[:4].unflatten(0, (2, 2)),
        list(pixels[:4]),
        [pixels[:2], pixels[2:4]],
        [pixels[:1], pixels[1], pixels[2:4]],
    ]
    settings = {"attention_mask": mask, "max_new_tokens": 4}
    first, *others = (small_model.generate(ids, images=form, **settings) for form in forms)
    assert all(torch.equal(other, first) for other in others)


@both_decoders
def test_rows_of_one_prompt_see_the_same_images(small_model, pixels, decoder):
    ids, mask = pad_prompts(PROMPTS[:2], 0)
    output = small_model.generate(
        ids,
        attention_mask=mask,
        images=pixels[:4],
        max_new_tokens=1,
        do_sample=True,
        num_return_sequences=3,
        **SCORES,
        **decoder,
    )
    scores = output.scores[0].unflatten(0, (2, 3))
    assert torch.equal(scores, scores[:, :1].expand_as(scores))
    assert not torch.equal(scores[0, 0], scores[1, 0])


@both_decoders
def test_sampling_obeys_its_settings(small_model, pixels, decoder):
    def first_scores(**settings):
        torch.manual_seed(3)
        settings = {"images": pixels[:1], "max_new_tokens": 4, **SCORES, **decoder, **settings}
        return small_model.generate(torch.tensor([PROMPTS[0]]), **settings)

    plain = first_scores(do_sample=True, top_k=0)
    assert torch.equal(plain.scores[0], first_scores().scores[0])
    again = first_scores(do_sample=True, top_k=0)
    assert torch.equal(plain.sequences, again.sequences)
    warm = first_scores(do_sample=True, top_k=0, temperature=2.0)
    torch.testing.assert_close(warm.scores[0], plain.scores[0] / 2)
    assert first_scores(do_sample=True, top_k=2).scores[0].isfinite().sum() == 2
    nucleus = first_scores(do_sample=True, top_k=0, top_p=0.5)
    kept = plain.scores[0].softmax(1)[nucleus.scores[0].isfinite()]
    assert kept.sum() >= 0.5 > kept.sum() - kept.min()


@pytest.mark.parametrize("pad", [0, 2])
def test_a_penalty_reads_the_text_of_the_prompt_and_not_its_padding(small_model, pixels, pad):
    ids, mask = pad_prompts(PROMPTS[:2], pad)
    arguments = {"attention_mask": mask, "images": pixels[:4], "pad_token_id": pad, **SCORES}
    arguments["max_new_tokens"] = 1
    plain = small_model.generate(ids, **arguments).scores[0]
    penalized = small_model.generate(ids, repetition_penalty=2.0, **arguments).scores[0]
    for row, prompt in enumerate(PROMPTS[:2]):
        expected = plain[row].clone()
        for token in {token for token in prompt if token != IMAGE}:
            expected[token] *= 2 if expected[token] < 0 else 0.5
        assert torch.equal(penalized[row], expected)


def test_a_penalty_on_a_prompt_that_is_one_image(small_model, pixels):
    output = small_model.generate(
        torch.tensor([[IMAGE]]), images=pixels[:1], max_new_tokens=3, repetition_penalty=2.0
    )
    assert output.shape[1] > 1


@both_decoders
@pytest.mark.parametrize("skip_prompt", [True, False])
def test_streaming_gives_the_text_of_the_answer(
    small_model, saved_model, pixels, decoder, skip_prompt
):
    tokenizer = LlamaTokenizer.from_pretrained(saved_model)
    prompt = torch.tensor([[1, *tokenizer("What is this?").input_ids[1:], IMAGE, 40, 41]])
    arguments = {"images": pixels[:1], "max_new_tokens": 6, "min_new_tokens": 6, **decoder}
    tokens = small_model.generate(prompt, **arguments)[0]
    shown = tokens[prompt.shape[1] :] if skip_prompt else tokens[tokens != IMAGE]
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=skip_prompt)
    small_model.generate(prompt, streamer=streamer, **arguments)
    assert "".join(streamer) == tokenizer.decode(shown)


@both_decoders
def test_scores_come_with_the_tokens(small_model, pixels, decoder):
    ids, mask = pad_prompts(PROMPTS, 0)
    settings = {"max_new_tokens": 5, "output_hidden_states": True, **SCORES, **decoder}
    output = small_model.generate(ids, attention_mask=mask, images=pixels, **settings)
    chosen = torch.stack([scores.argmax(1) for scores in output.scores], 1)
    ended = (output.sequences[:, ids.shape[1] :] == 0).cumsum(1) > 0
    assert torch.equal(chosen[~ended], output.sequences[:, ids.shape[1] :][~ended])
    vision_mask, grids = small_model.vision_tokens(ids, mask)
    assert output.hidden_states[0][0].shape[:2] == vision_mask.shape
    assert [len(row) for row in grids] == [1, 3, 2]


@pytest.mark.parametrize(
    ("prompt", "count", "message"),
    [
        ([1, IMAGE, 5], 0, "hold 1 image placeholders .* 0 images were given"),
        ([1, 5], 1, "hold 0 image placeholders .* 1 images were given"),
        ([1, IMAGE, IMAGE, 5], 3, "hold 2 image placeholders .* 3 images were given"),
    ],
)
@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, REVISIT], ids=str)
def test_images_that_do_not_match_the_prompt(small_model, pixels, prompt, count, message, settings):
    images = pixels[:count] if count else None
    with pytest.raises(ValueError, match=message):
        small_model.generate(torch.tensor([prompt]), images=images, max_new_tokens=2, **settings)


def test_images_of_another_size(small_model):
    ids = torch.tensor([[1, IMAGE, IMAGE, 5]])
    for images, message in (
        (torch.zeros(2, 3, 70, 70), r"takes \(3, 56, 56\)"),
        ([torch.zeros(3, 56, 56), torch.zeros(3, 70, 70)], "differ in size"),
        (torch.zeros(3, 56, 56), r"shape \(3, 56, 56\); expected"),
    ):
        with pytest.raises(ValueError, match=message):
            small_model.generate(ids, images=images, max_new_tokens=1)


def test_contrastive_search_is_refused(small_model, pixels):
    ids = torch.tensor([PROMPTS[0]])
    with pytest.raises(NotImplementedError, match="penalty_alpha"):
        small_model.generate(ids, images=pixels[:1], penalty_alpha=0.6, top_k=4)


def test_a_mask_of_another_shape(small_model, pixels):
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 20\)"):
        small_model(torch.tensor([[1, IMAGE]]), torch.ones(1, 20), images=pixels[:1])
