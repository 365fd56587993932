// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * flood.c - one CPU fault on a page that is on the device while another process
 * floods hmmd, beside the same without the flood.
 *
 * The flooder does all at once what a client can do that costs hmmd something: requests whose answers it never reads,
 * requests that are refused, lists, messages cut short, connections that come and go. It does so for 500 faults
 * and is quiet for 500, in turn, so that both meet the same disturbances; a round's figure is the p99 of all its faults
 * of either kind. What it has sent is told beside the figure: a flood that hmmd had stopped would be none.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <signal.h>
#include <unistd.h>

#include "bench/rig/rig.h"
#include "hmm_protocol.h"

#define FAULTS	20000U		/* half of them under flood */
#define BATCH	500U
#define DEAF	8U		/* connections whose answers are not read */

struct signs {
	_Atomic int flood;		/* for the flooder: on, or off */
	_Atomic int flooding;		/* from it: as it was told */
	_Atomic unsigned long sent;	/* messages and connections that hmmd's socket took */
};

/* ---- the flooder ------------------------------------------------------------------ */

static int come(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", getenv("HMM_SOCKET"));
	if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		close(fd);
		fd = -1;
	}
	return fd;
}

static bool say(int fd, const void *message, size_t size, struct signs *signs)
{
	if (send(fd, message, size, MSG_NOSIGNAL) < 0)
		return errno == EAGAIN;
	signs->sent++;
	return true;
}

static int greeted(struct signs *signs)
{
	struct hmm_msg_hello hello;
	int fd = come();

	HMM_MSG_INIT(hello, HMM_OP_HELLO, 1);
	hello.version_min = hello.version_max = HMM_PROTOCOL_VERSION;
	hello.role = HMM_ROLE_DRIVER;
	HMM_MSG_TEXT(hello.name, "flood");
	if (fd >= 0)
		say(fd, &hello, sizeof(hello), signs);
	return fd;
}

/* False: hmmd has hung up. */
static bool pester(int fd, struct signs *signs)
{
	struct hmm_msg_doctor doctor;
	struct hmm_msg_clients clients;
	struct hmm_msg_migrate migrate;

	HMM_MSG_INIT(doctor, HMM_OP_DOCTOR, 2);
	HMM_MSG_INIT(clients, HMM_OP_CLIENTS, 3);
	HMM_MSG_INIT(migrate, HMM_OP_MIGRATE, 4);
	migrate.mirror = 1 << 8;
	migrate.length = PAGE;
	return say(fd, &doctor, sizeof(doctor), signs) && say(fd, &clients, sizeof(clients), signs) &&
	       say(fd, &migrate, sizeof(migrate), signs);
}

static void flood(struct signs *signs)
{
	int deaf[DEAF], reading, passing;
	char answer[4096];

	for (unsigned int i = 0; i < DEAF; i++)
		deaf[i] = -1;
	reading = greeted(signs);
	while (signs->flood) {
		signs->flooding = 1;
		for (unsigned int i = 0; i < DEAF; i++) {
			if (deaf[i] >= 0 && !pester(deaf[i], signs)) {
				close(deaf[i]);
				deaf[i] = -1;
			}
			if (deaf[i] < 0)
				deaf[i] = greeted(signs);
		}
		if (reading >= 0)
			pester(reading, signs);
		while (reading >= 0 && recv(reading, answer, sizeof(answer), MSG_DONTWAIT) > 0)
			;
		/* Comes, says half a message and is gone. */
		passing = come();
		if (passing >= 0) {
			say(passing, answer, 7, signs);
			close(passing);
		}
	}
	for (unsigned int i = 0; i < DEAF; i++)
		if (deaf[i] >= 0)
			close(deaf[i]);
	if (reading >= 0)
		close(reading);
	signs->flooding = 0;
}

static void start_flooder(struct signs *signs)
{
	pid_t parent = getpid(), child = fork();

	if (child < 0)
		fail("no process to flood from: %s", strerror(errno));
	if (child)
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (getppid() == parent) {
		if (signs->flood)
			flood(signs);
		else
			usleep(50);
	}
	_exit(0);
}

static void set_flood(struct signs *signs, int on)
{
	signs->flood = on;
	while (signs->flooding != on)
		usleep(100);
}

/* ---- who faults -------------------------------------------------------------------- */

static double touch(volatile char *memory, uint32_t page)
{
	uint64_t start = now_ns(), value = *(volatile uint64_t *)(memory + page * PAGE), end = now_ns();

	if (value != page)
		fail("page %u came home with wrong bytes", page);
	return (double)(end - start) / 1e3;
}

int main(int argc, char **argv)
{
	struct figures tail = { .row = "flood-p99", .unit = "us" };
	struct arguments arguments;
	struct mirrored mirrored;
	double *flooded = calloc(FAULTS, sizeof(*flooded)), *quiet = calloc(FAULTS, sizeof(*quiet));
	struct signs *signs = mmap(NULL, sizeof(*signs), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint32_t *order;
	char *memory, note[96];

	arguments_read(&arguments, argc, argv);
	if (!flooded || !quiet || signs == MAP_FAILED)
		fail("out of memory");
	start_flooder(signs);
	arguments.bytes = (FAULTS * PAGE + BLOCK - 1) & ~(BLOCK - 1);
	warm_up(arguments.bytes * 4);
	memory = memory_new(arguments.bytes, arguments.huge);
	memory_mark(memory, arguments.bytes, 0);
	order = permutation(FAULTS, 1);
	mirrored_open(&mirrored, arguments.bytes);
	pin(arguments.fault_cpu);
	for (unsigned int round = 0; round <= arguments.rounds; round++) {
		unsigned int n = 0;

		move_all(&mirrored, memory, arguments.bytes, HMM_DEVICE);
		for (uint32_t first = 0; first < FAULTS; first += 2 * BATCH, n += BATCH) {
			set_flood(signs, 1);
			for (uint32_t i = 0; i < BATCH; i++)
				flooded[n + i] = touch(memory, order[first + i]);
			set_flood(signs, 0);
			for (uint32_t i = 0; i < BATCH; i++)
				quiet[n + i] = touch(memory, order[first + BATCH + i]);
		}
		if (round)
			figures_add(&tail, quantile(flooded, n, 0.99), quantile(quiet, n, 0.99));
	}
	pin(-1);
	snprintf(note, sizeof(note), "\"faults\": %u, \"flood\": %lu", FAULTS, (unsigned long)signs->sent);
	figures_print(&tail, note);
	mirrored_close(&mirrored);
	return EXIT_SUCCESS;
}
