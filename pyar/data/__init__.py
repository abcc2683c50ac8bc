"""Data sets as integer states: loading, quantisation, binarisation, splits, download."""

from pyar.data.dataset import DataError, DataNotice, Dataset
from pyar.data.load import DATASET_NAMES, Rows, load_dataset, load_rows

__all__ = ["DATASET_NAMES", "DataError", "DataNotice", "Dataset", "Rows", "load_dataset", "load_rows"]
