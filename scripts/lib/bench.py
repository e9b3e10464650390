#!/usr/bin/env python3
"""Rows of work on the native file system, through latchfs (by /dev/fuse; "uring": by io_uring, which
is switched on for the run where the kernel has it; "strict": by /dev/fuse with cache=strict), bindfs,
mergerfs and, when its path is given, libfuse's example passthrough_hp.

Every round runs every row on every target, in an order that rotates, so that drift of the machine
meets all alike. A ratio is the target's speed as a share of native speed in the same round (1.00 =
native, .10 = ten times slower); the table shows the median over the rounds and its spread.
The peers leave locks to the kernel; theirs know nothing of other mounts or machines. passthrough_hp
runs so that it sees each write when it is made: without writeback and passthrough.

Nothing here passes or fails by time.
"""
import argparse
import contextlib
import datetime
import json
import os
import pathlib
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from bench_plot import svg

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
LOCKS_LISTED = 100_000
FIND_DIRS, FIND_FILES = 500, 100  # 50,000 files
SOURCES = 40  # C files of the compile row
LATCHFS = {"latchfs": "transport=dev", "uring": "transport=uring", "strict": "transport=dev,cache=strict"}
NAMES = ("table", *LATCHFS, "bindfs", "mergerfs", "passthrough_hp")
URING = pathlib.Path("/sys/module/fuse/parameters/enable_uring")


class Target:
    """A way to the same kind of directory: `source` is native, `path` is where the work happens."""

    def __init__(self, name, base, mount=None):
        self.name = name
        self.source = base / name / "source"
        self.path = base / name / "mount" if mount else self.source
        self.mount = mount
        self.source.mkdir(parents=True)
        self.path.mkdir(exist_ok=True)

    @contextlib.contextmanager
    def mounted(self):
        if not self.mount:
            yield
            return
        run([*self.mount, str(self.source), str(self.path)])
        try:
            yield
        finally:
            for _ in range(20):  # a last close may still be on its way
                if subprocess.run(["umount", str(self.path)], stderr=subprocess.DEVNULL,
                                  check=False).returncode == 0:
                    break
                time.sleep(0.1)


@contextlib.contextmanager
def uring_switched_on():
    """FUSE over io_uring, as long as it lasts; yields whether it is there."""
    before = URING.read_text(encoding="ascii").strip() if URING.exists() else ""
    if before == "N":
        URING.write_text("Y", encoding="ascii")
    try:
        yield before != ""
    finally:
        if before == "N":
            URING.write_text("N", encoding="ascii")


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"bench: {' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


