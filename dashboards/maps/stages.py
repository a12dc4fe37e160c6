"""Stage that packs the analyzed images for the dashboards."""

from __future__ import annotations

from patrolscope.analysis.stages.counts import analyzed, annotated_shards
from patrolscope.dashboards.maps.areas import load_extent
from patrolscope.dashboards.maps.packing import SCHEMA, pack
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Output, Study

FOLDER = "explore/points"
_COLUMNS = ["x_ft", "y_ft", "area", "hour", "nighttime", "conf", "processed", "split", "captured_local"]


def plan_points(study: Study) -> list[Shard]:
    """Plan one shard per file of annotated/.

    Raises
    ------
    StageNotRunError
        If the study has no annotated images.
    """
    study.files("annotated")
    rules = study.settings.estimate
    work = {
        "rules": [rules.split, str(rules.first_day), rules.threshold],
        "layers": study.record("layers").content,
    }
    return annotated_shards(study, work)


def process_points(study: Study, shard: Shard) -> Output:
    """Pack the analyzed images of one file."""
    rules = study.settings.estimate
    images = study.read(shard.work["file"], columns=_COLUMNS)
    ledger = Ledger("images of the dashboards", len(images))
    images = analyzed(images, rules, ledger)
    areas, box = load_extent(study, shard.work["layers"])
    batch = pack(images, areas, box, rules.threshold)
    name = shard.work["file"].replace("annotated/", f"{FOLDER}/", 1).removesuffix(".parquet") + ".arrow"
    file = study.write_parts([batch], SCHEMA, name, compression=None)
    return Output((file,), ledger.rows_in, len(images), (ledger.close(len(images)),))


POINTS = Stage("points", unit="rows", folders=("explore",), plan=plan_points, process=process_points)
