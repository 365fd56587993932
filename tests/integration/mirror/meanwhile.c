/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * meanwhile.c - devices read while the program changes its address space under them,
 * with no lock between the two: unmapped, mapped anew, grown, shrunk, moved, left behind and
 * discarded in the middle of a read.
 *
 * Two rooms, each of two parts. Everything that is ever put into a part has a tag of its own,
 * and each word says its tag and its place. The owner announces what a part may show before it
 * changes anything, and settles on it when the call has returned. A reader that looked at both
 * accepts what was true at some moment of its read, and nothing else: old bytes, new
 * bytes, zeros or -EFAULT where they were, never the other room's.
 *
 * A device read may be late by nothing once the call has returned. A window may, until one more
 * request has been answered; and what it may not show closes it until hmm_include().
 */
#include "driver.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

#define DEVICE_MEMORY (128UL << 20)

#define PAGES 576UL		/* of a room: a block, and some of the next */
#define HEAD 144UL		/* its first part; the rest is its tail */
#define MARKS 8UL		/* words of each page that have a tag */
#define ROUNDS 36U		/* each change once, then as it comes */
#define ROUNDS_MOST (20 * ROUNDS)
#define MOMENTS 8192U

/* A word of each page that a device writes: this, or what the owner put there. */
#define DEVICE_WORD 511UL
#define BY_DEVICE 0xd0d0d0d0d0d0d0d0UL

/* What a part shows: something with a tag, zeros, or nothing at all. */
#define ZEROS 0U
#define NOTHING UINT32_MAX

struct part {
	_Atomic uint32_t settled;	/* from this moment on */
	_Atomic uint32_t announced;	/* up to this one */
	_Atomic uint32_t moments[MOMENTS];
};

enum { LOW, HIGH, ROOMS };
enum { FIRST, SECOND, PARTS };

/* In memory that is never mirrored: the driver has it, too. */
struct board {
	struct part parts[ROOMS][PARTS];
	uint64_t rooms[ROOMS];
	_Atomic bool stop;
	_Atomic uint64_t reads, meanwhile, refused;	/* by devices; that met a change; that met nothing */
	_Atomic uint64_t loads, loads_meanwhile, loads_refused;	/* through a window */
	_Atomic uint64_t writes;
};

static struct board *board;
static char *rooms[ROOMS];
static uint32_t last_tag;
static bool windows;
static unsigned int moves, refused_moves;

static const struct hmm_mirror_ops quiet = { .size = sizeof(quiet) };

static size_t first_page(int part)
{
	return part == FIRST ? 0 : HEAD;
}

static size_t end_page(int part)
{
	return part == FIRST ? HEAD : PAGES;
}

static uint64_t word_of(uint32_t tag, size_t page, size_t word)
{
	return (uint64_t)tag << 32 | page << 16 | word;
}

/* ---- what may be seen ------------------------------------------------------------- */

struct look {
	uint32_t settled[PARTS], announced[PARTS];
};

static void look_begin(struct look *look, int room)
{
	for (int part = 0; part < PARTS; part++)
		look->settled[part] = atomic_load(&board->parts[room][part].settled);
}

static void look_end(struct look *look, int room)
{
	for (int part = 0; part < PARTS; part++)
		look->announced[part] = atomic_load(&board->parts[room][part].announced);
}

static bool look_met_a_change(const struct look *look)
{
	return look->settled[FIRST] != look->announced[FIRST] || look->settled[SECOND] != look->announced[SECOND];
}

static bool could_be(const struct look *look, int room, int part, uint32_t what)
{
	for (uint32_t i = look->settled[part]; i <= look->announced[part]; i++)
		if (atomic_load(&board->parts[room][part].moments[i]) == what)
			return true;
	return false;
}

static int part_of(size_t page)
{
	return page < HEAD ? FIRST : SECOND;
}

/* Of the moments of a look: was something there that was put into the low room, where devices write? */
static bool came_from_low(const struct look *look, int room, int part)
{
	for (uint32_t i = look->settled[part]; i <= look->announced[part]; i++) {
		uint32_t what = atomic_load(&board->parts[room][part].moments[i]);

		if (what != NOTHING && (room == LOW || (what != ZEROS && what % ROOMS == LOW)))
			return true;
	}
	return false;
}

