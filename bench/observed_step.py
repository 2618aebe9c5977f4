#!/usr/bin/env python3
"""What watching costs a job: the median step time of `regatta finetune` under each load over that of the quiet windows before and after it,
in one run. Loads: 100 scrapes a second; 1,000 idle connections to the control port; a reader of WatchSteps that stands still; 100 calls a
second with a wrong token or a message of 1 MiB (needs the Python package grpcio; left out with a word otherwise). Also
counts the job's open files and memory before the loads and after them, and the processor time that the job's other threads take.

usage: observed_step.py REGATTA WORK_DIR [--seconds 6] [--rounds 7] [--loads scrapes,connections,reader,refused] [--json FILE]
"""
import argparse
import http.client
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import threading
import time

try:
    import grpc
except ImportError:
    grpc = None

arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
arguments.add_argument("regatta")
arguments.add_argument("work")
arguments.add_argument("--seconds", type=float, default=6, help="of one window")
arguments.add_argument("--rounds", type=int, default=7, help="windows of each load, each between two quiet ones")
arguments.add_argument("--loads", default="scrapes,connections,reader,refused", help="which, separated by commas")
arguments.add_argument("--json", help="write the figures here too")
options = arguments.parse_args()


TOKEN = "a-token-of-some-length"


def token_file():
    path = os.path.join(options.work, "token")
    open(path, "w").write(TOKEN + "\n")
    return path


class Job:
    def __init__(self):
        self.out = os.path.join(options.work, "out")
        text = os.path.join(options.work, "text.txt")
        open(text, "w").write(" ".join(f"{i % 97} boats of {i * i % 31}" for i in range(40000)))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.metrics_port = probe.getsockname()[1]
        self.process = subprocess.Popen(
            [options.regatta, "finetune", "--init", "random", "--hidden", "128", "--layers", "4", "--heads", "4", "--data", text, "--seq",
             "64", "--steps", "10000000", "--micro-batch", "2", "--mesh", "dp=1", "--threads", "1", "--out", self.out, "--metrics-address",
             f"127.0.0.1:{self.metrics_port}", "--control-address", "127.0.0.1:0", "--control-token-file", token_file()],
            stdout=subprocess.DEVNULL, stderr=open(os.path.join(options.work, "job.log"), "w"),
            env={**os.environ, "OMP_NUM_THREADS": "1"})
        self.log = None
        while self.log is None or self.steps() < 20:
            assert self.process.poll() is None, open(os.path.join(options.work, "job.log")).read()
            time.sleep(0.2)
            if os.path.exists(os.path.join(self.out, "log.jsonl")):
                self.log = os.path.join(self.out, "log.jsonl")
        self.control = open(os.path.join(self.out, "control.address")).read().strip()

    def lines(self):
        return open(self.log).read().split("\n")[:-1]

    def steps(self):
        return len(self.lines()) if self.log else 0

    def step_seconds(self, first, last):
        for line in self.lines()[first:last]:
            seconds = json.loads(line).get("seconds")
            if seconds:
                yield sum(seconds[part] for part in ("data", "forward", "backward", "step"))

    def open_files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def thread_ticks(self):
        ticks = {}
        for task in os.listdir(f"/proc/{self.process.pid}/task"):
            try:
                fields = open(f"/proc/{self.process.pid}/task/{task}/stat").read().rsplit(")", 1)[1].split()
            except FileNotFoundError:  # it has ended
                continue
            ticks[task] = int(fields[11]) + int(fields[12])
        return ticks

    def other_threads_seconds(self):
        """Processor time so far of all threads but the busiest, which is the one that trains."""
        ticks = self.thread_ticks().values()
        return (sum(ticks) - max(ticks)) / os.sysconf("SC_CLK_TCK")

    def resident_mib(self):
        status = open(f"/proc/{self.process.pid}/status").read()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


class Scrapes:
    name = "100 scrapes/s"

    def __init__(self, job):
        self.ended = threading.Event()
        self.count = 0
        self.thread = threading.Thread(target=self.run, args=[job.metrics_port])
        self.thread.start()

    def run(self, port):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        due = time.monotonic()
        while not self.ended.is_set():
            connection.request("GET", "/metrics")
            assert connection.getresponse().read()
            self.count += 1
            due += 0.01
            time.sleep(max(0, due - time.monotonic()))

    def stop(self):
        self.ended.set()
        self.thread.join()
        return self.count


