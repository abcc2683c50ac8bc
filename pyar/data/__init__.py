"""Data sets as integer states: loading, quantisation, binarisation, splits, download. And tables of mixed columns."""

from pyar.data.dataset import DataError, DataNotice, Dataset
from pyar.data.frames import TableData, load_table
from pyar.data.load import DATASET_NAMES, Rows, load_dataset, load_rows

__all__ = [
    "DATASET_NAMES",
    "DataError",
    "DataNotice",
    "Dataset",
    "Rows",
    "TableData",
    "load_dataset",
    "load_rows",
    "load_table",
]
