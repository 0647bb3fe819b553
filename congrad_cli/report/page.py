"""A report as one HTML file: no script, nothing from elsewhere, every text escaped."""

from importlib.resources import files
from typing import Any

from congrad_cli.report.content import Report
from congrad_cli.report.geometry import (
    MAP_HEIGHT,
    MAP_WIDTH,
    chart,
    heat_map,
    histograms,
    spots,
)
from congrad_cli.report.palette import shades

LARGEST_MAP = 120
"""More groups make squares that nobody can read."""


def page(report: Report) -> bytes:
    """The report as UTF-8; characters that no text has become escapes."""
    from jinja2 import Environment
    from markupsafe import Markup

    here = files("congrad_cli.report")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((here / "page.html.j2").read_text(encoding="utf-8"))
    names = [group.name for group in report.groups]
    text = template.render(
        report=report,
        style=Markup((here / "style.css").read_text(encoding="utf-8")),
        shades_light=Markup(shades(dark=False)),
        shades_dark=Markup(shades(dark=True)),
        maps=_maps(report, names),
        spots=spots(names, report.points) if len(names) > 1 else [],
        map_width=MAP_WIDTH, map_height=MAP_HEIGHT,
        intervals=any(group.interval for group in report.groups),
        histograms=histograms(report.scores),
        charts=[chart(curve) for curve in report.curves],
    )  # fmt: skip
    return text.encode(errors="backslashreplace")


def _maps(report: Report, names: list[str]) -> list[tuple[Any, str]]:
    if not 1 < len(names) <= LARGEST_MAP:
        return []
    maps = [(heat_map(names, report.conflict, report.unresolved), "before: the groups' gradients")]
    if report.after is not None:
        maps.append((heat_map(names, report.after), "after: what each group adds to the consensus"))
    return maps
