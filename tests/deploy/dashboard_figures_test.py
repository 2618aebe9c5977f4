#!/usr/bin/env python3
"""What every query of every shipped dashboard says of a made-up job: four ranks (dp=2,tp=2) whose every series differs, beside a second job.
promtool evaluates the queries; the figures they must give are worked out here by hand. Units, kinds of panels and legends are checked as
well, and that every metric and label is one that ranks serve.

usage: dashboard_figures_test.py DASHBOARDS_DIR METRICS_H      exit code 77: promtool is not installed
"""
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile

FOLDER, METRICS_H = sys.argv[1:3]
AT, INTERVAL = 600, 10  # seconds: when it is looked at, between two samples
RANKS = [{"rank": str(rank), "node": f"node{rank // 2}", "dp": str(rank // 2), "tp": str(rank % 2)} for rank in range(4)]
GROUPS, PARAMS = ("matrices", "rest"), ("w1", "w2")
COLLECTIVES = {"sent_bytes": ("reduce_scatter", "all_gather", "exchange", "vote"),
               "communication_seconds": ("reduce_scatter", "all_gather"),
               "exposed_communication_seconds": ("reduce_scatter", "exchange", "all_gather")}
PHASES = ("data", "forward", "backward", "wait_grad", "vote", "sweep", "wait_exchange", "wait_gather")
BOUNDS = (0.1, 1.0, 10.0)
COMPUTE = ("forward", "backward", "sweep")


class Job:
    """Series by name and labels; a gauge's value, or how much a counter gains per second."""

    def __init__(self, name, seed):
        self.name, self.series, self.last = name, {}, seed
        for rank in RANKS:
            for gauge in ("loss", "learning_rate", "grad_norm", "clip_ratio", "state_bytes", "resident_memory_bytes",
                          "last_step_timestamp_seconds", "world_size"):
                self.put(gauge, rank)
            self.put("info", rank, 1)
            for counter in ("steps", "skipped_steps", "clipped_steps", "setting_changes", "tokens"):
                self.put(counter + "_total", rank)
            self.put("last_save_timestamp_seconds", rank)
            for gauge in ("group_grad_norm", "update_rms", "normalized_update_rms", "weight_rms", "update_to_weight_ratio",
                          "line_norm_min", "line_norm_max", "line_norm_spread_ratio", "zero_lines", "clamped_lines",
                          "non_finite_lines"):
                for group in GROUPS:
                    self.put(gauge, {**rank, "group": group})
            for gauge in ("param_update_rms", "param_line_norm_spread_ratio"):
                for param in PARAMS:
                    self.put(gauge, {**rank, "param": param})
            for counter, collectives in COLLECTIVES.items():
                for collective in collectives:
                    self.put(counter + "_total", {**rank, "collective": collective})
            for phase in PHASES:
                self.put("step_phase_seconds_sum", {**rank, "phase": phase})
                self.put("step_phase_seconds_count", {**rank, "phase": phase})
            self.put("step_seconds_sum", rank)
            counts = [self.fresh(), self.fresh(), self.fresh(), 1]  # few beyond the last bound
            self.put("step_seconds_count", rank, sum(counts))
            for i, bound in enumerate(("0.1", "1", "10", "+Inf")):
                self.put("step_seconds_bucket", {**rank, "le": bound}, sum(counts[:i + 1]))

    def fresh(self):
        self.last += 7
        return self.last

    def put(self, name, labels, value=None):
        self.series[name, tuple(sorted(labels.items()))] = self.fresh() if value is None else value

    def get(self, metric, labels):
        return self.series[metric, tuple(sorted(labels.items()))]

    def input_series(self, moving):
        for (name, labels), value in self.series.items():
            counter = re.search(r"_total$|_sum$|_count$|_bucket$", name) or name == "last_save_timestamp_seconds"
            text = ",".join(f'{key}="{label}"' for key, label in (("job", self.name), *labels))
            yield {"series": f"regatta_{name}{{{text}}}",
                   "values": f"0+{value * INTERVAL if moving else 0}x{AT // INTERVAL}" if counter else f"{value}x{AT // INTERVAL}"}


JOB = Job("seen", 100)


def of_rank_0(metric, scale=1):
    """As it is, with all its labels."""
    labels = {"job": JOB.name, **RANKS[0]}
    return lambda chosen: [(labels, scale * JOB.get(metric, RANKS[0]))]


def of_label(metric, label, values):
    def figures(chosen):
        return [({"job": JOB.name, **RANKS[0], label: value}, JOB.get(metric, {**RANKS[0], label: value}))
                for value in values if label not in chosen or chosen[label] in (".*", value)]
    return figures


def of_group(metric):
    return of_label(metric, "group", GROUPS)


def ranks(chosen):
    return [rank for rank in RANKS if all(chosen[axis] in (".*", rank[axis]) for axis in ("dp", "tp"))]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def by_phase(_):
    for phase in PHASES:
        labels = [{**rank, "phase": phase} for rank in RANKS]
        yield {"phase": phase}, mean(JOB.get("step_phase_seconds_sum", one) / JOB.get("step_phase_seconds_count", one) for one in labels)


def slowest_of_twenty(_):
    counts = [sum(JOB.get("step_seconds_bucket", {**rank, "le": bound}) for rank in RANKS) for bound in ("0.1", "1", "10", "+Inf")]
    wanted = 0.95 * counts[-1]
    i = next(i for i, count in enumerate(counts) if count >= wanted)
    low, before = (BOUNDS[i - 1], counts[i - 1]) if i else (0, 0)
    yield {}, low + (BOUNDS[i] - low) * (wanted - before) / (counts[i] - before)


def exposed_share(_):
    seconds = sum(JOB.get("step_seconds_sum", rank) for rank in RANKS)
    for collective in COLLECTIVES["exposed_communication_seconds"]:
        waited = sum(JOB.get("exposed_communication_seconds_total", {**rank, "collective": collective}) for rank in RANKS)
        yield {"collective": collective}, waited / seconds


def compute_per_step(chosen):
    for rank in ranks(chosen):
        yield {"rank": rank["rank"]}, (sum(JOB.get("step_phase_seconds_sum", {**rank, "phase": phase}) for phase in COMPUTE)
                                       / JOB.get("step_seconds_count", rank))


def waiting_per_step(chosen):
    for rank in ranks(chosen):
        yield {"rank": rank["rank"]}, (sum(JOB.get("exposed_communication_seconds_total", {**rank, "collective": collective})
                                           for collective in COLLECTIVES["exposed_communication_seconds"])
                                       / JOB.get("step_seconds_count", rank))


def bytes_per_step(chosen):
    for collective in COLLECTIVES["sent_bytes"]:
        yield {"collective": collective}, mean(JOB.get("sent_bytes_total", {**rank, "collective": collective})
                                               / JOB.get("step_seconds_count", rank) for rank in ranks(chosen))


def of_ranks(metric):
    return lambda chosen: [({"job": JOB.name, **rank}, JOB.get(metric, rank)) for rank in ranks(chosen)]


def busy(chosen):
    for rank in ranks(chosen):
        for collective in COLLECTIVES["communication_seconds"]:
            yield {"rank": rank["rank"], "collective": collective}, JOB.get("communication_seconds_total", {**rank, "collective": collective})


# By dashboard and panel: kind, unit, and of each legend the figures.
PANELS = {
    "overview.json": {
        "Loss": ("timeseries", "short", {"loss": of_rank_0("loss")}),
        "Steps per minute": ("timeseries", "short", {"steps": of_rank_0("steps_total", 60), "skipped": of_rank_0("skipped_steps_total", 60)}),
        "Throughput": ("timeseries", "short", {"tokens per second": of_rank_0("tokens_total")}),
        "Step time by phase": ("timeseries", "s", {"{{phase}}": by_phase}),
        "Step time, slowest 5 %": ("timeseries", "s", {"p95": slowest_of_twenty}),
        "Exposed communication": ("timeseries", "percentunit", {"{{collective}}": exposed_share}),
        "Learning rate": ("timeseries", "short", {"lr": of_rank_0("learning_rate")}),
        "Gradient norm and clipping": ("timeseries", "short", {"gradient norm": of_rank_0("grad_norm"), "clip factor": of_rank_0("clip_ratio")}),
    },
    "health.json": {
        "Update RMS over learning rate": ("timeseries", "short", {"{{group}}": of_group("normalized_update_rms")}),
        "Update to weight": ("timeseries", "short", {"{{group}}": of_group("update_to_weight_ratio")}),
        "Line norm spread": ("timeseries", "short", {"{{group}}": of_group("line_norm_spread_ratio")}),
        "Line norms": ("timeseries", "short", {"{{group}} smallest": of_group("line_norm_min"), "{{group}} largest": of_group("line_norm_max")}),
        "Lines that stand still or are clamped": ("timeseries", "short", {
            "{{group}} zero": of_group("zero_lines"), "{{group}} clamped": of_group("clamped_lines"),
            "{{group}} not finite": of_group("non_finite_lines")}),
        "Clipped and skipped steps": ("timeseries", "short", {"clipped": of_rank_0("clipped_steps_total", 60),
                                                              "skipped": of_rank_0("skipped_steps_total", 60)}),
        "Largest updates": ("timeseries", "short", {"{{param}}": of_label("param_update_rms", "param", PARAMS)}),
        "Widest line norms": ("timeseries", "short", {"{{param}}": of_label("param_line_norm_spread_ratio", "param", PARAMS)}),
        "Gradient norm by group": ("timeseries", "short", {"{{group}}": of_group("group_grad_norm")}),
        "Weight RMS": ("timeseries", "short", {"{{group}}": of_group("weight_rms")}),
    },
    "ranks.json": {
        "Ranks that answer": ("stat", "short", {"answer": lambda _: [({}, 4)],
                                                "world size": lambda _: [({}, max(JOB.get("world_size", rank) for rank in RANKS))]}),
        "Time since the last step": ("stat", "s", {
            "since the last step": lambda _: [({}, AT - max(JOB.get("last_step_timestamp_seconds", rank) for rank in RANKS))]}),
        "Compute time per step": ("timeseries", "s", {"rank {{rank}}": compute_per_step}),
        "Waiting per step": ("timeseries", "s", {"rank {{rank}}": waiting_per_step}),
        "Bytes sent per step": ("timeseries", "bytes", {"{{collective}}": bytes_per_step}),
        "Memory: optimizer state, whole process": ("timeseries", "bytes", {"rank {{rank}} state": of_ranks("state_bytes"),
                                                                           "rank {{rank}} process": of_ranks("resident_memory_bytes")}),
        "Communication busy": ("timeseries", "percentunit", {"rank {{rank}} {{collective}}": busy}),
    },
}
MINUTE = 60
ANNOTATIONS = {
    "Saved": lambda _: [({"job": JOB.name, **RANKS[0]}, MINUTE // INTERVAL)],
    "Skipped step": of_rank_0("skipped_steps_total", MINUTE),
    "Settings changed": of_rank_0("setting_changes_total", MINUTE),
}
VARIABLES = {
    "job": "label_values(regatta_info, job)",
    "group": 'label_values(regatta_update_rms{job="$job"}, group)',
    "dp": 'label_values(regatta_info{job="$job"}, dp)',
    "tp": 'label_values(regatta_info{job="$job"}, tp)',
}
CHOICES = ({"group": ".*", "dp": ".*", "tp": ".*"}, {"group": "rest", "dp": "1", "tp": ".*"}, {"group": "matrices", "dp": ".*", "tp": "0"})


def filled_in(expression, job, chosen):
    for name, value in {"__rate_interval": "1m", "job": job, **chosen}.items():
        expression = expression.replace("$" + name, value)
    assert "$" not in expression, f"an unknown variable in {expression}"
    return expression


def rounded(value):
    """As PromQL's round(..., 1e-6)."""
    return math.floor(value * 1e6 + 0.5) / 1e6


def cases(boards):
    """Every query with what it must give: of the job in all choices of variables, of one that stands still for annotations."""
    for file, board in boards.items():
        for panel in board["panels"]:
            for target in panel["targets"]:
                figures = PANELS[file][panel["title"]][2][target["legendFormat"]]
                for chosen in CHOICES:
                    yield target["expr"], JOB.name, chosen, list(figures(chosen))
        for annotation in board["annotations"]["list"]:
            yield annotation["expr"], JOB.name, CHOICES[0], list(ANNOTATIONS[annotation["name"]](CHOICES[0]))
            yield annotation["expr"], "quiet", CHOICES[0], []


def sample(labels, value):
    text = ",".join(f'{key}="{label}"' for key, label in labels.items())
    return {"labels": "{" + text + "}", "value": rounded(value)}


def structure(boards):
    assert boards.keys() == PANELS.keys(), boards.keys()
    for file, board in boards.items():
        panels = {panel["title"]: panel for panel in board["panels"]}
        assert panels.keys() == PANELS[file].keys(), (file, panels.keys() ^ PANELS[file].keys())
        for title, (kind, unit, legends) in PANELS[file].items():
            panel = panels[title]
            assert (panel["type"], panel["fieldConfig"]["defaults"].get("unit")) == (kind, unit), (file, title)
            assert [target["legendFormat"] for target in panel["targets"]] == list(legends), (file, title)
            for legend, figures in legends.items():
                for labels, _ in figures(CHOICES[0]):
                    assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= labels.keys(), (file, title, legend)
        assert [one["name"] for one in board["annotations"]["list"]] == list(ANNOTATIONS), file
        for variable in board["templating"]["list"]:
            if variable["type"] != "query":
                continue
            query = variable["query"]["query"] if isinstance(variable["query"], dict) else variable["query"]
            assert query == VARIABLES[variable["name"]] == variable.get("definition", query), (file, variable["name"])
    assert len({board["uid"] for board in boards.values()}) == len(boards)


def main():
    if not shutil.which("promtool"):
        print("skipped: promtool is not installed (Debian: prometheus)")
        return 77
    served = set(re.findall(r'"(regatta_\w+)"', open(METRICS_H).read()))
    made_up = {"regatta_" + re.sub(r"_(sum|count|bucket)$", "", name) for name, _ in JOB.series}
    assert made_up <= served, f"no rank serves {made_up - served}"
    boards = {name: json.load(open(os.path.join(FOLDER, name))) for name in sorted(os.listdir(FOLDER))}
    structure(boards)
    tests = [{"expr": f"round({filled_in(expression, job, chosen)}, 1e-6)", "eval_time": f"{AT}s",
              "exp_samples": [sample(labels, value) for labels, value in figures]}
             for expression, job, chosen, figures in cases(boards)]
    series = [one for job, moving in ((JOB, True), (Job("other", 5000), True), (Job("quiet", 9000), False)) for one in job.input_series(moving)]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "figures.yml")
        with open(path, "w") as file:  # JSON is YAML
            json.dump({"evaluation_interval": "10m", "tests": [{"interval": f"{INTERVAL}s", "input_series": series, "promql_expr_test": tests}]},
                      file)
        done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[:4000] + done.stderr[:4000]
    print(f"{len(tests)} evaluations, {sum(len(test['exp_samples']) for test in tests)} figures: as they should be")
    return 0


sys.exit(main())
