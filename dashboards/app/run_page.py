"""Run page: stages with finished shards, rows, and processing rates, and the ledger."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import panel as pn
from markupsafe import Markup

from patrolscope.analysis.stages.results import UNKNOWN
from patrolscope.dashboards.app.cards import CARD, Card, HtmlPane, cards, html_table, paragraph
from patrolscope.dashboards.app.charts import Chart, chart_of
from patrolscope.dashboards.app.site import Site
from patrolscope.dashboards.app.state import State
from patrolscope.dashboards.charts.axes import count_axis
from patrolscope.dashboards.charts.specs import Axis, BarChart, notes_of
from patrolscope.dashboards.report.report import read_steps
from patrolscope.pipeline.engine.plan import Workers, plan_stages
from patrolscope.pipeline.study.store import Study

# A plan needs workers; this page uses only its finished shards.
_ANY = {"any": Workers(offers="CPU", memory_gb=2.0, tasks=1, slots=1)}


# Contents.


def stage_table(site: Site) -> pd.DataFrame:
    """Return all stages with a record or a plan, in order.

    Returns
    -------
    DataFrame
        One row per stage: stage, shards (missing without a plan), done, rows_in, rows_out, dropped, seconds (of all
        workers), rows_per_second (of one worker), first_at, last_at (UTC).
    """
    study = site.study
    planned = {plan.stage: plan for plan in plan_stages(study, site.stages, _ANY)} if site.stages else {}
    last = {name: max(study.finished_at(name), default=None) for name in study.stages()}
    unplanned = sorted((name for name in last if name not in planned), key=lambda name: (str(last[name] or ""), name))
    rows = [_stage_row(study, name, planned.get(name)) for name in (*planned, *unplanned)]
    columns = ["stage", "shards", "done", "rows_in", "rows_out", "dropped", "seconds", "rows_per_second"]
    frame = pd.DataFrame(rows, columns=[*columns, "first_at", "last_at"])
    return frame.astype({"shards": "Int64"})


def _stage_row(study: Study, name: str, planned: Any) -> dict[str, Any]:
    records = list(study.records(name).values())
    times = study.finished_at(name)
    rows_in, seconds = sum(record.rows_in for record in records), sum(record.seconds for record in records)
    return {
        "stage": name,
        "shards": None if planned is None else planned.shards,
        "done": len(records) if planned is None else planned.done,
        "rows_in": rows_in,
        "rows_out": sum(record.rows_out for record in records),
        "dropped": sum(rows for record in records for line in record.ledger for rows in line["dropped"].values()),
        "seconds": round(seconds, 3),
        "rows_per_second": rows_in / seconds if seconds else np.nan,
        "first_at": times[0] if times else None,
        "last_at": times[-1] if times else None,
    }


def ledger_table(study: Study) -> pd.DataFrame:
    """Return the ledger, one row per reason: stage, step, rows_in, rows_out, kind (dropped or noted), why, rows."""
    rows = []
    for step in read_steps(study):
        known = {"stage": step.stage, "step": step.step, "rows_in": step.rows_in, "rows_out": step.rows_out}
        rows += [
            {**known, "kind": "dropped", "why": why, "rows": number} for why, number in sorted(step.dropped.items())
        ]
        rows += [{**known, "kind": "noted", "why": why, "rows": number} for why, number in sorted(step.notes.items())]
        if not step.dropped and not step.notes:
            rows.append({**known, "kind": "", "why": "", "rows": 0})
    return pd.DataFrame(rows, columns=["stage", "step", "rows_in", "rows_out", "kind", "why", "rows"])


def stages_html(table: pd.DataFrame) -> Markup:
    """Render the table of stages as HTML."""

    def done(row: pd.Series[Any]) -> str:
        return f"{row['done']:,}" if pd.isna(row["shards"]) else f"{row['done']:,} of {row['shards']:,}"

    shown = pd.DataFrame(
        {
            "Stage": table["stage"],
            "Shards done": [done(row) for _, row in table.iterrows()],
            "Rows in": [f"{rows:,}" for rows in table["rows_in"]],
            "Rows out": [f"{rows:,}" for rows in table["rows_out"]],
            "Dropped": [f"{rows:,}" for rows in table["dropped"]],
            "Worker seconds": [f"{seconds:,.1f}" for seconds in table["seconds"]],
            "Rows per second": [UNKNOWN if pd.isna(rate) else f"{rate:,.0f}" for rate in table["rows_per_second"]],
            "Finished (UTC)": [UNKNOWN if pd.isna(last) else f"{last:%Y-%m-%d %H:%M}" for last in table["last_at"]],
        }
    )
    return html_table(shown, "Stages", text=["Stage"])


def ledger_html(table: pd.DataFrame) -> Markup:
    """Render the ledger as HTML. Only the first row of a step shows its name."""
    repeated = table.duplicated(["stage", "step"])

    def first_only(values: pd.Series[Any]) -> list[str]:
        return ["" if repeat else value for value, repeat in zip(values, repeated, strict=True)]

    shown = pd.DataFrame(
        {
            "Stage": first_only(table["stage"]),
            "Step": first_only(table["step"]),
            "In": first_only(table["rows_in"].map("{:,}".format)),
            "Out": first_only(table["rows_out"].map("{:,}".format)),
            "Rows": ["" if not rows else f"{rows:,}" for rows in table["rows"]],
            "": table["kind"],
            "Reason": table["why"],
        }
    )
    return html_table(shown, "Ledger of rows", text=["Stage", "Step", "", "Reason"])


def summary_text(table: pd.DataFrame) -> str:
    """Return the progress of the run as text."""
    if table.empty:
        return "No stage has run yet."
    known, others = table.dropna(subset=["shards"]), int(table["shards"].isna().sum())
    text = f"{len(table)} stages, {int(table['done'].sum()):,} shards done"
    if len(known):
        complete = int((known["done"] >= known["shards"]).sum())
        text = f"{complete} of {len(known)} stages of the run complete, {int(known['done'].sum()):,} of "
        text += f"{int(known['shards'].sum()):,} shards done"
        text += f"; {others} more {'stage' if others == 1 else 'stages'} without a plan" if others else ""
    return f"{text}, {table['seconds'].sum():,.0f} worker seconds."


def time_chart(site: Site, table: pd.DataFrame) -> Chart:
    """Return the chart of worker time by stage."""
    spent = table[table["seconds"] > 0].sort_values("seconds", ascending=False, kind="stable")
    title = "Worker time by stage"
    if spent.empty:
        return Chart("stages", title, "", "No stage has run yet.", frame=table)
    longest = "; ".join(f"{row['stage']} {row['seconds']:,.1f} s" for _, row in spent.head(5).iterrows())
    names, seconds = tuple(spent["stage"]), spent["seconds"].to_numpy()
    rows = np.arange(len(names), dtype=np.float64)
    spec = BarChart(
        title=title,
        subtitle="Sum over all workers.",
        notes=notes_of(site.simulated),
        x=count_axis(seconds.max(), "worker time (s)", whole=False),
        y=Axis("", (len(names) - 0.4, -0.6), tuple(zip(rows.tolist(), names, strict=True))),
        positions=rows,
        values=seconds,
        labels=names,
        horizontal=True,
    )
    return chart_of("stages", spec, note=spec.subtitle, caption=f"Longest: {longest}.", frame=table)


def scheduler_html(address: str) -> Markup:
    """Render a link to Dask's dashboard as HTML; empty unless the address is http or https."""
    if urlsplit(address).scheme not in ("http", "https"):
        return Markup("")
    return Markup(
        '<p class="status"><a href="{0}" target="_blank" rel="noopener noreferrer">Dask dashboard</a> '
        "shows the current tasks of the workers.</p>"
    ).format(address)


