#!/usr/bin/env python3
"""The update RMS of the metrics is the one of the weights: a job of one step on a mesh, its weights before and after read from their
files, and the figures it pushed at its end compared with what the files say: every parameter and every group.

usage: update_rms_test.py REGATTA WORK_DIR
"""
import http.server
import math
import os
import re
import shutil
import subprocess
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../replay"))
import safetensors_lite

RHO, TOLERANCE = 0.2, 1e-5
SHAPE = ["--hidden", "32", "--layers", "2", "--heads", "4"]
BATCH = ["--seq", "32", "--micro-batch", "1", "--global-batch", "6"]


def weights(folder):
    tensors, _ = safetensors_lite.read(os.path.join(folder, "model.safetensors"))
    return {name: (safetensors_lite.floats(blob), shape) for name, (shape, blob) in tensors.items()}


class Gateway:
    """Takes what ranks push."""

    def __init__(self):
        pages = self.pages = {}

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_PUT(self):
                pages[self.path] = self.rfile.read(int(self.headers["Content-Length"])).decode()
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"127.0.0.1:{self.server.server_port}"


def figures(page, metric, label):
    return {key: float(value) for key, value in re.findall(rf'^{metric}\{{[^}}]*{label}="([^"]+)"\}} (\S+)$', page, re.M)}


def near(got, wanted, what):
    assert wanted > 0 and abs(got / wanted - 1) < TOLERANCE, f"{what}: the metric says {got}, the weights say {wanted}"


def run(regatta, work, dp, tp, flags, plain_reg):
    mesh = f"dp={dp},tp={tp}"
    gateway = Gateway()
    after = os.path.join(work, "after")
    shutil.rmtree(after, ignore_errors=True)
    subprocess.run([regatta, "finetune", "--init", os.path.join(work, "before"), "--data", os.path.join(work, "text.txt"), *BATCH,
                    "--steps", "1", "--schedule", "constant", "--lr", "0.01", "--mesh", mesh, "--out", after, "--metrics-push",
                    gateway.address, "--metrics-top", "1000", "--job", "rms", *flags], check=True, capture_output=True)
    gateway.server.shutdown()
    assert len(gateway.pages) == dp * tp, gateway.pages.keys()
    old, new = weights(os.path.join(work, "before")), weights(after)
    squares, numel = {}, {}
    rms = {}
    for name, (values, shape) in new.items():
        moved = math.fsum((a - b) ** 2 for a, b in zip(values, old[name][0]))
        rms[name] = math.sqrt(moved / len(values))
        group = "reg" if len(shape) == 2 and "embed" not in name and "lm_head" not in name else "adamw"
        squares[group] = squares.get(group, 0) + moved
        numel[group] = numel.get(group, 0) + len(values)
    for path, page in gateway.pages.items():
        params = figures(page, "regatta_param_update_rms", "param")
        assert params.keys() == rms.keys(), params.keys() ^ rms.keys()
        for name, value in params.items():
            near(value, rms[name], f"{mesh} {path} {name}")
        groups = figures(page, "regatta_update_rms", "group")
        assert groups.keys() == squares.keys(), groups
        for group, value in groups.items():
            near(value, math.sqrt(squares[group] / numel[group]), f"{mesh} {path} group {group}")
        if plain_reg:
            assert figures(page, "regatta_zero_lines", "group")["reg"] == 0
            near(figures(page, "regatta_normalized_update_rms", "group")["reg"], RHO, f"{mesh} {path} rho")
    print(f"{mesh} {' '.join(flags)}: {dp * tp} pages, {len(rms)} parameters, {len(squares)} groups agree to {TOLERANCE}")


def main():
    regatta, work = (os.path.abspath(path) for path in sys.argv[1:3])
    os.environ["OMP_NUM_THREADS"] = "1"
    shutil.rmtree(work, ignore_errors=True)
    os.makedirs(work)
    with open(os.path.join(work, "text.txt"), "w") as text:
        text.write(" ".join(f"{i % 97} oars and {i * i % 131} sails" for i in range(2000)))
    subprocess.run([regatta, "finetune", "--init", "random", "--data", os.path.join(work, "text.txt"), *SHAPE, *BATCH, "--steps", "2",
                    "--out", os.path.join(work, "before")], check=True, capture_output=True)
    for dp, tp in (1, 1), (2, 2):
        run(regatta, work, dp, tp, ["--set", "reg.weight_decay=0"], True)
    run(regatta, work, 3, 1, ["--set", "reg.weight_decay=0.1", "--set", "reg.passes=2", "--clip", "0.5"], False)


main()
