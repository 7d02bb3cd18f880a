/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Samples of dropped frames: the first that a CPU drops for a queue and outcome, and
 * then each SAMPLE_EVERY-th. Each CPU writes into a ring of its own that nobody waits
 * for; how many there were in all, the counters say exactly.
 */
#ifndef XGW_SAMPLE_H
#define XGW_SAMPLE_H

#include "clock.h"
#include "maps.h"

static __always_inline void sample_drop(void *data, void *end, __u64 length, __u32 row,
					__u32 outcome, __u64 ordinal, const struct clock *clock)
{
	__u32 zero = 0, place;
	__u64 *cursor;
	struct drop_sample *s;
	__u16 captured = 0;

	if ((ordinal & (SAMPLE_EVERY - 1)) != 1)
		return;
	cursor = bpf_map_lookup_elem(&sample_cursor, &zero);
	if (!cursor)
		return;
	place = *cursor % DROP_SAMPLES;
	s = bpf_map_lookup_elem(&drop_samples, &place);
	if (!s)
		return;
	s->time = clock_now(clock);
	s->ordinal = ordinal;
	s->queue = row;
	s->length = length;
	s->outcome = outcome;
	for (int i = 0; i < SAMPLE_HEAD / 4; i++) {
		if (data + 4 * i + 4 > end) {
			__u8 *tail = data + 4 * i;
			__u32 word = 0;

			for (int k = 0; k < 3 && (void *)(tail + k + 1) <= end; k++) {
				word |= (__u32)tail[k] << (8 * k);
				captured++;
			}
			s->head[i] = word;
			break;
		}
		s->head[i] = *(__u32 *)(data + 4 * i);
		captured += 4;
	}
	s->captured = captured;
	*cursor += 1;
}

#endif
