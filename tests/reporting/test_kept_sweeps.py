"""The logs of the sweeps that are kept in docs/logs: the page that tells of them says what they say."""

import tarfile
from pathlib import Path

import pytest

from deq_enn.reporting import across, logs
from deq_enn.reporting.markdown import row

ROOT = Path(__file__).resolve().parents[2]
ARCHIVES = sorted((ROOT / "docs" / "logs").glob("*.tar.xz"))


@pytest.mark.slow
def test_the_table_of_claims_is_that_of_the_kept_logs(tmp_path):
    for archive in ARCHIVES:
        with tarfile.open(archive) as packed:
            packed.extractall(tmp_path, filter="data")
    table = across.survey_table(logs.load([tmp_path]))
    page = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    assert table is not None and len(ARCHIVES) >= 8
    for cells in table.rows:
        if "nearer" not in cells[0]:  # those are in the figure alone
            assert row(*cells) in page, cells
