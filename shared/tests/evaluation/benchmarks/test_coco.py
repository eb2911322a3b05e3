import json
import random
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks.objects.coco import (
    annotation_pairs,
    check_covered,
    image_id,
    read_instances,
    read_references,
    sample_images,
)


def test_image_id_is_the_number_at_the_end_of_the_name():
    assert image_id("COCO_val2014_000000000123.jpg") == 123
    assert image_id("000000581929.png") == 581929
    with pytest.raises(EvaluationError, match=r"holiday\.jpg does not end in an image id"):
        image_id("holiday.jpg")


def test_the_sample_depends_on_seed_and_names_only(images, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    paths = list(images.iterdir())
    random.Random(1).shuffle(paths)
    for path in paths:
        shutil.copy(path, copy / path.name)
    (copy / "notes.txt").write_text("no image")
    assert sample_images(images, 4, 7) == sample_images(copy, 4, 7)
    assert sample_images(images, 4, 7) != sample_images(images, 4, 8)


@given(count=st.integers(1, 15), seed=st.integers(0, 2**40))
def test_a_sample_has_no_image_twice_and_all_where_there_are_fewer(tmp_path_factory, count, seed):
    folder = tmp_path_factory.mktemp("images")
    for number in range(10):
        (folder / f"{number:012d}.jpg").touch()
    sample = sample_images(folder, count, seed)
    assert len(set(sample)) == len(sample) == min(count, 10)


def test_folders_that_hold_no_images_of_coco_are_refused(tmp_path, images):
    with pytest.raises(EvaluationError, match="is not a folder"):
        sample_images(tmp_path / "none", 1, 0)
    with pytest.raises(EvaluationError, match="holds no images"):
        sample_images(tmp_path, 1, 0)
    (images / "1.png").touch()
    with pytest.raises(EvaluationError, match="two images with one id"):
        sample_images(images, 1, 0)


def test_annotations_are_read_from_a_folder_or_an_instances_file(annotations):
    instances = annotations / "instances_val2014.json"
    assert annotation_pairs(annotations) == annotation_pairs(instances)
    assert read_instances(instances)[3] == {"dog"}
    assert read_references(annotations / "captions_val2014.json")[3][0] == "A dog."


def test_annotations_that_do_not_cover_the_images_are_refused_before_the_run(annotations):
    check_covered([1, 10], annotations)
    with pytest.raises(EvaluationError, match=r"1 of 2 images .*\(image id 11"):
        check_covered([1, 11], annotations)


def test_an_annotation_file_that_is_not_cocos_is_refused_by_name(annotations):
    instances = annotations / "instances_val2014.json"
    whole = json.loads(instances.read_text())
    for broken in (
        [],
        {"images": []},
        whole | {"categories": [{"id": 1, "name": "person"}]},
        whole | {"images": [{"id": 1}]},
        whole | {"annotations": [3]},
    ):
        instances.write_text(json.dumps(broken))
        with pytest.raises(EvaluationError, match=r"instances_val2014\.json is not a"):
            read_instances(instances)
    instances.write_text("{")
    with pytest.raises(EvaluationError, match="is not a JSON file"):
        read_instances(instances)


def test_categories_outside_coco_are_refused(annotations):
    file = annotations / "instances_val2014.json"
    file.write_text(file.read_text().replace("person", "wizard"))
    with pytest.raises(EvaluationError, match="no category 'wizard'"):
        read_instances(file)


def test_missing_annotation_files_are_named(annotations, tmp_path):
    with pytest.raises(EvaluationError, match="annotations not found"):
        annotation_pairs(tmp_path / "none")
    with pytest.raises(EvaluationError, match=r"no instances_\*2014.json"):
        annotation_pairs(tmp_path)
    with pytest.raises(EvaluationError, match="is not an instances file"):
        annotation_pairs(annotations / "captions_val2014.json")
    (annotations / "captions_val2014.json").unlink()
    with pytest.raises(EvaluationError, match=r"has no captions_val2014\.json beside it"):
        annotation_pairs(annotations)
