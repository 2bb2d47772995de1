// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0
/* The mistake that released code makes, as the baseline of T14: the redirect helper's value is the program's verdict. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u32);
} socks SEC(".maps");

SEC("sk_msg")
int sticky_drop(struct sk_msg_md *msg)
{
	void *data = msg->data, *end = msg->data_end;
	__u32 to = 0;

	if (data + sizeof(to) <= end)
		to = *(__u32 *)data;
	return bpf_msg_redirect_hash(msg, &socks, &to, BPF_F_INGRESS);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
