"""A run's settings: what is refused, and how records and folders name what was chosen."""

import pytest

from revisit.config import (
    DoLaConfig,
    M3IDConfig,
    Number,
    ReVisiTConfig,
    RITUALConfig,
    SIDConfig,
    VCDConfig,
)
from revisit.evaluation import EvaluationError
from revisit.evaluation.process import Process
from revisit.evaluation.run import Generation, Place, decoder_settings, decoder_slug

# Folders and records that earlier versions have written: what continues them.
REVISIT = {"use_revisit": True, "revisit_divergence": "ag"}
VCD = {"vcd_alpha": 0.5, "vcd_beta": 0.1, "vcd_noise_step": 500, "vcd_seed": 0}
RITUAL = {"ritual_alpha": 3.0, "ritual_beta": 0.01, "ritual_seed": 3}
WRITTEN = [
    (None, "plain", {}),
    (
        ReVisiTConfig(),
        "revisit-last-1e-5-ag",
        REVISIT | {"early_exit_layers": "last", "relative_top": 1e-5},
    ),
    (
        ReVisiTConfig(layers=[0, 10, 20], alpha=Number("0.10"), selection="random"),
        "revisit-0-10-20-0.10-ag-random",
        REVISIT
        | {"early_exit_layers": [0, 10, 20], "relative_top": 0.1, "revisit_selection": "random"},
    ),
    (VCDConfig(alpha=Number("0.50")), "vcd-0.50-0.1-500-0", {"decoder": "vcd"} | VCD),
    (
        RITUALConfig(beta=Number("1e-2"), seed=3),
        "ritual-3.0-1e-2-3",
        {"decoder": "ritual"} | RITUAL,
    ),
    (
        M3IDConfig(gamma=0.1),
        "m3id-0.1-0.1",
        {"decoder": "m3id", "m3id_gamma": 0.1, "m3id_beta": 0.1},
    ),
    (
        DoLaConfig(layers=[0, 2, 4], relative_top=Number("0")),
        "dola-0-2-4-0",
        {"decoder": "dola", "dola_layers": [0, 2, 4], "dola_relative_top": 0.0},
    ),
    (
        SIDConfig(rank=50),
        "sid-0.5-0.1-2-50",
        {"decoder": "sid", "sid_alpha": 0.5, "sid_beta": 0.1, "sid_layer": 2, "sid_rank": 50},
    ),
]


@pytest.mark.parametrize(("decoder", "slug", "settings"), WRITTEN, ids=lambda each: str(each)[:20])
def test_a_decoder_names_folders_and_records_as_it_always_did(decoder, slug, settings):
    assert decoder_slug(decoder) == slug
    assert decoder_settings(decoder) == settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "--max_new_tokens 0: say a whole number >= 1"),
        ({"top_k": -1}, "--top_k -1: say a whole number >= 0"),
        ({"temperature": 0.0}, r"--temperature 0.0: say a number in \]0, inf\]"),
        ({"temperature": float("inf")}, "--temperature inf"),
        ({"top_p": 1.5}, r"--top_p 1.5: say a number in \]0, 1\]"),
        ({"repetition_penalty": float("nan")}, "--repetition_penalty nan"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, message):
    with pytest.raises(EvaluationError, match=message):
        Generation(**settings)


def test_generate_gets_the_settings_in_force():
    plain = {"max_new_tokens": 512, "do_sample": False, "num_beams": 1}
    assert Generation(top_k=5).arguments() == plain
    sampling = Generation(do_sample=True, top_p=0.9, repetition_penalty=1.2).arguments()
    drawn = {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "top_k": 0}
    assert sampling == plain | drawn | {"repetition_penalty": 1.2}


@pytest.mark.parametrize(
    ("gpus", "device", "dtype", "settled"),
    [
        (0, None, None, ("cpu", "float32")),
        (0, None, "auto", ("cpu", "auto")),
        (1, None, None, ("cuda", "bfloat16")),
        (1, "auto", None, ("auto", "bfloat16")),
        (1, "cuda:0", "float16", ("cuda:0", "float16")),
        (1, "cpu", None, ("cpu", "float32")),
    ],
)
def test_on_a_gpu_the_default_dtype_is_the_familys(gpus, device, dtype, settled):
    place = Place(device=device, dtype=dtype)
    place = place.settled(gpus=gpus, gpu_dtype="bfloat16", process=Process())
    assert (place.device, place.dtype) == settled


@pytest.mark.parametrize(
    ("device", "gpus", "settled"),
    [(None, 2, "cuda:1"), ("cuda", 2, "cuda:1"), ("cuda:0", 2, "cuda:0"), (None, 0, "cpu")],
)
def test_each_process_takes_the_gpu_of_its_number(device, gpus, settled):
    place = Place(device=device).settled(gpus=gpus, gpu_dtype="auto", process=Process(3, 4, 1))
    assert place.device == settled


@pytest.mark.parametrize(
    ("device", "gpus", "message"),
    [
        (None, 1, "cuda:1: PyTorch finds no such device"),
        ("auto", 2, "there are several processes"),
        ("cuda:99", 1, "--device cuda:99: PyTorch finds no such device here"),
    ],
)
def test_a_device_that_is_not_there_is_refused(device, gpus, message):
    with pytest.raises(EvaluationError, match=message):
        Place(device=device).settled(gpus=gpus, gpu_dtype="auto", process=Process(1, 2, 1))


def test_a_server_and_its_address_need_each_other_and_no_dtype():
    for settings in ({"engine": "openai"}, {"base_url": "http://localhost:1/v1"}):
        with pytest.raises(EvaluationError, match="one needs the other"):
            Place(**settings)
    place = Place(engine="openai", base_url="http://localhost:1/v1", dtype="float32")
    with pytest.raises(EvaluationError, match="--dtype: the server has loaded its model"):
        place.settled(gpus=0, gpu_dtype="auto", process=Process())
