/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * placement.c - on which memory nodes the pages lie: on the device for every kind of pool and every
 * policy, and at home by the owner's own. The kernel says where (move_pages(2)), to a process that maps them:
 * a driver with a window, and the owner itself for coherent memory and what is home.
 *
 * Needs two memory nodes. A driver is this program again; it is told what to look at on its socket.
 */
#include "driver.h"

#include <linux/mempolicy.h>
#include <sys/syscall.h>

#define DEVICE_MEMORY (64UL << 20)
#define NODES_MAX 64
#define SMALL 24UL
#define BLOCKS 2UL
#define BLOCK_PAGES 512UL

static const struct hmm_mirror_ops quiet = { .size = sizeof(quiet) };

/* ---- nodes ------------------------------------------------------------------------------ */

static long read_node(int node, const char *name)
{
	char path[160], text[64];
	long value = -1;
	FILE *file;

	snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/%s", node, name);
	file = fopen(path, "re");
	if (!file)
		return -1;
	if (fgets(text, sizeof(text), file))
		value = atol(text);
	fclose(file);
	return value;
}

/* Bytes of a field of a node's meminfo. */
static long meminfo(int node, const char *field)
{
	char path[64], line[256], *at;
	long value = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/meminfo", node);
	file = fopen(path, "re");
	while (file && fgets(line, sizeof(line), file)) {
		at = strstr(line, field);
		if (at && at[strlen(field)] == ':')
			value = atol(at + strlen(field) + 1) << 10;
	}
	if (file)
		fclose(file);
	return value;
}

static long huge_free(int node)
{
	return read_node(node, "hugepages/hugepages-2048kB/free_hugepages");
}

/* A bit for each node with memory that may be had. */
static uint64_t nodes_there(void)
{
	uint64_t allowed[16] = { 0 }, there = 0;

	if (syscall(SYS_get_mempolicy, NULL, allowed, 1024, NULL, MPOL_F_MEMS_ALLOWED))
		test_skip("this kernel has no memory policies");
	for (int node = 0; node < NODES_MAX; node++)
		if (allowed[0] >> node & 1 && meminfo(node, "MemTotal"))
			there |= 1ULL << node;
	return there;
}

static int first, second;

static void need_two_nodes(void)
{
	uint64_t there = nodes_there();

	if (__builtin_popcountll(there) < 2)
		test_skip("there is one memory node");
	first = __builtin_ctzll(there);
	second = __builtin_ctzll(there & (there - 1));
}

static int node_of(const void *page)
{
	const void *pages[] = { page };
	int status = -1;

	CHECK_EQ(syscall(SYS_move_pages, 0, 1, pages, NULL, &status, 0), 0);
	return status;
}

/* What is mapped here is on a node of @nodes, and in turn on each of them if so @interleaved. */
static void check_nodes(const char *memory, size_t pages, uint64_t nodes, bool interleaved, const char *what)
{
	size_t on[NODES_MAX] = { 0 };

	for (size_t i = 0; i < pages; i++) {
		int node;

		(void)*(volatile const char *)(memory + i * PAGE);
		node = node_of(memory + i * PAGE);
		if (node < 0 || node >= NODES_MAX || !(nodes >> node & 1))
			FAIL("%s: page %zu of %zu is on node %d, and was to be on %#lx", what, i, pages, node, nodes);
		on[node]++;
	}
	for (int node = 0; node < NODES_MAX && interleaved; node++)
		if (nodes >> node & 1 && on[node] < pages / (size_t)__builtin_popcountll(nodes) / 2)
			FAIL("%s: %zu of %zu pages are on node %d", what, on[node], pages, node);
}

/* ---- devices ------------------------------------------------------------------------------- */

struct place {
	enum hmm_placement placement;
	int node;
	uint64_t nodes;
};

static int make(const char *name, enum hmm_pool pool, struct place place, struct hmm_device **device)
{
	struct hmm_device_options options = { .size = sizeof(options), .name = name, .memory = DEVICE_MEMORY, .pool = pool,
					      .node = place.node, .caps = HMM_DEVICE_FAULTS, .placement = place.placement,
					      .nodes = place.nodes };

	*device = NULL;
	return hmm_device_new(hmm, &options, device);
}

