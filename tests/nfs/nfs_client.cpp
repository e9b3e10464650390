// An NFS client in user space (libnfs), for servers that this machine's kernel cannot be a client
// of: files by NFSv3 or NFSv4.0, locks by NLM or by NFSv4.0. A session a process, one act each:
//
//   nfs_client VERSION SERVER EXPORT VERB ARGUMENT...       VERSION: 3 or 4; paths are from EXPORT
//
//   put LOCAL_DIR DIR      copies a tree: directories, files, symbolic links, modes
//   get DIR LOCAL_DIR      copies it back
//   cat FILE               its bytes
//   echo TEXT FILE         writes a line at the beginning: "written"; "denied ERRNO", status 1
//   unlink FILE            "unlinked", or the same
//   count DIR              "ENTRIES DISTINCT"
//   hold FILE ex|sh START LENGTH [wait]
//                          as lock_tool: "granted", kept until SIGTERM, which unlocks (SIGKILL
//                          does not); "denied ERRNO", status 1. SIGUSR1: the server was
//                          restarted; "reclaimed", or "not reclaimed: STATUS"
//   cancel FILE ex|sh START LENGTH
//                          asks to wait, then takes that back: "cancelled" (v3)
//   try FILE ex|sh START LENGTH
//                          as hold, but unlocks at once
//   test FILE ex|sh START LENGTH
//                          "free", or "held ex|sh START LENGTH" (v3)
//   loop FILE COUNT        lock and unlock: pairs per second
#include <dirent.h>
#include <fcntl.h>
#include <nfsc/libnfs-raw-nlm.h>
#include <poll.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nfs4_client.h"
#include "nlm_session.h"

// libnfs has these and does not declare them to C++.
struct nfs_fh {
  int len;
  char* val;
};

namespace latchfs::testing {
namespace {

namespace stdfs = std::filesystem;

// libnfs knows no errno names but its own texts.
int refused(int negative) {
  std::printf("denied %s\n", ::strerrorname_np(-negative));
  std::fflush(stdout);
  return 1;
}

void say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

class Session {
 public:
  Session(int version, std::string server, const std::string& exported)
      : version_{version},
        server_{std::move(server)},
        exported_{exported},
        nfs_{nfs_init_context()} {
    nfs_set_version(nfs_, version);
    // A client of its own, each time: locks are the client's and its owner's.
    if (version == 4) {
      static int sessions = 0;
      std::array<char, 65> host{};
      ::gethostname(host.data(), host.size() - 1);
      name_ = std::string{host.data()} + '/' + std::to_string(::getpid()) + '/' +
              std::to_string(++sessions);
      nfs4_set_client_name(nfs_, name_.c_str());
    }
    need(nfs_mount(nfs_, server_.c_str(), exported.c_str()), "mount");
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session() { nfs_destroy_context(nfs_); }

  int version() const { return version_; }
  const std::string& server() const { return server_; }
  const std::string& exported() const { return exported_; }
  // As a client of NFSv4.
  const std::string& name() const { return name_; }
  struct nfs_context* get() const {
    return nfs_;
  }

  // Ends the process where nothing is expected to fail.
  void need(int result, const std::string& what) const {
    if (result >= 0) return;
    std::fprintf(stderr, "nfs_client: %s: %s\n", what.c_str(), nfs_get_error(nfs_));
    std::exit(3);
  }

 private:
  int version_;
  std::string server_;
  std::string exported_;
  std::string name_;
  struct nfs_context* nfs_;
};

// What is open at the server; closed with this.
class Open {
 public:
  Open(const Session& session, const std::string& path, int flags) : session_{session} {
    error_ = nfs_open(session.get(), path.c_str(), flags, &file_);
  }
  Open(const Open&) = delete;
  Open& operator=(const Open&) = delete;
  ~Open() {
    if (file_ != nullptr) nfs_close(session_.get(), file_);
  }
  int error() const { return error_; }
  struct nfsfh* get() const {
    return file_;
  }
  std::string handle() const {
    const struct nfs_fh* const fh = nfs_get_fh(file_);
    return {fh->val, static_cast<std::size_t>(fh->len)};
  }

