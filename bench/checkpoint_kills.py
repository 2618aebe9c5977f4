#!/usr/bin/env python3
"""Kills a job under mpirun by signal 9 again and again, at random instants, and lets --resume auto go on each time.

    bench/checkpoint_kills.py build/bin/regatta --kills 200

The job saves after every few steps, so that steps and saves are hit alike. It ends with 1 unless the final weights are those of the
same job left alone, every checkpoint that was published stays loadable until newer ones replace it, and no temporary outlives the next
save.
"""
import argparse
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time

ENVIRONMENT = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
               "OMPI_MCA_rmaps_base_oversubscribe": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def fail(sentence):
    print(f"checkpoint_kills: {sentence}", file=sys.stderr)
    sys.exit(1)


def command(args, folder, checkpoints):
    job = [args.regatta, "finetune", "--init", "random", "--hidden", "32", "--layers", "2", "--heads", "2", "--data", f"{folder}/text.txt",
           "--seq", "32", "--micro-batch", "1", "--steps", str(args.steps), "--rule", "reg", "--clip", "1", "--lr", "0.01",
           "--mesh", f"dp={args.ranks}", "--transport", "mpi", "--deadline", "60"]
    if checkpoints:
        job += ["--checkpoint-every", str(args.every), "--keep-last", "3", "--resume", "auto"]
    return [args.mpirun, "-n", str(args.ranks)] + job


def weights(out):
    with open(f"{out}/model.safetensors", "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def names(folder):
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()


def steps_of(listed):
    return sorted(int(name[5:]) for name in listed if re.fullmatch(r"step-\d+", name))


def ranks_of(mpirun):
    """The processes of the ranks, children of mpirun."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat") as file:
                if int(file.read().rsplit(")", 1)[1].split()[1]) == mpirun:
                    found.append(int(entry))
        except OSError:
            pass
    return found


def kill(process, everyone):
    """One rank of the job, or mpirun and all ranks at once, as when the power goes."""
    victims = ranks_of(process.pid)
    if everyone:
        victims.append(process.pid)
    elif victims:
        victims = [random.choice(victims)]
    for victim in victims:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return victims


def wait_for_ranks_to_go(ranks):
    for rank in ranks:
        for _ in range(2000):
            if not os.path.exists(f"/proc/{rank}"):
                break
            time.sleep(0.01)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("regatta")
    parser.add_argument("--mpirun", default="mpirun")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100000, help="more than all tries together can make; the last try ends at --target")
    parser.add_argument("--every", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--most-seconds", type=float, default=1.2, help="a kill comes up to this long after the job's first step")
    args = parser.parse_args()
    random.seed(args.seed)
    with tempfile.TemporaryDirectory(prefix="checkpoint_kills.") as folder:
        with open(f"{folder}/text.txt", "w") as file:
            file.write("".join(f"{i} steamed {i * 7919 % 1009} miles; " for i in range(2000)))
        run(args, folder)


def run(args, folder):
    out, kept = f"{folder}/out", f"{folder}/out/checkpoints"
    os.makedirs(out)
    kills = during_save = before_first_step = alone = 0
    leftovers, made = set(), 0
    began = time.time()
    while kills < args.kills:
        before = names(kept)
        newest = max(steps_of(before), default=0)
        log = open(f"{folder}/stderr", "w+")
        process = subprocess.Popen(command(args, folder, True) + ["--out", out], stdout=subprocess.DEVNULL, stderr=log,
                                   env=ENVIRONMENT)
        # One in eight is hit at its start, while it reads what the last one left.
        early = random.random() < 0.125
        limit = time.time() + 60
        while not early and time.time() < limit and process.poll() is None:
            if max(steps_of(names(kept)), default=0) > newest:
                break
            time.sleep(0.005)
        time.sleep(random.uniform(0, args.most_seconds))
        if process.poll() is not None:
            log.seek(0)
            fail(f"after {kills} kills the job ended by itself with {process.returncode}: {log.read()[-2000:]}")
        seen = names(kept)
        ranks = ranks_of(process.pid)
        everyone = random.random() < 0.5
        victims = kill(process, everyone)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            fail(f"kill {kills + 1}: the others did not end within 60 s")
        wait_for_ranks_to_go(ranks)
        if not victims:
            continue
        kills += 1
        alone += not everyone
        after = names(kept)
        log.seek(0)
        text = log.read()
        goes_on = re.search(r"goes on after step (\d+)", text)
        if newest > 0 and goes_on and int(goes_on.group(1)) != newest:
            fail(f"kill {kills}: step {newest} was the newest, but the job went on from {goes_on.group(1)}: {text[-1000:]}")
        if newest > 0 and "skipped " in text:
            fail(f"kill {kills}: a checkpoint was found damaged: {text[-1000:]}")
        if max(steps_of(after), default=0) < max(steps_of(seen), default=0):
            fail(f"kill {kills}: step {max(steps_of(seen))} was there before and is gone")
        now = max(steps_of(after), default=0)
        parts = {name for name in after if name.endswith(".part")}
        if now > newest:  # this try has saved, so what the one before left is gone
            stale = {name for name in leftovers & parts if name != "latest.part" and int(re.sub(r"\D", "", name)) <= newest}
            if stale:
                fail(f"kill {kills}: {sorted(stale)} outlived a save")
        else:
            before_first_step += 1
        leftovers = parts
        during_save += bool(parts)
        made = now
        if kills % 20 == 0:
            print(f"{kills} kills, {made} steps, {during_save} of them in a save, {time.time() - began:.0f} s", flush=True)
    # The end: the killed job and one that was left alone make the same number of steps.
    target = made + 5
    args.steps = target
    for name, checkpoints in (("out", True), ("alone", False)):
        done = subprocess.run(command(args, folder, checkpoints) + ["--out", f"{folder}/{name}"], env=ENVIRONMENT, capture_output=True,
                              text=True, check=False)
        if done.returncode != 0:
            fail(f"the last run ({name}) ended with {done.returncode}: {done.stderr[-2000:]}")
    equal = weights(out) == weights(f"{folder}/alone")
    left = sorted(name for name in names(kept) if name.endswith(".part"))
    print(json.dumps({"kills": kills, "of_one_rank": alone, "of_the_whole_job": kills - alone, "in_a_save": during_save,
                      "before_a_save": before_first_step, "steps": target, "seconds": round(time.time() - began),
                      "weights_equal": equal, "left_behind": left}))
    if not equal or left:
        sys.exit(1)


main()
