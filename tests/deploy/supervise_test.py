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


def supervised(folder, body, *flags):
    """Runs a shell command that finds the number of its run in $RUN; returns exit code, stderr, number of runs."""
    script = f'n=$(($(cat {folder}/runs 2>/dev/null || echo 0) + 1)); echo $n > {folder}/runs; RUN=$n; {body}'
    done = subprocess.run([SUPERVISE, "--wait", "0", *flags, "--", "bash", "-c", script], capture_output=True, text=True, timeout=600)
    return done.returncode, done.stderr, int(open(f"{folder}/runs").read())


def check(what, body, expected_code, expected_runs, *flags, words=""):
    with tempfile.TemporaryDirectory() as folder:
        code, said, runs = supervised(folder, body, *flags)
        assert (code, runs) == (expected_code, expected_runs), f"{what}: exit code {code}, {runs} runs; {said}"
        assert words in said, f"{what}: {said}"


def asked_to_end():
    """SIGTERM reaches the job as SIGUSR1, and the job's good end is the end."""
    with tempfile.TemporaryDirectory() as folder:
        job = f"trap 'echo saved > {folder}/saved; exit 0' USR1; echo > {folder}/ready; while :; do sleep 0.05; done"
        process = subprocess.Popen([SUPERVISE, "--wait", "0", "--", "bash", "-c", job], start_new_session=True)
        while not os.path.exists(f"{folder}/ready"):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(timeout=300) == 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert os.path.exists(f"{folder}/saved")


check("a good end", "exit 0", 0, 1)
check("bad input", "exit 2", 2, 1, words="another try does not mend")
check("no such program", "exec /nowhere/regatta", 127, 1)
check("two failures", "[ $RUN -gt 2 ] || exit 1", 0, 3, words="again in 0 s")
check("death by signal 9", "[ $RUN -gt 1 ] || kill -9 $$", 0, 2, words="ended with 137")
check("failures that do not end", "exit 1", 1, 4, "--tries", "4", words="failure 4 in a row")
check("a healthy run in between", "exit $((RUN < 6))", 0, 6, "--tries", "2", "--healthy", "0")
asked_to_end()
refused = subprocess.run([SUPERVISE, "--tries", "many", "--", "true"], capture_output=True, text=True, check=False)
assert refused.returncode == 2 and "'many'" in refused.stderr, refused.stderr
print("all ends are treated as they should be")
