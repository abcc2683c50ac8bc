"""Data sets as integer states: loading, quantisation, binarisation, splits, download."""

from pyar.data.dataset import DataError, Dataset
from pyar.data.load import DATASET_NAMES, load_dataset

__all__ = ["DATASET_NAMES", "DataError", "Dataset", "load_dataset"]
