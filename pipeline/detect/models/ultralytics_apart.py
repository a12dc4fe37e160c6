"""ultralytics, imported so that it reaches no network, installs nothing and leaves nothing in the user's home.

It reads the environment when it is imported, so whatever of ours needs it imports this module before. What a user has
set there stays as it is.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("YOLO_AUTOINSTALL", "false")  # else it installs what an export lacks while it runs
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_VERBOSE", "false")  # what it does is said by us


def _keep_settings_apart() -> None:
    """Its settings file in a folder that ends with the process; two fonts in it that it would download otherwise."""
    from matplotlib import get_data_path

    folder = Path(tempfile.mkdtemp(prefix="patrolscope-ultralytics-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["YOLO_CONFIG_DIR"] = str(folder)
    (folder / "Ultralytics").mkdir()
    for name in ("Arial.ttf", "Arial.Unicode.ttf"):
        (folder / "Ultralytics" / name).symlink_to(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


if "YOLO_CONFIG_DIR" not in os.environ:
    _keep_settings_apart()

from ultralytics.nn.autobackend import AutoBackend  # noqa: E402

__all__ = ["AutoBackend"]
