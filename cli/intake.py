"""Commands for inputs: ingest, import-detections, index, fetch, annotate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patrolscope.cli.app import app
from patrolscope.cli.errors import echo, handle_errors
from patrolscope.cli.execution import command_stages, execute
from patrolscope.cli.options import ClusterOption, StudyOption, absolute

PANEL = "Inputs"


@app.command(rich_help_panel=PANEL)
def ingest(
    study: StudyOption,
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="SOURCE", help="CSV files, folders, or patterns. They become sources.metadata."),
    ] = None,
    trust: Annotated[
        bool | None,
        typer.Option("--trust/--recompute", help="Use supplied columns, or compute them and report differences."),
    ] = None,
    keep_unknown: Annotated[
        bool | None,
        typer.Option("--keep-unknown/--drop-unknown", help="Keep unrecognized columns as text in supplied/."),
    ] = None,
    skip_bad_files: Annotated[
        bool | None,
        typer.Option("--skip-bad-files/--refuse-bad-files", help="Skip and count unusable files, or list and refuse."),
    ] = None,
    cluster: ClusterOption = "local",
) -> None:
    """Convert raw or annotated CSV metadata to Parquet, and quarantine rejected rows.

    Options are written to study.yaml, so that a later `run` uses them too (comments there are lost). A study that does
    not exist yet is created.
    """
    from patrolscope.pipeline.intake.raw_files import adopt

    with handle_errors():
        changed = adopt(
            study,
            sources=tuple(map(absolute, sources or ())),
            trust=trust,
            keep_unknown=keep_unknown,
            skip_bad_files=skip_bad_files,
        )
        for line in changed:
            echo(line)
        stages = command_stages("ingest", study)
    ingested = execute(study, stages, cluster)
    with handle_errors():
        if not any(record.rows_out for record in ingested.records("ingest").values()):
            from patrolscope.pipeline.errors import SourceError

            raise SourceError(
                f"no image could be read; {ingested.path('quarantine')} and {ingested.path('ledger.jsonl')} have the "
                "reasons"
            )


@app.command("import-detections", rich_help_panel=PANEL)
def import_detections(study: StudyOption, cluster: ClusterOption = "local") -> None:
    """Import detections from YOLO text files (sources.detections in study.yaml)."""
    from patrolscope.pipeline.intake.detection_files import choose_labels

    with handle_errors():
        for line in choose_labels(study):
            echo(line)
        stages = command_stages("import-detections", study)
    execute(study, stages, cluster)


@app.command(rich_help_panel=PANEL)
def index(
    study: StudyOption,
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Folders or URLs (s3://, gs://) of images or tar files. They become images.sources."),
    ] = None,
    cluster: ClusterOption = "local",
) -> None:
    """List all images of the image store in parallel. `run` and `detect` reuse an existing index."""
    with handle_errors():
        from patrolscope.pipeline.detect.commands import adopt_sources, index_summary, list_again
        from patrolscope.pipeline.engine import registry
        from patrolscope.pipeline.study.store import open_study

        for line in adopt_sources(study, tuple(map(absolute, images or ()))):
            echo(line)
        list_again(open_study(study))
        listing = [registry.ORDER[name].load() for name in ("prefixes", "index")]
        indexed = execute(study, listing, cluster)
        for line in index_summary(indexed):
            echo(line)
        if not indexed.records("ingest"):
            echo("the study has no metadata yet: run `index` after `ingest` to count files with and without metadata")
            return
        matching = [registry.ORDER[name].load() for name in ("keys", "match_index")]
    execute(study, matching, cluster)


@app.command(rich_help_panel=PANEL)
def fetch(
    names: Annotated[list[str] | None, typer.Argument(help="Entries of data_catalog.yaml. Default: all.")] = None,
    from_dir: Annotated[Path | None, typer.Option("--from", help="Folder to take the files from.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Cache folder. Default: the user's cache.")] = None,
) -> None:
    """Download public data sets into the cache, and verify them."""
    from patrolscope.pipeline.geography.download import fetch_all

    with handle_errors():
        for line in fetch_all(names or [], cache=cache, from_dir=from_dir):
            echo(line)


@app.command(rich_help_panel=PANEL)
def annotate(study: StudyOption, cluster: ClusterOption = "local") -> None:
    """Add detection, local time, area, regions, and distances to every image."""
    with handle_errors():
        stages = command_stages("annotate", study)
    execute(study, stages, cluster)
