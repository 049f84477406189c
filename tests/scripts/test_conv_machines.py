"""scripts/conv_machines.py: its table, what it keeps, and its bad flags."""

import argparse

import pytest
import torch

from ck_ntk.common.conv_networks import mixture
from scripts import conv_machines


@pytest.mark.slow
def test_table_of_kernel_machines(tmp_path, monkeypatch):
    x, y = mixture(60, 3, 4, 0), torch.arange(60) % 2
    args = argparse.Namespace(
        dataset="two", activation="relu", asquare=0.5, output_path=tmp_path, network=conv_machines.NETWORKS
    )
    data = x[:40], y[:40], x[40:], y[40:]
    lines = list(conv_machines.table(args, 40, data))
    assert len(lines) == 1 + len(conv_machines.NETWORKS) == 1 + len(list(tmp_path.glob("*.pt")))
    for line in lines[1:]:
        ck, ahead, ntk, _ = (cell.strip() for cell in line.split("|")[2:6])
        assert float(ck) >= 85 and float(ntk) >= 85  # the two classes are far apart
    assert "+0.00 ± 0.00" in lines[1]
    monkeypatch.setattr(conv_machines, "kernels_of", None)  # what is kept is not computed again
    assert list(conv_machines.table(args, 40, data)) == lines


def test_ridge_is_chosen_on_training_images():
    """On held-out rows of the kernel of noise the largest ridge does best, and without noise the least."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 2
    noise = torch.randn(60, 500, generator=generator)
    signal = torch.nn.functional.one_hot(y, 2).float() + 1e-3 * torch.randn(60, 2, generator=generator)
    for features, best in ((noise, max), (signal, min)):
        K = features @ features.T
        assert conv_machines.predictions(K[:40, :40], K[40:, :40], y[:40], 2)[1] in (
            best(conv_machines.RIDGES),
            sorted(conv_machines.RIDGES, reverse=best is max)[1],
        )


@pytest.mark.parametrize("flags", [["--asquare", "2"], ["--n", "3"], ["--dataset", "gmm"]])
def test_bad_flags_are_one_line(flags, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["conv_machines.py", *flags])
    with pytest.raises(SystemExit) as stop:
        conv_machines.main()
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1
