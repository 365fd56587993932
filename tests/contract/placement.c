// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Memory policies: whose they are, and for whom they hold. A shadow is placed once, by the
 * mapping that hmmd makes of it; others allocate its pages later, in other ways.
 *
 * Needs two memory nodes. What can fail: pages that lie where nobody asked for them.
 */
#include "contract.h"
#include "proto/uapi.h"

#include <numaif.h>
#include <sys/mman.h>

#define NODES_MAX 1024
#define PAGES 8UL
#define HUGE_FREE "/sys/devices/system/node/node%d/hugepages/hugepages-2048kB/free_hugepages"

TestSuite(placement, .init = contract_begin);

struct nodes {
	unsigned long word[NODES_MAX / 64];
};

static struct nodes only(int node)
{
	struct nodes nodes = { 0 };

	nodes.word[node / 64] = 1UL << (node % 64);
	return nodes;
}

/* Two nodes that have memory of their own: not the one of this processor first. */
static void two_nodes(int *one, int *other)
{
	struct nodes allowed = { 0 };
	char path[64], text[32];
	int found[2], count = 0;

	if (get_mempolicy(NULL, allowed.word, NODES_MAX, NULL, MPOL_F_MEMS_ALLOWED))
		skip("this kernel has no memory policies");
	for (int node = 0; node < NODES_MAX && count < 2; node++) {
		snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/numastat", node);
		if (allowed.word[node / 64] >> (node % 64) & 1 && read_setting(path, text, sizeof(text)))
			found[count++] = node;
	}
	if (count < 2)
		skip("there is one memory node");
	*one = found[1];
	*other = found[0];
}

static void place_on(void *mem, size_t length, int mode, struct nodes nodes)
{
	cr_assert_eq(mbind(mem, length, mode, nodes.word, NODES_MAX + 1, 0), 0, "mbind: %s", strerror(errno));
}

/* Of a page that is mapped here. */
static int node_of(const void *page)
{
	void *pages[] = { (void *)page };
	int status = -1;

	cr_assert_eq(move_pages(0, 1, pages, NULL, &status, 0), 0);
	return status;
}

static char *shadow_new(int *fd, int mode, struct nodes nodes)
{
	char *plain;

	*fd = memfd_new("shadow", BLOCK, 0);
	plain = map_memfd(*fd, BLOCK, 0);
	place_on(plain, BLOCK, mode, nodes);
	return plain;
}

static void expect_all(const char *mem, size_t first, size_t pages, int node, const char *how)
{
	for (size_t i = first; i < first + pages; i++) {
		/* Mapped, so that the kernel tells where it is. */
		cr_assert_neq(mem[i * PAGE], 77);
		cr_expect_eq(node_of(mem + i * PAGE), node, "%s: page %zu is on node %d", how, i, node_of(mem + i * PAGE));
	}
}

struct filler {
	int fd;
	char *bytes;
};

/* In another process, by every way that puts pages into a shadow. */
static void fill(void *arg)
{
	struct filler *filler = arg;
	char *mem = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, filler->fd, 0);
	int uffd = uffd_new();

	child_check(mem != MAP_FAILED);
	for (size_t i = 0; i < PAGES; i++)
		mem[i * PAGE] = 1;
	child_check(pwrite(filler->fd, filler->bytes, PAGES * PAGE, PAGES * PAGE) == (ssize_t)(PAGES * PAGE));
	child_check(!fallocate(filler->fd, 0, 2 * PAGES * PAGE, PAGES * PAGE));
	child_check(uffd >= 0 && !uffd_api(uffd, 0));
	child_check(!uffd_register(uffd, mem, BLOCK, MISSING));
	child_check(!uffd_copy(uffd, mem + 3 * PAGES * PAGE, filler->bytes, PAGES * PAGE, 0));
	child_check(!uffd_zeropage(uffd, mem + 4 * PAGES * PAGE, PAGES * PAGE));
	_exit(0);
}

