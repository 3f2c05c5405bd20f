"""What is said of data sets, kept with a run, and compared with what a run had before."""

import numpy as np
import pytest
import torch

from tests.data.image_files import save_many
from util.convert_to_lmdb import main as convert
from util.data.dataset import open_dataset
from util.data.image_array import ImageArray
from util.data.inspection import contents, difference, in_words, inspect_datasets, kept_contents
from util.distributed import Distributed
from util.errors import UsageError
from util.run_file import update_run_file


def folder_of(root, n_images, first=0):
    save_many(root / "train" / "a", n_images, first)
    save_many(root / "train" / "b", 1)
    return open_dataset("folder", "train", root, 8, 3, seed=0)


def test_contents(tmp_path):
    folder = folder_of(tmp_path, 3)
    assert contents(folder) == {"images": 4, "folders": 2, "names": folder.digest}
    assert in_words(contents(folder)) == "4 images in 2 folders"
    assert in_words({"images": 1, "folders": 1, "names": "x"}) == "1 image in 1 folder"
    assert contents(ImageArray("array", torch.zeros(5, 1, 2, 2, dtype=torch.uint8))) == {"images": 5}
    assert in_words(contents(open_dataset("diamond", "train", "", 0, 0, seed=0))) == "points without end"


def test_the_digest_is_that_of_the_names_below_the_folder(tmp_path):
    first, second = folder_of(tmp_path / "here", 3), folder_of(tmp_path / "there", 3)
    assert first.digest == second.digest
    assert folder_of(tmp_path / "others", 3, first=1).digest != first.digest


def test_a_database_is_told_from_one_of_other_files(tmp_path):
    digests = []
    for number in range(2):
        folder_of(tmp_path / f"{number}", 3, first=number)
        assert convert(["folder", str(tmp_path / f"{number}"), str(tmp_path / f"lmdb_{number}"), "--image_size=8"]) == 0
        digests.append(contents(open_dataset("lmdb", "train", tmp_path / f"lmdb_{number}", 8, 3, seed=0)))
    assert digests[0]["images"] == digests[1]["images"] == 4
    assert digests[0]["names"] != digests[1]["names"]


def test_difference():
    now = {"train": {"images": 12, "folders": 1, "names": "a"}, "test": {"images": 3}}
    assert difference(now, now) == ""
    assert difference({}, now) == ""
    assert difference({"train": {"images": 9, "folders": 2, "names": "b"}}, now) == (
        "train had 9 images in 2 folders and has 12 images in 1 folder"
    )
    assert difference({"train": {**now["train"], "names": "b"}}, now) == (
        "train has other files among its 12 images in 1 folder"
    )


def test_a_run_that_continues_says_what_has_changed(tmp_path, caplog):
    run = tmp_path / "run"
    run.mkdir()
    datasets = {"train": folder_of(tmp_path, 3)}
    update_run_file(run, data=kept_contents(datasets, run, continues=False))
    assert kept_contents(datasets, run, continues=True) == {"train": contents(datasets["train"])}
    assert not caplog.records
    save_many(tmp_path / "train" / "c", 2)
    datasets = {"train": open_dataset("folder", "train", tmp_path, 8, 3, seed=0)}
    kept_contents(datasets, run, continues=False)
    assert not caplog.records
    kept_contents(datasets, run, continues=True)
    assert [record.message for record in caplog.records] == [
        "the data set has changed since this run began: train had 4 images in 2 folders and has 6 images in 3 folders"
    ]


class TwoNodes(Distributed):
    """Rank 0 beside a rank that sees one image more."""

    def gather(self, value):
        host, found = value
        other = {split: {**of_split, "images": of_split["images"] + 1} for split, of_split in found.items()}
        return [value, (f"{host}-2", other)]


def test_ranks_that_see_different_data_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"train has 4 images in 2 folders on .* \(rank 0\), and other files on"):
        inspect_datasets({"train": folder_of(tmp_path, 3)}, TwoNodes(), None)


def test_what_is_said_at_the_start(tmp_path, caplog):
    datasets = {"train": folder_of(tmp_path, 3), "test": ImageArray("array", torch.zeros(5, 1, 2, 2))}
    with caplog.at_level("INFO"):
        inspect_datasets(datasets, Distributed(), tmp_path)
    assert "data: train has 4 images in 2 folders, test has 5 images" in caplog.text
    assert np.load(tmp_path / "logs" / "checked_images.npy").shape == (4,)