static void open_placed(enum hmm_pool pool, struct place place)
{
	struct hmm_open_options options = { .size = sizeof(options),
						    .timeout_ms = (unsigned int)test_scaled(5000) };
	char name[32];

	snprintf(name, sizeof(name), "device-%d", getpid());
	CHECK_EQ(hmm_open(&options, &hmm), 0);
	if (make(name, pool, place, &mirror.device))
		FAIL("hmm_device_new: %s", hmm_last_error());
	test_mirror(&mirror, mirror.device);
}

/* ---- the driver ---------------------------------------------------------------------------- */

enum { LOOK = 1, END = 2 };

/* Maps what it is told, and says where that lies. */
static void driver(void)
{
	struct hmm_window *window;
	uint64_t word, pages, nodes, interleaved;
	unsigned long memory;

	memory = test_driver_open(&quiet);
	test_tell(TEST_DRIVER_SOCKET, 0, -1);
	while (test_hear(TEST_DRIVER_SOCKET, &word, NULL) && word == LOOK) {
		CHECK(test_hear(TEST_DRIVER_SOCKET, &memory, NULL));
		CHECK(test_hear(TEST_DRIVER_SOCKET, &pages, NULL));
		CHECK(test_hear(TEST_DRIVER_SOCKET, &nodes, NULL));
		CHECK(test_hear(TEST_DRIVER_SOCKET, &interleaved, NULL));
		CHECK_EQ(hmm_window_map(&mirror, memory, pages * PAGE, HMM_WINDOW_OFFSET, &window), 0);
		check_nodes(hmm_window_ptr(window, memory), pages, nodes, interleaved, "in a window");
		CHECK_EQ(hmm_window_unmap(window), 0);
		test_tell(TEST_DRIVER_SOCKET, LOOK, -1);
	}
	hmm_mirror_unregister(&mirror);
	hmm_device_put(mirror.device);
	hmm_close(hmm);
}

static void ask(int socket, const char *memory, size_t pages, uint64_t nodes, bool interleaved)
{
	uint64_t word;

	test_tell(socket, LOOK, -1);
	test_tell(socket, (uint64_t)memory, -1);
	test_tell(socket, pages, -1);
	test_tell(socket, nodes, -1);
	test_tell(socket, interleaved, -1);
	CHECK(test_hear(socket, &word, NULL));
}

/* ---- on the device ---------------------------------------------------------------------------- */

static uint64_t dax_nodes(void);

static uint64_t meant(enum hmm_pool pool, struct place place)
{
	if (pool == HMM_POOL_DAX && place.node < 0)
		return dax_nodes();
	return place.node >= 0 ? 1ULL << place.node : place.nodes;
}

/* Migrated pages, small and huge, as a driver's window shows them; written by the device; coherent ones. */
static void check_pool(enum hmm_pool pool, struct place place)
{
	bool interleaved = place.placement == HMM_PLACE_INTERLEAVE;
	uint64_t nodes = meant(pool, place), word = 5;
	char *small, *huge;
	void *coherent;
	pid_t child;
	int socket;

	open_placed(pool, place);
	small = test_map(SMALL);
	huge = test_map_huge(BLOCKS);
	test_fill(small, SMALL, 1);
	test_fill(huge, BLOCKS * BLOCK_PAGES, 2);
	test_out(small, SMALL);
	test_out(huge, BLOCKS * BLOCK_PAGES);
	child = test_driver_start("pools", &socket);
	test_invite(socket, small);
	CHECK(test_hear(socket, &word, NULL));
	/* A huge page is in one place: of four blocks and few pages not much can be said. */
	ask(socket, small, SMALL, nodes, interleaved && pool == HMM_POOL_MEMFD);
	ask(socket, huge, BLOCKS * BLOCK_PAGES, nodes, interleaved && pool == HMM_POOL_MEMFD);
	/* Home and out again: what was punched is allocated anew. */
	test_home(huge, BLOCKS * BLOCK_PAGES);
	test_fill(huge, BLOCKS * BLOCK_PAGES, 3);
	test_out(huge, BLOCKS * BLOCK_PAGES);
	ask(socket, huge, BLOCKS * BLOCK_PAGES, nodes, interleaved && pool == HMM_POOL_MEMFD);
	CHECK_EQ(hmm_alloc(&mirror, BLOCKS * BLOCK, &coherent), 0);
	test_fill(coherent, BLOCKS * BLOCK_PAGES, 4);
	check_nodes(coherent, BLOCKS * BLOCK_PAGES, nodes, interleaved && pool == HMM_POOL_MEMFD, "coherent");
	test_check(coherent, BLOCKS * BLOCK_PAGES, 4);
	CHECK_EQ(hmm_free(&mirror, coherent, BLOCKS * BLOCK), 0);
	test_tell(socket, END, -1);
	test_reap(child, 0);
	test_check(small, SMALL, 1);
	test_check(huge, BLOCKS * BLOCK_PAGES, 3);
	CHECK_EQ(munmap(small, SMALL * PAGE), 0);
	CHECK_EQ(munmap(huge, BLOCKS * BLOCK), 0);
	test_close();
}

