/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* log.h - what happened behind the program's back, for the program's log function. */
#ifndef HMMC_LOG_H
#define HMMC_LOG_H

/* As syslog has them. */
enum { HMMC_LOG_ERROR = 3, HMMC_LOG_WARNING = 4, HMMC_LOG_NOTICE = 5 };

/* Never waits for the program. Any thread. */
void hmmc_log(int level, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* After fork, in the child: nobody holds the lock and there is no thread. */
void hmmc_log_forget(void);

#endif
