/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

/*
 * A Criterion suite whose every test also fails when it leaves a descriptor open or, under
 * AddressSanitizer, memory allocated. Further suite options follow the name. The check runs last,
 * after the test's own .fini, and LeakSanitizer's own check at exit is no substitute: Criterion's
 * workers end in a way that hides its verdict.
 */
#define LEAKCHECKED_SUITE(name, ...)                                                               \
	TestSuite(name, .init = leakcheck_begin, .fini = leakcheck_end, ##__VA_ARGS__)

void leakcheck_begin(void);
void leakcheck_end(void);
