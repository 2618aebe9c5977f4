#!/usr/bin/env python3
"""The shipped alerts and their tests: promtool accepts the rules and their tests pass, every alert is shown firing and silent, and what it says
to do is in the documentation; the configuration and every expression name metrics that ranks serve.

usage: alerts_test.py DEPLOY_DIR DOCS_DIR METRICS_H      exit code 77: promtool is not installed
"""
import os
import re
import shutil
import subprocess
import sys

DEPLOY, DOCS, METRICS_H = sys.argv[1:4]
FOLDER = os.path.join(DEPLOY, "prometheus")
TESTS = ("rules_test.yml", "thresholds_test.yml")


def text(*path):
    with open(os.path.join(*path)) as file:
        return file.read()


def promtool(*arguments):
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"promtool {' '.join(arguments)}: {done.stdout}{done.stderr}"


def anchors(markdown):
    return {re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in re.findall(r"(?m)^#+ (.*)$", markdown)}


def main():
    if not shutil.which("promtool"):
        print("skipped: promtool is not installed (Debian: prometheus)")
        return 77
    rules = text(FOLDER, "rules.yml")
    alerts = re.findall(r"- alert: (\w+)", rules)
    assert len(alerts) == len(set(alerts)) > 0
    tested = "".join(text(FOLDER, test) for test in TESTS)
    for alert in alerts:
        assert re.search(rf"alertname: {alert}, exp_alerts: \[\]", tested), f"no test shows {alert} silent"
        assert re.search(rf"alertname: {alert}\n\s+exp_alerts:", tested), f"no test shows {alert} firing"
    for file, anchor in re.findall(r"runbook_url: docs/(\S+)#(\S+)", rules):
        assert anchor in anchors(text(DOCS, file)), f"docs/{file} has no section {anchor}"
    assert rules.count("runbook_url:") == rules.count("severity:") == rules.count("summary:") == len(alerts)
    served = set(re.findall(r'"(regatta_\w+)"', text(METRICS_H)))
    named = {re.sub(r"_(sum|count|bucket)$", "", name) for name in re.findall(r"\bregatta_\w+", rules)}
    assert named <= served, f"no rank serves {named - served}"
    promtool("check", "rules", os.path.join(FOLDER, "rules.yml"))
    promtool("check", "config", os.path.join(FOLDER, "prometheus.yml"))
    promtool("test", "rules", *(os.path.join(FOLDER, test) for test in TESTS))
    config = text(FOLDER, "prometheus.yml")
    assert "honor_labels: true" in config, "the ranks' own job label would be lost"
    print(f"{len(alerts)} alerts: as their tests say")
    return 0


sys.exit(main())
