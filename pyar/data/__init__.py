"""Data sets as integer states: loading, quantisation, binarisation, splits, download. And tables of mixed columns."""

from pyar.data.dataset import DataError, DataNotice, Dataset
from pyar.data.frames import TableData
from pyar.data.load import DATASET_NAMES, Rows, find_table, load_dataset, load_rows, load_table

__all__ = [
    "DATASET_NAMES",
    "DataError",
    "DataNotice",
    "Dataset",
    "Rows",
    "TableData",
    "find_table",
    "load_dataset",
    "load_rows",
    "load_table",
]
