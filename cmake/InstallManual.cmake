# SPDX-License-Identifier: GPL-2.0-or-later
# Manual pages go to their section's folder, by the last letter of their name.

file(GLOB manual_pages CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/docs/man/*.[1-8])
foreach(page IN LISTS manual_pages)
	string(REGEX REPLACE ".*\\.([1-8])$" "\\1" section ${page})
	install(FILES ${page} DESTINATION ${CMAKE_INSTALL_MANDIR}/man${section})
endforeach()
