"""The lists of bugs, and their places in the tree."""
import dataclasses
import tomllib

FORMS = ("expression", "statement", "file")


@dataclasses.dataclass
class Bug:
    """One change of one place. `number` is what the environment variable says; `at` is where `before` begins, None where it is gone."""
    name: str
    file: str
    before: str
    after: str
    form: str
    kind: str
    why: str
    equivalent: str = ""  # why nobody can see it; empty when somebody should
    tests: str = ""       # form file: a regular expression of the tests to run, as the tool cannot see which ones reach a file
    number: int = 0
    at: int | None = None
    line: int | None = None

    @property
    def folder(self):
        """The row of the table: kernels, runtime/engine, cli/finetune ..."""
        parts = self.file.split("/")
        return "/".join(parts[:2]) if parts[0] in ("runtime", "cli") and len(parts) > 2 else parts[0]


def read(folder):
    found = []
    for path in sorted(folder.glob("*.toml")):
        for entry in tomllib.loads(path.read_text())["bug"]:
            try:
                bug = Bug(**entry)
            except TypeError as error:
                raise SystemExit(f"plant-bugs: {path.name}: {entry.get('name', 'a bug without a name')}: {error}")
            if bug.form not in FORMS:
                raise SystemExit(f"plant-bugs: {path.name}: {bug.name}: form is '{bug.form}'; it is one of {', '.join(FORMS)}")
            found.append(bug)
    names = [bug.name for bug in found]
    for bug in found:
        if names.count(bug.name) > 1:
            raise SystemExit(f"plant-bugs: two bugs are called {bug.name}")
    for number, bug in enumerate(found, 1):
        bug.number = number
    return found


def place(bugs, root):
    """Finds each bug's place. Returns (bug, reason) for those that have none, or share one."""
    missing = []
    taken = {}
    for bug in bugs:
        path = root / bug.file
        text = path.read_text() if path.is_file() else None
        count = text.count(bug.before) if text is not None else 0
        if count != 1:
            missing.append((bug, "its file is gone" if text is None else f"its place occurs {count} times, not once"))
            continue
        begin = text.index(bug.before)
        end = begin + len(bug.before)
        others = taken.setdefault(bug.file, [])
        overlapping = [name for name, b, e in others if begin < e and b < end]
        if overlapping and bug.form != "file":
            missing.append((bug, f"its place overlaps that of {overlapping[0]}"))
            continue
        others.append((bug.name, begin, end))
        bug.at = begin
        bug.line = text.count("\n", 0, begin) + 1
    return missing