class Rows:
    def __init__(self, build):
        self.lockbench = str(build / "tests/bench/lockbench")
        self.iobench = str(build / "tests/bench/iobench")
        self.tablebench = str(build / "tests/bench/tablebench")

    def lock(self, what, *numbers, table=None, only=None):
        """table: what tablebench is asked on the target of that name; only: targets it is for, else all others"""
        def how(target):
            if target.name == "table":
                return float(run([self.tablebench, *map(str, table)])) if table else None
            if not what or (only and target.name not in only):
                return None
            return float(run([self.lockbench, what, str(target.path), *map(str, numbers)]))
        return how

    def io(self, what, *numbers):
        return lambda target: float(run([self.iobench, what, str(target.path), *map(str, numbers)]))

    def list_grants(self, target):
        if target.name not in ("native", *LATCHFS):
            return None  # their locks are the kernel's: /proc/locks, as native
        place = "/proc/locks" if target.name == "native" else target.path / ".locks/list"
        holder = subprocess.Popen([self.lockbench, "hold", str(target.path), str(LOCKS_LISTED)],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            if holder.stdout.readline() != "held\n":
                sys.exit(f"bench: could not hold {LOCKS_LISTED} locks on {target.name}")
            return float(run([self.iobench, "list", str(place), "1"]))
        finally:
            holder.stdin.close()
            holder.wait()

    @staticmethod
    def find(target, cold=False):
        if target.name == "passthrough_hp":
            return None  # keeps a descriptor for each file it has met: EMFILE
        # -size makes it stat every file.
        command = ["find", str(target.path / "tree"), "-type", "f", "-size", "+0"]
        if cold:
            drop_caches()
        else:
            run(command)
        took, said = timed(command)
        if said.count("\n") != FIND_DIRS * FIND_FILES:
            sys.exit(f"bench: find saw not all files on {target.name}")
        return took

    @staticmethod
    def tar(target):
        place = target.path / "untar"
        place.mkdir()
        took, _ = timed(["tar", "-xf", str(target.source / "tree.tar"), "-C", str(place)])
        shutil.rmtree(place)
        return took

    @staticmethod
    def git(target):
        command = ["git", "-c", "safe.directory=*", "-C", str(target.path / "repository"), "status", "--short"]
        run(command)
        return timed(command)[0]

    @staticmethod
    def compile(target):
        return timed(["make", "-s", "-B", "-j2", "-C", str(target.path / "program")])[0]

    def all(self):
        """name, unit, more is better, how to measure"""
        return [
            ("lock + unlock pair", "ns", False, self.lock("pair", 20_000)),
            ("pair beside 10,000 ranges", "ns", False, self.lock("crowd", 1_000, 10_000)),
            ("contended handoff", "ns", False, self.lock("handoff", 3_000)),
            ("list of 100,000 grants", "ms", False, self.list_grants),
            ("sequential read 1 MiB, hot", "MiB/s", True, self.io("seqread", 256)),
            ("sequential read 1 MiB, cold", "MiB/s", True, self.io("coldread", 128)),
            ("random read 4 KiB, hot", "ns", False, self.io("randread", 50_000)),
            ("random write 4 KiB, 1 job", "ns", False, self.io("write", 10_000, 4096, 1)),
            ("random write 4 KiB, 4 jobs", "ns", False, self.io("write", 20_000, 4096, 4)),
            ("random write 128 KiB, 1 job", "ns", False, self.io("write", 2_000, 131072, 1)),
            ("random write 128 KiB, 4 jobs", "ns", False, self.io("write", 2_000, 131072, 4)),
            ("random write 1 MiB, 1 job", "ns", False, self.io("write", 256, 1 << 20, 1)),
            ("random write 1 MiB, 4 jobs", "ns", False, self.io("write", 256, 1 << 20, 4)),
            ("sequential write 1 MiB, new file", "MiB/s", True, self.io("seqwrite", 256)),
            ("open + read + close", "ns", False, self.io("open", 5_000)),
            ("create + unlink", "ns", False, self.io("create", 2_000)),
            ("stat", "ns", False, self.io("stat", 20_000)),
            ("find over 50,000 files, cold", "ms", False, lambda target: self.find(target, cold=True)),
            ("find over 50,000 files, warm", "ms", False, self.find),
            ("tar x of 2,000 files", "ms", False, self.tar),
            ("git status of 2,000 files, warm", "ms", False, self.git),
            ("compile 40 C files, make -j2", "ms", False, self.compile),
        ]


    def locks(self, kernel_list):
        """The same, of --locks. A pair is two operations, and tablebench counts one."""
        ours = ("latchfs", "uring")
        def beside(count, ranges, only=None):
            unit = "range" if ranges == 1 else "ranges"
            return (f"pair beside {ranges:,} {unit}", "ns", False,
                    self.lock("crowd", count, ranges, table=("pair", 50_000, ranges), only=only))
        return [
            beside(10_000, 1),
            beside(10_000, 10),
            beside(3_000, 1_000),
            beside(1_000, 10_000),
            # (Where the kernel keeps them, taking the hundred thousand alone lasts ten minutes, and a
            # million would take days.)
            beside(3_000, 100_000, only=("native", *ours) if kernel_list else ours),
            beside(3_000, 1_000_000, only=ours),
            ("pair, 1,000,000 files have a lock", "ns", False, self.lock("", table=("files", 50_000, 1_000_000))),
            ("pair beside 100,000 readers of that range", "ns", False,
             self.lock("", table=("readers", 50_000, 100_000))),
            ("request behind 10,000 waiters for that range", "ns", False,
             self.lock("", table=("queue", 1_000, 10_000))),
            ("request at the end of a chain of 10,000 waiting owners", "ns", False,
             self.lock("", table=("chain", 20, 10_000))),
            ("unlock that leaves 10,000 waiters to another reader", "ns", False,
             self.lock("", table=("moved", 10_000))),
            ("2,000 processes hand one lock round", "ns", False, self.lock("round", 20_000, 2_000)),
            ("operation (enforce=mandatory), nobody has a lock", "ns", False,
             self.lock("", table=("ops", 5_000_000, 0))),
            ("the same, 100,000 other files have one", "ns", False, self.lock("", table=("ops", 5_000_000, 100_000))),
            ("operation beside a lock on its file", "ns", False, self.lock("", table=("ops_beside", 500_000, 1))),
            ("is anything on this file? 100,000 others have a lock", "ns", False,
             self.lock("", table=("look", 50_000_000, 100_000))),
            ("memory of one of 1,000,000 ranges", "bytes", False, self.lock("", table=("memory", 1_000_000))),
        ]


def make_tree(target):
    for d in range(FIND_DIRS):
        directory = target.source / "tree" / f"d{d:03}"
        directory.mkdir(parents=True)
        for f in range(FIND_FILES):
            (directory / f"f{f:03}").write_text("x")
    run(["tar", "-cf", str(target.source / "tree.tar"), "-C", str(target.source / "tree"),
         *(f"d{d:03}" for d in range(20))])
    repository = target.source / "repository"
    repository.mkdir()
    run(["tar", "-xf", str(target.source / "tree.tar"), "-C", str(repository)])
    git_there = ["git", "-C", str(repository), "-c", "user.name=bench", "-c", "user.email=bench@localhost"]
    run([*git_there, "init", "-q"])
    run([*git_there, "add", "."])
    run([*git_there, "commit", "-qm", "bench"])
    program = target.source / "program"
    program.mkdir()
    objects = " ".join(f"f{n}.o" for n in range(SOURCES))
    (program / "Makefile").write_text(f"all: {objects}\n\tcc -shared -o all.so {objects}\n")
    for n in range(SOURCES):
        (program / f"f{n}.c").write_text(f"#include <stdio.h>\nint f{n}(void) {{ return printf(\"{n}\"); }}\n")


def drop_caches():
    run(["sync"])
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")


def timed(command):
    """How many ms it took, and what it said."""
    began = time.monotonic()
    said = run(command)
    return (time.monotonic() - began) * 1000, said


def version_of(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return (done.stdout or done.stderr).splitlines()[0].strip() if done.stdout or done.stderr else ""


def git(*args):
    done = subprocess.run(["git", "-C", str(TOP), *args], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def about(build, base):
    cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo", encoding="ascii")
                if line.startswith("model name")), platform.machine())
    memory_kb = int(open("/proc/meminfo", encoding="ascii").readline().split()[1])
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else ""),
        "machine": {
            "cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(memory_kb / 2**20),
            "kernel": platform.release(),
            "backing": run(["findmnt", "-no", "FSTYPE", "-T", str(base)]).strip(),
        },
        "versions": {
            "latchfs": version_of([str(build / "src/daemon/latchfs"), "--version"]),
            "bindfs": version_of(["bindfs", "--version"]),
            "mergerfs": version_of(["mergerfs", "--version"]),
        },
    }


