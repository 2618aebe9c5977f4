#!/usr/bin/env python3
"""What a checkpoint costs: bytes per second of a save against plain writes of as many bytes by as many writers to the same folder, and the
stall of a save behind the steps as a share of a step.

    bench/checkpoint_speed.py build/bin/regatta [--ranks 2] [--folder DIR]

Plain writes and saves take turns in one run of this script, since disks of shared machines change speed by the minute.
"""
import argparse
import json
import os
import statistics
import subprocess
import tempfile
import threading
import time

ENVIRONMENT = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
               "OMPI_MCA_rmaps_base_oversubscribe": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def plain_write(folder, writers, total):
    """Seconds in which `writers` write `total` bytes in all, each to a file of its own, and flush them."""
    block = os.urandom(8 << 20)

    def write(path):
        left = total // writers
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        while left > 0:
            left -= os.write(descriptor, block[:left])
        os.fsync(descriptor)
        os.close(descriptor)

    paths = [f"{folder}/plain.{i}" for i in range(writers)]
    threads = [threading.Thread(target=write, args=(path,)) for path in paths]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    for path in paths:
        os.unlink(path)
    return seconds


def train(args, folder):
    with open(f"{folder}/text.txt", "w") as file:
        file.write("".join(f"{i} steamed {i * 7919 % 1009} miles; " for i in range(20000)))
    subprocess.run(["mpirun", "-n", str(args.ranks), args.regatta, "finetune", "--init", "random", "--hidden", str(args.hidden), "--layers", "8",
                    "--heads", "8", "--data", f"{folder}/text.txt", "--seq", "128", "--micro-batch", "4", "--steps", str(args.steps), "--rule",
                    "reg", "--lr", "0.01", "--mesh", f"dp={args.ranks}", "--transport", "mpi", "--checkpoint-every", str(args.every),
                    "--keep-last", "1", "--out", f"{folder}/out"], check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    with open(f"{folder}/out/log.jsonl") as file:
        return [json.loads(line) for line in file]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("regatta")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument("--every", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="on the file system to be measured")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="checkpoint_speed.") as folder:
        plain, behind, alone, stalls, steps = [], [], [], [], []
        total = 0
        for _ in range(args.rounds):
            records = train(args, folder)
            kept = f"{folder}/out/checkpoints"
            newest = max(name for name in os.listdir(kept) if name.startswith("step-"))
            total = sum(os.path.getsize(f"{kept}/{newest}/{name}") for name in os.listdir(f"{kept}/{newest}"))
            plain.append(total / plain_write(folder, args.ranks, total))
            seconds = {r["step"]: sum(r["seconds"][phase] for phase in ("data", "forward", "backward", "step"))
                       for r in records if "seconds" in r}
            for record in (r for r in records if "checkpoint" in r):
                save = record["checkpoint"]
                stalls.append(save["copy_seconds"])
                (alone if record["step"] == args.steps else behind).append(total / save["write_seconds"])
            steps += [s for step, s in seconds.items() if step > 1]
            plain.append(total / plain_write(folder, args.ranks, total))
            subprocess.run(["rm", "-rf", f"{folder}/out"], check=True)
        step, stall = statistics.median(steps), statistics.median(stalls)
        print(json.dumps({"ranks": args.ranks, "bytes": total, "plain_MB_per_s": round(statistics.median(plain) / 1e6),
                          "save_alone_MB_per_s": round(statistics.median(alone) / 1e6),
                          "save_behind_steps_MB_per_s": round(statistics.median(behind) / 1e6),
                          "alone_over_plain": round(statistics.median(alone) / statistics.median(plain), 2),
                          "step_ms": round(1e3 * step, 1), "stall_ms": round(1e3 * stall, 1), "stall_ms_worst": round(1e3 * max(stalls), 1),
                          "stall_share_of_a_step": round(stall / step, 3),
                          "stall_share_of_the_run": round(stall / (args.every * step), 4)}, indent=1))


main()
