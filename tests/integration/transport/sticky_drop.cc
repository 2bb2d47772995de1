#include "tests/integration/transport/sticky_drop.h"

#include <bpf/bpf.h>

#include "ebpf/bpf_status.h"
#include "sticky_drop.skel.h"

namespace tributary::testing {

struct StickyDrop::Impl {
  sticky_drop_bpf* skeleton = nullptr;
  ~Impl() { sticky_drop_bpf__destroy(skeleton); }
};

StickyDrop::StickyDrop(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
StickyDrop::~StickyDrop() = default;

absl::StatusOr<std::unique_ptr<StickyDrop>> StickyDrop::Load() {
  auto impl = std::make_unique<Impl>();
  impl->skeleton = sticky_drop_bpf__open_and_load();
  if (impl->skeleton == nullptr) return ebpf::BpfStatus(-errno, "load the sticky program");
  TRIB_RETURN_IF_ERROR(ebpf::BpfStatus(bpf_prog_attach(bpf_program__fd(impl->skeleton->progs.sticky_drop), bpf_map__fd(impl->skeleton->maps.socks),
                                                       BPF_SK_MSG_VERDICT, 0), "attach the sticky program"));
  return std::unique_ptr<StickyDrop>(new StickyDrop(std::move(impl)));
}

absl::Status StickyDrop::Insert(uint32_t key, int socket_fd) {
  return ebpf::BpfStatus(bpf_map_update_elem(bpf_map__fd(impl_->skeleton->maps.socks), &key, &socket_fd, BPF_ANY), "insert a socket");
}

}  // namespace tributary::testing
