"""Real jobs that are saved, stopped, damaged and gone on with: program_test.py REGATTA CASE [MPIRUN]."""
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

REGATTA, CASE = sys.argv[1:3]
MPIRUN = sys.argv[3] if len(sys.argv) > 3 else None
WORK = pathlib.Path(tempfile.mkdtemp(prefix="regatta-checkpoint-"))
os.environ["OMP_NUM_THREADS"] = "1"
(WORK / "text.txt").write_text(" ".join(f"{i} steamed {i * 7919 % 1009} miles;" for i in range(400)))
JOB = ["finetune", "--init", "random", "--hidden", "32", "--layers", "2", "--heads", "2", "--data", WORK / "text.txt", "--seq", "32",
       "--micro-batch", "1", "--accumulation", "tree", "--clip", "1"]
DEFAULTS = {"--global-batch": 4, "--rule": "reg", "--lr": 0.01}


def command(name, ranks, *flags, processes=False, tp=1):
    defaults = [word for flag, value in DEFAULTS.items() if flag not in flags for word in (flag, value)]
    words = [REGATTA, *JOB, *defaults, "--mesh", f"dp={ranks}" + (f",tp={tp}" if tp > 1 else ""), "--out", WORK / name, *flags]
    if processes:
        words = [MPIRUN, "-n", ranks * tp, *words, "--transport", "mpi"]
    return [str(word) for word in words]


