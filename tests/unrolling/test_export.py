"""What is written fits the user's own class; what cannot be is said in one line, without torch.export's pages."""

import json

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


@pytest.mark.parametrize("mean", [None, torch.arange(P) / 10])
def test_the_state_is_that_of_the_user_s_own_class(tmp_path, mean):
    X, module = torch.randn(5, P, generator=torch.Generator().manual_seed(0)), Loop(tested=False)
    export(module, tmp_path / "few.pt", X, mean, 2.0 if mean is not None else 1.0)
    again = Loop(tested=False)
    again.load_state_dict(torch.load(tmp_path / "few.pt", weights_only=True))
    with torch.no_grad():
        expected = module(X)
        assert torch.equal(again(X), expected)
        raw = X if mean is None else 2 * X + mean
        torch.testing.assert_close(
            torch.export.load(tmp_path / "few.pt2").module()(raw), expected, rtol=1e-4, atol=1e-5
        )
    said = json.loads((tmp_path / "few.json").read_text())
    assert said.get("scale") == (None if mean is None else 2.0)
    assert mean is None or torch.equal(torch.tensor(said["mean"]), mean)