static void judge(const struct look *look, int room, size_t page, size_t word, uint64_t seen, const char *who)
{
	uint32_t tag = seen ? (uint32_t)(seen >> 32) : ZEROS;
	int part = part_of(page);

	/* Where only devices write, what they wrote may be gone with a page, or what was there have come with one. */
	bool devices = word == DEVICE_WORD && came_from_low(look, room, part);

	if (devices && (!seen || seen == BY_DEVICE))
		return;
	if (seen && seen != word_of(tag, page, word))
		FAIL("%s: %#lx in room %d, page %zu, word %zu is another place's", who, seen, room, page, word);
	if ((devices && tag % ROOMS == HIGH) || could_be(look, room, part, tag))
		return;
	for (uint32_t i = look->settled[part]; i <= look->announced[part]; i++)
		fprintf(stderr, "moment %u: %#x\n", i, atomic_load(&board->parts[room][part].moments[i]));
	FAIL("%s: %#lx in room %d, page %zu, word %zu was not there at any moment", who, seen, room, page, word);
}

/* ---- who reads ---------------------------------------------------------------------- */

static uint32_t draw(uint32_t *state, uint32_t limit)
{
	*state = *state * 1103515245U + 12345U;
	return (*state >> 8) % limit;
}

static void read_some(struct hmm_mirror *by, uint32_t *state, uint64_t *buffer)
{
	int room = draw(state, 4) ? LOW : HIGH;
	size_t page = draw(state, PAGES), pages = 1 + draw(state, 12);
	struct look look;
	ssize_t got;

	if (pages > PAGES - page)
		pages = PAGES - page;
	look_begin(&look, room);
	got = hmm_device_read(by, board->rooms[room] + page * PAGE, buffer, pages * PAGE);
	look_end(&look, room);
	if (got < 0 && got != -EFAULT)
		FAIL("hmm_device_read: %s (%s)", strerror((int)-got), hmm_last_error());
	for (size_t i = 0; got > 0 && i < (size_t)got / PAGE; i++) {
		for (size_t mark = 0; mark < MARKS; mark++)
			judge(&look, room, page + i, mark * 64, buffer[i * 512 + mark * 64], "a device read");
		judge(&look, room, page + i, DEVICE_WORD, buffer[i * 512 + DEVICE_WORD], "a device read");
	}
	if (got < (ssize_t)(pages * PAGE)) {
		size_t missing = page + (got > 0 ? (size_t)got / PAGE : 0);

		if (got > 0 && got % (ssize_t)PAGE)
			FAIL("a read of whole pages gave %zd bytes", got);
		if (!could_be(&look, room, part_of(missing), NOTHING))
			FAIL("a device read of page %zu of room %d was refused, and something was mapped there all the time",
			     missing, room);
		atomic_fetch_add(&board->refused, 1);
	}
	atomic_fetch_add(&board->reads, 1);
	atomic_fetch_add(&board->meanwhile, look_met_a_change(&look));
}

static void *reader(void *number)
{
	uint32_t state = (uint32_t)(uintptr_t)number * 7919U + (uint32_t)getpid();
	uint64_t *buffer = malloc(16 * PAGE);

	CHECK(buffer);
	while (!atomic_load(&board->stop))
		read_some(&mirror, &state, buffer);
	free(buffer);
	return NULL;
}

/* In the middle of a change it may go to what was there and be gone; never into what another room has got since. */
static void *writer(void *unused)
{
	uint32_t state = (uint32_t)getpid();
	uint64_t word = BY_DEVICE;
	ssize_t done;

	(void)unused;
	while (!atomic_load(&board->stop)) {
		size_t page = draw(&state, PAGES);
		struct look look;

		look_begin(&look, LOW);
		done = hmm_device_write(&mirror, board->rooms[LOW] + page * PAGE + DEVICE_WORD * 8, &word, 8);
		look_end(&look, LOW);
		if (done != 8 && !(done == -EFAULT && could_be(&look, LOW, part_of(page), NOTHING)))
			FAIL("hmm_device_write gave %zd (%s)", done, hmm_last_error());
		atomic_fetch_add(&board->writes, 1);
	}
	return NULL;
}

