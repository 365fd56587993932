// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * corpus.c - reads documentation, headers and scripts of this machine.
 *
 * Each folder of the list gives its share; what a small one leaves over goes
 * to the next. Files that are compressed are unpacked, files that are not
 * text are left out, files that cannot be read are passed over. The texts lie
 * in one shared mapping made before the demo forks: the owner and the third
 * count read the same bytes even when a package is being upgraded meanwhile.
 * The only failures are no memory and no text at all. Main thread.
 */
#include <errno.h>
#include <fts.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <zlib.h>

#include "corpus.h"

#define LONGEST_TEXT (4UL << 20)

/* Small ones first: they leave more to the others. */
static const char *const folders[] = {
	"/usr/share/common-licenses",
	"/usr/share/perl",
	"/usr/lib/python3.11",
	"/usr/lib/python3",
	"/usr/include",
	"/usr/share/doc",
};
#define FOLDERS (sizeof(folders) / sizeof(folders[0]))

static int by_name(const FTSENT **a, const FTSENT **b)
{
	return strcmp((*a)->fts_name, (*b)->fts_name);
}

static int add_document(struct corpus *corpus, size_t length)
{
	struct document *grown = corpus->documents;

	if ((corpus->count & (corpus->count - 1)) == 0) {	/* 0, 1, 2, 4, ...: full */
		grown = reallocarray(grown, corpus->count ? 2 * corpus->count : 1, sizeof(*grown));
		if (!grown)
			return -ENOMEM;
		corpus->documents = grown;
	}
	grown[corpus->count].text = corpus->texts + corpus->bytes;
	grown[corpus->count].length = length;
	corpus->count++;
	corpus->bytes += length;
	return 0;
}

/* gzread() hands plain files through as they are. */
static int read_file(struct corpus *corpus, const char *path)
{
	size_t room = corpus->capacity - corpus->bytes;
	char *text = corpus->texts + corpus->bytes;
	gzFile file;
	int length;

	if (room > LONGEST_TEXT)
		room = LONGEST_TEXT;
	file = gzopen(path, "rbe");
	if (!file)
		return 0;
	length = gzread(file, text, (unsigned int)room);
	gzclose(file);
	if (length <= 0 || memchr(text, 0, (size_t)length))
		return 0;
	return add_document(corpus, (size_t)length);
}

static int read_folder(struct corpus *corpus, const char *folder, size_t share)
{
	char *const paths[] = { (char *)folder, NULL };
	size_t end = corpus->bytes + share;
	FTSENT *entry;
	FTS *tree;
	int ret = 0;

	tree = fts_open(paths, FTS_PHYSICAL | FTS_NOCHDIR, by_name);
	if (!tree)
		return -errno;
	while (!ret && corpus->bytes < end && (entry = fts_read(tree)))
		if (entry->fts_info == FTS_F)
			ret = read_file(corpus, entry->fts_path);
	fts_close(tree);
	return ret;
}

int corpus_read(struct corpus *corpus, size_t want)
{
	int ret = 0;

	memset(corpus, 0, sizeof(*corpus));
	corpus->capacity = want + LONGEST_TEXT;
	corpus->texts = mmap(NULL, corpus->capacity, PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (corpus->texts == MAP_FAILED) {
		corpus->texts = NULL;
		return -errno;
	}
	for (size_t i = 0; !ret && i < FOLDERS && corpus->bytes < want; i++)
		ret = read_folder(corpus, folders[i], (want - corpus->bytes) / (FOLDERS - i));
	if (!ret && !corpus->count)
		ret = -ENOENT;
	if (ret)
		corpus_free(corpus);
	return ret;
}

void corpus_free(struct corpus *corpus)
{
	if (corpus->texts)
		munmap(corpus->texts, corpus->capacity);
	free(corpus->documents);
	memset(corpus, 0, sizeof(*corpus));
}
