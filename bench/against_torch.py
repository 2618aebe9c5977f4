#!/usr/bin/env python3
"""Our optimizer steps beside torch's own on the same shapes, in one run: single-process AdamW (fused, foreach), and ZeRO-1
over two processes (ZeroRedundancyOptimizer over gloo against the engine over MPI).

usage: python3 bench/against_torch.py [--build build] [--rounds 11] [--out bench/results/against_torch.json]
Needs a Python with torch; run it on an idle machine. Every figure is a median; ours and torch's alternate.
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time

import torch
import torch.distributed
import torch.multiprocessing

LAYERS = 5


def shapes():
    for _ in range(LAYERS):
        yield from [(1024, 1024)] * 4 + [(2816, 1024)] * 2 + [(1024, 2816)]


def made_up(seed):
    torch.manual_seed(seed)
    params = [torch.nn.Parameter(torch.randn(s) * 0.02) for s in shapes()]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def median_ms(action, rounds):
    for _ in range(2):
        action()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def torch_adamw(threads, rounds, **how):
    torch.set_num_threads(threads)
    optimizer = torch.optim.AdamW(made_up(0), lr=1e-4, **how)
    return median_ms(optimizer.step, rounds)


def zero_worker(rank, world, rounds, queue):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    from torch.distributed.optim import ZeroRedundancyOptimizer

    params = made_up(rank)
    with torch.no_grad():
        for param in params:
            torch.distributed.broadcast(param, 0)
    optimizer = ZeroRedundancyOptimizer(params, torch.optim.AdamW, lr=1e-4, foreach=True)
    flat = torch.cat([p.grad.flatten() for p in params])
    step_times = []

    def step():
        # What DistributedDataParallel does with gradients before the optimizer: one all-reduce of buckets.
        torch.distributed.all_reduce(flat)
        start = time.perf_counter()
        optimizer.step()
        step_times.append((time.perf_counter() - start) * 1e3)

    total = median_ms(step, rounds)
    if rank == 0:
        queue.put((total, statistics.median(step_times[2:])))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def torch_zero(world, rounds):
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=zero_worker, args=(r, world, rounds, queue)) for r in range(world)]
    for worker in workers:
        worker.start()
    result = queue.get()
    for worker in workers:
        worker.join()
    return result


def ours(build, ranks, rule, threads, rounds):
    environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                       OMPI_MCA_rmaps_base_oversubscribe="1")
    command = [os.path.join(build, "bin/step_bench"), "--rule", rule, "--layers", str(LAYERS), "--rounds", str(rounds),
               "--threads", str(threads)]
    if ranks > 1:
        command = ["mpirun", "--bind-to", "none", "-n", str(ranks), *command, "--transport", "mpi"]
    else:
        command += ["--transport", "local"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


def cpu_model():
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--build", default="build")
    arguments.add_argument("--rounds", type=int, default=11)
    arguments.add_argument("--out", default="bench/results/against_torch.json")
    flags = arguments.parse_args()
    elements = sum(m * n for m, n in shapes())
    rows = []
    for threads in (1, 2):
        row = {"what": "AdamW step, one process", "threads": threads}
        for turn in range(3):  # alternate, keep the median of three
            row.setdefault("torch_fused_ms", []).append(torch_adamw(threads, flags.rounds, fused=True))
            row.setdefault("torch_foreach_ms", []).append(torch_adamw(threads, flags.rounds, foreach=True))
            adamw = ours(flags.build, 1, "adamw", threads, flags.rounds)
            row.setdefault("regatta_adamw_step_ms", []).append(adamw["step_ms"])
            row.setdefault("regatta_reg_step_ms", []).append(ours(flags.build, 1, "reg", threads, flags.rounds)["step_ms"])
        rows.append({k: statistics.median(v) if isinstance(v, list) else v for k, v in row.items()})
    row = {"what": "ZeRO-1, two processes, one thread each: gradients on every rank to parameters on every rank"}
    for turn in range(3):
        total, step = torch_zero(2, flags.rounds)
        row.setdefault("torch_allreduce_and_zero_step_ms", []).append(total)
        row.setdefault("torch_zero_step_only_ms", []).append(step)
        row.setdefault("regatta_adamw_ms", []).append(ours(flags.build, 2, "adamw", 1, flags.rounds)["total_ms"])
        row.setdefault("regatta_reg_ms", []).append(ours(flags.build, 2, "reg", 1, flags.rounds)["total_ms"])
    rows.append({k: statistics.median(v) if isinstance(v, list) else v for k, v in row.items()})
    result = {"command": "python3 " + " ".join(sys.argv), "cpu": cpu_model(), "cores": os.cpu_count(), "torch": torch.__version__,
              "elements": elements, "rows": rows}
    with open(flags.out, "w") as file:
        json.dump(result, file, indent=2)
        file.write("\n")
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
