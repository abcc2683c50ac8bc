"""numba: the loops compiled, samples in parallel.

NADE takes one sample after the other, and computes hidden units only where a state has changed them. PixelLSTM gives
every thread its share of the batch, and its products to BLAS. fastmath lets the compiler reorder sums into vector
registers, without which a dot product is scalar. There is no automatic differentiation, so no gradient.
"""

from __future__ import annotations

import os

import numba
import numpy as np
from numba import njit, prange

from benchmarks.cases import Case, Inputs
from benchmarks.peers import NotApplicable, Work, require_model

NAME = "numba"
# For BLAS, which numba loads from SciPy with the first product: every thread of numba's multiplies for itself.
os.environ["OPENBLAS_NUM_THREADS"] = "1"


@njit(fastmath=True, inline="always")
def sigmoid(a):
    return np.float32(1) / (np.float32(1) + np.exp(-a))


@njit(fastmath=True, inline="always")
def tanh(a):
    return np.float32(2) * sigmoid(np.float32(2) * a) - np.float32(1)


@njit(fastmath=True)
def add_row(a, h, row):
    for j in range(a.shape[0]):
        a[j] += row[j]
        h[j] = sigmoid(a[j])


@njit(fastmath=True)
def conditional(h, V_d, b_d, logits):
    """The logits of one dimension: K = 2 has the Bernoulli logit and a zero."""
    offset = 1 if V_d.shape[0] == 1 else 0
    logits[0] = 0
    for p in range(V_d.shape[0]):
        total = np.float32(0)
        for j in range(h.shape[0]):
            total += V_d[p, j] * h[j]
        logits[p + offset] = total + b_d[p]


@njit(fastmath=True)
def inverse_cdf(logits, weights, u):
    largest = logits.max()
    total = np.float32(0)
    for k in range(logits.shape[0]):
        total += np.exp(logits[k] - largest)
        weights[k] = total
    state = 0
    while state < logits.shape[0] - 1 and weights[state] <= u * total:
        state += 1
    return state


@njit(parallel=True, fastmath=True)
def nade_log_prob(x, W, c, V, b):
    B, D = x.shape
    K = W.shape[1] + 1
    result = np.empty(B, np.float32)
    for i in prange(B):
        a = c.copy()
        h = sigmoid(c)
        logits = np.empty(K, np.float32)
        total = 0.0
        for d in range(D):
            conditional(h, V[d], b[d], logits)
            largest = logits.max()
            normaliser = np.float32(0)
            for k in range(K):
                normaliser += np.exp(logits[k] - largest)
            total += logits[x[i, d]] - largest - np.log(normaliser)
            if x[i, d] > 0:
                add_row(a, h, W[d, x[i, d] - 1])
        result[i] = total
    return result


@njit(parallel=True, fastmath=True)
def nade_sample(uniforms, W, c, V, b):
    B, D = uniforms.shape
    K = W.shape[1] + 1
    x = np.empty((B, D), np.uint8)
    for i in prange(B):
        a = c.copy()
        h = sigmoid(c)
        logits = np.empty(K, np.float32)
        weights = np.empty(K, np.float32)
        for d in range(D):
            conditional(h, V[d], b[d], logits)
            state = inverse_cdf(logits, weights, uniforms[i, d])
            x[i, d] = state
            if state > 0:
                add_row(a, h, W[d, state - 1])
    return x


@njit(parallel=True, fastmath=True)
def lstm_sample(uniforms, table, recurrent, head, head_bias):
    """table [K+1, 4H] of input terms, recurrent [H, 4H], head [H, K]."""
    B, D = uniforms.shape
    H, K = head.shape
    x = np.empty((B, D), np.uint8)
    parts = min(B, numba.get_num_threads())
    for part in prange(parts):
        start, end = part * B // parts, (part + 1) * B // parts
        h = np.zeros((end - start, H), np.float32)
        cell = np.zeros((end - start, H), np.float32)
        weights = np.empty(K, np.float32)
        previous = np.full(end - start, K)
        for d in range(D):
            gates = np.dot(h, recurrent)
            for i in range(end - start):
                gates[i] += table[previous[i]]
                for j in range(H):
                    cell[i, j] *= sigmoid(gates[i, H + j])
                    cell[i, j] += sigmoid(gates[i, j]) * tanh(gates[i, 2 * H + j])
                    h[i, j] = sigmoid(gates[i, 3 * H + j]) * tanh(cell[i, j])
            logits = np.dot(h, head)
            for i in range(end - start):
                previous[i] = inverse_cdf(logits[i] + head_bias, weights, uniforms[start + i, d])
                x[start + i, d] = previous[i]
    return x


def prepare(case: Case, inputs: Inputs, threads: int) -> Work:
    require_model(case.model, "nade", "lstm")
    if case.task == "gradient":
        raise NotApplicable("numba has no automatic differentiation")
    if case.device != "cpu":
        raise NotApplicable("written for the CPU")
    if case.model == "lstm" and (case.task != "sample" or case.num_layers != 1):
        raise NotApplicable("the sampling loop of one layer")
    numba.set_num_threads(threads)
    p = inputs.parameters
    if case.model == "lstm":
        bias = p["bias_ih_l0"] + p["bias_hh_l0"]
        table = np.concatenate((p["weight_ih_l0"].T + bias, bias[None]))
        recurrent = np.ascontiguousarray(p["weight_hh_l0"].T)
        head = np.ascontiguousarray(p["head_weight"].T)
        arguments = (inputs.uniforms, table, recurrent, head, p["head_bias"])
        return Work(lambda: lstm_sample(*arguments), lambda x: {"x": x})
    values = (p["W"], p["c"], p["V"], p["b"])
    if case.task == "log_prob":
        return Work(lambda: nade_log_prob(inputs.x, *values), lambda value: {"log_prob": value})
    return Work(lambda: nade_sample(inputs.uniforms, *values), lambda x: {"x": x})
