// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Events of a userfaultfd: which changes of an address space raise one, when, who
 * waits for it, and what does not work while one is unread.
 *
 * A second thread makes the change, the test's main thread reads. What can fail: a
 * kernel that raises an event where hmmd expects none (a thread would then sleep for
 * ever), or none where hmmd leans on one.
 */
#include "contract.h"

#include <sys/ipc.h>
#include <sys/shm.h>

#define ALL_EVENTS	(UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP |	\
			 UFFD_FEATURE_EVENT_REMAP)

TestSuite(events, .init = contract_begin);

/* hmmd's own page of bytes, for what it COPYs */
static void *filled(int value)
{
	void *page = map_pages(1);

	memset(page, value, PAGE);
	return page;
}

/* What the reader of events does not need to wait for: no event at all. */
static void expect_silence(int fd, struct call *call)
{
	cr_assert_geq(call_end(call), 0);
	cr_assert(no_event(fd));
}

Test(events, remove_comes_before_the_zap)
{
	int fd = uffd_open(ALL_EVENTS);
	char *mem = map_pages(4);
	struct uffd_msg msg;
	struct call call;

	memset(mem, 1, 4 * PAGE);
	cr_assert_eq(uffd_register(fd, mem, 4 * PAGE, MISSING), 0);
	CALL(&call, SYS_madvise, (long)(mem + PAGE), 2 * PAGE, MADV_DONTNEED);
	/* The caller waits with the pages still there, until the event has been read. */
	wait_until(!no_event(fd));
	cr_assert(still_blocked(&call));
	cr_assert(pagemap(mem + PAGE) & PM_PRESENT);
	cr_assert_eq(mem[PAGE], 1);
	msg = expect_event(fd, UFFD_EVENT_REMOVE);
	cr_assert_eq(msg.arg.remove.start, (uintptr_t)(mem + PAGE));
	cr_assert_eq(msg.arg.remove.end, (uintptr_t)(mem + 3 * PAGE));
	cr_assert_eq(call_end(&call), 0);
	cr_assert_not(pagemap(mem + PAGE) & PM_PRESENT);
	cr_assert(pagemap(mem) & PM_PRESENT);
}

Test(events, madv_free_is_a_remove)
{
	int fd = uffd_open(ALL_EVENTS);
	char *mem = map_pages(1);
	struct call call;

	memset(mem, 1, PAGE);
	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING), 0);
	CALL(&call, SYS_madvise, (long)mem, PAGE, MADV_FREE);
	expect_event(fd, UFFD_EVENT_REMOVE);
	cr_assert_eq(call_end(&call), 0);
}

