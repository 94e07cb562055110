"""Prints the results in a file of JUnit's format as a table: each test, its result and its time.

usage: table.py FILE. The exit status is 1 if a test failed, or if there is none.
"""

import sys
import xml.etree.ElementTree as tree

# Longest reason of a failure that is shown, in characters.
REASON = 160


def result(case):
    """Returns the result of a test, and the first line of the reason."""
    for kind in ("failure", "error", "skipped"):
        found = case.find(kind)
        if found is not None:
            text = found.get("message") or found.text or ""
            word = "skip" if kind == "skipped" else "FAIL"
            return word, " ".join(text.split())[:REASON]
    return "pass", ""


def main(path):
    """Prints the table. Returns the exit status."""
    cases = list(tree.parse(path).getroot().iter("testcase"))
    rows = []
    for case in cases:
        name = f"{case.get('classname', '')} {case.get('name', '')}"
        rows.append((name, *result(case), float(case.get("time") or 0)))
    width = max((len(name) for name, *_ in rows), default=0)
    for name, word, reason, seconds in sorted(rows):
        print(f"  {name:<{width}}  {word}  {seconds:7.1f} s  {reason}".rstrip())
    counts = {word: sum(row[1] == word for row in rows) for word in ("pass", "FAIL", "skip")}
    total = sum(seconds for *_, seconds in rows)
    print(f"  {counts['pass']} passed, {counts['FAIL']} failed, {counts['skip']} skipped; {total:.0f} s")
    return 0 if rows and not counts["FAIL"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