def train(name, ranks, *flags, code=0, **how):
    done = subprocess.run(command(name, ranks, *flags, **how), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == code, (name, flags, done.returncode, done.stderr)
    return done.stderr


def weights(name):
    return hashlib.sha256((WORK / name / "model.safetensors").read_bytes()).hexdigest()


def saved(name):
    return sorted(path.name for path in (WORK / name / "checkpoints").iterdir())


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def anywhere():
    """Saved by four processes in the middle, gone on with on 1, 2 and 4 ranks, as threads and processes, in another mode and cut."""
    train("straight", 4, "--steps", 6, "--checkpoint-every", 3, processes=True)
    assert saved("straight") == ["latest", "step-00000003", "step-00000006"], saved("straight")
    middle = WORK / "straight/checkpoints/step-00000003"
    for ranks, flags, how in ((1, [], {}), (2, [], {"processes": True}), (4, ["--mode", "zero2", "--bucket-bytes", 5000], {}),
                              (2, ["--cut", "element"], {})):
        said = train(f"on{ranks}{len(flags)}", ranks, "--steps", 6, "--resume", middle, *flags, **how)
        assert "step 3" in said and "dp=4" in said and f"dp={ranks}" in said, said
        assert weights(f"on{ranks}{len(flags)}") == weights("straight"), (ranks, flags)
        assert "step-00000006" in saved(f"on{ranks}{len(flags)}")
    # Three ranks and tensor parallelism load the same, but add up in another order.
    train("three", 3, "--steps", 4, "--resume", middle, "--allow", "batch", "--global-batch", 3)
    said = train("split", 2, "--steps", 6, "--resume", middle, processes=True, tp=2)
    assert "dp=2,tp=2" in said, said
    # Back on what tensor-parallel ranks saved.
    train("back", 2, "--steps", 7, "--resume", WORK / "split/checkpoints/step-00000006")


def damaged():
    """A damaged newest one is skipped with a warning, the one before is gone on from, and the step is saved again."""
    train("straight", 2, "--steps", 6)
    train("job", 2, "--steps", 4, "--checkpoint-every", 2)
    state = WORK / "job/checkpoints/step-00000004/state-00001.safetensors"
    flip(state, state.stat().st_size - 9)
    said = train("job", 2, "--steps", 4, "--checkpoint-every", 2, "--resume", state.parent, code=2)
    assert "state-00001.safetensors" in said, said
    said = train("job", 2, "--steps", 6, "--checkpoint-every", 2, "--resume", "auto")
    assert "skipped" in said and "state-00001.safetensors" in said and "after step 2" in said, said
    assert weights("job") == weights("straight")
    assert saved("job")[:4] == ["latest", "step-00000002", "step-00000004", "step-00000006"], saved("job")
    # The one that was damaged is sound now.
    train("again", 2, "--steps", 6, "--resume", WORK / "job/checkpoints/step-00000004")
    assert weights("again") == weights("straight")
    for name in ("step-00000002", "step-00000006"):
        (WORK / f"job/checkpoints/{name}/manifest.json").unlink()
    shutil.rmtree(WORK / "job/checkpoints/step-00000004")
    said = train("job", 2, "--steps", 6, "--resume", "auto", code=2)
    assert "manifest.json" in said, said


def stopped():
    """SIGTERM and SIGUSR1 end the job well, with a checkpoint of the step in progress, from which it goes on to the same bits."""
    flags = ["--checkpoint-every", 10000000, "--resume", "auto"]
    newest = 0
    for number in (signal.SIGTERM, signal.SIGUSR1):
        # More steps than it will make, however late the signal comes.
        job = subprocess.Popen(command("job", 2, "--steps", 9000000, *flags), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        log = WORK / "job/log.jsonl"
        before = log.read_bytes() if log.exists() else b""
        while job.poll() is None and not (log.exists() and len(log.read_bytes()) > len(before)):
            time.sleep(0.02)
        job.send_signal(number)
        said = job.communicate(timeout=240)[1]
        assert job.returncode == 0 and "drained" in said, said
        assert saved("job")[-1] > f"step-{newest:08}", (saved("job"), said)
        newest = int(saved("job")[-1][len("step-"):])
        assert f"drained after step {newest} " in said, (newest, said)
    train("job", 2, "--steps", newest + 5, *flags)
    train("straight", 2, "--steps", newest + 5)
    assert weights("job") == weights("straight")


def refused():
    """What cannot be gone on with is said in a sentence, with exit code 2, and nothing is changed."""
    train("job", 2, "--steps", 2, "--checkpoint-every", 2)
    there = WORK / "job/checkpoints"
    listing = saved("job")

    def says(*words, flags, code=2):
        said = train("job", 2, "--steps", 4, "--resume", "auto", *flags, code=code)
        assert all(word in said for word in words) and said.count("\n") == 1, (flags, said)
        assert saved("job") == listing

    says("--allow rules", "--allow state", "moment1", flags=["--rule", "adamw"])
    says("--allow batch", "8", flags=["--global-batch", 8])
    says("--allow schedule", flags=["--lr", 0.02])
    says("--allow arithmetic", "bf16", flags=["--dtype", "bf16"])
    said = train("job", 2, "--steps", 4, "--checkpoint-every", 2, code=2)
    assert "--resume auto" in said, said
    train("job", 2, "--steps", 4, "--resume", WORK / "nowhere", code=2)
    said = train("more", 2, "--steps", 4, "--checkpoint-every", 2, "--checkpoint-dir", "/proc/checkpoints", code=1)
    assert "/proc/checkpoints" in said, said
    # A manifest from the future: a clear sentence.
    manifest = there / "step-00000002/manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"format": 1', '"format": 9'))
    said = train("job", 2, "--steps", 4, "--resume", "auto", code=2)
    assert "format 9" in said and "newer" in said, said
    manifest.write_text(text)
    # An older one in the same folder would be forgotten by the next --resume auto.
    shutil.copytree(there / "step-00000002", there / "step-00000003")
    said = train("job", 2, "--steps", 4, "--resume", there / "step-00000002", code=2)
    assert "step-00000003" in said, said
    shutil.rmtree(there / "step-00000003")
    # Allowed, it goes on.
    train("job", 2, "--steps", 4, "--resume", "auto", "--lr", 0.02, "--allow", "schedule")


def supervised():
    """A rank is killed, scripts/supervise starts the job again, and SIGTERM to supervise ends all ranks well with a last checkpoint."""
    supervise = pathlib.Path(__file__).parents[2] / "scripts/supervise"
    job = [supervise, "--wait", "0", "--", *command("job", 2, "--steps", 1000000, "--checkpoint-every", 20, "--keep-last", 2, "--resume", "auto",
                                                    processes=True)]
    with open(WORK / "stderr", "w") as stderr:
        process = subprocess.Popen([str(word) for word in job], stderr=stderr, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        def newest():
            folder = WORK / "job/checkpoints"
            return max((int(path.name[5:]) for path in folder.glob("step-*[0-9]")), default=0) if folder.exists() else 0

        def wait_for(what, seconds=120):
            end = time.time() + seconds
            while not what():
                assert time.time() < end and process.poll() is None, (WORK / "stderr").read_text()
                time.sleep(0.05)

        wait_for(lambda: newest() > 0)
        ranks = [int(path.name) for path in pathlib.Path("/proc").iterdir() if path.name.isdigit() and is_rank(path)]
        assert len(ranks) == 2, ranks
        os.kill(ranks[1], signal.SIGKILL)
        wait_for(lambda: "goes on after step" in (WORK / "stderr").read_text())
        resumed = newest()
        wait_for(lambda: newest() > resumed)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0, (WORK / "stderr").read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    said = (WORK / "stderr").read_text()
    assert said.count("again in 0 s") == 1 and "drained after step" in said, said
    drained = int(said.split("drained after step ")[1].split()[0])
    assert newest() == drained, (newest(), said)


def is_rank(process):
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"finetune" in words and str(WORK / "job").encode() in words and b"regatta" in words[0].rsplit(b"/", 1)[-1]


{"supervised": supervised, "anywhere": anywhere, "damaged": damaged, "stopped": stopped, "refused": refused}[CASE]()
shutil.rmtree(WORK)