# Page.


def page(site: Site, _state: State) -> pn.viewable.Viewable:
    """Return the page. Filters do not apply to it."""
    return _Page(site).view


class _Page:
    """Page of one session."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.refresh = pn.widgets.Button(label="Refresh", width=120, margin=(0, 0, 10, 0))
        self.refresh.on_click(self._refresh)
        self.status, self.stages, self.ledger = HtmlPane(), HtmlPane(), HtmlPane()
        table = stage_table(site)
        self.time = Card(time_chart(site, table))
        self.view = pn.Column(
            self.status,
            HtmlPane(scheduler_html(site.scheduler)),
            self.refresh,
            pn.Column(self.stages, styles=CARD, sizing_mode="stretch_width", margin=0),
            cards(self.time.view),
            pn.Column(self.ledger, styles=CARD, sizing_mode="stretch_width", margin=0),
            sizing_mode="stretch_width",
            styles={"gap": "12px"},
        )
        self._draw(table, ledger_table(site.study))

    def _draw(self, table: pd.DataFrame, ledger: pd.DataFrame) -> None:
        self.status.set_html(paragraph(summary_text(table)))
        self.stages.set_html(Markup("<h2>Stages</h2>") + stages_html(table))
        self.ledger.set_html(Markup("<h2>Ledger of rows</h2>") + ledger_html(ledger))

    async def _refresh(self, *_: Any) -> None:
        """Read the records again in a thread, since a large study has thousands of files."""
        table, ledger = await asyncio.to_thread(lambda: (stage_table(self.site), ledger_table(self.site.study)))
        self._draw(table, ledger)
        self.time.show(time_chart(self.site, table))
