# SPDX-License-Identifier: GPL-2.0-or-later
# How a test is declared.
#
#   hmm_criterion_test(NAME x LABELS quick portable SOURCES a.c ... LIBS hmmd_core ...
#                      [TIMEOUT seconds] [SERIAL] [LOCK what] [SETTINGS nr_hugepages=64 ...] [ARGS ...])
#   hmm_script_test(NAME x LABELS full SCRIPT test_x.py [ARGS ...] [DEPENDS target ...]
#                   [TIMEOUT seconds] [SERIAL] [LOCK what] [SETTINGS ...])
#   hmm_program_test(NAME x LABELS full SOURCES ... LIBS ... [ARGS ...] [...])
#   hmm_fuzz_target(...), see there
#
# LABELS: quick or full, for tests/run; portable beside it for what depends on the kernel and is short: tests/guest runs
# it on other kernels too, where everything takes 20 times as long; guest is that; soak is run by hand; races beside it for what is
# worth a run under ThreadSanitizer, which takes its time.
#
# A Criterion program counts as many tests as it holds, a script as many as it reports; exit status 77 of a
# script or program is a skip, its reason the last line it printed. SETTINGS are machine settings (hugepages, sysctl): such a test
# runs alone, through tests/fixture/settings, which puts them back. Of tests with the same LOCK one runs at a time.

if(HMM_SANITIZE)
	set(HMM_TEST_SCALE_DEFAULT 10)
elseif(HMM_COVERAGE)
	set(HMM_TEST_SCALE_DEFAULT 4)
else()
	set(HMM_TEST_SCALE_DEFAULT 1)
endif()
set(HMM_TEST_SCALE ${HMM_TEST_SCALE_DEFAULT} CACHE STRING "Deadlines of tests are multiplied by this")

set(hmm_results_dir ${PROJECT_BINARY_DIR}/results)
file(MAKE_DIRECTORY ${hmm_results_dir})

function(hmm_register_test)
	cmake_parse_arguments(T "SERIAL;CRITERION" "NAME;TIMEOUT;LOCK" "LABELS;SETTINGS;COMMAND" ${ARGN})
	if(NOT T_LABELS)
		message(FATAL_ERROR "test ${T_NAME} has no LABELS")
	endif()
	foreach(label IN LISTS T_LABELS)
		if(NOT label MATCHES "^(quick|full|portable|guest|soak|races)$")
			message(FATAL_ERROR "test ${T_NAME}: '${label}' is no label (quick full portable guest soak races)")
		endif()
	endforeach()
	if(NOT T_TIMEOUT)
		set(T_TIMEOUT 120)
	endif()
	math(EXPR timeout "${T_TIMEOUT} * ${HMM_TEST_SCALE}")
	if(timeout GREATER 900 AND NOT T_TIMEOUT GREATER 900)
		set(timeout 900)
	endif()
	if(T_SETTINGS)
		list(PREPEND T_COMMAND ${PROJECT_SOURCE_DIR}/tests/fixture/settings ${T_SETTINGS} --)
	endif()

	add_test(NAME ${T_NAME} COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tests/attend.py
		--results ${hmm_results_dir} --name ${T_NAME} --deadline ${timeout}
		$<$<BOOL:${T_CRITERION}>:--criterion> -- ${T_COMMAND} COMMAND_EXPAND_LISTS)
	math(EXPR backstop "${timeout} + 30")
	set_tests_properties(${T_NAME} PROPERTIES LABELS "${T_LABELS}" TIMEOUT ${backstop} SKIP_RETURN_CODE 77)
	if(T_SERIAL OR T_SETTINGS)
		set_tests_properties(${T_NAME} PROPERTIES RUN_SERIAL TRUE)
	endif()
	if(T_LOCK)
		set_tests_properties(${T_NAME} PROPERTIES RESOURCE_LOCK ${T_LOCK})
	endif()
	set(environment
		HMM_TEST_SOURCE=${PROJECT_SOURCE_DIR}
		HMM_TEST_BINARY=${PROJECT_BINARY_DIR}
		HMM_TEST_SANITIZE=${HMM_SANITIZE}
		PYTHONDONTWRITEBYTECODE=1
		ASAN_OPTIONS=abort_on_error=0:detect_stack_use_after_return=1
		UBSAN_OPTIONS=print_stacktrace=1
		TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:history_size=7:suppressions=${PROJECT_SOURCE_DIR}/tests/tsan.supp)
	if(NOT DEFINED ENV{HMM_TEST_SCALE})
		list(APPEND environment HMM_TEST_SCALE=${HMM_TEST_SCALE})
	endif()
	set_tests_properties(${T_NAME} PROPERTIES ENVIRONMENT "${environment}")
