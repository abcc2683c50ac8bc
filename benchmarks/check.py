"""Whether a contender's result is right: against pyar.reference run in float64. A wrong one has no time, one that is
only imprecise has its time and a mark."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.cases import Case, Inputs, orders_of
from benchmarks.ours import layered
from pyar.reference import deep_nade as deep_nade_reference
from pyar.reference import lstm as lstm_reference
from pyar.reference import made as made_reference
from pyar.reference import nade as nade_reference
from pyar.reference.draw import log_probability

# Largest error over the largest magnitude among the log-probabilities, or the entries of one parameter's gradient.
# float32 sums over 784 dimensions stay below a tenth of this.
TOLERANCE = {"log_prob": 1e-5, "gradient": 1e-4, "sample": 1e-5}
# Magnitudes below these count as these, for otherwise nearly certain data would leave rounding errors alone to compare:
# nats a dimension; derivatives of the mean negative log-likelihood in nats.
SMALLEST_LOG_PROB, SMALLEST_GRADIENT = 0.1, 0.01
# What float32 can lose at most by adding n numbers one after the other is n times this, relative to the sum of their
# magnitudes (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 4.2).
UNIT_ROUNDOFF = 2.0**-24
# Rows of a batch of samples that are checked, spread evenly, and rows of a chunk in float64: one step of NADE's
# backward pass costs a pass over all parameters whatever the chunk, PixelLSTM's keeps a thousand values a step and row.
CHECKED_SAMPLES = 64
CHUNK = {"nade": 100, "lstm": 50, "made": 200}


class Checker:
    """Knows the float64 answers of one case, and computes each of them once."""

    def __init__(self, case: Case, inputs: Inputs) -> None:
        self.case = case
        self.inputs = inputs
        self.parameters = {name: torch.from_numpy(value).double() for name, value in inputs.parameters.items()}
        self.expected: dict[str, np.ndarray] | None = None
        self.verified: dict[bytes, tuple[float, float]] = {}

    def error(self, result: dict[str, np.ndarray]) -> float:
        """The result's error over what is allowed: at most 1 is right, NaN and infinity are wrong."""
        if self.case.task == "sample":
            return self.sample_error(result)
        if self.expected is None:
            self.expected = self.log_probs() if self.case.task == "log_prob" else self.gradients()
        if set(result) != set(self.expected):
            return float("inf")
        tolerance = TOLERANCE[self.case.task]
        smallest = SMALLEST_GRADIENT if self.case.task == "gradient" else SMALLEST_LOG_PROB * self.case.D
        errors = [relative_error(result[name], value, smallest) for name, value in self.expected.items()]
        return float(np.max(errors)) / tolerance

    def status(self, error: float) -> str:
        """`error` in a word: ok · imprecise, a log-probability or gradient outside the tolerance by no more than plain
        float32 summation explains, over the D terms of a log-probability or the B·D of a gradient · wrong."""
        if error <= 1:
            return "ok"
        terms = {"log_prob": self.case.D, "gradient": self.case.B * self.case.D, "sample": 0}[self.case.task]
        # Written so that NaN is wrong.
        return "imprecise" if error * TOLERANCE[self.case.task] <= terms * UNIT_ROUNDOFF else "wrong"

    def reference(self, x: Tensor, parameters: dict[str, Tensor], function: str) -> Tensor:
        if self.case.model == "nade":
            return getattr(nade_reference, function)(x, *parameters.values())
        if self.case.model == "made":
            return getattr(made_reference, function)(x, *layered(parameters), None, "relu")
        weights = [value for name, value in parameters.items() if not name.startswith("head_")]
        return getattr(lstm_reference, function)(x, weights, parameters["head_weight"], parameters["head_bias"])

    def path_outputs(self, x: Tensor, order: Tensor) -> Tensor:
        """DeepNADE's outputs [n, D, P] of every step of the orders int64 [n, D], a pass through the network each."""
        columns, observed = [], torch.zeros(x.shape, dtype=torch.bool)
        for dims in order.T:
            outputs = deep_nade_reference.outputs(x, observed, *layered(self.parameters), "relu")
            columns.append(outputs[torch.arange(len(x)), dims])
            observed.scatter_(1, dims[:, None], True)
        return torch.stack(columns, dim=1)

    def walk_log_probs(self) -> dict[str, np.ndarray]:
        """Rows and orders both repeat themselves."""
        distinct = self.case.distinct_rows
        x, order = torch.from_numpy(self.inputs.x[:distinct]), orders_of(self.case)[:distinct]
        with torch.inference_mode():
            values = log_probability(self.path_outputs(x, order), x.gather(1, order)).sum(dim=1)
        return {"log_prob": values[torch.arange(self.case.B) % max(distinct, 1)].numpy()}

    def log_probs(self) -> dict[str, np.ndarray]:
        if self.case.model == "deep-nade":
            return self.walk_log_probs()
        x, back = np.unique(self.inputs.x, axis=0, return_inverse=True)
        with torch.inference_mode():
            values = [self.reference(chunk, self.parameters, "log_prob") for chunk in torch.from_numpy(x).split(200)]
        return {"log_prob": torch.cat(values).numpy()[back.ravel()]}

    def gradients(self) -> dict[str, np.ndarray]:
        leaves = {name: value.clone().requires_grad_() for name, value in self.parameters.items()}
        x, counts = np.unique(self.inputs.x, axis=0, return_counts=True)
        rows, total = CHUNK[self.case.model], 0.0
        for chunk, count in zip(torch.from_numpy(x).split(rows), torch.from_numpy(counts).split(rows), strict=True):
            loss = -(count * self.reference(chunk, leaves, "log_prob")).sum() / self.case.B
            loss.backward()
            total += loss.item()
        return {"loss": np.array(total), **{name: leaf.grad.numpy() for name, leaf in leaves.items()}}

    def sample_error(self, result: dict[str, np.ndarray]) -> float:
        """Every state must be the inverse CDF of its uniform under the reference's conditionals given the sample's own
        past; the error is how far outside its state's interval a uniform lies. Rows known to be right are not computed
        again, so that contenders who draw the same samples are checked once."""
        x = result["x"]
        if x.shape != (self.case.B, self.case.D) or x.min() < 0 or x.max() >= self.case.K:
            return float("inf")
        if "log_prob" in result and result["log_prob"].shape != (self.case.B,):
            return float("inf")
        rows = np.unique(np.linspace(0, self.case.B - 1, CHECKED_SAMPLES).round().astype(int))
        x = np.ascontiguousarray(x[rows].astype(np.uint8))
        new = [i for i in range(len(rows)) if rows[i].tobytes() + x[i].tobytes() not in self.verified]
        if new:
            distances, log_probs = self.intervals(x[new], rows[new])
            for i, distance, log_prob in zip(new, distances, log_probs, strict=True):
                self.verified[rows[i].tobytes() + x[i].tobytes()] = (distance, log_prob)
        known = [self.verified[rows[i].tobytes() + x[i].tobytes()] for i in range(len(rows))]
        error = max(distance for distance, _ in known) / TOLERANCE["sample"]
        if "log_prob" in result:
            expected = np.array([log_prob for _, log_prob in known])
            log_prob_error = relative_error(result["log_prob"][rows], expected, SMALLEST_LOG_PROB * self.case.D)
            error = float(np.max([error, log_prob_error / TOLERANCE["log_prob"]]))
        return error

    def intervals(self, x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """x [n, D], drawn as those rows of the batch → the largest distance of a uniform from the drawn state's
        interval [n], and log p(x) [n]."""
        with torch.inference_mode():
            states, u = torch.from_numpy(x), torch.from_numpy(self.inputs.uniforms[rows]).double()
            if self.case.model == "deep-nade":
                order = orders_of(self.case)[rows]
                logits = self.path_outputs(states, order)
                logits = logits[..., 0] if logits.shape[-1] == 1 else logits
                states, u = states.gather(1, order), u.gather(1, order)
            else:
                logits = self.reference(states, self.parameters, "logits")
            if logits.dim() == 2:
                logits = torch.stack((torch.zeros_like(logits), logits), -1)
            log_p = torch.log_softmax(logits, -1)
            upper = log_p.exp().cumsum(-1)
            state = states.long()[..., None]
            high = upper.gather(-1, state)[..., 0]
            low = torch.nn.functional.pad(upper, (1, 0)).gather(-1, state)[..., 0]
            distance = torch.maximum(low - u, u - high).clamp(min=0).amax(1)
            return distance.numpy(), log_p.gather(-1, state).sum((1, 2)).numpy()


def relative_error(value: np.ndarray, expected: np.ndarray, smallest: float) -> float:
    """max |value − expected| / max |expected|, the denominator at least `smallest`; infinite for another shape."""
    if value.shape != expected.shape:
        return float("inf")
    if value.size == 0:
        return 0.0
    return float(np.abs(value.astype(np.float64) - expected).max() / max(np.abs(expected).max(), smallest))
