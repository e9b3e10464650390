#!/usr/bin/env python3
"""What a filelock costs: putting one on and taking it off, beside cp(1) of the same file; and what it
costs those whose files are not locked, beside a latchfs without filelocks (--before) in the same run.

Every round runs every row on every target, in an order that rotates. Medians, least and most.
Nothing here passes or fails by time.
"""
import argparse
import contextlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from bench import TOP, about, drop_caches, run

LOCKED = 100_000
BATCH = 5_000


class Mount:
    def __init__(self, name, latchfs, base, stack):
        self.name = name
        self.source = base / name / "source"
        self.path = base / name / "mount"
        self.source.mkdir(parents=True)
        self.path.mkdir()
        # Where 100,000 files are locked within minutes: no disk to wait for.
        self.many = self.source / "many"
        self.many.mkdir()
        run(["mount", "-t", "tmpfs", "-o", "size=4g,nr_inodes=1m", "tmpfs", str(self.many)])
        stack.callback(run, ["umount", str(self.many)])
        table = f"bench-{os.getpid()}-" + name.replace(" ", "-").replace(",", "")
        run([str(latchfs), "-o", f"table={table},transport=dev", str(self.source), str(self.path)])
        stack.callback(pathlib.Path(f"/run/latchfs/{table}.table").unlink, missing_ok=True)
        stack.callback(self.unmount)

    def unmount(self):
        for _ in range(50):
            if subprocess.run(["umount", str(self.path)], stderr=subprocess.DEVNULL, check=False).returncode == 0:
                return
            time.sleep(0.1)

    def ask(self, file, request):
        """ms"""
        fd = os.open(self.path / ".locks" / file, os.O_WRONLY)
        try:
            text = json.dumps(request).encode()
            began = time.monotonic()
            os.write(fd, text)
            return (time.monotonic() - began) * 1000
        finally:
            os.close(fd)

    def lock(self, name):
        return self.ask("filelock", {"paths": [{"path": f"/{name}"}]})

    def unlock(self, name, revert=False):
        return self.ask("unfilelock", {"paths": [{"path": f"/{name}", "revert": revert}]})

    def lock_many(self):
        for n in range(LOCKED):
            (self.many / f"f{n}").touch()
        took = 0
        for first in range(0, LOCKED, BATCH):
            took += self.ask("filelock", {"paths": [{"path": f"/many/f{n}"} for n in range(first, first + BATCH)]})
        return took / LOCKED


def cp(mount, name):
    began = time.monotonic()
    run(["cp", "--sparse=auto", "--reflink=never", str(mount.source / name), str(mount.source / "copy")])
    run(["sync", str(mount.source / "copy")])
    took = (time.monotonic() - began) * 1000
    (mount.source / "copy").unlink()
    return took


def measure_locking(mount, rounds):
    """{row: [ms, ...]}"""
    out = {}
    def note(row, value):
        out.setdefault(row, []).append(value)
    (mount.source / "small").write_text("small")
    with open(mount.source / "sparse", "wb") as sparse:
        sparse.write(b"begin")
        sparse.truncate(10 << 30)
    with open(mount.source / "dense", "wb") as dense:
        block = os.urandom(1 << 20)
        for _ in range(1024):
            dense.write(block)
        os.fsync(dense.fileno())
    for _ in range(rounds):
        for name, words in (("small", "a file of 5 bytes"), ("sparse", "10 GiB, sparse"), ("dense", "1 GiB, dense")):
            note(f"cp and sync: {words}", cp(mount, name))
            drop_caches()
            note(f"filelock: {words}", mount.lock(name))
            note(f"unfilelock: {words}", mount.unlock(name))
            mount.lock(name)
            note(f"unfilelock with revert: {words}", mount.unlock(name, revert=True))
    for name in ("sparse", "dense"):
        (mount.source / name).unlink()
    return out


IO = (("random write 4 KiB, 1 job", ("write", 20_000, 4096, 1)), ("random write 4 KiB, 4 jobs", ("write", 20_000, 4096, 4)),
      ("random write 1 MiB, 1 job", ("write", 256, 1 << 20, 1)), ("open + read + close", ("open", 5_000)),
      ("create + unlink", ("create", 2_000)), ("random read 4 KiB, hot", ("randread", 50_000)))


def measure_others(iobench, mounts, rounds):
    """{row: {target: [ns, ...]}}"""
    out = {row: {m.name: [] for m in mounts} for row, _ in IO}
    for number in range(rounds):
        for row, (what, *numbers) in IO:
            turn = number % len(mounts)
            for mount in mounts[turn:] + mounts[:turn]:
                said = run([iobench, what, str(mount.path), *map(str, numbers)])
                out[row][mount.name].append(float(said))
    return out


def spread(values):
    return f"{statistics.median(values):,.1f} ({min(values):,.1f} to {max(values):,.1f})"


def markdown(report):
    lines = [f"# Benchmark of filelocks, {report['date'][:10]}, commit {report['commit'][:12]}", "",
             f"{report['machine']['cpu']}, {report['machine']['cores']} cores, kernel {report['machine']['kernel']}, "
             f"{report['machine']['backing']}; {report['rounds']} rounds: median (least to most).", "",
             "| work | ms |", "| --- | ---: |"]
    lines += [f"| {row} | {spread(values)} |" for row, values in report["locking"].items()]
    if report["many_ms"]:
        lines.append(f"| filelock: one of {LOCKED:,} empty files in requests of {BATCH:,}, tmpfs | {report['many_ms']:.2f} |")
    names = list(next(iter(report["others"].values())))
    lines += ["", "Those whose files are not locked; ns, and in brackets how many times as long as without "
              "filelocks in the same round, median.", "",
              "| work | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for row, values in report["others"].items():
        cells = []
        for name in names:
            ratios = [v / b for v, b in zip(values[name], values[names[0]])]
            cells.append(f"{statistics.median(values[name]):,.0f} ({statistics.median(ratios):.2f})")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench --filelocks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--before", metavar="LATCHFS", help="the binary of a latchfs without filelocks")
    parser.add_argument("--dir", default=tempfile.gettempdir(), help="where the backing directories go")
    parser.add_argument("--save", action="store_true", help="write docs/bench/DATE-COMMIT-filelocks.{json,md}")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    ours = args.build / "src/daemon/latchfs"
    base = pathlib.Path(tempfile.mkdtemp(prefix="latchfs-bench.", dir=args.dir))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, base, ignore_errors=True)
        mounts = [Mount("before", args.before, base, stack)] if args.before else []
        none = Mount("none locked", ours, base, stack)
        many = Mount(f"{LOCKED:,} locked", ours, base, stack)
        report = {**about(args.build, base), "rounds": args.rounds}
        print("locking 100,000 files", file=sys.stderr)
        report["many_ms"] = many.lock_many()
        report["others"] = measure_others(str(args.build / "tests/bench/iobench"), [*mounts, none, many], args.rounds)
        report["locking"] = measure_locking(none, args.rounds)
    print(markdown(report))
    if args.save:
        stem = TOP / "docs/bench" / f"{report['date'][:10]}-{report['commit'][:12]}-filelocks"
        stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        stem.with_suffix(".md").write_text(markdown(report))
        print(f"saved as {stem.relative_to(TOP)}.*")


if __name__ == "__main__":
    main()
