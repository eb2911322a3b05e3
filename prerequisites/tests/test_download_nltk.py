"""The downloader of NLTK's data, and NLTK itself on what it made."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import download_nltk
from conftest import make_zip

SCRIPT = Path(__file__).resolve().parents[2] / "shared" / "eval_chair.sh"
TAGGER = "averaged_perceptron_tagger_eng"
# The smallest data in NLTK's formats: WordNet knows "dog" and that "mice" are "mouse".
DATA = {
    "wordnet": {
        **dict.fromkeys(["cntlist.rev", "index.sense", "adj.exc", "adv.exc", "verb.exc"], ""),
        **{f"{kind}.{part}": "" for kind in ("index", "data") for part in ("adj", "adv", "verb")},
        "lexnames": "00\tnoun.animal\t1\n",
        "noun.exc": "mice mouse\n",
        "index.noun": "dog n 1 0 1 1 00000000  \nmouse n 1 0 1 1 00000099  \n",
        "data.noun": "00000000 00 n 01 dog 0 000 | an animal\n",
    },
    "punkt_tab": {
        **dict.fromkeys(["english/collocations.tab", "english/ortho_context.tab"], ""),
        **{"english/sent_starters.txt": "", "english/abbrev_types.txt": "mr"},
    },
    TAGGER: {
        f"{TAGGER}.weights.json": json.dumps({"bias": {"NN": 1.0, "VB": 0.0}}),
        f"{TAGGER}.tagdict.json": json.dumps({"a": "DT"}),
        f"{TAGGER}.classes.json": json.dumps(["NN", "VB"]),
    },
}


@pytest.fixture
def run(server, tmp_path):
    """Call it with what an index says of every package in place of the truth."""

    def call(**wrong: str) -> int:
        entries = ""
        for name, files in DATA.items():
            packed = make_zip({f"{name}/{file}": text.encode() for file, text in files.items()})
            about = {"id": name, "url": server.add(f"/{name}.zip", packed), "size": len(packed)}
            about |= {"checksum": hashlib.md5(packed).hexdigest()} | wrong
            attributes = " ".join(f'{key}="{value}"' for key, value in about.items())
            entries += f"<package {attributes}/>"
        index = server.add("/index.xml", f"<nltk_data>{entries}</nltk_data>".encode())
        return download_nltk.main(["--download_path", str(tmp_path), "--index_url", index])

    return call


def test_nltk_reads_what_was_downloaded_and_a_second_run_asks_for_nothing(run, server, tmp_path):
    assert download_nltk.why_incomplete(tmp_path).endswith(f"wordnet, punkt_tab, {TAGGER}")
    assert run() == 0 and run() == 0 and len(server.asked) == 4
    assert download_nltk.why_incomplete(tmp_path) == ""
    program = (
        "from revisit.evaluation.benchmarks.objects.lemmas import LEMMATIZERS as known;"
        "print(*known['nltk']()"
    )
    read = subprocess.run(
        [sys.executable, "-c", f"{program}('Dogs and mice.'))"],
        env=os.environ | {"HOME": "/nonexistent", "NLTK_DATA": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert read.stdout.split() == ["dog", "and", "mouse", "."], read.stderr


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"checksum": "0" * 32}, "its md5 is"),
        ({"sha256_checksum": "0" * 64}, "its sha256 is"),
        ({"size": "17"}, "larger than the 17 bytes"),
        ({"size": "x"}, "is not NLTK's index"),
        ({"id": "another"}, "is not NLTK's index"),
        ({"url": "file:///etc/passwd"}, "is not an address"),
    ],
    ids=str,
)
def test_a_package_unlike_its_entry_does_not_come(run, tmp_path, capsys, wrong, said):
    assert run(**wrong) == 1 and said in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.zip*"))


def test_the_evaluation_scripts_tell_nltk_where_it_is():
    (line,) = [line for line in SCRIPT.read_text().splitlines() if "NLTK_DATA" in line]
    bare = {name: value for name, value in os.environ.items() if name != "NLTK_DATA"}
    command = ["bash", "-c", f'root={SCRIPT.parents[1]}; {line}; echo "$NLTK_DATA"']
    for more, said in ({}, str(download_nltk.NLTK_DATA)), ({"NLTK_DATA": "/mine"}, "/mine"):
        assert subprocess.check_output(command, env=bare | more, text=True).strip() == said
