"""The decoder that model args choose, and the args left for the model. Needs no lmms-eval."""

import dataclasses

import pytest

from revisit.config import (
    DeCoConfig,
    DoLaConfig,
    M3IDConfig,
    PAIConfig,
    ReVisiTConfig,
    SIDConfig,
    VCDConfig,
    VISTAConfig,
)
from revisit.lmms_eval.settings import read_model_args

PLAIN = ReVisiTConfig(no_vision="plain")
ASKED = {
    "": (PLAIN, ""),
    "pretrained=a/b": (PLAIN, "pretrained=a/b"),
    "pretrained=a,revisit_alpha=1e-3,device_map=cpu": (
        dataclasses.replace(PLAIN, alpha=1e-3),
        "pretrained=a,device_map=cpu",
    ),
    "revisit_layers=[0,2,4], pretrained=a": (
        dataclasses.replace(PLAIN, layers=[0, 2, 4]),
        "pretrained=a",
    ),
    "decoder=revisit,revisit_layers=all,revisit_selection=random,revisit_seed=3": (
        dataclasses.replace(PLAIN, layers="all", selection="random", seed=3),
        "",
    ),
    "pretrained=a,revisit_no_vision=error": (ReVisiTConfig(), "pretrained=a"),
    "pretrained=a,revisit_cache_bytes=0": (
        dataclasses.replace(PLAIN, cache_bytes=0),
        "pretrained=a",
    ),
    "decoder=vcd,vcd_alpha=0.5,vcd_noise_step=999,x=1": (
        VCDConfig(alpha=0.5, noise_step=999),
        "x=1",
    ),
    "x=1,decoder=m3id": (M3IDConfig(), "x=1"),
    "decoder=dola,dola_layers=[0,2],dola_relative_top=0": (
        DoLaConfig(layers=[0, 2], relative_top=0.0),
        "",
    ),
    "decoder=deco,deco_layers=[2,3],deco_top_k=5,x=1": (DeCoConfig(layers=(2, 3), top_k=5), "x=1"),
    "decoder=vista,vista_steering=0": (VISTAConfig(steering=0), ""),
    "decoder=pai,pai_gamma=2": (PAIConfig(gamma=2), ""),
    "decoder=sid,sid_rank=4,sid_alpha=1": (SIDConfig(rank=4, alpha=1), ""),
    "decoder=greedy,pretrained=a": (None, "pretrained=a"),
    # These belong to the model, although they look similar.
    'video_decoder=x,pretrained=decoder=1,more={"a": 1, "b": [2,3]},decoder=greedy': (
        None,
        'video_decoder=x,pretrained=decoder=1,more={"a": 1, "b": [2,3]}',
    ),
}


@pytest.mark.parametrize("written", ASKED)
def test_a_decoder_is_taken_out_of_model_args(written):
    config, rest = ASKED[written]
    decoding = read_model_args(written)
    assert (decoding.config, decoding.model_args) == (config, rest)


@pytest.mark.parametrize("written", ASKED)
def test_model_args_with_their_decoder_named_ask_for_the_same(written):
    decoding = read_model_args(written)
    assert f"decoder={decoding.name}" in decoding.written
    assert written in decoding.written
    assert read_model_args(decoding.written) == dataclasses.replace(
        decoding, written=decoding.written
    )


REFUSED = {
    "revisit_aplha=1": r"revisit_aplha: decoder=revisit has revisit_layers, revisit_alpha, ",
    "revisit_trace=true": "revisit_trace: decoder=revisit has ",
    "vcd_alpha=1": r"vcd_alpha: decoder=revisit has .* decoder=greedy\|revisit\|vcd\|m3id",
    "decoder=vcd,revisit_alpha=1": "revisit_alpha: decoder=vcd has vcd_alpha, vcd_beta",
    "decoder=greedy,revisit_alpha=1": "revisit_alpha: decoder=greedy has no settings",
    "decoder=beam": "decoder=beam: there are greedy, revisit, vcd, m3id, dola, deco",
    "decoder=ritual": "decoder=ritual needs a second, transformed image",
    "decoder=code": "decoder=code needs a second prompt with a description",
    "decoder=sid,sid_rank=-1": "decoder=sid: rank must be an integer >= 0",
    "revisit_alpha=tiny": "revisit_alpha=tiny: must be a number",
    "revisit_alpha=nan": r"decoder=revisit: alpha .* must be in \[0, 1\], got nan",
    "revisit_seed=1.5": "revisit_seed=1.5: must be an integer",
    "revisit_layers=[0,a]": r"revisit_layers=\[0,a\]: must be a list such as \[0,2,4\]",
    "revisit_layers=[0,2": r"revisit_layers=\[0: must be a list",
    "revisit_layers=first": "layers must be one of",
    "revisit_selection=median": "selection must be one of",
    "decoder=vcd,vcd_noise_step=1000": "decoder=vcd: noise_step must be an integer in 0..999",
}


@pytest.mark.parametrize("written", REFUSED)
def test_what_is_not_known_or_out_of_range_is_refused_with_what_is_right(written):
    with pytest.raises(ValueError, match=REFUSED[written]):
        read_model_args(f"pretrained=a,{written}")


def test_all_settings_of_a_decoder_are_recorded():
    record = read_model_args("decoder=revisit,revisit_alpha=1e-3").record()
    fields = {field.name for field in dataclasses.fields(ReVisiTConfig)} - {"trace"}
    assert record.keys() == {"name", *fields}
    assert (record["name"], record["alpha"], record["no_vision"]) == ("revisit", 1e-3, "plain")
    assert read_model_args("decoder=greedy").record() == {"name": "greedy"}