endfunction()

# One option signature for all three; what is left of ARGN goes on to hmm_register_test.
macro(hmm_parse_test)
	cmake_parse_arguments(P "SERIAL" "NAME;SCRIPT;TIMEOUT;LOCK" "LABELS;SETTINGS;SOURCES;LIBS;ARGS;DEPENDS" ${ARGN})
	if(P_UNPARSED_ARGUMENTS)
		message(FATAL_ERROR "test ${P_NAME}: what is '${P_UNPARSED_ARGUMENTS}'?")
	endif()
	set(registration NAME ${P_NAME} LABELS ${P_LABELS} SETTINGS ${P_SETTINGS})
	if(P_TIMEOUT)
		list(APPEND registration TIMEOUT ${P_TIMEOUT})
	endif()
	if(P_SERIAL)
		list(APPEND registration SERIAL)
	endif()
	if(P_LOCK)
		list(APPEND registration LOCK ${P_LOCK})
	endif()
endmacro()

function(hmm_criterion_test)
	hmm_parse_test(${ARGN})
	# Criterion's programs abort under ThreadSanitizer, before main().
	if(HMM_SANITIZE MATCHES "thread")
		return()
	endif()
	add_executable(test-${P_NAME} ${P_SOURCES} ${PROJECT_SOURCE_DIR}/tests/leakcheck.c)
	target_link_libraries(test-${P_NAME} PRIVATE ${P_LIBS} PkgConfig::CRITERION)
	hmm_register_test(${registration} CRITERION COMMAND $<TARGET_FILE:test-${P_NAME}> ${P_ARGS})
endfunction()

function(hmm_program_test)
	hmm_parse_test(${ARGN})
	add_executable(test-${P_NAME} ${P_SOURCES})
	target_link_libraries(test-${P_NAME} PRIVATE ${P_LIBS})
	hmm_register_test(${registration} COMMAND $<TARGET_FILE:test-${P_NAME}> ${P_ARGS})
endfunction()

function(hmm_script_test)
	hmm_parse_test(${ARGN})
	cmake_path(ABSOLUTE_PATH P_SCRIPT BASE_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR})
	if(P_SCRIPT MATCHES "\\.py$")
		set(command ${Python3_EXECUTABLE} ${P_SCRIPT} ${P_ARGS})
	else()
		set(command ${P_SCRIPT} ${P_ARGS})
	endif()
	hmm_register_test(${registration} COMMAND ${command})
endfunction()

# A fuzz target: its sources define LLVMFuzzerTestOneInput() and nothing else. In the fuzz preset libFuzzer
# drives it (or AFL++, where the compiler is afl-clang-fast), elsewhere tests/fuzz/replay.c does: the corpus, then
# random mutations of it, from a printed seed. CORPUS are folders of inputs, OPTIONS libFuzzer's.
#   hmm_fuzz_target(NAME wire SOURCES wire.c LIBS hmm_proto [DICTIONARY file] [CORPUS folder ...] [OPTIONS ...])
function(hmm_fuzz_target)
	cmake_parse_arguments(P "" "NAME;DICTIONARY" "SOURCES;LIBS;CORPUS;OPTIONS" ${ARGN})
	foreach(folder IN LISTS P_CORPUS)
		cmake_path(ABSOLUTE_PATH folder BASE_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR})
		list(APPEND corpus ${folder})
	endforeach()
	add_executable(fuzz-${P_NAME} ${P_SOURCES})
	target_link_libraries(fuzz-${P_NAME} PRIVATE ${P_LIBS})
	set(command $<TARGET_FILE:fuzz-${P_NAME}>)
	if(HMM_FUZZ)
		target_compile_options(fuzz-${P_NAME} PRIVATE -fsanitize=fuzzer)
		target_link_options(fuzz-${P_NAME} PRIVATE -fsanitize=fuzzer)
		# New inputs go into the first folder: never into the sources.
		set(grown ${CMAKE_CURRENT_BINARY_DIR}/corpus-${P_NAME})
		file(MAKE_DIRECTORY ${grown})
		list(APPEND command -max_total_time=60 -timeout=60 -print_final_stats=1 ${P_OPTIONS} ${grown})
		if(P_DICTIONARY)
			cmake_path(ABSOLUTE_PATH P_DICTIONARY BASE_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR})
			list(APPEND command -dict=${P_DICTIONARY})
		endif()
	else()
		target_sources(fuzz-${P_NAME} PRIVATE ${PROJECT_SOURCE_DIR}/tests/fuzz/replay.c)
	endif()
	hmm_register_test(NAME fuzz-${P_NAME} LABELS full COMMAND ${command} ${corpus})
endfunction()
