"""Grafana's dashboards, built from the pages with Grafana's own typed builders."""

from __future__ import annotations

import itertools
import json
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from cluster.errors import InputError, NotFound
from cluster.monitoring import model, overview
from cluster.monitoring.names import IN_FLIGHT, TRAINING_STEP
from cluster.monitoring.panels import Page, Panel

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.stat import Panel as StatBuilder
    from grafana_foundation_sdk.builders.timeseries import Panel as GraphBuilder

PAGES = {"overview": overview.PAGE, "model": model.PAGE}
HEIGHT = 7  # of a panel, in Grafana's units of 30 pixels


def dashboard(name: str, *, datasource: str, uid: str | None = None) -> dict[str, Any]:
    """A dashboard as Grafana's JSON. `datasource` is the name of the Prometheus it shows first (the page has a menu of
    all), `uid` Grafana's own key for it where that is known. Raises NotFound, InputError."""
    if find_spec("grafana_foundation_sdk") is None:
        raise InputError("dashboards: grafana-foundation-sdk is not installed; pip install 'shoal[monitoring]'")
    from grafana_foundation_sdk.builders import dashboard as build
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, VariableOption

    if name not in PAGES:
        raise NotFound(f"{name}: no such dashboard; these are: {', '.join(PAGES)}")
    page = PAGES[name]
    builder = (
        build.Dashboard(page.title)
        .uid(page.uid)
        .description(page.about)
        .tags(["shoal"])
        .editable()
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("10s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(
            build.DatasourceVariable("datasource")
            .label("Prometheus")
            .type("prometheus")
            .current(VariableOption(text=datasource, value=uid or datasource))
        )
    )
    if page.models:
        builder = builder.with_variable(_models())
    numbers = itertools.count(1)
    for row in page.rows:
        builder = builder.with_row(build.Row(row.title).id(next(numbers)))
        for panel in row.panels:
            builder = builder.with_panel(_panel(panel, next(numbers)))
    for other in PAGES.values():
        if other is not page:
            builder = builder.link(_link(other))
    return json.loads(JSONEncoder(sort_keys=True).encode(builder.build()))


def _models() -> Any:
    from grafana_foundation_sdk.builders import dashboard as build
    from grafana_foundation_sdk.models.dashboard import VariableRefresh, VariableSort

    known = f'label_values({{__name__=~"{IN_FLIGHT.series}|{TRAINING_STEP.series}", model!="_other"}}, model)'
    return (
        build.QueryVariable("model")
        .label("Model")
        .description("Every model that is served or trained.")
        .datasource(_source())
        .query(known)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
    )


def _panel(panel: Panel, number: int) -> GraphBuilder | StatBuilder:
    from grafana_foundation_sdk.builders import prometheus

    builder = _number(panel) if panel.kind == "number" else _graph(panel)
    builder = builder.id(number).title(panel.title).description(panel.about).unit(panel.unit).datasource(_source())
    builder = builder.height(HEIGHT).span(panel.width).min(0)
    if panel.most is not None:
        builder = builder.max(panel.most)
    for letter, query in zip("ABCDEF", panel.queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(letter)
        target = target.datasource(_source())
        builder = builder.with_target(target.instant() if panel.kind == "number" else target.range())
    return builder


def _graph(panel: Panel) -> GraphBuilder:
    from grafana_foundation_sdk.builders import common, timeseries
    from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, TooltipDisplayMode

    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    tooltip = common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI)
    return timeseries.Panel().fill_opacity(10).legend(legend.show_legend(True)).tooltip(tooltip)


def _number(panel: Panel) -> StatBuilder:
    from grafana_foundation_sdk.builders import common, stat
    from grafana_foundation_sdk.models.common import BigValueColorMode, BigValueTextMode
    from grafana_foundation_sdk.models.dashboard import ValueMap, ValueMappingResult

    builder = stat.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    if not panel.words:
        return builder.color_mode(BigValueColorMode.NONE)
    options = {str(value): ValueMappingResult(text=text, color=color) for value, text, color in panel.words}
    return (
        builder.color_mode(BigValueColorMode.BACKGROUND)
        .text_mode(BigValueTextMode.VALUE_AND_NAME)
        .mappings([ValueMap(options=options)])
    )


def _link(page: Page) -> Any:
    from grafana_foundation_sdk.builders import dashboard as build
    from grafana_foundation_sdk.models.dashboard import DashboardLinkType

    link = build.DashboardLink(page.title).type(DashboardLinkType.LINK).url(f"/d/{page.uid}")
    return link.icon("dashboard").keep_time(True)


def _source() -> Any:
    from grafana_foundation_sdk.models.dashboard import DataSourceRef

    return DataSourceRef(type_val="prometheus", uid="${datasource}")
