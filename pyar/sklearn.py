"""`TableDensity`: exact densities of tables as a scikit-learn estimator, frames in and frames out."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from pyar.data import TableData
from pyar.models.table_nade import TableNADE
from pyar.recipes import Size
from pyar.reference.conditionals import Categories
from pyar.reference.draw import log_probabilities
from pyar.scalars import plain_integer, plain_number
from pyar.tables import Columns, Integer, Kind, KindOrName
from pyar.tables.frames import frame_like, is_frame, make_frame, names_of, take_columns, take_rows
from pyar.training import Trainer, TrainingConfig, training_defaults
from pyar.training.signals import pass_on

_ROWS = 2000  # that are scored at a time
_GUESSES = 64  # draws that a best guess is made from


class TableDensity(DensityMixin, BaseEstimator):
    """The joint distribution of a table's columns: scores, samples, imputations, anomalies, conditionals.

    Takes frames of pandas, polars or pyarrow, and arrays; what each column is, is decided from it (`columns_`) unless
    `kinds` says otherwise. Values may be missing everywhere. What comes out has the library, the types and the
    categories of what was fitted. The model is pyar.TableNADE; log-densities are exact, in the columns' own units.

    A part of the rows is held out: the weights that are best there are kept, and the threshold of anomalies is a
    quantile of their scores.

    Args:
        kinds: what columns are that shall not be decided: pyar.tables' Binary, Categorical, Integer or Real by name, or
            a text such as "integer:0..120", see pyar.tables.Columns.from_frame.
        hidden_sizes: units of every hidden layer.
        dropout: the part of the hidden units that a training step leaves out.
        orders: how many orders are mixed in a score, 1 for the fastest. More are better, and exact all the same.
        learning_rate: Adam's.
        weight_decay: decoupled, on matrices.
        batch_size: rows a step; None for what suits the number of rows.
        max_steps: of the optimiser, after which training ends if it has not before.
        validation_fraction: the part of the rows that is held out.
        contamination: the part of held-out rows that is above `threshold_`.
        random_state: of the rows that are held out, the initial weights and training.
        device: where the model is trained and asked.

    Attributes:
        columns_: pyar.tables.Columns; `print(estimator.columns_.describe())` tells what was decided, and why.
        model_: the pyar.TableNADE.
        threshold_: of anomaly_scores, in nats.
        validation_score_: the mean log-density of the held-out rows, in nats.
        n_features_in_, feature_names_in_: as scikit-learn's.

    Example:
        >>> import pandas
        >>> frame = pandas.DataFrame({"age": [30, 41, 75, 22] * 10, "sex": ["f", "m", None, "f"] * 10})
        >>> density = TableDensity(max_steps=50, hidden_sizes=(16,)).fit(frame)
        >>> density.score_samples(frame).shape
        (40,)
        >>> bool(density.impute(frame).isna().any().any())
        False
        >>> density.sample(3, given={"sex": "m"})["sex"].tolist()
        ['m', 'm', 'm']
    """

    def __init__(
        self,
        *,
        kinds: Mapping[str | int, KindOrName] | None = None,
        hidden_sizes: Sequence[int] = (200, 200),
        dropout: float = 0.1,
        orders: int = 8,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.1,
        batch_size: int | None = None,
        max_steps: int = 20_000,
        validation_fraction: float = 0.1,
        contamination: float = 0.01,
        random_state: int | np.random.RandomState | None = 0,
        device: str = "cpu",
    ) -> None:
        self.kinds = kinds
        self.hidden_sizes = hidden_sizes
        self.dropout = dropout
        self.orders = orders
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_steps = max_steps
        self.validation_fraction = validation_fraction
        self.contamination = contamination
        self.random_state = random_state
        self.device = device

    # --- Fitting ---

    def fit(self, X: Any, y: Any = None) -> TableDensity:
        """Learns the distribution of the rows.

        Args:
            X: a frame, or an array [N, D]; two rows at least. Missing values are NaN, None or what the library has.
            y: ignored.

        Returns:
            The estimator itself.

        Raises:
            TypeError, ValueError: a column cannot be one, see Columns.from_frame, or an argument is not as described.
        """
        for name in ("validation_fraction", "contamination"):
            if not 0 < plain_number(name, getattr(self, name)) < 1:
                raise ValueError(f"{name} must be in (0, 1), got {getattr(self, name)}")
        frame = self._fitted_frame(X)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        rows = np.random.default_rng(seed).permutation(frame.shape[0])
        num_held_out = max(1, round(self.validation_fraction * len(rows)))
        if num_held_out >= len(rows):
            raise ValueError(
                f"validation_fraction={self.validation_fraction} leaves none of {len(rows)} rows to learn from"
            )
        held_out, learnt = np.sort(rows[:num_held_out]), np.sort(rows[num_held_out:])
        columns = Columns.from_frame(frame, self.kinds).standardized(take_rows(frame, learnt))
        x = columns.encode(frame)
        data = TableData("the table", columns, x[learnt], x[held_out], x[:0])

        with torch.random.fork_rng(devices=[]), _one_thread():
            torch.manual_seed(seed)
            model = TableNADE(columns, self.hidden_sizes, dropout=self.dropout)
            model.initialize_from_marginals(data.train)
            model.to(self.device)
            with tempfile.TemporaryDirectory() as folder:
                trainer = Trainer(model, data, self._training(data, seed), folder)
                result = trainer.train()
        if result.signal is not None:
            pass_on(result.signal)
        self.columns_, self.model_ = columns, model.eval()
        self._template = take_rows(frame, rows[:0])
        scores = self._log_prob(data.valid)
        self.validation_score_ = float(scores.mean())
        self.threshold_ = float(np.quantile(-scores, 1 - self.contamination))
        return self

    def _training(self, data: TableData, seed: int) -> TrainingConfig:
        settings = training_defaults("table-nade", None, Size(len(data.train), data.dim)).to_json()
        settings |= {
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "max_steps": plain_integer("max_steps", self.max_steps),
            "seed": seed,
        }
        return TrainingConfig(**settings | ({} if self.batch_size is None else {"batch_size": self.batch_size}))

    @classmethod
    def of_model(cls, model: TableNADE, **parameters: Any) -> TableDensity:
        """A fitted estimator with a model that is there already, such as one that `pyar train table-nade` wrote.

        It takes and gives pandas frames. `threshold_` and `validation_score_`, which need rows, it does not have.

        Args:
            model: the model.
            parameters: as the constructor's; those of training are not used.

        Example:
            >>> model = pyar.TableNADE(pyar.tables.Columns({"height": pyar.tables.Real()}), (8,))
            >>> TableDensity.of_model(model).sample(3, random_state=1).shape
            (3, 1)
        """
        density = cls(**parameters)
        density.model_, density.columns_ = model.eval(), model.columns
        density.n_features_in_ = model.dim
        density._takes_arrays = False
        density._template = model.columns.decode(torch.zeros(1, model.dim))
        return density

    # --- Scores ---

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """The log-density of every row in nats, of what is there: [N].

        Args:
            X: as fit; its columns may stand in any order.

        Raises:
            NotFittedError: fit has not been called.
            TypeError, ValueError: X does not fit the columns, which the message names.
        """
        return self._log_prob(self._encoded(X))

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of score_samples(X)."""
        return float(self.score_samples(X).mean())

    def anomaly_scores(self, X: Any) -> NDArray[np.float64]:
        """−log density of every row in nats, [N]: what is above `threshold_` is as rare as `contamination` says."""
        return -self.score_samples(X)

    def surprise(self, X: Any) -> Any:
        """−log p(cell | all else in its row) in nats, NaN for missing cells: a frame of floats, or an array [N, D]."""
        with torch.no_grad():
            parts = [self.model_.surprise(part.to(self._device())).cpu() for part in self._encoded(X).split(_ROWS)]
        values = torch.cat(parts).double().numpy()
        return self._out({name: values[:, d] for d, name in enumerate(self.columns_)})

    # --- Draws ---

    def sample(
        self,
        n_samples: int = 1,
        *,
        given: Mapping[str | int, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> Any:
        """Exact samples: a frame, or an array, like what was fitted.

        Args:
            n_samples: how many.
            given: values by the column's name that every sample has.
            random_state: an integer gives the same samples at every call.

        Raises:
            ValueError: `given` names no column, or a value that its column cannot have.
        """
        check_is_fitted(self)
        known = torch.full((self.columns_.log_scales.shape[0],), math.nan)
        if given:
            self.columns_.indices(given)  # so that a wrong name is told with the nearest
            known = self.columns_.encode(make_frame({name: _one(value) for name, value in given.items()}), subset=True)[
                0
            ]
        x = self.model_.sample(n_samples, seed=_seed(random_state), given=known.to(self._device()), orders=self.orders)
        return self._decoded(x)

    def impute(
        self,
        X: Any,
        num_samples: int = 1,
        *,
        best_guess: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> Any:
        """X with its missing values drawn from their exact conditional distribution given the rest of the row.

        Args:
            X: as score_samples.
            num_samples: how many completed tables to draw (multiple imputation).
            best_guess: instead of draws one table with the mean of numbers, the median of whole numbers, and the most
                probable category, each of its distribution given the rest of the row. What else is missing there is
                averaged over, in 64 draws.
            random_state: an integer gives the same draws at every call.

        Returns:
            A frame or an array like X, or a list of num_samples of them if that is above 1. Cells that were there are
            as they were.
        """
        x = self._encoded(X)
        number = _GUESSES if best_guess else plain_integer("num_samples", num_samples)
        if number < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        if best_guess and num_samples != 1:
            raise ValueError(f"num_samples must be 1 for a best guess, got {num_samples}")
        seed, holes = _seed(random_state), x.isnan().any(dim=1).nonzero().squeeze(1)
        drawn = x[holes, None].repeat(1, number, 1)
        step = max(1, _ROWS // number)
        for first in range(0, len(holes), step):
            drawn[first : first + step] = self.model_.complete(
                x[holes[first : first + step]].to(self._device()),
                num_samples=number,
                seed=seed,
                first_index=first * number,
                orders=self.orders,
            ).cpu()
        if best_guess:
            drawn = self._centres(x[holes], drawn)[:, None]
        tables = []
        for j in range(drawn.shape[1]):
            completed = x.clone()
            completed[holes] = torch.where(x[holes].isnan(), drawn[:, j], x[holes])
            tables.append(self._filled(X, x, completed))
        return tables[0] if len(tables) == 1 else tables

    def conditional(self, X: Any, given: Sequence[str | int]) -> Any:
        """What every other column is expected to be, given some columns of each row alone: exact, from one pass.

        With X a grid of values of one or two columns this is a partial dependence, of the joint distribution.

        Args:
            X: rows with the columns `given`; others may lack, and are not read.
            given: names of columns.

        Returns:
            A frame of floats, or an array: for a column of numbers its mean, for two categories the probability of the
            second, for others a column NAME=LEVEL with the probability of each.

        Raises:
            ValueError: `given` names no column, or X lacks it.
        """
        check_is_fitted(self)
        known = self.columns_.indices(given)
        frame = self._as_frame(X)
        lacking = [name for name in given if name not in names_of(frame)]
        if lacking:
            raise ValueError(f"X lacks the column {lacking[0]!r}, which is given")
        x = self.columns_.encode(take_columns(frame, list(given)), subset=True).to(self._device())
        observed = torch.zeros(len(self.columns_), dtype=torch.bool, device=x.device)
        observed[known] = True
        with torch.no_grad():
            outputs = self.model_.conditionals(x, observed)
        result: dict[str | int, NDArray] = {}
        for name, column in zip(self.columns_, self.columns_.conditionals, strict=True):
            if name not in given:
                result |= _expected(name, self.columns_[name], column, outputs[name].double().cpu())
        return self._out(result)

    # --- Frames and arrays ---

    def _fitted_frame(self, X: Any) -> Any:
        """X as a frame, whose form is kept for what comes out."""
        self._takes_arrays = not is_frame(X)
        if not self._takes_arrays:
            names = names_of(X)
            if X.shape[0] < 2:
                raise ValueError(f"Found array with {X.shape[0]} sample(s) while a minimum of 2 is required.")
            self.n_features_in_ = len(names)
            if all(isinstance(name, str) for name in names):
                self.feature_names_in_ = np.array(names, dtype=object)
            elif hasattr(self, "feature_names_in_"):
                del self.feature_names_in_
            return X
        array = validate_data(self, X, dtype=None, ensure_all_finite="allow-nan", ensure_min_samples=2)
        return make_frame({f"x{d}": array[:, d] for d in range(array.shape[1])})

    def _as_frame(self, X: Any) -> Any:
        check_is_fitted(self)
        if is_frame(X):
            return X
        array = validate_data(self, X, reset=False, dtype=None, ensure_all_finite="allow-nan")
        return make_frame({name: array[:, d] for d, name in enumerate(self.columns_)})

    def _encoded(self, X: Any) -> Tensor:
        frame = self._as_frame(X)
        return self.columns_.encode(frame)

    def _decoded(self, x: Tensor) -> Any:
        frame = self.columns_.decode(x, like=self._template)
        return frame.to_numpy() if self._takes_arrays else frame

    def _filled(self, X: Any, x: Tensor, completed: Tensor) -> Any:
        """X with the completed values where it had none, and with its own everywhere else."""
        frame = self._as_frame(X)
        new = self.columns_.decode(completed, like=take_columns(self._template, self.columns_.names))
        result = frame_like(frame, new, x.isnan().numpy(), self.columns_.names)
        return result if is_frame(X) else result.to_numpy()

    def _out(self, columns: dict[str | int, NDArray]) -> Any:
        if self._takes_arrays:
            return np.stack(list(columns.values()), axis=1) if columns else np.empty((0, 0))
        return make_frame(columns, like=self._template, own_types=False)

    @torch.no_grad()
    def _centres(self, x: Tensor, drawn: Tensor) -> Tensor:
        """Rows [R, D] whose missing values are the centres of their distributions.

        That of a column is the mean of its conditionals given all others, over the draws [R, S, D] of those that are
        missing: known as a whole, it varies less than the draws of the column itself.
        """
        filled, number = x.clone(), drawn.shape[1]
        for d, (name, kind) in enumerate(self.columns_.items()):
            others = torch.ones(len(self.columns_), dtype=torch.bool, device=self._device())
            others[d] = False
            for rows in x[:, d].isnan().nonzero().squeeze(1).split(max(1, _ROWS // number)):
                outputs = self.model_.conditionals(drawn[rows].flatten(0, 1).to(self._device()), others)[name]
                outputs = outputs.double().cpu().view(len(rows), number, outputs.shape[1])
                filled[rows, d] = _centre(kind, self.columns_.conditionals[d], outputs).float()
        return filled

    def _log_prob(self, x: Tensor) -> NDArray[np.float64]:
        def scored(part: Tensor) -> Tensor:
            return self.model_.log_prob(part, orders=self.orders)

        with torch.no_grad():
            parts = [scored(part.to(self._device())).cpu() for part in x.split(_ROWS)]
        return torch.cat(parts).double().numpy() if parts else np.empty(0)

    def _device(self) -> torch.device:
        return self.model_.b.device

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        return tags


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Steps of so small a network gain nothing from a second thread, and on a busy machine wait for it at every one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _expected(name: str | int, kind: Kind, column: Any, outputs: Tensor) -> dict[str | int, NDArray[np.float64]]:
    """The mean of a column of numbers, or the probabilities of categories, from outputs [B, P]."""
    if isinstance(column, Categories):
        probabilities = _probabilities(kind, column, outputs).numpy()
        if column.num_states == 2:
            return {f"{name}={kind.levels[1]}": probabilities[:, 1]}
        return {f"{name}={level}": probabilities[:, k] for k, level in enumerate(kind.levels)}
    if isinstance(kind, Integer):  # limits cut the mixture: the mean is over all values there are
        probabilities = _probabilities(kind, column, outputs).numpy()
        return {name: probabilities @ np.arange(kind.low, kind.high + 1, dtype=np.float64)}
    return {name: kind.location + kind.scale * _mean(outputs).numpy()}


def _centre(kind: Kind, column: Any, outputs: Tensor) -> Tensor:
    """The most probable category, the median whole number or the mean of an even mixture of S distributions: [R], as
    models take it, from outputs [R, S, P]."""
    if isinstance(column, Categories):
        return _probabilities(kind, column, outputs).mean(dim=1).argmax(dim=1).double()
    if isinstance(kind, Integer):
        cumulative = _probabilities(kind, column, outputs).mean(dim=1).cumsum(dim=1)
        place = (cumulative < 0.5 * cumulative[:, -1:]).sum(dim=1)
        return torch.from_numpy(kind.encoded(kind.low + place.double().numpy()))
    return _mean(outputs).mean(dim=1)


def _probabilities(kind: Kind, column: Any, outputs: Tensor) -> Tensor:
    """Of every category or whole number: [..., P] → [..., K]."""
    if isinstance(column, Categories):
        if column.num_states == 1:
            return torch.ones(*outputs.shape[:-1], 1, dtype=outputs.dtype)
        return log_probabilities(outputs).exp()
    encoded = torch.from_numpy(kind.encoded(np.arange(kind.low, kind.high + 1, dtype=np.float64)))
    return column.log_prob(outputs[..., None, :], encoded.expand(*outputs.shape[:-1], -1)).exp()


def _mean(outputs: Tensor) -> Tensor:
    """Of mixtures: [..., 3C] → [...]."""
    logits, means, _ = outputs.chunk(3, dim=-1)
    return (torch.softmax(logits, dim=-1) * means).sum(dim=-1)


def _seed(random_state: Any) -> int | None:
    """A seed of pyar's; None draws one from torch's default generator."""
    if random_state is None:
        return None
    return int(check_random_state(random_state).randint(2**31 - 1))


def _one(value: Any) -> NDArray:
    array = np.empty(1, dtype=object)
    array[0] = value.item() if isinstance(value, np.generic) else value
    return array