static void pools(void)
{
	static const enum hmm_pool kinds[] = { HMM_POOL_MEMFD, HMM_POOL_MEMFD_HUGE };
	struct place places[4];

	need_two_nodes();
	places[0] = (struct place){ HMM_PLACE_DEFAULT, second, 0 };
	places[1] = (struct place){ HMM_PLACE_BIND, -1, 1ULL << first };
	places[2] = (struct place){ HMM_PLACE_PREFERRED, second, 0 };
	places[3] = (struct place){ HMM_PLACE_INTERLEAVE, -1, 1ULL << first | 1ULL << second };
	for (size_t kind = 0; kind < 2; kind++)
		for (size_t i = 0; i < 4; i++)
			check_pool(kinds[kind], places[i]);
}

/* No window shows hugetlb: the node's count of free ones does, and coherent memory in the owner. */
static void hugetlb(void)
{
	struct place place = { HMM_PLACE_BIND, -1, 0 };
	uint8_t *results = malloc(64 * BLOCK_PAGES);
	long before, others, room;
	char *memory;
	void *coherent;

	need_two_nodes();
	if (huge_free(first) < 4 || huge_free(second) < 4)
		test_skip("no free huge pages on two memory nodes");
	place.node = second;
	open_placed(HMM_POOL_HUGETLB, place);
	before = huge_free(second);
	others = huge_free(first);
	memory = test_map_huge(2);
	test_fill(memory, 2 * BLOCK_PAGES, 1);
	test_out(memory, 2 * BLOCK_PAGES);
	CHECK_EQ(huge_free(second), before - 2);
	CHECK_EQ(hmm_alloc(&mirror, BLOCK, &coherent), 0);
	test_fill(coherent, BLOCK_PAGES, 2);
	check_nodes(coherent, BLOCK_PAGES, 1ULL << second, false, "coherent");
	CHECK_EQ(huge_free(second), before - 3);
	CHECK_EQ(huge_free(first), others);
	CHECK_EQ(hmm_free(&mirror, coherent, BLOCK), 0);
	test_device_check(memory, 2 * BLOCK_PAGES, 1);
	test_home(memory, 2 * BLOCK_PAGES);
	test_check(memory, 2 * BLOCK_PAGES, 1);
	CHECK_EQ(munmap(memory, 2 * BLOCK), 0);
	/* More than the node has: as many as it has go, the rest is told, and nobody is killed. */
	room = huge_free(second);
	if (room < 30) {
		memory = test_map_huge((size_t)room + 1);
		test_fill(memory, ((size_t)room + 1) * BLOCK_PAGES, 3);
		CHECK_EQ(test_migrate(memory, ((size_t)room + 1) * BLOCK_PAGES, HMM_DEVICE, results), room * (long)BLOCK_PAGES);
		for (size_t i = 0, full = 0; i <= (size_t)room * BLOCK_PAGES; i += BLOCK_PAGES) {
			full += results[i] == HMM_POOL_FULL;
			if (i == (size_t)room * BLOCK_PAGES)
				CHECK_EQ(full, 1);
		}
		CHECK_EQ(huge_free(second), 0);
		CHECK_EQ(huge_free(first), others);
		/* What is there makes way for it: one block comes home. */
		CHECK_EQ(hmm_alloc(&mirror, BLOCK, &coherent), 0);
		test_fill(coherent, BLOCK_PAGES, 4);
		check_nodes(coherent, BLOCK_PAGES, 1ULL << second, false, "coherent, in its place");
		CHECK_EQ(test_device_pages(memory, ((size_t)room + 1) * BLOCK_PAGES), (room - 1) * (long)BLOCK_PAGES);
		CHECK_EQ(hmm_free(&mirror, coherent, BLOCK), 0);
		test_check(memory, ((size_t)room + 1) * BLOCK_PAGES, 3);
	}
	test_close();
	free(results);
}

/* ---- at home ---------------------------------------------------------------------------------- */

