"""What cannot be exported is said in one line, without the pages that torch.export prints of the code."""

import pytest
import torch
from torch import nn

from deq_enn.unrolling.export import export
from tests.unrolling.modules import P


class Loop(nn.Module):
    """An equilibrium by a loop of one's own, with or without a test for convergence."""

    def __init__(self, tested):
        super().__init__()
        self.A, self.B, self.tested = nn.Linear(8, 8), nn.Linear(P, 8), tested

    def forward(self, x):
        u = self.B(x)
        z = torch.zeros_like(u)
        for _ in range(3):
            before, z = z, torch.tanh(0.3 * self.A(z) + u)
            if self.tested and (z - before).norm() <= 1e-9 * z.norm():
                break
        return z


@pytest.mark.slow
def test_a_loop_that_tests_for_convergence_has_no_program(tmp_path, capfd):
    X = torch.randn(5, P, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match="no program of torch.export .its forward branches on the values") as error:
        export(Loop(tested=True), tmp_path / "few.pt", X)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
    export(Loop(tested=False), tmp_path / "few.pt", X)
    assert (tmp_path / "few.pt2").exists()
