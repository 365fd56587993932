// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * control_doctor.c - what doctor says of cards, over trees that are made up:
 * notes as long as nobody has a card, warnings for what keeps one from being
 * driven, and the same facts as the kernel's for groups and addresses.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/control/doctor.h"
#include "daemon/control/server.h"
#include "tests/leakcheck.h"

#define CARD	"0000:03:00.0"
#define OTHER	"0000:03:00.1"

static char root[64];
static struct hmm_record_finding findings[16];
static struct examination exam;
static struct server server; /* its configuration alone */

static void begin(void)
{
	leakcheck_begin();
	strcpy(root, "/tmp/hmm-doctor.XXXXXX");
	cr_assert(ne(ptr, mkdtemp(root), NULL));
	umask(0022);
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *where)
{
	return remove(path);
}

static void finish(void)
{
	nftw(root, remove_one, 8, FTW_DEPTH | FTW_PHYS);
	leakcheck_end();
}

TestSuite(doctor, .init = begin, .fini = finish);

/* ---- a machine ---------------------------------------------------------------------------- */

static void in_root(char path[PATH_MAX], const char *format, va_list args)
{
	int length = snprintf(path, PATH_MAX, "%s/", root);

	vsnprintf(path + length, (size_t)(PATH_MAX - length), format, args);
	/* The folders that lead there. */
	for (char *slash = path + length; (slash = strchr(slash, '/')); slash++) {
		*slash = '\0';
		cr_assert(mkdir(path, 0755) == 0 || errno == EEXIST, "%s: %m", path);
		*slash = '/';
	}
}

__attribute__((format(printf, 2, 3))) static void put(const char *text, const char *format, ...)
{
	char path[PATH_MAX];
	va_list args;
	FILE *file;

	va_start(args, format);
	in_root(path, format, args);
	va_end(args);
	file = fopen(path, "we");
	cr_assert(ne(ptr, file, NULL), "%s: %m", path);
	fputs(text, file);
	fclose(file);
}

__attribute__((format(printf, 2, 3))) static void lead(const char *target, const char *format, ...)
{
	char path[PATH_MAX];
	va_list args;

	va_start(args, format);
	in_root(path, format, args);
	va_end(args);
	unlink(path);
	cr_assert(eq(int, symlink(target, path), 0), "%s: %m", path);
}

static void add_device(const char *address, const char *driver, const char *class)
{
	char target[128];

	put(class, "sys/bus/pci/devices/%s/class", address);
	if (*driver) {
		snprintf(target, sizeof(target), "../../drivers/%s", driver);
		lead(target, "sys/bus/pci/devices/%s/driver", address);
		lead("../../devices", "sys/bus/pci/drivers/%s/%s", driver, address);
	}
	lead("../../../../kernel/iommu_groups/7", "sys/bus/pci/devices/%s/iommu_group", address);
	put("", "sys/kernel/iommu_groups/7/devices/%s", address);
}

/* All that a card needs; CAP_IPC_LOCK is not among hmmd's. */
static void make_machine(void)
{
	put("", "sys/class/iommu/dmar0");
	put("", "sys/bus/pci/drivers/vfio-pci/unbind");
	put("", "sys/module/vfio_iommu_type1/version");
	put("", "dev/vfio/vfio");
	put("", "dev/vfio/7");
	put("Name:\thmmd\nCapEff:\t000001ffffffbfff\n", "proc/self/status");
}

static void examine(void)
{
	exam = (struct examination){
		.server = &server, .root = root, .out = findings, .max = 16, .totals.pool_bytes = 64 << 20,
	};
	memset(findings, 0, sizeof(findings));
	doctor_cards(&exam);
	for (unsigned int i = 0; i < exam.count; i++) {
		cr_expect(ne(chr, findings[i].text[0], '\0'));
		cr_expect(ne(chr, findings[i].fix[0], '\0'), "%s", findings[i].name);
		/* Nothing was cut. */
		cr_expect(lt(sz, strlen(findings[i].text), sizeof(findings[i].text) - 1), "%s",
			  findings[i].text);
		cr_expect(lt(sz, strlen(findings[i].fix), sizeof(findings[i].fix) - 1), "%s",
			  findings[i].fix);
	}
}