static void place_on(void *memory, size_t length, int mode, int node)
{
	unsigned long mask[16] = { 1UL << node };

	CHECK_EQ(syscall(SYS_mbind, memory, length, mode, mask, 1024, 0), 0);
}

static void come_home(char *memory, size_t pages, uint64_t nodes, uint64_t seed)
{
	/* By a touch, by a write, and when they are called. */
	test_fill(memory, pages, seed);
	test_out(memory, pages);
	test_check(memory, pages, seed);
	check_nodes(memory, pages, nodes, false, "home by a read");
	test_out(memory, pages);
	for (size_t i = 0; i < pages; i++)
		((volatile uint64_t *)(memory + i * PAGE))[0] = test_word(i, 0, seed);
	check_nodes(memory, pages, nodes, false, "home by a write");
	test_out(memory, pages);
	test_home(memory, pages);
	check_nodes(memory, pages, nodes, false, "called home");
	test_check(memory, pages, seed);
}

/* The device's node is one, the owner's mapping says the other. */
static void homeward(void)
{
	char *small, *huge;

	need_two_nodes();
	for (int turn = 0; turn < 2; turn++) {
		int device = turn ? first : second, home = turn ? second : first;

		open_placed(HMM_POOL_MEMFD_HUGE, (struct place){ HMM_PLACE_BIND, device, 0 });
		small = test_map(SMALL);
		huge = test_map_huge(BLOCKS);
		place_on(small, SMALL * PAGE, MPOL_BIND, home);
		place_on(huge, BLOCKS * BLOCK, MPOL_PREFERRED, home);
		come_home(small, SMALL, 1ULL << home, 1);
		come_home(huge, BLOCKS * BLOCK_PAGES, 1ULL << home, 2);
		test_close();
	}
}

/* Mappings say nothing, the program's own policy does: as under numactl(8). */
static void program_policy(void)
{
	char *small, *huge;

	need_two_nodes();
	for (int turn = 0; turn < 2; turn++) {
		int device = turn ? first : second, home = turn ? second : first;
		unsigned long mask[16] = { 1UL << home };

		CHECK_EQ(syscall(SYS_set_mempolicy, MPOL_BIND, mask, 1024), 0);
		open_placed(HMM_POOL_MEMFD_HUGE, (struct place){ HMM_PLACE_BIND, device, 0 });
		small = test_map(SMALL);
		huge = test_map_huge(BLOCKS);
		come_home(small, SMALL, 1ULL << home, 1);
		come_home(huge, BLOCKS * BLOCK_PAGES, 1ULL << home, 2);
		test_close();
		CHECK_EQ(syscall(SYS_set_mempolicy, MPOL_DEFAULT, NULL, 0), 0);
	}
}

/* ---- full -------------------------------------------------------------------------------------- */

/*
 * A node that others have filled: a device bound to it is full, and everybody lives. What is on
 * the device makes way for what comes.
 */
