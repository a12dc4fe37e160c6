"""Import of ultralytics without network access, installations, or files in the user's home folder.

ultralytics reads the environment when it is imported, so modules that use it import this one first. Variables that the
user has set are kept.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("YOLO_AUTOINSTALL", "false")  # otherwise it installs packages that an export needs
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_VERBOSE", "false")


def _use_temporary_settings() -> None:
    """Put the settings file into a temporary folder, with two fonts that ultralytics would otherwise download."""
    from matplotlib import get_data_path

    folder = Path(tempfile.mkdtemp(prefix="patrolscope-ultralytics-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["YOLO_CONFIG_DIR"] = str(folder)
    (folder / "Ultralytics").mkdir()
    for name in ("Arial.ttf", "Arial.Unicode.ttf"):
        (folder / "Ultralytics" / name).symlink_to(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


if "YOLO_CONFIG_DIR" not in os.environ:
    _use_temporary_settings()

from ultralytics.nn.autobackend import AutoBackend  # noqa: E402

__all__ = ["AutoBackend"]
