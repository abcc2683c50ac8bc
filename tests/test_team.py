"""Threads that share one sample's work: the same bits with any number of them, also where they lack a processor."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import pyar
from pyar.native import _C

pytestmark = pytest.mark.skipif(_C is None, reason="needs the native extension")

# NADE with output weights enough for a team, and LSTMs of which every member has some unit blocks: one whose head all
# members compute, one whose head they share.
DRAW = """
import os, sys
threads, processors, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:processors])
import torch, pyar
torch.set_num_threads(threads)
torch.manual_seed(0)
drawn = []
for model in (pyar.NADE(40, 256, 160), pyar.PixelLSTM(1500, 3, 100, 2), pyar.PixelLSTM(1500, 256, 64)):
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for seed in range(10):
        drawn += model.sample_and_log_prob(1, seed=seed)
    drawn += model.sample_and_log_prob(3, seed=7)
torch.save(drawn, path)
"""
# Takes a processor away and gives it back, a thousand times a second.
DISTURB = """
import time
while True:
    until = time.perf_counter() + 5e-4
    while time.perf_counter() < until: pass
    time.sleep(5e-4)
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs sched_setaffinity")
def test_a_team_that_breaks_up_draws_the_same(tmp_path):
    def draw(threads: int, processors: int) -> list[torch.Tensor]:
        path = tmp_path / f"{threads}-{processors}.pt"
        subprocess.run([sys.executable, "-c", DRAW, str(threads), str(processors), str(path)], check=True)
        return torch.load(path, weights_only=True)

    alone = draw(1, 1)
    assert len(alone) == 3 * 2 * 11
    on_one_processor = draw(3, 1)  # breaks up at once: a member that waits finds that no other is running
    disturbers = [subprocess.Popen([sys.executable, "-c", DISTURB]) for _ in range(2)]
    try:
        on_a_busy_machine = draw(2, 2)  # breaks up somewhere in the middle
    finally:
        for disturber in disturbers:
            disturber.kill()
            disturber.wait()
    for one, other, another in zip(alone, on_one_processor, on_a_busy_machine, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, another)


@pytest.mark.parametrize("given", [0, 3])
def test_a_lone_sample_is_that_of_a_batch(given):
    for K, H in ((2, 40), (10, 40), (256, 160)):
        torch.manual_seed(K)
        model = pyar.NADE(50, K, H)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        prefix = torch.randint(K, (given,)) if given else None
        x, log_prob = model.sample_and_log_prob(30, seed=K, given=prefix, temperature=0.7)
        for index in range(0, 30, 7):
            one, its_log_prob = model.sample_and_log_prob(1, seed=K, first_index=index, given=prefix, temperature=0.7)
            assert torch.equal(one[0], x[index])
            assert torch.equal(its_log_prob[0], log_prob[index])