/* ---- who changes ------------------------------------------------------------------------ */

static void part_may(int room, int part, uint32_t what)
{
	struct part *it = &board->parts[room][part];
	uint32_t next = atomic_load(&it->announced) + 1;

	CHECK(next < MOMENTS);
	atomic_store(&it->moments[next], what);
	atomic_store(&it->announced, next);
}

static void may(int room, uint32_t what)
{
	for (int part = 0; part < PARTS; part++)
		part_may(room, part, what);
}

/* The call has returned: nothing but what was announced last is there now. */
static void part_is(int room, int part)
{
	struct part *it = &board->parts[room][part];

	/* Windows need one more request. */
	if (windows)
		hmm_device_read(&mirror, (unsigned long)rooms[room], &(char){ 0 }, 1);
	atomic_store(&it->settled, atomic_load(&it->announced));
}

static void is(int room)
{
	for (int part = 0; part < PARTS; part++)
		part_is(room, part);
}

static uint32_t shows(int room, int part)
{
	struct part *it = &board->parts[room][part];

	return atomic_load(&it->moments[atomic_load(&it->announced)]);
}

static void write_part(int room, int part, uint32_t tag)
{
	part_may(room, part, tag);
	for (size_t page = first_page(part); page < end_page(part); page++) {
		volatile uint64_t *words = (volatile uint64_t *)(rooms[room] + page * PAGE);

		for (size_t mark = 0; mark < MARKS; mark++)
			words[mark * 64] = word_of(tag, page, mark * 64);
		if (room == HIGH)
			words[DEVICE_WORD] = word_of(tag, page, DEVICE_WORD);
	}
	part_is(room, part);
}

static void fill(int room)
{
	/* A tag says, too, in which room it was put there. */
	do {
		last_tag++;
	} while (last_tag % ROOMS != (uint32_t)room);
	for (int part = 0; part < PARTS; part++)
		write_part(room, part, last_tag);
}

/* The owner looks itself: exactly what was put there, by the CPU and by the device. */
static void check(int room, bool by_device)
{
	static uint64_t copy[PAGES * 512];
	const uint64_t *words = copy;

	if (by_device)
		CHECK_EQ(hmm_device_read(&mirror, (unsigned long)rooms[room], copy, sizeof(copy)), sizeof(copy));
	else
		words = (const uint64_t *)rooms[room];
	for (size_t page = 0; page < PAGES; page++) {
		uint32_t tag = shows(room, part_of(page));

		for (size_t mark = 0; mark < MARKS + (room == HIGH); mark++) {
			size_t word = mark < MARKS ? mark * 64 : DEVICE_WORD;
			uint64_t seen = ((const volatile uint64_t *)words)[page * 512 + word];

			if (seen != (tag == ZEROS ? 0 : word_of(tag, page, word)))
				FAIL("%#lx in room %d, page %zu, word %zu, where tag %#x is", seen, room, page, word, tag);
		}
	}
}

static void map_anew(int room, size_t page, size_t pages)
{
	char *at = rooms[room] + page * PAGE;

	CHECK(mmap(at, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
}

static void unmapped(void)
{
	may(LOW, NOTHING);
	CHECK_EQ(munmap(rooms[LOW], PAGES * PAGE), 0);
	is(LOW);
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)rooms[LOW], &(char){ 0 }, 1), -EFAULT);
	may(LOW, ZEROS);
	map_anew(LOW, 0, PAGES);
	is(LOW);
}

static void mapped_over(void)
{
	/* The old mapping goes before the new one is there. */
	may(LOW, NOTHING);
	may(LOW, ZEROS);
	map_anew(LOW, 0, PAGES);
	is(LOW);
}

