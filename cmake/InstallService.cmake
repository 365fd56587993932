# SPDX-License-Identifier: GPL-2.0-or-later
# What makes a service of hmmd. systemd and udev look below /usr/local/lib as below /usr/lib; the configuration hmmd reads in /etc, so
# a package sets CMAKE_INSTALL_SYSCONFDIR=/etc.

configure_file(systemd/hmmd.service.in systemd/hmmd.service @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/systemd/hmmd.service systemd/hmmd.socket systemd/hmmd-admin.socket
	DESTINATION lib/systemd/system)
install(FILES systemd/hmmd.sysusers DESTINATION lib/sysusers.d RENAME hmmd.conf)
install(FILES systemd/hmmd.tmpfiles DESTINATION lib/tmpfiles.d RENAME hmmd.conf)
install(FILES systemd/60-hmmd.rules DESTINATION lib/udev/rules.d)
install(FILES systemd/hmmd.conf DESTINATION ${CMAKE_INSTALL_SYSCONFDIR}/hmmd)
install(DIRECTORY DESTINATION ${CMAKE_INSTALL_SYSCONFDIR}/hmmd/hmmd.conf.d)
