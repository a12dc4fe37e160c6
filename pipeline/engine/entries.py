"""Entries of all stages: what each one reads and writes, which commands run it, and where it is defined.

They are plain data with dotted paths, so that listing them imports neither pandas nor Dask.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patrolscope.pipeline.study.store import Study

TO_ESTIMATES = ("run", "estimate")
TO_SENSITIVITY = ("run", "sensitivity", "estimate")
TO_ANNOTATED = ("run", "annotate", "sensitivity", "estimate")


@dataclass(frozen=True)
class StageEntry:
    """Registry entry of a stage.

    Attributes
    ----------
    name : str
        Name of the stage and of its folder in manifest/. `detect` appends the name of its result.
    reads, writes : tuple of str
        Folders or files of the study; `manifest/NAME` where later stages read the record of a stage only. A stage
        depends on all stages that write something it reads, and no stage reads what a later one writes.
    unit : str
        Unit of the size of a shard.
    run : str
        Dotted path of the `Stage`, or of a function that returns it for a study, as "module:name".
    help : str
        Sentence for the tables of stages.
    commands : tuple of str
        Commands that run the stage.
    opens : tuple of str
        Settings whose files and folders outside the study the stage opens first.
    only_with : str
        Setting that must be set, or file that must exist, for the stage to belong to a study. Empty for all studies.
    core_seconds : float or None
        Time on one core per unit, from a simulated study of a million images on two cores (sum of the seconds in the
        records, divided by the sizes of the shards). None where it was not measured.
    filters_images : bool
        Whether the stage drops rows between the raw files and the analyzed images.
    in_report : bool
        Whether report.html shows rows of the ledger of this stage and depends on it.
    """

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    unit: str
    run: str
    help: str
    commands: tuple[str, ...]
    opens: tuple[str, ...] = ()
    only_with: str = ""
    core_seconds: float | None = None
    filters_images: bool = False
    in_report: bool = True

    def load(self) -> Any:
        """Return the `Stage`, or the function that returns it for a study."""
        module, _, name = self.run.partition(":")
        return getattr(importlib.import_module(module), name)

    def belongs_to(self, study: Study) -> bool:
        """Return whether a study has this stage."""
        if "/" in self.only_with:
            return study.exists(self.only_with)
        value: Any = study.settings
        for name in filter(None, self.only_with.split(".")):
            value = getattr(value, name)
        return bool(value)

    def depends_on(self, other: StageEntry) -> bool:
        """Return whether the stage reads something that another one writes."""
        return self is not other and any(
            f"{written}/".startswith(f"{read}/") for read in self.reads for written in other.writes
        )


ENTRIES = (
    StageEntry(
        "simulate_city",
        reads=(),
        writes=("truth",),
        unit="areas",
        run="patrolscope.pipeline.simulation.stages:SIMULATE_CITY",
        help="Draw a deployment rate for every area of a simulated city.",
        commands=("simulate",),
    ),
    StageEntry(
        "simulate",
        reads=("truth",),
        writes=("source/metadata", "source/shown"),
        unit="rows",
        run="patrolscope.pipeline.simulation.stages:SIMULATE_DAYS",
        help="Write the raw metadata and the images or detection files of every simulated day.",
        commands=("simulate",),
    ),
    StageEntry(
        "simulate_labeled",
        reads=("truth",),
        writes=("manifest/simulate_labeled",),
        unit="images",
        run="patrolscope.pipeline.simulation.stages:SIMULATE_LABELED",
        help="Score the validation set and the test set of rendered scenes.",
        commands=("simulate",),
    ),
    StageEntry(
        "simulate_shown",
        reads=("source/shown",),
        writes=("scenes",),
        unit="studies",
        run="patrolscope.pipeline.simulation.stages:SIMULATE_SHOWN",
        help="List what every rendered image shows.",
        commands=("simulate",),
    ),
    StageEntry(
        "layers",
        reads=(),
        writes=("areas",),
        unit="files",
        run="patrolscope.pipeline.geography.stages:LAYERS",
        help="Join areas, tracts, and regions to their census tables; read stations and felonies.",
        commands=TO_ANNOTATED,
        opens=("layers",),
        core_seconds=6.3,
    ),
    StageEntry(
        "weights",
        reads=(),
        writes=("manifest/weights",),
        unit="files",
        run="patrolscope.pipeline.detect.stages:weights_stage",
        help="Open the detector's weights and check their classes.",
        commands=("run", "detect"),
        opens=("images.weights",),
        only_with="images.weights",
    ),
    StageEntry(
        "prefixes",
        reads=(),
        writes=("manifest/prefixes",),
        unit="listings",
        run="patrolscope.pipeline.detect.stages:PREFIXES",
        help="List the topmost folders of the image store.",
        commands=("run", "index", "detect"),
        opens=("images.sources",),
        only_with="images.sources",
    ),
    StageEntry(
        "calibrate",
        reads=("areas",),
        writes=("calibration",),
        unit="files",
        run="patrolscope.analysis.stages.calibrate:CALIBRATE",
        help="Compute probabilities from the validation set, and detector metrics from the test set.",
        commands=TO_SENSITIVITY,
        opens=("sources.validation", "sources.test"),
        core_seconds=0.23,
    ),
    StageEntry(
        "read",
        reads=(),
        writes=("staging/metadata", "staging/quarantine"),
        unit="bytes",
        run="patrolscope.pipeline.intake.stages:READ",
        help="Read and validate raw or annotated CSV files.",
        commands=("run", "ingest"),
        opens=("sources.metadata",),
        core_seconds=9.3e-9,
        filters_images=True,
    ),
    StageEntry(
        "quarantine",
        reads=("staging/quarantine",),
        writes=("quarantine",),
        unit="rows",
        run="patrolscope.pipeline.intake.stages:SET_ASIDE",
        help="Collect rejected rows with file, line, and reason.",
        commands=("run", "ingest"),
    ),
    StageEntry(
        "ingest",
        reads=("staging/metadata",),
        writes=("metadata", "supplied", "staging/duplicates"),
        unit="rows",
        run="patrolscope.pipeline.intake.stages:ARRANGE",
        help="Sort images by day, time, and location; drop and count duplicates.",
        commands=("run", "ingest"),
        core_seconds=6.0e-7,
        filters_images=True,
    ),
    StageEntry(
        "labels",
        reads=(),
        writes=("detections/labels",),
        unit="files",
        run="patrolscope.pipeline.intake.stages:LABELS",
        help="Import detections from YOLO text files.",
        commands=("run", "import-detections"),
        opens=("sources.detections",),
        only_with="sources.detections",
        core_seconds=2.8e-5,
    ),
    StageEntry(
        "index",
        reads=("manifest/prefixes",),
        writes=("image_index",),
        unit="folders",
        run="patrolscope.pipeline.detect.stages:INDEX",
        help="List all images of the image store and cut them into shards.",
        commands=("run", "index", "detect"),
        only_with="images.sources",
    ),
    StageEntry(
        "detect",
        reads=("image_index", "manifest/weights"),
        writes=("detections",),
        unit="images",
        run="patrolscope.pipeline.detect.stages:detect_stage",
        help="Run every image of the index through the detector.",
        commands=("run", "detect"),
        only_with="images.weights",
    ),
    StageEntry(
        "keys",
        reads=("metadata", "quarantine", "staging/duplicates", "detections", "image_index"),
        writes=("staging/keys",),
        unit="parts",
        run="patrolscope.pipeline.matching.stages:KEYS",
        help="Hash the names of images, detections, and image files.",
        commands=(*TO_ANNOTATED, "index"),
        core_seconds=0.011,
    ),
    StageEntry(
        "match_index",
        reads=("staging/keys",),
        writes=("manifest/match_index",),
        unit="parts",
        run="patrolscope.pipeline.matching.stages:MATCH_INDEX",
        help="Count files of the image store with and without metadata.",
        commands=("index",),
    ),
    StageEntry(
        "match",
        reads=("staging/keys",),
        writes=("staging/matches",),
        unit="parts",
        run="patrolscope.pipeline.matching.stages:MATCH",
        help="Match detections to images by name.",
        commands=TO_ANNOTATED,
        core_seconds=0.47,
    ),
    StageEntry(
        "annotate",
        reads=("metadata", "supplied", "staging/matches", "areas"),
        writes=("annotated", "differences"),
        unit="rows",
        run="patrolscope.pipeline.matching.stages:ANNOTATE",
        help="Add detection, local time, area, regions, and distances to every image.",
        commands=TO_ANNOTATED,
        core_seconds=3.7e-6,
        filters_images=True,
    ),
    StageEntry(
        "recalibrate",
        reads=("areas", "calibration"),
        writes=("staging/recalibrate",),
        unit="files",
        run="patrolscope.analysis.stages.recalibrate:RECALIBRATE",
        help="Calibrate at every threshold of the variants.",
        commands=TO_SENSITIVITY,
    ),
    StageEntry(
        "counts",
        reads=("annotated", "areas", "calibration", "staging/recalibrate"),
        writes=("staging/counts",),
        unit="rows",
        run="patrolscope.analysis.stages.counts:COUNTS",
        help="Count images per area and class, ride and day, hour, and cell of the map, in one pass.",
        commands=TO_SENSITIVITY,
        core_seconds=2.9e-6,
        filters_images=True,
    ),
    StageEntry(
        "unit_counts",
        reads=("staging/counts",),
        writes=("staging/unit_counts",),
        unit="files",
        run="patrolscope.analysis.stages.counts:UNIT_COUNTS",
        help="Add up the counts of every ride and day.",
        commands=TO_ESTIMATES,
        core_seconds=0.05,
    ),
    StageEntry(
        "replicates",
        reads=("staging/counts", "staging/unit_counts", "areas", "calibration"),
        writes=("replicates",),
        unit="replicates",
        run="patrolscope.analysis.stages.replicates:REPLICATE",
        help="Compute bootstrap replicates of every analysis.",
        commands=TO_ESTIMATES,
        # A replicate by image takes 3 ms for 24.8 million images too; one by ride takes 10 ms there.
        core_seconds=0.0065,
    ),
    StageEntry(
        "estimate",
        reads=("annotated", "staging/counts", "staging/unit_counts", "replicates", "areas", "calibration"),
        writes=("estimates",),
        unit="files",
        run="patrolscope.analysis.stages.estimate:ESTIMATE",
        help="Write estimates, intervals, and replicates of nine analyses.",
        commands=TO_ESTIMATES,
        core_seconds=0.9,
    ),
    StageEntry(
        "sensitivity",
        reads=("staging/counts", "staging/recalibrate", "areas"),
        writes=("sensitivity", "coverage"),
        unit="files",
        run="patrolscope.dashboards.stages:SENSITIVITY",
        help="Estimate every variant, compare conclusions, and tabulate image coverage.",
        commands=TO_SENSITIVITY,
    ),
    StageEntry(
        "figures",
        reads=("staging/counts", "areas", "estimates"),
        writes=("figures",),
        unit="files",
        run="patrolscope.dashboards.stages:MAPS",
        help="Draw maps and figures.",
        commands=TO_ESTIMATES,
        core_seconds=6.7,
    ),
    StageEntry(
        "streets",
        reads=("figures", "detections", "scenes"),
        writes=("figures/streets.png",),
        unit="sheets",
        run="patrolscope.dashboards.stages:STREETS",
        help="Draw rendered scenes with detected and true boxes.",
        commands=("run",),
        only_with="scenes/images.csv",
    ),
    StageEntry(
        "labeled",
        reads=("annotated",),
        writes=("staging/labeled",),
        unit="rows",
        run="patrolscope.analysis.stages.ground_truth:labeled_stage",
        help="Look up the scores of labeled images of the study.",
        commands=("evaluate",),
    ),
    StageEntry(
        "evaluate",
        reads=("staging/labeled", "areas"),
        writes=("evaluation",),
        unit="files",
        run="patrolscope.dashboards.stages:evaluate_stage",
        help="Compute detector metrics with intervals by subgroup, curves, and calibration.",
        commands=("evaluate",),
        opens=("sources.validation", "sources.test"),
    ),
    StageEntry(
        "report",
        reads=("figures", "estimates", "sensitivity", "evaluation", "quarantine"),
        writes=("report.html",),
        unit="files",
        run="patrolscope.dashboards.stages:REPORT",
        help="Write report.html.",
        commands=TO_ESTIMATES,
        core_seconds=0.3,
    ),
    StageEntry(
        "points",
        reads=("annotated", "areas"),
        writes=("explore",),
        unit="rows",
        run="patrolscope.dashboards.maps.stages:POINTS",
        help="Pack the points of the map in the browser.",
        commands=("dashboard", "map"),
        in_report=False,
    ),
)
