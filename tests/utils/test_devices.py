"""Products of matrices by oneDNN, where the processor is one of AMD's, are those of torch."""

import pytest
import torch

from deq_enn.networks.deq import DEQ
from deq_enn.training.readout import extract_features
from deq_enn.utils import devices
from deq_enn.utils.devices import FastProducts, has_fast_onednn, product


@pytest.fixture(params=[False, True])
def onednn(request, monkeypatch):
    if request.param and not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        pytest.skip("torch has no oneDNN here")
    monkeypatch.setattr(devices, "has_fast_onednn", lambda: request.param)
    return request.param


def close(value, exact):
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("n, k, m", [(1, 1, 1), (7, 30, 5), (64, 513, 100), (0, 3, 2), (4, 3, 0)])
def test_products_are_those_in_float64(onednn, n, k, m):
    """Also of matrices that are transposed, or parts of larger ones."""
    A, B, u = torch.randn(n, k), torch.randn(m, k), torch.randn(n, m)
    exact = A.double() @ B.double().T
    whole = torch.randn(2 * n, k + 3)
    whole[::2, 3:] = A
    for left in (A, A.T.contiguous().T, whole[::2, 3:]):
        close(product(left, B), exact)
        with FastProducts():
            close(left @ B.T, exact)
            close(torch.matmul(left, B.T), exact)
            close(torch.addmm(u, left, B.T, alpha=0.5), u.double() + 0.5 * exact)
            close(torch.addmm(u[:1, :1], left, B.T), u[:1, :1].double() + exact)


def test_what_is_no_product_of_float32_matrices_is_torchs_own(onednn):
    A, v = torch.randn(4, 3), torch.randn(3)
    with FastProducts():
        assert torch.equal(A @ v, torch.mv(A, v)) and (A.double() @ A.double().T).dtype == torch.float64
        assert torch.equal(A[None] @ A.T, torch.bmm(A[None], A.T[None]))
        assert torch.equal(torch.addmm(A @ A.T, A, A.T, beta=0.0), torch.mm(A, A.T))


def test_within_it_each_product_of_two_matrices_is_ours(monkeypatch):
    made = []
    monkeypatch.setattr(devices, "has_fast_onednn", lambda: True)
    monkeypatch.setattr(devices, "product", lambda A, B: made.append((A.shape, B.shape)) or A @ B.T)
    A, B = torch.randn(4, 3), torch.randn(5, 3)
    with FastProducts():
        A @ B.T, torch.matmul(A, B.T), torch.addmm(torch.zeros(4, 5), A, B.T)
    assert made == [((4, 3), (5, 3))] * 3
    A @ B.T
    assert len(made) == 3


def test_amd_with_avx512_takes_onednn(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("vendor_id: AuthenticAMD\n")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    for wide in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda wide=wide: wide)
        assert has_fast_onednn.__wrapped__() == (wide and hasattr(torch.ops.mkldnn, "_linear_pointwise"))


def test_values_that_are_not_finite_stay_so(onednn):
    A = torch.tensor([[1.0, float("nan")], [float("inf"), 1.0], [1.0, 1.0]])
    assert product(A, torch.ones(1, 2)).isfinite().flatten().tolist() == [False, False, True]


def test_features_are_those_of_the_network(onednn):
    X = torch.randn(20, 5)
    for act in ("relu", "tanh"):
        deq = DEQ(act, 5, 40, 2, sigma_a2=0.3)
        torch.testing.assert_close(extract_features(deq, X)[0], deq.features(X).detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("processor", ["GenuineIntel", None])
def test_other_processors_keep_mkl(tmp_path, monkeypatch, processor):
    monkeypatch.setattr(devices, "CPUINFO", tmp_path / "cpuinfo")
    if processor:
        (tmp_path / "cpuinfo").write_text(f"processor: 0\nvendor_id: {processor}\n")
    assert has_fast_onednn.__wrapped__() is False
