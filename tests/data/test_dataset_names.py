from dataclasses import fields

from util.data.dataset import DATASET_NAMES
from util.data.options import DataOptions


def test_every_data_set_can_be_chosen_and_every_choice_is_one():
    dataset = next(field for field in fields(DataOptions) if field.name == "dataset")
    assert sorted(dataset.metadata["choices"]) == sorted(DATASET_NAMES)
