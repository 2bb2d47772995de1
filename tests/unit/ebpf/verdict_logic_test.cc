// The verdict of ebpf/verdict_logic.h, as the host compiles it: what the kernel compiles is the same text.
#include "ebpf/verdict_logic.h"

#include <gtest/gtest.h>

#include <array>
#include <random>
#include <set>

#include "ebpf/verdict_program.h"

namespace tributary::ebpf {
namespace {

constexpr uint32_t kMe = 7, kDomain = 3, kOther = 9;

struct Case {
  tb_desc desc{.dst = 5, .src = kMe, .key_hi = 1, .key_lo = 2, .round = 3, .kind = TB_KIND_UPDATE, .lane = 0};
  uint32_t size = sizeof(tb_desc);
  tb_identity me{.id = kMe, .domain = kDomain};
  tb_route to{.domain = kDomain, .sock = 5, .flags = 0, .epoch = 1};
  bool has_desc = true, has_me = true, has_to = true;
  tb_verdict Decide() const { return tb_decide(has_desc ? &desc : nullptr, size, has_me ? &me : nullptr, has_to ? &to : nullptr); }
};

TEST(VerdictLogicTest, ARecordOfItsOwnDomainWithARouteGoesThrough) { EXPECT_EQ(Case{}.Decide(), TB_VERDICT_OK); }

TEST(VerdictLogicTest, OnlyExactlyThirtyTwoReadableBytesAreARecord) {
  for (const uint32_t size : {0u, 1u, 31u, 33u, 64u, 96u, 0xffffffffu}) {
    Case c;
    c.size = size;
    EXPECT_EQ(c.Decide(), TB_VERDICT_BAD_SIZE) << size;
  }
  Case unreadable;
  unreadable.has_desc = false;
  EXPECT_EQ(unreadable.Decide(), TB_VERDICT_BAD_SIZE);
}

// Every combination of everything that can be wrong. The expected verdict is the first wrong thing in the documented order, found
// here from a list instead of by the same chain of ifs.
TEST(VerdictLogicTest, TheWholeTruthTable) {
  struct Fault {
    tb_verdict verdict;
    void (*make)(Case&);
  };
  const std::array<Fault, 10> faults = {{
      {TB_VERDICT_BAD_SIZE, [](Case& c) { c.size = 31; }},
      {TB_VERDICT_BAD_SIZE, [](Case& c) { c.size = 64; }},
      {TB_VERDICT_BAD_SIZE, [](Case& c) { c.has_desc = false; }},
      {TB_VERDICT_NO_IDENT, [](Case& c) { c.has_me = false; }},
      {TB_VERDICT_FORGED, [](Case& c) { c.desc.src = kOther; }},
      {TB_VERDICT_NO_ROUTE, [](Case& c) { c.has_to = false; }},
      {TB_VERDICT_DOMAIN, [](Case& c) { c.to.domain = kDomain + 1; }},
      {TB_VERDICT_REMOTE, [](Case& c) { c.to.flags |= TB_ROUTE_REMOTE; }},
      {TB_VERDICT_PAUSED, [](Case& c) { c.to.flags |= TB_ROUTE_PAUSED; }},
      {TB_VERDICT_OK, [](Case& c) { c.to.epoch = 0xffffffff; }},  // no fault at all
  }};
  std::set<tb_verdict> seen;
  for (uint32_t mask = 0; mask < (1u << faults.size()); ++mask) {
    Case c;
    tb_verdict expected = TB_VERDICT_OK;
    for (size_t i = faults.size(); i-- > 0;) {
      if ((mask >> i & 1) == 0) continue;
      faults[i].make(c);
      if (faults[i].verdict != TB_VERDICT_OK) expected = faults[i].verdict;
    }
    ASSERT_EQ(c.Decide(), expected) << "mask " << mask;
    seen.insert(expected);
  }
  EXPECT_EQ(seen.size(), static_cast<size_t>(TB_VERDICT_DEAD)) << "all but dead, which only the redirect can find out";
}

// Random fields of few values, so that equalities happen; the oracle states each verdict's condition in full, without an order.
TEST(VerdictLogicTest, RandomRecordsAgreeWithAnOrderlessOracle) {
  std::mt19937 random(20261125);
  const auto draw = [&random](uint32_t n) { return static_cast<uint32_t>(random() % n); };
  std::array<uint32_t, TB_VERDICTS> hits{};
  for (int i = 0; i < 300'000; ++i) {
    Case c;
    c.size = draw(8) == 0 ? draw(70) : 32;
    c.has_desc = draw(16) != 0;
    c.has_me = draw(8) != 0;
    c.has_to = draw(8) != 0;
    c.desc = {.dst = draw(3), .src = draw(3), .key_hi = random(), .key_lo = random(), .round = draw(9), .kind = static_cast<uint16_t>(draw(6)),
              .lane = static_cast<uint16_t>(random())};
    c.me = {.id = draw(3), .domain = draw(2)};
    c.to = {.domain = draw(2), .sock = draw(3), .flags = draw(8), .epoch = draw(4)};
    const bool sized = c.size == 32 && c.has_desc;
    const bool honest = sized && c.has_me && c.me.id == c.desc.src;
    const bool allowed = honest && c.has_to && c.me.domain == c.to.domain;
    const std::array<bool, TB_VERDICTS> holds = {
        allowed && (c.to.flags & 3) == 0,                        // ok
        !sized,                                                  // bad_size
        sized && !c.has_me,                                      // no_ident
        sized && c.has_me && c.me.id != c.desc.src,              // forged
        honest && !c.has_to,                                     // no_route
        honest && c.has_to && c.me.domain != c.to.domain,        // domain
        allowed && (c.to.flags & TB_ROUTE_REMOTE) != 0,          // remote
        allowed && (c.to.flags & 3) == TB_ROUTE_PAUSED,          // paused
        false,                                                   // dead
    };
    const tb_verdict got = c.Decide();
    for (uint32_t verdict = 0; verdict < TB_VERDICTS; ++verdict) ASSERT_EQ(holds[verdict], got == verdict) << "record " << i << ", verdict " << verdict;
    ++hits[got];
  }
  for (uint32_t verdict = 0; verdict < TB_VERDICT_DEAD; ++verdict) EXPECT_GT(hits[verdict], 100u) << NameOf(static_cast<tb_verdict>(verdict));
}

TEST(VerdictLogicTest, EveryVerdictHasItsOwnName) {
  std::set<std::string_view> names;
  for (uint32_t verdict = 0; verdict < TB_VERDICTS; ++verdict) names.insert(NameOf(static_cast<tb_verdict>(verdict)));
  EXPECT_EQ(names.size(), static_cast<size_t>(TB_VERDICTS));
  EXPECT_EQ(NameOf(static_cast<tb_verdict>(TB_VERDICTS)), "unknown");
}

}  // namespace
}  // namespace tributary::ebpf
