"""The Python that the README and docs/using.md show, run as it stands on the embedded demo."""

import re
from pathlib import Path

import pytest
import torch

import revisit
from releases import RELEASE

pytest.importorskip("torchvision", reason="Qwen2.5-VL's processor needs it")
if RELEASE < (5, 0):
    pytest.skip("written for the newest release", allow_module_level=True)

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "prerequisites" / "demo"
IMAGES = sorted((DEMO / "coco" / "val2014").glob("*.jpg"))
README = ROOT / "README.md"


def blocks(page):
    """The Python blocks of a page, with the demo's model and image in place of the large ones."""
    code = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    replacements = (
        ("Qwen/Qwen2.5-VL-7B-Instruct", DEMO / "qwen-tiny"),
        ("photo.jpg", IMAGES[3]),
        ('custom_generate="."', f'custom_generate="{ROOT}"'),
    )
    for name, path in replacements:
        code = [block.replace(name, str(path)) for block in code]
    return code


def run(code, variables):
    exec(compile(code, "block", "exec"), variables)


def test_the_readme_s_lines_describe_the_image_with_revisit():
    (code,) = blocks(README)
    printed = []
    variables = {"print": printed.append}
    run(code, variables)
    describe, chat = variables["describe"], variables["chat"]
    revisit.disable(describe.model)
    (plain,) = describe(text=chat, return_full_text=False, max_new_tokens=256)
    assert printed[0].split() and printed != [plain["generated_text"]]


def test_the_package_s_own_page_shows_the_readme_s_lines():
    assert blocks(ROOT / "shared" / "README.md") == blocks(README)
    assert (ROOT / "shared" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_readme_names_what_picks_the_vision_token():
    page = README.read_text("utf-8")
    place = "shared/src/revisit/core/step.py"
    assert f"picked by `select` in [`{place}`]({place})" in page
    assert "\ndef select(" in (ROOT / place).read_text()
    assert len(page.split()) <= 900


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    """The variables after each block of docs/using.md, and what was printed."""
    printed = []
    variables = {"print": lambda text, **_: printed.append(text)}
    after = []
    with pytest.MonkeyPatch.context() as patch:
        modules = tmp_path_factory.mktemp("modules")
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(modules))
        for code in blocks(ROOT / "docs" / "using.md"):
            run(code, variables)
            after.append((code, dict(variables), printed[:]))
    return after


def shown(guide, words):
    """The variables and prints after the block of docs/using.md that has these words."""
    ((_, variables, printed),) = [each for each in guide if words in each[0]]
    return variables, printed


def test_all_entrances_of_the_guide_give_the_same_tokens(guide):
    attached = shown(guide, 'with revisit.attach(model, revisit.ReVisiTConfig(layers="all")):')[0]
    loop = shown(guide, "refine.generation(inputs)")[0]
    folder = shown(guide, "custom_generate=")[0]
    expected = attached["described"]
    assert torch.equal(loop["tokens"], expected)
    assert torch.equal(folder["output"], expected)
    plain = folder["model"].generate(**folder["inputs"], **folder["settings"])
    assert not torch.equal(plain, expected)


def test_the_guide_s_mask_stream_and_trace_give_the_same_tokens(guide):
    masked, before = shown(guide, "vision_mask=mask")
    traced, lines = shown(guide, "run.trace[0]")
    _, pieces = shown(guide, "TextIteratorStreamer(")
    assert torch.equal(traced["output"], masked["output"])
    new = masked["output"][0, masked["inputs"]["input_ids"].shape[1] :]
    tokens = [step.token for step in traced["run"].trace[0]]
    assert tokens == new.tolist()
    assert len(lines) - len(before) == 5 and "patch (0, " in lines[-1]
    text = masked["processor"].decode(new, skip_special_tokens=True)
    assert "".join(pieces[len(lines) :]) == text


def test_the_guide_s_other_decoders_give_different_scores(guide):
    last = shown(guide, "second_image(")[0]
    *contrasting, ritual = last["others"].values()
    arguments = {**last["inputs"], **last["settings"]}
    plain = last["model"].generate(**arguments)

    def scores(config):
        """The scores of the first steps: decoders may choose the same tokens."""
        recorded = {**arguments, "return_dict_in_generate": True, "output_scores": True}
        with revisit.attach(last["model"], config):
            output = last["model"].generate(**recorded)
        return tuple(torch.stack(output.scores[:3]).flatten().tolist())

    different = {scores(config) for config in last["others"] if config != "RITUAL"}
    assert len(different) == len(contrasting) == 3
    # RITUAL may choose the tokens of greedy decoding, since the image changes little.
    with revisit.attach(last["model"], revisit.RITUALConfig(alpha=0)):
        same = last["model"].generate(
            **last["inputs"], **last["settings"], second_inputs=last["second"]
        )
    assert torch.equal(same, plain) and ritual.shape[0] == 1
