"""Runs the tests with one bug switched on at a time."""
import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

SKIPPED = "skipped"


class Unit:
    """One process to start: a test of ctest, or all cases of one GoogleTest program that are asked for."""

    def __init__(self, command, tests, properties):
        self.command = command
        self.tests = tests
        self.properties = properties

    @property
    def name(self):
        return self.tests[0] if len(self.tests) == 1 else f"{pathlib.Path(self.command[0]).name} ({len(self.tests)} cases)"

    @property
    def wide(self):
        return int(self.properties.get("PROCESSORS", 1)) > 1 or self.properties.get("RUN_SERIAL", False)


def start_and_wait(command, environment, folder, limit):
    """Exit code, the end of the output and seconds; the code is None when the time limit ended it, with everything it had started."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                   start_new_session=True)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        out.seek(max(0, out.seek(0, os.SEEK_END) - 4000))
        text = out.read().decode(errors="replace")
    return code, text, time.monotonic() - began


class Tests:
    def __init__(self, build):
        self.folder = build / "build"
        listed = subprocess.run(["ctest", "--test-dir", self.folder, "--show-only=json-v1"], check=True, capture_output=True, text=True)
        self.all = {}
        for test in json.loads(listed.stdout)["tests"]:
            if "command" in test:
                properties = {p["name"]: p["value"] for p in test.get("properties", [])}
                self.all[test["name"]] = Unit(test["command"], [test["name"]], properties)

    def environment(self, unit, **more):
        environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_rmaps_base_oversubscribe="1",
                           HWLOC_HIDE_ERRORS="2", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", LC_ALL="C.UTF-8")
        environment.update(pair.split("=", 1) for pair in unit.properties.get("ENVIRONMENT", []))
        environment.update(more)
        return environment

    def run(self, unit, limit, **more):
        """True passed, False failed, None ended by the time limit, or SKIPPED; the output's end; seconds."""
        folder = unit.properties.get("WORKING_DIRECTORY", self.folder)
        code, text, seconds = start_and_wait(unit.command, self.environment(unit, **more), folder, limit)
        if code is not None and code == unit.properties.get("SKIP_RETURN_CODE"):
            return SKIPPED, text, seconds
        for pattern in unit.properties.get("SKIP_REGULAR_EXPRESSION", []):
            if code == 0 and re.search(pattern, text):  # after a failure GoogleTest calls the rest skipped
                return SKIPPED, text, seconds
        passed = None if code is None else code == 0
        for pattern in unit.properties.get("PASS_REGULAR_EXPRESSION", []):
            passed = passed and re.search(pattern, text) is not None
        return passed, text, seconds

    def together(self, names):
        """Units for tests by name: the cases of one GoogleTest program run in one process."""
        programs = {}
        units = []
        for name in names:
            unit = self.all[name]
            if len(unit.command) > 1 and unit.command[1].startswith("--gtest_filter="):
                programs.setdefault((unit.command[0], tuple(unit.command[2:])), []).append(unit)
            else:
                units.append(unit)
        for (program, rest), members in programs.items():
            cases = ":".join(m.command[1].split("=", 1)[1] for m in members)
            units.append(Unit([program, f"--gtest_filter={cases}", "--gtest_fail_fast", *rest], [m.tests[0] for m in members],
                              members[0].properties))
        return units


def newest_part(unit, build):
    """When the newest file that a test is made of was changed: its program or script, what lies beside that, the programs it may start."""
    program = pathlib.Path(unit.command[0])
    if any(word.startswith("--gtest_filter=") for word in unit.command):
        parts = [program, build / "build/bin/rank_program"]
    else:
        parts = [build / "build/bin" / name for name in ("regatta", "regatta-torch")] + [build / "build/runtime/c/libregatta.so"]
        for path in map(pathlib.Path, unit.command):
            if path.is_file() and build in path.parents:
                parts += [path] if build / "build" in path.parents else [other for other in path.parent.iterdir() if other.is_file()]
    return max(path.stat().st_mtime for path in parts if path.exists())


