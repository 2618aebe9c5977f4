#!/usr/bin/env python3
"""A real Prometheus reads a real job: `regatta finetune` on 4 ranks (dp=2,tp=2). Asks its HTTP API whether all ranks are up, whether every
query of every shipped dashboard returns data and every shipped alert evaluates, and compares figures with what the job wrote.

usage: prometheus_test.py REGATTA DEPLOY_DIR WORK_DIR [PICTURE]      exit code 77: Prometheus is not installed
       With PICTURE, the job runs for two minutes more and its main panels are drawn into that file (needs matplotlib).
"""
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import panels_picture

RHO = 0.2
JOB = "observed"


def free_port(count=1):
    """The first of `count` neighbouring free ports."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = probe.getsockname()[1]
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return first
        except OSError:
            continue


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


class Prometheus:
    def __init__(self, deploy, work):
        self.port = free_port()
        config = open(os.path.join(deploy, "prometheus/prometheus.yml")).read()
        config = config.replace("/etc/regatta/targets", os.path.join(work, "targets")).replace("10s", "1s")
        open(os.path.join(work, "prometheus.yml"), "w").write(config)
        shutil.copy(os.path.join(deploy, "prometheus/rules.yml"), work)
        self.log = open(os.path.join(work, "prometheus.log"), "w")
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={work}/prometheus.yml", f"--storage.tsdb.path={work}/data",
             f"--web.listen-address=127.0.0.1:{self.port}"], stdout=self.log, stderr=self.log)

    def api(self, path, **parameters):
        answer = json.loads(get(f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"))
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression):
        return self.api("query", query=expression)["result"]

    def last_minutes(self, expression, minutes=2):
        now = time.time()
        return self.api("query_range", query=expression, start=now - 60 * minutes, end=now, step=1)["result"]

    def stop(self):
        self.process.terminate()
        self.process.wait(120)
        self.log.close()


def wait_for(what, condition, seconds=240):  # ends a hang; usually a second or two
    end = time.time() + seconds
    while time.time() < end:
        try:
            if condition():
                return
        except OSError:
            pass
        time.sleep(0.3)
    raise AssertionError(f"{what} did not happen within {seconds} s")


def dashboard_queries(deploy):
    folder = os.path.join(deploy, "grafana/dashboards")
    for name in sorted(os.listdir(folder)):
        board = json.load(open(os.path.join(folder, name)))
        for panel in board["panels"]:
            for target in panel["targets"]:
                yield f"{name}: {panel['title']}", target["expr"], True
        for annotation in board["annotations"]["list"]:
            yield f"{name}: annotation {annotation['name']}", annotation["expr"], False


def filled_in(expression):
    """A dashboard's query with its variables set as Grafana would."""
    expression = expression.replace("$__rate_interval", "20s").replace("$job", JOB)
    for variable in ("$group", "$dp", "$tp"):
        expression = expression.replace(variable, ".*")
    assert "$" not in expression, f"unknown variable in {expression}"
    return expression


def main():
    regatta, deploy, work = (os.path.abspath(path) for path in sys.argv[1:4])
    if not shutil.which("prometheus") or not shutil.which("promtool"):
        print("skipped: prometheus and promtool are not installed (Debian: prometheus)")
        return 77
    shutil.rmtree(work, ignore_errors=True)
    os.makedirs(os.path.join(work, "targets"))

    text = os.path.join(work, "text.txt")
    open(text, "w").write(" ".join(f"{i % 97} boats of {i * i % 31}" for i in range(4000)))
    metrics_port = free_port(4)
    prometheus = Prometheus(deploy, work)
    job = None
    try:
        wait_for("Prometheus ready", lambda: get(f"http://127.0.0.1:{prometheus.port}/-/ready"))
        job = subprocess.Popen(
            [regatta, "finetune", "--init", "random", "--hidden", "32", "--layers", "2", "--heads", "4", "--data", text,
             "--seq", "32", "--steps", "100000", "--micro-batch", "1", "--global-batch", "4", "--mesh", "dp=2,tp=2",
             "--rule", "reg", "--set", "reg.weight_decay=0", "--lr", "0.001", "--clip", "1", "--job", JOB,
             "--metrics-address", f"127.0.0.1:{metrics_port}", "--metrics-discovery", os.path.join(work, "targets"),
             "--out", os.path.join(work, "out")],
            stdout=subprocess.DEVNULL, stderr=open(os.path.join(work, "job.log"), "w"))
        wait_for("all ranks up", lambda: len(prometheus.query(f'up{{job="{JOB}"}} == 1')) == 4)
        wait_for("steps", lambda: len(prometheus.query(f'regatta_steps_total{{job="{JOB}"}} > 20')) == 4)
        assert job.poll() is None, "the job ended: " + open(os.path.join(work, "job.log")).read()
        for where, expression, has_data in dashboard_queries(deploy):
            query = filled_in(expression)
            if has_data:  # rates want two scrapes, which a busy machine delays
                wait_for(f"{where}: data from {query}", lambda: prometheus.query(query))
            else:
                prometheus.query(query)
        groups = prometheus.api("rules")["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert len(rules) == open(os.path.join(deploy, "prometheus/rules.yml")).read().count("- alert:"), rules
        for rule in rules:
            assert rule["health"] == "ok", rule
            # On a busy machine one of four ranks may well be a straggler for some seconds.
            assert rule["state"] != "firing", f"{rule['name']} is {rule['state']} in a healthy job"

        for port in range(metrics_port, metrics_port + 4):
            page = get(f"http://127.0.0.1:{port}/metrics")
            result = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True)
            assert result.returncode == 0, result.stdout + result.stderr
            assert f'rank="{port - metrics_port}"' in page
            # Every REG matrix moves by lr * rho in the mean square; there are no zero lines and no decay in this job.
            value = re.search(r'regatta_normalized_update_rms\{[^}]*group="reg"\} (\S+)', page)
            zero = re.search(r'regatta_zero_lines\{[^}]*group="reg"\} (\S+)', page)
            if float(zero.group(1)) == 0:
                assert abs(float(value.group(1)) - RHO) < 1e-5, value.group(0)
        # The loss on all pages is the job's.
        losses = {float(sample["value"][1]) for sample in prometheus.query(f'regatta_loss{{job="{JOB}"}}')}

        def logged():
            lines = open(os.path.join(work, "out/log.jsonl")).read().split("\n")[:-1]
            known = [json.loads(line)["loss"] for line in lines]
            return losses and all(any(abs(loss - one) < 1e-12 for one in known) for loss in losses)

        wait_for(f"the losses {losses} in the job's log", logged)

        if len(sys.argv) > 4:
            time.sleep(120)
            panels_picture.draw(prometheus.last_minutes, os.path.join(deploy, "grafana/dashboards"), filled_in, sys.argv[4])
        job.terminate()
        job.wait(240)
        print(f"{len(list(dashboard_queries(deploy)))} queries, {len(rules)} alerts: all answered")
        return 0
    finally:
        if job and job.poll() is None:
            job.kill()
        prometheus.stop()


sys.exit(main())