def progress(text):
    if sys.stderr.isatty():
        print(f"\r{text:60}\r", end="", file=sys.stderr, flush=True)


def measure(rows, targets, rounds):
    values = {name: {t.name: [] for t in targets} for name, *_ in rows}
    for number in range(rounds):
        for name, _, _, how in rows:
            progress(f"round {number + 1}/{rounds}: {name}")
            turn = number % len(targets)
            for target in targets[turn:] + targets[:turn]:
                value = how(target)
                if value is not None:
                    values[name][target.name].append(value)
    progress("")
    return values


def summary(values, native, more_is_better):
    pairs = zip(values, native)
    ratios = [v / n if more_is_better else n / v for v, n in pairs]
    if not ratios:
        return {"values": values, "median": statistics.median(values)}
    return {
        "values": values,
        "median": statistics.median(values),
        "ratio": statistics.median(ratios),
        "ratio_least": min(ratios),
        "ratio_most": max(ratios),
    }


def results(rows, values):
    out = []
    for name, unit, more, _ in rows:
        native = values[name]["native"]
        # (tablebench counts single operations, so it has no ratio.)
        out.append({
            "row": name, "unit": unit, "more_is_better": more,
            "targets": {t: summary(v, [] if t == "table" else native, more)
                        for t, v in values[name].items() if v},
        })
    return out


def shown(report):
    return [n for n in NAMES if any(n in row["targets"] for row in report["rows"])]


def share(ratio):
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}"


