// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0
/* Decides for every 32-byte record that a worker sends on its anchor socket whether it goes straight into the destination's
 * socket or, by normal TCP, to the node daemon at the other end. README.md tells of the maps.
 *
 * Every path returns SK_PASS. A drop verdict is sticky (each later send on that socket fails with EACCES), and the redirect
 * helper returns SK_DROP when the target is missing: its value is only counted. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "ebpf/verdict_logic.h"

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, TB_MAX_SOCKETS);
	__type(key, __u32);
	__type(value, __u64); /* 8 bytes, so that user space may read an entry: it gets the socket's cookie */
} tb_socks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct tb_identity);
} tb_who SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, TB_MAX_ROUTES);
	__type(key, __u32);
	__type(value, struct tb_route);
} tb_routes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TB_VERDICTS);
	__type(key, __u32);
	__type(value, __u64);
} tb_cnt SEC(".maps");

static __always_inline void count(__u32 outcome)
{
	__u64 *counter = bpf_map_lookup_elem(&tb_cnt, &outcome);

	if (counter)
		__sync_fetch_and_add(counter, 1); /* two senders may meet on one CPU: the program can be preempted */
}

SEC("sk_msg")
int tb_verdict(struct sk_msg_md *msg)
{
	void *data = msg->data, *end = msg->data_end;
	struct tb_identity *me;
	struct tb_route *to;
	struct tb_desc desc;
	__u32 outcome, sock;

	/* A branch of its own and a copy, so that no pointer into the message is ever compared with null: without CAP_PERFMON, which
	 * the daemon does not need otherwise, the verifier lets such a pointer be compared with the message's end only. */
	if (data + sizeof(desc) > end) {
		count(tb_decide(NULL, msg->size, NULL, NULL));
		return SK_PASS;
	}
	desc = *(const struct tb_desc *)data;
	me = bpf_sk_storage_get(&tb_who, msg->sk, NULL, 0);
	to = bpf_map_lookup_elem(&tb_routes, &desc.dst);
	outcome = tb_decide(&desc, msg->size, me, to);
	if (outcome == TB_VERDICT_OK && to) {
		sock = to->sock;
		if (bpf_msg_redirect_hash(msg, &tb_socks, &sock, BPF_F_INGRESS) != SK_PASS)
			outcome = TB_VERDICT_DEAD;
	}
	count(outcome);
	return SK_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
