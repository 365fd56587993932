/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Kernel interfaces that hmmd uses and that older system headers lack: Debian 12
 * ships the headers of Linux 6.1. Everything here is guarded, so that with newer
 * headers theirs are used; the numbers are the kernel's and never change.
 *
 * That something is defined here says nothing about the running kernel: probe
 * at run time, never by version.
 */
#ifndef HMM_PROTO_UAPI_H
#define HMM_PROTO_UAPI_H

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/memfd.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>

/* ---- userfaultfd ------------------------------------------------------- */

/* Linux 6.1: a full userfaultfd for whoever was handed an open /dev/userfaultfd. */
#ifndef USERFAULTFD_IOC
#define USERFAULTFD_IOC			0xAA
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW		_IO(USERFAULTFD_IOC, 0x00)
#endif
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY		1
#endif

#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM	(1 << 12)
#endif
#ifndef UFFD_FEATURE_WP_UNPOPULATED	/* Linux 6.4 */
#define UFFD_FEATURE_WP_UNPOPULATED	(1 << 13)
#endif
#ifndef UFFD_FEATURE_POISON		/* Linux 6.6 */
#define UFFD_FEATURE_POISON		(1 << 14)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC		/* Linux 6.7 */
#define UFFD_FEATURE_WP_ASYNC		(1 << 15)
#endif
#ifndef UFFD_FEATURE_MOVE		/* Linux 6.8 */
#define UFFD_FEATURE_MOVE		(1 << 16)
#endif

#ifndef UFFDIO_CONTINUE_MODE_DONTWAKE
#define UFFDIO_CONTINUE_MODE_DONTWAKE	((__u64)1 << 0)
#endif
#ifndef UFFDIO_CONTINUE_MODE_WP		/* Linux 6.4 */
#define UFFDIO_CONTINUE_MODE_WP		((__u64)1 << 1)
#endif

#ifndef UFFDIO_MOVE
struct uffdio_move {
	__u64 dst;
	__u64 src;
	__u64 len;
	__u64 mode;
	__s64 move;	/* written by the kernel: bytes done, or a negative errno */
};
#define _UFFDIO_MOVE			(0x05)
#define UFFDIO_MOVE			_IOWR(UFFDIO, _UFFDIO_MOVE, struct uffdio_move)
#endif
#ifndef UFFDIO_MOVE_MODE_DONTWAKE
#define UFFDIO_MOVE_MODE_DONTWAKE	((__u64)1 << 0)
#endif
#ifndef UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES
#define UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES	((__u64)1 << 1)
#endif

#ifndef UFFDIO_POISON
struct uffdio_poison {
	struct uffdio_range range;
	__u64 mode;
	__s64 updated;	/* written by the kernel: bytes done, or a negative errno */
};
#define _UFFDIO_POISON			(0x08)
#define UFFDIO_POISON			_IOWR(UFFDIO, _UFFDIO_POISON, struct uffdio_poison)
#endif
#ifndef UFFDIO_POISON_MODE_DONTWAKE
#define UFFDIO_POISON_MODE_DONTWAKE	((__u64)1 << 0)
#endif

/* ---- /proc/PID/pagemap and /proc/PID/maps ------------------------------- */

/* An entry of /proc/PID/pagemap; in no system header of any version. */
#define PM_SOFT_DIRTY			(1ULL << 55)
#define PM_EXCLUSIVE			(1ULL << 56)
#define PM_UFFD_WP			(1ULL << 57)
#define PM_GUARD			(1ULL << 58)
#define PM_FILE				(1ULL << 61)
#define PM_SWAP				(1ULL << 62)
#define PM_PRESENT			(1ULL << 63)

#ifndef PROCFS_IOCTL_MAGIC
#define PROCFS_IOCTL_MAGIC		'f'
#endif

#ifndef PAGEMAP_SCAN			/* Linux 6.7 */
struct page_region {
	__u64 start;
	__u64 end;
	__u64 categories;
};

