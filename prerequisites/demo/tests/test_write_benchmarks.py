import json
from pathlib import Path

from revisit.evaluation.benchmarks.amber import Amber
from revisit.evaluation.benchmarks.mme import Mme
from revisit.evaluation.benchmarks.objects.amber_words import read_data
from write_benchmarks import HERE, write_amber, write_mme

COCO = HERE / "coco"


def test_amber_s_layout_is_read_and_a_true_caption_has_no_hallucination(tmp_path: Path):
    write_amber(COCO, tmp_path)
    benchmark = Amber(data_path=COCO / "val2014", amber_path=tmp_path, lemmatizer="noun")
    (section,) = benchmark.sections(0)
    data = read_data(tmp_path)
    captions = [item for item in data.items.values() if item["type"] == "generative"]
    assert len(captions) > 100 and len(section.tasks) == len(data.items)
    assert not any(set(item["truth"]) & set(item["hallu"]) for item in captions)
    answers = tmp_path / "answers.jsonl"
    texts = {each["id"]: " and ".join(f"a {name}" for name in each["truth"]) for each in captions}
    texts |= {
        key: item["truth"].capitalize() for key, item in data.items.items() if key not in texts
    }
    answers.write_text(
        "".join(json.dumps({"id": k, "response": v}) + "\n" for k, v in texts.items())
    )
    saved = benchmark.score(section, answers)
    assert saved["generative"] == {"CHAIR": 0.0, "Cover": 100.0, "Hal": 0.0, "Cog": 0.0}
    assert saved["existence"]["Accuracy"] == 100.0


def test_mme_s_layout_has_thirty_images_with_two_questions(tmp_path: Path):
    write_mme(COCO, tmp_path)
    (section,) = Mme(data_path=tmp_path).sections(0)
    assert len(section.tasks) == 60
    assert len({task.image for task in section.tasks}) == 30
