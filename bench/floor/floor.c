/* floor NETNS ROOT PROGRAM [ARG...]: what any container start has to do at least. Its parent has cloned it into new mount,
 * pid, ipc and uts namespaces; it enters the network namespace, pivots into the root, mounts /proc and a /dev, gives up all
 * privileges, and executes the program. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static void must(int result, const char *what) {
	if (result < 0) {
		perror(what);
		exit(1);
	}
}

int main(int argc, char **argv) {
	if (argc < 4)
		return 2;
	int ns = open(argv[1], O_RDONLY | O_CLOEXEC);
	must(ns, argv[1]);
	must(setns(ns, CLONE_NEWNET), "setns");
	must(mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL), "slave");
	must(mount(argv[2], argv[2], NULL, MS_BIND | MS_REC, NULL), "bind");
	must(chdir(argv[2]), "chdir");
	must(syscall(SYS_pivot_root, ".", "."), "pivot_root");
	must(umount2(".", MNT_DETACH), "umount");
	must(mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL), "proc");
	must(mount("tmpfs", "/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "size=64k,mode=755"), "dev");
	must(mount(NULL, "/", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV, NULL), "read-only");
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
	for (int cap = 0; prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) == 0; cap++)
		;
	char *env[] = {"PATH=/bin", NULL};
	execve(argv[3], argv + 3, env);
	perror(argv[3]);
	return 1;
}
