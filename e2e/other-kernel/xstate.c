// Lets user-mode Linux 6.1 run on CPUs with more vector state than AVX-512, such as AMX. Preloaded into linux.uml.
//
// PTRACE_SETREGSET of NT_X86_XSTATE takes the CPU's whole XSAVE area and nothing shorter (xstateregs_set in the kernel's
// arch/x86/kernel/fpu/xstate.c and regset.c), and user-mode Linux 6.1 has 2696 bytes (HOST_FP_SIZE), which is AVX-512 with PKRU. Without this
// its first process ends with "ptrace set fp regs failed, errno = 14". What the CPU has beyond is empty: no process of that kernel may use it.
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

// Not on the stack, which is a small one of that kernel. One thread calls ptrace.
static char area[1 << 16];
static size_t whole;

static long set_state(pid_t pid, const struct iovec *part) {
  struct iovec full = {area, sizeof area};
  if (!whole) {
    if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, NT_X86_XSTATE, &full) < 0) return -1;
    whole = full.iov_len;
    memset(area, 0, sizeof area);
  }
  if (part->iov_len >= whole) return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, NT_X86_XSTATE, part);
  memcpy(area, part->iov_base, part->iov_len);
  full.iov_len = whole;
  return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, NT_X86_XSTATE, &full);
}

long ptrace(enum __ptrace_request request, ...) {
  va_list arguments;
  va_start(arguments, request);
  pid_t pid = va_arg(arguments, pid_t);
  void *address = va_arg(arguments, void *);
  void *data = va_arg(arguments, void *);
  va_end(arguments);
  if (request == PTRACE_SETREGSET && address == (void *)NT_X86_XSTATE) return set_state(pid, data);
  // As the C library's: a peek returns what it reads.
  int peeks = request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER;
  long word = 0;
  long result = syscall(SYS_ptrace, request, pid, address, peeks ? &word : data);
  if (result < 0 || !peeks) return result;
  errno = 0;
  return word;
}
