"""Tables of mixed columns with holes: what each column is, and how a frame becomes numbers and comes back."""

from pyar.tables.columns import Binary, Categorical, Columns, Integer, Kind, KindOrName, Real
from pyar.tables.decide import RepeatedValues
from pyar.tables.frames import MissingPackageError

__all__ = [
    "Binary",
    "Categorical",
    "Columns",
    "Integer",
    "Kind",
    "KindOrName",
    "MissingPackageError",
    "Real",
    "RepeatedValues",
]
