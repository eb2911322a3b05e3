"""Real processes that write one file, with a captioner without a model."""

import json
import signal
import time

import pytest

pytest.importorskip("transformers")

import forked
import sizes
from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks.chair import Chair
from revisit.evaluation.process import Process
from revisit.evaluation.shards import open_store
from revisit.evaluation.store import AnswerStore


class Launch:
    """Runs of the captioner over ten images, in batches of two; `out` is their file."""

    def __init__(self, images, folder) -> None:
        self.folder = folder
        (folder / "model").mkdir()
        self.flags = ["--model_path", str(folder / "model"), "--data_path", str(images)]
        self.flags += ["--num_eval_samples", "10", "--batch_size", "2", "--device", "cpu"]
        self.use("out")

    def use(self, name: str) -> None:
        self.out = self.folder / name / "captions.jsonl"

    def start(
        self, rank: int, count: int, *flags: str, work=sizes.caption, **settings: str
    ) -> forked.Started:
        """One process, which is killed after `BATCHES`, and waits for a file `WAITS_FOR`."""
        environment = forked.place(rank, count) | settings
        environment["STARTED"] = str(self.folder / f"started-{rank}-of-{count}")
        argv = [*self.flags, "--output_path", str(self.out), *flags]
        return forked.Started(self.folder, environment, work, argv)

    def run(self, count: int, *flags: str, lacking: bool = False, **settings: str) -> list[str]:
        """All processes at once; what they printed. One reports images that are lacking."""
        started = [self.start(rank, count, *flags, **settings) for rank in range(count)]
        ends = [process.wait() for process in started]
        statuses = sorted(status for status, _, _ in ends)
        assert statuses == [0] * (count - lacking) + [1] * lacking, ends
        return [out for _, out, _ in ends]

    @property
    def record(self):
        return json.loads(self.out.with_name("captions.jsonl.run.json").read_text())

    @property
    def sample(self) -> list[str]:
        return json.loads((self.folder / "alone" / "captions.jsonl.run.json").read_text())["images"]

    @property
    def shards(self) -> list[str]:
        return sorted(path.name for path in self.out.parent.glob("captions.jsonl.part-*"))


@pytest.fixture
def launch(images, tmp_path):
    return Launch(images, tmp_path)


@pytest.fixture
def whole(launch) -> bytes:
    """What one process writes, with sampling."""
    launch.use("alone")
    launch.run(1, "--do_sample")
    content = launch.out.read_bytes()
    launch.use("out")
    return content


def test_a_killed_process_alone_continues_to_what_one_run_gives(launch, whole):
    status, _, err = launch.start(0, 1, "--do_sample", BATCHES="2").wait()
    assert status == -signal.SIGKILL, err
    # Killed while the fourth caption was written: half of a batch, and half of a line.
    lines = whole.splitlines(keepends=True)
    assert launch.out.read_bytes() == b"".join(lines[:4])
    launch.out.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    launch.run(1, "--do_sample")
    assert launch.out.read_bytes() == whole


def test_two_processes_write_what_one_writes_and_the_last_one_scores(launch, whole, annotations):
    flags = ["--do_sample", "--anno_path", str(annotations), "--lemmatizer", "noun"]
    printed = launch.run(2, *flags)
    assert launch.out.read_bytes() == whole
    assert launch.shards == []
    assert sum("10 of 10 captions" in out for out in printed) == 1
    assert sum("CHAIRs" in out for out in printed) == 1
    runs = launch.record["runs"]
    assert sorted((run["process"], run["processes"], run["captions"]) for run in runs) == [
        (0, 2, 6),
        (1, 2, 4),
    ]
    result = json.loads(launch.out.with_name("chair.json").read_text())
    assert result["captions"]["run"] == launch.record


def test_a_killed_process_loses_its_batch_and_another_number_of_processes_goes_on(launch, whole):
    status, _, err = launch.start(0, 2, "--do_sample", BATCHES="1").wait()
    assert status == -signal.SIGKILL, err
    # Killed while it wrote: half of a line.
    part = launch.out.with_name("captions.jsonl.part-0-of-2")
    with part.open("ab") as file:
        file.write(whole.splitlines()[4][:20])
    status, out, err = launch.start(1, 2, "--do_sample").wait()
    assert status == 0, err
    assert "process 0 lacks 4 of its 6 captions" in out
    assert "the same command continues" in out
    assert launch.out.read_bytes() == b""
    assert len(launch.shards) == 4  # and their records
    launch.run(3, "--do_sample")
    assert launch.out.read_bytes() == whole
    assert launch.shards == []
    by_processes = [0, 0, 0, 0]
    for run in launch.record["runs"]:
        by_processes[run["processes"]] += run["captions"]
    assert by_processes == [0, 0, 6, 4]


