/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * driver.c - see driver.h.
 */
#include "driver.h"

#include <spawn.h>
#include <sys/socket.h>

extern char **environ;

bool test_is_driver(int argc, char **argv)
{
	return argc == 3 && !strcmp(argv[2], "driver");
}

pid_t test_driver_start(const char *name, int *socket)
{
	char program[] = "/proc/self/exe", driver[] = "driver", *arguments[4];
	posix_spawn_file_actions_t actions;
	char *copy = strdup(name);
	int pair[2];
	pid_t child;

	arguments[0] = program;
	arguments[1] = copy;
	arguments[2] = driver;
	arguments[3] = NULL;
	CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, pair[1], TEST_DRIVER_SOCKET);
	CHECK_EQ(posix_spawn(&child, program, &actions, NULL, arguments, environ), 0);
	posix_spawn_file_actions_destroy(&actions);
	close(pair[1]);
	free(copy);
	*socket = pair[0];
	return child;
}

void test_tell(int socket, uint64_t word, int key)
{
	char control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec data = { &word, sizeof(word) };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1 };

	if (key >= 0) {
		struct cmsghdr *header = (struct cmsghdr *)control;

		message.msg_control = control;
		message.msg_controllen = sizeof(control);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(header), &key, sizeof(key));
	}
	CHECK_EQ(sendmsg(socket, &message, MSG_NOSIGNAL), 8);
}

bool test_hear(int socket, uint64_t *word, int *key)
{
	char control[CMSG_SPACE(sizeof(int))];
	struct iovec data = { word, sizeof(*word) };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = control,
				  .msg_controllen = sizeof(control) };

	if (key)
		*key = -1;
	if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != 8)
		return false;
	if (key && CMSG_FIRSTHDR(&message))
		memcpy(key, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(*key));
	return true;
}

unsigned long test_driver_join(void)
{
	uint64_t address, device;
	char name[32];
	int key;

	CHECK(test_hear(TEST_DRIVER_SOCKET, &address, &key));
	CHECK(key >= 0);
	CHECK(test_hear(TEST_DRIVER_SOCKET, &device, NULL));
	CHECK_EQ(hmm_open_peer(key, NULL, &hmm), 0);
	close(key);
	snprintf(name, sizeof(name), "device-%lu", device);
	CHECK_EQ(hmm_device_open(hmm, name, &mirror.device), 0);
	return address;
}

unsigned long test_driver_open(const struct hmm_mirror_ops *operations)
{
	unsigned long address = test_driver_join();

	mirror.ops = operations;
	CHECK_EQ(hmm_mirror_register(&mirror, hmm), 0);
	return address;
}

void test_invite(int socket, void *memory)
{
	int key = hmm_export(hmm);

	CHECK(key >= 0);
	test_tell(socket, (uint64_t)memory, key);
	test_tell(socket, (uint64_t)getpid(), -1);
	close(key);
}

char *test_lend(int socket, size_t pages, uint64_t seed)
{
	char *memory = test_map(pages);
	uint64_t word;

	test_fill(memory, pages, seed);
	test_out(memory, pages);
	test_invite(socket, memory);
	CHECK(test_hear(socket, &word, NULL));
	return memory;
}
