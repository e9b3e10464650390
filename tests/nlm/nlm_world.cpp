#include "nlm_world.h"

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstring>
#include <stdexcept>
#include <thread>

#include "store/memory/memory_store.h"

namespace latchfs::test {

using nlm::Proc;
using nlm::Status;
using std::chrono::milliseconds;

bool FakeFiles::exports(const nlm::Fsid& fsid) const { return fsid == nlm::Fsid::parse("1"); }

Result<nlm::OpenFilePtr> FakeFiles::open(const nlm::NfsHandle& handle) {
  ++opened;
  if (hangs) {
    ++hanging;
    NlmWorld::await([&] { return !hangs; });
  }
  if (!exports(handle.fsid)) return errno_code(ESTALE);
  if (handle.root || handle.node == kDirectory) return errno_code(EINVAL);
  if (handle.node == kGone || handle.generation != 1) return errno_code(ESTALE);
  if (away || handle.node == kAway) return errno_code(ENOTCONN);
  auto* const file = new nlm::OpenFile{{7, handle.node}, {}, handle.node == kReadOnly, handle.fsid};
  ++*alive_;
  const std::lock_guard hold{mu_};
  generations_[file] = generation_;
  return nlm::OpenFilePtr{file, [alive = alive_](const nlm::OpenFile* gone) {
                            --*alive;
                            delete gone;
                          }};
}

Result<void> FakeFiles::may_lock(const nlm::OpenFile& file, const nlm::User& user) {
  {
    const std::lock_guard hold{mu_};
    if (generations_[&file] != generation_) return errno_code(ENOTCONN);
  }
  if (file.id.ino == kPrivate && user.uid != kOwner) return errno_code(EACCES);
  return {};
}

FakeOutside::FakeOutside() : answer_{granted_answer} {}

Result<std::string> FakeOutside::granted_answer(const Call& call) {
  if (call.program == nlm::kStatdProgram) return std::string(8, '\0');
  const auto granted = nlm::decode_lock_call(nlm::Form::kTest, call.arguments);
  if (!granted) return errno_code(EPROTO);
  return nlm::encode_answer({granted->cookie, Status::kGranted});
}

FakeOutside::Call FakeOutside::note(const nlm::Where& where, std::uint32_t program,
                                    std::uint32_t procedure, std::string_view arguments,
                                    bool told) {
  const std::lock_guard hold{mu_};
  calls_.push_back({where, program, procedure, std::string{arguments}, told});
  changed_.notify_all();
  return calls_.back();
}

Result<std::string> FakeOutside::exchange(const nlm::Where& where, std::uint32_t program,
                                          std::uint32_t, std::uint32_t procedure,
                                          std::string_view arguments, milliseconds,
                                          unsigned& unanswered) {
  Answer answer;
  {
    const std::lock_guard hold{mu_};
    answer = answer_;
  }
  auto results = answer(note(where, program, procedure, arguments, false));
  unanswered = lost_copies;
  if (!results) unanswered = results.error() == errno_code(EHOSTUNREACH) ? 0 : 1;
  return results;
}

Result<void> FakeOutside::tell(const nlm::Where& where, std::uint32_t program, std::uint32_t,
                               std::uint32_t procedure, std::string_view arguments, milliseconds) {
  const Call call = note(where, program, procedure, arguments, true);
  std::function<void(const Call&)> then;
  {
    const std::lock_guard hold{mu_};
    then = told_;
  }
  if (then) then(call);
  return {};
}

void FakeOutside::when_told(std::function<void(const Call&)> then) {
  const std::lock_guard hold{mu_};
  told_ = std::move(then);
}

void FakeOutside::answer_by(Answer answer) {
  const std::lock_guard hold{mu_};
  answer_ = std::move(answer);
}

std::vector<FakeOutside::Call> FakeOutside::calls(std::uint32_t program) {
  const std::lock_guard hold{mu_};
  std::vector<Call> out;
  for (const Call& call : calls_) {
    if (call.program == program) out.push_back(call);
  }
  return out;
}

std::vector<FakeOutside::Call> FakeOutside::await(std::uint32_t program, std::size_t count) {
  const auto enough = [&] {
    std::size_t n = 0;
    for (const Call& call : calls_) n += call.program == program ? 1 : 0;
    return n >= count;
  };
  {
    std::unique_lock hold{mu_};
    changed_.wait_for(hold, std::chrono::minutes{1}, enough);
  }
  return calls(program);
}

NlmClient::NlmClient(std::uint16_t port, Options its_options) : options{std::move(its_options)} {
  const auto to = nlm::Endpoint::parse(options.host, port);
  const auto from = nlm::Endpoint::parse(options.address, 0);
  fd_ = UniqueFd{::socket(to ? to->family() : AF_INET,
                          (options.tcp ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC, 0)};
  const auto bound = [&] {
    if (!options.reserved_port) return ::bind(fd_.get(), from->data(), from->size()) == 0;
    sockaddr_in own{};
    std::memcpy(&own, from->data(), sizeof own);
    return ::bindresvport(fd_.get(), &own) == 0;
  };
  if (!to || !from || !fd_ || !bound() || ::connect(fd_.get(), to->data(), to->size()) != 0) {
    throw std::runtime_error{"cannot connect to the service: " + last_errno().message()};
  }
  // So that no two clients of a test ask with the same number.
  static std::atomic<std::uint32_t> clients{1};
  xid = clients++ << 16;
}

void NlmClient::send_raw(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n <= 0) return;  // closed: the test will see
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
}

void NlmClient::send(std::string_view message) {
  if (!options.tcp) return send_raw(message);
  const std::uint32_t mark = htonl(static_cast<std::uint32_t>(message.size()) | 0x80000000);
  std::string bytes(reinterpret_cast<const char*>(&mark), sizeof mark);
  bytes += message;
  send_raw(bytes);
}

std::optional<std::string> NlmClient::receive(milliseconds patience) {
  std::string buffer(65536, '\0');
  const auto until = std::chrono::steady_clock::now() + patience;
  for (;;) {
    if (options.tcp && in_.size() >= 4) {
      std::uint32_t mark = 0;
      std::memcpy(&mark, in_.data(), sizeof mark);
      const std::size_t size = ntohl(mark) & 0x7fffffff;
      if (in_.size() >= 4 + size) {
        std::string record = in_.substr(4, size);
        in_.erase(0, 4 + size);
        return record;
      }
    }
    const auto left =
        std::chrono::duration_cast<milliseconds>(until - std::chrono::steady_clock::now());
    pollfd one{fd_.get(), POLLIN, 0};
    if (left.count() <= 0 || ::poll(&one, 1, static_cast<int>(left.count())) <= 0) {
      return std::nullopt;
    }
    const ssize_t n = ::recv(fd_.get(), buffer.data(), buffer.size(), 0);
    if (n <= 0) return std::nullopt;
    if (!options.tcp) return buffer.substr(0, static_cast<std::size_t>(n));
    in_.append(buffer, 0, static_cast<std::size_t>(n));
  }
}

bool NlmClient::closed() {
  char byte = 0;
  pollfd one{fd_.get(), POLLIN, 0};
  while (::poll(&one, 1, 60'000) == 1) {
    if (::recv(fd_.get(), &byte, 1, 0) <= 0) return true;
  }
  return false;
}

std::optional<std::string> NlmClient::exchange(std::string_view message, milliseconds patience) {
  send(message);
  return receive(patience);
}

std::string NlmClient::message(Proc procedure, std::string_view arguments) {
  return nlm::encode_call_as(++xid, nlm::kNlmProgram, nlm::kNlmVersion,
                             static_cast<std::uint32_t>(procedure), options.credentials, arguments);
}

std::string NlmClient::call(Proc procedure, std::string_view arguments) {
  const auto reply = exchange(message(procedure, arguments), std::chrono::seconds{60});
  if (!reply) throw std::runtime_error{"no answer"};
  const auto decoded = nlm::decode_reply(*reply);
  if (!decoded || decoded->xid != xid || decoded->denied ||
      decoded->accept != nlm::Accept::kSuccess) {
    throw std::runtime_error{"no success"};
  }
  return std::string{decoded->results};
}

std::string handle_of(std::uint64_t node, std::uint32_t fsid) {
  nlm::NfsHandle handle;
  handle.fsid = *nlm::Fsid::parse(std::to_string(fsid));
  handle.node = node;
  handle.generation = 1;
  return nlm::handle_bytes(handle);
}

nlm::LockCall NlmClient::request(std::uint64_t node, std::uint64_t offset, std::uint64_t length,
                                 std::int32_t svid) const {
  nlm::LockCall call;
  call.cookie = "cookie";
  call.exclusive = true;
  call.what = {options.name, handle_of(node), std::to_string(svid) + "@" + options.name,
               svid,         offset,          length};
  return call;
}

nlm::TestAnswer NlmClient::test(const nlm::LockCall& request) {
  const auto answer =
      nlm::decode_test_answer(call(Proc::kTest, nlm::encode_lock_call(nlm::Form::kTest, request)));
  if (!answer || answer->cookie != request.cookie) throw std::runtime_error{"a wrong answer"};
  return *answer;
}

Status NlmClient::ask(Proc procedure, nlm::Form form, const nlm::LockCall& request) {
  const auto answer = nlm::decode_answer(call(procedure, nlm::encode_lock_call(form, request)));
  if (!answer || answer->cookie != request.cookie) throw std::runtime_error{"a wrong answer"};
  return answer->status;
}

Status NlmClient::ask_share(Proc procedure, const nlm::ShareCall& request) {
  const auto answer = nlm::decode_share_answer(call(procedure, nlm::encode_share_call(request)));
  if (!answer || answer->cookie != request.cookie) throw std::runtime_error{"a wrong answer"};
  return answer->status;
}

nlm::Service::Options NlmWorld::quick() {
  nlm::Service::Options out;
  out.server.listen = {{"127.0.0.1", false}};
  out.server.threads = 4;
  out.dispatcher.root_port_reserved = false;
  out.dispatcher.insecure_ports = true;
  out.desk.first_pause_ns = 20'000'000;
  out.desk.longest_pause_ns = 50'000'000;
  out.desk.grant_patience_ns = 60'000'000'000;
  out.desk.idle_file_ns = 100'000'000;
  return out;
}

NlmWorld::NlmWorld(nlm::Service::Options options, nlm::Outside* other)
    : store{make_memory_store(waits)} {
  auto opened = nlm::Service::open(std::move(options), *store, waits, files,
                                   other != nullptr ? *other : outside);
  if (!opened) throw std::runtime_error{"no service: " + opened.error().message()};
  service = std::move(*opened);
  service->start();
}

NlmWorld::~NlmWorld() = default;

Acquired NlmWorld::local_lock(std::uint64_t node, ByteRange range, LockMode mode,
                              std::uint64_t key) {
  LockRequest request;
  request.file = {7, node};
  request.owner = {~store->mount_id(), key, OwnerSpace::kRange};
  request.range = range;
  request.mode = mode;
  request.holder.pid = 4711;
  const auto got = store->acquire(request, OnConflict::kRefuse, {});
  if (!got) throw std::runtime_error{got.error().message()};
  return *got;
}

void NlmWorld::local_unlock(std::uint64_t node, ByteRange range, std::uint64_t key) {
  const OwnerId owner{~store->mount_id(), key, OwnerSpace::kRange};
  if (!store->release({7, node}, owner, range)) throw std::runtime_error{"no release"};
}

std::vector<std::string> NlmWorld::grants(std::uint64_t node) {
  std::vector<std::string> out;
  ListQuery query;
  query.file = FileId{7, node};
  query.limit = 10'000;
  const auto page = store->list(query);
  if (!page) throw std::runtime_error{page.error().message()};
  for (const Grant& grant : page->grants) {
    out.push_back(
        (grant.mode == LockMode::kExclusive ? "EX " : "SH ") + std::to_string(grant.range.begin()) +
        " " + std::to_string(grant.range.size_or_zero()) + " " + std::to_string(grant.holder.pid));
  }
  return out;
}

std::size_t NlmWorld::waiters(std::uint64_t node) {
  ListQuery query;
  query.file = FileId{7, node};
  query.limit = 10'000;
  const auto page = store->list_waiters(query);
  if (!page) throw std::runtime_error{page.error().message()};
  return page->waiters.size();
}

bool NlmWorld::await(const std::function<bool()>& condition) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::minutes{1};
  while (!condition()) {
    if (std::chrono::steady_clock::now() > until) return false;
    std::this_thread::sleep_for(milliseconds{1});
  }
  return true;
}

}  // namespace latchfs::test
