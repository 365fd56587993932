// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * log.c - lines come out whole and in order of each thread, below the level
 * they do not, and a reader that does not read costs lines and nobody's time.
 */
#include "daemon/log.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(log);

/* Standard error as a pipe that the test reads. */
struct capture {
	int saved, pipe[2];
	char *text;
	size_t size;
};

static void capture_begin(struct capture *capture)
{
	memset(capture, 0, sizeof(*capture));
	cr_assert(pipe2(capture->pipe, O_CLOEXEC) == 0);
	capture->saved = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
	cr_assert(dup2(capture->pipe[1], STDERR_FILENO) == STDERR_FILENO);
}

static void *read_pipe(void *arg)
{
	struct capture *capture = arg;
	ssize_t n;

	do {
		capture->text = realloc(capture->text, capture->size + 65536 + 1);
		n = read(capture->pipe[0], capture->text + capture->size, 65536);
		if (n > 0)
			capture->size += n;
	} while (n > 0);
	capture->text[capture->size] = '\0';
	return NULL;
}

/* The write ends are closed, so that the reader comes to an end. */
static void capture_end(struct capture *capture)
{
	dup2(capture->saved, STDERR_FILENO);
	close(capture->saved);
	close(capture->pipe[1]);
}

static void capture_free(struct capture *capture)
{
	close(capture->pipe[0]);
	free(capture->text);
}

Test(log, levels_and_form)
{
	struct capture capture;

	unsetenv("JOURNAL_STREAM");
	capture_begin(&capture);
	cr_expect(eq(int, log_init(LOG_LEVEL_WARN), 0));
	log_error("one %d", 1);
	log_info("not this");
	errno = ENOENT;
	log_warn("two: %m");
	cr_expect(eq(int, errno, ENOENT), "logging changed errno");
	log_set_level(LOG_LEVEL_DEBUG);
	log_debug("three");
	log_deinit();
	log_info("after the end");
	capture_end(&capture);
	read_pipe(&capture);
	cr_expect(strstr(capture.text, " error: one 1\n") != NULL);
	cr_expect(strstr(capture.text, " warning: two: No such file or directory\n") != NULL);
	cr_expect(strstr(capture.text, " debug: three\n") != NULL);
	cr_expect(strstr(capture.text, " info: after the end\n") != NULL);
	cr_expect(strstr(capture.text, "not this") == NULL);
	capture_free(&capture);
}

Test(log, the_journal_gets_priorities)
{
	struct capture capture;

	setenv("JOURNAL_STREAM", "8:1", 1);
	capture_begin(&capture);
	log_init(LOG_LEVEL_DEBUG);
	log_error("e");
	log_warn("w");
	log_info("i");
	log_debug("d");
	log_deinit();
	capture_end(&capture);
	read_pipe(&capture);
	cr_expect(eq(str, capture.text, "<3>e\n<4>w\n<6>i\n<7>d\n"));
	capture_free(&capture);
	unsetenv("JOURNAL_STREAM");
}

Test(log, long_lines_are_cut)
{
	struct capture capture;
	char text[3000];

	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	capture_begin(&capture);
	log_init(LOG_LEVEL_INFO);
	log_info("%s", text);
	log_info("next");
	log_deinit();
	capture_end(&capture);
	read_pipe(&capture);
	cr_expect(strstr(capture.text, "xx\n") != NULL);
	cr_expect(strstr(capture.text, "info: next\n") != NULL);
	cr_expect(capture.size < 2 * LOG_LINE_MAX);
	capture_free(&capture);
}

#define LINES_THAT_FIT 500	/* into the ring */
#define SPEAKERS 6
#define LINES 4000

static void *speak(void *arg)
{
	int i;

	for (i = 0; i < LINES; i++)
		log_info("speaker %d line %d end", *(int *)arg, i);
	return NULL;
}

Test(log, many_threads)
{
	struct capture capture;
	pthread_t reader, threads[SPEAKERS];
	int ids[SPEAKERS], last[SPEAKERS], i, id, line, lines = 0;
	uint64_t dropped, before = log_dropped();
	char *at, *rest;

	capture_begin(&capture);
	pthread_create(&reader, NULL, read_pipe, &capture);
	log_init(LOG_LEVEL_INFO);
	for (i = 0; i < SPEAKERS; i++) {
		ids[i] = i;
		last[i] = -1;
		pthread_create(&threads[i], NULL, speak, &ids[i]);
	}
	for (i = 0; i < SPEAKERS; i++)
		pthread_join(threads[i], NULL);
	log_deinit();
	capture_end(&capture);
	pthread_join(reader, NULL);

	rest = capture.text;
	while ((at = strsep(&rest, "\n"))) {
		char end[8];

		at = strstr(at, "speaker ");
		if (!at)
			continue;
		cr_assert(eq(int, sscanf(at, "speaker %d line %d %7s", &id, &line, end), 3));
		cr_assert(eq(str, end, "end"));
		cr_assert(id >= 0 && id < SPEAKERS);
		cr_assert(line > last[id], "line %d of speaker %d after line %d", line, id,
			  last[id]);
		last[id] = line;
		lines++;
	}
	dropped = log_dropped() - before;
	cr_expect(eq(u64, lines + dropped, SPEAKERS * LINES));
	capture_free(&capture);
}

/*
 * Nobody reads until all is said: were a caller to wait for the reader, this test would never end.
 */
Test(log, nobody_waits_for_a_reader)
{
	struct capture capture;
	pthread_t reader;
	uint64_t before = log_dropped();
	int i, id = 0;

	capture_begin(&capture);
	fcntl(capture.pipe[1], F_SETPIPE_SZ, 4096);
	log_init(LOG_LEVEL_INFO);
	for (i = 0; i < 3; i++)
		speak(&id);
	cr_expect(log_dropped() > before);
	pthread_create(&reader, NULL, read_pipe, &capture);
	log_deinit();
	capture_end(&capture);
	pthread_join(reader, NULL);
	cr_expect(strstr(capture.text, " log lines were dropped: stderr is too slow\n") != NULL);
	capture_free(&capture);
}

/* Whoever shares the terminal may have made it non-blocking, for all who have it. */
Test(log, a_pipe_that_says_eagain_loses_nothing)
{
	struct capture capture;
	pthread_t reader;
	char *at;

	capture_begin(&capture);
	fcntl(capture.pipe[1], F_SETPIPE_SZ, 4096);
	fcntl(capture.pipe[1], F_SETFL, O_NONBLOCK);
	log_init(LOG_LEVEL_INFO);
	for (int i = 0; i < LINES_THAT_FIT; i++)
		log_info("line %d of many that do not fit into a pipe", i);
	usleep(50000);	/* no matter for the test, but the pipe is full by then */
	pthread_create(&reader, NULL, read_pipe, &capture);
	log_deinit();
	capture_end(&capture);
	pthread_join(reader, NULL);
	at = capture.text;
	for (int i = 0; i < LINES_THAT_FIT; i++) {
		char line[64];

		snprintf(line, sizeof(line), "line %d of many", i);
		at = strstr(at, line);
		cr_assert(at != NULL, "%s is lost", line);
	}
	capture_free(&capture);
}
