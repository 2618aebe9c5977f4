"""What scripts/supervise does about each end of a job.

usage: supervise_test.py SUPERVISE
"""
import os
import signal
import subprocess
import sys
import tempfile
import time

SUPERVISE = sys.argv[1]
DEADLINE = 600  # seconds; ends a hang, nothing else

# A shell's background jobs ignore SIGINT, and so would all that is started from here.
signal.signal(signal.SIGINT, signal.default_int_handler)


def supervised(folder, body, *flags):
    """Runs a shell command that finds the number of its run in $RUN; returns exit code, stderr, number of runs."""
    script = f'n=$(($(cat {folder}/runs 2>/dev/null || echo 0) + 1)); echo $n > {folder}/runs; RUN=$n; {body}'
    done = subprocess.run([SUPERVISE, "--wait", "0", *flags, "--", "bash", "-c", script], capture_output=True, text=True, timeout=DEADLINE)
    return done.returncode, done.stderr, int(open(f"{folder}/runs").read())


def check(what, body, expected_code, expected_runs, *flags, words=""):
    with tempfile.TemporaryDirectory() as folder:
        code, said, runs = supervised(folder, body, *flags)
        assert (code, runs) == (expected_code, expected_runs), f"{what}: exit code {code}, {runs} runs; {said}"
        assert words in said, f"{what}: {said}"


def waits(body, *flags):
    """The seconds between the tries, which nobody waits for here: sleep is a stand-in that writes them down."""
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/sleep", "w") as stand_in:
            stand_in.write(f'#!/bin/sh\necho "$1" >> {folder}/waits\n')
        os.chmod(f"{folder}/sleep", 0o755)
        script = f'n=$(($(cat {folder}/runs 2>/dev/null || echo 0) + 1)); echo $n > {folder}/runs; RUN=$n; {body}'
        subprocess.run([SUPERVISE, *flags, "--", "bash", "-c", script], capture_output=True, text=True, timeout=DEADLINE,
                       env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"})
        return [int(line) for line in open(f"{folder}/waits")] if os.path.exists(f"{folder}/waits") else []


def told(sent, expected, code):
    """A signal reaches the job as `expected`; the job's end, good or bad, is then the end, and its code is passed on."""
    with tempfile.TemporaryDirectory() as folder:
        job = f"echo >> {folder}/ready; "
        if expected:
            job = (f"trap 'echo USR1 >> {folder}/saved; exit {code}' USR1; trap 'echo INT >> {folder}/saved; exit {code}' INT; {job}"
                   "while :; do sleep 0.05; done")
        else:  # a job that knows of no signal dies of it
            job += "exec sleep 100000"
        process = subprocess.Popen([SUPERVISE, "--wait", "0", "--", "bash", "-c", job], start_new_session=True, stderr=subprocess.DEVNULL)
        wait_until(lambda: os.path.exists(f"{folder}/ready"))
        process.send_signal(sent)
        try:
            assert process.wait(timeout=DEADLINE) == code, (sent, process.returncode)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert expected is None or open(f"{folder}/saved").read() == expected + "\n", sent
        assert open(f"{folder}/ready").read() == "\n", "it was started again"


def told_between_tries():
    """Asked to end while it waits for the next try: there is none."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen([SUPERVISE, "--wait", "100000", "--", "bash", "-c", f"echo >> {folder}/runs; exit 3"],
                                   start_new_session=True, stderr=open(f"{folder}/said", "w"))
        wait_until(lambda: "again in 100000 s" in open(f"{folder}/said").read())
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(timeout=DEADLINE) == 3
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert open(f"{folder}/runs").read() == "\n"


def wait_until(fact):
    end = time.time() + DEADLINE
    while not fact():
        assert time.time() < end
        time.sleep(0.01)


def refused(words, *arguments):
    done = subprocess.run([SUPERVISE, *arguments], capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert done.returncode == 2 and words in done.stderr, (arguments, done.returncode, done.stderr)


check("a good end", "exit 0", 0, 1)
check("bad input", "exit 2", 2, 1, words="another try does not mend")
check("no such program", "exec /nowhere/regatta", 127, 1)
check("two failures", "[ $RUN -gt 2 ] || exit 1", 0, 3, words="again in 0 s")
check("death by signal 9", "[ $RUN -gt 1 ] || kill -9 $$", 0, 2, words="ended with 137")
check("failures that do not end", "exit 1", 1, 4, "--tries", "4", words="failure 4 in a row")
check("a healthy run in between", "exit $((RUN < 6))", 0, 6, "--tries", "2", "--healthy", "0")
check("no program to run", "exit 126", 126, 1)
check("death by SIGTERM of the job alone", "[ $RUN -gt 1 ] || kill -TERM $$", 0, 2, words="ended with 143")
check("another code", "exit $((RUN < 3 ? 7 : 0))", 0, 3, words="ended with 7")
check("the last try", "exit $((RUN < 4))", 0, 4, "--tries", "4")
check("one try", "exit 1", 1, 1, "--tries", "1")
assert waits("exit 1") == [5, 10, 20, 40, 80, 160, 300, 300, 300]
assert waits("exit 1", "--wait", "3", "--longest-wait", "17", "--tries", "6") == [3, 6, 12, 17, 17]
assert waits("exit 1", "--wait", "8", "--longest-wait", "16", "--tries", "4") == [8, 16, 16]
assert waits("exit $((RUN < 5))", "--wait", "4", "--healthy", "0") == [4, 4, 4, 4], "a healthy run starts the waits anew"
assert waits("exit 0") == waits("exit 2") == []
for sent, expected in (signal.SIGTERM, "USR1"), (signal.SIGUSR1, "USR1"), (signal.SIGINT, "INT"):
    for code in (0, 1):
        told(sent, expected, code)
told_between_tries()
told(signal.SIGINT, None, 130)
for flag in ("--tries", "--wait", "--longest-wait", "--healthy"):
    for value in ("many", "-1", "1.5", ""):
        refused(f"{flag} needs a whole number, but got '{value}'", flag, value, "--", "true")
refused("unknown flag '--try'", "--try", "3", "--", "true")
refused("no command", "--tries", "3", "--")
refused("no command")
helped = subprocess.run([SUPERVISE, "--help"], capture_output=True, text=True, check=False, timeout=DEADLINE)
assert helped.returncode == 0 and all(flag in helped.stdout for flag in ("--tries N", "--wait S", "--longest-wait S", "--healthy S"))
print("all ends are treated as they should be")
