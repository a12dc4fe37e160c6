"""The shipped detector: a narrowed yolov7-tiny trained on rendered street scenes, and useful for those only.

`street-scenes.md` documents its training and its results on photographs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).with_name("street-scenes.pt")


def facts() -> dict[str, Any]:
    """Return `size` (pixels, longer side), `threshold` (best F1 if 15% of images show police), and `test` (metrics)."""
    content: dict[str, Any] = json.loads(WEIGHTS.with_suffix(".json").read_text(encoding="utf-8"))
    return content
