"""Philox4x32-10 and the promise about seeds."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from pyar.random import resolve_seed
from pyar.reference.philox import philox4x32_10, uniforms

_C = pytest.importorskip("pyar._C", reason="the extension is not built")

# Random123's known-answer vectors for philox4x32_10 (counter, key, result),
# https://github.com/DEShawResearch/random123/blob/main/tests/kat_vectors
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, result: str) -> None:
    assert _C.philox4x32_10(words(counter), words(key)) == words(result)
    assert philox4x32_10(torch.tensor(words(counter)), tuple(words(key))).tolist() == words(result)


def test_reference_is_vectorised_over_counters() -> None:
    counters = torch.tensor([[words(counter) for counter, _, _ in KNOWN_ANSWERS]])
    result = philox4x32_10(counters, (7, 9))
    assert result.shape == (1, 3, 4)
    for counter, row in zip(counters[0], result[0], strict=True):
        assert _C.philox4x32_10(counter.tolist(), (7, 9)) == row.tolist()


@pytest.mark.parametrize("seed", [0, 1, 0x0123456789ABCDEF, 2**63, 2**64 - 1])
@pytest.mark.parametrize("first_index", [0, 5, 2**32 - 2, 2**62 + 12345])
def test_uniforms_are_those_of_the_kernels(seed: int, first_index: int) -> None:
    table = uniforms(seed, first_index, 4, 11)
    assert table.dtype == torch.float32
    assert table.tolist() == [[_C.philox_uniform(seed, first_index + i, d) for d in range(11)] for i in range(4)]


def test_uniform_of_a_word() -> None:
    """u = ((r >> 9) + 1/2)·2⁻²³ of word d & 3 of the block with counter (d >> 2, 0, index low, index high)."""
    seed, index, d = 0xAAAA_BBBB_CCCC_DDDD, 0x1_0000_0002, 7
    word = _C.philox4x32_10((d >> 2, 0, 2, 1), (0xCCCC_DDDD, 0xAAAA_BBBB))[d & 3]
    assert _C.philox_uniform(seed, index, d) == ((word >> 9) + 0.5) / 2**23


def test_the_promise_holds_from_release_to_release() -> None:
    """These numbers may change in a breaking release only."""
    promised = [[14936071, 15010319, 9826851], [460573, 4358757, 3737873]]
    assert (uniforms(1, 0, 2, 3) * 2**24).tolist() == promised


def test_uniforms_are_uniform_and_inside_the_interval() -> None:
    u = uniforms(20260101, 0, 20000, 8).double()
    assert u.min() >= 2**-24
    assert u.max() <= 1 - 2**-24
    assert scipy.stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
    correlation = torch.corrcoef(u.T) - torch.eye(8)
    assert correlation.abs().max() < 5 / 20000**0.5


def test_chunks_and_negative_int64_pattern() -> None:
    whole = uniforms(2**64 - 3, 10, 9, 5)
    assert torch.equal(whole[4:], uniforms(-3, 14, 5, 5))
    assert uniforms(1, 0, 0, 5).shape == (0, 5)


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, 2**63, 2**64 - 1, np.uint64(2**64 - 1), np.int32(7)])
def test_resolve_seed_keeps_all_64_bits(seed: int, device: torch.device) -> None:
    resolved = resolve_seed(seed, device=device)
    assert resolved.dtype == torch.int64
    assert resolved.shape == ()
    assert resolved.device.type == device.type
    assert int(resolved) % 2**64 == int(seed)


def test_resolve_seed_draws_from_the_generator(device: torch.device) -> None:
    def draw_three(number: int) -> list[int]:
        generator = torch.Generator(device).manual_seed(number)
        return [int(resolve_seed(None, generator, device)) for _ in range(3)]

    assert draw_three(1) == draw_three(1)
    assert len({*draw_three(1), *draw_three(2)}) == 6


def test_manual_seed_governs_the_default_generator(device: torch.device) -> None:
    torch.manual_seed(11)
    first, second = resolve_seed(device=device), resolve_seed(device=device)
    torch.manual_seed(11)
    assert resolve_seed(device=device) == first
    assert resolve_seed(device=device) == second
    assert first != second


def test_drawn_seeds_use_all_64_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    seeds = [int(resolve_seed(None, generator)) % 2**64 for _ in range(64)]
    for bit in range(64):
        assert 0 < sum(seed >> bit & 1 for seed in seeds) < 64, f"bit {bit} never changes"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": -1}, ValueError, r"seed must be in \[0, 2\*\*64\), got -1"),
        ({"seed": 2**64}, ValueError, r"seed must be in \[0, 2\*\*64\), got 18446744073709551616"),
        ({"seed": 1.0}, TypeError, "seed must be an integer .* got float 1.0"),
        ({"seed": True}, TypeError, "seed must be an integer .* got bool True"),
        ({"seed": "1"}, TypeError, "seed must be an integer .* got str '1'"),
        ({"seed": 1, "generator": torch.Generator()}, ValueError, "a seed or a generator, not both"),
        ({"generator": 5}, TypeError, "generator must be a torch.Generator, got int"),
        ({"generator": torch.Generator(), "device": "meta"}, ValueError, "generator is on cpu, the model on meta"),
    ],
)
def test_resolve_seed_refuses(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        resolve_seed(**arguments)
