/* SPDX-License-Identifier: GPL-2.0-or-later */
/* corpus.h - the texts that the demo indexes: this machine's own documentation and headers. */
#ifndef DEMO_CORPUS_H
#define DEMO_CORPUS_H

#include <stddef.h>

struct document {
	const char *text;
	size_t length;
};

struct corpus {
	struct document *documents;
	size_t count;
	size_t bytes;		/* of all texts together */
	char *texts;		/* one shared mapping, so that everybody counts the same bytes */
	size_t capacity;
};

/* Reads about @want bytes of text. Return: 0, or a negative errno. */
int corpus_read(struct corpus *corpus, size_t want);
void corpus_free(struct corpus *corpus);

#endif