/* The only finding of that name, or a failure. */
static void expect(const char *name, uint32_t severity, const char *text)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < exam.count; i++) {
		if (strcmp(findings[i].name, name) || !strstr(findings[i].text, text))
			continue;
		cr_expect(eq(u32, findings[i].severity, severity), "%s: %s", name,
			  findings[i].text);
		n++;
	}
	if (n != 1)
		for (unsigned int i = 0; i < exam.count; i++)
			fprintf(stderr, "%u %s: %s\n", findings[i].severity, findings[i].name,
				findings[i].text);
	cr_expect(eq(u32, n, 1), "%s: %s", name, text);
}

/* ---- what it says ---------------------------------------------------------------------------- */

Test(doctor, no_iommu_and_no_card_is_a_note)
{
	put("Name:\thmmd\n", "proc/self/status");
	examine();
	cr_expect(eq(u32, exam.count, 1));
	expect("iommu", DOCTOR_NOTE, "no IOMMU");
	put("", "sys/bus/pci/drivers/e1000/unbind");
	examine();
	cr_expect(eq(u32, exam.count, 1));
}

Test(doctor, an_iommu_and_no_card)
{
	put("", "sys/class/iommu/dmar0");
	examine();
	cr_expect(eq(u32, exam.count, 1));
	expect("vfio", DOCTOR_NOTE, "vfio-pci is not loaded");
	make_machine();
	examine();
	cr_expect(eq(u32, exam.count, 0), "all is there, and nobody has asked for more");
}

Test(doctor, a_card_that_can_be_driven)
{
	struct rlimit limit = { RLIM_INFINITY, RLIM_INFINITY };

	make_machine();
	add_device(CARD, "vfio-pci", "0x030000\n");
	setrlimit(RLIMIT_MEMLOCK, &limit);
	put("Name:\thmmd\nCapEff:\t0000000000004000\n", "proc/self/status");
	examine();
	cr_expect(eq(u32, exam.count, 1));
	expect("card " CARD, DOCTOR_NOTE, "group 7 is viable");
}

Test(doctor, a_group_with_others)
{
	make_machine();
	add_device(CARD, "vfio-pci", "0x030000\n");
	add_device("0000:00:1c.0", "pcieport", "0x060400\n");
	add_device(OTHER, "", "0x040300\n");
	examine();
	expect("card " CARD, DOCTOR_NOTE, "group 7 is viable");
	add_device(OTHER, "snd_hda_intel", "0x040300\n");
	examine();
	expect("card " CARD, DOCTOR_WARNING, OTHER " is in it and has the driver snd_hda_intel");
	add_device(OTHER, "vfio-pci", "0x040300\n");
	examine();
	expect("card " CARD, DOCTOR_NOTE, "group 7 is viable");
	expect("card " OTHER, DOCTOR_NOTE, "group 7 is viable");
}

Test(doctor, a_card_without_an_iommu)
{
	make_machine();
	add_device(CARD, "vfio-pci", "0x030000\n");
	put("vfio-noiommu\n", "sys/kernel/iommu_groups/7/name");
	examine();
	expect("card " CARD, DOCTOR_WARNING, "behind no IOMMU");
	remove(strcat(strcpy((char[PATH_MAX]){ 0 }, root), "/sys/class/iommu/dmar0"));
	examine();
	expect("iommu", DOCTOR_WARNING, "no IOMMU");
}

Test(doctor, what_a_card_lacks)
{
	char path[PATH_MAX];

	make_machine();
	add_device(CARD, "vfio-pci", "0x030000\n");
	snprintf(path, sizeof(path), "%s/dev/vfio/7", root);
	cr_assert(eq(int, unlink(path), 0));
	snprintf(path, sizeof(path), "%s/dev/vfio/vfio", root);
	cr_assert(eq(int, unlink(path), 0));
	snprintf(path, sizeof(path), "%s/sys/module/vfio_iommu_type1/version", root);
	cr_assert(eq(int, unlink(path), 0));
	snprintf(path, sizeof(path), "%s/sys/module/vfio_iommu_type1", root);
	cr_assert(eq(int, rmdir(path), 0));
	examine();
	expect("card " CARD, DOCTOR_WARNING, "may not open /dev/vfio/7");
	expect("vfio", DOCTOR_WARNING, "/dev/vfio/vfio does not exist");
	expect("vfio_iommu_type1", DOCTOR_WARNING, "is not loaded");
}

