// Times file I/O in one directory, native or mounted.
//
// usage: iobench write4k DIR COUNT   ns for one 4 KiB pwrite at random places of a 64 MiB file
//        iobench seqwrite DIR MIB    MiB/s of 1 MiB writes to a new file
//        iobench seqread DIR MIB     MiB/s of 1 MiB reads of a file just read (warm)
//        iobench create DIR COUNT    ns for create + close + unlink of an empty file
//        iobench list FILE 1         ms for reading FILE to its end, 128 KiB at a time
#include <fcntl.h>
#include <unistd.h>

#include <random>
#include <string_view>
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

void write4k(const std::string& dir, std::uint64_t count) {
  constexpr std::size_t kBlock = 4096;
  constexpr std::uint64_t kFileMiB = 64;
  const std::string path = dir + "/iobench-4k";
  const UniqueFd fd = open_file(path, O_RDWR | O_CREAT | O_TRUNC);
  write_mib(fd.get(), kFileMiB);
  const std::vector<char> block(kBlock, 'y');
  std::mt19937_64 random{1};
  report(ns_each(count, [&] {
    for (std::uint64_t i = 0; i < count; ++i) {
      const auto at = static_cast<off_t>(random() % (kFileMiB * kMiB / kBlock) * kBlock);
      must(::pwrite(fd.get(), block.data(), kBlock, at) == static_cast<ssize_t>(kBlock), "pwrite");
    }
  }));
  ::unlink(path.c_str());
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

void create(const std::string& dir, std::uint64_t count) {
  const std::string path = dir + "/iobench-new";
  report(ns_each(count, [&] {
    for (std::uint64_t i = 0; i < count; ++i) {
      open_file(path, O_WRONLY | O_CREAT | O_EXCL).reset();
      must(::unlink(path.c_str()) == 0, "unlink");
    }
  }));
}

void list(const std::string& path) {
  constexpr double kMsPerNs = 1e-6;
  std::vector<char> block(128 * 1024);
  const UniqueFd fd = open_file(path, O_RDONLY);
  std::uint64_t bytes = 0;
  const double ns = ns_each(1, [&] { bytes = read_all(fd.get(), block); });
  must(bytes > 0, "empty list");
  report(ns * kMsPerNs);
}

int run(int argc, char** argv) {
  const std::string_view what = argc == 4 ? argv[1] : "";
  if (what == "write4k") {
    write4k(argv[2], number(argv[3]));
  } else if (what == "seqwrite") {
    seqwrite(argv[2], number(argv[3]));
  } else if (what == "seqread") {
    seqread(argv[2], number(argv[3]));
  } else if (what == "create") {
    create(argv[2], number(argv[3]));
  } else if (what == "list") {
    list(argv[2]);
  } else {
    std::fputs("usage: iobench write4k|seqwrite|seqread|create|list PLACE COUNT\n", stderr);
    return 2;
  }
  return 0;
}

}  // namespace
}  // namespace latchfs::bench

int main(int argc, char** argv) { return latchfs::bench::run(argc, argv); }
