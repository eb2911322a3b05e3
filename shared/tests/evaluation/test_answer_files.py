import json

import pytest

from revisit.evaluation.answer_files import read_answers
from revisit.evaluation.benchmarks.chair import Chair


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("indent", [None, 1])
def test_captions_are_read_from_one_list_too(tmp_path, encoding, indent):
    entries = [{"image_id": n, "caption": f"caf\u00e9 {n}"} for n in (3, 1)]
    file = tmp_path / "captions.json"
    file.write_text(json.dumps(entries, indent=indent, ensure_ascii=False), encoding=encoding)
    assert read_answers(file, Chair.form) == {3: "caf\u00e9 3", 1: "caf\u00e9 1"}
    file.write_text("\n".join(map(json.dumps, entries)), encoding=encoding)
    assert read_answers(file, Chair.form) == {3: "caf\u00e9 3", 1: "caf\u00e9 1"}