/*
 * Of a block that was in a transit when the library asked, hmmd may watch a part when half a second has passed: the call
 * is refused then, and what it did not move is unmapped instead. What is read meanwhile is judged all the same.
 */
static void not_moved(int from, int to, bool stays)
{
	if (errno != EFAULT)
		FAIL("mremap: %m");
	refused_moves++;
	may(from, NOTHING);
	CHECK_EQ(munmap(rooms[from], PAGES * PAGE), 0);
	if (stays) {
		may(from, ZEROS);
		map_anew(from, 0, PAGES);
	}
	may(to, NOTHING);
	CHECK_EQ(munmap(rooms[to], PAGES * PAGE), 0);
	may(to, ZEROS);
	map_anew(to, 0, PAGES);
}

/* All of one room onto the other. */
static void move(int from, int to, int flags)
{
	bool stays = flags & MREMAP_DONTUNMAP;

	may(from, stays ? ZEROS : NOTHING);
	may(to, NOTHING);
	for (int part = 0; part < PARTS; part++) {
		struct part *it = &board->parts[from][part];

		part_may(to, part, atomic_load(&it->moments[atomic_load(&it->announced) - 1]));
	}
	moves++;
	if (mremap(rooms[from], PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | flags, rooms[to]) != rooms[to])
		not_moved(from, to, stays);
	is(from);
	is(to);
}

static void moved(void)
{
	move(LOW, HIGH, 0);
	fill(HIGH);
	move(HIGH, LOW, 0);
	may(HIGH, ZEROS);
	map_anew(HIGH, 0, PAGES);
	is(HIGH);
	fill(HIGH);
}

static void left_behind(void)
{
	move(LOW, HIGH, MREMAP_DONTUNMAP);
	fill(HIGH);
	check(HIGH, false);
}

static void shrunk(void)
{
	part_may(LOW, SECOND, NOTHING);
	CHECK(mremap(rooms[LOW], PAGES * PAGE, HEAD * PAGE, 0) == rooms[LOW]);
	part_is(LOW, SECOND);
	part_may(LOW, SECOND, ZEROS);
	map_anew(LOW, HEAD, PAGES - HEAD);
	part_is(LOW, SECOND);
}

/* What the kernel has there by now, and which of it is watched. */
static void print_mappings(uint64_t start, uint64_t end)
{
	FILE *maps = fopen("/proc/self/smaps", "r");
	uint64_t from, to;
	bool here = false;
	char line[256];

	while (maps && fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
			here = from < end && to > start;
		if (here && (strncmp(line, "VmFlags", 7) == 0 || strchr(line, '-')))
			fputs(line, stderr);
	}
	if (maps)
		fclose(maps);
}

static void grown(void)
{
	part_may(LOW, SECOND, NOTHING);
	CHECK_EQ(munmap(rooms[LOW] + HEAD * PAGE, (PAGES - HEAD) * PAGE), 0);
	part_is(LOW, SECOND);
	part_may(LOW, SECOND, ZEROS);
	if (mremap(rooms[LOW], HEAD * PAGE, PAGES * PAGE, 0) != rooms[LOW]) {
		int error = errno;

		print_mappings((uint64_t)rooms[LOW], (uint64_t)rooms[LOW] + PAGES * PAGE);
		FAIL("a mapping does not grow: %s", strerror(error));
	}
	part_is(LOW, SECOND);
}

static void discarded(void)
{
	may(LOW, ZEROS);
	CHECK_EQ(madvise(rooms[LOW], PAGES * PAGE, MADV_DONTNEED), 0);
	is(LOW);
}

/* From then on each page is zeros or what it was, until it is written. */
static void freed(void)
{
	may(LOW, ZEROS);
	CHECK_EQ(madvise(rooms[LOW], PAGES * PAGE, MADV_FREE), 0);
	hmm_device_read(&mirror, (unsigned long)rooms[LOW], &(char){ 0 }, 1);
}

static void collapsed(void)
{
	/* It may refuse; nothing changes for anybody. */
	madvise(rooms[LOW], BLOCK, MADV_COLLAPSE);
}

