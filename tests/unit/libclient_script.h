/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * libclient_script.h - a peer of the library that behaves exactly as badly as each test
 * needs at exactly that moment, which a real hmmd does not; and a driver that meets it.
 *
 * The peer is a child process. It answers what a driver asks, writes down
 * every request, and dies, hesitates or lies where the script says so.
 */
#ifndef TEST_LIBCLIENT_SCRIPT_H
#define TEST_LIBCLIENT_SCRIPT_H

#include <stdbool.h>
#include <stdint.h>

#include <hmm/hmm.h>

#define NOTES 256
#define CONNECTIONS 4

struct script {
	uint32_t grace_ms;
	int die_at_read; /* the n-th device_read is not answered: the connection goes; 0: none */
	int busy_reads;			/* so many device_reads are answered -EAGAIN */
	int busy_migrates, die_at_migrate;	/* the same */
	int short_protects, short_error;	/* so many protects are answered with this error */
	bool die_when_busy;		/* after such an answer the connection goes */
	int fail_migrate;		/* the n-th is answered -ENOMEM; 0: none */
	bool hold_migrates;		/* they are answered when this is taken back */
	bool vanish;			/* after that nobody listens any more */
	bool invalidate; /* a device_read first raises an invalidation, and waits for its answer */
	int hello_error;
	int open_error;			/* from the second connection on an open_peer is answered so */
	bool mute;			/* or not at all */
	int register_error;		/* a mirror_register is answered so */
	bool garbage;			/* before each reply something that is no message */
	bool die_at_close;		/* a notices_close is answered, to one who waits, and the connection goes */
	uint32_t program_waits;		/* a thread of the program is about to sleep */
	/* The n-th connection, from 1 on, ends when this is asked on it, without an answer: with a good-bye, or as by a crash. */
	struct {
		uint16_t at;
		bool goodbye;
	} ends[CONNECTIONS];
	bool holds;			/* the owner, of whom it hears no more: it answers that it has it, whoever comes for it */
	uint64_t away;			/* a block of which the ledger says that a page is on the device; 0: none */
	/* What happened. */
	uint32_t notes;
	uint16_t note[NOTES];
	int32_t ack_status;
	uint64_t ack_cookie;
	uint32_t connections;
	uint32_t reads, migrates, protects;
	uint32_t ready;			/* mirrors that have let go of everything: at any time, so no note */
	uint32_t mirror;		/* the number that this connection knows */
	uint32_t strange_reads;		/* of another */
	uint32_t rings;			/* of events, open on this connection */
};

/* Shared with the peer. */
extern struct script *script;
/* Of the socket that it listens on. */
extern char script_path[96];

void script_begin(void);
/* Nobody is there any more. */
void script_kill(void);
void script_end(void);

/* The driver: what be_driver() made. */
extern struct hmm *hmm;
extern struct hmm_mirror mirror;
extern const struct hmm_mirror_ops ops;
/* What its callback was told: changes, and what hmm_mirror_unregister() answered inside; and to let go of all. */
extern int updates, unregistered;
extern _Atomic int let_go_of_all;

/*
 * fork() when no other thread is awake. One that is just beginning or ending may hold a lock of AddressSanitizer's
 * allocator, which older ones do not take over a fork: the child would wait for it for ever.
 */
pid_t fork_at_rest(void);

/* A deadline, or a time to wait: times HMM_TEST_SCALE. */
int scaled_ms(int ms);

/* Return: as hmm_open_peer(). */
int open_peer(void);
void be_driver(void);
void stop_being_driver(void);
/* Reads a byte, well. */
void check_read(void);

#endif
