"""csrc/common, which the CPU's and the GPU's compilers both read: drawing a state, and the scalar nonlinearities."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyar import native

pytestmark = pytest.mark.skipif(native._C is None, reason="pyar's extension is not built")
_C = native._C

SMALLEST_UNIFORM, LARGEST_UNIFORM = 2.0**-24, 1 - 2.0**-24
weights = st.lists(st.floats(0, 1, width=32), min_size=2, max_size=256).filter(lambda w: sum(w) > 0)
uniform = st.integers(0, 2**23 - 1).map(lambda word: (word + 0.5) / 2**23)


def prefix_sums(w: list[float]) -> torch.Tensor:
    """float32 sums in the order of the states."""
    sums, total = [], torch.tensor(0.0)
    for value in w:
        total = total + torch.tensor(value)
        sums.append(total)
    return torch.stack(sums)


@given(weights, uniform)
def test_draw_state_is_the_smallest_whose_prefix_exceeds_the_target(w, u):
    state, total = _C.draw_state(w, u)
    sums = prefix_sums(w)
    assert total == sums[-1].item()
    passed = (torch.tensor(u) * sums[-1] >= sums).sum().item()
    if passed < len(w):
        assert state == passed
    else:
        assert sums[state] == sums[-1]
        assert state == 0 or sums[state - 1] < sums[state]


@given(weights, st.sampled_from([SMALLEST_UNIFORM, 0.5, LARGEST_UNIFORM]))
def test_draw_state_never_draws_a_state_of_weight_zero(w, u):
    state, _ = _C.draw_state(w, u)
    assert w[state] > 0


def test_draw_state_where_the_target_rounds_up_to_the_sum():
    # u·S = S in float32 for the largest uniform and a denormal sum.
    tiny = 2.0**-149
    assert _C.draw_state([0.0, tiny, 0.0], LARGEST_UNIFORM) == (1, tiny)


@pytest.mark.parametrize("w", [[0.0, 0.0], [math.nan, 1.0], [1.0, math.nan], [math.inf, 1.0], [3e38, 3e38]], ids=str)
def test_draw_state_refuses_what_is_no_distribution(w):
    assert _C.draw_state(w, 0.5)[0] == -1


@given(st.floats(0, 1, width=32), uniform)
def test_draw_binary_is_draw_state_of_two(weight, u):
    for w in ([1.0, weight], [weight, 1.0]):
        assert _C.draw_binary(*w, u) == _C.draw_state(w, u)[0]
    assert _C.draw_binary(math.nan, 1.0, u) == -1


def test_sigmoid_and_its_logarithm_are_accurate_to_a_few_roundings():
    x = torch.cat((torch.linspace(-87, 87, 2001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 300.0, 1e38])))
    exact, exact_log = torch.sigmoid(x.double()), torch.nn.functional.logsigmoid(x.double())
    actual = torch.tensor([_C.sigmoid(value) for value in x.tolist()], dtype=torch.float64)
    actual_log = torch.tensor([_C.log_sigmoid(value) for value in x.tolist()], dtype=torch.float64)
    assert ((actual - exact).abs() <= 4e-7 * exact).all()
    assert ((actual_log - exact_log).abs() <= 4e-7 * exact_log.abs() + 1e-44).all()


def test_sigmoid_and_its_logarithm_at_the_ends():
    assert (_C.sigmoid(-math.inf), _C.sigmoid(math.inf)) == (0.0, 1.0)
    assert (_C.log_sigmoid(-math.inf), _C.log_sigmoid(math.inf)) == (-math.inf, 0.0)
    assert math.isnan(_C.sigmoid(math.nan))
    assert math.isnan(_C.log_sigmoid(math.nan))
