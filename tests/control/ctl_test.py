"""A real job steered by the real program: ctl_test.py REGATTA CASE [MPIRUN]."""

import hashlib, json, os, pathlib, signal, socket, ssl, subprocess, sys, tempfile, time

REGATTA, CASE = sys.argv[1:3]
MPIRUN = sys.argv[3] if len(sys.argv) > 3 else None
WORK = pathlib.Path(tempfile.mkdtemp(prefix="regatta-ctl-"))
os.environ["OMP_NUM_THREADS"] = "1"
(WORK / "text.txt").write_text(" ".join(f"{i} steamed {i * 7919 % 1009} miles;" for i in range(400)))
JOB = ["finetune", "--init", "random", "--hidden", "32", "--layers", "2", "--heads", "2", "--data", WORK / "text.txt",
       "--seq", "32", "--micro-batch", "1", "--accumulation", "tree", "--clip", "1", "--lr", "0.01", "--schedule",
       "constant"]
STEPS = "1000000"


def start(name, ranks, *flags, processes=False):
    out = WORK / name
    command = [REGATTA, *JOB, "--mesh", f"dp={ranks}", "--out", out, *flags]
    if processes:
        command = [MPIRUN, "-n", str(ranks), *command, "--transport", "mpi"]
    job = subprocess.Popen([str(word) for word in command], stderr=open(WORK / f"{name}.err", "w"),
                           stdout=subprocess.DEVNULL)
    return job, out


def served(name, ranks, *flags, processes=False):
    job, out = start(name, ranks, "--steps", STEPS, "--control-address", "127.0.0.1:0", *flags, processes=processes)
    return job, out, address_of(job, out, name)


def address_of(job, out, name):
    file = out / "control.address"
    for _ in range(3000):
        if file.exists() and file.read_text().endswith("\n"):
            return file.read_text().strip()
        assert job.poll() is None, (WORK / f"{name}.err").read_text()
        time.sleep(0.1)
    raise AssertionError("no control.address within five minutes")


def ctl(address, *words, code=0, flags=()):
    done = subprocess.run([REGATTA, "ctl", address, *map(str, flags), *words, "--json"], capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == code, (words, done.returncode, done.stderr)
    if code:
        assert done.stderr.startswith("regatta ctl: ") and done.stderr.count("\n") == 1, done.stderr
        return done.stderr
    return json.loads(done.stdout)


def step_of(address, flags=()):
    last = ctl(address, "status", flags=flags)["last_step"]
    return last["step"] if last else 0


def wait_for_step(address, step, flags=()):
    for _ in range(600):
        if step_of(address, flags) >= step:
            return
        time.sleep(0.1)
    raise AssertionError(f"step {step} was not reached")


def end(job):
    job.wait(timeout=300)
    return job.returncode


def weights(out):
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def steer(ranks, processes):
    """lr, a pause and another lr while paused; the log has them at the announced steps, and the weights are those of a run with
    the changes written in."""
    job, out, address = served("steered", ranks, processes=processes)
    wait_for_step(address, 3)
    first = ctl(address, "set", "lr=0.002")
    assert first["changes"] and all(c["to"] == 0.002 and c["from"] == 0.01 for c in first["changes"]), first
    paused = ctl(address, "pause")["applies_at_step"]
    assert ctl(address, "status")["state"] == "paused"
    at = step_of(address)
    assert at == paused - 1, (at, paused)
    time.sleep(0.5)
    assert step_of(address) == at
    second = ctl(address, "set", "lr=0.004")["applies_at_step"]
    assert second == paused
    assert "paused already" in ctl(address, "pause", code=1)
    assert ctl(address, "resume")["applies_at_step"] == paused
    wait_for_step(address, paused + 3)
    assert "not paused" in ctl(address, "resume", code=1)
    dry = ctl(address, "set", "rho=0.1", "--dry-run")
    assert dry["dry_run"] and [c["name"] for c in dry["changes"]] == ["rho"], dry
    assert "has no setting rho" in ctl(address, "set", "rho=0.1", "--group", "adamw", code=2)
    assert "no group" in ctl(address, "set", "lr=1", "--group", "nobody", code=2)
    assert "cannot be changed" in ctl(address, "set", "passes=2", code=2)
    assert "keeps no checkpoints" in ctl(address, "checkpoint", code=1)
    assert len(ctl(address, "plan")["wire_bytes"]) == ranks
    last = ctl(address, "drain")["applies_at_step"]
    assert end(job) == 0, (WORK / "steered.err").read_text()

    one, two = first["applies_at_step"], second
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(1, last)), (len(log), last)
    for line in log:
        assert line["lr"] == (0.01 if line["step"] < one else 0.002 if line["step"] < two else 0.004), line["step"]
    audit = [json.loads(line) for line in (out / "audit.jsonl").read_text().splitlines()]
    assert [(a["command"], a["accepted"], a.get("step")) for a in audit if a["accepted"] and not a.get("dry_run")] == [
        ("set", True, one), ("pause", True, paused), ("set", True, two), ("resume", True, paused), ("drain", True, last)]
    assert audit[0]["changes"][0]["from"] == 0.01 and audit[0]["changes"][0]["to"] == 0.002 and "user=" in audit[0]["who"]
    assert not (out / "control.address").exists()

    job, written = start("written", ranks, "--steps", str(last - 1), "--lr-at", f"{one}=0.002", "--lr-at", f"{two}=0.004")
    assert end(job) == 0, (WORK / "written.err").read_text()
    assert weights(out) == weights(written)
    job, other = start("other", ranks, "--steps", str(last - 1), "--lr-at", f"{one + 1}=0.002", "--lr-at", f"{two}=0.004")
    assert end(job) == 0
    assert weights(out) != weights(other), "the step of a change makes no difference"


