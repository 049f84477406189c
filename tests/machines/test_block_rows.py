"""Block rows against the whole matrix: which rank holds them, products, and a formation that was killed."""

import os

import numpy as np
import pytest
import torch

from deq_enn.machines.block_rows import FileRows, Layout, MemoryRows, exact_product, form, product
from tests.helpers.kernel_rank import HEIGHT, Dense, N, formed, whole


def test_layout_covers_the_triangle_once_and_evenly():
    for size in (1, 2, 3, 5):
        layouts = [Layout(10_000, 333, rank, size) for rank in range(size)]
        assert sorted(i for layout in layouts for i in layout.owned) == list(range(layouts[0].blocks))
        held = [layout.nbytes for layout in layouts]
        assert sum(held) == Layout(10_000, 333).nbytes and max(held) < 1.1 * min(held)
    assert Layout(10_000, 333).rows(30) == slice(9990, 10_000)


@pytest.mark.parametrize("strip", [360, 40])  # a diagonal block in one piece, or in several
def test_block_rows_hold_the_kernel_and_multiply(problem, monkeypatch, strip):
    square, *_, kernels = problem
    monkeypatch.setattr("deq_enn.machines.block_rows.STRIP", strip)
    rows = formed(square, "ntk")
    np.testing.assert_allclose(whole(rows), kernels["ntk"][:N, :N], rtol=1e-7)
    V = torch.randn(N, 4, dtype=torch.float64)
    np.testing.assert_allclose(product(rows, V), whole(rows) @ V.numpy(), rtol=1e-11, atol=1e-11)
    exact = kernels["ntk"][:N, :N] @ V.numpy()
    np.testing.assert_allclose(exact_product(square, "ntk", V), exact, rtol=1e-11, atol=1e-11)


def test_a_killed_formation_goes_on_from_its_finished_rows(problem, tmp_path):
    square, cross, y, _, kernels = problem
    layout = Layout(N, HEIGHT)

    class Killed(Dense):
        def tile(self, rows, cols, kernel, out=None):
            if rows.stop > 2 * HEIGHT + 5:
                raise KeyboardInterrupt
            return super().tile(rows, cols, kernel, out)

    kept = FileRows(layout, tmp_path / "kernel.rows", "key")
    with pytest.raises(KeyboardInterrupt):
        form(Killed(*square.kernels.values()), "ck", MemoryRows(layout), kept)
    kept.close()
    again = FileRows(layout, tmp_path / "kernel.rows", "key")
    assert [i for i in range(layout.blocks) if again.has(i)] == [0, 1]
    rows, counted = MemoryRows(layout), Dense(*square.kernels.values())
    form(counted, "ck", rows, again)
    np.testing.assert_allclose(whole(rows), kernels["ck"][:N, :N], rtol=1e-6)
    assert np.array_equal(whole(again), whole(rows))
    whole_count = Dense(*square.kernels.values())
    form(whole_count, "ck", MemoryRows(layout))
    assert 0 < counted.entries < whole_count.entries
    again.close()
    assert not FileRows(layout, tmp_path / "kernel.rows", "another key").has(0)
    (tmp_path / "kernel.json").write_text("{ torn")
    torn = FileRows(layout, tmp_path / "kernel.rows", "key")
    assert not torn.has(0)
    torn.remove()
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_says_so_first(tmp_path):
    with pytest.raises(ValueError, match=r"takes .* GB on disk .* are free.*--save_path"):
        FileRows(Layout(20_000_000), tmp_path / "kernel.rows", "key")
    assert not list(tmp_path.iterdir())


def test_block_rows_on_disk_where_the_system_lacks_some_calls(tmp_path, monkeypatch):
    """macOS has neither posix_fallocate nor fdatasync."""
    for name in ("posix_fallocate", "fdatasync"):
        monkeypatch.delattr(os, name, raising=False)
    rows = FileRows(Layout(5, 2), tmp_path / "kernel.rows", "key")
    rows.write(1, torch.ones(rows.layout.shape(1)))
    assert rows.has(1) and torch.equal(rows.read(1), torch.ones(2, 4)) and (tmp_path / "kernel.rows").stat().st_size > 0
