#include "nfs4_client.h"

#include <unistd.h>

#include <cstring>
#include <sstream>
#include <utility>
#include <vector>

#include "rpc_loop.h"

namespace latchfs::testing {
namespace {

constexpr int kNfsProgram = 100003;

nfs_argop4 operation(nfs_opnum4 number) {
  nfs_argop4 out{};
  out.argop = number;
  return out;
}

std::uint64_t length_of(const NlmRange& range) {
  return range.length == 0 ? UINT64_MAX : range.length;
}

}  // namespace

Nfs4Client::Nfs4Client(const std::string& server)
    : rpc_{rpc_init_context()}, owner_{"owner " + std::to_string(::getpid())} {
  connect(rpc_, server, kNfsProgram, 4, "connect");
}

Nfs4Client::~Nfs4Client() { rpc_destroy_context(rpc_); }

Nfs4Client::Answer Nfs4Client::ask(std::vector<nfs_argop4> operations) {
  COMPOUND4args args{};
  args.argarray.argarray_len = static_cast<u_int>(operations.size());
  args.argarray.argarray_val = operations.data();
  Answer answer;
  const auto answered = [](struct rpc_context* rpc, int status, void* data, void* to) {
    if (status != RPC_STATUS_SUCCESS) give_up("compound", rpc_get_error(rpc));
    const auto* const said = static_cast<const COMPOUND4res*>(data);
    auto* const out = static_cast<Answer*>(to);
    out->status = said->status;
    const nfs_resop4* const results = said->resarray.resarray_val;
    out->results.assign(results, results + said->resarray.resarray_len);
    for (const nfs_resop4& one : out->results) {
      if (one.resop != OP_GETFH || one.nfs_resop4_u.opgetfh.status != NFS4_OK) continue;
      const nfs_fh4& fh = one.nfs_resop4_u.opgetfh.GETFH4res_u.resok4.object;
      out->handle.assign(fh.nfs_fh4_val, fh.nfs_fh4_len);
    }
    out->done = true;
  };
  if (rpc_nfs4_compound_async(rpc_, answered, &args, &answer) != 0) give_up("compound", "");
  serve(rpc_, answer.done, "compound");
  return answer;
}

nfs_argop4 Nfs4Client::put_handle() {
  nfs_argop4 out = operation(OP_PUTFH);
  nfs_fh4& fh = out.nfs_argop4_u.opputfh.object;
  fh.nfs_fh4_len = static_cast<u_int>(handle_.size());
  fh.nfs_fh4_val = handle_.data();
  return out;
}

int Nfs4Client::come_back_as(const std::string& name) {
  std::string id = name;
  std::string netid = "tcp";
  std::string nowhere = "0.0.0.0.0.0";
  nfs_argop4 set = operation(OP_SETCLIENTID);
  SETCLIENTID4args& to = set.nfs_argop4_u.opsetclientid;
  std::memcpy(to.client.verifier, "reclaims", sizeof(to.client.verifier));
  to.client.id.id_len = static_cast<u_int>(id.size());
  to.client.id.id_val = id.data();
  to.callback.cb_program = 0x40000000;
  to.callback.cb_location.r_netid = netid.data();
  to.callback.cb_location.r_addr = nowhere.data();
  const Answer said = ask({set});
  if (said.status != NFS4_OK) return said.status;
  const SETCLIENTID4resok& ok = said.results[0].nfs_resop4_u.opsetclientid.SETCLIENTID4res_u.resok4;
  client_ = ok.clientid;
  nfs_argop4 confirm = operation(OP_SETCLIENTID_CONFIRM);
  confirm.nfs_argop4_u.opsetclientid_confirm.clientid = client_;
  std::memcpy(confirm.nfs_argop4_u.opsetclientid_confirm.setclientid_confirm,
              ok.setclientid_confirm, sizeof(verifier4));
  return ask({confirm}).status;
}

nfs_argop4 Nfs4Client::open_call(std::uint32_t access) {
  nfs_argop4 out = operation(OP_OPEN);
  OPEN4args& how = out.nfs_argop4_u.opopen;
  how.seqid = open_seqid_++;
  how.share_access = access;
  how.share_deny = OPEN4_SHARE_DENY_NONE;
  how.owner.clientid = client_;
  how.owner.owner.owner_len = static_cast<u_int>(owner_.size());
  how.owner.owner.owner_val = owner_.data();
  how.openhow.opentype = OPEN4_NOCREATE;
  return out;
}

int Nfs4Client::confirm_open(const OPEN4res& opened) {
  const OPEN4resok& ok = opened.OPEN4res_u.resok4;
  open_ = ok.stateid;
  if ((ok.rflags & OPEN4_RESULT_CONFIRM) == 0) return NFS4_OK;
  nfs_argop4 confirm = operation(OP_OPEN_CONFIRM);
  confirm.nfs_argop4_u.opopen_confirm.open_stateid = open_;
  confirm.nfs_argop4_u.opopen_confirm.seqid = open_seqid_++;
  const Answer said = ask({put_handle(), confirm});
  if (said.status != NFS4_OK) return said.status;
  open_ = said.results[1].nfs_resop4_u.opopen_confirm.OPEN_CONFIRM4res_u.resok4.open_stateid;
  return NFS4_OK;
}

int Nfs4Client::open_again() {
  nfs_argop4 again =
      open_call(range_.exclusive ? OPEN4_SHARE_ACCESS_BOTH : OPEN4_SHARE_ACCESS_READ);
  open_claim4& claim = again.nfs_argop4_u.opopen.claim;
  claim.claim = CLAIM_PREVIOUS;
  claim.open_claim4_u.delegate_type = OPEN_DELEGATE_NONE;
  const Answer said = ask({put_handle(), again});
  if (said.status != NFS4_OK) return said.status;
  return confirm_open(said.results[1].nfs_resop4_u.opopen);
}

int Nfs4Client::open(const std::string& path) {
  std::vector<std::string> names;
  std::istringstream words{path};
  for (std::string name; std::getline(words, name, '/');) {
    if (!name.empty()) names.push_back(name);
  }
  if (names.empty()) give_up("open", "no path");
  std::vector<nfs_argop4> calls{operation(OP_PUTROOTFH)};
  for (std::size_t i = 0; i + 1 < names.size(); ++i) {
    nfs_argop4 step = operation(OP_LOOKUP);
    step.nfs_argop4_u.oplookup.objname = {static_cast<u_int>(names[i].size()), names[i].data()};
    calls.push_back(step);
  }
  nfs_argop4 last = open_call(OPEN4_SHARE_ACCESS_WRITE);
  open_claim4& claim = last.nfs_argop4_u.opopen.claim;
  claim.claim = CLAIM_NULL;
  claim.open_claim4_u.file = {static_cast<u_int>(names.back().size()), names.back().data()};
  calls.push_back(last);
  calls.push_back(operation(OP_GETFH));
  const Answer said = ask(calls);
  if (said.status != NFS4_OK) return said.status;
  handle_ = said.handle;
  return confirm_open(said.results[names.size()].nfs_resop4_u.opopen);
}

int Nfs4Client::write(const std::string& client, const std::string& path, std::string text) {
  if (const int status = come_back_as(client); status != NFS4_OK) return status;
  if (const int status = open(path); status != NFS4_OK) return status;
  nfs_argop4 put = operation(OP_WRITE);
  WRITE4args& what = put.nfs_argop4_u.opwrite;
  what.stateid = open_;
  what.stable = FILE_SYNC4;
  what.data.data_len = static_cast<u_int>(text.size());
  what.data.data_val = text.data();
  const int written = ask({put_handle(), put}).status;
  nfs_argop4 end = operation(OP_CLOSE);
  end.nfs_argop4_u.opclose.seqid = open_seqid_++;
  end.nfs_argop4_u.opclose.open_stateid = open_;
  const int closed = ask({put_handle(), end}).status;
  return written != NFS4_OK ? written : closed;
}

int Nfs4Client::lock() {
  nfs_argop4 again = operation(OP_LOCK);
  LOCK4args& what = again.nfs_argop4_u.oplock;
  what.locktype = range_.exclusive ? WRITE_LT : READ_LT;
  what.reclaim = 1;
  what.offset = range_.start;
  what.length = length_of(range_);
  what.locker.new_lock_owner = 1;
  open_to_lock_owner4& owner = what.locker.locker4_u.open_owner;
  owner.open_seqid = open_seqid_++;
  owner.open_stateid = open_;
  owner.lock_seqid = 0;
  owner.lock_owner.clientid = client_;
  owner.lock_owner.owner.owner_len = static_cast<u_int>(owner_.size());
  owner.lock_owner.owner.owner_val = owner_.data();
  const Answer said = ask({put_handle(), again});
  if (said.status != NFS4_OK) return said.status;
  lock_ = said.results[1].nfs_resop4_u.oplock.LOCK4res_u.resok4.lock_stateid;
  return NFS4_OK;
}

int Nfs4Client::reclaim(const std::string& client, const std::string& handle,
                        const NlmRange& range) {
  handle_ = handle;
  range_ = range;
  if (const int status = come_back_as(client); status != NFS4_OK) return status;
  if (const int status = open_again(); status != NFS4_OK) return status;
  return lock();
}

int Nfs4Client::renew() {
  nfs_argop4 lease = operation(OP_RENEW);
  lease.nfs_argop4_u.oprenew.clientid = client_;
  return ask({lease}).status;
}

int Nfs4Client::unlock() {
  nfs_argop4 end = operation(OP_LOCKU);
  LOCKU4args& what = end.nfs_argop4_u.oplocku;
  what.locktype = range_.exclusive ? WRITE_LT : READ_LT;
  what.seqid = 1;
  what.lock_stateid = lock_;
  what.offset = range_.start;
  what.length = length_of(range_);
  return ask({put_handle(), end}).status;
}

}  // namespace latchfs::testing
