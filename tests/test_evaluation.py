"""Exact NLLs of a split: against a direct sum, in batches, with their standard error and both units."""

from __future__ import annotations

import math

import pytest
import torch

import pyar
from pyar.data import Dataset
from pyar.evaluation import evaluate, log_probs


@pytest.fixture
def dataset():
    x = torch.randint(0, 3, (50, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Dataset("toy", 3, (2, 3), "3 states as stored", x[:30], x[30:40], x[40:])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return pyar.NADE(dim=6, num_states=3, hidden_size=4)


def test_mean_error_and_units(model, dataset):
    result = evaluate(model, dataset, "test", batch_size=3)
    nll = -model.log_prob(dataset.test).double().detach()
    assert result.nll == pytest.approx(nll.mean().item(), rel=1e-6)
    assert result.standard_error == pytest.approx((nll.std() / math.sqrt(10)).item(), rel=1e-5)
    assert result.bits_per_dim == pytest.approx(result.nll / 6 / math.log(2))
    assert result.num_examples == 10


def test_batch_size_does_not_change_the_numbers(model, dataset):
    assert torch.equal(log_probs(model, dataset.train, 7), log_probs(model, dataset.train, 30))


def test_the_model_is_left_as_it_was(model, dataset):
    model.train()
    evaluate(model, dataset)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_a_result_names_everything(model, dataset):
    result = evaluate(model, dataset, "valid")
    text = str(result)
    for part in ("toy valid", "nats", "bits/dim", "±", "10 examples", "6 dimensions", "3 states as stored"):
        assert part in text
    assert result.to_json()["nll_nats"] == result.nll
    assert result.to_json()["preparation"] == "3 states as stored"


def test_one_example_has_no_standard_error(model, dataset):
    one = Dataset("toy", 3, None, "", dataset.train, dataset.valid, dataset.test[:1])
    result = evaluate(model, one)
    assert result.standard_error is None
    assert "±" not in str(result)


def test_empty_split_and_other_model_are_refused(model, dataset):
    empty = Dataset("toy", 3, None, "", dataset.train, dataset.valid, dataset.test[:0])
    with pytest.raises(ValueError, match="no examples"):
        evaluate(model, empty)
    with pytest.raises(ValueError, match="4 states"):
        evaluate(pyar.NADE(dim=6, num_states=4, hidden_size=4), dataset)