struct pm_scan_arg {
	__u64 size;
	__u64 flags;
	__u64 start;
	__u64 end;
	__u64 walk_end;
	__u64 vec;
	__u64 vec_len;
	__u64 max_pages;
	__u64 category_inverted;
	__u64 category_mask;
	__u64 category_anyof_mask;
	__u64 return_mask;
};
#define PAGEMAP_SCAN			_IOWR(PROCFS_IOCTL_MAGIC, 16, struct pm_scan_arg)
#endif
#ifndef PAGE_IS_WPALLOWED
#define PAGE_IS_WPALLOWED		(1 << 0)
#define PAGE_IS_WRITTEN			(1 << 1)
#define PAGE_IS_FILE			(1 << 2)
#define PAGE_IS_PRESENT			(1 << 3)
#define PAGE_IS_SWAPPED			(1 << 4)
#define PAGE_IS_PFNZERO			(1 << 5)
#define PAGE_IS_HUGE			(1 << 6)
#endif
#ifndef PAGE_IS_SOFT_DIRTY
#define PAGE_IS_SOFT_DIRTY		(1 << 7)
#endif
#ifndef PAGE_IS_GUARD			/* Linux 6.15 */
#define PAGE_IS_GUARD			(1 << 8)
#endif
#ifndef PM_SCAN_WP_MATCHING
#define PM_SCAN_WP_MATCHING		(1 << 0)
#define PM_SCAN_CHECK_WPASYNC		(1 << 1)
#endif

#ifndef PROCMAP_QUERY			/* Linux 6.11 */
enum procmap_query_flags {
	PROCMAP_QUERY_VMA_READABLE		= 0x01,
	PROCMAP_QUERY_VMA_WRITABLE		= 0x02,
	PROCMAP_QUERY_VMA_EXECUTABLE		= 0x04,
	PROCMAP_QUERY_VMA_SHARED		= 0x08,
	PROCMAP_QUERY_COVERING_OR_NEXT_VMA	= 0x10,
	PROCMAP_QUERY_FILE_BACKED_VMA		= 0x20,
};

struct procmap_query {
	__u64 size;
	__u64 query_flags;
	__u64 query_addr;
	__u64 vma_start;
	__u64 vma_end;
	__u64 vma_flags;
	__u64 vma_page_size;
	__u64 vma_offset;
	__u64 inode;
	__u32 dev_major;
	__u32 dev_minor;
	__u32 vma_name_size;
	__u32 build_id_size;
	__u64 vma_name_addr;
	__u64 build_id_addr;
};
#define PROCMAP_QUERY			_IOWR(PROCFS_IOCTL_MAGIC, 17, struct procmap_query)
#endif

/* ---- madvise ------------------------------------------------------------ */

#ifndef MADV_COLD
#define MADV_COLD			20
#endif
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT			21
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ		22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE		23
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED		24
#endif
#ifndef MADV_COLLAPSE			/* Linux 6.1 */
#define MADV_COLLAPSE			25
#endif
#ifndef MADV_GUARD_INSTALL		/* Linux 6.13 */
#define MADV_GUARD_INSTALL		102
#endif
#ifndef MADV_GUARD_REMOVE
#define MADV_GUARD_REMOVE		103
#endif

/* ---- memfds, pidfds, sockets -------------------------------------------- */

#ifndef MFD_NOEXEC_SEAL			/* Linux 6.3 */
#define MFD_NOEXEC_SEAL			0x0008U
#endif
#ifndef MFD_EXEC
#define MFD_EXEC			0x0010U
#endif
#ifndef F_ADD_SEALS
#define F_ADD_SEALS			1033
#define F_GET_SEALS			1034
#define F_SEAL_SEAL			0x0001
#define F_SEAL_SHRINK			0x0002
#define F_SEAL_GROW			0x0004
#define F_SEAL_WRITE			0x0008
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE		0x0010
#endif
#ifndef F_SEAL_EXEC			/* Linux 6.3 */
#define F_SEAL_EXEC			0x0020
#endif

#ifndef PIDFD_THREAD			/* Linux 6.9 */
#define PIDFD_THREAD			O_EXCL
#endif
#ifndef SO_PEERPIDFD			/* Linux 6.5 */
#define SO_PEERPIDFD			77
#endif
#ifndef SCM_PIDFD
#define SCM_PIDFD			0x04
#endif

#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal		424
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open			434
#endif
#ifndef SYS_close_range
#define SYS_close_range			436
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd			438
#endif
#ifndef SYS_process_madvise
#define SYS_process_madvise		440
#endif
#ifndef SYS_futex_waitv
#define SYS_futex_waitv			449
#endif
#ifndef SYS_mseal			/* Linux 6.10 */
#define SYS_mseal			462
#endif

#endif /* HMM_PROTO_UAPI_H */