static const struct {
	const char *name;
	void (*run)(void);
	bool leaves_zeros;	/* in all of the room, exactly */
} changes[] = {
	{ "unmapped", unmapped, true }, { "mapped-over", mapped_over, true }, { "moved", moved, false },
	{ "left-behind", left_behind, true }, { "shrunk", shrunk, false }, { "grown", grown, false },
	{ "discarded", discarded, true }, { "freed", freed, false }, { "collapsed", collapsed, false },
};

#define N_CHANGES (sizeof(changes) / sizeof(changes[0]))

static void board_open(int fd)
{
	if (ftruncate(fd, sizeof(*board)))
		FAIL("ftruncate: %m");
	board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(board != MAP_FAILED);
}

/*
 * One at the start of a block, the other in the middle of one. Nothing else that is mapped touches them, and what
 * is mapped anew is as what it joins: each is one mapping, as mremap() wants it.
 */
static void rooms_open(void)
{
	char *all = test_map_huge(5);

	CHECK_EQ(mprotect(all, 5 * BLOCK, PROT_NONE), 0);
	rooms[LOW] = all;
	rooms[HIGH] = all + 2 * BLOCK + 37 * PAGE;
	for (int room = 0; room < ROOMS; room++) {
		board->rooms[room] = (uint64_t)rooms[room];
		map_anew(room, 0, PAGES);
		fill(room);
	}
}

/* Until whoever looks has @met what it is to meet: on a busy machine it may not have run at all in the first rounds. */
static void change_all_the_time(bool (*met)(void))
{
	uint32_t state = (uint32_t)getpid() * 31U;

	for (uint32_t round = 0; round < ROUNDS || (round < ROUNDS_MOST && !met()); round++) {
		uint32_t n = round < N_CHANGES ? round : draw(&state, N_CHANGES);

		if (draw(&state, 4))
			hmm_migrate(&mirror, (unsigned long)rooms[LOW], PAGES * PAGE, HMM_DEVICE, 0, NULL, NULL);
		if (draw(&state, 2))
			hmm_migrate(&mirror, (unsigned long)rooms[HIGH], PAGES * PAGE, HMM_DEVICE, 0, NULL, NULL);
		changes[n].run();
		if (changes[n].leaves_zeros)
			check(LOW, draw(&state, 2));
		fill(LOW);
		check(LOW, false);
		check(LOW, true);
		check(HIGH, draw(&state, 2));
		/* What a window met where nothing was it may show again. */
		if (windows)
			CHECK_EQ(hmm_include(hmm, (unsigned long)rooms[LOW], 5 * BLOCK), 0);
	}
}

static void print_board(void)
{
	printf("%u of %u moves were refused\n", refused_moves, moves);
	CHECK(refused_moves < moves);
	printf("%lu device reads, %lu during a change, %lu where nothing was; %lu loads, %lu during a change, %lu refused; %lu writes\n",
	       board->reads, board->meanwhile, board->refused, board->loads, board->loads_meanwhile,
	       board->loads_refused, board->writes);
}

static bool reads_met(void)
{
	return board->meanwhile && board->refused && board->writes;
}

static void reads(void)
{
	pthread_t threads[3];

	board_open(memfd_create("board", MFD_CLOEXEC));
	test_open(0, DEVICE_MEMORY);
	rooms_open();
	CHECK_EQ(pthread_create(&threads[0], NULL, reader, (void *)1), 0);
	CHECK_EQ(pthread_create(&threads[1], NULL, reader, (void *)2), 0);
	CHECK_EQ(pthread_create(&threads[2], NULL, writer, NULL), 0);
	change_all_the_time(reads_met);
	atomic_store(&board->stop, true);
	for (int i = 0; i < 3; i++)
		CHECK_EQ(pthread_join(threads[i], NULL), 0);
	check(LOW, true);
	check(LOW, false);
	check(HIGH, true);
	check(HIGH, false);
	print_board();
	CHECK(reads_met());
	test_close();
}

/* ---- a driver, by reads and through a window ----------------------------------------------- */

