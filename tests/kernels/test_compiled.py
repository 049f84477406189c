"""The compiled code is kept where that can be, made where it cannot, and made anew where what is kept is damaged."""

import logging
import shutil
from pathlib import Path

import pytest

from deq_enn.kernels.compiled import library

EMPTY = (
    "int conv_pairs(void) { return 0; } int conv_layers(void) { return 0; } int conv_layers_single(void) { return 0; }"
)
COMPILER = """#!/bin/sh
while [ "$1" != -o ]; do shift; done
exec {cc} -shared -fPIC -o "$2" {source}
"""


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """The folder of the cache, for a compiler that makes functions that do nothing, whatever it is given."""
    if not (cc := shutil.which("cc")):
        pytest.skip("no C compiler")
    source, compiler = tmp_path / "empty.c", tmp_path / "compiler"
    source.write_text(EMPTY)
    compiler.write_text(COMPILER.format(cc=cc, source=source))
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DEQ_ENN_COMPILE", raising=False)
    library.cache_clear()
    yield tmp_path / "cache" / "deq_enn"
    library.cache_clear()


def test_a_file_that_is_kept_is_taken_and_a_damaged_one_made_anew(kept, monkeypatch, tmp_path):
    assert library()
    (path,) = kept.iterdir()
    whole, made = path.read_bytes(), path.stat().st_mtime_ns
    library.cache_clear()
    assert library() and path.stat().st_mtime_ns == made
    damaged = tmp_path / "other" / "deq_enn" / path.name  # of a name that is not loaded yet
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(whole[:100])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    library.cache_clear()
    assert library() and damaged.stat().st_size == len(whole)


def test_without_a_folder_to_keep_it_in_a_process_compiles_for_itself(kept, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert library()
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    library.cache_clear()
    assert library() and not kept.exists()


def test_a_cache_of_no_absolute_path_is_that_of_the_home(kept, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert library() and not Path("elsewhere").exists()
    assert len(list(Path("home/.cache/deq_enn").iterdir())) == 1


def test_the_log_has_what_the_compiler_says(kept, monkeypatch, tmp_path, caplog):
    (tmp_path / "empty.c").write_text("int conv_pairs(")
    with caplog.at_level(logging.INFO, "kernels"):
        assert library() is None
    assert "computed in torch: " in caplog.text and "error: expected" in caplog.text
