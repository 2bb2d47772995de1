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

SEC("sk_msg")
int tb_verdict(struct sk_msg_md *msg)
{
	void *data = msg->data, *end = msg->data_end;
	const struct tb_desc *desc = data;
	struct tb_identity *me;
	struct tb_route *to = NULL;
	__u32 outcome, dst;
	__u64 *count;

	if (data + sizeof(*desc) > end)
		desc = NULL;
	me = bpf_sk_storage_get(&tb_who, msg->sk, NULL, 0);
	if (desc) {
		dst = desc->dst; /* the helper wants its key on the stack */
		to = bpf_map_lookup_elem(&tb_routes, &dst);
	}
	outcome = tb_decide(desc, msg->size, me, to);
	if (outcome == TB_VERDICT_OK && to) {
		__u32 sock = to->sock;

		if (bpf_msg_redirect_hash(msg, &tb_socks, &sock, BPF_F_INGRESS) != SK_PASS)
			outcome = TB_VERDICT_DEAD;
	}
	count = bpf_map_lookup_elem(&tb_cnt, &outcome);
	if (count)
		__sync_fetch_and_add(count, 1); /* two senders may meet on one CPU: the program can be preempted */
	return SK_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
