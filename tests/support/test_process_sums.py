"""Sums, maxima and gathered objects, alone and over two processes that talk through gloo."""

import math
import multiprocessing

import pytest
import torch

from support.processes import _meeting_device, alone, gathered, maximum, summed


def _values(rank):
    """The values of a process, by name; the second dimension of `strided` is not contiguous in memory."""
    return {
        "floats": torch.tensor([1.5, -2.0]) * (rank + 1),
        "doubles": torch.full((2, 1), 2.0**-40 if rank else 1.0, dtype=torch.float64),
        "integers": torch.tensor(2**40 + rank),
        "half": torch.tensor([0.5 + rank], dtype=torch.bfloat16),
        "strided": torch.arange(6.0).reshape(2, 3).T * 10**rank,
        "empty": torch.zeros(0, 3),
        "learned": torch.tensor([3.0], requires_grad=True),
    }


def _process(rank, folder, answers):
    try:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
        values = _values(rank)
        totals = {name: summed(value) for name, value in values.items()}
        unchanged = all(bool((values[name] == value).all()) for name, value in _values(rank).items())
        with alone():
            inside = (summed(values["floats"]) is values["floats"], maximum(float(rank)), gathered(rank))
        answer = {
            "totals": {name: (str(t.dtype), str(t.device), t.requires_grad, t.tolist()) for name, t in totals.items()},
            "unchanged": unchanged,
            "maxima": [maximum(v) for v in (float(rank), -float(rank) - 0.1, -math.inf, math.inf if rank else 0.0)],
            "with NaN": [maximum(math.nan if rank == there else 5.0) for there in (0, 1)],
            "alone": inside,
            "gathered": gathered({"rank": rank}),
        }
        torch.distributed.destroy_process_group()
    except Exception as error:
        answer = error
    answers.put((rank, answer))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The answers of two processes, by rank."""
    context = multiprocessing.get_context("fork")
    answers, folder = context.Queue(), tmp_path_factory.mktemp("group")
    workers = [context.Process(target=_process, args=(rank, folder, answers)) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    by_rank = dict(answers.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    return [by_rank[0], by_rank[1]]


def test_every_process_gets_the_same_sums_in_the_dtype_and_shape_of_the_values(two):
    expected = {
        "floats": ("torch.float32", [4.5, -6.0]),
        "doubles": ("torch.float64", [[1.0 + 2.0**-40], [1.0 + 2.0**-40]]),
        "integers": ("torch.int64", 2**41 + 1),
        "half": ("torch.bfloat16", [2.0]),
        "strided": ("torch.float32", [[0.0, 33.0], [11.0, 44.0], [22.0, 55.0]]),
        "empty": ("torch.float32", []),
        "learned": ("torch.float32", [6.0]),
    }
    for answer in two:
        assert not isinstance(answer, Exception), answer
        assert answer["totals"] == {name: (dtype, "cpu", False, v) for name, (dtype, v) in expected.items()}
        assert answer["unchanged"]


def test_every_process_gets_the_same_maximum_even_beside_nan(two):
    for answer in two:
        assert answer["maxima"] == [1.0, -0.1, -math.inf, math.inf]
        assert all(math.isnan(value) for value in answer["with NaN"])


def test_objects_are_gathered_by_rank_and_alone_hides_the_others(two):
    for rank, answer in enumerate(two):
        assert answer["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert answer["alone"] == (True, float(rank), [rank])


def test_without_a_process_group_everything_is_returned_as_it_was_given():
    values = torch.tensor([1.0], requires_grad=True)
    assert summed(values) is values
    assert maximum(-3.5) == -3.5 and math.isnan(maximum(math.nan))
    assert gathered("a") == ["a"]


@pytest.mark.parametrize("backend, device", [("nccl", "cuda:1"), ("gloo", "cpu"), ("cpu:gloo,cuda:nccl", "cpu")])
def test_tensors_of_the_cpu_are_reduced_on_the_accelerator_under_nccl_alone(monkeypatch, backend, device):
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: backend)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert _meeting_device(torch.zeros(1)) == torch.device(device)
