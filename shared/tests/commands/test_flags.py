"""Command lines as users write them, and the settings that come out."""

from contextlib import suppress
from typing import Annotated, Any, Literal

import pytest
from cyclopts import Parameter

from revisit.commands.flags import DECODERS, FLATTENED, decoder_flags, new_app, to_config
from revisit.commands.main import run
from revisit.config import DoLaConfig, ReVisiTConfig, VCDConfig

with suppress(ImportError):
    import pydantic  # noqa: F401  # where it is loaded, cyclopts asks it about every value

Settings = decoder_flags(DECODERS)


@pytest.fixture
def parsed():
    """What a command line says: the decoder's config, and the other flags."""

    def parse(*argv: str) -> tuple[Any, dict[str, Any]]:
        app, seen = new_app("try", ""), []

        @app.command
        def it(
            *images: str,
            do_sample: bool = False,
            decoder: Literal["greedy", "revisit", "vcd", "dola"] = "revisit",
            splits: Annotated[list[str], Parameter(consume_multiple=True)] = ["all"],  # noqa: B006
            settings: Annotated[Settings, FLATTENED] = Settings(),  # noqa: B008
        ) -> None:
            more = {"images": images, "do_sample": do_sample, "splits": splits}
            seen.append((to_config(decoder, settings), more))

        assert run(app, ["it", *argv]) == 0
        return seen[0]

    return parse


@pytest.mark.parametrize("flag", ["--layers", "--early_exit_layers", "--early-exit-layers"])
@pytest.mark.parametrize(
    ("words", "layers"),
    [(["0", "2", "5"], (0, 2, 5)), (["0,2,5"], (0, 2, 5)), (["0,2", "5"], (0, 2, 5)), (["1"], (1,))]
    + [([name], name) for name in ("last", "all", "low", "high")],
    ids=str,
)
def test_layers_are_written_in_every_way(parsed, flag, words, layers):
    config, more = parsed(flag, *words, "image.jpg")
    assert config == ReVisiTConfig(layers=layers)
    assert more["images"] == ("image.jpg",)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--do_sample"], True),
        (["--do-sample"], True),
        (["--do_sample", "true"], True),
        (["--do_sample", "False"], False),
        (["--do_sample=true"], True),
        (["--do_sample", "--splits", "all"], True),
        (["--do_sample", "true", "--do_sample", "false"], False),
        ([], False),
    ],
    ids=str,
)
def test_a_switch_stands_alone_or_before_true_or_false(parsed, words, value):
    assert parsed(*words)[1]["do_sample"] is value


def test_published_and_short_names_are_one_setting_and_the_last_counts(parsed):
    assert parsed("--relative_top", "1e-3")[0] == ReVisiTConfig(alpha=1e-3)
    twice = ["--relative_top", "1e-3", "--alpha", "0.1", "--layers", "all", "--layers=0"]
    assert parsed(*twice)[0] == ReVisiTConfig(alpha=0.1, layers=(0,))
    assert parsed("--splits", "a", "b", "--splits", "c", "d")[1]["splits"] == ["c", "d"]


@pytest.mark.parametrize(
    ("words", "decoder"),
    [
        (["--use_revisit"], ReVisiTConfig()),
        (["--use-revisit", "true", "image.jpg"], ReVisiTConfig()),
        (["--use_revisit=false"], None),
        (["--use_revisit", "False", "--decoder", "vcd"], VCDConfig()),
        (["--decoder", "vcd", "--use_revisit", "--do_sample"], ReVisiTConfig()),
    ],
    ids=str,
)
def test_use_revisit_is_a_decoder_and_the_last_of_both_counts(parsed, words, decoder):
    assert parsed("--decoder", "dola", *words)[0] == decoder


def test_the_settings_of_each_decoder_come_from_its_config(parsed):
    vcd = parsed("--decoder", "vcd", "--vcd_alpha", "2", "--vcd-noise-step=7")[0]
    assert vcd == VCDConfig(alpha=2.0, noise_step=7)
    dola = parsed("--decoder", "dola", "--dola_layers", "0", "2")[0]
    assert dola == DoLaConfig(layers=(0, 2))
    assert parsed("--decoder", "greedy")[0] is None


def test_a_file_gives_the_flags_that_the_command_line_lacks(parsed, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("layers: [0, 2]\nrelative_top: 1e-3\ndo_sample: true\nsplits: [a, b]\n")
    config, more = parsed("image.jpg", "--config", str(file), "--alpha", "0.5")
    assert config == ReVisiTConfig(layers=(0, 2), alpha=0.5)
    assert more == {"images": ("image.jpg",), "do_sample": True, "splits": ["a", "b"]}


@pytest.mark.parametrize("words", [["--config", "{}"], ["--config={}"]], ids=str)
def test_a_file_may_say_use_revisit(parsed, tmp_path, words):
    file = tmp_path / "settings.yaml"
    file.write_text("use_revisit: false\nalpha: 0.5\n")
    named = [word.format(file) for word in words]
    assert parsed(*named)[0] is None
    assert parsed(*named, "--use_revisit", "true")[0] == ReVisiTConfig(alpha=0.5)


def test_a_mistyped_name_in_a_file_is_refused(tmp_path, capsys):
    file = tmp_path / "settings.yaml"
    app = new_app("try", "")
    app.command(lambda *, alpha=1.0: None, name="it")
    wrong = (("alpa: 1\n", "Did you mean --alpha?"), ("a: [1\n", "YAML"), ("word\n", "no names"))
    for text, message in wrong:
        file.write_text(text)
        assert run(app, ["it", "--config", str(file)]) == 2
        assert message in capsys.readouterr().err
