"""Small steps take one of torch's threads, and large ones all of them."""

import time

import pytest
import torch

from deq_enn.data.datasets import Dataset
from deq_enn.networks.conv_deq import ConvDEQ
from deq_enn.networks.deq import DEQ
from deq_enn.networks.pcdeq import build_pcdeq
from deq_enn.training.loop import FullTask
from deq_enn.training.readout import ReadoutTask, extract_features
from deq_enn.training.run_files import Config
from deq_enn.utils.threads import SMALL_NETWORK, is_small


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def task_of(kind, width):
    X, y = torch.randn(8, 4), torch.arange(8) % 2
    config = Config("gmm", "deq", width, lr=0.1, epoch=1, batch_size=8)
    return kind(DEQ("relu", 4, width, 2, sigma_a2=0.2), Dataset("gmm", X, y, X, y, 2), config, "cpu")


@pytest.mark.parametrize(
    "kind, width, threads", [(ReadoutTask, 3000, 1), (FullTask, SMALL_NETWORK, 1), (FullTask, SMALL_NETWORK + 1, 2)]
)
def test_an_epoch_takes_one_thread_if_its_steps_are_small(two_threads, kind, width, threads):
    task = task_of(kind, width)
    seen, step = [], task.optimizer.step
    task.optimizer.step = lambda: (seen.append(torch.get_num_threads()), step())
    task.epoch(torch.arange(8))
    assert seen == [threads] and torch.get_num_threads() == 2


def test_features_are_those_of_the_network_each_batch_on_one_thread(two_threads):
    seen = []

    def watched(x):
        seen.append(torch.get_num_threads())
        return torch.tanh(x)

    X = torch.randn(70, 4) * torch.logspace(3, -3, 70)[:, None]  # whose rows need ever more iterations
    deq, iterations = DEQ(watched, 4, 16, 2, sigma_a2=0.5), []
    seen.clear()
    F, most = extract_features(deq, X, batch_size=10)
    assert set(seen) == {1} and torch.get_num_threads() == 2
    for rows in torch.arange(70).split(10):
        torch.testing.assert_close(F[rows], deq.features(X[rows]), rtol=1e-4, atol=1e-6)
        iterations.append(deq.fixed_point.iterations)
    assert abs(most - max(iterations)) <= 1 < max(iterations) - min(iterations)  # products of another library: one more


def test_convolutions_have_the_maps_of_one_batch_at_a_time(two_threads):
    at_work, seen = [], []

    class Watched(ConvDEQ):
        def features(self, x):
            at_work.append(1)
            seen.append((len(at_work), torch.get_num_threads()))
            time.sleep(0.02)
            value = super().features(x)
            at_work.pop()
            return value

    deq = Watched("relu", (1, 4, 4), 2, 2, sigma_a2=0.2)
    extract_features(deq, torch.randn(40, 1, 4, 4), batch_size=10)
    assert seen == [(1, 2)] * 4


def test_torch_has_its_threads_again_after_a_failure(two_threads):
    task = task_of(ReadoutTask, 16)
    with pytest.raises(IndexError):
        task.epoch(torch.arange(9))
    assert torch.get_num_threads() == 2


def test_a_convolution_takes_all_threads_and_a_linear_positive_concave_network_one():
    assert is_small(build_pcdeq("linear_pcdeq_1", "tanh", (1, 28, 28), 10))
    assert not is_small(build_pcdeq("single_conv_pcdeq_1", "tanh", (1, 28, 28), 10))