static void full(void)
{
	const size_t pages = 32 * BLOCK_PAGES;
	uint8_t *results = malloc(pages);
	size_t fill, moved = 0, refused = 0;
	char *hog, *memory;

	need_two_nodes();
	open_placed(HMM_POOL_MEMFD, (struct place){ HMM_PLACE_BIND, second, 0 });
	memory = test_map_huge(32);
	place_on(memory, 32 * BLOCK, MPOL_BIND, first);
	test_fill(memory, pages, 1);
	/* All but what hmmd leaves alone, which is more than 64 MiB, and a little. */
	fill = (size_t)meminfo(second, "MemFree");
	CHECK(fill > 0);
	fill = fill > (80UL << 20) ? (fill - (80UL << 20)) & ~(BLOCK - 1) : 0;
	hog = mmap(NULL, fill + BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK(hog != MAP_FAILED);
	madvise(hog, fill, MADV_HUGEPAGE);
	place_on(hog, fill, MPOL_BIND, second);
	for (size_t at = 0; at < fill; at += PAGE)
		((volatile char *)hog)[at] = 1;
	memset(results, 0xff, pages);
	test_migrate(memory, pages, HMM_DEVICE, results);
	for (size_t i = 0; i < pages; i++) {
		moved += results[i] == HMM_MIGRATED;
		refused += results[i] == HMM_POOL_FULL;
	}
	CHECK_EQ(moved + refused, pages);
	printf("%zu of %zu pages went, %zu were refused\n", moved, pages, refused);
	CHECK(refused > 0);
	test_device_check(memory, 600, 1);
	test_check(memory, pages, 1);
	/* What the others let go of is room at once. */
	CHECK_EQ(munmap(hog, fill + BLOCK), 0);
	test_out(memory, pages);
	test_check(memory, pages, 1);
	test_close();
	free(results);
}

/* ---- bad input ------------------------------------------------------------------------------------- */

static void refuse(struct place place, int error, const char *because)
{
	struct hmm_device *device;

	CHECK_EQ(make("nowhere", HMM_POOL_MEMFD, place, &device), error);
	CHECK(!device);
	if (!strstr(hmm_last_error(), because))
		FAIL("'%s' says nothing of '%s'", hmm_last_error(), because);
}

/* On any machine. */
static void bad(void)
{
	uint64_t there = nodes_there(), absent = ~there & -~there;
	struct hmm_device *device;
	char name[16];

	snprintf(name, sizeof(name), "%d", __builtin_ctzll(there));
	test_open(0, DEVICE_MEMORY);
	refuse((struct place){ HMM_PLACE_BIND, -1, absent }, -EINVAL, name);
	refuse((struct place){ HMM_PLACE_INTERLEAVE, -1, there | absent }, -EINVAL, name);
	refuse((struct place){ HMM_PLACE_PREFERRED, 1023, 0 }, -EINVAL, "memory node 1023");
	refuse((struct place){ HMM_PLACE_BIND, 1024, 0 }, -EINVAL, "memory node 1024");
	refuse((struct place){ HMM_PLACE_BIND, -2, 0 }, -EINVAL, "memory node -2");
	refuse((struct place){ HMM_PLACE_BIND, -1, 0 }, -EINVAL, "needs a memory node");
	refuse((struct place){ HMM_PLACE_DEFAULT, -1, there }, -EINVAL, "goes with a placement");
	refuse((struct place){ HMM_PLACE_BIND, __builtin_ctzll(there), there }, -EINVAL, "both name");
	refuse((struct place){ 4, __builtin_ctzll(there), 0 }, -EINVAL, "no placement 4");
	refuse((struct place){ -1, __builtin_ctzll(there), 0 }, -EINVAL, "no placement");
	/* Nothing of it is left: the name is free. */
	CHECK_EQ(make("nowhere", HMM_POOL_MEMFD, (struct place){ HMM_PLACE_INTERLEAVE, -1, there }, &device), 0);
	hmm_device_put(device);
	test_close();
}

/* An older program's structure ends before the placement. */
static void older(void)
{
	struct hmm_device_options options = { .size = offsetof(struct hmm_device_options, placement), .name = "older",
					      .memory = DEVICE_MEMORY, .node = -1, .placement = 77, .nodes = 77 };
	struct hmm_device *device;

	test_open(0, DEVICE_MEMORY);
	CHECK_EQ(hmm_device_new(hmm, &options, &device), 0);
	hmm_device_put(device);
	test_close();
}

/* ---- dax ---------------------------------------------------------------------------------------------- */

/* Nodes that the kernel has made of dax devices, as far as nothing else is there: a bit each. */
static uint64_t dax_nodes(void)
{
	uint64_t nodes = 0, there = nodes_there();
	long brought[NODES_MAX] = { 0 };
	char path[128], driver[256];

	for (int device = 0; device < 64; device++)
		for (int part = 0; part < 8; part++) {
			long node = -1, size = 0;
			ssize_t n;
			FILE *file;

			snprintf(path, sizeof(path), "/sys/bus/dax/devices/dax%d.%d/driver", device, part);
			n = readlink(path, driver, sizeof(driver) - 1);
			if (n < 5 || memcmp(driver + n - 5, "/kmem", 5))
				continue;
			snprintf(path, sizeof(path), "/sys/bus/dax/devices/dax%d.%d/target_node", device, part);
			file = fopen(path, "re");
			CHECK(file && fscanf(file, "%ld", &node) == 1);
			fclose(file);
			snprintf(path, sizeof(path), "/sys/bus/dax/devices/dax%d.%d/size", device, part);
			file = fopen(path, "re");
			CHECK(file && fscanf(file, "%ld", &size) == 1);
			fclose(file);
			if (node >= 0 && node < NODES_MAX)
				brought[node] += size;
		}
	for (int node = 0; node < NODES_MAX; node++)
		if (brought[node] && there >> node & 1 && meminfo(node, "MemTotal") <= brought[node])
			nodes |= 1ULL << node;
	return nodes;
}

/* Memory of a dax device is a pool as any: windows, coherent memory, pages home and out again. */
static void dax(void)
{
	uint64_t nodes = dax_nodes();
	struct hmm_device *device;
	int node;

	if (!nodes)
		test_skip("no dax device is memory with a node of its own");
	node = __builtin_ctzll(nodes);
	/* All that there are, and those that are named. */
	check_pool(HMM_POOL_DAX, (struct place){ HMM_PLACE_DEFAULT, -1, 0 });
	check_pool(HMM_POOL_DAX, (struct place){ HMM_PLACE_BIND, node, 0 });
	check_pool(HMM_POOL_DAX, (struct place){ HMM_PLACE_PREFERRED, node, 0 });
	test_open(0, DEVICE_MEMORY);
	CHECK_EQ(make("elsewhere", HMM_POOL_DAX, (struct place){ HMM_PLACE_BIND, __builtin_ctzll(~nodes), 0 }, &device), -EINVAL);
	CHECK(strstr(hmm_last_error(), "not of dax devices"));
	test_close();
}

static void no_dax(void)
{
	struct hmm_device *device;

	if (dax_nodes())
		test_skip("a dax device is memory with a node of its own");
	test_open(0, DEVICE_MEMORY);
	CHECK_EQ(make("nowhere", HMM_POOL_DAX, (struct place){ HMM_PLACE_DEFAULT, -1, 0 }, &device), -ENODEV);
	CHECK(strstr(hmm_last_error(), "daxctl"));
	CHECK_EQ(make("nowhere", HMM_POOL_DAX + 1, (struct place){ HMM_PLACE_DEFAULT, -1, 0 }, &device), -EINVAL);
	test_close();
}

/* ---- what scripts ask for --------------------------------------------------------------------------- */

/*
 * Begins with all of it on the device, and reads lines: "look N" wants all there, on node N; "turn" brings it home, fills
 * it anew and migrates it; "end" is the end. The node comes from the environment, and so does the pool.
 */
static void served(void)
{
	const char *node = getenv("TEST_NODE"), *kind = getenv("TEST_POOL");
	enum hmm_pool pool = kind ? (enum hmm_pool)atoi(kind) : HMM_POOL_MEMFD_HUGE;
	struct place place = { node ? HMM_PLACE_BIND : HMM_PLACE_DEFAULT, node ? atoi(node) : -1, 0 };
	uint64_t seed = 1, word;
	char *memory, line[64];
	pid_t child;
	int socket;

	open_placed(pool, place);
	memory = test_map_huge(BLOCKS);
	test_fill(memory, BLOCKS * BLOCK_PAGES, seed);
	test_out(memory, BLOCKS * BLOCK_PAGES);
	child = test_driver_start("served", &socket);
	test_invite(socket, memory);
	CHECK(test_hear(socket, &word, NULL));
	puts("ready");
	while (fgets(line, sizeof(line), stdin)) {
		if (!strncmp(line, "look ", 5)) {
			ask(socket, memory, BLOCKS * BLOCK_PAGES, 1ULL << atoi(line + 5), false);
		} else if (!strcmp(line, "turn\n")) {
			test_check(memory, BLOCKS * BLOCK_PAGES, seed++);
			test_home(memory, BLOCKS * BLOCK_PAGES);
			test_fill(memory, BLOCKS * BLOCK_PAGES, seed);
			test_out(memory, BLOCKS * BLOCK_PAGES);
		} else if (!strcmp(line, "end\n")) {
			break;
		}
		puts("done");
	}
	test_tell(socket, END, -1);
	test_reap(child, 0);
	test_check(memory, BLOCKS * BLOCK_PAGES, seed);
	test_close();
}

int main(int argc, char **argv)
{
	static const struct test_case cases[] = {
		{ "pools", pools, false },
		{ "homeward", homeward, false },
		{ "program-policy", program_policy, false },
		{ "full", full, false },
		{ "bad", bad, false },
		{ "older", older, false },
		{ "dax", dax, true },
		{ "no-dax", no_dax, false },
		{ "hugetlb", hugetlb, true },
		{ "served", served, true },
		{ NULL, NULL, false },
	};
	static const struct test_case drivers[] = {
		{ "pools", driver, false },
		{ "served", driver, false },
		{ NULL, NULL, false },
	};

	return test_driver_main(argc, argv, cases, drivers);
}