Test(events, unmap_comes_after_the_change)
{
	int fd = uffd_open(ALL_EVENTS);
	char *mem = map_pages(4);
	struct uffd_msg msg;
	struct call call;
	void *again;

	memset(mem, 1, 4 * PAGE);
	cr_assert_eq(uffd_register(fd, mem, 4 * PAGE, MISSING), 0);
	CALL(&call, SYS_munmap, (long)(mem + PAGE), 2 * PAGE);
	wait_until(!no_event(fd));
	cr_assert(still_blocked(&call));
	/* The event is unread, the addresses are free already: another thread may get them. */
	again = mmap(mem + PAGE, 2 * PAGE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	cr_assert_eq(again, mem + PAGE);
	msg = expect_event(fd, UFFD_EVENT_UNMAP);
	cr_assert_eq(msg.arg.remove.start, (uintptr_t)(mem + PAGE));
	cr_assert_eq(msg.arg.remove.end, (uintptr_t)(mem + 3 * PAGE));
	cr_assert_eq(call_end(&call), 0);
}

Test(events, map_fixed_over_an_armed_range_is_an_unmap)
{
	int fd = uffd_open(ALL_EVENTS);
	char *mem = map_pages(2);
	struct uffd_msg msg;
	struct call call;

	cr_assert_eq(uffd_register(fd, mem, 2 * PAGE, MISSING), 0);
	CALL(&call, SYS_mmap, (long)mem, PAGE, PROT_READ | PROT_WRITE,
	     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	msg = expect_event(fd, UFFD_EVENT_UNMAP);
	cr_assert_eq(msg.arg.remove.start, (uintptr_t)mem);
	cr_assert_eq(call_end(&call), (long)mem);
	/* The new mapping is not armed: a touch asks nobody. */
	load_start(&call, mem);
	cr_assert_eq(call_end(&call), 0);
	cr_assert(no_event(fd));
}

Test(events, mremap_is_a_remap_and_then_an_unmap)
{
	int fd = uffd_open(ALL_EVENTS);
	char *mem = map_pages(2), *room = map_pages(4);
	struct uffd_msg msg;
	struct call call;

	memset(mem, 3, PAGE);
	cr_assert_eq(uffd_register(fd, mem, 2 * PAGE, MISSING), 0);
	CALL(&call, SYS_mremap, (long)mem, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
	     (long)room);
	msg = expect_event(fd, UFFD_EVENT_REMAP);
	cr_assert_eq(msg.arg.remap.from, (uintptr_t)mem);
	cr_assert_eq(msg.arg.remap.to, (uintptr_t)room);
	cr_assert_eq(msg.arg.remap.len, 2 * PAGE);
	msg = expect_event(fd, UFFD_EVENT_UNMAP);
	cr_assert_eq(msg.arg.remove.start, (uintptr_t)mem);
	cr_assert_eq(call_end(&call), (long)room);
	cr_assert_eq(room[0], 3);
	/* The new place is armed by the move itself; its missing page asks for its bytes. */
	load_start(&call, room + PAGE);
	expect_fault(fd, room + PAGE, 0);
	cr_assert_eq(uffd_copy(fd, room + PAGE, filled(4), PAGE, 0), 0);
	cr_assert_eq(call_end(&call), 4);
}

/* A page that is on the device moves with its range: its bytes are due at the new address. */
Test(events, mremap_of_missing_pages_arms_the_new_place)
{
	int fd = uffd_open(ALL_EVENTS);
	char *mem = map_pages(4), *room = map_pages(8);
	void *bytes = filled(9);
	struct call call;

	cr_assert_eq(uffd_register(fd, mem, 4 * PAGE, MISSING), 0);
	CALL(&call, SYS_mremap, (long)mem, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
	     (long)room);
	wait_until(!no_event(fd));
	cr_assert_eq(uffd_copy(fd, room, bytes, PAGE, 0), -EAGAIN);
	expect_event(fd, UFFD_EVENT_REMAP);
	expect_event(fd, UFFD_EVENT_UNMAP);
	cr_assert_eq(call_end(&call), (long)room);
	/* Nobody has touched it: COPY before any fault, and after one. */
	cr_assert_eq(uffd_copy(fd, room, bytes, PAGE, 0), 0);
	cr_assert_eq(room[5], 9);
	load_start(&call, room + 2 * PAGE);
	expect_fault(fd, room + 2 * PAGE, 0);
	cr_assert_eq(uffd_copy(fd, room + 2 * PAGE, bytes, PAGE, 0), 0);
	cr_assert_eq(call_end(&call), 9);
	cr_assert_eq(uffd_copy(fd, mem, bytes, PAGE, 0), -ENOENT, "the old place is gone");
}

Test(events, mremap_that_grows_arms_what_it_adds)
{
	int fd = uffd_open(ALL_EVENTS);
	char *room = map_pages(8), *mem = room;
	void *bytes = filled(7);
	struct call call;

	cr_assert_eq(munmap(room + 2 * PAGE, 6 * PAGE), 0);
	memset(mem, 1, 2 * PAGE);
	cr_assert_eq(uffd_register(fd, mem, 2 * PAGE, MISSING), 0);
	CALL(&call, SYS_mremap, (long)mem, 2 * PAGE, 4 * PAGE, 0);
	/* In place: no event of any kind, yet the VMA that grew is the armed one. */
	expect_silence(fd, &call);
	load_start(&call, mem + 3 * PAGE);
	expect_fault(fd, mem + 3 * PAGE, 0);
	cr_assert_eq(uffd_copy(fd, mem + 3 * PAGE, bytes, PAGE, 0), 0);
	cr_assert_eq(call_end(&call), 7);
}

Test(events, mremap_that_shrinks_is_an_unmap_of_the_tail)
{
	int fd = uffd_open(ALL_EVENTS);
	char *mem = map_pages(4);
	struct uffd_msg msg;
	struct call call;

	cr_assert_eq(uffd_register(fd, mem, 4 * PAGE, MISSING), 0);
	CALL(&call, SYS_mremap, (long)mem, 4 * PAGE, PAGE, 0);
	msg = expect_event(fd, UFFD_EVENT_UNMAP);
	cr_assert_eq(msg.arg.remove.start, (uintptr_t)(mem + PAGE));
	cr_assert_eq(msg.arg.remove.end, (uintptr_t)(mem + 4 * PAGE));
	cr_assert_eq(call_end(&call), (long)mem);
}

Test(events, mremap_dontunmap_keeps_the_old_place_armed)
{
	int fd = uffd_open(ALL_EVENTS);
	char *mem = map_pages(1), *room = map_pages(1);
	struct call call;

	memset(mem, 3, PAGE);
	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING), 0);
	CALL(&call, SYS_mremap, (long)mem, PAGE, PAGE,
	     MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, (long)room);
	expect_event(fd, UFFD_EVENT_REMAP);
	cr_assert_eq(call_end(&call), (long)room);
	cr_assert(no_event(fd));
	cr_assert_eq(room[0], 3);
	load_start(&call, mem);
	expect_fault(fd, mem, 0);
	cr_assert_eq(uffd_zeropage(fd, mem, PAGE), 0);
	cr_assert_eq(call_end(&call), 0);
}

