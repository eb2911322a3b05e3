"""A captioning task and one of yes and no, run by lmms-eval with the demo's Qwen2.5-VL."""

import pytest
import torch
from qwen_vl_utils import process_vision_info
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

import revisit
from evaluations import CHECKPOINT, MODEL, Evaluation, arguments
from revisit import DoLaConfig, M3IDConfig, PAIConfig, ReVisiTConfig, SIDConfig, VCDConfig
from revisit.lmms_eval.launch import main
from scenes_data import LONGEST, SCENES, WITHOUT_IMAGE, captions, questions

DECODERS = {
    "": ReVisiTConfig(no_vision="plain"),
    "revisit_layers=all,revisit_alpha=1e-3": ReVisiTConfig(
        layers="all", alpha=1e-3, no_vision="plain"
    ),
    "decoder=vcd,vcd_alpha=4,vcd_noise_step=999": VCDConfig(alpha=4, noise_step=999),
    "decoder=m3id,m3id_gamma=0.2": M3IDConfig(gamma=0.2),
    "decoder=dola,dola_layers=[0,2]": DoLaConfig(layers=[0, 2]),
    "decoder=pai,pai_alpha=2": PAIConfig(alpha=2),
    "decoder=sid,sid_alpha=8,sid_rank=4": SIDConfig(alpha=8, rank=4),
}
by_decoder = pytest.mark.parametrize("settings", DECODERS)


@pytest.fixture(scope="module")
def directly():
    """What the model answers to the same prompts one by one, with `revisit.attach`."""
    processor = AutoProcessor.from_pretrained(CHECKPOINT, min_pixels=784, max_pixels=12544)

    def load(dtype):
        """As lmms-eval loads it; in float32 too the weights are those rounded to bfloat16."""
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.bfloat16)
        return (model.float() if dtype == torch.float32 else model).eval()

    def answer(model, row):
        image = [{"type": "image", "image": row["image"]}] if row["image"] else []
        asked = {"type": "text", "text": row["question"]}
        chat = [{"role": "user", "content": [*image, asked]}]
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        images, _ = process_vision_info(chat)
        inputs = processor(text=[text], images=images, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
        new = tokens[:, inputs.input_ids.shape[1] :]
        return processor.batch_decode(new, skip_special_tokens=True)[0]

    def answers(config, dtype):
        model = load(dtype)
        with revisit.attach(model, config):
            return {
                "demo_captions": [answer(model, row) for row in captions()],
                "demo_questions": [answer(model, row) for row in questions()],
            }

    return answers


@by_decoder
def test_answers_are_those_of_attach_on_the_same_prompts(settings, evaluated, directly):
    assert evaluated(settings).answers == directly(DECODERS[settings], torch.float32)


def test_also_in_bfloat16_by_the_class_of_lmms_eval(evaluated, directly):
    settings = "revisit_layers=all,revisit_alpha=1e-3"
    bfloat16 = evaluated(settings, batch=1, model="qwen2_5_vl")
    assert bfloat16.answers == directly(DECODERS[settings], torch.bfloat16)


@pytest.mark.parametrize("settings", ["", "decoder=vcd,vcd_alpha=4,vcd_noise_step=999"])
def test_a_batch_of_four_answers_as_single_prompts(settings, evaluated):
    single, four = evaluated(settings, batch=1), evaluated(settings)
    assert single.results["config"]["batch_size"] == "1"
    assert four.results["config"]["batch_size"] == "4"
    assert single.answers == four.answers
    assert single.results["results"] == four.results["results"]


def test_greedy_is_lmms_eval_itself(evaluated, plain):
    greedy = evaluated("decoder=greedy")
    assert greedy.answers == plain.answers
    assert greedy.results["results"] == plain.results["results"]
    assert len(plain.answers["demo_captions"]) == SCENES
    assert len(plain.answers["demo_questions"]) == SCENES + 1


@by_decoder
def test_every_decoder_changes_captions_and_leaves_text_alone(settings, evaluated, plain):
    answers = evaluated(settings).answers
    pairs = zip(answers["demo_captions"], plain.answers["demo_captions"], strict=True)
    assert sum(one != other for one, other in pairs) >= 2
    of_text = answers["demo_questions"][WITHOUT_IMAGE]
    assert of_text == plain.answers["demo_questions"][WITHOUT_IMAGE] != ""


def test_without_a_decoder_named_it_is_revisit_and_the_model_args_say_so(evaluated):
    config = evaluated().results["config"]
    assert config["model_args"] == f"{MODEL},decoder=revisit"
    assert config["decoder"]["name"] == "revisit"


def test_the_results_name_the_decoder_and_its_settings(evaluated):
    settings = "revisit_layers=all,revisit_alpha=1e-3"
    config = evaluated(settings).results["config"]
    assert config["model_args"] == f"{MODEL},{settings},decoder=revisit"
    named = {name: config["decoder"][name] for name in ("name", "layers", "alpha", "divergence")}
    assert named == {"name": "revisit", "layers": "all", "alpha": 1e-3, "divergence": "ag"}
    assert evaluated("decoder=greedy").results["config"]["decoder"] == {"name": "greedy"}


def test_what_lmms_eval_kept_of_plain_decoding_is_not_taken(
    plain, cache, evaluated, folder, tmp_path
):
    assert main(arguments(folder, tmp_path, "", "--use_cache", str(cache))) == 0
    assert Evaluation.read(tmp_path).answers == evaluated().answers != plain.answers
