# SPDX-License-Identifier: GPL-2.0-or-later
# Options of the build and the flags they stand for. CMakePresets.json names the useful combinations.

set(HMM_SANITIZE "" CACHE STRING "Sanitizers: empty, 'address,undefined' or 'thread'")
option(HMM_COVERAGE "Instrument for gcov" OFF)
option(HMM_FUZZ "Build the libFuzzer targets (clang only)" OFF)
option(HMM_HARDENED "Stack protector, fortify, CET, RELRO and immediate binding" OFF)
option(HMM_WERROR "Treat warnings as errors" OFF)
option(HMM_TESTS "Build the tests" ON)
option(HMM_EXAMPLES "Build the examples, the demo among them" ON)
option(HMM_BENCH "Build the benchmarks" ON)
option(HMM_RUN_UNINSTALLED "hmmctl run takes the preload module from the build folder, when it is there" ON)

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
	set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "Build type" FORCE)
endif()

# Assertions stay in every build: a daemon that dies costs its users a pause, one that goes on wrongly costs them bytes.
foreach(type RELEASE RELWITHDEBINFO MINSIZEREL)
	string(REPLACE "-DNDEBUG" "" CMAKE_C_FLAGS_${type} "${CMAKE_C_FLAGS_${type}}")
endforeach()

set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS ON)
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(THREADS_PREFER_PTHREAD_FLAG ON)

include(CheckPIESupported)
check_pie_supported(LANGUAGES C)

# Empty on purpose: a source that says `#define _GNU_SOURCE` itself then repeats it and does not redefine it.
add_compile_definitions(_GNU_SOURCE= _FILE_OFFSET_BITS=64)
add_compile_options(-Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla
	-Wno-unused-parameter -fno-common)
# The kernel's headers have structures that end in an array, and messages begin with them.
if(CMAKE_C_COMPILER_ID MATCHES "Clang")
	add_compile_options(-Wno-gnu-variable-sized-type-not-at-end)
endif()
if(HMM_WERROR)
	add_compile_options(-Werror)
endif()

if(HMM_SANITIZE)
	if(NOT HMM_SANITIZE MATCHES "^(address|undefined|address,undefined|thread)$")
		message(FATAL_ERROR "HMM_SANITIZE=${HMM_SANITIZE}: use 'address,undefined' or 'thread'")
	endif()
	add_compile_options(-fsanitize=${HMM_SANITIZE} -fno-omit-frame-pointer)
	add_link_options(-fsanitize=${HMM_SANITIZE})
	if(HMM_SANITIZE MATCHES "thread")
		# It does not follow fences. What they order here are accesses that are atomic themselves.
		add_compile_options(-Wno-tsan)
	endif()
	if(HMM_SANITIZE MATCHES "undefined")
		add_compile_options(-fno-sanitize-recover=undefined)
	endif()
endif()

if(HMM_COVERAGE)
	add_compile_options(--coverage -fprofile-update=atomic)
	add_link_options(--coverage)
endif()

if(HMM_FUZZ)
	if(NOT CMAKE_C_COMPILER_ID MATCHES "Clang")
		message(FATAL_ERROR "HMM_FUZZ needs clang: configure with -DCMAKE_C_COMPILER=clang")
	endif()
	add_compile_options(-fsanitize=fuzzer-no-link)
endif()

if(HMM_HARDENED)
	add_compile_options(-fstack-protector-strong -fstack-clash-protection -fcf-protection=full
		-ftrivial-auto-var-init=zero -Wformat -Werror=format-security
		-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3)
	add_link_options(-Wl,-z,relro -Wl,-z,now -Wl,-z,noexecstack -Wl,--as-needed)
endif()
