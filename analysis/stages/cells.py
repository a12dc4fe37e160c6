"""Images, counted: everything that the estimators need to see of them.

A group mean sees an image only through its area and its class. All images of one area and one class form a cell;
some 13,600 cells stand for 24.8 million images, exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.analysis.stages.calibrate import Adjusted, load_calibration
from patrolscope.pipeline.contract.tables import CELLS
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.study.config import Estimate
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Output, Study

FOLDER = "staging/cells"
# Columns of annotated images that say which of them are analyzed, and what is predicted.
COLUMNS = ["area", "conf", "processed", "split", "captured_local", "station_distance_ft"]
_KEY = ["area", "positive"]
# Sums of whole multiples of a power of two are exact in floating point (up to 2**53 of them), so that they do not
# depend on how the rows were split. 2**-24 is 6e-8 of a probability, 2**-6 is 5 mm of a distance in feet.
PROBABILITY_STEP = 2.0**-24
_FEET_STEP = 2.0**-6


def analyzed(images: pd.DataFrame, rules: Estimate, ledger: Ledger) -> pd.DataFrame:
    """The images that are analyzed, in the order of docs/method.md; duplicates have gone at ingest."""
    images = ledger.keep(images, images["split"] == rules.split, why=f"not of split {rules.split}")
    first = pd.Timestamp(rules.first_day)
    images = ledger.keep(images, images["captured_local"] >= first, why=f"before {rules.first_day}")
    return ledger.keep(images, images["processed"], why="not processed by the detector")


def count_cells(images: pd.DataFrame, *, threshold: float, adjusted: Adjusted | None, felony_ft: str) -> pd.DataFrame:
    """Cells of analyzed images: `CELLS`; a missing conf counts as 0.

    Parameters
    ----------
    felony_ft : column with the distance to the nearest felony of the longest window
    """
    probability = adjusted_probability(images, adjusted)
    parts = pd.DataFrame(
        {
            "area": images["area"].to_numpy(),
            "positive": (images["conf"] > threshold).to_numpy(),
            "images": 1,
            "adjusted_sum": whole_steps(probability),
            "adjusted_sum_2": whole_steps(probability**2),
            "adjusted_sum_3": whole_steps(probability**3),
            "felony_ft_sum": whole_steps(images[felony_ft].to_numpy(), _FEET_STEP),
            "felony_images": images[felony_ft].notna().to_numpy().astype("int64"),
            "station_ft_sum": whole_steps(images["station_distance_ft"].to_numpy(), _FEET_STEP),
        }
    )
    return add_cells([parts])


def adjusted_probability(images: pd.DataFrame, adjusted: Adjusted | None) -> npt.NDArray[np.float64]:
    """Station-adjusted probability of each image, (n,); missing without such a calibration."""
    if adjusted is None:
        return np.full(len(images), np.nan)
    return adjusted.probability(images["conf"].to_numpy(), images["station_distance_ft"].to_numpy())


def whole_steps(values: npt.NDArray[np.float64], step: float = PROBABILITY_STEP) -> npt.NDArray[np.float64]:
    """Values rounded to whole multiples of a step, whose sums are exact."""
    return np.round(values / step) * step


def add_cells(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Cells of several parts together: sums, so neither order nor grouping of the parts matters to the counts."""
    if not parts:
        return CELLS.empty()
    rows = pd.concat(parts, ignore_index=True)
    grouped = rows.groupby(_KEY, dropna=False, sort=True)
    # A sum over nothing but missing values is missing, not zero.
    return CELLS.conform(grouped.sum(min_count=1).reset_index())


# The stage: one part for each file of annotated images.


def plan_cells(study: Study) -> list[Shard]:
    """One shard a file of annotated/."""
    calibration = study.record("calibrate")
    rules = study.settings.estimate
    work = {
        "rules": [rules.split, str(rules.first_day), rules.threshold],
        "calibration": calibration.fingerprint,
        "table": CELLS.fingerprint(),
    }
    return annotated_shards(study, work)


def annotated_shards(study: Study, work: dict[str, Any]) -> list[Shard]:
    """One shard a file of annotated/, each with `work` and its own file."""
    return [
        Shard(record.shard, {"file": file, **work}, size=record.rows_out, made_from=record.fingerprint)
        for record in study.records("annotate").values()
        for file in record.files_in("annotated")
    ]


def process_cells(study: Study, shard: Shard) -> Output:
    """Count the cells of one file of annotated images."""
    settings = study.settings
    felony_ft = f"felony_{settings.annotate.felony_windows_h[-1]}h_distance_ft"
    images = study.read(shard.work["file"], columns=[*COLUMNS, felony_ft])
    ledger = Ledger("analyzed images", len(images))
    images = analyzed(images, settings.estimate, ledger)
    _, adjusted, _ = load_calibration(study)
    cells = count_cells(images, threshold=settings.estimate.threshold, adjusted=adjusted, felony_ft=felony_ft)
    file = study.write(CELLS, cells, shard.work["file"].replace("annotated/", f"{FOLDER}/", 1))
    return Output((file,), ledger.rows_in, len(images), (ledger.close(len(images)),))


def load_cells(study: Study) -> pd.DataFrame:
    """Cells of the whole study."""
    files = [file for record in study.records("cells").values() for file in record.files]
    return add_cells([study.read(file) for file in files])


CELLS_STAGE = Stage("cells", unit="rows", folders=(FOLDER,), plan=plan_cells, process=process_cells, version=2)
