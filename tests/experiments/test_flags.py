"""The flags of main.py: their names, defaults and refusals, without torch."""

import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from deq_enn import names
from deq_enn.data import datasets, mixtures
from deq_enn.experiments import exact_grid, flags
from deq_enn.matching import families
from deq_enn.networks import build, pcdeq
from deq_enn.theory import activations
from tests.conftest import ROOT
from tests.experiments.test_command import refused


def test_lists_of_names_are_found_where_they_were_and_are_one():
    for name, place in {
        "MODELS": build,
        "GENERAL": build,
        "FAMILIES": families,
        "PCDEQS": pcdeq,
        "DATASETS": datasets,
        "PCDEQ_ACTIVATIONS": pcdeq,
    }.items():
        assert getattr(place, name) is getattr(names, name)
    assert tuple(activations.ACTIVATIONS) == names.ACTIVATIONS
    assert tuple(mixtures.GMM_PRESETS) == names.PRESETS
    assert {kind: tuple(result) for kind, result in pcdeq.CONCAVE.items()} == names.PCDEQ_ACTIVATIONS


def test_every_kind_of_training_has_flags_and_a_grid():
    assert exact_grid.GRIDS.keys() == flags.DEFAULTS.keys() == {*flags.TRAININGS, "pcdeq"}


def test_defaults_follow_the_kind_of_training():
    def parse(*argv):
        return flags.parse_arguments(argv)[1]

    readout, full, pc = parse(), parse("--train", "full"), parse("--model", "linear_pcdeq_1")
    assert (readout.train, readout.match, readout.lr, readout.aug) == ("readout", "ck", 1.0, None)
    assert (full.train, full.match, full.epoch, full.dim) == ("full", "ntk", 10, [256, 512, 1024])
    assert (pc.train, pc.lr, pc.epoch, pc.weight_decay, pc.dim) == ("pcdeq", 7e-4, 50, 1e-2, None)
    assert (pc.milestone, pc.aug) == (0, False)
    matched = "--model", "matched_enn", "--activation", "swish"
    assert parse("--train", "full", "--match", "ck", *matched).match == "ck"
    assert parse("--train", "kernel", "--match", "ntk").match == "ntk"


