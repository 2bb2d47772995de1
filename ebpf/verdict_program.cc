#include "ebpf/verdict_program.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/bpf.h>

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <utility>

#include "common/log.h"
#include "common/unique_fd.h"
#include "ebpf/bpf_status.h"
#include "ebpf/verdict_pins.h"
#include "verdict.skel.h"

namespace tributary::ebpf {
namespace {

constexpr char kLinkPin[] = "link";
constexpr const char* kPins[] = {"tb_socks", "tb_who", "tb_routes", "tb_cnt", kLinkPin};
constexpr size_t kMaxWarningBytes = 64 * 1024;
thread_local std::string* warnings_here = nullptr;

int Collect(enum libbpf_print_level level, const char* format, va_list arguments) {
  if (warnings_here == nullptr || warnings_here->size() > kMaxWarningBytes) return 0;
  if (level != LIBBPF_WARN) return 0;
  char* line = nullptr;  // the verifier's log comes as one text, and its end tells what is wrong
  const int length = ::vasprintf(&line, format, arguments);
  if (length > 0) warnings_here->append(line);
  std::free(line);
  return length;
}

struct Destroyer {
  void operator()(verdict_bpf* skeleton) const { verdict_bpf__destroy(skeleton); }
};
using Skeleton = std::unique_ptr<verdict_bpf, Destroyer>;

std::array<bpf_map*, 4> MapsOf(verdict_bpf& skeleton) {
  return {skeleton.maps.tb_socks, skeleton.maps.tb_who, skeleton.maps.tb_routes, skeleton.maps.tb_cnt};
}

// Loads program and maps; with `pins`, maps that are pinned there are reused and new ones pinned.
absl::StatusOr<Skeleton> LoadSkeleton(const PinFolder* pins) {
  CapturedWarnings warnings;
  Skeleton skeleton(verdict_bpf__open());
  if (!skeleton) return BpfStatus(-errno, "load: open the skeleton", &warnings);
  if (pins != nullptr) {
    for (bpf_map* map : MapsOf(*skeleton)) {
      TRIB_RETURN_IF_ERROR(BpfStatus(bpf_map__set_pin_path(map, pins->PathOf(bpf_map__name(map)).c_str()), "load: pin path", &warnings));
    }
  }
  TRIB_RETURN_IF_ERROR(BpfStatus(verdict_bpf__load(skeleton.get()), "load: verdict program", &warnings));
  return skeleton;
}

bool AllMapsPinned(const PinFolder& pins) {
  return std::ranges::all_of(kPins, [&pins](const char* name) { return name == kLinkPin || pins.Has(name); });
}

class LoadedProgram final : public VerdictProgram {
 public:
  LoadedProgram(Skeleton skeleton, UniqueFd link, std::optional<PinFolder> pins, ProgramFacts facts)
      : skeleton_(std::move(skeleton)), link_(std::move(link)), pins_(std::move(pins)), facts_(std::move(facts)) {}

  absl::Status SetIdentity(int socket_fd, const tb_identity& identity) override {
    return BpfStatus(bpf_map_update_elem(Fd(skeleton_->maps.tb_who), &socket_fd, &identity, BPF_ANY),
                     fmt::format("tb_who: set identity {} on a socket", identity.id));
  }