static __thread sigjmp_buf landing;
static __thread volatile sig_atomic_t loading;

static void refused(int number)
{
	if (!loading)
		abort();
	siglongjmp(landing, number);
}

static bool load(const volatile uint64_t *word, uint64_t *value)
{
	if (sigsetjmp(landing, 1)) {
		loading = 0;
		return false;
	}
	loading = 1;
	*value = *word;
	loading = 0;
	return true;
}

static void load_some(struct hmm_window *const *views, uint32_t *state)
{
	int room = draw(state, 4) ? LOW : HIGH;
	size_t page = draw(state, PAGES), word = 64 * draw(state, MARKS);
	const volatile uint64_t *words = hmm_window_ptr(views[room], board->rooms[room] + page * PAGE);
	struct look look;
	uint64_t value;
	bool done;

	look_begin(&look, room);
	done = load(&words[word], &value);
	look_end(&look, room);
	if (done)
		judge(&look, room, page, word, value, "a window");
	atomic_fetch_add(&board->loads, 1);
	atomic_fetch_add(&board->loads_refused, !done);
	atomic_fetch_add(&board->loads_meanwhile, look_met_a_change(&look));
}

/* Nothing changes any more: each page can be had, as soon as the library has opened what was closed. */
static void load_all(struct hmm_window *const *views)
{
	for (int room = 0; room < ROOMS; room++)
		for (size_t page = 0; page < PAGES; page++) {
			const volatile uint64_t *words = hmm_window_ptr(views[room], board->rooms[room] + page * PAGE);
			struct look look;
			uint64_t value = 0;
			int tries = 0;

			while (!load(&words[64], &value)) {
				if (++tries == 3000)
					FAIL("the window shows page %zu of room %d no more", page, room);
				usleep(10000);
			}
			look_begin(&look, room);
			look_end(&look, room);
			judge(&look, room, page, 64, value, "a window at the end");
		}
}

static void driver(void)
{
	struct sigaction action = { .sa_handler = refused };
	struct hmm_window *views[ROOMS];
	pthread_t thread;
	uint32_t state = (uint32_t)getpid();
	uint64_t word;
	int fd;

	test_driver_open(&quiet);
	CHECK(test_hear(TEST_DRIVER_SOCKET, &word, &fd) && fd >= 0);
	board_open(fd);
	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
	for (int room = 0; room < ROOMS; room++)
		CHECK_EQ(hmm_window_map(&mirror, board->rooms[room], PAGES * PAGE, HMM_WINDOW_OFFSET, &views[room]), 0);
	CHECK_EQ(pthread_create(&thread, NULL, reader, (void *)3), 0);
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
	while (!atomic_load(&board->stop))
		load_some(views, &state);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	load_all(views);
	for (int room = 0; room < ROOMS; room++)
		CHECK_EQ(hmm_window_unmap(views[room]), 0);
	test_close();
}

static bool driver_met(void)
{
	return board->meanwhile && board->loads_meanwhile && board->loads > board->loads_refused;
}

static void by_a_driver(void)
{
	int socket, fd = memfd_create("board", MFD_CLOEXEC);
	pid_t child = test_driver_start("by-a-driver", &socket);
	uint64_t word;

	windows = true;
	board_open(fd);
	test_open(0, DEVICE_MEMORY);
	rooms_open();
	test_invite(socket, rooms[LOW]);
	test_tell(socket, 0, fd);
	CHECK(test_hear(socket, &word, NULL));
	change_all_the_time(driver_met);
	atomic_store(&board->stop, true);
	test_reap(child, 0);
	check(LOW, true);
	check(LOW, false);
	check(HIGH, true);
	check(HIGH, false);
	print_board();
	CHECK(driver_met());
	test_close();
}

static const struct test_case cases[] = {
	{ "reads", reads, false }, { "by-a-driver", by_a_driver, false }, { NULL, NULL, false },
};

static const struct test_case drivers[] = {
	{ "by-a-driver", driver, false }, { NULL, NULL, false },
};

int main(int argc, char **argv)
{
	return test_driver_main(argc, argv, cases, drivers);
}
