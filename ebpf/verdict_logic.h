/* The verdict on one record, as a pure function: compiled for BPF by verdict.bpf.c and for the host by its unit test.
 * Source: dataplane.md §6. Null pointers mean "there is none". Reads nothing but its arguments, changes nothing, cannot fail.
 * The order of the checks is part of the contract: what is said about a record that is wrong in two ways is the first of them. */
#pragma once

#include "common/abi/dataplane_abi.h"

/* desc: the record, NULL if its 32 bytes cannot be read. size: bytes of the message. me: the sending socket's identity.
 * to: the route of desc->dst. TB_VERDICT_OK means "redirect to to->sock"; that may still find nobody (TB_VERDICT_DEAD). */
static inline enum tb_verdict tb_decide(const struct tb_desc *desc, uint32_t size, const struct tb_identity *me,
                                        const struct tb_route *to)
{
	if (size != sizeof(struct tb_desc) || !desc)
		return TB_VERDICT_BAD_SIZE;
	if (!me)
		return TB_VERDICT_NO_IDENT;
	if (me->id != desc->src)
		return TB_VERDICT_FORGED;
	if (!to)
		return TB_VERDICT_NO_ROUTE;
	if (me->domain != to->domain)
		return TB_VERDICT_DOMAIN;
	if (to->flags & TB_ROUTE_REMOTE)
		return TB_VERDICT_REMOTE;
	if (to->flags & TB_ROUTE_PAUSED)
		return TB_VERDICT_PAUSED;
	return TB_VERDICT_OK;
}
