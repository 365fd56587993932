/* SPDX-License-Identifier: GPL-2.0-or-later */
/* private.h - the real kernel calls that uffd.c gathers into one table. */
#ifndef HMMD_KERNEL_PRIVATE_H
#define HMMD_KERNEL_PRIVATE_H

#include "kernel.h"

int kernel_pagemap_read(int pagemap, uint64_t start, unsigned int pages, uint64_t *entries);
int kernel_page_kinds(int pagemap, uint64_t start, unsigned int pages, uint8_t *kinds);
ssize_t kernel_mem_read(int mem, uint64_t addr, void *buffer, size_t length);
ssize_t kernel_mem_write(int mem, uint64_t addr, const void *buffer, size_t length);
int kernel_vma_at(int maps, uint64_t addr, struct kernel_vma *vma);
int kernel_memfd_new(const char *name, uint64_t size, unsigned int flags);
int kernel_punch(int fd, uint64_t offset, uint64_t length);
bool kernel_merging(void);
int kernel_collapse(int pidfd, uint64_t start, size_t length);

#endif
