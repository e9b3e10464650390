// A mount in a process of its own that does what it is told, line by line: so that two can be held
// at fault points and let go on in any order, or killed there.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

namespace latchfs::test {

// As --actor TABLE: reads commands, writes an answer to each.
//
//   arm SPEC          fault points; armed
//   begin [N]         so many writes of the file by this mount: granted, conflict (the last one)
//   begin_unsound     the same by code that looks first and then says that it is there
//   end               the end of all that were begun: ended
//   lock              exclusive, not waiting: granted, conflict
//   wait              the same, waiting: granted, queued; got: waits until it is granted: granted
//   unlock            released
//   list              number of operations listed
//   verify            ok, or what is wrong
//   quit
int run_actor(const std::string& table);

class Actor {
 public:
  explicit Actor(const std::string& table);
  ~Actor();
  Actor(const Actor&) = delete;
  Actor& operator=(const Actor&) = delete;

  void tell(const std::string& command);
  // To what it was told first of all that is not answered; "dead" if it will not.
  std::string answer();
  std::string ask(const std::string& command) {
    tell(command);
    return answer();
  }
  void kill();

 private:
  pid_t pid_{-1};
  int to_{-1}, from_{-1};
};

// Where somebody is held until it is opened.
class Gate {
 public:
  Gate();
  ~Gate() { open(); }
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;

  [[nodiscard]] std::string at(const std::string& fault_point) const {
    return fault_point + "=hold:" + path_;
  }
  // Until somebody is held here. False after a minute.
  [[nodiscard]] bool reached() const;
  void open();

 private:
  std::string path_;
};

}  // namespace latchfs::test
