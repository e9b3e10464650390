// Times file I/O in one directory, native or mounted.
//
// usage: iobench write DIR COUNT SIZE JOBS   ns for one pwrite of SIZE bytes at random places of
// one
//                                            64 MiB file, by JOBS threads with a descriptor each
//        iobench seqwrite DIR MIB    MiB/s of 1 MiB writes to a new file
//        iobench seqread DIR MIB     MiB/s of 1 MiB reads of a file just read (warm)
//        iobench coldread DIR MIB    MiB/s of 1 MiB reads after the page cache was dropped
//        iobench randread DIR COUNT  ns for one 4 KiB pread at random places of a file just read
//        iobench open DIR COUNT      ns for open + read + close of a small file
//        iobench stat DIR COUNT      ns for one stat of one of 100 files
//        iobench create DIR COUNT    ns for create + close + unlink of an empty file
//        iobench list FILE 1         ms for reading FILE to its end, 128 KiB at a time
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/unique_fd.h"
#include "measure.h"

namespace latchfs::bench {
namespace {

constexpr std::size_t kMiB = 1 << 20;

UniqueFd open_file(const std::string& path, int flags) {
  UniqueFd fd{::open(path.c_str(), flags | O_CLOEXEC, 0644)};
  must(static_cast<bool>(fd), path);
  return fd;
}

void write_mib(int fd, std::uint64_t mib) {
  const std::vector<char> block(kMiB, 'x');
  for (std::uint64_t i = 0; i < mib; ++i) {
    must(::write(fd, block.data(), kMiB) == static_cast<ssize_t>(kMiB), "write");
  }
}

std::uint64_t read_all(int fd, std::vector<char>& block) {
  std::uint64_t total = 0;
  for (;;) {
    const ssize_t n = ::read(fd, block.data(), block.size());
    must(n >= 0, "read");
    if (n == 0) return total;
    total += static_cast<std::uint64_t>(n);
  }
}

constexpr std::uint64_t kFileMiB = 64;

std::string large_file(const std::string& dir) {
  const std::string path = dir + "/iobench-large";
  write_mib(open_file(path, O_WRONLY | O_CREAT | O_TRUNC).get(), kFileMiB);
  return path;
}

off_t random_block(std::mt19937_64& random, std::size_t size) {
  return static_cast<off_t>(random() % (kFileMiB * kMiB / size) * size);
}

void write_blocks(const std::string& dir, std::uint64_t count, std::size_t size, unsigned jobs) {
  const std::string path = large_file(dir);
  const auto work = [&](unsigned job) {
    const UniqueFd fd = open_file(path, O_RDWR);
    const std::vector<char> block(size, 'y');
    std::mt19937_64 random{job + 1};
    for (std::uint64_t i = 0; i < count / jobs; ++i) {
      const off_t at = random_block(random, size);
      must(::pwrite(fd.get(), block.data(), size, at) == static_cast<ssize_t>(size), "pwrite");
    }
  };
  report(ns_each(count / jobs * jobs, [&] {
    std::vector<std::thread> threads;
    for (unsigned job = 1; job < jobs; ++job) threads.emplace_back(work, job);
    work(0);
    for (std::thread& thread : threads) thread.join();
  }));
  ::unlink(path.c_str());
}

void read_blocks(const std::string& dir, std::uint64_t count) {
  constexpr std::size_t kBlock = 4096;
  const std::string path = large_file(dir);
  const UniqueFd fd = open_file(path, O_RDONLY);
  std::vector<char> block(kMiB);
  read_all(fd.get(), block);
  std::mt19937_64 random{1};
  report(ns_each(count, [&] {
    for (std::uint64_t i = 0; i < count; ++i) {
      must(::pread(fd.get(), block.data(), kBlock, random_block(random, kBlock)) == kBlock,
           "pread");
    }
  }));
  ::unlink(path.c_str());
}

void open_read_close(const std::string& dir, std::uint64_t count) {
  const std::string path = dir + "/iobench-small";
  must(::write(open_file(path, O_WRONLY | O_CREAT | O_TRUNC).get(), "small", 5) == 5, "write");
  report(ns_each(count, [&] {
    for (std::uint64_t i = 0; i < count; ++i) {
      char bytes[8];
      must(::read(open_file(path, O_RDONLY).get(), bytes, sizeof bytes) == 5, "read");
    }
  }));
  ::unlink(path.c_str());
}

void stat_files(const std::string& dir, std::uint64_t count) {
  constexpr std::size_t kFiles = 100;
  std::vector<std::string> paths;
  for (std::size_t i = 0; i < kFiles; ++i) {
    paths.push_back(dir + "/iobench-stat" + std::to_string(i));
    open_file(paths.back(), O_WRONLY | O_CREAT).reset();
  }
  report(ns_each(count, [&] {
    for (std::uint64_t i = 0; i < count; ++i) {
      struct stat st {};
      must(::stat(paths[i % kFiles].c_str(), &st) == 0, "stat");
    }
  }));
  for (const std::string& path : paths) ::unlink(path.c_str());
}

double mib_per_second(std::uint64_t mib, double ns_for_all) {
  return static_cast<double>(mib) * 1e9 / ns_for_all;
}

void seqwrite(const std::string& dir, std::uint64_t mib) {
  const std::string path = dir + "/iobench-seq";
  const UniqueFd fd = open_file(path, O_WRONLY | O_CREAT | O_TRUNC);
  report(mib_per_second(mib, ns_each(1, [&] { write_mib(fd.get(), mib); })));
  ::unlink(path.c_str());
}

void seqread(const std::string& dir, std::uint64_t mib) {
  const std::string path = dir + "/iobench-seq";
  write_mib(open_file(path, O_WRONLY | O_CREAT | O_TRUNC).get(), mib);
  std::vector<char> block(kMiB);
  const UniqueFd fd = open_file(path, O_RDONLY);
  read_all(fd.get(), block);
  report(mib_per_second(mib, ns_each(1, [&] {
                          must(::lseek(fd.get(), 0, SEEK_SET) == 0, "lseek");
                          must(read_all(fd.get(), block) == mib * kMiB, "short read");
                        })));
  ::unlink(path.c_str());
}

void coldread(const std::string& dir, std::uint64_t mib) {
  const std::string path = dir + "/iobench-cold";
  {
    const UniqueFd fd = open_file(path, O_WRONLY | O_CREAT | O_TRUNC);
    write_mib(fd.get(), mib);
    must(::fsync(fd.get()) == 0, "fsync");
  }
  must(::write(open_file("/proc/sys/vm/drop_caches", O_WRONLY).get(), "1", 1) == 1, "drop_caches");
  std::vector<char> block(kMiB);
  const UniqueFd fd = open_file(path, O_RDONLY);
  report(mib_per_second(
      mib, ns_each(1, [&] { must(read_all(fd.get(), block) == mib * kMiB, "short read"); })));
  ::unlink(path.c_str());
}

void create(const std::string& dir, std::uint64_t count) {
  const std::string path = dir + "/iobench-new";
  report(ns_each(count, [&] {
    for (std::uint64_t i = 0; i < count; ++i) {
      open_file(path, O_WRONLY | O_CREAT | O_EXCL).reset();
      must(::unlink(path.c_str()) == 0, "unlink");
    }
  }));
}

void list(const std::string& path, std::uint64_t) {
  constexpr double kMsPerNs = 1e-6;
  std::vector<char> block(128 * 1024);
  const UniqueFd fd = open_file(path, O_RDONLY);
  std::uint64_t bytes = 0;
  const double ns = ns_each(1, [&] { bytes = read_all(fd.get(), block); });
  must(bytes > 0, "empty list");
  report(ns * kMsPerNs);
}

struct Work {
  std::string_view name;
  void (*run)(const std::string& place, std::uint64_t count);
};
constexpr std::array<Work, 8> kWorks{{
    {"seqwrite", seqwrite},
    {"seqread", seqread},
    {"coldread", coldread},
    {"randread", read_blocks},
    {"open", open_read_close},
    {"stat", stat_files},
    {"create", create},
    {"list", list},
}};

int run(int argc, char** argv) {
  const std::string_view what = argc >= 4 ? argv[1] : "";
  if (what == "write" && argc == 6) {
    write_blocks(argv[2], number(argv[3]), number(argv[4]), static_cast<unsigned>(number(argv[5])));
    return 0;
  }
  for (const Work& work : kWorks) {
    if (what != work.name) continue;
    work.run(argv[2], number(argv[3]));
    return 0;
  }
  std::fputs(
      "usage: iobench seqwrite|seqread|coldread|randread|open|stat|create|list PLACE COUNT\n"
      "       iobench write PLACE COUNT SIZE JOBS\n",
      stderr);
  return 2;
}

}  // namespace
}  // namespace latchfs::bench

int main(int argc, char** argv) { return latchfs::bench::run(argc, argv); }
