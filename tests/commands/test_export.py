"""`python -m deq_enn export`: the files are the matched network with the readout of main.py --train ridge."""

import json
import warnings

import numpy as np
import pytest
import torch

from deq_enn.commands import export as export_command
from deq_enn.experiments import command
from deq_enn.machines import readout
from deq_enn.networks.export import rebuild

FLAGS = "--activation", "swish", "--asquare", "0.15", "--dim", "48"


def export(*argv):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export_command.main([*map(str, argv)])


def refused(capsys, *argv, code=2):
    with pytest.raises(SystemExit) as stop:
        export(*argv)
    captured = capsys.readouterr()
    assert stop.value.code == code
    assert captured.err.startswith("deq-enn export: ") and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("kernel", [pytest.param("ck", marks=pytest.mark.slow), "ntk"])
def test_the_files_hold_the_network_that_main_tests(small_npz, tmp_path, capsys, kernel):
    data = "--dataset", "npz", "--dataset_path", small_npz
    export(tmp_path / "new" / "enn.pt", *data, *FLAGS, "--kernel", kernel, "--seed", 3)
    out = capsys.readouterr().out
    paths = "--output_path", tmp_path / "out", "--save_path", tmp_path / "ckpt"
    model = "--train", "ridge", "--model", "matched_enn", "--match", kernel, "--seed", 3, "--device", "cpu"
    command.main([*map(str, (*data, *FLAGS, *paths, *model))])
    (log,) = (tmp_path / "out" / "seed_3").glob("48_predicted_*.json")
    said = json.loads(log.read_text())
    arrays = np.load(small_npz)
    network = rebuild(tmp_path / "new" / "enn.pt")
    assert network.labels == tuple(np.unique(arrays["y_train"]).tolist())
    with torch.no_grad():
        scores = network(torch.from_numpy(arrays["X_test"]))
    assert scores.argmax(1).tolist() == said["predicted"]
    share = np.mean(np.array(said["predicted"]) == arrays["y_test"])
    assert f"test accuracy {100 * share:.2f}%" in out and share > 0.7
    program = torch.export.load(tmp_path / "new" / "enn.pt2").module()
    torch.testing.assert_close(program(torch.from_numpy(arrays["X_test"])), scores, rtol=1e-4, atol=1e-5)
    files = [path for path in (tmp_path / "new").iterdir()]
    assert {path.suffix for path in files} >= {".pt", ".json", ".pt2"} and all(str(path) in out for path in files)


def test_a_file_without_a_test_set_or_without_labels(small_npz, tmp_path, capsys):
    arrays = np.load(small_npz)
    np.savez(tmp_path / "train.npz", X_train=arrays["X_train"], y_train=arrays["y_train"])
    np.savez(tmp_path / "bare.npz", X_train=arrays["X_train"])
    data = "--dataset", "npz", "--dataset_path"
    export(tmp_path / "enn.pt", *data, tmp_path / "train.npz", *FLAGS)
    out = capsys.readouterr().out
    assert "test accuracy" not in out and "60 training samples" in out and (tmp_path / "enn.json").exists()
    words = refused(capsys, tmp_path / "other.pt", *data, tmp_path / "bare.npz", *FLAGS)
    assert "bare.npz: holds no y_train" in words and not (tmp_path / "other.pt").exists()


def test_bad_flags_and_bad_places_come_before_the_work(small_npz, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export_command, "write", lambda arguments: pytest.fail("the work has begun"))
    (tmp_path / "file").write_text("")
    assert "must end in .pt, got" in refused(capsys, tmp_path / "enn.onnx", *FLAGS)
    assert "cannot be written" in refused(capsys, tmp_path / "file" / "enn.pt", *FLAGS)
    for suffix in (".pt", ".json", ".pt2", ".onnx"):
        (tmp_path / suffix / f"enn{suffix}").mkdir(parents=True)
        assert f"enn{suffix} is a folder" in refused(capsys, tmp_path / suffix / "enn.pt", *FLAGS)
        assert len([*(tmp_path / suffix).iterdir()]) == 1
    assert "--dataset_path" in refused(capsys, tmp_path / "enn.pt", "--dataset", "npz", *FLAGS)
    assert "--dim" in refused(capsys, tmp_path / "enn.pt", "--activation", "relu", "--dim", "0")
    assert "FILE.pt" in refused(capsys, "--activation", "relu")


def test_what_cannot_be_done_is_one_line_and_leaves_no_file(small_npz, tmp_path, capsys, monkeypatch):
    data = "--dataset", "npz", "--dataset_path", small_npz
    refused(capsys, tmp_path / "enn.pt", *data, "--activation", "relu", "--family", "hard_tanh", "--dim", 8)

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(readout, "solve", interrupt)
    words = refused(capsys, tmp_path / "enn.pt", *data, *FLAGS, code=130)
    assert words == "deq-enn export: interrupted, nothing was written\n"
    assert not list(tmp_path.iterdir())
