"""Seeds name streams by their values."""

import numpy as np
import pytest
import torch

from deq_enn.utils.random import generator, normal_weights


@pytest.mark.parametrize("seed", [np.int64(3), np.uint8(3), torch.tensor(3).item()])
def test_an_integer_of_any_kind_names_the_stream_of_its_value(seed):
    assert torch.equal(normal_weights(4, 5, seed=(seed, "first")), normal_weights(4, 5, seed=(3, "first")))
    assert generator(True).initial_seed() == generator(1).initial_seed() != generator("1").initial_seed()
    assert generator(3, "a").initial_seed() == 64951383182053690
