"""The README's example, run as it stands on the embedded demo."""

import re
from pathlib import Path

import pytest
import torch

import revisit
from releases import CALLABLE
from revisit import ReVisiTConfig

pytest.importorskip("torchvision", reason="Qwen2.5-VL's processor needs it")
if not CALLABLE:
    pytest.skip("custom_generate takes a callable since 4.56", allow_module_level=True)

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "prerequisites" / "demo"
IMAGES = sorted((DEMO / "coco" / "val2014").glob("*.jpg"))


def example(number: int) -> str:
    """The README's n-th block of Python for an unpatched Transformers."""
    section = (ROOT / "README.md").read_text().split("## Use it in your own code")[1]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)[number]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The first block's variables and what it printed."""
    printed = []
    folder = tmp_path_factory.mktemp("readme")
    (folder / "photo.jpg").write_bytes(IMAGES[3].read_bytes())
    code = example(0)
    for named, there in (
        ("Qwen/Qwen2.5-VL-7B-Instruct", str(DEMO / "qwen-tiny")),
        ("photo.jpg", str(folder / "photo.jpg")),
    ):
        assert named in code
        code = code.replace(named, there)
    variables = {"print": printed.append}
    exec(compile(code, "README.md", "exec"), variables)
    return variables, printed


def test_the_example_describes_the_image(ran):
    variables, printed = ran
    model, inputs = variables["model"], variables["inputs"]
    assert len(printed) == 1
    assert printed[0].split()
    plain = model.generate(**inputs, max_new_tokens=256)
    assert not torch.equal(variables["output"], plain)


def test_the_second_example_gives_the_same(ran):
    variables, _ = ran
    settings = {"max_new_tokens": 256, "do_sample": False}
    model, inputs = variables["model"], variables["inputs"]
    expected = model.generate(
        **inputs,
        **settings,
        custom_generate=revisit.generate,
        revisit_config=ReVisiTConfig(alpha=1e-5),
    )
    names = variables | {"inputs": {**inputs, **settings}}
    exec(example(1), names)
    assert torch.equal(names["output"], expected)
