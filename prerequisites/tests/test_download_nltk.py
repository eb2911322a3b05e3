"""The downloader of NLTK's data, and NLTK itself on what it made."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import deque
from pathlib import Path

import pytest

import download_nltk

HERE = Path(download_nltk.__file__).parent
SCRIPT = HERE.parent / "shared" / "eval_chair.sh"
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
        "english/collocations.tab": "",
        "english/sent_starters.txt": "",
        "english/abbrev_types.txt": "mr",
        "english/ortho_context.tab": "",
    },
    TAGGER: {
        f"{TAGGER}.weights.json": json.dumps({"bias": {"NN": 1.0, "VB": 0.0}}),
        f"{TAGGER}.tagdict.json": json.dumps({"a": "DT"}),
        f"{TAGGER}.classes.json": json.dumps(["NN", "VB"]),
    },
}


@pytest.fixture
def nltk_data(server, make_zip, tmp_path):
    return Source(server, make_zip, tmp_path / "nltk_data")


class Source:
    def __init__(self, server, make_zip, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.entries = {}
        for name, files in DATA.items():
            packed = make_zip({f"{name}/{file}": text.encode() for file, text in files.items()})
            url = server.add(f"/packages/{name}.zip", packed)
            checksum = hashlib.md5(packed).hexdigest()
            self.entries[name] = {"url": url, "size": len(packed), "checksum": checksum}
        self.write_index()

    def write_index(self) -> None:
        def attributes(entry: dict) -> str:
            return " ".join(f'{key}="{value}"' for key, value in entry.items())

        packages = [f'<package id="{n}" {attributes(e)}/>' for n, e in self.entries.items()]
        index = f"<nltk_data><packages>{''.join(packages)}</packages></nltk_data>"
        self.server.add("/index.xml", index.encode())

    @property
    def arguments(self) -> list[str]:
        index = f"{self.server.url}/index.xml"
        return ["--download_path", str(self.folder), "--index_url", index]

    def run(self) -> int:
        return download_nltk.main(self.arguments)

    @property
    def is_whole(self) -> bool:
        return download_nltk.why_incomplete(self.folder) == ""

    @property
    def downloads(self) -> list[str]:
        return [request.path for request in self.server.requests if "packages" in request.path]


def lemmas(caption: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import sys; from revisit.evaluation.lemmas import LEMMATIZERS;"
        "print(*LEMMATIZERS['nltk']()(sys.argv[1]))"
    )
    return subprocess.run(
        [sys.executable, "-c", program, caption],
        env=os.environ | {"HOME": "/nonexistent"} | environment,
        capture_output=True,
        text=True,
    )


def test_nltk_reads_what_was_downloaded(nltk_data):
    before = lemmas("A dog.", NLTK_DATA=str(nltk_data.folder))
    assert before.returncode == 1 and "punkt_tab" in before.stderr
    assert nltk_data.run() == 0
    after = lemmas("Dogs and mice.", NLTK_DATA=str(nltk_data.folder))
    assert after.stdout.split() == ["dog", "and", "mouse", "."], after.stderr
    made = {path.name for path in nltk_data.folder.iterdir()}
    assert made == {"corpora", "tokenizers", "taggers", "downloads.json", ".download.lock"}


def test_a_second_run_asks_for_nothing(nltk_data, capsys):
    assert nltk_data.run() == 0
    nltk_data.server.close()
    assert nltk_data.run() == 0
    assert "complete" in capsys.readouterr().out


def test_only_what_is_missing_is_downloaded(nltk_data):
    assert nltk_data.run() == 0
    shutil.rmtree(nltk_data.folder / "corpora" / "wordnet")
    assert download_nltk.why_incomplete(nltk_data.folder).endswith("lacks wordnet")
    assert nltk_data.run() == 0
    assert nltk_data.is_whole and nltk_data.downloads.count("/packages/punkt_tab.zip") == 1


def test_sha256_is_preferred_to_md5(nltk_data, capsys):
    packed = nltk_data.server.files["/packages/wordnet.zip"]
    nltk_data.entries["wordnet"]["sha256_checksum"] = hashlib.sha256(packed).hexdigest()
    nltk_data.entries["punkt_tab"]["sha256_checksum"] = "0" * 64
    nltk_data.write_index()
    assert nltk_data.run() == 1
    assert "its sha256 is" in capsys.readouterr().err
    assert (nltk_data.folder / "corpora" / "wordnet").exists()


@pytest.mark.parametrize("wrong", [{"checksum": "0" * 32}, {"size": 17}], ids=str)
def test_a_package_unlike_its_entry_is_thrown_away(nltk_data, capsys, wrong):
    nltk_data.entries["wordnet"] |= wrong
    nltk_data.write_index()
    assert nltk_data.run() == 1
    assert "wordnet.zip" in capsys.readouterr().err
    assert not nltk_data.is_whole and not list(nltk_data.folder.glob("corpora/*"))


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (b"<html><body>no</body>", "not NLTK's index"),
        (b"<nltk_data/>", "does not say where wordnet is"),
        (b'<p><package id="wordnet" url="u" size="x" checksum=""/></p>', "does not say where"),
    ],
)
def test_an_index_that_is_none(nltk_data, capsys, index, said):
    nltk_data.server.add("/index.xml", index)
    assert nltk_data.run() == 1
    assert said in capsys.readouterr().err and nltk_data.downloads == []


def test_the_index_does_not_choose_where_a_package_goes(nltk_data, tmp_path):
    nltk_data.entries["wordnet"]["subdir"] = "../../elsewhere"
    nltk_data.write_index()
    assert nltk_data.run() == 0
    assert (nltk_data.folder / "corpora" / "wordnet").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["nltk_data"]


def test_a_path_that_climbs_out_of_a_package(nltk_data, make_zip, capsys):
    packed = make_zip({"wordnet/a": b"", "wordnet/../../../x": b""})
    nltk_data.server.add("/packages/wordnet.zip", packed)
    entry = {"size": len(packed), "checksum": hashlib.md5(packed).hexdigest()}
    nltk_data.entries["wordnet"] |= entry
    nltk_data.write_index()
    assert nltk_data.run() == 1
    assert "unsafe" in capsys.readouterr().err and not list(nltk_data.folder.glob("corpora/*"))


def test_data_of_the_user_is_left_alone(nltk_data, capsys):
    mine = nltk_data.folder / "corpora" / "wordnet" / "mine"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert nltk_data.run() == 1
    assert "Move it away" in capsys.readouterr().err and mine.read_text() == "mine"


def test_refusals_overload_and_cuts(nltk_data, waits, capsys):
    script = nltk_data.server.script
    script["/index.xml"] = deque([503])
    script["/packages/wordnet.zip"] = deque([("cut", 100), 503, ("cut", 50)])
    script["/packages/punkt_tab.zip"] = deque([404])
    assert nltk_data.run() == 1
    assert "punkt_tab.zip is no longer there" in capsys.readouterr().err
    ranges = nltk_data.server.ranges_asked("/packages/wordnet.zip")
    assert ranges == ["", "bytes=100-", "bytes=100-", "bytes=150-"]
    nltk_data.server.ranges = False
    assert nltk_data.run() == 0 and nltk_data.is_whole


def test_a_disk_too_small(nltk_data, small_disk, capsys):
    small_disk(100)
    assert nltk_data.run() == 1
    assert "100 bytes free" in capsys.readouterr().err


def start(nltk_data) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", str(HERE / "download_nltk.py"), *nltk_data.arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_two_runs_at_once_download_once(nltk_data):
    nltk_data.server.script["/packages/wordnet.zip"] = deque([("stall", 100)])
    first = start(nltk_data)
    assert nltk_data.server.stalled.wait(20)
    second = start(nltk_data)
    assert "waiting for it" in second.stderr.readline()
    nltk_data.server.resume.set()
    assert (first.wait(30), second.wait(30)) == (0, 0)
    assert nltk_data.is_whole and len(nltk_data.downloads) == 3


def test_ctrl_c_keeps_what_came(nltk_data):
    nltk_data.server.script["/packages/wordnet.zip"] = deque([("stall", 100)])
    run = start(nltk_data)
    assert nltk_data.server.stalled.wait(20)
    part = nltk_data.folder / "wordnet.zip.part"
    while not part.exists() or part.stat().st_size < 100:
        assert run.poll() is None
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=30)
    assert run.returncode == 130 and "Traceback" not in said
    nltk_data.server.resume.set()
    assert nltk_data.run() == 0 and nltk_data.is_whole
    assert nltk_data.server.ranges_asked("/packages/wordnet.zip") == ["", "bytes=100-"]


def test_the_evaluation_scripts_tell_nltk_where_it_is():
    (line,) = [line for line in SCRIPT.read_text().splitlines() if "NLTK_DATA" in line]
    print_it = f'root={HERE.parent}; {line}; echo "$NLTK_DATA"'
    bare = {name: value for name, value in os.environ.items() if name != "NLTK_DATA"}

    def said(**more: str) -> str:
        run = subprocess.run(["bash", "-c", print_it], env=bare | more, stdout=-1, text=True)
        return run.stdout.strip()

    assert said() == str(download_nltk.NLTK_DATA)
    assert said(NLTK_DATA="/mine") == "/mine"