 private:
  const Session& session_;
  struct nfsfh* file_{};
  int error_;
};

// Bytes a call: libnfs has no room for more in a call of NFSv4.
std::size_t chunk_size(const Session& s) { return s.version() == 4 ? 2048 : 65536; }

void put_file(const Session& s, const stdfs::path& from, const std::string& to) {
  struct nfsfh* file = nullptr;
  s.need(nfs_open2(s.get(), to.c_str(), O_CREAT | O_RDWR, 0600, &file), "create " + to);
  std::ifstream in{from, std::ios::binary};

  std::string chunk(chunk_size(s), '\0');
  std::uint64_t at = 0;
  while (in.read(chunk.data(), static_cast<std::streamsize>(chunk.size())), in.gcount() > 0) {
    const auto n = static_cast<std::uint64_t>(in.gcount());
    // Fewer bytes than asked for would be an answer too.
    for (std::uint64_t done = 0; done < n;) {
      const int written = nfs_pwrite(s.get(), file, at + done, n - done, chunk.data() + done);
      s.need(written > 0 ? 0 : -1, "write " + to);
      done += static_cast<std::uint64_t>(written);
    }
    at += n;
  }
  s.need(nfs_fsync(s.get(), file), "fsync " + to);
  s.need(nfs_close(s.get(), file), "close " + to);
}

void put(const Session& s, const stdfs::path& from, const std::string& to) {
  const stdfs::file_status status = stdfs::symlink_status(from);
  const auto mode = static_cast<int>(status.permissions());
  if (stdfs::is_symlink(status)) {
    s.need(nfs_symlink(s.get(), stdfs::read_symlink(from).c_str(), to.c_str()), "symlink " + to);
    return;
  }
  if (stdfs::is_directory(status)) {
    // (libnfs cannot change a directory's mode by NFSv4.)
    s.need(nfs_mkdir2(s.get(), to.c_str(), mode), "mkdir " + to);
    for (const auto& entry : stdfs::directory_iterator{from}) {
      put(s, entry.path(), to + '/' + entry.path().filename().string());
    }
    return;
  }
  put_file(s, from, to);
  s.need(nfs_chmod(s.get(), to.c_str(), mode), "chmod " + to);
}

void get_file(const Session& s, const std::string& from, std::ostream& out) {
  const Open file{s, from, O_RDONLY};
  s.need(file.error(), "open " + from);

  std::string chunk(chunk_size(s), '\0');
  std::uint64_t at = 0;
  for (;;) {
    const int n = nfs_pread(s.get(), file.get(), at, chunk.size(), chunk.data());
    s.need(n, "read " + from);
    if (n == 0) return;
    out.write(chunk.data(), n);
    at += static_cast<std::uint64_t>(n);
  }
}

std::vector<std::string> names_in(const Session& s, const std::string& dir) {
  struct nfsdir* open = nullptr;
  s.need(nfs_opendir(s.get(), dir.c_str(), &open), "opendir " + dir);
  std::vector<std::string> names;
  while (const struct nfsdirent* entry = nfs_readdir(s.get(), open)) {
    const std::string_view name{entry->name};
    if (name != "." && name != "..") names.emplace_back(name);
  }
  nfs_closedir(s.get(), open);
  return names;
}

void get(const Session& s, const std::string& from, const stdfs::path& to) {
  struct nfs_stat_64 st {};
  s.need(nfs_lstat64(s.get(), from.c_str(), &st), "stat " + from);
  if (S_ISLNK(st.nfs_mode)) {
    std::array<char, 4096> target{};
    s.need(nfs_readlink(s.get(), from.c_str(), target.data(), target.size()), "readlink " + from);
    stdfs::create_symlink(target.data(), to);
    return;
  }
  if (S_ISDIR(st.nfs_mode)) {
    stdfs::create_directory(to);
    for (const std::string& name : names_in(s, from)) get(s, from + '/' + name, to / name);
  } else {
    std::ofstream out{to, std::ios::binary};
    get_file(s, from, out);
  }
  ::chmod(to.c_str(), static_cast<mode_t>(st.nfs_mode & 07777));
}

// Which errno a refusal by the lock service is to a program.
int errno_of(int status) {
  switch (status) {
    case NLM4_GRANTED:
      return 0;
    case NLM4_DENIED:
      return -EAGAIN;
    case NLM4_DEADLCK:
      return -EDEADLK;
    case NLM4_STALE_FH:
      return -ESTALE;
    case NLM4_FBIG:
      return -EFBIG;
    default:
      return -ENOLCK;
  }
}

// One lock of one file, by either protocol.
class Lock {
 public:
  Lock(const Session& session, const std::string& path, const NlmRange& range)
      : session_{&session}, path_{path}, range_{range} {
    open();
    if (session.version() == 3) nlm_.emplace(session.server(), file_->handle());
  }

