#include "support/kernel_switch.h"

#include <fstream>
#include <utility>

namespace latchfs::test {
namespace {

std::string value_of(const std::string& path) {
  std::ifstream in{path};
  std::string text;
  std::getline(in, text);
  return text;
}

void write_value(const std::string& path, const std::string& value) {
  std::ofstream{path} << value << '\n';
}

}  // namespace

KernelSwitch::KernelSwitch(std::string path, const std::string& value)
    : path_{std::move(path)}, before_{value_of(path_)} {
  if (before_ != value) write_value(path_, value);
  ok_ = value_of(path_) == value;
}

KernelSwitch::~KernelSwitch() {
  if (value_of(path_) != before_) write_value(path_, before_);
}

}  // namespace latchfs::test
