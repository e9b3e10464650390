#!/usr/bin/env python3
"""Counts the test cases of one `meson test` run: prints "PASSED FAILED SKIPPED".

usage: count_cases.py BUILD_DIR

GoogleTest programs count by the case (meson merges their XML), anything else as one. A program
that failed or died without a failed case in its XML counts as one failure.
"""
import json
import pathlib
import sys
import xml.etree.ElementTree as ET

BAD = {"FAIL", "ERROR", "TIMEOUT", "INTERRUPT", "UNEXPECTEDPASS"}


def case_state(case):
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    skipped = case.find("skipped") is not None or case.get("status") in ("notrun", "skipped")
    return "skipped" if skipped else "passed"


def main(build):
    logs = pathlib.Path(build) / "meson-logs"
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failed_suites = set()
    for suite in ET.parse(logs / "testlog.junit.xml").getroot().iter("testsuite"):
        for case in suite.iter("testcase"):
            state = case_state(case)
            counts[state] += 1
            if state == "failed":
                # "project.program.Suite" for GoogleTest, "project" for plain programs.
                failed_suites.add(suite.get("name"))
                failed_suites.add(f"{suite.get('name')}.{case.get('name')}")
                print(f"failed: {suite.get('name')}.{case.get('name')}", file=sys.stderr)
    for line in (logs / "testlog.json").read_text().splitlines():
        test = json.loads(line)
        # meson's name: "project:suite / name" or "name".
        name = test["name"].split(" / ")[-1]
        told = any(f" / {name}." in f"{suite}." or f".{name}." in f"{suite}."
                   for suite in failed_suites)
        if test["result"] in BAD and not told:
            counts["failed"] += 1
            print(f"failed: {name} ({test['result']})", file=sys.stderr)
    print(counts["passed"], counts["failed"], counts["skipped"])


if __name__ == "__main__":
    main(sys.argv[1])
