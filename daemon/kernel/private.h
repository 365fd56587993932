/* SPDX-License-Identifier: GPL-2.0-or-later */
/* private.h - the real kernel calls that uffd.c gathers into one table. */
#ifndef HMMD_KERNEL_PRIVATE_H
#define HMMD_KERNEL_PRIVATE_H

#include "kernel.h"

/* What is left alone beside the kernel's own reserve: for what is being filled at this moment, and for others. */
#define KERNEL_MARGIN	(64ULL << 20)

/* A small file of procfs or sysfs, as text. */
bool kernel_read_text(const char *path, char *text, size_t size);
/* A field of a meminfo, in bytes; 0: there is none. */
uint64_t kernel_field(const char *text, const char *name);

int kernel_pagemap_read(int pagemap, uint64_t start, unsigned int pages, uint64_t *entries);
int kernel_page_kinds(int pagemap, uint64_t start, unsigned int pages, uint8_t *kinds);
int kernel_pages_written(int pagemap, uint64_t start, uint64_t end, struct kernel_region *regions,
			 unsigned int max, uint64_t *walked);
int kernel_soft_dirty_clear(int clear_refs);
ssize_t kernel_mem_read(int mem, uint64_t addr, void *buffer, size_t length);
ssize_t kernel_mem_write(int mem, uint64_t addr, const void *buffer, size_t length);
int kernel_vma_at(int maps, uint64_t addr, struct kernel_vma *vma);
int kernel_mapped(int pagemap, uint64_t addr);
int kernel_told(int smaps, uint64_t start, uint64_t end,
		void (*found)(void *data, uint64_t start, uint64_t end, unsigned int told), void *data);
int kernel_memfd_new(const char *name, uint64_t size, unsigned int flags);
int kernel_punch(int fd, uint64_t offset, uint64_t length);
bool kernel_merging(void);
int kernel_collapse(int pidfd, uint64_t start, size_t length);
int kernel_vfio_unmap_all(int container);
int kernel_vfio_master(int device, bool on);
int kernel_node_free(unsigned int node, uint64_t *bytes);
int kernel_place(void *start, size_t length, int policy, const uint64_t *nodes);
int kernel_policy(int policy, uint64_t nodes);
int kernel_populate(void *start, size_t length);
int kernel_lock(void *start, size_t length);
void kernel_room(pid_t pid, uint64_t *bytes, char *what, size_t size);
int kernel_pci_link(const char *address, const char *name, char *target, size_t size);
int kernel_vfio_open(const char *path);
int kernel_vfio_call(int fd, unsigned long request, void *argument);
int kernel_bar_map(int device, unsigned int bar, void **map, uint64_t *length);
int kernel_bar_store(int file, uint64_t offset, void *frame, size_t length);
int kernel_bar_fetch(int file, uint64_t offset, const void *frame, size_t length);
int kernel_vfio_answers(int device);

#endif