class Connections:
    name = "1,000 idle connections"

    def __init__(self, job):
        host, port = job.control.rsplit(":", 1)
        self.sockets = [socket.create_connection((host, int(port))) for _ in range(1000)]

    def stop(self):
        for each in self.sockets:
            each.close()
        return len(self.sockets)


class SlowReader:
    name = "a reader that stands still"

    def __init__(self, job):
        self.reader = subprocess.Popen([options.regatta, "ctl", job.control, "--token-file", token_file(), "watch", "--json"], stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)
        time.sleep(1)
        self.reader.send_signal(signal.SIGSTOP)

    def stop(self):
        self.reader.kill()
        self.reader.wait()
        return 1


class Strangers:
    name = "100 refused calls/s"

    def __init__(self, job):
        self.channel = grpc.insecure_channel(job.control)
        self.call = self.channel.unary_unary("/regatta.v1.Control/GetStatus", request_serializer=bytes, response_deserializer=bytes)
        self.ended = threading.Event()
        self.refused = {}
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        due, count = time.monotonic(), 0
        while not self.ended.is_set():
            count += 1
            token, message = ("a-wrong-token-of-some-length", b"") if count % 2 else (TOKEN, bytes(1 << 20))
            try:
                self.call(message, metadata=[("authorization", f"Bearer {token}")], timeout=10)
                raise AssertionError("a stranger was served")
            except grpc.RpcError as error:
                self.refused[error.code().name] = self.refused.get(error.code().name, 0) + 1
            due += 0.01
            time.sleep(max(0, due - time.monotonic()))

    def stop(self):
        self.ended.set()
        self.thread.join()
        self.channel.close()
        assert set(self.refused) <= {"UNAUTHENTICATED", "RESOURCE_EXHAUSTED"}, self.refused
        return sum(self.refused.values())


def main():
    shutil.rmtree(options.work, ignore_errors=True)
    os.makedirs(options.work)
    job = Job()
    ratios, counts, shares = {}, {}, {}
    quiet_times = []

    def window():
        time.sleep(0.3)  # what the change of load itself costs is not the load's
        first = job.steps()
        time.sleep(options.seconds)
        times = list(job.step_seconds(first + 1, job.steps() - 1))
        assert len(times) > 10, "too few steps in a window"
        return statistics.median(times)

    try:
        known = {"scrapes": Scrapes, "connections": Connections, "reader": SlowReader, "refused": Strangers}
        loads = [known[name] for name in options.loads.split(",")]
        if Strangers in loads and not grpc:
            loads.remove(Strangers)
            print("left out: refused calls; the Python package grpcio is not installed")
        for load in loads:  # once, so that what grows only once is not counted as a leak
            load(job).stop()
        time.sleep(2)
        files, memory = job.open_files(), job.resident_mib()
        before = window()
        for round_number in range(options.rounds):
            for load in loads:
                running = load(job)
                started, busy = time.monotonic(), job.other_threads_seconds()
                loaded = window()
                shares.setdefault(load.name, []).append((job.other_threads_seconds() - busy) / (time.monotonic() - started))
                counts[load.name] = counts.get(load.name, 0) + running.stop()
                after = window()
                ratios.setdefault(load.name, []).append(loaded / ((before + after) / 2))
                quiet_times.append(after)
                before = after
                print(f"round {round_number + 1} of {options.rounds}: {load.name}: {ratios[load.name][-1]:.3f}", flush=True)
        time.sleep(2)
        result = {
            "median_step_ms_quiet": 1e3 * statistics.median(quiet_times),
            "ratio_of_medians": {name: statistics.median(each) for name, each in ratios.items()},
            "all_ratios": ratios,
            "cores_taken_by_other_threads": {name: statistics.mean(each) for name, each in shares.items()},
            "count": counts,
            "open_files": [files, job.open_files()],
            "resident_mib": [memory, job.resident_mib()],
        }
    finally:
        job.process.kill()
        job.process.wait()
    print(json.dumps(result, indent=2))
    if options.json:
        json.dump(result, open(options.json, "w"), indent=2)


main()