def baseline(build, tests, jobs):
    """Per test: seconds, and the numbers of the bugs whose places it reaches. Tests that fail without any bug are left out. What was
    found of a test holds until one of its files changes."""
    kept = build / "baseline.json"
    before = json.loads(kept.read_text())["tests"] if kept.exists() else {}
    at = kept.stat().st_mtime if kept.exists() else 0
    found, failing = {}, []
    for name, unit in tests.all.items():
        if name in before and newest_part(unit, build) < before[name].get("at", at):
            found[name] = before[name]

    def one(name):
        with tempfile.NamedTemporaryFile() as reached:
            reached.write(bytes(4096))
            reached.flush()
            passed, text, seconds = tests.run(tests.all[name], 900, REGATTA_PLANTED_REACHED=reached.name)
            reached.seek(0)
            numbers = [number for number, byte in enumerate(reached.read()) if byte]
        return name, passed, text, seconds, numbers

    narrow = [n for n, unit in tests.all.items() if n not in found and not unit.wide]
    wide = [n for n, unit in tests.all.items() if n not in found and unit.wide]
    done = len(found)
    for names, workers in ((narrow, jobs), (wide, 1)):
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            for name, passed, text, seconds, numbers in pool.map(one, names):
                done += 1
                progress(f"without a bug: {done} of {len(tests.all)} tests")
                if passed is True:
                    found[name] = {"seconds": seconds, "reaches": numbers, "at": time.time()}
                elif passed is not SKIPPED:
                    failing.append(name)
                    print(f"\nplant-bugs: {name} fails without a bug and is left out:\n{text[-600:]}", file=sys.stderr)
    kept.write_text(json.dumps({"tests": found, "failing": failing}))
    return found, failing


def progress(text):
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def judge(bug, tests, known, jobs, build):
    """What came of one bug: verdict, the test that saw it, seconds."""
    if bug.form == "file":
        names = [n for n in known if re.search(bug.tests, n)] if bug.tests else []
    else:
        names = [n for n, facts in known.items() if bug.number in facts["reaches"]]
    if not names:
        return {"verdict": "not seen", "by": "", "note": "no test reaches the place", "tests": 0}
    units = tests.together(names)
    began = time.monotonic()
    verdict = {"verdict": "not seen", "by": "", "note": "", "tests": len(names)}
    with changed(build / bug.file, bug) if bug.form == "file" else contextlib.nullcontext():
        failures = failing_units(units, tests, known, jobs, REGATTA_PLANTED_BUG=str(bug.number))
    for unit, passed, text in failures:
        if tests.run(unit, limit_of(unit, known))[0] is not True:  # it fails for another reason
            verdict["note"] = f"{unit.name} also fails without the bug"
            continue
        failed = re.search(r"\[  FAILED  \] ([\w/]+[.][\w./]+)", text)
        verdict.update(verdict="seen", by=failed[1] if failed else unit.name, note="by its time limit" if passed is None else "")
        break
    verdict["seconds"] = round(time.monotonic() - began, 1)
    return verdict


def limit_of(unit, known):
    return min(30 + 10 * sum(known[name]["seconds"] for name in unit.tests), 300)


@contextlib.contextmanager
def changed(path, bug):
    """The file with the bug in it, and as it was afterwards, its time too."""
    original, times = path.read_bytes(), path.stat()
    path.write_bytes(original.decode().replace(bug.before, bug.after).encode())
    try:
        yield
    finally:
        path.write_bytes(original)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def failing_units(units, tests, known, jobs, **environment):
    """Runs the cheapest first, those that start several processes last and alone; starts no more once one has failed."""
    failures = []

    def one(unit):
        if not failures:
            passed, text, _ = tests.run(unit, limit_of(unit, known), **environment)
            if passed is not True and passed is not SKIPPED:
                failures.append((unit, passed, text))

    units.sort(key=lambda unit: limit_of(unit, known))
    for members, workers in (([u for u in units if not u.wide], jobs), ([u for u in units if u.wide], 1)):
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            list(pool.map(one, members))
    return failures


def run(build, chosen, results, results_file, jobs, longest):
    tests = Tests(build)
    known, _ = baseline(build, tests, jobs)
    known = {name: facts for name, facts in known.items() if facts["seconds"] <= longest}
    chosen = [bug for bug in chosen if not bug.equivalent]
    for done, bug in enumerate(chosen, 1):
        results[bug.name] = judge(bug, tests, known, jobs, build)
        results_file.write_text(json.dumps(results, indent=1))
        progress("")
        facts = results[bug.name]
        print(f"[{done}/{len(chosen)}] {bug.name}: {facts['verdict']}" + (f" by {facts['by']}" if facts["by"] else "") +
              (f" ({facts['note']})" if facts["note"] else ""), file=sys.stderr)