/* What is configured has to be there; once it is, it is said how large it is. */
Test(doctor, a_bar_as_the_pool)
{
	make_machine();
	strcpy(server.config.pool_card, CARD);
	server.config.pool_bar = 2;
	examine();
	expect("pool " CARD, DOCTOR_ERROR, "there is no such card");
	add_device(CARD, "e1000", "0x030000\n");
	examine();
	expect("pool " CARD, DOCTOR_ERROR, "is not with vfio-pci");
	server.config.pool_card[0] = '\0';
	examine();
	for (unsigned int i = 0; i < exam.count; i++)
		cr_expect(ne(int, strncmp(findings[i].name, "pool", 4), 0));
}

Test(doctor, which_bar)
{
	make_machine();
	strcpy(server.config.pool_card, CARD);
	add_device(CARD, "vfio-pci", "0x030000\n");
	put("0x00000000febf1000 0x00000000febf10ff 0x0000000000040200\n"
	    "0x000000000000c000 0x000000000000cfff 0x0000000000040101\n"
	    "0x00000000f8000000 0x00000000fbffffff 0x000000000014220c\n"
	    "0x0000000000000000 0x0000000000000000 0x0000000000000000\n",
	    "sys/bus/pci/devices/" CARD "/resource");
	server.config.pool_bar = 2;
	examine();
	expect("pool " CARD, DOCTOR_NOTE, "with 65536 KiB");
	for (unsigned int bar = 0; bar < 6; bar++) {
		server.config.pool_bar = bar;
		examine();
		if (bar != 2)
			expect("pool " CARD, DOCTOR_ERROR, "has no memory");
	}
}

/* Bits 16 to 21: the widest address less one; bits 8 to 12: which tables; as the kernel reads them. */
Test(doctor, addresses)
{
	static const struct {
		const char *capability;
		const char *said;	/* NULL: wide enough */
	} rows[] = {
		{ "1c0000c40660462\n", "addresses of 39 bits" },	/* a laptop's graphics */
		{ "d2008c40660462\n", "addresses of 39 bits" },
		{ "d2008c40690462\n", "addresses of 42 bits" },	/* tables of 48, but not all */
		{ "d2008c222f0686\n", NULL },			/* QEMU's, aw-bits=48 */
		{ "8d2078c106f0466\n", NULL },			/* a server's */
		{ "d2008c22260206\n", "addresses of 39 bits" },	/* QEMU's, as it comes */
	};

	make_machine();
	add_device(CARD, "vfio-pci", "0x030000\n");
	lead("../../../../class/iommu/dmar1", "sys/bus/pci/devices/" CARD "/iommu");
	for (unsigned int i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		put(rows[i].capability, "sys/class/iommu/dmar1/intel-iommu/cap");
		examine();
		if (rows[i].said)
			expect("card " CARD, DOCTOR_WARNING, rows[i].said);
		else
			for (unsigned int k = 0; k < exam.count; k++)
				cr_expect(eq(ptr, strstr(findings[k].text, "addresses of"), NULL),
					  "%s", rows[i].capability);
	}
}

Test(doctor, memory_that_may_be_pinned)
{
	struct rlimit limit = { 8 << 20, 8 << 20 };

	make_machine();
	cr_assert(eq(int, setrlimit(RLIMIT_MEMLOCK, &limit), 0));
	examine();
	cr_expect(eq(u32, exam.count, 0), "no card, nothing to pin");
	add_device(CARD, "vfio-pci", "0x030000\n");
	examine();
	expect("pinned memory", DOCTOR_WARNING,
	       "hmmd may pin 8192 KiB for cards, and devices may have 65536 KiB");
	put("Name:\thmmd\nCapEff:\t000001ffffffffff\n", "proc/self/status");
	examine();
	cr_expect(eq(u32, exam.count, 1), "root's limit is none");
}

Test(doctor, more_than_fits)
{
	char address[32];

	make_machine();
	for (unsigned int i = 0; i < 32; i++) {
		snprintf(address, sizeof(address), "0000:04:%02x.0", i);
		add_device(address, "vfio-pci", "0x030000\n");
	}
	examine();
	cr_expect(eq(u32, exam.count, exam.max));
}
