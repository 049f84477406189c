"""The modules under test lie in the repository root; real data, if any, in ../shared/data beside it."""

import gc
import itertools
import os
import sys
from pathlib import Path

import pytest

# The files that take longest come first, so that with a process a core none of them is left alone at the end.
LONG = """experiments/test_executors training/test_kills ck_ntk/test_figures verdicts/test_after_training test_package
verdicts/test_command experiments/test_exact_grid verdicts/test_at_initialisation ck_ntk/test_any_activation_matching
scripts/test_pretrain_vgg networks/test_conv_deq experiments/test_ranks networks/test_trained_deq test_tour
scripts/test_reproduce kernels/test_conv scripts/test_calibrate training/test_loop kernels/test_exact test_interrupts
experiments/test_command kernels/test_interpolated networks/test_second_device matching/test_families_continuity
networks/test_empirical verdicts/test_page""".split()

gc.disable()  # until all is imported: in half of that time garbage is looked for, and there is none

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["TORCH_CPP_LOG_LEVEL"] = "FATAL"  # as utils/team.py has it, which is too late where torch is there already

SLOW = False  # whether --slow or --long was given
SHARE = 4  # random examples are divided by this: 1 with --long, 2 with --slow


def examples(whole):
    """So many random examples with --long, half of them with --slow, a quarter without either."""
    return max(1, whole // SHARE)


def one_line(error):
    """The message of a caught exception, which has one line."""
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    return str(error.value)


class Ticks:
    """A clock by which each look at it takes so many seconds: what a budget pays for is the same on every machine."""

    def __init__(self, seconds=0.005):
        self.seconds, self.now = seconds, 0.0

    def __call__(self):
        self.now += self.seconds
        return self.now


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the full-size checks too")
    parser.addoption(
        "--long",
        action="store_true",
        help="and what is longer still: kills at many more moments, whole verdicts on a pretended device",
    )


def pytest_configure(config):
    global SLOW, SHARE
    SLOW = config.getoption("--slow") or config.getoption("--long")
    SHARE = 1 if config.getoption("--long") else 2 if SLOW else 4
    config.addinivalue_line("markers", "slow: a full-size check, run with --slow")
    config.addinivalue_line("markers", "long: a check that is longer still, run with --long")
    config.addinivalue_line("markers", "few(count): so many of its cases, of all values, are run; all with --long")


def draw_quickly():
    """Figures are written coarse, and without the search for a layout that has them drawn twice: no test compares
    pictures, and they took a seventh of the suite's time."""
    import matplotlib
    from matplotlib.figure import Figure

    savefig = Figure.savefig

    def quickly(self, *args, **settings):
        self._layout_engine = None
        with matplotlib.rc_context({"savefig.bbox": None}):
            return savefig(self, *args, **settings | {"dpi": 20})

    Figure.savefig = quickly


@pytest.hookimpl(trylast=True)
def pytest_unconfigure():
    gc.freeze()  # or the interpreter, at its end, looks for a second or two through all that torch has made


def beyond_the_few(items):
    """The cases that the marker `few` leaves out."""
    cases = {}
    for item in items:
        if marker := item.get_closest_marker("few"):
            cases.setdefault((item.path, item.originalname), (marker.args[0], []))[1].append(item)
    return {item for count, result in cases.values() for item in set(result) - _spread(result, count)}


def _spread(items, count):
    """Returns so many of the cases: each has as many values, and then pairs of values, as it can that were not seen."""
    kept, seen, left = set(), set(), list(items)
    for _ in range(min(count, len(left))):
        item = max(left, key=lambda item: [len(new - seen) for new in _values(item)])  # the first of several
        left.remove(item)
        kept.add(item)
        seen.update(*_values(item))
    return kept


def _values(item):
    """Returns the parameters' values of a case, and their pairs, as sets of indices by name."""
    values = sorted(item.callspec.indices.items())
    return set(values), set(itertools.combinations(values, 2))


def pytest_collection_modifyitems(config, items):
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(
        key=lambda item: place.get(item.path.relative_to(ROOT / "tests").with_suffix("").as_posix(), len(place))
    )  # stable: the others stay in their order
    left_out = set() if config.getoption("--long") else beyond_the_few(items)
    for item in items:
        if item.get_closest_marker("long") and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="long: run with --long"))
        elif item in left_out:
            item.add_marker(pytest.mark.skip(reason="one case of many: run with --long"))
        elif item.get_closest_marker("slow") and not SLOW:
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    if not session.config.getoption("--long"):
        draw_quickly()
    gc.collect()
    gc.enable()
    gc.set_threshold(50_000, 20, 20)  # seldom: a test leaves little, and late imports are looked through anew
    gc.freeze()  # what the imports made stays: neither is it looked through again, nor do forked processes copy it
    if any("forks" in getattr(item, "fixturenames", ()) for item in session.items):
        from tests.helpers.forks import Forks

        session.config.forks = Forks()  # before the first test: with the imports of all, and with nothing that one did


@pytest.fixture(scope="session")
def forks(pytestconfig):
    """Scripts without the seconds that their imports take: see forks.py."""
    yield pytestconfig.forks
    pytestconfig.forks.close()


@pytest.fixture
def real_data():
    """The folder with the real MNIST; the test is skipped where it is not."""
    path = ROOT.parent / "shared" / "data"
    if not (path / "MNIST" / "raw" / "train-images-idx3-ubyte").exists():
        pytest.skip(f"no real MNIST under {path}")
    return path


@pytest.fixture(scope="session")
def small_npz(tmp_path_factory):
    """A data file of three classes that are easily told apart: 60 training and 30 test samples in 5 dimensions."""
    import numpy as np

    g = np.random.default_rng(0)
    y = np.arange(90) % 3
    X = (g.normal(size=(90, 5)) + 2 * np.eye(5)[y]).astype("f4")
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, X_train=X[:60], y_train=y[:60], X_test=X[60:], y_test=y[60:])
    return path


@pytest.fixture
def double_by_default():
    """What users of double precision set: new tensors are float64 where nothing else is said."""
    import torch

    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def few_candidates(monkeypatch):
    """Verdicts on two matches and one plain network in the place of all candidates."""
    from deq_enn.verdicts import candidates

    monkeypatch.setattr(candidates, "FAMILIES", ("piecewise",))
    monkeypatch.setattr(candidates, "PLAIN_DEPTHS", (1,))
