"""The ranks that compute one thing together, under torchrun."""

import contextlib

from deq_enn.utils.interrupts import RESUME


class Team:
    """The ranks that train one run together, each on its share of every batch. By default: this process alone."""

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size

    def share(self, rows):
        """The rows that are this rank's share; none, where there are fewer rows than ranks."""
        return rows[self.rank :: self.size]

    def wrap(self, model):
        """The model with gradients that are means over the ranks once `backward` is through."""
        if self.size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(model)

    def total(self, values):
        """Sums over the ranks of a tensor's entries, as a list."""
        return self._reduce(values, "SUM")

    def most(self, values):
        """Maxima over the ranks of a tensor's entries, as a list."""
        return self._reduce(values, "MAX")

    def _reduce(self, values, kind):
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(values, getattr(dist.ReduceOp, kind))
        return values.tolist()


@contextlib.contextmanager
def one_line_where_a_rank_is_gone():
    """Turns the errors of broken connections, which quote sources and stacks, into advice."""
    try:
        yield
    except RuntimeError as error:
        from torch.distributed import DistError

        if isinstance(error, DistError):
            detail = f" ({str(error).splitlines()[0]})"
        elif "gloo" in str(error):  # it raises plain RuntimeErrors that name its source files
            detail = ""
        else:
            raise
        raise RuntimeError(f"the connection to another rank is lost{detail}; {RESUME}") from None
