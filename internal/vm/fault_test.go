package vm

import "testing"

// Consoles as 6.1 and 6.12 wrote them, shortened.
func TestFaultOnTheConsole(t *testing.T) {
	const null = `[    2.409300] DEBUG: no fault
[    2.633718] BUG: kernel NULL pointer dereference, address: 0000000000000008
[    2.634569] #PF: supervisor read access in kernel mode
[    2.635322] Oops: 0000 [#1] PREEMPT SMP NOPTI
[    2.636284] RIP: 0010:first_init+0xc/0x1000 [first]
[    2.650089] RIP: 0033:0x40a7ee
[    2.652917] RIP: 0010:second+0xc/0x1000 [first]
`
	for name, c := range map[string]struct{ reason, console, want string }{
		"panic of an oops": {"kernel panic: Fatal exception", null + "[    2.654705] Kernel panic - not syncing: Fatal exception\n",
			"kernel panic: BUG: kernel NULL pointer dereference, address: 0000000000000008 in first_init+0xc/0x1000 [first]"},
		"oops that was survived": {"the program was killed by signal 9 (killed)", null,
			"the program was killed by signal 9 (killed): BUG: kernel NULL pointer dereference, address: 0000000000000008 in first_init+0xc/0x1000 [first]"},
		"BUG()": {"kernel panic: Fatal exception", "[    1.0] ------------[ cut here ]------------\n[    1.1] kernel BUG at /tmp/kmodctl/x-1/x.c:3!\n[    1.2] invalid opcode: 0000 [#1]\n[    1.3] RIP: 0010:x_init+0x0/0x10 [x]\n",
			"kernel panic: kernel BUG at /tmp/kmodctl/x-1/x.c:3! in x_init+0x0/0x10 [x]"},
		"protection": {"kernel panic: Fatal exception", "[    1.0] general protection fault, probably for non-canonical address 0xdead: 0000 [#1]\n",
			"kernel panic: general protection fault, probably for non-canonical address 0xdead: 0000 [#1]"},
		"protection of a program": {"the guest ended before its program did", "[    1.0] traps: init[1] general protection fault ip:401000 sp:7ffd error:0 in init\n",
			"the guest ended before its program did"},
		"jump to nowhere": {"kernel panic: Fatal exception", "[    1.0] BUG: kernel NULL pointer dereference, address: 0000000000000000\n[    1.1] RIP: 0010:0x0\n",
			"kernel panic: BUG: kernel NULL pointer dereference, address: 0000000000000000"},
		"panic alone": {"kernel panic: sysrq triggered crash", "[    1.0] Kernel panic - not syncing: sysrq triggered crash\n[    1.1] RIP: 0010:delay+0x1/0x2\n",
			"kernel panic: sysrq triggered crash"},
	} {
		if got := withFault(c.reason, c.console); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, c.want)
		}
	}
}
