"""A small simulated study with an image file for every row, and a network of a few channels."""

import shutil
from pathlib import Path

import distributed
import numpy as np
import pandas as pd

from patrolscope.analysis.stages.calibrate import CALIBRATE
from patrolscope.analysis.stages.counts import COUNTS, UNIT_COUNTS
from patrolscope.analysis.stages.estimate import ESTIMATE
from patrolscope.analysis.stages.recalibrate import RECALIBRATE
from patrolscope.analysis.stages.replicates import REPLICATE
from patrolscope.pipeline.contract.tables import ANNOTATED, METADATA
from patrolscope.pipeline.detect.stages import INDEX, PREFIXES, WEIGHTS, detect_stage
from patrolscope.pipeline.engine.run import run_stages
from patrolscope.pipeline.geography.stages import LAYERS
from patrolscope.pipeline.intake.stages import ARRANGE, READ, SET_ASIDE
from patrolscope.pipeline.matching.stages import ANNOTATE, KEYS, MATCH
from patrolscope.pipeline.simulation.simulate import simulate
from patrolscope.pipeline.study.config import with_changes
from patrolscope.pipeline.study.store import Study, create_study, open_study
from tests.image_files import encoded, picture
from tests.integration.studies import estimates
from tests.official_form import save

TO_METADATA = [LAYERS, READ, SET_ASIDE, ARRANGE]
TO_DETECTIONS = [*TO_METADATA, WEIGHTS, PREFIXES, INDEX, detect_stage]
TO_ANNOTATED = [*TO_DETECTIONS, KEYS, MATCH, ANNOTATE]
TO_ESTIMATES = [*TO_ANNOTATED, CALIBRATE, RECALIBRATE, COUNTS, UNIT_COUNTS, REPLICATE, ESTIMATE]


def image_study(folder: Path, client: distributed.Client, images: int = 400) -> Study:
    """Create a study with metadata only; its image files are in source/store."""
    study = simulate(str(folder), images=images, days=2, client=lambda: client)
    run_stages(study, TO_METADATA, lambda: client)
    rng = np.random.default_rng(7)
    for file in study.files("metadata"):
        for ref in study.read(file, ["image_ref"])["image_ref"]:
            path = Path(study.path("source", "store", ref))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(picture(64, 64, color=tuple(rng.integers(0, 256, 3).tolist())), quality=90))
    save(Path(study.path("source", "small.pt")))
    changes = {
        "images": {
            "sources": ["source/store"],
            "weights": "source/small.pt",
            "size": 64,
            "shard_images": 50,
            "device": "cpu",
        },
        "detection": {"police_class": 1, "source": "detect"},
        "estimate": {"threshold": 0.36, "replicates": 200},
    }
    return create_study(study.root, with_changes(study.settings, changes))


def copy_of(study: Study, folder: Path) -> Study:
    """Copy a study with its finished shards."""
    shutil.copytree(study.root, folder)
    return open_study(folder)


def forget_from(study: Study, stage: str) -> None:
    """Discard the records of a stage and of all later ones."""
    # The stage that `detect_stage` returns has the name of its result after its own.
    names = [stage.name if hasattr(stage, "name") else "detect" for stage in TO_ESTIMATES]
    later = names[names.index(stage) :]
    for done in study.stages():
        if done.partition("-")[0] in later:
            for record in study.records(done).values():
                study.discard(done, record)


def tables_of(study: Study) -> dict[str, str]:
    """Return every final table as sorted text, without detection times, and the digests of all estimates."""
    keys = {"metadata": METADATA.key, "detections": ("image_id",), "annotated": ANNOTATED.key}
    text = {}
    for table, key in keys.items():
        rows = pd.concat([study.read(file) for file in study.files(table)], ignore_index=True)
        rows = rows.drop(columns="seconds", errors="ignore").sort_values(list(key))
        text[table] = rows.to_csv(index=False)
    return text | estimates(study)
