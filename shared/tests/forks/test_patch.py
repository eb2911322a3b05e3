"""A patch and what `git apply` makes of it: all as the hashes say, or an error."""

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revisit.forks.patch import PATCHES, ReleaseError, read_patch

PREAMBLE = f"Words.\n\nsdist-sha256: {'0' * 64}\n\n".encode()
GIT_DIFF = ["git", "diff", "--no-index", "--no-prefix", "--text", "--full-index"]
FILE = "sample/value.py"
OLD, NEW = b"first = 1 \nvalue = 1\n", b"first = 1 \nvalue = 2 \n"
LINES = st.lists(
    st.sampled_from([b"a", b"b", b"", b" \t", b"- -", b"@@ -1 +1 @@", b"\\", b"\r", b"\x0c"])
)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def patch_between(folder, old, new, context=0):
    """What git writes about the change of one file, as a patch."""
    for side, content in (("a", old), ("b", new)):
        write(folder / side / "src" / FILE, content)
    files = [f"{side}/src/{FILE}" for side in "ab"]
    diff = subprocess.run([*GIT_DIFF, f"-U{context}", *files], cwd=folder, capture_output=True)
    write(folder / "sample-1.patch", PREAMBLE + diff.stdout)
    return folder / "sample-1.patch"


@settings(max_examples=40, deadline=None)
@given(
    old=LINES, new=LINES, ends=st.tuples(st.booleans(), st.booleans()), context=st.integers(0, 2)
)
def test_a_diff_of_git_is_applied_and_reverted_exactly(tmp_path_factory, old, new, ends, context):
    before, after = (
        b"\n".join(lines) + (b"\n" if newline else b"")
        for lines, newline in zip((old, new), ends, strict=True)
    )
    folder = tmp_path_factory.mktemp("diff")
    file = patch_between(folder, before, after, context)
    if before == after:
        with pytest.raises(ReleaseError, match="nothing"):
            read_patch(file)
        return
    patch, tree = read_patch(file), folder / "tree"
    write(tree / FILE, before + after + b"x")
    assert patch.side(tree, FILE) == "modified"
    write(tree / FILE, before)
    assert patch.side(tree, FILE) == "unpatched"
    patch.apply(tree, [FILE], "patched")
    assert (tree / FILE).read_bytes() == after
    assert patch.side(tree, FILE) == "patched"
    patch.apply(tree, [FILE], "unpatched")
    assert (tree / FILE).read_bytes() == before


@pytest.fixture
def patch(tmp_path):
    return read_patch(patch_between(tmp_path, OLD, NEW))


def test_another_file_is_refused_also_where_the_lines_would_fit(patch, tmp_path):
    another = OLD.replace(b"first = 1", b"first = 3")
    write(tmp_path / "tree" / FILE, another)
    with pytest.raises(ReleaseError, match=FILE):
        patch.apply(tmp_path / "tree", [FILE], "patched")
    assert (tmp_path / "tree" / FILE).read_bytes() == another


@pytest.mark.parametrize("variable", [None, "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"])
def test_it_applies_inside_a_repository_that_ignores_the_files(
    patch, tmp_path, monkeypatch, variable
):
    repository = tmp_path / "repository"
    write(repository / ".gitignore", b"*\n")
    write(repository / "tree" / FILE, OLD)
    subprocess.run(["git", "init", "-q", repository], check=True)
    if variable:
        monkeypatch.setenv(variable, str(repository / ".git"))
    patch.apply(repository / "tree", [FILE], "patched")
    assert (repository / "tree" / FILE).read_bytes() == NEW


def test_settings_of_the_user_change_no_line(patch, tmp_path, monkeypatch):
    write(tmp_path / "home/.gitconfig", b"[apply]\nwhitespace = fix\n[core]\nautocrlf = true\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write(tmp_path / "tree" / FILE, OLD)
    patch.apply(tmp_path / "tree", [FILE], "patched")
    assert (tmp_path / "tree" / FILE).read_bytes() == NEW


def change_text(patch, old, new):
    text = patch.file.read_text()
    assert old in text
    patch.file.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("index ", "index x", "full-index"),
        ("src/sample", "src/../../sample", "unsafe"),
        ("/src/", "//", "unsafe"),  # an absolute path
        (" 100644", " 120000", "unsafe"),  # a link
        ("index ", "new file mode 100644\nindex ", "unsafe"),
        ("sdist-", "", "sdist-sha256"),
        ("diff --git", "", "nothing"),
    ],
)
def test_a_patch_that_git_did_not_write_so_is_refused(patch, old, new, message):
    change_text(patch, old, new)
    with pytest.raises(ReleaseError, match=message):
        read_patch(patch.file)


def test_a_name_without_a_release_is_refused(patch):
    with pytest.raises(ReleaseError, match=r"NAME-VERSION\.patch"):
        read_patch(patch.file.rename(patch.file.with_name("sample.patch")))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("+value = 2 \n", ""),
        ("+value = 2 \n", "+value = 3 \n"),
        ("-value = 1\n", "-value = 9\n"),
        ("+++ b/src/", "+++ b/src/../../"),
    ],
)
def test_damaged_lines_are_named_and_nothing_is_written_elsewhere(patch, tmp_path, old, new):
    write(tmp_path / "deep/tree" / FILE, OLD)
    change_text(patch, old, new)
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ReleaseError, match="does not apply"):
        read_patch(patch.file).apply(tmp_path / "deep/tree", [FILE], "patched")
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == files


def test_a_lost_file_is_on_no_side(patch, tmp_path):
    assert patch.side(tmp_path, FILE) == "modified"


@pytest.mark.parametrize("release", ["transformers-4.31.0", "transformers-4.50.0"])
def test_all_changes_of_the_real_patches_are_read(release):
    patch = read_patch(PATCHES / f"{release}.patch")
    heads = [line for line in patch.file.read_text().splitlines() if line.startswith("diff ")]
    assert heads == [f"diff --git a/src/{path} b/src/{path}" for path in patch.hashes]
    assert "transformers/generation/utils.py" in patch.hashes