def test_one_process_takes_over_the_shards_of_several(launch, whole):
    launch.start(1, 3, "--do_sample").wait()
    assert launch.shards[0] == "captions.jsonl.part-1-of-3"
    (printed,) = launch.run(1, "--do_sample")
    assert launch.out.read_bytes() == whole
    assert launch.shards == []
    assert "10 of 10 captions" in printed


def test_several_processes_take_over_the_file_of_one(launch, whole):
    launch.start(0, 1, "--do_sample", BATCHES="2").wait()
    assert launch.out.read_bytes().count(b"\n") == 4
    launch.run(2, "--do_sample")
    assert launch.out.read_bytes() == whole
    assert launch.shards == []


def test_a_process_that_begins_when_the_others_have_ended_merges(launch, whole):
    _, first, _ = launch.start(0, 2, "--do_sample").wait()
    assert "process 1 lacks 4 of its 4 captions" in first
    _, second, _ = launch.start(1, 2, "--do_sample").wait()
    assert "10 of 10 captions" in second
    assert launch.out.read_bytes() == whole


def test_the_first_to_end_leaves_the_file_to_the_last(launch, whole, tmp_path):
    slow = launch.start(1, 2, "--do_sample", WAITS_FOR=str(tmp_path / "go"))
    while not (tmp_path / "started-1-of-2").exists():
        assert slow.process.is_alive()
        time.sleep(0.02)
    _, out, _ = launch.start(0, 2, "--do_sample").wait()
    assert "the one that ends last merges" in out
    assert launch.out.read_bytes() == b""
    other = launch.start(0, 1, "--do_sample", work=sizes.caption_without_patience)  # another run
    status, _, err = other.wait()
    assert status == 2 and "another process is writing" in err
    (tmp_path / "go").touch()
    slow.wait()
    assert launch.out.read_bytes() == whole


def test_an_image_that_cannot_be_read_is_named_once_and_tried_again(launch, whole, images):
    name = launch.sample[3]  # the last of its batch: the other one draws what it always draws
    content = (images / name).read_bytes()
    (images / name).write_bytes(b"no image")
    launch.run(2, "--do_sample", lacking=True)
    assert launch.out.read_bytes().count(b"\n") == 9
    assert [entry["file"] for entry in launch.record["failed"]] == [name]
    (images / name).write_bytes(content)
    for rank in (2, 1, 0):  # one that ends before the image's process starts leaves it to that one
        assert launch.start(rank, 3, "--do_sample").wait()[0] == 0
    assert launch.record["failed"] == []
    assert launch.out.read_bytes() == whole


@pytest.mark.parametrize(
    "dying",
    [sizes.caption_and_die_at_the_merge, sizes.caption_and_die_at_the_removal_of_shards],
)
def test_a_merge_that_is_cut_short_is_made_again(launch, whole, dying):
    launch.start(0, 2, "--do_sample").wait()
    status, _, _ = launch.start(1, 2, "--do_sample", work=dying).wait()
    assert status == -signal.SIGKILL
    assert len(launch.shards) == 4
    launch.run(2, "--do_sample")
    assert launch.out.read_bytes() == whole
    assert launch.shards == []
    assert sum(run["captions"] for run in launch.record["runs"]) == 10
    assert len(launch.record["runs"]) == 2


def test_other_settings_are_refused_while_there_are_only_shards(launch):
    launch.start(0, 2).wait()
    before = {path: path.read_bytes() for path in launch.out.parent.iterdir()}
    for count in (1, 2, 3):
        status, _, err = launch.start(0, count, "--seed", "5").wait()
        assert status == 2
        assert "seed: 42, now 5" in err
    assert {path: path.read_bytes() for path in before} == before


def test_shards_that_do_not_belong_together_are_refused(tmp_path):
    path = tmp_path / "captions.jsonl"
    for rank in (0, 1):
        with AnswerStore(path.with_name(f"captions.jsonl.part-{rank}-of-2"), Chair.form) as store:
            store.agree("settings", {"seed": rank})
            store.append(rank, "A dog.")
    with pytest.raises(EvaluationError, match=r"part-0-of-2 and .*part-1-of-2 .*different sett"):
        open_store(path, Chair.form, Process())


def test_a_damaged_shard_is_named(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.with_name("captions.jsonl.part-1-of-2").write_text("rubbish\n")
    with pytest.raises(EvaluationError, match=r"part-1-of-2, line 1 is no line of captions"):
        open_store(path, Chair.form, Process(0, 2))