  absl::Status SetRoute(uint32_t destination, const tb_route& route) override {
    return BpfStatus(bpf_map_update_elem(Fd(skeleton_->maps.tb_routes), &destination, &route, BPF_ANY),
                     fmt::format("tb_routes: set {}", destination));
  }
  absl::StatusOr<tb_route> GetRoute(uint32_t destination) override {
    tb_route route{};
    TRIB_RETURN_IF_ERROR(BpfStatus(bpf_map_lookup_elem(Fd(skeleton_->maps.tb_routes), &destination, &route),
                                   fmt::format("tb_routes: look up {}", destination)));
    return route;
  }
  absl::Status DeleteRoute(uint32_t destination) override {
    return BpfStatus(bpf_map_delete_elem(Fd(skeleton_->maps.tb_routes), &destination), fmt::format("tb_routes: delete {}", destination));
  }
  absl::StatusOr<std::vector<std::pair<uint32_t, tb_route>>> Routes() override {
    std::vector<std::pair<uint32_t, tb_route>> routes;
    uint32_t key = 0;
    int result = bpf_map_get_next_key(Fd(skeleton_->maps.tb_routes), nullptr, &key);
    while (result == 0) {
      tb_route route{};
      if (bpf_map_lookup_elem(Fd(skeleton_->maps.tb_routes), &key, &route) == 0) routes.emplace_back(key, route);
      // A key deleted meanwhile makes the kernel begin again: the bound keeps that finite.
      if (routes.size() > TB_MAX_ROUTES) return Aborted("tb_routes: changed while it was read");
      result = bpf_map_get_next_key(Fd(skeleton_->maps.tb_routes), &key, &key);
    }
    if (result != -ENOENT) return BpfStatus(result, "tb_routes: walk");
    return routes;
  }

  absl::Status InsertSocket(uint32_t key, int socket_fd) override {
    const uint64_t value = static_cast<uint64_t>(static_cast<uint32_t>(socket_fd));
    return BpfStatus(bpf_map_update_elem(Fd(skeleton_->maps.tb_socks), &key, &value, BPF_ANY), fmt::format("tb_socks: insert {}", key));
  }
  absl::Status DeleteSocket(uint32_t key) override {
    return BpfStatus(bpf_map_delete_elem(Fd(skeleton_->maps.tb_socks), &key), fmt::format("tb_socks: delete {}", key));
  }
  absl::StatusOr<bool> HasSocket(uint32_t key) override {
    uint64_t cookie = 0;
    const int result = bpf_map_lookup_elem(Fd(skeleton_->maps.tb_socks), &key, &cookie);
    if (result == -ENOENT) return false;
    TRIB_RETURN_IF_ERROR(BpfStatus(result, fmt::format("tb_socks: look up {}", key)));
    return true;
  }

  absl::StatusOr<VerdictCounts> Counts() override {
    const int cpus = libbpf_num_possible_cpus();
    TRIB_RETURN_IF_ERROR(BpfStatus(cpus, "tb_cnt: number of processors"));
    std::vector<uint64_t> per_cpu(static_cast<size_t>(cpus));
    VerdictCounts counts{};
    for (uint32_t verdict = 0; verdict < TB_VERDICTS; ++verdict) {
      TRIB_RETURN_IF_ERROR(BpfStatus(bpf_map_lookup_elem(Fd(skeleton_->maps.tb_cnt), &verdict, per_cpu.data()), "tb_cnt: read"));
      for (const uint64_t count : per_cpu) counts[verdict] += count;
    }
    return counts;
  }

  absl::StatusOr<ProgramFacts> Facts() override {
    bpf_prog_info info{};
    uint32_t length = sizeof(info);
    TRIB_RETURN_IF_ERROR(BpfStatus(bpf_obj_get_info_by_fd(bpf_program__fd(skeleton_->progs.tb_verdict), &info, &length), "program info"));
    ProgramFacts facts = facts_;
    facts.program_id = info.id;
    facts.verified_instructions = info.verified_insns;
    facts.run_count = info.run_cnt;
    facts.run_ns = info.run_time_ns;
    return facts;
  }

  absl::Status Unpin() override {
    if (!pins_) return absl::OkStatus();
    TRIB_RETURN_IF_ERROR(pins_->Remove(kPins));
    pins_.reset();
    facts_.pinned = false;
    return absl::OkStatus();
  }

 private:
  static int Fd(const bpf_map* map) { return bpf_map__fd(map); }

