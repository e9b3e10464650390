"""Locks by Python's fcntl and by sqlite3 on one or two directories that show the same files.

usage: interop.py counter|modes|sqlite DIR [DIR]      exit 0: as it should be
"""
import errno
import fcntl
import multiprocessing
import os
import sqlite3
import struct
import sys

PROCESSES = 8
ROUNDS = 100


def add(path, call, rounds):
    """Adds 1 to the number in the file, that often, each time under an exclusive lock."""
    fd = os.open(path, os.O_RDWR)
    for _ in range(rounds):
        call(fd, True)
        number = int(os.pread(fd, 20, 0) or b"0")
        os.pwrite(fd, b"%d" % (number + 1), 0)
        call(fd, False)
    os.close(fd)


def by_lockf(fd, take):
    fcntl.lockf(fd, fcntl.LOCK_EX if take else fcntl.LOCK_UN, 20, 0)


def by_flock(fd, take):
    fcntl.flock(fd, fcntl.LOCK_EX if take else fcntl.LOCK_UN)


def by_ofd(fd, take):
    kind = fcntl.F_WRLCK if take else fcntl.F_UNLCK
    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 20, 0))


def run_all(jobs):
    processes = [multiprocessing.Process(target=f, args=args) for f, args in jobs]
    for p in processes:
        p.start()
    for p in processes:
        p.join()
    assert all(p.exitcode == 0 for p in processes), [p.exitcode for p in processes]


def counter(dirs):
    for call in (by_lockf, by_flock, by_ofd):
        name = call.__name__
        open(os.path.join(dirs[0], name), "w").close()
        run_all([(add, (os.path.join(dirs[i % len(dirs)], name), call, ROUNDS))
                 for i in range(PROCESSES)])
        with open(os.path.join(dirs[0], name)) as f:
            assert int(f.read()) == PROCESSES * ROUNDS, name


def refused(call):
    try:
        call()
    except OSError as e:
        assert e.errno in (errno.EAGAIN, errno.EACCES), e
        return True
    return False


def try_in_child(dir_, name, mode, results):
    with open(os.path.join(dir_, name), "r+") as f:
        results.put((refused(lambda: fcntl.lockf(f, mode | fcntl.LOCK_NB, 10, 5)),
                     refused(lambda: fcntl.flock(f, mode | fcntl.LOCK_NB))))


def modes(dirs):
    """What another process may have beside a lock of ours, through either mount."""
    results = multiprocessing.Queue()
    path = os.path.join(dirs[0], "modes")
    open(path, "w").close()
    for mine in (fcntl.LOCK_SH, fcntl.LOCK_EX):
        for theirs in (fcntl.LOCK_SH, fcntl.LOCK_EX):
            with open(path, "r+") as f:
                fcntl.lockf(f, mine, 10, 0)
                fcntl.flock(f, mine)
                run_all([(try_in_child, (dirs[-1], "modes", theirs, results))])
            want = not (mine == theirs == fcntl.LOCK_SH)
            assert results.get() == (want, want), (mine, theirs)


def insert(path, who):
    db = sqlite3.connect(path, timeout=300, isolation_level=None)
    for i in range(ROUNDS):
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO t VALUES (?, ?)", (who, i))
        db.execute("COMMIT")
    db.close()


def sqlite(dirs):
    path = os.path.join(dirs[0], "db")
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE t (who, n, UNIQUE (who, n))")
    db.commit()
    db.close()
    run_all([(insert, (os.path.join(dirs[who % len(dirs)], "db"), who)) for who in range(2)])
    db = sqlite3.connect(path)
    assert db.execute("SELECT count(*) FROM t").fetchone() == (2 * ROUNDS,)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


if __name__ == "__main__":
    {"counter": counter, "modes": modes, "sqlite": sqlite}[sys.argv[1]](sys.argv[2:])