Test(events, mremap_without_the_feature_disarms)
{
	int fd = uffd_open(0);
	char *mem = map_pages(1), *room = map_pages(1);

	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING), 0);
	cr_assert_eq(mremap(mem, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room), room);
	cr_assert_eq(*(volatile char *)room, 0, "zeros where the device had the page");
	cr_assert(no_event(fd));
}

static void sleeper(void *arg)
{
	pause();
}

Test(events, none_for_mprotect_nor_cow)
{
	int fd = uffd_open(ALL_EVENTS);
	char *mem = map_pages(2);
	struct call call;
	pid_t pid;

	memset(mem, 1, 2 * PAGE);
	cr_assert_eq(uffd_register(fd, mem, 2 * PAGE, MISSING), 0);
	CALL(&call, SYS_mprotect, (long)mem, PAGE, PROT_READ);
	expect_silence(fd, &call);
	CALL(&call, SYS_mprotect, (long)mem, PAGE, PROT_NONE);
	expect_silence(fd, &call);
	CALL(&call, SYS_mprotect, (long)mem, PAGE, PROT_READ | PROT_WRITE);
	expect_silence(fd, &call);
	pid = child_start(sleeper, NULL);
	store_start(&call, mem + PAGE, 2);	/* breaks copy-on-write */
	expect_silence(fd, &call);
	child_kill(pid);
}

/* The exit of the owner raises nothing: that is what its pidfd, and ESRCH, are for. */
static void owner_of_one_armed_page(void *sock)
{
	int fd = uffd_open(ALL_EVENTS);
	char *mem = map_pages(1);

	child_check(uffd_register(fd, mem, PAGE, MISSING) == 0);
	send_fd(*(int *)sock, fd);
	child_check(read(*(int *)sock, &fd, 1) >= 0);
}

Test(events, none_for_exit_and_copy_says_esrch)
{
	int sock[2], fd;
	pid_t pid;

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock), 0);
	pid = child_start(owner_of_one_armed_page, &sock[1]);
	fd = recv_fd(sock[0]);
	cr_assert_geq(fd, 0);
	cr_assert_eq(write(sock[0], "q", 1), 1);
	child_passed(pid);
	cr_assert(no_event(fd));
	cr_assert_eq(uffd_copy(fd, (void *)BLOCK, filled(1), PAGE, 0), -ESRCH);
}