  // 0 or a negative errno. In its grace period a server tells us to come back.
  int take(bool wait) {
    for (;;) {
      const int error = nlm_ ? take_v3(wait) : take_v4(F_WRLCK, wait);
      if (error != kLater) return error;
      ::usleep(300'000);
      // libnfs gives the request after a refused one the same number, which makes it the same
      // request to the server (RFC 7530, 9.1.7): only another client can ask again.
      if (!nlm_) {
        file_.reset();
        std::unique_ptr<Session> next =
            std::make_unique<Session>(4, session_->server(), session_->exported());
        session_ = next.get();
        again_ = std::move(next);
        open();
      }
    }
  }
  void drop() {
    if (nlm_) {
      nlm_->unlock(range_);
    } else if (reclaim_) {
      reclaim_->unlock();
    } else {
      take_v4(F_UNLCK, false);
    }
  }
  // After a restart of the server, in its grace period: 0 or the protocol's status.
  int reclaim() {
    if (nlm_) {
      nlm_.emplace(session_->server(), file_->handle());
      return nlm_->lock(range_, false, true);
    }
    reclaim_.emplace(session_->server());
    return reclaim_->reclaim(session_->name(), file_->handle(), range_);
  }
  // Any call that a lock's state is named in renews the client's lease.
  void renew() {
    std::array<char, 1> byte{};
    if (reclaim_) {
      reclaim_->renew();
      return;
    }
    if (!nlm_) nfs_pread(session_->get(), file_->get(), 0, byte.size(), byte.data());
  }
  NlmSession& nlm() { return *nlm_; }
  bool by_nlm() const { return nlm_.has_value(); }

 private:
  static constexpr int kLater = 1;

  void open() {
    file_.emplace(*session_, path_,
                  session_->version() == 4 && !range_.exclusive ? O_RDONLY : O_RDWR);
    session_->need(file_->error(), "open " + path_);
  }
  int take_v3(bool wait) {
    if (wait) nlm_->offer_granted();
    const int status = nlm_->lock(range_, wait);
    if (status == NLM4_DENIED_GRACE_PERIOD) return kLater;
    if (status != NLM4_BLOCKED) return errno_of(status);
    say("blocked");
    nlm_->await_granted();
    return 0;
  }
  int take_v4(int type, bool wait) {
    struct nfs4_flock lock {};
    lock.l_type = type == F_UNLCK ? F_UNLCK : range_.exclusive ? F_WRLCK : F_RDLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = range_.start;
    // NFSv4 writes "to the end" differently: RFC 7530, 16.10.
    lock.l_len = range_.length == 0 ? UINT64_MAX : range_.length;
    const int error = nfs_fcntl(session_->get(), file_->get(), NFS4_F_SETLK, &lock);
    if (error == 0) return 0;
    const std::string why = nfs_get_error(session_->get());
    if (why.find("GRACE") != std::string::npos) return kLater;
    const bool denied = why.find("DENIED") != std::string::npos;
    // NFSv4.0 has no other way to wait than to ask again.
    if (denied && wait) return kLater;
    return denied ? -EAGAIN : error;
  }

  std::unique_ptr<Session> again_;
  const Session* session_;
  std::string path_;
  NlmRange range_;
  std::optional<Open> file_;
  std::optional<NlmSession> nlm_;
  std::optional<Nfs4Client> reclaim_;
};

NlmRange range_of(const std::vector<std::string>& args) {
  return {args[1] == "ex", std::stoull(args[2]), std::stoull(args[3])};
}

int hold(const Session& s, const std::vector<std::string>& args, bool wait, bool keep) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGUSR1);
  Lock lock{s, args[0], range_of(args)};
  if (const int error = lock.take(wait); error != 0) return refused(error);
  ::sigprocmask(SIG_BLOCK, &signals, nullptr);
  say("granted");
  bool restarted = false;
  const struct timespec second { 1, 0 };
  while (keep) {
    const int signal = ::sigtimedwait(&signals, nullptr, &second);
    if (signal == SIGTERM) break;
    if (signal == SIGUSR1) {
      restarted = true;
      const int status = lock.reclaim();
      say(status == 0 ? "reclaimed" : "not reclaimed: " + std::to_string(status));
    } else {
      lock.renew();
    }
  }
  lock.drop();
  // The session of before the restart is not to be closed: nobody knows it any more.
  if (restarted) std::_Exit(0);
  return 0;
}

int cancel(const Session& s, const std::vector<std::string>& args) {
  Lock lock{s, args[0], range_of(args)};
  lock.nlm().offer_granted();
  if (const int status = lock.nlm().lock(range_of(args), true); status != NLM4_BLOCKED) {
    say("not blocked: " + std::to_string(status));
    return 1;
  }
  const int status = lock.nlm().cancel(range_of(args));
  say(status == NLM4_GRANTED ? "cancelled" : "not cancelled: " + std::to_string(status));
  return status == NLM4_GRANTED ? 0 : 1;
}

int test(const Session& s, const std::vector<std::string>& args) {
  Lock lock{s, args[0], range_of(args)};
  NlmRange held;
  const int status = lock.nlm().test(range_of(args), held);
  if (status == NLM4_GRANTED) {
    say("free");
  } else if (status == NLM4_DENIED) {
    say(std::string{"held "} + (held.exclusive ? "ex " : "sh ") + std::to_string(held.start) + ' ' +
        std::to_string(held.length));
  } else {
    return refused(errno_of(status));
  }
  return 0;
}

int loop(const Session& s, const std::string& path, long count) {
  Lock lock{s, path, {true, 0, 1}};
  const auto began = std::chrono::steady_clock::now();
  for (long i = 0; i < count; ++i) {
    if (const int error = lock.take(false); error != 0) return refused(error);
    lock.drop();
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
  std::printf("%.1f\n", static_cast<double>(count) / took.count());
  return 0;
}

int echo(const Session& s, const std::string& text, const std::string& path) {
  if (s.version() == 4) {
    Nfs4Client client{s.server()};
    const int status = client.write(s.name() + "/writes", s.exported() + '/' + path, text + '\n');
    // (What a program may be told of has the numbers of errno.)
    if (status != 0) return refused(-status);
    say("written");
    return 0;
  }
  const Open file{s, path, O_WRONLY};
  if (file.error() != 0) return refused(file.error());
  const std::string line = text + '\n';
  const int n = nfs_pwrite(s.get(), file.get(), 0, line.size(), line.data());
  if (n < 0) return refused(n);
  say("written");
  return 0;
}

int count(const Session& s, const std::string& dir) {
  std::vector<std::string> names = names_in(s, dir);
  const std::size_t listed = names.size();
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  say(std::to_string(listed) + ' ' + std::to_string(names.size()));
  return 0;
}

int act(const Session& s, const std::string& verb, const std::vector<std::string>& args) {
  const std::size_t n = args.size();
  const bool lock_args = n >= 4 && (args[1] == "ex" || args[1] == "sh");
  if (verb == "hold" && lock_args) return hold(s, args, n == 5 && args[4] == "wait", true);
  if (verb == "try" && lock_args) return hold(s, args, false, false);
  if (verb == "test" && lock_args && s.version() == 3) return test(s, args);
  if (verb == "cancel" && lock_args && s.version() == 3) return cancel(s, args);
  if (verb == "loop" && n == 2) return loop(s, args[0], std::stol(args[1]));
  if (verb == "put" && n == 2) return put(s, args[0], args[1]), 0;
  if (verb == "get" && n == 2) return get(s, args[0], args[1]), 0;
  if (verb == "cat" && n == 1) return get_file(s, args[0], std::cout), 0;
  if (verb == "echo" && n == 2) return echo(s, args[0], args[1]);
  if (verb == "count" && n == 1) return count(s, args[0]);
  if (verb == "unlink" && n == 1) {
    const int error = nfs_unlink(s.get(), args[0].c_str());
    if (error != 0) return refused(error);
    say("unlinked");
    return 0;
  }
  std::fputs("nfs_client: wrong arguments\n", stderr);
  return 2;
}

int run(const std::vector<std::string>& args) {
  if (args.size() < 5 || (args[0] != "3" && args[0] != "4")) {
    std::fputs("nfs_client: wrong arguments\n", stderr);
    return 2;
  }
  const Session session{args[0] == "4" ? 4 : 3, args[1], args[2]};
  return act(session, args[3], {args.begin() + 4, args.end()});
}

}  // namespace
}  // namespace latchfs::testing

int main(int argc, char** argv) {
  try {
    return latchfs::testing::run({argv + 1, argv + argc});
  } catch (const std::exception& e) {
    std::fprintf(stderr, "nfs_client: %s\n", e.what());
    return 3;
  }
}
