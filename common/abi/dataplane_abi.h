/* Byte formats shared by processes on one node: descriptors, lanes, object headers, partial slabs. C and C++; a change of any
 * size or meaning raises TB_ABI_VERSION. Drawn in aggregator/store/LAYOUT.md and aggregator/transport/LANES.md.
 * Everything read through these structs in shared memory is untrusted: copy, check, use the copy. */
#pragma once

#ifdef __cplusplus
#include <cstdint>
#define TB_STATIC_ASSERT(condition) static_assert(condition)
extern "C" {
#else
#include <stdint.h>
#define TB_STATIC_ASSERT(condition) _Static_assert(condition, #condition)
#endif

#define TB_ABI_VERSION 4u
#define TB_MAX_LANE_CAPACITY 4096u

/* The last two are wake-ups: records of SK_MSG transports that never lie in a lane. */
enum tb_kind { TB_KIND_UPDATE = 1, TB_KIND_PARTIAL = 2, TB_KIND_DOORBELL = 3, TB_KIND_CREDIT = 4 };

/* Names one object and where it goes. dst and src are issued centrally and never reused within a job. */
struct tb_desc {
  uint32_t dst, src;
  uint64_t key_hi; /* pool:16 | segment:16 | slot:32 */
  uint64_t key_lo; /* must equal the object header's nonce */
  uint32_t round;
  uint16_t kind, lane;
};
TB_STATIC_ASSERT(sizeof(struct tb_desc) == 32);

/* What the kernel's verdict program knows (ebpf/README.md). The daemon writes both; nobody else can. */
#define TB_MAX_SOCKETS 4096u
#define TB_MAX_ROUTES 16384u
struct tb_identity { /* of a socket: who speaks through it */
  uint32_t id, domain;
};
TB_STATIC_ASSERT(sizeof(struct tb_identity) == 8);
enum tb_route_flag { TB_ROUTE_REMOTE = 1, TB_ROUTE_PAUSED = 2 };
struct tb_route { /* of a destination: where its records go. epoch: of the anchor behind it; a stale owner is told by a lower one */
  uint32_t domain, sock, flags, epoch;
};
TB_STATIC_ASSERT(sizeof(struct tb_route) == 16);
/* What became of a record, and the index of its counter. Everything but OK arrives at the daemon's end of the sender's anchor. */
enum tb_verdict {
  TB_VERDICT_OK = 0,
  TB_VERDICT_BAD_SIZE = 1, /* not one record of 32 bytes */
  TB_VERDICT_NO_IDENT = 2, /* the socket has no identity */
  TB_VERDICT_FORGED = 3,   /* src is not the socket's identity */
  TB_VERDICT_NO_ROUTE = 4,
  TB_VERDICT_DOMAIN = 5,   /* the destination belongs to another domain */
  TB_VERDICT_REMOTE = 6,   /* lives on another node: the daemon forwards */
  TB_VERDICT_PAUSED = 7,   /* being moved or removed */
  TB_VERDICT_DEAD = 8,     /* has a route and no socket: cold, or dead */
  TB_VERDICTS = 9
};

enum tb_object_state { TB_FREE = 0, TB_WRITING = 1, TB_PUBLISHED = 2, TB_RETIRED = 3 };

#define TB_OBJECT_MAGIC 0x31424f54u /* "TOB1" */
struct tb_object_header {
  uint32_t magic, abi_version;
  uint64_t nonce;
  uint32_t generation, state;
  uint32_t domain, owner_id;
  uint64_t owner_epoch;
  uint32_t job, round;
  uint64_t layout_id; /* first 8 bytes of the layout fingerprint */
  uint64_t payload_bytes;
  double weight;      /* effective, as the fold applies it */
  uint64_t update_hi, update_lo;
  double sum_squares; /* of the float region, from the ingress pass */
  uint32_t crc32c;    /* of the payload */
  uint32_t dtype;
  uint64_t contributors;
  uint64_t weight_runs; /* tb_weight_run after the payload, from the next multiple of 8 on; 0: all elements have `weight` */
  uint8_t reserved[8];
};
TB_STATIC_ASSERT(sizeof(struct tb_object_header) == 128);

/* Float elements from the end of the run before to `end` are folded with weight × factor. */
struct tb_weight_run {
  uint64_t end;
  double factor;
};
TB_STATIC_ASSERT(sizeof(struct tb_weight_run) == 16);

/* A lane: one producer, one consumer. Cursors are free-running; credits = capacity - (head - done). */
#define TB_LANE_MAGIC 0x314e4c54u /* "TLN1" */
struct tb_lane_header {
  uint32_t magic, abi_version, capacity, epoch; /* daemon line */
  uint32_t paused;
  uint8_t pad0[44];
  uint32_t head, want_credit; /* producer line */
  uint64_t doorbells, stalls; /* rings and records sent to the consumer; times that a row of pushes found no credit. For people */
  uint8_t pad1[40];
  uint32_t tail, done, asleep, pad2; /* consumer line */
  uint64_t credits, late_wakeups;    /* rings sent to the producer; sleeps that missed a ring. For people */
  uint8_t pad3[32];
};
TB_STATIC_ASSERT(sizeof(struct tb_lane_header) == 192);

/* A slab: the accumulators of one seat of a worker (a range of the elements, or all of them), kept so that kill -9 at any
 * instruction is repairable.
 *
 *   | header 4096 B | undo block | accumulators (elements × bytes_per_element) | counters (i64) |
 *
 * A batch is some updates, or some partials, that go in together: write batch[], batch_weight[], batch_done_cursor, total_after,
 * batch_number + 1, blocks_done = 0, then batch_size = n (release). Block b of it: save block b to undo; undo_block = b + 1 (release);
 * fold in place; blocks_done = b + 1 (release); undo_block = 0 (release). A fresh accumulator needs no undo: a fresh fold ignores
 * what is there. After the last block: counters (repeatable: a maximum), fresh = 0, total = total_after, completed_cursor =
 * batch_done_cursor, then completed_batch = batch_number (release; this store is the commit), batch_size = 0, and only then the
 * lane's `done`. Every step before the commit may be repeated by a replacement without changing the result: it restores the block
 * that undo_block > blocks_done names, goes on with the recorded batch at blocks_done, and gives the lanes' `done` the values that
 * completed_cursor and total.merged imply where the old process did not come to that.
 *
 * A lap is the life of one partial: it begins when the daemon empties the slab (or keeps its sums, see LAYOUT.md) and ends when the
 * parent has merged it. `published = lap` is the leaf's word that nothing here changes before the next lap. */
#define TB_SLAB_MAGIC 0x314c5354u /* "TSL1" */
#define TB_MAX_BATCH 16
#define TB_MAX_CHILDREN 64u /* partials of one lap that a seat can tell apart: bits of `merged` */

/* What is in the sums. Un-normalised: only the root divides. */
struct tb_slab_totals {
  uint64_t folded; /* updates, those inside merged partials included */
  double weight;   /* their sum of weights, in order of arrival (for people; commits sum weights order-free) */
  uint64_t digest; /* sum of tb_mix(key_lo) over their descriptors: which updates, in any order */
  uint64_t merged; /* bit c: the partial of child c of this lap is in */
};
TB_STATIC_ASSERT(sizeof(struct tb_slab_totals) == 32);

struct tb_slab_header {
  uint32_t magic, abi_version;
  uint64_t first_element, elements;
  uint32_t bytes_per_element, counters;
  uint64_t undo_offset, state_offset, counters_offset, total_bytes;
  uint32_t round, lap; /* daemon, at the beginning of a lap */
  uint64_t nonce;      /* key_lo of this lap's partial */
  uint32_t fresh;      /* accumulators hold nothing yet */
  uint32_t published;  /* == lap: complete */
  uint32_t batch_size; /* 0: no batch under way */
  uint32_t batch_number, completed_batch; /* equal: batch batch_number is in */
  uint32_t batch_done_cursor; /* lane `done` value once this batch is complete */
  uint32_t completed_cursor;  /* lane `done` value of every update folded or refused so far */
  uint32_t blocks_done, undo_block;
  uint32_t reserved;
  struct tb_slab_totals total, total_after; /* after: once this batch is complete */
  uint64_t busy_ns, handled; /* time spent on updates and partials, and their number: statistics, never a decision */
  struct tb_desc batch[TB_MAX_BATCH];
  double batch_weight[TB_MAX_BATCH];
};
TB_STATIC_ASSERT(sizeof(struct tb_slab_header) <= 4096);

/* splitmix64's finaliser: spreads a nonce over all bits, so that sums of two sets of nonces differ unless the sets are equal. */
static inline uint64_t tb_mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

#ifdef __cplusplus
}
#endif
