// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * surroundings.c - what keeps a program that is started where hmmctl was, in a container, say, from being mirrored: found by trying, as such
 * a program would. What is wrong with hmmd it says itself.
 */
#include "surroundings.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "uapi.h"

struct search {
	struct hmm_record_finding **findings;
	long *count;
	bool filtered;
};

enum { NOTE = 1, ERROR = 3 };

static void find(struct search *search, uint32_t severity, const char *name, const char *text, const char *fix)
{
	struct hmm_record_finding *more = realloc(*search->findings, (size_t)(*search->count + 1) * sizeof(*more));

	if (!more)
		return;
	*search->findings = more;
	more += (*search->count)++;
	memset(more, 0, sizeof(*more));
	more->severity = severity;
	HMM_MSG_TEXT(more->name, name);
	HMM_MSG_TEXT(more->text, text);
	HMM_MSG_TEXT(more->fix, fix);
}

/* hmmd says "what is wrong; what to do". */
static void find_refusal(struct search *search, const char *said)
{
	char text[sizeof((*search->findings)->text)];
	const char *fix = strstr(said, "; ");

	snprintf(text, sizeof(text), "%.*s", fix ? (int)(fix - said) : (int)strlen(said), said);
	find(search, ERROR, "refused", text, fix ? fix + 2 : "");
}

static void check_userfaultfd(struct search *search, int device)
{
	int fd = device >= 0 ? ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC) : -1;

	if (fd < 0)
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	if (fd < 0)
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	if (fd >= 0)
		close(fd);
	else if (search->filtered)
		find(search, ERROR, "userfaultfd",
		     "programs here can't be mirrored: a seccomp filter, a container's, say, forbids userfaultfd(), and hmmd may not open /dev/userfaultfd to hand it out",
		     "let hmmd open /dev/userfaultfd (DeviceAllow=, docker run --device), or allow userfaultfd() in the profile here");
	else
		find(search, ERROR, "userfaultfd", "programs here can't be mirrored: userfaultfd() is not permitted, and hmmd may not open /dev/userfaultfd to hand it out",
		     "let hmmd open /dev/userfaultfd, or sysctl vm.unprivileged_userfaultfd=1");
}

static void check_proc(struct search *search)
{
	static const char *const files[] = { "mem", "pagemap", "maps", "smaps" };
	char path[32], text[160];

	for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
		int fd;

		snprintf(path, sizeof(path), "/proc/self/%s", files[i]);
		fd = open(path, (i ? O_RDONLY : O_RDWR) | O_CLOEXEC);
		if (fd >= 0) {
			close(fd);
			continue;
		}
		snprintf(text, sizeof(text), "programs here can't be mirrored: %s: %s", path, strerror(errno));
		find(search, ERROR, "proc", text, "mount /proc in the container, and mask none of a process's own files");
	}
}

static void check_descriptors(struct search *search)
{
	int self = (int)syscall(SYS_pidfd_open, getpid(), 0);

	if (self >= 0 && syscall(SYS_pidfd_getfd, self, INT_MAX, 0) < 0 && errno == EBADF) {
		close(self);
		return;
	}
	if (self >= 0)
		close(self);
	if (search->filtered)
		find(search, NOTE, "pidfd_getfd", "a seccomp filter, a container's, say, forbids pidfd_getfd(): the library has a thread more, which passes descriptors on",
		     "none is needed; or allow pidfd_getfd() in the profile (docker run --cap-add SYS_PTRACE)");
}

void surroundings_examine(const struct link *asked, struct hmm_record_finding **findings, long *count)
{
	struct search search = { findings, count, prctl(PR_GET_SECCOMP, 0, 0, 0, 0) == 2 };
	struct link *link = malloc(sizeof(*link));
	int device;

	if (!link)
		return;
	link_init(link);
	if (link_open_as(link, asked->path, HMM_ROLE_OWNER)) {
		find_refusal(&search, link->text);
	} else {
		device = link_take_fd(link, 0);
		check_userfaultfd(&search, device);
		if (device >= 0)
			close(device);
		link_close(link);
	}
	check_proc(&search);
	check_descriptors(&search);
	free(link);
}