static void check_ways(const char *plain, int node, const char *when)
{
	static const char *const ways[] = { "a store", "pwrite", "fallocate", "UFFDIO_COPY", "UFFDIO_ZEROPAGE" };
	char how[64];

	for (size_t way = 0; way < 5; way++) {
		snprintf(how, sizeof(how), "%s, %s", ways[way], when);
		expect_all(plain, way * PAGES, PAGES, node, how);
	}
}

/* The policy is the file's: it holds for later pages, other mappings, other processes; and when its mapping is gone. */
Test(placement, of_a_memfd_lives_in_the_file)
{
	struct filler filler = { .bytes = map_pages(PAGES) };
	int node, other;
	char *plain;

	two_nodes(&node, &other);
	memset(filler.bytes, 3, PAGES * PAGE);
	for (int turn = 0; turn < 2; turn++) {
		int there = turn ? other : node;

		plain = shadow_new(&filler.fd, MPOL_BIND, only(there));
		child_passed(child_start(fill, &filler));
		check_ways(plain, there, "the mapping is there");
		munmap(plain, BLOCK);
		cr_assert_eq(punch(filler.fd, 0, BLOCK), 0);
		child_passed(child_start(fill, &filler));
		plain = map_memfd(filler.fd, BLOCK, 0);
		check_ways(plain, there, "its mapping is gone");
		munmap(plain, BLOCK);
		close(filler.fd);
	}
}

/* Set again, it holds for what comes then; what lies there stays. */
Test(placement, of_a_memfd_may_change)
{
	struct filler filler = { .bytes = map_pages(PAGES) };
	int node, other;
	char *plain;

	two_nodes(&node, &other);
	plain = shadow_new(&filler.fd, MPOL_PREFERRED, only(node));
	child_passed(child_start(fill, &filler));
	place_on(plain, BLOCK, MPOL_BIND, only(other));
	check_ways(plain, node, "before");
	cr_assert_eq(punch(filler.fd, 0, BLOCK), 0);
	child_passed(child_start(fill, &filler));
	check_ways(plain, other, "after");
}

Test(placement, of_a_memfd_in_turn)
{
	struct filler filler = { .bytes = map_pages(PAGES) };
	int node, other, on_node = 0;
	struct nodes both;
	char *plain;

	two_nodes(&node, &other);
	both = only(node);
	both.word[other / 64] |= 1UL << (other % 64);
	plain = shadow_new(&filler.fd, MPOL_INTERLEAVE, both);
	child_passed(child_start(fill, &filler));
	for (size_t i = 0; i < 5 * PAGES; i++) {
		cr_assert_neq(plain[i * PAGE], 77);
		cr_assert(node_of(plain + i * PAGE) == node || node_of(plain + i * PAGE) == other);
		on_node += node_of(plain + i * PAGE) == node;
	}
	cr_expect_eq(on_node, (int)(5 * PAGES / 2));
}

/* ---- hugetlb ------------------------------------------------------------------------- */

static long huge_free(int node)
{
	char path[128], text[32];

	snprintf(path, sizeof(path), HUGE_FREE, node);
	return read_setting(path, text, sizeof(text)) ? atol(text) : 0;
}

