"""The detector that is shipped: a narrowed yolov7-tiny, trained on rendered street scenes and good for nothing else.

`weights/street-scenes.md` says how it was made and what it does on photographs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).with_name("street-scenes.pt")


def facts() -> dict[str, Any]:
    """`size` (pixels, longer side), `threshold` (best F1 where 15 % of images show police), `test` (its quality)."""
    content: dict[str, Any] = json.loads(WEIGHTS.with_suffix(".json").read_text(encoding="utf-8"))
    return content
