# SPDX-License-Identifier: GPL-2.0-or-later
# Everything that hmmd is built from; cmake/packages.txt names the Debian packages that bring it.

find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(Python3 3.9 REQUIRED COMPONENTS Interpreter)

pkg_check_modules(LIBURING REQUIRED IMPORTED_TARGET liburing>=2.3)
pkg_check_modules(LIBUV REQUIRED IMPORTED_TARGET libuv>=1.40)
pkg_check_modules(NUMA REQUIRED IMPORTED_TARGET numa)
pkg_check_modules(JSONC REQUIRED IMPORTED_TARGET json-c>=0.14)
if(HMM_EXAMPLES)
	pkg_check_modules(ZLIB REQUIRED IMPORTED_TARGET zlib)
endif()
if(HMM_TESTS)
	pkg_check_modules(CRITERION REQUIRED IMPORTED_TARGET criterion>=2.4)
endif()