def markdown(report):
    machine = report["machine"]
    names = shown(report)
    meaning = (
        "Medians, and in brackets how many times as fast as native. \"latchfs\" is by /dev/fuse, \"uring\" latchfs "
        "by io_uring, \"table\" one operation (half a pair) on latchfs's table without FUSE. For the peers the "
        "kernel keeps the locks." if report.get("locks") else
        "Speed as a share of native in the same round, median (least to most): 1.00 is native, "
        ".10 ten times slower. \"latchfs\" is by /dev/fuse, \"uring\" latchfs by io_uring, \"strict\" latchfs "
        "by /dev/fuse with cache=strict. For the peers the kernel keeps the locks.")
    lines = [
        f"# Benchmark of {report['date'][:10]}, commit {report['commit'][:12]}", "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, kernel "
        f"{machine['kernel']}, {machine['backing']}; medians of {report['rounds']} interleaved "
        "rounds.", "",
        meaning, "",
        "| work | native | " + " | ".join(names) + " |",
        "| --- | ---: |" + " ---: |" * len(names),
    ]
    for row in report["rows"]:
        cells = []
        for name in names:
            got = row["targets"].get(name)
            if got is None:
                cells.append("-")
            elif report.get("locks"):
                times = f" ({share(got['ratio'])} times)" if "ratio" in got else ""
                cells.append(f"{got['median']:,.0f}{times}")
            else:
                cells.append(f"**{got['ratio']:.2f}** ({got['ratio_least']:.2f} to {got['ratio_most']:.2f})")
        native = f"{row['targets']['native']['median']:,.0f}" if "native" in row["targets"] else "-"
        lines.append(f"| {row['row']} | {native} {row['unit']} | " + " | ".join(cells) + " |")
    lines.append("")
    lines.append("Versions: " + "; ".join(v for v in report["versions"].values() if v) + ".")
    return "\n".join(lines) + "\n"


def passthrough_hp(path):
    """Its command, so that it sees each write: no writeback, and no passthrough, which newer ones have."""
    if not path:
        return None
    done = subprocess.run([path, "--help"], capture_output=True, text=True, check=False)
    more = ["--nopassthrough"] if "nopassthrough" in done.stdout + done.stderr else []
    return [path, "--nocache", *more]


def parse_args():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="rows whose name contains one of these, comma-separated")
    parser.add_argument("--targets", help="default: native,latchfs,uring,strict,bindfs,mergerfs; with --locks: "
                        "native,table,latchfs,uring,mergerfs")
    parser.add_argument("--locks", action="store_true", help="the rows of the lock table, up to a million locks")
    parser.add_argument("--kernel-list", action="store_true",
                        help="with --locks: the kernel's own 100,000 ranges too, which takes ten minutes a round")
    parser.add_argument("--passthrough-hp", metavar="PATH", help="libfuse's example, as one more target")
    parser.add_argument("--dir", default=tempfile.gettempdir(), help="where the backing directories go")
    parser.add_argument("--save", action="store_true", help="write docs/bench/DATE-COMMIT.{json,md,svg}")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    if not args.targets:
        args.targets = "native,table,latchfs,uring,mergerfs" if args.locks else \
            "native,latchfs,uring,strict,bindfs,mergerfs"
    return args


def main():
    args = parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    words = [w for w in args.only.split(",") if w]
    rows = Rows(args.build).locks(args.kernel_list) if args.locks else Rows(args.build).all()
    rows = [r for r in rows if not words or any(w in r[0] for w in words)]
    base = pathlib.Path(tempfile.mkdtemp(prefix="latchfs-bench.", dir=args.dir))
    mounts = {
        "native": None,
        "table": None,
        # A table each: mounts that share one let the kernel believe nothing.
        **{name: [str(args.build / "src/daemon/latchfs"), "-o", f"table=bench-{os.getpid()}-{name},{options}"]
           for name, options in LATCHFS.items()},
        "passthrough_hp": passthrough_hp(args.passthrough_hp),
        "bindfs": ["bindfs"],
        "mergerfs": ["mergerfs"],
    }
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, base, ignore_errors=True)
        for name in LATCHFS:
            stack.callback(pathlib.Path(f"/run/latchfs/bench-{os.getpid()}-{name}.table").unlink, missing_ok=True)
        targets = []
        wanted = args.targets.split(",") + (["passthrough_hp"] if args.passthrough_hp else [])
        if not stack.enter_context(uring_switched_on()):
            wanted = [name for name in wanted if name != "uring"]
        for name in wanted:
            target = Target(name, base, mounts[name])
            if not args.locks:
                make_tree(target)
            stack.enter_context(target.mounted())
            targets.append(target)
        report = {**about(args.build, base), "rounds": args.rounds, "locks": args.locks}
        report["rows"] = results(rows, measure(rows, targets, args.rounds))
    print(markdown(report))
    if args.save:
        place = TOP / "docs/bench"
        place.mkdir(parents=True, exist_ok=True)
        stem = place / f"{report['date'][:10]}-{report['commit'][:12]}{'-locks' if args.locks else ''}"
        stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        stem.with_suffix(".md").write_text(markdown(report))
        if not args.locks:
            stem.with_suffix(".svg").write_text(svg(report, shown(report)))
        print(f"saved as {stem.relative_to(TOP)}.*")


if __name__ == "__main__":
    main()