def test_help_and_bad_flags_do_not_import_torch():
    code = (
        "import sys; sys.argv = ['main.py', {}]; import main\ntry: main.main()\n"
        "except SystemExit as e: print(e.code, 'torch' in sys.modules)"
    )
    for flag, status in (("--help", "0"), ("--no_such_flag", "2")):
        done = subprocess.run([sys.executable, "-c", code.format(repr(flag))], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout.splitlines()[-1] == f"{status} False"


@pytest.mark.parametrize(
    "argv, words",
    [
        (("--model", "resnet"), "resnet"),
        (("--dataset", "imagenet"), "imagenet"),
        (("--preset", "three_class"), "three_class"),
        (("--dataset", "mnist", "--preset", "mixed"), "--preset: it is for --dataset gmm, not for mnist"),
        (("--dataset", "mnist", "--vgg_path", "x"), "--vgg_path: it is for --dataset cifar10, not for mnist"),
        (("--dataset_path", "mine.npz"), "reads no file; for mine.npz: --dataset npz"),
        (("--dim", "0"), "positive whole number, got '0'"),
        (("--dim", "12.5"), "positive whole number, got '12.5'"),
        (("--dim", "64", "64"), "given twice"),
        (("--epoch", "-1"), "positive whole number"),
        (("--batch_size", "many"), "positive whole number"),
        (("--seed", "-1"), "whole number from 0"),
        (("--asquare", "1"), "between 0 and 1"),
        (("--asquare", "-0.1"), "between 0 and 1"),
        (("--asquare", "nan"), "between 0 and 1"),
        (("--lr", "nan"), "positive and finite, got 'nan'"),
        (("--lr", "inf"), "positive and finite"),
        (("--lr", "0"), "positive and finite"),
        (("--opt", "lbfgs"), "lbfgs"),
        (("--dataset", "npz"), "needs the path of a .npz, .npy or .csv file"),
        (("--what",), "--what"),
        (("--family", "auto"), "argument --family: only matched_enn, matched_conv_enn have one"),
        (("--train", "full", "--match", "ntk"), "argument --match: only matched_enn, matched_conv_enn have one"),
        (("--model", "deq"), "deq needs one"),
        (("--activation", "swish"), "not a setting of inn"),
        (("--classes", "0", "1"), "leave --classes out (--preset two_class has 2 classes, mixed 4)"),
        (("--steps", "3"), "argument --steps: not a setting of --train readout"),
        (("--train", "full", "--steps", "0"), "a positive whole number or inf, got '0'"),
        (("--train", "full", "--steps", "2", "2"), "given twice"),
        (("--train", "full", "--model", "relu_enn", "--steps", "2"), "deq, conv_deq and positive concave"),
        (("--train", "full", "--model", "inn", "--steps", "2", "--lenient"), "add inf to --steps"),
        (("--train", "full", "--model", "relu_enn", "--jacobian", "0"), "argument --jacobian: no network of this grid"),
        (("--train", "full", "--solver", "newton"), "newton"),
        (("--train", "full", "--solver_tol", "0"), "between 0 and 1"),
        (("--train", "full", "--max_steps", "0"), "positive whole number"),
        (("--train", "full", "--jacobian", "-1"), "0 or positive, and finite"),
        (("--aug",), "argument --aug: not a setting of inn"),
        (("--train", "full", "--milestone", "3"), "argument --milestone: not a setting of inn"),
        (("--model", "linear_pcdeq_1", "--train", "full"), "argument --train: not a setting of linear_pcdeq_1"),
        (("--model", "linear_pcdeq_1", "--activation", "swish"), "has one of tanh, softsign, relu6; got 'swish'"),
        (("--model", "deq", "--activation", "swosh"), "unknown activation 'swosh'"),
        (("--model", "deq", "--activation", "nowhere/to/be.py:found"), "there is no file nowhere/to/be.py"),
        (("--model", "matched_enn", "--activation", "swish", "--family", "l_relu"), "gamma^2 = tau_0^2 alpha_1"),
    ],
)
def test_bad_flags(capsys, tmp_path, argv, words):
    assert words in refused(capsys, tmp_path, *argv)


def test_a_bad_flag_as_a_process(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "main.py", "--dim", "0"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not os.listdir(tmp_path)


def test_an_unknown_activation_is_refused_without_torch():
    commands = (("deq_enn.experiments.flags", "parse_arguments"), ("deq_enn.commands.match", "main"),
                ("deq_enn.commands.export", "main"), ("deq_enn.commands.doorways", "moments"))  # fmt: skip
    for (module, name), argv in itertools.product(commands, (["swosh"], ["nowhere/to/be.py:bent"])):
        argv = [*(["--model", "deq"] if name == "parse_arguments" else []), "--activation", *argv]
        argv += ["enn.pt"] if module.endswith("export") else []
        code = (
            "import importlib, sys\n"
            f"try: importlib.import_module({module!r}).{name}({argv!r})\n"
            "except SystemExit as stop: assert stop.code == 2\n"
            "assert 'torch' not in sys.modules\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0 and done.stderr.count("\n") == 1, done.stderr
        assert "argument --activation: " in done.stderr


def test_the_installed_command_calls_itself_by_its_name(capsys, monkeypatch):
    from deq_enn.__main__ import interrupts, main

    for name in ("leave_at_once", "ignore"):  # signals of the whole process
        monkeypatch.setattr(interrupts, name, lambda *_: None)
    with pytest.raises(SystemExit) as stop:
        main(["run", "--dim", "0"])
    assert stop.value.code == 2 and capsys.readouterr().err.startswith("deq-enn run: error: ")


def refused_to_another(path):
    """The status and the words of `check_folder` in a child that, where we are root, has become nobody."""
    read, write = os.pipe()
    if not (child := os.fork()):
        status = 1
        try:
            sys.stderr = os.fdopen(write, "w")
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            flags.check_folder(flags.OneLineParser(prog="test"), "output_path", path)
            status = 0
        except SystemExit as stop:
            status = stop.code
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as said:
        words = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), words


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc")
def test_a_folder_that_takes_no_files_is_one_line(capsys):
    """os.access has no objection to /proc, where we are root."""
    with pytest.raises(SystemExit) as stop:
        flags.check_folder(flags.OneLineParser(prog="test"), "output_path", "/proc/new")
    assert stop.value.code == 2
    assert "argument --output_path: /proc cannot be written to" in capsys.readouterr().err


def test_a_folder_that_this_user_may_not_write_or_see_is_one_line():
    with tempfile.TemporaryDirectory() as folder:  # pytest's own may be seen by its owner only
        folder = Path(folder)
        folder.chmod(0o755)
        for name, mode in (("read_only", 0o555), ("locked", 0o000)):
            (folder / name).mkdir()
            (folder / name).chmod(mode)
            for path in (folder / name, folder / name / "new", folder / name / "new" / "deeper"):
                status, words = refused_to_another(path)
                assert status == 2 and words.count("\n") == 1
                assert f"argument --output_path: {folder / name} cannot be written to" in words
