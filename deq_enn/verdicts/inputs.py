"""What a verdict is asked about: the DEQ and the samples, or in one line what is wrong with them."""

import torch

LEAST = 50  # samples, below which nothing can be said


def check_deq(deq) -> None:
    missing = [name for name in ("activation", "sigma_a2", "tau0", "A", "B") if not hasattr(deq, name)]
    if missing:
        raise ValueError(
            f"{type(deq).__name__} is not a DEQ of the form z = phi(sigma_a A z + sigma_b B x)/sqrt(m): "
            f"it has no {', '.join(missing)}"
        )


def check_data(X, y, p: int) -> tuple[torch.Tensor, torch.Tensor | None, int | None]:
    """X float32 (n, p), y in 0 .. classes - 1 or None, the number of classes or None; ValueError for what is wrong."""
    X = torch.as_tensor(X)
    if X.ndim != 2 or X.shape[1] != p:
        raise ValueError(f"X must be an (n, {p}) matrix, as the DEQ's B has {p} columns; got shape {tuple(X.shape)}")
    if len(X) < LEAST:
        raise ValueError(f"{len(X)} samples are too few to say anything: at least {LEAST} are needed")
    X = X.detach().to("cpu", torch.float32)
    bad = next(
        (
            start + int((~rows.isfinite().all(1)).nonzero()[0])
            for start, rows in zip(range(0, len(X), 4096), X.split(4096))
            if not rows.isfinite().all()
        ),
        None,
    )
    if bad is not None:
        raise ValueError(f"X has NaN or infinite entries, first in row {bad}")
    if y is None:
        return X, None, None
    y = torch.as_tensor(y)
    if y.shape != X.shape[:1]:
        raise ValueError(f"y must have one label a row of X, ({len(X)},); got shape {tuple(y.shape)}")
    if y.is_floating_point() and not (y.isfinite().all() and (y == y.round()).all()):
        raise ValueError("the labels y must be integers")
    values, y = y.long().cpu().unique(return_inverse=True)
    if len(values) < 2:
        raise ValueError(
            f"all labels are {int(values[0])}: a verdict on accuracy needs at least two classes; give "
            "y=None for one on kernels alone"
        )
    return X, y, len(values)
