#include "crash/step_image.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "store/shm/region.h"

namespace latchfs::test {
namespace {

using shm::kPage;

std::byte* map_whole(int fd, std::size_t bytes) {
  void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  return at == MAP_FAILED ? nullptr : static_cast<std::byte*>(at);
}

}  // namespace

std::unique_ptr<Image> Image::open(const std::string& name) {
  if (name.empty()) return nullptr;
  UniqueFd fd{::shm_open(name.c_str(), O_RDWR | O_CLOEXEC, 0)};
  struct stat st {};
  if (!fd || ::fstat(fd.get(), &st) != 0 || st.st_size == 0) return nullptr;
  const auto bytes = static_cast<std::size_t>(st.st_size);
  std::byte* base = map_whole(fd.get(), bytes);
  if (base == nullptr) return nullptr;
  return std::unique_ptr<Image>{new Image{std::move(fd), base, bytes}};
}

std::unique_ptr<Image> Image::create(const std::string& name, std::size_t bytes) {
  UniqueFd fd{::shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600)};
  if (!fd || ::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) return nullptr;
  std::byte* base = map_whole(fd.get(), bytes);
  if (base == nullptr) return nullptr;
  return std::unique_ptr<Image>{new Image{std::move(fd), base, bytes}};
}

Image::~Image() { ::munmap(base_, bytes_); }

const std::byte* Image::page(std::size_t i) const { return base_ + i * kPage; }
std::byte* Image::page(std::size_t i) { return base_ + i * kPage; }

std::set<std::size_t> Image::pages_in_use() const {
  static const std::array<std::byte, kPage> zeros{};
  std::set<std::size_t> found;
  // Reading a hole would fill it.
  for (off_t at = 0; (at = ::lseek(fd_.get(), at, SEEK_DATA)) >= 0;) {
    const off_t end = ::lseek(fd_.get(), at, SEEK_HOLE);
    for (; at < end; at += static_cast<off_t>(kPage)) {
      const std::size_t i = static_cast<std::size_t>(at) / kPage;
      if (std::memcmp(page(i), zeros.data(), kPage) != 0) found.insert(i);
    }
  }
  return found;
}

// (Opening makes the file where there is none; an act that makes a table finds it empty.)
WatchedTable::WatchedTable(const std::string& table, std::set<std::size_t> pages)
    : registry_{*shm::Registry::open(table)}, pages_{std::move(pages)} {
  look_again();
  changed();
}

void WatchedTable::look_again() {
  const std::string name = registry_.named() ? registry_.region_name() : "";
  // The end of the name's file may come before or after that of the memory's.
  if (!name.empty() && name != name_) image_.reset();
  name_ = name;
  linked_ = !name.empty() && ::access(("/dev/shm/" + name).c_str(), F_OK) == 0;
  if (image_ != nullptr || !linked_) return;
  image_ = Image::open(name);
  shadow_.assign(image_ != nullptr ? pages_.size() * kPage : 0, std::byte{0});
}

bool WatchedTable::changed() {
  if (image_ == nullptr) return false;
  bool any = false;
  std::byte* old = shadow_.data();
  for (const std::size_t i : pages_) {
    if (std::memcmp(old, image_->page(i), kPage) != 0) {
      std::memcpy(old, image_->page(i), kPage);
      any = true;
    }
    old += kPage;
  }
  return any;
}

bool WatchedTable::copy_to(const std::string& table, std::unique_ptr<Image>& copy) const {
  copy.reset();
  auto registry = shm::Registry::open(table);
  if (!registry) return false;
  if (name_.empty() || !linked_) return registry->set_region_name(name_).ok();
  const auto fresh = shm::Registry::fresh_region_name(table);
  if (!fresh || !registry->set_region_name(*fresh)) return false;
  // It may have no size yet: then it is an empty one that is copied.
  copy = Image::create(*fresh, image_ != nullptr ? image_->bytes() : 0);
  if (image_ == nullptr) return true;
  if (copy == nullptr) return false;
  for (const std::size_t i : pages_) std::memcpy(copy->page(i), image_->page(i), kPage);
  return true;
}

bool WatchedTable::missed_a_page() const {
  if (image_ == nullptr) return false;
  const auto in_use = image_->pages_in_use();
  return !std::includes(pages_.begin(), pages_.end(), in_use.begin(), in_use.end());
}

const std::vector<std::size_t>& table_mutexes() {
  static const std::vector<std::size_t> all = [] {
    std::vector<std::size_t> at{offsetof(shm::Header, grow_mu)};
    for (std::size_t i = 0; i < shm::kShardCount; ++i) {
      at.push_back(shm::kShardsAt + i * shm::kShardStride + offsetof(shm::Shard, mu));
    }
    return at;
  }();
  return all;
}

void remove_table(const std::string& table) {
  auto registry = shm::Registry::open(table);
  if (!registry) return;
  shm::Region::remove(registry->region_name());
  registry->remove();
}

}  // namespace latchfs::test
