/* Tries to get out of a build, and prints of each try whether it was stopped. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static void tried(const char *what, int got)
{
	printf("tried: %s: %s\n", what, got ? "open" : "stopped");
	fflush(stdout);
}

static int opens(const char *path, int flags)
{
	int fd = open(path, flags, 0644);

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

static int sends(int family, int type, const struct sockaddr *to, socklen_t len)
{
	int fd = socket(family, type | SOCK_CLOEXEC, 0);
	int got = fd >= 0 && connect(fd, to, len) == 0 && send(fd, "x", 1, MSG_NOSIGNAL) == 1;

	if (fd >= 0)
		close(fd);
	return got;
}

static int inet(int type, const char *port)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(atoi(port)), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };

	return sends(AF_INET, type, (struct sockaddr *)&to, sizeof(to));
}

static int local(const char *name, int abstract)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };

	strcpy(to.sun_path + abstract, name);
	return sends(AF_UNIX, SOCK_STREAM, (struct sockaddr *)&to, offsetof(struct sockaddr_un, sun_path) + abstract + strlen(name));
}

/* A socket by socket(2) of 32-bit programs, whose numbers a filter for 64 bits does not know. */
static int foreign(void)
{
	int status = 0;
	pid_t child = fork();

	if (child == 0) {
#ifdef __x86_64__
		int fd = 359; /* __NR_socket of i386 */
		asm volatile("int $0x80" : "+a"(fd) : "b"(AF_INET), "c"(SOCK_STREAM), "d"(0) : "memory", "r8", "r9", "r10", "r11");
		_exit(fd >= 0);
#endif
		_exit(0);
	}
	waitpid(child, &status, 0);
	return WIFEXITED(status) && WEXITSTATUS(status) == 1;
}

static int parent(int traced)
{
	pid_t pid = getppid(); /* 0 of a parent in another process namespace */
	int got = pid != 0 && (traced ? ptrace(PTRACE_SEIZE, pid, 0, 0) : kill(pid, 0)) == 0;

	if (got && traced)
		ptrace(PTRACE_DETACH, pid, 0, 0);
	return got;
}

int main(int argc, char **argv)
{
	char path[4096], host[256] = "", params[128] = "";

	if (argc != 11)
		return 2;
	snprintf(path, sizeof(path), "%s/written", argv[1]);
	tried("write a file where everybody may", opens(path, O_WRONLY | O_CREAT | O_EXCL));
	tried("write to /lib/modules", opens("/lib/modules/escaped", O_WRONLY | O_CREAT | O_EXCL));
	tried("read a file of the caller's own", opens(argv[2], O_RDONLY));
	tried("read the signing key", opens(argv[3], O_RDONLY));
	tried("read the registry", opens(argv[4], O_RDONLY));
	tried("write to the registry", opens(argv[4], O_WRONLY));
	tried("reach a TCP port of this machine", inet(SOCK_STREAM, argv[5]));
	tried("reach a UDP port of this machine", inet(SOCK_DGRAM, argv[6]));
	tried("reach the network by 32-bit system calls", foreign());
	tried("reach the network by io_uring", syscall(425, 1, params) >= 0 || errno != ENOSYS);
	tried("reach an abstract socket", local(argv[7], 1));
	tried("reach a service's socket in /run", local(argv[8], 0));
	tried("read shared memory", shmat(shmget(atoi(argv[9]), 0, 0), 0, SHM_RDONLY) != (void *)-1);
	tried("read the caller's keyrings", syscall(SYS_keyctl, 0, -3, 0) >= 0);
	tried("trace kmodctl", parent(1));
	tried("signal kmodctl", parent(0));
	tried("see the machine's processes", access("/proc/2/stat", F_OK) == 0 && getpid() != 1);
	gethostname(host, sizeof(host));
	tried("learn the machine's name", strcmp(host, argv[10]) == 0);

	close(open("set-uid", O_WRONLY | O_CREAT, 0755));
	tried("make a set-user-ID file", chmod("set-uid", 06755) == 0);

	if (fork() == 0) {
		setsid();
		execl("/bin/sleep", "sleep", "98765.4322", (char *)0);
	}
	puts("tried all");
	return 0;
}
