"""The table of docs/testing.md."""
import collections


def show(planted, missing, results):
    """Prints the results as Markdown. Returns the exit code: 0 when every bug has its place and is seen or equivalent."""
    gone = {bug.name for bug, _ in missing}
    rows = collections.defaultdict(collections.Counter)
    unseen, equivalent, unknown = [], [], []
    for bug in planted:
        if bug.name in gone:
            verdict = "gone"
        elif bug.equivalent:
            verdict = "equivalent"
            equivalent.append(bug)
        else:
            verdict = results.get(bug.name, {}).get("verdict", "not run")
            if verdict == "not seen":
                unseen.append(bug)
            elif verdict == "not run":
                unknown.append(bug)
        rows[bug.folder][verdict] += 1
    print("| folder | planted | equivalent | seen | not seen | share seen |\n|---|---|---|---|---|---|")
    total = collections.Counter()
    for folder, counts in sorted(rows.items()):
        total.update(counts)
        print(row(folder, counts))
    print(row("**all**", total))
    for title, bugs, text in (("Not seen", unseen, lambda b: f"{b.why} {results[b.name]['note']}".strip()),
                              ("Equivalent", equivalent, lambda b: b.equivalent),
                              ("Not run", unknown, lambda b: b.why)):
        if bugs:
            print(f"\n{title}:\n")
            for bug in bugs:
                print(f"- `{bug.name}` ({bug.file}): {text(bug)}")
    if gone:
        print(f"\n{len(gone)} bugs whose place is gone: {', '.join(sorted(gone))}")
    return 0 if not unseen and not unknown and not gone else 1


def row(folder, counts):
    judged = counts["seen"] + counts["not seen"]
    share = f"{100 * counts['seen'] / judged:.0f} %" if judged else "-"
    return f"| {folder} | {sum(counts.values())} | {counts['equivalent']} | {counts['seen']} | {counts['not seen']} | {share} |"