  Skeleton skeleton_;
  UniqueFd link_;  // invalid: attached by bpf_prog_attach
  std::optional<PinFolder> pins_;
  ProgramFacts facts_;
};

// Attaches the program to tb_socks: adopts and updates the pinned link, or makes (and pins) one, or, on kernels without links for
// sock maps, attaches without. Returns the link, or an invalid fd for the last case.
absl::StatusOr<UniqueFd> Attach(verdict_bpf& skeleton, const PinFolder* pins) {
  const int program = bpf_program__fd(skeleton.progs.tb_verdict);
  const int map = bpf_map__fd(skeleton.maps.tb_socks);
  if (pins != nullptr && pins->Has(kLinkPin)) {
    UniqueFd link(bpf_obj_get(pins->PathOf(kLinkPin).c_str()));
    if (!link.valid()) return BpfStatus(link.get(), "link: open the pinned one");
    TRIB_RETURN_IF_ERROR(BpfStatus(bpf_link_update(link.get(), program, nullptr), "link: replace its program"));
    return link;
  }
  const int result = bpf_link_create(program, map, BPF_SK_MSG_VERDICT, nullptr);
  if (result >= 0) {
    UniqueFd link(result);
    if (pins != nullptr) TRIB_RETURN_IF_ERROR(BpfStatus(bpf_obj_pin(link.get(), pins->PathOf(kLinkPin).c_str()), "link: pin"));
    return link;
  }
  if (result == -EBUSY) return FailedPrecondition("link: another daemon's program is attached to tb_socks");
  if (result != -EINVAL && result != -EOPNOTSUPP && result != -ENOTSUP) return BpfStatus(result, "link: create");
  TRIB_RETURN_IF_ERROR(BpfStatus(bpf_prog_attach(program, map, BPF_SK_MSG_VERDICT, 0), "link: attach without a link"));
  return UniqueFd();
}

}  // namespace

CapturedWarnings::CapturedWarnings() {
  libbpf_set_print(&Collect);
  warnings_here = &text_;
}
CapturedWarnings::~CapturedWarnings() { warnings_here = nullptr; }

std::string CapturedWarnings::Tail() const {
  constexpr size_t kTailBytes = 400;
  std::string tail = text_.size() > kTailBytes ? text_.substr(text_.size() - kTailBytes) : text_;
  for (char& c : tail) {
    if (c == '\n') c = ' ';
  }
  while (!tail.empty() && tail.back() == ' ') tail.pop_back();
  return tail;
}

absl::StatusOr<std::unique_ptr<VerdictProgram>> LoadVerdictProgram(const LoadOptions& options) {
  ProgramFacts facts;
  std::optional<PinFolder> pins;
  if (!options.pin_folder.empty()) {
    absl::StatusOr<PinFolder> opened = PinFolder::Open(options.pin_folder);
    if (opened.ok()) {
      pins = *std::move(opened);
    } else if (opened.status().code() == absl::StatusCode::kFailedPrecondition) {
      return opened.status();
    } else {
      facts.pin_note = MessageOf(opened.status());
    }
  }
  Skeleton skeleton;
  if (pins && AllMapsPinned(*pins)) {
    absl::StatusOr<Skeleton> loaded = LoadSkeleton(&*pins);
    if (loaded.ok()) {
      skeleton = *std::move(loaded);
      facts.adopted = true;
    } else if (loaded.status().code() == absl::StatusCode::kPermissionDenied) {
      return loaded.status();
    } else {  // an older version's maps, of other sizes: nobody who used them can be served by this one
      facts.pin_note = fmt::format("older pins were replaced: {}", MessageOf(loaded.status()));
    }
  }
  if (!skeleton) {
    if (pins) TRIB_RETURN_IF_ERROR(pins->Clear(kPins));  // a half-made set, or one that does not fit
    TRIB_ASSIGN_OR_RETURN(skeleton, LoadSkeleton(pins ? &*pins : nullptr));
  }
  TRIB_ASSIGN_OR_RETURN(UniqueFd link, Attach(*skeleton, pins ? &*pins : nullptr));
  facts.by_link = link.valid();
  facts.pinned = pins.has_value();
  return std::unique_ptr<VerdictProgram>(new LoadedProgram(std::move(skeleton), std::move(link), std::move(pins), std::move(facts)));
}

bool BuiltWithBpf() { return true; }

}  // namespace tributary::ebpf
