"""The doctor on the environment that runs this: a family's real one, as nox or conda made it."""

import sys
from pathlib import Path

import pytest

import doctor

HERE = Path(sys.prefix)
FAMILIES = [
    each
    for each in doctor.FAMILIES
    if doctor.ROOT / ".nox" / each.session == HERE or HERE.name == each.conda
]


@pytest.mark.skipif(not FAMILIES, reason="this is no family's environment")
def test_what_was_built_as_the_instructions_say_is_ok():
    (family,) = FAMILIES
    python = doctor.find_python(family)
    assert python == HERE / "bin" / "python"
    state = doctor.ask(python, family)
    findings = [doctor._environment(family, python, state), doctor._fork(family, python, state)]
    assert [finding.missing for finding in findings] == ["", ""]