Test(events, unread_event_refuses_copy_and_protect)
{
	int fd = uffd_open(ALL_EVENTS | UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	char *mem = map_pages(4), *other = map_pages(1);
	void *bytes = filled(1);
	struct call call;
	int64_t done;

	memset(mem + PAGE, 1, PAGE);
	cr_assert_eq(uffd_register(fd, mem, 4 * PAGE, MISSING | WP), 0);
	cr_assert_eq(uffd_register(fd, other, PAGE, MISSING), 0);
	CALL(&call, SYS_munmap, (long)(mem + 3 * PAGE), PAGE);
	wait_until(!no_event(fd));
	/* Everywhere, not just where the map changes; nothing has been done. */
	cr_assert_eq(uffd_copy_done(fd, other, bytes, PAGE, 0, &done), -EAGAIN);
	cr_assert(done == -EAGAIN || done == 0, "before 6.15 the field may stay as it was");
	cr_assert_eq(uffd_copy(fd, mem, bytes, PAGE, 0), -EAGAIN);
	cr_assert_eq(uffd_zeropage(fd, mem, PAGE), -EAGAIN);
	cr_assert_eq(uffd_wp(fd, mem + PAGE, PAGE, true), -EAGAIN);
	/* WAKE and REGISTER change no page and are not refused. */
	cr_assert_eq(uffd_wake(fd, mem, PAGE), 0);
	cr_assert_eq(uffd_register(fd, map_pages(1), PAGE, MISSING), 0);
	expect_event(fd, UFFD_EVENT_UNMAP);
	cr_assert_eq(call_end(&call), 0);
	cr_assert_eq(uffd_copy(fd, mem, bytes, PAGE, 0), 0);
	cr_assert_eq(uffd_wp(fd, mem + PAGE, PAGE, true), 0);
}

/*
 * COPY is refused from the moment a REMOVE is queued until its caller, woken by the read,
 * goes on; only then comes the zap. So COPY may be let in before it, and find the old
 * page. The same holds for MOVE: a page that leaves in that moment escapes the zap, and
 * hmmd must see pages of a removed range absent once before it takes them again.
 */
Test(events, copy_is_let_in_before_the_zap_of_a_read_remove)
{
	int fd = uffd_open(ALL_EVENTS);
	char *mem = map_pages(512);
	void *bytes = filled(5);
	struct call call;
	int result;

	for (int round = 0; round < 50; round++) {
		memset(mem, 1, 512 * PAGE);
		cr_assert_eq(uffd_register(fd, mem, 512 * PAGE, MISSING), 0);
		CALL(&call, SYS_madvise, (long)mem, 512 * PAGE, MADV_DONTNEED);
		expect_event(fd, UFFD_EVENT_REMOVE);
		do {
			result = uffd_copy(fd, mem, bytes, PAGE, 0);
		} while (result == -EAGAIN);
		cr_assert(result == 0 || result == -EEXIST, "COPY: %d", result);
		cr_assert_eq(call_end(&call), 0);
		/* When the caller is back the zap is done, whoever won. */
		cr_assert_not(pagemap(mem + 511 * PAGE) & PM_PRESENT);
		if (result == -EEXIST)
			cr_assert_not(pagemap(mem) & PM_PRESENT);
		cr_assert_eq(uffd_unregister(fd, mem, 512 * PAGE), 0);
	}
}

/* Faults that are queued and that nobody has read yet. */
static int pending_faults(int fd)
{
	char path[64], text[256], *at;
	ssize_t len;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	len = read(fd, text, sizeof(text) - 1);
	cr_assert_gt(len, 0);
	text[len] = '\0';
	close(fd);
	at = strstr(text, "pending:");
	cr_assert_not_null(at);
	return atoi(at + strlen("pending:"));
}

/* So a reader drains the descriptor before it serves: faults come out first. */
Test(events, faults_are_read_before_events)
{
	int fd = uffd_open(ALL_EVENTS);
	char *mem = map_pages(4);
	struct uffd_msg msg[4];
	struct call unmap, load;

	cr_assert_eq(uffd_register(fd, mem, 4 * PAGE, MISSING), 0);
	CALL(&unmap, SYS_munmap, (long)(mem + 2 * PAGE), 2 * PAGE);
	wait_until(!no_event(fd));
	load_start(&load, mem);
	wait_until(pending_faults(fd) == 1);
	for (int i = 0; i < 2; i++)
		cr_assert_eq(read(fd, &msg[i], sizeof(msg[i])), sizeof(msg[i]));
	cr_assert_eq(msg[0].event, UFFD_EVENT_PAGEFAULT);
	cr_assert_eq(msg[1].event, UFFD_EVENT_UNMAP);
	cr_assert_eq(call_end(&unmap), 0);
	cr_assert_eq(uffd_zeropage(fd, mem, PAGE), 0);
	cr_assert_eq(call_end(&load), 0);
}

/* SysV memory attached over what is armed: it is gone, and nobody hears of it. */
Test(events, attaching_over_an_armed_range_raises_no_event)
{
	int fd = uffd_open(ALL_EVENTS), segment = shmget(IPC_PRIVATE, PAGE, IPC_CREAT | 0600);
	char *mem = map_pages(2);
	struct call call;

	if (segment < 0)
		skip("no SysV shared memory here: %s", strerror(errno));
	memset(mem, 1, 2 * PAGE);
	cr_assert_eq(uffd_register(fd, mem, 2 * PAGE, MISSING), 0);
	CALL(&call, SYS_shmat, segment, (long)mem, SHM_REMAP);
	expect_silence(fd, &call);
	cr_assert_eq(shmctl(segment, IPC_RMID, NULL), 0);
	cr_assert_eq(mem[0], 0, "the new mapping is there");
	cr_assert_eq(mem[PAGE], 1);
}

/* Nor of a shared mapping that shows another part of its file from now on. */
Test(events, remap_file_pages_raises_no_event)
{
	int fd = uffd_open(ALL_EVENTS);
	char *mem = map_shared(4 * PAGE);
	struct call call;

	for (int i = 0; i < 4; i++)
		memset(mem + (size_t)i * PAGE, i, PAGE);
	cr_assert_eq(uffd_register(fd, mem, 4 * PAGE, MISSING), 0);
	CALL(&call, SYS_remap_file_pages, (long)mem, PAGE, 0, 3, 0);
	expect_silence(fd, &call);
	cr_assert_eq(mem[0], 3);
}

/* One read(2) with room for many returns them all. */
Test(events, one_read_returns_many)
{
	int fd = uffd_open(ALL_EVENTS);
	char *mem = map_pages(8);
	struct uffd_msg msg[16];
	struct call load[8];

	cr_assert_eq(uffd_register(fd, mem, 8 * PAGE, MISSING), 0);
	for (int i = 0; i < 8; i++)
		load_start(&load[i], mem + i * PAGE);
	wait_until(pending_faults(fd) == 8);
	cr_assert_eq(read(fd, msg, sizeof(msg)), 8 * sizeof(*msg));
	cr_assert_eq(uffd_zeropage(fd, mem, 8 * PAGE), 0);
	for (int i = 0; i < 8; i++)
		cr_assert_eq(call_end(&load[i]), 0);
}

/*
 * The library's own madvise, on memory it armed, with nobody reading (hmmd is dead and
 * the library holds the descriptor): it sleeps. That is why a staging slot is emptied by
 * UNREGISTER, DONTNEED, REGISTER, which raise nothing.
 */
Test(events, own_madvise_sleeps_until_somebody_reads)
{
	int fd = uffd_open(ALL_EVENTS);
	char *mem = map_pages(1);
	struct call call;

	memset(mem, 1, PAGE);
	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING), 0);
	CALL(&call, SYS_madvise, (long)mem, PAGE, MADV_DONTNEED);
	wait_until(!no_event(fd));
	cr_assert(still_blocked(&call));
	expect_event(fd, UFFD_EVENT_REMOVE);
	cr_assert_eq(call_end(&call), 0);
}

Test(events, slot_is_emptied_without_an_event)
{
	int fd = uffd_open(ALL_EVENTS);
	char *slot = map_huge(1);
	struct call call;

	cr_assert_eq(uffd_register(fd, slot, BLOCK, MISSING), 0);
	cr_assert_eq(uffd_unregister(fd, slot, BLOCK), 0);
	CALL(&call, SYS_madvise, (long)slot, BLOCK, MADV_DONTNEED);
	expect_silence(fd, &call);
	cr_assert_eq(uffd_register(fd, slot, BLOCK, MISSING), 0);
	cr_assert_not(pagemap(slot) & PM_PRESENT);
}

/* A closed userfaultfd lets everybody go: a waiting munmap returns. */
Test(events, close_releases_the_caller)
{
	int fd = uffd_open(ALL_EVENTS);
	char *mem = map_pages(1);
	struct call call;

	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING), 0);
	CALL(&call, SYS_munmap, (long)mem, PAGE);
	wait_until(!no_event(fd));
	close(fd);
	cr_assert_eq(call_end(&call), 0);
}
