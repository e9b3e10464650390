// How many locks a second a lock manager gives and takes back, one after the other, to one client:
// any NLM version 4 service, ours or another.
//
// usage: nlm_bench HOST PORT|- HANDLE COUNT [udp|tcp] [UID] [OWN_ADDRESS]
//
// HOST and OWN_ADDRESS are numeric addresses; PORT - asks HOST's rpcbind. HANDLE is the file's NFS
// handle in hex. Prints one line of JSON.
#include <fmt/core.h>

#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "nlm/net_outside.h"
#include "nlm_world.h"

namespace {

using latchfs::nlm::LockCall;
using latchfs::nlm::Status;
using latchfs::test::NlmClient;

template <class Number>
Number number(const std::string& text) {
  Number out{};
  const char* const end = text.data() + text.size();
  const auto [stop, err] = std::from_chars(text.data(), end, out);
  if (err != std::errc{} || stop != end) throw std::runtime_error{"no number: " + text};
  return out;
}

std::string bytes_of(const std::string& hex) {
  std::string out;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
    unsigned byte = 0;
    const auto [stop, err] = std::from_chars(hex.data() + i, hex.data() + i + 2, byte, 16);
    if (err != std::errc{} || stop != hex.data() + i + 2) throw std::runtime_error{"no hex"};
    out += static_cast<char>(byte);
  }
  return out;
}

void expect(Status status, const char* what) {
  if (status == Status::kGranted) return;
  throw std::runtime_error{
      fmt::format("{}: NLM status {}", what, static_cast<std::uint32_t>(status))};
}

int run(const std::vector<std::string>& args) {
  if (args.size() < 4 || args.size() > 7) {
    std::fputs("usage: nlm_bench HOST PORT|- HANDLE COUNT [udp|tcp] [UID] [OWN_ADDRESS]\n", stderr);
    return 2;
  }
  const bool tcp = args.size() > 4 && args[4] == "tcp";
  NlmClient::Options options;
  options.name = "nlm_bench";
  options.tcp = tcp;
  options.host = args[0];
  const bool six = args[0].find(':') != std::string::npos;
  options.address = args.size() > 6 ? args[6] : six ? "::" : "0.0.0.0";
  if (args.size() > 5)
    options.credentials.uid = options.credentials.gid = number<std::uint32_t>(args[5]);
  std::uint16_t port = 0;
  if (args[1] == "-") {
    latchfs::nlm::NetOutside outside;
    const auto found = outside.port_of({args[0], "", tcp}, latchfs::nlm::kNlmProgram,
                                       latchfs::nlm::kNlmVersion, std::chrono::seconds{5});
    if (!found) throw std::runtime_error{"rpcbind: " + found.error().message()};
    port = *found;
  } else {
    port = number<std::uint16_t>(args[1]);
  }
  NlmClient client{port, options};
  LockCall call = client.request(0, 0, 10, 4711);
  call.what.handle = bytes_of(args[2]);
  const auto count = number<std::uint64_t>(args[3]);
  expect(client.lock(call), "the first lock");
  expect(client.unlock(call), "the first unlock");
  const auto begin = std::chrono::steady_clock::now();
  for (std::uint64_t i = 0; i < count; ++i) {
    expect(client.lock(call), "a lock");
    expect(client.unlock(call), "an unlock");
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  fmt::print(
      "{{\"transport\": \"{}\", \"pairs\": {}, \"seconds\": {:.3f}, \"pairs_per_second\": "
      "{:.0f}}}\n",
      tcp ? "tcp" : "udp", count, took.count(), static_cast<double>(count) / took.count());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run({argv + 1, argv + argc});
  } catch (const std::exception& e) {
    std::fprintf(stderr, "nlm_bench: %s\n", e.what());
    return 1;
  }
}
