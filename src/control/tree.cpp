#include "control/tree.h"

#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <unordered_map>
#include <utility>

#include "base/clock.h"
#include "base/log.h"
#include "base/mutex.h"
#include "control/context.h"
#include "control/filelock_run.h"
#include "control/listing.h"
#include "control/open_file.h"
#include "control/open_request.h"
#include "control/pages.h"
#include "control/query.h"
#include "control/query_nodes.h"
#include "control/renderings.h"
#include "control/replies.h"
#include "control/shared_file.h"
#include "control/tree_nodes.h"
#include "control/visible.h"

namespace latchfs::control {
namespace {

using Which = FileView::Which;

timespec to_timespec(std::int64_t ns) {
  return {static_cast<time_t>(ns / 1'000'000'000), static_cast<long>(ns % 1'000'000'000)};
}

bool is_link(const FileEntry& entry) { return S_ISLNK(entry.attr.st_mode); }

constexpr std::size_t kBudget = std::size_t{64} << 20;
constexpr std::size_t kMaxOpen = 4096;
constexpr std::size_t kMaxOpenPerUser = 128;
constexpr std::size_t kMaxOpenForOthers = kMaxOpen / 2;

// What is read is made for who reads it, and changes with more than the locks (a file's name). An
// NFS client keeps it for all its users until the change time differs: so it does from one second
// to the next, and from one user to the other.
Result<NodeAttr> as_seen_by(const Caller& caller, Result<NodeAttr> node) {
  if (!node || !S_ISREG(node->attr.st_mode)) return node;
  const FixedName* const fixed = find_fixed(node->node);
  if (fixed != nullptr && fixed->what == Fixed::kReadme) return node;
  constexpr std::int64_t kSecond = 1'000'000'000;
  constexpr std::uint64_t kMixed = 0x9e3779b97f4a7c15U;
  const std::int64_t modified = node->attr.st_mtim.tv_sec * kSecond + node->attr.st_mtim.tv_nsec;
  // Who has written a request would read just that from his cache, as if it were a file: at once.
  const std::int64_t step = fixed != nullptr && takes_requests(fixed->what) ? 1 : kSecond;
  const std::int64_t lately = realtime_ns() / step * step;
  // Below 2^20 ns.
  const auto user = static_cast<std::int64_t>((std::uint64_t{caller.uid} + 1) * kMixed >> 44);
  node->attr.st_ctim = to_timespec(std::max(modified, lately) + user);
  return node;
}

}  // namespace

struct Tree::Impl {
  Impl(LockService& locks, FileView& files, Filelocks& filelocks, Options options)
      : context_{locks, files, filelocks, std::move(options)},
        renderings_{context_},
        readme_{std::make_shared<const std::string>(readme_text(context_.options()))} {}

  // ---- attributes
  NodeAttr make_attr(std::uint64_t node, mode_t mode, std::uint64_t size,
                     std::int64_t changed_ns) const;
  Result<NodeAttr> fixed_attr(const FixedName& fixed, const Caller& caller);
  Result<NodeAttr> listing_attr(std::uint64_t node, mode_t mode, const Scope& scope);
  NodeAttr reply_attr(std::uint64_t node, mode_t mode, const Reply& reply) const;
  Result<NodeAttr> mirror_attr(const FileEntry& entry, std::uint64_t node, const Caller& caller);
  Result<NodeAttr> root_attr();

  // Whom to show what is in the tree: the caller, or nobody in particular.
  Caller seen_by(const Caller& caller) const;
  Result<NodeAttr> look_up(std::uint64_t parent, std::string_view name, const Caller& caller);
  Result<NodeAttr> getattr(std::uint64_t node, const Caller& caller);

  // ---- listings
  Result<Scope> scope_of(ListKind kind, Query query, const Caller& caller) const;
  Scope scope_of_file(FileId file, const Caller& caller) const;
  // What tells listings of before a change from those after, and when the last one was.
  struct Stamp {
    std::int64_t number{};
    std::int64_t changed_ns{};
  };
  Result<Stamp> stamp_of(ListKind kind);
  Result<OpenListing::Begun> begin_listing(const Scope& scope);
  Result<std::shared_ptr<OpenFile>> open_listing(const Scope& scope);
  // The user's last reply, of that kind or of any.
  std::shared_ptr<OpenFile> open_reply(uid_t uid, std::optional<RequestKind> kind);
  // What a caller is to see. for_others: he opens for users he does not name (seen_by()).
  struct Opener {
    Caller caller;
    bool for_others{};
    bool kept{};  // by a server that does not close it when its user does
  };
  Result<std::shared_ptr<OpenFile>> open_node(std::uint64_t node, int flags, const Opener& opener);
  Result<std::shared_ptr<OpenFile>> open_fixed(Fixed what, int flags, const Opener& opener);
  std::shared_ptr<OpenFile> open_requests(Fixed what, int flags, const Opener& opener);