static int huge_new(char **plain, int node)
{
	int fd = memfd_new("shadow", 64 * (off_t)BLOCK, MFD_HUGETLB);

	*plain = mmap(NULL, 64 * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	cr_assert(*plain != MAP_FAILED);
	place_on(*plain, 64 * BLOCK, MPOL_BIND, only(node));
	return fd;
}

/* hugetlb's policy is the mapping's: what is allocated through it follows, and fallocate() knows nothing of it. */
Test(placement, of_hugetlb_is_the_mappings)
{
	struct nodes task;
	int node, other, fd;
	char *plain, *second;
	long before;

	two_nodes(&node, &other);
	if (huge_free(node) < 2 || huge_free(other) < 2)
		skip("no free huge pages on two memory nodes (vm.nr_hugepages)");
	fd = huge_new(&plain, node);
	before = huge_free(node);
	cr_assert_eq(madvise(plain, BLOCK, MADV_POPULATE_WRITE), 0);
	cr_expect_eq(huge_free(node), before - 1);
	expect_all(plain, 0, 1, node, "populated");
	/* By the policy of whoever calls. */
	task = only(other);
	before = huge_free(other);
	cr_assert_eq(set_mempolicy(MPOL_BIND, task.word, NODES_MAX + 1), 0);
	cr_assert_eq(fallocate(fd, 0, BLOCK, BLOCK), 0);
	cr_expect_eq(huge_free(other), before - 1);
	expect_all(plain, 512, 1, other, "fallocate");
	/* Another mapping has none either, and finds the page that is there. */
	second = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	second[5] = 1;
	expect_all(second, 0, 1, node, "mapped again");
	cr_assert_eq(set_mempolicy(MPOL_DEFAULT, NULL, 0), 0);
}

/* A node without huge pages is an error to MADV_POPULATE_WRITE where a touch would be SIGBUS; and other nodes are left alone. */
Test(placement, of_hugetlb_is_refused_when_the_node_is_full)
{
	int node, other, r = 0;
	size_t got = 0;
	char *plain;
	long had;

	two_nodes(&node, &other);
	had = huge_free(node);
	if (had < 1 || had > 60 || huge_free(other) < 1)
		skip("no free huge pages on two memory nodes (vm.nr_hugepages)");
	huge_new(&plain, node);
	while (got < 64 && !r) {
		r = madvise(plain + got * BLOCK, BLOCK, MADV_POPULATE_WRITE) ? -errno : 0;
		got += !r;
	}
	cr_expect_eq(r, -EFAULT);
	cr_expect_eq((long)got, had);
	cr_expect_geq(huge_free(other), 1);
}

/* ---- private memory -------------------------------------------------------------------- */

struct copier {
	int uffd, node;
	char *to, *bytes;
};

static void *copy_home(void *arg)
{
	const struct copier *copier = arg;
	struct nodes nodes = only(copier->node);

	cr_assert_eq(set_mempolicy(MPOL_BIND, nodes.word, NODES_MAX + 1), 0);
	cr_assert_eq(uffd_copy(copier->uffd, copier->to, copier->bytes, PAGES * PAGE, 0), 0);
	return NULL;
}

/*
 * A page that UFFDIO_COPY brings follows the policy of the mapping; where that has none, the policy of the
 * thread that copies: hmmd's, not that of the owner's thread that waits.
 */
Test(placement, of_private_memory_is_the_copiers)
{
	int node, other, fd = uffd_open(0);
	char *mem = map_pages(2 * PAGES);
	struct copier copier = { .uffd = fd, .bytes = map_pages(PAGES) };
	struct nodes mine;
	pthread_t thread;

	two_nodes(&node, &other);
	memset(copier.bytes, 3, PAGES * PAGE);
	place_on(mem, PAGES * PAGE, MPOL_BIND, only(node));
	cr_assert_eq(uffd_register(fd, mem, 2 * PAGES * PAGE, MISSING), 0);
	mine = only(node);
	cr_assert_eq(set_mempolicy(MPOL_BIND, mine.word, NODES_MAX + 1), 0);
	copier.node = other;
	for (size_t half = 0; half < 2; half++) {
		copier.to = mem + half * PAGES * PAGE;
		cr_assert_eq(pthread_create(&thread, NULL, copy_home, &copier), 0);
		cr_assert_eq(pthread_join(thread, NULL), 0);
	}
	expect_all(mem, 0, PAGES, node, "a mapping with a policy");
	expect_all(mem, PAGES, PAGES, other, "a mapping without");
}
