"""Draws the main panels of the shipped dashboards from a running Prometheus, with the dashboards' own queries and legends. Needs matplotlib."""
import json
import os

MAIN = {
    "overview.json": ["Loss", "Throughput", "Step time by phase", "Exposed communication", "Gradient norm and clipping"],
    "health.json": ["Update RMS over learning rate", "Update to weight", "Line norm spread", "Largest updates"],
    "ranks.json": ["Compute time per step", "Waiting per step", "Bytes sent per step"],
}
UNITS = {"s": "seconds", "bytes": "bytes", "percentunit": "share"}


def main_panels(dashboards):
    for name, titles in MAIN.items():
        panels = {panel["title"]: panel for panel in json.load(open(os.path.join(dashboards, name)))["panels"]}
        for title in titles:
            yield panels[title]


def legend_of(target, labels):
    text = target.get("legendFormat", "")
    for key, value in labels.items():
        text = text.replace("{{" + key + "}}", value)
    return text


def draw(query_range, dashboards, fill_in, path):
    """`query_range(expression)` gives Prometheus' matrix, `fill_in` sets the dashboards' variables in an expression."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plot

    panels = list(main_panels(dashboards))
    figure, places = plot.subplots((len(panels) + 2) // 3, 3, figsize=(15, 3.1 * ((len(panels) + 2) // 3)))
    start = None
    for place, panel in zip(places.flat, panels):
        for target in panel["targets"]:
            for series in query_range(fill_in(target["expr"])):
                times = [float(time) for time, _ in series["values"]]
                start = times[0] if start is None else min(start, times[0])
                place.plot([time - start for time in times], [float(value) for _, value in series["values"]], linewidth=1.2,
                           label=legend_of(target, series["metric"]))
        place.set_title(panel["title"], fontsize=10, loc="left")
        place.set_ylabel(UNITS.get(panel["fieldConfig"]["defaults"].get("unit"), ""), fontsize=8)
        place.tick_params(labelsize=7)
        place.grid(alpha=0.3)
        if len(place.lines) <= 8:
            place.legend(fontsize=6, loc="upper right")
    for place in places.flat[len(panels):]:
        place.axis("off")
    for place in places[-1]:
        place.set_xlabel("seconds", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
