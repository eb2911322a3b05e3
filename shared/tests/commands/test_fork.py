"""`revisit fork`: that its words reach `revisit.forks`, which has tests of its own."""

import pytest

from revisit.commands.main import main
from revisit.forks import installed, make


@pytest.mark.parametrize(
    ("words", "module", "arguments"),
    [
        (["make", "LLaVA1.5"], make, ["LLaVA1.5"]),
        (["make", "LLaVA1.5", "--check"], make, ["LLaVA1.5", "--check"]),
        (["patch"], installed, []),
        (["check"], installed, ["--check"]),
        (["revert"], installed, ["--revert"]),
    ],
    ids=str,
)
def test_each_command_is_that_of_its_module(words, module, arguments, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "main", lambda argv: seen.append(argv) or 3)
    assert main(["fork", *words]) == 3
    assert seen == [arguments]