  // ---- names
  Result<NodeAttr> look_up_query(const ListName& list, std::string_view text, const Caller& caller);
  // As the caller, shown to the viewer.
  Result<NodeAttr> look_up_mirror(std::uint64_t parent, std::string_view name, const Caller& caller,
                                  const Caller& viewer);

  // ---- open files
  struct Open {
    std::shared_ptr<OpenFile> file;
    std::uint64_t node{};
    uid_t uid{};
  };
  // most: how many the user may have open.
  Result<std::uint64_t> add(std::shared_ptr<OpenFile> file, std::uint64_t node, uid_t uid,
                            std::size_t most);
  std::shared_ptr<OpenFile> find(std::uint64_t fh);

  Context context_;
  Renderings renderings_;
  Replies replies_;
  QueryNodes queries_;
  Budget budget_{kBudget};
  const std::shared_ptr<const std::string> readme_;
  const std::int64_t started_ns_{realtime_ns()};

  Mutex mu_;  // held over no call out
  std::unordered_map<std::uint64_t, Open> open_ GUARDED_BY(mu_);
  std::map<uid_t, std::size_t> open_per_user_ GUARDED_BY(mu_);
  std::uint64_t next_fh_ GUARDED_BY(mu_){1};
  // Filelocks::changes() as last seen, and when it was first seen: no clock comes with it.
  std::uint64_t filelocks_seen_ GUARDED_BY(mu_){context_.filelocks().changes()};
  std::int64_t filelocks_changed_ns_ GUARDED_BY(mu_){started_ns_};
};

// ---- attributes

// What a server reads for a user whom it does not name is for everybody.
Caller Tree::Impl::seen_by(const Caller& caller) const {
  if (!context_.files().hides_users(caller)) return caller;
  return kAnybody;
}

NodeAttr Tree::Impl::make_attr(std::uint64_t node, mode_t mode, std::uint64_t size,
                               std::int64_t changed_ns) const {
  NodeAttr out;
  out.node = node;
  out.attr.st_ino = node;
  out.attr.st_mode = mode;
  out.attr.st_nlink = S_ISDIR(mode) ? 2 : 1;
  out.attr.st_uid = ::geteuid();
  out.attr.st_gid = ::getegid();
  out.attr.st_size = static_cast<off_t>(size);
  out.attr.st_blocks = static_cast<blkcnt_t>((size + 511) / 512);
  out.attr.st_blksize = 4096;
  out.attr.st_mtim = out.attr.st_ctim = out.attr.st_atim =
      to_timespec(changed_ns > 0 ? changed_ns : started_ns_);
  return out;
}

Result<NodeAttr> Tree::Impl::root_attr() {
  return make_attr(kTreeRoot, S_IFDIR | 0555, 0, started_ns_);
}

Result<Tree::Impl::Stamp> Tree::Impl::stamp_of(ListKind kind) {
  if (kind == ListKind::kFilelocks) {
    const std::uint64_t changes = context_.filelocks().changes();
    const MutexLock lock{mu_};
    if (changes != filelocks_seen_) {
      filelocks_seen_ = changes;
      filelocks_changed_ns_ = realtime_ns();
    }
    return Stamp{static_cast<std::int64_t>(changes), filelocks_changed_ns_};
  }
  const auto stats = context_.locks().stats();
  if (!stats) return stats.error();
  return Stamp{stats->changed_at_ns, stats->changed_at_ns};
}

Result<NodeAttr> Tree::Impl::listing_attr(std::uint64_t node, mode_t mode, const Scope& scope) {
  const auto stamp = stamp_of(scope.kind);
  if (!stamp) return stamp.error();
  const auto size = renderings_.size(scope, stamp->number);
  if (!size) return size.error();
  return make_attr(node, mode, *size, stamp->changed_ns);
}

NodeAttr Tree::Impl::reply_attr(std::uint64_t node, mode_t mode, const Reply& reply) const {
  return make_attr(node, mode, (reply.text ? reply.text : no_reply())->size(), reply.at_ns);
}

Result<NodeAttr> Tree::Impl::fixed_attr(const FixedName& fixed, const Caller& caller) {
  const std::uint64_t node = node_of(fixed.what);
  const mode_t mode = S_IFREG | fixed.mode;
  switch (fixed.what) {
    case Fixed::kReadme:
      return make_attr(node, mode, readme_->size(), started_ns_);
    case Fixed::kList:
    case Fixed::kWaiters:
    case Fixed::kFilelock:
      return listing_attr(node, mode,
                          {kind_of(fixed.what), {}, std::nullopt, viewer_of(context_, caller)});
    case Fixed::kRelease:
      return reply_attr(node, mode, replies_.of(caller.uid, RequestKind::kRelease));
    case Fixed::kUnfilelock:
      return reply_attr(node, mode, replies_.of(caller.uid, RequestKind::kUnfilelock));
    case Fixed::kReply:
      return reply_attr(node, mode, replies_.of(caller.uid));
    case Fixed::kStatus: {
      const auto stats = context_.locks().stats();
      if (!stats) return stats.error();
      const auto text = status_text(context_, *stats, viewer_of(context_, caller));
      return make_attr(node, mode, text.size(), stats->changed_at_ns);
    }
  }
  return errno_code(ESTALE);
}

Result<NodeAttr> Tree::Impl::mirror_attr(const FileEntry& entry, std::uint64_t node,
                                         const Caller& caller) {
  if (S_ISDIR(entry.attr.st_mode)) {
    NodeAttr out;
    out.node = node;
    out.attr = entry.attr;
    out.attr.st_ino = node;
    out.generation = entry.generation;
    return out;
  }
  // A symbolic link is shown, so that listings of the directory are whole, but not followed.
  auto out = is_link(entry) ? Result<NodeAttr>{make_attr(node, S_IFREG | 0444, 0, started_ns_)}
                            : listing_attr(node, S_IFREG | 0444, scope_of_file(entry.id, caller));
  if (out) {
    out->attr.st_uid = entry.attr.st_uid;
    out->attr.st_gid = entry.attr.st_gid;
    out->generation = entry.generation;
  }
  return out;
}

// ---- listings

Result<Scope> Tree::Impl::scope_of(ListKind kind, Query query, const Caller& caller) const {
  Scope scope{kind, std::move(query), std::nullopt, viewer_of(context_, caller)};
  const bool walked_later = kind == ListKind::kFilelocks;
  if (scope.query.ref && !(walked_later && !scope.query.ref->path.empty())) {
    const auto file = context_.resolve(*scope.query.ref, caller);
    if (!file) return file.error();
    scope.file = *file;
  }
  return scope;
}

Scope Tree::Impl::scope_of_file(FileId file, const Caller& caller) const {
  return {ListKind::kGrants, {}, file, viewer_of(context_, caller)};
}

Result<OpenListing::Begun> Tree::Impl::begin_listing(const Scope& scope) {
  const auto stamp = stamp_of(scope.kind);
  if (!stamp) return stamp.error();
  auto reader = renderings_.open(scope, stamp->number);
  if (!reader) return reader.error();
  std::size_t charged = (*reader)->footprint() > kSmallText ? (*reader)->footprint() : 0;
  if (!budget_.take(charged)) {
    charged = 0;
    *reader = renderings_.open_lazily(scope);
  }
  return OpenListing::Begun{std::move(*reader), charged};
}

Result<std::shared_ptr<OpenFile>> Tree::Impl::open_listing(const Scope& scope) {
  auto begun = begin_listing(scope);
  if (!begun) return begun.error();
  return std::shared_ptr<OpenFile>{std::make_shared<OpenListing>(
      *std::move(begun), budget_, [this, scope] { return begin_listing(scope); })};
}

std::shared_ptr<OpenFile> Tree::Impl::open_reply(uid_t uid, std::optional<RequestKind> kind) {
  const auto text = [this, uid, kind]() -> Result<OpenText::Text> {
    const Reply reply = replies_.of(uid, kind);
    return reply.text ? reply.text : no_reply();
  };
  return std::make_shared<OpenText>(*text(), text);
}

std::shared_ptr<OpenFile> Tree::Impl::open_requests(Fixed what, int flags, const Opener& opener) {
  const Caller& caller = opener.caller;
  std::unique_ptr<Requests> requests;
  if (what == Fixed::kRelease) {
    requests = std::make_unique<ReleaseRequests>(context_);
  } else {
    const auto act = what == Fixed::kFilelock ? FilelockAct::kApply : FilelockAct::kRemove;
    requests = std::make_unique<FilelockRequests>(context_, act);
  }
  OpenRequest::Unasked unasked;
  if (what == Fixed::kFilelock) {
    // Only when it is read: `echo /a > filelock` never does.
    unasked = [this, caller] {
      return open_listing({ListKind::kFilelocks, {}, std::nullopt, viewer_of(context_, caller)});
    };
  } else {
    unasked = [this, uid = caller.uid, kind = requests->kind()] {
      return Result<std::shared_ptr<OpenFile>>{open_reply(uid, kind)};
    };
  }
  // What such a server's users write is asked as them; none of them is shown another's reply.
  const auto asked_too =
      opener.for_others ? std::nullopt : std::optional{viewer_of(context_, caller)};
  return std::make_shared<OpenRequest>(context_, replies_, budget_, std::move(requests), asked_too,
                                       opener.kept, flags, std::move(unasked));
}

Result<std::shared_ptr<OpenFile>> Tree::Impl::open_fixed(Fixed what, int flags,
                                                         const Opener& opener) {
  const Caller& caller = opener.caller;
  const bool to_write = (flags & O_ACCMODE) != O_RDONLY || (flags & O_TRUNC) != 0;
  if (to_write && !takes_requests(what)) return errno_code(EACCES);
  switch (what) {
    case Fixed::kReadme:
      return std::shared_ptr<OpenFile>{std::make_shared<OpenText>(
          readme_, [text = readme_] { return Result<OpenText::Text>{text}; })};
    case Fixed::kFilelock:
      if ((flags & O_ACCMODE) != O_RDONLY) return open_requests(what, flags, opener);
      [[fallthrough]];
    case Fixed::kList:
    case Fixed::kWaiters:
      return open_listing({kind_of(what), {}, std::nullopt, viewer_of(context_, caller)});
    case Fixed::kRelease:
    case Fixed::kUnfilelock:
      return open_requests(what, flags, opener);
    case Fixed::kReply:
      return open_reply(caller.uid, std::nullopt);
    case Fixed::kStatus: {
      const auto text = [this, viewer = viewer_of(context_, caller)]() -> Result<OpenText::Text> {
        const auto stats = context_.locks().stats();
        if (!stats) return stats.error();
        return std::make_shared<const std::string>(status_text(context_, *stats, viewer));
      };
      auto now = text();
      if (!now) return now.error();
      return std::shared_ptr<OpenFile>{std::make_shared<OpenText>(*std::move(now), text)};
    }
  }
  return errno_code(ESTALE);
}

Result<std::shared_ptr<OpenFile>> Tree::Impl::open_node(std::uint64_t node, int flags,
                                                        const Opener& opener) {
  const Caller& caller = opener.caller;
  if (node == kTreeRoot) return errno_code(EISDIR);
  if (const FixedName* fixed = find_fixed(node)) return open_fixed(fixed->what, flags, opener);
  const bool to_write = (flags & O_ACCMODE) != O_RDONLY || (flags & O_TRUNC) != 0;
  if (is_mirror(node)) {
    const auto entry = context_.files().getattr(mirrored(node));
    if (!entry) return entry.error();
    if (S_ISDIR(entry->attr.st_mode)) return errno_code(EISDIR);
    if (to_write) return errno_code(EACCES);
    if (is_link(*entry)) return errno_code(ELOOP);
    return open_listing(scope_of_file(entry->id, caller));
  }
  auto found = queries_.find(query_number(node));
  if (!found) return errno_code(ESTALE);
  if (to_write) return errno_code(EACCES);
  const auto scope = scope_of(found->kind, std::move(found->query), caller);
  if (!scope) return scope.error();
  return open_listing(*scope);
}

// ---- names

Result<NodeAttr> Tree::Impl::look_up_query(const ListName& list, std::string_view text,
                                           const Caller& caller) {
  auto parsed = parse_query(text, list.kind);
  if (const auto* bad = std::get_if<Malformed>(&parsed)) {
    log::debug("query of uid {} pid {}: {}", caller.uid, caller.pid, log::printable(bad->why));
    return errno_code(EINVAL);
  }
  const Query& query = std::get<Query>(parsed);
  const auto scope = scope_of(list.kind, query, caller);
  if (!scope) return scope.error();
  if (canonical(query).empty()) {
    return fixed_attr(*find_fixed(node_of(list.whole)), caller);
  }
  // The size first: a lookup that fails must leave no reference.
  auto attr = listing_attr(0, S_IFREG | 0444, *scope);
  if (!attr) return attr;
  const auto number = queries_.look_up(list.kind, query);
  if (!number) return number.error();
  attr->node = attr->attr.st_ino = kControlBit | *number;
  return attr;
}

Result<NodeAttr> Tree::Impl::look_up_mirror(std::uint64_t parent, std::string_view name,
                                            const Caller& caller, const Caller& viewer) {
  if (parent == kFilesNode) {
    if (name == "..") return root_attr();
    // What the tree shadows in the mount it shadows here.
    if (name == context_.options().name) return errno_code(ENOENT);
  }
  const bool up = name == "..";
  const auto entry =
      up || name == "."
          ? context_.files().revive(mirrored(parent), up ? Which::kItsDirectory : Which::kItself)
          : context_.files().lookup(mirrored(parent), name, caller);
  if (!entry) return entry.error();
  auto attr = mirror_attr(*entry, kControlBit | kMirrorBit | entry->node, viewer);
  if (!attr && entry->node != FileView::kRootNode) context_.files().forget(entry->node, 1);
  return attr;
}

// ---- open files

Result<std::uint64_t> Tree::Impl::add(std::shared_ptr<OpenFile> file, std::uint64_t node, uid_t uid,
                                      std::size_t most) {
  const MutexLock lock{mu_};
  std::size_t& mine = open_per_user_[uid];
  if (open_.size() >= kMaxOpen || mine >= most) {
    if (mine == 0) open_per_user_.erase(uid);
    return errno_code(ENFILE);
  }
  const std::uint64_t fh = next_fh_++;
  open_.emplace(fh, Open{std::move(file), node, uid});
  ++mine;
  return fh;
}

std::shared_ptr<OpenFile> Tree::Impl::find(std::uint64_t fh) {
  const MutexLock lock{mu_};
  const auto found = open_.find(fh);
  return found == open_.end() ? nullptr : found->second.file;
}

// ---- the interface

Tree::Tree(LockService& locks, FileView& files, Filelocks& filelocks, Options options)
    : impl_{std::make_unique<Impl>(locks, files, filelocks, std::move(options))} {}
Tree::~Tree() = default;

Result<NodeAttr> Tree::lookup(std::uint64_t parent, std::string_view name, const Caller& caller) {
  return as_seen_by(caller, impl_->look_up(parent, name, caller));
}

Result<NodeAttr> Tree::Impl::look_up(std::uint64_t parent, std::string_view name,
                                     const Caller& caller) {
  if (name.size() > NAME_MAX) return errno_code(ENAMETOOLONG);
  const Caller viewer = seen_by(caller);
  if (is_mirror(parent) && !(parent == kFilesNode && name == ".")) {
    return look_up_mirror(parent, name, caller, viewer);
  }
  if (name == ".") return getattr(parent, viewer);
  if (parent != kTreeRoot) return errno_code(name == ".." ? ESTALE : ENOTDIR);
  if (name == kFilesName) return getattr(kFilesNode, viewer);
  if (name == "..") {
    const auto entry = context_.files().getattr(FileView::kRootNode);
    if (!entry) return entry.error();
    return NodeAttr{FileView::kRootNode, entry->attr};
  }
  for (const FixedName& fixed : kFixed) {
    if (fixed.name == name) return fixed_attr(fixed, viewer);
  }
  const auto question = name.find('?');
  if (question == std::string_view::npos) return errno_code(ENOENT);
  const std::string_view what = name.substr(0, question);
  for (const ListName& list : kLists) {
    if (list.name == what) {
      return look_up_query(list, name.substr(question + 1), viewer);
    }
  }
  return errno_code(ENOENT);
}

void Tree::forget(std::uint64_t node, std::uint64_t count) noexcept {
  if (is_mirror(node)) {
    // files/ itself is never referenced in the mount: its root does not go away.
    if (node != kFilesNode) impl_->context_.files().forget(mirrored(node), count);
  } else if (is_query(node)) {
    impl_->queries_.forget(query_number(node), count);
  }
}

Result<NodeAttr> Tree::getattr(std::uint64_t node, const Caller& caller) {
  return as_seen_by(caller, impl_->getattr(node, impl_->seen_by(caller)));
}

Result<NodeAttr> Tree::Impl::getattr(std::uint64_t node, const Caller& caller) {
  if (node == kTreeRoot) return root_attr();
  if (const FixedName* fixed = find_fixed(node)) return fixed_attr(*fixed, caller);
  if (is_mirror(node)) {
    const auto entry = context_.files().getattr(mirrored(node));
    if (!entry) return entry.error();
    return mirror_attr(*entry, node, caller);
  }
  auto found = queries_.find(query_number(node));
  if (!found) return errno_code(ESTALE);
  const auto scope = scope_of(found->kind, std::move(found->query), caller);
  if (!scope) return scope.error();
  return listing_attr(node, S_IFREG | 0444, *scope);
}

Result<NodeAttr> Tree::setattr(std::uint64_t node, const Change& change, const Caller& caller) {
  const FixedName* fixed = find_fixed(node);
  const bool writable = fixed != nullptr && takes_requests(fixed->what);
  const bool harmless = !change.mode && !change.owner && (!change.size || change.new_size == 0);
  if (!writable || !harmless) return errno_code(EPERM);
  return getattr(node, caller);
}

Result<std::vector<FileName>> Tree::readdir(std::uint64_t node) {
  if (node != kTreeRoot) return errno_code(ENOTDIR);
  std::vector<FileName> names{{std::string{kFilesName}, kFilesNode, S_IFDIR}};
  for (const FixedName& fixed : kFixed) {
    names.push_back({std::string{fixed.name}, node_of(fixed.what), S_IFREG});
  }
  return names;
}

Result<std::uint64_t> Tree::open(std::uint64_t node, int flags, const Caller& caller) {
  const Caller viewer = impl_->seen_by(caller);
  const bool for_others = viewer.uid != caller.uid;
  const bool shared = !for_others && impl_->context_.files().shares_files(caller);
  auto file = impl_->open_node(node, flags, {viewer, for_others, for_others || shared});
  if (!file) return file.error();
  if (shared) {
    *file = std::make_shared<SharedFile>(
        [this, node, flags](const Caller& user) {
          return impl_->open_node(node, flags, {user, false, true});
        },
        caller, *std::move(file));
  }
  // From here on the node must not give way. (It may have between the two; that is harmless: the
  // file does not need it.)
  if (is_query(node)) impl_->queries_.opened(query_number(node));
  const std::size_t most = for_others                                 ? kMaxOpenForOthers
                           : impl_->context_.files().is_admin(viewer) ? kMaxOpen
                                                                      : kMaxOpenPerUser;
  auto fh = impl_->add(std::move(*file), node, viewer.uid, most);
  if (!fh && is_query(node)) impl_->queries_.closed(query_number(node));
  return fh;
}

Result<std::string> Tree::read(std::uint64_t fh, std::uint64_t offset, std::size_t size,
                               const Caller& caller) {
  const auto file = impl_->find(fh);
  return file ? file->read(offset, size, caller) : Result<std::string>{errno_code(EBADF)};
}

Result<std::size_t> Tree::write(std::uint64_t fh, std::uint64_t offset, std::string_view data,
                                const Caller& caller) {
  const auto file = impl_->find(fh);
  return file ? file->write(offset, data, caller) : Result<std::size_t>{errno_code(EBADF)};
}

Result<void> Tree::flush(std::uint64_t fh, const Caller& caller) {
  const auto file = impl_->find(fh);
  return file ? file->flush(caller) : Result<void>{errno_code(EBADF)};
}

void Tree::release(std::uint64_t fh) noexcept {
  Impl::Open gone;
  {
    const MutexLock lock{impl_->mu_};
    const auto found = impl_->open_.find(fh);
    if (found == impl_->open_.end()) return;
    gone = std::move(found->second);
    impl_->open_.erase(found);
    const auto mine = impl_->open_per_user_.find(gone.uid);
    if (mine != impl_->open_per_user_.end() && --mine->second == 0) {
      impl_->open_per_user_.erase(mine);
    }
  }
  if (is_query(gone.node)) impl_->queries_.closed(query_number(gone.node));
  gone.file->close();
}

}  // namespace latchfs::control