def kill(ranks):
    """Rank 0 dies while commands are on their way: the others end with a message, and nothing is written."""
    job, out, address = served("killed", ranks, processes=True)
    wait_for_step(address, 3)
    children = pathlib.Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    zero = next(int(pid) for pid in children
                if b"OMPI_COMM_WORLD_RANK=0\0" in pathlib.Path(f"/proc/{pid}/environ").read_bytes())
    commands = [subprocess.Popen([REGATTA, "ctl", address, "set", f"lr=0.00{i}"], stdout=subprocess.DEVNULL,
                                 stderr=subprocess.PIPE, text=True) for i in range(1, 6)]
    commands[0].wait(timeout=300)
    os.kill(zero, signal.SIGKILL)
    assert end(job) != 0
    for command in commands:
        command.communicate(timeout=300)
        assert command.returncode in (0, 1), command.returncode
    said = (WORK / "killed.err").read_text()
    assert "rank 0" in said, said
    assert not (out / "model.safetensors").exists()


def answers_without_certificate(address):
    """Whether the job says anything over TLS to a client that shows no certificate."""
    context = ssl.create_default_context(cafile=WORK / "ca.pem")
    context.set_alpn_protocols(["h2"])
    host, port = address.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), timeout=120) as plain, context.wrap_socket(plain, server_hostname="job") as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            return connection.recv(64) != b""
    except (ssl.SSLError, ConnectionError):
        return False


def guard():
    """Who may talk to a job, and that strangers do not disturb it."""
    token, wrong = WORK / "token", WORK / "wrong"
    token.write_text("a-token-of-some-length\n")
    wrong.write_text("another-token-of-some-length\n")
    job, out = start("refused", 1, "--steps", "1", "--control-address", "0.0.0.0:0")
    assert end(job) == 2
    assert "can be reached from other machines" in (WORK / "refused.err").read_text()

    def openssl(*words):
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, cwd=WORK)
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2",
            "-subj", "/CN=authority")
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "other.key", "-out", "other.pem", "-days", "2",
            "-subj", "/CN=another authority")
    for name, authority in (("job", "ca"), ("person", "ca"), ("stranger", "other")):
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (WORK / "names").write_text(f"subjectAltName=DNS:{name}\n")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-CAcreateserial", "-out",
                f"{name}.pem", "-days", "2", "-extfile", "names")
    job, out = start("guarded", 2, "--steps", STEPS, "--control-address", "0.0.0.0:0", "--control-token-file", token,
                     "--control-tls-cert", WORK / "job.pem", "--control-tls-key", WORK / "job.key", "--control-tls-ca",
                     WORK / "ca.pem")
    address = "127.0.0.1:" + address_of(job, out, "guarded").rsplit(":", 1)[1]
    tls = ["--tls-ca", WORK / "ca.pem", "--tls-cert", WORK / "person.pem", "--tls-key", WORK / "person.key", "--tls-name", "job"]
    known = tls + ["--token-file", token]
    wait_for_step(address, 2, known)
    assert "no job answers" in ctl(address, "status", code=1, flags=["--timeout", 100])  # no TLS
    stranger = ["--tls-ca", WORK / "ca.pem", "--tls-cert", WORK / "stranger.pem", "--tls-key", WORK / "stranger.key", "--tls-name", "job",
                "--token-file", token]
    assert "no job answers" in ctl(address, "drain", code=1, flags=stranger + ["--timeout", 100])
    assert not answers_without_certificate(address), "a client without a certificate was let in"
    # A job that another authority vouches for is not talked to.
    other_job = [WORK / "other.pem" if word == WORK / "ca.pem" else word for word in known]
    assert "no job answers" in ctl(address, "drain", code=1, flags=other_job + ["--timeout", 100])
    assert "none was sent" in ctl(address, "drain", code=1, flags=tls)
    assert "not this job's" in ctl(address, "drain", code=1, flags=tls + ["--token-file", wrong])

    idle = [socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1]))) for _ in range(250)]
    at = step_of(address, known)
    wait_for_step(address, at + 5, known)
    ctl(address, "set", "lr=0.001", flags=known)
    ctl(address, "drain", flags=known)
    assert end(job) == 0, (WORK / "guarded.err").read_text()
    for connection in idle:
        connection.close()
    audit = [json.loads(line) for line in (out / "audit.jsonl").read_text().splitlines()]
    assert [(a["command"], "CN=person" in a["who"]) for a in audit] == [("set", True), ("drain", True)], audit


if CASE == "threads":
    steer(4, False)
elif CASE == "processes":
    steer(4, True)
elif CASE == "kill":
    kill(3)
elif CASE == "guard":
    guard()
print(CASE, "is as it should be")
