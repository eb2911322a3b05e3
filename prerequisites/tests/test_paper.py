from pathlib import Path

import pytest

import paper


def test_what_is_missing_is_listed_with_what_to_do(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(paper, "HERE", tmp_path)
    monkeypatch.setattr(paper, "folder_of", lambda name: tmp_path / name)
    assert paper.main(["qwen"]) == 1
    err = capsys.readouterr().err
    for name in ("checkpoint", "of chair, --anno_path", "of pope, --pope_path", "hallusionbench"):
        assert name in err
    assert "nox -s doctor" in err and "--demo" in err


def test_nothing_is_missing_of_the_demo():
    for family in paper.FAMILIES:
        assert not list(paper.missing(family, demo=True))


def test_both_decoders_run_on_each_benchmark_and_are_set_beside_the_paper(tmp_path, monkeypatch):
    runs, compared = [], []

    def script(words, family, program):
        runs.append((words[0], "--use_revisit" in words, words[-3:-2]))
        folder = Path(words[-1])
        for below in ("random", "popular") if words[0] == "pope" else (".",):
            (folder / below).mkdir(parents=True, exist_ok=True)
            (folder / below / f"{words[0]}.json").touch()
        return 0

    def revisit(words):
        compared.append([Path(word).relative_to(tmp_path) for word in words[1:3]])
        assert words[0] == "compare" and words[-1] == "--paper"
        return 0

    monkeypatch.setattr(paper.runpy, "run_path", lambda path: {"main": script, "FAMILY": None})
    monkeypatch.setattr("revisit.commands.main.main", revisit)
    assert paper.main(["llava", "--demo", "--results", str(tmp_path), "--batch_size", "9"]) == 0
    expected = [(name, decoder) for name in ("chair", "pope") for decoder in (False, True)]
    assert [each[:2] for each in runs] == expected
    assert all(each[2] == ["9"] for each in runs)
    assert compared == [
        [Path(f"llava-{below.format(decoder)}") for decoder in ("greedy", "revisit")]
        for below in (
            "chair-{}/chair.json",
            "pope-{}/popular/pope.json",
            "pope-{}/random/pope.json",
        )
    ]


def test_a_run_that_cannot_go_on_ends_it(tmp_path, monkeypatch):
    fails = {"main": lambda *_: 2, "FAMILY": None}
    monkeypatch.setattr(paper.runpy, "run_path", lambda path: fails)
    assert paper.main(["llava", "--demo", "--results", str(tmp_path)]) == 2


def test_a_family_is_one_of_two():
    with pytest.raises(SystemExit):
        paper.main(["other"])
