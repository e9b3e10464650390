#include "base/log.h"

#include <fcntl.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/sinks/syslog_sink.h>
#include <spdlog/spdlog.h>
#include <syslog.h>

#include <atomic>
#include <memory>

#include "base/unique_fd.h"

namespace latchfs::log {
namespace {

std::atomic<Level> g_least{Level::kInfo};

spdlog::level::level_enum to_spdlog(Level level) {
  switch (level) {
    case Level::kDebug:
      return spdlog::level::debug;
    case Level::kInfo:
      return spdlog::level::info;
    case Level::kWarn:
      return spdlog::level::warn;
    case Level::kError:
      return spdlog::level::err;
  }
  return spdlog::level::err;
}

spdlog::sink_ptr make_sink(const std::string& target) {
  if (target == "stderr") return std::make_shared<spdlog::sinks::stderr_sink_mt>();
  if (target == "syslog") {
    return std::make_shared<spdlog::sinks::syslog_sink_mt>("latchfs", LOG_PID, LOG_DAEMON, true);
  }
  return std::make_shared<spdlog::sinks::basic_file_sink_mt>(target);
}

}  // namespace

Result<void> open(const std::string& target, Level least) {
  if (target != "stderr" && target != "syslog") {
    if (target.empty() || target.front() != '/') return errno_code(EINVAL);
    // Created here and not by spdlog: 0600 whatever the umask, never through a symlink.
    const UniqueFd fd{
        ::open(target.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600)};
    if (!fd) return last_errno();
  }
  try {
    auto logger = std::make_shared<spdlog::logger>("latchfs", make_sink(target));
    logger->set_level(to_spdlog(least));
    logger->flush_on(spdlog::level::info);
    if (target != "syslog") logger->set_pattern("%Y-%m-%dT%H:%M:%S.%f%z [%P] %l: %v");
    spdlog::set_default_logger(std::move(logger));
  } catch (const spdlog::spdlog_ex&) {
    return errno_code(EIO);
  }
  g_least.store(least, std::memory_order_relaxed);
  return {};
}

bool enabled(Level level) noexcept { return level >= g_least.load(std::memory_order_relaxed); }

void write(Level level, std::string_view text) noexcept {
  try {
    spdlog::log(to_spdlog(level), "{}", text);
  } catch (...) {
    // Nowhere left to say it.
  }
}

std::string printable(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char ch : text) {
    const auto byte = static_cast<unsigned char>(ch);
    if (byte < 0x20 || byte == 0x7f || byte == '\\') {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += ch;
    }
  }
  return out;
}

}  // namespace latchfs::log
