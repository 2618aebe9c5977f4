#!/usr/bin/env python3
"""The shipped dashboards are Grafana dashboards: every field they carry is one of the schema that Grafana's own SDK is generated from (a
field that the schema does not know is lost on the way through its types), ids are unique and panels do not overlap.

usage: dashboards_test.py DASHBOARDS_DIR      exit code 77: grafana-foundation-sdk is not installed
"""
import json
import os
import sys

try:
    from grafana_foundation_sdk.cog import encoder, plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard
except ImportError:
    print("skipped: the Python package grafana-foundation-sdk is not installed")
    sys.exit(77)

# Fields that belong to the Prometheus data source and that Grafana's schema leaves open.
DATA_SOURCE_FIELDS = ("definition", "titleFormat")


def lost(before, after, where):
    """What of `before` is not in `after`."""
    if isinstance(before, dict):
        for key, value in before.items():
            if key in DATA_SOURCE_FIELDS:
                continue
            if not isinstance(after, dict) or key not in after:
                yield f"{where}.{key} is no field of Grafana's schema"
            else:
                yield from lost(value, after[key], f"{where}.{key}")
    elif isinstance(before, list):
        if not isinstance(after, list) or len(before) != len(after):
            yield f"{where}: {before} became {after}"
        else:
            for index, pair in enumerate(zip(before, after)):
                yield from lost(*pair, f"{where}[{index}]")
    elif before != after:
        yield f"{where}: {before!r} became {after!r}"


def through_the_schema(board):
    return json.loads(json.dumps(Dashboard.from_json(board), cls=encoder.JSONEncoder))


def layout_faults(board, name):
    taken = {}
    ids = [panel["id"] for panel in board["panels"]]
    if len(ids) != len(set(ids)):
        yield f"{name}: two panels have one id: {ids}"
    for panel in board["panels"]:
        place = panel["gridPos"]
        if place["x"] + place["w"] > 24:
            yield f"{name}: '{panel['title']}' is wider than the page"
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                if (x, y) in taken:
                    yield f"{name}: '{panel['title']}' lies on '{taken[x, y]}'"
                taken[x, y] = panel["title"]


def main():
    plugins.register_default_plugins()
    folder = sys.argv[1]
    names = sorted(os.listdir(folder))
    assert names, f"no dashboards in {folder}"
    faults, panels = [], 0
    for name in names:
        board = json.load(open(os.path.join(folder, name)))
        panels += len(board["panels"])
        faults += lost(board, through_the_schema(board), name)
        faults += layout_faults(board, name)
    # The check sees what it is for.
    broken = json.load(open(os.path.join(folder, names[0])))
    broken["panels"][0]["fieldConfig"]["defaults"]["unitt"] = "s"
    assert list(lost(broken, through_the_schema(broken), "broken")), "a misspelt field was not seen"
    print("\n".join(faults) or f"{len(names)} dashboards, {panels} panels: as the schema has them")
    return bool(faults)


sys.exit(main())
