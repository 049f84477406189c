"""How far layers are from the four equations of a DEQ, by the public functions alone."""

from deq_enn.theory.coefficients import explicit_ck, explicit_ntk, implicit_ck, implicit_ntk


def residual(activation, sigma_a2, tau0, kernel, trained, layers):
    """The largest error of the four, relative or in units of alpha_1."""
    if kernel == "ck":
        target, got = implicit_ck(activation, sigma_a2, tau0), explicit_ck(layers, tau0)
    else:
        target = implicit_ntk(activation, sigma_a2, tau0, trained)
        got = explicit_ntk(layers, tau0, {"aAB": "all", "aA": "frozen_first"}[trained])
    unit = tau0**2 / target.c1
    return max(
        abs(got.diag / target.diag - 1),
        abs(got.c1 / target.c1 - 1),
        abs(got.c2 - target.c2) * unit,
        abs(got.c3 - target.c3) * unit,
    )
