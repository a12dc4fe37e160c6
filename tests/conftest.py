"""What several tests share."""

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real New York data, which lies beside a checkout of the project, not in it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real New York data are not at {SHARED_DATA}")
    return SHARED_DATA
