/*
 * Stands in for CAP_SYS_RESOURCE in tests: preloaded into CRIU, it lets prlimit(2) read limits of other users' processes.
 *
 * The kernel wants the capability for that (or all six ids equal), though anybody may read the same numbers in
 * /proc/<pid>/limits. So a read that is refused is answered from there. Setting a limit is never faked: that stays the
 * kernel's to refuse. CRIU 4.2.1 makes the call by syscall(3), others may by prlimit(3). Linux on 64 bits, where prlimit
 * and prlimit64 are one and a limit has 64 bits.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/types.h>

/* fs/proc/base.c, proc_pid_limits: a heading, then a line for each resource in the order of their numbers: the name in
 * 26 columns, the soft limit in 21, the hard limit. */
enum { NAME_WIDTH = 26, LIMIT_WIDTH = 21, LINE_LENGTH = 256 };

static long (*libc_syscall)(long number, ...);

__attribute__((constructor)) static void find_libc_syscall(void)
{
	*(void **)&libc_syscall = dlsym(RTLD_NEXT, "syscall");
}

static rlim64_t number_in(const char *column)
{
	return strncmp(column, "unlimited", 9) == 0 ? RLIM64_INFINITY : strtoull(column, NULL, 10);
}

static int read_limit(pid_t pid, int resource, struct rlimit64 *limit)
{
	char line[LINE_LENGTH], path[64];
	int found = 0;

	snprintf(path, sizeof path, "/proc/%d/limits", (int)pid);
	FILE *file = fopen(path, "re");
	if (file == NULL)
		return -1;
	for (int at = -1; at <= resource; at++)
		found = fgets(line, sizeof line, file) != NULL;
	fclose(file);
	if (!found || strlen(line) < NAME_WIDTH + LIMIT_WIDTH)
		return -1;
	limit->rlim_cur = number_in(line + NAME_WIDTH);
	limit->rlim_max = number_in(line + NAME_WIDTH + LIMIT_WIDTH);
	return 0;
}

int prlimit64(pid_t pid, __rlimit_resource_t resource, const struct rlimit64 *new_limit, struct rlimit64 *old_limit)
{
	long answer = libc_syscall(SYS_prlimit64, (long)pid, (long)resource, new_limit, old_limit);

	if (answer == 0 || errno != EPERM || new_limit != NULL || old_limit == NULL)
		return (int)answer;
	if (read_limit(pid, (int)resource, old_limit) == 0)
		return 0;
	errno = EPERM;
	return -1;
}

long syscall(long number, ...)
{
	long words[6]; /* as many as a system call can have: those that were not given are read, and not used */
	va_list given;

	va_start(given, number);
	for (int at = 0; at < 6; at++)
		words[at] = va_arg(given, long);
	va_end(given);
	if (number == SYS_prlimit64)
		return prlimit64((pid_t)words[0], (int)words[1], (const struct rlimit64 *)words[2], (struct rlimit64 *)words[3]);
	return libc_syscall(number, words[0], words[1], words[2], words[3], words[4], words[5]);
}
